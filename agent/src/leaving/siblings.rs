//! Further names of a file that leaves: each step of ours with one of them sets the ctime of all, and is nobody's change.

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{Mutex, MutexGuard},
};

use cap_fs_ext::MetadataExt;
use cap_std::fs::Metadata;

use crate::{
    failpoints,
    fs::{dev_ino::DevIno, version::Version},
    poison::Unpoisoned as _,
};

/// Most files that are remembered; then all are forgotten, and stay for as long as any other that was touched.
const MOST: usize = 4096;

/// Files of which a name left.
#[derive(Default)]
pub struct Siblings(Mutex<HashMap<DevIno, Touched>>);

struct Touched {
    /// Since our last step.
    ctime_ns: i64,
    /// Before the first one.
    before_ns: i64,
}

impl Siblings {
    /// When somebody else last changed the `file`, or its times.
    pub(super) fn changed_ns(&self, file: &File) -> io::Result<i64> {
        let meta = Metadata::from_file(file)?;
        let ctime_ns = Version::of_listing(&meta).ctime_ns;
        let all = self.lock();
        Ok(match all.get(&DevIno::of_found(&meta)) {
            Some(ours) if ours.ctime_ns == ctime_ns && !failpoints::mutant("S5-siblings") => ours.before_ns,
            _ => ctime_ns,
        })
    }

    /// Takes a step with one name of the `file`.
    pub(super) fn step<T>(&self, file: &File, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let has_several = Metadata::from_file(file).is_ok_and(|meta| meta.nlink() > 1);
        let before = has_several.then(|| self.changed_ns(file));
        let taken = step()?;
        if let Some(Ok(before_ns)) = before
            && let Ok(meta) = Metadata::from_file(file)
        {
            let mut all = self.lock();
            if all.len() >= MOST {
                all.clear();
            }
            let ctime_ns = Version::of_listing(&meta).ctime_ns;
            all.insert(DevIno::of_found(&meta), Touched { ctime_ns, before_ns });
        }
        Ok(taken)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DevIno, Touched>> {
        self.0.lock().unpoisoned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_bounded() {
        let siblings = Siblings::default();
        for inode in 0..MOST as u64 {
            let touched = Touched {
                ctime_ns: 0,
                before_ns: 0,
            };
            siblings.lock().insert(DevIno { device: 0, inode }, touched);
        }
        let temp = tempfile::tempdir().unwrap();
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        let file = File::create(&a).unwrap();
        siblings.step(&file, || Ok(())).unwrap();
        assert_eq!(siblings.lock().len(), MOST, "it has one name");
        std::fs::hard_link(&a, &b).unwrap();
        siblings.step(&file, || std::fs::remove_file(&b)).unwrap();
        assert_eq!(siblings.lock().len(), 1);
    }
}
