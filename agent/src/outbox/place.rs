//! Where an outbox lies: found by its mark, waited for when it is not there, and never mistaken for another folder.

use std::{io, path::Path, path::PathBuf, time::Duration};

use cap_fs_ext::MetadataExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use crate::{confined, file_system::FileSystem, mark, version::OutboxId};

/// An outbox that is there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As in the config.
    path: PathBuf,
    /// Without symlinks: as native events name it.
    pub(super) root: PathBuf,
    pub(super) id: OutboxId,
    /// What its file system is trusted with.
    pub(super) on: FileSystem,
    /// Device, and inode where that lasts.
    folder: (u64, u64),
}

impl Place {
    /// Finds the outbox at `path`, which gets a mark if it never had one; else the reason why it is held.
    pub(super) fn find(path: &Path, had_mark: bool) -> Result<Place, String> {
        let dir = confined::root(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => "the folder is not there; it is waited for".to_string(),
            _ => format!("the folder cannot be opened: {e}"),
        })?;
        let id = match mark::read(&dir) {
            Ok(Some(id)) => id,
            Ok(None) if had_mark => {
                return Err(
                    "the folder has lost its mark (.dropwire/id): is the right one mounted? \
                            What is to be sent from it as new goes into a new folder"
                        .into(),
                );
            }
            Ok(None) => mark::create(&dir).map_err(|e| format!("the folder cannot be marked: {e}"))?,
            Err(e) => return Err(format!("the folder's mark (.dropwire/id) cannot be read: {e}")),
        };
        let on = FileSystem::of_folder(&dir).unwrap_or_default();
        let folder = identity(&dir, on).map_err(|e| format!("the folder cannot be read: {e}"))?;
        let root = path
            .canonicalize()
            .map_err(|e| format!("the folder cannot be read: {e}"))?;
        let id = OutboxId(id);
        let path = path.to_path_buf();
        Ok(Place {
            path,
            root,
            id,
            on,
            folder,
        })
    }

    /// Its handle, if it is still the same folder. Handles are not kept: they would keep a disk from being unmounted.
    pub(super) fn open(&self) -> io::Result<Dir> {
        self.open_at(&self.root)
    }

    fn open_at(&self, path: &Path) -> io::Result<Dir> {
        let dir = confined::root(path)?;
        let same = identity(&dir, self.on)? == self.folder;
        if same && (self.on.lasting_inodes || self.is_marked(&dir)) {
            Ok(dir)
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "another folder is there"))
        }
    }

    /// It is still there, where the config says, and has its mark.
    pub(super) fn still(&self) -> bool {
        self.open_at(&self.path).is_ok_and(|dir| self.is_marked(&dir))
    }

    fn is_marked(&self, dir: &Dir) -> bool {
        matches!(mark::read(dir), Ok(Some(id)) if OutboxId(id) == self.id)
    }
}

fn identity(dir: &Dir, on: FileSystem) -> io::Result<(u64, u64)> {
    let meta = dir.dir_metadata()?;
    Ok((meta.dev(), if on.lasting_inodes { meta.ino() } else { 0 }))
}

/// Removes `folder` if it is empty and has rested for `quiet`; gives the folder to try next, after another
/// `quiet`.
pub(super) fn remove_empty(outbox: &Dir, folder: &RemotePath, quiet: Duration) -> Option<RemotePath> {
    let dir = confined::open_folder(outbox, folder).ok()?;
    if dir.entries().ok()?.next().is_some() {
        return None;
    }
    let changed = dir.dir_metadata().ok()?.modified().ok()?.into_std();
    // An error means a time in the future: another machine's clock, which says nothing.
    if changed.elapsed().is_ok_and(|rested| rested < quiet) {
        return Some(folder.clone());
    }
    drop(dir);
    let parent = confined::parent(outbox, folder).ok()?;
    parent
        .remove_dir(confined::os_str(folder.file_name()).ok()?)
        .ok()?; // only ever an empty one
    folder.parent()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_marked_once_and_held_without_its_mark() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("outbox");
        assert!(Place::find(&path, false).unwrap_err().contains("not there"));
        assert!(!path.exists(), "never made");
        fs::create_dir(&path).unwrap();
        let place = Place::find(&path, false).unwrap();
        assert!(place.still());
        assert_eq!(Place::find(&path, true).unwrap().id, place.id);
        fs::rename(path.join(".dropwire"), temp.path().join("kept")).unwrap();
        assert!(!place.still() && place.open().is_ok());
        assert!(Place::find(&path, true).unwrap_err().contains("lost its mark"));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        fs::rename(temp.path().join("kept"), path.join(".dropwire")).unwrap();
        assert!(place.still());
        fs::rename(&path, temp.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!place.still() && place.open().is_err());
    }

    /// As on sshfs: the same folder has another number at each look.
    #[test]
    fn where_numbers_do_not_last_the_mark_alone_tells_the_folder() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("outbox");
        fs::create_dir(&path).unwrap();
        let _untrusted = crate::file_system::pretend(FileSystem::default());
        let place = Place::find(&path, false).unwrap();
        fs::rename(path.join(".dropwire"), temp.path().join("kept")).unwrap();
        fs::remove_dir(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(place.open().is_err() && !place.still());
        fs::rename(temp.path().join("kept"), path.join(".dropwire")).unwrap();
        assert!(place.open().is_ok() && place.still());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_on_the_way_may_come_to_lead_elsewhere() {
        let temp = tempfile::tempdir().unwrap();
        let (a, b, link) = (
            temp.path().join("a"),
            temp.path().join("b"),
            temp.path().join("link"),
        );
        for folder in [&a, &b] {
            fs::create_dir(folder).unwrap();
        }
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let place = Place::find(&link, false).unwrap();
        assert!(place.still());
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&b, &link).unwrap();
        assert!(!place.still());
    }

    #[test]
    fn only_empty_rested_folders_go() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("a/b")).unwrap();
        let outbox = confined::root(temp.path()).unwrap();
        let (b, a) = (
            RemotePath::parse(b"a/b").unwrap(),
            RemotePath::parse(b"a").unwrap(),
        );
        assert_eq!(
            remove_empty(&outbox, &b, Duration::from_secs(3600)),
            Some(b.clone())
        );
        assert_eq!(remove_empty(&outbox, &a, Duration::ZERO), None);
        assert_eq!(remove_empty(&outbox, &b, Duration::ZERO), Some(a.clone()));
        assert!(!temp.path().join("a/b").exists());
        fs::write(temp.path().join("a/file"), "").unwrap();
        assert_eq!(remove_empty(&outbox, &a, Duration::ZERO), None);
        assert!(temp.path().join("a/file").exists());
        fs::remove_file(temp.path().join("a/file")).unwrap();
        assert_eq!(remove_empty(&outbox, &a, Duration::ZERO), None);
        assert!(!temp.path().join("a").exists() && temp.path().exists());
    }
}
