//! What goes back to a link about a transfer.

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

use dropwire_protocol::{
    Digest, Receipt, TransferId,
    message::DeclineReason,
    receiver::{OfferSequence, Outcome},
};
use tokio::sync::mpsc;

use super::{declines::Declines, disks, inbox_dir::Trouble, place::PlaceError, space::Short};
use crate::{
    db::DbError,
    error::{chain, shown},
    failpoints,
    io_error::{Meaning, Wait, meaning},
    poison::Unpoisoned as _,
};

/// Milliseconds after which an inbox that was away is asked again.
const AWAY_MS: u64 = 30_000;
/// Milliseconds after which a full disk is asked again.
pub(super) const FULL_MS: u64 = 60_000;
/// Milliseconds after which a machine that was short of something is asked again.
const SHORT_MS: u64 = 5_000;

/// The way back to one link. Never blocks: a link that takes no outcomes must not hold up the others, so one that
/// lets the channel fill up is cut off (its end of the channel closes).
#[derive(Clone)]
pub(super) struct Outcomes {
    declines: Arc<Declines>,
    sender: Arc<Mutex<Option<mpsc::Sender<Outcome>>>>,
}

impl Outcomes {
    /// Over `sender`, whose capacity is far above what a live link lets wait.
    pub(super) fn new(sender: mpsc::Sender<Outcome>, declines: Arc<Declines>) -> Self {
        Self {
            declines,
            sender: Arc::new(Mutex::new(Some(sender))),
        }
    }

    /// Sends; without effect once the link is gone.
    pub(super) fn send(&self, outcome: Outcome) {
        match &outcome {
            Outcome::Refused { id, reason, text, .. } if *reason == DeclineReason::NoSpace => {
                self.declines.declined(*id, text, Instant::now());
            }
            Outcome::Opened { id, .. }
            | Outcome::Committed { id, .. }
            | Outcome::Settled { id, .. }
            | Outcome::Withdrawn { id } => self.declines.waits_no_more(*id),
            _ => {}
        }
        let mut sender = self.sender.lock().unpoisoned();
        let Some(link) = &*sender else {
            return;
        };
        if let Err(refused) = link.try_send(outcome) {
            if matches!(refused, mpsc::error::TrySendError::Full(_)) {
                tracing::warn!("a link does not take the inbox's answers and is cut off");
            }
            *sender = None;
        }
    }
}

/// How an offer ends.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Answer {
    /// Delivered just now.
    Committed(Receipt),
    /// Delivered earlier.
    Settled(Receipt),
    /// Not taken now.
    Refused(Refusal),
    /// Nothing can be said: a commit failed and may or may not be there after the restart.
    Silent,
}

/// Why a transfer is not taken now.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Refusal {
    /// For the sender's agent.
    pub reason: DeclineReason,
    /// For people.
    pub text: String,
    /// When asking again makes sense, in milliseconds; None: the sender's own backoff.
    pub retry_after_ms: Option<u64>,
    /// The disk says so, and nothing else tells of it here.
    by_disk: bool,
}

impl Answer {
    /// Not taken.
    pub(super) fn refused(
        reason: DeclineReason,
        text: impl Into<String>,
        retry_after_ms: Option<u64>,
    ) -> Self {
        Self::Refused(Refusal {
            reason,
            text: text.into(),
            retry_after_ms,
            by_disk: false,
        })
    }

    /// The path cannot be one here.
    pub(super) fn bad_name(why: &impl fmt::Display) -> Self {
        let text = format!("the path cannot be used here: {why}");
        Self::refused(DeclineReason::BadName, text, None)
    }

    /// A failed file operation; `doing` says which.
    pub(super) fn io(doing: &str, error: &io::Error) -> Self {
        let (reason, retry_after_ms) = decline(error);
        let lasts = matches!(reason, DeclineReason::InboxUnavailable | DeclineReason::DiskError);
        Self::Refused(Refusal {
            reason,
            text: format!("{doing}: {error}"),
            retry_after_ms,
            by_disk: lasts && !disks::is_missing(error) && !failpoints::mutant("declines-by-disk"),
        })
    }
}

/// How a failed file operation is told to the sender, with the milliseconds after which asking again makes sense.
fn decline(error: &io::Error) -> (DeclineReason, Option<u64>) {
    use io::ErrorKind as K;
    match (meaning(error), error.kind()) {
        (Meaning::Lost, K::StorageFull | K::QuotaExceeded) | (Meaning::NotNow(Wait::Space), _) => {
            (DeclineReason::NoSpace, Some(FULL_MS))
        }
        (Meaning::Lost | Meaning::NotNow(Wait::Device), _) => (DeclineReason::DiskError, None),
        (Meaning::NotNow(Wait::Shortage | Wait::Busy), _) => (DeclineReason::Busy, Some(SHORT_MS)),
        (Meaning::Never, K::FileTooLarge) => (DeclineReason::TooLarge, None),
        (Meaning::NotNow(Wait::Access) | Meaning::Never | Meaning::NotOurs, _) => {
            (DeclineReason::InboxUnavailable, Some(AWAY_MS))
        }
    }
}

/// Does this error cast doubt on what was written before it?
pub(super) fn spoils(error: &io::Error) -> bool {
    matches!(meaning(error), Meaning::Lost | Meaning::NotNow(Wait::Device))
}

impl From<Trouble> for Answer {
    fn from(trouble: Trouble) -> Self {
        Self::refused(DeclineReason::InboxUnavailable, trouble.reason, Some(AWAY_MS))
    }
}

impl From<DbError> for Answer {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Failed(_) => Self::Silent,
            DbError::NotNow(..) => Self::refused(DeclineReason::Busy, chain(&error), Some(SHORT_MS)),
            DbError::Change(_) => Self::refused(DeclineReason::DiskError, chain(&error), None),
        }
    }
}

impl From<PlaceError> for Answer {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::BadName(why) => Self::bad_name(&why),
            PlaceError::Io(e) => Self::io("finding the file's folder", &e),
        }
    }
}

/// Answers for one offer of one transfer.
pub(super) struct Reply {
    /// To which link.
    pub outcomes: Outcomes,
    /// About which transfer.
    pub id: TransferId,
    /// Which offer of it.
    pub sequence: OfferSequence,
}

impl Reply {
    /// Ready for bytes from `offset` on.
    pub(super) fn opened(&self, offset: u64, digest: Digest) {
        self.outcomes.send(Outcome::Opened {
            id: self.id,
            sequence: self.sequence,
            offset,
            digest,
        });
    }

    /// All bytes before `offset` are written.
    pub(super) fn written(&self, offset: u64) {
        self.outcomes.send(Outcome::Written {
            id: self.id,
            sequence: self.sequence,
            offset,
        });
    }

    /// Cut to `offset`, where pass `pass` begins.
    pub(super) fn damaged(&self, pass: u32, offset: u64, digest: Digest) {
        self.outcomes.send(Outcome::Damaged {
            id: self.id,
            sequence: self.sequence,
            pass,
            offset,
            digest,
        });
    }

    /// The last answer to this offer.
    pub(super) fn end(&self, answer: Answer) {
        let (id, sequence) = (self.id, self.sequence);
        if let Answer::Refused(refusal) = &answer
            && refusal.by_disk
        {
            self.outcomes.declines.declined(id, &refusal.text, Instant::now());
        }
        self.outcomes.send(match answer {
            Answer::Committed(receipt) => Outcome::Committed {
                id,
                sequence,
                receipt,
            },
            Answer::Settled(receipt) => Outcome::Settled {
                id,
                sequence: Some(sequence),
                receipt,
            },
            Answer::Refused(Refusal {
                reason,
                text,
                retry_after_ms,
                ..
            }) => Outcome::Refused {
                id,
                sequence,
                reason,
                text,
                retry_after_ms,
            },
            Answer::Silent => return,
        });
    }
}

/// How a lack of room is told.
pub(super) fn short(short: Short) -> Answer {
    Answer::refused(DeclineReason::NoSpace, short.to_string(), Some(FULL_MS))
}

/// How a lack of room on a disk inside the inbox is told.
pub(super) fn short_on(path: &Path, short: Short) -> Answer {
    let text = format!("the disk at {}: {short}", shown(path));
    Answer::refused(DeclineReason::NoSpace, text, Some(FULL_MS))
}

/// Said of a partial that somebody took out of the partials' folder.
pub(super) fn taken() -> Answer {
    let text = "its partial was taken out of the inbox's .dropwire/partial before it was delivered; it is received again";
    Answer::refused(DeclineReason::Busy, text, Some(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn errors_are_told_by_what_they_mean() {
        use DeclineReason::*;
        let table = [
            (libc::ENOSPC, NoSpace, false),
            (libc::EDQUOT, NoSpace, false),
            (libc::EFBIG, TooLarge, false),
            (libc::EROFS, InboxUnavailable, false),
            (libc::EACCES, InboxUnavailable, false),
            (libc::EXDEV, InboxUnavailable, false),
            (libc::ENOENT, InboxUnavailable, false),
            (libc::EMFILE, Busy, false),
            (libc::ENFILE, Busy, false),
            (libc::ENOMEM, Busy, false),
            (libc::EINTR, Busy, false),
            (libc::EIO, DiskError, true),
        ];
        for (code, reason, spoiled) in table {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!((decline(&error).0, spoils(&error)), (reason, spoiled), "{code}");
            let lost = crate::io_error::LostWrite::wrap(error);
            let reason = if reason == NoSpace { NoSpace } else { DiskError };
            assert_eq!((decline(&lost).0, spoils(&lost)), (reason, true), "lost: {code}");
        }
    }

    #[test]
    fn a_job_list_that_cannot_be_read_now_is_asked_again() {
        let error = Arc::new(rusqlite::Error::InvalidQuery);
        let Answer::Refused(refusal) = DbError::NotNow(Wait::Shortage, error).into() else {
            panic!("it is refused")
        };
        assert_eq!(
            (refusal.reason, refusal.retry_after_ms),
            (DeclineReason::Busy, Some(SHORT_MS))
        );
    }

    #[test]
    fn a_link_that_takes_nothing_is_cut_off() {
        let (sender, mut receiver) = mpsc::channel(2);
        let outcomes = Outcomes::new(sender, Arc::default());
        for _ in 0..3 {
            outcomes.send(Outcome::Withdrawn {
                id: TransferId([0; 16]),
            });
        }
        assert!(receiver.blocking_recv().is_some());
        assert!(receiver.blocking_recv().is_some());
        assert!(receiver.blocking_recv().is_none(), "closed");
    }
}
