//! Every fsync, rename and directory sync of dropwire stands here, each with its crash promise.

use std::{ffi::OsStr, fs::File, io, path::Path};

use cap_std::fs::Dir;

/// How a file got its final name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// renameat2(RENAME_NOREPLACE).
    Renamed,
    /// link and unlink, where the former is refused.
    Linked,
}

/// After Ok, the file's bytes and metadata survive a power cut. After Err the file is not to be trusted nor synced again.
pub fn sync_file(file: &File) -> io::Result<()> {
    let _ = file;
    todo!()
}

/// After Ok, the file's bytes (and its size) survive a power cut; times may not.
pub fn sync_data(file: &File) -> io::Result<()> {
    let _ = file;
    todo!()
}

/// After Ok, names made, renamed and removed in `dir` before the call survive a power cut.
pub fn sync_dir(dir: &Dir) -> io::Result<()> {
    let _ = dir;
    todo!()
}

/// Gives `from` in `from_dir` the name `to` in `to_dir`, never replacing: `AlreadyExists` if `to` is there (also as a
/// dangling symlink). One component each. Durable only after [`sync_dir`] of both.
pub fn rename_noreplace(from_dir: &Dir, from: &OsStr, to_dir: &Dir, to: &OsStr) -> io::Result<How> {
    let _ = (from_dir, from, to_dir, to);
    todo!()
}

/// Removes a name; durable only after [`sync_dir`].
pub fn unlink(dir: &Dir, name: &OsStr) -> io::Result<()> {
    let _ = (dir, name);
    todo!()
}

/// After Ok, everything written to the file system of `anchor` before the call survives a power cut (Linux: syncfs).
pub fn sync_filesystem(anchor: &File) -> io::Result<()> {
    let _ = anchor;
    todo!()
}

/// Makes `path` hold exactly `bytes`, or, crashed, what it held before: temporary file (mode 0600), sync, rename, directory sync.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let _ = (path, bytes);
    todo!()
}
