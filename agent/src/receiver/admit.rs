//! R1: what an offer meets in the ledger, and whether there is room for it.

use std::{io, sync::Arc, time::Instant};

use dropwire_protocol::{AgentId, Kind, Manifest, message::DeclineReason};

use super::{
    Shared,
    inbox_dir::{InboxDir, Trouble},
    ledger::{self, Known, State},
    reply::{self, Answer},
    row_bounds, rule,
    space::Reservation,
    transfer_locks::Key,
};
use crate::{
    db::DbError,
    error, failpoints,
    fs::{disk::Disk, durable::How},
    id,
};

/// An offer that is taken.
pub(super) struct Admitted {
    /// Where it is received.
    pub inbox_dir: Arc<InboxDir>,
    /// May there be a partial to resume?
    pub may_resume: bool,
}

/// Decides on the offer of a locked transfer; an error is the answer that ends it. A row *placing* is finished first.
/// Blocks.
pub(super) fn admit(
    shared: &Shared,
    key: Key,
    manifest: &Manifest,
    known: Option<Known>,
) -> Result<Admitted, Answer> {
    let fresh = |inbox_dir| Admitted {
        inbox_dir,
        may_resume: false,
    };
    let Some(Known {
        manifest: bound,
        folder_id,
        state,
    }) = known.filter(|_| !failpoints::mutant("R1-known"))
    else {
        takes_more(shared, key.0)?;
        return Ok(fresh(shared.open_inbox()?));
    };
    let bound = bound.filter(|b| {
        let same = (&b.path, b.size, b.kind) == (&manifest.path, manifest.size, manifest.kind);
        same || failpoints::mutant("R1-bound")
    });
    match (state, bound) {
        (State::Withdrawn, _) => {
            let text = "it was withdrawn";
            Err(Answer::refused(DeclineReason::Withdrawn, text, None))
        }
        (_, None) => {
            let text = "this id was offered before with another path, size or kind";
            Err(Answer::refused(DeclineReason::Conflict, text, None))
        }
        (State::Delivered(receipt), Some(_)) => Err(Answer::Settled(receipt)),
        (State::Receiving, Some(_)) => {
            let inbox_dir = shared.open_inbox()?;
            let may_resume = folder_id == Some(inbox_dir.folder_id) || failpoints::mutant("R2-folder-id");
            Ok(Admitted {
                inbox_dir,
                may_resume,
            })
        }
        (State::Placing(placing), Some(bound)) => {
            let Some(inbox_dir) = enter_of(shared, key, folder_id)? else {
                return Ok(fresh(shared.open_inbox()?));
            };
            match rule::resolve(shared, &inbox_dir, key, &bound, placing)? {
                Some(receipt) => Err(Answer::Settled(receipt)),
                None => Ok(Admitted {
                    inbox_dir,
                    may_resume: true, // of a whole folder the stream may be there
                }),
            }
        }
    }
}

/// Is there room in the ledger for a transfer that it does not know yet? What it knows is finished in any case.
pub(super) fn takes_more(shared: &Shared, peer: AgentId) -> Result<(), Answer> {
    let full = |text: &str| {
        Err(Answer::refused(
            DeclineReason::NoSpace,
            text,
            Some(reply::FULL_MS),
        ))
    };
    if shared.db.is_short_of_room().is_some() && !failpoints::mutant("R1-state-disk") {
        return full("the disk of the receiver's state folder is nearly full (state_disk)");
    }
    if shared.tally.is_full(peer) && shared.tally.is_to_be_eased(Instant::now()) {
        row_bounds::ease(&shared.db, &shared.tally)?;
    }
    if shared.tally.is_full(peer) && !failpoints::mutant("R1-rows") {
        return full(
            "the receiver keeps as many outcomes for this sender as it may, and waits for the sender to say that it has \
             them (state_disk)",
        );
    }
    Ok(())
}

/// The inbox for bytes that are on their way already: as it was seen last, if it was there. It is checked again before
/// they are written.
pub(super) fn expect(shared: &Shared) -> Result<Arc<InboxDir>, Trouble> {
    shared.handle.last_seen().or_else(|_| shared.open_inbox())
}

/// The inbox in which a locked transfer is being placed, if it is the one with this folder id. None: that was a folder
/// which another one replaced for good, so it is *receiving* again.
pub(super) fn enter_of(
    shared: &Shared,
    key: Key,
    folder_id: Option<[u8; 16]>,
) -> Result<Option<Arc<InboxDir>>, Answer> {
    let inbox_dir = shared.open_inbox()?;
    if folder_id == Some(inbox_dir.folder_id) || failpoints::mutant("rule-folder-id") {
        return Ok(Some(inbox_dir));
    }
    if give_up(shared, key)? && !failpoints::mutant("rule-given-up") {
        return Ok(None);
    }
    let text = "it is being placed in another inbox folder, which is not here";
    Err(Answer::refused(DeclineReason::InboxUnavailable, text, None))
}

/// Gives up placing a locked transfer in a folder that is at home nowhere any more: whether it got its name there nobody
/// can tell, so it is taken again. Was it such a one?
pub(super) fn give_up(shared: &Shared, key: Key) -> Result<bool, DbError> {
    let given_up = !shared.is_placed(key)
        && shared
            .db
            .call_blocking(move |tx| ledger::unplace_homeless(tx, key))?;
    if given_up {
        tracing::warn!(peer = %id::format(key.0), job = %key.1, "was being placed in a folder that was replaced: taken again if it is offered again");
    }
    Ok(given_up)
}

/// Bytes that a transfer takes at least before it is placed: a whole folder's lie there twice, as a stream and unpacked.
pub(super) fn needed(manifest: &Manifest) -> u64 {
    match manifest.kind {
        Kind::File => manifest.size,
        Kind::Folder => manifest.size.saturating_mul(2),
    }
}

/// Can the file system of the inbox have it at all? A folder can only be renamed to its place, and never in place of
/// another.
pub(super) fn takes(inbox_dir: &InboxDir, manifest: &Manifest) -> Result<(), Answer> {
    if !inbox_dir.may_take(manifest.size) {
        let text = format!(
            "the file system of the inbox takes no file of {}",
            error::size(manifest.size)
        );
        return Err(Answer::refused(DeclineReason::TooLarge, text, None));
    }
    if manifest.kind == Kind::File || inbox_dir.how == How::Renamed {
        return Ok(());
    }
    let text = "the file system of the inbox cannot name a whole folder without replacing another";
    Err(Answer::refused(DeclineReason::NoFolders, text, None))
}

/// Promises `peer` room for `bytes` more, and on a disk inside the inbox for a copy of all that was offered, if it is for
/// one that is known. An error also where that disk is missing.
pub(super) fn reserve(
    shared: &Shared,
    inbox_dir: &InboxDir,
    peer: AgentId,
    manifest: &Manifest,
    bytes: u64,
) -> Result<Reservation, Answer> {
    let copy = reserve_copy(shared, inbox_dir, peer, manifest)?;
    let now = Instant::now();
    let disk = shared.space.disk(bytes, now, || Disk::of(&inbox_dir.root));
    let reserved = shared.space.reserve(peer, bytes, disk.map_err(not_asked)?, now);
    reserved.map(|room| room.with_copy(copy)).map_err(reply::short)
}

fn reserve_copy(
    shared: &Shared,
    inbox_dir: &InboxDir,
    peer: AgentId,
    manifest: &Manifest,
) -> Result<Option<Reservation>, Answer> {
    if inbox_dir.disks.is_empty() || failpoints::mutant("R2-copy") {
        return Ok(None);
    }
    let top = shared.top(peer);
    let way = shared.places.way(inbox_dir, peer, top.as_deref(), &manifest.path);
    let there = inbox_dir.disks.on_the_way(&inbox_dir.root, &way);
    let Some((path, folder)) = there.map_err(|e| Answer::io("looking for its folder's disk", &e))? else {
        return Ok(None);
    };
    let disk = Disk::of(&folder).map_err(not_asked)?;
    let reserved = shared.space.reserve(peer, manifest.size, disk, Instant::now());
    reserved.map(Some).map_err(|short| reply::short_on(&path, short))
}

/// Before so many bytes are written: asks for room where the promise does not cover them any more.
pub(super) fn cover(inbox_dir: &InboxDir, reservation: &mut Reservation, bytes: u64) -> Result<(), Answer> {
    match reservation.covers(bytes, Instant::now()) {
        true => Ok(()),
        false => reservation
            .cover(bytes, disk(inbox_dir)?, Instant::now())
            .map_err(reply::short),
    }
}

fn disk(inbox_dir: &InboxDir) -> Result<Option<Disk>, Answer> {
    Disk::of(&inbox_dir.root).map_err(not_asked)
}

fn not_asked(error: io::Error) -> Answer {
    Answer::io("asking how much is free", &error)
}

/// The row of a transfer and its checkpoints' list, through the writer's connection.
pub(super) fn look(shared: &Shared, key: Key) -> Result<(Option<Known>, Vec<ledger::Checkpoint>), DbError> {
    shared
        .db
        .call_blocking(move |tx| Ok((ledger::find(tx, key)?, ledger::checkpoints(tx, key)?)))
}
