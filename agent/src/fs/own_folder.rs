//! The one folder in an outbox or inbox that is dropwire's own.

use std::{ffi::OsStr, io};

use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt};
use cap_std::fs::{Dir, File, OpenOptions};

use crate::{failpoints, fs::durable};

/// What it is called.
pub const NAME: &str = ".dropwire";

/// The folder [`NAME`] below `root`, made where it is missing, never through a symlink. Its name is durable after
/// [`durable::sync_dir`] of `root`.
pub fn open_or_make(root: &Dir) -> io::Result<Dir> {
    durable::open_or_make_dir(root, OsStr::new(NAME))
}

/// The file `name` in the own folder of `root`, for reading; None when it is not there. `InvalidData` for anything but a
/// file that has the name. Never waits: who may rename in `root` can put a FIFO there.
pub fn open_file(root: &Dir, name: &str) -> io::Result<Option<File>> {
    let no_file = || io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file");
    let mut options = OpenOptions::new();
    options.read(true).follow(FollowSymlinks::No);
    without_waiting(&mut options);
    let folder = root.open_dir_nofollow(NAME);
    match folder.and_then(|folder| folder.open_with(name, &options)) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(no_file()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        #[cfg(unix)]
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Err(no_file()), // a socket
        Err(e) => Err(e),
    }
}

/// What is opened so is opened at once or not at all, whatever it is.
pub fn without_waiting(options: &mut OpenOptions) {
    #[cfg(unix)]
    if !failpoints::mutant("own-fifo") {
        cap_std::fs::OpenOptionsExt::custom_flags(options, libc::O_NONBLOCK);
    }
    #[cfg(not(unix))]
    let _ = options;
}
