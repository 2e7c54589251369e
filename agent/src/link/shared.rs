//! What the tasks of this room share, and a link's way from its Hellos to its end.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, RwLock, atomic::Ordering::Relaxed},
    time::Duration,
};

use dropwire_protocol::{
    AgentId, Error, Local,
    message::{ByeReason, Hello},
};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    LinkEvent, Sink, Timing,
    driver::{Ends, driver},
    handshake::{Greeted, greet},
    lobby::{Lobby, Seat},
    pair::{Admission, Pair, Refused, Visitor},
    rate::Rate,
    refusals::Refusals,
    transport::Transport,
    wire::Traffic,
};
use crate::{config, identity::Identity, poison::Unpoisoned as _};

/// Bytes of one transfer under way without an Ack: fills 20 ms, up to where a line is long, at 250 MB/s. They lie in the
/// network and in the sink, not here; beside one alone whose disk is slow, the sink's room has place for others.
const WINDOW: u64 = 5 * 1024 * 1024;
/// Bytes of one transfer under way on a long line, where a packet that is lost holds up all that comes after it for
/// another round trip.
const WINDOW_FAR: u64 = 16 * 1024 * 1024;
/// Transfers that a link takes in at once; our Hello says so, and as a sender we keep to it too.
pub const MAX_OPEN: u32 = 1024;
/// Requests that wait for a link.
const REQUESTS: usize = 64;

/// What the tasks of this room share.
pub(super) struct Shared {
    pub(super) identity: Arc<Identity>,
    pub(super) cancel: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) timing: Timing,
    /// All that came in and is no link yet, by whichever listener.
    pub(super) lobby: Arc<Lobby>,
    pub(super) refusals: Mutex<Refusals>,
    /// Places for connections beside the first of a link, over all links.
    pub(super) subflow_permits: Arc<Semaphore>,
    /// See [`Hello::run`].
    pub(super) run: Option<u64>,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) upload: Arc<Rate>,
    pub(super) download: Arc<Rate>,
    pub(super) link_config: RwLock<Arc<LinkConfig>>,
    pub(super) listening: Mutex<Option<Listening>>,
}

/// What follows from the config; replaced whole.
pub(super) struct LinkConfig {
    /// With the pins of all pairs.
    pub(super) server: Arc<rustls::ServerConfig>,
    pub(super) pairs: HashMap<AgentId, Arc<Pair>>,
    pub(super) retry: config::Retry,
    pub(super) hello: Hello,
}

/// Where others can come in, and what ends it.
pub(super) struct Listening {
    pub(super) address: Option<SocketAddr>,
    pub(super) cancel: CancellationToken,
}

impl Shared {
    /// As they are now.
    pub(super) fn link_config(&self) -> Arc<LinkConfig> {
        self.link_config.read().unpoisoned().clone()
    }

    pub(super) fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().unpoisoned()
    }

    pub(super) fn listening(&self) -> std::sync::MutexGuard<'_, Option<Listening>> {
        self.listening.lock().unpoisoned()
    }

    /// Exchanges Hellos on a connection whose key is proven. If it is the one to stay, it begins to carry transfers by
    /// itself, and this is true; the caller is done. `at` is where the other side is; `seat` is that of a connection
    /// that came in: without one, we dialled.
    pub(super) async fn meet(
        self: &Arc<Self>,
        pair: &Arc<Pair>,
        transport: Transport,
        traffic: Arc<Traffic>,
        at: IpAddr,
        seat: Option<Seat>,
    ) -> Result<bool, Error> {
        let dialled = seat.is_none();
        let mut hello = self.link_config().hello.clone();
        if matches!(transport, Transport::Multi(_)) {
            hello.window = WINDOW_FAR;
        }
        let local = Local {
            hello,
            max_file_size: None, // the link takes it from its orders
            ping_after: self.timing.ping_after,
            dead_after: self.timing.dead_after,
        };
        let mut link = greet(transport, traffic, local, &self.timing).await?;
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
    mut link: Greeted<Transport>,
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
    let told = pair.log_limit().links.due();
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
    let error = driver(link, ends).await;
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

pub(super) fn hello(name: String, run: Option<u64>) -> Hello {
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
