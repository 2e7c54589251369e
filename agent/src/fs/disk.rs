//! How much room there is on a disk: asked in one place.

use std::io;

#[cfg(unix)]
use std::os::fd::AsFd as Open;

/// Anything that is open.
#[cfg(not(unix))]
trait Open {}
#[cfg(not(unix))]
impl<T> Open for T {}

/// At most so many bytes stay free where the config says nothing...
const MIN_FREE: u64 = 1 << 30;
/// ...and at most this part of the disk.
const MIN_FREE_PART: u64 = 20;
/// This part of the inodes stays free...
const INODES_PART: u64 = 20;
/// ...and at most so many.
const MOST_INODES: u64 = 100_000;

/// The disk that something is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Its device number.
    pub device: u64,
    /// Bytes free for us.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
    /// None where the file system has no fixed number of them (btrfs), or does not tell.
    pub inodes: Option<Inodes>,
}

/// How many files and folders a file system can still hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inodes {
    /// Not in use.
    pub free: u64,
    /// In all.
    pub all: u64,
}

impl Inodes {
    /// Are there only so many that they stay for others? A twentieth does: files without bytes, or folders in folders,
    /// cost next to nothing on the wire.
    pub fn are_short(&self) -> bool {
        self.free < (self.all / INODES_PART).min(MOST_INODES) && !crate::failpoints::mutant("inode-share")
    }
}

impl Disk {
    /// The disk that an `open` file or folder is on; None where its file system does not tell (0 of 0 blocks, as on ramfs
    /// and some FUSE) or there is no such call: then only a full disk says no.
    #[cfg_attr(not(unix), expect(private_bounds, reason = "anything is open there"))]
    pub fn of(open: &impl Open) -> io::Result<Option<Self>> {
        #[cfg(unix)]
        {
            let stat = rustix::fs::fstatvfs(open)?;
            let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
            let inodes = (stat.f_files > 0).then_some(Inodes {
                free: stat.f_favail,
                all: stat.f_files,
            });
            let disk = Self::told(bytes(stat.f_bavail), bytes(stat.f_blocks));
            let device = rustix::fs::fstat(open)?.st_dev as _; // i32 on some systems
            Ok(disk.map(|disk| Self {
                device,
                inodes,
                ..disk
            }))
        }
        #[cfg(not(unix))]
        {
            let _ = open;
            Ok(None)
        }
    }

    #[cfg(unix)]
    fn told(free: u64, size: u64) -> Option<Self> {
        (size > 0 || crate::failpoints::mutant("no-space-told")).then_some(Self {
            device: 0,
            free,
            size,
            inodes: None,
        })
    }

    /// Bytes that stay free: as `configured`, else the smaller of 1 GiB and a twentieth of the disk.
    pub fn min_free(&self, configured: Option<u64>) -> u64 {
        configured.unwrap_or_else(|| MIN_FREE.min(self.size / MIN_FREE_PART))
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_not_taken_for_full() {
        assert_eq!(Disk::told(0, 0), None);
        assert_eq!(Disk::told(0, 5).map(|disk| disk.size), Some(5), "a full one");
    }

    #[test]
    fn what_stays_free_is_a_part_of_a_small_disk() {
        let kept = |size: u64, configured| Disk::told(0, size).unwrap().min_free(configured);
        assert_eq!(kept(500 << 20, None), 25 << 20);
        assert_eq!(kept(1 << 40, None), 1 << 30);
        for configured in [0, 10 << 30] {
            assert_eq!(kept(500 << 20, Some(configured)), configured);
        }
    }
}
