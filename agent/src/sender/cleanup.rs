//! Delivered files leave their outbox (S5, S6): moved to the archive or removed, on threads that may block.
//!
//! Each outbox has a lane of its own, so that one whose disk hangs holds up no other; the copies of all sends share one.

mod lanes;
mod reused_names;
pub mod stuck;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    lanes::{AGAIN, Held, LINGERING, Lanes, Listed},
    stuck::{Reason, Stuck, StuckFiles},
};
use super::{in_flight::InFlight, outboxes::Outboxes};
use crate::{
    backoff,
    blocking::wait_for,
    clock::{now_ms, reached},
    config::Current,
    db::DbError,
    error::chain,
    fs::version::OutboxId,
    leaving::{self, DisposeError, Disposed, Siblings, spool},
    poison::Unpoisoned as _,
    queue::{self, ItemId, Queue},
};

/// Most files in one go.
const BATCH: usize = 256;
/// Deliveries go first: while more files than this are on their way, a lane rests before each batch.
const MANY: usize = 64;
/// How long a lane rests at a time, and after a delivery: its syncs are not to stand in the way of the next file, and
/// files that come one by one share them.
const REST: Duration = Duration::from_millis(100);
/// Most rests in one go: a burst is over by then, and on a slow line there always are many files on their way.
const RESTS: usize = 20;

/// What others have to do with it; cheap to clone.
#[derive(Clone, Default)]
pub struct Cleanup(Arc<State>);

#[derive(Default)]
struct State {
    stuck: Stuck,
    siblings: Siblings,
    /// Outboxes whose disk lost what it was told to keep, and how that was told: nothing leaves them until the agent
    /// is started again.
    unsynced: Mutex<HashMap<PathBuf, String>>,
}

impl Cleanup {
    /// What cannot leave the outbox there.
    pub fn stuck_at(&self, root: &Path) -> Option<StuckFiles> {
        self.0.stuck.told(root)
    }

    /// Why this one cannot leave the outbox there.
    pub fn stuck(&self, root: &Path, item: ItemId) -> Option<Reason> {
        self.0.stuck.why(root, item)
    }

    /// Why nothing leaves the outbox there any more.
    pub fn unsynced(&self, root: &Path) -> Option<String> {
        self.lock_unsynced().get(root).cloned()
    }

    fn lock_unsynced(&self) -> MutexGuard<'_, HashMap<PathBuf, String>> {
        self.0.unsynced.lock().unpoisoned()
    }
}

/// The task, and what it works with; cheap to clone.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) cleanup: Cleanup,
    pub(super) config: Current,
    pub(super) queue: Queue,
    pub(super) outboxes: Outboxes,
    pub(super) in_flight: InFlight,
    /// Where `send` keeps its copies.
    pub(super) spool: PathBuf,
}

/// Runs until cancelled. What a crash interrupted comes first: it is still in the job list.
pub(super) async fn run(task: Task, cancel: CancellationToken) {
    let mut lanes = Lanes::default();
    let mut at_work = JoinSet::new();
    lanes.wake();
    loop {
        let listed = listed(&task).await;
        if let Err(error) = &listed {
            warn!(error = %chain(error), "the job list failed");
        }
        let again_at = match listed {
            Ok(listed) => {
                let rest = |root: &Path| task.config.get().linger(root).max(REST);
                for (lane, held, outboxes) in lanes.begin(listed, Instant::now(), rest) {
                    let (task, cancel) = (task.clone(), cancel.clone());
                    at_work.spawn_blocking(move || (lane, work(&task, outboxes, held, &cancel)));
                }
                lanes.again_at()
            }
            Err(_) => Some(Instant::now() + AGAIN),
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            () = task.queue.leaving() => lanes.wake(),
            Some(Ok((lane, held))) = at_work.join_next() => lanes.ended(lane, held),
            () = reached(again_at) => {}
        }
    }
    while at_work.join_next().await.is_some() {} // they heed `cancel`
}

async fn listed(task: &Task) -> Result<Listed, DbError> {
    let mut listed = Listed::new();
    let disposing = task.queue.disposing().await?;
    let state = &task.cleanup.0;
    state
        .stuck
        .keep(|root| disposing.iter().any(|(_, disposing)| disposing == root));
    for (outbox, root) in disposing {
        if task.cleanup.unsynced(&root).is_none() {
            let lane = if root.starts_with(&task.spool) {
                task.spool.clone()
            } else {
                root
            };
            listed.entry(lane).or_default().push_back(outbox);
        }
    }
    Ok(listed)
}

/// All of a lane that may leave and is not held; what is held after it. On a thread that may block, from the first look
/// to the last commit.
fn work(task: &Task, outboxes: VecDeque<OutboxId>, mut held: Held, cancel: &CancellationToken) -> Held {
    let begun = Instant::now();
    let passed = pass(task, outboxes, begun, &mut held, cancel);
    held.tried(begun);
    match passed {
        Ok(ended) => {
            match ended.some_held {
                true => held.try_again(ended.some_left),
                false => held.no_files(),
            }
            held.lingers_until = ended.lingering.map(|wait| Instant::now() + wait.max(LINGERING));
            held
        }
        Err(error) => {
            warn!(error = %chain(&error), "the job list failed");
            held.try_again(false);
            held.lingers_until = None; // it is over already: the lane would begin again at once
            held
        }
    }
}

fn pass(
    task: &Task,
    outboxes: VecDeque<OutboxId>,
    begun: Instant,
    held: &mut Held,
    cancel: &CancellationToken,
) -> Result<Ended, DbError> {
    let mut all = Ended::default();
    let mut pages = Pages {
        outboxes,
        after: ItemId(0),
    };
    let mut rests = RESTS;
    while !cancel.is_cancelled() {
        give_way(task, &mut rests, cancel);
        let mut batch = pages.next(task)?;
        if batch.is_empty() {
            break;
        }
        batch.retain(|d| task.cleanup.unsynced(&d.root).is_none());
        let found = batch.len();
        batch.retain(|d| !held.items.contains(&d.item));
        all.some_held |= batch.len() < found;
        batch.retain(|d| !held.is_changed(d.item, begun));
        let waiting = batch.len();
        batch.retain(|d| match lingers(task, d, now_ms()) {
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
        let plans: Vec<_> = batch.iter().map(|d| plan(task, d)).collect();
        let since = Instant::now();
        let outcomes = leaving::dispose_all(&plans, &task.cleanup.0.siblings, &|| cancel.is_cancelled());
        let ended = ended(task, batch, outcomes, since.elapsed(), held)?;
        all.some_left |= ended.some_left;
        all.some_held |= ended.some_held;
        if let Some(wait) = ended.lingering {
            all.linger(wait);
        }
    }
    Ok(all)
}

/// Deliveries go first.
fn give_way(task: &Task, rests: &mut usize, cancel: &CancellationToken) {
    let mut rested = false;
    while task.in_flight.count() > MANY && (*rests > 0 || !rested) && !cancel.is_cancelled() {
        thread::sleep(REST);
        *rests = rests.saturating_sub(1);
        rested = true;
    }
}

/// What is to leave some outboxes, one after the other.
struct Pages {
    outboxes: VecDeque<OutboxId>,
    after: ItemId,
}

impl Pages {
    /// At most [`BATCH`]; empty: that was all.
    fn next(&mut self, task: &Task) -> Result<Vec<queue::DueDisposal>, DbError> {
        let mut batch = Vec::new();
        while let Some(outbox) = self.outboxes.front().filter(|_| batch.len() < BATCH) {
            let room = BATCH - batch.len();
            let page = task.queue.to_dispose(*outbox, self.after, room)?;
            match page.last() {
                Some(last) if page.len() == room => self.after = last.item,
                _ => {
                    self.outboxes.pop_front();
                    self.after = ItemId(0);
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

/// How much longer a delivered file is left in place; None: it may leave now, also where the clock was set back.
fn lingers(task: &Task, disposal: &queue::DueDisposal, now_ms: i64) -> Option<Duration> {
    let since = u64::try_from(now_ms - disposal.delivered_ms).ok()?;
    let linger = task.config.get().linger(&disposal.root);
    let left = linger.checked_sub(Duration::from_millis(since))?;
    (!left.is_zero()).then_some(left)
}

/// What became of them goes to the job list in one commit; `took`: how long all of it took.
fn ended(
    task: &Task,
    batch: Vec<queue::DueDisposal>,
    outcomes: Vec<Result<Disposed, DisposeError>>,
    took: Duration,
    held: &mut Held,
) -> Result<Ended, DbError> {
    let (mut noted, mut gone, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut waiting, mut lingering) = (0, None);
    let Task {
        config,
        queue,
        outboxes,
        ..
    } = task;
    let state = &task.cleanup.0;
    for (disposal, outcome) in batch.into_iter().zip(outcomes) {
        let path = &disposal.found.path;
        if outcome.is_ok() {
            state.stuck.remove(&disposal);
        }
        match outcome {
            Ok(Disposed::Lingers) => lingering = Some(config.get().linger(&disposal.root)),
            Ok(Disposed::Done | Disposed::Gone) => {
                debug!(%path, "left the outbox");
                noted.push((disposal.item, None));
                gone.push(disposal);
            }
            Ok(Disposed::Changed) if disposal.found.version.folder => {
                debug!(%path, "changed since it was delivered: looked at, and tried again later");
                held.add_changed(disposal.item, took);
                changed.push(disposal);
            }
            Ok(Disposed::Changed) => {
                info!(%path, "changed since it was delivered: stays, and is looked at as a new drop");
                let why = "changed since it was delivered".to_owned();
                noted.push((disposal.item, Some((disposal.found.version, why))));
                changed.push(disposal);
            }
            Ok(Disposed::OtherBytes) => {
                warn!(%path, "the same version by its times, but with other bytes: sent again");
                let retry = config.get().retry;
                let seed = now_ms().unsigned_abs();
                let wait = move |attempts| backoff::delay(retry.first, retry.max, attempts, seed);
                wait_for(queue.begin_again(disposal.item, wait, now_ms()))?;
            }
            Ok(Disposed::Busy) => {
                debug!(%path, "delivered, but a program has it open for writing");
                waiting += 1;
                held.add(disposal.item);
            }
            Err(DisposeError::Stopped) => {}
            Err(error @ DisposeError::Unsynced(..)) => {
                let mut unsynced = task.cleanup.lock_unsynced();
                unsynced.entry(disposal.root).or_insert_with(|| {
                    error!(%error);
                    error.to_string()
                });
            }
            Err(error) => {
                debug!(%path, %error, "delivered, but it cannot leave the outbox yet");
                state.stuck.add(&disposal, &error, now_ms());
                waiting += 1;
                held.add(disposal.item);
            }
        }
    }
    let some_left = !noted.is_empty();
    let late = wait_for(queue.disposed(noted, now_ms()))?;
    late.into_iter().for_each(|peer| queue.wake(peer));
    left(task, &gone);
    changed
        .iter()
        .for_each(|disposal| outboxes.recheck(&disposal.found));
    Ok(Ended {
        some_left,
        some_held: waiting > 0,
        lingering,
    })
}

/// The folders that held them go too: an outbox's once they rest empty, a send's copy at once.
fn left(task: &Task, gone: &[queue::DueDisposal]) {
    let (mut sends, mut folders) = (BTreeSet::new(), BTreeMap::new());
    for disposal in gone {
        if let Some(outbox) = task.outboxes.with_id(disposal.found.outbox) {
            // One word for all files of a folder: too many, and the outbox would scan instead.
            if let Some(folder) = disposal.found.path.parent() {
                folders.insert((disposal.root.clone(), folder), outbox);
            }
        } else if disposal.root.starts_with(&task.spool) {
            sends.insert(disposal.root.clone());
        }
    }
    for ((_, folder), outbox) in folders {
        outbox.emptied(folder);
    }
    for root in sends {
        if let Err(error) = spool::discard_if_done(&root) {
            warn!(%error, "a sent copy's folder stays");
        }
    }
    let mistakable: Vec<_> = gone
        .iter()
        .filter(|d| reused_names::is_mistakable(d))
        .cloned()
        .collect();
    for there in reused_names::is_there(mistakable) {
        task.outboxes.recheck(&there.found);
    }
}

fn plan(task: &Task, disposal: &queue::DueDisposal) -> leaving::Disposal {
    leaving::Disposal {
        name: disposal.name.clone(),
        outbox: disposal.found.outbox,
        root: disposal.root.clone(),
        path: disposal.found.path.clone(),
        version: disposal.found.version,
        digest: disposal.digest,
        after: disposal.after_send,
        linger: task.config.get().linger(&disposal.root),
        marker: disposal.marker.clone(),
    }
}
