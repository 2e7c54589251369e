//! btrfs snapshots: folders that show an earlier state of another subvolume once more.

use cap_std::fs::Dir;

/// Why what [`is_one`] is not sent.
pub const REASON: &str = "it is a btrfs snapshot, a second view of files that are sent from where they are: not \
                          entered; copy what you mean to send into an ordinary folder";

/// Is this folder a btrfs snapshot? What is in one is no new file.
pub fn is_one(folder: &Dir) -> bool {
    system::is_one(folder).unwrap_or(false)
}

#[cfg(target_os = "linux")]
mod system {
    use std::{fs::File, io, os::fd::AsRawFd};

    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::fs::file_system::FileSystem;

    /// The top of each btrfs subvolume has this number.
    const SUBVOLUME_INODE: u64 = 256;

    pub(super) fn is_one(folder: &Dir) -> io::Result<bool> {
        if cap_std::fs::MetadataExt::ino(&folder.dir_metadata()?) != SUBVOLUME_INODE {
            return Ok(false);
        }
        // A `Dir` may be a handle that answers no ioctl.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = File::from(rustix::fs::openat(folder, ".", flags, Mode::empty())?);
        Ok(FileSystem::of(&folder)?.name == "btrfs" && parent_of(&folder)? != [0; 16])
    }

    /// The UUID of the subvolume that this one was made a snapshot of; zeros: of none.
    fn parent_of(subvolume: &File) -> io::Result<[u8; 16]> {
        /// `struct btrfs_ioctl_get_subvol_info_args`, around the one field that is used.
        #[repr(C, align(8))]
        struct SubvolumeInfo {
            before: [u8; 312],
            parent: [u8; 16],
            after: [u8; 176],
        }
        const BTRFS_IOC_GET_SUBVOL_INFO: libc::c_ulong = 0x81F8_943C; // _IOR(0x94, 60, 504 bytes)
        let mut info = SubvolumeInfo {
            before: [0; 312],
            parent: [0; 16],
            after: [0; 176],
        };
        // SAFETY: the call writes at most the 504 bytes that its number announces, which `info` has.
        let answer = unsafe {
            libc::ioctl(
                subvolume.as_raw_fd(),
                BTRFS_IOC_GET_SUBVOL_INFO as _,
                &raw mut info,
            )
        };
        let _ = (info.before, info.after);
        // Some kernels answer 1 where all went well.
        match answer {
            0.. => Ok(info.parent),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    use super::*;

    pub(super) fn is_one(_: &Dir) -> io::Result<bool> {
        Ok(false)
    }
}
