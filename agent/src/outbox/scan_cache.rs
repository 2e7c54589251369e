//! Which folders a scan need not list again, because they did not change since they were.
//!
//! A folder's own times change with the names in it, not with the bytes of its files. So a listing is left out only
//! where events were shown to come and none was lost: they tell of what is written. What they fail to tell all the
//! same is found by the listing that every folder gets once in [`ScanCache::TURNS`] scans, each in its own turn.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    time::SystemTime,
};

use cap_fs_ext::MetadataExt;
use cap_std::fs::Dir;

use crate::fs::{file_system::FileSystem, version::Version};

/// A folder as it was just before it was listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    device: u64,
    version: Version,
    /// What its file system is trusted with.
    pub(super) on: FileSystem,
}

impl Stamp {
    pub(super) fn of(folder: &Dir) -> io::Result<Self> {
        let device = folder.dir_metadata()?.dev();
        let (version, on) = Version::of_folder(folder)?;
        Ok(Self { device, version, on })
    }
}

/// What scans of one outbox remember.
#[derive(Debug, Default)]
pub(super) struct ScanCache {
    folders: HashMap<Vec<u8>, Listed>,
    /// Names kept, of folders and of those in them.
    names: usize,
    cleared: u64,
}

#[derive(Debug)]
struct Listed {
    stamp: Stamp,
    folders: Vec<Vec<u8>>,
}

impl ScanCache {
    /// Every folder is listed once in so many scans.
    pub(super) const TURNS: u64 = 6;
    /// Most names that are kept; folders beyond are listed each time.
    pub(super) const MOST: usize = 8192;

    /// The folders in `path`, if its listing can be left out in this scan.
    pub(super) fn unchanged(&self, path: &[u8], stamp: &Stamp, scan: u64) -> Option<Vec<Vec<u8>>> {
        let listed = self.folders.get(path)?;
        let its_turn = scan % Self::TURNS == turn(path);
        (!its_turn && listed.stamp == *stamp).then(|| listed.folders.clone())
    }

    /// How often everything was forgotten.
    pub(super) fn cleared(&self) -> u64 {
        self.cleared
    }

    /// `path` was listed from `now` on, and all in it could be told. `stamp` was taken before, and `cleared` asked for:
    /// what was forgotten since stays so. A change within one step of the file system's clock would not show, so a
    /// folder that changed just then is not remembered.
    pub(super) fn listed(
        &mut self,
        path: &[u8],
        (stamp, cleared): (Stamp, u64),
        now: SystemTime,
        folders: Vec<Vec<u8>>,
    ) {
        self.forget(path);
        let names = 1 + folders.len();
        if cleared != self.cleared || stamp.version.is_fresh(now) || self.names + names > Self::MOST {
            return;
        }
        self.names += names;
        self.folders.insert(path.to_vec(), Listed { stamp, folders });
    }

    /// `path` is listed in the next scan.
    pub(super) fn forget(&mut self, path: &[u8]) {
        if let Some(listed) = self.folders.remove(path) {
            self.names -= 1 + listed.folders.len();
        }
    }

    /// Everything is listed in the next scan.
    pub(super) fn clear(&mut self) {
        *self = Self {
            cleared: self.cleared + 1,
            ..Self::default()
        };
    }
}

fn turn(path: &[u8]) -> u64 {
    let mut hash = DefaultHasher::new();
    path.hash(&mut hash);
    hash.finish() % ScanCache::TURNS
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn stamp(mtime_ns: i64) -> Stamp {
        let version = Version {
            inode: 1,
            birth_ns: 0,
            size: 0,
            mtime_ns,
            ctime_ns: mtime_ns,
            folder: false,
        };
        let (device, on) = (1, FileSystem::default());
        Stamp { device, version, on }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(100)
    }

    fn skips(scan_cache: &ScanCache, path: &[u8], stamp: &Stamp) -> usize {
        let skipped = |scan: &u64| scan_cache.unchanged(path, stamp, *scan).is_some();
        (0..ScanCache::TURNS).filter(skipped).count()
    }

    #[test]
    fn an_unchanged_folder_is_listed_in_its_turn_only() {
        let mut scan_cache = ScanCache::default();
        assert_eq!(skips(&scan_cache, b"a", &stamp(5)), 0);
        scan_cache.listed(b"a", (stamp(5), 0), now(), vec![b"sub".to_vec()]);
        assert_eq!(skips(&scan_cache, b"a", &stamp(5)), ScanCache::TURNS as usize - 1);
        assert_eq!(skips(&scan_cache, b"a", &stamp(6)), 0, "it changed");
        let moved = Stamp {
            device: 2,
            ..stamp(5)
        };
        assert_eq!(
            skips(&scan_cache, b"a", &moved),
            0,
            "another disk is mounted there"
        );
        assert_eq!(skips(&scan_cache, b"b", &stamp(5)), 0);
        scan_cache.forget(b"a");
        assert_eq!((skips(&scan_cache, b"a", &stamp(5)), scan_cache.names), (0, 0));
        let asked_before = scan_cache.cleared();
        scan_cache.clear();
        scan_cache.listed(b"a", (stamp(5), asked_before), now(), vec![]);
        assert_eq!(
            skips(&scan_cache, b"a", &stamp(5)),
            0,
            "forgotten while it was listed"
        );
    }

    #[test]
    fn what_changed_just_now_is_listed_again() {
        let mut scan_cache = ScanCache::default();
        scan_cache.listed(b"a", (stamp(99_999_999_999), 0), now(), vec![]);
        assert_eq!(skips(&scan_cache, b"a", &stamp(99_999_999_999)), 0);
        // Whole seconds: a coarse clock.
        scan_cache.listed(b"a", (stamp(99_000_000_000), 0), now(), vec![]);
        assert_eq!(skips(&scan_cache, b"a", &stamp(99_000_000_000)), 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut scan_cache = ScanCache::default();
        for i in 0..ScanCache::MOST {
            let name = i.to_string();
            scan_cache.listed(name.as_bytes(), (stamp(5), 0), now(), vec![b"sub".to_vec()]);
        }
        assert_eq!(scan_cache.folders.len(), ScanCache::MOST / 2);
        scan_cache.listed(b"0", (stamp(6), 0), now(), vec![]);
        assert_eq!(scan_cache.names, ScanCache::MOST - 1);
    }

    #[test]
    fn turns_are_spread() {
        let mut counts = [0; ScanCache::TURNS as usize];
        for i in 0..600 {
            counts[turn(format!("folder {i}").as_bytes()) as usize] += 1;
        }
        assert!(counts.iter().all(|n| (50..150).contains(n)), "{counts:?}");
    }
}
