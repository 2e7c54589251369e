//! One link's whole conversation: Hello, then both halves and the keep-alive, driven by bytes and a clock from outside.
//!
//! After each call the events are to be drained before the next message is given in, and messages written as they come:
//! then what waits inside is bounded whatever the other side does (see [`Sender`] and [`Receiver`]).

use std::time::Duration;

use crate::{
    Error, Message, PeerMisbehaved,
    keepalive::Keepalive,
    message::{
        Bye, ByeReason, Hello, MAX_NAME, MAX_TEXT, MIN_WINDOW, Ping, SharedKey, VERSION_MAX, VERSION_MIN, cut,
    },
    receiver::{Command, Outcome, Receiver},
    sender::{Sender, SenderEvent},
};

/// What this side says of itself and allows.
#[derive(Clone, Debug)]
pub struct Local {
    /// Sent as our Hello. The conversation fills in the versions, cuts long texts and raises a window below MIN_WINDOW.
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
    Ready {
        /// What the other side says of itself.
        hello: Hello,
        /// The protocol version in use.
        version: u16,
    },
    /// From the sending half.
    Sender(SenderEvent),
    /// For the storage, from the receiving half.
    Storage(Command),
    /// The other side sees two machines with our key, or not any more.
    SharedKey(bool),
    /// The other side said Bye; the link ends.
    Bye(Bye),
}

/// One link's conversation. `now` is any steady clock, counted from any fixed point.
pub struct Conversation {
    local: Local,
    stage: Stage,
    keepalive: Keepalive,
    /// Our Hello, until it is written.
    hello: Option<Hello>,
    /// To be written; a newer question takes an older one's place.
    ping: Option<Ping>,
    pong: Option<Ping>,
    pings: u64,
    /// To be told.
    shared_key: Option<SharedKey>,
    farewell: Farewell,
    ready: Option<Event>,
    bye: Option<Event>,
    told: Option<Event>,
}

enum Stage {
    /// The other side's Hello has to come by then.
    Greeting { by: Duration },
    /// Both halves at work.
    Talking { sender: Sender, receiver: Receiver },
    /// Nothing that comes is read any more: the other side said Bye, or broke a rule. The halves may still have
    /// something to say.
    Over { halves: Option<(Sender, Receiver)> },
}

/// Our Bye.
enum Farewell {
    NotYet,
    Queued(Bye),
    Said,
}

impl Conversation {
    /// Our Hello is the first message to poll.
    pub fn new(mut local: Local, now: Duration) -> Self {
        let hello = &mut local.hello;
        (hello.version_min, hello.version_max) = (VERSION_MIN, VERSION_MAX);
        hello.window = hello.window.max(MIN_WINDOW);
        cut(&mut hello.name, MAX_NAME);
        cut(&mut hello.software, MAX_TEXT);
        Self {
            stage: Stage::Greeting {
                by: now.saturating_add(local.dead_after),
            },
            keepalive: Keepalive::new(local.ping_after, local.dead_after, now),
            hello: Some(local.hello.clone()),
            ping: None,
            pong: None,
            pings: 0,
            shared_key: None,
            farewell: Farewell::NotYet,
            ready: None,
            bye: None,
            told: None,
            local,
        }
    }

    /// The largest file that is taken from now on, in bytes; what is under way goes on.
    pub fn set_max_file_size(&mut self, most: Option<u64>) {
        self.local.max_file_size = most;
        if let Stage::Talking { receiver, .. } = &mut self.stage {
            receiver.set_max_file_size(most);
        }
    }

    /// A message came in. After an error the fitting Bye is queued and nothing more is read: write what
    /// [`Conversation::poll_message`] still gives, then close. After the other side's Bye nothing is read either.
    pub fn receive(&mut self, message: Message, now: Duration) -> Result<(), Error> {
        self.keepalive.heard(now);
        let result = match &mut self.stage {
            Stage::Over { .. } => Ok(()),
            Stage::Greeting { .. } => self.greeted(message),
            Stage::Talking { sender, receiver } => match message {
                Message::Hello(_) => Err(PeerMisbehaved::SecondHello.into()),
                Message::Bye(bye) => {
                    self.bye = Some(Event::Bye(bye));
                    self.over();
                    Ok(())
                }
                Message::Ping(ping) => {
                    self.pong = Some(ping);
                    Ok(())
                }
                Message::Pong(_) => Ok(()),
                Message::SharedKey(SharedKey { seen }) => {
                    self.told = Some(Event::SharedKey(seen));
                    Ok(())
                }
                Message::Accept(_)
                | Message::Decline(_)
                | Message::Settled(_)
                | Message::Ack(_)
                | Message::Receipts(_)
                | Message::Withdrawn(_)
                | Message::Forgotten(_) => sender.receive(message),
                Message::Offer(_)
                | Message::Chunk(_)
                | Message::Done(_)
                | Message::Close(_)
                | Message::Withdraw(_)
                | Message::Forget(_) => receiver.receive(message),
            },
        };
        if let Err(error) = &result {
            let reason = match error {
                Error::Incompatible { .. } => ByeReason::Incompatible,
                _ => ByeReason::Violation,
            };
            self.bye(reason, &error.to_string());
            self.over();
        }
        result
    }

    /// Bytes came in that are not a whole message yet (a slow frame keeps the link alive).
    pub fn heard(&mut self, now: Duration) {
        self.keepalive.heard(now);
    }

    /// The sending half; None until Ready, and once the conversation is over.
    pub fn sender(&mut self) -> Option<&mut Sender> {
        match &mut self.stage {
            Stage::Talking { sender, .. } => Some(sender),
            Stage::Greeting { .. } | Stage::Over { .. } => None,
        }
    }

    /// The storage answered.
    pub fn outcome(&mut self, outcome: Outcome) {
        if let Some((_, receiver)) = self.halves() {
            receiver.outcome(outcome);
        }
    }

    /// Queues a Bye as the last message. What the receiving half has to say (receipts!) still goes ahead of it, what
    /// the sending half has does not. Only the first one counts.
    pub fn bye(&mut self, reason: ByeReason, text: &str) {
        if matches!(self.farewell, Farewell::NotYet) {
            let mut text = text.to_owned();
            cut(&mut text, MAX_TEXT);
            self.farewell = Farewell::Queued(Bye { reason, text });
        }
    }

    /// Tells the other side whether a second machine uses its key. Only where its Hello stated a run.
    pub fn tell_shared_key(&mut self, seen: bool) {
        self.shared_key = Some(SharedKey { seen });
    }

    /// Asks for a sign of life now; without one the link is dead after `within`.
    pub fn probe(&mut self, now: Duration, within: Duration) {
        self.keepalive.probe(now, within);
        self.ask();
    }

    /// The next message to write. Control messages come before chunks.
    pub fn poll_message(&mut self) -> Option<Message> {
        if matches!(self.farewell, Farewell::Said) {
            return None;
        }
        if let Some(hello) = self.hello.take() {
            return Some(Message::Hello(hello));
        }
        if let Some(pong) = self.pong.take() {
            return Some(Message::Pong(pong));
        }
        if let Some(shared_key) = self.shared_key.take() {
            return Some(Message::SharedKey(shared_key));
        }
        if let Some(message) = self.halves().and_then(|(_, receiver)| receiver.poll_message()) {
            return Some(message);
        }
        if let Farewell::Queued(bye) = &self.farewell {
            let bye = Message::Bye(bye.clone());
            self.farewell = Farewell::Said;
            return Some(bye);
        }
        if let Some(ping) = self.ping.take() {
            return Some(Message::Ping(ping));
        }
        self.sender()?.poll_message()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(ready) = self.ready.take() {
            return Some(ready);
        }
        if let Some((sender, receiver)) = self.halves() {
            if let Some(command) = receiver.poll_command() {
                return Some(Event::Storage(command));
            }
            if let Some(event) = sender.poll_event() {
                return Some(Event::Sender(event));
            }
        }
        self.told.take().or_else(|| self.bye.take())
    }

    /// When [`Conversation::tick`] wants to be called, on the same clock.
    pub fn deadline(&self) -> Duration {
        match self.stage {
            Stage::Greeting { by } => by.min(self.keepalive.deadline()),
            Stage::Talking { .. } | Stage::Over { .. } => self.keepalive.deadline(),
        }
    }

    /// Time passed: queues a Ping, or says that the other side is silent ([`Error::Silent`]).
    pub fn tick(&mut self, now: Duration) -> Result<(), Error> {
        if let Stage::Greeting { by } = self.stage
            && now >= by
        {
            return Err(Error::Silent(self.local.dead_after));
        }
        if self.keepalive.tick(now)? {
            self.ask();
        }
        Ok(())
    }

    /// The link ends, however: what was open at the receiving half is released. Poll events a last time.
    pub fn end(&mut self) {
        self.over();
        if let Some((_, receiver)) = self.halves() {
            receiver.release_all();
        }
    }

    fn greeted(&mut self, message: Message) -> Result<(), Error> {
        let Message::Hello(hello) = message else {
            return Err(PeerMisbehaved::NoHello(message.name()).into());
        };
        let ours = &self.local.hello;
        let version = ours.version_max.min(hello.version_max);
        if version < ours.version_min.max(hello.version_min) {
            return Err(Error::Incompatible {
                ours_min: ours.version_min,
                ours_max: ours.version_max,
                theirs_min: hello.version_min,
                theirs_max: hello.version_max,
            });
        }
        if hello.window < MIN_WINDOW {
            return Err(PeerMisbehaved::SmallWindow(hello.window).into());
        }
        self.stage = Stage::Talking {
            sender: Sender::new(hello.window, hello.max_open).speaking(version),
            receiver: Receiver::new(ours.window, ours.max_open, self.local.max_file_size),
        };
        self.ready = Some(Event::Ready { hello, version });
        Ok(())
    }

    /// Before Ready nothing but Hello may be said, and its absence is what ends the link.
    fn ask(&mut self) {
        if let Stage::Talking { .. } = self.stage {
            self.pings += 1;
            self.ping = Some(Ping { number: self.pings });
        }
    }

    fn over(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Over { halves: None }) {
            Stage::Talking { sender, receiver } => Stage::Over {
                halves: Some((sender, receiver)),
            },
            Stage::Greeting { .. } => Stage::Over { halves: None },
            over => over,
        };
    }

    fn halves(&mut self) -> Option<(&mut Sender, &mut Receiver)> {
        match &mut self.stage {
            Stage::Talking { sender, receiver } => Some((sender, receiver)),
            Stage::Over { halves } => halves.as_mut().map(|(sender, receiver)| (sender, receiver)),
            Stage::Greeting { .. } => None,
        }
    }
}
