//! The registry: who is paired, which link each pair has, and how a link begins and ends for the rest of the agent.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use dropwire_protocol::AgentId;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    LinkEvent, Request, Sink, Timing, dial, listen,
    lobby::Lobby,
    pair::{Pair, PeerLink},
    rate::Rate,
    shared::{LinkConfig, Listening, Shared, hello},
};
use crate::{
    config,
    descriptors::affordable,
    error::{Exit, Fatal},
    identity::Identity,
    poison::Unpoisoned as _,
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
/// or [`Exit::Permission`], with a hint.
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
    ) -> Self {
        Self::start_with(settings, listener, identity, sink, cancel, Timing::default())
    }

    pub(super) fn start_with(
        settings: Settings,
        listener: Option<TcpListener>,
        identity: Arc<Identity>,
        sink: Arc<dyn Sink>,
        cancel: CancellationToken,
        timing: Timing,
    ) -> Self {
        let run = getrandom::u64().ok();
        let shared = Arc::new(Shared {
            upload: Arc::new(Rate::new(settings.limits.upload)),
            download: Arc::new(Rate::new(settings.limits.download)),
            link_config: RwLock::new(Arc::new(LinkConfig {
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
            subflow_permits: Arc::new(Semaphore::new(affordable(MAX_SUBFLOWS, 1))),
            listening: Mutex::default(),
        });
        let links = Self { shared };
        links.take_up(settings);
        links.listen_on(listener);
        links
    }

    /// The config says this now. Links stay up, except those of peers that are not in it any more: they end, and this
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
        let before = shared.link_config();
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
        let link_config = Arc::new(LinkConfig {
            server: shared.identity.server_config(pairs.keys().copied().collect()),
            pairs,
            retry: settings.retry,
            hello: hello(settings.name, shared.run),
        });
        *shared.link_config.write().unpoisoned() = link_config;
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
            .link_config()
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
        self.shared.link_config().pairs.get(&peer)?.take_events()
    }

    /// All peers, linked or not.
    pub fn status(&self) -> Vec<PeerLink> {
        let link_config = self.shared.link_config();
        link_config.pairs.values().map(|pair| pair.status()).collect()
    }

    /// Ends every wait before a next dial.
    pub fn dial_all_now(&self) {
        let link_config = self.shared.link_config();
        link_config
            .pairs
            .values()
            .for_each(|pair| pair.dial_now.notify_one());
    }

    /// Connections that joined a link.
    #[cfg(test)]
    pub(super) fn subflows(&self) -> usize {
        affordable(MAX_SUBFLOWS, 1) - self.shared.subflow_permits.available_permits()
    }

    /// Says Bye on every link and waits until all have ended, some seconds at most.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        // Bye, the last releases, the last events: each has the same bound.
        let _ = timeout(self.shared.timing.goodbye * 3, self.shared.tasks.wait()).await;
    }
}

fn cannot_listen(address: &str, error: &io::Error) -> Fatal {
    let (exit, hint) = match error.kind() {
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
    Fatal::new(exit, format_args!("cannot listen on {address}: {error}")).hint(hint)
}

/// Connections that are no link yet; each takes some 30 KiB.
const LOBBY: usize = 256;
/// Connections beside the first of a link, over all links. An idle one takes some 50 KiB, one that was busy 300.
const MAX_SUBFLOWS: usize = 128;
/// How long looking up the name to listen on may take.
const LOOK_UP: Duration = Duration::from_secs(10);

impl Default for Timing {
    fn default() -> Self {
        Self {
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
