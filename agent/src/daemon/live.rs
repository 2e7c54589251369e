//! Which transfers are on their way right now, and how far: what the job list on disk does not know.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use dropwire_protocol::{AgentId, TransferId};

use crate::version::Found;

/// Transfers that are offered on a link; bounded by the dispatchers' slots.
#[derive(Default)]
pub struct Live {
    transfers: Mutex<HashMap<TransferId, Transfer>>,
    /// What waited for transfers that have ended.
    released: Mutex<Vec<Found>>,
}

struct Transfer {
    peer: AgentId,
    /// Kept up to date by the link.
    sent: Arc<AtomicU64>,
    /// A later version of its file, not to be judged before it has ended.
    later: Option<Found>,
}

impl Live {
    /// Offered; the link keeps `sent` (bytes that lie across) up to date.
    pub fn started(&self, id: TransferId, peer: AgentId, sent: Arc<AtomicU64>) {
        let later = None;
        self.map().insert(id, Transfer { peer, sent, later });
    }

    /// However it ended; its outcome is in the job list.
    pub fn ended(&self, id: TransferId) {
        let ended = self.map().remove(&id);
        if let Some(later) = ended.and_then(|transfer| transfer.later) {
            self.released().push(later);
        }
    }

    /// `found` is looked at again once this transfer has ended; false: it has.
    pub fn defer(&self, id: TransferId, found: &Found) -> bool {
        let mut map = self.map();
        let transfer = map.get_mut(&id);
        transfer
            .map(|transfer| transfer.later = Some(found.clone()))
            .is_some()
    }

    /// What is to be looked at again.
    pub fn take_released(&self) -> Vec<Found> {
        std::mem::take(&mut *self.released())
    }

    /// Bytes that lie across, while it is on its way.
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

    fn released(&self) -> MutexGuard<'_, Vec<Found>> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
