//! What can go wrong in a conversation, sorted by who is to blame.

use std::{convert::Infallible, io, time::Duration};

use crate::{
    TransferId,
    limits::{MAX_ASKED, MAX_BATCH, MAX_CHUNK, MAX_EAGER, MAX_FRAME, MAX_PASS, MAX_RECEIPT, MIN_WINDOW},
};

/// Why a conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not the protocol's.
    #[error("malformed frame: {0}")]
    Malformed(Malformed),
    /// Well formed, but not allowed here.
    #[error("protocol violation: {0}")]
    PeerMisbehaved(PeerMisbehaved),
    /// Nobody's fault: no version that both speak.
    #[error(
        "no common protocol version: we speak {ours_min} to {ours_max}, the peer {theirs_min} to {theirs_max}; update the older agent"
    )]
    #[allow(missing_docs)] // the text names them
    Incompatible {
        ours_min: u16,
        ours_max: u16,
        theirs_min: u16,
        theirs_max: u16,
    },
    /// Nothing was heard for too long.
    #[error("no sign of life from the peer for {0:?}")]
    Silent(Duration),
    /// The connection itself failed.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
}

/// Why bytes are no message, or a message cannot be written. Strings are names of messages.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum Malformed {
    #[error("a frame has 1 to {MAX_FRAME} bytes, this one {0}")]
    FrameLength(usize),
    #[error("there is no message of type {0}")]
    UnknownType(u8),
    #[error("{0}: cut off, or an item of indefinite length")]
    Indefinite(&'static str),
    #[error("{0}: {1}")]
    Undecodable(&'static str, minicbor::decode::Error),
    #[error("{0}: cannot be encoded: {1}")]
    Unencodable(&'static str, minicbor::encode::Error<Infallible>),
    #[error("{0}: bytes after its end")]
    TrailingBytes(&'static str),
    #[error("{message}: a text of {length} bytes, where {most} are allowed")]
    TextLength {
        message: &'static str,
        length: usize,
        most: usize,
    },
    #[error("{message}: a list has 1 to {MAX_BATCH} items, this one {length}")]
    ListLength { message: &'static str, length: usize },
    #[error("Chunk: cut off in its head")]
    ChunkHead,
    #[error("Chunk: 1 to {MAX_CHUNK} bytes are allowed, it has {0}")]
    ChunkLength(usize),
    #[error("Chunk: its end is beyond what a number holds")]
    ChunkEnd,
    #[error("a receipt has at most {MAX_RECEIPT} bytes, this one {0}")]
    ReceiptSize(usize),
    #[error("a time has at most 999999999 ns beside its seconds, this one {0}")]
    Nanoseconds(u32),
}

/// Which rule the peer broke. Strings are names of messages.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum PeerMisbehaved {
    #[error("{0} before Hello")]
    NoHello(&'static str),
    #[error("a second Hello")]
    SecondHello,
    #[error("a window of {0} bytes, where {MIN_WINDOW} are the least")]
    SmallWindow(u64),
    #[error("{0}, which is not for a sender")]
    NotForSender(&'static str),
    #[error("{0}, which is not for a receiver")]
    NotForReceiver(&'static str),
    #[error("more than {MAX_ASKED} unanswered questions")]
    TooManyQuestions,
    #[error("byte {0} in answer to a further connection, instead of a welcome")]
    NoWelcome(u8),
    #[error("{message} for transfer {id}: {violation}")]
    Transfer {
        message: &'static str,
        id: TransferId,
        violation: Violation,
    },
}

/// Why a message about one transfer is not allowed where it came. PROTOCOL.md has the tables.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum Violation {
    #[error("no offer of it had serial {0}")]
    UnknownSerial(u64),
    #[error("serial {0} was used before")]
    UsedSerial(u64),
    #[error("an eager offer of {0} bytes, where {MAX_EAGER} are allowed")]
    EagerTooLarge(u64),
    #[error("an eager offer of a folder")]
    EagerFolder,
    #[error("{0} transfers are open already, twice as many as we take in at once")]
    TooManyOpen(usize),
    #[error("it is not open")]
    NotOpen,
    #[error("it is being opened")]
    Opening,
    #[error("it is being received")]
    Receiving,
    #[error("it is done already")]
    Finishing,
    #[error("it is committed already")]
    Committed,
    #[error("it was refused")]
    Refused,
    #[error("it was not accepted yet")]
    NotAccepted,
    #[error("it is not done yet")]
    NotDone,
    #[error("nobody asked for this answer")]
    NotAsked,
    #[error("pass {pass} instead of pass {expected}")]
    WrongPass { pass: u32, expected: u32 },
    #[error("pass {0}, where {MAX_PASS} is the last")]
    TooManyPasses(u32),
    #[error("offset {offset} instead of {expected}")]
    WrongOffset { offset: u64, expected: u64 },
    #[error("offset {offset}, where only {sent} bytes were sent")]
    NotSent { offset: u64, sent: u64 },
    #[error("offset {offset} after {before}")]
    FallingOffset { offset: u64, before: u64 },
    #[error("offset {offset}, where it has {size} bytes")]
    BeyondSize { offset: u64, size: u64 },
    #[error("more than its {0} bytes")]
    TooManyBytes(u64),
    #[error("more than the window of {0} bytes")]
    BeyondWindow(u64),
    #[error("done after {came} of {size} bytes")]
    BytesMissing { came: u64, size: u64 },
}

impl Error {
    /// A message about a transfer that is not allowed where it came.
    pub(crate) fn violation(message: &'static str, id: TransferId, violation: Violation) -> Self {
        let misbehaved = PeerMisbehaved::Transfer {
            message,
            id,
            violation,
        };
        misbehaved.into()
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<PeerMisbehaved> for Error {
    fn from(misbehaved: PeerMisbehaved) -> Self {
        Self::PeerMisbehaved(misbehaved)
    }
}
