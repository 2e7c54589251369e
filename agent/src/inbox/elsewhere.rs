//! R7 for a place on another file system than the partials: a disk that is mounted inside the inbox (`by-peer` on a disk for
//! each peer, say), a btrfs subvolume, a project with a quota of its own. No name can be given across that border, so the
//! partial is copied into a folder `.dropwire/partial` on the other side and named there.
//!
//! It costs one more writing of the bytes and their syncs, and no byte of the line. Until the copy has its name and that
//! is durable, the partial stays: to the rule the two are as a file under both names.

use std::{
    ffi::OsStr,
    io::{self, Write},
    sync::Arc,
};

use cap_std::fs::Dir;
use dropwire_protocol::{Kind, Manifest, RunningDigest, message::DeclineReason};

use super::{
    claims::Key,
    dialect,
    ledger::Placing,
    partial,
    place::Place,
    reply::Answer,
    rights::{self, Rights},
    site::{PARTIALS, Site},
    unpack::{self, Failure, Target},
};
use crate::{durable, fault, mark};

/// Bytes copied at once.
const COPY: usize = 256 * 1024;

/// Copies what is verified among the partials, durably, and gives the copy its final name; the partial stays.
pub fn give_name(
    site: &Site,
    key: Key,
    manifest: &Manifest,
    placing: &Placing,
    place: &Place,
) -> io::Result<()> {
    let parent = place.parent()?;
    let staging = staging(site, place)?;
    rights::hand_on_nothing(&staging);
    let rights = Rights::of(parent, site.mode);
    let staged = partial::staged_name(key, manifest.kind);
    let named = match manifest.kind {
        Kind::File => copy(site, key, manifest, placing, &staging, &rights),
        Kind::Folder => unpack(site, key, placing, &staging, &rights),
    }
    .and_then(|()| durable::rename_noreplace(&staging, &staged, parent, &place.name));
    if let Err(error) = named {
        let _ = partial::remove_all(&staging, &staged); // else the next try does
        return Err(error);
    }
    fault::step("R7-elsewhere-dir", || durable::sync_dir(parent))?;
    durable::sync_dir(&staging)
}

/// The partials' folder on the other side: in the highest folder of the way that is over there, or, where the border is
/// none that a folder tells of, in the last one.
fn staging(site: &Site, place: &Place) -> io::Result<Dir> {
    let mut over_there = None;
    for (_, folder) in &place.folders {
        if site.is_elsewhere(&folder.dir_metadata()?) {
            over_there = Some(folder);
            break;
        }
    }
    let top: &Arc<Dir> = match (over_there, place.folders.last()) {
        (Some(folder), _) => folder,
        (None, Some((_, last))) => last,
        (None, None) => return Err(io::ErrorKind::NotFound.into()),
    };
    let own = mark::folder(top)?;
    match site.is_own(&own)? {
        false => durable::open_or_make_dir(&own, OsStr::new(PARTIALS)),
        true => Err(io::ErrorKind::CrossesDevices.into()), // nowhere else to copy to
    }
}

fn copy(
    site: &Site,
    key: Key,
    manifest: &Manifest,
    placing: &Placing,
    staging: &Dir,
    rights: &Rights,
) -> io::Result<()> {
    let partial = partial::open(site, key)?.ok_or(io::ErrorKind::NotFound)?;
    let name = partial::file_name(key);
    let mut copy = partial::create_in(staging, &name)?;
    let (mut digest, mut buffer) = (RunningDigest::default(), vec![0; COPY]);
    loop {
        let read = partial::read_at(&partial, digest.length(), &mut buffer)?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
        copy.write_all(&buffer[..read])?;
    }
    let body = placing
        .receipt
        .decode_body_unverified()
        .map_err(io::Error::other)?;
    if digest.value() != body.digest {
        return Err(io::Error::other(
            "the partial reads back otherwise than it was written",
        ));
    }
    partial::dress(&copy, rights, manifest.mtime);
    fault::step("R7-elsewhere-file", || durable::sync_file(&copy))?;
    fault::step("R7-elsewhere-partial", || durable::sync_dir(staging))
}

/// A folder is made of its stream once more, over there.
fn unpack(site: &Site, key: Key, placing: &Placing, staging: &Dir, rights: &Rights) -> io::Result<()> {
    let stream = partial::open(site, key)?.ok_or(io::ErrorKind::NotFound)?;
    let body = placing
        .receipt
        .decode_body_unverified()
        .map_err(io::Error::other)?;
    let target = Target {
        partials: staging,
        names: dialect::probe(staging),
        syncfs: durable::supports_syncfs(&durable::anchor(staging)?),
        rights: Arc::new(rights.clone()),
    };
    match unpack::unpack(&target, key, &stream, body.digest, &mut |_| true) {
        Ok(_) => Ok(()),
        Err(Failure::NotNow(Answer::Refused(refusal)) | Failure::Useless(Answer::Refused(refusal))) => {
            let kind = match refusal.reason {
                DeclineReason::NoSpace => io::ErrorKind::StorageFull,
                DeclineReason::Busy => io::ErrorKind::ResourceBusy,
                DeclineReason::BadName => io::ErrorKind::InvalidFilename,
                DeclineReason::InboxUnavailable => io::ErrorKind::PermissionDenied,
                _ => io::ErrorKind::Other,
            };
            Err(io::Error::new(kind, refusal.text))
        }
        Err(_) => Err(io::Error::other("the folder could not be made")),
    }
}
