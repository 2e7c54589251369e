//! Checks the watch: tests it, notes where the system refuses it, and plans the scans accordingly.

use std::{sync::Arc, time::Instant};

use super::RunLoop;
use crate::{
    blocking::blocking,
    config::Watch,
    error::shown,
    outbox::{
        watch::{self, Watcher},
        watch_state::{LIMITED, ProbeReceived},
    },
};

impl RunLoop<'_> {
    /// Probes the watch when a scan begins, and draws the conclusion when no event came.
    pub(super) async fn test_watch(&mut self) {
        // What came while all were busy is no silence.
        if let Some(at) = self
            .watched
            .0
            .as_ref()
            .and_then(|watcher| watcher.take_probe_received())
        {
            self.probe_received(at);
        }
        let probe_received = self.task.shared.state().watch_state.check(Instant::now());
        self.conclude(probe_received);
        if !std::mem::take(&mut self.probe) {
            return;
        }
        if self.watched.0.is_none() && self.task.shared.config.watch != Watch::Poll {
            self.watched = self.task.watch(&self.place).await; // there may be room for one now
            if self.watched.0.is_some() {
                self.schedule.want(); // which watches the folders
            }
        }
        if !self.task.shared.state().watch_state.may_probe() {
            return;
        }
        // Begun before it is made: its event may be here first.
        self.task.shared.state().watch_state.probe_begun(Instant::now());
        let (place, watcher) = (Arc::clone(&self.place), self.watched.0.clone());
        let probe_begun = blocking(move || {
            if let Some(watcher) = watcher {
                watcher.own_folder(&place.root);
            }
            watch::probe(&place.open()?)
        });
        let probe_made = matches!(probe_begun.await, Ok(Ok(())));
        let watch_state = &mut self.task.shared.state().watch_state;
        match probe_made {
            true => watch_state.probe_made(Instant::now()),
            false => watch_state.probe_failed(), // read-only, say: nothing is concluded
        }
    }

    pub(super) fn probe_received(&mut self, at: Instant) {
        let probe_received = self.task.shared.state().watch_state.probe_received(at);
        self.conclude(probe_received);
    }

    fn conclude(&mut self, probe_received: ProbeReceived) {
        let outbox = shown(&self.place.root);
        match probe_received {
            ProbeReceived::Same => return,
            ProbeReceived::Again => {
                self.probe = true;
                return;
            }
            ProbeReceived::Lost => tracing::warn!(%outbox, "native events do not come: polled until they do"),
            ProbeReceived::Back => tracing::info!(%outbox, "native events come again"),
        }
        // What happened before is not known from events.
        self.scan_all();
        self.plan_scan();
    }

    /// When the next scan is due by itself is another matter now.
    pub(super) fn plan_scan(&mut self) {
        let is_polled = self.task.shared.state().watch_state.polls();
        self.schedule.plan(Instant::now(), is_polled);
    }

    pub(super) fn warn_of_limit(&mut self) {
        if self.is_limited() && self.task.shared.state().watch_state.limit(true) {
            tracing::warn!(outbox = %shown(&self.place.root), "{LIMITED}");
            self.plan_scan();
        }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.watched.0.as_ref().is_some_and(|watcher| watcher.limited())
    }
}

/// Waits for a probe's event.
pub(super) async fn probe_received(watcher: Option<&Watcher>) -> Instant {
    match watcher {
        Some(watcher) => watcher.probe_received().await,
        None => std::future::pending().await,
    }
}
