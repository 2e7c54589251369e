//! The version of a file or a whole folder: what tells one item from the next, without reading the bytes.

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io,
    time::{Duration, SystemTime},
};

use cap_std::fs::Dir;
use dropwire_protocol::{Kind, Mtime, RemotePath};

use crate::{failpoints, fs::file_system::FileSystem};

/// Path aside, what identifies a version: inode, birth time, size, mtime. No device number: it changes at a mount. Where
/// the file system's numbers do not last ([`FileSystem::lasting_inodes`]), inode and birth time are 0.
///
/// ctime is only a witness: where it alone differs (chmod, a link made), the bytes decide.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Version {
    /// Inode; 0 where the system has none that lasts.
    pub inode: u64,
    /// Nanoseconds since 1970; 0 where the file system keeps none, or none that can be trusted.
    pub birth_ns: i64,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Nanoseconds since 1970; not part of the identity.
    pub ctime_ns: i64,
    /// A whole folder's ([`crate::fs::bundle`]): then inode, birth and mtime hold a digest of what lies in it, `size`
    /// is its stream's, and ctime the newest in it.
    pub folder: bool,
}

impl Version {
    /// What its bytes are.
    pub fn kind(&self) -> Kind {
        match self.folder {
            true => Kind::Folder,
            false => Kind::File,
        }
    }

    /// See [`Kind::is_small`].
    pub fn is_small(&self) -> bool {
        self.kind().is_small(self.size)
    }

    /// Of an open file (never of a path: it may be swapped), as the file system says now, and what it is trusted with.
    pub fn read(file: &File) -> io::Result<(Self, FileSystem)> {
        let meta = file.metadata()?;
        let on = FileSystem::on(system::device(&meta), || FileSystem::of(file));
        let fresh = match on.sees_writers {
            true => None,
            false => system::fresh(file),
        };
        Ok((fresh.unwrap_or_else(|| Self::raw(&meta)).trusting(on), on))
    }

    /// Of what has the name `name` in `folder`, by its metadata there: good for telling what is known, and for what was
    /// just moved while it is held open; an item's version is read from the open file.
    pub fn listed(folder: &Dir, name: &OsStr, meta: &cap_std::fs::Metadata) -> Self {
        let device = cap_fs_ext::MetadataExt::dev(meta);
        let on = FileSystem::on(device, || system::file_system(folder, name));
        Self::of_listing(meta).trusting(on)
    }

    /// Of what has the name `name` in `folder`, as the other side of a mount has it too, and untrusted: for comparison
    /// with a version that was [`Version::read`].
    pub fn looked(folder: &Dir, name: &OsStr) -> io::Result<Self> {
        match system::fresh_in(folder, name) {
            Some(version) => Ok(version),
            None => Ok(Self::of_listing(&folder.symlink_metadata(name)?)),
        }
    }

    /// Do size and times show that what now has its name (`now`) is this very file, with nothing done to it? They do
    /// where the time of the last change is kept: nobody can set that. File systems without one show that of the last
    /// writing.
    pub fn is_surely(&self, now: &Self) -> bool {
        let keeps_changes = self.ctime_ns != self.mtime_ns && !self.has_coarse_clock();
        (keeps_changes || failpoints::mutant("R7-sure")) && self.looks_as(now)
    }

    /// Have size and times stayed the same?
    pub fn looks_as(&self, now: &Self) -> bool {
        (self.size, self.mtime_ns, self.ctime_ns) == (now.size, now.mtime_ns, now.ctime_ns)
    }

    /// Of a folder itself, as [`Version::read`].
    pub fn of_folder(folder: &Dir) -> io::Result<(Self, FileSystem)> {
        let meta = folder.dir_metadata()?;
        let device = cap_fs_ext::MetadataExt::dev(&meta);
        let on = FileSystem::on(device, || FileSystem::of_folder(folder));
        Ok((Self::of_listing(&meta).trusting(on), on))
    }

    /// As the metadata have it, whatever they are worth on that file system.
    pub fn raw(meta: &Metadata) -> Self {
        #[cfg(unix)]
        let (inode, ctime) = {
            use std::os::unix::fs::MetadataExt;
            (meta.ino(), (meta.ctime(), meta.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let (inode, ctime) = (0, (0, 0));
        Self::new(
            inode,
            meta.len(),
            meta.created().ok(),
            meta.modified().ok(),
            ctime,
        )
    }

    /// Without what `on` is not trusted with: numbers that do not last tell nothing, and neither does a time of birth
    /// that came with them.
    fn trusting(mut self, on: FileSystem) -> Self {
        if !on.lasting_inodes && !failpoints::mutant("S1-inodes") {
            (self.inode, self.birth_ns) = (0, 0);
        }
        self
    }

    /// Are both the same version, ctime aside? A 0 for inode or birth says that it is not known (an older version of
    /// this program kept numbers that do not last).
    pub fn same_identity(&self, other: &Self) -> bool {
        self.folder == other.folder
            && (self.size, self.mtime_ns) == (other.size, other.mtime_ns)
            && (self.inode == other.inode || self.inode == 0 || other.inode == 0)
            && (self.birth_ns == other.birth_ns || self.birth_ns == 0 || other.birth_ns == 0)
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

    /// As a listing's metadata have it, whatever they are worth on that file system.
    pub fn of_listing(meta: &cap_std::fs::Metadata) -> Self {
        #[cfg(unix)]
        let (inode, ctime) = {
            use cap_std::fs::MetadataExt;
            (meta.ino(), (meta.ctime(), meta.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let (inode, ctime) = (0, (0, 0));
        let std = |time: cap_std::time::SystemTime| time.into_std();
        let (created, modified) = (meta.created().ok().map(std), meta.modified().ok().map(std));
        Self::new(inode, meta.len(), created, modified, ctime)
    }

    /// What a file system does not keep is 0; `ctime` in seconds and nanoseconds.
    fn new(
        inode: u64,
        size: u64,
        created: Option<SystemTime>,
        modified: Option<SystemTime>,
        ctime: (i64, i64),
    ) -> Self {
        Self {
            inode,
            birth_ns: created.map_or(0, nanoseconds),
            size,
            mtime_ns: modified.map_or(0, nanoseconds),
            ctime_ns: ctime.0.saturating_mul(1_000_000_000).saturating_add(ctime.1),
            folder: false,
        }
    }

    /// The file system seems to keep whole seconds only.
    pub fn has_coarse_clock(&self) -> bool {
        self.ctime_ns % 1_000_000_000 == 0
    }

    /// How far apart two changes must be to show in ctime.
    pub fn clock_step(&self) -> Duration {
        if self.has_coarse_clock() {
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
        mtime_of(self.mtime_ns)
    }
}

/// Nanoseconds since 1970 as the protocol carries them.
pub fn mtime_of(ns: i64) -> Mtime {
    Mtime {
        seconds: ns.div_euclid(1_000_000_000),
        nanos: ns.rem_euclid(1_000_000_000) as u32,
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::os::{fd::AsFd, unix::fs::MetadataExt};

    use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, StatxTimestamp};

    use super::*;

    pub(super) fn device(meta: &Metadata) -> u64 {
        meta.dev()
    }

    /// Touches nothing, whatever has the name.
    pub(super) fn file_system(folder: &Dir, name: &OsStr) -> io::Result<FileSystem> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        FileSystem::of(&rustix::fs::openat(folder, name, flags, Mode::empty())?.into())
    }

    /// As the server or the program behind the mount says, past the kernel's cache. None: it cannot be asked so.
    pub(super) fn fresh(file: &File) -> Option<Version> {
        asked(file, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    /// The version of what has the name `name` in `folder`, past the kernel's cache.
    pub(super) fn fresh_in(folder: &Dir, name: &OsStr) -> Option<Version> {
        asked(folder, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn asked(at: impl AsFd, name: &OsStr, flags: AtFlags) -> Option<Version> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(at, name, flags | AtFlags::STATX_FORCE_SYNC, wanted).ok()?;
        let ns = |time: StatxTimestamp| {
            let seconds = time.tv_sec.saturating_mul(1_000_000_000);
            seconds.saturating_add(time.tv_nsec.into())
        };
        let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        Some(Version {
            inode: stat.stx_ino,
            birth_ns: if has_birth { ns(stat.stx_btime) } else { 0 },
            size: stat.stx_size,
            mtime_ns: ns(stat.stx_mtime),
            ctime_ns: ns(stat.stx_ctime),
            folder: false,
        })
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::*;

    pub(super) fn device(_: &Metadata) -> u64 {
        0
    }

    pub(super) fn file_system(folder: &Dir, _: &OsStr) -> io::Result<FileSystem> {
        FileSystem::of_folder(folder)
    }

    pub(super) fn fresh(_: &File) -> Option<Version> {
        None
    }

    pub(super) fn fresh_in(_: &Dir, _: &OsStr) -> Option<Version> {
        None
    }
}

/// Nanoseconds since 1970, negative before; saturates some 292 years away from it.
fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(std::time::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

/// An outbox's folder id (`.dropwire/id`): random, and tells one folder from another, whatever its path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct OutboxId(pub [u8; 16]);

/// A version of a file, or of a whole folder, found in an outbox.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Found {
    /// Which outbox, by its id.
    pub outbox: OutboxId,
    /// Below the outbox.
    pub path: RemotePath,
    /// As read from the open file.
    pub version: Version,
}

/// For tests: what lies in `folder` counts as written, also where no lease proves it.
#[cfg(test)]
pub fn rests(folder: &std::path::Path) {
    let file = tempfile::tempfile_in(folder).expect("a file there");
    if !FileSystem::of(&file).expect("where it is").sees_writers {
        clock_steps(folder);
    }
}

/// For tests: what is changed in `folder` after this shows in its ctime.
#[cfg(test)]
pub fn clock_steps(folder: &std::path::Path) {
    let file = tempfile::tempfile_in(folder).expect("a file there");
    let (version, _) = Version::read(&file).expect("its version");
    while version.is_fresh(SystemTime::now()) {
        std::thread::yield_now();
    }
}

/// For tests: what becomes of a file's `time` in `folder`, where whole seconds may be all that is kept.
#[cfg(test)]
pub fn as_kept(folder: &std::path::Path, time: SystemTime) -> SystemTime {
    let file = tempfile::tempfile_in(folder).expect("a file there");
    crate::fs::file_system::set_modified(&file, time).expect("a time");
    let kept = file.metadata().and_then(|meta| meta.modified());
    kept.expect("its time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_and_the_open_file_agree() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "bytes").unwrap();
        let open = File::open(temp.path().join("file")).unwrap();
        let dir = crate::fs::confined::root(temp.path()).unwrap();
        let entry = dir.entries().unwrap().next().unwrap().unwrap();
        let listed = Version::listed(&dir, &entry.file_name(), &entry.metadata().unwrap());
        assert_eq!(listed, Version::read(&open).unwrap().0);
        #[cfg(target_os = "linux")]
        assert!(system::fresh(&open).unwrap().same_identity(&listed));
    }

    #[test]
    fn numbers_that_do_not_last_tell_nothing() {
        let version = Version {
            inode: 7,
            birth_ns: 7,
            size: 1,
            mtime_ns: 1,
            ctime_ns: 1,
            folder: false,
        };
        let on = FileSystem::of(&tempfile::tempfile().unwrap()).unwrap();
        let on = |lasting_inodes| FileSystem { lasting_inodes, ..on };
        assert_eq!(version.trusting(on(true)), version);
        let seen = version.trusting(on(false));
        assert_eq!((seen.inode, seen.birth_ns), (0, 0));
        assert!(
            seen.same_identity(&version) && version.same_identity(&seen),
            "kept by an older program"
        );
        for other in [
            Version { size: 2, ..seen },
            Version { mtime_ns: 2, ..seen },
            Version { folder: true, ..seen },
        ] {
            assert!(!other.same_identity(&seen) && !other.same_identity(&version));
        }
        assert!(!version.same_identity(&Version { inode: 8, ..version }));
        assert!(!version.same_identity(&Version {
            birth_ns: 8,
            ..version
        }));
    }

    #[test]
    fn times_show_that_a_file_is_the_same_only_where_changes_have_one() {
        let kept = Version {
            inode: 0,
            birth_ns: 0,
            size: 3,
            mtime_ns: 1_000_000_000,
            ctime_ns: 2_000_000_001,
            folder: false,
        };
        assert!(kept.is_surely(&Version { inode: 7, ..kept }));
        for other in [
            Version { size: 4, ..kept },
            Version { mtime_ns: 1, ..kept },
            Version {
                ctime_ns: 2_000_000_002,
                ..kept
            },
        ] {
            assert!(!kept.is_surely(&other), "{other:?}");
        }
        for ctime_ns in [kept.mtime_ns, 2_000_000_000] {
            let no_sign = Version { ctime_ns, ..kept };
            assert!(!no_sign.is_surely(&no_sign), "{ctime_ns}");
        }
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
