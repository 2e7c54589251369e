//! Do events come? At every scan a probe is made in the outbox's own folder, and its event has to arrive; an outbox
//! whose events do not is polled until they do. Pure: the clock is passed in.

use std::time::{Duration, Instant};

use crate::config::Watch;

/// How an outbox is watched, and why not natively.
#[derive(Debug)]
pub(super) struct Health {
    wanted: Watch,
    deadline: Duration,
    /// There is no native watch, for this reason.
    absent: Option<String>,
    /// The system refused to watch further folders.
    limited: bool,
    deaf: bool,
    /// When the probe was begun whose event is waited for.
    probed: Option<Instant>,
    /// When its event has to be there; None: it is not made yet.
    due: Option<Instant>,
    missed: u32,
    latency: Option<Duration>,
}

/// What became of a probe's event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    /// Nothing new.
    Same,
    /// It is overdue for the first time: to be probed again before anything is concluded.
    Again,
    /// Events stopped.
    Lost,
    /// Events come again.
    Back,
}

impl Health {
    /// The longest wait for a probe's event; it never exceeds `rescan`, but for a second.
    const DEADLINE: Duration = Duration::from_secs(5);
    /// Overdue probes in a row after which events count as lost: one may be late, as after the process was stopped.
    const MISSES: u32 = 2;

    pub(super) fn new(wanted: Watch, rescan: Duration) -> Self {
        Health {
            wanted,
            deadline: rescan.clamp(Duration::from_secs(1), Self::DEADLINE),
            absent: None,
            limited: false,
            deaf: false,
            probed: None,
            due: None,
            missed: 0,
            latency: None,
        }
    }

    /// A watch begins, or there is none for a reason.
    pub(super) fn begin(&mut self, watch: Result<(), String>) {
        *self = Health {
            absent: watch.err(),
            ..Health::new(self.wanted, self.deadline)
        };
    }

    /// Whether the system refuses to watch further folders. True: that is new.
    pub(super) fn limit(&mut self, limited: bool) -> bool {
        let new = limited && !self.limited;
        self.limited = limited;
        new
    }

    /// A probe may be made: there is a watch, and no event is waited for.
    pub(super) fn may_probe(&self) -> bool {
        self.absent.is_none() && self.probed.is_none()
    }

    /// A probe was begun at `at`.
    pub(super) fn probed(&mut self, at: Instant) {
        self.probed = Some(at);
    }

    /// It is made, at `at`: a busy disk may have taken long, which says nothing of events.
    pub(super) fn made(&mut self, at: Instant) {
        self.due = self.probed.map(|_| at + self.deadline);
    }

    /// The probe could not be made.
    pub(super) fn unprobed(&mut self) {
        (self.probed, self.due) = (None, None);
    }

    /// A probe's event came, at `at`.
    pub(super) fn heard(&mut self, at: Instant) -> Heard {
        if let Some(probed) = self.probed.take() {
            self.latency = Some(at.saturating_duration_since(probed));
        }
        self.due = None;
        self.missed = 0;
        match std::mem::take(&mut self.deaf) {
            true => Heard::Back,
            false => Heard::Same,
        }
    }

    /// When something is to be concluded from the silence.
    pub(super) fn overdue_at(&self) -> Option<Instant> {
        self.due
    }

    /// Looks whether a probe is overdue.
    pub(super) fn check(&mut self, now: Instant) -> Heard {
        if self.overdue_at().is_none_or(|at| now < at) {
            return Heard::Same;
        }
        self.unprobed();
        self.missed = self.missed.saturating_add(1);
        if self.deaf {
            return Heard::Same;
        }
        if self.missed < Self::MISSES {
            return Heard::Again;
        }
        self.deaf = true;
        self.latency = None;
        Heard::Lost
    }

    /// Scans have to find everything.
    pub(super) fn polls(&self) -> bool {
        self.absent.is_some() || (self.wanted != Watch::Native && (self.limited || self.deaf))
    }

    /// Events were shown to come, of every folder.
    pub(super) fn is_proven(&self) -> bool {
        self.latency.is_some() && self.missed == 0 && !self.limited && self.absent.is_none()
    }

    /// As `status` names it.
    pub(super) fn name(&self) -> &'static str {
        if self.polls() { "poll" } else { "native" }
    }

    /// Why events cannot be relied on.
    pub(super) fn reason(&self) -> Option<String> {
        match (&self.absent, self.limited, self.deaf) {
            (Some(reason), ..) => Some(reason.clone()),
            (None, true, _) => Some(LIMITED.into()),
            (None, false, true) => {
                Some("no event came for a file made in `.dropwire` to test the watch".into())
            }
            (None, false, false) => None,
        }
    }

    /// Between a probe and its event, as measured last.
    pub(super) fn latency(&self) -> Option<Duration> {
        self.latency
    }
}

/// Said where the system refuses further watches.
pub(super) const LIMITED: &str =
    "the system's limit of watched folders is reached (raise fs.inotify.max_user_watches)";

#[cfg(test)]
mod tests {
    use super::*;

    fn health(wanted: Watch) -> (Health, Instant) {
        let mut health = Health::new(wanted, Duration::from_secs(600));
        health.begin(Ok(()));
        (health, Instant::now())
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn probe(health: &mut Health, at: Instant) {
        health.probed(at);
        health.made(at);
    }

    #[test]
    fn one_late_event_is_asked_for_again_two_mean_polling_and_one_that_comes_ends_it() {
        let (mut health, start) = health(Watch::Auto);
        assert!(health.may_probe() && !health.is_proven() && !health.polls());
        health.probed(start);
        assert!(!health.may_probe() && health.overdue_at().is_none());
        health.made(start);
        assert_eq!(health.overdue_at(), Some(after(start, 5)));
        assert_eq!(health.check(after(start, 4)), Heard::Same);
        assert_eq!(health.check(after(start, 5)), Heard::Again);
        probe(&mut health, after(start, 5));
        assert!(!health.polls());
        assert_eq!(health.check(after(start, 10)), Heard::Lost);
        assert!(health.polls() && health.reason().is_some() && health.name() == "poll");
        probe(&mut health, after(start, 600));
        assert_eq!(health.check(after(start, 605)), Heard::Same, "said already");
        probe(&mut health, after(start, 1200));
        assert_eq!(health.heard(after(start, 1201)), Heard::Back);
        assert!(!health.polls() && health.is_proven() && health.reason().is_none());
        assert_eq!(health.latency(), Some(Duration::from_secs(1)));
        assert_eq!(health.overdue_at(), None);
    }

    #[test]
    fn an_event_after_all_begins_the_count_anew() {
        let (mut health, start) = health(Watch::Auto);
        probe(&mut health, start);
        assert_eq!(health.check(after(start, 5)), Heard::Again);
        assert_eq!(health.heard(after(start, 6)), Heard::Same);
        probe(&mut health, after(start, 7));
        assert_eq!(health.check(after(start, 12)), Heard::Again);
    }

    #[test]
    fn a_probe_that_took_long_to_make_is_not_overdue() {
        let (mut health, start) = health(Watch::Auto);
        health.probed(start);
        assert_eq!(health.check(after(start, 60)), Heard::Same);
        health.made(after(start, 60));
        assert_eq!(health.check(after(start, 64)), Heard::Same);
        assert_eq!(health.heard(after(start, 64)), Heard::Same);
        assert_eq!(health.latency(), Some(Duration::from_secs(64)), "as it was");
        assert!(health.may_probe() && health.overdue_at().is_none());
    }

    #[test]
    fn what_is_polled() {
        let limited = |wanted| {
            let (mut health, _) = health(wanted);
            assert!(health.limit(true) && !health.limit(true));
            assert!(health.reason().is_some() && !health.is_proven());
            let polls = health.polls();
            assert!(!health.limit(false) && health.reason().is_none());
            polls
        };
        assert!(limited(Watch::Auto));
        assert!(!limited(Watch::Native), "asked for events alone");
        let (mut health, _) = health(Watch::Native);
        health.begin(Err("no watch".into()));
        assert!(health.polls() && !health.may_probe());
        assert_eq!(health.reason().as_deref(), Some("no watch"));
    }

    #[test]
    fn a_short_rescan_shortens_the_deadline() {
        let now = Instant::now();
        for (rescan, deadline) in [(50, 1000), (2000, 2000), (600_000, 5000)] {
            let mut health = Health::new(Watch::Auto, Duration::from_millis(rescan));
            health.begin(Ok(()));
            probe(&mut health, now);
            assert_eq!(health.overdue_at(), Some(now + Duration::from_millis(deadline)));
        }
    }
}
