//! Accepting: anyone may connect, few may stay.
//!
//! Each connection has a deadline, and a seat in the lobby until it is a link: that bounds how many there are.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    handshake::{self, Socket},
    join_token::{JoinToken, LinkName},
    joining,
    lobby::Seat,
    pair::Pair,
    shared::Shared,
    transport::{Tls, Transport},
    wire::Traffic,
};
use crate::{
    identity::{self, Role},
    io_error::{Meaning, Wait, meaning},
};

/// A connection whose other side has proven a paired key.
struct Proven {
    pair: Arc<Pair>,
    stream: Tls,
    role: Role,
    /// Of the link, if this is its first connection.
    name: LinkName,
}

/// Accepts until cancelled.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, cancel: CancellationToken) {
    let mut shortage = Shortage::default();
    let accepting = async {
        loop {
            shared.lobby.has_room().await;
            match listener.accept().await {
                Ok((tcp, from)) => {
                    shortage.over();
                    receive(&shared, tcp, from, &cancel);
                }
                Err(error) => shortage.wait_out(&shared, &error).await,
            }
        }
    };
    cancel.run_until_cancelled(accepting).await;
}

/// Sees a connection through to its link, or to its end; returns at once.
fn receive(shared: &Arc<Shared>, tcp: TcpStream, from: SocketAddr, cancel: &CancellationToken) {
    let since = Instant::now();
    let (socket, traffic) = handshake::socket(tcp, &shared.timing);
    let seat = shared.lobby.enter(from.ip(), traffic.clone(), cancel);
    let (out, owned) = (seat.out.clone(), shared.clone());
    let coming = async move {
        let shared = owned;
        match prove(&shared, socket).await {
            Ok(proven) => {
                seat.proven(proven.pair.id);
                let at = from.ip();
                welcome(&shared, proven, traffic, at, since, seat).await;
            }
            Err(error) => shared.refusals().log(from, &error),
        }
    };
    shared
        .tasks
        .spawn(async move { out.run_until_cancelled(coming).await });
}

/// TLS, within the deadline.
async fn prove(shared: &Shared, socket: Socket) -> io::Result<Proven> {
    let accept = TlsAcceptor::from(shared.link_config().server.clone()).accept(socket);
    let mut stream = match timeout(shared.timing.handshake, accept).await {
        Ok(stream) => stream?,
        Err(_) => {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no TLS handshake in time",
            ));
        }
    };
    let (socket, tls) = stream.get_mut();
    let agreed = identity::agreed(tls);
    let agreed = agreed.and_then(|(id, role)| Some((shared.link_config().pairs.get(&id)?.clone(), role)));
    let Some((pair, role)) = agreed else {
        return Err(io::Error::other("it does not speak dropwire's protocol"));
    };
    handshake::fit(socket, tls, role);
    Ok(Proven {
        pair,
        role,
        name: LinkName::of(tls)?,
        stream: stream.into(),
    })
}

/// The Hellos, or the way into the link that it belongs to, within what is left of the deadline.
async fn welcome(
    shared: &Arc<Shared>,
    proven: Proven,
    traffic: Arc<Traffic>,
    at: IpAddr,
    since: Instant,
    seat: Seat,
) {
    let Proven {
        pair,
        stream,
        role,
        name,
    } = proven;
    let met = async {
        let transport = match role {
            Role::Whole => Transport::Single(stream.into()),
            Role::First => {
                let (transport, token) = JoinToken::open(stream, name, &traffic);
                pair.let_join(token);
                transport
            }
            Role::Subflow => return joining::answer(shared, &pair, stream).await,
        };
        shared
            .meet(&pair, transport, traffic, at, Some(seat))
            .await
            .map(drop)
    };
    let error = tokio::select! {
        () = pair.cancel.cancelled() => return,
        met = timeout_at(since + shared.timing.handshake, met) => match met {
            Ok(Ok(())) => return,
            Ok(Err(error)) => handshake::explain(&error),
            Err(_) => "no Hello in time".into(),
        },
    };
    if let Some(more) = pair.log_limit().failed.due() {
        tracing::warn!(peer = %pair.name(), error, more, "the peer connected, but no link came of it");
    }
}

/// No connection can be accepted: descriptors or memory are short.
#[derive(Default)]
struct Shortage {
    since: Option<Instant>,
}

impl Shortage {
    /// Waiting helps, spinning does not; nor does keeping what is no link yet.
    async fn wait_out(&mut self, shared: &Shared, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            return; // that connection's own
        }
        if meaning(error) == Meaning::NotNow(Wait::Shortage) {
            shared.lobby.let_one_go();
        }
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::error!(%error, "cannot accept connections; trying again until it works");
        }
        sleep(ACCEPT_PAUSE).await;
    }

    fn over(&mut self) {
        if let Some(since) = self.since.take() {
            tracing::info!(after = ?since.elapsed(), "connections are accepted again");
        }
    }
}

/// How long nothing is accepted after a failure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
