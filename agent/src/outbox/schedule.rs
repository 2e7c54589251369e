//! When an outbox is scanned. Pure: the clock is passed in.
//!
//! A scan of everything begins when one is wanted or due, no other is under way, and the last one has been rested from.
//! New folders are scanned beside that.

use std::{
    collections::BTreeSet,
    mem,
    time::{Duration, Instant},
};

use dropwire_protocol::RemotePath;

/// Time between scans where native events do not tell everything.
pub(super) const POLL: Duration = Duration::from_secs(5);
/// After a scan there is none for so many times what it took, [`POLL`] at most: hints that are lost all the time
/// shall not keep the disk from everything else.
const REST: u32 = 4;

/// The scans of one outbox.
pub(super) struct Schedule {
    /// Between two scans while native events come.
    rescan: Duration,
    /// From the first scan to the second: outboxes that began together come apart.
    second_after: Duration,
    /// When the next one is due by itself.
    due: Instant,
    /// One is wanted whether it is due or not.
    wanted: bool,
    /// None before this.
    rest_until: Instant,
    /// When the one that is under way began.
    running: Option<Instant>,
    /// How many of everything have begun.
    begun: u64,
    /// New folders, to be scanned.
    folders: BTreeSet<RemotePath>,
    /// A scan of new folders is under way.
    walking: bool,
    later: Later,
}

impl Schedule {
    /// The first scan is due now. `spread` (any byte that others do not share) shifts the second one by up to half a
    /// `rescan`.
    pub(super) fn new(now: Instant, rescan: Duration, spread: u8) -> Self {
        Self {
            rescan,
            second_after: rescan / 2 + rescan / 512 * u32::from(spread),
            due: now,
            wanted: true,
            rest_until: now,
            running: None,
            begun: 0,
            folders: BTreeSet::new(),
            walking: false,
            later: Later::new(now),
        }
    }

    /// A scan of everything is wanted as soon as it may begin.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Counts the time to the next scan from now on. It is shorter where the outbox `is_polled`.
    pub(super) fn plan(&mut self, now: Instant, is_polled: bool) {
        let interval = match (is_polled, self.begun) {
            (true, _) => POLL.min(self.rescan),
            (false, 0..=1) => self.second_after,
            (false, _) => self.rescan,
        };
        self.due = now + interval;
    }

    /// Something could not be asked now, for this reason.
    pub(super) fn failed(&mut self, reason: &str) {
        self.later.reason.get_or_insert_with(|| reason.to_owned());
    }

    /// What failed since this was called last is looked for again soon, and ever more rarely while that lasts. Returns
    /// the reason if that is news. Nothing happens while a scan is under way.
    pub(super) fn plan_again(&mut self, now: Instant) -> Option<String> {
        if self.running.is_some() {
            return None;
        }
        let (wait, news) = self.later.wait(now, self.rescan)?;
        self.due = self.due.min(now + wait);
        news
    }

    /// True: a scan of everything begins.
    pub(super) fn begin(&mut self, now: Instant, is_polled: bool) -> bool {
        let is_due = self.due <= now;
        self.wanted |= is_due;
        let begins = self.wanted && self.running.is_none() && self.rest_until <= now;
        if begins {
            self.wanted = false;
            self.running = Some(now);
            self.begun += 1;
        }
        if begins || is_due {
            self.plan(now, is_polled); // one is under way, or will be soon
        }
        begins
    }

    /// The scan of everything is over.
    pub(super) fn ended(&mut self, now: Instant) {
        if let Some(began) = self.running.take() {
            self.rest_until = now + (now.saturating_duration_since(began) * REST).min(POLL);
        }
    }

    /// A folder came.
    pub(super) fn add_folder(&mut self, folder: RemotePath) {
        self.folders.insert(folder);
    }

    /// How many folders wait to be scanned.
    pub(super) fn folders(&self) -> usize {
        self.folders.len()
    }

    /// Folders to be scanned now; none while others are.
    pub(super) fn begin_folders(&mut self) -> BTreeSet<RemotePath> {
        if self.walking || self.folders.is_empty() {
            return BTreeSet::new();
        }
        self.walking = true;
        mem::take(&mut self.folders)
    }

    /// The scan of folders is over.
    pub(super) fn folders_ended(&mut self) {
        self.walking = false;
    }

    /// The number of the last scan of everything that began.
    pub(super) fn number(&self) -> u64 {
        self.begun
    }

    /// When to call [`Schedule::begin`] again.
    pub(super) fn wake_at(&self) -> Instant {
        match self.wanted && self.running.is_none() {
            true => self.due.min(self.rest_until),
            false => self.due,
        }
    }
}

/// What could not be inspected or made durable for a reason that passes by itself.
struct Later {
    /// Of one of them; None: there were none since this was seen to last.
    reason: Option<String>,
    wait: Duration,
    /// It counts as over when there is none up to then.
    until: Instant,
}

impl Later {
    fn new(now: Instant) -> Self {
        Self {
            reason: None,
            wait: POLL,
            until: now,
        }
    }

    /// How long the next scan waits for what there was since this was asked last, and whether that is news.
    fn wait(&mut self, now: Instant, most: Duration) -> Option<(Duration, Option<String>)> {
        let reason = self.reason.take()?;
        let is_new = now >= self.until;
        self.wait = match is_new {
            true => POLL.min(most),
            false => (self.wait * 2).min(most),
        };
        self.until = now + self.wait * 2 + POLL;
        Some((self.wait, is_new.then_some(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESCAN: Duration = Duration::from_secs(60);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// An outbox that was scanned twice: the last scan began at 100 s and took a second.
    fn settled(start: Instant) -> Schedule {
        let mut schedule = Schedule::new(start, RESCAN, 0);
        for at in [0, 100] {
            assert!(schedule.begin(start + seconds(at), false));
            schedule.ended(start + seconds(at + 1));
        }
        schedule
    }

    #[test]
    fn it_is_scanned_at_once_and_then_at_its_own_times() {
        let start = Instant::now();
        // Each byte of an id, whether it is polled; when the second and the third scan begin.
        for (spread, is_polled, second, third) in [
            (0, false, 30_000, 90_000),
            (128, false, 45_000, 105_000),
            (255, false, 59_883, 119_883),
            (128, true, 5_000, 10_000),
        ] {
            let mut schedule = Schedule::new(start, RESCAN, spread);
            for (number, ms) in [(1, 0), (2, second), (3, third)] {
                let at = start + Duration::from_millis(ms);
                if ms > 0 {
                    assert!(
                        !schedule.begin(at - Duration::from_millis(5), is_polled),
                        "{spread} {ms}"
                    );
                }
                assert!(schedule.begin(at, is_polled), "{spread} {ms}");
                schedule.ended(at);
                assert_eq!(schedule.number(), number);
            }
        }
    }

    #[test]
    fn a_scan_that_is_wanted_waits_for_the_one_before_and_for_a_rest() {
        let start = Instant::now();
        // How long the scan takes, and how long is rested from it.
        for (took, rest) in [(0, 0), (100, 400), (1_250, 5_000), (60_000, 5_000)] {
            let (took, rest) = (Duration::from_millis(took), Duration::from_millis(rest));
            let mut schedule = Schedule::new(start, Duration::from_secs(3600), 0);
            assert!(schedule.begin(start, false));
            schedule.want();
            assert!(!schedule.begin(start + took, false), "one is under way");
            schedule.ended(start + took);
            assert_eq!(schedule.wake_at(), start + took + rest);
            if !rest.is_zero() {
                assert!(!schedule.begin(start + took + rest / 2, false), "{took:?}");
            }
            assert!(schedule.begin(start + took + rest, false), "{took:?}");
        }
    }

    #[test]
    fn what_falls_due_while_a_scan_is_under_way_begins_after_it() {
        let start = Instant::now();
        let mut schedule = settled(start);
        assert_eq!(schedule.wake_at(), start + seconds(160));
        assert!(schedule.begin(start + seconds(160), false));
        assert!(!schedule.begin(start + seconds(220), false), "it takes long");
        assert_eq!(
            schedule.wake_at(),
            start + seconds(280),
            "nothing wakes for it meanwhile"
        );
        schedule.ended(start + seconds(230));
        assert_eq!(schedule.wake_at(), start + seconds(235));
        assert!(schedule.begin(start + seconds(235), false));
    }

    #[test]
    fn what_failed_is_looked_for_soon_and_told_once() {
        let start = Instant::now();
        let mut schedule = settled(start);
        let now = start + seconds(110);
        assert_eq!(schedule.plan_again(now), None);
        assert_eq!(schedule.wake_at(), start + seconds(160));
        schedule.failed("busy");
        schedule.failed("busy still");
        assert_eq!(schedule.plan_again(now).as_deref(), Some("busy"));
        assert_eq!(schedule.wake_at(), now + POLL);
        assert!(schedule.begin(now + POLL, false));
        schedule.failed("busy");
        assert_eq!(schedule.plan_again(now + POLL), None, "a scan is under way");
        schedule.ended(now + POLL);
        assert_eq!(schedule.plan_again(now + POLL), None, "no news");
        assert_eq!(schedule.wake_at(), now + POLL + 2 * POLL);
    }

    #[test]
    fn folders_that_come_while_others_are_scanned_are_scanned_together_after_them() {
        let folder = |name: &str| RemotePath::parse(name.as_bytes()).unwrap();
        let mut schedule = Schedule::new(Instant::now(), RESCAN, 0);
        assert!(schedule.begin_folders().is_empty());
        schedule.add_folder(folder("a"));
        assert_eq!(schedule.begin_folders(), [folder("a")].into());
        for name in ["b", "c", "b"] {
            schedule.add_folder(folder(name));
        }
        assert!(schedule.begin_folders().is_empty() && schedule.folders() == 2);
        schedule.folders_ended();
        assert_eq!(schedule.begin_folders(), [folder("b"), folder("c")].into());
    }

    #[test]
    fn what_passes_by_itself_is_told_once_and_looked_for_ever_more_rarely() {
        let start = Instant::now();
        let (mut later, most) = (Later::new(start), Duration::from_secs(30));
        let mut at = |seconds: u64, reason: Option<&str>| {
            later.reason = reason.map(str::to_owned);
            later.wait(start + Duration::from_secs(seconds), most)
        };
        let wait =
            |seconds, news: Option<&str>| Some((Duration::from_secs(seconds), news.map(str::to_owned)));
        assert_eq!(at(0, Some("short")), wait(5, Some("short")));
        assert_eq!(at(5, Some("short")), wait(10, None));
        assert_eq!(at(15, Some("short")), wait(20, None));
        assert_eq!(at(35, Some("short")), wait(30, None));
        assert_eq!(at(65, Some("short")), wait(30, None));
        assert_eq!(at(95, None), None);
        assert_eq!(at(200, Some("broken")), wait(5, Some("broken")));
    }
}
