//! The mark of an outbox or inbox: a random id in its `.dropwire/` folder, which tells one folder from another.
//!
//! A folder that is unmounted, moved or restored lacks its mark; then nothing is concluded from what is missing in it.

use std::{ffi::OsStr, io, io::Read};

use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt};
use cap_std::fs::{Dir, File, OpenOptions};

use crate::{confined, durable, fault};

/// The one folder in an outbox or inbox that is dropwire's own.
pub const FOLDER: &str = ".dropwire";
const FILE: &str = "id";

/// The mark of the folder `root`; None when it has none. A damaged one is `InvalidData`, never replaced.
pub fn read(root: &Dir) -> io::Result<Option<[u8; 16]>> {
    open(root, FILE)?.map(parse).transpose()
}

/// The file `name` in the [`FOLDER`] of `root`, for reading; None when it is not there. `InvalidData` for anything but a
/// file that has the name. Never waits: who may rename in `root` can put a FIFO there.
pub fn open(root: &Dir, name: &str) -> io::Result<Option<File>> {
    let no_file = || io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file");
    let mut options = OpenOptions::new();
    options.read(true).follow(FollowSymlinks::No);
    without_waiting(&mut options);
    let folder = root.open_dir_nofollow(FOLDER);
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
    if !fault::mutant("mark-fifo") {
        cap_std::fs::OpenOptionsExt::custom_flags(options, libc::O_NONBLOCK);
    }
    #[cfg(not(unix))]
    let _ = options;
}

/// Whether `folder` is itself the [`FOLDER`] that has this mark in it. For where no inode number tells.
pub fn lies_in(folder: &Dir, mark: [u8; 16]) -> bool {
    let file = confined::open_file(folder, OsStr::new(FILE));
    file.and_then(parse).is_ok_and(|found| found == mark)
}

fn parse(file: impl Read) -> io::Result<[u8; 16]> {
    let mut text = String::new();
    file.take(64).read_to_string(&mut text)?;
    let id = data_encoding::HEXLOWER
        .decode(text.trim_end().as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, ".dropwire/id is damaged"))
}

/// Marks the folder `root` with a new random id. After Ok it survives a power cut; crashed before, the folder has
/// either no mark or the whole one. `AlreadyExists` if it has one.
pub fn create(root: &Dir) -> io::Result<[u8; 16]> {
    write(root, durable::write_new_file)
}

/// Marks the folder `root` with a new random id, whether or not it has one. Crashed before, it has the old or the new one.
pub fn replace(root: &Dir) -> io::Result<[u8; 16]> {
    write(root, durable::replace_file)
}

fn write(root: &Dir, write: impl FnOnce(&Dir, &OsStr, &[u8]) -> io::Result<()>) -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let folder = folder(root)?;
    let text = format!("{}\n", data_encoding::HEXLOWER.encode(&id));
    write(&folder, OsStr::new(FILE), text.as_bytes())?;
    fault::step("mark-dir", || durable::sync_dir(root))?;
    Ok(id)
}

/// The folder [`FOLDER`] below `root`, made where it is missing, never through a symlink. Its name is durable after
/// [`create`], or after [`durable::sync_dir`] of `root`.
pub fn folder(root: &Dir) -> io::Result<Dir> {
    durable::open_or_make_dir(root, OsStr::new(FOLDER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        (temp, dir)
    }

    #[test]
    fn a_mark_is_made_once_and_read_back() {
        let (temp, root) = root();
        assert_eq!(read(&root).unwrap(), None);
        let id = create(&root).unwrap();
        assert_eq!(read(&root).unwrap(), Some(id));
        #[cfg(target_os = "linux")]
        {
            let calls = durable::trace::of(temp.path());
            assert!(calls.contains(&durable::trace::sync("")), "{calls:#?}");
            assert!(calls.contains(&durable::trace::sync(FOLDER)), "{calls:#?}");
        }
        assert_eq!(create(&root).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&root).unwrap(), Some(id));
        let other = replace(&root).unwrap();
        assert_ne!(other, id);
        assert_eq!(read(&root).unwrap(), Some(other));
    }

    #[test]
    fn a_damaged_mark_is_an_error() {
        let (_temp, root) = root();
        create(&root).unwrap();
        root.write(".dropwire/id", "half").unwrap();
        assert_eq!(read(&root).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// Nobody ever writes to it.
    #[cfg(target_os = "linux")]
    #[test]
    fn whatever_has_the_mark_s_name_is_not_waited_for() {
        let (temp, root) = root();
        create(&root).unwrap();
        let path = temp.path().join(".dropwire/id");
        let by = |make: &dyn Fn()| {
            std::fs::remove_file(&path).unwrap();
            make();
            let (tell, told) = std::sync::mpsc::channel();
            let root = root.try_clone().unwrap();
            std::thread::spawn(move || tell.send(read(&root)));
            let answer = told.recv_timeout(std::time::Duration::from_secs(60));
            let error = answer.expect("an answer").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        };
        by(&|| {
            rustix::fs::mkfifoat(
                rustix::fs::CWD,
                &path,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            )
            .unwrap();
        });
        by(&|| drop(std::os::unix::net::UnixListener::bind(&path).unwrap()));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(read(&root).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[cfg(unix)]
    #[test]
    fn a_symlink_is_no_folder_of_ours() {
        let (_temp, root) = root();
        root.create_dir("elsewhere").unwrap();
        root.symlink("elsewhere", FOLDER).unwrap();
        assert!(read(&root).is_err());
        assert!(create(&root).is_err());
    }
}
