//! Messages over a byte stream: a reader and a writer that can be waited for at the same time, and what counts the
//! bytes below TLS.
//!
//! Everything that waits here may be dropped half-way and called again; nothing is lost by it.

use std::{
    collections::VecDeque,
    future::{Future as _, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes, BytesMut};
use dropwire_protocol::{
    Error, FrameCodec, MAX_FRAME, Message, frame::encode_chunk_head, message::MAX_CHUNK,
};
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
            failed: None,
        },
        Writer {
            half: write,
            ready: VecDeque::new(),
            last: BytesMut::new(),
            waiting: 0,
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
    /// Came after bytes that were read with it, and is told next: a stream may say it only once.
    failed: Option<io::Error>,
}

impl<S: AsyncRead> Reader<S> {
    /// The next message that is already here.
    pub(super) fn decode(&mut self) -> Result<Option<Message>, Error> {
        self.codec.decode(&mut self.buffer)
    }

    /// Waits for more bytes, and takes what comes at once up to the end of what there is room for; says how many came.
    /// The stream's end is an error.
    pub(super) async fn fill(&mut self) -> Result<usize, Error> {
        match poll_fn(|cx| self.poll_fill(cx)).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed it").into()),
            count => Ok(count),
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        // Where a large frame has begun, there is room for its rest.
        if self.buffer.capacity() == self.buffer.len() {
            self.buffer.reserve(READ_AHEAD);
        }
        let before = self.buffer.len();
        while self.buffer.len() < self.buffer.capacity() {
            // The stream gives a TLS record at a time.
            let read = pin!(self.half.read_buf(&mut self.buffer)).poll(cx);
            match read {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Err(error)) if self.buffer.len() > before => {
                    self.failed = Some(error);
                    break;
                }
                _ if self.buffer.len() > before => break, // an end shows again
                other => {
                    if self.buffer.is_empty() {
                        self.buffer = BytesMut::new(); // links that wait may be many
                    }
                    return other;
                }
            }
        }
        Poll::Ready(Ok(self.buffer.len() - before))
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

/// Messages in, bytes out. Small messages that wait together leave in one write; a large chunk's bytes leave from
/// where they were read into.
pub(super) struct Writer<S> {
    half: WriteHalf<S>,
    /// Goes out first.
    ready: VecDeque<Bytes>,
    /// Goes out after it, and grows.
    last: BytesMut,
    /// Bytes in both.
    waiting: usize,
    codec: FrameCodec,
    flushed: bool,
}

impl<S: AsyncWrite> Writer<S> {
    /// Puts a message behind those that wait.
    pub(super) fn encode(&mut self, message: Message) -> Result<(), Error> {
        let before = self.last.len();
        match message {
            Message::Chunk(chunk) if (WHOLE..=MAX_CHUNK).contains(&chunk.bytes.len()) => {
                encode_chunk_head(&chunk, &mut self.last);
                self.waiting += self.last.len() - before + chunk.bytes.len();
                self.ready.push_back(self.last.split().freeze());
                self.ready.push_back(chunk.bytes);
            }
            message => {
                self.codec.encode(message, &mut self.last)?;
                self.waiting += self.last.len() - before;
            }
        }
        Ok(())
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Nothing waits, here or below.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting == 0 && self.flushed
    }

    /// Writes a part of what waits, or flushes once nothing does.
    pub(super) async fn progress(&mut self) -> Result<(), Error> {
        if self.waiting == 0 {
            self.last = BytesMut::new(); // links that wait may be many
            self.half.flush().await?;
            self.flushed = true;
        } else {
            self.flushed = false;
            poll_fn(|cx| self.poll_write(cx)).await?;
        }
        Ok(())
    }

    /// Writes until nothing waits or the stream takes no more; ready once anything was written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.waiting;
        while self.waiting > 0 {
            let mut slices = [io::IoSlice::new(&[]); SLICES];
            let ready = self.ready.iter().map(|bytes| &bytes[..]).chain([&self.last[..]]);
            let mut used = 0;
            for (slice, bytes) in slices.iter_mut().zip(ready.filter(|bytes| !bytes.is_empty())) {
                *slice = io::IoSlice::new(bytes);
                used += 1;
            }
            match Pin::new(&mut self.half).poll_write_vectored(cx, &slices[..used]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.written(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.waiting == before => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn written(&mut self, mut count: usize) {
        self.waiting -= count;
        while let Some(first) = self.ready.front_mut() {
            let now = count.min(first.len());
            first.advance(now);
            count -= now;
            if !first.is_empty() {
                return;
            }
            self.ready.pop_front();
        }
        self.last.advance(count);
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

    /// So many came in and went out.
    #[cfg(test)]
    pub(super) fn count(&self, received: u64, sent: u64) {
        self.sent.fetch_add(sent, Relaxed);
        self.received.fetch_add(received, Relaxed);
    }

    /// Takes in another connection's counts.
    pub(super) fn add(&self, other: &Self) {
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
        Self { inner, traffic }
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

/// Room made where no frame has begun: as much as the largest takes.
const READ_AHEAD: usize = MAX_FRAME + 4;
/// From this size on a chunk's bytes are not copied to the other messages.
const WHOLE: usize = 16 * 1024;
/// Handed to the stream in one call: two large chunks, and what stands between them.
const SLICES: usize = 8;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dropwire_protocol::{
        Digest, TransferId,
        message::{Chunk, Ping},
    };

    use super::*;

    fn chunk(length: usize) -> Message {
        Message::Chunk(Chunk {
            id: TransferId([1; 16]),
            pass: 2,
            offset: 3,
            digest: Digest([4; 32]),
            bytes: (0..length).map(|n| (n % 251) as u8).collect(),
        })
    }

    /// Large chunks go out beside the buffer that the others share, and none overtakes another, however small the
    /// pieces are that the stream takes.
    #[tokio::test]
    async fn messages_arrive_as_they_were_sent_and_in_order() {
        let ping = |number| Message::Ping(Ping { number });
        let sent = [
            ping(1),
            chunk(WHOLE),
            ping(2),
            ping(3),
            chunk(MAX_CHUNK),
            chunk(WHOLE - 1),
            chunk(MAX_CHUNK),
            ping(4),
        ];
        for capacity in [7, 1000, 1 << 20] {
            let (ours, theirs) = tokio::io::duplex(capacity);
            let (_, mut writer) = wire(ours);
            let (mut reader, _) = wire(theirs);
            for message in &sent {
                writer.encode(message.clone()).unwrap();
            }
            let read = async {
                let mut read = Vec::new();
                while read.len() < sent.len() {
                    match reader.decode().unwrap() {
                        Some(message) => read.push(message),
                        None => drop(reader.fill().await.unwrap()),
                    }
                }
                let more = tokio::time::timeout(Duration::ZERO, reader.fill()).await;
                assert!(
                    more.is_err() && reader.buffer.capacity() == 0,
                    "memory held while it waits"
                );
                read
            };
            let (written, read) = tokio::join!(writer.finish(), read);
            written.unwrap();
            assert!(writer.is_idle() && writer.waiting() == 0);
            assert!(read == sent, "{capacity}");
        }
    }

    /// Gives a byte, an error, and nothing more.
    struct Breaks(u8);

    impl AsyncRead for Breaks {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            to: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.0 += 1;
            match self.0 {
                1 => to.put_slice(&[0]),
                2 => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                _ => return Poll::Pending,
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn an_error_right_behind_bytes_is_told_after_them() {
        let (mut reader, _) = wire(tokio::io::join(Breaks(0), tokio::io::sink()));
        assert_eq!(reader.fill().await.unwrap(), 1);
        assert!(
            matches!(reader.fill().await, Err(Error::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset)
        );
    }

    #[tokio::test]
    async fn what_nobody_would_read_is_not_written() {
        let (ours, _theirs) = tokio::io::duplex(10);
        let (_, mut writer) = wire(ours);
        for length in [0, MAX_CHUNK + 1] {
            assert!(writer.encode(chunk(length)).is_err());
            assert_eq!(writer.waiting(), 0);
        }
    }
}
