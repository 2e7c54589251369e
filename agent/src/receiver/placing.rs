//! The intent to give a file its final name (R6).

use dropwire_protocol::{Digest, Receipt, RemotePath};

use crate::fs::durable::How;

/// What is written down before a file gets its final name.
#[derive(Clone, Debug)]
pub(super) struct Placing {
    /// The final name, below the inbox.
    pub place: RemotePath,
    /// The partial's.
    pub inode: u64,
    /// By which call it gets its name.
    pub how: How,
    /// Of all its bytes.
    pub digest: Digest,
    /// What will be said then, byte for byte.
    pub receipt: Receipt,
}
