//! One pass over one version of a file: what was read between a [`Pass::begin`] and a [`Pass::check`] that both say
//! yes is that version, whole, and no mix with another.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;
use cap_std::fs::Dir;
use dropwire_protocol::{RemotePath, RunningDigest, message::MAX_CHUNK};

use super::buffers::Buffers;
use crate::{
    error::shown,
    failpoints,
    fs::{
        border,
        confined::{self, Parents},
        file_system::FileSystem,
        folder_id,
        lease::{self, Inspected, Lease},
        version::{Found, OutboxId, Version},
    },
    link::Voided,
    owner,
};

/// Why a pass ends early.
#[derive(Debug)]
pub(super) enum Ended {
    /// What was read may be a mix, or could not be read.
    Void(Voided),
    /// Nobody wants the rest.
    Stopped,
}

impl From<Voided> for Ended {
    fn from(why: Voided) -> Self {
        Self::Void(why)
    }
}

/// Takes the bytes at an offset and the hash up to their end; false ends the pass.
pub(super) type Take<'a> = dyn FnMut(u64, Bytes, &RunningDigest) -> bool + 'a;

/// The outbox that was opened last: files that are read one after the other open it, and their folder, once.
#[derive(Default)]
pub(super) struct Opened(Option<(PathBuf, Parents)>);

impl Opened {
    fn outbox(&mut self, root: &Path, id: OutboxId) -> Result<&mut Parents, Voided> {
        let last = match self.0.take() {
            Some(last) if last.0 == root => last,
            _ => (
                root.to_path_buf(),
                Parents::through(open_outbox(root, id)?, owner::unclaimed),
            ),
        };
        Ok(&mut self.0.insert(last).1)
    }
}

/// An open file that was the wanted version at the beginning, with a lease where there are leases.
pub(super) struct Pass<'a> {
    root: Rc<Dir>,
    found: &'a Found,
    file: File,
    lease: Option<Lease>,
    first: Version,
    /// What its file system is trusted with.
    on: FileSystem,
}

impl<'a> Pass<'a> {
    /// Opens the file and takes the lease before anything of the file is asked.
    pub(super) fn begin(opened: &mut Opened, root: &Path, found: &'a Found) -> Result<Self, Voided> {
        let parents = opened.outbox(root, found.outbox)?;
        let outbox = Rc::clone(parents.root());
        let void = |e| void_of(&outbox, found, &e);
        let file = open(parents, &found.path).map_err(void)?;
        let looked = lease::inspect(&file).map_err(void)?;
        let Inspected {
            lease,
            version: first,
            on,
        } = match looked {
            Some(looked) => looked,
            None if failpoints::mutant("S3-writer") => {
                let (version, on) = Version::read(&file).map_err(void)?;
                Inspected {
                    lease: None,
                    version,
                    on,
                }
            }
            None => return Err(Voided::Writer),
        };
        if !first.same_identity(&found.version) && !failpoints::mutant("S3-version") {
            return Err(Voided::Changed);
        }
        if lease.is_none() && first.is_fresh(std::time::SystemTime::now()) {
            return Err(Voided::Writer); // a write within the clock's step would not show
        }
        if first.size > MAX_CHUNK as u64 {
            expect_sequential(&file);
        }
        Ok(Pass {
            root: outbox,
            found,
            file,
            lease,
            first,
            on,
        })
    }

    /// The witness with which a state of the hash may be kept for a later pass.
    pub(super) fn ctime_ns(&self) -> i64 {
        self.first.ctime_ns
    }

    /// Reads on from where `hash` stands up to `end`, chunk by chunk.
    pub(super) fn read(&self, hash: &mut RunningDigest, end: u64, take: &mut Take<'_>) -> Result<(), Ended> {
        if hash.length() >= end {
            return Ok(());
        }
        let mut file = &self.file;
        file.seek(SeekFrom::Start(hash.length()))
            .map_err(|e| self.void(&e))?;
        let left = usize::try_from(end.saturating_sub(hash.length())).unwrap_or(MAX_CHUNK);
        let size = left.min(MAX_CHUNK);
        let mut buffers = Buffers::new(size);
        while hash.length() < end {
            let offset = hash.length();
            let length = usize::try_from(end - offset).map_or(size, |left| left.min(size));
            let mut buffer = buffers.take();
            let chunk = &mut buffer[..length];
            file.read_exact(chunk).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => Voided::Changed,
                _ => self.void(&e),
            })?;
            if self.lease.as_ref().is_some_and(|lease| !lease.whole()) && !failpoints::mutant("S3-lease") {
                return Err(Voided::Changed.into());
            }
            hash.update(chunk);
            if !take(offset, buffers.give(buffer, length), hash) {
                return Err(Ended::Stopped);
            }
        }
        Ok(())
    }

    fn void(&self, error: &io::Error) -> Voided {
        void_of(&self.root, self.found, error)
    }

    /// After the last read: still that version (or, with a lease, that with other times), nobody wrote, and the path
    /// still leads to it.
    pub(super) fn check(&self) -> Result<(), Voided> {
        let void = |e| self.void(&e);
        let now = match self.on.sees_writers || failpoints::mutant("S3-reopen") {
            true => Version::read(&self.file).map_err(void)?.0,
            false => self.reopened()?,
        };
        let undisturbed = match &self.lease {
            Some(lease) => lease.whole(),
            None => now.ctime_ns == self.first.ctime_ns,
        };
        // Times tell nothing of bytes that a whole lease speaks for.
        let seen = match self.lease.is_some() && !failpoints::mutant("S3-times") {
            true => Version {
                mtime_ns: self.first.mtime_ns,
                ..now
            },
            false => now,
        };
        if (!undisturbed || !seen.same_identity(&self.first)) && !failpoints::mutant("S3-end") {
            return Err(Voided::Changed);
        }
        let named = confined::version(&self.root, &self.found.path).map_err(void)?;
        if named.same_identity(&now) || failpoints::mutant("S3-path") {
            Ok(())
        } else {
            Err(Voided::Changed)
        }
    }

    /// As whoever opens it now sees it: what an open file says may be as old as its opening where others write past this
    /// mount.
    fn reopened(&self) -> Result<Version, Voided> {
        let open = || -> io::Result<Option<Inspected>> {
            let folder = confined::parent(&self.root, &self.found.path)?;
            let name = confined::os_str(self.found.path.file_name())?;
            lease::inspect(&confined::open_file(&folder, name)?)
        };
        match open().map_err(|e| self.void(&e))? {
            Some(looked) => Ok(looked.version),
            None => Err(Voided::Writer),
        }
    }
}

fn open(parents: &mut Parents, path: &RemotePath) -> io::Result<File> {
    confined::open_file(parents.of(path)?, confined::os_str(path.file_name())?)
}

/// Missing counts as gone only in a folder that is still the outbox, with all that was mounted on the way: what is not
/// mounted says nothing of its files.
pub(super) fn void_of(root: &Dir, found: &Found, error: &io::Error) -> Voided {
    if error.kind() == io::ErrorKind::WouldBlock {
        return Voided::Writer; // somebody holds a write lease
    }
    if !confined::is_absent(error) {
        return Voided::Unreadable(error.to_string());
    }
    if let Err(why) = has_its_id(root, found.outbox) {
        return why;
    }
    match border::missing_on_the_way(root, &found.path) {
        Ok(Some(at)) if !failpoints::mutant("S3-mount") => {
            Voided::Unreadable(format!("what was mounted at {at} in the outbox is not there"))
        }
        Ok(_) => Voided::Gone,
        Err(e) => Voided::Unreadable(format!("what is mounted in the outbox cannot be told: {e}")),
    }
}

/// The outbox at `root`, if the folder there has its id: another one, or one that was handed to another agent since,
/// may hold files of the same names.
pub(super) fn open_outbox(root: &Path, outbox: OutboxId) -> Result<Dir, Voided> {
    let dir =
        confined::root(root).map_err(|e| Voided::Unreadable(format!("the outbox {}: {e}", shown(root))))?;
    if !failpoints::mutant("S3-folder-id") {
        has_its_id(&dir, outbox)?;
    }
    Ok(dir)
}

fn has_its_id(root: &Dir, outbox: OutboxId) -> Result<(), Voided> {
    let why = match folder_id::read(root) {
        Ok(Some(id)) if OutboxId(id) == outbox => return Ok(()),
        Ok(Some(_)) => "another folder is where the outbox was (its .dropwire/id differs)".into(),
        Ok(None) => "the outbox has lost its id (.dropwire/id): not mounted?".into(),
        Err(e) => format!("the outbox's id cannot be read: {e}"),
    };
    Err(Voided::Unreadable(why))
}

#[cfg(target_os = "linux")]
fn expect_sequential(file: &File) {
    // Only a hint to read ahead; refused means no harm.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Sequential);
}

#[cfg(not(target_os = "linux"))]
fn expect_sequential(_: &File) {}
