//! One pass over one version of a whole folder: the same promise as [`super::pass::Pass`] for everything in it.
//!
//! No lease is held on a thousand files. Each is read under its own; then one more walk, which asks for writers, has to
//! find nothing changed since the walk before the first byte, ctimes included.

use std::path::Path;

use bytes::Bytes;
use cap_std::fs::Dir;
use dropwire_protocol::RunningDigest;

use super::pass::{Ended, Take, open_outbox, void_of};
use crate::{
    failpoints,
    fs::{
        bundle::{self, Halt, Listing, Trouble},
        confined,
        version::Found,
    },
    link::Voided,
};

/// An open folder that was the wanted version at the beginning.
pub(super) struct FolderPass<'a> {
    root: Dir,
    found: &'a Found,
    folder: Dir,
    first: Listing,
}

impl<'a> FolderPass<'a> {
    /// Walks the folder before anything of it is read.
    pub(super) fn begin(root: &Path, found: &'a Found) -> Result<Self, Voided> {
        let outbox = open_outbox(root, found.outbox)?;
        let folder = confined::open_folder(&outbox, &found.path).map_err(|e| void_of(&outbox, found, &e))?;
        let first = bundle::list_quickly(&folder).map_err(voided)?;
        let version = first.version();
        if !version.same_identity(&found.version) && !failpoints::mutant("S3-folder-version") {
            return Err(Voided::Changed);
        }
        if version.is_fresh(std::time::SystemTime::now()) {
            return Err(Voided::Writer); // a write within the clock's step would not show
        }
        Ok(FolderPass {
            root: outbox,
            found,
            folder,
            first,
        })
    }

    /// The newest in it.
    pub(super) fn ctime_ns(&self) -> i64 {
        self.first.version().ctime_ns
    }

    /// Of the ctimes of everything in it.
    pub(super) fn change_stamp(&self) -> i64 {
        self.first.change_stamp()
    }

    /// Reads on from where `hash` stands up to `end`, chunk by chunk.
    pub(super) fn read(&self, hash: &mut RunningDigest, end: u64, take: &mut Take<'_>) -> Result<(), Ended> {
        let read = bundle::read(&self.folder, hash.length(), end, &mut |bytes| {
            let offset = hash.length();
            hash.update(bytes);
            take(offset, Bytes::copy_from_slice(bytes), hash)
        });
        read.map_err(|halt| match halt {
            Halt::Trouble(trouble) => voided(trouble).into(),
            Halt::Stopped => Ended::Stopped,
        })
    }

    /// After the last read: still that version, nobody wrote, and the path still leads to it.
    pub(super) fn check(&self) -> Result<(), Voided> {
        if failpoints::mutant("S3-folder-end") {
            return Ok(());
        }
        let folder = confined::open_folder(&self.root, &self.found.path)
            .map_err(|e| void_of(&self.root, self.found, &e))?;
        match bundle::list(&folder, true, &mut |_| Ok(())) {
            Ok(last) if last.is_undisturbed(&self.first) => Ok(()),
            Ok(_) => Err(Voided::Changed),
            Err(trouble) => Err(voided(trouble)),
        }
    }
}

fn voided(trouble: Trouble) -> Voided {
    match trouble {
        Trouble::Changed => Voided::Changed,
        Trouble::Writer(_) => Voided::Writer,
        Trouble::Held(why) => Voided::Unreadable(why),
    }
}
