//! Time and the job list: what is kept how long, counted in observed running time (see `running_time`).

use std::time::Duration;

use dropwire_protocol::AgentId;
use rusqlite::params;

use super::{Queue, edit::Edit};
use crate::{clock::milliseconds, db::DbError};

/// How long ended jobs are kept once their file has left. A file that is missed counts as left after the same time,
/// and as long does a sent copy wait for a retry whose jobs all ended.
pub const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Most items that one sweep checks.
const SWEPT_AT_ONCE: usize = 512;

impl Queue {
    /// Pulls attempts nearer that lie further ahead than `max_backoff` (the clock was set back). To be called when
    /// a jump of the clock is seen; [`Queue::open`] does it too.
    pub async fn pull_in(&self, now_ms: i64, max_backoff: Duration) -> Result<(), DbError> {
        self.call(move |db| {
            let latest = now_ms.saturating_add(milliseconds(max_backoff));
            for pull_in in PULL_IN {
                db.prepare_cached(pull_in)?.execute([latest])?;
            }
            Ok(())
        })
        .await
    }

    /// Removes items, with their jobs, that left [`KEPT`] ago, some hundred a call. True: there may be more.
    ///
    /// One whose peer still has to be told something is checked again after the same time.
    pub async fn sweep(&self) -> Result<bool, DbError> {
        self.call(|db| {
            let old: Vec<(i64, bool)> = db
                .prepare_cached(OLD_DROPS)?
                .query_map(params![milliseconds(KEPT), SWEPT_AT_ONCE as i64], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?
                .collect::<rusqlite::Result<_>>()?;
            for (item, closing) in &old {
                if *closing {
                    db.prepare_cached(LATER)?.execute([item])?;
                } else {
                    remove(db, *item)?;
                }
            }
            if old.iter().any(|(_, closing)| !closing) {
                db.write_tally()?;
                for step in REMOVE_OUTBOXES {
                    db.prepare_cached(step)?.execute([])?;
                }
            }
            Ok(old.len() == SWEPT_AT_ONCE)
        })
        .await
    }
}

pub(super) const PULL_IN: [&str; 2] = [
    "UPDATE jobs SET next_attempt_ms = ?1
     WHERE state = 0 AND peer IN (SELECT peer FROM tally WHERE state = 0) AND large IN (0, 1)
       AND next_attempt_ms > ?1",
    "UPDATE closing SET not_before_ms = ?1
     WHERE peer IN (SELECT peer FROM tally) AND step = 2 AND not_before_ms > ?1",
];

/// With whether a peer still has to be told something.
pub(super) const OLD_DROPS: &str = "
    SELECT d.id, EXISTS (
        SELECT 1 FROM jobs j WHERE j.drop_id = d.id AND (
            EXISTS (SELECT 1 FROM closing c WHERE c.transfer = j.transfer)
            OR EXISTS (SELECT 1 FROM former f JOIN closing c USING (transfer) WHERE f.job = j.id)))
    FROM drops d INDEXED BY drops_left
    WHERE d.state = 3 AND d.left_running_ms <= (SELECT ms FROM running WHERE one = 1) - ?
    ORDER BY d.left_running_ms LIMIT ?";

const LATER: &str = "UPDATE drops SET left_running_ms = (SELECT ms FROM running) WHERE id = ?";

fn remove(db: &Edit<'_>, item: i64) -> rusqlite::Result<()> {
    let mut jobs = db.prepare_cached(
        "SELECT j.peer, d.outbox, j.state FROM jobs j JOIN drops d ON d.id = j.drop_id WHERE d.id = ?",
    )?;
    let mut jobs = jobs.query([item])?;
    while let Some(job) = jobs.next()? {
        db.count(AgentId(job.get(0)?), job.get(1)?, job.get(2)?, -1);
    }
    REMOVE
        .iter()
        .try_for_each(|step| db.prepare_cached(step)?.execute([item]).map(|_| ()))
}

const REMOVE: [&str; 4] = [
    "DELETE FROM history WHERE job IN (SELECT id FROM jobs WHERE drop_id = ?)",
    "DELETE FROM former WHERE job IN (SELECT id FROM jobs WHERE drop_id = ?)",
    "DELETE FROM jobs WHERE drop_id = ?",
    "DELETE FROM drops WHERE id = ?",
];

/// Each `send` has an outbox of its own. One without items is made again when it is needed.
const REMOVE_OUTBOXES: [&str; 2] = [
    "DELETE FROM tally WHERE n = 0 AND NOT EXISTS (SELECT 1 FROM drops WHERE drops.outbox = tally.outbox)",
    "DELETE FROM outboxes WHERE NOT EXISTS (SELECT 1 FROM drops WHERE outbox = outboxes.id)",
];
