//! What is trusted on which file system, and why: the one table that every room asks.
//!
//! A file system is trusted with an answer only where that answer is known to hold. Everything that is not in the table
//! (FUSE, network and stacked file systems, new ones) gets the slower sure way: files rest for `quiet`, and bytes decide.

use std::{
    fs::{File, FileTimes},
    io,
    time::{Duration, SystemTime},
};

use cap_std::fs::Dir;

use crate::{failpoints, poison::Unpoisoned as _};

/// What a file system can be trusted to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSystem {
    /// As people call it; "unknown" where it is not in the table.
    pub name: &'static str,
    /// This kernel sees every writer of a file, so a read lease proves that nobody writes. Not so where others reach the
    /// bytes past this mount: on a server, through a lower layer, or in the program behind a FUSE mount.
    pub sees_writers: bool,
    /// A file keeps its inode number as long as it exists, over mounts too, so the number tells one file from another.
    pub lasting_inodes: bool,
    /// Native events tell of every change in a folder, whoever makes it.
    pub tells_changes: bool,
    /// One `syncfs` reports every write error, so that it can stand for many syncs (Linux 5.8 or later; earlier kernels
    /// lose the error).
    pub syncfs_reports: bool,
}

const UNKNOWN: FileSystem = FileSystem {
    name: "unknown",
    sees_writers: false,
    lasting_inodes: false,
    tells_changes: false,
    syncfs_reports: false,
};

/// For so long may a file's size and times come from a cache: one second on FUSE and SMB, three on NFS.
const ATTRIBUTES_CACHED: Duration = Duration::from_secs(3);

/// A caution of an outbox in which such files were met.
pub const OTHERS: &str = "files of other users lie here, and the system does not tell this user who writes to them: \
                          they are sent once they have rested for `quiet`; run the agent as their owner or with CAP_LEASE";

/// Nothing is trusted: for where it cannot be asked.
impl Default for FileSystem {
    fn default() -> Self {
        UNKNOWN
    }
}

impl FileSystem {
    /// The file system that the open `file` is on.
    pub fn of(file: &File) -> io::Result<Self> {
        pretended().map_or_else(|| system::of(file), Ok)
    }

    /// The one that the open `folder` is on.
    pub fn of_folder(folder: &Dir) -> io::Result<Self> {
        pretended().map_or_else(|| system::of(folder), Ok)
    }

    /// The one with this `device` number, for whoever asks about many files: the system is asked (`ask`) once a second.
    /// Where that fails, nothing is trusted.
    pub fn on(device: u64, ask: impl FnOnce() -> io::Result<Self>) -> Self {
        pretended().unwrap_or_else(|| system::on(device, ask))
    }

    /// A file has to rest at least so long before it counts as written, where that is not known otherwise.
    pub fn least_rest(&self) -> Duration {
        match self.tells_changes {
            true => Duration::ZERO,
            false => ATTRIBUTES_CACHED,
        }
    }

    /// Files may have other device numbers than the folders that they lie in: overlays of several disks.
    pub fn spreads_devices(&self) -> bool {
        self.name == "overlay"
    }

    /// A file that is made longer keeps a hole there, which costs nothing to make, and what is not written yet takes no
    /// space. FAT fills it with zeros.
    pub fn keeps_holes(&self) -> bool {
        matches!(
            self.name,
            "ext4" | "xfs" | "btrfs" | "f2fs" | "bcachefs" | "tmpfs"
        )
    }

    /// An open file tells of itself, and not of what has its name by now: behind FUSE and network mounts it may be
    /// asked for by its path.
    pub fn tells_of_open_files(&self) -> bool {
        self.sees_writers || self.name == "overlay" || failpoints::mutant("R7-open-files")
    }

    /// What is not trusted here, a sentence each; empty where everything is.
    pub fn cautions(&self) -> Vec<&'static str> {
        let cautions = [
            (
                self.sees_writers,
                "this system cannot see every writer here, so files rest for `quiet` before they are sent",
            ),
            (
                self.lasting_inodes,
                "inode numbers do not last here, so files are told apart by path, size, time and content",
            ),
        ];
        let untrusted = cautions.into_iter().filter(|(trusted, _)| !trusted);
        untrusted.map(|(_, text)| text).collect()
    }
}

/// What is read of `file` next comes from where it is kept, not from this machine's cache: on FUSE mounts with
/// `kernel_cache` that outlives changes of size and times.
pub fn read_anew(file: &File) {
    #[cfg(target_os = "linux")]
    if !failpoints::mutant("S3-cached") {
        // Refused, the cache stays as it is: no worse than without asking.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Sets the time of the last change, and that of the last reading to now: where a FUSE program was built with the older
/// libfuse (bindfs and sshfs of many systems), one without the other is said to be set and is not.
pub fn set_modified(file: &File, time: SystemTime) -> io::Result<()> {
    let times = FileTimes::new().set_modified(time);
    file.set_times(match failpoints::mutant("R5-both-times") {
        true => times,
        false => times.set_accessed(SystemTime::now()),
    })
}

#[cfg(not(test))]
fn pretended() -> Option<FileSystem> {
    None
}

#[cfg(test)]
pub use pretence::{Pretence, TRUSTED, pretend, pretended};

/// Lets a test see how files fare on a file system that it cannot mount.
#[cfg(test)]
mod pretence {
    use std::cell::Cell;

    use super::*;

    thread_local!(static PRETENDED: Cell<Option<FileSystem>> = const { Cell::new(None) });

    /// What is pretended on this thread.
    pub fn pretended() -> Option<FileSystem> {
        PRETENDED.get()
    }

    /// A disk of this machine: for tests of something else, wherever the temporary folder is.
    pub const TRUSTED: FileSystem = FileSystem {
        name: "trusted",
        sees_writers: true,
        lasting_inodes: true,
        tells_changes: true,
        syncfs_reports: false,
    };

    /// It ends with this.
    #[must_use]
    pub struct Pretence(Option<FileSystem>);

    impl Drop for Pretence {
        fn drop(&mut self) {
            PRETENDED.set(self.0);
        }
    }

    /// Whatever this thread asks about, it is told this, as long as the answer lives. By itself, nothing is trusted.
    pub fn pretend(on: FileSystem) -> Pretence {
        Pretence(PRETENDED.replace(Some(on)))
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::{os::fd::AsFd, sync::Mutex, time::Instant};

    use super::*;

    /// Name, magic number of statfs(2), sees writers, lasting inodes, tells changes, syncfs reports.
    type Row = (&'static str, u32, bool, bool, bool, bool);

    /// Disks of this machine, and its memory: the kernel itself keeps their files and sees all who open them.
    /// FAT and exFAT keep no inode numbers, so the kernel makes them up for as long as it remembers the file.
    /// On a server or in a layer below (NFS, SMB, 9p, Ceph, FUSE, overlay, eCryptfs) others write unseen. Events come for
    /// what is written through an overlay or eCryptfs itself, which is how both are used.
    /// `syncfs` was seen to report errors on ext4, xfs and btrfs only.
    const TABLE: &[Row] = &[
        ("ext4", 0xEF53, true, true, true, true), // ext2 and ext3 have the same number
        ("xfs", 0x5846_5342, true, true, true, true),
        ("btrfs", 0x9123_683E, true, true, true, true),
        ("f2fs", 0xF2F5_2010, true, true, true, false),
        ("zfs", 0x2FC1_2FC1, true, true, true, false),
        ("bcachefs", 0xCA45_1A4E, true, true, true, false),
        ("jfs", 0x3153_464A, true, true, true, false),
        ("tmpfs", 0x0102_1994, true, true, true, false),
        ("ramfs", 0x8584_58F6, true, true, true, false),
        ("fat", 0x4D44, true, false, true, false),
        ("exfat", 0x2011_BAB0, true, false, true, false),
        ("ntfs3", 0x7366_746E, true, false, true, false),
        ("nfs", 0x6969, false, true, false, false),
        ("ecryptfs", 0xF15F, false, true, true, false),
        ("fuse", 0x6573_5546, false, false, false, false),
        ("overlay", 0x794C_7630, false, false, true, false),
        ("smb", 0x517B, false, false, false, false),
        ("smb", 0xFE53_4D42, false, false, false, false),
        ("smb", 0xFF53_4D42, false, false, false, false),
        ("9p", 0x0102_1997, false, false, false, false),
        ("ceph", 0x00C3_6400, false, false, false, false),
    ];

    pub(super) fn of(open: impl AsFd) -> io::Result<FileSystem> {
        Ok(known(rustix::fs::fstatfs(open)?.f_type as u32)) // the magic number has 32 bits
    }

    /// An answer is believed for so long: a device's number is free for another file system once it is unmounted.
    const BELIEVED: Duration = Duration::from_secs(1);
    /// Most answers that are kept.
    const KEPT: usize = 64;

    static ANSWERS: Mutex<Vec<(u64, Instant, FileSystem)>> = Mutex::new(Vec::new());

    pub(super) fn on(device: u64, ask: impl FnOnce() -> io::Result<FileSystem>) -> FileSystem {
        let now = Instant::now();
        let answers = || ANSWERS.lock().unpoisoned();
        let is_young = |asked: &Instant| now.saturating_duration_since(*asked) < BELIEVED;
        let known = answers().iter().find(|(of, ..)| *of == device).copied();
        if let Some((_, asked, file_system)) = known
            && is_young(&asked)
        {
            return file_system;
        }
        let Ok(file_system) = ask() else {
            return UNKNOWN;
        };
        let mut answers = answers();
        answers.retain(|(of, asked, _)| *of != device && is_young(asked));
        if answers.len() < KEPT {
            answers.push((device, now, file_system));
        }
        file_system
    }

    fn known(magic: u32) -> FileSystem {
        let row = TABLE.iter().find(|(_, number, ..)| *number == magic);
        row.map_or(
            UNKNOWN,
            |&(name, _, sees_writers, lasting_inodes, tells_changes, syncfs)| FileSystem {
                name,
                sees_writers,
                lasting_inodes,
                tells_changes,
                syncfs_reports: syncfs && kernel_reports_errors(),
            },
        )
    }

    fn kernel_reports_errors() -> bool {
        static REPORTS: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            let mut numbers = release
                .split(['.', '-'])
                .map_while(|n| n.trim().parse::<u32>().ok());
            (numbers.next(), numbers.next()) >= (Some(5), Some(8))
        });
        *REPORTS
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_what_is_known_is_trusted() {
            for magic in [0x6573_5546, 0x794C_7630, 0x517B, 0x0102_1997, 0x1234_5678] {
                let file_system = known(magic);
                assert!(
                    !file_system.sees_writers && !file_system.lasting_inodes && !file_system.syncfs_reports
                );
                assert_eq!(file_system.cautions().len(), 2, "{}", file_system.name);
            }
            assert!(known(0xEF53).cautions().is_empty());
            assert!(known(0x4D44).sees_writers && !known(0x4D44).lasting_inodes);
        }

        #[test]
        fn the_system_is_asked_once_a_second_for_each_device() {
            let (device, mut asked) = (u64::MAX, 0);
            let mut ask = |device| {
                on(device, || {
                    asked += 1;
                    Ok(known(0xEF53))
                })
            };
            let first = Instant::now();
            assert_eq!(ask(device).name, "ext4");
            while first.elapsed() < BELIEVED / 2 {
                ask(device);
            }
            ask(device - 1);
            let seconds = 1 + first.elapsed().as_secs();
            assert!((2..=1 + seconds).contains(&asked), "{asked} times in {seconds} s");
            let failed = on(device - 2, || Err(io::ErrorKind::Other.into()));
            assert_eq!(failed, UNKNOWN);
        }

        #[test]
        fn a_number_stands_once() {
            let numbers: std::collections::BTreeSet<u32> = TABLE.iter().map(|row| row.1).collect();
            assert_eq!(numbers.len(), TABLE.len());
        }
    }
}

/// Files' numbers last on the systems' own disks (APFS, NTFS), and nobody writes past them; leases there are none.
#[cfg(not(target_os = "linux"))]
mod system {
    use super::*;

    const OWN_DISK: FileSystem = FileSystem {
        sees_writers: true,
        lasting_inodes: true,
        tells_changes: true,
        ..UNKNOWN
    };

    pub(super) fn of<T>(_: &T) -> io::Result<FileSystem> {
        Ok(OWN_DISK)
    }

    pub(super) fn on(_: u64, _: impl FnOnce() -> io::Result<FileSystem>) -> FileSystem {
        OWN_DISK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_times_are_set_together() {
        let file = tempfile::tempfile().unwrap();
        let (old, older) = (at(1_000_000_000), at(500_000_000));
        file.set_times(FileTimes::new().set_accessed(older).set_modified(older))
            .unwrap();
        set_modified(&file, old).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.modified().unwrap(), old);
        assert!(meta.accessed().unwrap() > old);
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }
}
