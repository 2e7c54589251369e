//! A connection that we dialled, up to the proven keys.

use std::{io, sync::Arc};

use dropwire_protocol::Error;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{handshake, join_token::LinkName, pair::Pair, shared::Shared, transport::Tls, wire::Traffic};
use crate::identity::{self, Role};

/// A connection that was dialled, with both keys proven.
pub(super) struct Dialled {
    pub(super) stream: Tls,
    /// One of those that were offered.
    pub(super) role: Role,
    /// Of the link, if this is its first connection.
    pub(super) name: LinkName,
    pub(super) traffic: Arc<Traffic>,
}

/// TLS with the peer, who takes one of `roles`. The caller bounds the time.
pub(super) async fn secure(
    shared: &Shared,
    pair: &Pair,
    tcp: TcpStream,
    roles: &[Role],
) -> Result<Dialled, Error> {
    // The name is never checked: the key is pinned.
    let name = ServerName::from(tcp.peer_addr()?.ip());
    let (socket, traffic) = handshake::socket(tcp, &shared.timing);
    let config = shared.identity.client_config_for(pair.id, roles);
    let mut stream = TlsConnector::from(config).connect(name, socket).await?;
    let (socket, tls) = stream.get_mut();
    let role = match identity::agreed(tls) {
        Some((id, role)) if id == pair.id && roles.contains(&role) => role,
        _ => return Err(io::Error::other("it does not speak dropwire's protocol").into()),
    };
    handshake::fit(socket, tls, role);
    Ok(Dialled {
        role,
        name: LinkName::of(tls)?,
        stream: stream.into(),
        traffic,
    })
}
