//! Room on the disk: what stays free, and what open transfers have been promised.

use std::{
    fs::File,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use dropwire_protocol::message::DeclineReason;

/// Promises of room.
pub struct Space {
    min_free: AtomicU64,
    promised: Mutex<u64>,
}

/// Room promised to one transfer; given back when dropped.
pub struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Space {
    /// `min_free` bytes always stay free.
    pub fn new(min_free: u64) -> Arc<Space> {
        Arc::new(Space {
            min_free: min_free.into(),
            promised: Mutex::new(0),
        })
    }

    /// So many stay free from now on; promises made are kept.
    pub fn set_min_free(&self, min_free: u64) {
        self.min_free.store(min_free, Ordering::Relaxed);
    }

    /// Promises `bytes` out of `free`, or says how many are missing.
    pub fn reserve(self: &Arc<Self>, bytes: u64, free: u64) -> Result<Reservation, u64> {
        let mut promised = self.lock();
        let min_free = self.min_free.load(Ordering::Relaxed);
        let wanted = promised.saturating_add(bytes).saturating_add(min_free);
        if wanted > free {
            return Err(wanted - free);
        }
        *promised += bytes;
        Ok(Reservation {
            space: self.clone(),
            bytes,
        })
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// So many bytes of it are on the disk now and no longer free.
    pub fn used(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        *self.space.lock() -= bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.used(self.bytes);
    }
}

/// Bytes free for us on the file system of `file`. Where the system has no such call here, "enough": then only a
/// full disk says no.
pub fn free(file: &File) -> io::Result<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::fstatvfs(file)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        Ok(u64::MAX)
    }
}

/// How a failed file operation is told to the sender, with the milliseconds after which asking again makes sense.
pub fn decline(error: &io::Error) -> (DeclineReason, Option<u64>) {
    use io::ErrorKind as K;
    match error.kind() {
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => (DeclineReason::NoSpace, Some(60_000)),
        K::ReadOnlyFilesystem
        | K::PermissionDenied
        | K::NotFound
        | K::NotADirectory
        | K::CrossesDevices
        | K::StaleNetworkFileHandle => (DeclineReason::InboxUnavailable, Some(30_000)),
        K::InvalidFilename => (DeclineReason::BadName, None),
        K::OutOfMemory => (DeclineReason::Busy, Some(5_000)),
        _ if is_out_of_descriptors(error) => (DeclineReason::Busy, Some(5_000)),
        _ => (DeclineReason::DiskError, None),
    }
}

/// A file-size limit must be an error (EFBIG), not the signal that kills.
pub fn survive_file_size_limit() {
    #[cfg(unix)]
    // SAFETY: SIG_IGN is no handler, so nothing of ours runs in signal context.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
    }
    #[cfg(not(unix))]
    {
        let _ = error;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_add_up_and_end() {
        let space = Space::new(100);
        let mut a = space.reserve(500, 1000).unwrap();
        assert_eq!(space.reserve(401, 1000).err(), Some(1));
        let b = space.reserve(400, 1000).unwrap();
        a.used(300);
        drop(b);
        assert_eq!(*space.lock(), 200);
        a.used(u64::MAX);
        drop(a);
        assert_eq!(*space.lock(), 0);
        assert!(space.reserve(u64::MAX, 1000).is_err());
        space.set_min_free(600);
        assert_eq!(space.reserve(500, 1000).err(), Some(100));
    }

    #[cfg(unix)]
    #[test]
    fn errors_are_told_by_their_kind() {
        use DeclineReason::*;
        let table = [
            (libc::ENOSPC, NoSpace),
            (libc::EDQUOT, NoSpace),
            (libc::EFBIG, NoSpace),
            (libc::EROFS, InboxUnavailable),
            (libc::EACCES, InboxUnavailable),
            (libc::EXDEV, InboxUnavailable),
            (libc::ENAMETOOLONG, BadName),
            (libc::EMFILE, Busy),
            (libc::EIO, DiskError),
        ];
        for (code, reason) in table {
            assert_eq!(decline(&io::Error::from_raw_os_error(code)).0, reason, "{code}");
        }
    }
}
