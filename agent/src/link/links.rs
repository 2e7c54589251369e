//! The registry: who is paired, which link each pair has, and how a link begins and ends towards the daemon.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use dropwire_protocol::{
    AgentId, Error, Local,
    message::{ByeReason, Hello},
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_rustls::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    LinkEvent, Request, Sink, Timing, dial,
    drive::{Ends, drive},
    handshake::{Greeted, Socket, greet},
    listen,
    pair::{Admission, Pair},
    rate::Rate,
    wire::Traffic,
};
use crate::{
    config,
    error::{Exit, Fatal},
    identity::Identity,
};

/// What the links need of the config.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Told to peers, for their logs.
    pub name: String,
    /// `host:port` to accept on; None: only dial.
    pub listen: Option<String>,
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
    /// Bytes over all its links since the start, TLS included.
    pub sent_bytes: u64,
    /// See `sent_bytes`.
    pub received_bytes: u64,
}

/// There is no link to this peer now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not linked with this peer")]
pub struct NotLinked;

/// All links of this agent.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
    listen_addr: Option<SocketAddr>,
}

impl Links {
    /// Binds, and begins to accept and to dial. An address that cannot be used: [`Exit::CannotCreate`] or
    /// [`Exit::Permission`], with a mend.
    ///
    /// Each peer's events come in order, its `Down` before its next `Up`. While `events` is full, links stop reading.
    /// Ends when `cancel` is cancelled, or by [`Links::shutdown`].
    pub async fn start(
        settings: Settings,
        identity: Arc<Identity>,
        sink: Arc<dyn Sink>,
        events: mpsc::Sender<LinkEvent>,
        cancel: CancellationToken,
    ) -> Result<Links, Fatal> {
        Links::start_with(settings, identity, sink, events, cancel, Timing::default()).await
    }

    pub(super) async fn start_with(
        settings: Settings,
        identity: Arc<Identity>,
        sink: Arc<dyn Sink>,
        events: mpsc::Sender<LinkEvent>,
        cancel: CancellationToken,
        timing: Timing,
    ) -> Result<Links, Fatal> {
        let listener = match &settings.listen {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|e| cannot_listen(address, &e))?,
            ),
            None => None,
        };
        let listen_addr = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let own = identity.id();
        let pairs: HashMap<_, _> = settings
            .peers
            .into_iter()
            .map(|peer| (peer.id, Arc::new(Pair::new(peer, own))))
            .collect();
        let shared = Arc::new(Shared {
            server: identity.server_config(pairs.keys().copied().collect()),
            identity,
            hello: hello(settings.name),
            pairs,
            sink,
            events,
            cancel: cancel.child_token(),
            tasks: TaskTracker::new(),
            retry: settings.retry,
            upload: Arc::new(Rate::new(settings.limits.upload)),
            download: Arc::new(Rate::new(settings.limits.download)),
            timing,
        });
        if let Some(listener) = listener {
            shared.tasks.spawn(listen::serve(shared.clone(), listener));
        }
        for pair in shared.pairs.values() {
            if let Some(address) = pair.peer.address.clone() {
                shared
                    .tasks
                    .spawn(dial::keep(shared.clone(), pair.clone(), address));
            }
        }
        Ok(Links { shared, listen_addr })
    }

    /// The address in use, with its real port.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.listen_addr
    }

    /// Gives a request to the peer's link; waits while that is behind, but not beyond its end.
    pub async fn request(&self, peer: AgentId, request: Request) -> Result<(), NotLinked> {
        let requests = self
            .shared
            .pairs
            .get(&peer)
            .and_then(|pair| pair.requests())
            .ok_or(NotLinked)?;
        requests.send(request).await.map_err(|_| NotLinked)
    }

    /// All peers, linked or not.
    pub fn status(&self) -> Vec<PeerLink> {
        self.shared.pairs.values().map(|pair| pair.status()).collect()
    }

    /// Ends the wait before the next dial, if there is one.
    pub fn dial_now(&self, peer: AgentId) {
        if let Some(pair) = self.shared.pairs.get(&peer) {
            pair.dial_now.notify_one();
        }
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
    pub(super) server: Arc<rustls::ServerConfig>,
    pub(super) pairs: HashMap<AgentId, Arc<Pair>>,
    pub(super) cancel: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) retry: config::Retry,
    pub(super) timing: Timing,
    hello: Hello,
    sink: Arc<dyn Sink>,
    events: mpsc::Sender<LinkEvent>,
    upload: Arc<Rate>,
    download: Arc<Rate>,
}

impl Shared {
    /// Exchanges Hellos on a connection whose key is proven. If it is the one to stay, it begins to carry transfers
    /// by itself; the caller is done.
    pub(super) async fn meet(
        self: &Arc<Self>,
        pair: &Arc<Pair>,
        stream: TlsStream<Socket>,
        traffic: Arc<Traffic>,
        dialled: bool,
    ) -> Result<(), Error> {
        let local = Local {
            hello: self.hello.clone(),
            max_file_size: pair.peer.max_file_size,
            ping_after: self.timing.ping_after,
            dead_after: self.timing.dead_after,
        };
        let mut link = greet(stream, traffic, local, &self.timing).await?;
        match pair.admit(dialled, link.traffic.clone()) {
            Some(admission) => {
                self.tasks
                    .spawn(carry(self.clone(), pair.clone(), link, admission));
            }
            None => {
                tracing::debug!(peer = %pair.peer.name, dialled, "another link of this pair stays");
                let within = self.timing.goodbye;
                self.tasks
                    .spawn(async move { link.goodbye(ByeReason::Duplicate, within).await });
            }
        }
        Ok(())
    }
}

/// One link from Up to Down.
async fn carry(
    shared: Arc<Shared>,
    pair: Arc<Pair>,
    mut link: Greeted<TlsStream<Socket>>,
    admission: Admission,
) {
    // The link before this one is on its way out; it has a deadline for that.
    let _turn = pair.turn.lock().await;
    let ordered = admission.orders.borrow().end;
    if let Some(reason) = ordered {
        return link.goodbye(reason, shared.timing.goodbye).await;
    }
    let (peer, name) = (pair.peer.id, &pair.peer.name);
    let (commands, outcomes) = shared.sink.attach(peer);
    let (give, requests) = mpsc::channel(REQUESTS);
    pair.open(&admission, give);
    tracing::info!(peer = %name, "linked");
    shared.tell(LinkEvent::Up { peer }).await;
    let ends = Ends {
        peer,
        commands,
        outcomes,
        requests,
        events: shared.events.clone(),
        orders: admission.orders.clone(),
        cancel: shared.cancel.clone(),
        upload: shared.upload.clone(),
        download: shared.download.clone(),
        timing: shared.timing,
    };
    let error = drive(link, ends).await;
    tracing::info!(peer = %name, error, "link ended");
    pair.close(&admission, error.as_deref());
    shared.tell(LinkEvent::Down { peer, error }).await;
}

impl Shared {
    /// Waits for the daemon, unless it is ending and may not listen any more.
    async fn tell(&self, event: LinkEvent) {
        tokio::select! {
            biased;
            _ = self.events.send(event) => {}
            () = async { self.cancel.cancelled().await; tokio::time::sleep(self.timing.goodbye).await } => {}
        }
    }
}

fn hello(name: String) -> Hello {
    Hello {
        version_min: 0, // both are filled in by the conversation
        version_max: 0,
        name,
        software: concat!("dropwire ", env!("CARGO_PKG_VERSION")).into(),
        window: WINDOW,
        max_open: MAX_OPEN,
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

/// Bytes of one transfer under way without an Ack: fills 100 ms at 80 MB/s. They lie in the network and in the sink's
/// bounded channel, not here.
const WINDOW: u64 = 8 * 1024 * 1024;
/// Transfers that a link takes in at once; our Hello says so, and as a sender we keep to it too.
pub const MAX_OPEN: u32 = 256;
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
        }
    }
}
