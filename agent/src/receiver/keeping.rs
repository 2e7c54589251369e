//! How long what is no longer worked on is kept, and how much of it: partials and rows, in running time (see
//! `running_time`).
//!
//! | what | goes |
//! |---|---|
//! | a partial that got neither a byte nor an offer | after [`KEEP_IDLE`], with its row: offered again, it starts over |
//! | a peer's partials | the longest idle first, above [`Bounds`] |
//! | the row of a delivered transfer | [`KEEP_ENDED`] after its Forget |
//! | rows of delivered transfers of a peer | the longest known to it first, above [`super::tally`]'s bound |
//! | a tombstone | [`KEEP_ENDED`] after the withdrawal; the oldest first, above [`MAX_TOMBSTONES`] of a peer |
//!
//! Nothing of a transfer that is *receiving* was ever seen or acknowledged, so its row may go at any time. A tombstone
//! keeps what was withdrawn from being delivered after all: by an older link that is not read to its end yet, or by a
//! sender that lost its job list and gives the same file its first id again, although it was delivered under the next.

use std::{ops::Range, time::Duration};

use dropwire_protocol::{AgentId, Kind, message::DeclineReason};

use super::{
    Inbox, Shared,
    inbox_dir::InboxDir,
    ledger, partial, recover,
    reply::Answer,
    row_bounds,
    transfer_locks::{Key, TransferLock},
};
use crate::{db::DbError, fs::disk::Disk, id};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a partial waits for its sender.
pub(super) const KEEP_IDLE: Duration = DAY.saturating_mul(14);
/// How long a row is kept whose outcome the sender knows.
pub(super) const KEEP_ENDED: Duration = DAY.saturating_mul(30);
/// Most tombstones of a peer, [`PRUNE`] more or less; a sender makes one for each job that is cancelled.
pub(super) const MAX_TOMBSTONES: usize = 65_536;
/// So many withdrawals of a link go by between two counts of them.
pub(super) const PRUNE: u64 = 1024;

/// What one peer's partials may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// How many there may be, those included that are worked on.
    pub number: usize,
    /// Bytes that those may take together that nobody works on; the one idle shortest stays whatever it takes.
    pub bytes: u64,
}

impl Bounds {
    /// 256 partials, and of the inbox's disk the half.
    pub(super) fn of(inbox_dir: &InboxDir) -> Result<Self, Answer> {
        let disk = Disk::of(&inbox_dir.root);
        let disk = disk.map_err(|e| Answer::io("asking how large the disk is", &e))?;
        Ok(Self {
            number: 256,
            bytes: disk.map_or(u64::MAX, |disk| disk.size / 2),
        })
    }
}

impl Inbox {
    /// Lets go what was kept for its time. To be called now and then, after the running time was written down.
    pub async fn sweep(&self) -> Result<(), DbError> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || recover::finish_copies(&shared)); // waited for by nobody: it may take hours
        let shared = self.shared.clone();
        let swept = tokio::task::spawn_blocking(move || sweep(&shared));
        swept.await.map_err(|e| DbError::Failed(e.into()))?
    }
}

fn sweep(shared: &Shared) -> Result<(), DbError> {
    for key in shared.db.call_blocking(|tx| ledger::idle(tx, KEEP_IDLE))? {
        let Some(lock) = shared.transfer_locks.try_take(key) else {
            continue; // it is back
        };
        // It may have been back since the rows were read.
        if shared
            .db
            .call_blocking(move |tx| ledger::is_idle(tx, key, KEEP_IDLE))?
        {
            let (peer, job) = key;
            tracing::info!(peer = %id::format(peer), %job, "what had arrived of it waited too long and goes");
            drop_partial(shared, &lock)?;
        }
    }
    while shared
        .db
        .call_blocking(|tx| ledger::drop_ended(tx, KEEP_ENDED, row_bounds::AT_ONCE))?
        == row_bounds::AT_ONCE
    {}
    row_bounds::ease(&shared.db, &shared.tally)
}

/// Keeps a peer's partials within bounds for one more: the longest idle that nobody works on go.
pub(super) fn make_way(
    shared: &Shared,
    inbox_dir: &InboxDir,
    peer: AgentId,
    bounds: Bounds,
) -> Result<(), Answer> {
    let rows = shared
        .db
        .call_blocking(move |tx| ledger::receiving_of(tx, peer))?;
    let mut number = rows.len() + 1;
    let mut idle: Vec<(TransferLock, u64)> = rows
        .into_iter()
        .filter_map(|key| Some((shared.transfer_locks.try_take(key)?, occupied(inbox_dir, key))))
        .collect();
    let mut bytes: u64 = idle.iter().map(|(_, length)| length).sum();
    let shortest = idle.pop(); // goes last, and only for the number
    let only_by_number = idle.len();
    for (at, (lock, length)) in idle.into_iter().chain(shortest).enumerate() {
        if number <= bounds.number && (bytes <= bounds.bytes || at == only_by_number) {
            break;
        }
        drop_partial(shared, &lock)?;
        number -= 1;
        bytes -= length;
    }
    if number <= bounds.number {
        return Ok(());
    }
    Err(Answer::refused(
        DeclineReason::Busy,
        "too many open transfers",
        Some(5_000),
    ))
}

/// To be called before withdrawals, with the numbers that they have among those of this link.
pub(super) fn bound_tombstones(shared: &Shared, peer: AgentId, numbers: Range<u64>) -> Result<(), DbError> {
    if numbers.start.next_multiple_of(PRUNE) >= numbers.end {
        return Ok(());
    }
    shared
        .db
        .call_blocking(move |tx| ledger::drop_tombstones(tx, peer, MAX_TOMBSTONES))
}

/// Drops the partial of a locked transfer: first the row, durably, then the file. Nothing if it is not *receiving* any
/// more: it was finished since the rows were read, and where it is *placing*, the file is all there is. One in an inbox
/// that is held goes when that is opened.
pub(super) fn drop_partial(shared: &Shared, lock: &TransferLock) -> Result<(), DbError> {
    let key = lock.key();
    let dropped = shared
        .db
        .call_blocking(move |tx| ledger::drop_receiving(tx, key))?;
    if dropped && let Ok(inbox_dir) = shared.handle.last_seen() {
        partial::remove(&inbox_dir, key);
    }
    Ok(())
}

/// Bytes that the partial takes of the disk; none where nothing is seen.
fn occupied(inbox_dir: &InboxDir, key: Key) -> u64 {
    partial::look(inbox_dir, key, Kind::File)
        .ok()
        .flatten()
        .map_or(0, |meta| partial::occupied(inbox_dir, &meta))
}
