//! What the dispatcher remembers of one transfer that is under way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dropwire_protocol::{Digest, Receipt, ReceiptBody};
use tokio::time::Instant;

use crate::{
    link::Voided,
    queue::{Class, Job},
    send::FileSource,
};

/// A transfer that does not move for so long is broken off and offered again later: the peer answers pings but not
/// this. Long, because a receiver may read a whole large partial again before it commits.
pub const STALLED: Duration = Duration::from_secs(60 * 60);

/// What is under way for one transfer.
pub enum Flight {
    /// Offered; bytes come from `source`.
    Offered {
        job: Box<Job>,
        source: Arc<FileSource>,
        class: Class,
        moved: Moved,
    },
    /// Settled; the file is being read again, whether the link lasts or not.
    Rereading { class: Class },
    /// Withdrawn; `job` is there if its own end depends on the answer (the file is gone).
    Withdrawing { job: Option<Box<Job>> },
}

impl Flight {
    /// Whose room it takes.
    pub fn class(&self) -> Option<Class> {
        match self {
            Flight::Offered { class, .. } | Flight::Rereading { class } => Some(*class),
            Flight::Withdrawing { .. } => None,
        }
    }

    /// Does it go on without the link?
    pub fn outlives_link(&self) -> bool {
        matches!(self, Flight::Rereading { .. })
    }
}

/// How far a transfer was when it last went on, and when that was.
pub struct Moved {
    sent: Arc<AtomicU64>,
    seen: u64,
    at: Instant,
}

impl Moved {
    /// From `now` on; the link keeps `sent` up to date.
    pub fn since(now: Instant, sent: Arc<AtomicU64>) -> Moved {
        Moved {
            sent,
            seen: 0,
            at: now,
        }
    }

    /// True when nothing has moved for [`STALLED`].
    pub fn is_stalled(&mut self, now: Instant) -> bool {
        let sent = self.sent.load(Ordering::Relaxed);
        if sent != self.seen {
            (self.seen, self.at) = (sent, now);
        }
        now >= self.at + STALLED
    }
}

/// A file that was read again.
pub struct Reread {
    /// Whose file.
    pub job: Box<Job>,
    /// Found to be for this job...
    pub receipt: Receipt,
    /// ...by what it says, whose digest is to be compared with...
    pub body: ReceiptBody,
    /// ...what was read now.
    pub digest: Result<Digest, Voided>,
}

/// Why a pass was void, for people.
pub fn voided_text(why: &Voided) -> String {
    match why {
        Voided::Changed => "changed while it was being sent; waits until it rests".into(),
        Voided::Gone => "gone".into(),
        Voided::Writer => "a program has it open for writing; waits until it is closed".into(),
        Voided::PrefixDiffers => "the peer's partial is of other bytes; sent anew".into(),
        Voided::Unreadable(cause) => format!("cannot be read: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_again_takes_room_and_outlives_the_link() {
        let rereading = Flight::Rereading { class: Class::Large };
        assert!(rereading.class() == Some(Class::Large) && rereading.outlives_link());
        let withdrawing = Flight::Withdrawing { job: None };
        assert!(withdrawing.class().is_none() && !withdrawing.outlives_link());
    }

    #[test]
    fn a_transfer_is_stalled_when_nothing_moves_for_long() {
        let begun = Instant::now();
        let sent = Arc::new(AtomicU64::new(0));
        let mut moved = Moved::since(begun, sent.clone());
        let almost = STALLED - Duration::from_secs(1);
        assert!(!moved.is_stalled(begun + almost));
        sent.store(7, Ordering::Relaxed);
        assert!(!moved.is_stalled(begun + STALLED), "it went on");
        assert!(!moved.is_stalled(begun + STALLED + almost));
        assert!(moved.is_stalled(begun + STALLED + STALLED));
    }
}
