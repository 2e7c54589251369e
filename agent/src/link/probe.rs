//! Would a dial reach the peer? It goes as far as the proof of both keys; no link is made.

use std::{io, net::SocketAddr, time::Duration};

use dropwire_protocol::AgentId;
use rustls::pki_types::ServerName;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::handshake;
use crate::identity::Identity;

/// For the lookup, and again for each address.
const WITHIN: Duration = Duration::from_secs(5);

/// Why a dial would not reach the peer; each with the cause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unreached {
    /// The name has no address.
    Unknown(String),
    /// Nobody answers there now.
    Silent(String),
    /// Whoever answers is not the peer, or does not let this agent in.
    TurnedAway(String),
}

/// Dials `address`, all addresses of it in turn, and returns the one at which `peer` let this agent in.
pub async fn probe(identity: &Identity, peer: AgentId, address: &str) -> Result<SocketAddr, Unreached> {
    let found = match timeout(WITHIN, lookup_host(address)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(Unreached::Unknown(error.to_string())),
        Err(_) => return Err(Unreached::Unknown("no answer in time".into())),
    };
    let (mut silent, mut turned_away) = (Vec::new(), Vec::new());
    for to in found {
        match timeout(WITHIN, knock(identity, peer, to)).await {
            Ok(Ok(())) => return Ok(to),
            Ok(Err(Knocked::NoAnswer(error))) => silent.push(format!("{to}: {error}")),
            Ok(Err(Knocked::No(why))) => turned_away.push(format!("{to}: {why}")),
            Err(_) => silent.push(format!("{to}: no answer in time")),
        }
    }
    match (silent.is_empty(), turned_away.is_empty()) {
        (_, false) => Err(Unreached::TurnedAway(turned_away.join("; "))),
        (false, true) => Err(Unreached::Silent(silent.join("; "))),
        (true, true) => Err(Unreached::Unknown("the name has no address".into())),
    }
}

enum Knocked {
    NoAnswer(io::Error),
    No(String),
}

async fn knock(identity: &Identity, peer: AgentId, to: SocketAddr) -> Result<(), Knocked> {
    let tcp = TcpStream::connect(to).await.map_err(Knocked::NoAnswer)?;
    let name = ServerName::from(to.ip()); // never checked: the key is pinned
    let tls = TlsConnector::from(identity.client_config(peer))
        .connect(name, tcp)
        .await;
    let mut tls = tls.map_err(refused)?;
    // Only what comes after the handshake tells whether the other side took our key: its Hello.
    match tls.read_u8().await {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(error)),
    }
}

fn refused(error: io::Error) -> Knocked {
    match error.get_ref() {
        Some(source) if source.is::<rustls::Error>() => Knocked::No(handshake::explain(&error.into())),
        _ => Knocked::NoAnswer(error),
    }
}
