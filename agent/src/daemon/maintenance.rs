//! What has to be done now and then, whatever happens: running time is noted, and what was kept for long enough goes.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    clock::now_ms,
    config::Current,
    db::{Db, DbError},
    error::chain,
    queue::Queue,
    receiver::Inbox,
    running_time,
};

/// The longest time between two notes of running time (retention and `give_up_after` count it, not the wall clock).
const EVERY: Duration = Duration::from_secs(60);
/// The longest time between two notes while no job waits: nothing is in a hurry then, and the disk may sleep.
const IDLE: Duration = Duration::from_secs(600);

/// What maintenance works with.
pub(super) struct Task {
    pub(super) config: Current,
    pub(super) db: Db,
    pub(super) queue: Queue,
    pub(super) inbox: Inbox,
}

/// Runs until cancelled.
pub(super) async fn run(task: Task, cancel: CancellationToken) {
    let mut ran_since = Instant::now();
    while cancel.run_until_cancelled(task.pause()).await.is_some() {
        let ran = ran_since.elapsed();
        ran_since = Instant::now();
        if let Err(error) = task.round(ran).await {
            warn!(error = %chain(&error), "the job list failed");
        }
        // What ended is withdrawn, what was pulled in is due.
        task.queue.wake_all();
    }
    // An agent that is started for an hour each day ages too.
    if let Err(error) = running_time::advance(&task.db, ran_since.elapsed()).await {
        warn!(error = %chain(&error), "the job list failed");
    }
}

impl Task {
    /// Until the next round: a period after the last one while jobs wait, or after one was queued.
    async fn pause(&self) {
        // A short `give_up_after` is kept to within a quarter.
        let period = self
            .config
            .get()
            .retry
            .give_up_after
            .map_or(EVERY, |after| (after / 4).clamp(Duration::from_secs(1), EVERY));
        let counts = self.queue.counts().await;
        let idle = counts.is_ok_and(|counts| counts.oldest_queued_ms.is_none());
        if idle {
            let longest = tokio::time::sleep(IDLE.saturating_sub(period));
            tokio::select! {
                () = longest => {}
                () = self.queue.queued() => {}
            }
        }
        tokio::time::sleep(period).await;
    }

    async fn round(&self, ran: Duration) -> Result<(), DbError> {
        let (queue, retry) = (&self.queue, self.config.get().retry);
        running_time::advance(&self.db, ran).await?;
        queue.pull_in(now_ms(), retry.max).await?; // the clock may have been set back
        if let Some(give_up_after) = retry.give_up_after {
            queue.expire(give_up_after, now_ms()).await?;
        }
        while queue.sweep().await? {}
        self.inbox.sweep().await
    }
}
