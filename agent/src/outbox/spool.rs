//! Copies for the command `send`: durable before it answers, so that the original may go at once.
//!
//! Each `send` has a folder of its own below the spool, `<32 hex>`, which is a small outbox with its own mark: the
//! files in it are drops like others, below their own names, and leave with `after_send = "delete"`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use crate::{
    confined, durable,
    error::shown,
    fault, lease, mark,
    remove_tree::remove_tree_at,
    version::{Found, OutboxId, Version},
};

/// What a `send` put away.
#[derive(Debug)]
pub struct Spooled {
    /// The send's folder: the outbox of its files.
    pub root: PathBuf,
    /// Each copy, and where its original lies.
    pub files: Vec<(Found, PathBuf)>,
}

/// Why nothing was put away.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct SpoolError {
    /// Escaped.
    pub path: String,
    /// `NotFound` where there is no such file, `InvalidInput` for what cannot be sent, `WouldBlock` while somebody
    /// writes to it.
    #[source]
    pub source: io::Error,
}

/// Copies the regular file or the folder at each of `originals` (absolute) into a new folder below `spool` (private;
/// made where it is missing). After Ok everything is on disk; after Err nothing is left there. Crashed before the
/// files are queued, the folder stays until [`discard_unused`]. Symlinks inside folders are left out, one named
/// itself is followed. Blocks for as long as copying takes.
pub fn take(spool: &Path, originals: &[PathBuf]) -> Result<Spooled, SpoolError> {
    let begun = begin(spool).map_err(|e| failed(spool, e))?;
    let taken = begun.take(originals);
    if taken.is_err() {
        // What cannot be removed now is removed with the unused folders at the next start.
        let _ = discard(&begun.root);
    }
    let files = taken?;
    Ok(Spooled {
        root: begun.root,
        files,
    })
}

/// Its files are queued: from now on only a folder without files is ever removed, even if the job list is lost.
pub fn note_queued(root: &Path) -> io::Result<()> {
    File::create(root.join(mark::FOLDER).join(QUEUED)).map(drop)
}

const QUEUED: &str = "queued";

/// Removes the folders of sends below `spool` that are not wanted any more, and says where the others lie now.
///
/// `is_wanted` knows which outboxes were ever queued, and whether a file of theirs is still to be sent. Of those that
/// it does not know, what was never queued goes; else, the job list is lost, and only a folder without files does.
pub fn discard_unused(
    spool: &Path,
    is_wanted: impl Fn(OutboxId) -> Option<bool>,
) -> io::Result<Vec<(OutboxId, PathBuf)>> {
    let mut wanted = Vec::new();
    let entries = match fs::read_dir(spool) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(wanted),
        entries => entries?,
    };
    for entry in entries {
        let root = entry?.path();
        match mark_of(&root).and_then(|id| sort_out(&root, id, &is_wanted)) {
            Ok(found) => wanted.extend(found.map(|id| (id, root))),
            Err(error) => tracing::warn!(folder = %shown(&root), %error, "old copies of `send` stay"),
        }
    }
    Ok(wanted)
}

fn mark_of(root: &Path) -> io::Result<Option<OutboxId>> {
    Ok(mark::read(&confined::root(root)?)?.map(OutboxId))
}

/// None: it went, or nobody knows it.
fn sort_out(
    root: &Path,
    id: Option<OutboxId>,
    is_wanted: impl Fn(OutboxId) -> Option<bool>,
) -> io::Result<Option<OutboxId>> {
    match id.and_then(&is_wanted) {
        Some(true) => return Ok(id),
        Some(false) => discard(root)?,
        None if !root.join(mark::FOLDER).join(QUEUED).exists() => discard(root)?,
        None if discard_if_done(root)? => {}
        None => tracing::warn!(folder = %shown(root), "no job knows these sent copies"),
    }
    Ok(None)
}

/// Removes the copy at `path` in the send's folder `root`, which nobody will ask for any more, and the folder with its
/// last one. Crashed in between, it goes at the next start.
pub fn discard_copy(root: &Path, path: &RemotePath) -> io::Result<()> {
    let removed = confined::root(root)
        .and_then(|dir| confined::parent(&dir, path))
        .and_then(|folder| durable::unlink(&folder, confined::os_str(path.file_name())?));
    match removed {
        Err(e) if !confined::is_absent(&e) => Err(e),
        _ => discard_if_done(root).map(drop),
    }
}

/// Removes a send's folder with all that is in it: only when none of its files is still to be sent.
pub fn discard(root: &Path) -> io::Result<()> {
    match remove_tree_at(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes a send's folder if no file is left in it; true if it went. To be called after a disposal in it.
pub fn discard_if_done(root: &Path) -> io::Result<bool> {
    let dir = match confined::root(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        dir => dir?,
    };
    for entry in dir.entries()? {
        let entry = entry?;
        if entry.file_name() != mark::FOLDER
            && (!confined::kind(&entry)?.is_dir() || holds_files(&entry.open_dir()?, 1)?)
        {
            return Ok(false);
        }
    }
    match dir
        .open_dir_nofollow(mark::FOLDER)
        .and_then(|own| own.open_dir_nofollow("leaving"))
    {
        Ok(leaving) if holds_files(&leaving, 1)? => return Ok(false),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    discard(root).map(|()| true)
}

/// A send's folder that is being filled.
struct Begun {
    root: PathBuf,
    dir: Dir,
    id: OutboxId,
}

fn begin(spool: &Path) -> io::Result<Begun> {
    let (Some(parent), Some(name)) = (spool.parent(), spool.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a folder's path"));
    };
    let parent = confined::root(parent)?;
    let all = make_private(&parent, name)?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = data_encoding::HEXLOWER.encode(&random);
    let dir = make_private(&all, OsStr::new(&name))?;
    let id = OutboxId(mark::create(&dir)?);
    let root = spool.join(name);
    Ok(Begun { root, dir, id })
}

impl Begun {
    fn take(&self, originals: &[PathBuf]) -> Result<Vec<(Found, PathBuf)>, SpoolError> {
        let mut files = Vec::new();
        for original in originals {
            let name = original
                .file_name()
                .ok_or_else(|| failed(original, invalid("it has no name")))?;
            let meta = fs::metadata(original).map_err(|e| failed(original, e))?;
            if meta.is_dir() {
                let from = confined::root(original).map_err(|e| failed(original, e))?;
                let below = self.path(&[], name).map_err(|e| failed(original, e))?;
                self.folder(&from, original, &self.dir, name, below, &mut files)?;
            } else {
                // Whoever names a symlink means what it points to; its own name is kept.
                let real = fs::canonicalize(original).map_err(|e| failed(original, e))?;
                let copied = real
                    .parent()
                    .zip(real.file_name())
                    .ok_or_else(|| invalid("it has no name"))
                    .and_then(|(parent, from)| Ok((confined::root(parent)?, from)))
                    .and_then(|(parent, from)| {
                        let path = self.path(&[], name)?;
                        let version = copy(&parent, from, &self.dir, name)?;
                        self.found(path, version)
                    });
                files.push((copied.map_err(|e| failed(original, e))?, original.clone()));
            }
        }
        fault::step("send-dir", || durable::sync_dir(&self.dir)).map_err(|e| failed(&self.root, e))?;
        Ok(files)
    }

    fn folder(
        &self,
        from: &Dir,
        original: &Path,
        into: &Dir,
        name: &OsStr,
        below: Vec<u8>,
        files: &mut Vec<(Found, PathBuf)>,
    ) -> Result<(), SpoolError> {
        let to = make_private(into, name).map_err(|e| failed(original, e))?;
        for entry in from.entries().map_err(|e| failed(original, e))? {
            let entry = entry.map_err(|e| failed(original, e))?;
            let name = entry.file_name();
            let place = original.join(&name);
            if name == mark::FOLDER {
                continue; // an outbox's own things are no content
            }
            let kind = confined::kind(&entry).map_err(|e| failed(&place, e))?;
            let path = self.path(&below, &name).map_err(|e| failed(&place, e))?;
            if kind.is_dir() {
                let from = from.open_dir_nofollow(&name).map_err(|e| failed(&place, e))?;
                self.folder(&from, &place, &to, &name, path, files)?;
            } else if kind.is_file() {
                let found = copy(from, &name, &to, &name).and_then(|version| self.found(path, version));
                files.push((found.map_err(|e| failed(&place, e))?, place));
            }
        }
        fault::step("send-folder", || durable::sync_dir(&to)).map_err(|e| failed(original, e))
    }

    /// The path of `name` in `folder`, if it can be sent.
    fn path(&self, folder: &[u8], name: &OsStr) -> io::Result<Vec<u8>> {
        let name = confined::bytes(name).ok_or_else(|| invalid("its name is not Unicode"))?;
        let joined = match folder {
            [] => name.to_vec(),
            folder => [folder, b"/", name].concat(),
        };
        RemotePath::parse(&joined).map_err(|e| invalid(&e.to_string()))?;
        Ok(joined)
    }

    fn found(&self, path: Vec<u8>, version: Version) -> io::Result<Found> {
        let path = RemotePath::parse(&path).map_err(|e| invalid(&e.to_string()))?;
        let outbox = self.id;
        Ok(Found {
            outbox,
            path,
            version,
        })
    }
}

/// One consistent copy with the original's mtime, synced; its name is durable after its folder is.
fn copy(from: &Dir, name: &OsStr, to: &Dir, as_name: &OsStr) -> io::Result<Version> {
    let busy = |text: &str| io::Error::new(io::ErrorKind::WouldBlock, text.to_string());
    let mut original = confined::open_file(from, name)?;
    let Some(before) = lease::look(&original)? else {
        return Err(busy("a program has it open for writing"));
    };
    let mut copy = durable::create_private(to, as_name)?;
    copy_bytes(&mut original, &mut copy)?;
    let same = Version::read(&original)?.0 == before.version && copy.metadata()?.len() == before.version.size;
    if !same || before.lease.as_ref().is_some_and(|lease| !lease.whole()) {
        return Err(busy("it changed while it was copied"));
    }
    copy.set_modified(original.metadata()?.modified()?)?;
    let (version, _) = Version::read(&copy)?;
    fault::step("send-copy", || durable::sync_file(&copy))?;
    Ok(version)
}

/// Shares the blocks where the file system can, else copies.
fn copy_bytes(original: &mut File, copy: &mut File) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if rustix::fs::ioctl_ficlone(&*copy, &*original).is_ok() {
        return Ok(());
    }
    io::copy(original, copy).map(drop)
}

/// A folder for us alone, made where it is missing; its name is durable.
fn make_private(dir: &Dir, name: &OsStr) -> io::Result<Dir> {
    #[allow(unused_mut)] // only Unix has modes
    let mut builder = cap_std::fs::DirBuilder::new();
    #[cfg(unix)]
    cap_std::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match dir.create_dir_with(name, &builder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    fault::step("send-parent", || durable::sync_dir(dir))?;
    dir.open_dir_nofollow(name)
}

/// Deeper than any path that is sent counts as holding some.
fn holds_files(dir: &Dir, depth: usize) -> io::Result<bool> {
    if depth > RemotePath::MAX_DEPTH {
        return Ok(true);
    }
    for entry in dir.entries()? {
        let entry = entry?;
        if !confined::kind(&entry)?.is_dir() || holds_files(&entry.open_dir()?, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.to_string())
}

fn failed(path: &Path, source: io::Error) -> SpoolError {
    SpoolError {
        path: shown(path),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let spool = temp.path().join("spool");
        (temp, spool)
    }

    fn sends(spool: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(spool).into_iter().flatten();
        let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    }

    #[test]
    fn only_wanted_copies_stay() {
        let (temp, spool) = folders();
        assert!(discard_unused(&spool, |_| None).unwrap().is_empty());
        fs::write(temp.path().join("file"), "bytes").unwrap();
        let take = || take(&spool, &[temp.path().join("file")]).unwrap();
        let (kept, _never_queued, forgotten, ended) = (take(), take(), take(), take());
        note_queued(&forgotten.root).unwrap();
        note_queued(&ended.root).unwrap();
        fs::create_dir(spool.join("begun")).unwrap();
        let (wanted, ended) = (kept.files[0].0.outbox, ended.files[0].0.outbox);
        let is_wanted = |id| (id == wanted || id == ended).then_some(id == wanted);
        let found = discard_unused(&spool, is_wanted).unwrap();
        assert_eq!(found, [(wanted, kept.root.clone())]);
        let mut expected = [kept.root, forgotten.root.clone()];
        expected.sort();
        assert_eq!(sends(&spool), expected);
        fs::remove_file(forgotten.root.join("file")).unwrap();
        discard_unused(&spool, is_wanted).unwrap();
        assert_eq!(sends(&spool).len(), 1);
    }

    #[test]
    fn a_copy_goes_and_the_last_one_takes_the_folder_along() {
        let (temp, spool) = folders();
        fs::create_dir(temp.path().join("folder")).unwrap();
        for name in ["folder/a", "folder/b"] {
            fs::write(temp.path().join(name), name).unwrap();
        }
        let taken = take(&spool, &[temp.path().join("folder")]).unwrap();
        let path = |name: &str| RemotePath::parse(name.as_bytes()).unwrap();
        for _ in 0..2 {
            discard_copy(&taken.root, &path("folder/a")).unwrap();
            assert_eq!(fs::read(taken.root.join("folder/b")).unwrap(), b"folder/b");
        }
        discard_copy(&taken.root, &path("folder/b")).unwrap();
        discard_copy(&taken.root, &path("folder/b")).unwrap();
        assert!(!taken.root.exists());
    }

    #[test]
    fn files_and_folders_are_copied_whole() {
        let (temp, spool) = folders();
        let at = |path: &str| temp.path().join(path);
        fs::create_dir_all(at("photos/2026/.dropwire")).unwrap();
        for (name, bytes) in [("one.txt", "one"), ("photos/a", "a"), ("photos/2026/b", "bb")] {
            fs::write(at(name), bytes).unwrap();
        }
        fs::write(at("photos/2026/.dropwire/id"), "no content").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("a", at("photos/link")).unwrap();
        let taken = take(&spool, &[at("photos"), at("one.txt")]).unwrap();
        let mut files: Vec<_> = taken
            .files
            .iter()
            .map(|(found, original)| (found.path.to_string(), original.clone(), found.version))
            .collect();
        files.sort_by_key(|(path, ..)| path.clone());
        let names: Vec<_> = files.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(names, ["one.txt", "photos/2026/b", "photos/a"]);
        for (path, original, version) in &files {
            let copy = taken.root.join(path);
            assert_eq!(fs::read(&copy).unwrap(), fs::read(original).unwrap());
            let (of_copy, of_original) = (fs::metadata(&copy).unwrap(), fs::metadata(original).unwrap());
            assert_eq!(of_copy.modified().unwrap(), of_original.modified().unwrap());
            assert!(Version::raw(&of_copy).same_identity(version));
            #[cfg(unix)]
            assert_eq!(std::os::unix::fs::MetadataExt::mode(&of_copy) & 0o777, 0o600);
        }
        #[cfg(target_os = "linux")]
        {
            let calls = durable::trace::of(&taken.root);
            for path in [
                "one.txt",
                "photos/a",
                "photos/2026/b",
                "",
                "photos",
                "photos/2026",
            ] {
                assert!(
                    calls.contains(&durable::trace::sync(path)),
                    "{path:?}: {calls:#?}"
                );
            }
            let last = |path: &str| calls.iter().rposition(|c| *c == durable::trace::sync(path));
            assert!(
                last("") > last("one.txt"),
                "names before their folder: {calls:#?}"
            );
            let calls = durable::trace::of(temp.path());
            for path in ["", "spool"] {
                assert!(
                    calls.contains(&durable::trace::sync(path)),
                    "{path:?}: {calls:#?}"
                );
            }
        }
        assert_eq!(sends(&spool), [taken.root]);
    }

    #[test]
    fn nothing_stays_after_a_failure() {
        let (temp, spool) = folders();
        assert!(sends(&spool).is_empty());
        fs::write(temp.path().join("file"), "bytes").unwrap();
        let missing = temp.path().join("missing");
        let error = take(&spool, &[temp.path().join("file"), missing]).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
        assert!(error.path.ends_with("missing"));
        assert!(sends(&spool).is_empty());
        // Two files of one name cannot lie in one folder.
        let twice = take(&spool, &[temp.path().join("file"), temp.path().join("file")]).unwrap_err();
        assert_eq!(twice.source.kind(), io::ErrorKind::AlreadyExists);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_being_written_is_refused() {
        let (temp, spool) = folders();
        let writer = File::create(temp.path().join("file")).unwrap();
        let error = take(&spool, &[temp.path().join("file")]).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::WouldBlock);
        drop(writer);
        assert_eq!(take(&spool, &[temp.path().join("file")]).unwrap().files.len(), 1);
    }

    #[test]
    fn a_sends_folder_goes_with_its_last_file() {
        let (temp, spool) = folders();
        fs::create_dir(temp.path().join("folder")).unwrap();
        fs::write(temp.path().join("folder/file"), "bytes").unwrap();
        let root = take(&spool, &[temp.path().join("folder")]).unwrap().root;
        assert!(!discard_if_done(&root).unwrap());
        fs::create_dir_all(root.join(".dropwire/leaving")).unwrap();
        fs::rename(root.join("folder/file"), root.join(".dropwire/leaving/name")).unwrap();
        assert!(!discard_if_done(&root).unwrap());
        fs::remove_file(root.join(".dropwire/leaving/name")).unwrap();
        assert!(discard_if_done(&root).unwrap() && !root.exists());
        assert!(discard_if_done(&root).unwrap());
    }
}
