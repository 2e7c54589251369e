//! A job's attempts: which are due, what a failed one leads to, and how a job ends or begins again.

use std::{collections::HashSet, time::Duration};

use dropwire_protocol::{AgentId, TransferId};
use rusqlite::{Connection, OptionalExtension, Result, params};

use super::{
    End, ItemId, JobState, Queue, Todo, change, delivery,
    edit::Edit,
    job::{JOB_COLUMNS, JOB_TABLES, JobRow, job_of},
    key::Key,
    retimed,
    schedule::Load,
    schema::{ItemState, Step},
};
use crate::{clock::milliseconds, db::DbError, failpoints};

/// Most former ids of a job that a peer's answers make.
pub(super) const FORMER: i64 = 64;

impl Queue {
    /// All that a link to `peer` needs to know to go on: as many due jobs as there is `room` for, the longest due
    /// first, without the `busy` ones; when the next one is due; and what the peer has yet to be told.
    pub async fn todo(
        &self,
        peer: AgentId,
        room: Load,
        busy: HashSet<TransferId>,
        now_ms: i64,
    ) -> Result<Todo, DbError> {
        self.read(move |db| {
            let (forget, times) = delivery::to_tell(db, peer, Step::Forget, now_ms)?;
            let mut todo = Todo {
                withdraw: delivery::to_tell(db, peer, Step::Withdraw, now_ms)?.0,
                forget,
                times,
                retimed: delivery::to_tell(db, peer, Step::Retime, now_ms)?.1,
                next_due_ms: retimed::next_to_tell(db, peer, now_ms)?,
                ..Todo::default()
            };
            for (large, room) in [(false, room.small), (true, room.large)] {
                if room > 0 {
                    let mut statement = db.prepare_cached(&due_sql())?;
                    let mut rows = statement.query(params![peer.0, large, now_ms])?;
                    let mut left = room;
                    while left > 0
                        && let Some(row) = rows.next()?
                    {
                        if !busy.contains(&TransferId(row.get("transfer")?)) {
                            todo.due.push(job_of(row)?.job);
                            left -= 1;
                        }
                    }
                }
                let next: Option<i64> = db
                    .prepare_cached(NEXT_DUE)?
                    .query_row(params![peer.0, large, now_ms], |row| row.get(0))
                    .optional()?;
                todo.next_due_ms = todo.next_due_ms.into_iter().chain(next).min();
            }
            Ok(todo)
        })
        .await
    }

    /// What [`Queue::keep_checkpoints`] kept last of this item; empty where there is nothing.
    pub async fn checkpoints(&self, item: ItemId) -> Result<Vec<u8>, DbError> {
        self.call(move |db| {
            db.prepare_cached("SELECT bytes FROM checkpoints WHERE drop_id = ?")?
                .query_row([item.0], |row| row.get(0))
                .optional()
                .map(Option::unwrap_or_default)
        })
        .await
    }

    /// Keeps how far a large file was read, in the reader's own form, while a job of the item is queued. Losing it
    /// costs reading, nothing else.
    pub async fn keep_checkpoints(&self, item: ItemId, bytes: Vec<u8>) -> Result<(), DbError> {
        self.call(move |db| {
            db.prepare_cached(
                "INSERT OR REPLACE INTO checkpoints SELECT id, ?2 FROM drops WHERE id = ?1 AND state = 0",
            )?
            .execute(params![item.0, bytes])?;
            Ok(())
        })
        .await
    }

    /// An attempt failed: the job stays queued and is due again at `next_attempt_ms`. Ended jobs stay as they are.
    pub async fn retry(
        &self,
        id: TransferId,
        error: String,
        next_attempt_ms: i64,
        now_ms: i64,
    ) -> Result<(), DbError> {
        self.call(move |db| {
            let Some(job) = queued(db, id)? else {
                return Ok(());
            };
            due_again(db, job.row, true, &error, next_attempt_ms)?;
            change::note(db, job.row, now_ms, &error)
        })
        .await
    }

    /// The peer asked to be asked later: the job is due again at `next_attempt_ms`, and no attempt of it failed. Its
    /// history has that once, however often it is asked in a row.
    pub async fn postpone(
        &self,
        id: TransferId,
        error: String,
        next_attempt_ms: i64,
        now_ms: i64,
    ) -> Result<(), DbError> {
        self.call(move |db| {
            let Some(job) = queued(db, id)? else {
                return Ok(());
            };
            let said: Option<String> = db
                .prepare_cached("SELECT error FROM jobs WHERE id = ?")?
                .query_row([job.row], |row| row.get(0))?;
            due_again(
                db,
                job.row,
                failpoints::mutant("S5-busy"),
                &error,
                next_attempt_ms,
            )?;
            match said.as_ref() == Some(&error) {
                true => Ok(()),
                false => change::note(db, job.row, now_ms, &error),
            }
        })
        .await
    }

    /// A queued job's file is not there any more: the job ends failed, with all others that wait for that file. Seen
    /// again, it is a new item.
    pub async fn gone(&self, id: TransferId, now_ms: i64) -> Result<(), DbError> {
        self.call(move |db| match queued(db, id)? {
            Some(job) => change::end_version(db, job.item, End::Gone, now_ms),
            None => Ok(()),
        })
        .await
    }

    /// Ends queued jobs as cancelled: the files stay, and these versions are not queued again by themselves.
    /// Returns those that it ended. Everybody's work is notified.
    pub async fn cancel(&self, ids: Vec<TransferId>, now_ms: i64) -> Result<Vec<TransferId>, DbError> {
        self.each(ids, move |db, id, ended| {
            ended.extend(end_queued(
                db,
                *id,
                End::Cancelled,
                End::Cancelled.text(),
                now_ms,
            )?);
            Ok(())
        })
        .await
        .inspect(|_| self.signals.some_changed())
    }

    /// Gives a queued job a new id, due now, because what the peer holds under the old one is not these bytes.
    /// The old id is withdrawn. None if the job is not queued. After `FORMER` of them it stays as it is: its peer never
    /// likes one, and each is kept.
    pub async fn recount(&self, id: TransferId, now_ms: i64) -> Result<Option<TransferId>, DbError> {
        self.call(move |db| {
            let Some(job) = queued(db, id)? else {
                return Ok(None);
            };
            let former: i64 = db
                .prepare_cached("SELECT count(*) FROM former WHERE job = ?")?
                .query_row([job.row], |row| row.get(0))?;
            if former >= FORMER && !failpoints::mutant("S5-former") {
                return Ok(Some(id));
            }
            change::note(db, job.row, now_ms, "begun again under a new id")?;
            renew(db, &job, now_ms).map(Some)
        })
        .await
    }

    /// What every peer acknowledged turned out to be other bytes than lie there under the same version: its jobs
    /// begin again under new ids, each as after a failed attempt: `wait` says for how long after so many of them. The
    /// receipts are kept with the old ids. Everybody's work is notified.
    pub async fn begin_again(
        &self,
        item: ItemId,
        wait: impl Fn(u32) -> Duration + Send + 'static,
        now_ms: i64,
    ) -> Result<(), DbError> {
        self.call(move |db| {
            let acknowledged = db
                .prepare_cached("UPDATE drops SET state = ? WHERE id = ? AND state = ?")?
                .execute(params![ItemState::Open, item.0, ItemState::Acknowledged])?
                > 0;
            let of_item = "SELECT transfer FROM jobs WHERE drop_id = ? AND state = 1";
            let delivered = if acknowledged {
                transfers(db, of_item, [item.0])?
            } else {
                Vec::new()
            };
            for id in delivered {
                let Some(job) = change::find(db, id)? else {
                    continue;
                };
                change::note(
                    db,
                    job.row,
                    now_ms,
                    "the file has other bytes than were delivered: sent again",
                )?;
                let attempts: u32 = db
                    .prepare_cached("SELECT attempts FROM jobs WHERE id = ?")?
                    .query_row([job.row], |row| row.get(0))?;
                queue_again(db, &job, now_ms)?;
                let wait = if failpoints::mutant("S5-bytes-wait") {
                    Duration::ZERO
                } else {
                    wait(attempts)
                };
                db.prepare_cached("UPDATE jobs SET attempts = ?, next_attempt_ms = ? WHERE id = ?")?
                    .execute(params![
                        attempts.saturating_add(1),
                        now_ms.saturating_add(milliseconds(wait)),
                        job.row
                    ])?;
            }
            Ok(())
        })
        .await
        .inspect(|_| self.signals.some_changed())
    }

    /// The user wants these sent: queued ones become due now; failed and cancelled ones are queued again under a
    /// new id, unless their version does not lie there any more. Returns the ids they have now, in order.
    /// Everybody's work is notified.
    pub async fn resend(&self, ids: Vec<TransferId>, now_ms: i64) -> Result<Vec<TransferId>, DbError> {
        self.each(ids, move |db, id, now_queued| {
            now_queued.extend(resend_one(db, *id, now_ms)?);
            Ok(())
        })
        .await
        .inspect(|_| self.signals.some_changed())
    }

    /// Fails a queued job for a reason that no later attempt can change.
    pub async fn refused(&self, id: TransferId, why: String, now_ms: i64) -> Result<(), DbError> {
        self.call(move |db| end_queued(db, id, End::Refused, &why, now_ms).map(drop))
            .await
    }

    /// Fails jobs that were queued for longer than `give_up_after` of observed running time. Returns their ids.
    pub async fn expire(&self, give_up_after: Duration, now_ms: i64) -> Result<Vec<TransferId>, DbError> {
        let limit_ms = milliseconds(give_up_after);
        let text = format!(
            "{} after {}",
            End::GivenUp.text(),
            humantime::format_duration(give_up_after)
        );
        let mut all = Vec::new();
        loop {
            let text = text.clone();
            let ended = self
                .call(move |db| {
                    let mut ended = Vec::new();
                    for id in transfers(db, OLD, [limit_ms])? {
                        let last: Option<String> = db
                            .prepare_cached("SELECT error FROM jobs WHERE transfer = ?")?
                            .query_row([id.0], |row| row.get(0))?;
                        let text = last.map_or_else(|| text.clone(), |last| format!("{text}: {last}"));
                        ended.extend(end_queued(db, id, End::GivenUp, &text, now_ms)?);
                    }
                    Ok(ended)
                })
                .await?;
            if ended.is_empty() {
                return Ok(all);
            }
            all.extend(ended);
        }
    }
}

/// In the order of `jobs_due`, so that the first rows come without a sort however many there are.
pub(super) fn due_sql() -> String {
    format!(
        "SELECT {JOB_COLUMNS} FROM {JOB_TABLES}
         WHERE j.state = 0 AND j.peer = ?1 AND j.large = ?2 AND j.next_attempt_ms <= ?3
         ORDER BY j.next_attempt_ms, j.id"
    )
}

pub(super) const NEXT_DUE: &str = "SELECT next_attempt_ms FROM jobs
    WHERE state = 0 AND peer = ?1 AND large = ?2 AND next_attempt_ms > ?3
    ORDER BY next_attempt_ms LIMIT 1";

pub(super) const OLD: &str = "SELECT transfer FROM jobs
    WHERE state = 0 AND queued_running_ms <= (SELECT ms FROM running WHERE one = 1) - ? LIMIT 512";

fn queued(db: &Connection, id: TransferId) -> Result<Option<Key>> {
    Ok(change::find(db, id)?.filter(|job| job.state == JobState::Queued))
}

/// The queued job `row` waits until `next_attempt_ms` because of `error`; `failed`: that was an attempt of it.
fn due_again(db: &Connection, row: i64, failed: bool, error: &str, next_attempt_ms: i64) -> Result<()> {
    db.prepare_cached("UPDATE jobs SET attempts = attempts + ?, error = ?, next_attempt_ms = ? WHERE id = ?")?
        .execute(params![failed, error, next_attempt_ms, row])
        .map(|_| ())
}

/// Ends the job if it is queued; its id if it was.
pub(super) fn end_queued(
    db: &Edit<'_>,
    id: TransferId,
    end: End,
    text: &str,
    now_ms: i64,
) -> Result<Option<TransferId>> {
    match queued(db, id)? {
        Some(job) => change::end(db, &job, end, text, now_ms).map(|()| Some(id)),
        None => Ok(None),
    }
}

fn resend_one(db: &Edit<'_>, id: TransferId, now_ms: i64) -> Result<Option<TransferId>> {
    let Some(job) = change::find(db, id)? else {
        return Ok(None);
    };
    match job.state {
        JobState::Delivered => Ok(None),
        JobState::Queued => {
            db.prepare_cached("UPDATE jobs SET next_attempt_ms = min(next_attempt_ms, ?) WHERE id = ?")?
                .execute([now_ms, job.row])?;
            Ok(Some(id))
        }
        JobState::Failed | JobState::Cancelled => {
            let lies_there = db
                .prepare_cached(
                    "UPDATE drops SET state = 0, left_running_ms = NULL WHERE id = ? AND state < 2",
                )?
                .execute([job.item.0])?
                > 0;
            if !lies_there {
                return Ok(None);
            }
            change::note(db, job.row, now_ms, "queued again")?;
            queue_again(db, &job, now_ms).map(Some)
        }
    }
}

/// An ended job is queued under a new id.
fn queue_again(db: &Edit<'_>, job: &Key, now_ms: i64) -> Result<TransferId> {
    db.prepare_cached(
        "UPDATE jobs SET state = 0, attempts = 0, ended_ms = NULL, queued_ms = ?1,
                         queued_running_ms = (SELECT ms FROM running) WHERE id = ?2",
    )?
    .execute([now_ms, job.row])?;
    change::turn(db, job, JobState::Queued);
    renew(db, job, now_ms)
}

/// The next unused id for a job. What the peer has to be told of the old id, and a receipt for it, are kept.
fn renew(db: &Edit<'_>, job: &Key, now_ms: i64) -> Result<TransferId> {
    let (JobRow { job: full, .. }, counter) = db
        .prepare_cached(&format!(
            "SELECT {JOB_COLUMNS}, j.counter FROM {JOB_TABLES} WHERE j.id = ?"
        ))?
        .query_row([job.row], |row| {
            Ok((job_of(row)?, row.get::<_, i64>("counter")?.cast_unsigned()))
        })?;
    let (new, counter) = change::unused_id(db, job.peer, &full.found, counter + 1)?;
    db.prepare_cached("INSERT INTO former SELECT transfer, id, receipt FROM jobs WHERE id = ?")?
        .execute([job.row])?;
    change::tell(
        db,
        job.transfer,
        job.peer,
        if job.has_receipt {
            Step::Forget
        } else {
            Step::Withdraw
        },
        None,
    )?;
    db.prepare_cached(
        "UPDATE jobs SET transfer = ?, counter = ?, next_attempt_ms = ?, error = NULL, delivered_ms = NULL,
                         receipt = NULL, delivered_as = NULL, sha256 = NULL WHERE id = ?",
    )?
    .execute(params![new.0, counter.cast_signed(), now_ms, job.row])?;
    Ok(new)
}

/// The first column, of N bytes, of all rows.
fn ids<const N: usize>(db: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Vec<[u8; N]>> {
    db.prepare_cached(sql)?
        .query_map(params, |row| row.get(0))?
        .collect()
}

pub(super) fn transfers(
    db: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<TransferId>> {
    Ok(ids(db, sql, params)?.into_iter().map(TransferId).collect())
}
