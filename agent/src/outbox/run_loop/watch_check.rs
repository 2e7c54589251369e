//! Checks the watch: tests it, notes where the system refuses it, and plans the scans accordingly.

use std::{sync::Arc, time::Instant};

use super::RunLoop;
use crate::{
    blocking::blocking,
    config::Watch,
    error::shown,
    outbox::{
        health::{Heard, LIMITED},
        watch::{self, Watcher},
    },
};

impl RunLoop<'_> {
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
            if self.watched.0.is_some() {
                self.schedule.want(); // which watches the folders
            }
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

    /// When the next scan is due by itself is another matter now.
    pub(super) fn plan_scan(&mut self) {
        let is_polled = self.task.shared.state().health.polls();
        self.schedule.plan(Instant::now(), is_polled);
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
