//! The conversation between two dropwire agents, and nothing else: no sockets, no disk, no clock.
//!
//! PROTOCOL.md beside this crate is the same thing in prose, complete enough for a second implementation.
//!
//! ```text
//!   sender                                    receiver
//!     │ Hello ──────────────────────────────▶ │      once a link, both ways, before anything else
//!     │ ◀────────────────────────────── Hello │
//!     │                                       │
//!     │ Offer {id, manifest} ───────────────▶ │  looks in its ledger
//!     │ ◀─────── Accept {id, pass, offset, …} │  or Settled {receipt}, or Decline {reason, retry}
//!     │ Chunk {id, pass, offset, digest} ───▶ │  each proves all bytes so far
//!     │ ◀────────────────── Ack {id, offset}  │  opens the window
//!     │ ◀─────── Accept {id, pass+1, offset}  │  only when damage was found: begin again from there
//!     │ Done {id, pass, digest} ────────────▶ │  commits: bytes, name and receipt on its disk
//!     │ ◀──────────────── Receipts {receipt}  │
//!     │ Forget {id} ────────────────────────▶ │
//!     │ ◀──────────────────── Forgotten {id}  │
//! ```
//!
//! Both directions run over one link at the same time, each with many transfers open and interleaved.

pub mod bundle;
pub mod conversation;
pub mod error;
pub mod frame;
pub mod keepalive;
mod limits;
pub mod message;
pub mod name;
mod questions;
pub mod receipt;
pub mod receiver;
pub mod sender;
pub mod transfer;
mod tree;

pub use conversation::{Conversation, Event, Local};
pub use error::{Error, Malformed, PeerMisbehaved, Violation};
pub use frame::{Frame, FrameCodec, MAX_FRAME};
pub use message::Message;
pub use name::{PathError, RemotePath};
pub use receipt::{AgentId, Receipt, ReceiptBody};
pub use transfer::{Digest, Kind, Manifest, Mtime, RunningDigest, TransferId};
