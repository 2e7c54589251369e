//! What is read, and one pass over it.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use dropwire_protocol::{Digest, RunningDigest};

use super::{
    checkpoints::Checkpoints,
    folder::FolderPass,
    pass::{Ended, Opened, Pass, Take},
};
use crate::{
    failpoints,
    fs::version::Found,
    link::{Piece, Voided},
    poison::Unpoisoned as _,
};

/// Takes a large file's checkpoints as bytes while it is read; must not block.
pub(crate) type Keep = Box<dyn Fn(Vec<u8>) + Send + Sync>;

/// A pass over what there is: a file, or a whole folder.
enum AnyPass<'a> {
    File(Pass<'a>),
    Folder(FolderPass<'a>),
}

impl<'a> AnyPass<'a> {
    fn begin(opened: &mut Opened, root: &Path, found: &'a Found) -> Result<Self, Voided> {
        match found.version.folder {
            true => FolderPass::begin(root, found).map(AnyPass::Folder),
            false => Pass::begin(opened, root, found).map(AnyPass::File),
        }
    }

    /// As the version has it.
    fn ctime_ns(&self) -> i64 {
        match self {
            AnyPass::File(pass) => pass.ctime_ns(),
            AnyPass::Folder(pass) => pass.ctime_ns(),
        }
    }

    /// The witness with which a state of the hash may be kept for a later pass.
    fn change_stamp(&self) -> i64 {
        match self {
            AnyPass::File(pass) => pass.ctime_ns(),
            AnyPass::Folder(pass) => pass.change_stamp(),
        }
    }

    fn read(&self, hash: &mut RunningDigest, end: u64, take: &mut Take<'_>) -> Result<(), Ended> {
        match self {
            AnyPass::File(pass) => pass.read(hash, end, take),
            AnyPass::Folder(pass) => pass.read(hash, end, take),
        }
    }

    fn check(&self) -> Result<(), Voided> {
        match self {
            AnyPass::File(pass) => pass.check(),
            AnyPass::Folder(pass) => pass.check(),
        }
    }
}

/// What is read.
pub(super) struct Subject {
    pub(super) root: PathBuf,
    pub(super) found: Found,
    /// States of the hash in earlier passes, so that a rewind need not read everything again.
    pub(super) checkpoints: Mutex<Checkpoints>,
    pub(super) keep: Keep,
    /// Of the whole file, as the last pass that ended well read it.
    pub(super) read: Mutex<Option<Digest>>,
}

impl Subject {
    /// One pass from `offset` to the end, into `feed` until that says false.
    pub(super) fn read(
        &self,
        opened: &mut Opened,
        offset: u64,
        digest: Digest,
        feed: &mut dyn FnMut(Piece) -> bool,
        stopped: &dyn Fn() -> bool,
    ) {
        match self.pass(opened, offset, digest, feed, stopped) {
            Ok(digest) => {
                *self.read.lock().unpoisoned() = Some(digest);
                feed(Piece::End { digest });
            }
            Err(Ended::Void(why)) => {
                feed(Piece::Void(why));
            }
            Err(Ended::Stopped) => {}
        }
    }

    fn pass(
        &self,
        opened: &mut Opened,
        offset: u64,
        digest: Digest,
        feed: &mut dyn FnMut(Piece) -> bool,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Digest, Ended> {
        let Self { root, found, .. } = self;
        let size = found.version.size;
        if offset > size {
            return Err(Ended::Void(Voided::PrefixDiffers));
        }
        let pass = AnyPass::begin(opened, root, found)?;
        let mut hash = self.checkpoints().best(pass.change_stamp(), offset);
        pass.read(&mut hash, offset, &mut |_, _, hash| {
            self.note(pass.change_stamp(), hash);
            !stopped()
        })?;
        if offset > 0 && hash.value() != digest && !failpoints::mutant("S3-prefix") {
            return Err(Ended::Void(Voided::PrefixDiffers));
        }
        pass.read(&mut hash, size, &mut |offset, bytes, hash| {
            self.note(pass.change_stamp(), hash);
            let bytes = failpoints::bad_read(offset, bytes);
            let digest = hash.value();
            feed(Piece::Chunk {
                offset,
                bytes,
                digest,
            })
        })?;
        pass.check()?;
        Ok(hash.value())
    }

    fn note(&self, ctime_ns: i64, hash: &RunningDigest) {
        let mut checkpoints = self.checkpoints();
        if checkpoints.note(ctime_ns, hash) {
            (self.keep)(checkpoints.to_bytes());
        }
    }

    pub(super) fn checkpoints(&self) -> std::sync::MutexGuard<'_, Checkpoints> {
        self.checkpoints.lock().unpoisoned()
    }
}

/// Its digest, read under the same checks as when it is sent, and the ctime that witnesses it. Blocks for as
/// long as that takes, or until `stopped`: then it is [`Voided::Unreadable`].
pub(crate) fn digest_of(
    root: &Path,
    found: &Found,
    stopped: &dyn Fn() -> bool,
) -> Result<(Digest, i64), Voided> {
    let pass = AnyPass::begin(&mut Opened::default(), root, found)?;
    let mut hash = Default::default();
    match pass.read(&mut hash, found.version.size, &mut |_, _, _| !stopped()) {
        Ok(()) => {}
        Err(Ended::Void(why)) => return Err(why),
        Err(Ended::Stopped) => return Err(Voided::Unreadable("the agent ends".into())),
    }
    pass.check()?;
    Ok((hash.value(), pass.ctime_ns()))
}
