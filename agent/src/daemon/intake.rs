//! What outboxes find ready becomes jobs (S2), one for each peer, before anything else happens to it.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc};

use dropwire_protocol::AgentId;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{Shared, marks};
use crate::{
    clock::now_ms,
    config::{self, AfterSend, Config},
    db::DbError,
    error::shown,
    outbox::{self, Known, OutboxEvent, spool},
    queue::{NewDrop, Queue},
    version::{Found, OutboxId},
};

/// Batches of found files that may wait for the job list; an outbox that finds more waits.
const WAITING: usize = 4;

/// Starts every outbox of the config.
pub async fn start(
    shared: &Arc<Shared>,
    config: &Config,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<(), DbError> {
    for outbox in &config.outboxes {
        let (events_in, events) = mpsc::channel(WAITING);
        let expected = marks::expected(&shared.db, &outbox.path).await?;
        let known = Arc::new(InQueue(shared.clone()));
        let handle = outbox::start(outbox.clone(), expected, known, events_in, cancel.clone());
        shared
            .outboxes
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(handle);
        tasks.spawn(take_in(shared.clone(), outbox.clone(), events));
    }
    Ok(())
}

async fn take_in(shared: Arc<Shared>, outbox: config::Outbox, mut events: mpsc::Receiver<OutboxEvent>) {
    while let Some(event) = events.recv().await {
        let done = match event {
            OutboxEvent::Marked { root, id } => found(&shared, root, id).await,
            OutboxEvent::Settled { root, found } => {
                let drops = found.into_iter().map(|found| NewDrop {
                    found,
                    root: root.clone(),
                    peers: outbox.to.clone(),
                    after_send: outbox.after_send,
                    origin: None,
                });
                queue(&shared, drops.collect(), &outbox.to).await.map(drop)
            }
        };
        if let Err(error) = done {
            // Not lost: the files lie in the outbox, and the next scan finds them.
            warn!(outbox = %shown(&outbox.path), %error, "files could not be queued");
        }
    }
}

/// An outbox is there; jobs of it that wait are looked for here from now on, wherever it lay before.
async fn found(shared: &Shared, root: PathBuf, id: OutboxId) -> Result<(), DbError> {
    marks::remember(&shared.db, root.clone(), id).await?;
    shared.queue.outbox_lies_at(id, root).await
}

/// Removes what a `send` left that was ended by a crash before its files were queued, or after they had gone. Told by
/// the mark, not by the path: the state folder may have been moved. Before anything is sent.
pub async fn clear_spool(queue: &Queue, spool: PathBuf) -> Result<(), DbError> {
    let wanted = queue.outboxes_in_use().await?;
    let cleared =
        tokio::task::spawn_blocking(move || spool::discard_unused(&spool, |id| wanted.contains(&id)));
    match cleared.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "old copies of `send` stay"),
        Err(error) => warn!(%error, "old copies of `send` stay"),
    }
    Ok(())
}

/// Queues files that `send` copied into the spool; they leave it when delivered.
pub async fn take_spooled(
    shared: &Shared,
    spooled: spool::Spooled,
    peers: &[AgentId],
) -> Result<Vec<dropwire_protocol::TransferId>, DbError> {
    let drops = spooled.files.into_iter().map(|(found, original)| NewDrop {
        found,
        root: spooled.root.clone(),
        peers: peers.to_vec(),
        after_send: AfterSend::Delete,
        origin: Some(original),
    });
    let jobs = queue(shared, drops.collect(), peers).await?;
    let root = spooled.root;
    // Already taken out again, if it fails.
    let _ = tokio::task::spawn_blocking(move || spool::note_queued(&root)).await;
    Ok(jobs)
}

async fn queue(
    shared: &Shared,
    drops: Vec<NewDrop>,
    peers: &[AgentId],
) -> Result<Vec<dropwire_protocol::TransferId>, DbError> {
    for drop in &drops {
        debug!(path = %drop.found.path, size = drop.found.version.size, "ready");
    }
    let enqueued = shared.queue.enqueue(drops, now_ms()).await?;
    shared.queued.notify_one();
    for peer in peers {
        shared.wake(*peer).notify_one();
    }
    Ok(enqueued.queued)
}

/// The job list as outboxes see it.
struct InQueue(Arc<Shared>);

impl Known for InQueue {
    fn unknown(&self, found: Vec<Found>) -> Pin<Box<dyn Future<Output = Vec<Found>> + Send + '_>> {
        Box::pin(async move {
            self.0.queue.unknown(found).await.unwrap_or_else(|error| {
                warn!(%error, "the job list failed");
                Vec::new() // the next scan asks again
            })
        })
    }
}
