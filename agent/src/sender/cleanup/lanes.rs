//! When each outbox's delivered files leave: lanes that are at work, and those that wait for a time or for new files.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use crate::{fs::version::OutboxId, queue::ItemId};

/// Most lanes at work; further ones wait for one to end.
const AT_WORK: usize = 16;
/// A file that could not leave yet (a writer has it, the outbox is away) is tried again after this...
pub(super) const AGAIN: Duration = Duration::from_secs(5);
/// ...and, as long as none of them can, after twice the time, up to this.
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);
/// Most files of a lane remembered as held; further ones are only tried oftener.
const MOST_HELD: usize = 65_536;
/// A delivered folder that changed since is looked through again for a twentieth of the time at most.
const REST_OF_A_LOOK: u32 = 20;

/// Files that are left in place for a while are looked at as soon as the first is due, but no sooner than this: a
/// steady stream of them shares its looks.
pub(super) const LINGERING: Duration = Duration::from_millis(250);

/// The outboxes with files that are to leave, by their lanes.
pub(super) type Listed = BTreeMap<PathBuf, VecDeque<OutboxId>>;

/// The lanes that have something to do, and those that wait.
#[derive(Default)]
pub(super) struct Lanes {
    known: HashMap<PathBuf, Lane>,
    /// Rises when files were delivered.
    wakes: u64,
    /// The lanes that had something at the start have begun.
    started: bool,
}

#[derive(Default)]
pub(super) struct Lane {
    /// It is at work, on a [`Held`] that is away with it.
    at_work: bool,
    held: Held,
    /// What was delivered when it began last.
    woken: u64,
}

impl Lanes {
    /// Files were delivered: each lane looks for its own.
    pub(super) fn wake(&mut self) {
        self.wakes += 1;
    }

    /// Those that begin now. What was delivered just now is not looked at before the `rest` of its outbox is over.
    pub(super) fn begin(
        &mut self,
        listed: Listed,
        now: Instant,
        rest: impl Fn(&Path) -> Duration,
    ) -> Vec<(PathBuf, Held, VecDeque<OutboxId>)> {
        self.known
            .retain(|root, lane| lane.at_work || listed.contains_key(root));
        let mut free = AT_WORK.saturating_sub(self.at_work());
        let mut begun = Vec::new();
        for (root, outboxes) in listed {
            let lane = self.known.entry(root.clone()).or_default();
            let is_due = lane.held.again_at.is_some_and(|at| at <= now);
            let is_again = lane.held.changed.values().any(|changed| changed.again_at <= now);
            // Nothing that comes can leave before what is there already.
            let is_new = match lane.held.lingers_until {
                Some(at) => at <= now,
                None if self.started && lane.woken != self.wakes && !lane.at_work => {
                    let rest = rest(&root);
                    if !rest.is_zero() {
                        lane.woken = self.wakes;
                        lane.held.lingers_until = Some(now + rest);
                    }
                    rest.is_zero()
                }
                None => lane.woken != self.wakes,
            };
            if free > 0 && !lane.at_work && (is_due || is_again || is_new) {
                free -= 1;
                (lane.at_work, lane.woken) = (true, self.wakes);
                let mut held = std::mem::take(&mut lane.held);
                if is_due {
                    held.items.clear();
                }
                begun.push((root, held, outboxes));
            }
        }
        self.started = true;
        begun
    }

    pub(super) fn ended(&mut self, root: PathBuf, held: Held) {
        let lane = self.known.entry(root).or_default();
        (lane.at_work, lane.held) = (false, held);
    }

    /// When the next one is due by itself; one that finds no room begins when another ends.
    pub(super) fn again_at(&self) -> Option<Instant> {
        let waiting = self.known.values().filter(|lane| !lane.at_work);
        waiting
            .filter_map(|lane| lane.held.next())
            .min()
            .filter(|_| self.at_work() < AT_WORK)
    }

    fn at_work(&self) -> usize {
        self.known.values().filter(|lane| lane.at_work).count()
    }
}

/// What cannot leave yet. Files are left alone until it is time for all of them, a folder that changed until its own
/// time.
#[derive(Default)]
pub(super) struct Held {
    pub(super) items: HashSet<ItemId>,
    wait: Duration,
    again_at: Option<Instant>,
    changed: HashMap<ItemId, Changed>,
    /// When the first of those may leave that are left in place for a while.
    pub(super) lingers_until: Option<Instant>,
}

/// A delivered folder that changed since. It may become what was delivered again, when an editor's swap file goes, say;
/// and it is gone once a newer version of it was delivered and left.
struct Changed {
    wait: Duration,
    again_at: Instant,
}

impl Held {
    pub(super) fn add(&mut self, item: ItemId) {
        if self.items.len() < MOST_HELD {
            self.items.insert(item);
        }
    }

    /// A folder had changed; looking it through took so long. Later each time, whatever else could leave.
    pub(super) fn add_changed(&mut self, item: ItemId, took: Duration) {
        if self.changed.len() >= MOST_HELD && !self.changed.contains_key(&item) {
            return self.add(item);
        }
        let before = self
            .changed
            .get(&item)
            .map_or(Duration::ZERO, |changed| changed.wait);
        let wait = (before * 2)
            .clamp(AGAIN, AGAIN_AT_MOST)
            .max(took * REST_OF_A_LOOK);
        let again_at = Instant::now() + wait;
        self.changed.insert(item, Changed { wait, again_at });
    }

    /// Is it a folder that changed, whose time has not come?
    pub(super) fn is_changed(&self, item: ItemId, now: Instant) -> bool {
        self.changed
            .get(&item)
            .is_some_and(|changed| changed.again_at > now)
    }

    /// All that is to leave was tried at `begun`: what was due then and did not change once more is not held.
    pub(super) fn tried(&mut self, begun: Instant) {
        self.changed.retain(|_, changed| changed.again_at > begun);
    }

    /// No file is held any more.
    pub(super) fn no_files(&mut self) {
        *self = Self {
            changed: std::mem::take(&mut self.changed),
            ..Self::default()
        };
    }

    /// When there is something to try.
    fn next(&self) -> Option<Instant> {
        let changed = self.changed.values().map(|changed| changed.again_at).min();
        [self.again_at, self.lingers_until, changed]
            .into_iter()
            .flatten()
            .min()
    }

    /// Later each time, unless some could leave. A time that is set already stands.
    pub(super) fn try_again(&mut self, some_left: bool) {
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
        let begun = lanes
            .begin(listed.map(of).collect(), now, |_| Duration::ZERO)
            .into_iter();
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
            items: HashSet::from([ItemId(1)]),
            again_at: Some(now + Duration::from_secs(seconds)),
            ..Held::default()
        };
        lanes.wake();
        assert_eq!(begun(&mut lanes, 0..2, now), [0, 1]);
        ended(&mut lanes, 0, held(5));
        ended(&mut lanes, 1, held(9));
        assert_eq!(lanes.again_at(), held(5).again_at);
        assert!(begun(&mut lanes, 0..2, now).is_empty());
        let due = lanes.begin(
            [(PathBuf::from("00"), VecDeque::new())].into(),
            now + AGAIN,
            |_| Duration::ZERO,
        );
        assert!(due[0].1.items.is_empty(), "all of it is tried");
        assert_eq!(lanes.again_at(), None, "what is held no more is forgotten");
    }

    #[tokio::test]
    async fn a_changed_folder_is_tried_later_each_time_whatever_leaves() {
        let (mut held, took) = (Held::default(), Duration::from_secs(1));
        let (one, two) = (ItemId(1), ItemId(2));
        let mut waits = Vec::new();
        for _ in 0..6 {
            held.add_changed(one, Duration::ZERO);
            held.try_again(true);
            held.no_files();
            waits.push(held.changed[&one].wait.as_secs());
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        held.add_changed(two, took * 10);
        assert_eq!(held.changed[&two].wait, took * 200, "long looks are rare");
        assert!(held.items.is_empty(), "it holds up no file");

        let due = held.changed[&one].again_at;
        assert!(held.is_changed(one, due - took) && !held.is_changed(one, due));
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        ended(&mut lanes, 0, held);
        lanes.wake();
        assert_eq!(lanes.again_at(), Some(due));
        for (at, expected) in [(now, vec![0]), (due - took, vec![]), (due, vec![0])] {
            let of = |n: usize| (PathBuf::from(format!("{n:02}")), VecDeque::new());
            let mut begun = lanes.begin([of(0)].into(), at, |_| Duration::ZERO);
            assert_eq!(begun.len(), expected.len());
            if let Some((_, mut held, _)) = begun.pop() {
                held.tried(at);
                assert_eq!(held.changed.len(), 2 - usize::from(at == due));
                ended(&mut lanes, 0, held);
            }
        }
        let mut held = Held::default();
        for item in 0..MOST_HELD as i64 + 1 {
            held.add_changed(ItemId(item), took);
        }
        assert_eq!((held.changed.len(), held.items.len()), (MOST_HELD, 1));
    }

    #[tokio::test]
    async fn what_lingers_is_not_looked_at_before_its_time_but_at_the_start() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        let listed = || Listed::from([(PathBuf::from("00"), VecDeque::new())]);
        let begin = |lanes: &mut Lanes, at| lanes.begin(listed(), at, |_| AGAIN).len();
        lanes.wake();
        assert_eq!(begin(&mut lanes, now), 1, "a run before may have left something");
        ended(&mut lanes, 0, Held::default());
        lanes.wake();
        assert_eq!(begin(&mut lanes, now), 0);
        assert_eq!(lanes.again_at(), Some(now + AGAIN));
        lanes.wake();
        assert_eq!(
            begin(&mut lanes, now + LINGERING),
            0,
            "the first one's time stands"
        );
        assert_eq!(begin(&mut lanes, now + AGAIN), 1);
    }

    #[tokio::test]
    async fn what_is_left_in_place_for_a_while_is_not_looked_at_with_each_delivery() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        lanes.wake();
        assert_eq!(begun(&mut lanes, 0..1, now), [0]);
        let lingers = Held {
            lingers_until: Some(now + AGAIN),
            ..Held::default()
        };
        let until = lingers.lingers_until;
        ended(&mut lanes, 0, lingers);
        lanes.wake();
        assert!(begun(&mut lanes, 0..1, now).is_empty());
        assert_eq!(lanes.again_at(), until);
        assert_eq!(begun(&mut lanes, 0..1, now + AGAIN), [0]);
    }
}
