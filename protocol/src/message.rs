//! Every message of the conversation. PROTOCOL.md has the same table in prose.

use bytes::Bytes;
use minicbor::{Decode, Encode};

pub use crate::limits::{
    MAX_ASKED, MAX_BATCH, MAX_CHUNK, MAX_EAGER, MAX_NAME, MAX_PASS, MAX_RECEIPT, MAX_TEXT, MIN_WINDOW,
};
use crate::{Digest, Malformed, Manifest, Mtime, Receipt, TransferId};

/// The versions this crate speaks.
pub const VERSION_MIN: u16 = 1;
/// See [`VERSION_MIN`].
pub const VERSION_MAX: u16 = 3;
/// From this version on whole folders may be offered ([`crate::Kind::Folder`]).
pub const VERSION_FOLDERS: u16 = 2;
/// Since it [`Forget`] may have times alone: of files that stay with their sender, and are not to be forgotten yet.
pub const VERSION_KEPT_TIMES: u16 = 3;

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
    SharedKey(SharedKey),
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
    /// Shown to people, never trusted; at most [`MAX_NAME`] bytes.
    #[n(2)]
    pub name: String,
    /// Software and its version, for logs; at most [`MAX_TEXT`] bytes.
    #[n(3)]
    pub software: String,
    /// How many bytes of one transfer this side takes in without having acknowledged them; at least [`MIN_WINDOW`].
    #[n(4)]
    pub window: u64,
    /// How many transfers it takes in at once on this link.
    #[n(5)]
    pub max_open: u32,
    /// A random number of this run of the agent, by which a restart is told from a second machine with the same key.
    /// Whoever states it reads [`SharedKey`].
    #[n(6)]
    pub run: Option<u64>,
}

/// The last message: why the sender of it closes the link.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Bye {
    /// What for.
    #[n(0)]
    pub reason: ByeReason,
    /// For logs; at most [`MAX_TEXT`] bytes.
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
    /// Its chunk and Done follow without waiting for an Accept, as pass 0 from offset 0; a file of at most [`MAX_EAGER`].
    #[n(2)]
    pub eager: bool,
    /// Numbers the offers of this side on this link, rising. Answers carry it, so that one to an earlier offer of the
    /// same id is told from one to this.
    #[n(3)]
    pub serial: u64,
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
    /// The offer's.
    #[n(4)]
    pub serial: u64,
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
    /// For people; at most [`MAX_TEXT`] bytes.
    #[n(2)]
    pub text: String,
    /// Milliseconds after which asking again makes sense; none: the sender's own backoff.
    #[n(3)]
    pub retry_after_ms: Option<u64>,
    /// The offer's.
    #[n(4)]
    pub serial: u64,
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
    /// That id was offered with another path, size or digest.
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
    /// It cannot take whole folders (since [`VERSION_FOLDERS`]).
    #[n(9)]
    NoFolders,
}

/// Already delivered under this id: the stored receipt. Answers an Offer (then the sender answers with [`Close`])
/// or a Withdraw.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Settled {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// Byte for byte what was signed then.
    #[n(1)]
    pub receipt: Receipt,
    /// The offer's; none when it answers a Withdraw.
    #[n(2)]
    pub serial: Option<u64>,
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
    /// The offer's.
    #[n(3)]
    pub serial: u64,
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
    /// The offer's.
    #[n(1)]
    pub serial: u64,
}

/// Transfers committed: as many as fit in a frame.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Receipts {
    /// One to [`MAX_BATCH`].
    #[cbor(n(0), decode_with = "decode_batch")]
    pub receipts: Vec<Committed>,
}

/// One transfer is on the receiver's disk: bytes, name and receipt.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Committed {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// The offer's.
    #[n(1)]
    pub serial: u64,
    /// The proof, at most [`MAX_RECEIPT`] bytes.
    #[n(2)]
    pub receipt: Receipt,
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
    /// Up to [`MAX_BATCH`]. None (since [`VERSION_KEPT_TIMES`]): nothing is to be forgotten, there are only `times`.
    #[cbor(n(0), decode_with = "decode_batch")]
    pub ids: Vec<TransferId>,
    /// Of those whose file got another modification time after it was sent, its bytes being the same; none: of no one.
    #[cbor(n(1), decode_with = "decode_times")]
    pub times: Option<Vec<LateTime>>,
}

/// The modification time that a delivered file has at the sender by now.
#[derive(Clone, Copy, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct LateTime {
    /// Which transfer.
    #[n(0)]
    pub id: TransferId,
    /// In place of its manifest's.
    #[n(1)]
    pub mtime: Mtime,
}

/// The answer to Forget, once it is on the receiver's disk: about its ids, or, where there are none, about its times.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Forgotten {
    /// One to [`MAX_BATCH`] of the ids asked for.
    #[cbor(n(0), decode_with = "decode_batch")]
    pub ids: Vec<TransferId>,
}

/// Whether the sender of this sees two machines that use the key of its reader. Only to one whose Hello states its run.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct SharedKey {
    /// It does; or not any more.
    #[n(0)]
    pub seen: bool,
}

impl Message {
    /// What it is called in PROTOCOL.md.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Bye(_) => "Bye",
            Self::Ping(_) => "Ping",
            Self::Pong(_) => "Pong",
            Self::Offer(_) => "Offer",
            Self::Accept(_) => "Accept",
            Self::Decline(_) => "Decline",
            Self::Settled(_) => "Settled",
            Self::Chunk(_) => "Chunk",
            Self::Ack(_) => "Ack",
            Self::Done(_) => "Done",
            Self::Close(_) => "Close",
            Self::Receipts(_) => "Receipts",
            Self::Withdraw(_) => "Withdraw",
            Self::Withdrawn(_) => "Withdrawn",
            Self::Forget(_) => "Forget",
            Self::Forgotten(_) => "Forgotten",
            Self::SharedKey(_) => "SharedKey",
        }
    }

    /// Holds the limits that the types alone do not. Checked of every message, read or written.
    pub(crate) fn check(&self) -> Result<(), Malformed> {
        let message = self.name();
        let text = |text: &str, most| match text.len() {
            length if length > most => Err(Malformed::TextLength {
                message,
                length,
                most,
            }),
            _ => Ok(()),
        };
        let list = |length, least| match (least..=MAX_BATCH).contains(&length) {
            true => Ok(()),
            false => Err(Malformed::ListLength { message, length }),
        };
        match self {
            Self::Hello(hello) => {
                text(&hello.name, MAX_NAME)?;
                text(&hello.software, MAX_TEXT)
            }
            Self::Bye(bye) => text(&bye.text, MAX_TEXT),
            Self::Decline(decline) => text(&decline.text, MAX_TEXT),
            Self::Offer(offer) => check_time(&offer.manifest.mtime),
            Self::Chunk(chunk) => {
                let length = chunk.bytes.len();
                if !(1..=MAX_CHUNK).contains(&length) {
                    return Err(Malformed::ChunkLength(length));
                }
                let end = chunk.offset.checked_add(length as u64);
                end.map(drop).ok_or(Malformed::ChunkEnd)
            }
            Self::Settled(settled) => check_receipt(&settled.receipt),
            Self::Receipts(Receipts { receipts }) => {
                list(receipts.len(), 1)?;
                receipts
                    .iter()
                    .try_for_each(|committed| check_receipt(&committed.receipt))
            }
            Self::Forget(Forget { ids, times }) => {
                let times = times.as_deref().unwrap_or_default();
                list(ids.len(), usize::from(times.is_empty()))?;
                list(times.len(), 0)?;
                times.iter().try_for_each(|late| check_time(&late.mtime))
            }
            Self::Forgotten(Forgotten { ids }) => list(ids.len(), 1),
            Self::Ping(_)
            | Self::Pong(_)
            | Self::Accept(_)
            | Self::Ack(_)
            | Self::Done(_)
            | Self::Close(_)
            | Self::Withdraw(_)
            | Self::Withdrawn(_)
            | Self::SharedKey(_) => Ok(()),
        }
    }
}

/// Cuts a text to at most `most` bytes, between characters.
pub(crate) fn cut(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

fn check_time(mtime: &Mtime) -> Result<(), Malformed> {
    match mtime.nanos {
        0..1_000_000_000 => Ok(()),
        nanos => Err(Malformed::Nanoseconds(nanos)),
    }
}

fn check_receipt(receipt: &Receipt) -> Result<(), Malformed> {
    match receipt.size() {
        0..=MAX_RECEIPT => Ok(()),
        size => Err(Malformed::ReceiptSize(size)),
    }
}

/// A list whose announced length is judged before it is read.
fn decode_batch<'b, C, T: Decode<'b, C>>(
    d: &mut minicbor::Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    let at = d.position();
    match d.array()? {
        Some(count) if count <= MAX_BATCH as u64 => (0..count).map(|_| d.decode_with(context)).collect(),
        _ => Err(minicbor::decode::Error::message("a list of unknown length, or of more than 256").at(at)),
    }
}

/// Decodes a list that may be missing.
fn decode_times<'b, C>(
    d: &mut minicbor::Decoder<'b>,
    context: &mut C,
) -> Result<Option<Vec<LateTime>>, minicbor::decode::Error> {
    decode_batch(d, context).map(Some)
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
