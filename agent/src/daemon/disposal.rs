//! Delivered files leave their outbox (S5, S6): moved to the archive or removed, on a thread that may block.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Shared, blocking};
use crate::{
    clock::now_ms,
    db::DbError,
    outbox::{
        dispose::{self, Disposed},
        spool,
    },
    queue,
};

/// Most files in one go.
const BATCH: usize = 256;
/// A file that could not leave yet (a writer has it, the outbox is away) is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Runs until cancelled. What a crash interrupted comes first: it is still in the job list.
pub async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    loop {
        let left = match pass(&shared).await {
            Ok(left) => left,
            Err(error) => {
                warn!(%error, "the job list failed");
                true
            }
        };
        let again = async {
            if left {
                tokio::time::sleep(AGAIN).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = shared.disposal.notified() => {}
            () = again => {}
        }
    }
}

/// True when something waits and has to be tried again.
async fn pass(shared: &Arc<Shared>) -> Result<bool, DbError> {
    let mut waiting = std::collections::HashSet::new();
    loop {
        let batch = shared.queue.to_dispose(BATCH + waiting.len()).await?;
        let batch: Vec<_> = batch.into_iter().filter(|d| !waiting.contains(&d.drop)).collect();
        if batch.is_empty() {
            return Ok(!waiting.is_empty());
        }
        let plans: Vec<_> = batch.iter().map(|d| plan(shared, d)).collect();
        let Ok(outcomes) = blocking(move || dispose::dispose_all(&plans)).await else {
            return Ok(true);
        };
        for (disposal, outcome) in batch.into_iter().zip(outcomes) {
            let path = &disposal.found.path;
            match outcome {
                Ok(Disposed::Done | Disposed::Gone) => {
                    debug!(%path, "left the outbox");
                    shared.queue.disposed(disposal.drop, None, now_ms()).await?;
                    left(shared, &disposal).await;
                }
                Ok(Disposed::Changed) => {
                    info!(%path, "changed since it was delivered: stays, and is looked at as a new drop");
                    let why = Some("changed since it was delivered".to_owned());
                    shared.queue.disposed(disposal.drop, why, now_ms()).await?;
                    if let Some(outbox) = shared.outbox(disposal.found.outbox) {
                        outbox.recheck(disposal.found.path.clone());
                    }
                }
                Ok(Disposed::OtherBytes) => {
                    warn!(%path, "the same version by its times, but with other bytes: sent again");
                    shared.queue.begin_again(disposal.drop, now_ms()).await?;
                    shared.queued.notify_one();
                    shared.wake_all();
                }
                Ok(Disposed::Busy) => {
                    debug!(%path, "delivered, but a program has it open for writing");
                    waiting.insert(disposal.drop);
                }
                Err(error) => {
                    warn!(%path, %error, "delivered, but it cannot leave the outbox yet");
                    waiting.insert(disposal.drop);
                }
            }
        }
    }
}

/// The folders that held it go too: an outbox's once they rest empty, a send's copy at once.
async fn left(shared: &Shared, disposal: &queue::Disposal) {
    if let Some(outbox) = shared.outbox(disposal.found.outbox) {
        outbox.disposed(&disposal.found.path);
    } else if disposal.root.starts_with(shared.spool()) {
        let root = disposal.root.clone();
        if let Ok(Err(error)) = blocking(move || spool::discard_if_done(&root)).await {
            warn!(%error, "a sent copy's folder stays");
        }
    }
}

fn plan(shared: &Shared, disposal: &queue::Disposal) -> dispose::Disposal {
    let config = shared.config();
    let outbox = config.outboxes.iter().find(|o| o.path == disposal.root);
    dispose::Disposal {
        name: disposal.name.clone(),
        outbox: disposal.found.outbox,
        root: disposal.root.clone(),
        path: disposal.found.path.clone(),
        version: disposal.found.version,
        digest: disposal.digest,
        after: disposal.after_send,
        marker: outbox.and_then(|o| o.marker.clone()),
    }
}
