//! The end of R4 and R5 for a whole folder: its stream, received like any large file, becomes a folder beside it.
//!
//! Nobody sees that folder before it gets its name, and it gets that only once everything in it is durable. A crash
//! before R6 leaves the row *receiving* with the whole stream: the folder is removed and made again.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    sync::Arc,
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::{
    Digest, Mtime, RunningDigest,
    bundle::{BundleError, Entry, Node, Reader},
    message::DeclineReason,
};

use super::{
    inbox_dir::InboxDir,
    naming::{Names, os_name},
    partial,
    reply::{self, Answer, spoils},
    rights::Rights,
    space::Short,
    transfer_locks::Key,
};
use crate::{
    failpoints,
    fs::{
        disk::{Disk, Inodes},
        durable,
    },
    io_error::blames_the_name,
};

/// Files and folders that are made between two questions how many inodes are left.
const LOOK_AT_INODES: u64 = 256;
/// Bytes copied at once.
const COPY: usize = 256 * 1024;
/// What a file system takes at least for an entry, and rounds a file's bytes up to.
const PAGE: u64 = 4096;

/// Why there is no folder.
pub(super) enum Failure {
    /// The stream is good and is kept for the next try.
    NotNow(Answer),
    /// The stream is not what it has to be, or the disk failed (a sync that failed among that): it starts over.
    Useless(Answer),
    /// The caller said to stop.
    Stopped,
}

impl Failure {
    /// Of a file operation: what a full disk, a lack of descriptors or of rights keeps from being made can be made of
    /// the same stream later.
    fn of(doing: &str, error: &io::Error) -> Self {
        let answer = Answer::io(doing, error);
        match spoils(error) {
            true => Self::Useless(answer),
            false => Self::NotNow(answer),
        }
    }
}

/// What the folder will take on the disk, once the whole stream is known to be one that may be unpacked.
pub(super) fn survey(stream: &File) -> Result<u64, Failure> {
    let mut reader = Reader::new(BufReader::new(rewound(stream)?));
    let mut need = 0u64;
    while let Some(entry) = reader.next().map_err(refusal)? {
        let size = match entry.node {
            Node::Folder => 0,
            Node::File { size, .. } => size,
        };
        need = need
            .saturating_add(PAGE)
            .saturating_add(size.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX));
        reader.skip().map_err(|e| refusal(BundleError::Short(e)))?;
    }
    Ok(need)
}

/// Where a folder is unpacked.
pub(super) struct Target<'a> {
    /// The partials' folder.
    pub partials: &'a Dir,
    /// Which names its file system takes.
    pub names: Names,
    /// May many files be made durable at once?
    pub syncfs: bool,
    /// What files and folders get there.
    pub rights: Arc<Rights>,
}

impl Target<'_> {
    /// Among the inbox's partials.
    pub(super) fn of(inbox_dir: &InboxDir, rights: Arc<Rights>) -> Target<'_> {
        Target {
            partials: &inbox_dir.partials,
            names: inbox_dir.names,
            syncfs: inbox_dir.syncfs,
            rights,
        }
    }
}

/// Makes the folder, durably (R5), and gives its inode. `digest` is what the stream was verified to have: it is read
/// back here, and what was read counts. `wrote` hears of bytes that were written, now and then of none, and says
/// whether to go on.
pub(super) fn unpack(
    target: &Target<'_>,
    key: Key,
    stream: &File,
    digest: Digest,
    wrote: &mut dyn FnMut(u64) -> bool,
) -> Result<u64, Failure> {
    let making = |e: io::Error| Failure::of("making the folder", &e);
    let (partials, name) = (target.partials, partial::folder_name(key));
    partial::remove_all(partials, &name).map_err(making)?;
    // Before the first write: a later error of any of them is told by it.
    let sync_handle = target.syncfs.then(|| durable::sync_handle(partials));
    let sync_handle = sync_handle.transpose().map_err(making)?;
    let top = make_dir(partials, &name).map_err(making)?;
    target
        .rights
        .give_folder(&durable::sync_handle(&top).map_err(making)?);
    let mut unpacking = Unpacking {
        target,
        each: sync_handle.is_none(),
        open: Vec::new(),
        buffer: vec![0; COPY],
    };
    let hashing = Hashing {
        inner: rewound(stream)?,
        hash: RunningDigest::default(),
    };
    let mut reader = Reader::new(BufReader::with_capacity(COPY, hashing));
    let mut first = Some(top);
    let mut made = 0_u64;
    while let Some(entry) = reader.next().map_err(refusal)? {
        if made.is_multiple_of(LOOK_AT_INODES) {
            keep_inodes(partials)?;
        }
        made += 1;
        if !wrote(0) {
            return Err(Failure::Stopped);
        }
        match first.take() {
            Some(top) => unpacking.open.push(top),
            None => unpacking.entry(&entry, &mut reader, wrote)?,
        }
    }
    if reader.into_inner().into_inner().hash.value() != digest {
        let error = io::Error::other("what was written reads back otherwise");
        return Err(Failure::of("reading the stream", &error));
    }
    let syncing = |e: io::Error| Failure::of("syncing the folder", &e);
    let inode = unpacking.finish().map_err(syncing)?;
    match sync_handle {
        Some(sync_handle) => failpoints::step("R5-folder-syncfs", || durable::sync_filesystem(&sync_handle)),
        None => Ok(()),
    }
    .and_then(|()| failpoints::step("R5-folder-partial-dir", || durable::sync_dir(partials)))
    .map_err(syncing)?;
    let made = partials.open_dir_nofollow(&name);
    let made = made.and_then(|folder| is_whole(target.names, &folder, stream));
    match made {
        Ok(true) => Ok(inode),
        Ok(false) => Err(Failure::NotNow(reply::taken())),
        Err(e) => Err(making(e)),
    }
}

/// A folder of a million files without bytes is small on the wire.
fn keep_inodes(partials: &Dir) -> Result<(), Failure> {
    let disk = Disk::of(partials).ok().flatten(); // what cannot be asked is found out by making files
    match disk.and_then(|disk| disk.inodes).filter(Inodes::are_short) {
        None => Ok(()),
        Some(inodes) => Err(Failure::NotNow(reply::short(Short::Inodes(inodes)))),
    }
}

/// Is everything in `folder` that the stream has? Who cleans up or imports may have taken some of it while nobody was to
/// see it yet. What else is in it is not asked for.
pub(super) fn is_whole(names: Names, folder: &Dir, stream: &File) -> io::Result<bool> {
    if failpoints::mutant("R5-folder-whole") {
        return Ok(true);
    }
    let unreadable = |_: Failure| io::Error::other("the stream cannot be read");
    let mut reader = Reader::new(BufReader::new(rewound(stream).map_err(unreadable)?));
    let mut open = vec![folder.try_clone()?];
    loop {
        let Ok(next) = reader.next() else {
            return Ok(false);
        };
        let Some(entry) = next else { return Ok(true) };
        reader.skip()?;
        let Some(path) = &entry.path else { continue };
        open.truncate(path.components().count());
        let Some(parent) = open.last() else {
            return Ok(false);
        };
        let name = os_name(&names.mapped(path.file_name()));
        let found = match parent.symlink_metadata(&name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        match entry.node {
            Node::Folder if found.is_dir() => open.push(parent.open_dir_nofollow(&name)?),
            Node::File { size, .. } if found.is_file() && found.len() == size => {}
            _ => return Ok(false),
        }
    }
}

struct Unpacking<'a> {
    target: &'a Target<'a>,
    /// Each file and folder is synced by itself.
    each: bool,
    /// The folders that the last entry lay in, the unpacked one first.
    open: Vec<Dir>,
    buffer: Vec<u8>,
}

impl Unpacking<'_> {
    /// The reader has made sure that its folder came before.
    fn entry(
        &mut self,
        entry: &Entry,
        content: &mut impl Read,
        wrote: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), Failure> {
        let Some(path) = &entry.path else {
            return Err(refusal(BundleError::Order));
        };
        let failed = |e: io::Error| Failure::of("making the folder", &e);
        let unnamed = |e: io::Error| match e.kind() {
            io::ErrorKind::AlreadyExists => {
                let text =
                    format!("the file system of the inbox takes {path} in it and another name for the same");
                Failure::Useless(Answer::refused(DeclineReason::BadName, text, None))
            }
            _ if blames_the_name(&e) => {
                let text = format!("the file system of the inbox refuses the name {path} in it: {e}");
                Failure::Useless(Answer::refused(DeclineReason::BadName, text, None))
            }
            _ => failed(e),
        };
        self.leave(path.components().count()).map_err(failed)?;
        let parent = self.open.last().ok_or_else(|| refusal(BundleError::Order))?;
        let name = os_name(&self.target.names.mapped(path.file_name()));
        match entry.node {
            Node::Folder => {
                let made = make_dir(parent, &name).map_err(unnamed)?;
                self.open.push(made);
            }
            Node::File { mtime, .. } => {
                let mut file = durable::create_private(parent, &name).map_err(unnamed)?;
                while let Some(bytes) = self.copy(content, &mut file).map_err(failed)? {
                    if !wrote(bytes) {
                        return Err(Failure::Stopped);
                    }
                }
                let mtime = Mtime {
                    seconds: mtime,
                    nanos: 0,
                };
                let meta = file.metadata().map_err(failed)?;
                partial::set_metadata(&file, &meta, &self.target.rights, mtime);
                if self.each {
                    failpoints::step("R5-folder-file", || durable::sync_file(&file)).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// The next piece and its length; None: that was all.
    fn copy(&mut self, content: &mut impl Read, file: &mut File) -> io::Result<Option<u64>> {
        let read = content.read(&mut self.buffer)?;
        file.write_all(&self.buffer[..read])?;
        Ok((read > 0).then_some(read as u64))
    }

    /// Folders below `depth` are complete.
    fn leave(&mut self, depth: usize) -> io::Result<()> {
        while self.open.len() > depth {
            if let Some(done) = self.open.pop().filter(|_| self.each) {
                failpoints::step("R5-folder-dir", || durable::sync_dir(&done))?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<u64> {
        let top = self.open.first().ok_or(io::ErrorKind::NotFound)?;
        let inode = cap_fs_ext::MetadataExt::ino(&top.dir_metadata()?);
        self.leave(0)?;
        Ok(inode)
    }
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hash: RunningDigest,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// A new folder, which only we made.
fn make_dir(parent: &Dir, name: &std::ffi::OsStr) -> io::Result<Dir> {
    durable::make_shared_dir(parent, name)?;
    parent.open_dir_nofollow(name)
}

fn rewound(stream: &File) -> Result<&File, Failure> {
    let mut file = stream;
    match file.seek(SeekFrom::Start(0)) {
        Ok(_) => Ok(stream),
        Err(e) => Err(Failure::NotNow(Answer::io("reading the stream", &e))),
    }
}

fn refusal(error: BundleError) -> Failure {
    let (reason, keep) = match &error {
        BundleError::Name(_) => (DeclineReason::BadName, false),
        BundleError::Short(e) if e.kind() != io::ErrorKind::UnexpectedEof => (DeclineReason::DiskError, true),
        _ => (DeclineReason::Conflict, false),
    };
    let answer = Answer::refused(reason, format!("the folder cannot be unpacked: {error}"), None);
    if keep {
        Failure::NotNow(answer)
    } else {
        Failure::Useless(answer)
    }
}

#[cfg(test)]
#[path = "tests/unpack.rs"]
mod tests;
