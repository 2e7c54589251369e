//! Watches the watch: tests it, notes where the system refuses it, and plans the scans accordingly.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{POLL, Tending};
use crate::{
    blocking::blocking,
    config::Watch,
    error::shown,
    outbox::{
        health::{Heard, LIMITED},
        watch::{self, Watcher},
    },
};

/// What could not be looked at or made durable for a reason that passes by itself.
pub(super) struct Later {
    /// Of one of them; None: there were none since this was seen to last.
    pub(super) reason: Option<String>,
    wait: Duration,
    /// It counts as over when there is none up to then.
    until: Instant,
}

impl Later {
    pub(super) fn new(now: Instant) -> Self {
        Later {
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

impl Tending<'_> {
    /// Probes the watch when a scan begins, and draws the conclusion when no event came.
    pub(super) async fn test_watch(&mut self) {
        // What came while all were busy is no silence.
        if let Some(at) = self.watched.0.as_ref().and_then(|watcher| watcher.take_heard()) {
            self.heard(at);
        }
        let heard = self.task.shared.state().health.check(Instant::now());
        self.take_to_heart(heard);
        if !std::mem::take(&mut self.probe) {
            return;
        }
        if self.watched.0.is_none() && self.task.shared.config.watch != Watch::Poll {
            self.watched = self.task.watch(&self.place).await; // there may be room for one now
            self.scan_wanted |= self.watched.0.is_some(); // which watches the folders
        }
        if !self.task.shared.state().health.may_probe() {
            return;
        }
        // Begun before it is made: its event may be here first.
        self.task.shared.state().health.probed(Instant::now());
        let (place, watcher) = (Arc::clone(&self.place), self.watched.0.clone());
        let probed = blocking(move || {
            if let Some(watcher) = watcher {
                watcher.own_folder(&place.root);
            }
            watch::probe(&place.open()?)
        });
        let made = matches!(probed.await, Ok(Ok(())));
        let health = &mut self.task.shared.state().health;
        match made {
            true => health.made(Instant::now()),
            false => health.unprobed(), // read-only, say: nothing is concluded
        }
    }

    pub(super) fn heard(&mut self, at: Instant) {
        let heard = self.task.shared.state().health.heard(at);
        self.take_to_heart(heard);
    }

    fn take_to_heart(&mut self, heard: Heard) {
        let outbox = shown(&self.place.root);
        match heard {
            Heard::Same => return,
            Heard::Again => {
                self.probe = true;
                return;
            }
            Heard::Lost => tracing::warn!(%outbox, "native events do not come: polled until they do"),
            Heard::Back => tracing::info!(%outbox, "native events come again"),
        }
        // What happened before is not known from events.
        self.scan_all();
        self.plan_scan();
    }

    /// When the next scan is due by itself.
    pub(super) fn plan_scan(&mut self) {
        let rescan = self.task.shared.config.rescan;
        let interval = match (self.task.shared.state().health.polls(), self.scans_begun) {
            (true, _) => POLL.min(rescan),
            // Several outboxes began together: from here on each has its own time.
            (false, 0..=1) => rescan / 2 + rescan / 512 * u32::from(self.place.id.0[0]),
            (false, _) => rescan,
        };
        self.scan_at = Instant::now() + interval;
    }

    /// What could not be asked now is looked for again soon, and ever more rarely while that lasts.
    pub(super) fn plan_later(&mut self) {
        let (now, rescan) = (Instant::now(), self.task.shared.config.rescan);
        if let Some((wait, news)) = self.later.wait(now, rescan) {
            if let Some(reason) = news {
                tracing::warn!(outbox = %shown(&self.place.root), reason, "some of it is not sent now; it is looked at again");
            }
            self.scan_at = self.scan_at.min(now + wait);
        }
    }

    pub(super) fn warn_of_limit(&mut self) {
        if self.is_limited() && self.task.shared.state().health.limit(true) {
            tracing::warn!(outbox = %shown(&self.place.root), "{LIMITED}");
            self.plan_scan();
        }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.watched.0.as_ref().is_some_and(|watcher| watcher.limited())
    }
}

/// Waits for a probe's event.
pub(super) async fn heard(watcher: Option<&Watcher>) -> Instant {
    match watcher {
        Some(watcher) => watcher.heard().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
