//! Every message of the conversation. PROTOCOL.md has the same table in prose.

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::{Digest, Manifest, Receipt, TransferId};

/// The versions this crate speaks.
pub const VERSION_MIN: u16 = 1;
/// See [`VERSION_MIN`].
pub const VERSION_MAX: u16 = 1;
/// Most bytes of file in one [`Chunk`].
pub const MAX_CHUNK: usize = 256 * 1024;
/// A file up to this size may be offered `eager`: its one chunk and Done follow the offer at once.
pub const MAX_EAGER: u64 = MAX_CHUNK as u64;
/// Most receipts, ids to forget and the like in one message.
pub const MAX_BATCH: usize = 256;

/// One message. File bytes are never inside CBOR: see [`Chunk`].
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // each variant is its struct, documented there
pub enum Message {
    Hello(Hello),
    Bye(Bye),
    Ping(Ping),
    Pong(Ping),
    Offer(Offer),
    Accept(Accept),
    Decline(Decline),
    Settled(Settled),
    Chunk(Chunk),
    Ack(Ack),
    Done(Done),
    Close(Close),
    Receipts(Receipts),
    Withdraw(Withdraw),
    Withdrawn(Withdrawn),
    Forget(Forget),
    Forgotten(Forgotten),
}

/// First message of both sides; nothing else is read before it.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Lowest protocol version spoken.
    #[n(0)]
    pub version_min: u16,
    /// Highest; both sides use the smaller of the two highest.
    #[n(1)]
    pub version_max: u16,
    /// Shown to people, never trusted; at most 64 bytes count.
    #[n(2)]
    pub name: String,
    /// Software and its version, for logs.
    #[n(3)]
    pub software: String,
    /// How many bytes of one transfer this side takes in without having acknowledged them.
    #[n(4)]
    pub window: u64,
    /// How many transfers it takes in at once on this link.
    #[n(5)]
    pub max_open: u32,
}

/// The last message: why the sender of it closes the link.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Bye {
    /// What for.
    #[n(0)]
    pub reason: ByeReason,
    /// For logs; at most 256 bytes count.
    #[n(1)]
    pub text: String,
}

/// Why a link is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum ByeReason {
    /// The agent stops.
    #[n(0)]
    Shutdown,
    /// No common version.
    #[n(1)]
    Incompatible,
    /// Another link of the same pair stays.
    #[n(2)]
    Duplicate,
    /// The other side broke the protocol.
    #[n(3)]
    Violation,
    /// The pair is no longer configured.
    #[n(4)]
    Unpaired,
}

/// Keep-alive; a Pong returns the number.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Ping {
    /// Chosen by the asker.
    #[n(0)]
    pub number: u64,
}

/// A file is announced.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// What it carries.
    #[n(1)]
    pub manifest: Manifest,
    /// Its chunk and Done follow without waiting for an Accept, as pass 0 from offset 0; size at most [`MAX_EAGER`].
    #[n(2)]
    pub eager: bool,
}

/// Where the sender is to (re)start. After a plain offer it is pass 0; each later one raises the pass
/// and voids chunks and Done of the passes before it.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Accept {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// Number of this pass, rising by one.
    #[n(1)]
    pub pass: u32,
    /// First byte wanted; at most the size.
    #[n(2)]
    pub offset: u64,
    /// SHA-256 of what the receiver holds before `offset`.
    #[n(3)]
    pub digest: Digest,
}

/// The receiver will not take it now. The sender answers with [`Close`].
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Decline {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// Why.
    #[n(1)]
    pub reason: DeclineReason,
    /// For people; at most 256 bytes count.
    #[n(2)]
    pub text: String,
    /// Milliseconds after which asking again makes sense; none: the sender's own backoff.
    #[n(3)]
    pub retry_after_ms: Option<u64>,
}

/// Why a transfer was declined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum DeclineReason {
    /// No room on its disk, or a quota.
    #[n(0)]
    NoSpace,
    /// Larger than it takes; trying again is of no use until its config changes.
    #[n(1)]
    TooLarge,
    /// Its inbox is not there, read-only or held.
    #[n(2)]
    InboxUnavailable,
    /// Too many open transfers.
    #[n(3)]
    Busy,
    /// The path cannot be taken.
    #[n(4)]
    BadName,
    /// The same id was offered with another path, size or digest.
    #[n(5)]
    Conflict,
    /// It was withdrawn before; the id is spent.
    #[n(6)]
    Withdrawn,
    /// A newer link carries this transfer.
    #[n(7)]
    Fenced,
    /// Its disk failed.
    #[n(8)]
    DiskError,
}

/// Already delivered under this id: the stored receipt. The sender answers with [`Close`].
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Settled {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// Byte for byte what was signed then.
    #[n(1)]
    pub receipt: Receipt,
}

/// Bytes of a file. On the wire: id, pass, offset, digest in fixed places, then the raw bytes to the frame's end.
#[derive(Clone, PartialEq)]
pub struct Chunk {
    /// Which transfer.
    pub id: TransferId,
    /// The pass it belongs to.
    pub pass: u32,
    /// Place of its first byte.
    pub offset: u64,
    /// SHA-256 of the file from its first byte to this chunk's last.
    pub digest: Digest,
    /// 1 to [`MAX_CHUNK`] bytes.
    pub bytes: Bytes,
}

/// How far the receiver has written (not: made durable).
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Ack {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// The pass counted in.
    #[n(1)]
    pub pass: u32,
    /// All bytes before it are written.
    #[n(2)]
    pub offset: u64,
}

/// All bytes are sent and the sender has checked, after its last read, that they are one version of the file.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Done {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// The pass it ends.
    #[n(1)]
    pub pass: u32,
    /// Plain SHA-256 of the whole file.
    #[n(2)]
    pub digest: Digest,
}

/// No more frames of this transfer follow on this link until it is offered again: the answer to Decline and
/// Settled, and how a sender breaks off (file changed, link wanted for others). The receiver keeps what it has.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Close {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
}

/// Transfers committed: one to [`MAX_BATCH`].
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Receipts {
    /// The signed receipts; each names its transfer.
    #[n(0)]
    pub receipts: Vec<Receipt>,
}

/// The sender will never send this again and asks how it ended: Settled if delivered, else Withdrawn.
/// Also valid for a transfer not open on this link; one that is open is closed by it.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Withdraw {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
}

/// It was not delivered and, from the moment this was said, never will be.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Withdrawn {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
}

/// The sender has the outcome on its disk; the receiver may drop its rows (after its own retention).
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Forget {
    /// One to [`MAX_BATCH`].
    #[n(0)]
    pub ids: Vec<TransferId>,
}

/// The answer to Forget, once it is on the receiver's disk.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Forgotten {
    /// The same ids.
    #[n(0)]
    pub ids: Vec<TransferId>,
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Chunk({} pass {} at {}, {} bytes)",
            self.id,
            self.pass,
            self.offset,
            self.bytes.len()
        )
    }
}
