//! A large partial's bytes on their way to the disk: past the page cache where the system does that, since each fresh
//! page of it costs more than all that is done to its bytes otherwise.
//!
//! Such writes begin and end at multiples of [`ALIGNED`], in memory too. So bytes are gathered in an aligned block;
//! what does not fit into whole pages, at the ends of what is received in one go, takes the way through the cache. Where
//! direct writes are refused everything does.

use std::{fs::File, io};

/// Bytes written at once.
const BLOCK: usize = 512 << 10;
/// What offsets, lengths and addresses of direct writes are multiples of.
const ALIGNED: usize = 4096;

/// The end of a partial, where bytes are added. It holds back less than a block; [`Output::flush`] writes that, too.
pub(super) struct Output {
    file: File,
    written: u64,
    /// None: all goes through the page cache, at once.
    block: Option<Block>,
    /// How the descriptor is set.
    direct: bool,
}

impl Output {
    /// Adds to `file` at `written`; with `direct`, past the page cache if that works here.
    pub(super) fn new(file: File, written: u64, direct: bool) -> Self {
        Self {
            file,
            written,
            block: direct.then(Block::new),
            direct: false,
        }
    }

    /// The partial. Nobody else may write to it, nor change how its descriptor is set.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Up to where the system has the bytes. Not how far they are durable.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes. Not to be called after an error.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(block) = &mut self.block {
            // Blocks end at multiples of their size, wherever the first one began.
            let end = BLOCK - (self.written % BLOCK as u64) as usize;
            bytes = block.take(bytes, end);
            if block.filled < end {
                return Ok(());
            }
            self.flush()?;
        }
        self.put(bytes, false)
    }

    /// Writes what is held back. After an error that is lost, and [`Output::written`] says where.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(mut block) = self.block.take() else {
            return Ok(());
        };
        let bytes = block.bytes();
        let whole = match self.written % ALIGNED as u64 {
            0 => bytes.len() - bytes.len() % ALIGNED,
            _ => 0,
        };
        let (whole, rest) = bytes.split_at(whole);
        let direct = self.put_direct(whole)?;
        self.put(rest, false)?;
        if direct {
            block.filled = 0;
            self.block = Some(block);
        }
        Ok(())
    }

    /// Cuts the file to `length`, where the next bytes go; what is held back is dropped.
    pub(super) fn cut(&mut self, length: u64) -> io::Result<()> {
        if let Some(block) = &mut self.block {
            block.filled = 0;
        }
        self.file.set_len(length)?;
        self.written = length;
        Ok(())
    }

    /// False: written all the same, but direct writes are refused here.
    fn put_direct(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if bytes.is_empty() {
            return Ok(true);
        }
        match self.put(bytes, true) {
            Err(e) if system::is_refused(&e) => self.put(bytes, false).map(|()| false),
            done => done.map(|()| true),
        }
    }

    fn put(&mut self, bytes: &[u8], direct: bool) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.direct != direct {
            system::set_direct(&self.file, direct)?;
            self.direct = direct;
        }
        write_at(&self.file, self.written, bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Memory at an address that a direct write can begin at.
struct Block {
    memory: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Block {
    fn new() -> Self {
        let memory = vec![0; BLOCK + ALIGNED];
        let start = memory.as_ptr().align_offset(ALIGNED).min(ALIGNED);
        Self {
            memory,
            start,
            filled: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.filled]
    }

    /// Takes what fits before `end`; gives the rest back.
    fn take<'a>(&mut self, bytes: &'a [u8], end: usize) -> &'a [u8] {
        let (now, rest) = bytes.split_at(bytes.len().min(end - self.filled));
        self.memory[self.start + self.filled..][..now.len()].copy_from_slice(now);
        self.filled += now.len();
        rest
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::{fs::File, io};

    use rustix::fs::OFlags;

    pub(super) fn set_direct(file: &File, direct: bool) -> io::Result<()> {
        let mut flags = rustix::fs::fcntl_getfl(file)?;
        flags.set(OFlags::DIRECT, direct);
        Ok(rustix::fs::fcntl_setfl(file, flags)?)
    }

    /// By the file system as a whole, or because it wants other alignments.
    pub(super) fn is_refused(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::{fs::File, io};

    pub fn set_direct(_: &File, direct: bool) -> io::Result<()> {
        match direct {
            true => Err(io::ErrorKind::Unsupported.into()),
            false => Ok(()),
        }
    }

    pub fn is_refused(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Unsupported
    }
}

/// Writes all of `bytes` at `offset`.
pub(super) fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
    }
    #[cfg(not(unix))]
    {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::receiver::partial;

    fn some(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 31 / 7) as u8).collect()
    }

    /// Adds `bytes` behind the first `held` of them, `piece` at a time, cut back once to where it began.
    fn goes_through(folder: &Path, bytes: &[u8], held: usize, piece: usize, direct: bool) {
        let file = tempfile::tempfile_in(folder).unwrap();
        write_at(&file, 0, &bytes[..held]).unwrap();
        let mut output = Output::new(file, held as u64, direct);
        output.write(&some(piece)).unwrap();
        output.cut(held as u64).unwrap();
        for piece in bytes[held..].chunks(piece) {
            output.write(piece).unwrap();
            assert!(output.written() <= bytes.len() as u64);
        }
        output.flush().unwrap();
        assert_eq!(output.written(), bytes.len() as u64);
        let mut read = vec![0; bytes.len() + 1];
        let mut length = 0;
        while let Ok(more @ 1..) = partial::read_at(output.file(), length as u64, &mut read[length..]) {
            length += more;
        }
        assert!(read[..length] == *bytes, "{held} {piece} {direct}");
    }

    /// Folders of several file systems, as far as they are there.
    #[test]
    fn every_byte_gets_to_its_place() {
        let bytes = some(3 * BLOCK + 5000);
        let folders = [std::env::temp_dir(), "/dev/shm".into(), "/var/tmp".into()];
        for folder in folders.iter().filter(|folder| folder.is_dir()) {
            for (held, piece) in [
                (0, 256 << 10),
                (0, 3 * BLOCK),
                (4096, 100_000),
                (5, 256 << 10),
                (BLOCK + 1, 7777),
            ] {
                goes_through(folder, &bytes, held, piece, true);
                goes_through(folder, &bytes, held, piece, false);
            }
        }
    }

    #[test]
    fn without_direct_writes_nothing_is_held_back() {
        let mut output = Output::new(tempfile::tempfile().unwrap(), 0, false);
        output.write(b"abc").unwrap();
        assert_eq!(output.written(), 3);
    }

    /// Read-only: no write succeeds, and none is taken for a refusal of direct ones.
    #[test]
    fn an_error_is_an_error() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let mut output = Output::new(File::open(temp.path()).unwrap(), 0, true);
        output.write(b"abc").unwrap();
        assert!(output.flush().is_err());
        assert_eq!(output.written(), 0);
    }
}
