//! A large partial's bytes on their way to the disk: past the page cache where the system does that, since each fresh
//! page of it costs more than all that is done to its bytes otherwise; and on a thread of their own, since the disk is
//! waited for in such writes, and the next bytes can be hashed meanwhile.
//!
//! Such writes begin and end at multiples of [`ALIGNED`], in memory too. So bytes are gathered in aligned blocks;
//! what does not fit into whole pages, at the ends of what is received in one go, takes the way through the cache. Where
//! direct writes are refused everything does.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

/// Bytes written at once.
const BLOCK: usize = 512 << 10;
/// What offsets, lengths and addresses of direct writes are multiples of.
const ALIGNED: usize = 4096;
/// Most blocks of one partial: one is filled while the others wait for the disk.
const BLOCKS: usize = 4;
/// Most blocks of all partials together, beyond the one that each may have.
const SPARE: usize = 24;

/// Counts the blocks that partials have beyond one each.
#[derive(Default)]
pub(super) struct SpareBlocks(AtomicUsize);

impl SpareBlocks {
    fn take(&self) -> bool {
        let more = |taken| (taken < SPARE).then_some(taken + 1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    fn are_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= SPARE
    }

    fn give_back(&self, blocks: usize) {
        self.0.fetch_sub(blocks, Ordering::Relaxed);
    }
}

/// The end of a partial, where bytes are added. With blocks it holds back less than one; [`Output::flush`] writes that,
/// too.
pub(super) struct Output {
    file: File,
    /// What counts as written is what the system has taken.
    written: u64,
    /// None: all goes through the page cache, at once.
    blocks: Option<Blocks>,
}

/// What the thread that writes is asked, in this order.
enum Task {
    Write { block: Block, at: u64 },
    Then(Box<dyn FnOnce() + Send>),
}

/// A task that is done: its block, and up to where all is written; None where it wrote nothing.
struct Done {
    block: Option<Block>,
    written: io::Result<Option<u64>>,
}

/// Blocks, and the thread that writes them.
struct Blocks {
    filling: Option<Block>,
    /// Where that one is to be written.
    at: u64,
    free: Vec<Block>,
    /// All that this partial has.
    count: usize,
    spare: Arc<SpareBlocks>,
    /// Tasks under way.
    under_way: usize,
    /// The first error; nothing is written after it.
    failed: Option<io::Error>,
    tasks: Sender<Task>,
    done: Receiver<Done>,
    thread: JoinHandle<()>,
}

impl Output {
    /// Adds to `file` at `written`, through the page cache.
    pub(super) fn cached(file: File, written: u64) -> Self {
        Self {
            file,
            written,
            blocks: None,
        }
    }

    /// Adds to `file` at `written`, past the page cache if that works here. With a `size` the file has its length from
    /// now on: writes into it need less of the file system then. `news` is called whenever more is written, from
    /// another thread. An error: there is none.
    pub(super) fn direct(
        file: File,
        written: u64,
        size: Option<u64>,
        spare: Arc<SpareBlocks>,
        news: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        if let Some(size) = size {
            let _ = file.set_len(size); // refused, writes make it longer
        }
        let (tasks, waiting) = channel();
        let (tell, done) = channel();
        let target = Target {
            file: file.try_clone()?,
            direct: false,
            is_refused: false,
        };
        let thread = thread::Builder::new()
            .name("inbox-write".into())
            .spawn(move || target.run(waiting, tell, news))?;
        let blocks = Blocks {
            filling: None,
            at: written,
            free: Vec::new(),
            count: 0,
            spare,
            under_way: 0,
            failed: None,
            tasks,
            done,
            thread,
        };
        Ok(Self {
            file,
            written,
            blocks: Some(blocks),
        })
    }

    /// The partial. Nobody else may write to it, nor change how its descriptor is set.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Up to where the system has the bytes. Not how far they are durable.
    pub(super) fn written(&mut self) -> u64 {
        while let Some(blocks) = &mut self.blocks
            && let Ok(done) = blocks.done.try_recv()
        {
            blocks.take_back(done, &mut self.written);
        }
        if let Some(blocks) = &mut self.blocks {
            blocks.leave_to_others();
        }
        self.written
    }

    /// Takes the next bytes. Not to be called after an error.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(blocks) = &mut self.blocks else {
            write_at(&self.file, self.written, bytes)?;
            self.written += bytes.len() as u64;
            return Ok(());
        };
        while !bytes.is_empty() {
            // Blocks end at multiples of their size, wherever the first one began.
            let end = BLOCK - (blocks.at % BLOCK as u64) as usize;
            let filling = blocks.filling(&mut self.written)?;
            bytes = filling.take(bytes, end);
            if filling.filled == end {
                blocks.hand_over()?;
            }
        }
        Ok(())
    }

    /// Does this once all that was taken is written; not at all if it could not be.
    pub(super) fn then(&mut self, act: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let Some(blocks) = &mut self.blocks else {
            act();
            return Ok(());
        };
        blocks.hand_over()?;
        blocks.send(Task::Then(Box::new(act)))
    }

    /// Writes what is held back, and waits for all that is under way.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(blocks) = &mut self.blocks else {
            return Ok(());
        };
        blocks.hand_over()?;
        blocks.wait(&mut self.written)?;
        match self.written == blocks.at {
            true => Ok(()),
            false => Err(ended()),
        }
    }

    /// Cuts the file to `length`, where the next bytes go; what is held back is dropped.
    pub(super) fn cut(&mut self, length: u64) -> io::Result<()> {
        if let Some(blocks) = &mut self.blocks {
            if let Some(filling) = &mut blocks.filling {
                filling.filled = 0;
            }
            blocks.wait(&mut self.written)?;
            blocks.at = length;
        }
        self.file.set_len(length)?;
        self.written = length;
        Ok(())
    }

    /// Waits until nothing is under way any more, whatever becomes of it. Nothing can be written after that.
    pub(super) fn close(&mut self) {
        if let Some(blocks) = self.blocks.take() {
            blocks.spare.give_back(blocks.count.saturating_sub(1));
            drop(blocks.tasks);
            let _ = blocks.thread.join();
            for done in blocks.done {
                if let Ok(Some(written)) = done.written {
                    self.written = written;
                }
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close();
    }
}

impl Blocks {
    fn send(&mut self, task: Task) -> io::Result<()> {
        self.check()?;
        self.under_way += 1;
        self.tasks.send(task).map_err(|_| ended())
    }

    /// The block that takes the next bytes.
    fn filling(&mut self, written: &mut u64) -> io::Result<&mut Block> {
        let block = match self.filling.take() {
            Some(filling) => filling,
            None => self.empty(written)?,
        };
        Ok(self.filling.insert(block))
    }

    fn empty(&mut self, written: &mut u64) -> io::Result<Block> {
        while let Ok(done) = self.done.try_recv() {
            self.take_back(done, written);
        }
        self.check()?;
        loop {
            if let Some(free) = self.free.pop() {
                return Ok(free);
            }
            if self.count == 0 || self.count < BLOCKS && self.spare.take() {
                self.count += 1;
                return Ok(Block::new());
            }
            self.wait_for_one(written)?;
        }
    }

    /// Has what is filled written.
    fn hand_over(&mut self) -> io::Result<()> {
        let Some(block) = self.filling.take_if(|filling| filling.filled > 0) else {
            return Ok(());
        };
        let at = self.at;
        self.at += block.filled as u64;
        self.send(Task::Write { block, at })
    }

    /// Gives blocks back that wait for nothing, where others have to do without.
    fn leave_to_others(&mut self) {
        if self.under_way == 0 && self.spare.are_taken() {
            let more = self.free.len().min(self.count.saturating_sub(1));
            self.free.truncate(self.free.len() - more);
            self.count -= more;
            self.spare.give_back(more);
        }
    }

    fn wait(&mut self, written: &mut u64) -> io::Result<()> {
        while self.under_way > 0 {
            self.wait_for_one(written)?;
        }
        self.check()
    }

    fn check(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(error) => Err(same(error)),
        }
    }

    fn wait_for_one(&mut self, written: &mut u64) -> io::Result<()> {
        let done = self.done.recv().map_err(|_| ended())?;
        self.take_back(done, written);
        Ok(())
    }

    fn take_back(&mut self, done: Done, written: &mut u64) {
        self.under_way -= 1;
        if let Some(mut block) = done.block {
            block.filled = 0;
            self.free.push(block);
        }
        match done.written {
            Ok(now) => *written = now.unwrap_or(*written),
            Err(error) => self.failed = self.failed.take().or(Some(error)),
        }
    }
}

/// An error cannot be cloned.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that writes has ended")
}

/// The writing thread's own.
struct Target {
    file: File,
    /// How the descriptor is set.
    direct: bool,
    /// Direct writes are refused here.
    is_refused: bool,
}

impl Target {
    fn run(mut self, tasks: Receiver<Task>, tell: Sender<Done>, news: impl Fn()) {
        let mut failed = false;
        for task in tasks {
            let (block, written) = match task {
                Task::Write { block, at } if !failed => {
                    let written = self.write(block.bytes(), at);
                    failed = written.is_err();
                    let end = at + block.filled as u64;
                    (Some(block), written.map(|()| Some(end)))
                }
                Task::Write { block, .. } => (Some(block), Ok(None)),
                Task::Then(act) => {
                    if !failed {
                        act();
                    }
                    (None, Ok(None))
                }
            };
            if tell.send(Done { block, written }).is_ok() {
                news();
            }
        }
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let whole = match at % ALIGNED as u64 {
            0 if !self.is_refused => bytes.len() - bytes.len() % ALIGNED,
            _ => 0,
        };
        let (whole, rest) = bytes.split_at(whole);
        match self.put(whole, at, true) {
            Err(e) if system::is_refused(&e) => {
                self.is_refused = true;
                self.put(whole, at, false)?;
            }
            done => done?,
        }
        self.put(rest, at + whole.len() as u64, false)
    }

    fn put(&mut self, bytes: &[u8], at: u64, direct: bool) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.direct != direct {
            system::set_direct(&self.file, direct)?;
            self.direct = direct;
        }
        write_at(&self.file, at, bytes)
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
        let mut output = match direct {
            true => {
                Output::direct(file, held as u64, Some(bytes.len() as u64), Arc::default(), || ()).unwrap()
            }
            false => Output::cached(file, held as u64),
        };
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
        let mut output = Output::cached(tempfile::tempfile().unwrap(), 0);
        output.write(b"abc").unwrap();
        assert_eq!(output.written(), 3);
    }

    /// Read-only: no write succeeds, and none is taken for a refusal of direct ones.
    #[test]
    fn an_error_is_an_error_and_nothing_is_done_behind_it() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let file = File::open(temp.path()).unwrap();
        let mut output = Output::direct(file, 0, None, Arc::default(), || ()).unwrap();
        let (tell, told) = channel();
        output.write(b"abc").unwrap();
        output.then(move || tell.send(()).unwrap()).unwrap();
        assert!(output.flush().is_err());
        output.close();
        assert_eq!(output.written(), 0);
        assert!(told.recv().is_err());
    }

    /// What is handed over counts only once it came back, and what is to be done then is done then.
    #[test]
    fn what_counts_as_written_is_what_came_back() {
        let (news, told) = channel();
        let mut output = Output::direct(
            tempfile::tempfile().unwrap(),
            0,
            Some(1 << 30),
            Arc::default(),
            move || {
                news.send(()).unwrap();
            },
        )
        .unwrap();
        let (go_on, waits) = channel::<()>();
        output.then(move || waits.recv().unwrap()).unwrap();
        output.write(&some(BLOCK)).unwrap();
        assert_eq!(output.written(), 0);
        go_on.send(()).unwrap();
        for _ in 0..2 {
            told.recv().unwrap();
        }
        assert_eq!(output.written(), BLOCK as u64);
    }

    #[test]
    fn all_partials_together_have_only_so_many_blocks() {
        let spare = Arc::new(SpareBlocks::default());
        let mut waiting = Vec::new();
        let mut outputs: Vec<Output> = (0..SPARE)
            .map(|_| {
                let file = tempfile::tempfile().unwrap();
                let mut output = Output::direct(file, 0, None, spare.clone(), || ()).unwrap();
                let (go_on, waits) = channel::<()>();
                output
                    .then(move || {
                        let _ = waits.recv();
                    })
                    .unwrap();
                waiting.push(go_on);
                output
            })
            .collect();
        // The disk takes nothing: the first ones have all that they may, and one more each is always there.
        for output in &mut outputs {
            for _ in 0..BLOCKS {
                output.write(&some(BLOCK - 1)).unwrap();
                if output.blocks.as_ref().unwrap().count == 1 && spare.are_taken() {
                    break;
                }
                output.write(&[0]).unwrap();
                if spare.are_taken() {
                    break;
                }
            }
        }
        let counts = || outputs.iter().map(|o| o.blocks.as_ref().unwrap().count);
        assert_eq!(counts().map(|count| count - 1).sum::<usize>(), SPARE);
        assert_eq!(counts().max(), Some(BLOCKS));
        drop(waiting);
        for output in &mut outputs {
            output.flush().unwrap();
            output.written();
        }
        assert!(!spare.are_taken());
        drop(outputs);
        assert_eq!(spare.0.load(Ordering::Relaxed), 0);
    }
}
