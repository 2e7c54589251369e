//! Delivered files leave their outbox (S5, S6): moved to the archive or removed, on a thread that may block.

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{Shared, blocking};
use crate::{
    clock::now_ms,
    db::DbError,
    outbox::{
        dispose::{self, DisposeError, Disposed},
        spool,
    },
    queue::{self, DropId},
};

/// Most files in one go.
const BATCH: usize = 256;
/// A file that could not leave yet (a writer has it, the outbox is away) is tried again after this...
const AGAIN: Duration = Duration::from_secs(5);
/// ...and, as long as none of them can, after twice the time, up to this.
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);
/// Most files remembered as held; further ones are only tried oftener.
const MOST_HELD: usize = 65_536;

/// Runs until cancelled. What a crash interrupted comes first: it is still in the job list.
pub async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut held = Held::default();
    loop {
        if let Err(error) = pass(&shared, &mut held, &cancel).await {
            warn!(%error, "the job list failed");
            held.try_again(false);
        }
        let again = async {
            match held.again_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = shared.disposal.notified() => {}
            () = again => held.drops.clear(),
        }
    }
}

/// Files that cannot leave yet. They are left alone until it is time for all of them.
#[derive(Default)]
struct Held {
    drops: HashSet<DropId>,
    /// Of outboxes whose disk lost what it was told to keep; until the agent starts anew.
    roots: HashSet<PathBuf>,
    wait: Duration,
    again_at: Option<Instant>,
}

impl Held {
    fn add(&mut self, drop: DropId) {
        if self.drops.len() < MOST_HELD {
            self.drops.insert(drop);
        }
    }

    /// Later each time, unless some could leave. A time that is set already stands.
    fn try_again(&mut self, some_left: bool) {
        let now = Instant::now();
        if self.again_at.is_some_and(|at| at > now) {
            return;
        }
        self.wait = if some_left {
            AGAIN
        } else {
            (self.wait * 2).clamp(AGAIN, AGAIN_AT_MOST)
        };
        self.again_at = Some(now + self.wait);
    }

    fn rest(&mut self) {
        *self = Held {
            roots: std::mem::take(&mut self.roots),
            ..Held::default()
        };
    }
}

/// All that may leave and is not held.
async fn pass(shared: &Arc<Shared>, held: &mut Held, cancel: &CancellationToken) -> Result<(), DbError> {
    let mut after = DropId(0);
    let mut some_left = false;
    let mut some_held = false;
    while !cancel.is_cancelled() {
        let mut batch = shared.queue.to_dispose(after, BATCH).await?;
        let Some(last) = batch.last() else { break };
        after = last.drop;
        batch.retain(|d| !held.roots.contains(&d.root));
        let found = batch.len();
        batch.retain(|d| !held.drops.contains(&d.drop));
        some_held |= batch.len() < found;
        let plans: Vec<_> = batch.iter().map(|d| plan(shared, d)).collect();
        let cancel = cancel.clone();
        let outcomes = blocking(move || dispose::dispose_all(&plans, &|| cancel.is_cancelled())).await;
        // It panicked: each of them is tried again.
        let outcomes = outcomes.unwrap_or_else(|_| batch.iter().map(|_| Ok(Disposed::Busy)).collect());
        let ended = ended(shared, batch, outcomes, held).await?;
        some_left |= ended.some_left;
        some_held |= ended.some_held;
    }
    if some_held {
        held.try_again(some_left);
    } else {
        held.rest();
    }
    Ok(())
}

struct Ended {
    some_left: bool,
    some_held: bool,
}

/// What became of them goes to the job list in one commit.
async fn ended(
    shared: &Arc<Shared>,
    batch: Vec<queue::Disposal>,
    outcomes: Vec<Result<Disposed, DisposeError>>,
    held: &mut Held,
) -> Result<Ended, DbError> {
    let (mut noted, mut gone, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    let total = batch.len();
    let mut waiting = 0;
    for (disposal, outcome) in batch.into_iter().zip(outcomes) {
        let path = &disposal.found.path;
        match outcome {
            Ok(Disposed::Done | Disposed::Gone) => {
                debug!(%path, "left the outbox");
                noted.push((disposal.drop, None));
                gone.push(disposal);
            }
            // It may become what was delivered again, when an editor's swap file goes, say; a newer version that was
            // delivered and left ends it, too.
            Ok(Disposed::Changed) if disposal.found.version.folder => {
                debug!(%path, "changed since it was delivered: looked at, and tried again");
                waiting += 1;
                held.add(disposal.drop);
                changed.push(disposal);
            }
            Ok(Disposed::Changed) => {
                info!(%path, "changed since it was delivered: stays, and is looked at as a new drop");
                noted.push((disposal.drop, Some("changed since it was delivered".to_owned())));
                changed.push(disposal);
            }
            Ok(Disposed::OtherBytes) => {
                warn!(%path, "the same version by its times, but with other bytes: sent again");
                shared.queue.begin_again(disposal.drop, now_ms()).await?;
                shared.queued.notify_one();
                shared.wake_all();
            }
            Ok(Disposed::Busy) => {
                debug!(%path, "delivered, but a program has it open for writing");
                waiting += 1;
                held.add(disposal.drop);
            }
            Err(DisposeError::Stopped) => {}
            Err(error @ DisposeError::Unsynced(..)) => {
                if held.roots.insert(disposal.root) {
                    error!(%error);
                }
            }
            Err(error) => {
                warn!(%path, %error, "delivered, but it cannot leave the outbox yet");
                waiting += 1;
                held.add(disposal.drop);
            }
        }
    }
    shared.queue.disposed(noted, now_ms()).await?;
    left(shared, &gone).await;
    for disposal in changed {
        if let Some(outbox) = shared.outbox(disposal.found.outbox) {
            outbox.recheck(disposal.found.path);
        }
    }
    Ok(Ended {
        some_left: waiting < total,
        some_held: waiting > 0,
    })
}

/// The folders that held them go too: an outbox's once they rest empty, a send's copy at once.
async fn left(shared: &Shared, gone: &[queue::Disposal]) {
    let mut sends = BTreeSet::new();
    for disposal in gone {
        if let Some(outbox) = shared.outbox(disposal.found.outbox) {
            outbox.disposed(&disposal.found.path);
        } else if disposal.root.starts_with(shared.spool()) {
            sends.insert(disposal.root.clone());
        }
    }
    for root in sends {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_is_tried_again_later_each_time_until_some_leave() {
        let mut held = Held::default();
        let mut waits = Vec::new();
        for some_left in [false, false, false, false, false, true, false] {
            held.try_again(some_left);
            let set = held.again_at;
            held.try_again(true);
            assert_eq!(held.again_at, set, "a time that is set stands");
            waits.push(held.wait.as_secs());
            held.again_at = None; // it came
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 5, 10]);
        held.add(DropId(1));
        held.roots.insert("/outbox".into());
        held.rest();
        assert!(held.drops.is_empty() && held.again_at.is_none());
        assert_eq!(held.roots.len(), 1, "only a restart takes up an outbox again");
    }
}
