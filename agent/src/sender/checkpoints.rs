//! How far large files were read, on the way into the job list.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::source::Keep;
use crate::{
    error::chain,
    queue::{ItemId, Queue},
};

/// Checkpoints that wait for the job list; more are dropped, as the next one says more.
const WAITING: usize = 16;

/// Takes checkpoints of any file; cheap to clone.
#[derive(Clone)]
pub(super) struct CheckpointSink(mpsc::Sender<Checkpoint>);

type Checkpoint = (ItemId, Vec<u8>);

impl CheckpointSink {
    /// And what [`keep`] takes.
    pub(super) fn new() -> (Self, mpsc::Receiver<Checkpoint>) {
        let (give, kept) = mpsc::channel(WAITING);
        (Self(give), kept)
    }

    /// Takes those of one item.
    pub(super) fn keeping(&self, item: ItemId) -> Keep {
        let give = self.0.clone();
        Box::new(move |bytes| {
            // Full: the next one says more.
            let _ = give.try_send((item, bytes));
        })
    }
}

/// Writes them into the job list, until cancelled.
pub(super) async fn keep(queue: Queue, mut kept: mpsc::Receiver<Checkpoint>, cancel: CancellationToken) {
    let mut batch = Vec::with_capacity(WAITING);
    while cancel
        .run_until_cancelled(kept.recv_many(&mut batch, WAITING))
        .await
        .is_some_and(|n| n > 0)
    {
        // Of each file only the newest counts.
        let newest: HashMap<_, _> = batch.drain(..).collect();
        for (item, bytes) in newest {
            if let Err(error) = queue.keep_checkpoints(item, bytes).await {
                warn!(error = %chain(&error), "the job list failed");
            }
        }
    }
}
