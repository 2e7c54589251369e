//! What passes between the receiving half and the storage: commands one way, outcomes the other.

use bytes::Bytes;

use crate::{
    Digest, Manifest, Receipt, TransferId,
    message::{DeclineReason, LateTime},
};

/// Tells one offer of a transfer from the next one of the same id, so that late outcomes do no harm. Rises over a link.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OfferSequence(pub u64);

/// What the storage is to do.
///
/// **Passes.** The storage numbers the passes of an offer from 0: each [`Outcome::Damaged`] begins the next one and
/// says its number, and from then on each Write and Finish of a lower `pass` is dropped: it was under way before the
/// damage was known. How many passes there may be ([`MAX_PASS`](crate::message::MAX_PASS)) the receiving half knows.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // the fields are the messages' own
pub enum Command {
    /// Look the transfer up (R1), open its partial. Answered by Opened, Settled or Refused.
    Open {
        id: TransferId,
        sequence: OfferSequence,
        manifest: Manifest,
        eager: bool,
    },
    /// Write at `offset` (always the next byte of the pass) and check that SHA-256 over the file up to this chunk's
    /// end is `digest`. Answered (now and then, at the latest at every window's quarter) by Written, or by Damaged.
    Write {
        id: TransferId,
        sequence: OfferSequence,
        pass: u32,
        offset: u64,
        bytes: Bytes,
        digest: Digest,
    },
    /// All bytes came; commit (R4 to R9) if the digest agrees. Answered by Committed, Damaged or Refused.
    Finish {
        id: TransferId,
        sequence: OfferSequence,
        pass: u32,
        digest: Digest,
    },
    /// The sender broke off, or the link ended: keep what there is, no answer.
    Release { id: TransferId, sequence: OfferSequence },
    /// Never deliver it (tombstone), unless it was. Answered by Withdrawn or Settled. Any open one is ended by it.
    Withdraw { id: TransferId },
    /// The sender knows the outcome; some files got another modification time since. Answered by Forgotten once durable:
    /// of `ids`, or of those of `times` where there are none; these are kept.
    Forget {
        ids: Vec<TransferId>,
        times: Vec<LateTime>,
    },
}

/// What the storage answers.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // the fields are the messages' own
pub enum Outcome {
    /// Ready for bytes from `offset` on; `digest` is of what lies before. Of an eager one, whose bytes come unasked, it
    /// need not be said.
    Opened {
        id: TransferId,
        sequence: OfferSequence,
        offset: u64,
        digest: Digest,
    },
    /// All bytes before `offset` are written (not: durable).
    Written {
        id: TransferId,
        sequence: OfferSequence,
        offset: u64,
    },
    /// Damage was found; the partial was cut to `offset`, whose prefix has `digest`, and pass `pass` begins there
    /// (see [`Command`] on passes). May come whenever the transfer is open, also before any Write and after Finish.
    Damaged {
        id: TransferId,
        sequence: OfferSequence,
        pass: u32,
        offset: u64,
        digest: Digest,
    },
    /// Committed: bytes, name and receipt are durable. Ends the offer.
    Committed {
        id: TransferId,
        sequence: OfferSequence,
        receipt: Receipt,
    },
    /// Delivered earlier. Answers Open (and ends the offer) or Withdraw (then `sequence` is None).
    Settled {
        id: TransferId,
        sequence: Option<OfferSequence>,
        receipt: Receipt,
    },
    /// Not taken now; ends the offer.
    Refused {
        id: TransferId,
        sequence: OfferSequence,
        reason: DeclineReason,
        text: String,
        retry_after_ms: Option<u64>,
    },
    /// Will never be delivered.
    Withdrawn { id: TransferId },
    /// Durably forgotten.
    Forgotten { ids: Vec<TransferId> },
}
