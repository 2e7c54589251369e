//! Opens what lies in an outbox by its path below it: one component at a time, never through a symlink, and never
//! anything but a regular file, so that a name swapped in the meantime leads nowhere else.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt};
use cap_std::fs::{Dir, DirEntry, FileType, Metadata, OpenOptions};
use dropwire_protocol::RemotePath;

use crate::{
    failpoints,
    fs::{own_files, version::Version},
};

/// The handle of a folder that the config names (symlinks on the way to it are the user's business).
pub fn root(path: &Path) -> io::Result<Dir> {
    Dir::open_ambient_dir(path, cap_std::ambient_authority())
}

/// The folder that holds `path`'s last component.
pub fn parent(root: &Dir, path: &RemotePath) -> io::Result<Dir> {
    parent_through(root, path, ANY)
}

/// The folder that holds `path`'s last component, where each folder on the way passes `gate`.
pub fn parent_through(root: &Dir, path: &RemotePath, gate: Gate) -> io::Result<Dir> {
    match path.parent() {
        Some(folder) => open_folder_through(root, &folder, gate),
        None => root.try_clone(),
    }
}

/// Whether the way may lead through a folder below the root, with this path there; the error is why not.
pub type Gate = fn(&Dir, &[u8]) -> io::Result<()>;

const ANY: Gate = |_, _| Ok(());

/// An outbox, and the folder in it that was opened last: files that follow each other in one folder open it once. For
/// what is done in one go: a folder that is swapped meanwhile is noticed by the next.
pub struct Parents {
    root: Rc<Dir>,
    gate: Gate,
    /// The one that was opened last, by its path; None: nothing yet.
    last: Option<(Option<RemotePath>, Dir)>,
}

impl Parents {
    /// Below `root`.
    pub fn new(root: Dir) -> Self {
        Self::through(root, ANY)
    }

    /// Below `root`, as far as each folder on the way passes `gate`.
    pub fn through(root: Dir, gate: Gate) -> Self {
        Self {
            root: Rc::new(root),
            gate,
            last: None,
        }
    }

    /// The outbox itself.
    pub fn root(&self) -> &Rc<Dir> {
        &self.root
    }

    /// As [`parent`].
    pub fn of(&mut self, path: &RemotePath) -> io::Result<&Dir> {
        let at = path.parent();
        let last = match self.last.take() {
            Some(last) if last.0 == at => last,
            _ => (at, parent_through(&self.root, path, self.gate)?),
        };
        Ok(&self.last.insert(last).1)
    }
}

/// The folder at `path`.
pub fn open_folder(root: &Dir, path: &RemotePath) -> io::Result<Dir> {
    open_folder_through(root, path, ANY)
}

/// The folder at `path`, where it and each folder on the way pass `gate`.
pub fn open_folder_through(root: &Dir, path: &RemotePath, gate: Gate) -> io::Result<Dir> {
    let (mut dir, mut end): (Option<Dir>, usize) = (None, 0);
    for component in path.components() {
        let above = dir.as_ref().unwrap_or(root);
        let below = above.open_dir_nofollow(os_str(component)?)?;
        end += usize::from(end > 0) + component.len();
        gate(&below, &path.as_bytes()[..end])?;
        dir = Some(below);
    }
    dir.map_or_else(|| root.try_clone(), Ok)
}

/// The regular file `name` in `folder`, for reading; `InvalidInput` for anything else that has the name. Never waits
/// (a FIFO, another's lease: `WouldBlock`) and touches no device, nor any of the agent's own files ([`own_files`]).
pub fn open_file(folder: &Dir, name: &OsStr) -> io::Result<File> {
    let seen = folder.symlink_metadata(name)?;
    open_seen_file(folder, name, &seen)
}

/// The regular file `name` in `folder`, as [`open_file`] gives it, where the caller has just `seen` what has the name.
pub fn open_seen_file(folder: &Dir, name: &OsStr, seen: &Metadata) -> io::Result<File> {
    let not_regular = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    if !seen.is_file() {
        return Err(not_regular());
    }
    let own = || io::Error::new(io::ErrorKind::Unsupported, own_files::REASON);
    if own_files::holds(seen)? {
        return Err(own());
    }
    let mut options = OpenOptions::new();
    options.read(true).follow(FollowSymlinks::No);
    #[cfg(target_os = "linux")]
    let file = {
        use cap_std::fs::OpenOptionsExt;
        // Reading what lies there should not change its access time; only the owner may ask for that.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOATIME);
        match folder.open_with(name, &options) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                options.custom_flags(libc::O_NONBLOCK);
                folder.open_with(name, &options)
            }
            other => other,
        }
    }?
    .into_std();
    #[cfg(all(unix, not(target_os = "linux")))]
    cap_std::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    #[cfg(not(target_os = "linux"))]
    let file = folder.open_with(name, &options)?.into_std();
    let opened = Metadata::from_just_metadata(file.metadata()?);
    if !opened.is_file() {
        return Err(not_regular());
    }
    // The name may have come to mean another file since.
    if own_files::holds(&opened)? {
        own_files::close(file);
        return Err(own());
    }
    Ok(file)
}

/// The version of the regular file at `path`, without opening it: no event for whoever watches, no lease in its way. The
/// same errors as opening it.
pub fn version(root: &Dir, path: &RemotePath) -> io::Result<Version> {
    let (folder, name) = (parent(root, path)?, os_str(path.file_name())?);
    let meta = folder.symlink_metadata(name)?;
    match meta.is_file() {
        true => Ok(Version::listed(&folder, name, &meta)),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// What a listing's entry is; asked for where the listing does not say it, as on some file systems none does.
pub fn kind(entry: &DirEntry) -> io::Result<FileType> {
    match entry.file_type()? {
        unknown if unknown == FileType::unknown() && !failpoints::mutant("scan-types") => {
            Ok(entry.metadata()?.file_type())
        }
        kind => Ok(kind),
    }
}

/// The error of opening by path says that no such file is there: missing, or something else on the way or at its end
/// (a symlink, a folder, a FIFO).
pub fn is_absent(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::ELOOP) {
        return true;
    }
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
    )
}

/// A path's component (or the path itself) as the system names files.
pub fn os_str(bytes: &[u8]) -> io::Result<&OsStr> {
    #[cfg(unix)]
    return Ok(std::os::unix::ffi::OsStrExt::from_bytes(bytes));
    #[cfg(not(unix))]
    std::str::from_utf8(bytes)
        .map(OsStr::new)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a name on this system"))
}

/// A name as bytes; None where the system's name has none (unpaired surrogates on Windows).
pub fn bytes(name: &OsStr) -> Option<&[u8]> {
    #[cfg(unix)]
    return Some(std::os::unix::ffi::OsStrExt::as_bytes(name));
    #[cfg(not(unix))]
    name.to_str().map(str::as_bytes)
}

/// Where `path` lies, for watching and for messages; files are opened through handles instead.
pub fn join(root: &Path, path: &RemotePath) -> PathBuf {
    let mut joined = root.to_path_buf();
    joined.extend(path.components().filter_map(|c| os_str(c).ok()));
    joined
}

/// The part of `path` below `root`, with the reason where it cannot be sent under that name.
pub fn below(root: &Path, path: &Path) -> Result<RemotePath, String> {
    let inside = path
        .strip_prefix(root)
        .map_err(|_| "it lies outside".to_string())?;
    let mut joined = Vec::new();
    for component in inside.components() {
        let name = bytes(component.as_os_str()).ok_or("its name is not Unicode")?;
        if !joined.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(name);
    }
    RemotePath::parse(&joined).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_follow_each_other_get_each_its_own_folder() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("a/b")).unwrap();
        let mut parents = Parents::new(root(temp.path()).unwrap());
        let mut leads_to = |path: &str| -> io::Result<u64> {
            let folder = parents.of(&RemotePath::parse(path.as_bytes()).unwrap())?;
            Ok(Version::of_folder(folder)?.0.inode)
        };
        let inode = |path: &str| {
            let folder = root(&temp.path().join(path)).unwrap();
            Version::of_folder(&folder).unwrap().0.inode
        };
        for (path, folder) in [
            ("a/1", "a"),
            ("a/2", "a"),
            ("a/b/1", "a/b"),
            ("1", ""),
            ("a/3", "a"),
        ] {
            assert_eq!(leads_to(path).unwrap(), inode(folder), "{path}");
        }
        assert!(is_absent(&leads_to("c/1").unwrap_err()));
        assert_eq!(leads_to("a/4").unwrap(), inode("a"));
    }
}
