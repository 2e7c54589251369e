//! Who waits for the job list to have something to do, and is told so.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use dropwire_protocol::AgentId;
use tokio::sync::Notify;

use crate::poison::Unpoisoned as _;

/// One notification for each peer, one for all jobs that are queued, and one for files that may leave. At most as many
/// as peers were ever in the config of this run.
#[derive(Default)]
pub(super) struct Signals {
    peers: Mutex<HashMap<AgentId, Arc<Notify>>>,
    pub(super) queued: Notify,
    /// Some files may leave.
    pub(super) leaving: Notify,
}

impl Signals {
    pub(super) fn of(&self, peer: AgentId) -> Arc<Notify> {
        self.lock().entry(peer).or_default().clone()
    }

    /// Does nothing where nobody waits yet: whoever begins looks first.
    pub(super) fn wake(&self, peer: AgentId) {
        if let Some(signal) = self.lock().get(&peer) {
            signal.notify_one();
        }
    }

    /// Jobs were changed by name, of whichever peers.
    pub(super) fn some_changed(&self) {
        self.queued.notify_one();
        self.wake_all();
    }

    pub(super) fn wake_all(&self) {
        self.lock().values().for_each(|signal| signal.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AgentId, Arc<Notify>>> {
        self.peers.lock().unpoisoned()
    }
}
