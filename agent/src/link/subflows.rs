//! One ordered stream of bytes over several connections, its subflows.
//!
//! What one connection carries over a long line is bounded: by how much the kernel lets lie unacknowledged, and by each
//! packet that is lost. So the bytes are cut into segments; each goes onto a subflow that has room, behind a head that
//! says where in the stream it belongs. The reader takes segments in the stream's order: where the next one is not there
//! yet, the others wait in their own connections, whose windows are the bound. Nothing is put in order in memory.
//!
//! Subflows may join at any time, at each end when it likes: a head says all that has to be known. None leaves before
//! the stream ends; one that breaks, breaks the stream.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, mpsc},
};

/// One more connection for a stream, and its place among all that the agent may have.
pub(super) type Joining<S> = (S, OwnedSemaphorePermit);

/// A stream over one connection or more.
pub(super) struct Subflows<S> {
    subflows: Vec<Subflow<S>>,
    /// Those that are to join. None: no more will.
    joining: Option<mpsc::Receiver<Joining<S>>>,
    /// How much of the stream was read.
    read: u64,
    /// How much of it was written.
    written: u64,
    /// The subflow that is asked first for the next segment to read, and to write.
    next: [usize; 2],
    /// A segment that its subflow did not take all of yet.
    begun: Option<Begun>,
    /// Why a subflow can give no more; told once nothing is left that came before.
    broken: Option<io::Error>,
    /// Waits for room; a subflow that joins has some.
    waits: Option<Waker>,
}

struct Subflow<S> {
    stream: S,
    /// Of the next segment's head, so many bytes.
    head: [u8; HEAD],
    headed: usize,
    /// What it gives next.
    segment: Option<Segment>,
    ended: bool,
    _place: Option<OwnedSemaphorePermit>,
}

/// The rest of a segment that is being read.
struct Segment {
    /// Where in the stream its next byte belongs.
    at: u64,
    /// Bytes to come; at least one.
    left: usize,
}

/// The rest of a segment that is being written.
struct Begun {
    subflow: usize,
    head: [u8; HEAD],
    headed: usize,
    left: usize,
}

impl<S> Subflows<S> {
    /// Over `first`, and those that come by `joining`.
    pub(super) fn new(first: S, joining: mpsc::Receiver<Joining<S>>) -> Self {
        Self {
            subflows: vec![Subflow::new(first, None)],
            joining: Some(joining),
            read: 0,
            written: 0,
            next: [0; 2],
            begun: None,
            broken: None,
            waits: None,
        }
    }

    fn take_in(&mut self, cx: &mut Context<'_>) {
        while let Some(joining) = &mut self.joining
            && let Poll::Ready(joined) = joining.poll_recv(cx)
        {
            match joined {
                Some((stream, place)) => {
                    self.subflows.push(Subflow::new(stream, Some(place)));
                    self.waits.take().into_iter().for_each(Waker::wake);
                }
                None => self.joining = None,
            }
        }
    }
}

impl<S> Subflow<S> {
    fn new(stream: S, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            head: [0; HEAD],
            headed: 0,
            segment: None,
            ended: false,
            _place: place,
        }
    }
}

impl<S: AsyncRead + Unpin> Subflow<S> {
    /// Reads on to the next segment, or to the end.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.segment.is_none() && !self.ended {
            let mut rest = ReadBuf::new(&mut self.head[self.headed..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut rest))?;
            match rest.filled().len() {
                0 if self.headed == 0 => self.ended = true,
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                count => self.headed += count,
            }
            if self.headed == HEAD {
                self.headed = 0;
                self.segment = Some(Segment::parse(&self.head)?);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Segment {
    fn parse(head: &[u8; HEAD]) -> io::Result<Self> {
        let [a, b, c, d, e, f, g, h, length @ ..] = *head;
        let at = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let left = u16::from_be_bytes(length).into();
        if left == 0 || at.checked_add(left as u64).is_none() {
            return Err(refused("a segment that cannot be"));
        }
        Ok(Self { at, left })
    }
}

impl<S: AsyncRead + Unpin> Subflows<S> {
    /// The subflow that gives the stream's next byte; None at its end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        let (count, mut waits, mut ended) = (self.subflows.len(), false, 0);
        for place in 0..count {
            let place = (self.next[0] + place) % count;
            let subflow = &mut self.subflows[place];
            match subflow.poll_head(cx) {
                Poll::Pending => waits = true,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    subflow.ended = true;
                    self.broken.get_or_insert(error);
                }
            }
            match &subflow.segment {
                Some(segment) if segment.at == self.read => {
                    self.next[0] = place;
                    return Poll::Ready(Ok(Some(place)));
                }
                Some(segment) if segment.at < self.read => {
                    return Poll::Ready(Err(refused("a segment that came before")));
                }
                Some(_) => {}
                None => ended += usize::from(subflow.ended),
            }
        }
        match self.broken.take() {
            Some(error) => Poll::Ready(Err(error)),
            None if ended == count => Poll::Ready(Ok(None)),
            // Who could still send it has ended, or waits with a later one.
            None if !waits && self.joining.is_none() => Poll::Ready(Err(refused("a segment is missing"))),
            None => Poll::Pending,
        }
    }

    /// Reads some; true: there may be more, false: the stream's end.
    fn poll_some(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let Some(place) = ready!(self.poll_next(cx))? else {
            return Poll::Ready(Ok(false));
        };
        let subflow = &mut self.subflows[place];
        let Some(segment) = &mut subflow.segment else {
            return Poll::Ready(Ok(true));
        };
        let most = segment.left.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut subflow.stream).poll_read(cx, &mut part))?;
        let count = part.filled().len();
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        buf.advance(count);
        self.read += count as u64;
        segment.at += count as u64;
        segment.left -= count;
        if segment.left == 0 {
            subflow.segment = None;
            self.next[0] = place + 1;
        }
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Subflows<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.take_in(cx);
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            match this.poll_some(cx, buf) {
                Poll::Ready(Ok(true)) => continue,
                Poll::Ready(Ok(false)) => break,
                Poll::Ready(Err(error)) if buf.filled().len() > before => {
                    this.broken.get_or_insert(error); // what was read goes first
                    break;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if buf.filled().len() > before => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Subflows<S> {
    /// A subflow of which nothing waits here any more.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let count = self.subflows.len();
        for place in 0..count {
            let place = (self.next[1] + place) % count;
            if Pin::new(&mut self.subflows[place].stream)
                .poll_flush(cx)?
                .is_ready()
            {
                self.next[1] = place + 1;
                return Poll::Ready(Ok(place));
            }
        }
        self.waits = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Writes some of `bytes`: what is left of a segment, or the next one.
    fn poll_put(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None => {
                let subflow = ready!(self.poll_room(cx))?;
                Begun::new(subflow, self.written, bytes.len().min(SEGMENT))
            }
        };
        let stream = &mut self.subflows[begun.subflow].stream;
        let part = &bytes[..begun.left.min(bytes.len())];
        let both = [IoSlice::new(&begun.head[begun.headed..]), IoSlice::new(part)];
        let polled = Pin::new(stream).poll_write_vectored(cx, &both);
        let mut put = 0;
        if let Poll::Ready(Ok(count)) = polled {
            let of_head = count.min(HEAD - begun.headed);
            put = count - of_head;
            begun.headed += of_head;
            begun.left -= put;
            self.written += put as u64;
        }
        if begun.left > 0 {
            self.begun = Some(begun);
        }
        match ready!(polled)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            _ => Poll::Ready(Ok(put)),
        }
    }

    /// Calls `poll` for every subflow; ready once it is for all.
    fn poll_all(
        &mut self,
        mut poll: impl FnMut(Pin<&mut S>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let mut all = Poll::Ready(Ok(()));
        for subflow in &mut self.subflows {
            match poll(Pin::new(&mut subflow.stream)) {
                Poll::Ready(done) => done?,
                Poll::Pending => all = Poll::Pending,
            }
        }
        all
    }
}

impl Begun {
    fn new(subflow: usize, at: u64, length: usize) -> Self {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&at.to_be_bytes());
        head[8..].copy_from_slice(&(length as u16).to_be_bytes()); // at most SEGMENT
        Self {
            subflow,
            head,
            headed: 0,
            left: length,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Subflows<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut done = 0;
        while done < bytes.len() {
            match this.poll_put(cx, &bytes[done..]) {
                Poll::Ready(Ok(count)) => done += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if done > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(done))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_all(|subflow| subflow.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_all(|subflow| subflow.poll_shutdown(cx))
    }
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Place in the stream (u64) and length (u16).
pub(super) const HEAD: usize = 10;
/// Bytes of a segment: with its head they fill a TLS record.
const SEGMENT: usize = 16 * 1024 - HEAD;
