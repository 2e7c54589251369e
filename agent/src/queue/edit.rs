//! One change of the job list while it is made.

use std::{cell::RefCell, collections::HashMap, mem, ops::Deref};

use dropwire_protocol::{AgentId, name::escape};
use rusqlite::{Connection, Result, Transaction, params};

use super::{End, Ended, Gathered, JobState, key::Key};
use crate::{failpoints, identity::Identity};

/// The tables, whose they are, and how many jobs came and went by this change.
///
/// Each change counts the jobs that it turns and writes the sums once: a trigger would do the same for every single job,
/// and make SQLite prepare to undo every single statement.
pub(super) struct Edit<'a> {
    db: &'a Transaction<'a>,
    pub identity: &'a Identity,
    turned: RefCell<HashMap<(AgentId, i64, JobState), i64>>,
    ended: RefCell<Gathered>,
}

impl Deref for Edit<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.db
    }
}

impl Edit<'_> {
    /// What `change` did, and its sums, are in the transaction after Ok; with what it ended.
    pub(super) fn run<T>(
        db: &Transaction<'_>,
        identity: &Identity,
        change: impl FnOnce(&Edit<'_>) -> Result<T>,
    ) -> Result<(T, Gathered)> {
        let edit = Edit {
            db,
            identity,
            turned: RefCell::default(),
            ended: RefCell::default(),
        };
        let result = change(&edit)?;
        edit.write_tally()?;
        Ok((result, edit.ended.into_inner()))
    }

    /// So many more jobs to `peer` out of the outbox (its row) are in this state; fewer if negative.
    pub(super) fn count(&self, peer: AgentId, outbox: i64, state: JobState, more: i64) {
        *self.turned.borrow_mut().entry((peer, outbox, state)).or_default() += more;
    }

    /// The job ended like this, without being delivered.
    pub(super) fn ended(&self, job: &Key, end: End, why: &str) -> Result<()> {
        if failpoints::mutant("ends-told") {
            return Ok(());
        }
        let mut ended = self.ended.borrow_mut();
        if let Some(several) = ended.get_mut(&(job.peer, end)) {
            several.count += 1;
            return Ok(());
        }
        let path: Vec<u8> = self
            .prepare_cached("SELECT path FROM drops WHERE id = ?")?
            .query_row([job.item.0], |row| row.get(0))?;
        let first = Ended {
            count: 1,
            job: job.transfer,
            path: escape(&path),
            why: why.to_owned(),
        };
        ended.insert((job.peer, end), first);
        Ok(())
    }

    /// Writes the sums of what was counted until now.
    pub(super) fn write_tally(&self) -> Result<()> {
        for ((peer, outbox, state), more) in mem::take(&mut *self.turned.borrow_mut()) {
            self.prepare_cached(
                "INSERT INTO tally VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            )?
            .execute(params![peer.0, outbox, state, more])?;
        }
        Ok(())
    }
}
