//! What is trusted on which file system, and why: the one table that every room asks.
//!
//! A file system is trusted with an answer only where that answer is known to hold. Everything that is not in the table
//! (FUSE, network and stacked file systems, new ones) gets the slower sure way: files rest for `quiet`, and bytes decide.

use std::{fs::File, io};

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
    /// One `syncfs` reports every write error, so that it can stand for many syncs (Linux 5.8 or later; earlier kernels
    /// lose the error).
    pub syncfs_reports: bool,
}

const UNKNOWN: FileSystem = FileSystem {
    name: "unknown",
    sees_writers: false,
    lasting_inodes: false,
    syncfs_reports: false,
};

impl FileSystem {
    /// The file system that the open `file` or folder is on.
    pub fn of(file: &File) -> io::Result<FileSystem> {
        system::of(file)
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

#[cfg(target_os = "linux")]
mod system {
    use super::*;

    /// Name, magic number of statfs(2), sees writers, lasting inodes, syncfs reports.
    type Row = (&'static str, u32, bool, bool, bool);

    /// Disks of this machine, and its memory: the kernel itself keeps their files and sees all who open them.
    /// FAT and exFAT keep no inode numbers, so the kernel makes them up for as long as it remembers the file.
    /// On a server or in a layer below (NFS, SMB, 9p, Ceph, FUSE, overlay, eCryptfs) others write unseen.
    /// `syncfs` was seen to report errors on ext4, xfs and btrfs only.
    const TABLE: &[Row] = &[
        ("ext4", 0xEF53, true, true, true), // ext2 and ext3 have the same number
        ("xfs", 0x5846_5342, true, true, true),
        ("btrfs", 0x9123_683E, true, true, true),
        ("f2fs", 0xF2F5_2010, true, true, false),
        ("zfs", 0x2FC1_2FC1, true, true, false),
        ("bcachefs", 0xCA45_1A4E, true, true, false),
        ("jfs", 0x3153_464A, true, true, false),
        ("tmpfs", 0x0102_1994, true, true, false),
        ("ramfs", 0x8584_58F6, true, true, false),
        ("fat", 0x4D44, true, false, false),
        ("exfat", 0x2011_BAB0, true, false, false),
        ("ntfs3", 0x7366_746E, true, false, false),
        ("nfs", 0x6969, false, true, false),
        ("ecryptfs", 0xF15F, false, true, false),
        ("fuse", 0x6573_5546, false, false, false),
        ("overlay", 0x794C_7630, false, false, false),
        ("smb", 0x517B, false, false, false),
        ("smb", 0xFE53_4D42, false, false, false),
        ("smb", 0xFF53_4D42, false, false, false),
        ("9p", 0x0102_1997, false, false, false),
        ("ceph", 0x00C3_6400, false, false, false),
    ];

    pub(super) fn of(file: &File) -> io::Result<FileSystem> {
        Ok(known(rustix::fs::fstatfs(file)?.f_type as u32)) // the magic number has 32 bits
    }

    fn known(magic: u32) -> FileSystem {
        let row = TABLE.iter().find(|(_, number, ..)| *number == magic);
        row.map_or(UNKNOWN, |&(name, _, sees_writers, lasting_inodes, syncfs)| {
            FileSystem {
                name,
                sees_writers,
                lasting_inodes,
                syncfs_reports: syncfs && kernel_reports_errors(),
            }
        })
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
        fn a_number_stands_once() {
            let numbers: std::collections::BTreeSet<u32> = TABLE.iter().map(|row| row.1).collect();
            assert_eq!(numbers.len(), TABLE.len());
        }
    }
}

/// No leases here, and files' numbers last on the systems' own disks (APFS, NTFS).
#[cfg(not(target_os = "linux"))]
mod system {
    use super::*;

    pub(super) fn of(_: &File) -> io::Result<FileSystem> {
        Ok(FileSystem {
            lasting_inodes: true,
            ..UNKNOWN
        })
    }
}
