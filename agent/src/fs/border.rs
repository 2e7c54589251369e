//! Borders inside a folder that no rename crosses: what is mounted in it (a disk, a bind mount), and btrfs subvolumes.
//!
//! Where an outbox has such a border, it is noted in its `.dropwire/mounts`: as long as nothing is mounted there, what is
//! missing behind it proves nothing, also where the folder of the border is gone: it may be made again, and the same disk
//! mounted. Whoever gave a disk up for good says so with `dropwire adopt` of the outbox.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::{Dir, Metadata};
use dropwire_protocol::{RemotePath, RunningDigest};

use crate::{
    failpoints,
    fs::{confined, durable, own_folder},
};

/// What two folders have in common if files can be renamed from one into the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Side {
    device: u64,
    /// 0 where the system does not say: then a bind mount of the same disk is not noticed.
    mount: u64,
}

impl Side {
    /// The side that `folder` is on.
    pub fn of(folder: &Dir) -> io::Result<Self> {
        Ok(Self {
            device: folder.dir_metadata()?.dev(),
            mount: system::mount(folder, OsStr::new("")),
        })
    }

    /// Is what has the name `name` in `folder`, with these metadata, on this side? Overlays of several disks give files
    /// other device numbers than folders: there the mount tells.
    pub fn holds(self, folder: &Dir, name: &OsStr, meta: &Metadata) -> bool {
        let same_mount = || self.mount != 0 && system::mount(folder, name) == self.mount;
        meta.dev() == self.device || (!meta.is_dir() && same_mount()) // btrfs subvolumes share a mount
    }
}

/// Why an outbox's archive cannot be used.
pub const NO_ARCHIVE: &str =
    "`.dropwire/sent` in it is a link, or on another disk: what is delivered cannot leave";
/// The way out.
pub const NO_ARCHIVE_HELP: &str =
    "remove the link, or unmount what is mounted there, so that it is an ordinary folder again";

/// Is `sent`, in dropwire's `own` folder, something into which no rename leads?
pub fn is_archive_elsewhere(own: &Dir) -> bool {
    match own.open_dir_nofollow("sent") {
        Ok(sent) => matches!((Side::of(own), Side::of(&sent)), (Ok(own), Ok(sent)) if own != sent),
        Err(e) => {
            own.symlink_metadata("sent").is_ok_and(|sent| !sent.is_dir())
                && e.kind() != io::ErrorKind::NotFound
        }
    }
}

/// The folder of the notes, in dropwire's own.
const NOTES: &str = "mounts";
/// Most notes that there are.
const MOST: usize = 4096;

/// Notes, durably, that something is mounted at `path` in the folder of which `own` is dropwire's own. May be repeated.
/// An error where there are too many: they go with [`forget_missing`] alone.
pub fn note(own: &Dir, path: &RemotePath) -> io::Result<()> {
    let notes = durable::open_or_make_dir(own, NOTES.as_ref())?;
    let is_new = notes.symlink_metadata(name(path)).is_err();
    if is_new && notes.entries()?.take(MOST).count() == MOST && !failpoints::mutant("mount-notes") {
        return Err(io::Error::other(
            "too many other disks were mounted in the outbox; `dropwire adopt` of it forgets those that are not there",
        ));
    }
    match durable::write_new_file(&notes, &name(path), path.as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => durable::sync_dir(&notes)?,
        written => written?,
    }
    durable::sync_dir(own)
}

/// Notes what is mounted in the folder `root`, which is at `path`, before any of its files is taken: one that was
/// delivered and not yet checked again would count as gone as soon as it is unmounted, and as a new one once it is
/// back.
pub fn note_all(root: &Dir, path: &Path, mounted: &BTreeSet<Mounted>) -> io::Result<()> {
    let noted = Noted::of(root)?;
    let below = mounted.iter().take(MOST).map(|m| confined::below(path, &m.at));
    for at in below.flatten() {
        let is_ours = at.components().next() == Some(own_folder::NAME.as_bytes());
        if !is_ours && !noted.has(&at) && !failpoints::mutant("S1-mount-note") {
            note(&own_folder::open_or_make(root)?, &at)?;
        }
    }
    Ok(())
}

/// What was noted of a folder.
pub struct Noted(Option<Dir>);

impl Noted {
    /// Of the folder `root`.
    pub fn of(root: &Dir) -> io::Result<Self> {
        let notes = root
            .open_dir_nofollow(own_folder::NAME)
            .and_then(|own| own.open_dir_nofollow(NOTES));
        match notes {
            Ok(notes) => Ok(Self(Some(notes))),
            Err(e) if confined::is_absent(&e) => Ok(Self(None)),
            Err(e) => Err(e),
        }
    }

    /// Was something mounted at `path`?
    pub fn has(&self, path: &RemotePath) -> bool {
        let notes = self.0.as_ref();
        notes.is_some_and(|notes| notes.symlink_metadata(name(path)).is_ok())
    }

    /// The way down from the folder `root`, of which these are the notes, to `folder` in it, as far as that is there.
    pub fn way(&self, root: &Dir, folder: Option<&RemotePath>) -> io::Result<Way> {
        let mut way = Way {
            top: None,
            side: Side::of(root)?,
            missing: None,
        };
        let mut on_the_way: Vec<_> = std::iter::successors(folder.cloned(), RemotePath::parent).collect();
        on_the_way.reverse();
        let mut last = Some(root.try_clone()?); // None: from here on nothing is there
        for at in on_the_way {
            let name = confined::os_str(at.file_name())?;
            last = match last.map(|parent| parent.open_dir_nofollow(name)) {
                Some(Err(e)) if confined::is_absent(&e) => None,
                dir => dir.transpose()?,
            };
            let is_noted = self.has(&at);
            match last.as_ref().map(Side::of).transpose()? {
                Some(side) if side != way.side => (way.top, way.side) = (Some(at), side),
                Some(_) if is_noted && !failpoints::mutant("S5-mount") => way.missing = Some(at),
                None if is_noted && !failpoints::mutant("S5-mount-folder") => way.missing = Some(at),
                _ => {}
            }
        }
        Ok(way)
    }
}

/// Where something used to be mounted on the way from the outbox `root` to `path`, and is not now: what is missing
/// behind it proves nothing. Asks the disk.
pub fn missing_on_the_way(root: &Dir, path: &RemotePath) -> io::Result<Option<RemotePath>> {
    Ok(Noted::of(root)?.way(root, Some(path))?.missing)
}

/// What lies between a folder and one in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// Where the last of what is mounted between them begins; None: nothing is.
    pub top: Option<RemotePath>,
    /// The side that this is on.
    pub side: Side,
    /// Something used to be mounted here, and is not now: what is missing behind it proves nothing.
    pub missing: Option<RemotePath>,
}

fn name(path: &RemotePath) -> OsString {
    let mut digest = RunningDigest::default();
    digest.update(path.as_bytes());
    data_encoding::HEXLOWER.encode(&digest.value().0).into()
}

/// Where in `root` something was ever mounted, as far as it was noted.
pub fn noted(root: &Dir) -> io::Result<Vec<RemotePath>> {
    let Noted(Some(notes)) = Noted::of(root)? else {
        return Ok(Vec::new());
    };
    let names = notes.entries()?.take(MOST);
    let read = names.map(|entry| Ok(read(&notes, &entry?.file_name()))); // none: a note that was never finished
    Ok(read
        .collect::<io::Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// Those at which nothing is mounted now.
pub fn missing(root: &Dir) -> io::Result<Vec<RemotePath>> {
    let notes = Noted::of(root)?;
    let is_missing = |path: &RemotePath| notes.way(root, Some(path)).map(|way| way.missing.is_some());
    let mut missing = noted(root)?;
    missing.retain(|path| is_missing(path).unwrap_or(false));
    Ok(missing)
}

/// Forgets those: what is missing behind them is gone.
pub fn forget_missing(root: &Dir) -> io::Result<()> {
    let missing = missing(root)?;
    if let Noted(Some(notes)) = Noted::of(root)? {
        missing
            .iter()
            .try_for_each(|path| durable::unlink(&notes, &name(path)))?;
        durable::sync_dir(&notes)?;
    }
    Ok(())
}

fn read(notes: &Dir, name: &OsStr) -> Option<RemotePath> {
    let (mut path, most) = (Vec::new(), RemotePath::MAX_LENGTH as u64);
    let file = confined::open_file(notes, name).ok()?;
    file.take(most).read_to_end(&mut path).ok()?;
    RemotePath::parse(&path).ok()
}

/// What is mounted somewhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mounted {
    /// Where.
    pub at: PathBuf,
    /// What is mounted there later has another one.
    pub number: u64,
}

pub use system::{MOUNTS, mounted_below};

#[cfg(target_os = "linux")]
mod system {
    use std::{
        collections::BTreeSet,
        ffi::{OsStr, OsString},
        os::unix::ffi::OsStringExt,
        path::{Path, PathBuf},
    };

    use cap_std::fs::Dir;
    use rustix::fs::{AtFlags, StatxFlags};

    use super::Mounted;

    /// Of what has the name `name` in `folder`; the folder's own where that is empty.
    pub(super) fn mount(folder: &Dir, name: &OsStr) -> u64 {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statx(folder, name, flags, StatxFlags::MNT_ID);
        let stat = stat
            .ok()
            .filter(|stat| StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID));
        stat.map_or(0, |stat| stat.stx_mnt_id)
    }

    /// The kernel's list of mounts.
    pub const MOUNTS: &str = "/proc/self/mountinfo";

    /// What is mounted in the folder `path`, at any depth, as far as the system says it. May block.
    pub fn mounted_below(path: &Path) -> BTreeSet<Mounted> {
        match (std::fs::read(MOUNTS), path.canonicalize()) {
            (Ok(list), Ok(path)) => of_list(&list, &path),
            _ => BTreeSet::new(),
        }
    }

    fn of_list(list: &[u8], path: &Path) -> BTreeSet<Mounted> {
        let mounts = list.split(|b| *b == b'\n').filter_map(|line| {
            let number = line.split(|b| *b == b' ').next()?;
            Some(Mounted {
                at: point(line)?,
                number: str::from_utf8(number).ok()?.parse().ok()?,
            })
        });
        mounts
            .filter(|m| m.at != path && m.at.starts_with(path))
            .collect()
    }

    /// The mount point of a line, in which blanks and the like are written as `\040`.
    fn point(line: &[u8]) -> Option<PathBuf> {
        let field = line.split(|b| *b == b' ').nth(4)?;
        let (mut bytes, mut rest) = (Vec::new(), field);
        while let Some((first, after)) = rest.split_first() {
            let octal = after.get(..3).filter(|_| *first == b'\\');
            let octal = octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
            bytes.push(octal.unwrap_or(*first));
            rest = match octal {
                Some(_) => after.get(3..)?,
                None => after,
            };
        }
        Some(OsString::from_vec(bytes).into())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn mount_points_are_read_as_they_are_written() {
            let line = b"36 35 98:0 /a /mnt\\040two/\\134x rw,noatime master:1 - ext3 /dev/root rw";
            assert_eq!(point(line), Some("/mnt two/\\x".into()));
            assert_eq!(point(b""), None);
        }

        #[test]
        fn only_what_is_mounted_below() {
            let list = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 22 0:30 / /home/me/Out\\040box rw - tmpfs tmpfs rw
32 31 0:31 / /home/me/Out\\040box/disk rw - tmpfs tmpfs rw
33 22 0:32 / /home/me/Out\\040boxes/disk rw - tmpfs tmpfs rw
34 22 0:33 / /home/me rw - tmpfs tmpfs rw
";
            let found = |root: &str| {
                let found = of_list(list, Path::new(root)).into_iter();
                found.map(|m| (m.number, m.at)).collect::<Vec<_>>()
            };
            assert_eq!(found("/home/me/Out box"), [(32, "/home/me/Out box/disk".into())]);
            assert_eq!(found("/home/me/Outbox"), []);
            assert_eq!(found("/").len(), 4);
            assert!(
                mounted_below(Path::new("/"))
                    .iter()
                    .any(|m| m.at == Path::new("/proc"))
            );
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::{collections::BTreeSet, ffi::OsStr, path::Path};

    use cap_std::fs::Dir;

    use super::Mounted;

    /// There is no such list here.
    pub const MOUNTS: &str = "";

    pub(super) fn mount(_: &Dir, _: &OsStr) -> u64 {
        0
    }

    /// Nobody asks the system here.
    pub fn mounted_below(_: &Path) -> BTreeSet<Mounted> {
        BTreeSet::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_and_go_when_what_is_missing_is_given_up() {
        let temp = tempfile::tempdir().unwrap();
        let root = confined::root(temp.path()).unwrap();
        let own = own_folder::open_or_make(&root).unwrap();
        let [first, more] = ["first", "more"].map(|path| RemotePath::parse(path.as_bytes()).unwrap());
        note(&own, &first).unwrap();
        let notes = own.open_dir(NOTES).unwrap();
        for n in 1..MOST {
            let path = RemotePath::parse(n.to_string().as_bytes()).unwrap();
            notes.write(name(&path), path.as_bytes()).unwrap();
        }
        note(&own, &first).unwrap();
        assert!(note(&own, &more).unwrap_err().to_string().contains("adopt"));
        assert_eq!(missing(&root).unwrap().len(), MOST);
        forget_missing(&root).unwrap();
        assert_eq!(noted(&root).unwrap(), []);
        note(&own, &more).unwrap();
    }
}
