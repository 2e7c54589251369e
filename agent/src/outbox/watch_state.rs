//! Do events come? At every scan a probe is made in the outbox's own folder, and its event has to arrive; an outbox
//! whose events do not is polled until they do. Pure: the clock is passed in.

use std::time::{Duration, Instant};

use crate::config::Watch;

/// How an outbox is watched, and why not natively.
#[derive(Debug)]
pub(super) struct WatchState {
    wanted: Watch,
    deadline: Duration,
    /// There is no native watch, for this reason.
    absent: Option<String>,
    /// The system refused to watch further folders.
    limited: bool,
    events_lost: bool,
    /// When the probe was begun whose event is waited for.
    probe_begun: Option<Instant>,
    /// When its event has to be there; None: it is not made yet.
    due: Option<Instant>,
    missed: u32,
    latency: Option<Duration>,
}

/// What became of a probe's event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ProbeReceived {
    /// Nothing new.
    Same,
    /// It is overdue for the first time: to be probed again before anything is concluded.
    Again,
    /// Events stopped.
    Lost,
    /// Events come again.
    Back,
}

impl WatchState {
    /// The longest wait for a probe's event; `rescan` where that is shorter, and a second at least.
    const DEADLINE: Duration = Duration::from_secs(5);
    /// Overdue probes in a row after which events count as lost: one may be late, as after the process was stopped.
    const MISSES: u32 = 2;

    pub(super) fn new(wanted: Watch, rescan: Duration) -> Self {
        Self {
            wanted,
            deadline: rescan.clamp(Duration::from_secs(1), Self::DEADLINE),
            absent: None,
            limited: false,
            events_lost: false,
            probe_begun: None,
            due: None,
            missed: 0,
            latency: None,
        }
    }

    /// A watch begins, or there is none for a reason.
    pub(super) fn begin(&mut self, watch: Result<(), String>) {
        *self = Self {
            absent: watch.err(),
            ..Self::new(self.wanted, self.deadline)
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
        self.absent.is_none() && self.probe_begun.is_none()
    }

    /// A probe was begun at `at`.
    pub(super) fn probe_begun(&mut self, at: Instant) {
        self.probe_begun = Some(at);
    }

    /// It is made, at `at`: a busy disk may have taken long, which says nothing of events.
    pub(super) fn probe_made(&mut self, at: Instant) {
        self.due = self.probe_begun.map(|_| at + self.deadline);
    }

    /// The probe could not be made.
    pub(super) fn probe_failed(&mut self) {
        (self.probe_begun, self.due) = (None, None);
    }

    /// A probe's event came, at `at`.
    pub(super) fn probe_received(&mut self, at: Instant) -> ProbeReceived {
        if let Some(probe_begun) = self.probe_begun.take() {
            self.latency = Some(at.saturating_duration_since(probe_begun));
        }
        self.due = None;
        self.missed = 0;
        match std::mem::take(&mut self.events_lost) {
            true => ProbeReceived::Back,
            false => ProbeReceived::Same,
        }
    }

    /// When something is to be concluded from the silence.
    pub(super) fn overdue_at(&self) -> Option<Instant> {
        self.due
    }

    /// Checks whether a probe is overdue.
    pub(super) fn check(&mut self, now: Instant) -> ProbeReceived {
        if self.overdue_at().is_none_or(|at| now < at) {
            return ProbeReceived::Same;
        }
        self.probe_failed();
        self.missed = self.missed.saturating_add(1);
        if self.events_lost {
            return ProbeReceived::Same;
        }
        if self.missed < Self::MISSES {
            return ProbeReceived::Again;
        }
        self.events_lost = true;
        self.latency = None;
        ProbeReceived::Lost
    }

    /// Scans have to find everything.
    pub(super) fn polls(&self) -> bool {
        self.absent.is_some() || (self.wanted != Watch::Native && (self.limited || self.events_lost))
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
        match (&self.absent, self.limited, self.events_lost) {
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

    fn watch_state(wanted: Watch) -> (WatchState, Instant) {
        let mut watch_state = WatchState::new(wanted, Duration::from_secs(600));
        watch_state.begin(Ok(()));
        (watch_state, Instant::now())
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn probe(watch_state: &mut WatchState, at: Instant) {
        watch_state.probe_begun(at);
        watch_state.probe_made(at);
    }

    #[test]
    fn one_late_event_is_asked_for_again_two_mean_polling_and_one_that_comes_ends_it() {
        let (mut watch_state, start) = watch_state(Watch::Auto);
        assert!(watch_state.may_probe() && !watch_state.is_proven() && !watch_state.polls());
        watch_state.probe_begun(start);
        assert!(!watch_state.may_probe() && watch_state.overdue_at().is_none());
        watch_state.probe_made(start);
        assert_eq!(watch_state.overdue_at(), Some(after(start, 5)));
        assert_eq!(watch_state.check(after(start, 4)), ProbeReceived::Same);
        assert_eq!(watch_state.check(after(start, 5)), ProbeReceived::Again);
        probe(&mut watch_state, after(start, 5));
        assert!(!watch_state.polls());
        assert_eq!(watch_state.check(after(start, 10)), ProbeReceived::Lost);
        assert!(watch_state.polls() && watch_state.reason().is_some() && watch_state.name() == "poll");
        probe(&mut watch_state, after(start, 600));
        assert_eq!(
            watch_state.check(after(start, 605)),
            ProbeReceived::Same,
            "said already"
        );
        probe(&mut watch_state, after(start, 1200));
        assert_eq!(
            watch_state.probe_received(after(start, 1201)),
            ProbeReceived::Back
        );
        assert!(!watch_state.polls() && watch_state.is_proven() && watch_state.reason().is_none());
        assert_eq!(watch_state.latency(), Some(Duration::from_secs(1)));
        assert_eq!(watch_state.overdue_at(), None);
    }

    #[test]
    fn an_event_after_all_begins_the_count_anew() {
        let (mut watch_state, start) = watch_state(Watch::Auto);
        probe(&mut watch_state, start);
        assert_eq!(watch_state.check(after(start, 5)), ProbeReceived::Again);
        assert_eq!(watch_state.probe_received(after(start, 6)), ProbeReceived::Same);
        probe(&mut watch_state, after(start, 7));
        assert_eq!(watch_state.check(after(start, 12)), ProbeReceived::Again);
    }

    #[test]
    fn a_probe_that_took_long_to_make_is_not_overdue() {
        let (mut watch_state, start) = watch_state(Watch::Auto);
        watch_state.probe_begun(start);
        assert_eq!(watch_state.check(after(start, 60)), ProbeReceived::Same);
        watch_state.probe_made(after(start, 60));
        assert_eq!(watch_state.check(after(start, 64)), ProbeReceived::Same);
        assert_eq!(watch_state.probe_received(after(start, 64)), ProbeReceived::Same);
        assert_eq!(watch_state.latency(), Some(Duration::from_secs(64)), "as it was");
        assert!(watch_state.may_probe() && watch_state.overdue_at().is_none());
    }

    #[test]
    fn what_is_polled() {
        let limited = |wanted| {
            let (mut watch_state, _) = watch_state(wanted);
            assert!(watch_state.limit(true) && !watch_state.limit(true));
            assert!(watch_state.reason().is_some() && !watch_state.is_proven());
            let polls = watch_state.polls();
            assert!(!watch_state.limit(false) && watch_state.reason().is_none());
            polls
        };
        assert!(limited(Watch::Auto));
        assert!(!limited(Watch::Native), "asked for events alone");
        let (mut watch_state, _) = watch_state(Watch::Native);
        watch_state.begin(Err("no watch".into()));
        assert!(watch_state.polls() && !watch_state.may_probe());
        assert_eq!(watch_state.reason().as_deref(), Some("no watch"));
    }

    #[test]
    fn a_short_rescan_shortens_the_deadline() {
        let now = Instant::now();
        for (rescan, deadline) in [(50, 1000), (2000, 2000), (600_000, 5000)] {
            let mut watch_state = WatchState::new(Watch::Auto, Duration::from_millis(rescan));
            watch_state.begin(Ok(()));
            probe(&mut watch_state, now);
            assert_eq!(
                watch_state.overdue_at(),
                Some(now + Duration::from_millis(deadline))
            );
        }
    }
}
