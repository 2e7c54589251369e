//! A `send` on its way into the spool: copies of files that somebody else opened.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::{SpoolError, discard, room::Room};
use crate::{
    error::shown,
    failpoints,
    fs::{
        confined, durable, file_system, folder_id,
        version::{Found, OutboxId, Version},
    },
};

/// Most files of one `send`: what is kept in memory of each until all are queued is some hundred bytes.
const MAX_FILES: usize = if cfg!(test) { 8 } else { 500_000 };
/// How much is copied between two checks whether anybody still waits.
const PIECE: usize = 256 * 1024;

/// A file to be copied.
#[derive(Debug)]
pub struct Original<'a> {
    /// Which of the things that are sent it is, or is in.
    pub named: u32,
    /// The path under which it is sent.
    pub name: &'a [u8],
    /// Where it is.
    pub path: &'a Path,
    /// Opened for reading; its position is not used and not changed, since whoever opened it may still move it.
    pub file: &'a File,
}

/// Folders below the spool that are being filled; nothing of them is queued yet.
///
/// Crashed before that, they stay until [`super::discard_unused`]. To be given up by [`Filling::discard`].
#[derive(Debug)]
pub struct Filling {
    /// Private; made where it is missing.
    spool: PathBuf,
    /// Things of one name are each in another.
    roots: Vec<Root>,
    /// In which of the roots each thing is.
    things: HashMap<u32, usize>,
    /// How many things have each first name: the first of them is in the first root, and so on.
    names: HashMap<String, usize>,
    copies: Vec<Copied>,
    /// The folder that was used last.
    last: Option<(usize, Option<RemotePath>, Dir)>,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    id: OutboxId,
    /// Those in it, to be synced at the end.
    folders: BTreeSet<RemotePath>,
}

/// A copy that is on disk.
#[derive(Debug)]
pub struct Copied {
    /// The send's folder: the outbox of this file.
    pub root: PathBuf,
    /// The copy.
    pub found: Found,
    /// Where its original is.
    pub original: PathBuf,
}

impl Filling {
    /// Begins with nothing; folders are made as files come.
    pub fn new(spool: PathBuf) -> Self {
        Self {
            spool,
            roots: Vec::new(),
            things: HashMap::new(),
            names: HashMap::new(),
            copies: Vec::new(),
            last: None,
        }
    }

    /// How many files were copied.
    pub fn len(&self) -> usize {
        self.copies.len()
    }

    /// Nothing was copied yet.
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// Copies one file, for as long as `waits` says that somebody waits for it. Blocks as long as copying takes. After an
    /// error the whole is to be discarded.
    pub fn take(&mut self, original: &Original<'_>, waits: &dyn Fn() -> bool) -> Result<(), SpoolError> {
        let taken = self.copy(original, waits);
        taken.map_err(|source| SpoolError {
            path: shown(original.path),
            source,
        })
    }

    fn copy(&mut self, original: &Original<'_>, waits: &dyn Fn() -> bool) -> io::Result<()> {
        if self.copies.len() >= MAX_FILES && !failpoints::mutant("send-files") {
            return Err(invalid(&format!("more than {MAX_FILES} files at once")));
        }
        let path = RemotePath::parse(original.name).map_err(|e| invalid(&e.to_string()))?;
        let at = self.root_of(original.named, &path)?;
        let name = confined::os_str(path.file_name())?.to_owned();
        let version = copy(original.file, self.folder(at, path.parent())?, &name, waits)?;
        let root = &self.roots[at];
        let outbox = root.id;
        self.copies.push(Copied {
            root: root.path.clone(),
            found: Found {
                outbox,
                path,
                version,
            },
            original: original.path.to_owned(),
        });
        Ok(())
    }

    /// All is on disk when it returns: each copy, where it is, in which order it came.
    pub fn finish(&mut self) -> Result<Vec<Copied>, SpoolError> {
        self.last = None;
        for root in &self.roots {
            sync(root).map_err(|source| SpoolError {
                path: shown(&root.path),
                source,
            })?;
        }
        Ok(std::mem::take(&mut self.copies))
    }

    /// Removes everything; nothing of it may be queued.
    pub fn discard(self) -> io::Result<()> {
        drop(self.last);
        let mut result = Ok(());
        for root in &self.roots {
            result = discard(&root.path).and(result);
        }
        result
    }

    /// In which root the thing is to which `path` belongs.
    fn root_of(&mut self, named: u32, path: &RemotePath) -> io::Result<usize> {
        if let Some(at) = self.things.get(&named) {
            return Ok(*at);
        }
        // As a file system sees it that ignores case.
        let first = path.components().next().unwrap_or_default();
        let first = String::from_utf8_lossy(first).to_lowercase();
        let same = self.names.get(&first).copied().unwrap_or(0);
        if same == self.roots.len() {
            self.roots.push(begin(&self.spool)?);
        }
        self.names.insert(first, same + 1);
        self.things.insert(named, same);
        Ok(same)
    }

    /// A folder of a root, made where it is missing; its name is durable only after [`Filling::finish`].
    fn folder(&mut self, at: usize, path: Option<RemotePath>) -> io::Result<&Dir> {
        let last = match self.last.take() {
            Some(last) if (last.0, &last.1) == (at, &path) => last,
            _ => {
                let root = &mut self.roots[at];
                let mut dir = confined::root(&root.path)?;
                let mut below = Vec::new();
                for component in path.iter().flat_map(RemotePath::components) {
                    dir = make_private(&dir, confined::os_str(component)?)?;
                    below = [below.as_slice(), component].concat();
                    root.folders
                        .insert(RemotePath::parse(&below).map_err(|e| invalid(&e.to_string()))?);
                    below.push(b'/');
                }
                (at, path, dir)
            }
        };
        Ok(&self.last.insert(last).2)
    }
}

/// What `send` makes of one file, under its own name: for the tests of other rooms.
#[cfg(test)]
pub fn one(spool: &Path, original: &Path) -> Copied {
    let mut filling = Filling::new(spool.to_owned());
    let file = File::open(original).unwrap();
    let original = Original {
        named: 0,
        name: original.file_name().and_then(confined::bytes).unwrap(),
        path: original,
        file: &file,
    };
    filling.take(&original, &|| true).unwrap();
    filling.finish().unwrap().remove(0)
}

/// A new folder below the spool, with its id.
fn begin(spool: &Path) -> io::Result<Root> {
    let (Some(parent), Some(name)) = (spool.parent(), spool.file_name()) else {
        return Err(invalid("not a folder's path"));
    };
    let parent = confined::root(parent)?;
    let all = make_private(&parent, name)?;
    failpoints::step("send-parent", || durable::sync_dir(&parent))?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = data_encoding::HEXLOWER.encode(&random);
    let dir = make_private(&all, OsStr::new(&name))?;
    failpoints::step("send-parent", || durable::sync_dir(&all))?;
    let path = spool.join(name);
    match folder_id::create(&dir) {
        Ok(id) => Ok(Root {
            path,
            id: OutboxId(id),
            folders: BTreeSet::new(),
        }),
        Err(error) => {
            // What cannot be removed now is removed with the unused folders at the next start.
            let _ = discard(&path);
            Err(error)
        }
    }
}

/// Makes the names in a root durable, those in a folder before the folder's own.
fn sync(root: &Root) -> io::Result<()> {
    let dir = confined::root(&root.path)?;
    for folder in root.folders.iter().rev() {
        let folder = confined::open_folder(&dir, folder)?;
        failpoints::step("send-folder", || durable::sync_dir(&folder))?;
    }
    failpoints::step("send-dir", || durable::sync_dir(&dir))
}

/// One consistent copy with the original's mtime, synced; its name is durable after its folder is. Whoever opened the
/// original has seen that nobody writes to it; here it must only be the same before and after.
fn copy(original: &File, to: &Dir, as_name: &OsStr, waits: &dyn Fn() -> bool) -> io::Result<Version> {
    let (before, _) = Version::read(original)?;
    let mut copy = durable::create_private(to, as_name)?;
    let copied = copy_bytes(original, before.size, &mut copy, waits)?;
    if copied != before.size || Version::read(original)?.0 != before {
        let text = "it changed while it was copied";
        return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
    }
    file_system::set_modified(&copy, original.metadata()?.modified()?)?;
    let (version, _) = Version::read(&copy)?;
    failpoints::step("send-copy", || durable::sync_file(&copy))?;
    Ok(version)
}

/// Shares the blocks where the file system can, else copies; how many bytes. Of a file that grows no more than shows
/// that.
fn copy_bytes(original: &File, length: u64, copy: &mut File, waits: &dyn Fn() -> bool) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    if rustix::fs::ioctl_ficlone(&*copy, original).is_ok() {
        return Ok(copy.metadata()?.len());
    }
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(PIECE).clamp(1, PIECE)];
    let (mut at, mut room) = (0, Room::default());
    while at <= length {
        room.lasts(copy, at, length)?;
        if !waits() {
            let text = "nobody waits for it any more";
            return Err(io::Error::new(io::ErrorKind::Interrupted, text));
        }
        match read_at(original, &mut buffer, at) {
            Ok(0) => break,
            Ok(count) => {
                copy.write_all(&buffer[..count])?;
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, at)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, at)
}

/// A folder for us alone, made where it is missing; its name is not durable yet.
fn make_private(dir: &Dir, name: &OsStr) -> io::Result<Dir> {
    #[allow(unused_mut)] // only Unix has modes
    let mut builder = cap_std::fs::DirBuilder::new();
    #[cfg(unix)]
    cap_std::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match dir.create_dir_with(name, &builder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => dir.open_dir_nofollow(name),
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.to_owned())
}
