//! What can go wrong in a conversation, sorted by who is to blame.

/// Why a conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not the protocol's: wrong length, type, encoding.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// Well formed, but not allowed here: the peer broke a rule.
    #[error("protocol violation: {0}")]
    PeerMisbehaved(String),
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
    Silent(std::time::Duration),
    /// The connection itself failed.
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    /// A message that is not allowed where it came.
    pub(crate) fn misplaced(message: &str, id: crate::TransferId, where_it_came: &str) -> Self {
        Error::PeerMisbehaved(format!("{message} for transfer {id}, which {where_it_came}"))
    }
}
