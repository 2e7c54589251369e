//! The steps that every change of the job list is made of; each runs inside one commit.

use dropwire_protocol::{AgentId, TransferId, message::MAX_EAGER};
use rusqlite::{Connection, OptionalExtension, Result, params};

use super::{
    End, ItemId, JobState,
    edit::Edit,
    key::Key,
    schema::{ItemState, Step},
};
use crate::{config::AfterSend, failpoints, fs::version::Found};

/// History lines kept of a job, the newest.
const HISTORY: i64 = 50;

/// Of smaller files nothing is ever kept in `checkpoints`; bytes.
const SOME_CHECKPOINTS: i64 = MAX_EAGER.cast_signed();

/// The job that has this id now; a former id finds nothing, so what is late cannot touch the job.
pub(super) fn find(db: &Connection, transfer: TransferId) -> Result<Option<Key>> {
    db.prepare_cached(
        "SELECT j.id, j.drop_id, d.outbox, j.peer, j.state, j.receipt IS NOT NULL
         FROM jobs j CROSS JOIN drops d ON d.id = j.drop_id WHERE j.transfer = ?",
    )?
    .query_row([transfer.0], |row| {
        Ok(Key {
            row: row.get(0)?,
            item: ItemId(row.get(1)?),
            outbox: row.get(2)?,
            peer: AgentId(row.get(3)?),
            transfer,
            state: row.get(4)?,
            has_receipt: row.get(5)?,
        })
    })
    .optional()
}

/// The id of `found` for `peer` under the first counter from `counter` on whose id was never used: an item that became
/// another version ([`super::retimed`]) keeps the ids of the one it was.
pub(super) fn unused_id(
    db: &Edit<'_>,
    peer: AgentId,
    found: &Found,
    mut counter: u64,
) -> Result<(TransferId, u64)> {
    let mut used = db.prepare_cached(
        "SELECT 1 FROM jobs WHERE transfer = ?1 UNION ALL SELECT 1 FROM former WHERE transfer = ?1",
    )?;
    loop {
        let path = found.path.as_bytes();
        let id = db
            .identity
            .transfer_id(peer, found.outbox.0, path, &found.version, counter);
        if !used.exists([id.0])? || failpoints::mutant("S2-unused") {
            return Ok((id, counter));
        }
        counter += 1;
    }
}

/// Ends a queued job as failed or cancelled. Its peer may have been offered it, so it is withdrawn there.
pub(super) fn end(db: &Edit<'_>, job: &Key, end: End, text: &str, now_ms: i64) -> Result<()> {
    let state = end.state();
    db.prepare_cached("UPDATE jobs SET state = ?, error = ?, ended_ms = ? WHERE id = ?")?
        .execute(params![state, text, now_ms, job.row])?;
    turn(db, job, state);
    tell(db, job.transfer, job.peer, Step::Withdraw, None)?;
    note(db, job.row, now_ms, text)?;
    db.ended(job, end, text)?;
    settle(db, job.item).map(drop)
}

/// A job is in another state now than `job` says.
pub(super) fn turn(db: &Edit<'_>, job: &Key, now: JobState) {
    db.count(job.peer, job.outbox, job.state, -1);
    db.count(job.peer, job.outbox, now, 1);
}

/// Remembers what the peer has yet to be told of a transfer, in place of what that was before; with the modification
/// time that its file got late.
pub(super) fn tell(
    db: &Connection,
    transfer: TransferId,
    peer: AgentId,
    step: Step,
    mtime_ns: Option<i64>,
) -> Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO closing (transfer, peer, step, mtime_ns) VALUES (?, ?, ?, ?)")?
        .execute(params![transfer.0, peer.0, step, mtime_ns])?;
    Ok(())
}

/// A line of a job's history; the oldest go when there are many.
pub(super) fn note(db: &Connection, job: i64, now_ms: i64, text: &str) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO history SELECT ?1, 1 + coalesce(max(n), 0), ?2, ?3 FROM history WHERE job = ?1",
    )?
    .execute(params![job, now_ms, text])?;
    db.prepare_cached(
        "DELETE FROM history WHERE job = ?1 AND n <= (SELECT max(n) FROM history WHERE job = ?1) - ?2",
    )?
    .execute([job, HISTORY])?;
    Ok(())
}

/// Where an open item stands now that one of its jobs has ended; gives that.
///
/// Acknowledged only when every peer has the same bytes. Where they differ, the file was written to without its
/// version showing it: then that version is gone, and what lies there is found as a new item.
pub(super) fn settle(db: &Connection, item: ItemId) -> Result<ItemState> {
    let mut jobs = db.prepare_cached(
        "SELECT d.state, d.after_send, d.size, j.state, j.sha256
         FROM drops d CROSS JOIN jobs j ON j.drop_id = d.id WHERE d.id = ?",
    )?;
    let mut jobs = jobs.query([item.0])?;
    let (mut after_send, mut size) = (AfterSend::Keep, 0); // without a job, which no caller has, it would stay
    let (mut undelivered, mut differ, mut digest) = (false, false, None);
    while let Some(job) = jobs.next()? {
        let before: ItemState = job.get(0)?;
        let state: JobState = job.get(3)?;
        if before != ItemState::Open || state == JobState::Queued {
            return Ok(before);
        }
        (after_send, size) = (job.get(1)?, job.get(2)?);
        undelivered |= state != JobState::Delivered;
        let its: Option<[u8; 32]> = job.get(4)?;
        if let Some(its) = its.filter(|_| state == JobState::Delivered) {
            differ |= *digest.get_or_insert(its) != its;
        }
    }
    if differ && !failpoints::mutant("S4-one-digest") {
        return leave(db, item).map(|_| ItemState::Left);
    }
    let state = if after_send == AfterSend::Keep || (undelivered && !failpoints::mutant("S5-every-peer")) {
        ItemState::Stays
    } else {
        ItemState::Acknowledged
    };
    db.prepare_cached("UPDATE drops SET state = ?, problem = NULL WHERE id = ?")?
        .execute(params![state, item.0])?;
    if size >= SOME_CHECKPOINTS {
        db.prepare_cached("DELETE FROM checkpoints WHERE drop_id = ?")?
            .execute([item.0])?;
    }
    Ok(state)
}

/// The version does not lie there any more: its peers may forget what they received of it.
///
/// Not earlier: as long as it lies there, a lost job list would offer it again, and only the receiver's ledger
/// could tell that it was delivered.
pub(super) fn leave(db: &Connection, item: ItemId) -> Result<Vec<AgentId>> {
    // One by one: for several rows in one statement SQLite prepares to undo it alone.
    let delivered: Vec<(TransferId, AgentId, Option<i64>)> = db
        .prepare_cached(DELIVERED)?
        .query_map(params![item.0, Step::Retime], |row| {
            Ok((TransferId(row.get(0)?), AgentId(row.get(1)?), row.get(2)?))
        })?
        .collect::<Result<_>>()?;
    db.prepare_cached("UPDATE drops SET state = 3, left_running_ms = (SELECT ms FROM running) WHERE id = ?")?
        .execute([item.0])?;
    let mut with_times = Vec::new();
    for (transfer, peer, late) in delivered {
        tell(db, transfer, peer, Step::Forget, late)?;
        with_times.extend(late.filter(|_| !failpoints::mutant("S6-late")).map(|_| peer));
    }
    Ok(with_times)
}

/// An item that counted as left, and that everybody has, lies there: it is to be disposed of again.
pub(super) fn come_back(db: &Connection, item: ItemId) -> Result<()> {
    db.prepare_cached("UPDATE drops SET state = 2, left_running_ms = NULL WHERE id = ? AND state = 3")?
        .execute([item.0])
        .map(|_| ())
}

/// Who has an item's file, and the late time that goes with Forget: of one that stayed, what is still to be told
/// ([`super::retimed::tell`]).
pub(super) const DELIVERED: &str = "
    SELECT j.transfer, j.peer,
           iif(d.state = 2, iif(d.retimed, d.mtime_ns, NULL),
               (SELECT mtime_ns FROM closing WHERE transfer = j.transfer AND step = ?2))
    FROM drops d CROSS JOIN jobs j ON j.drop_id = d.id WHERE d.id = ?1 AND j.receipt IS NOT NULL";

/// A version is not there any more, and not everybody has it: its queued jobs end failed.
pub(super) fn end_version(db: &Edit<'_>, item: ItemId, how: End, now_ms: i64) -> Result<()> {
    // First, so that ending the jobs does not settle it otherwise.
    leave(db, item)?;
    let ids: Vec<[u8; 16]> = db
        .prepare_cached("SELECT transfer FROM jobs WHERE drop_id = ? AND state = 0")?
        .query_map([item.0], |row| row.get(0))?
        .collect::<Result<_>>()?;
    for id in ids {
        if let Some(job) = find(db, TransferId(id))? {
            end(db, &job, how, how.text(), now_ms)?;
        }
    }
    Ok(())
}
