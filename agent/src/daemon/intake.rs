//! What outboxes find ready becomes jobs (S2), one for each peer, before anything else happens to it.

use std::{
    collections::BTreeSet,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use dropwire_protocol::{AgentId, RemotePath};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{Shared, doubts::Doubts};
use crate::{
    backoff,
    clock::now_ms,
    config::{self, AfterSend},
    db::DbError,
    homes,
    outbox::{self, Known, Outbox, OutboxEvent, spool},
    queue::{Enqueued, NewDrop, Queue},
    version::{Found, OutboxId},
};

/// Batches of found files that may wait for the job list; an outbox that finds more waits.
const WAITING: usize = 4;
/// How often the job list is asked before the files are left to the next scan.
const TRIES: u32 = 8;
/// At most this long before it is asked again, then twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// An outbox at work.
pub struct Running {
    pub(super) outbox: Outbox,
    path: PathBuf,
    cancel: CancellationToken,
    /// Over when all that the outbox found is queued.
    intake: JoinHandle<()>,
}

/// Starts outboxes; all are in the config's order then.
pub async fn begin(
    shared: &Arc<Shared>,
    outboxes: &[config::Outbox],
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<(), DbError> {
    for config in outboxes {
        let (events_in, events) = mpsc::channel(WAITING);
        let path = config.path.clone();
        let expected = shared.db.call(move |tx| homes::expected(tx, &path)).await?;
        let cancel = cancel.child_token();
        let known = Arc::new(InQueue {
            shared: shared.clone(),
            path: config.path.clone(),
            cancel: cancel.clone(),
        });
        let me = shared.me();
        let running = Running {
            outbox: outbox::start(
                config.clone(),
                me,
                expected.map(OutboxId),
                known,
                events_in,
                cancel.clone(),
            ),
            path: config.path.clone(),
            intake: tasks.spawn(take_in(shared.clone(), config.clone(), events, cancel.clone())),
            cancel,
        };
        let mut all = shared.outboxes.write().unwrap_or_else(PoisonError::into_inner);
        all.push(running);
        let order = &shared.config().outboxes;
        all.sort_by_key(|running| order.iter().position(|o| o.path == running.path));
    }
    Ok(())
}

/// Ends the outboxes at these paths; what they found is queued when it returns. Their jobs go on.
pub async fn end(shared: &Shared, paths: &[PathBuf]) {
    let ended: Vec<Running> = {
        let mut all = shared.outboxes.write().unwrap_or_else(PoisonError::into_inner);
        all.extract_if(.., |running| paths.contains(&running.path))
            .collect()
    };
    for running in ended {
        running.cancel.cancel();
        let _ = running.intake.await; // a panic ends the process by itself
    }
}

async fn take_in(
    shared: Arc<Shared>,
    outbox: config::Outbox,
    mut events: mpsc::Receiver<OutboxEvent>,
    cancel: CancellationToken,
) {
    let doubts = Doubts::default();
    let queued = take_all_in(&shared, &outbox, &mut events, &doubts, &cancel);
    let answered = doubts.run(&shared, &cancel);
    tokio::join!(queued, answered);
}

async fn take_all_in(
    shared: &Shared,
    outbox: &config::Outbox,
    events: &mut mpsc::Receiver<OutboxEvent>,
    doubts: &Doubts,
    cancel: &CancellationToken,
) {
    while let Some(event) = events.recv().await {
        // On a full disk files wait in their outbox, so that what was queued before them can be finished.
        cancel.run_until_cancelled(shared.db.room_for_more()).await;
        let queued = persistently(cancel, FIRST_WAIT, tries(&event), || async {
            match event.clone() {
                OutboxEvent::Marked { root, id } => found(shared, root, id).await,
                OutboxEvent::Settled { root, found } => {
                    let drops = found.into_iter().map(|found| NewDrop {
                        found,
                        root: root.clone(),
                        peers: outbox.to.clone(),
                        after_send: outbox.after_send,
                        marker: outbox.marker.clone(),
                        origin: None,
                        is_not: None,
                    });
                    let queued = queue(shared, drops.collect()).await;
                    queued.map(|queued| doubts.add(queued.doubts))
                }
            }
        })
        .await;
        if queued.is_none() {
            // The files lie in the outbox.
            for running in shared
                .outboxes()
                .iter()
                .filter(|running| running.status().path == outbox.path)
            {
                running.find_again();
            }
        }
    }
}

/// Files are found again by a scan; nothing tells a mark again.
fn tries(event: &OutboxEvent) -> u32 {
    match event {
        OutboxEvent::Marked { .. } => u32::MAX,
        OutboxEvent::Settled { .. } => TRIES,
    }
}

/// Again while the job list fails, later each time; whoever asks waits. None: cancelled, or it failed so many times.
async fn persistently<T, F>(
    cancel: &CancellationToken,
    first: Duration,
    tries: u32,
    attempt: impl Fn() -> F,
) -> Option<T>
where
    F: Future<Output = Result<T, DbError>>,
{
    for tried in 0..tries {
        match attempt().await {
            Ok(done) => return Some(done),
            Err(error) => warn!(%error, "files could not be queued"),
        }
        let wait = backoff::delay(first, first * 60, tried, now_ms().unsigned_abs());
        cancel.run_until_cancelled(tokio::time::sleep(wait)).await?;
    }
    None
}

/// An outbox is there; jobs of it that wait are looked for here from now on, wherever it lay before.
async fn found(shared: &Shared, root: PathBuf, id: OutboxId) -> Result<(), DbError> {
    shared.queue.outboxes_lie_at(vec![(id, root)]).await
}

/// Removes what a `send` left that was ended by a crash before its files were queued, or after they had gone; what is
/// still wanted lies in the spool as it is now, wherever the state folder was before. To be called before anything
/// is sent.
pub async fn clear_spool(queue: &Queue, spool: PathBuf) -> Result<(), DbError> {
    let known = queue.outboxes().await?;
    let cleared = move || spool::discard_unused(&spool, |id| known.get(&id).copied());
    match tokio::task::spawn_blocking(cleared).await {
        Ok(Ok(wanted)) => queue.outboxes_lie_at(wanted).await?,
        Ok(Err(error)) => warn!(%error, "old copies of `send` stay"),
        Err(error) => warn!(%error, "old copies of `send` stay"),
    }
    Ok(())
}

/// Queues the copies that `send` made in the spool; they leave it when delivered.
pub async fn take_copies(
    shared: &Shared,
    copies: Vec<spool::Copied>,
    peers: &[AgentId],
) -> Result<Vec<dropwire_protocol::TransferId>, DbError> {
    let mut roots: Vec<_> = copies.iter().map(|copy| copy.root.clone()).collect();
    roots.sort_unstable();
    roots.dedup();
    let drops = copies.into_iter().map(|copy| NewDrop {
        found: copy.found,
        root: copy.root,
        peers: peers.to_vec(),
        after_send: AfterSend::Delete,
        marker: None,
        origin: Some(copy.original),
        is_not: None,
    });
    let jobs = queue(shared, drops.collect()).await?.queued;
    let note = move || roots.iter().try_for_each(|root| spool::note_queued(root));
    // Already taken out again, if it fails.
    let _ = tokio::task::spawn_blocking(note).await;
    Ok(jobs)
}

/// What may be known is not queued: those doubts are for [`super::doubts`].
pub(super) async fn queue(shared: &Shared, drops: Vec<NewDrop>) -> Result<Enqueued, DbError> {
    let mut peers = BTreeSet::new();
    for drop in &drops {
        debug!(path = %drop.found.path, size = drop.found.version.size, "ready");
        peers.extend(&drop.peers);
    }
    let enqueued = shared.queue.enqueue(drops, now_ms()).await?;
    shared.queued.notify_one();
    for peer in peers {
        shared.wake(peer).notify_one();
    }
    Ok(enqueued)
}

/// The job list as outboxes see it.
struct InQueue {
    shared: Arc<Shared>,
    /// The outbox's, as in the config.
    path: PathBuf,
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
            let queue = &self.shared.queue;
            queue.outbox_replaced(self.path.clone(), id, now_ms()).await?;
        }
        Ok(Ok(()))
    }

    /// The folder is at home here, if it has left the `other` path; else why it is held.
    async fn move_home(&self, id: OutboxId, other: PathBuf) -> Result<Result<(), String>, DbError> {
        let (path, outboxes) = (self.path.clone(), self.shared.config().outbox_paths());
        let look = move || {
            let there = homes::There::look(id.0, &path, &other);
            match there.is_left(&path, &other, &outboxes) {
                true => Ok(other),
                false => Err(there.reason(&path, &other)),
            }
        };
        let looked = tokio::task::spawn_blocking(look).await;
        Ok(match looked.map_err(|e| DbError::Failed(e.to_string()))? {
            Ok(left) => match self.claim(id, Some(left)).await? {
                None => Ok(()),
                Some(_) => Err("folders change places; it is looked at again".into()),
            },
            Err(reason) => Err(reason),
        })
    }

    async fn claim(&self, id: OutboxId, left: Option<PathBuf>) -> Result<Option<PathBuf>, DbError> {
        let (path, configured) = (self.path.clone(), self.shared.config().folders());
        let claim =
            move |tx: &rusqlite::Transaction<'_>| homes::claim(tx, id.0, &path, &configured, left.as_deref());
        self.shared.db.call(claim).await
    }
}

impl Known for InQueue {
    fn settle(&self, outbox: OutboxId, is_new: bool) -> outbox::Settling<'_> {
        Box::pin(async move {
            let ask = || self.find_home(outbox, is_new);
            persistently(&self.cancel, FIRST_WAIT, TRIES, ask).await
        })
    }

    fn unknown(&self, found: Vec<Found>) -> Pin<Box<dyn Future<Output = Option<Vec<Found>>> + Send + '_>> {
        Box::pin(async move {
            if self.shared.changed.told(&found) {
                self.shared.disposal.notify_one();
            }
            let ask = || self.shared.queue.unknown(found.clone());
            persistently(&self.cancel, FIRST_WAIT, TRIES, ask).await
        })
    }

    fn folders_that_go(
        &self,
        outbox: OutboxId,
        whole: bool,
    ) -> Pin<Box<dyn Future<Output = Option<Vec<RemotePath>>> + Send + '_>> {
        Box::pin(async move {
            let ask = || self.shared.queue.folders_that_go(outbox, whole);
            persistently(&self.cancel, FIRST_WAIT, TRIES, ask).await
        })
    }

    fn emptied(
        &self,
        outbox: OutboxId,
        folders: Vec<RemotePath>,
    ) -> Pin<Box<dyn Future<Output = Option<Vec<RemotePath>>> + Send + '_>> {
        Box::pin(async move {
            let emptied = self.shared.queue.emptied(outbox, folders).await;
            emptied
                .inspect_err(|error| warn!(%error, "the job list failed"))
                .ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Answers after so many failures.
    async fn after(failures: u32, tries: u32, cancel: &CancellationToken) -> (Option<u32>, u32) {
        let tried = AtomicU32::new(0);
        let answer = persistently(cancel, Duration::from_nanos(1), tries, || async {
            match tried.fetch_add(1, Ordering::Relaxed) {
                n if n < failures => Err(DbError::Failed("full".into())),
                n => Ok(n),
            }
        });
        (answer.await, tried.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_job_list_that_fails_is_asked_again_but_not_for_ever() {
        let (cancel, files) = (CancellationToken::new(), settled());
        for (failures, expected) in [(0, (Some(0), 1)), (3, (Some(3), 4)), (u32::MAX, (None, TRIES))] {
            assert_eq!(after(failures, tries(&files), &cancel).await, expected);
        }
        cancel.cancel();
        assert_eq!(after(1, tries(&files), &cancel).await, (None, 1));
    }

    #[tokio::test]
    async fn an_outbox_that_was_found_is_told_until_it_is_known() {
        let marked = OutboxEvent::Marked {
            root: "/outbox".into(),
            id: OutboxId([1; 16]),
        };
        let (cancel, often) = (CancellationToken::new(), 2 * TRIES);
        assert_eq!(
            after(often, tries(&marked), &cancel).await,
            (Some(often), often + 1)
        );
    }

    fn settled() -> OutboxEvent {
        OutboxEvent::Settled {
            root: "/outbox".into(),
            found: Vec::new(),
        }
    }
}
