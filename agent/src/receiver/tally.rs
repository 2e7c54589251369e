//! How much of the ledger each peer has: a peer that never forgets must not fill the disk of the state folder.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use dropwire_protocol::{AgentId, Manifest};

use super::placing::Placing;

use crate::poison::Unpoisoned as _;

/// Most rows of delivered transfers that one peer may have.
const ROWS: u64 = 1 << 20;
/// Most bytes of them.
const BYTES: u64 = 512 << 20;
/// Of a small disk, this part.
const SHARE: u64 = 4;
/// What a row takes beside its path, place and receipt: the other columns, and its part of the indexes.
pub(super) const ROW: u64 = 256;
/// The least time between two times that room is made for an offer.
const AGAIN: Duration = Duration::from_secs(60);

/// Rows of delivered transfers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Rows {
    /// How many.
    pub number: u64,
    /// Bytes that they take, roughly.
    pub bytes: u64,
}

impl Rows {
    /// What a peer may have where the disk of the state folder has `disk` bytes; None where that is not known.
    pub(super) fn bound(disk: Option<u64>) -> Self {
        Self {
            number: ROWS,
            bytes: disk.map_or(BYTES, |disk| BYTES.min(disk / SHARE)),
        }
    }

    /// The row of one transfer.
    pub(super) fn one(manifest: &Manifest, placing: &Placing) -> Self {
        let receipt = &placing.receipt;
        let text = manifest.path.as_bytes().len() + placing.place.as_bytes().len();
        let signed =
            receipt.body.len() + receipt.key.len() + receipt.signature.len() + receipt.audit_path.len();
        Self {
            number: 1,
            bytes: ROW + (text + signed) as u64,
        }
    }
}

/// The rows of all peers, counted at the start. A transfer that is placed twice counts twice, until it is counted again.
pub(super) struct Tally {
    bound: Rows,
    peers: Mutex<HashMap<AgentId, Rows>>,
    /// When room was made for a peer at its bound.
    eased: Mutex<Option<Instant>>,
}

impl Tally {
    /// As `counted` in the ledger.
    pub(super) fn new(counted: HashMap<AgentId, Rows>, bound: Rows) -> Self {
        Self {
            bound,
            peers: Mutex::new(counted),
            eased: Mutex::default(),
        }
    }

    /// So many more are in the ledger.
    pub(super) fn added(&self, peer: AgentId, more: Rows) {
        let mut peers = self.lock();
        let rows = peers.entry(peer).or_default();
        rows.number = rows.number.saturating_add(more.number);
        rows.bytes = rows.bytes.saturating_add(more.bytes);
    }

    /// So many are in the ledger no more.
    pub(super) fn removed(&self, peer: AgentId, fewer: Rows) {
        if let Some(rows) = self.lock().get_mut(&peer) {
            rows.number = rows.number.saturating_sub(fewer.number);
            rows.bytes = rows.bytes.saturating_sub(fewer.bytes);
        }
    }

    /// As counted in the ledger just now.
    pub(super) fn set(&self, counted: HashMap<AgentId, Rows>) {
        *self.lock() = counted;
    }

    /// Has the peer as many as it may?
    pub(super) fn is_full(&self, peer: AgentId) -> bool {
        self.exceeds(peer, 16)
    }

    /// Is room to be made now for a peer at its bound? Not more often than each minute, for all rows are counted then.
    pub(super) fn is_to_be_eased(&self, now: Instant) -> bool {
        let mut eased = self.eased.lock().unpoisoned();
        let due = eased.is_none_or(|last| now.saturating_duration_since(last) >= AGAIN);
        if due {
            *eased = Some(now);
        }
        due
    }

    /// The peers that come near their bound.
    pub(super) fn near(&self) -> Vec<AgentId> {
        let peers: Vec<AgentId> = self.lock().keys().copied().collect();
        peers.into_iter().filter(|peer| self.exceeds(*peer, 14)).collect()
    }

    /// Is there room again for a good many more of the peer's?
    pub(super) fn is_eased(&self, peer: AgentId) -> bool {
        !self.exceeds(peer, 12)
    }

    /// Are there more than so many sixteenths of the bound?
    fn exceeds(&self, peer: AgentId, part: u64) -> bool {
        let peers = self.lock();
        peers.get(&peer).is_some_and(|rows| {
            rows.number > self.bound.number / 16 * part || rows.bytes > self.bound.bytes / 16 * part
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AgentId, Rows>> {
        self.peers.lock().unpoisoned()
    }
}
