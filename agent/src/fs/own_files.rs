//! The agent's own files, under whatever name: what is found in an outbox is none of them, and of some this process must
//! never close a descriptor.
//!
//! The system drops all of a process's record locks on a file (`fcntl`) as soon as the process closes any descriptor of
//! it. SQLite guards its files by such locks; without them another program takes itself for the only one and deletes
//! the log.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use super::dev_ino::DevIno;
use crate::{failpoints, poison::Unpoisoned as _};

/// For people.
pub const REASON: &str = "it is one of dropwire's own files";

static OWN: Mutex<Own> = Mutex::new(Own {
    databases: Vec::new(),
    guarded: Vec::new(),
});

struct Own {
    /// Each lies in its state folder.
    databases: Vec<PathBuf>,
    /// Files that SQLite has open, or had.
    guarded: Vec<DevIno>,
}

impl Own {
    fn guard(&mut self) {
        for database in &self.databases {
            for suffix in ["", "-wal", "-shm", "-journal"] {
                let path = beside(database, suffix);
                if let Some(file) = path.symlink_metadata().ok().as_ref().and_then(DevIno::of)
                    && !self.guarded.contains(&file)
                {
                    self.guarded.push(file);
                }
            }
        }
    }
}

/// The database at `path` is open from now on: the folder that it lies in is a state folder.
pub fn remember(path: &Path) {
    let mut own = own();
    if !own.databases.iter().any(|known| known == path) {
        own.databases.push(path.to_owned());
    }
    own.guard();
}

/// Closes `file`, or keeps it open for ever if SQLite has it open too. True: it was closed.
pub fn close(file: File) -> bool {
    let its = file.metadata().ok().as_ref().and_then(DevIno::of);
    let is_kept = its.is_some_and(|its| {
        let mut own = own();
        own.guard(); // SQLite may have made some of them since
        own.guarded.contains(&its)
    }) && !failpoints::mutant("kept-open");
    match is_kept {
        true => std::mem::forget(file),
        false => drop(file),
    }
    !is_kept
}

/// Is what was found a further name of a file in a state folder? Asks without opening it. Not of a copy in the spool.
pub fn holds(found: &cap_std::fs::Metadata) -> io::Result<bool> {
    use cap_fs_ext::MetadataExt;
    // A file that lies there and here has two names.
    if !cfg!(unix) || found.nlink() < 2 || failpoints::mutant("own-links") {
        return Ok(false);
    }
    let folders: Vec<PathBuf> = own()
        .databases
        .iter()
        .filter_map(|database| database.parent().map(Path::to_owned))
        .collect();
    for folder in folders {
        // Listed each time: SQLite deletes and makes some of them again, and what has a number now may be another file
        // than had it.
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let its = entry?.metadata().ok().as_ref().and_then(DevIno::of);
            if its == Some(DevIno::of_found(found)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.into();
    name.push(suffix);
    name.into()
}

fn own() -> MutexGuard<'static, Own> {
    OWN.lock().unpoisoned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::fs::confined;

    #[test]
    fn a_remembered_file_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let ours = folder.path().join("jobs.db");
        fs::write(&ours, "").unwrap();
        // Several: one alone may have got the number of a database that another test has removed.
        let others: Vec<PathBuf> = (0..64)
            .map(|n| folder.path().join(format!("other {n}")))
            .collect();
        for path in &others {
            fs::write(path, "").unwrap();
        }
        remember(&ours);
        remember(&folder.path().join("missing"));
        fs::hard_link(&ours, folder.path().join("link")).unwrap();
        assert!(!close(File::open(folder.path().join("link")).unwrap()));
        assert!(others.iter().any(|other| close(File::open(other).unwrap())));
        fs::write(folder.path().join("jobs.db-wal"), "").unwrap();
        assert!(!close(File::open(folder.path().join("jobs.db-wal")).unwrap()));
    }

    #[test]
    fn a_link_to_a_file_in_the_state_folder_is_not_opened() {
        let (state, outbox) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ours = state.path().join("jobs.db");
        fs::write(&ours, "").unwrap();
        remember(&ours);
        fs::write(state.path().join("identity.key"), "").unwrap();
        fs::create_dir(state.path().join("spool")).unwrap();
        fs::write(state.path().join("spool/copy"), "").unwrap();
        fs::write(outbox.path().join("file"), "").unwrap();
        for (name, of) in [
            ("database", ours),
            ("key", state.path().join("identity.key")),
            ("copy", state.path().join("spool/copy")),
            ("another name", outbox.path().join("file")),
        ] {
            fs::hard_link(of, outbox.path().join(name)).unwrap();
        }
        let folder = confined::root(outbox.path()).unwrap();
        let opens = |name: &str| confined::open_file(&folder, name.as_ref());
        for name in ["file", "another name", "copy"] {
            assert!(opens(name).is_ok(), "{name}");
        }
        for name in ["database", "key"] {
            let error = opens(name).unwrap_err();
            assert!(
                error.to_string() == REASON && !confined::is_absent(&error),
                "{name}"
            );
        }
        // A name that comes to mean it between the check and the opening.
        let seen = folder.symlink_metadata("file").unwrap();
        fs::rename(outbox.path().join("database"), outbox.path().join("file")).unwrap();
        assert!(confined::open_seen_file(&folder, "file".as_ref(), &seen).is_err());
    }
}
