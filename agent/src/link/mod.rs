//! Links: one stream of bytes a pair of agents, whoever dials, carrying transfers both ways. It is a TLS connection,
//! over a long line several.
//!
//! The room sees files only through two small traits: [`Source`] (where an outgoing transfer's chunks come from)
//! and [`Sink`] (where incoming ones go).

mod buffered;
mod client;
mod commands;
mod dial;
mod driver;
mod handshake;
mod join_token;
mod joining;
mod links;
mod listen;
mod lobby;
mod log_limit;
mod outgoing;
mod pair;
mod probe;
mod rate;
mod refusals;
mod shared;
mod subflows;
#[cfg(test)]
mod tests;
mod transport;
mod twins;
mod wire;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use dropwire_protocol::{
    AgentId, Digest, Manifest, Receipt, TransferId,
    message::{DeclineReason, LateTime},
    receiver::Outcome,
};
use tokio::sync::mpsc;

pub use commands::{Commands, ReceiveBudget};
pub use links::{Links, NotLinked, Settings, bind};
pub use pair::{PeerLink, SharedKey};
pub use probe::{Unreached, probe};
pub use shared::MAX_OPEN;

/// One transfer to offer.
pub struct Outgoing {
    /// Which.
    pub id: TransferId,
    /// What the offer says.
    pub manifest: Manifest,
    /// A small file's bytes may follow at once; not where the receiver may have them already.
    pub eager: bool,
    /// Where its bytes come from.
    pub source: Arc<dyn Source>,
    /// Set by the link: bytes the receiver has, a resumed prefix included.
    pub progress: Arc<AtomicU64>,
}

/// Where an outgoing transfer's chunks come from.
pub trait Source: Send + Sync {
    /// Reads from `offset` and feeds `out`, on a thread of its own; returns at once. Stops when `out` is closed.
    /// The channel is bounded: that is the back-pressure. Ends with `End` or `Void`.
    ///
    /// `digest` is what the receiver holds before `offset`; where the file's own prefix differs: `Void` with
    /// [`Voided::PrefixDiffers`].
    fn read(&self, offset: u64, digest: Digest, out: mpsc::Sender<Piece>);
}

/// What a [`Source`] gives.
#[derive(Debug)]
#[allow(missing_docs)] // the fields are a Chunk's and a Done's own
pub enum Piece {
    /// The next bytes, in order, at most MAX_CHUNK; `digest` of the file from 0 to this chunk's end.
    Chunk {
        offset: u64,
        bytes: Bytes,
        digest: Digest,
    },
    /// Everything was read and is one version of the file, checked after the last read.
    End { digest: Digest },
    /// This pass is void.
    Void(Voided),
}

/// Why a pass is void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Voided {
    /// The file is another version now, or a writer came.
    Changed,
    /// It is not there any more (or is no regular file).
    Gone,
    /// Somebody has it open for writing.
    Writer,
    /// What the receiver holds is not this file's prefix.
    PrefixDiffers,
    /// It cannot be read; the cause.
    Unreadable(String),
}

/// Where incoming transfers go.
pub trait Sink: Send + Sync {
    /// A link with `peer` begins. Commands go in, outcomes come back, both bounded; the sink ends its side when the
    /// command channel closes (after a `Release` for everything open).
    fn attach(&self, peer: AgentId) -> (Commands, mpsc::Receiver<Outcome>);
}

/// What a peer's dispatcher asks of a link.
pub enum Request {
    /// Send this.
    Offer(Outgoing),
    /// Break off; the receiver keeps what it has. No event follows.
    Close(TransferId),
    /// It will not be sent (again): how did it end?
    Withdraw(TransferId),
    /// Outcomes are on our disk; some files got another modification time since they were sent.
    Forget(Vec<TransferId>, Vec<LateTime>),
    /// Files that stay with us for now got another modification time since they were sent.
    Retime(Vec<LateTime>),
}

/// What a link tells of its peer.
#[derive(Debug)]
#[allow(missing_docs)] // the fields are the messages' own
pub enum LinkEvent {
    /// Hello came; transfers may be offered.
    Up,
    /// The link is gone: what was offered on it is interrupted, without further events.
    Down {
        error: Option<String>,
    },
    /// See `protocol::sender::SenderEvent`.
    Delivered {
        id: TransferId,
        receipt: Receipt,
    },
    Settled {
        id: TransferId,
        receipt: Receipt,
    },
    Declined {
        id: TransferId,
        reason: DeclineReason,
        text: String,
        retry_after_ms: Option<u64>,
    },
    Withdrawn {
        id: TransferId,
    },
    Forgotten {
        ids: Vec<TransferId>,
    },
    Retimed {
        ids: Vec<TransferId>,
    },
    /// Our own source gave up; the transfer is closed.
    Voided {
        id: TransferId,
        why: Voided,
    },
}

/// How long a link waits for what.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// TLS and Hello together; also looking up a name.
    handshake: Duration,
    /// Silence after which a Ping goes out.
    ping_after: Duration,
    /// Silence, or a write of which nothing leaves, after which the link is dead.
    dead_after: Duration,
    /// What an old link has to answer a Ping when it keeps a new one out.
    probe: Duration,
    /// Bye, and each of the other steps of an orderly end.
    goodbye: Duration,
    /// A round trip from which on a link goes over several connections.
    far: Duration,
    /// How long a second machine with the same key is remembered after it was seen last.
    twins: Duration,
}
