//! How further connections come to a link that goes over several.
//!
//! Who dialled the first dials them, once both Hellos are done. Each shows the link's name, a secret that only the
//! first connection's two ends can know, and is answered with one byte when it may join; then it carries segments. One
//! that cannot join, for whatever reason, is closed, and the link goes on with those it has.

use std::{io, net::SocketAddr, sync::Arc};

use dropwire_protocol::Error;
use rustls::{ConnectionCommon, SideData};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinSet,
    time::timeout,
};

use super::{
    dial::{self, Dialled},
    line::{Line, Tls},
    links::Shared,
    pair::Pair,
    strands::{Joining, Strands},
    wire::Traffic,
};
use crate::identity::Role;

/// What only the two ends of a link's first connection know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkName([u8; 32]);

impl LinkName {
    /// Derived from the secrets of the first connection, whose handshake is complete.
    pub(super) fn of<S: SideData>(first: &ConnectionCommon<S>) -> io::Result<LinkName> {
        let name = first.export_keying_material([0; 32], b"EXPORTER-dropwire-link", None);
        name.map(LinkName).map_err(io::Error::other)
    }
}

/// The way into a link for further connections.
pub(super) struct Door {
    name: LinkName,
    join: mpsc::Sender<Joining<Tls>>,
    traffic: Arc<Traffic>,
    /// So many more.
    left: usize,
}

impl Door {
    /// A stream over `first`, and the way into it.
    pub(super) fn open(first: Tls, name: LinkName, traffic: &Arc<Traffic>) -> (Line, Door) {
        let (join, joining) = mpsc::channel(FURTHER);
        let door = Door {
            name,
            join,
            traffic: traffic.clone(),
            left: FURTHER,
        };
        (Line::Strands(Box::new(Strands::new(first, joining))), door)
    }

    /// Whether the link is over.
    pub(super) fn is_closed(&self) -> bool {
        self.join.is_closed()
    }

    /// The way for one more, by its link's name; it can be used once.
    pub(super) fn enter(&mut self, name: &LinkName) -> Option<Entry> {
        if *name != self.name || self.left == 0 {
            return None;
        }
        self.left -= 1;
        Some(Entry {
            join: self.join.clone(),
            traffic: self.traffic.clone(),
        })
    }
}

/// The right of one connection to join.
pub(super) struct Entry {
    join: mpsc::Sender<Joining<Tls>>,
    traffic: Arc<Traffic>,
}

impl Entry {
    fn join(self, mut stream: Tls, place: OwnedSemaphorePermit) -> io::Result<()> {
        stream.get_mut().0.get_mut().count_into(self.traffic);
        let joined = self.join.try_send((stream, place));
        joined.map_err(|_| io::Error::other("the link is over"))
    }
}

/// Dials as many as `door` lets in, all at once; each has its deadline. Who calls this has seen to it that the link stands.
pub(super) async fn dial_further(shared: Arc<Shared>, pair: Arc<Pair>, to: SocketAddr, mut door: Door) {
    let name = door.name;
    let mut dials = JoinSet::new();
    while let Some(entry) = door.enter(&name)
        && let Ok(place) = shared.further.clone().try_acquire_owned()
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
    let Dialled { mut stream, .. } = dial::secure(shared, pair, tcp, &[Role::Further]).await?;
    stream.write_all(&name.0).await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        JOIN => Ok(stream),
        other => Err(Error::PeerMisbehaved(format!("{other} instead of a welcome"))),
    }
}

/// Lets a connection join the link that it names; the caller bounds the time.
pub(super) async fn answer(shared: &Shared, pair: &Pair, mut stream: Tls) -> Result<(), Error> {
    let mut name = [0; 32];
    stream.read_exact(&mut name).await?;
    let entry = pair.enter(&LinkName(name));
    let entry = entry.ok_or_else(|| io::Error::other("no link that it could join"))?;
    let place = shared
        .further
        .clone()
        .try_acquire_owned()
        .map_err(io::Error::other)?;
    stream.write_u8(JOIN).await?;
    stream.flush().await?;
    Ok(entry.join(stream, place)?)
}

/// Connections of a link beside its first. With BBR, each guesses too high what the line does: more of them lose
/// more packets to each other than they gain.
pub(super) const FURTHER: usize = 5;
/// The answer to who may join.
const JOIN: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_let_in_as_there_are_places_and_nobody_without_the_name() {
        let (join, _joining) = mpsc::channel(FURTHER);
        let mut door = Door {
            name: LinkName([1; 32]),
            join,
            traffic: Arc::default(),
            left: FURTHER,
        };
        assert!(door.enter(&LinkName([2; 32])).is_none());
        for _ in 0..FURTHER {
            assert!(door.enter(&LinkName([1; 32])).is_some());
        }
        assert!(door.enter(&LinkName([1; 32])).is_none());
    }
}
