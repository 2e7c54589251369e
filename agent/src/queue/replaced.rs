//! What becomes of an outbox's jobs when its folder was replaced by another for good.

use std::path::PathBuf;

use rusqlite::params;

use super::{
    End, Queue,
    attempts::{end_queued, transfers},
    job::path_bytes,
};
use crate::{db::DbError, fs::version::OutboxId};

impl Queue {
    /// The outbox at `root` is the one with the folder id `new` from now on, for good: the jobs of those that were
    /// there before end failed, and what of them was delivered stays where it is, should its folder be elsewhere.
    /// Returns how many ended.
    pub async fn outbox_replaced(&self, root: PathBuf, new: OutboxId, now_ms: i64) -> Result<u64, DbError> {
        let mut all = 0;
        loop {
            let root = path_bytes(&root);
            let ended = self.call(move |db| {
                db.prepare_cached(STAYS)?
                    .execute(params![End::Replaced.text(), root, new.0])?;
                let jobs = transfers(db, WAITING, params![root, new.0])?;
                for job in &jobs {
                    end_queued(db, *job, End::Replaced, End::Replaced.text(), now_ms)?;
                }
                Ok(jobs.len() as u64)
            });
            match ended.await? {
                0 => return Ok(all),
                ended => all += ended,
            }
        }
    }

    /// Jobs that wait for files of the outbox at `root`.
    pub async fn waiting_at(&self, root: PathBuf) -> Result<u64, DbError> {
        self.read(move |db| {
            db.query_row(COUNT, [path_bytes(&root)], |row| {
                Ok(row.get::<_, i64>(0)?.cast_unsigned())
            })
        })
        .await
    }
}

const STAYS: &str = "UPDATE drops SET state = 1, problem = ?1
    WHERE state = 2 AND outbox IN (SELECT id FROM outboxes WHERE root = ?2 AND mark <> ?3)";

pub(super) const WAITING: &str = "SELECT j.transfer FROM outboxes o
    CROSS JOIN drops d INDEXED BY drops_lying ON d.outbox = o.id AND d.state < 2 AND d.state = 0
    CROSS JOIN jobs j ON j.drop_id = d.id AND j.state = 0
    WHERE o.root = ?1 AND o.mark <> ?2 LIMIT 512";

pub(super) const COUNT: &str = "SELECT count(*) FROM outboxes o
    CROSS JOIN drops d INDEXED BY drops_lying ON d.outbox = o.id AND d.state < 2 AND d.state = 0
    CROSS JOIN jobs j ON j.drop_id = d.id AND j.state = 0
    WHERE o.root = ?";
