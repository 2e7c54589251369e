//! What a transfer is known by, what it announces, and the digest that proves it.

use minicbor::{Decode, Encode};
use sha2::{
    Digest as _, Sha256,
    digest::common::hazmat::{SerializableState, SerializedState},
};
use std::fmt;

use crate::{RemotePath, limits::MAX_EAGER};

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

/// What an offer announces of a file or folder; bound to the transfer's id for good at the first offer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Manifest {
    /// Where it lay below the sender's outbox.
    #[n(0)]
    pub path: RemotePath,
    /// Exact length of what is sent, in bytes.
    #[n(1)]
    pub size: u64,
    /// Kept by the receiver's file; of no meaning for a folder.
    #[n(2)]
    pub mtime: Mtime,
    /// What the bytes are; since version 2 of the protocol.
    #[n(3)]
    #[cbor(default, skip_if = "Kind::is_file")]
    pub kind: Kind,
}

/// What a transfer's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum Kind {
    /// One file's.
    #[default]
    #[n(0)]
    File,
    /// A whole folder's, as [`crate::bundle`] writes it; never offered eager.
    #[n(1)]
    Folder,
}

impl Manifest {
    /// See [`Kind::is_small`].
    pub fn is_small(&self) -> bool {
        self.kind.is_small(self.size)
    }
}

impl Kind {
    /// May something of this kind, `size` bytes long, be offered eagerly: a file of at most [`MAX_EAGER`]? A small file
    /// is held in memory as a whole, and nothing of it is ever resumed.
    pub fn is_small(self, size: u64) -> bool {
        self == Self::File && size <= MAX_EAGER
    }

    fn is_file(&self) -> bool {
        *self == Self::File
    }
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

    /// The inner state, for a checkpoint. Useful only together with [`RunningDigest::length`] and
    /// [`RunningDigest::value`]; its form may change with the hash's implementation.
    pub fn state(&self) -> Vec<u8> {
        self.hash.serialize().to_vec()
    }

    /// Takes up a state after `length` bytes. None unless it is one of that length that finalises to `expected`:
    /// a damaged or foreign state is never used.
    pub fn restore(state: &[u8], length: u64, expected: Digest) -> Option<Self> {
        // The state counts whole blocks; a count that disagrees could overflow when it is finalised.
        let blocks = state.get(STATE_BLOCKS)?.try_into().ok().map(u64::from_le_bytes)?;
        let rest = u64::from(*state.get(STATE_REST)?);
        if blocks != length / BLOCK || rest != length % BLOCK || length > MAX_HASHED {
            return None;
        }
        let state = SerializedState::<Sha256>::try_from(state).ok()?;
        let restored = Self {
            hash: Sha256::deserialize(&state).ok()?,
            length,
        };
        (restored.value() == expected).then_some(restored)
    }
}

/// Bytes that SHA-256 takes in at a time.
const BLOCK: u64 = 64;
/// SHA-256 counts bits in 64.
const MAX_HASHED: u64 = u64::MAX / 8;
/// Where sha2 0.11 keeps the count of whole blocks in its serialised state, and that of the bytes after them.
const STATE_BLOCKS: std::ops::Range<usize> = 32..40;
const STATE_REST: usize = 40;

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_state_goes_on_where_it_was(first in proptest::collection::vec(any::<u8>(), 0..300), second: Vec<u8>) {
            let mut whole = RunningDigest::default();
            whole.update(&first);
            let at = whole.length();
            let mut restored = RunningDigest::restore(&whole.state(), at, whole.value()).expect("its own state");
            prop_assert_eq!(whole.value(), Digest(Sha256::digest(&first).into()));
            whole.update(&second);
            restored.update(&second);
            prop_assert_eq!(whole.value(), restored.value());
            prop_assert_eq!(restored.length(), (first.len() + second.len()) as u64);
        }

        #[test]
        fn a_damaged_state_is_refused(bytes: Vec<u8>, at in 0usize..104, flip in 1u8..) {
            let mut digest = RunningDigest::default();
            digest.update(&bytes);
            let mut state = digest.state();
            prop_assert_eq!(state.len(), 104);
            state[at] ^= flip;
            prop_assert!(RunningDigest::restore(&state, digest.length(), digest.value()).is_none());
        }

        #[test]
        fn any_bytes_are_no_state(state: Vec<u8>, length: u64) {
            prop_assert!(RunningDigest::restore(&state, length, Digest([0; 32])).is_none());
        }
    }

    #[test]
    fn length_and_value_must_agree() {
        let mut digest = RunningDigest::default();
        digest.update(b"some bytes");
        assert!(RunningDigest::restore(&digest.state(), 10, digest.value()).is_some());
        assert!(RunningDigest::restore(&digest.state(), 11, digest.value()).is_none());
        assert!(RunningDigest::restore(&digest.state(), 74, digest.value()).is_none());
        assert!(RunningDigest::restore(&digest.state(), 10, Digest([7; 32])).is_none());
    }
}
