//! Accepting: anyone may connect, few may stay.
//!
//! The number of connections that have not proven a paired key is bounded, and each has a deadline. Above the bound
//! the oldest goes: so a crowd of idle ones never keeps a paired agent out.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    handshake,
    joining::{self, Door, LinkName},
    line::{Line, Tls},
    links::Shared,
    pair::Pair,
    wire::Traffic,
};
use crate::identity::{self, NotPaired, Role};

/// A connection whose other side has proven a paired key.
struct Proven {
    pair: Arc<Pair>,
    stream: Tls,
    role: Role,
    /// Of the link, if this is its first connection.
    name: LinkName,
    traffic: Arc<Traffic>,
    since: Instant,
}

/// Accepts until cancelled.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, cancel: CancellationToken) {
    let mut handshakes = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    let mut refusals = Refusals::default();
    let unproven = affordable(UNPROVEN);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            // One above the bound is on its way out: it is waited for, so that a burst takes no more than the bound.
            accepted = listener.accept(), if handshakes.len() <= unproven => match accepted {
                Ok((tcp, from)) => {
                    oldest.retain(|handle| !handle.is_finished());
                    if oldest.len() >= unproven && let Some(handle) = oldest.pop_front() {
                        handle.abort();
                    }
                    oldest.push_back(handshakes.spawn(prove(shared.clone(), tcp, from)));
                }
                Err(error) => accept_failed(&error, &mut refusals).await,
            },
            Some(done) = handshakes.join_next() => match done {
                Ok(Ok(proven)) => { shared.tasks.spawn(welcome(shared.clone(), proven)); }
                Ok(Err((from, error))) => refusals.log(from, &error),
                Err(_aborted) => {}
            },
        }
    }
}

/// TLS, within the deadline.
async fn prove(
    shared: Arc<Shared>,
    tcp: TcpStream,
    from: SocketAddr,
) -> Result<Proven, (SocketAddr, io::Error)> {
    let since = Instant::now();
    let (socket, traffic) = handshake::socket(tcp, &shared.timing);
    let accept = TlsAcceptor::from(shared.terms().server.clone()).accept(socket);
    let mut stream = match timeout(shared.timing.handshake, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err((from, error)),
        Err(_) => {
            return Err((
                from,
                io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time"),
            ));
        }
    };
    let (socket, tls) = stream.get_mut();
    let agreed = identity::agreed(tls);
    let agreed = agreed.and_then(|(id, role)| Some((shared.terms().pairs.get(&id)?.clone(), role)));
    let Some((pair, role)) = agreed else {
        return Err((from, io::Error::other("it does not speak dropwire's protocol")));
    };
    handshake::fit(socket, tls, role);
    Ok(Proven {
        pair,
        role,
        name: LinkName::of(tls).map_err(|error| (from, error))?,
        stream: stream.into(),
        traffic,
        since,
    })
}

/// The Hellos, or the way into the link that it belongs to, within what is left of the deadline.
async fn welcome(shared: Arc<Shared>, proven: Proven) {
    let Proven {
        pair,
        stream,
        role,
        name,
        traffic,
        since,
    } = proven;
    let met = async {
        let line = match role {
            Role::Whole => Line::Whole(stream.into()),
            Role::First => {
                let (line, door) = Door::open(stream, name, &traffic);
                pair.let_join(door);
                line
            }
            Role::Further => return joining::answer(&shared, &pair, stream).await,
        };
        shared.meet(&pair, line, traffic, false).await.map(drop)
    };
    let error = tokio::select! {
        () = pair.cancel.cancelled() => return,
        met = tokio::time::timeout_at(since + shared.timing.handshake, met) => match met {
            Ok(Ok(())) => return,
            Ok(Err(error)) => handshake::explain(&error),
            Err(_) => "no Hello in time".into(),
        },
    };
    tracing::warn!(peer = %pair.name(), error, "the peer connected, but no link came of it");
}

/// So many connections of a kind, but no more than a quarter of the descriptors: files can be opened and paired agents
/// accepted beside them.
pub(super) fn affordable(most: usize) -> usize {
    #[cfg(unix)]
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        return usize::try_from(limit / 4).unwrap_or(most).clamp(1, most);
    }
    most
}

/// Out of descriptors or memory: waiting helps, spinning does not.
async fn accept_failed(error: &io::Error, refusals: &mut Refusals) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        return;
    }
    if refusals.failed.due() {
        tracing::error!(%error, "cannot accept connections; trying again");
    }
    sleep(ACCEPT_PAUSE).await;
}

/// Tells of those who were turned away, without letting them fill the log.
#[derive(Default)]
struct Refusals {
    unpaired: Seldom,
    broken: Seldom,
    failed: Seldom,
}

impl Refusals {
    fn log(&mut self, from: SocketAddr, error: &io::Error) {
        match NotPaired::find(error) {
            Some(NotPaired::Unknown(id)) if self.unpaired.due() => {
                let id = crate::id::format(id);
                tracing::warn!(%from, id, more = self.unpaired.take_missed(), "turned away an agent that is not paired");
            }
            Some(NotPaired::Ourselves) if self.unpaired.due() => {
                tracing::warn!(%from, "turned away a connection with this agent's own key");
            }
            None if self.broken.due() => {
                tracing::info!(%from, %error, more = self.broken.take_missed(), "turned away a connection");
            }
            _ => {}
        }
    }
}

/// True at most once an interval, and how often it was not.
#[derive(Default)]
struct Seldom {
    last: Option<Instant>,
    missed: u64,
}

impl Seldom {
    fn due(&mut self) -> bool {
        if self.last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            self.missed += 1;
            return false;
        }
        self.last = Some(Instant::now());
        true
    }

    fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }
}

/// Connections without a proven key; each takes some 30 KiB.
const UNPROVEN: usize = 128;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const LOG_INTERVAL: Duration = Duration::from_secs(10);
