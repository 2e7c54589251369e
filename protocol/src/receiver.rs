//! The receiving half of a link: all transfers that arrive by it, as one state machine.
//!
//! Input: the wire ([`Receiver::receive`]) and the storage's [`Outcome`]s ([`Receiver::outcome`]).
//! Output: messages to write and [`Command`]s for the storage.
//!
//! The machine checks order, passes, lengths and quotas; the storage hashes, writes and commits. Commands for one
//! transfer are carried out in order; those for a transfer that the storage does not have open are ignored by it.
//! A Receipt leaves only in answer to a `Committed` outcome.

use bytes::Bytes;

use crate::{Digest, Error, Manifest, Message, Receipt, TransferId, message::DeclineReason};

/// Tells one opening of a transfer from the next one of the same id, so that late outcomes do no harm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Opening(pub u64);

/// What the storage is to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Look the transfer up (R1), open its partial. Answered by Opened, Settled or Refused.
    Open {
        id: TransferId,
        opening: Opening,
        manifest: Manifest,
        eager: bool,
    },
    /// Write at `offset` (always the next byte of the pass) and check that SHA-256 over the file up to this chunk's
    /// end is `digest`. Answered (now and then, at the latest at every window's quarter) by Written, or by Damaged.
    Write {
        id: TransferId,
        opening: Opening,
        offset: u64,
        bytes: Bytes,
        digest: Digest,
    },
    /// All bytes came; commit (R4 to R9) if the digest agrees. Answered by Committed, Damaged or Refused.
    Finish {
        id: TransferId,
        opening: Opening,
        digest: Digest,
    },
    /// The sender broke off, or the link ended: keep what there is, no answer.
    Release { id: TransferId, opening: Opening },
    /// Never deliver it (tombstone), unless it was. Answered by Withdrawn or Settled. Any open one is ended by it.
    Withdraw { id: TransferId },
    /// The sender knows the outcome. Answered by Forgotten once durable.
    Forget { ids: Vec<TransferId> },
}

/// What the storage answers.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// Ready for bytes from `offset` on; `digest` is of what lies before. Always 0 for an eager one.
    Opened {
        id: TransferId,
        opening: Opening,
        offset: u64,
        digest: Digest,
    },
    /// All bytes before `offset` are written (not: durable).
    Written {
        id: TransferId,
        opening: Opening,
        offset: u64,
    },
    /// Damage was found; the partial was cut to `offset`, whose prefix has `digest`. The storage ignores further
    /// Write and Finish of this opening until it gets a Write at exactly `offset`... which only the new pass sends.
    Damaged {
        id: TransferId,
        opening: Opening,
        offset: u64,
        digest: Digest,
    },
    /// Committed: bytes, name and receipt are durable. Ends the opening.
    Committed {
        id: TransferId,
        opening: Opening,
        receipt: Receipt,
    },
    /// Delivered earlier. Answers Open (and ends the opening) or Withdraw (then `opening` is None).
    Settled {
        id: TransferId,
        opening: Option<Opening>,
        receipt: Receipt,
    },
    /// Not taken now; ends the opening.
    Refused {
        id: TransferId,
        opening: Opening,
        reason: DeclineReason,
        text: String,
        retry_after_ms: Option<u64>,
    },
    /// Will never be delivered.
    Withdrawn { id: TransferId },
    /// Durably forgotten.
    Forgotten { ids: Vec<TransferId> },
}

/// The receiving half of a link.
pub struct Receiver {}

impl Receiver {
    /// `window` and `max_open` are what our Hello allowed; `max_file_size` is the peer's limit from the config.
    pub fn new(window: u64, max_open: u32, max_file_size: Option<u64>) -> Self {
        let _ = (window, max_open, max_file_size);
        todo!()
    }

    /// A message for the receiving half: Offer, Chunk, Done, Close, Withdraw, Forget.
    pub fn receive(&mut self, message: Message) -> Result<(), Error> {
        let _ = message;
        todo!()
    }

    /// What the storage answered.
    pub fn outcome(&mut self, outcome: Outcome) {
        let _ = outcome;
        todo!()
    }

    /// The link ends: Release for everything open comes out of `poll_command`.
    pub fn release_all(&mut self) {
        todo!()
    }

    /// The next message to write; receipts that wait together come in one message.
    pub fn poll_message(&mut self) -> Option<Message> {
        todo!()
    }

    /// The next command for the storage.
    pub fn poll_command(&mut self) -> Option<Command> {
        todo!()
    }
}
