//! After the last byte: receipts (S4), the file's disposal (S5, S6), and what the peer is told at the end.

use std::{path::PathBuf, time::Duration};

use dropwire_protocol::{AgentId, TransferId, message::LateTime};
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use super::{
    DueDisposal, ItemId, JobState, Proof, Queue, Recorded, Resting, change,
    edit::Edit,
    job::{found_of, path_of},
    key::Key,
    retimed::{self, Who},
    schema::{ItemState, Step},
};
use crate::{
    db::DbError,
    failpoints,
    fs::version::{OutboxId, Version, mtime_of},
};

impl Queue {
    /// Records receipts (S4), each for the version that it was found right for: where the item of a queued job has come
    /// to be another one, it changes nothing.
    ///
    /// A job that had ended otherwise keeps its state and only gets the receipt; a former id's receipt is kept with
    /// it. Neither disposes of anything. Receipts that are known, or for ids that are not, change nothing.
    pub async fn delivered(&self, proofs: Vec<Proof>, now_ms: i64) -> Result<Recorded, DbError> {
        let take = move |db: &Edit<'_>, proof: &Proof, recorded: &mut Vec<_>| {
            match change::find(db, proof.id)? {
                Some(job) if job.has_receipt && !failpoints::mutant("S4-once") => {}
                Some(job) if is_unproven(db, &job, proof)? => recorded.push(Err(proof.id)),
                Some(job) => recorded.extend(record(db, &job, proof, now_ms)?.map(Ok)),
                None => record_former(db, proof, now_ms)?,
            }
            Ok(())
        };
        let each = self.each_then(proofs, take, |signals| signals.leaving.notify_one());
        let mut all = Recorded::default();
        for one in each.await? {
            match one {
                Ok(item) => all.acknowledged.push(item),
                Err(id) => all.unproven.push(id),
            }
        }
        Ok(all)
    }

    /// The outboxes that hold files which every peer has and that have not been disposed of, and where they lie.
    pub async fn disposing(&self) -> Result<Vec<(OutboxId, PathBuf)>, DbError> {
        self.read(|db| {
            db.prepare_cached(DISPOSING)?
                .query_map([], |row| {
                    Ok((OutboxId(row.get(0)?), path_of(&row.get::<_, Vec<u8>>(1)?)))
                })?
                .collect()
        })
        .await
    }

    /// Those files of one outbox, after `after` (ItemId(0) at first), in order. Blocks.
    pub fn to_dispose(
        &self,
        outbox: OutboxId,
        after: ItemId,
        limit: usize,
    ) -> Result<Vec<DueDisposal>, DbError> {
        self.db.read_blocking(move |db| {
            db.prepare_cached(&to_dispose_sql())?
                .query_map(params![outbox.0, after.0, clamp(limit)], |row| {
                    let (found, root) = found_of(row)?;
                    Ok(DueDisposal {
                        item: ItemId(row.get(9)?),
                        name: row.get(13)?,
                        root,
                        found,
                        digest: dropwire_protocol::Digest(row.get(10)?),
                        delivered_ms: row.get::<_, Option<i64>>(14)?.unwrap_or_default(),
                        after_send: row.get(11)?,
                        marker: row.get(12)?,
                    })
                })?
                .collect()
        })
    }

    /// These files left their outboxes (S6), or stay there because of the text. Where a version is not there any more,
    /// call [`Queue::left`] after that, or the next enqueued version of the path says so.
    ///
    /// What stays was judged by this version: nothing, where the item has come to be another one meanwhile.
    ///
    /// Gives who is to be told a time that was set late.
    pub async fn disposed(
        &self,
        ended: Vec<(ItemId, Option<(Version, String)>)>,
        now_ms: i64,
    ) -> Result<Vec<AgentId>, DbError> {
        self.each_loosely(ended, move |db, (item, stays), late| {
            if state_of(db, *item)? != Some(ItemState::Acknowledged) || failpoints::mutant("S6") {
                return Ok(());
            }
            match stays {
                None => {
                    late.extend(change::leave(db, *item)?);
                    Ok(())
                }
                Some((judged, why)) if is_still(db, *item, judged)? || failpoints::mutant("S5-judged") => {
                    stay(db, *item, why, now_ms)
                }
                Some(_) => Ok(()),
            }
        })
        .await
    }

    /// Versions that are known and stay in their outboxes for good, after `after` (ItemId(0) at first), in order.
    /// `sender::reconcile` looks after them now and then and tells [`Queue::seen`]; where only the ctime is another, it
    /// compares the bytes and calls [`Queue::compared`] or [`Queue::left`].
    pub async fn resting(&self, after: ItemId, limit: usize) -> Result<Vec<Resting>, DbError> {
        self.read(move |db| resting(db, after, limit)).await
    }

    /// These resting versions are there again, and those are missed from now on (or were before).
    pub async fn seen(&self, there: Vec<ItemId>, missed: Vec<ItemId>) -> Result<(), DbError> {
        let items = there.into_iter().map(|item| (item, true));
        let items = items.chain(missed.into_iter().map(|item| (item, false)));
        self.each(items.collect(), |db, (item, there), _: &mut Vec<()>| {
            let sql = if *there {
                "UPDATE drops SET left_running_ms = NULL WHERE id = ? AND state = 1"
            } else {
                "UPDATE drops SET left_running_ms = (SELECT ms FROM running)
                 WHERE id = ? AND state = 1 AND left_running_ms IS NULL"
            };
            db.prepare_cached(sql)?.execute([item.0]).map(|_| ())
        })
        .await
        .map(|_| ())
    }

    /// These resting versions do not lie there any more, for good; seen again, they are new items. Returns those of them
    /// that left by this: not one that was queued again meanwhile.
    pub async fn left(&self, items: Vec<ItemId>) -> Result<Vec<ItemId>, DbError> {
        self.each(items, |db, item, left| {
            if state_of(db, *item)? == Some(ItemState::Stays) {
                change::leave(db, *item)?;
                left.push(*item);
            }
            Ok(())
        })
        .await
    }

    /// The bytes were found unchanged under this ctime (nanoseconds since 1970).
    pub async fn compared(&self, item: ItemId, ctime_ns: i64) -> Result<(), DbError> {
        self.call(move |db| {
            db.prepare_cached("UPDATE drops SET ctime_ns = ? WHERE id = ?")?
                .execute([ctime_ns, item.0])?;
            Ok(())
        })
        .await
    }

    /// `peer` will never deliver these; it may forget them.
    pub async fn withdrawn(&self, ids: Vec<TransferId>, now_ms: i64) -> Result<(), DbError> {
        self.each(ids, move |db, id, _: &mut Vec<()>| {
            let known = db
                .prepare_cached("UPDATE closing SET step = ?2 WHERE transfer = ?1 AND step = ?3")?
                .execute(params![id.0, Step::Forget, Step::Withdraw])?
                > 0;
            match change::find(db, *id)? {
                Some(job) if known => change::note(db, job.row, now_ms, "withdrawn from the peer"),
                _ => Ok(()),
            }
        })
        .await
        .map(|_| ())
    }

    /// The peer has forgotten them: nothing is left to be told.
    pub async fn forgotten(&self, ids: Vec<TransferId>) -> Result<(), DbError> {
        self.each_loosely(ids, |db, id, _: &mut Vec<()>| {
            db.prepare_cached("DELETE FROM closing WHERE transfer = ? AND step = ?")?
                .execute(params![id.0, Step::Forget])?;
            Ok(())
        })
        .await
        .map(|_| ())
    }
}

/// [`Queue::resting`] by a connection of the caller's.
pub fn resting(db: &Connection, after: ItemId, limit: usize) -> Result<Vec<Resting>> {
    db.prepare_cached(&resting_sql())?
        .query_map([after.0, clamp(limit)], resting_of)?
        .collect()
}

/// What [`found_of`] reads, then the item's id and the digest of what was delivered.
const DROP_COLUMNS: &str =
    "o.mark, o.root, d.path, d.inode, d.birth_ns, d.size, d.mtime_ns, d.ctime_ns, d.folder, d.id,
    (SELECT sha256 FROM jobs WHERE drop_id = d.id AND sha256 IS NOT NULL LIMIT 1)";

pub(super) fn to_dispose_sql() -> String {
    format!(
        "SELECT {DROP_COLUMNS}, d.after_send, d.marker,
                (SELECT lower(hex(transfer)) FROM jobs WHERE id = (SELECT min(id) FROM jobs WHERE drop_id = d.id)),
                (SELECT max(ended_ms) FROM jobs WHERE drop_id = d.id)
         FROM outboxes o CROSS JOIN drops d ON d.outbox = o.id
         WHERE o.mark = ? AND d.state = 2 AND d.id > ? ORDER BY d.id LIMIT ?"
    )
}

/// From one outbox to the next, past however many files each of them has.
pub(super) const DISPOSING: &str = "
    WITH RECURSIVE next (outbox) AS (
        SELECT min(outbox) FROM drops WHERE state = 2
        UNION ALL
        SELECT (SELECT min(outbox) FROM drops WHERE state = 2 AND outbox > next.outbox)
        FROM next WHERE next.outbox IS NOT NULL)
    SELECT o.mark, o.root FROM next CROSS JOIN outboxes o ON o.id = next.outbox";

pub(super) fn resting_sql() -> String {
    format!(
        "SELECT {DROP_COLUMNS}, (SELECT ms FROM running WHERE one = 1) - d.left_running_ms
         FROM drops d CROSS JOIN outboxes o ON o.id = d.outbox
         WHERE d.state = 1 AND d.id > ? ORDER BY d.id LIMIT ?"
    )
}

/// What one [`Todo`](super::Todo) holds of each kind.
const TOLD_AT_ONCE: i64 = 256;

pub(super) const TO_TELL: &str =
    "SELECT transfer, mtime_ns FROM closing WHERE peer = ? AND step = ? AND not_before_ms <= ? LIMIT ?";

/// Transfers of which `peer` has yet to be told so, some at a time, and the times that files of them got late.
pub(super) fn to_tell(
    db: &Connection,
    peer: AgentId,
    step: Step,
    now_ms: i64,
) -> Result<(Vec<TransferId>, Vec<LateTime>)> {
    let (mut ids, mut times) = (Vec::new(), Vec::new());
    let mut rows = db.prepare_cached(TO_TELL)?;
    let mut rows = rows.query(params![peer.0, step, now_ms, TOLD_AT_ONCE])?;
    while let Some(row) = rows.next()? {
        let id = TransferId(row.get(0)?);
        let late: Option<i64> = row.get(1)?;
        times.extend(late.map(|mtime_ns| LateTime {
            id,
            mtime: mtime_of(mtime_ns),
        }));
        ids.push(id);
    }
    Ok((ids, times))
}

fn resting_of(row: &Row<'_>) -> Result<Resting> {
    let (found, root) = found_of(row)?;
    Ok(Resting {
        item: ItemId(row.get(9)?),
        root,
        found,
        digest: row.get::<_, Option<[u8; 32]>>(10)?.map(dropwire_protocol::Digest),
        missed: row
            .get::<_, Option<i64>>(11)?
            .map(|ms| Duration::from_millis(ms.max(0).unsigned_abs())),
    })
}

fn record(db: &Edit<'_>, job: &Key, proof: &Proof, now_ms: i64) -> Result<Option<ItemId>> {
    let receipt = params![
        job.row,
        proof.receipt,
        proof.delivered_as.as_bytes(),
        proof.digest.0,
        proof.delivered_at_ms,
        now_ms
    ];
    if job.state == JobState::Queued {
        db.prepare_cached(
            "UPDATE jobs SET receipt = ?2, delivered_as = ?3, sha256 = ?4, delivered_ms = ?5,
                             state = 1, error = NULL, ended_ms = ?6 WHERE id = ?1",
        )?
        .execute(receipt)?;
        change::turn(db, job, JobState::Delivered);
        let state = change::settle(db, job.item)?;
        if state != ItemState::Acknowledged {
            retimed::tell(db, job.item, Who::Of(job.row), now_ms)?;
        }
        return Ok((state == ItemState::Acknowledged).then_some(job.item));
    }
    db.prepare_cached(
        "UPDATE jobs SET receipt = ?2, delivered_as = ?3, sha256 = ?4, delivered_ms = ?5 WHERE id = ?1",
    )?
    .execute(&receipt[..5])?;
    change::note(db, job.row, now_ms, "its receipt came after it had ended")?;
    // The question how it ended is answered. It may be forgotten once the file has left.
    if state_of(db, job.item)? == Some(ItemState::Left) {
        change::tell(db, job.transfer, job.peer, Step::Forget, None)?;
    } else {
        db.prepare_cached("DELETE FROM closing WHERE transfer = ?")?
            .execute([job.transfer.0])?;
    }
    Ok(None)
}

fn record_former(db: &Connection, proof: &Proof, now_ms: i64) -> Result<()> {
    let job: Option<i64> = db
        .prepare_cached("UPDATE former SET receipt = ? WHERE transfer = ? AND receipt IS NULL RETURNING job")?
        .query_row(params![proof.receipt, proof.id.0], |row| row.get(0))
        .optional()?;
    let Some(job) = job else {
        return Ok(());
    };
    db.prepare_cached(
        "INSERT OR REPLACE INTO closing (transfer, peer, step) SELECT ?, peer, ? FROM jobs WHERE id = ?",
    )?
    .execute(params![proof.id.0, Step::Forget, job])?;
    let text = format!("an earlier transfer was delivered as {}", proof.delivered_as);
    change::note(db, job, now_ms, &text)
}

/// Where a newer version lies at the path, the older one does not.
fn stay(db: &Connection, item: ItemId, why: &str, now_ms: i64) -> Result<()> {
    let jobs: Vec<i64> = db
        .prepare_cached("SELECT id FROM jobs WHERE drop_id = ?")?
        .query_map([item.0], |row| row.get(0))?
        .collect::<Result<_>>()?;
    for job in jobs {
        change::note(db, job, now_ms, &format!("the file stays: {why}"))?;
    }
    let replaced: bool = db
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM drops old JOIN drops new ON new.outbox = old.outbox AND new.path = old.path
                            WHERE old.id = ? AND new.state < 2)",
        )?
        .query_row([item.0], |row| row.get(0))?;
    if replaced {
        return change::leave(db, item).map(|_| ());
    }
    db.prepare_cached("UPDATE drops SET state = 1, problem = ? WHERE id = ?")?
        .execute(params![why, item.0])?;
    Ok(())
}

/// Whoever read the file for this receipt read another version.
fn is_unproven(db: &Connection, job: &Key, proof: &Proof) -> Result<bool> {
    let queued = job.state == JobState::Queued && !failpoints::mutant("S4-version");
    match proof.version.filter(|_| queued) {
        Some(version) => is_still(db, job.item, &version).map(|still| !still),
        None => Ok(false),
    }
}

fn is_still(db: &Connection, item: ItemId, version: &Version) -> Result<bool> {
    db.prepare_cached(
        "SELECT mtime_ns = ? AND inode = ? AND birth_ns = ? AND size = ? FROM drops WHERE id = ?",
    )?
    .query_row(
        params![
            version.mtime_ns,
            version.inode.cast_signed(),
            version.birth_ns,
            version.size.cast_signed(),
            item.0
        ],
        |row| row.get(0),
    )
}

fn state_of(db: &Connection, item: ItemId) -> Result<Option<ItemState>> {
    db.prepare_cached("SELECT state FROM drops WHERE id = ?")?
        .query_row([item.0], |row| row.get(0))
        .optional()
}

fn clamp(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
