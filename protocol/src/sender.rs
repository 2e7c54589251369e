//! The sending half of a link: all transfers that leave by it, as one state machine.
//!
//! Input: what the agent wants ([`Sender::offer`], [`Sender::chunk`], …) and what the wire says
//! ([`Sender::receive`]). Output: messages to write and [`SenderEvent`]s, both taken with `poll_*`.
//!
//! ```text
//!   offer ──▶ Offered ──Accept 0──▶ Sending ──done──▶ Done ──Receipts──▶ ended
//!     └─────────eager──────────────▶ ▲  │              │
//!                                    └──┴─Accept n+1───┘
//!   from everywhere: Decline, Settled (answered by Close), close, withdraw ──▶ ended
//! ```
//!
//! What comes for an offer that has ended is ignored: it crossed with our Close or Withdraw. The serial tells it from
//! what is meant for a later offer of the same id.
//!
//! Memory: `max_open` transfers of at most `window` queued bytes each, and what the agent asks to withdraw and forget.
//! One received message makes at most one event a transfer it names.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::{
    Digest, Error, Kind, Manifest, Message, PeerMisbehaved, Receipt, RunningDigest, TransferId, Violation,
    message::{
        Accept, Ack, Chunk, Close, Committed, DeclineReason, Done, LateTime, MAX_CHUNK, MAX_PASS, Offer,
        VERSION_FOLDERS, VERSION_KEPT_TIMES, VERSION_MAX,
    },
    questions::Questions,
};

/// What the sending half wants from the agent, or has to tell it.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // the fields are the messages' own
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
    /// The receiver was told the times of these ([`Sender::retime`]), or cannot be.
    Retimed { ids: Vec<TransferId> },
}

/// The sending half of a link.
pub struct Sender {
    /// Of the protocol, as agreed on.
    version: u16,
    window: u64,
    max_open: usize,
    next_serial: u64,
    open: BTreeMap<TransferId, Transfer>,
    questions: Questions,
    /// Offers and Closes to write. A transfer's Close goes ahead of its chunks only because those are dropped.
    control: VecDeque<Message>,
    /// Transfers that have chunks to write, each once: they take turns.
    turns: VecDeque<TransferId>,
    events: VecDeque<SenderEvent>,
}

struct Transfer {
    serial: u64,
    size: u64,
    state: State,
    /// Chunks and Done to write, all of the current pass.
    data: VecDeque<Message>,
}

enum State {
    /// Waits for the receiver's word.
    Offered,
    /// The agent reads and gives chunks.
    Sending(Pass),
    /// All was given; waits for the receipt.
    Done(Pass),
}

/// One go over the file, from some offset to its end.
struct Pass {
    number: u32,
    /// First byte not given yet.
    next: u64,
    /// First byte that the receiver has not written, as far as we know.
    acked: u64,
}

impl Sender {
    /// `window` and `max_open` are what the other side's Hello allows.
    pub fn new(window: u64, max_open: u32) -> Self {
        Self {
            version: VERSION_MAX,
            window,
            max_open: max_open as usize,
            next_serial: 0,
            open: BTreeMap::new(),
            questions: Questions::default(),
            control: VecDeque::new(),
            turns: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// On a link that agreed on this version; without it, the newest.
    pub fn speaking(self, version: u16) -> Self {
        Self { version, ..self }
    }

    /// Room for another offer?
    pub fn can_offer(&self) -> bool {
        self.open.len() < self.max_open
    }

    /// Begins a transfer. With `eager` (taken for false where it is not [small](Manifest::is_small)) a `Read` of pass 0
    /// from offset 0 follows at once. A folder that the other side's version does not know is [`SenderEvent::Declined`]
    /// here. False: already open, its withdrawal unanswered, or no room; nothing happened.
    pub fn offer(&mut self, id: TransferId, manifest: Manifest, eager: bool) -> bool {
        if !self.can_offer() || self.open.contains_key(&id) || self.questions.withdrawing(id) {
            return false;
        }
        let (serial, size) = (self.next_serial, manifest.size);
        if manifest.kind == Kind::Folder && self.version < VERSION_FOLDERS {
            self.events.push_back(SenderEvent::Declined {
                id,
                reason: DeclineReason::NoFolders,
                text: "its dropwire is too old for whole folders".into(),
                retry_after_ms: None,
            });
            return true;
        }
        let eager = eager && manifest.is_small();
        self.next_serial += 1;
        self.control.push_back(Message::Offer(Offer {
            id,
            manifest,
            eager,
            serial,
        }));
        self.open.insert(
            id,
            Transfer {
                serial,
                size,
                state: State::Offered,
                data: VecDeque::new(),
            },
        );
        if eager {
            self.begin(id, 0, 0, RunningDigest::default().value());
        }
        true
    }

    /// How many bytes of this transfer's pass may be sent now (window less what is not acknowledged); 0 when the
    /// transfer is not open or the pass is not its current one.
    pub fn credit(&self, id: TransferId, pass: u32) -> u64 {
        match self.open.get(&id).map(|transfer| &transfer.state) {
            Some(State::Sending(current)) if current.number == pass => {
                self.window.saturating_sub(current.next - current.acked)
            }
            _ => 0,
        }
    }

    /// The next bytes of a pass: 1 to MAX_CHUNK, in order, within [`Sender::credit`] and the announced size. A chunk of a
    /// pass that is no longer current is dropped.
    pub fn chunk(&mut self, id: TransferId, pass: u32, offset: u64, bytes: Bytes, digest: Digest) {
        let credit = self.credit(id, pass);
        let Some((size, current)) = sending(&mut self.open, id, pass) else {
            return;
        };
        let length = bytes.len() as u64;
        let fits =
            (1..=MAX_CHUNK as u64).contains(&length) && length <= credit && length <= size - current.next;
        debug_assert!(fits && offset == current.next, "a chunk that must not be sent");
        if !fits || offset != current.next {
            return;
        }
        current.next += length;
        self.give(
            id,
            Message::Chunk(Chunk {
                id,
                pass,
                offset,
                digest,
                bytes,
            }),
        );
    }

    /// All bytes of a pass were given and checked to be one version. Dropped when the pass is not current.
    pub fn done(&mut self, id: TransferId, pass: u32, digest: Digest) {
        let Some(transfer) = self.open.get_mut(&id) else {
            return;
        };
        match std::mem::replace(&mut transfer.state, State::Offered) {
            State::Sending(current) if current.number == pass && current.next == transfer.size => {
                transfer.state = State::Done(current);
                self.give(id, Message::Done(Done { id, pass, digest }));
            }
            other => transfer.state = other,
        }
    }

    /// Breaks off; ends the transfer here, the receiver keeps what it has.
    pub fn close(&mut self, id: TransferId) {
        if let Some(serial) = self.end(id) {
            self.control.push_back(Message::Close(Close { id, serial }));
        }
    }

    /// Asks for the outcome of a transfer that will not be sent (again); open or not.
    pub fn withdraw(&mut self, id: TransferId) {
        // The question may have to wait; the room for another offer is free at once, so the other side must know at once.
        self.close(id);
        self.questions.withdraw(id);
    }

    /// Lets the receiver forget transfers whose outcome is on our disk, and tells it `times` that came late of some of
    /// them. Splits into batches.
    pub fn forget(&mut self, ids: Vec<TransferId>, times: Vec<LateTime>) {
        self.questions.forget(ids, times);
    }

    /// Tells the receiver times that came late of transfers that it is not to forget yet. To one whose version does not
    /// know that, nothing is said.
    pub fn retime(&mut self, times: Vec<LateTime>) {
        if self.version >= VERSION_KEPT_TIMES {
            return self.questions.retime(times);
        }
        let ids = times.into_iter().map(|late| late.id).collect();
        self.events.push_back(SenderEvent::Retimed { ids });
    }

    /// A message for the sending half: Accept, Decline, Settled, Ack, Receipts, Withdrawn, Forgotten.
    pub fn receive(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Accept(accept) => self.accepted(accept),
            Message::Ack(ack) => self.acknowledged(ack),
            Message::Receipts(receipts) => receipts.receipts.into_iter().try_for_each(|c| self.committed(c)),
            Message::Decline(decline) => {
                let id = decline.id;
                if self.current("Decline", id, decline.serial)?.is_some() {
                    self.close(id);
                    self.events.push_back(SenderEvent::Declined {
                        id,
                        reason: decline.reason,
                        text: decline.text,
                        retry_after_ms: decline.retry_after_ms,
                    });
                }
                Ok(())
            }
            Message::Settled(settled) => {
                let id = settled.id;
                match settled.serial {
                    Some(serial) if self.current("Settled", id, serial)?.is_none() => return Ok(()),
                    Some(_) => self.close(id),
                    None => self.questions.answered_withdraw("Settled", id)?,
                }
                self.events.push_back(SenderEvent::Settled {
                    id,
                    receipt: settled.receipt,
                });
                Ok(())
            }
            Message::Withdrawn(withdrawn) => {
                self.questions.answered_withdraw("Withdrawn", withdrawn.id)?;
                self.events.push_back(SenderEvent::Withdrawn { id: withdrawn.id });
                Ok(())
            }
            Message::Forgotten(forgotten) => {
                let (forgotten, retimed) = self.questions.answered_forget(forgotten.ids)?;
                if !forgotten.is_empty() {
                    self.events.push_back(SenderEvent::Forgotten { ids: forgotten });
                }
                if !retimed.is_empty() {
                    self.events.push_back(SenderEvent::Retimed { ids: retimed });
                }
                Ok(())
            }
            other => Err(PeerMisbehaved::NotForSender(other.name()).into()),
        }
    }

    /// The next message to write: offers, closes and questions first, then chunks, the transfers taking turns.
    pub fn poll_message(&mut self) -> Option<Message> {
        if let Some(message) = self.control.pop_front().or_else(|| self.questions.poll()) {
            return Some(message);
        }
        let id = self.turns.pop_front()?;
        let transfer = self.open.get_mut(&id)?;
        let message = transfer.data.pop_front();
        if !transfer.data.is_empty() {
            self.turns.push_back(id);
        }
        message
    }

    /// The next event for the agent.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    fn accepted(&mut self, accept: Accept) -> Result<(), Error> {
        let Accept {
            id,
            pass,
            offset,
            digest,
            serial,
        } = accept;
        let Some(transfer) = self.current("Accept", id, serial)? else {
            return Ok(());
        };
        let size = transfer.size;
        let (expected, sent) = match &transfer.state {
            State::Offered => (0, None),
            State::Sending(current) | State::Done(current) => (current.number + 1, Some(current.next)),
        };
        let violation = match sent {
            _ if pass != expected => Some(Violation::WrongPass { pass, expected }),
            _ if pass > MAX_PASS => Some(Violation::TooManyPasses(pass)),
            None if offset > size => Some(Violation::BeyondSize { offset, size }),
            Some(sent) if offset > sent => Some(Violation::NotSent { offset, sent }),
            _ => None,
        };
        if let Some(violation) = violation {
            return Err(Error::violation("Accept", id, violation));
        }
        self.begin(id, pass, offset, digest);
        Ok(())
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<(), Error> {
        let Ack {
            id,
            pass,
            offset,
            serial,
        } = ack;
        let Some(transfer) = self.current("Ack", id, serial)? else {
            return Ok(());
        };
        let violation = match &mut transfer.state {
            State::Offered => Violation::NotAccepted,
            State::Sending(current) | State::Done(current) => {
                let (expected, before, sent) = (current.number, current.acked, current.next);
                if pass != expected {
                    Violation::WrongPass { pass, expected }
                } else if offset < before {
                    Violation::FallingOffset { offset, before }
                } else if offset > sent {
                    Violation::NotSent { offset, sent }
                } else {
                    current.acked = offset;
                    self.events.push_back(SenderEvent::Progress { id, offset });
                    return Ok(());
                }
            }
        };
        Err(Error::violation("Ack", id, violation))
    }

    fn committed(&mut self, committed: Committed) -> Result<(), Error> {
        let Committed { id, serial, receipt } = committed;
        match self
            .current("Receipts", id, serial)?
            .map(|transfer| &transfer.state)
        {
            None => Ok(()),
            Some(State::Done(_)) => {
                self.end(id);
                self.events.push_back(SenderEvent::Delivered { id, receipt });
                Ok(())
            }
            Some(_) => Err(Error::violation("Receipts", id, Violation::NotDone)),
        }
    }

    /// The transfer, if that offer is still the one that counts.
    fn current(
        &mut self,
        message: &'static str,
        id: TransferId,
        serial: u64,
    ) -> Result<Option<&mut Transfer>, Error> {
        if serial >= self.next_serial {
            return Err(Error::violation(message, id, Violation::UnknownSerial(serial)));
        }
        Ok(self
            .open
            .get_mut(&id)
            .filter(|transfer| transfer.serial == serial))
    }

    /// Starts a pass; what was queued of the one before is void.
    fn begin(&mut self, id: TransferId, number: u32, offset: u64, digest: Digest) {
        let Some(transfer) = self.open.get_mut(&id) else {
            return;
        };
        transfer.state = State::Sending(Pass {
            number,
            next: offset,
            acked: offset,
        });
        transfer.data.clear();
        self.turns.retain(|waiting| *waiting != id);
        self.events.push_back(SenderEvent::Read {
            id,
            pass: number,
            offset,
            digest,
        });
    }

    fn give(&mut self, id: TransferId, message: Message) {
        let Some(transfer) = self.open.get_mut(&id) else {
            return;
        };
        if transfer.data.is_empty() {
            self.turns.push_back(id);
        }
        transfer.data.push_back(message);
    }

    /// Takes a transfer out with all it had to write. Gives its serial if the other side has, or will have, read its
    /// offer.
    fn end(&mut self, id: TransferId) -> Option<u64> {
        let ended = self.open.remove(&id)?;
        self.turns.retain(|waiting| *waiting != id);
        let unwritten = |message: &Message| matches!(message, Message::Offer(offer) if offer.id == id);
        match self.control.iter().position(unwritten) {
            Some(at) => {
                self.control.remove(at);
                None
            }
            None => Some(ended.serial),
        }
    }
}

fn sending(open: &mut BTreeMap<TransferId, Transfer>, id: TransferId, pass: u32) -> Option<(u64, &mut Pass)> {
    let transfer = open.get_mut(&id)?;
    match &mut transfer.state {
        State::Sending(current) if current.number == pass => Some((transfer.size, current)),
        _ => None,
    }
}
