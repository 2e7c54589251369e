//! What is under way right now, for each peer: the one table of it. The job list on disk knows none of this.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dropwire_protocol::{AgentId, TransferId};
use tokio::time::Instant;

use super::source::FileSource;
use crate::queue::{Class, Job};

use crate::poison::Unpoisoned as _;

/// A transfer that makes no progress for so long is broken off and offered again later: the peer answers pings but not
/// this. Long, because a receiver may read a whole large partial again before it commits.
pub(super) const STALLED: Duration = Duration::from_secs(60 * 60);

/// All transfers that are under way; cheap to clone. Bounded by what each dispatcher may have in flight.
#[derive(Clone, Default)]
pub struct InFlight(Arc<Mutex<Table>>);

type Table = HashMap<AgentId, HashMap<TransferId, Transfer>>;

/// How a transfer is under way.
pub(super) enum Transfer {
    /// Offered; its bytes come from `source`.
    Offered {
        job: Box<Job>,
        source: Arc<FileSource>,
        class: Class,
        progress: Progress,
    },
    /// Its receipt is on the way into the job list.
    Delivered { sent: Arc<AtomicU64> },
    /// Settled; the file is being read again, whether the link lasts or not.
    Rereading { class: Class },
    /// Withdrawn; `job` is there if its own end depends on the answer (the file is gone).
    Withdrawing { job: Option<Box<Job>> },
}

impl Transfer {
    /// Whose room in the schedule it takes.
    fn class(&self) -> Option<Class> {
        match self {
            Self::Offered { class, .. } | Self::Rereading { class } => Some(*class),
            Self::Delivered { .. } | Self::Withdrawing { .. } => None,
        }
    }

    /// Bytes that the receiver has; None: the transfer is not being sent.
    fn sent(&self) -> Option<u64> {
        match self {
            Self::Offered { progress, .. } => Some(progress.sent.load(Ordering::Relaxed)),
            Self::Delivered { sent } => Some(sent.load(Ordering::Relaxed)),
            Self::Rereading { .. } | Self::Withdrawing { .. } => None,
        }
    }
}

impl InFlight {
    /// The part of the table that is about `peer`.
    pub(super) fn of(&self, peer: AgentId) -> OfPeer {
        OfPeer {
            all: self.clone(),
            peer,
        }
    }

    /// Bytes of the transfer that the receiver has, while it is being sent.
    pub fn sent_bytes(&self, peer: AgentId, id: TransferId) -> Option<u64> {
        self.lock().get(&peer)?.get(&id)?.sent()
    }

    /// All that are being sent.
    pub fn ids(&self) -> Vec<TransferId> {
        let table = self.lock();
        let all = table.values().flatten();
        all.filter(|(_, t)| t.sent().is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    /// How many are being sent.
    pub fn count(&self) -> usize {
        let table = self.lock();
        table.values().map(sending).sum()
    }

    /// How many are being sent to `peer`.
    pub fn sending_to(&self, peer: AgentId) -> usize {
        self.lock().get(&peer).map_or(0, sending)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unpoisoned()
    }
}

fn sending(transfers: &HashMap<TransferId, Transfer>) -> usize {
    transfers.values().filter(|t| t.sent().is_some()).count()
}

/// What is under way to one peer, as its dispatcher changes it. Nothing of it is left when this is dropped.
pub(super) struct OfPeer {
    all: InFlight,
    peer: AgentId,
}

impl OfPeer {
    pub(super) fn insert(&self, id: TransferId, transfer: Transfer) {
        self.with(|transfers| transfers.insert(id, transfer));
    }

    pub(super) fn remove(&self, id: TransferId) -> Option<Transfer> {
        self.with(|transfers| transfers.remove(&id))
    }

    /// The receipt for an offered transfer came: its job, and what was read of it.
    pub(super) fn delivered(&self, id: TransferId) -> Option<(Box<Job>, Arc<FileSource>)> {
        self.with(|transfers| match transfers.remove(&id)? {
            Transfer::Offered {
                job,
                source,
                progress,
                ..
            } => {
                let sent = progress.sent;
                transfers.insert(id, Transfer::Delivered { sent });
                Some((job, source))
            }
            _ => None,
        })
    }

    pub(super) fn ids(&self) -> Vec<TransferId> {
        self.with(|transfers| transfers.keys().copied().collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.with(|transfers| transfers.is_empty())
    }

    pub(super) fn is_withdrawing(&self, id: TransferId) -> bool {
        self.with(|transfers| matches!(transfers.get(&id), Some(Transfer::Withdrawing { .. })))
    }

    pub(super) fn count(&self, class: Class) -> usize {
        self.with(|transfers| transfers.values().filter(|t| t.class() == Some(class)).count())
    }

    /// Those that have made no progress for [`STALLED`].
    pub(super) fn stalled(&self, now: Instant) -> Vec<TransferId> {
        let is_stalled = |(id, transfer): (&TransferId, &mut Transfer)| match transfer {
            Transfer::Offered { progress, .. } => progress.is_stalled(now).then_some(*id),
            _ => None,
        };
        self.with(|transfers| transfers.iter_mut().filter_map(is_stalled).collect())
    }

    /// The link is gone, and with it all but what is being read again: that is not offered once more before it ends, or a
    /// large file would be read from its beginning with every link. Returns what was cut off before its answer.
    pub(super) fn cut(&self) -> Vec<TransferId> {
        self.with(|transfers| {
            let cut = transfers.extract_if(|_, t| !matches!(t, Transfer::Rereading { .. }));
            cut.filter(|(_, t)| !matches!(t, Transfer::Delivered { .. }))
                .map(|(id, _)| id)
                .collect()
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<TransferId, Transfer>) -> T) -> T {
        change(self.all.lock().entry(self.peer).or_default())
    }
}

impl Drop for OfPeer {
    fn drop(&mut self) {
        self.all.lock().remove(&self.peer);
    }
}

/// How far a transfer was when it last made progress, and when that was.
pub(super) struct Progress {
    sent: Arc<AtomicU64>,
    seen: u64,
    at: Instant,
}

impl Progress {
    /// From `now` on; the link keeps `sent` up to date.
    pub(super) fn since(now: Instant, sent: Arc<AtomicU64>) -> Self {
        Self {
            sent,
            seen: 0,
            at: now,
        }
    }

    fn is_stalled(&mut self, now: Instant) -> bool {
        let sent = self.sent.load(Ordering::Relaxed);
        if sent != self.seen {
            (self.seen, self.at) = (sent, now);
        }
        now >= self.at + STALLED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: AgentId = AgentId([1; 32]);

    fn id(number: u8) -> TransferId {
        TransferId([number; 16])
    }

    #[test]
    fn what_is_read_again_takes_room_and_outlives_the_link() {
        let all = InFlight::default();
        let peer = all.of(PEER);
        let class = Class::Large;
        peer.insert(id(1), Transfer::Rereading { class });
        peer.insert(id(2), Transfer::Withdrawing { job: None });
        let sent = Arc::new(AtomicU64::new(7));
        peer.insert(id(3), Transfer::Delivered { sent });
        assert_eq!((peer.count(Class::Large), peer.count(Class::Small)), (1, 0));
        assert!(peer.is_withdrawing(id(2)) && !peer.is_withdrawing(id(1)));
        assert_eq!((peer.cut(), peer.ids()), (vec![id(2)], vec![id(1)]));
    }

    #[test]
    fn only_what_is_being_sent_counts_as_sending_and_only_to_its_peer() {
        let all = InFlight::default();
        let (one, other) = (all.of(PEER), all.of(AgentId([2; 32])));
        let sent = Arc::new(AtomicU64::new(7));
        one.insert(id(3), Transfer::Delivered { sent });
        one.insert(id(4), Transfer::Withdrawing { job: None });
        assert_eq!((all.count(), all.ids()), (1, vec![id(3)]));
        assert_eq!((all.sending_to(PEER), all.sending_to(other.peer)), (1, 0));
        assert_eq!(all.sent_bytes(PEER, id(3)), Some(7));
        assert_eq!(all.sent_bytes(PEER, id(4)), None, "is not being sent");
        assert_eq!(all.sent_bytes(other.peer, id(3)), None, "is not its transfer");
        assert!(other.remove(id(3)).is_none() && other.delivered(id(3)).is_none());
        drop(one);
        assert_eq!(all.count(), 0, "its dispatcher ended");
    }

    #[test]
    fn a_transfer_is_stalled_when_it_makes_no_progress_for_long() {
        let begun = Instant::now();
        let sent = Arc::new(AtomicU64::new(0));
        let mut progress = Progress::since(begun, sent.clone());
        let almost = STALLED - Duration::from_secs(1);
        assert!(!progress.is_stalled(begun + almost));
        sent.store(7, Ordering::Relaxed);
        assert!(!progress.is_stalled(begun + STALLED), "more was sent");
        assert!(!progress.is_stalled(begun + STALLED + almost));
        assert!(progress.is_stalled(begun + STALLED + STALLED));
    }
}
