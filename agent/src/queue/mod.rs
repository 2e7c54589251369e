//! The job list: on disk before it is acted on; a failure always sets a later attempt or an end state.
//!
//! An *item* is one version of a file in an outbox, a *job* its way to one peer. The list knows nothing of links,
//! folders or clocks: the dispatcher asks what is due, says what happened, and passes the time in.
//!
//! | part | says |
//! |---|---|
//! | `schema` | the tables, and what items and jobs may become |
//! | `job` | what goes in and comes out |
//! | `edit` | one change while it is made, and how many jobs it turns |
//! | `change` | the steps that every change is made of |
//! | `key` | as much of a job as every change needs |
//! | `ends` | what ended without being delivered, for the log |
//! | `signals` | who is told that there may be something to do |
//! | `enqueue` | S2: what was found becomes jobs |
//! | `ways` | what would be found once more with another `folder` |
//! | `retimed` | other times alone make no new item |
//! | `replaced` | the jobs of an outbox whose folder was replaced |
//! | `attempts` | which are due, failures, new beginnings |
//! | `delivery` | S4 to S6: receipts, disposal, what peers are told |
//! | `keeping` | running time and retention |
//! | `list` | lookups and listings |
//! | `schedule` | how many to fetch (pure) |
//!
//! A transfer's id comes from peer, outbox, path, version and a counter. The counter is the job's: it begins one
//! above all that earlier items of the same version used (0 for the first), so that a lost job list finds the same
//! ids again, and rises with [`Queue::recount`] and [`Queue::resend`]. Former ids stay with the job: they are
//! still withdrawn, their receipts are still taken, and users may still name them.
//!
//! Crash promise: every method answers after its commit is on disk ([`Queue::disposed`] and [`Queue::forgotten`], which
//! are called again after a power cut, after it is made), and each version's jobs, each receipt with all that follows
//! from it, and each end of a job share one commit. Calls may be repeated after a crash.

mod attempts;
mod change;
mod delivery;
mod edit;
mod ends;
mod enqueue;
mod job;
mod keeping;
mod key;
mod list;
mod replaced;
mod retimed;
pub mod schedule;
mod schema;
mod signals;
#[cfg(test)]
mod tests;
mod ways;

use std::{iter, sync::Arc, time::Duration};

use dropwire_protocol::AgentId;
use rusqlite::{Connection, Transaction};
use tokio::sync::Notify;

pub use delivery::resting;
pub use ends::{End, Ended, Ends, Gathered};
pub use enqueue::outbox_is_at;
pub use job::{
    Class, Counts, Doubt, DueDisposal, Enqueued, Filter, ItemId, Job, JobRow, JobState, NewItem, Page,
    PeerCounts, Proof, Question, Recorded, Resting, Todo,
};
pub use keeping::KEPT;
pub use schema::{SCHEMA_1, SCHEMA_2, SCHEMA_3};
pub use ways::{OtherWay, goes_other_way, other_way};

use crate::{
    db::{Db, DbError},
    identity::Identity,
};
use edit::Edit;
use signals::Signals;

/// Most items of a batch in one change, so that no other change waits long.
const CHUNK: usize = 512;

/// The job list; cheap to clone.
#[derive(Clone)]
pub struct Queue {
    db: Db,
    identity: Arc<Identity>,
    /// The newest job of earlier runs.
    newest_at_start: i64,
    ends: Arc<Ends>,
    signals: Arc<Signals>,
}

impl Queue {
    /// The job list in `db`, which has the tables of [`SCHEMA_1`] to [`SCHEMA_3`] and
    /// [`crate::running_time::SCHEMA_1`]. Attempts that lie further ahead than `max_backoff` (the clock was set back)
    /// are pulled in.
    pub async fn open(
        db: Db,
        identity: Arc<Identity>,
        now_ms: i64,
        max_backoff: Duration,
    ) -> Result<Self, DbError> {
        let newest = |db: &Transaction<'_>| {
            db.query_row("SELECT coalesce(max(id), 0) FROM jobs", [], |row| row.get(0))
        };
        let newest_at_start = db.call(newest).await?;
        let queue = Self {
            db,
            identity,
            newest_at_start,
            ends: Arc::default(),
            signals: Arc::default(),
        };
        queue.pull_in(now_ms, max_backoff).await?;
        Ok(queue)
    }

    /// Was it queued since the list was opened? Else an earlier run may have offered it.
    pub fn is_of_this_run(&self, job: &Job) -> bool {
        job.row > self.newest_at_start
    }

    /// What ended without being delivered since it was last taken.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Notified when the list may have something to do for `peer`: a job that is due, a withdrawal, a time to tell.
    pub fn work_for(&self, peer: AgentId) -> Arc<Notify> {
        self.signals.of(peer)
    }

    /// Notifies who waits for work for `peer`.
    pub fn wake(&self, peer: AgentId) {
        self.signals.wake(peer);
    }

    /// Notifies everybody who waits for work.
    pub fn wake_all(&self) {
        self.signals.wake_all();
    }

    /// Returns once jobs were queued since the last call.
    pub async fn queued(&self) {
        self.signals.queued.notified().await;
    }

    /// Returns once files may leave their outboxes that could not at the last call.
    pub async fn leaving(&self) {
        self.signals.leaving.notified().await;
    }

    /// One change in one commit.
    async fn call<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Edit<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        self.call_then(change, |_| ()).await
    }

    /// As [`Queue::call`]; see [`Db::call_then`].
    async fn call_then<T, F>(
        &self,
        mut change: F,
        after: impl FnOnce(&Signals) + Send + 'static,
    ) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Edit<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (identity, signals) = (self.identity.clone(), self.signals.clone());
        let (done, ended) = self
            .db
            .call_then(
                move |transaction| Edit::run(transaction, &identity, &mut change),
                move || after(&signals),
            )
            .await?;
        self.ends.add(ended);
        Ok(done)
    }

    /// As [`Queue::call`], for what is done again after a power cut; see [`Db::call_loosely`].
    async fn call_loosely<T, F>(&self, mut change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Edit<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let identity = self.identity.clone();
        let change = move |transaction: &Transaction<'_>| Edit::run(transaction, &identity, &mut change);
        let (done, ended) = self.db.call_loosely(change).await?;
        self.ends.add(ended);
        Ok(done)
    }

    /// Makes one change for each item and gathers the results; a commit holds [`CHUNK`] items.
    async fn each<T, R, F>(&self, items: Vec<T>, change: F) -> Result<Vec<R>, DbError>
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Fn(&Edit<'_>, &T, &mut Vec<R>) -> rusqlite::Result<()> + Clone + Send + 'static,
    {
        self.each_then(items, change, |_| ()).await
    }

    /// As [`Queue::each`]; `after` follows each commit (see [`Db::call_then`]).
    async fn each_then<T, R, F, A>(&self, items: Vec<T>, change: F, after: A) -> Result<Vec<R>, DbError>
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Fn(&Edit<'_>, &T, &mut Vec<R>) -> rusqlite::Result<()> + Clone + Send + 'static,
        A: Fn(&Signals) + Clone + Send + 'static,
    {
        let mut results = Vec::new();
        for change in chunks(items, change) {
            results.extend(self.call_then(change, after.clone()).await?);
        }
        Ok(results)
    }

    /// As [`Queue::each`]; see [`Queue::call_loosely`].
    async fn each_loosely<T, R, F>(&self, items: Vec<T>, change: F) -> Result<Vec<R>, DbError>
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Fn(&Edit<'_>, &T, &mut Vec<R>) -> rusqlite::Result<()> + Clone + Send + 'static,
    {
        let mut results = Vec::new();
        for change in chunks(items, change) {
            results.extend(self.call_loosely(change).await?);
        }
        Ok(results)
    }

    /// A read that waits for no commit; it sees all that was committed before.
    async fn read<T, F>(&self, read: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.db.read(read).await
    }
}

/// One change for each [`CHUNK`] of items.
fn chunks<T, R, F>(
    items: Vec<T>,
    change: F,
) -> impl Iterator<Item = impl FnMut(&Edit<'_>) -> rusqlite::Result<Vec<R>> + Send + 'static>
where
    T: Send + 'static,
    R: Send + 'static,
    F: Fn(&Edit<'_>, &T, &mut Vec<R>) -> rusqlite::Result<()> + Clone + Send + 'static,
{
    let mut items = items.into_iter();
    iter::from_fn(move || {
        let chunk: Vec<T> = items.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            return None;
        }
        let change = change.clone();
        Some(move |edit: &Edit<'_>| {
            let mut results = Vec::new();
            for item in &chunk {
                change(edit, item, &mut results)?;
            }
            Ok(results)
        })
    })
}
