//! What an error of the system means, decided in one place: every room that has to choose between waiting, giving up and
//! holding a folder asks [`meaning`].
//!
//! The meaning does not depend on the call that failed, with one exception: only a sync that was *asked of the disk*
//! and failed can have lost what was written before. [`crate::fs::durable`] wraps exactly those errors in
//! [`LostWrite`]; an error from opening the file or folder that was to be synced asked nothing of the disk and is never
//! wrapped.

use std::{fmt, io};

use crate::failpoints;

/// What an error of the system means for the work that met it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// The disk lost something that it was told to keep: fatal for the folder until a restart, since asking again would
    /// be answered with success.
    Lost,
    /// It cannot be done now: wait, say what for, and try again.
    NotNow(Wait),
    /// It can never be done like this (a name, a limit, a call that the file system does not have): final, with the
    /// reason.
    Never,
    /// What was meant is not there any more, or something else is there: somebody else's doing, nothing to wait for.
    NotOurs,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Free space, or room in a quota.
    Space,
    /// Descriptors, memory, processes, locks: a shortage of this machine that passes.
    Shortage,
    /// Somebody else who uses it.
    Busy,
    /// Rights, or a file system that is mounted read-only.
    Access,
    /// A disk, a server or a FUSE program that does not answer, or whose answer was an error; also every error that is
    /// not known here.
    Device,
}

/// A sync that was asked of the disk failed: what was written since the last good one may be gone.
#[derive(Debug)]
pub struct LostWrite(io::Error);

impl LostWrite {
    /// Wraps the error of a sync, for [`meaning`] to know it again. `EINTR` and shortages of memory included: whether the
    /// kernel reports the loss a second time is not defined.
    pub fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Self(error))
    }
}

impl fmt::Display for LostWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for LostWrite {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// What `error` means.
pub fn meaning(error: &io::Error) -> Meaning {
    use io::ErrorKind as K;
    if error.get_ref().is_some_and(|source| source.is::<LostWrite>()) {
        return Meaning::Lost;
    }
    if let Some(meaning) = error.raw_os_error().and_then(system::by_code) {
        return meaning;
    }
    match error.kind() {
        K::StorageFull | K::QuotaExceeded => Meaning::NotNow(Wait::Space),
        K::OutOfMemory | K::Interrupted => Meaning::NotNow(Wait::Shortage),
        K::WouldBlock | K::ResourceBusy | K::ExecutableFileBusy | K::Deadlock => Meaning::NotNow(Wait::Busy),
        K::PermissionDenied | K::ReadOnlyFilesystem => Meaning::NotNow(Wait::Access),
        K::InvalidFilename
        | K::InvalidInput
        | K::FileTooLarge
        | K::TooManyLinks
        | K::CrossesDevices
        | K::Unsupported => Meaning::Never,
        K::NotFound
        | K::NotADirectory
        | K::IsADirectory
        | K::AlreadyExists
        | K::DirectoryNotEmpty
        | K::StaleNetworkFileHandle => Meaning::NotOurs,
        _ => Meaning::NotNow(Wait::Device),
    }
}

/// Is it for want of descriptors, memory or the like? Nothing may be concluded from that, and it passes.
pub fn is_shortage(error: &io::Error) -> bool {
    meaning(error) == Meaning::NotNow(Wait::Shortage) && !failpoints::mutant("shortage")
}

/// Was it read, and found to be nothing that we wrote? No error of the system: that says nothing of what was written.
pub fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none() && error.kind() == io::ErrorKind::InvalidData
}

/// Was there no room for it? Also of a sync that failed for that reason, which is [`Meaning::Lost`].
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// What a start waits for: room, or a shortage. All else (rights, a lock, a broken disk) ends it, so that somebody looks.
pub fn passes(error: &io::Error) -> Option<Wait> {
    match is_full(error) {
        true => Some(Wait::Space),
        false => is_shortage(error).then_some(Wait::Shortage),
    }
}

/// Is it the name that the file system refuses? Only of an error of the call that was to make it.
pub fn blames_the_name(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    meaning(error) == Meaning::Never
        && !matches!(
            error.kind(),
            K::FileTooLarge | K::TooManyLinks | K::CrossesDevices | K::Unsupported
        )
}

/// A copy of `error` with its meaning, for each of those that share a failed step.
pub fn copy(error: &io::Error) -> io::Error {
    match meaning(error) {
        Meaning::Lost => LostWrite::wrap(io::Error::new(error.kind(), error.to_string())),
        _ => match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        },
    }
}

#[cfg(unix)]
mod system {
    use super::{Meaning, Wait};

    /// Codes that have no [`std::io::ErrorKind`] of their own.
    pub(super) fn by_code(code: i32) -> Option<Meaning> {
        match code {
            libc::EMFILE | libc::ENFILE | libc::ENOLCK | libc::ENOBUFS => {
                Some(Meaning::NotNow(Wait::Shortage))
            }
            // A name that the file system's own character set cannot hold.
            libc::EILSEQ => Some(Meaning::Never),
            // A symbolic link where a file or folder of ours was.
            libc::ELOOP => Some(Meaning::NotOurs),
            _ => None,
        }
    }
}

#[cfg(not(unix))]
mod system {
    use super::{Meaning, Wait};

    pub(super) fn by_code(code: i32) -> Option<Meaning> {
        const TOO_MANY_OPEN_FILES: i32 = 4;
        const SHARING_VIOLATION: i32 = 32;
        const LOCK_VIOLATION: i32 = 33;
        const INVALID_NAME: i32 = 123;
        match code {
            TOO_MANY_OPEN_FILES => Some(Meaning::NotNow(Wait::Shortage)),
            SHARING_VIOLATION | LOCK_VIOLATION => Some(Meaning::NotNow(Wait::Busy)),
            INVALID_NAME => Some(Meaning::Never),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_name_is_to_blame_for_few_errors() {
        let blamed = |code: &i32| blames_the_name(&io::Error::from_raw_os_error(*code));
        assert!(
            [libc::EINVAL, libc::EILSEQ, libc::ENAMETOOLONG]
                .iter()
                .all(blamed)
        );
        let others = [
            libc::EXDEV,
            libc::EMLINK,
            libc::ENOTSUP,
            libc::ENOENT,
            libc::ENOSPC,
            libc::EIO,
        ];
        assert!(!others.iter().any(blamed));
    }

    #[cfg(unix)]
    #[test]
    fn every_error_has_one_meaning() {
        use Meaning::*;
        let table = [
            (libc::ENOSPC, NotNow(Wait::Space)),
            (libc::EDQUOT, NotNow(Wait::Space)),
            (libc::EMFILE, NotNow(Wait::Shortage)),
            (libc::ENFILE, NotNow(Wait::Shortage)),
            (libc::ENOMEM, NotNow(Wait::Shortage)),
            (libc::EINTR, NotNow(Wait::Shortage)),
            (libc::ENOLCK, NotNow(Wait::Shortage)),
            (libc::EAGAIN, NotNow(Wait::Busy)),
            (libc::EBUSY, NotNow(Wait::Busy)),
            (libc::ETXTBSY, NotNow(Wait::Busy)),
            (libc::EACCES, NotNow(Wait::Access)),
            (libc::EPERM, NotNow(Wait::Access)),
            (libc::EROFS, NotNow(Wait::Access)),
            (libc::EIO, NotNow(Wait::Device)),
            (libc::ENXIO, NotNow(Wait::Device)),
            (libc::ENOTCONN, NotNow(Wait::Device)),
            (libc::ETIMEDOUT, NotNow(Wait::Device)),
            (libc::ENAMETOOLONG, Never),
            (libc::EINVAL, Never),
            (libc::EILSEQ, Never),
            (libc::EFBIG, Never),
            (libc::EMLINK, Never),
            (libc::EXDEV, Never),
            (libc::ENOTSUP, Never),
            (libc::ENOSYS, Never),
            (libc::ENOENT, NotOurs),
            (libc::ENOTDIR, NotOurs),
            (libc::EISDIR, NotOurs),
            (libc::EEXIST, NotOurs),
            (libc::ENOTEMPTY, NotOurs),
            (libc::ESTALE, NotOurs),
            (libc::ELOOP, NotOurs),
        ];
        for (code, expected) in table {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(meaning(&error), expected, "{error}");
            assert_eq!(meaning(&copy(&error)), expected, "a copy of: {error}");
            let lost = LostWrite::wrap(error);
            assert_eq!(meaning(&lost), Lost, "{lost}");
            assert_eq!(meaning(&copy(&lost)), Lost, "a copy of: {lost}");
        }
    }
}
