//! Messages over a byte stream: a reader and a writer that can be waited for at the same time, and what counts the
//! bytes below TLS.
//!
//! Everything that waits here may be dropped half-way and called again; nothing is lost by it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::BytesMut;
use dropwire_protocol::{Error, FrameCodec, Message};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};
use tokio_util::codec::{Decoder as _, Encoder as _};

/// Splits a stream into its two directions.
pub(super) fn wire<S: AsyncRead + AsyncWrite>(stream: S) -> (Reader<S>, Writer<S>) {
    let (read, write) = tokio::io::split(stream);
    (
        Reader {
            half: read,
            buffer: BytesMut::new(),
            codec: FrameCodec::default(),
        },
        Writer {
            half: write,
            buffer: BytesMut::new(),
            codec: FrameCodec::default(),
            flushed: true,
        },
    )
}

/// Bytes in, messages out.
pub(super) struct Reader<S> {
    half: ReadHalf<S>,
    buffer: BytesMut,
    codec: FrameCodec,
}

impl<S: AsyncRead> Reader<S> {
    /// The next message that is already here.
    pub(super) fn decode(&mut self) -> Result<Option<Message>, Error> {
        self.codec.decode(&mut self.buffer)
    }

    /// Waits for more bytes; says how many came. The stream's end is an error.
    pub(super) async fn fill(&mut self) -> Result<usize, Error> {
        self.buffer.reserve(READ_AHEAD);
        match self.half.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed it").into()),
            count => Ok(count),
        }
    }

    /// Throws away what still comes, until the other side ends it.
    pub(super) async fn drain(&mut self) {
        loop {
            self.buffer.clear();
            if self.fill().await.is_err() {
                return;
            }
        }
    }
}

/// Messages in, bytes out. Small messages that wait together leave in one write.
pub(super) struct Writer<S> {
    half: WriteHalf<S>,
    buffer: BytesMut,
    codec: FrameCodec,
    flushed: bool,
}

impl<S: AsyncWrite> Writer<S> {
    /// Puts a message behind those that wait.
    pub(super) fn encode(&mut self, message: Message) -> Result<(), Error> {
        self.codec.encode(message, &mut self.buffer)
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Nothing waits, here or below.
    pub(super) fn is_idle(&self) -> bool {
        self.buffer.is_empty() && self.flushed
    }

    /// Writes a part of what waits, or flushes once nothing does.
    pub(super) async fn progress(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            self.half.flush().await?;
            self.flushed = true;
        } else {
            self.flushed = false;
            if self.half.write_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
        }
        Ok(())
    }

    /// Writes all that waits.
    pub(super) async fn finish(&mut self) -> Result<(), Error> {
        while !self.is_idle() {
            self.progress().await?;
        }
        Ok(())
    }

    /// Tells the other side that nothing more comes.
    pub(super) async fn shutdown(&mut self) -> Result<(), Error> {
        Ok(self.half.shutdown().await?)
    }
}

/// How many bytes went over a connection, TLS included.
#[derive(Default, Debug)]
pub(super) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Takes in another connection's counts.
    pub(super) fn add(&self, other: &Traffic) {
        self.sent.fetch_add(other.sent(), Relaxed);
        self.received.fetch_add(other.received(), Relaxed);
    }
}

/// A stream whose bytes are counted.
pub(super) struct Counted<S> {
    inner: S,
    traffic: Arc<Traffic>,
}

impl<S> Counted<S> {
    pub(super) fn new(inner: S, traffic: Arc<Traffic>) -> Self {
        Counted { inner, traffic }
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Counts there from now on, also what was counted so far.
    pub(super) fn count_into(&mut self, traffic: Arc<Traffic>) {
        traffic.add(&self.traffic);
        self.traffic = traffic;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.traffic
            .received
            .fetch_add((buf.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> Counted<S> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = written {
            self.traffic.sent.fetch_add(count as u64, Relaxed);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.count(written)
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

/// Room made before each read: four TLS records.
const READ_AHEAD: usize = 64 * 1024;
