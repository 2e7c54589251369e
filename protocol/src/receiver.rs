//! The receiving half of a link: all transfers that arrive by it, as one state machine.
//!
//! Input: the wire ([`Receiver::receive`]) and the storage's [`Outcome`]s ([`Receiver::outcome`]).
//! Output: messages to write and [`Command`]s for the storage.
//!
//! ```text
//!   Offer ──▶ Opening ──Opened──▶ Receiving ──Done──▶ Finishing ──Committed──▶ Committed ──Receipts written──▶ gone
//!     │ eager ─────────────────────▶ ▲ │                  │
//!     │                              └─┴────Damaged───────┘
//!     └─▶ Refused ◀── Settled, Refused from the storage, quotas;   ends with Close
//!   from everywhere: Close, Withdraw ──▶ gone
//! ```
//!
//! The machine checks order, passes, lengths and quotas; the storage hashes, writes and commits. Commands for one
//! transfer are carried out in order; those for a transfer that the storage does not have open are ignored by it.
//! A receipt exists here only in the state Committed, which only a `Committed` outcome makes.
//!
//! Memory: at most twice `max_open` transfers (refused ones and unwritten receipts count), at most MAX_ASKED answers to
//! Withdraw and Forget. One received message makes at most one command, so who drains them before the next one holds
//! at most that many; of chunks a transfer has at most `window` bytes under way.

mod state;
mod storage;

use std::collections::{BTreeMap, VecDeque};

use crate::{
    Digest, Error, Kind, Message, PeerMisbehaved, TransferId, Violation,
    frame::MAX_FRAME,
    message::{
        Accept, Ack, Chunk, Close, Committed, Decline, DeclineReason, Done, Forgotten, MAX_ASKED, MAX_BATCH,
        MAX_EAGER, MAX_PASS, MAX_TEXT, Offer, Receipts, Settled, Withdrawn, cut,
    },
};

use state::{Pass, State, Transfer};
pub use storage::{Command, OfferSequence, Outcome};

/// The receiving half of a link.
pub struct Receiver {
    window: u64,
    max_open: usize,
    max_file_size: Option<u64>,
    /// The lowest serial that the next offer may have.
    next_serial: u64,
    transfers: BTreeMap<TransferId, Transfer>,
    /// Transfers with something to say, each once.
    ready: VecDeque<TransferId>,
    /// Transfers in the state Committed, each once.
    committed: VecDeque<TransferId>,
    /// Answers to Withdraw and Forget.
    answers: VecDeque<Message>,
    /// Ids in Withdraw and Forget that were not answered yet.
    asked: usize,
    commands: VecDeque<Command>,
}

impl Receiver {
    /// `window` and `max_open` are what our Hello allowed; `max_file_size` is the peer's limit from the config.
    pub fn new(window: u64, max_open: u32, max_file_size: Option<u64>) -> Self {
        Self {
            window,
            max_open: max_open as usize,
            max_file_size,
            next_serial: 0,
            transfers: BTreeMap::new(),
            ready: VecDeque::new(),
            committed: VecDeque::new(),
            answers: VecDeque::new(),
            asked: 0,
            commands: VecDeque::new(),
        }
    }

    /// Another limit, for offers from now on.
    pub fn set_max_file_size(&mut self, most: Option<u64>) {
        self.max_file_size = most;
    }

    /// A message for the receiving half: Offer, Chunk, Done, Close, Withdraw, Forget.
    pub fn receive(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Offer(offer) => self.offered(offer),
            Message::Chunk(chunk) => self.chunk(chunk),
            Message::Done(done) => self.done(done),
            Message::Close(close) => self.closed(close),
            Message::Withdraw(withdraw) => {
                self.ask(1)?;
                self.remove(withdraw.id);
                self.commands.push_back(Command::Withdraw { id: withdraw.id });
                Ok(())
            }
            Message::Forget(forget) => {
                let (ids, times) = (forget.ids, forget.times.unwrap_or_default());
                self.ask(if ids.is_empty() { times.len() } else { ids.len() })?;
                self.commands.push_back(Command::Forget { ids, times });
                Ok(())
            }
            other => Err(PeerMisbehaved::NotForReceiver(other.name()).into()),
        }
    }

    /// What the storage answered. One for an older offer, or that does not fit the state, changes nothing.
    pub fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Opened {
                id,
                sequence,
                offset,
                digest,
            } => self.opened(id, sequence, offset, digest),
            Outcome::Written { id, sequence, offset } => self.written(id, sequence, offset),
            Outcome::Damaged {
                id,
                sequence,
                pass,
                offset,
                digest,
            } => self.damaged(id, sequence, pass, offset, digest),
            Outcome::Committed {
                id,
                sequence,
                receipt,
            } => {
                if let Some(transfer) = self.sequence(id, sequence)
                    && matches!(transfer.state, State::Finishing(_))
                {
                    transfer.state = State::Committed(receipt);
                    transfer.ack = false;
                    self.committed.push_back(id);
                }
            }
            Outcome::Settled {
                id,
                sequence,
                receipt,
            } => match sequence {
                Some(sequence) => self.refuse(id, sequence, |serial| {
                    Message::Settled(Settled {
                        id,
                        receipt,
                        serial: Some(serial),
                    })
                }),
                None => {
                    let serial = None;
                    self.answers
                        .push_back(Message::Settled(Settled { id, receipt, serial }));
                }
            },
            Outcome::Refused {
                id,
                sequence,
                reason,
                text,
                retry_after_ms,
            } => self.decline(id, sequence, reason, text, retry_after_ms),
            Outcome::Withdrawn { id } => self.answers.push_back(Message::Withdrawn(Withdrawn { id })),
            Outcome::Forgotten { ids } => {
                let batches = ids.chunks(MAX_BATCH).map(<[_]>::to_vec);
                self.answers
                    .extend(batches.map(|ids| Message::Forgotten(Forgotten { ids })));
            }
        }
    }

    /// The link ends: Release for everything open comes out of `poll_command`.
    pub fn release_all(&mut self) {
        for (id, transfer) in std::mem::take(&mut self.transfers) {
            self.commands.extend(transfer.release(id));
        }
        self.ready.clear();
        self.committed.clear();
    }

    /// The next message to write; receipts that wait together come in one message.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.poll_answer()
            .or_else(|| self.poll_receipts())
            .or_else(|| self.poll_reply())
    }

    /// The next command for the storage.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn offered(&mut self, offer: Offer) -> Result<(), Error> {
        let (id, size, sequence) = (offer.id, offer.manifest.size, OfferSequence(offer.serial));
        let violation = |violation| Err(Error::violation("Offer", id, violation));
        if let Some(open) = self.transfers.get(&id) {
            return violation(open.state.violation());
        }
        if offer.serial < self.next_serial {
            return violation(Violation::UsedSerial(offer.serial));
        }
        if offer.eager && size > MAX_EAGER {
            return violation(Violation::EagerTooLarge(size));
        }
        if offer.eager && offer.manifest.kind == Kind::Folder {
            return violation(Violation::EagerFolder);
        }
        if self.transfers.len() >= self.max_open.saturating_mul(2) {
            return violation(Violation::TooManyOpen(self.transfers.len()));
        }
        let busy = self
            .transfers
            .values()
            .filter(|t| !matches!(t.state, State::Refused))
            .count()
            >= self.max_open;
        self.next_serial = offer.serial.saturating_add(1);
        let state = if offer.eager {
            State::Receiving(Pass::new(0, 0))
        } else {
            State::Opening
        };
        self.transfers.insert(
            id,
            Transfer {
                serial: offer.serial,
                size,
                state,
                reply: None,
                ack: false,
            },
        );
        if let Some(most) = self.max_file_size.filter(|most| size > *most) {
            let text = format!("{size} bytes, at most {most} are taken from this peer");
            self.decline(id, sequence, DeclineReason::TooLarge, text, None);
        } else if busy {
            let text = format!("{} transfers are open already", self.max_open);
            self.decline(id, sequence, DeclineReason::Busy, text, None);
        } else {
            self.commands.push_back(Command::Open {
                id,
                sequence,
                manifest: offer.manifest,
                eager: offer.eager,
            });
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: Chunk) -> Result<(), Error> {
        let Chunk {
            id,
            pass,
            offset,
            digest,
            bytes,
        } = chunk;
        let violation = |violation| Err(Error::violation("Chunk", id, violation));
        let Some(transfer) = self.transfers.get_mut(&id) else {
            return violation(Violation::NotOpen);
        };
        match &mut transfer.state {
            State::Refused => Ok(()),
            State::Receiving(current) if pass < current.number => Ok(()),
            State::Receiving(current) if pass == current.number => {
                let expected = current.next;
                if offset != expected {
                    return violation(Violation::WrongOffset { offset, expected });
                }
                let end = offset.checked_add(bytes.len() as u64);
                let Some(end) = end.filter(|end| *end <= transfer.size) else {
                    return violation(Violation::TooManyBytes(transfer.size));
                };
                if end - current.acked > self.window {
                    return violation(Violation::BeyondWindow(self.window));
                }
                current.next = end;
                self.commands.push_back(Command::Write {
                    id,
                    sequence: OfferSequence(transfer.serial),
                    pass,
                    offset,
                    bytes,
                    digest,
                });
                Ok(())
            }
            State::Receiving(current) => violation(Violation::WrongPass {
                pass,
                expected: current.number,
            }),
            other => violation(other.violation()),
        }
    }

    fn done(&mut self, done: Done) -> Result<(), Error> {
        let Done { id, pass, digest } = done;
        let violation = |violation| Err(Error::violation("Done", id, violation));
        let Some(transfer) = self.transfers.get_mut(&id) else {
            return violation(Violation::NotOpen);
        };
        match &transfer.state {
            State::Refused => Ok(()),
            State::Receiving(current) if pass < current.number => Ok(()),
            State::Receiving(current) if pass == current.number => {
                let (came, size) = (current.next, transfer.size);
                if came != size {
                    return violation(Violation::BytesMissing { came, size });
                }
                let current = Pass { ..*current };
                transfer.state = State::Finishing(current);
                self.commands.push_back(Command::Finish {
                    id,
                    sequence: OfferSequence(transfer.serial),
                    pass,
                    digest,
                });
                Ok(())
            }
            State::Receiving(current) => violation(Violation::WrongPass {
                pass,
                expected: current.number,
            }),
            other => violation(other.violation()),
        }
    }

    fn closed(&mut self, close: Close) -> Result<(), Error> {
        if close.serial >= self.next_serial {
            let violation = Violation::UnknownSerial(close.serial);
            return Err(Error::violation("Close", close.id, violation));
        }
        if self.sequence(close.id, OfferSequence(close.serial)).is_some()
            && let Some(transfer) = self.remove(close.id)
        {
            self.commands.extend(transfer.release(close.id));
        }
        Ok(())
    }

    fn opened(&mut self, id: TransferId, sequence: OfferSequence, offset: u64, digest: Digest) {
        let Some(transfer) = self.sequence(id, sequence) else {
            return;
        };
        if matches!(transfer.state, State::Opening) {
            self.begin(id, 0, offset, digest);
        }
    }

    fn damaged(&mut self, id: TransferId, sequence: OfferSequence, pass: u32, offset: u64, digest: Digest) {
        let open = self.sequence(id, sequence).map(|transfer| &transfer.state);
        if let Some(State::Receiving(current) | State::Finishing(current)) = open
            && pass > current.number
        {
            self.begin(id, pass, offset, digest);
        }
    }

    /// A pass begins: asks for the bytes from `offset` on, instead of whatever was to be said before.
    fn begin(&mut self, id: TransferId, pass: u32, offset: u64, digest: Digest) {
        let Some(transfer) = self.transfers.get_mut(&id) else {
            return;
        };
        let serial = transfer.serial;
        if pass > MAX_PASS || offset > transfer.size {
            let sequence = OfferSequence(serial);
            self.commands.push_back(Command::Release { id, sequence });
            let text = "it arrived damaged too often; memory or disk of one side may be failing".into();
            return self.decline(id, sequence, DeclineReason::DiskError, text, None);
        }
        transfer.state = State::Receiving(Pass::new(pass, offset));
        transfer.ack = false;
        transfer.reply = Some(Message::Accept(Accept {
            id,
            pass,
            offset,
            digest,
            serial,
        }));
        self.speaks(id);
    }

    /// Notes an Ack when a quarter of the window is written that the sender does not know of, or all there is. An eager
    /// transfer needs none: all its bytes are under way before it could come.
    fn written(&mut self, id: TransferId, sequence: OfferSequence, offset: u64) {
        let window = self.window;
        let Some(transfer) = self.sequence(id, sequence) else {
            return;
        };
        let (State::Receiving(pass) | State::Finishing(pass)) = &mut transfer.state else {
            return;
        };
        if offset <= pass.written || offset > pass.next {
            return;
        }
        pass.written = offset;
        let whole = offset == transfer.size && transfer.size > MAX_EAGER;
        if whole || offset - pass.acked >= window / 4 {
            transfer.ack = true;
            self.speaks(id);
        }
    }

    fn decline(
        &mut self,
        id: TransferId,
        sequence: OfferSequence,
        reason: DeclineReason,
        mut text: String,
        retry_after_ms: Option<u64>,
    ) {
        cut(&mut text, MAX_TEXT);
        self.refuse(id, sequence, |serial| {
            Message::Decline(Decline {
                id,
                reason,
                text,
                retry_after_ms,
                serial,
            })
        });
    }

    fn refuse(&mut self, id: TransferId, sequence: OfferSequence, reply: impl FnOnce(u64) -> Message) {
        let Some(transfer) = self.sequence(id, sequence) else {
            return;
        };
        if matches!(transfer.state, State::Committed(_) | State::Refused) {
            return;
        }
        transfer.state = State::Refused;
        transfer.reply = Some(reply(sequence.0));
        transfer.ack = false;
        self.speaks(id);
    }

    fn speaks(&mut self, id: TransferId) {
        if !self.ready.contains(&id) {
            self.ready.push_back(id);
        }
    }

    fn sequence(&mut self, id: TransferId, sequence: OfferSequence) -> Option<&mut Transfer> {
        self.transfers
            .get_mut(&id)
            .filter(|transfer| transfer.serial == sequence.0)
    }

    fn remove(&mut self, id: TransferId) -> Option<Transfer> {
        let transfer = self.transfers.remove(&id)?;
        self.ready.retain(|speaker| *speaker != id);
        self.committed.retain(|committed| *committed != id);
        Some(transfer)
    }

    fn ask(&mut self, ids: usize) -> Result<(), Error> {
        self.asked += ids;
        if self.asked > MAX_ASKED {
            return Err(PeerMisbehaved::TooManyQuestions.into());
        }
        Ok(())
    }

    fn poll_answer(&mut self) -> Option<Message> {
        let answer = self.answers.pop_front()?;
        let answered = match &answer {
            Message::Forgotten(forgotten) => forgotten.ids.len(),
            _ => 1,
        };
        self.asked = self.asked.saturating_sub(answered);
        Some(answer)
    }

    fn poll_receipts(&mut self) -> Option<Message> {
        let (mut receipts, mut room) = (Vec::new(), MAX_FRAME - RECEIPT_OVERHEAD);
        while receipts.len() < MAX_BATCH {
            let Some(id) = self.committed.front().copied() else {
                break;
            };
            let Some(State::Committed(receipt)) = self.transfers.get(&id).map(|t| &t.state) else {
                self.committed.pop_front();
                continue;
            };
            let needed = receipt.size() + RECEIPT_OVERHEAD;
            if needed > room && !receipts.is_empty() {
                break;
            }
            room = room.saturating_sub(needed);
            self.committed.pop_front();
            if let Some(Transfer {
                serial,
                state: State::Committed(receipt),
                ..
            }) = self.remove(id)
            {
                receipts.push(Committed { id, serial, receipt });
            }
        }
        (!receipts.is_empty()).then_some(Message::Receipts(Receipts { receipts }))
    }

    fn poll_reply(&mut self) -> Option<Message> {
        while let Some(id) = self.ready.pop_front() {
            let Some(transfer) = self.transfers.get_mut(&id) else {
                continue;
            };
            if let Some(reply) = transfer.reply.take() {
                if transfer.ack {
                    self.ready.push_back(id);
                }
                return Some(reply);
            }
            if let (true, State::Receiving(pass) | State::Finishing(pass)) =
                (transfer.ack, &mut transfer.state)
            {
                transfer.ack = false;
                pass.acked = pass.written;
                return Some(Message::Ack(Ack {
                    id,
                    pass: pass.number,
                    offset: pass.written,
                    serial: transfer.serial,
                }));
            }
        }
        None
    }
}

/// More than what CBOR adds to one receipt in a message, and to the message.
const RECEIPT_OVERHEAD: usize = 64;
