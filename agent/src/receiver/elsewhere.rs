//! R7 for a place on another file system than the partials: a disk that is mounted inside the inbox (`by-peer` on a
//! disk for each peer, say), a bind mount, a btrfs subvolume, a project with a quota of its own. No name can be given
//! across that border, so the partial is copied into a folder `.dropwire/partial` on the other side and named there.
//!
//! It costs one more writing of the bytes and their syncs, and no byte of the line. Until the copy has its name and that
//! is durable, the partial stays: to the rule the two are as a file under both names.

use std::{
    io::{self, Write},
    sync::Arc,
};

use cap_std::fs::Dir;
use dropwire_protocol::{Kind, Manifest, RunningDigest, message::DeclineReason};

use super::{
    Shared, dialect, evidence,
    inbox_dir::InboxDir,
    inherited,
    naming::Names,
    partial,
    place::Place,
    placing::Placing,
    reply::{Answer, spoils},
    rights::Rights,
    staging::staging,
    transfer_locks::Key,
    unpack::{self, Failure, Target},
};
use crate::{
    failpoints,
    fs::{disk::Disk, durable},
};

/// Bytes copied at once.
const COPY: usize = 256 * 1024;

/// The partial itself is not what was verified any more: to keep it would end in the same way each time.
#[derive(Debug, thiserror::Error)]
#[error("the partial does not read back as it was written: {0}")]
struct Spoilt(String);

/// Is the error the partial's own fault?
pub(super) fn is_spoilt(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<Spoilt>()) && !failpoints::mutant("R7-spoilt")
}

/// Copies what is verified among the partials, durably, and gives the copy its final name; the partial stays.
pub(super) fn give_name(
    shared: &Shared,
    inbox_dir: &InboxDir,
    key: Key,
    manifest: &Manifest,
    placing: &Placing,
    place: &Place,
) -> io::Result<()> {
    let parent = place.parent()?;
    let staging = staging(inbox_dir, &place.folders)?;
    let room = failpoints::step("elsewhere-room", || {
        shared
            .space
            .has_room(manifest.size, Disk::of(parent).ok().flatten())
    });
    room.map_err(|short| {
        let text = format!("on the disk of {}: {short}", place.path);
        io::Error::new(io::ErrorKind::StorageFull, text)
    })?;
    inherited::hand_on_nothing(&staging);
    let rights = Rights::of(parent, inbox_dir.mode);
    let staged = partial::staged_name(key, manifest.kind);
    let names = match manifest.kind {
        Kind::File => inbox_dir.names, // it has none inside
        Kind::Folder => dialect::probe(&staging)?,
    };
    let named = match manifest.kind {
        Kind::File => copy(shared, inbox_dir, key, manifest, placing, &staging, &rights),
        Kind::Folder => unpack(shared, inbox_dir, key, placing, &staging, names, &rights),
    }
    .and_then(|inode| {
        let note = || inbox_dir.named.note(&placing.receipt);
        if manifest.kind == Kind::File {
            return durable::rename_noting(&staging, &staged, parent, &place.name, note).map(drop);
        }
        durable::rename_noreplace(&staging, &staged, parent, &place.name)?;
        evidence::named_whole(inbox_dir, names, key, inode, &staging, (parent, &place.name)).map(|()| note())
    });
    if let Err(error) = named {
        let _ = partial::remove_all(&staging, &staged); // else the next try does
        return Err(error);
    }
    failpoints::step("R7-elsewhere-dir", || durable::sync_dir(parent))?;
    durable::sync_dir(&staging)
}

fn copy(
    shared: &Shared,
    inbox_dir: &InboxDir,
    key: Key,
    manifest: &Manifest,
    placing: &Placing,
    staging: &Dir,
    rights: &Rights,
) -> io::Result<u64> {
    let partial = partial::open(inbox_dir, key)?.ok_or(io::ErrorKind::NotFound)?;
    let name = partial::file_name(key);
    let mut copy = partial::create_in(staging, &name, durable::PRIVATE)?;
    let (mut digest, mut buffer) = (RunningDigest::default(), vec![0; COPY]);
    loop {
        stops(shared)?;
        let read =
            partial::read_at(&partial, digest.length(), &mut buffer).map_err(|e| match spoils(&e) {
                true => io::Error::other(Spoilt(e.to_string())),
                false => e,
            })?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
        copy.write_all(&buffer[..read])?;
    }
    if digest.value() != placing.digest {
        return Err(io::Error::other(Spoilt("it has other bytes".into())));
    }
    let meta = copy.metadata()?;
    partial::set_metadata(&copy, &meta, rights, manifest.mtime);
    failpoints::step("R7-elsewhere-file", || durable::sync_file(&copy))?;
    failpoints::step("R7-elsewhere-partial", || durable::sync_dir(staging))?;
    Ok(partial::inode(&meta))
}

/// A copy may take hours: the end of the agent does not wait for it.
fn stops(shared: &Shared) -> io::Result<()> {
    match shared.cancel.is_cancelled() {
        true => Err(io::Error::new(io::ErrorKind::Interrupted, "the agent stops")),
        false => Ok(()),
    }
}

/// A folder is made of its stream once more, over there. Gives its inode.
fn unpack(
    shared: &Shared,
    inbox_dir: &InboxDir,
    key: Key,
    placing: &Placing,
    staging: &Dir,
    names: Names,
    rights: &Rights,
) -> io::Result<u64> {
    let stream = partial::open(inbox_dir, key)?.ok_or(io::ErrorKind::NotFound)?;
    let target = Target {
        partials: staging,
        names,
        syncfs: durable::supports_syncfs(&durable::sync_handle(staging)?),
        rights: Arc::new(rights.clone()),
    };
    match unpack::unpack(&target, key, &stream, placing.digest, &mut |_| {
        !shared.cancel.is_cancelled()
    }) {
        Ok(inode) => Ok(inode),
        Err(Failure::Stopped) => stops(shared).map(|()| 0),
        Err(Failure::Useless(Answer::Refused(refusal)))
            if matches!(refusal.reason, DeclineReason::DiskError | DeclineReason::Conflict) =>
        {
            Err(io::Error::other(Spoilt(refusal.text)))
        }
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
