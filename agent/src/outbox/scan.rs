//! The truth about what lies in an outbox: a walk that hands over what it finds in batches, and holds no more than one.

use std::{
    io,
    path::Path,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::{
    ignore::Ignore,
    inspect,
    scan_cache::{ScanCache, Stamp},
    whole,
};
use crate::{
    failpoints,
    fs::{
        confined, snapshot,
        version::{Found, OutboxId, Version},
    },
    owner::{self, Claimed},
    poison::Unpoisoned as _,
};

/// Files in a batch.
const BATCH: usize = 1000;
/// The longest pause between two batches.
const PAUSE: Duration = Duration::from_millis(100);

/// What a walk tells.
#[derive(Debug)]
pub(super) enum Report {
    /// Regular files that no pattern ignores, with the version in the listing.
    Files(Vec<Found>),
    /// Folders in which nothing lies.
    Empty(Vec<RemotePath>),
    /// What has this path (below the outbox; empty: itself) cannot be sent, for this reason.
    Problem(Vec<u8>, String),
    /// What has this path cannot be sent now, for a reason that passes by itself.
    Later(Vec<u8>, String),
}

/// What a walk needs beside the folder it starts in.
pub(super) struct Walk<'a> {
    /// The outbox's id.
    pub(super) outbox: OutboxId,
    /// Where the outbox lies; only for `watch`.
    pub(super) root: &'a Path,
    pub(super) ignore: &'a Ignore,
    /// What a marker's name adds to its file's; markers are not reported.
    pub(super) marker: Option<&'a str>,
    /// Is each top-level folder one delivery, and one find?
    pub(super) whole: bool,
    /// What lies in them is watched, too.
    pub(super) watch_inside: bool,
    /// Called with each folder before it is read, so that nothing made in it later goes unseen.
    pub(super) watch: &'a dyn Fn(&Path),
    /// Takes reports; false ends the walk.
    pub(super) report: &'a dyn Fn(Report) -> bool,
    /// Which folders were listed before.
    pub(super) scan_cache: &'a Mutex<ScanCache>,
    /// Those that did not change since are not listed in the scan of this number; None: all are.
    pub(super) leave_out: Option<u64>,
    /// Rests as long as it works, in favour of what is being sent.
    pub(super) paced: bool,
}

/// Where a walk is.
struct Stand {
    /// Below the outbox.
    path: Vec<u8>,
    batch: Vec<Found>,
    /// Empty folders that were not told of yet.
    empty: Vec<RemotePath>,
    /// When the last batch had been handed over.
    since: Instant,
    /// In the folder just walked, something could not be told, or not be sent.
    troubled: bool,
}

/// The walk was ended by its taker.
struct Ended;

impl Walk<'_> {
    /// Walks everything below `from` (None: the whole outbox). False: it was ended early.
    pub(super) fn run(&self, outbox: &Dir, from: Option<&RemotePath>) -> bool {
        let mut stand = Stand {
            path: from.map_or_else(Vec::new, |from| from.as_bytes().to_vec()),
            batch: Vec::with_capacity(BATCH),
            empty: Vec::new(),
            since: Instant::now(),
            troubled: false,
        };
        let dir = match from {
            Some(from) => confined::open_folder_through(outbox, from, owner::unclaimed),
            None => outbox.try_clone(),
        };
        let walked = self.enter(dir, &mut stand, 0);
        walked
            .and_then(|()| self.flush(&mut stand))
            .and_then(|()| self.tell_empty(&mut stand))
            .is_ok()
    }

    /// Walks a folder, if it could be opened.
    fn enter(&self, dir: io::Result<Dir>, stand: &mut Stand, depth: usize) -> Result<(), Ended> {
        let is_outbox = stand.path.is_empty();
        match dir {
            Ok(dir) if !is_outbox && snapshot::is_one(&dir) && !failpoints::mutant("S1-snapshot") => {
                self.problem(stand, snapshot::REASON.into())
            }
            Ok(dir) if !is_outbox && let Err(e) = owner::unclaimed(&dir, &stand.path) => {
                self.failed(stand, "whose it is cannot be read", &e)
            }
            Ok(dir) => match RemotePath::parse(&stand.path) {
                Ok(top) if top.parent().is_none() && self.whole => self.whole_folder(&dir, top, stand),
                _ => self.folder(&dir, stand, depth),
            },
            Err(e) if confined::is_absent(&e) => Ok(()),
            Err(e) => self.failed(stand, "it cannot be read", &e),
        }
    }

    fn folder(&self, dir: &Dir, stand: &mut Stand, depth: usize) -> Result<(), Ended> {
        let place = confined::os_str(&stand.path).map(|below| self.root.join(below));
        (self.watch)(place.as_deref().unwrap_or(self.root));
        // Taken before the listing: what comes in meanwhile changes it, unless it is fresh.
        let stamp = Stamp::of(dir)
            .ok()
            .map(|stamp| (stamp, self.scan_cache().cleared()));
        let begun = SystemTime::now();
        if let (Some((stamp, _)), Some(scan)) = (&stamp, self.leave_out) {
            let unchanged = self.scan_cache().unchanged(&stand.path, stamp, scan);
            if let Some(folders) = unchanged {
                for name in folders {
                    self.step(stand, &name, |walk, stand| {
                        let below = confined::os_str(&name).and_then(|name| dir.open_dir_nofollow(name));
                        walk.enter(below, stand, depth + 1)
                    })?;
                }
                return Ok(());
            }
        }
        let troubled_above = std::mem::take(&mut stand.troubled);
        let folders = self.list(dir, stand, depth)?;
        match stamp {
            // What is mounted below the outbox may tell less than the outbox's own file system, which the watch's test
            // is of.
            Some(stamp) if !stand.troubled && stamp.0.on.tells_changes => {
                self.scan_cache().listed(&stand.path, stamp, begun, folders);
            }
            _ => self.scan_cache().forget(&stand.path),
        }
        stand.troubled = troubled_above;
        Ok(())
    }

    /// Reports what lies in a folder, and gives the names of the folders in it, of which it walked each.
    fn list(&self, dir: &Dir, stand: &mut Stand, depth: usize) -> Result<Vec<Vec<u8>>, Ended> {
        let mut folders = Vec::new();
        let entries = match dir.entries() {
            Ok(entries) => entries,
            Err(e) => {
                self.failed(stand, "it cannot be listed", &e)?;
                return Ok(folders);
            }
        };
        let mut empty = true;
        for entry in entries {
            empty = false;
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    self.failed(stand, "it cannot be listed", &e)?;
                    break;
                }
            };
            let name = entry.file_name();
            let Some(bytes) = confined::bytes(&name) else {
                self.problem(stand, "a name in it is not Unicode".into())?;
                continue;
            };
            let is_folder = self.step(stand, bytes, |walk, stand| {
                walk.entry(dir, &entry, bytes, stand, depth)
            })?;
            if is_folder && folders.len() < ScanCache::MOST {
                folders.push(bytes.to_vec());
            }
        }
        if let Ok(path) = RemotePath::parse(&stand.path)
            && empty
        {
            stand.empty.push(path);
            if stand.empty.len() >= BATCH {
                self.tell_empty(stand)?;
            }
        }
        Ok(folders)
    }

    fn tell_empty(&self, stand: &mut Stand) -> Result<(), Ended> {
        let empty = std::mem::take(&mut stand.empty);
        if empty.is_empty() || (self.report)(Report::Empty(empty)) {
            Ok(())
        } else {
            Err(Ended)
        }
    }

    /// One find, whatever lies in it.
    fn whole_folder(&self, dir: &Dir, path: RemotePath, stand: &mut Stand) -> Result<(), Ended> {
        let place = confined::join(self.root, &path);
        if self.watch_inside {
            (self.watch)(&place);
        }
        let (version, left_out) = whole::listed(dir, &mut |below| {
            if self.watch_inside {
                (self.watch)(&confined::join(&place, below));
            }
        });
        for (below, what) in left_out {
            self.step(stand, below.as_bytes(), |walk, stand| {
                walk.problem(stand, whole::left_out(what))
            })?;
        }
        stand.batch.push(Found {
            outbox: self.outbox,
            path,
            version,
        });
        if stand.batch.len() >= BATCH {
            self.flush(stand)?;
        }
        Ok(())
    }

    /// Goes to `name` in the folder where it stands, and back.
    fn step<T>(
        &self,
        stand: &mut Stand,
        name: &[u8],
        there: impl FnOnce(&Self, &mut Stand) -> Result<T, Ended>,
    ) -> Result<T, Ended> {
        let length = stand.path.len();
        if length > 0 {
            stand.path.push(b'/');
        }
        stand.path.extend_from_slice(name);
        let result = there(self, stand);
        stand.path.truncate(length);
        result
    }

    /// True: it was a folder.
    fn entry(
        &self,
        dir: &Dir,
        entry: &cap_std::fs::DirEntry,
        name: &[u8],
        stand: &mut Stand,
        depth: usize,
    ) -> Result<bool, Ended> {
        let Ok(kind) = confined::kind(entry) else {
            return Ok(false); // gone since it was listed
        };
        if self
            .ignore
            .matched_step(name, &stand.path, kind.is_dir())
            .is_some()
        {
            return Ok(false);
        }
        if kind.is_dir() {
            if depth >= RemotePath::MAX_DEPTH {
                self.problem(stand, "it lies too deep".into())?;
                return Ok(false);
            }
            self.enter(dir.open_dir_nofollow(entry.file_name()), stand, depth + 1)?;
            return Ok(true);
        }
        if !kind.is_file() {
            self.problem(stand, inspect::no_file(kind).into())?;
            return Ok(false);
        }
        if self
            .marker
            .is_some_and(|suffix| crate::fs::marker::stem(name, suffix).is_some())
        {
            if entry
                .metadata()
                .is_ok_and(|meta| !crate::fs::marker::is_one(&meta))
            {
                self.problem(stand, crate::fs::marker::HAS_BYTES.into())?;
            }
            return Ok(false);
        }
        match (RemotePath::parse(&stand.path), entry.metadata()) {
            (Ok(path), Ok(meta)) => stand.batch.push(Found {
                outbox: self.outbox,
                path,
                version: Version::listed(dir, &entry.file_name(), &meta),
            }),
            (Err(e), _) => self.problem(stand, e.to_string())?,
            (_, Err(e)) if confined::is_absent(&e) => {} // gone since it was listed
            (_, Err(e)) => self.failed(stand, "it cannot be read", &e)?,
        }
        if stand.batch.len() >= BATCH {
            self.flush(stand)?;
        }
        Ok(false)
    }

    fn flush(&self, stand: &mut Stand) -> Result<(), Ended> {
        if stand.batch.is_empty() {
            return Ok(());
        }
        let full = std::mem::take(&mut stand.batch);
        let worked = stand.since.elapsed();
        if !(self.report)(Report::Files(full)) {
            return Err(Ended);
        }
        if self.paced {
            std::thread::sleep(worked.min(PAUSE));
        }
        stand.since = Instant::now();
        Ok(())
    }

    fn failed(&self, stand: &mut Stand, what: &str, error: &io::Error) -> Result<(), Ended> {
        if let Some(Claimed { at, reason }) = Claimed::of(error) {
            return self.tell(stand, Report::Problem(at.clone(), reason.clone()));
        }
        let reason = format!("{what}: {error}");
        match inspect::passing(error) {
            Some(_) => self.tell(stand, Report::Later(stand.path.clone(), reason)),
            None => self.problem(stand, reason),
        }
    }

    fn problem(&self, stand: &mut Stand, reason: String) -> Result<(), Ended> {
        self.tell(stand, Report::Problem(stand.path.clone(), reason))
    }

    /// Of something that is not sent.
    fn tell(&self, stand: &mut Stand, report: Report) -> Result<(), Ended> {
        stand.troubled = true;
        if (self.report)(report) { Ok(()) } else { Err(Ended) }
    }

    /// Locked only for moments.
    fn scan_cache(&self) -> MutexGuard<'_, ScanCache> {
        self.scan_cache.lock().unpoisoned()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs};

    use super::*;

    /// Files, problems and folders watched.
    fn walk(root: &Path, from: Option<&str>) -> (Vec<String>, Vec<String>, Vec<String>) {
        walk_again(root, from, &Mutex::default(), None)
    }

    fn walk_again(
        root: &Path,
        from: Option<&str>,
        scan_cache: &Mutex<ScanCache>,
        leave_out: Option<u64>,
    ) -> (Vec<String>, Vec<String>, Vec<String>) {
        let (files, problems, watched) = Default::default();
        let (files, problems, watched): (RefCell<Vec<_>>, RefCell<Vec<_>>, RefCell<Vec<_>>) =
            (files, problems, watched);
        let walk = Walk {
            outbox: OutboxId([0; 16]),
            root,
            ignore: &Ignore::new(&[]).unwrap(),
            marker: None,
            whole: false,
            watch_inside: false,
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
                    Report::Empty(_) => {}
                    Report::Problem(path, _) | Report::Later(path, _) => {
                        problems.borrow_mut().push(String::from_utf8(path).unwrap());
                    }
                }
                true
            },
            scan_cache,
            leave_out,
            paced: false,
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
        assert_eq!(problems, if cfg!(unix) { vec!["link"] } else { vec![] });
        assert_eq!(walk(root, Some("a/b")).0, ["a/b/c/three"]);
        assert!(walk(root, Some("link")).0.is_empty());
        assert!(walk(root, Some("missing")).0.is_empty());
    }

    /// Until no folder counts as changed just now.
    fn age(root: &Path, folders: &[&str]) {
        for folder in folders {
            let path = root.join(folder);
            let version = Version::raw(&fs::metadata(&path).unwrap());
            while version.is_fresh(SystemTime::now()) {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn unchanged_folders_are_not_listed_but_watched_and_walked() {
        let _trusted = crate::fs::file_system::pretend(crate::fs::file_system::TRUSTED);
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        for name in ["one", "a/two", "a/b/three"] {
            fs::write(root.join(name), "bytes").unwrap();
        }
        age(root, &["", "a", "a/b"]);
        let scan_cache = Mutex::default();
        let scan = |scan_cache, scan| walk_again(root, None, scan_cache, Some(scan));
        let all: Vec<String> = ["a/b/three", "a/two", "one"].map(String::from).into();
        assert_eq!(scan(&scan_cache, 0).0, all);
        // Over all turns each folder is listed once, and watched each time.
        let mut listed = Vec::new();
        for number in 1..=ScanCache::TURNS {
            let (files, _, watched) = scan(&scan_cache, number);
            assert_eq!(watched, ["", "a", "a/b"]);
            listed.extend(files);
        }
        listed.sort();
        assert_eq!(listed, all);
        fs::write(root.join("a/b/four"), "bytes").unwrap();
        for number in 1..=ScanCache::TURNS {
            let files = scan(&scan_cache, number).0;
            assert!(files.contains(&"a/b/four".into()) || number > 1, "{files:?}");
        }
        assert_eq!(
            walk_again(root, None, &scan_cache, None).0.len(),
            4,
            "polled: all of it"
        );
    }

    #[test]
    fn a_folder_that_is_an_agents_own_is_neither_entered_nor_watched() {
        let _trusted = crate::fs::file_system::pretend(crate::fs::file_system::TRUSTED);
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir_all(root.join("a/theirs/sub")).unwrap();
        fs::create_dir_all(root.join("disk/.dropwire/sent")).unwrap();
        // The outbox's own record, and what is behind it, says nothing of what lies in it.
        fs::create_dir(root.join(".dropwire")).unwrap();
        fs::write(root.join(".dropwire/owner"), "").unwrap();
        for name in ["a/theirs/one", "a/theirs/sub/two", "disk/three"] {
            fs::write(root.join(name), "bytes").unwrap();
        }
        assert_eq!(walk(root, None).0.len(), 3);
        age(root, &["a", "a/theirs", "a/theirs/sub", "disk"]);
        let scan_cache = Mutex::default();
        walk_again(root, None, &scan_cache, Some(0));
        fs::create_dir(root.join("a/theirs/.dropwire")).unwrap();
        fs::write(root.join("a/theirs/.dropwire/owner"), "damaged").unwrap();
        for number in 1..=ScanCache::TURNS {
            let (files, problems, watched) = walk_again(root, None, &scan_cache, Some(number));
            assert!(files.iter().all(|file| file == "disk/three"), "{files:?}");
            assert_eq!(problems, ["a/theirs"]);
            assert_eq!(watched, ["", "a", "disk"]);
        }
        // A folder in it that was told of.
        let (files, problems, watched) = walk(root, Some("a/theirs/sub"));
        assert_eq!((files.len(), watched.len()), (0, 0));
        assert_eq!(problems, ["a/theirs"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_with_something_that_is_not_sent_is_listed_each_time() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir(root.join("sub")).unwrap();
        std::os::unix::fs::symlink("sub", root.join("sub/link")).unwrap();
        age(root, &["", "sub"]);
        let scan_cache = Mutex::default();
        for number in 0..ScanCache::TURNS {
            assert_eq!(walk_again(root, None, &scan_cache, Some(number)).1, ["sub/link"]);
        }
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

    /// Its files are in the outbox already, where it was made of.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_btrfs_snapshot_is_not_entered_and_another_subvolume_is() {
        let temp = tempfile::tempdir().unwrap();
        let (image, mount) = (temp.path().join("image"), temp.path().join("mount"));
        fs::create_dir(&mount).unwrap();
        fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
        let run = |line: &str| {
            let line = line.replace("IMAGE", image.to_str().unwrap());
            let line = line.replace("MOUNT", mount.to_str().unwrap());
            let mut command = std::process::Command::new("sh");
            let output = command.args(["-c", &line]).output();
            output.is_ok_and(|output| output.status.success())
        };
        if !run("mkfs.btrfs -q IMAGE && mount -o loop IMAGE MOUNT") {
            eprintln!("skipped: no btrfs can be mounted here");
            return;
        }
        let probe_made = run(
            "cd MOUNT && btrfs subvolume create outbox && cd outbox && echo 1 >one \
                        && btrfs subvolume create sub && echo 2 >sub/two && btrfs subvolume snapshot . snap",
        );
        let (files, problems, watched) = walk(&mount.join("outbox"), None);
        assert!(run("umount -l MOUNT") && probe_made);
        assert_eq!(files, ["one", "sub/two"]);
        assert_eq!(
            (problems, watched),
            (vec!["snap".into()], vec!["".into(), "sub".into()])
        );
    }
}
