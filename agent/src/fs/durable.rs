//! Every fsync and directory sync of dropwire but SQLite's, and every rename that a promise rests on, each with its crash
//! promise.
//!
//! Names are given one component at a time, on the handle of the directory that holds them: a path with a slash
//! would follow a symlink on its way. A failed sync is a failure: nothing here tries it again on the same file.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    path::{Component, Path},
};

use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt};
use cap_std::fs::{Dir, OpenOptions};

use crate::{failpoints, fs::file_system::FileSystem, io_error::LostWrite};

#[cfg(all(test, target_os = "linux"))]
pub mod trace;
#[cfg(not(all(test, target_os = "linux")))]
mod trace {
    use super::*;

    pub(super) fn note<T>(_: &str, _: &T) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn opens(_: &Dir) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn opens_in(_: &Dir, _: &OsStr) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn named(_: &Dir, _: &OsStr, _: &Dir, _: &OsStr) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn unlinked(_: &Dir, _: &OsStr) -> io::Result<()> {
        Ok(())
    }
}

/// How a file got its final name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// renameat2(RENAME_NOREPLACE).
    Renamed,
    /// link and unlink, where the former is refused.
    Linked,
    /// Copied to the other file system that the name is on, and named there by one of the former.
    Copied,
}

/// After Ok, the file's bytes and metadata survive a power cut. After Err ([`LostWrite`]) the file is not to be trusted
/// nor synced again.
pub fn sync_file(file: &File) -> io::Result<()> {
    trace::note("sync", file)
        .and_then(|()| file.sync_all())
        .map_err(LostWrite::wrap)
}

/// After Ok, the file's bytes (and its size) survive a power cut; times may not. After Err as with [`sync_file`].
pub fn sync_data(file: &File) -> io::Result<()> {
    trace::note("data", file)
        .and_then(|()| file.sync_data())
        .map_err(LostWrite::wrap)
}

/// After Ok, names made, renamed and removed in `dir` before the call survive a power cut, if the file system can sync
/// folders at all: where it has no such call (some FUSE and network file systems) nothing is asked and nothing promised.
///
/// Only a sync that the disk refused is a [`LostWrite`]; a folder that could not be opened for it (descriptors, rights)
/// asked nothing of the disk, and may be synced later.
pub fn sync_dir(dir: &Dir) -> io::Result<()> {
    let folder = openable(dir)?;
    trace::note("sync", dir)
        .and_then(|()| system::sync_dir(&folder))
        .map_err(LostWrite::wrap)
}

/// Can `dir` be opened for [`sync_dir`]? That takes the right to read it, which giving a name in it does not.
pub fn can_sync_dir(dir: &Dir) -> io::Result<()> {
    openable(dir).map(drop)
}

fn openable(dir: &Dir) -> io::Result<File> {
    trace::opens(dir).and_then(|()| system::open_for_sync(dir))
}

/// Gives `from` in `from_dir` the name `to` in `to_dir`, never replacing: `AlreadyExists` if `to` is there (also as a
/// dangling symlink). One component each. Durable only after [`sync_dir`] of both; crashed before that, the file has
/// one of the two names, or both if it was [`How::Linked`]. After an error other than `AlreadyExists` either may hold.
pub fn rename_noreplace(from_dir: &Dir, from: &OsStr, to_dir: &Dir, to: &OsStr) -> io::Result<How> {
    rename_noting(from_dir, from, to_dir, to, || ())
}

/// Renames as [`rename_noreplace`] does; `note` is called as soon as the file has its new name, before the old name of a
/// link goes.
pub fn rename_noting(
    from_dir: &Dir,
    from: &OsStr,
    to_dir: &Dir,
    to: &OsStr,
    note: impl FnOnce(),
) -> io::Result<How> {
    one_component(from)?;
    one_component(to)?;
    trace::named(from_dir, from, to_dir, to)?;
    match system::rename_noreplace(from_dir, from, to_dir, to) {
        Ok(()) => {
            note();
            Ok(How::Renamed)
        }
        Err(e) if system::is_refused(&e) => {
            link_and_unlink(from_dir, from, to_dir, to, note)?;
            Ok(How::Linked)
        }
        Err(e) => Err(e),
    }
}

/// Renames as [`rename_noting`] does, but by the one way `how`, for callers that wrote that down before they began.
pub fn give_name(
    how: How,
    from_dir: &Dir,
    from: &OsStr,
    to_dir: &Dir,
    to: &OsStr,
    note: impl FnOnce(),
) -> io::Result<()> {
    one_component(from)?;
    one_component(to)?;
    trace::named(from_dir, from, to_dir, to)?;
    match how {
        How::Renamed => system::rename_noreplace(from_dir, from, to_dir, to).map(|()| note()),
        How::Linked => link_and_unlink(from_dir, from, to_dir, to, note),
        How::Copied => Err(io::ErrorKind::CrossesDevices.into()), // the caller's work
    }
}

/// Removes a file's or symlink's name; durable only after [`sync_dir`].
pub fn unlink(dir: &Dir, name: &OsStr) -> io::Result<()> {
    one_component(name)?;
    trace::unlinked(dir, name)?;
    dir.remove_file_or_symlink(name)
}

/// Permissions of what only we read and write.
pub const PRIVATE: u32 = 0o600;

/// Creates a file that only we can read and write (0600 whatever the umask), for reading and writing; `AlreadyExists`
/// for anything that has the name. Bytes are durable after [`sync_file`], the name after [`sync_dir`].
pub fn create_private(dir: &Dir, name: &OsStr) -> io::Result<File> {
    create(dir, name, PRIVATE)
}

/// As [`create_private`], with these permissions less the umask.
pub fn create(dir: &Dir, name: &OsStr, mode: u32) -> io::Result<File> {
    open_own(dir, name, mode, |options| options.create_new(true))
}

/// Creates such a file, or opens it as it is where it is there already; never through a symlink.
pub fn open_private(dir: &Dir, name: &OsStr) -> io::Result<File> {
    open_own(dir, name, PRIVATE, |options| options.create(true))
}

fn open_own(
    dir: &Dir,
    name: &OsStr,
    mode: u32,
    how: fn(&mut OpenOptions) -> &mut OpenOptions,
) -> io::Result<File> {
    one_component(name)?;
    trace::opens_in(dir, name)?;
    let mut options = OpenOptions::new();
    how(&mut options)
        .read(true)
        .write(true)
        .follow(FollowSymlinks::No);
    #[cfg(unix)]
    cap_std::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    Ok(dir.open_with(name, &options)?.into_std())
}

/// Makes a folder for others, as mkdir(1) does: 0777 less the umask, or what the folder that it is made in hands on.
/// Otherwise as [`make_dir`].
pub fn make_shared_dir(dir: &Dir, name: &OsStr) -> io::Result<()> {
    make_dir_with(dir, name, 0o777)
}

/// Makes a folder (0755 less the umask); `AlreadyExists` for anything that has the name. The name is durable only after
/// [`sync_dir`] of `dir`.
pub fn make_dir(dir: &Dir, name: &OsStr) -> io::Result<()> {
    make_dir_with(dir, name, 0o755)
}

fn make_dir_with(dir: &Dir, name: &OsStr, mode: u32) -> io::Result<()> {
    one_component(name)?;
    #[allow(unused_mut)] // only Unix has modes
    let mut builder = cap_std::fs::DirBuilder::new();
    #[cfg(unix)]
    cap_std::fs::DirBuilderExt::mode(&mut builder, mode);
    #[cfg(not(unix))]
    let _ = mode;
    dir.create_dir_with(name, &builder)
}

/// Opens a folder, made where it is missing (0755 less the umask), never through a symlink. The name is durable only
/// after [`sync_dir`] of `dir`: sync it also when the folder was there, since whoever made it may have crashed.
pub fn open_or_make_dir(dir: &Dir, name: &OsStr) -> io::Result<Dir> {
    match make_dir(dir, name) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => dir.open_dir_nofollow(name),
    }
}

/// May many files be made durable by one [`sync_filesystem`], with every write error reported? See [`FileSystem`].
pub fn supports_syncfs(sync_handle: &File) -> bool {
    FileSystem::of(sync_handle).is_ok_and(|on| on.syncfs_reports)
}

/// A folder's handle for [`sync_filesystem`].
pub fn sync_handle(dir: &Dir) -> io::Result<File> {
    system::open_for_sync(dir)
}

/// After Ok, everything written to the file system of `sync_handle` before the call survives a power cut, if
/// [`supports_syncfs`] and `sync_handle` was opened before the first of these writes. `Unsupported` where there is no such
/// call: sync a file at a time.
pub fn sync_filesystem(sync_handle: &File) -> io::Result<()> {
    trace::note("syncfs", sync_handle)
        .and_then(|()| system::sync_filesystem(sync_handle))
        .map_err(|e| match e.kind() {
            io::ErrorKind::Unsupported => e,
            _ => LostWrite::wrap(e),
        })
}

/// Makes `path` hold exactly `bytes`, or, crashed, what it held before: temporary file (mode 0600), sync, rename,
/// directory sync.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (dir, name) = parent_of(path)?;
    replace_file(&dir, name, bytes)
}

/// Makes the file `name` in `dir` hold exactly `bytes`, as [`write_file`] does.
pub fn replace_file(dir: &Dir, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
    write_and_name(dir, name, bytes, |temporary| dir.rename(temporary, dir, name))
}

/// Like [`write_file`], but `AlreadyExists` if anything has the name: of many who write at once, one succeeds.
pub fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (dir, name) = parent_of(path)?;
    write_new_file(&dir, name, bytes)
}

fn parent_of(path: &Path) -> io::Result<(Dir, &OsStr)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file's path"));
    };
    Ok((Dir::open_ambient_dir(parent, cap_std::ambient_authority())?, name))
}

/// Like [`write_new`], in an open folder.
pub fn write_new_file(dir: &Dir, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
    write_and_name(dir, name, bytes, |temporary| {
        rename_noreplace(dir, temporary, dir, name).map(drop)
    })
}

fn write_and_name(
    dir: &Dir,
    name: &OsStr,
    bytes: &[u8],
    give_name: impl FnOnce(&OsStr) -> io::Result<()>,
) -> io::Result<()> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", data_encoding::HEXLOWER.encode(&random)));
    let mut file = create_private(dir, &temporary)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| failpoints::step("write-file", || sync_file(&file)))
        .and_then(|()| give_name(&temporary));
    if written.is_err() {
        let _ = unlink(dir, &temporary); // what is left would only be litter
    }
    written?;
    failpoints::step("write-dir", || sync_dir(dir))
}

/// For file systems that cannot rename without replacing. The new name is made durable before the old one goes, so
/// that no order of writing leaves the file without a name.
fn link_and_unlink(
    from_dir: &Dir,
    from: &OsStr,
    to_dir: &Dir,
    to: &OsStr,
    note: impl FnOnce(),
) -> io::Result<()> {
    match from_dir.hard_link(from, to_dir, to) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists && is_folder(from_dir, from) => {
            return rename_folder(from_dir, from, to_dir, to).map(|()| note());
        }
        linked => linked?,
    }
    note();
    failpoints::step("link-dir", || sync_dir(to_dir))?;
    unlink(from_dir, from)
}

fn is_folder(dir: &Dir, name: &OsStr) -> bool {
    dir.symlink_metadata(name).is_ok_and(|meta| meta.is_dir())
}

/// A folder cannot be linked, and need not be: a folder's rename replaces nothing but an empty folder.
fn rename_folder(from_dir: &Dir, from: &OsStr, to_dir: &Dir, to: &OsStr) -> io::Result<()> {
    if to_dir.symlink_metadata(to).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    from_dir.rename(from, to_dir, to).map_err(|e| match e.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => {
            io::ErrorKind::AlreadyExists.into()
        }
        _ => e,
    })
}

/// Anything but a single plain name is refused.
fn one_component(name: &OsStr) -> io::Result<()> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(only)), None) if only == name => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a single name")),
    }
}

#[cfg(unix)]
mod system {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    /// EINVAL and its kin say that the file system has no such call.
    pub(super) fn sync_dir(folder: &File) -> io::Result<()> {
        match folder.sync_all() {
            Err(e) if is_refused(&e) => Ok(()),
            synced => synced,
        }
    }

    /// A `Dir` may be an O_PATH handle, which cannot be synced.
    pub(super) fn open_for_sync(dir: &Dir) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(dir, ".", flags, Mode::empty())?))
    }

    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    pub(super) fn rename_noreplace(from_dir: &Dir, from: &OsStr, to_dir: &Dir, to: &OsStr) -> io::Result<()> {
        let flags = match failpoints::mutant("noreplace") {
            true => rustix::fs::RenameFlags::empty(),
            false => rustix::fs::RenameFlags::NOREPLACE,
        };
        Ok(rustix::fs::renameat_with(from_dir, from, to_dir, to, flags)?)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    pub fn rename_noreplace(_: &Dir, _: &OsStr, _: &Dir, _: &OsStr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The errors by which a kernel or file system says that it cannot rename without replacing.
    pub(super) fn is_refused(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Unsupported
            || matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::ENOTSUP)
            )
            || error.raw_os_error() == Some(libc::EOPNOTSUPP)
    }

    #[cfg(target_os = "linux")]
    pub(super) fn sync_filesystem(sync_handle: &File) -> io::Result<()> {
        Ok(rustix::fs::syncfs(sync_handle)?)
    }

    #[cfg(not(target_os = "linux"))]
    pub fn sync_filesystem(_: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(not(unix))]
mod system {
    use super::*;

    /// NTFS journals names by itself and has no call for it.
    pub fn sync_dir(_: &File) -> io::Result<()> {
        Ok(())
    }

    pub fn open_for_sync(dir: &Dir) -> io::Result<File> {
        Ok(dir.try_clone()?.into_std_file())
    }

    /// The standard library's rename replaces; a hard link does not.
    pub fn rename_noreplace(_: &Dir, _: &OsStr, _: &Dir, _: &OsStr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn is_refused(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Unsupported
    }

    pub fn sync_filesystem(_: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::ErrorKind::{AlreadyExists, InvalidInput};

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        (temp, dir)
    }

    #[test]
    fn renaming_never_replaces() {
        let (_temp, dir) = folder();
        dir.write("x", "").unwrap();
        let works_here = rename_noreplace(&dir, "x".as_ref(), &dir, "y".as_ref()).unwrap();
        for how in [works_here, How::Linked] {
            dir.write("a", "new").unwrap();
            dir.write("b", "old").unwrap();
            let taken = give_name(how, &dir, "a".as_ref(), &dir, "b".as_ref(), || ()).unwrap_err();
            assert_eq!(taken.kind(), AlreadyExists);
            assert_eq!(dir.read("b").unwrap(), b"old");
            give_name(how, &dir, "a".as_ref(), &dir, "c".as_ref(), || ()).unwrap();
            assert_eq!(dir.read("c").unwrap(), b"new");
            assert!(!dir.exists("a"));
            dir.remove_file("c").unwrap();
        }
    }

    /// As on FUSE without a rename that never replaces.
    #[cfg(unix)]
    #[test]
    fn a_folder_that_cannot_be_linked_is_renamed_and_replaces_nothing() {
        let (_temp, dir) = folder();
        let give =
            |from: &str, to: &str| give_name(How::Linked, &dir, from.as_ref(), &dir, to.as_ref(), || ());
        dir.create_dir_all("a/inside").unwrap();
        dir.create_dir("empty").unwrap();
        dir.write("file", "old").unwrap();
        dir.symlink("nowhere", "link").unwrap();
        for taken in ["empty", "file", "link"] {
            assert_eq!(give("a", taken).unwrap_err().kind(), AlreadyExists, "{taken}");
        }
        give("a", "b").unwrap();
        assert!(dir.exists("b/inside") && !dir.exists("a"));
    }

    #[cfg(unix)]
    #[test]
    fn a_dangling_symlink_is_a_taken_name() {
        let (_temp, dir) = folder();
        dir.write("a", "new").unwrap();
        dir.symlink("nowhere", "b").unwrap();
        dir.write("x", "").unwrap();
        let works_here = rename_noreplace(&dir, "x".as_ref(), &dir, "y".as_ref()).unwrap();
        for how in [works_here, How::Linked] {
            let taken = give_name(how, &dir, "a".as_ref(), &dir, "b".as_ref(), || ()).unwrap_err();
            assert_eq!(taken.kind(), AlreadyExists);
        }
        assert!(!dir.exists("nowhere"));
    }

    #[test]
    fn only_single_names_are_taken() {
        let (_temp, dir) = folder();
        dir.write("a", "").unwrap();
        for bad in ["", ".", "..", "x/y", "/x", "x/"] {
            let refused = rename_noreplace(&dir, "a".as_ref(), &dir, bad.as_ref()).unwrap_err();
            assert_eq!(refused.kind(), InvalidInput, "{bad:?}");
            assert_eq!(
                unlink(&dir, bad.as_ref()).unwrap_err().kind(),
                InvalidInput,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_written_file_replaces_the_old_one_and_a_new_one_does_not() {
        let (temp, dir) = folder();
        let path = temp.path().join("state");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let taken = write_new_file(&dir, "state".as_ref(), b"three").unwrap_err();
        assert_eq!(taken.kind(), AlreadyExists);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "no litter");
    }

    #[cfg(unix)]
    #[test]
    fn private_files_are_exclusive_and_folders_do_not_follow() {
        use std::os::unix::fs::PermissionsExt;
        let (_temp, dir) = folder();
        let file = create_private(&dir, "p".as_ref()).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(
            create_private(&dir, "p".as_ref()).unwrap_err().kind(),
            AlreadyExists
        );
        dir.create_dir("real").unwrap();
        dir.symlink("real", "link").unwrap();
        assert!(open_or_make_dir(&dir, "link".as_ref()).is_err());
        open_or_make_dir(&dir, "real".as_ref()).unwrap();
        sync_dir(&open_or_make_dir(&dir, "fresh".as_ref()).unwrap()).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_written_is_durable_before_and_after_its_name() {
        let (temp, dir) = folder();
        let durable = |calls: &[trace::Call]| {
            let bytes = calls
                .iter()
                .position(|c| matches!(c, trace::Call::Sync("sync", p) if !p.as_os_str().is_empty()));
            bytes.is_some_and(|at| calls[at..].contains(&trace::sync("")))
        };
        write_file(&temp.path().join("state"), b"one").unwrap();
        let calls = trace::of(temp.path());
        assert!(durable(&calls), "{calls:#?}");
        write_new_file(&dir, "new".as_ref(), b"two").unwrap();
        let calls = &trace::of(temp.path())[calls.len()..];
        assert!(durable(calls), "{calls:#?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_linked_name_is_durable_before_the_old_one_goes() {
        let (temp, dir) = folder();
        dir.write("a", "bytes").unwrap();
        give_name(How::Linked, &dir, "a".as_ref(), &dir, "b".as_ref(), || ()).unwrap();
        let named = trace::Call::Name("a".into(), "b".into());
        assert_eq!(
            trace::of(temp.path()),
            [named, trace::sync(""), trace::Call::Unlink("a".into())]
        );
    }

    #[test]
    fn a_file_system_is_synced_where_that_is_trusted() {
        let file = tempfile::tempfile().unwrap();
        if supports_syncfs(&file) {
            sync_filesystem(&file).unwrap();
        } else {
            failpoints::skip("no trusted syncfs in the temporary folder");
        }
    }
}
