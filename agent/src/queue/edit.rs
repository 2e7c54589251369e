//! One change of the job list while it is made.

use std::{cell::RefCell, collections::HashMap, mem, ops::Deref};

use dropwire_protocol::AgentId;
use rusqlite::{Connection, Result, Transaction, params};

use super::JobState;
use crate::identity::Identity;

/// The tables, whose they are, and how many jobs came and went by this change.
///
/// Each change counts the jobs that it turns and writes the sums once: a trigger would do the same for every single job,
/// and make SQLite prepare to undo every single statement.
pub(super) struct Edit<'a> {
    db: &'a Transaction<'a>,
    pub identity: &'a Identity,
    turned: RefCell<HashMap<(AgentId, i64, JobState), i64>>,
}

impl Deref for Edit<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.db
    }
}

impl Edit<'_> {
    /// What `change` did, and its sums, are in the transaction after Ok.
    pub fn run<T>(
        db: &Transaction<'_>,
        identity: &Identity,
        change: impl FnOnce(&Edit<'_>) -> Result<T>,
    ) -> Result<T> {
        let edit = Edit {
            db,
            identity,
            turned: RefCell::default(),
        };
        let result = change(&edit)?;
        edit.write_tally()?;
        Ok(result)
    }

    /// So many more jobs to `peer` out of the outbox (its row) are in this state; fewer if negative.
    pub fn count(&self, peer: AgentId, outbox: i64, state: JobState, more: i64) {
        *self.turned.borrow_mut().entry((peer, outbox, state)).or_default() += more;
    }

    /// Writes the sums of what was counted until now.
    pub fn write_tally(&self) -> Result<()> {
        for ((peer, outbox, state), more) in mem::take(&mut *self.turned.borrow_mut()) {
            self.prepare_cached(
                "INSERT INTO tally VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            )?
            .execute(params![peer.0, outbox, state, more])?;
        }
        Ok(())
    }
}
