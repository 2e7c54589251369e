//! One link's whole conversation: Hello, then both halves and the keep-alive, driven by bytes and a clock from outside.

use std::time::Duration;

use crate::{
    Error, Message,
    message::{Bye, ByeReason, Hello},
    receiver::{Command, Outcome, Receiver},
    sender::{Sender, SenderEvent},
};

/// What this side says of itself and allows.
#[derive(Clone, Debug)]
pub struct Local {
    /// Sent as our Hello (versions are filled in by the conversation).
    pub hello: Hello,
    /// From the peer's config; bytes.
    pub max_file_size: Option<u64>,
    /// After this long without a byte from the other side a Ping goes out.
    pub ping_after: Duration,
    /// After this long without a byte (also: without a Hello) the link is dead.
    pub dead_after: Duration,
}

/// What the conversation tells the agent.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The other side's Hello fits; transfers may begin. Comes once, first.
    Ready { hello: Hello, version: u16 },
    /// From the sending half.
    Sender(SenderEvent),
    /// For the storage, from the receiving half.
    Storage(Command),
    /// The other side said Bye; the link ends.
    Bye(Bye),
}

/// One link's conversation. `now` is any steady clock, counted from any fixed point.
pub struct Conversation {}

impl Conversation {
    /// Our Hello is the first message to poll.
    pub fn new(local: Local, now: Duration) -> Self {
        let _ = (local, now);
        todo!()
    }

    /// A message came in.
    pub fn receive(&mut self, message: Message, now: Duration) -> Result<(), Error> {
        let _ = (message, now);
        todo!()
    }

    /// Bytes came in that are not a whole message yet (a slow frame keeps the link alive).
    pub fn heard(&mut self, now: Duration) {
        let _ = now;
        todo!()
    }

    /// The sending half; None until Ready.
    pub fn sender(&mut self) -> Option<&mut Sender> {
        todo!()
    }

    /// The storage answered.
    pub fn outcome(&mut self, outcome: Outcome) {
        let _ = outcome;
        todo!()
    }

    /// Queues a Bye as the last message.
    pub fn bye(&mut self, reason: ByeReason, text: &str) {
        let _ = (reason, text);
        todo!()
    }

    /// Asks for a sign of life now; without one the link is dead after `within`.
    pub fn probe(&mut self, now: Duration, within: Duration) {
        let _ = (now, within);
        todo!()
    }

    /// The next message to write. Control messages come before chunks.
    pub fn poll_message(&mut self) -> Option<Message> {
        todo!()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }

    /// When [`Conversation::tick`] wants to be called, on the same clock.
    pub fn deadline(&self) -> Duration {
        todo!()
    }

    /// Time passed: queues a Ping, or says that the other side is silent ([`Error::Silent`]).
    pub fn tick(&mut self, now: Duration) -> Result<(), Error> {
        let _ = now;
        todo!()
    }

    /// The link ends, however: what was open at the receiving half is released. Poll events a last time.
    pub fn end(&mut self) {
        todo!()
    }
}
