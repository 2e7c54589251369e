//! A folder's stream, from any offset: nothing before it is read, and no more than a chunk is held.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use cap_std::fs::Dir;
use dropwire_protocol::{
    Digest, RunningDigest,
    bundle::{END, Entry, Node, padding},
    message::MAX_CHUNK,
};

use super::{Step, Trouble, walk};
use crate::fs::lease::{self, Inspected};

/// Why reading ended early.
#[derive(PartialEq, Debug)]
pub enum Halt {
    /// The folder cannot be read as one version.
    Trouble(Trouble),
    /// The taker wants no more.
    Stopped,
}

/// Gives the bytes `from` to `to` of the stream to `take`, at most [`MAX_CHUNK`] at once, until that says false.
///
/// Each file is read under a lease where there are leases, in the version that the walk saw. That the walk met the
/// wanted version, and that nothing was written after its file was read, is the caller's to check by a later listing.
pub fn read(folder: &Dir, from: u64, to: u64, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Halt> {
    let capacity = MAX_CHUNK.min(usize::try_from(to.saturating_sub(from)).unwrap_or(MAX_CHUNK));
    let mut out = Out {
        at: 0,
        from,
        to,
        buffer: Vec::with_capacity(capacity),
        take,
    };
    let walked = walk(folder, &mut |step: &Step<'_>| out.step(step)).and_then(|()| out.bytes(&END));
    match walked {
        Ok(()) if out.at < to => Err(Halt::Trouble(Trouble::Changed)), // it ended early
        Ok(()) | Err(Break::Full) => out.flush(),
        Err(Break::Halt(halt)) => Err(halt),
    }
}

/// Of the whole stream.
pub fn digest(folder: &Dir, size: u64, stopped: &dyn Fn() -> bool) -> Result<Digest, Halt> {
    let mut hash = RunningDigest::default();
    read(folder, 0, size, &mut |bytes| {
        hash.update(bytes);
        !stopped()
    })?;
    Ok(hash.value())
}

/// Why the walk ends early.
enum Break {
    /// Everything wanted is there.
    Full,
    Halt(Halt),
}

impl From<Trouble> for Break {
    fn from(trouble: Trouble) -> Self {
        Self::Halt(Halt::Trouble(trouble))
    }
}

impl From<Halt> for Break {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

struct Out<'a> {
    /// Where in the stream the walk stands.
    at: u64,
    from: u64,
    to: u64,
    buffer: Vec<u8>,
    take: &'a mut dyn FnMut(&[u8]) -> bool,
}

impl Out<'_> {
    fn step(&mut self, step: &Step<'_>) -> Result<(), Break> {
        let Some(node) = step.node() else {
            return Ok(());
        };
        let path = step.path.clone();
        self.bytes(&Entry { path, node }.header())?;
        let Node::File { size, .. } = node else {
            return Ok(());
        };
        if self.at.saturating_add(size) <= self.from {
            self.at += size;
        } else if size > 0 {
            self.file(step, size)?;
        }
        let zeros = [0; dropwire_protocol::bundle::BLOCK];
        self.bytes(&zeros[..padding(size)])
    }

    /// Those of `bytes`, which stand here, that are wanted.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Break> {
        let before = self.from.saturating_sub(self.at);
        let before = usize::try_from(before).map_or(bytes.len(), |before| before.min(bytes.len()));
        let mut wanted = &bytes[before..];
        self.at += before as u64;
        while !wanted.is_empty() {
            let room = self.room()?;
            let (now, later) = wanted.split_at(room.min(wanted.len()));
            self.buffer.extend_from_slice(now);
            self.at += now.len() as u64;
            wanted = later;
        }
        Ok(())
    }

    fn file(&mut self, step: &Step<'_>, size: u64) -> Result<(), Break> {
        let end = self.at + size;
        let mut file = step.open()?;
        let failed = |e: &io::Error| Break::from(step.unreadable(e));
        let Some(Inspected { lease, version, .. }) = lease::inspect(&file).map_err(|e| failed(&e))? else {
            return Err(Trouble::Writer(step.shown()).into());
        };
        if version != step.version {
            return Err(Trouble::Changed.into());
        }
        let skip = self.from.saturating_sub(self.at);
        self.at += skip;
        file.seek(SeekFrom::Start(skip)).map_err(|e| failed(&e))?;
        while self.at < end {
            let room = self.room()?;
            let length = usize::try_from(end - self.at).map_or(room, |left| left.min(room));
            self.fill(&mut file, length).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => Trouble::Changed.into(),
                _ => failed(&e),
            })?;
            if lease.as_ref().is_some_and(|lease| !lease.whole()) {
                return Err(Trouble::Changed.into());
            }
        }
        Ok(())
    }

    fn fill(&mut self, file: &mut File, length: usize) -> io::Result<()> {
        let begun = self.buffer.len();
        self.buffer.resize(begun + length, 0);
        let read = file.read_exact(&mut self.buffer[begun..]);
        if read.is_err() {
            self.buffer.truncate(begun);
        }
        self.at += length as u64;
        read
    }

    /// How many bytes may be added now, at least one.
    fn room(&mut self) -> Result<usize, Break> {
        if self.at >= self.to {
            return Err(Break::Full);
        }
        if self.buffer.len() >= MAX_CHUNK {
            self.flush()?;
        }
        let left = usize::try_from(self.to - self.at).unwrap_or(MAX_CHUNK);
        Ok(left.min(MAX_CHUNK - self.buffer.len()))
    }

    fn flush(&mut self) -> Result<(), Halt> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let go_on = (self.take)(&self.buffer);
        self.buffer.clear();
        if go_on { Ok(()) } else { Err(Halt::Stopped) }
    }
}
