//! What lies between TLS and its socket: TLS asks for 4 KiB at a time, and each time would be a call.

use std::{
    future::Future as _,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Reads ahead. Its buffer grows with what comes and shrinks again, so that an idle link holds next to nothing: an agent
/// may have a thousand of them.
pub(super) struct Buffered<S> {
    inner: S,
    buffer: BytesMut,
    /// Bytes that the buffer has room for when it is empty.
    room: usize,
}

impl<S> Buffered<S> {
    pub(super) fn new(inner: S) -> Self {
        Buffered {
            inner,
            buffer: BytesMut::with_capacity(LEAST),
            room: LEAST,
        }
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

/// The room to make for the next read, at most `most`, after one of so many bytes into `room`.
pub(super) fn fit(room: usize, came: usize, most: usize) -> usize {
    match came {
        all if all >= room => (room * 2).min(most),
        few if few < room / 8 => (room / 2).max(LEAST),
        _ => room,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Buffered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.buffer.is_empty() {
            // Takes the same memory again where it can.
            me.buffer.reserve(me.room);
            let came = ready!(pin!(me.inner.read_buf(&mut me.buffer)).poll(cx))?;
            let before = me.room;
            me.room = fit(me.room, came, MOST);
            if me.room < before {
                me.buffer = BytesMut::from(&me.buffer[..]);
            }
        }
        let count = out.remaining().min(me.buffer.len());
        let (now, _) = me.buffer.split_at(count);
        out.put_slice(now);
        me.buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Buffered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Bytes that an idle reader makes room for.
pub(super) const LEAST: usize = 4 * 1024;
const MOST: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn all_bytes_come_through_while_the_buffer_grows_and_shrinks() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut buffered = Buffered::new(far);
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let (mut got, mut at, mut largest) = (vec![0; 4096], 0, 0);
        for piece in sent.chunks(1 << 20) {
            near.write_all(piece).await.unwrap();
            let end = at + piece.len();
            while at < end {
                let count = buffered.read(&mut got).await.unwrap();
                assert_eq!(got[..count], sent[at..at + count]);
                at += count;
                largest = largest.max(buffered.room);
            }
        }
        assert_eq!(largest, MOST);
        for byte in 0..8 {
            near.write_all(&[byte]).await.unwrap();
            assert_eq!(buffered.read(&mut got).await.unwrap(), 1);
        }
        assert_eq!(buffered.room, LEAST);
        assert!(buffered.buffer.capacity() <= 2 * LEAST);
        drop(near);
        assert_eq!(buffered.read(&mut got).await.unwrap(), 0);
    }
}
