//! What the receiving half knows of one transfer.

use super::{Command, OfferSequence};
use crate::{Message, Receipt, TransferId, Violation};

/// One transfer at the receiving half.
pub(super) struct Transfer {
    /// The offer's serial, by which the storage knows it too ([`OfferSequence`]).
    pub(super) serial: u64,
    pub(super) size: u64,
    pub(super) state: State,
    /// Accept, Decline or Settled that is still to be written.
    pub(super) reply: Option<Message>,
    /// An Ack is to be written, after `word`.
    pub(super) ack: bool,
}

/// Where it stands; see the picture in the parent.
pub(super) enum State {
    /// The storage looks it up.
    Opening,
    /// Chunks are welcome.
    Receiving(Pass),
    /// Done came; the storage commits.
    Finishing(Pass),
    /// On disk; the receipt waits to be written.
    Committed(Receipt),
    /// Declined or settled; whatever the sender sent before it knew is dropped until its Close.
    Refused,
}

/// One go over the file, from some offset to its end.
pub(super) struct Pass {
    pub(super) number: u32,
    /// First byte that did not come yet.
    pub(super) next: u64,
    /// First byte that is not written yet.
    pub(super) written: u64,
    /// What the sender was told of `written`.
    pub(super) acked: u64,
}

impl Pass {
    pub(super) fn new(number: u32, offset: u64) -> Self {
        Self {
            number,
            next: offset,
            written: offset,
            acked: offset,
        }
    }
}

impl State {
    /// What a message breaks that is not allowed in this state.
    pub(super) fn violation(&self) -> Violation {
        match self {
            Self::Opening => Violation::Opening,
            Self::Receiving(_) => Violation::Receiving,
            Self::Finishing(_) => Violation::Finishing,
            Self::Committed(_) => Violation::Committed,
            Self::Refused => Violation::Refused,
        }
    }
}

impl Transfer {
    /// What the storage has to be told when a transfer goes: nothing if it ended the offer itself.
    pub(super) fn release(&self, id: TransferId) -> Option<Command> {
        let sequence = OfferSequence(self.serial);
        match self.state {
            State::Opening | State::Receiving(_) | State::Finishing(_) => {
                Some(Command::Release { id, sequence })
            }
            State::Committed(_) | State::Refused => None,
        }
    }
}
