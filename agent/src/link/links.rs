//! The registry: who is paired, which link each pair has, and how a link begins and ends towards the daemon.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use dropwire_protocol::{
    AgentId, Error, Local,
    message::{ByeReason, Hello},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    LinkEvent, Request, Sink, Timing, dial,
    drive::{Ends, drive},
    handshake::{Greeted, greet},
    line::Line,
    listen::{self, Refusals},
    lobby::{Lobby, Seat},
    pair::{Admission, Pair, Refused, Visitor},
    rate::Rate,
    wire::Traffic,
};
use crate::{
    config,
    descriptors::affordable,
    error::{Exit, Fatal},
    identity::Identity,
};

/// What the links need of the config.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Told to peers, for their logs.
    pub name: String,
    /// Everyone we talk to.
    pub peers: Vec<config::Peer>,
    /// How dials are repeated.
    pub retry: config::Retry,
    /// Rates, over all links together.
    pub limits: config::Limits,
}

/// How the link of one peer stands.
#[derive(Clone, Debug)]
pub struct PeerLink {
    /// Whose.
    pub peer: AgentId,
    /// Both Hellos are done.
    pub connected: bool,
    /// When it is dialled again; None: no dial is planned.
    pub next_dial_at: Option<SystemTime>,
    /// Why the last link ended or the last dial failed; cleared by a new link.
    pub last_error: Option<String>,
    /// Two machines use its key, or ours.
    pub shared_key: Option<SharedKey>,
    /// Bytes over all its links since the start, TLS included.
    pub sent_bytes: u64,
    /// See `sent_bytes`.
    pub received_bytes: u64,
}

/// Two machines use one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedKey {
    /// Since when that is known.
    pub since: SystemTime,
    /// Whose, and where they are.
    pub text: String,
    /// The way out.
    pub hint: &'static str,
}

/// There is no link to this peer now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not linked with this peer")]
pub struct NotLinked;

/// All links of this agent.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

/// Takes the address to listen on, `host:port`; nobody is let in yet. One that cannot be used: [`Exit::CannotCreate`]
/// or [`Exit::Permission`], with a mend.
pub async fn bind(address: &str) -> Result<TcpListener, Fatal> {
    let bound = timeout(LOOK_UP, TcpListener::bind(address)).await;
    bound
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the name's address was not told in time",
            ))
        })
        .map_err(|error| cannot_listen(address, &error))
}

impl Links {
    /// Begins to dial, and to let in who comes by `listener`; None: only dials.
    ///
    /// What a peer's links tell is for [`Links::events`]. Ends when `cancel` is cancelled, or by [`Links::shutdown`].
    pub fn start(
        settings: Settings,
        listener: Option<TcpListener>,
        identity: Arc<Identity>,
        sink: Arc<dyn Sink>,
        cancel: CancellationToken,
    ) -> Links {
        Links::start_with(settings, listener, identity, sink, cancel, Timing::default())
    }

    pub(super) fn start_with(
        settings: Settings,
        listener: Option<TcpListener>,
        identity: Arc<Identity>,
        sink: Arc<dyn Sink>,
        cancel: CancellationToken,
        timing: Timing,
    ) -> Links {
        let run = getrandom::u64().ok();
        let shared = Arc::new(Shared {
            upload: Arc::new(Rate::new(settings.limits.upload)),
            download: Arc::new(Rate::new(settings.limits.download)),
            terms: RwLock::new(Arc::new(Terms {
                server: identity.server_config(Vec::new()),
                pairs: HashMap::new(),
                retry: settings.retry,
                hello: hello(String::new(), run),
            })),
            run,
            identity,
            sink,
            cancel: cancel.child_token(),
            tasks: TaskTracker::new(),
            timing,
            lobby: Lobby::new(affordable(LOBBY, 1)),
            refusals: Mutex::default(),
            further: Arc::new(Semaphore::new(affordable(FURTHER, 1))),
            listening: Mutex::default(),
        });
        let links = Links { shared };
        links.take_up(settings);
        links.listen_on(listener);
        links
    }

    /// The config says this now. Links stay up, but for those of peers that are not in it any more: they end, and this
    /// returns when their `Down` is told. What it says of a new link (name, pins) holds from the next one on, all else
    /// at once.
    pub async fn apply(&self, settings: Settings) {
        let gone = self.take_up(settings);
        gone.iter().for_each(|pair| pair.part());
        let told = async {
            for pair in &gone {
                drop(pair.turn.lock().await);
            }
        };
        // Bye, the last releases, the last events: each has the same bound.
        let _ = timeout(self.shared.timing.goodbye * 3, told).await;
    }

    /// Does all but end the links of those who are paired no more, which it returns.
    fn take_up(&self, settings: Settings) -> Vec<Arc<Pair>> {
        let shared = &self.shared;
        shared.upload.set(settings.limits.upload);
        shared.download.set(settings.limits.download);
        let before = shared.terms();
        let mut pairs = HashMap::new();
        let mut added = Vec::new();
        for peer in settings.peers {
            let pair = match before.pairs.get(&peer.id) {
                Some(pair) => {
                    pair.change(peer);
                    if before.retry != settings.retry {
                        pair.dial_now.notify_one();
                    }
                    pair.clone()
                }
                None => {
                    let cancel = shared.cancel.child_token();
                    let pair = Arc::new(Pair::new(peer, shared.identity.id(), cancel));
                    added.push(pair.clone());
                    pair
                }
            };
            pairs.insert(pair.id, pair);
        }
        let gone = before.pairs.values().filter(|pair| !pairs.contains_key(&pair.id));
        let gone = gone.cloned().collect();
        let terms = Arc::new(Terms {
            server: shared.identity.server_config(pairs.keys().copied().collect()),
            pairs,
            retry: settings.retry,
            hello: hello(settings.name, shared.run),
        });
        *shared.terms.write().unwrap_or_else(PoisonError::into_inner) = terms;
        for pair in added {
            shared.tasks.spawn(dial::keep(shared.clone(), pair));
        }
        gone
    }

    /// Lets in who comes by `listener` from now on, and by no other; links stay up. None: only dials.
    pub fn listen_on(&self, listener: Option<TcpListener>) {
        let shared = &self.shared;
        let listening = listener.map(|listener| {
            let (address, cancel) = (listener.local_addr().ok(), shared.cancel.child_token());
            let serving = listen::serve(shared.clone(), listener, cancel.clone());
            shared.tasks.spawn(serving);
            Listening { address, cancel }
        });
        let before = std::mem::replace(&mut *shared.listening(), listening);
        if let Some(before) = before {
            before.cancel.cancel();
        }
    }

    /// The address in use, with its real port.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.shared.listening().as_ref()?.address
    }

    /// Gives a request to the peer's link; waits while that is behind, but not beyond its end.
    pub async fn request(&self, peer: AgentId, request: Request) -> Result<(), NotLinked> {
        let requests = self
            .shared
            .terms()
            .pairs
            .get(&peer)
            .and_then(|pair| pair.requests())
            .ok_or(NotLinked)?;
        requests.send(request).await.map_err(|_| NotLinked)
    }

    /// What the links of `peer` tell, one after the other: its `Down` before its next `Up`. While too much waits there,
    /// they stop reading. Closed once the peer is not in the config any more and its last link is down. None: the peer is
    /// not paired, or its events were asked for before.
    pub fn events(&self, peer: AgentId) -> Option<mpsc::Receiver<LinkEvent>> {
        self.shared.terms().pairs.get(&peer)?.take_events()
    }

    /// All peers, linked or not.
    pub fn status(&self) -> Vec<PeerLink> {
        let terms = self.shared.terms();
        terms.pairs.values().map(|pair| pair.status()).collect()
    }

    /// Ends every wait before a next dial.
    pub fn dial_all_now(&self) {
        let terms = self.shared.terms();
        terms.pairs.values().for_each(|pair| pair.dial_now.notify_one());
    }

    /// Connections that joined a link.
    #[cfg(test)]
    pub(super) fn further(&self) -> usize {
        affordable(FURTHER, 1) - self.shared.further.available_permits()
    }

    /// Says Bye on every link and waits until all have ended, some seconds at most.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        // Bye, the last releases, the last events: each has the same bound.
        let _ = timeout(self.shared.timing.goodbye * 3, self.shared.tasks.wait()).await;
    }
}

/// What the tasks of this room share.
pub(super) struct Shared {
    pub(super) identity: Arc<Identity>,
    pub(super) cancel: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) timing: Timing,
    /// All that came in and is no link yet, by whichever listener.
    pub(super) lobby: Arc<Lobby>,
    refusals: Mutex<Refusals>,
    /// Places for connections beside the first of a link, over all links.
    pub(super) further: Arc<Semaphore>,
    /// See [`Hello::run`].
    run: Option<u64>,
    sink: Arc<dyn Sink>,
    upload: Arc<Rate>,
    download: Arc<Rate>,
    terms: RwLock<Arc<Terms>>,
    listening: Mutex<Option<Listening>>,
}

/// What follows from the config; replaced whole.
pub(super) struct Terms {
    /// With the pins of all pairs.
    pub(super) server: Arc<rustls::ServerConfig>,
    pub(super) pairs: HashMap<AgentId, Arc<Pair>>,
    pub(super) retry: config::Retry,
    hello: Hello,
}

/// Where others can come in, and what ends it.
struct Listening {
    address: Option<SocketAddr>,
    cancel: CancellationToken,
}

impl Shared {
    /// As they are now.
    pub(super) fn terms(&self) -> Arc<Terms> {
        self.terms.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listening(&self) -> std::sync::MutexGuard<'_, Option<Listening>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exchanges Hellos on a connection whose key is proven. If it is the one to stay, it begins to carry transfers
    /// by itself, and this is true; the caller is done. `at` is where the other side is; `seat` is that of a connection that
    /// came in: without one, we dialled.
    pub(super) async fn meet(
        self: &Arc<Self>,
        pair: &Arc<Pair>,
        line: Line,
        traffic: Arc<Traffic>,
        at: IpAddr,
        seat: Option<Seat>,
    ) -> Result<bool, Error> {
        let dialled = seat.is_none();
        let mut hello = self.terms().hello.clone();
        if matches!(line, Line::Strands(_)) {
            hello.window = WINDOW_FAR;
        }
        let local = Local {
            hello,
            max_file_size: None, // the link takes it from its orders
            ping_after: self.timing.ping_after,
            dead_after: self.timing.dead_after,
        };
        let mut link = greet(line, traffic, local, &self.timing).await?;
        let visitor = Visitor {
            dialled,
            run: link.run,
            at,
        };
        let within = self.timing.twins;
        let admitted = pair.admit(visitor, link.traffic.clone(), within);
        let stays = admitted.is_ok();
        match admitted {
            Ok(admission) => {
                self.tasks
                    .spawn(carry(self.clone(), pair.clone(), link, admission, seat));
            }
            Err(Refused { reason, shared_key }) => {
                tracing::debug!(peer = %pair.name(), dialled, ?reason, "no further link of this pair");
                if shared_key {
                    link.conversation.tell_shared_key(true);
                }
                let within = self.timing.goodbye;
                self.tasks
                    .spawn(async move { seated(&seat, link.goodbye(reason, within)).await });
            }
        }
        if pair.has_twins() && !pair.watched.swap(true, Relaxed) {
            self.tasks.spawn(watch_twins(pair.clone(), within));
        }
        Ok(stays)
    }
}

/// Until only one machine uses the peer's key, or the agent ends.
async fn watch_twins(pair: Arc<Pair>, within: Duration) {
    let watching = async {
        while pair.has_twins() {
            tokio::time::sleep(within / 15).await;
            pair.look_for_twins(within);
        }
    };
    pair.cancel.run_until_cancelled(watching).await;
    pair.watched.store(false, Relaxed);
}

/// Until the connection has to leave its seat.
async fn seated<T>(seat: &Option<Seat>, what: impl Future<Output = T>) -> Option<T> {
    match seat {
        Some(seat) => seat.out.run_until_cancelled(what).await,
        None => Some(what.await),
    }
}

/// One link from Up to Down; `seat` is its place until it is one.
async fn carry(
    shared: Arc<Shared>,
    pair: Arc<Pair>,
    mut link: Greeted<Line>,
    admission: Admission,
    seat: Option<Seat>,
) {
    // The link before this one is on its way out; it has a deadline for that. Meanwhile a newer one may come.
    let mut orders = admission.orders.clone();
    let waiting = async {
        tokio::select! {
            biased;
            ordered = orders.wait_for(|orders| orders.end.is_some()) => Err(ordered.ok().and_then(|o| o.end)),
            turn = pair.turn.lock() => Ok(turn),
        }
    };
    let _turn = match seated(&seat, waiting).await {
        Some(Ok(turn)) => turn,
        Some(Err(ordered)) => {
            let reason = ordered.unwrap_or(ByeReason::Duplicate);
            seated(&seat, link.goodbye(reason, shared.timing.goodbye)).await;
            return pair.close(&admission, None);
        }
        None => return pair.close(&admission, None),
    };
    drop(seat);
    let Some(events) = pair.events() else {
        return pair.close(&admission, None); // taken out of the config just now
    };
    let (commands, outcomes) = shared.sink.attach(pair.id);
    let (give, requests) = mpsc::channel(REQUESTS);
    pair.open(&admission, give);
    // A peer can make links as often as it likes.
    let told = pair.seldom().links.due();
    if let Some(more) = told {
        tracing::info!(peer = %pair.name(), more, "linked");
    }
    shared.tell(&events, LinkEvent::Up).await;
    let ends = Ends {
        commands,
        outcomes,
        requests,
        events: events.clone(),
        shared_key: Box::new({
            let pair = pair.clone();
            move |seen| pair.told_shared_key(seen)
        }),
        orders: admission.orders.clone(),
        cancel: shared.cancel.clone(),
        upload: shared.upload.clone(),
        download: shared.download.clone(),
        timing: shared.timing,
    };
    let error = drive(link, ends).await;
    if told.is_some() {
        tracing::info!(peer = %pair.name(), error, "link ended");
    }
    pair.close(&admission, error.as_deref());
    shared.tell(&events, LinkEvent::Down { error }).await;
}

impl Shared {
    /// Waits for whoever takes the peer's events, unless the agent is ending and nobody may listen any more.
    async fn tell(&self, events: &mpsc::Sender<LinkEvent>, event: LinkEvent) {
        tokio::select! {
            biased;
            _ = events.send(event) => {}
            () = async { self.cancel.cancelled().await; tokio::time::sleep(self.timing.goodbye).await } => {}
        }
    }
}

fn hello(name: String, run: Option<u64>) -> Hello {
    Hello {
        version_min: 0, // both are filled in by the conversation
        version_max: 0,
        name,
        software: concat!("dropwire ", env!("CARGO_PKG_VERSION")).into(),
        window: WINDOW,
        max_open: MAX_OPEN,
        run,
    }
}

fn cannot_listen(address: &str, error: &io::Error) -> Fatal {
    let (exit, mend) = match error.kind() {
        io::ErrorKind::PermissionDenied => (Exit::Permission, "take a port above 1023"),
        io::ErrorKind::AddrInUse => (
            Exit::CannotCreate,
            "end the program that uses it, or take another port",
        ),
        _ => (
            Exit::CannotCreate,
            "`listen` must name an address of this machine, such as 0.0.0.0:7420",
        ),
    };
    Fatal::new(exit, format_args!("cannot listen on {address}: {error}")).mend(mend)
}

/// Bytes of one transfer under way without an Ack: fills 20 ms, up to where a line is long, at 250 MB/s. They lie in the
/// network and in the sink, not here; beside one alone whose disk is slow, the sink's room has place for others.
const WINDOW: u64 = 5 * 1024 * 1024;
/// The same on a long line, where a packet that is lost holds up all that comes after it for another round trip.
const WINDOW_FAR: u64 = 16 * 1024 * 1024;
/// Connections that are no link yet; each takes some 30 KiB.
const LOBBY: usize = 256;
/// Connections beside the first of a link, over all links. An idle one takes some 50 KiB, one that was busy 300.
const FURTHER: usize = 128;
/// Transfers that a link takes in at once; our Hello says so, and as a sender we keep to it too.
pub const MAX_OPEN: u32 = 1024;
/// How long looking up the name to listen on may take.
const LOOK_UP: Duration = Duration::from_secs(10);
/// Requests that wait for a link.
const REQUESTS: usize = 64;

impl Default for Timing {
    fn default() -> Self {
        Timing {
            handshake: Duration::from_secs(10),
            ping_after: Duration::from_secs(15),
            dead_after: Duration::from_secs(45),
            probe: Duration::from_secs(5),
            goodbye: Duration::from_secs(2),
            far: Duration::from_millis(20),
            twins: Duration::from_secs(900),
        }
    }
}
