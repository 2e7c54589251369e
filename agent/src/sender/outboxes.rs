//! The outboxes that are watched now, for whoever has to tell them something.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    fs::version::{Found, OutboxId},
    outbox::Outbox,
    poison::Unpoisoned as _,
};

/// All of them, in the config's order; cheap to clone.
#[derive(Clone, Default)]
pub struct Outboxes(Arc<RwLock<Vec<Running>>>);

/// An outbox at work.
pub(super) struct Running {
    pub(super) outbox: Outbox,
    pub(super) cancel: CancellationToken,
    /// Over when all that the outbox found is queued.
    pub(super) intake: JoinHandle<()>,
}

impl Outboxes {
    /// Each of them.
    pub fn all(&self) -> Vec<Outbox> {
        let running = self.0.read().unpoisoned();
        running.iter().map(|running| running.outbox.clone()).collect()
    }

    /// The outbox that has this id now.
    pub fn with_id(&self, id: OutboxId) -> Option<Outbox> {
        self.all().into_iter().find(|outbox| outbox.id() == Some(id))
    }

    /// Has the file inspected again soon. Where its outbox is away, the first scan finds it.
    pub(super) fn recheck(&self, found: &Found) {
        if let Some(outbox) = self.with_id(found.outbox) {
            outbox.recheck(found.path.clone());
        }
    }

    /// Has the outbox at `path` scanned again soon.
    pub(super) fn find_again(&self, path: &Path) {
        let all = self.all();
        let here = all.iter().filter(|outbox| outbox.path() == path);
        here.for_each(Outbox::find_again);
    }

    pub(super) fn add(&self, running: Running, order: &[config::Outbox]) {
        let mut all = self.0.write().unpoisoned();
        all.push(running);
        all.sort_by_key(|running| order.iter().position(|o| o.path == running.outbox.path()));
    }

    pub(super) fn remove(&self, paths: &[PathBuf]) -> Vec<Running> {
        let mut all = self.0.write().unpoisoned();
        let is_meant = |running: &mut Running| paths.iter().any(|path| path == running.outbox.path());
        all.extract_if(.., is_meant).collect()
    }
}
