//! A receipt: what the receiver signs once bytes, name and receipt are on its disk.
//!
//! Signing and checking need a key and so stand in the agent; this is only the shape.

use minicbor::{Decode, Encode};
use std::fmt;

use crate::{Digest, RemotePath, TransferId, tree};

/// SHA-256 of an agent's public key (SubjectPublicKeyInfo, DER). How it is written for people is the agent's business.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct AgentId(#[cbor(with = "minicbor::bytes")] pub [u8; 32]);

/// What a receipt says.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ReceiptBody {
    /// The transfer it closes.
    #[n(0)]
    pub transfer: TransferId,
    /// Who sent the file (from the link's pinned key, never from a message).
    #[n(1)]
    pub sender: AgentId,
    /// Who has it now and signed this.
    #[n(2)]
    pub receiver: AgentId,
    /// The path that was offered.
    #[n(3)]
    pub path: RemotePath,
    /// The path below the receiver's inbox under which it lies.
    #[n(4)]
    pub delivered_as: RemotePath,
    /// Bytes.
    #[n(5)]
    pub size: u64,
    /// Plain SHA-256 of the whole file.
    #[n(6)]
    pub digest: Digest,
    /// The receiver's wall clock: milliseconds since 1970.
    #[n(7)]
    pub delivered_at: u64,
    /// Random. Without it, who knows all else could tell from a neighbour's audit path what this receipt would say, and
    /// prove by it a delivery that was signed for, but did not come about.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub salt: [u8; 16],
}

/// A signed receipt. It is kept and passed on byte for byte.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Receipt {
    /// An encoded [`ReceiptBody`], exactly as it was signed.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// The signer's public key (SubjectPublicKeyInfo, DER); its SHA-256 is the receiver's id.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub key: Vec<u8>,
    /// Ed25519 over the [`Receipt::signed_bytes`] of [`Receipt::root`].
    #[cbor(n(2), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
    /// From the body up to the root, where receipts that were made together share a signature: steps of 33 bytes, a
    /// side and a neighbour. Empty for a single one.
    #[cbor(n(3), with = "minicbor::bytes", default, skip_if = "Vec::is_empty")]
    pub audit_path: Vec<u8>,
}

impl Receipt {
    /// Encoded, as it is kept and passed on.
    pub fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("a Vec takes all that is written")
    }

    /// The root of the hash tree that `bodies` are the leaves of, and for each its audit path.
    pub fn group(bodies: &[Vec<u8>]) -> (Digest, Vec<Vec<u8>>) {
        tree::build(bodies)
    }

    /// The root that body and audit path lead to; None: not whole steps, or an unknown side.
    pub fn root(&self) -> Option<Digest> {
        tree::root(&self.body, &self.audit_path)
    }

    /// What the signature covers: a fixed context line, then the root.
    pub fn signed_bytes(root: Digest) -> Vec<u8> {
        [b"dropwire receipt v2\n".as_slice(), &root.0].concat()
    }

    /// Bytes of all fields together.
    pub fn size(&self) -> usize {
        self.body.len() + self.key.len() + self.signature.len() + self.audit_path.len()
    }

    /// The body, decoded; says nothing about the signature.
    pub fn decode_body_unverified(&self) -> Result<ReceiptBody, minicbor::decode::Error> {
        minicbor::decode(&self.body)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}
