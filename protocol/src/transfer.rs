//! What a transfer is known by, what it announces, and the digest that proves it.

use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};
use std::fmt;

use crate::RemotePath;

/// 128 bits that name one drop for one peer; the same drop keeps its id through every crash and retry.
///
/// Made by the sender (an HMAC over the drop's version); the receiver only compares it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct TransferId(#[cbor(with = "minicbor::bytes")] pub [u8; 16]);

/// A SHA-256, as `sha256sum` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Digest(#[cbor(with = "minicbor::bytes")] pub [u8; 32]);

/// A file's modification time: seconds and nanoseconds since 1970, as the sender's file system has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Mtime {
    /// Whole seconds; negative before 1970.
    #[n(0)]
    pub seconds: i64,
    /// 0 to 999,999,999.
    #[n(1)]
    pub nanos: u32,
}

/// What an offer announces of a file; bound to the transfer's id for good at the first offer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Manifest {
    /// Where the file lay below the sender's outbox.
    #[n(0)]
    pub path: RemotePath,
    /// Exact length in bytes.
    #[n(1)]
    pub size: u64,
    /// Kept by the receiver's file.
    #[n(2)]
    pub mtime: Mtime,
}

/// A SHA-256 that tells its value at any offset, and whose state can be put away and taken up again.
#[derive(Clone, Default)]
pub struct RunningDigest {
    hash: Sha256,
    length: u64,
}

impl RunningDigest {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// How many bytes it has taken in.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The SHA-256 of all bytes so far.
    pub fn value(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
