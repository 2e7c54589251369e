//! The sending half of a link: all transfers that leave by it, as one state machine.
//!
//! Input: what the agent wants ([`Sender::offer`], [`Sender::chunk`], …) and what the wire says
//! ([`Sender::receive`]). Output: messages to write and [`SenderEvent`]s, both taken with `poll_*`.

use bytes::Bytes;

use crate::{Digest, Error, Manifest, Message, Receipt, TransferId, message::DeclineReason};

/// What the sending half wants from the agent, or has to tell it.
#[derive(Clone, PartialEq, Debug)]
pub enum SenderEvent {
    /// Read the file from `offset` and give its bytes to [`Sender::chunk`] as this pass. What was read for
    /// earlier passes is void. `digest` is what the receiver holds before `offset`: where the file's own prefix
    /// has another digest, the agent starts over by [`Sender::close`] (the drop gets a new counter).
    Read {
        id: TransferId,
        pass: u32,
        offset: u64,
        digest: Digest,
    },
    /// The receiver has written all bytes before `offset`.
    Progress { id: TransferId, offset: u64 },
    /// Committed at the receiver, in answer to this Done. Ends the transfer.
    Delivered { id: TransferId, receipt: Receipt },
    /// It was delivered earlier: before this offer, or before a withdraw. Ends the transfer.
    Settled { id: TransferId, receipt: Receipt },
    /// Not taken now. Ends the transfer.
    Declined {
        id: TransferId,
        reason: DeclineReason,
        text: String,
        retry_after_ms: Option<u64>,
    },
    /// Never will be delivered. Ends the transfer.
    Withdrawn { id: TransferId },
    /// The receiver forgot these.
    Forgotten { ids: Vec<TransferId> },
}

/// The sending half of a link.
pub struct Sender {}

impl Sender {
    /// `window` and `max_open` are what the other side's Hello allows.
    pub fn new(window: u64, max_open: u32) -> Self {
        let _ = (window, max_open);
        todo!()
    }

    /// Room for another offer?
    pub fn can_offer(&self) -> bool {
        todo!()
    }

    /// Begins a transfer. With `eager` (size at most MAX_EAGER) a `Read` of pass 0 from offset 0 follows at once.
    /// False: already open or no room; nothing happened.
    pub fn offer(&mut self, id: TransferId, manifest: Manifest, eager: bool) -> bool {
        let _ = (id, manifest, eager);
        todo!()
    }

    /// How many bytes of this transfer's pass may be sent now (window less what is not acknowledged); 0 when the
    /// transfer is not open or the pass is not its current one.
    pub fn credit(&self, id: TransferId, pass: u32) -> u64 {
        let _ = (id, pass);
        todo!()
    }

    /// The next bytes of a pass, in order. A chunk of a pass that is no longer current is dropped.
    pub fn chunk(&mut self, id: TransferId, pass: u32, offset: u64, bytes: Bytes, digest: Digest) {
        let _ = (id, pass, offset, bytes, digest);
        todo!()
    }

    /// All bytes of a pass were given and checked to be one version. Dropped when the pass is not current.
    pub fn done(&mut self, id: TransferId, pass: u32, digest: Digest) {
        let _ = (id, pass, digest);
        todo!()
    }

    /// Breaks off; ends the transfer here, the receiver keeps what it has.
    pub fn close(&mut self, id: TransferId) {
        let _ = id;
        todo!()
    }

    /// Asks for the outcome of a transfer that will not be sent (again); open or not.
    pub fn withdraw(&mut self, id: TransferId) {
        let _ = id;
        todo!()
    }

    /// Lets the receiver forget transfers whose outcome is on our disk. Splits into batches.
    pub fn forget(&mut self, ids: Vec<TransferId>) {
        let _ = ids;
        todo!()
    }

    /// A message for the sending half: Accept, Decline, Settled, Ack, Receipts, Withdrawn, Forgotten.
    pub fn receive(&mut self, message: Message) -> Result<(), Error> {
        let _ = message;
        todo!()
    }

    /// The next message to write.
    pub fn poll_message(&mut self) -> Option<Message> {
        todo!()
    }

    /// The next event for the agent.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        todo!()
    }
}
