//! How further connections come to a link that goes over several.
//!
//! Who dialled the first dials them, once both Hellos are done. Each shows the link's name, a secret that only the
//! first connection's two ends can know, and is answered with one byte when it may join; then it carries segments. One
//! that cannot join, for whatever reason, is closed, and the link goes on with those it has.

use std::{io, net::SocketAddr, sync::Arc};

use dropwire_protocol::{Error, PeerMisbehaved};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{
    client::{self, Dialled},
    join_token::{JoinToken, LinkName},
    pair::Pair,
    shared::Shared,
    transport::Tls,
};
use crate::identity::Role;

/// Dials as many as `token` lets in, all at once; each has its deadline. Who calls this has seen to it that the link
/// stands.
pub(super) async fn dial_subflows(
    shared: Arc<Shared>,
    pair: Arc<Pair>,
    to: SocketAddr,
    mut token: JoinToken,
) {
    let name = token.name;
    let mut dials = JoinSet::new();
    while let Some(entry) = token.enter(&name)
        && let Ok(place) = shared.subflow_permits.clone().try_acquire_owned()
    {
        let (shared, pair) = (shared.clone(), pair.clone());
        dials.spawn(async move {
            let dial = timeout(shared.timing.handshake, ask(&shared, &pair, to, &name));
            let stream = tokio::select! {
                () = pair.cancel.cancelled() => return Ok(()),
                asked = dial => asked.unwrap_or_else(|late| Err(io::Error::from(late).into()))?,
            };
            Ok::<_, Error>(entry.join(stream, place)?)
        });
    }
    while let Some(dialled) = dials.join_next().await {
        if let Ok(Err(error)) = dialled {
            tracing::debug!(peer = %pair.name(), %to, %error, "one connection less for this link");
        }
    }
}

async fn ask(shared: &Shared, pair: &Pair, to: SocketAddr, name: &LinkName) -> Result<Tls, Error> {
    let tcp = TcpStream::connect(to).await?;
    let Dialled { mut stream, .. } = client::secure(shared, pair, tcp, &[Role::Subflow]).await?;
    stream.write_all(&name.0).await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        JOIN => Ok(stream),
        other => Err(PeerMisbehaved::NoWelcome(other).into()),
    }
}

/// Lets a connection join the link that it names; the caller bounds the time.
pub(super) async fn answer(shared: &Shared, pair: &Pair, mut stream: Tls) -> Result<(), Error> {
    let mut name = [0; 32];
    stream.read_exact(&mut name).await?;
    let entry = pair.enter(&LinkName(name));
    let entry = entry.ok_or_else(|| io::Error::other("no link that it could join"))?;
    let place = shared
        .subflow_permits
        .clone()
        .try_acquire_owned()
        .map_err(io::Error::other)?;
    stream.write_u8(JOIN).await?;
    stream.flush().await?;
    Ok(entry.join(stream, place)?)
}

/// The answer to who may join.
const JOIN: u8 = 1;
