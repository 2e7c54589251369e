//! Delivered files leave their outbox (S5, S6): moved to the archive or removed, on threads that may block.
//!
//! Each outbox has a lane of its own, so that one whose disk hangs holds up no other; the copies of all sends share one.

mod again;
mod changed;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::changed::Before;
pub use self::changed::Changed;
use super::{Shared, blocking};
use crate::{
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
/// Most lanes at work; further ones wait for one to end.
const AT_WORK: usize = 16;
/// A file that could not leave yet (a writer has it, the outbox is away) is tried again after this...
const AGAIN: Duration = Duration::from_secs(5);
/// ...and, as long as none of them can, after twice the time, up to this.
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);
/// Most files of a lane remembered as held; further ones are only tried oftener.
const MOST_HELD: usize = 65_536;

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

/// The outboxes with files that are to leave, by their lanes.
type Listed = BTreeMap<PathBuf, VecDeque<OutboxId>>;

async fn listed(shared: &Shared) -> Result<Listed, DbError> {
    let (mut listed, spool) = (Listed::new(), shared.spool());
    for (outbox, root) in shared.queue.disposing().await? {
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

/// The lanes that have something to do, and those that wait.
#[derive(Default)]
struct Lanes {
    known: HashMap<PathBuf, Lane>,
    /// Rises when files were delivered.
    wakes: u64,
}

#[derive(Default)]
struct Lane {
    /// It is at work, on a [`Held`] that is away with it.
    at_work: bool,
    held: Held,
    /// What was delivered when it began last.
    woken: u64,
}

impl Lanes {
    /// Files were delivered: each lane looks for its own.
    fn wake(&mut self) {
        self.wakes += 1;
    }

    /// Those that begin now.
    fn begin(&mut self, listed: Listed, now: Instant) -> Vec<(PathBuf, Held, VecDeque<OutboxId>)> {
        self.known
            .retain(|root, lane| lane.at_work || listed.contains_key(root));
        let mut free = AT_WORK.saturating_sub(self.at_work());
        let mut begun = Vec::new();
        for (root, outboxes) in listed {
            let lane = self.known.entry(root.clone()).or_default();
            let is_due = lane.held.again_at.is_some_and(|at| at <= now);
            if free > 0 && !lane.at_work && (is_due || lane.woken != self.wakes) {
                free -= 1;
                (lane.at_work, lane.woken) = (true, self.wakes);
                let mut held = std::mem::take(&mut lane.held);
                if is_due {
                    held.drops.clear();
                }
                begun.push((root, held, outboxes));
            }
        }
        begun
    }

    fn ended(&mut self, root: PathBuf, held: Held) {
        let lane = self.known.entry(root).or_default();
        (lane.at_work, lane.held) = (false, held);
    }

    /// When the next one is due by itself; one that finds no room begins when another ends.
    fn again_at(&self) -> Option<Instant> {
        let waiting = self.known.values().filter(|lane| !lane.at_work);
        waiting
            .filter_map(|lane| lane.held.again_at)
            .min()
            .filter(|_| self.at_work() < AT_WORK)
    }

    fn at_work(&self) -> usize {
        self.known.values().filter(|lane| lane.at_work).count()
    }
}

/// Files that cannot leave yet. They are left alone until it is time for all of them.
#[derive(Default)]
struct Held {
    drops: HashSet<DropId>,
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
}

/// All of a lane that may leave and is not held; what is held after it.
async fn work(
    shared: &Arc<Shared>,
    outboxes: VecDeque<OutboxId>,
    mut held: Held,
    cancel: &CancellationToken,
) -> Held {
    match pass(shared, outboxes, &mut held, cancel).await {
        Ok(Ended { some_held: false, .. }) => Held::default(),
        Ok(ended) => {
            held.try_again(ended.some_left);
            held
        }
        Err(error) => {
            warn!(%error, "the job list failed");
            held.try_again(false);
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
    let mut all = Ended {
        some_left: false,
        some_held: false,
    };
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
        if batch.is_empty() {
            continue;
        }
        let begin = |d: &queue::Disposal| d.found.version.folder.then(|| shared.changed.begin(d));
        let before = batch.iter().map(|d| begin(d).flatten()).collect();
        let plans: Vec<_> = batch.iter().map(plan).collect();
        let cancel = cancel.clone();
        let outcomes = blocking(move || dispose::dispose_all(&plans, &|| cancel.is_cancelled())).await;
        // The runtime ends: each of them is found again.
        let outcomes = outcomes.unwrap_or_else(|_| batch.iter().map(|_| Ok(Disposed::Busy)).collect());
        let ended = ended(shared, batch, before, outcomes, held).await?;
        all.some_left |= ended.some_left;
        all.some_held |= ended.some_held;
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

struct Ended {
    some_left: bool,
    some_held: bool,
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
    let mut waiting = 0;
    for ((disposal, before), outcome) in batch.into_iter().zip(before).zip(outcomes) {
        let path = &disposal.found.path;
        if before.is_some() && !matches!(outcome, Ok(Disposed::Changed)) && shared.changed.forget(&disposal) {
            shared.disposal.notify_one();
        }
        match outcome {
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
                let mut unsynced = shared.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
                unsynced.entry(disposal.root).or_insert_with(|| {
                    error!(%error);
                    error.to_string()
                });
            }
            Err(error) => {
                warn!(%path, %error, "delivered, but it cannot leave the outbox yet");
                waiting += 1;
                held.add(disposal.drop);
            }
        }
    }
    let some_left = !noted.is_empty();
    shared.queue.disposed(noted, now_ms()).await?;
    left(shared, &gone).await;
    for disposal in changed {
        if let Some(outbox) = shared.outbox(disposal.found.outbox) {
            outbox.recheck(disposal.found.path);
        }
    }
    Ok(Ended {
        some_left,
        some_held: waiting > 0,
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

fn plan(disposal: &queue::Disposal) -> dispose::Disposal {
    dispose::Disposal {
        name: disposal.name.clone(),
        outbox: disposal.found.outbox,
        root: disposal.root.clone(),
        path: disposal.found.path.clone(),
        version: disposal.found.version,
        digest: disposal.digest,
        after: disposal.after_send,
        marker: disposal.marker.clone(),
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
    }

    /// The numbers of the lanes that begin.
    fn begun(lanes: &mut Lanes, listed: std::ops::Range<usize>, now: Instant) -> Vec<usize> {
        let of = |n: usize| (PathBuf::from(format!("{n:02}")), VecDeque::new());
        let begun = lanes.begin(listed.map(of).collect(), now).into_iter();
        begun
            .map(|(root, _, _)| root.to_str().unwrap().parse().unwrap())
            .collect()
    }

    fn ended(lanes: &mut Lanes, number: usize, held: Held) {
        lanes.ended(format!("{number:02}").into(), held);
    }

    #[tokio::test]
    async fn a_lane_that_hangs_holds_up_no_other() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        lanes.wake();
        assert_eq!(begun(&mut lanes, 0..2, now), [0, 1]);
        assert!(begun(&mut lanes, 0..2, now).is_empty(), "both are at work");
        lanes.wake();
        ended(&mut lanes, 1, Held::default());
        assert_eq!(begun(&mut lanes, 0..2, now), [1], "0 hangs");
        ended(&mut lanes, 1, Held::default());
        assert!(begun(&mut lanes, 0..2, now).is_empty(), "nothing new came");
        // Many hang: further ones wait until one ends.
        lanes.wake();
        let most: Vec<usize> = (1..AT_WORK).collect();
        assert_eq!(begun(&mut lanes, 0..AT_WORK + 2, now), most);
        ended(&mut lanes, 5, Held::default());
        assert_eq!(begun(&mut lanes, 0..AT_WORK + 2, now), [AT_WORK]);
    }

    #[tokio::test]
    async fn what_is_held_waits_for_its_own_time() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        let held = |seconds| Held {
            drops: HashSet::from([DropId(1)]),
            again_at: Some(now + Duration::from_secs(seconds)),
            ..Held::default()
        };
        lanes.wake();
        assert_eq!(begun(&mut lanes, 0..2, now), [0, 1]);
        ended(&mut lanes, 0, held(5));
        ended(&mut lanes, 1, held(9));
        assert_eq!(lanes.again_at(), held(5).again_at);
        assert!(begun(&mut lanes, 0..2, now).is_empty());
        let due = lanes.begin([(PathBuf::from("00"), VecDeque::new())].into(), now + AGAIN);
        assert!(due[0].1.drops.is_empty(), "all of it is tried");
        assert_eq!(lanes.again_at(), None, "what is held no more is forgotten");
    }
}
