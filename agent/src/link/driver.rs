//! The pump of one link: bytes between the stream and the conversation, chunks out of the sources, commands to the sink.
//!
//! One task owns everything, so nothing is locked. It waits for all directions at once: reading goes on while a write
//! is blocked, outcomes and writes go on while the sink or the daemon is behind. Then only reading stops, and the
//! other side feels it by TCP.
//!
//! Memory is bounded: what waits to be written (512 KiB at most, and within TLS 256, or 384 over six connections), a
//! frame that is read (258 KiB, or 514 where smaller ones came before it) and 64 KiB below TLS for each connection, what
//! one message gave rise to (256 events), chunks read ahead (see `outgoing`), and offers that wait for room (256).

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use dropwire_protocol::{
    Error, Event, TransferId,
    message::{Bye, ByeReason, DeclineReason},
    receiver::{Command, Outcome},
    sender::SenderEvent,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Commands, LinkEvent, Outgoing, Piece, Request, Timing,
    handshake::Greeted,
    outgoing::{Outgoings, Pass},
    rate::Rate,
};

/// What the registry tells a running link.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Orders {
    /// Say Bye for this reason and end.
    pub(super) end: Option<ByeReason>,
    /// Raised to have the other side show a sign of life soon.
    pub(super) probes: u64,
    /// To be told: whether two machines use the other side's key.
    pub(super) shared_key: Option<bool>,
    /// Larger files are declined; bytes.
    pub(super) max_file_size: Option<u64>,
}

/// Where a link's ends lead.
pub(super) struct Ends {
    pub(super) commands: Commands,
    pub(super) outcomes: mpsc::Receiver<Outcome>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) events: mpsc::Sender<LinkEvent>,
    /// The other side sees two machines with our key, or not any more.
    pub(super) shared_key: Box<dyn Fn(bool) + Send + Sync>,
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) cancel: CancellationToken,
    pub(super) upload: Arc<Rate>,
    pub(super) download: Arc<Rate>,
    pub(super) timing: Timing,
}

/// Runs the link until it ends; afterwards the sink has a `Release` for all that was open. Says what went wrong, if
/// anything did.
pub(super) async fn driver<S: AsyncRead + AsyncWrite>(mut link: Greeted<S>, ends: Ends) -> Option<String> {
    let (timing, orders) = (ends.timing, *ends.orders.borrow());
    link.conversation.set_max_file_size(orders.max_file_size);
    let mut driver = Driver {
        outgoing: Outgoings::default(),
        offers: VecDeque::new(),
        held_commands: VecDeque::new(),
        held_events: VecDeque::new(),
        heard: 0,
        sent: 0,
        sent_at: Instant::now(),
        probes: orders.probes,
        shared_key: None,
        link,
        ends,
    };
    driver.tell_shared_key(orders.shared_key);
    let end = driver.pump().await;
    let link = &mut driver.link;
    match &end {
        End::Ordered(reason) => link.goodbye(*reason, timing.goodbye).await,
        End::Failed(Error::Io(_) | Error::Silent(_)) => {}
        End::Failed(_) => link.leave(timing.goodbye).await,
        End::PeerSaid(_) => {
            let _ = timeout(timing.goodbye, link.writer.shutdown()).await;
        }
    }
    // What cannot be handed over in time is repeated by the protocol on the next link.
    let _ = timeout(timing.goodbye, driver.release()).await;
    end.error()
}

/// What a wait came back with.
enum Step {
    Filled(Result<usize, Error>),
    Written(Result<(), Error>),
    Turn((TransferId, u32, Piece)),
    Answered(Option<Outcome>),
    Asked(Request),
    /// False: the room is gone.
    Given(bool, &'static str),
    Ordered,
    Nothing,
}

/// Why a link ended.
enum End {
    Ordered(ByeReason),
    PeerSaid(Bye),
    Failed(Error),
}

impl End {
    fn error(&self) -> Option<String> {
        match self {
            Self::Ordered(ByeReason::Shutdown | ByeReason::Duplicate) => None,
            Self::Ordered(reason) => Some(format!("we closed the link: {reason:?}")),
            Self::PeerSaid(bye) => match bye.reason {
                ByeReason::Duplicate => None,
                ByeReason::Shutdown => Some("the peer's agent stopped".into()),
                ByeReason::Unpaired => Some("the peer is no longer paired with us".into()),
                reason => Some(format!(
                    "the peer closed the link: {reason:?}: {}",
                    dropwire_protocol::name::escape(bye.text.as_bytes())
                )),
            },
            // What TLS says of it is for programmers.
            Self::Failed(Error::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Some("the connection broke off".into())
            }
            Self::Failed(error) => Some(error.to_string()),
        }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Driver<S> {
    link: Greeted<S>,
    ends: Ends,
    outgoing: Outgoings,
    /// Offers for which the other side has no room yet.
    offers: VecDeque<Outgoing>,
    /// Not yet taken by the sink.
    held_commands: VecDeque<Command>,
    /// Not yet taken by the daemon.
    held_events: VecDeque<LinkEvent>,
    /// Bytes counted at the last check, both ways, and when a write last went on.
    heard: u64,
    sent: u64,
    sent_at: Instant,
    probes: u64,
    shared_key: Option<bool>,
}

impl<S: AsyncRead + AsyncWrite> Driver<S> {
    async fn pump(&mut self) -> End {
        let mut sleep = pin!(sleep_until(Instant::now()));
        loop {
            let now = Instant::now();
            if let Err(end) = self.advance(now) {
                return end;
            }
            // A timer that fires too early only costs a check; setting it each time would cost more.
            let wake = self.wake_at(now);
            if wake < sleep.deadline() || sleep.deadline() <= now {
                sleep.as_mut().reset(wake);
            }
            let hears = self.hears(now);
            let (waiting, idle) = (self.link.writer.waiting(), self.link.writer.is_idle());
            let sends = waiting < LOW && self.ends.upload.wait_until(now).is_none();
            let asks = waiting < HIGH && self.offers.len() < OFFERS;
            let step = tokio::select! {
                filled = self.link.reader.fill(), if hears => Step::Filled(filled),
                written = self.link.writer.progress(), if !idle => Step::Written(written),
                turn = poll_fn(|cx| match self.link.conversation.sender() {
                    Some(sender) => self.outgoing.poll_piece(cx, sender),
                    None => Poll::Pending,
                }), if sends => Step::Turn(turn),
                outcome = self.ends.outcomes.recv() => Step::Answered(outcome),
                Some(request) = self.ends.requests.recv(), if asks => Step::Asked(request),
                given = self.ends.commands.give_first(&mut self.held_commands),
                    if !self.held_commands.is_empty() => Step::Given(given, "the inbox"),
                given = give_first(&self.ends.events, &mut self.held_events),
                    if !self.held_events.is_empty() => Step::Given(given, "the agent"),
                Ok(()) = self.ends.orders.changed() => Step::Ordered,
                () = self.ends.cancel.cancelled() => return End::Ordered(ByeReason::Shutdown),
                () = &mut sleep => Step::Nothing,
            };
            if let Err(end) = self.step(step) {
                return end;
            }
        }
    }

    fn step(&mut self, step: Step) -> Result<(), End> {
        let now = Instant::now();
        match step {
            Step::Filled(filled) => self.ends.download.spend(filled?, now),
            Step::Written(written) => written?,
            Step::Turn((id, pass, piece)) => {
                self.send(id, pass, piece, now);
                self.send_ready(now);
            }
            Step::Answered(Some(outcome)) => self.link.conversation.outcome(outcome),
            Step::Answered(None) => return Err(stopped("the inbox")),
            Step::Asked(request) => {
                self.ask(request);
                // What was asked for together is offered together.
                while self.offers.len() < OFFERS
                    && let Ok(request) = self.ends.requests.try_recv()
                {
                    self.ask(request);
                }
            }
            Step::Given(true, _) | Step::Nothing => {}
            Step::Given(false, what) => return Err(stopped(what)),
            Step::Ordered => {
                let orders = *self.ends.orders.borrow_and_update();
                if let Some(reason) = orders.end {
                    return Err(End::Ordered(reason));
                }
                self.link.conversation.set_max_file_size(orders.max_file_size);
                self.tell_shared_key(orders.shared_key);
                if orders.probes != self.probes {
                    self.probes = orders.probes;
                    self.link
                        .conversation
                        .probe(now - self.link.epoch, self.ends.timing.probe);
                }
            }
        }
        Ok(())
    }

    fn tell_shared_key(&mut self, ordered: Option<bool>) {
        if let Some(seen) = ordered.filter(|_| ordered != self.shared_key) {
            self.shared_key = ordered;
            self.link.conversation.tell_shared_key(seen);
        }
    }

    /// All that can be done without waiting.
    fn advance(&mut self, now: Instant) -> Result<(), End> {
        self.watch_traffic(now)?;
        while let Ok(outcome) = self.ends.outcomes.try_recv() {
            self.link.conversation.outcome(outcome);
        }
        self.take_events()?;
        loop {
            // Where there is room at once, reading goes on: many small messages are one burst for who takes them. Only
            // here: were room found after the last check of what was read, the rest of it would wait for more bytes.
            self.ends.commands.give_ready(&mut self.held_commands);
            give_ready(&self.ends.events, &mut self.held_events);
            if !self.hears(now) {
                break;
            }
            let message = match self.link.reader.decode() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    self.link
                        .conversation
                        .bye(ByeReason::Violation, &error.to_string());
                    return Err(End::Failed(error));
                }
            };
            self.link.conversation.receive(message, now - self.link.epoch)?;
            self.take_events()?;
        }
        self.offer_waiting();
        self.take_events()?;
        self.tick(now)?;
        self.outgoing.read_on();
        while self.link.writer.waiting() < HIGH
            && let Some(message) = self.link.conversation.poll_message()
        {
            self.link.writer.encode(message)?;
        }
        Ok(())
    }

    /// Reading stops while the sink or the daemon is behind, or the download limit is used up.
    fn hears(&self, now: Instant) -> bool {
        self.held_commands.is_empty()
            && self.held_events.is_empty()
            && self.ends.download.wait_until(now).is_none()
    }

    /// Looks at the bytes below TLS: a record that comes in drop by drop is a sign of life, and a write of which
    /// nothing leaves for too long is the link's end.
    fn watch_traffic(&mut self, now: Instant) -> Result<(), End> {
        let Greeted {
            conversation,
            writer,
            traffic,
            epoch,
            ..
        } = &mut self.link;
        if traffic.received() != self.heard {
            self.heard = traffic.received();
            conversation.heard(now - *epoch);
        }
        if traffic.sent() != self.sent || writer.is_idle() {
            self.sent = traffic.sent();
            self.sent_at = now;
        }
        let stalled = now - self.sent_at;
        if stalled >= self.ends.timing.dead_after {
            let text = format!("the peer took nothing for {stalled:.0?}");
            return Err(Error::Io(io::Error::new(io::ErrorKind::TimedOut, text)).into());
        }
        Ok(())
    }

    fn tick(&mut self, now: Instant) -> Result<(), End> {
        let hears = self.hears(now);
        let clock = now - self.link.epoch;
        let conversation = &mut self.link.conversation;
        if conversation.deadline() > clock {
            return Ok(());
        }
        let ticked = conversation.tick(clock);
        if hears {
            return Ok(ticked?);
        }
        // We are not listening: silence proves nothing, but the other side still hears our Ping.
        conversation.heard(clock);
        Ok(())
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let far = now + self.ends.timing.dead_after;
        let mut wake = self
            .link
            .epoch
            .checked_add(self.link.conversation.deadline())
            .unwrap_or(far);
        if !self.link.writer.is_idle() {
            wake = wake.min(self.sent_at + self.ends.timing.dead_after);
        }
        let waits = [
            self.ends.upload.wait_until(now),
            self.ends.download.wait_until(now),
        ];
        waits.into_iter().flatten().fold(wake, Instant::min)
    }

    fn take_events(&mut self) -> Result<(), End> {
        while let Some(event) = self.link.conversation.poll_event() {
            match event {
                Event::Ready { .. } => {}
                Event::Sender(event) => self.on_event(event),
                Event::Storage(command) => self.held_commands.push_back(command),
                Event::SharedKey(seen) => (self.ends.shared_key)(seen),
                Event::Bye(bye) => return Err(End::PeerSaid(bye)),
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: SenderEvent) {
        let told = match event {
            SenderEvent::Read {
                id,
                pass,
                offset,
                digest,
            } => {
                return self.outgoing.begin(Pass {
                    id,
                    pass,
                    offset,
                    digest,
                });
            }
            SenderEvent::Progress { id, offset } => return self.outgoing.progress(id, offset),
            SenderEvent::Delivered { id, receipt } => {
                self.outgoing.remove(id);
                LinkEvent::Delivered { id, receipt }
            }
            SenderEvent::Settled { id, receipt } => {
                self.outgoing.remove(id);
                LinkEvent::Settled { id, receipt }
            }
            SenderEvent::Declined {
                id,
                reason,
                text,
                retry_after_ms,
            } => {
                self.outgoing.remove(id);
                LinkEvent::Declined {
                    id,
                    reason,
                    text,
                    retry_after_ms,
                }
            }
            SenderEvent::Withdrawn { id } => {
                self.outgoing.remove(id);
                LinkEvent::Withdrawn { id }
            }
            SenderEvent::Forgotten { ids } => LinkEvent::Forgotten { ids },
            SenderEvent::Retimed { ids } => LinkEvent::Retimed { ids },
        };
        self.held_events.push_back(told);
    }

    fn ask(&mut self, request: Request) {
        if let Request::Close(id) | Request::Withdraw(id) = &request {
            self.offers.retain(|offer| offer.id != *id);
            self.outgoing.remove(*id);
        }
        let Some(sender) = self.link.conversation.sender() else {
            return;
        };
        match request {
            Request::Offer(offer) => self.offers.push_back(offer),
            Request::Close(id) => sender.close(id),
            Request::Withdraw(id) => sender.withdraw(id),
            Request::Forget(ids, times) => sender.forget(ids, times),
            Request::Retime(times) => sender.retime(times),
        }
    }

    fn offer_waiting(&mut self) {
        let Some(sender) = self.link.conversation.sender() else {
            return;
        };
        while sender.can_offer()
            && let Some(offer) = self.offers.pop_front()
        {
            let id = offer.id;
            if sender.offer(id, offer.manifest.clone(), offer.eager) || self.outgoing.is_open(id) {
                self.outgoing.add(offer);
            } else {
                self.held_events.push_back(LinkEvent::Declined {
                    id,
                    reason: DeclineReason::Busy,
                    text: "the question how it ended is not answered yet".into(),
                    retry_after_ms: Some(1000),
                });
            }
        }
    }

    fn send(&mut self, id: TransferId, pass: u32, piece: Piece, now: Instant) {
        let Some(sender) = self.link.conversation.sender() else {
            return;
        };
        match piece {
            Piece::Chunk {
                offset,
                bytes,
                digest,
            } => {
                self.ends.upload.spend(bytes.len(), now);
                sender.chunk(id, pass, offset, bytes, digest);
            }
            Piece::End { digest } => sender.done(id, pass, digest),
            Piece::Void(why) => {
                sender.close(id);
                self.outgoing.remove(id);
                self.held_events.push_back(LinkEvent::Voided { id, why });
            }
        }
    }

    /// What is read by now goes along: many small files share a record and a write.
    fn send_ready(&mut self, now: Instant) {
        // Whoever is not ready is asked again, with a waker, before the next wait.
        let mut cx = Context::from_waker(Waker::noop());
        let mut queued = self.link.writer.waiting();
        while queued < LOW
            && self.ends.upload.wait_until(now).is_none()
            && let Some(sender) = self.link.conversation.sender()
            && let Poll::Ready((id, pass, piece)) = self.outgoing.poll_piece(&mut cx, sender)
        {
            if let Piece::Chunk { bytes, .. } = &piece {
                queued += bytes.len();
            }
            self.send(id, pass, piece, now);
        }
    }

    /// Hands over what came before the end, and the sink's releases.
    async fn release(&mut self) {
        self.link.conversation.end();
        while self.take_events().is_err() {}
        for command in std::mem::take(&mut self.held_commands) {
            if !self.ends.commands.send(command).await {
                break;
            }
        }
        for event in std::mem::take(&mut self.held_events) {
            if self.ends.events.send(event).await.is_err() {
                break;
            }
        }
    }
}

/// Hands over as much of what is held as there is room for now. That nobody takes it any more shows at the next wait.
fn give_ready<T>(to: &mpsc::Sender<T>, held: &mut VecDeque<T>) {
    while !held.is_empty()
        && let Ok(permit) = to.try_reserve()
        && let Some(first) = held.pop_front()
    {
        permit.send(first);
    }
}

/// Hands over the first of what is held, once there is room; false: nobody takes it any more.
async fn give_first<T>(to: &mpsc::Sender<T>, held: &mut VecDeque<T>) -> bool {
    let Ok(permit) = to.reserve().await else {
        return false;
    };
    if let Some(first) = held.pop_front() {
        permit.send(first);
    }
    true
}

/// One of our own rooms is gone; the agent is about to end.
fn stopped(what: &str) -> End {
    End::Failed(Error::Io(io::Error::other(format!("{what} has stopped"))))
}

/// The next chunk is asked for once less than this waits to be written: a small file that comes up is soon its turn.
const LOW: usize = 64 * 1024;
/// Control messages are queued up to this.
const HIGH: usize = 256 * 1024;
/// Offers that wait for room at the other side.
const OFFERS: usize = 256;
