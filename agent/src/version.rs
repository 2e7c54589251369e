//! The version of a file or a whole folder: what tells one drop from the next, without reading the bytes.

use std::{
    fs::Metadata,
    time::{Duration, SystemTime},
};

use dropwire_protocol::{Mtime, RemotePath};

/// Path aside, what identifies a version: inode, birth time, size, mtime. No device number: it changes at a mount.
///
/// ctime is only a witness: where it alone differs (chmod, a link made), the bytes decide.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Version {
    /// Inode (file index on Windows).
    pub inode: u64,
    /// Nanoseconds since 1970; 0 where the file system keeps none.
    pub birth_ns: i64,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Nanoseconds since 1970; not part of the identity.
    pub ctime_ns: i64,
    /// A whole folder's ([`crate::bundle`]): then inode, birth and mtime hold a digest of what lies in it, `size` is its
    /// stream's, and ctime the newest in it.
    pub folder: bool,
}

impl Version {
    /// From an open file's metadata (never from a path: it may be swapped).
    pub fn of(meta: &Metadata) -> Version {
        #[cfg(unix)]
        let (inode, ctime) = {
            use std::os::unix::fs::MetadataExt;
            (meta.ino(), (meta.ctime(), meta.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let (inode, ctime) = (0, (0, 0));
        Version::new(
            inode,
            meta.len(),
            meta.created().ok(),
            meta.modified().ok(),
            ctime,
        )
    }

    /// The same version, ctime aside?
    pub fn same_identity(&self, other: &Version) -> bool {
        self.folder == other.folder && self.identity_bytes() == other.identity_bytes()
    }

    /// What goes into the transfer's id: everything but ctime, in a fixed layout.
    pub fn identity_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.inode.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.birth_ns.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_be_bytes());
        bytes[24..].copy_from_slice(&self.mtime_ns.to_be_bytes());
        bytes
    }

    /// The same from a confined folder's listing: good for telling what is known, and for what was just
    /// moved while it is held open; a drop's version is read from the open file.
    pub fn listed(meta: &cap_std::fs::Metadata) -> Version {
        #[cfg(unix)]
        let (inode, ctime) = {
            use cap_std::fs::MetadataExt;
            (meta.ino(), (meta.ctime(), meta.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let (inode, ctime) = (0, (0, 0));
        let std = |time: cap_std::time::SystemTime| time.into_std();
        let (created, modified) = (meta.created().ok().map(std), meta.modified().ok().map(std));
        Version::new(inode, meta.len(), created, modified, ctime)
    }

    /// What a file system does not keep is 0; `ctime` in seconds and nanoseconds.
    fn new(
        inode: u64,
        size: u64,
        created: Option<SystemTime>,
        modified: Option<SystemTime>,
        ctime: (i64, i64),
    ) -> Version {
        Version {
            inode,
            birth_ns: created.map_or(0, nanoseconds),
            size,
            mtime_ns: modified.map_or(0, nanoseconds),
            ctime_ns: ctime.0.saturating_mul(1_000_000_000).saturating_add(ctime.1),
            folder: false,
        }
    }

    /// How far apart two changes must be to show in ctime: a file system that keeps whole seconds shows no fraction.
    pub fn clock_step(&self) -> Duration {
        if self.ctime_ns % 1_000_000_000 == 0 {
            Duration::from_secs(2)
        } else {
            Duration::from_millis(20)
        }
    }

    /// Changed so recently before `now` that a further change might not show in ctime. A ctime in the future (another
    /// machine's clock) does not count as fresh.
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        let age = nanoseconds(now).saturating_sub(self.ctime_ns);
        let step = i64::try_from(self.clock_step().as_nanos()).unwrap_or(i64::MAX);
        (0..step).contains(&age)
    }

    /// The mtime as the protocol carries it.
    pub fn mtime(&self) -> Mtime {
        Mtime {
            seconds: self.mtime_ns.div_euclid(1_000_000_000),
            nanos: self.mtime_ns.rem_euclid(1_000_000_000) as u32,
        }
    }
}

/// Nanoseconds since 1970, negative before; saturates some 292 years away from it.
fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(std::time::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

/// The random id in an outbox's mark; tells one folder from another, whatever its path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct OutboxId(pub [u8; 16]);

/// A version of a file, or of a whole folder, found in an outbox.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Found {
    /// Which outbox, by its mark.
    pub outbox: OutboxId,
    /// Below the outbox.
    pub path: RemotePath,
    /// As read from the open file.
    pub version: Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_and_the_open_file_agree() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "bytes").unwrap();
        let open = std::fs::File::open(temp.path().join("file")).unwrap();
        let dir = crate::confined::root(temp.path()).unwrap();
        let listed = dir
            .entries()
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .metadata()
            .unwrap();
        assert_eq!(Version::listed(&listed), Version::of(&open.metadata().unwrap()));
    }

    #[test]
    fn fresh_means_within_the_clocks_step() {
        let at = |ns| Version {
            inode: 1,
            birth_ns: 0,
            size: 0,
            mtime_ns: 0,
            ctime_ns: ns,
            folder: false,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        for (ctime_ns, fresh) in [
            (99_999_999_999, true),
            (99_900_000_001, false),
            (99_000_000_000, true),
            (97_000_000_000, false),
            (101_000_000_001, false),
        ] {
            assert_eq!(at(ctime_ns).is_fresh(now), fresh, "{ctime_ns}");
        }
    }
}
