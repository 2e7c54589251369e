//! Is a version where it was found?

use std::{io, path::Path};

use crate::{
    failpoints,
    fs::{
        border, bundle, confined, folder_id,
        version::{Found, OutboxId, Version},
    },
};

/// Whether a version is in its outbox.
#[derive(Clone, Copy, Debug)]
pub(super) enum Presence {
    /// That version, with the ctime that it has now.
    There(Version),
    /// Nothing, or another version.
    Missing,
    /// It is a copy of ours: nobody but a retry needs it.
    Spooled,
    /// The outbox, or what was mounted in it on the way, is not there or cannot be read: that says nothing of its files.
    Unknown,
}

/// Asks the disk.
pub(super) fn find(root: &Path, found: &Found) -> Presence {
    let look = || -> io::Result<Presence> {
        let root = confined::root(root)?;
        if folder_id::read(&root)?.map(OutboxId) != Some(found.outbox) {
            return Ok(Presence::Unknown);
        }
        let path = &found.path;
        let version = if found.version.folder {
            confined::open_folder(&root, path).and_then(|folder| {
                let listing = bundle::list_quickly(&folder);
                listing
                    .map(|l| l.version())
                    .map_err(|e| io::Error::other(format!("{e:?}")))
            })
        } else {
            confined::parent(&root, path).and_then(|folder| {
                let name = confined::os_str(path.file_name())?;
                let meta = folder.symlink_metadata(name)?;
                Ok(Version::listed(&folder, name, &meta))
            })
        };
        match version {
            Ok(now) if now.same_identity(&found.version) => Ok(Presence::There(now)),
            Err(e) if !confined::is_absent(&e) => Err(e),
            _ => match border::missing_on_the_way(&root, path)? {
                Some(_) if !failpoints::mutant("keep-mount") => Ok(Presence::Unknown),
                _ => Ok(Presence::Missing),
            },
        }
    };
    look().unwrap_or(Presence::Unknown)
}

/// Is nothing at all at its path? No, where that cannot be told.
pub(super) fn is_vacant(root: &Path, found: &Found) -> bool {
    let look = || -> io::Result<bool> {
        let root = confined::root(root)?;
        if folder_id::read(&root)?.map(OutboxId) != Some(found.outbox) {
            return Ok(false);
        }
        let folder = confined::parent(&root, &found.path);
        let there =
            folder.and_then(|folder| folder.symlink_metadata(confined::os_str(found.path.file_name())?));
        match there {
            Ok(_) => Ok(false),
            Err(e) if !confined::is_absent(&e) => Err(e),
            Err(_) => border::missing_on_the_way(&root, &found.path).map(|missing| missing.is_none()),
        }
    };
    look().unwrap_or(false)
}
