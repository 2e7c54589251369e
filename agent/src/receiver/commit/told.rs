//! By what a verified partial is known again.

use std::{fs::File, io};

use crate::{fs::version::Version, receiver::inbox_dir::InboxDir};

/// What tells a verified partial from another file that is put in its place.
#[derive(Debug)]
pub(crate) struct Told {
    pub(super) inode: u64,
    pub(super) by: By,
}

#[derive(Debug)]
pub(super) enum By {
    /// By the inode number; for an unpacked folder always, even where numbers do not last.
    Number,
    /// Where numbers do not last: as it was once verified, by number and times together.
    Times(Version),
    /// Where not even an open file tells of itself.
    Bytes,
}

impl Told {
    /// Of an open partial with this inode, that nothing more is done to.
    pub(crate) fn of(inbox_dir: &InboxDir, file: &File, inode: u64) -> io::Result<Self> {
        let by = match inbox_dir.lasting_inodes {
            true => By::Number,
            false => match Version::read(file)? {
                (seen, on) if on.tells_of_open_files() => By::Times(seen),
                _ => By::Bytes,
            },
        };
        Ok(Self { inode, by })
    }

    /// Of an unpacked folder.
    pub(crate) fn folder(inode: u64) -> Self {
        let by = By::Number;
        Self { inode, by }
    }

    /// Its number.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }
}
