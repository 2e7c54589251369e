//! Files that this process must never close a descriptor of, once somebody passes it one.
//!
//! The system drops all of a process's record locks on a file (`fcntl`) as soon as the process closes any descriptor of it.
//! SQLite guards its files by such locks; without them another program takes itself for the only one and deletes the log.

use std::{
    fs::{File, Metadata},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Device and inode.
static FILES: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

/// The file at `path`, if there is one, is such a file from now on.
pub fn remember(path: &Path) {
    if let Some(file) = path.symlink_metadata().ok().as_ref().and_then(identity) {
        let mut files = files();
        if !files.contains(&file) {
            files.push(file);
        }
    }
}

/// Closes `file`, or keeps it open for ever if it is one of those. True: it was closed.
pub fn close(file: File) -> bool {
    let its = file.metadata().ok().as_ref().and_then(identity);
    let is_kept = its.is_some_and(|its| files().contains(&its)) && !crate::fault::mutant("kept-open");
    match is_kept {
        true => std::mem::forget(file),
        false => drop(file),
    }
    !is_kept
}

fn files() -> MutexGuard<'static, Vec<(u64, u64)>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
fn identity(meta: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    Some((meta.dev(), meta.ino()))
}

/// Nobody can pass an open file here.
#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<(u64, u64)> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_file_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (folder.path().join("jobs.db"), folder.path().join("other"));
        for path in [&ours, &other] {
            std::fs::write(path, "").unwrap();
        }
        remember(&ours);
        remember(&folder.path().join("missing"));
        std::fs::hard_link(&ours, folder.path().join("link")).unwrap();
        assert!(!close(File::open(folder.path().join("link")).unwrap()));
        assert!(close(File::open(&other).unwrap()));
    }
}
