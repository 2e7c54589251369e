//! A delivered folder is removed: what the list of the checked folder names, as it was then, and nothing else.
//!
//! The list is on disk before the removal is decided, so that a removal that a crash cut off goes on by the same list.
//! What the list does not name was never delivered, whatever its times say (a folder with old files that was moved in),
//! and stays. The list is read from front to back: no matter how deep a tree somebody moved in, it is not walked.
//!
//! A file that cannot be removed (it is immutable, or its folder read-only) keeps no other one. Whoever frees it changes
//! its ctime, so its digest is noted in the list first: then its bytes say that it is still what was checked.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufReader, BufWriter, Cursor, Read, Seek, SeekFrom, Write},
};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::Dir;
use dropwire_protocol::{Digest, RemotePath};

use super::check::digest;
use crate::{
    failpoints,
    fs::{
        border::Side,
        bundle::{self, Kind, Listing, Step, Trouble},
        confined::{self, Parents},
        durable,
        lease::{Asked, Lease},
        version::Version,
    },
    io_error,
};

/// Most bytes of a list that is kept in memory, where the disk has no room for it.
const IN_MEMORY: usize = 16 << 20;

/// The name in `leaving` of a folder whose removal is decided.
pub(super) fn decided_name(name: &str) -> OsString {
    format!("{name}.gone").into()
}

/// The folder whose removal was decided; with more behind the name where an earlier version of dropwire did, without a
/// list.
pub(super) fn find_decided(leaving: &Dir, name: &str) -> io::Result<Option<OsString>> {
    let decided = decided_name(name);
    for entry in leaving.entries()? {
        let found = entry?.file_name();
        let rest = found.as_encoded_bytes().strip_prefix(decided.as_encoded_bytes());
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b".")) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What a folder held when it was checked.
pub(super) struct List {
    entries: Counted<Box<dyn Read>>,
    /// Its own name in `leaving`; None: it is only in memory.
    name: Option<OsString>,
}

impl List {
    fn new(entries: impl Read + 'static, name: Option<OsString>) -> Self {
        Self {
            entries: Counted(Box::new(entries), 0),
            name,
        }
    }
}

/// Lists `folder`, and writes the list into `leaving`, synced; its name is durable after a sync of `leaving`. A disk
/// without room for it is no reason to keep what would make room: then the list is only in memory.
pub(super) fn write_list(leaving: &Dir, name: &str, folder: &Dir) -> Result<(Listing, List), Trouble> {
    let failed = |e: io::Error| Trouble::Held(format!("the list of what may be removed: {e}"));
    forget_list(leaving, name).map_err(failed)?;
    let mut file = durable::create_private(leaving, &list_name(name)).map_err(failed)?;
    let mut out = BufWriter::new(&mut file);
    let written = listed(folder, true, &mut out).and_then(|listing| Ok((listing, out.flush()?)));
    drop(out);
    let synced = written.and_then(|(listing, ())| {
        failpoints::step("S5-folder-list", || durable::sync_file(&file))?;
        file.rewind()?;
        Ok(listing)
    });
    match synced {
        Ok(listing) => Ok((listing, List::new(BufReader::new(file), Some(list_name(name))))),
        Err(Unwritten::Folder(trouble)) => Err(trouble),
        Err(Unwritten::List(e)) if io_error::is_full(&e) => {
            forget_list(leaving, name).map_err(failed)?;
            let mut bytes = Bounded(Vec::new());
            match listed(folder, false, &mut bytes) {
                Ok(listing) => Ok((listing, List::new(Cursor::new(bytes.0), None))),
                Err(Unwritten::Folder(trouble)) => Err(trouble),
                Err(Unwritten::List(_)) => Err(failed(e)),
            }
        }
        Err(Unwritten::List(e)) => Err(failed(e)),
    }
}

/// The list that was written before a crash; None: there is none.
pub(super) fn find_list(leaving: &Dir, name: &str) -> io::Result<Option<List>> {
    let name = list_name(name);
    match confined::open_file(leaving, &name) {
        Ok(file) => Ok(Some(List::new(BufReader::new(file), Some(name)))),
        Err(e) if confined::is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Nothing is removed by it any more.
pub(super) fn forget_list(leaving: &Dir, name: &str) -> io::Result<()> {
    match durable::unlink(leaving, &list_name(name)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn list_name(name: &str) -> OsString {
    format!("{name}.list").into()
}

/// Why there is no list.
enum Unwritten {
    Folder(Trouble),
    List(io::Error),
}

impl From<Trouble> for Unwritten {
    fn from(trouble: Trouble) -> Self {
        Self::Folder(trouble)
    }
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Self::List(error)
    }
}

/// With room for notes, or without.
fn listed(folder: &Dir, notes: bool, out: &mut dyn Write) -> Result<Listing, Unwritten> {
    let mut failed = None;
    let listing = bundle::list(folder, false, &mut |step| {
        Entry::of(step)
            .map_or(Ok(()), |entry| entry.write(notes, out))
            .map_err(|e| {
                failed = Some(e);
                Trouble::Changed
            })
    });
    match failed {
        Some(e) => Err(Unwritten::List(e)),
        None => Ok(listing?),
    }
}

#[cfg(test)]
pub(super) fn write_list_as_before(leaving: &Dir, name: &str, folder: &std::path::Path) {
    let mut bytes = Vec::new();
    let folder = confined::root(folder).unwrap();
    assert!(listed(&folder, false, &mut bytes).is_ok());
    leaving.write(list_name(name), bytes).unwrap();
}

/// Takes [`IN_MEMORY`] bytes.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > IN_MEMORY {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Knows how much was read.
struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(bytes)?;
        self.1 += read as u64;
        Ok(read)
    }
}

/// A version, its ctime included.
type Stamp = [u8; 40];

fn stamp(version: &Version) -> Stamp {
    let mut stamp = [0; 40];
    stamp[..32].copy_from_slice(&version.identity_bytes());
    stamp[32..].copy_from_slice(&version.ctime_ns.to_be_bytes());
    stamp
}

/// Kinds of entries. The files of the first two have no room for a note: in memory, and on disk by earlier versions.
const FILE: u8 = 0;
const FOLDER: u8 = 1;
const LINKED_FILE: u8 = 2;
const NOTED_FILE: u8 = 3;

/// No digest is noted yet. One that was written only in part is none of the file.
const UNNOTED: [u8; 32] = [0; 32];

/// One file or folder of the list; on disk: kind, stamp, the number of names of a file that has several or has room for a
/// note, that note, length of the path, path.
struct Entry {
    is_folder: bool,
    stamp: Stamp,
    /// Of a file.
    links: u64,
    /// The digest of a file that could not be removed, and where in the list it stands; None: there is no room for it.
    note: Option<(u64, [u8; 32])>,
    path: RemotePath,
}

impl Entry {
    /// None: it is not removed by the list.
    fn of(step: &Step<'_>) -> Option<Self> {
        Some(Self {
            is_folder: match step.kind {
                Kind::Folder => true,
                Kind::File => false,
                Kind::Other(_) => return None,
            },
            stamp: stamp(&step.version),
            links: step.links,
            note: None,
            path: step.path.clone()?,
        })
    }

    fn noted(&self) -> Option<Digest> {
        let (_, digest) = self.note.filter(|(_, digest)| *digest != UNNOTED)?;
        (!failpoints::mutant("S5-folder-freed")).then_some(Digest(digest))
    }

    fn write(&self, notes: bool, out: &mut dyn Write) -> io::Result<()> {
        let path = self.path.as_bytes();
        let length = u16::try_from(path.len()).map_err(io::Error::other)?;
        let kind = match (self.is_folder, self.links) {
            (true, _) => FOLDER,
            (false, _) if notes => NOTED_FILE,
            (false, ..=1) => FILE,
            (false, _) => LINKED_FILE,
        };
        out.write_all(&[kind])?;
        out.write_all(&self.stamp)?;
        if matches!(kind, LINKED_FILE | NOTED_FILE) {
            out.write_all(&self.links.to_be_bytes())?;
        }
        if kind == NOTED_FILE {
            out.write_all(&UNNOTED)?;
        }
        out.write_all(&length.to_be_bytes())?;
        out.write_all(path)
    }

    /// None: that was all.
    fn read(from: &mut Counted<impl Read>) -> io::Result<Option<Self>> {
        let (mut kind, mut stamp, mut length) = ([FILE], [0; 40], [0; 2]);
        let (mut links, mut note) = (1_u64.to_be_bytes(), None);
        match from.read_exact(&mut kind) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        from.read_exact(&mut stamp)?;
        if matches!(kind, [LINKED_FILE | NOTED_FILE]) {
            from.read_exact(&mut links)?;
        }
        if kind == [NOTED_FILE] {
            let (at, mut digest) = (from.1, UNNOTED);
            from.read_exact(&mut digest)?;
            note = Some((at, digest));
        }
        from.read_exact(&mut length)?;
        let mut path = vec![0; u16::from_be_bytes(length).into()];
        from.read_exact(&mut path)?;
        Ok(Some(Self {
            is_folder: kind == [FOLDER],
            stamp,
            links: u64::from_be_bytes(links),
            note,
            path: RemotePath::parse(&path).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?,
        }))
    }
}

/// Removes from the folder `name` in `leaving` what the list names and was not changed since, and the folder. False:
/// something stays, and the folder with it. The error is the first one; all else was removed. Durable once `leaving` is
/// synced; may be repeated. Once `stopped` says so, no more bytes are compared.
pub(super) fn remove(
    leaving: &Dir,
    name: &OsStr,
    list: List,
    stopped: &dyn Fn() -> bool,
) -> io::Result<bool> {
    let folder = match leaving.open_dir_nofollow(name) {
        Err(e) if confined::is_absent(&e) => return Ok(true),
        folder => folder?,
    };
    let mut removal = Removal {
        side: Side::of(&folder)?,
        parents: Parents::new(folder),
        within: Vec::new(),
        notes: Notes {
            leaving,
            name: list.name,
            file: None,
        },
        stopped,
        failed: None,
    };
    let mut entries = list.entries;
    while let Some(entry) = Entry::read(&mut entries)? {
        removal.leave_up_to(Some(&entry.path));
        if entry.is_folder {
            removal.within.push(entry);
        } else {
            let removed = removal.file(&entry);
            removal.note_failed(removed);
        }
    }
    removal.leave_up_to(None);
    removal.notes.sync()?;
    match removal.failed {
        Some(error) => Err(error),
        None => remove_folder(leaving, name),
    }
}

/// It went, or became something else, by somebody else's doing.
fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if confined::is_absent(&e) => Ok(()),
        other => other,
    }
}

struct Removal<'a> {
    parents: Parents,
    side: Side,
    /// The listed folders that the list is in, each within the one before it.
    within: Vec<Entry>,
    notes: Notes<'a>,
    stopped: &'a dyn Fn() -> bool,
    /// The first error.
    failed: Option<io::Error>,
}

impl Removal<'_> {
    fn note_failed(&mut self, removed: io::Result<()>) {
        if let Err(error) = absent_is_fine(removed) {
            self.failed.get_or_insert(error);
        }
    }

    /// The listed folders that do not hold `path` have been cleared.
    fn leave_up_to(&mut self, path: Option<&RemotePath>) {
        let holds = |folder: &Entry| path.is_some_and(|path| is_below(path, &folder.path));
        while let Some(folder) = self.within.pop_if(|folder| !holds(folder)) {
            let removed = self.folder(&folder);
            self.note_failed(removed);
        }
    }

    fn folder(&mut self, entry: &Entry) -> io::Result<()> {
        let parent = self.parents.of(&entry.path)?;
        let name = confined::os_str(entry.path.file_name())?;
        let meta = parent.symlink_metadata(name)?;
        // Inode and birth: its times changed when it was cleared.
        if meta.is_dir() && stamp(&Version::listed(parent, name, &meta))[..16] == entry.stamp[..16] {
            remove_folder(parent, name)?;
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry) -> io::Result<()> {
        let parent = self.parents.of(&entry.path)?;
        let name = confined::os_str(entry.path.file_name())?;
        let file = confined::open_file(parent, name)?;
        // A writer is held up for as long as it lives.
        let lease = match Lease::take(&file) {
            Asked::Writer => return Ok(()),
            Asked::Unsupported => None,
            Asked::Lease(lease) => Some(lease),
        };
        let inspect = || {
            let meta = parent.symlink_metadata(name)?;
            let now = stamp(&Version::listed(parent, name, &meta));
            Ok::<_, io::Error>((meta, now))
        };
        let (meta, now) = inspect()?;
        // None: somebody wrote meanwhile.
        let bytes = || {
            let digest =
                digest(&file, meta.len(), self.stopped)?.ok_or_else(|| io::Error::other("stopped"))?;
            let is_still = inspect()?.1 == now && lease.as_ref().is_none_or(Lease::whole);
            Ok::<_, io::Error>(is_still.then_some(digest))
        };
        // Another of its names was removed since, before a crash maybe: its ctime is of that.
        let lost_a_name = meta.nlink() < entry.links && !failpoints::mutant("S5-folder-links");
        let is_as_checked = self.side.holds(parent, name, &meta)
            && now[..32] == entry.stamp[..32]
            && (lost_a_name
                || now == entry.stamp
                || match entry.noted() {
                    Some(noted) => bytes()? == Some(noted),
                    None => false,
                });
        if !is_as_checked && !failpoints::mutant("S5-folder-late") {
            return Ok(());
        }
        let removed = absent_is_fine(durable::unlink(parent, name));
        if removed.is_err()
            && let Err(error) = self.notes.add(entry, bytes)
        {
            tracing::debug!(path = %entry.path, %error, "what cannot be removed is not noted");
        }
        removed
    }
}

/// Digests that are noted in the list itself, as far as that works.
struct Notes<'a> {
    leaving: &'a Dir,
    name: Option<OsString>,
    file: Option<File>,
}

impl Notes<'_> {
    /// Notes the `bytes` of a file that could not be removed, unless they are known: then that is synced once more, as an
    /// earlier run may have been killed before it was.
    fn add(&mut self, entry: &Entry, bytes: impl FnOnce() -> io::Result<Option<Digest>>) -> io::Result<()> {
        let (Some(name), Some((at, noted))) = (&self.name, entry.note) else {
            return Ok(());
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(durable::open_private(self.leaving, name)?),
        };
        if noted == UNNOTED
            && let Some(Digest(digest)) = bytes()?
        {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&digest)?;
        }
        Ok(())
    }

    /// A note that is not on disk is none: the file may be freed at any time.
    fn sync(self) -> io::Result<()> {
        match self.file {
            Some(file) => failpoints::step("S5-folder-note", || durable::sync_file(&file)),
            None => Ok(()),
        }
    }
}

fn is_below(path: &RemotePath, folder: &RemotePath) -> bool {
    let rest = path.as_bytes().strip_prefix(folder.as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b"/"))
}

/// Also one in which only litter is left. False: something else is.
fn remove_folder(parent: &Dir, name: &OsStr) -> io::Result<bool> {
    let remove = || match parent.remove_dir(name) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(e) if confined::is_absent(&e) => Ok(true),
        removed => removed.map(|()| true),
    };
    if remove()? {
        return Ok(true);
    }
    let folder = parent.open_dir_nofollow(name)?;
    for entry in folder.entries()? {
        let name = entry?.file_name();
        match bundle::is_litter(&folder, &name) {
            true => absent_is_fine(durable::unlink(&folder, &name))?,
            false => return Ok(false),
        }
    }
    remove()
}
