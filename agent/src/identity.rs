//! Who this agent is: one Ed25519 key, its id, what it signs, and the TLS settings that pin both ways.

use std::{path::Path, sync::Arc};

use dropwire_protocol::{AgentId, Receipt, ReceiptBody, TransferId};

use crate::{error::Fatal, version::Version};

/// This agent's key. The file is `identity.key` in the state folder, PKCS#8 PEM, 0600.
pub struct Identity {}

impl Identity {
    /// Reads the key; None when there is none yet. Readable by others: [`crate::error::Exit::Permission`]; damaged: `Data`.
    pub fn load(state_dir: &Path) -> Result<Option<Identity>, Fatal> {
        let _ = state_dir;
        todo!()
    }

    /// Reads the key or makes one, durably (0600 whatever the umask), before it is first used.
    pub fn load_or_create(state_dir: &Path) -> Result<Identity, Fatal> {
        let _ = state_dir;
        todo!()
    }

    /// A throw-away identity, for tests.
    pub fn generate() -> Identity {
        todo!()
    }

    /// SHA-256 of the public key's SubjectPublicKeyInfo.
    pub fn id(&self) -> AgentId {
        todo!()
    }

    /// Signs what the receiver says of a delivery.
    pub fn sign(&self, body: &ReceiptBody) -> Receipt {
        let _ = body;
        todo!()
    }

    /// The id of a drop for a peer: 128 bits of an HMAC-SHA-256 under a key derived from this identity, over peer, outbox, path, version and counter.
    pub fn transfer_id(
        &self,
        peer: AgentId,
        outbox: [u8; 16],
        path: &[u8],
        version: &Version,
        counter: u64,
    ) -> TransferId {
        let _ = (peer, outbox, path, version, counter);
        todo!()
    }

    /// For accepting: any key in `pins` is let in, nothing else.
    pub fn server_config(&self, pins: Vec<AgentId>) -> Arc<rustls::ServerConfig> {
        let _ = pins;
        todo!()
    }

    /// For dialling: exactly this peer.
    pub fn client_config(&self, peer: AgentId) -> Arc<rustls::ClientConfig> {
        let _ = peer;
        todo!()
    }
}

/// Why a receipt proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// It cannot be decoded.
    #[error("the receipt is damaged: {0}")]
    Damaged(String),
    /// The key in it is not the receiver's it names.
    #[error("the receipt is signed by another key than the receiver's")]
    WrongKey,
    /// The signature does not fit.
    #[error("the receipt's signature does not fit")]
    BadSignature,
}

/// Checks key and signature; needs nothing but the receipt.
pub fn verify(receipt: &Receipt) -> Result<ReceiptBody, ReceiptError> {
    let _ = receipt;
    todo!()
}
