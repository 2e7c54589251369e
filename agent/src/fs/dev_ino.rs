//! Device and inode number, by which the kernel tells one file from another.

/// Device and inode number of a file or folder. Two names with equal ones are names of one file, as long as that is
/// there; afterwards another file may get the number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DevIno {
    /// The device that the file is on.
    pub device: u64,
    /// The file's number there.
    pub inode: u64,
}

impl DevIno {
    /// Those of a file; None where the standard library does not know them (elsewhere than on Unix).
    pub fn of(meta: &std::fs::Metadata) -> Option<Self> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            Some(Self {
                device: meta.dev(),
                inode: meta.ino(),
            })
        }
        #[cfg(not(unix))]
        {
            let _ = meta;
            None
        }
    }

    /// Those of a file that was found through a handle.
    pub fn of_found(meta: &cap_std::fs::Metadata) -> Self {
        use cap_fs_ext::MetadataExt as _;
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}
