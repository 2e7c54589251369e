//! The id of an outbox or inbox: random, in its `.dropwire/` folder; it tells one folder from another.
//!
//! A folder that is unmounted, moved or restored lacks its id; then nothing is concluded from what is missing in it.

use std::{ffi::OsStr, io, io::Read};

use cap_std::fs::Dir;

use crate::{
    failpoints,
    fs::{confined, durable, own_folder},
};

/// What tells one folder from another.
pub type FolderId = [u8; 16];

const FILE: &str = "id";

/// The id of the folder `root`; None when it has none. A damaged one is `InvalidData`, never replaced.
pub fn read(root: &Dir) -> io::Result<Option<FolderId>> {
    own_folder::open_file(root, FILE)?.map(parse).transpose()
}

/// Whether `folder` is itself the [`own_folder`] that has this id in it. For where no inode number tells.
pub fn lies_in(folder: &Dir, id: FolderId) -> bool {
    let file = confined::open_file(folder, OsStr::new(FILE));
    file.and_then(parse).is_ok_and(|found| found == id)
}

fn parse(file: impl Read) -> io::Result<FolderId> {
    let mut text = String::new();
    file.take(64).read_to_string(&mut text)?;
    let id = data_encoding::HEXLOWER
        .decode(text.trim_end().as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, ".dropwire/id is damaged"))
}

/// Gives the folder `root` a new random id. After Ok it survives a power cut; crashed before, the folder has
/// either no id or the whole one. `AlreadyExists` if it has one.
pub fn create(root: &Dir) -> io::Result<FolderId> {
    write(root, durable::write_new_file)
}

/// Gives the folder `root` a new random id, whether or not it has one. Crashed before, it has the old or the new one.
pub fn replace(root: &Dir) -> io::Result<FolderId> {
    write(root, durable::replace_file)
}

fn write(root: &Dir, write: impl FnOnce(&Dir, &OsStr, &[u8]) -> io::Result<()>) -> io::Result<FolderId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let folder = own_folder::open_or_make(root)?;
    let text = format!("{}\n", data_encoding::HEXLOWER.encode(&id));
    write(&folder, OsStr::new(FILE), text.as_bytes())?;
    failpoints::step("folder-id-dir", || durable::sync_dir(root))?;
    Ok(id)
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
    fn an_id_is_made_once_and_read_back() {
        let (temp, root) = root();
        assert_eq!(read(&root).unwrap(), None);
        let id = create(&root).unwrap();
        assert_eq!(read(&root).unwrap(), Some(id));
        #[cfg(target_os = "linux")]
        {
            let calls = durable::trace::of(temp.path());
            assert!(calls.contains(&durable::trace::sync("")), "{calls:#?}");
            assert!(
                calls.contains(&durable::trace::sync(own_folder::NAME)),
                "{calls:#?}"
            );
        }
        assert_eq!(create(&root).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&root).unwrap(), Some(id));
        let other = replace(&root).unwrap();
        assert_ne!(other, id);
        assert_eq!(read(&root).unwrap(), Some(other));
    }

    #[test]
    fn a_damaged_id_is_an_error() {
        let (_temp, root) = root();
        create(&root).unwrap();
        root.write(".dropwire/id", "half").unwrap();
        assert_eq!(read(&root).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// Nobody ever writes to it.
    #[cfg(target_os = "linux")]
    #[test]
    fn whatever_has_the_name_of_the_id_is_not_waited_for() {
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
        root.symlink("elsewhere", own_folder::NAME).unwrap();
        assert!(read(&root).is_err());
        assert!(create(&root).is_err());
    }
}
