//! Delivered files leave their outbox (S5, S6): moved to the archive or removed, on threads that may block.
//!
//! Each outbox has a lane of its own, so that one whose disk hangs holds up no other; the copies of all sends share one.

mod again;
mod changed;
mod lanes;
pub(super) mod stuck;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    changed::Before,
    lanes::{AGAIN, Held, Lanes, Listed},
};
pub use self::{changed::Changed, stuck::Stuck};
use super::{Shared, blocking};
use crate::{
    backoff,
    clock::now_ms,
    db::DbError,
    outbox::{
        dispose::{self, DisposeError, Disposed},
        spool,
    },
    queue::{self, DropId},
    version::OutboxId,
};

/// Most files in one go.
const BATCH: usize = 256;
/// Deliveries go first: while more files than this are on their way, a lane rests before each batch...
const MANY: usize = 64;
/// ...for so long...
const REST: Duration = Duration::from_millis(100);
/// ...and then again, so often in one go: a burst is over by then, and on a slow line there always are many.
const RESTS: usize = 20;
/// Files that are left in place for a while are looked at again as soon as the first is due, but no sooner than this: a
/// steady stream of them shares its looks.
const LINGERING: Duration = Duration::from_millis(250);

/// Runs until cancelled. What a crash interrupted comes first: it is still in the job list.
pub async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut lanes = Lanes::default();
    let mut at_work = JoinSet::new();
    lanes.wake();
    loop {
        let listed = listed(&shared).await;
        if let Err(error) = &listed {
            warn!(%error, "the job list failed");
        }
        let again_at = match listed {
            Ok(listed) => {
                for (lane, held, outboxes) in lanes.begin(listed, Instant::now()) {
                    let (shared, cancel) = (shared.clone(), cancel.clone());
                    at_work.spawn(async move { (lane, work(&shared, outboxes, held, &cancel).await) });
                }
                lanes.again_at()
            }
            Err(_) => Some(Instant::now() + AGAIN),
        };
        let again = async {
            match again_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            () = shared.disposal.notified() => lanes.wake(),
            Some(Ok((lane, held))) = at_work.join_next() => lanes.ended(lane, held),
            () = again => {}
        }
    }
    while at_work.join_next().await.is_some() {} // they heed `cancel`
}

async fn listed(shared: &Shared) -> Result<Listed, DbError> {
    let (mut listed, spool) = (Listed::new(), shared.spool());
    let disposing = shared.queue.disposing().await?;
    shared
        .stuck
        .keep(|root| disposing.iter().any(|(_, disposing)| disposing == root));
    for (outbox, root) in disposing {
        if shared.unsynced(&root).is_none() {
            let lane = if root.starts_with(&spool) {
                spool.clone()
            } else {
                root
            };
            listed.entry(lane).or_default().push_back(outbox);
        }
    }
    Ok(listed)
}

/// All of a lane that may leave and is not held; what is held after it.
async fn work(
    shared: &Arc<Shared>,
    outboxes: VecDeque<OutboxId>,
    mut held: Held,
    cancel: &CancellationToken,
) -> Held {
    match pass(shared, outboxes, &mut held, cancel).await {
        Ok(ended) => {
            match ended.some_held {
                true => held.try_again(ended.some_left),
                false => held = Held::default(),
            }
            held.lingers_until = ended.lingering.map(|wait| Instant::now() + wait.max(LINGERING));
            held
        }
        Err(error) => {
            warn!(%error, "the job list failed");
            held.try_again(false);
            held.lingers_until = None; // it is over already: the lane would begin again at once
            held
        }
    }
}

async fn pass(
    shared: &Arc<Shared>,
    outboxes: VecDeque<OutboxId>,
    held: &mut Held,
    cancel: &CancellationToken,
) -> Result<Ended, DbError> {
    let mut all = Ended::default();
    let mut pages = Pages {
        outboxes,
        after: DropId(0),
    };
    let mut rests = RESTS;
    while !cancel.is_cancelled() {
        give_way(shared, &mut rests, cancel).await;
        let mut batch = pages.next(shared).await?;
        if batch.is_empty() {
            break;
        }
        batch.retain(|d| shared.unsynced(&d.root).is_none());
        let found = batch.len();
        batch.retain(|d| !held.drops.contains(&d.drop));
        all.some_held |= batch.len() < found;
        batch.retain(|d| !shared.changed.holds(d));
        let waiting = batch.len();
        batch.retain(|d| match lingers(shared, d, now_ms()) {
            Some(wait) => {
                all.linger(wait);
                false
            }
            None => true,
        });
        if batch.is_empty() {
            if waiting > 0 {
                break; // further ones were delivered later
            }
            continue;
        }
        let begin = |d: &queue::Disposal| d.found.version.folder.then(|| shared.changed.begin(d));
        let before = batch.iter().map(|d| begin(d).flatten()).collect();
        let plans: Vec<_> = batch.iter().map(|d| plan(shared, d)).collect();
        let (cancel, agent) = (cancel.clone(), shared.clone());
        let dispose = move || dispose::dispose_all(&plans, &agent.siblings, &|| cancel.is_cancelled());
        let outcomes = blocking(dispose).await;
        // The runtime ends: each of them is found again.
        let outcomes = outcomes.unwrap_or_else(|_| batch.iter().map(|_| Ok(Disposed::Busy)).collect());
        let ended = ended(shared, batch, before, outcomes, held).await?;
        all.some_left |= ended.some_left;
        all.some_held |= ended.some_held;
        if let Some(wait) = ended.lingering {
            all.linger(wait);
        }
    }
    Ok(all)
}

/// Deliveries go first.
async fn give_way(shared: &Shared, rests: &mut usize, cancel: &CancellationToken) {
    let mut rested = false;
    while shared.live.count() > MANY && (*rests > 0 || !rested) && !cancel.is_cancelled() {
        cancel.run_until_cancelled(tokio::time::sleep(REST)).await;
        *rests = rests.saturating_sub(1);
        rested = true;
    }
}

/// What is to leave some outboxes, one after the other.
struct Pages {
    outboxes: VecDeque<OutboxId>,
    after: DropId,
}

impl Pages {
    /// At most [`BATCH`]; empty: that was all.
    async fn next(&mut self, shared: &Shared) -> Result<Vec<queue::Disposal>, DbError> {
        let mut batch = Vec::new();
        while let Some(outbox) = self.outboxes.front().filter(|_| batch.len() < BATCH) {
            let room = BATCH - batch.len();
            let page = shared.queue.to_dispose(*outbox, self.after, room).await?;
            match page.last() {
                Some(last) if page.len() == room => self.after = last.drop,
                _ => {
                    self.outboxes.pop_front();
                    self.after = DropId(0);
                }
            }
            batch.extend(page);
        }
        Ok(batch)
    }
}

#[derive(Default)]
struct Ended {
    some_left: bool,
    some_held: bool,
    /// Some are left in place, the first for so long.
    lingering: Option<Duration>,
}

impl Ended {
    fn linger(&mut self, wait: Duration) {
        self.lingering = Some(self.lingering.map_or(wait, |least| least.min(wait)));
    }
}

/// How much longer it is left in place since its delivery. By a clock that was set back it is not.
fn lingers(shared: &Shared, disposal: &queue::Disposal, now_ms: i64) -> Option<Duration> {
    let since = u64::try_from(now_ms - disposal.delivered_ms).ok()?;
    let left = shared
        .linger(&disposal.root)
        .checked_sub(Duration::from_millis(since))?;
    (!left.is_zero()).then_some(left)
}

/// What became of them goes to the job list in one commit.
async fn ended(
    shared: &Arc<Shared>,
    batch: Vec<queue::Disposal>,
    before: Vec<Option<Before>>,
    outcomes: Vec<Result<Disposed, DisposeError>>,
    held: &mut Held,
) -> Result<Ended, DbError> {
    let (mut noted, mut gone, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut waiting, mut lingering) = (0, None);
    for ((disposal, before), outcome) in batch.into_iter().zip(before).zip(outcomes) {
        let path = &disposal.found.path;
        if before.is_some() && !matches!(outcome, Ok(Disposed::Changed)) && shared.changed.forget(&disposal) {
            shared.disposal.notify_one();
        }
        if outcome.is_ok() {
            shared.stuck.remove(&disposal);
        }
        match outcome {
            Ok(Disposed::Lingers) => lingering = Some(shared.linger(&disposal.root)),
            Ok(Disposed::Done | Disposed::Gone) => {
                debug!(%path, "left the outbox");
                noted.push((disposal.drop, None));
                gone.push(disposal);
            }
            // It may become what was delivered again, when an editor's swap file goes, say; a newer version that was
            // delivered and left ends it, too.
            Ok(Disposed::Changed) if disposal.found.version.folder => {
                debug!(%path, "changed since it was delivered: looked at, and tried again when it is another");
                let is_tended = shared.outbox(disposal.found.outbox).is_some();
                if !before.is_some_and(|before| is_tended && shared.changed.hold(&disposal, before)) {
                    waiting += 1;
                    held.add(disposal.drop);
                }
                changed.push(disposal);
            }
            Ok(Disposed::Changed) => {
                info!(%path, "changed since it was delivered: stays, and is looked at as a new drop");
                let why = "changed since it was delivered".to_owned();
                noted.push((disposal.drop, Some((disposal.found.version, why))));
                changed.push(disposal);
            }
            Ok(Disposed::OtherBytes) => {
                warn!(%path, "the same version by its times, but with other bytes: sent again");
                let retry = shared.config().retry;
                let seed = now_ms().unsigned_abs();
                let wait = move |attempts| backoff::delay(retry.first, retry.max, attempts, seed);
                shared.queue.begin_again(disposal.drop, wait, now_ms()).await?;
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
                let mut unsynced = shared.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
                unsynced.entry(disposal.root).or_insert_with(|| {
                    error!(%error);
                    error.to_string()
                });
            }
            Err(error) => {
                debug!(%path, %error, "delivered, but it cannot leave the outbox yet");
                shared.stuck.add(&disposal, &error, now_ms());
                waiting += 1;
                held.add(disposal.drop);
            }
        }
    }
    let some_left = !noted.is_empty();
    let late = shared.queue.disposed(noted, now_ms()).await?;
    late.into_iter().for_each(|peer| shared.wake(peer).notify_one());
    left(shared, &gone).await;
    for disposal in changed {
        if let Some(outbox) = shared.outbox(disposal.found.outbox) {
            outbox.recheck(disposal.found.path);
        }
    }
    Ok(Ended {
        some_left,
        some_held: waiting > 0,
        lingering,
    })
}

/// The folders that held them go too: an outbox's once they rest empty, a send's copy at once.
async fn left(shared: &Shared, gone: &[queue::Disposal]) {
    let (mut sends, mut folders) = (BTreeSet::new(), BTreeMap::new());
    for disposal in gone {
        if let Some(outbox) = shared.outbox(disposal.found.outbox) {
            // One word for all files of a folder: too many, and the outbox would scan instead.
            if let Some(folder) = disposal.found.path.parent() {
                folders.insert((disposal.root.clone(), folder), outbox);
            }
        } else if disposal.root.starts_with(shared.spool()) {
            sends.insert(disposal.root.clone());
        }
    }
    for ((_, folder), outbox) in folders {
        outbox.emptied(folder);
    }
    for root in sends {
        if let Ok(Err(error)) = blocking(move || spool::discard_if_done(&root)).await {
            warn!(%error, "a sent copy's folder stays");
        }
    }
    let mistakable: Vec<_> = gone.iter().filter(|d| again::is_mistakable(d)).cloned().collect();
    if mistakable.is_empty() {
        return;
    }
    for there in blocking(move || again::is_there(mistakable))
        .await
        .unwrap_or_default()
    {
        if let Some(outbox) = shared.outbox(there.found.outbox) {
            outbox.recheck(there.found.path);
        }
    }
}

fn plan(shared: &Shared, disposal: &queue::Disposal) -> dispose::Disposal {
    dispose::Disposal {
        name: disposal.name.clone(),
        outbox: disposal.found.outbox,
        root: disposal.root.clone(),
        path: disposal.found.path.clone(),
        version: disposal.found.version,
        digest: disposal.digest,
        after: disposal.after_send,
        linger: shared.linger(&disposal.root),
        marker: disposal.marker.clone(),
    }
}
