//! How much of everything there may be.

/// Most bytes of file in one [`Chunk`](crate::message::Chunk).
pub const MAX_CHUNK: usize = 256 * 1024;
/// A file up to this size may be offered `eager`: its one chunk and Done follow the offer at once.
pub const MAX_EAGER: u64 = MAX_CHUNK as u64;
/// Most receipts, or ids to forget, in one message.
pub const MAX_BATCH: usize = 256;
/// Most ids that a sender has asked about by Withdraw and Forget without an answer yet.
pub const MAX_ASKED: usize = 1024;
/// The last number that a pass may have. An offer that needs more is declined: so much damage is not the line's fault.
pub const MAX_PASS: u32 = 16;
/// Smallest [`Hello::window`](crate::message::Hello::window): chunks and coalesced acknowledgements have to fit in it
/// together.
pub const MIN_WINDOW: u64 = 4 * MAX_CHUNK as u64;
/// Most bytes of one receipt: body, key and signature together.
pub const MAX_RECEIPT: usize = 16 * 1024;
/// Most bytes of [`Hello::name`](crate::message::Hello::name).
pub const MAX_NAME: usize = 64;
/// Most bytes of every other text.
pub const MAX_TEXT: usize = 256;
/// Most bytes of one frame after its length field: the largest chunk with its head, with some room.
pub const MAX_FRAME: usize = MAX_CHUNK + 1024;
