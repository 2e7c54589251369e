//! What lies between TLS and its socket: TLS asks for 4 KiB at a time, and each time would be a call.

use std::{
    future::Future as _,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Reads ahead. While it waits for more it holds no memory: an agent may have a thousand links.
pub(super) struct Buffered<S> {
    inner: S,
    buffer: BytesMut,
}

impl<S> Buffered<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            buffer: BytesMut::new(),
        }
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Buffered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.buffer.is_empty() {
            me.buffer.reserve(AHEAD); // takes the same memory again where it can
            let read = pin!(me.inner.read_buf(&mut me.buffer)).poll(cx);
            if me.buffer.is_empty() {
                me.buffer = BytesMut::new();
            }
            ready!(read)?;
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

/// Most bytes of one read.
const AHEAD: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncWriteExt as _, time::timeout};

    use super::*;

    #[tokio::test]
    async fn all_bytes_come_through_and_no_memory_is_held_while_it_waits() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut buffered = Buffered::new(far);
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let (mut got, mut at) = (vec![0; 4096], 0);
        for piece in sent.chunks(1 << 20) {
            near.write_all(piece).await.unwrap();
            let end = at + piece.len();
            while at < end {
                let count = buffered.read(&mut got).await.unwrap();
                assert_eq!(got[..count], sent[at..at + count]);
                at += count;
                assert!(buffered.buffer.capacity() <= AHEAD);
            }
        }
        assert!(timeout(Duration::ZERO, buffered.read(&mut got)).await.is_err());
        assert_eq!(buffered.buffer.capacity(), 0);
        drop(near);
        assert_eq!(buffered.read(&mut got).await.unwrap(), 0);
    }
}
