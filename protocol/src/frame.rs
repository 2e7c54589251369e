//! Frames on the wire: a length, a type, a body. The length is checked before anything is allocated.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use minicbor::{Decode, Encode};
use tokio_util::codec::{Decoder, Encoder};

pub use crate::limits::MAX_FRAME;
use crate::{
    Digest, Error, Malformed, Message, TransferId,
    message::{Chunk, MAX_CHUNK},
};

/// A frame as it stands on the wire: type and body.
pub type Frame = Message;

/// Bytes to messages and back: `u32` big-endian length of what follows, `u8` type, body.
///
/// Decoding a chunk copies nothing: its bytes share the buffer that was read into.
#[derive(Default, Debug)]
pub struct FrameCodec {}

impl Decoder for FrameCodec {
    type Item = Message;
    type Error = Error;

    /// [`Error::Malformed`] for whatever is no message; the stream is of no use after it.
    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Message>, Error> {
        let Some(length) = src.first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > MAX_FRAME {
            return Err(Malformed::FrameLength(length).into());
        }
        if src.len() < LENGTH + length {
            src.reserve(LENGTH + length - src.len());
            return Ok(None);
        }
        src.advance(LENGTH);
        let mut body = src.split_to(length).freeze();
        let kind = body.get_u8();
        let message = if kind == CHUNK {
            decode_chunk(body)?
        } else {
            decode_cbor(kind, &body)?
        };
        message.check()?;
        Ok(Some(message))
    }
}

impl Encoder<Message> for FrameCodec {
    type Error = Error;

    /// Fails with [`Error::Malformed`], and writes nothing, for what the other side would refuse to read.
    fn encode(&mut self, message: Message, dst: &mut BytesMut) -> Result<(), Error> {
        message.check()?;
        Ok(encode_body(&message, dst)?)
    }
}

/// Everything of a chunk's frame but the file's bytes, which are to be written right after it: with a vectored write
/// they need not be copied. The chunk must have 1 to [`MAX_CHUNK`] bytes.
pub fn encode_chunk_head(chunk: &Chunk, dst: &mut BytesMut) {
    debug_assert!((1..=MAX_CHUNK).contains(&chunk.bytes.len()));
    dst.reserve(LENGTH + 1 + CHUNK_HEAD);
    dst.put_u32((1 + CHUNK_HEAD + chunk.bytes.len()) as u32);
    dst.put_u8(CHUNK);
    dst.extend_from_slice(&chunk.id.0);
    dst.put_u32(chunk.pass);
    dst.put_u64(chunk.offset);
    dst.extend_from_slice(&chunk.digest.0);
}

fn decode_chunk(mut body: Bytes) -> Result<Message, Malformed> {
    if body.len() < CHUNK_HEAD {
        return Err(Malformed::ChunkHead);
    }
    let mut id = [0; 16];
    body.copy_to_slice(&mut id);
    let (pass, offset) = (body.get_u32(), body.get_u64());
    let mut digest = [0; 32];
    body.copy_to_slice(&mut digest);
    Ok(Message::Chunk(Chunk {
        id: TransferId(id),
        pass,
        offset,
        digest: Digest(digest),
        bytes: body,
    }))
}

fn decode_whole<'b, T: Decode<'b, ()>>(message: &'static str, body: &'b [u8]) -> Result<T, Malformed> {
    if !is_definite(body) {
        return Err(Malformed::Indefinite(message));
    }
    let mut decoder = minicbor::Decoder::new(body);
    let value = decoder.decode();
    let value = value.map_err(|error| Malformed::Undecodable(message, error))?;
    match decoder.position() == body.len() {
        true => Ok(value),
        false => Err(Malformed::TrailingBytes(message)),
    }
}

fn encode_whole(
    message: &'static str,
    kind: u8,
    body: &impl Encode<()>,
    dst: &mut BytesMut,
) -> Result<(), Malformed> {
    let body = minicbor::to_vec(body).map_err(|error| Malformed::Unencodable(message, error))?;
    let length = 1 + body.len();
    if length > MAX_FRAME {
        return Err(Malformed::FrameLength(length));
    }
    dst.reserve(LENGTH + length);
    dst.put_u32(length as u32);
    dst.put_u8(kind);
    dst.extend_from_slice(&body);
    Ok(())
}

/// Goes over the heads of all CBOR items, nested ones as they come: each must state its length and lie within the body.
/// Skipping nested items of indefinite length in an unknown field would take memory.
fn is_definite(mut body: &[u8]) -> bool {
    while let Some((head, rest)) = body.split_first() {
        let (major, short) = (head >> 5, head & 31);
        let wide = match short {
            0..24 => 0,
            24..28 => 1 << (short - 24),
            _ => return false,
        };
        let Some((argument, rest)) = rest.split_at_checked(wide) else {
            return false;
        };
        let content = match (major, wide) {
            (2 | 3, 0) => u64::from(short),
            (2 | 3, _) => argument
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
            _ => 0,
        };
        let after = usize::try_from(content)
            .ok()
            .and_then(|content| rest.split_at_checked(content));
        let Some((_, rest)) = after else { return false };
        body = rest;
    }
    true
}

/// Bytes of the length field.
const LENGTH: usize = 4;
/// A chunk's type. All other bodies are CBOR.
const CHUNK: u8 = 9;
/// id, pass, offset, digest.
const CHUNK_HEAD: usize = 16 + 4 + 8 + 32;

/// The type number of every message whose body is CBOR; they never change.
macro_rules! cbor_types {
    ($($name:ident = $number:literal),* $(,)?) => {
        fn decode_cbor(kind: u8, body: &[u8]) -> Result<Message, Malformed> {
            match kind {
                $($number => decode_whole(stringify!($name), body).map(Message::$name),)*
                unknown => Err(Malformed::UnknownType(unknown)),
            }
        }

        fn encode_body(message: &Message, dst: &mut BytesMut) -> Result<(), Malformed> {
            match message {
                $(Message::$name(body) => encode_whole(stringify!($name), $number, body, dst),)*
                Message::Chunk(chunk) => {
                    encode_chunk_head(chunk, dst);
                    dst.extend_from_slice(&chunk.bytes);
                    Ok(())
                }
            }
        }

        #[cfg(test)]
        const TYPES: &[(&str, u8)] = &[$((stringify!($name), $number),)* ("Chunk", CHUNK)];
    };
}

cbor_types! {
    Hello = 1,
    Bye = 2,
    Ping = 3,
    Pong = 4,
    Offer = 5,
    Accept = 6,
    Decline = 7,
    Settled = 8,
    Ack = 10,
    Done = 11,
    Close = 12,
    Receipts = 13,
    Withdraw = 14,
    Withdrawn = 15,
    Forget = 16,
    Forgotten = 17,
    SharedKey = 18,
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
