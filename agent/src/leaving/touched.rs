//! Folders in which names changed, until a sync of each or of all together.

use std::{collections::BTreeMap, fs::File, io};

use cap_fs_ext::MetadataExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use crate::{failpoints, fs::durable};

/// Above this many, one sync of the file system replaces a sync for each folder.
const SYNC_EACH: usize = 4;

/// Part of an outbox.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Area {
    /// The outbox itself.
    Outbox,
    /// `.dropwire`.
    Own,
    /// `.dropwire/sent`.
    Sent,
}

/// A folder, by its path below the area's; None is that one itself.
pub(super) type Place = (Area, Option<RemotePath>);

/// See the module.
#[derive(Default)]
pub(super) struct Touched(BTreeMap<Place, Dir>);

impl Touched {
    /// Names change in this folder, or just did.
    pub(super) fn add(&mut self, place: Place, folder: Dir) {
        self.0.insert(place, folder);
    }

    /// Open already: the next name that changes in it needs no further handle.
    pub(super) fn get(&self, place: &Place) -> Option<&Dir> {
        self.0.get(place)
    }

    /// After Ok, the changes survive a power cut. `sync_handle`: see [`durable::sync_filesystem`]; None where there is no
    /// trusted one.
    pub(super) fn sync(self, sync_handle: Option<&File>) -> io::Result<()> {
        let folders = self.0;
        if let Some(sync_handle) = sync_handle.filter(|_| folders.len() > SYNC_EACH)
            && on_its_file_system(sync_handle, &folders).unwrap_or(false)
        {
            return failpoints::step("S5-syncfs", || durable::sync_filesystem(sync_handle));
        }
        for folder in folders.values() {
            failpoints::step("S5-dirs", || durable::sync_dir(folder))?;
        }
        Ok(())
    }
}

/// Another one may be mounted on a folder below the outbox.
fn on_its_file_system(sync_handle: &File, folders: &BTreeMap<Place, Dir>) -> io::Result<bool> {
    let device = cap_std::fs::Metadata::from_file(sync_handle)?.dev();
    for folder in folders.values() {
        if folder.dir_metadata()?.dev() != device {
            return Ok(false);
        }
    }
    Ok(true)
}
