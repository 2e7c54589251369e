//! A delivered folder is removed: all that was in it when it was checked, and nothing else.
//!
//! A program that had the folder open may go on in it after its last name is gone: what it writes then was never
//! delivered. So each file is looked at once more, and one that was touched since the check stays.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    io,
};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::{Dir, Metadata};

use crate::{
    bundle, confined, durable, fault,
    lease::{Asked, Lease},
    version::Version,
};

const GONE: &str = ".gone.";

/// The name in `leaving` of a folder whose removal is decided; `newest_ns` is the newest ctime that was in it then.
pub(super) fn decided_name(name: &str, newest_ns: i64) -> OsString {
    format!("{name}{GONE}{newest_ns}").into()
}

/// The folder that has such a name, and the ctime in it.
pub(super) fn find_decided(leaving: &Dir, name: &str) -> io::Result<Option<(OsString, i64)>> {
    for entry in leaving.entries()? {
        let found = entry?.file_name();
        let rest = found
            .to_str()
            .and_then(|n| n.strip_prefix(name)?.strip_prefix(GONE));
        if let Some(newest_ns) = rest.and_then(|ns| ns.parse().ok()) {
            return Ok(Some((found, newest_ns)));
        }
    }
    Ok(None)
}

/// Removes the folder `name` and what in it was not changed since `newest_ns`. False: something stays, and the folder
/// with it. Durable once `parent` is synced; may be repeated.
pub(super) fn remove(parent: &Dir, name: &OsStr, newest_ns: i64) -> io::Result<bool> {
    let folder = match parent.open_dir_nofollow(name) {
        Err(e) if confined::is_absent(&e) => return Ok(true),
        folder => folder?,
    };
    let mut removal = Removal {
        newest_ns,
        device: folder.dir_metadata()?.dev(),
        further: HashSet::new(),
    };
    removal.clear(&folder)?;
    remove_empty(parent, name)
}

struct Removal {
    newest_ns: i64,
    device: u64,
    /// Files of which one name was removed and others are left: their ctime is of that removal.
    further: HashSet<u64>,
}

impl Removal {
    fn clear(&mut self, folder: &Dir) -> io::Result<()> {
        for entry in folder.entries()? {
            let name = entry?.file_name();
            match self.entry(folder, &name) {
                // It went, or became something else, by somebody else's doing.
                Err(e) if confined::is_absent(&e) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, folder: &Dir, name: &OsStr) -> io::Result<()> {
        let meta = folder.symlink_metadata(name)?;
        if meta.dev() != self.device {
            return Ok(());
        }
        if meta.is_dir() {
            self.clear(&folder.open_dir_nofollow(name)?)?;
            return remove_empty(folder, name).map(drop);
        }
        if !meta.is_file() {
            return Ok(());
        }
        // A writer is held up for as long as it lives.
        let lease = match Lease::take(&confined::open_file(folder, name)?) {
            Asked::Writer => return Ok(()),
            Asked::Unsupported => None,
            Asked::Lease(lease) => Some(lease),
        };
        let meta = folder.symlink_metadata(name)?;
        if self.is_as_checked(&meta) || bundle::is_litter(folder, name) || fault::mutant("S5-folder-late") {
            durable::unlink(folder, name)?;
            if meta.nlink() > 1 {
                self.further.insert(meta.ino());
            }
        }
        drop(lease);
        Ok(())
    }

    fn is_as_checked(&self, meta: &Metadata) -> bool {
        let version = Version::listed(meta);
        let changed_ns = match self.further.contains(&meta.ino()) {
            true => version.mtime_ns,
            false => version.ctime_ns,
        };
        changed_ns <= self.newest_ns
    }
}

/// False: it is not empty.
fn remove_empty(parent: &Dir, name: &OsStr) -> io::Result<bool> {
    match parent.remove_dir(name) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(e) if confined::is_absent(&e) => Ok(true),
        removed => removed.map(|()| true),
    }
}
