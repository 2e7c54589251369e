//! Is the writer done? When to inspect a file again, and when what was seen lets it go. Pure: the clock is passed in.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use dropwire_protocol::RemotePath;

use crate::fs::version::Version;

/// What an inspection of a file found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Observation {
    /// Nobody is known to write; it must have been seen in this version (ctime included) for `rest` (zero: at once).
    Still {
        version: Version,
        rest: Duration,
        why: &'static str,
    },
    /// Somebody has it open for writing.
    Writer,
    /// Something keeps it back that may take long: asked ever more rarely.
    Held { why: &'static str },
    /// Nothing to send there (any more).
    Nothing,
}

/// What follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Send it; it is forgotten here.
    Ready,
    /// It will be due again.
    Wait,
    /// It will be due again, and has waited for `max_wait`; said once.
    Unstable,
    /// Forgotten.
    Drop,
}

/// How soon a hint wants an inspection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Urgency {
    /// Its writer closed it, it was moved in, a scan found it.
    Now,
    /// Something about it changed; if it is being waited for, that goes on as planned.
    Calm,
}

/// The files of one outbox that are not ready yet.
#[derive(Debug)]
pub(super) struct Stability {
    max_wait: Duration,
    longest: Duration,
    files: HashMap<RemotePath, Waiting>,
    order: BTreeSet<(Instant, RemotePath)>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    look_at: Instant,
    interval: Duration,
    seen: Option<(Version, Instant)>,
    why: &'static str,
    reported: bool,
}

impl Stability {
    /// Most files that are waited for; further ones are found again by a scan.
    pub(super) const MOST: usize = 16 * 1024;
    /// Time between inspections of what is held back.
    const RAREST: Duration = Duration::from_secs(60);
    /// Time before the second inspection; then doubled.
    const SHORTEST: Duration = Duration::from_millis(1);

    pub(super) fn new(quiet: Duration, max_wait: Duration) -> Self {
        Self {
            max_wait,
            longest: quiet.max(Duration::from_secs(1)),
            files: HashMap::new(),
            order: BTreeSet::new(),
        }
    }

    /// Notes that `path` is to be inspected. False: there are too many already.
    pub(super) fn notice(&mut self, path: RemotePath, urgency: Urgency, now: Instant) -> bool {
        if let Some(waiting) = self.files.get_mut(&path) {
            if urgency == Urgency::Now {
                self.order.remove(&(waiting.look_at, path.clone()));
                waiting.look_at = now;
                waiting.interval = Self::SHORTEST;
                self.order.insert((now, path));
            }
            return true;
        }
        if self.files.len() >= Self::MOST {
            return false;
        }
        self.order.insert((now, path.clone()));
        let waiting = Waiting {
            since: now,
            look_at: now,
            interval: Self::SHORTEST,
            seen: None,
            why: "it was just seen",
            reported: false,
        };
        self.files.insert(path, waiting);
        true
    }

    /// Up to `most` files to inspect now; each must be answered by [`Stability::inspected`].
    pub(super) fn due(&self, now: Instant, most: usize) -> Vec<RemotePath> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now);
        due.take(most).map(|(_, path)| path.clone()).collect()
    }

    /// Is it waited for? `path` as on the wire.
    pub(super) fn waits_for(&self, path: &[u8]) -> bool {
        RemotePath::parse(path).is_ok_and(|path| self.files.contains_key(&path))
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes in what an inspection found.
    pub(super) fn inspected(&mut self, path: &RemotePath, observation: Observation, now: Instant) -> Verdict {
        let Some((path, mut waiting)) = self.files.remove_entry(path) else {
            return Verdict::Drop;
        };
        self.order.remove(&(waiting.look_at, path.clone()));
        let again_in = match observation {
            Observation::Nothing => return Verdict::Drop,
            Observation::Writer => {
                waiting.seen = None;
                waiting.why = "a program has it open for writing";
                waiting.interval
            }
            Observation::Held { why } => {
                waiting.seen = None;
                waiting.why = why;
                let eighth = now.saturating_duration_since(waiting.since) / 8;
                waiting.interval.max(eighth).min(Self::RAREST.max(self.longest))
            }
            Observation::Still { version, rest, why } => {
                // A folder is walked for each inspection: one that is being filled is inspected ever more seldom.
                let grows = version.folder && waiting.seen.is_some_and(|(seen, _)| seen != version);
                let pause = match grows {
                    true => now.saturating_duration_since(waiting.since) / 8,
                    false => Duration::ZERO,
                };
                let since = match waiting.seen {
                    Some((seen, since)) if seen == version => since,
                    _ => now,
                };
                waiting.seen = Some((version, since));
                waiting.why = why;
                let rested = now.saturating_duration_since(since);
                if rested >= rest {
                    return Verdict::Ready;
                }
                (rest - rested).min(self.longest).max(pause.min(Self::RAREST))
            }
        };
        waiting.look_at = now + again_in;
        waiting.interval = (waiting.interval * 2).min(self.longest);
        let unstable = !waiting.reported && now.saturating_duration_since(waiting.since) >= self.max_wait;
        waiting.reported |= unstable;
        self.order.insert((waiting.look_at, path.clone()));
        self.files.insert(path, waiting);
        if unstable {
            Verdict::Unstable
        } else {
            Verdict::Wait
        }
    }

    /// How many are waited for.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Those that were reported for waiting too long, and what they wait for.
    pub(super) fn unstable(&self) -> impl Iterator<Item = (&RemotePath, &'static str)> {
        let reported = self.files.iter().filter(|(_, waiting)| waiting.reported);
        reported.map(|(path, waiting)| (path, waiting.why))
    }

    /// What `path` waits for, and how long it has already.
    pub(super) fn why(&self, path: &RemotePath, now: Instant) -> Option<(&'static str, Duration)> {
        let waiting = self.files.get(path)?;
        Some((waiting.why, now.saturating_duration_since(waiting.since)))
    }

    /// Forgets everything: the folder went away.
    pub(super) fn clear(&mut self) {
        self.files.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(2);
    const MAX_WAIT: Duration = Duration::from_secs(60);

    struct Clock(Instant);

    impl Clock {
        fn pass(&mut self, ms: u64) -> Instant {
            self.0 += Duration::from_millis(ms);
            self.0
        }
    }

    fn start() -> (Stability, Clock, RemotePath) {
        let path = RemotePath::parse(b"file").unwrap();
        let mut stability = Stability::new(QUIET, MAX_WAIT);
        let clock = Clock(Instant::now());
        assert!(stability.notice(path.clone(), Urgency::Now, clock.0));
        (stability, clock, path)
    }

    fn still(ctime_ns: i64, rest: Duration) -> Observation {
        let version = Version {
            inode: 1,
            birth_ns: 0,
            size: 1,
            mtime_ns: 0,
            ctime_ns,
            folder: false,
        };
        let why = "it rests";
        Observation::Still { version, rest, why }
    }

    #[test]
    fn a_leased_file_is_ready_at_the_first_look() {
        let (mut stability, clock, path) = start();
        assert_eq!(stability.due(clock.0, 10), std::slice::from_ref(&path));
        assert_eq!(
            stability.inspected(&path, still(1, Duration::ZERO), clock.0),
            Verdict::Ready
        );
        assert_eq!((stability.len(), stability.next()), (0, None));
    }

    #[test]
    fn a_writer_is_asked_ever_more_rarely_until_its_close() {
        let (mut stability, mut clock, path) = start();
        let mut gaps = Vec::new();
        for _ in 0..14 {
            stability.inspected(&path, Observation::Writer, clock.0);
            let next = stability.next().unwrap();
            gaps.push((next - clock.0).as_millis());
            clock.0 = next;
        }
        assert_eq!(
            gaps,
            [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2000, 2000, 2000]
        );
        stability.inspected(&path, Observation::Writer, clock.0);
        let now = clock.pass(3);
        stability.notice(path.clone(), Urgency::Calm, now);
        assert!(stability.due(now, 10).is_empty());
        stability.notice(path.clone(), Urgency::Now, now);
        assert_eq!(stability.due(now, 10), [path]);
    }

    #[test]
    fn what_is_held_back_is_asked_ever_more_rarely_but_at_least_once_a_minute() {
        let (mut stability, mut clock, path) = start();
        let mut gaps = Vec::new();
        for _ in 0..80 {
            stability.inspected(&path, Observation::Held { why: "held" }, clock.0);
            let next = stability.next().unwrap();
            gaps.push(next - clock.0);
            clock.0 = next;
        }
        assert!(gaps.is_sorted() && gaps[0] < QUIET);
        assert_eq!(gaps.last(), Some(&Duration::from_secs(60)));
    }

    #[test]
    fn without_leases_it_rests_unchanged_for_quiet() {
        let (mut stability, mut clock, path) = start();
        assert_eq!(
            stability.inspected(&path, still(1, QUIET), clock.0),
            Verdict::Wait
        );
        assert_eq!(stability.next(), Some(clock.0 + QUIET));
        let now = clock.pass(1999);
        assert_eq!(stability.inspected(&path, still(1, QUIET), now), Verdict::Wait);
        let now = clock.pass(1);
        assert_eq!(
            stability.inspected(&path, still(2, QUIET), now),
            Verdict::Wait,
            "it changed"
        );
        let now = clock.pass(2000);
        assert_eq!(stability.inspected(&path, still(2, QUIET), now), Verdict::Ready);
    }

    #[test]
    fn a_long_rest_that_ends_early_is_seen() {
        let (mut stability, clock, path) = start();
        stability.inspected(&path, still(1, QUIET * 15), clock.0);
        let next = stability.next().unwrap();
        assert_eq!(next, clock.0 + QUIET);
        assert_eq!(
            stability.inspected(&path, still(1, Duration::ZERO), next),
            Verdict::Ready
        );
    }

    #[test]
    fn what_never_rests_is_said_once() {
        let (mut stability, mut clock, path) = start();
        let mut said = 0;
        for ctime in 0..200 {
            let now = clock.pass(1000);
            match stability.inspected(&path, still(ctime, QUIET), now) {
                Verdict::Unstable => said += 1,
                verdict => assert_eq!(verdict, Verdict::Wait),
            }
        }
        assert_eq!(said, 1);
        let (why, waited) = stability.why(&path, clock.0).unwrap();
        assert_eq!((why, waited), ("it rests", Duration::from_secs(200)));
        assert_eq!(stability.unstable().collect::<Vec<_>>(), [(&path, "it rests")]);
        assert_eq!(
            stability.inspected(&path, still(199, Duration::ZERO), clock.0),
            Verdict::Ready
        );
        assert_eq!(stability.unstable().count(), 0, "sent once it rests");
    }

    #[test]
    fn what_is_gone_is_forgotten_and_the_number_is_bounded() {
        let (mut stability, clock, path) = start();
        assert_eq!(
            stability.inspected(&path, Observation::Nothing, clock.0),
            Verdict::Drop
        );
        assert_eq!(
            stability.inspected(&path, Observation::Nothing, clock.0),
            Verdict::Drop
        );
        for i in 0..Stability::MOST {
            let path = RemotePath::parse(i.to_string().as_bytes()).unwrap();
            assert!(stability.notice(path, Urgency::Now, clock.0));
        }
        assert!(!stability.notice(path, Urgency::Now, clock.0));
        assert_eq!(stability.due(clock.0, 256).len(), 256);
    }
}
