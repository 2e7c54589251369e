//! Frames on the wire: a length, a type, a body. The length is checked before anything is allocated.

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};

use crate::{Error, Message};

/// Most bytes of one frame after its length field: a chunk with its head, with some room for control messages.
pub const MAX_FRAME: usize = crate::message::MAX_CHUNK + 1024;

/// A frame as it stands on the wire: type and body.
pub type Frame = Message;

/// Bytes to messages and back: `u32` big-endian length of what follows, `u8` type, body.
#[derive(Default, Debug)]
pub struct FrameCodec {}

impl Decoder for FrameCodec {
    type Item = Message;
    type Error = Error;

    fn decode(&mut self, _src: &mut BytesMut) -> Result<Option<Message>, Error> {
        todo!()
    }
}

impl Encoder<Message> for FrameCodec {
    type Error = Error;

    fn encode(&mut self, _message: Message, _dst: &mut BytesMut) -> Result<(), Error> {
        todo!()
    }
}
