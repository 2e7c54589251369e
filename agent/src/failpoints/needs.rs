//! What a test needs of the file system that its temporary folder is on: where that is not so, the test is left out, and
//! that is said with the reason.

use std::{ffi::OsStr, io};

use cap_std::fs::Dir;

use crate::fs::{
    durable::{self, How},
    file_system::FileSystem,
};

/// A name is given without a link: a whole folder can have one, and a crash leaves no two.
pub fn renames() -> bool {
    has("cannot rename without replacing", |dir| {
        durable::create_private(dir, OsStr::new("a"))?;
        let how = durable::rename_noreplace(dir, OsStr::new("a"), dir, OsStr::new("b"))?;
        Ok(how == How::Renamed)
    })
}

/// A file's number tells it from another.
pub fn lasting_inodes() -> bool {
    has("has no lasting inode numbers", |dir| {
        Ok(FileSystem::of_folder(dir)?.lasting_inodes)
    })
}

/// It tells of every change, so an outbox there need not be polled.
pub fn telling_of_changes() -> bool {
    has("does not tell of what others change", |dir| {
        Ok(FileSystem::of_folder(dir)?.tells_changes)
    })
}

/// What is removed while it is open leaves no name, hidden or not, in its folder.
pub fn removal_of_open_files() -> bool {
    has("keeps the names of removed files that are open", |dir| {
        let _open = durable::create_private(dir, OsStr::new("a"))?;
        durable::unlink(dir, OsStr::new("a"))?;
        Ok(dir.entries()?.next().is_none())
    })
}

/// Folders below folders, however long the whole path comes to be.
pub fn deep_trees() -> bool {
    has("takes no path longer than a call's", |dir| {
        let (mut at, name) = (dir.try_clone()?, "d".repeat(200));
        for _ in 0..30 {
            match at.create_dir(&name) {
                Err(e) if e.kind() == io::ErrorKind::InvalidFilename => return Ok(false),
                made => made?,
            }
            at = at.open_dir(&name)?;
        }
        Ok(true)
    })
}

/// A file gets its blocks before its bytes.
#[cfg(target_os = "linux")]
pub fn blocks_in_advance() -> bool {
    has("gives no blocks in advance", |dir| {
        let file = durable::create_private(dir, OsStr::new("a"))?;
        Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 4096).is_ok())
    })
}

fn has(otherwise: &str, probe: impl FnOnce(&Dir) -> io::Result<bool>) -> bool {
    let temp = tempfile::tempdir().unwrap();
    let dir = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
    let has = probe(&dir).unwrap();
    if !has {
        let on = FileSystem::of_folder(&dir).unwrap().name;
        super::skip(&format!(
            "the file system of the temporary folder ({on}) {otherwise}"
        ));
    }
    has
}
