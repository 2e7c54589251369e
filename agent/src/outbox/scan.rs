//! The truth about what lies in an outbox: a walk that hands over what it finds in batches, and holds no more than one.

use std::{cell::RefCell, path::Path};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::{RemotePath, name::escape};

use super::{ignore::Ignore, whole};
use crate::{
    confined,
    version::{Found, OutboxId, Version},
};

/// Files in a batch.
const BATCH: usize = 1000;

/// What a walk tells.
#[derive(Debug)]
pub(super) enum Report {
    /// Regular files that no pattern ignores, with the version in the listing.
    Files(Vec<Found>),
    /// Folders in which nothing lies.
    Empty(Vec<RemotePath>),
    /// This cannot be sent, for this reason.
    Problem(String, String),
}

/// What a walk needs beside the folder it starts in.
pub(super) struct Walk<'a> {
    /// Marked so.
    pub(super) outbox: OutboxId,
    /// Where the outbox lies; only for `watch`.
    pub(super) root: &'a Path,
    pub(super) ignore: &'a Ignore,
    /// Top-level folders are deliveries: each is one find.
    pub(super) whole: bool,
    /// What lies in them is watched, too.
    pub(super) watch_inside: bool,
    /// Called with each folder before it is read, so that nothing made in it later goes unseen.
    pub(super) watch: &'a dyn Fn(&Path),
    /// Empty folders that were not told of yet; none at first.
    pub(super) waiting: RefCell<Vec<RemotePath>>,
    /// Takes reports; false ends the walk.
    pub(super) report: &'a dyn Fn(Report) -> bool,
}

/// The walk was ended by its taker.
struct Ended;

impl Walk<'_> {
    /// Walks everything below `from` (None: the whole outbox). False: it was ended early.
    pub(super) fn run(&self, outbox: &Dir, from: Option<&RemotePath>) -> bool {
        let mut batch = Vec::with_capacity(BATCH);
        if let Some(folder) = from.filter(|_| self.whole) {
            let listed = match confined::open_folder(outbox, folder) {
                Ok(dir) => self.whole_folder(&dir, folder, &mut batch),
                Err(_) => Ok(()), // gone, or no folder any more
            };
            return listed.and_then(|()| self.flush(&mut batch)).is_ok();
        }
        let mut path = from.map_or_else(Vec::new, |from| from.as_bytes().to_vec());
        let dir = match from {
            Some(from) => confined::open_folder(outbox, from),
            None => outbox.try_clone(),
        };
        let walked = match dir {
            Ok(dir) => self.folder(&dir, &mut path, 0, &mut batch),
            Err(e) if confined::is_absent(&e) => Ok(()),
            Err(e) => self.problem(&path, format!("it cannot be read: {e}")),
        };
        walked
            .and_then(|()| self.flush(&mut batch))
            .and_then(|()| self.empty(None))
            .is_ok()
    }

    fn folder(
        &self,
        dir: &Dir,
        path: &mut Vec<u8>,
        depth: usize,
        batch: &mut Vec<Found>,
    ) -> Result<(), Ended> {
        let place = confined::os_str(path).map(|below| self.root.join(below));
        (self.watch)(place.as_deref().unwrap_or(self.root));
        let entries = match dir.entries() {
            Ok(entries) => entries,
            Err(e) => return self.problem(path, format!("it cannot be listed: {e}")),
        };
        let mut empty = true;
        for entry in entries {
            empty = false;
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => return self.problem(path, format!("it cannot be listed: {e}")),
            };
            let name = entry.file_name();
            let length = path.len();
            let result = match confined::bytes(&name) {
                Some(bytes) => {
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(bytes);
                    self.entry(dir, &entry, bytes, path, depth, batch)
                }
                None => self.problem(path, "a name in it is not Unicode".into()),
            };
            path.truncate(length);
            result?;
        }
        match RemotePath::parse(path) {
            Ok(path) if empty => self.empty(Some(path)),
            _ => Ok(()),
        }
    }

    /// Tells of empty folders, many at once; None: of those that are left.
    fn empty(&self, path: Option<RemotePath>) -> Result<(), Ended> {
        let mut waiting = self.waiting.borrow_mut();
        let last = path.is_none();
        waiting.extend(path);
        if waiting.is_empty() || (waiting.len() < BATCH && !last) {
            return Ok(());
        }
        let report = Report::Empty(std::mem::take(&mut *waiting));
        drop(waiting);
        if (self.report)(report) { Ok(()) } else { Err(Ended) }
    }

    fn entry(
        &self,
        dir: &Dir,
        entry: &cap_std::fs::DirEntry,
        name: &[u8],
        path: &mut Vec<u8>,
        depth: usize,
        batch: &mut Vec<Found>,
    ) -> Result<(), Ended> {
        if self.ignore.matched_step(name, path).is_some() {
            return Ok(());
        }
        let Ok(kind) = entry.file_type() else {
            return Ok(()); // gone since it was listed
        };
        if kind.is_dir() {
            if depth >= RemotePath::MAX_DEPTH {
                return self.problem(path, "it lies too deep".into());
            }
            return match dir.open_dir_nofollow(entry.file_name()) {
                Ok(below) if self.whole => match RemotePath::parse(path) {
                    Ok(path) => self.whole_folder(&below, &path, batch),
                    Err(e) => self.problem(path, e.to_string()),
                },
                Ok(below) => self.folder(&below, path, depth + 1, batch),
                Err(e) if confined::is_absent(&e) => Ok(()),
                Err(e) => self.problem(path, format!("it cannot be read: {e}")),
            };
        }
        if !kind.is_file() {
            return Ok(());
        }
        match (RemotePath::parse(path), entry.metadata()) {
            (Ok(path), Ok(meta)) => batch.push(Found {
                outbox: self.outbox,
                path,
                version: Version::listed(&meta),
            }),
            (Err(e), _) => return self.problem(path, e.to_string()),
            (_, Err(_)) => {} // gone since it was listed
        }
        if batch.len() >= BATCH {
            self.flush(batch)?;
        }
        Ok(())
    }

    /// One find, whatever lies in it. (Only ever at the top.)
    fn whole_folder(&self, dir: &Dir, path: &RemotePath, batch: &mut Vec<Found>) -> Result<(), Ended> {
        let place = confined::join(self.root, path);
        if self.watch_inside {
            (self.watch)(&place);
        }
        let version = whole::listed(dir, &mut |below| {
            if self.watch_inside {
                (self.watch)(&confined::join(&place, below));
            }
        });
        batch.push(Found {
            outbox: self.outbox,
            path: path.clone(),
            version,
        });
        if batch.len() >= BATCH {
            self.flush(batch)?;
        }
        Ok(())
    }

    fn flush(&self, batch: &mut Vec<Found>) -> Result<(), Ended> {
        if batch.is_empty() {
            return Ok(());
        }
        let full = std::mem::take(batch);
        if (self.report)(Report::Files(full)) {
            Ok(())
        } else {
            Err(Ended)
        }
    }

    fn problem(&self, path: &[u8], reason: String) -> Result<(), Ended> {
        let named = if path.is_empty() { ".".into() } else { escape(path) };
        if (self.report)(Report::Problem(named, reason)) {
            Ok(())
        } else {
            Err(Ended)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs};

    use super::*;

    /// Files, problems and folders watched.
    fn walk(root: &Path, from: Option<&str>) -> (Vec<String>, Vec<String>, Vec<String>) {
        let (files, problems, watched) = Default::default();
        let (files, problems, watched): (RefCell<Vec<_>>, RefCell<Vec<_>>, RefCell<Vec<_>>) =
            (files, problems, watched);
        let walk = Walk {
            outbox: OutboxId([0; 16]),
            root,
            ignore: &Ignore::new(&[]).unwrap(),
            whole: false,
            watch_inside: false,
            waiting: RefCell::default(),
            watch: &|path| {
                let below = path.strip_prefix(root).unwrap();
                watched.borrow_mut().push(below.to_string_lossy().into_owned());
            },
            report: &|report| {
                match report {
                    Report::Files(found) => {
                        assert!(found.len() <= BATCH);
                        files
                            .borrow_mut()
                            .extend(found.iter().map(|f| f.path.to_string()));
                    }
                    Report::Problem(path, _) => problems.borrow_mut().push(path),
                    Report::Empty(_) => {}
                }
                true
            },
        };
        let from = from.map(|from| RemotePath::parse(from.as_bytes()).unwrap());
        assert!(walk.run(&confined::root(root).unwrap(), from.as_ref()));
        let sorted = |cell: RefCell<Vec<String>>| {
            let mut all = cell.into_inner();
            all.sort();
            all
        };
        (sorted(files), sorted(problems), sorted(watched))
    }

    #[test]
    fn finds_files_and_watches_their_folders() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir_all(root.join(".dropwire/sent")).unwrap();
        fs::create_dir_all(root.join("x.tmp")).unwrap();
        for name in [
            "one",
            "a/two",
            "a/b/c/three",
            ".dropwire/sent/old",
            "x.tmp/no",
            "no.part",
        ] {
            fs::write(root.join(name), "bytes").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink("a", root.join("link")).unwrap();
        let (files, problems, watched) = walk(root, None);
        assert_eq!(files, ["a/b/c/three", "a/two", "one"]);
        assert_eq!(watched, ["", "a", "a/b", "a/b/c"]);
        assert!(problems.is_empty());
        assert_eq!(walk(root, Some("a/b")).0, ["a/b/c/three"]);
        assert!(walk(root, Some("link")).0.is_empty());
        assert!(walk(root, Some("missing")).0.is_empty());
    }

    #[test]
    fn many_come_in_batches_and_too_deep_is_a_problem() {
        let temp = tempfile::tempdir().unwrap();
        for i in 0..2 * BATCH + 1 {
            fs::write(temp.path().join(i.to_string()), "").unwrap();
        }
        let mut deep = temp.path().to_path_buf();
        deep.extend(std::iter::repeat_n("d", RemotePath::MAX_DEPTH));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "").unwrap();
        let (files, problems, _) = walk(temp.path(), None);
        assert_eq!((files.len(), problems.len()), (2 * BATCH + 1, 1));
    }
}
