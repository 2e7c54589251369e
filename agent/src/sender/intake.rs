//! What outboxes find ready becomes jobs (S2), one for each peer, before anything else happens to it.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use dropwire_protocol::RemotePath;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    doubts::{self, Doubts},
    folder_setting,
    outboxes::{Outboxes, Running},
};
use crate::{
    backoff,
    clock::now_ms,
    config::{self, Current},
    db::{Db, DbError},
    error::chain,
    fs::version::{Found, OutboxId},
    homes,
    outbox::{self, Known, Ready},
    owner::Me,
    queue::{self, NewItem, Queue},
};

/// Batches of found files that may wait for the job list; an outbox that finds more waits.
const WAITING: usize = 4;
/// How often the job list is asked before the files are left to the next scan.
const TRIES: u32 = 8;
/// The longest wait before it is asked again; doubled after each failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// What taking in works with; cheap to clone.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) config: Current,
    pub(super) db: Db,
    pub(super) queue: Queue,
    pub(super) outboxes: Outboxes,
}

/// Starts an outbox for the agent `me`.
pub(super) async fn begin(
    task: &Task,
    outbox: &config::Outbox,
    me: Me,
    tasks: &TaskTracker,
    cancel: CancellationToken,
) -> Result<(), DbError> {
    let (give, ready) = mpsc::channel(WAITING);
    let path = outbox.path.clone();
    let expected = task.db.call(move |tx| homes::expected(tx, &path)).await?;
    let known = Arc::new(InQueue {
        task: task.clone(),
        outbox: outbox.clone(),
        cancel: cancel.clone(),
    });
    let running = Running {
        outbox: outbox::start(
            outbox.clone(),
            me,
            expected.map(OutboxId),
            known,
            give,
            cancel.clone(),
        ),
        intake: tasks.spawn(take_in(task.clone(), outbox.clone(), ready, cancel.clone())),
        cancel,
    };
    task.outboxes.add(running, &task.config.get().outboxes);
    Ok(())
}

/// Ends the outboxes at these paths; what they found is queued when it returns. Their jobs go on.
pub(super) async fn end(outboxes: &Outboxes, paths: &[PathBuf]) {
    for running in outboxes.remove(paths) {
        running.cancel.cancel();
        let _ = running.intake.await; // a panic ends the process by itself
    }
}

async fn take_in(
    task: Task,
    outbox: config::Outbox,
    mut ready: mpsc::Receiver<Ready>,
    cancel: CancellationToken,
) {
    let doubts = Doubts::default();
    let answering = doubts::Task {
        config: task.config.clone(),
        queue: task.queue.clone(),
        outboxes: task.outboxes.clone(),
    };
    let queued = take_all_in(&task, &outbox, &mut ready, &doubts, &cancel);
    let answered = doubts.run(&answering, &cancel);
    tokio::join!(queued, answered);
}

async fn take_all_in(
    task: &Task,
    outbox: &config::Outbox,
    ready: &mut mpsc::Receiver<Ready>,
    doubts: &Doubts,
    cancel: &CancellationToken,
) {
    while let Some(Ready { root, found }) = ready.recv().await {
        // On a full disk files wait in their outbox, so that what was queued before them can be finished.
        cancel.run_until_cancelled(task.db.room_for_more()).await;
        for found in &found {
            debug!(path = %found.path, size = found.version.size, "ready");
        }
        let queued = persistently(cancel, FIRST_WAIT, || async {
            let items = found.iter().map(|found| NewItem {
                found: found.clone(),
                root: root.clone(),
                peers: outbox.to.clone(),
                after_send: outbox.after_send,
                marker: outbox.marker.clone(),
                origin: None,
                is_not: None,
            });
            let queued = task.queue.enqueue(items.collect(), now_ms()).await?;
            doubts.add(queued.doubts);
            Ok(())
        })
        .await;
        if queued.is_none() {
            task.outboxes.find_again(&outbox.path); // the files are in the outbox still
        }
    }
}

/// Again while the job list fails, later each time; whoever asks waits. None: cancelled, or it failed [`TRIES`] times.
async fn persistently<T, F>(cancel: &CancellationToken, first: Duration, attempt: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, DbError>>,
{
    for tried in 0..TRIES {
        match attempt().await {
            Ok(done) => return Some(done),
            Err(error) => warn!(error = %chain(&error), "files could not be queued"),
        }
        let wait = backoff::delay(first, first * 60, tried, now_ms().unsigned_abs());
        cancel.run_until_cancelled(tokio::time::sleep(wait)).await?;
    }
    None
}

/// The job list as outboxes see it.
struct InQueue {
    task: Task,
    /// As in the config.
    outbox: config::Outbox,
    cancel: CancellationToken,
}

impl InQueue {
    async fn find_home(&self, id: OutboxId, is_new: bool) -> Result<Result<(), String>, DbError> {
        if let Some(other) = self.claim(id, None).await?
            && let Err(reason) = self.move_home(id, other).await?
        {
            return Ok(Err(reason));
        }
        if is_new {
            let queue = &self.task.queue;
            queue
                .outbox_replaced(self.outbox.path.clone(), id, now_ms())
                .await?;
        }
        let begun = folder_setting::begin(&self.task.db, &self.task.queue, &self.outbox, id).await?;
        Ok(begun.map_err(|in_use| format!("{in_use}. The way out: {}", in_use.hint())))
    }

    /// The folder is at home here, if it has left the `other` path; else why it is held.
    async fn move_home(&self, id: OutboxId, other: PathBuf) -> Result<Result<(), String>, DbError> {
        let (path, outboxes) = (self.outbox.path.clone(), self.task.config.get().outbox_paths());
        let look = move || {
            let there = homes::There::find(id.0, &path, &other);
            match there.is_left(&path, &other, &outboxes) {
                true => Ok(other),
                false => Err(there.reason(&path, &other)),
            }
        };
        let looked = tokio::task::spawn_blocking(look).await;
        Ok(match looked.map_err(|e| DbError::Failed(e.into()))? {
            Ok(left) => match self.claim(id, Some(left)).await? {
                None => Ok(()),
                Some(_) => Err("folders change places; it is looked at again".into()),
            },
            Err(reason) => Err(reason),
        })
    }

    async fn claim(&self, id: OutboxId, left: Option<PathBuf>) -> Result<Option<PathBuf>, DbError> {
        let (path, configured) = (self.outbox.path.clone(), self.task.config.get().folders());
        let claim = move |tx: &rusqlite::Transaction<'_>| {
            let other = homes::claim(tx, id.0, &path, &configured, left.as_deref())?;
            if other.is_none() {
                queue::outbox_is_at(tx, id, &path)?;
            }
            Ok(other)
        };
        self.task.db.call(claim).await
    }
}

impl Known for InQueue {
    fn claim_home(&self, outbox: OutboxId, is_new: bool) -> outbox::Claiming<'_> {
        Box::pin(async move {
            let ask = || self.find_home(outbox, is_new);
            persistently(&self.cancel, FIRST_WAIT, ask).await
        })
    }

    fn unknown(&self, found: Vec<Found>) -> Result<Vec<Found>, String> {
        let unknown = self.task.queue.unknown(found);
        unknown.map_err(|error| format!("the job list cannot be read: {}", chain(&error)))
    }

    fn emptied(
        &self,
        outbox: OutboxId,
        folders: Vec<RemotePath>,
    ) -> Pin<Box<dyn Future<Output = Option<Vec<RemotePath>>> + Send + '_>> {
        Box::pin(async move {
            let emptied = self.task.queue.emptied(outbox, folders).await;
            emptied
                .inspect_err(|error| warn!(error = %chain(error), "the job list failed"))
                .ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Answers after so many failures.
    async fn after(failures: u32, cancel: &CancellationToken) -> (Option<u32>, u32) {
        let tried = AtomicU32::new(0);
        let answer = persistently(cancel, Duration::from_nanos(1), || async {
            match tried.fetch_add(1, Ordering::Relaxed) {
                n if n < failures => Err(DbError::Failed(crate::db::Failure::Ended)),
                n => Ok(n),
            }
        });
        (answer.await, tried.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_job_list_that_fails_is_asked_again_but_not_for_ever() {
        let cancel = CancellationToken::new();
        for (failures, expected) in [(0, (Some(0), 1)), (3, (Some(3), 4)), (u32::MAX, (None, TRIES))] {
            assert_eq!(after(failures, &cancel).await, expected);
        }
        cancel.cancel();
        assert_eq!(after(1, &cancel).await, (None, 1));
    }
}
