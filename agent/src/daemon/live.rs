//! Which transfers are on their way right now, and how far: what the job list on disk does not know.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use dropwire_protocol::{AgentId, TransferId};

/// Transfers that are offered on a link; bounded by the dispatchers' slots.
#[derive(Default)]
pub struct Live {
    transfers: Mutex<HashMap<TransferId, Transfer>>,
}

struct Transfer {
    peer: AgentId,
    /// Kept up to date by the link.
    sent: Arc<AtomicU64>,
}

impl Live {
    /// Offered; the link keeps `sent` (bytes that the receiver has) up to date.
    pub fn started(&self, id: TransferId, peer: AgentId, sent: Arc<AtomicU64>) {
        self.map().insert(id, Transfer { peer, sent });
    }

    /// However it ended; its outcome is in the job list.
    pub fn ended(&self, id: TransferId) {
        self.map().remove(&id);
    }

    /// Bytes that the receiver has, while it is on its way.
    pub fn sent_bytes(&self, id: TransferId) -> Option<u64> {
        self.map().get(&id).map(|t| t.sent.load(Ordering::Relaxed))
    }

    /// All that are on their way.
    pub fn ids(&self) -> Vec<TransferId> {
        self.map().keys().copied().collect()
    }

    /// How many are on their way.
    pub fn count(&self) -> usize {
        self.map().len()
    }

    /// How many are on their way to `peer`.
    pub fn sending_to(&self, peer: AgentId) -> usize {
        self.map().values().filter(|t| t.peer == peer).count()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<TransferId, Transfer>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
