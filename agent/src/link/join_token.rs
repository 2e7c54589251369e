//! Who may join a link that goes over several connections.

use std::{io, sync::Arc};

use rustls::{ConnectionCommon, SideData};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    subflows::{Joining, Subflows},
    transport::{Tls, Transport},
    wire::Traffic,
};

/// Connections of a link beside its first. With BBR, each guesses too high what the line does: more of them lose
/// more packets to each other than they gain.
pub(super) const SUBFLOWS: usize = 5;

/// What only the two ends of a link's first connection know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkName(pub(super) [u8; 32]);

impl LinkName {
    /// Derived from the secrets of the first connection, whose handshake is complete.
    pub(super) fn of<S: SideData>(first: &ConnectionCommon<S>) -> io::Result<Self> {
        let name = first.export_keying_material([0; 32], b"EXPORTER-dropwire-link", None);
        name.map(LinkName).map_err(io::Error::other)
    }
}

/// Lets further connections into a link.
pub(super) struct JoinToken {
    pub(super) name: LinkName,
    join: mpsc::Sender<Joining<Tls>>,
    traffic: Arc<Traffic>,
    /// So many more.
    left: usize,
}

impl JoinToken {
    /// A stream over `first`, and what lets others join it.
    pub(super) fn open(first: Tls, name: LinkName, traffic: &Arc<Traffic>) -> (Transport, Self) {
        let (join, joining) = mpsc::channel(SUBFLOWS);
        let token = Self {
            name,
            join,
            traffic: traffic.clone(),
            left: SUBFLOWS,
        };
        (Transport::Multi(Box::new(Subflows::new(first, joining))), token)
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
    pub(super) fn join(self, mut stream: Tls, place: OwnedSemaphorePermit) -> io::Result<()> {
        stream.get_mut().0.get_mut().count_into(self.traffic);
        let joined = self.join.try_send((stream, place));
        joined.map_err(|_| io::Error::other("the link is over"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_let_in_as_there_are_places_and_nobody_without_the_name() {
        let (join, _joining) = mpsc::channel(SUBFLOWS);
        let mut token = JoinToken {
            name: LinkName([1; 32]),
            join,
            traffic: Arc::default(),
            left: SUBFLOWS,
        };
        assert!(token.enter(&LinkName([2; 32])).is_none());
        for _ in 0..SUBFLOWS {
            assert!(token.enter(&LinkName([1; 32])).is_some());
        }
        assert!(token.enter(&LinkName([1; 32])).is_none());
    }
}
