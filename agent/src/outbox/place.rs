//! Where an outbox lies: found by its id, waited for when it is not there, and never mistaken for another folder.

use std::{io, path::Path, path::PathBuf, time::Duration};

use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use crate::{
    error::shown,
    failpoints,
    fs::{border::Noted, confined, dev_ino::DevIno, file_system::FileSystem, folder_id, version::OutboxId},
    owner::{self, Me},
};

/// An outbox that is there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As in the config.
    path: PathBuf,
    /// Without symlinks: as native events name it.
    pub(super) root: PathBuf,
    pub(super) id: OutboxId,
    /// It was made just now: no folder with another id is waited for here.
    pub(super) is_new: bool,
    me: Me,
    /// What its file system is trusted with.
    pub(super) on: FileSystem,
    /// Device, and inode where that lasts.
    folder: DevIno,
}

impl Place {
    /// Finds the outbox at `path` for this agent, which owns it then; it gets a folder id if it never had one. Else the
    /// reason why it is held. Nothing is touched in a folder that belongs to another agent.
    pub(super) fn find(path: &Path, had_id: bool, me: &Me) -> Result<Self, String> {
        let dir = confined::root(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => "the folder is not there; it is waited for".to_string(),
            _ => format!("the folder cannot be opened: {e}"),
        })?;
        owner::check(&dir, path, me)?;
        let (id, is_new) = match folder_id::read(&dir) {
            Ok(Some(id)) => (id, false),
            Ok(None) if had_id => {
                return Err(format!(
                    "{} has lost its id (.dropwire/id): is the right disk mounted? To use the folder that is there now: `{}`",
                    shown(path),
                    owner::adopt(path)
                ));
            }
            Ok(None) => match folder_id::create(&dir) {
                Ok(id) => (id, true),
                Err(e) => return Err(format!("the folder cannot be marked: {e}")),
            },
            Err(e) => {
                let what = format!("the id of {} (.dropwire/id)", shown(path));
                return Err(owner::unreadable(&what, &e, path, "to give it a new one"));
            }
        };
        owner::take(&dir, path, me)?;
        let on = FileSystem::of_folder(&dir).unwrap_or_default();
        let folder = identity(&dir, on).map_err(|e| format!("the folder cannot be read: {e}"))?;
        let root = path
            .canonicalize()
            .map_err(|e| format!("the folder cannot be read: {e}"))?;
        Ok(Self {
            path: path.to_path_buf(),
            root,
            id: OutboxId(id),
            is_new,
            me: me.clone(),
            on,
            folder,
        })
    }

    /// The device that it is on.
    pub(super) fn device(&self) -> u64 {
        self.folder.device
    }

    /// Its handle, if it is still the same folder. Handles are not kept: they would keep a disk from being unmounted.
    pub(super) fn open(&self) -> io::Result<Dir> {
        self.open_at(&self.root)
    }

    fn open_at(&self, path: &Path) -> io::Result<Dir> {
        let dir = confined::root(path)?;
        let same = identity(&dir, self.on)? == self.folder;
        if same && (self.on.lasting_inodes || self.is_ours(&dir)) {
            Ok(dir)
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "another folder is there"))
        }
    }

    /// It is still there, where the config says, has its id, and belongs to this agent.
    pub(super) fn still(&self) -> bool {
        self.open_at(&self.path).is_ok_and(|dir| self.is_ours(&dir))
    }

    /// Its handle, if it is still this agent's: before anything new is found in it.
    pub(super) fn enter(&self) -> Option<Dir> {
        self.open().ok().filter(|dir| self.is_ours(dir))
    }

    fn is_ours(&self, dir: &Dir) -> bool {
        matches!(folder_id::read(dir), Ok(Some(id)) if OutboxId(id) == self.id)
            && owner::check(dir, &self.path, &self.me).is_ok()
    }
}

fn identity(dir: &Dir, on: FileSystem) -> io::Result<DevIno> {
    let its = DevIno::of_found(&dir.dir_metadata()?);
    Ok(match on.lasting_inodes {
        true => its,
        false => DevIno { inode: 0, ..its },
    })
}

/// Removes `folder` if it is empty and has rested for `quiet`; gives the folder to try next, after another
/// `quiet`. One on which something is mounted at times stays.
pub(super) fn remove_empty(
    outbox: &Dir,
    noted: &Noted,
    folder: &RemotePath,
    quiet: Duration,
) -> Option<RemotePath> {
    if noted.has(folder) && !failpoints::mutant("S5-mount-point") {
        return None;
    }
    let dir = confined::open_folder_through(outbox, folder, owner::unclaimed).ok()?;
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

    use dropwire_protocol::AgentId;

    use super::*;
    use crate::fs::{border, own_folder};

    fn me(n: u8) -> Me {
        Me {
            id: AgentId([n; 32]),
            name: "me".into(),
        }
    }

    #[test]
    fn an_outbox_is_one_agents_until_it_is_handed_over() {
        let temp = tempfile::tempdir().unwrap();
        let first = Place::find(temp.path(), false, &me(1)).unwrap();
        assert!(first.is_new && first.enter().is_some());
        let refused = Place::find(temp.path(), false, &me(2)).unwrap_err();
        assert!(refused.contains("belongs to the agent"), "{refused}");
        // After a stop or a crash it is the same agent's again.
        assert!(!Place::find(temp.path(), true, &me(1)).unwrap().is_new);
        let dir = first.open().unwrap();
        owner::replace(&dir, &me(2)).unwrap();
        assert!(first.enter().is_none() && !first.still(), "nothing more is found");
        let second = Place::find(temp.path(), false, &me(2)).unwrap();
        folder_id::replace(&dir).unwrap();
        assert!(second.enter().is_none() && !second.still(), "another id");
    }

    #[test]
    fn a_folder_gets_an_id_once_and_is_held_without_it() {
        let _trusted = crate::fs::file_system::pretend(crate::fs::file_system::TRUSTED);
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("outbox");
        assert!(
            Place::find(&path, false, &me(1))
                .unwrap_err()
                .contains("not there")
        );
        assert!(!path.exists(), "never made");
        fs::create_dir(&path).unwrap();
        let place = Place::find(&path, false, &me(1)).unwrap();
        assert!(place.still());
        assert_eq!(Place::find(&path, true, &me(1)).unwrap().id, place.id);
        fs::rename(path.join(".dropwire"), temp.path().join("kept")).unwrap();
        assert!(!place.still() && place.open().is_ok());
        assert!(
            Place::find(&path, true, &me(1))
                .unwrap_err()
                .contains("lost its id")
        );
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        fs::rename(temp.path().join("kept"), path.join(".dropwire")).unwrap();
        assert!(place.still());
        fs::rename(&path, temp.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!place.still() && place.open().is_err());
    }

    /// As on sshfs: the same folder has another number whenever it is asked.
    #[test]
    fn where_numbers_do_not_last_the_mark_alone_tells_the_folder() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("outbox");
        fs::create_dir(&path).unwrap();
        let _untrusted = crate::fs::file_system::pretend(FileSystem::default());
        let place = Place::find(&path, false, &me(1)).unwrap();
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
        let place = Place::find(&link, false, &me(1)).unwrap();
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
        let remove_empty =
            |folder: &RemotePath, quiet| remove_empty(&outbox, &Noted::of(&outbox).unwrap(), folder, quiet);
        assert_eq!(remove_empty(&b, Duration::from_secs(3600)), Some(b.clone()));
        assert_eq!(remove_empty(&a, Duration::ZERO), None);
        assert_eq!(remove_empty(&b, Duration::ZERO), Some(a.clone()));
        assert!(!temp.path().join("a/b").exists());
        fs::write(temp.path().join("a/file"), "").unwrap();
        assert_eq!(remove_empty(&a, Duration::ZERO), None);
        assert!(temp.path().join("a/file").exists());
        fs::remove_file(temp.path().join("a/file")).unwrap();
        assert_eq!(remove_empty(&a, Duration::ZERO), None);
        assert!(!temp.path().join("a").exists() && temp.path().exists());
        // Something is mounted there at times.
        fs::create_dir(temp.path().join("a")).unwrap();
        border::note(&own_folder::open_or_make(&outbox).unwrap(), &a).unwrap();
        assert_eq!(remove_empty(&a, Duration::ZERO), None);
        assert!(temp.path().join("a").exists());
    }
}
