//! The copies that `send` made in the spool, as items.

use std::path::PathBuf;

use dropwire_protocol::{AgentId, TransferId};
use tracing::warn;

use crate::{
    blocking::blocking,
    clock::now_ms,
    config::AfterSend,
    db::DbError,
    leaving::spool,
    queue::{NewItem, Queue},
};

/// Removes what a `send` left that was ended by a crash before its files were queued, or after they had gone; what is
/// still wanted is in the spool as it is now, wherever the state folder was before. To be called before anything is
/// sent.
pub async fn clear_spool(queue: &Queue, spool: PathBuf) -> Result<(), DbError> {
    let known = queue.outboxes().await?;
    let cleared = move || spool::discard_unused(&spool, |id| known.get(&id).copied());
    match blocking(cleared).await {
        Ok(Ok(wanted)) => queue.outboxes_are_at(wanted).await?,
        Ok(Err(error)) => warn!(%error, "old copies of `send` stay"),
        Err(error) => warn!(%error, "old copies of `send` stay"),
    }
    Ok(())
}

/// Queues copies; they leave the spool when delivered.
pub async fn take_copies(
    queue: &Queue,
    copies: Vec<spool::Copied>,
    peers: &[AgentId],
) -> Result<Vec<TransferId>, DbError> {
    let mut roots: Vec<_> = copies.iter().map(|copy| copy.root.clone()).collect();
    roots.sort_unstable();
    roots.dedup();
    let items = copies.into_iter().map(|copy| NewItem {
        found: copy.found,
        root: copy.root,
        peers: peers.to_vec(),
        after_send: AfterSend::Delete,
        marker: None,
        origin: Some(copy.original),
        is_not: None,
    });
    let jobs = queue.enqueue(items.collect(), now_ms()).await?.queued;
    // Already taken out again, if it fails.
    let _ = blocking(move || roots.iter().try_for_each(|root| spool::note_queued(root))).await;
    Ok(jobs)
}
