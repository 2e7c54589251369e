//! A connection that carries open files beside its bytes (`SCM_RIGHTS`).
//!
//! Whoever asks opens what it names, with its own rights, and passes the descriptors; the agent opens no path for it.
//! Files go with the first byte of the request that names them, and never from the agent to a command.

use std::{
    fs::File,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::socket::Stream;
use crate::{fs::own_files, poison::Unpoisoned as _};

/// Most files of one request.
pub const GROUP: usize = 16;

/// Files that came with a request.
///
/// Nothing of them is touched on the runtime, not even to close them: their disk may be one that never answers.
#[derive(Debug, Default)]
pub struct Passed {
    /// In the order in which they were passed.
    pub files: Vec<File>,
    /// Given back once the files are closed.
    permits: Vec<OwnedSemaphorePermit>,
}

impl Passed {
    /// Keeps `permit` for as long as the files are open.
    pub(super) fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permits.push(permit);
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        let (files, permits) = (std::mem::take(&mut self.files), std::mem::take(&mut self.permits));
        if files.is_empty() {
            return;
        }
        let close = move || {
            // What is kept open for ever goes on to count.
            let kept = files
                .into_iter()
                .filter_map(|file| (!own_files::close(file)).then_some(()));
            let mut permits = permits;
            permits
                .drain(..kept.count().min(permits.len()))
                .for_each(OwnedSemaphorePermit::forget);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(close)),
            Err(_) => close(),
        }
    }
}

/// Takes in what comes with the bytes of a connection; bounded.
#[derive(Clone, Debug)]
pub struct Arrivals {
    passed: Arc<Mutex<Passed>>,
    /// One for each file of this user that the agent may have open; without one a file is not taken in.
    permits: Arc<Semaphore>,
}

impl Arrivals {
    /// Takes as many files as there are `permits`, and no more than [`GROUP`] at a time.
    pub fn new(permits: Arc<Semaphore>) -> Self {
        Self {
            passed: Arc::default(),
            permits,
        }
    }

    /// What has come since the last call.
    pub fn take(&self) -> Passed {
        std::mem::take(&mut self.passed.lock().unpoisoned())
    }

    /// Takes in what `receive` gives, which is told for how many files there is room. The system gives no descriptor
    /// for the others and closes them itself: here even that might wait for a disk that never answers.
    fn take_in(&self, receive: impl FnOnce(usize) -> io::Result<(usize, Vec<File>)>) -> io::Result<usize> {
        let mut passed = self.passed.lock().unpoisoned();
        let unbounded = crate::failpoints::mutant("control-descriptors");
        let room = match unbounded {
            true => GROUP,
            false => GROUP.saturating_sub(passed.files.len()),
        };
        let permits = (0..room).map_while(|_| self.permits.clone().try_acquire_owned().ok());
        let permits: Vec<_> = permits.collect();
        let (bytes, files) = receive(if unbounded { GROUP } else { permits.len() })?;
        passed.permits.extend(permits.into_iter().take(files.len()));
        passed.files.extend(files);
        Ok(bytes)
    }
}

/// Files that go with the next byte that is written.
#[derive(Clone, Debug, Default)]
pub struct Departures(Arc<Mutex<Vec<Arc<File>>>>);

impl Departures {
    /// Replaces what did not go yet.
    pub fn set(&self, files: Vec<Arc<File>>) {
        *self.lock() = files;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<File>>> {
        self.0.lock().unpoisoned()
    }
}

/// A connection's bytes, with the files that come and go beside them.
#[derive(Debug)]
pub struct Carrier {
    stream: Stream,
    /// None: files that come are closed by the system.
    arrivals: Option<Arrivals>,
    departures: Departures,
}

impl Carrier {
    /// The agent's end.
    pub fn receiving(stream: Stream, arrivals: Arrivals) -> Self {
        Self {
            stream,
            arrivals: Some(arrivals),
            departures: Departures::default(),
        }
    }

    /// A command's end.
    pub fn sending(stream: Stream, departures: Departures) -> Self {
        Self {
            stream,
            arrivals: None,
            departures,
        }
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(arrivals) = &this.arrivals else {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        };
        let count = ready!(system::poll_receive(
            &this.stream,
            context,
            buffer.initialize_unfilled(),
            arrivals
        ))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut files = this.departures.lock();
        if files.is_empty() || bytes.is_empty() {
            drop(files);
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        }
        let count = ready!(system::poll_send(&this.stream, context, bytes, &files))?;
        files.clear();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(unix)]
mod system {
    use std::{
        fs::File,
        io::{self, IoSlice, IoSliceMut},
        mem::MaybeUninit,
        os::fd::{AsFd, BorrowedFd, RawFd},
        sync::Arc,
        task::{Context, Poll, ready},
    };

    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    };

    use tokio::io::Interest;

    use super::{Arrivals, GROUP, Stream};

    /// The room for [`GROUP`] descriptors.
    const SPACE: usize = rustix::cmsg_space!(ScmRights(GROUP));

    /// So that nothing of it is lost for where it begins.
    #[repr(align(16))]
    struct Aligned([MaybeUninit<u8>; SPACE]);

    pub(super) fn poll_receive(
        stream: &Stream,
        context: &mut Context<'_>,
        bytes: &mut [u8],
        arrivals: &Arrivals,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(stream.poll_read_ready(context))?;
            let came = stream.try_io(Interest::READABLE, || {
                arrivals.take_in(|room| receive(stream, bytes, room))
            });
            if !is_repeated(&came) {
                return Poll::Ready(came);
            }
        }
    }

    pub(super) fn poll_send(
        stream: &Stream,
        context: &mut Context<'_>,
        bytes: &[u8],
        files: &[Arc<File>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(stream.poll_write_ready(context))?;
            let went = stream.try_io(Interest::WRITABLE, || send(stream, bytes, files));
            if !is_repeated(&went) {
                return Poll::Ready(went);
            }
        }
    }

    /// Not ready after all, or interrupted by a signal.
    fn is_repeated<T>(result: &io::Result<T>) -> bool {
        let kind = result.as_ref().err().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted))
    }

    /// Bytes, and of the files that come with them the first ones, up to `room`.
    pub(super) fn receive(stream: &Stream, bytes: &mut [u8], room: usize) -> io::Result<(usize, Vec<File>)> {
        let mut space = Aligned([MaybeUninit::uninit(); SPACE]);
        let descriptors = room.min(GROUP) * size_of::<RawFd>();
        // SAFETY: it only adds numbers up.
        let length = unsafe { libc::CMSG_LEN(descriptors as u32) } as usize;
        // To the byte: in what is rounded up there is room for one more.
        let space = if room == 0 {
            &mut [][..]
        } else {
            &mut space.0[..length.min(SPACE)]
        };
        let mut control = RecvAncillaryBuffer::new(space);
        // A program that is started meanwhile (`on_arrival`) must not inherit them.
        #[cfg(not(target_vendor = "apple"))]
        let flags = RecvFlags::CMSG_CLOEXEC;
        #[cfg(target_vendor = "apple")]
        let flags = RecvFlags::empty();
        let came = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                files.extend(descriptors.map(File::from));
            }
        }
        #[cfg(target_vendor = "apple")]
        for file in &files {
            rustix::io::fcntl_setfd(file, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok((came.bytes, files))
    }

    fn send(stream: &Stream, bytes: &[u8], files: &[Arc<File>]) -> io::Result<usize> {
        let descriptors: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too many files for one request",
            ));
        }
        let flags = SendFlags::empty();
        #[cfg(not(target_vendor = "apple"))]
        let flags = flags | SendFlags::NOSIGNAL;
        Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags)?)
    }
}

/// Here no connection is ever made.
#[cfg(not(unix))]
mod system {
    use std::{
        fs::File,
        io,
        sync::Arc,
        task::{Context, Poll},
    };

    use super::{Arrivals, Stream};

    pub(super) fn poll_receive(
        _: &Stream,
        _: &mut Context<'_>,
        _: &mut [u8],
        _: &Arrivals,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    pub(super) fn poll_send(
        _: &Stream,
        _: &mut Context<'_>,
        _: &[u8],
        _: &[Arc<File>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

#[cfg(all(test, unix))]
mod tests;
