//! Disks and folders that are mounted inside the inbox. While one is missing, nothing is put into the folder under its
//! mount point, where it would be hidden later, and nothing is concluded from what is not found there.
//!
//! A disk is known from the first file that is copied to it: it gets a folder id of its own, as the inbox has one, and
//! the inbox a line in `.dropwire/disks` that says where the disk begins, which of its folders has the folder id, and
//! the folder id. What has the folder id is the disk, mounted or not: a folder may be a mount only to a service that is
//! kept out of all others. Whoever gave a disk up for good says so with `dropwire adopt` of the inbox.

use std::{
    ffi::OsStr,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use data_encoding::HEXLOWER;

use super::naming::os_name;
use crate::{
    error::shown,
    failpoints,
    fs::{border::Side, confined, durable, folder_id, own_folder},
    io_error::{Meaning, meaning},
    owner,
    poison::Unpoisoned as _,
};

const FILE: &str = "disks";
/// Most disks that are remembered; nothing is copied to further ones.
const MOST: usize = 256;
/// A longer file is not ours.
const LONGEST: u64 = 4 << 20;

/// The disks of one inbox.
pub(super) struct Disks {
    inbox: PathBuf,
    own: Dir,
    known: Mutex<Vec<KnownDisk>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct KnownDisk {
    folder_id: [u8; 16],
    /// The folder where the disk begins, below the inbox.
    border: Vec<u8>,
    /// The one that has the folder id: the same, or where that could not be written, one below it.
    marked: Vec<u8>,
}

impl KnownDisk {
    /// The names of the folders down to its border.
    fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.border.split(|b| *b == b'/')
    }

    fn lies_on(&self, way: &[Vec<u8>]) -> bool {
        let depth = self.components().count();
        way.iter().map(Vec::as_slice).take(depth).eq(self.components())
    }
}

/// One is not there; `status` tells of it by itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Missing(String);

/// Is that what the error says?
pub(super) fn is_missing(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<Missing>())
}

impl Disks {
    /// Those of the inbox at `inbox`, whose `.dropwire` is `own`.
    pub(super) fn open(inbox: &Path, own: Dir) -> io::Result<Self> {
        Ok(Self {
            inbox: inbox.into(),
            known: Mutex::new(read(&own)?),
            own,
        })
    }

    /// Is none known?
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Somebody else, `dropwire adopt`, may have changed what is remembered.
    pub(super) fn reload(&self) -> io::Result<()> {
        let mut known = self.lock();
        *known = read(&self.own)?;
        Ok(())
    }

    /// Is the folder at `path`, in the folder `above`, where the disk is that was there before, if any was? An error says
    /// that it is not.
    pub(super) fn stands(&self, path: &[u8], above: &Dir, folder: &Dir) -> io::Result<()> {
        for disk in self.lock().iter() {
            let is_away = match &disk.marked {
                marked if marked == path => !is_it(folder, disk)?,
                _ => disk.border == path && !is_border(above, folder)?,
            };
            if is_away {
                return Err(self.missing_error(disk));
            }
        }
        Ok(())
    }

    /// The last known disk on the `way` down from the inbox's `root`; None: the way stays on the inbox's own. An error
    /// if one is missing.
    pub(super) fn on_the_way(&self, root: &Dir, way: &[Vec<u8>]) -> io::Result<Option<(PathBuf, Dir)>> {
        let mut last: Option<(usize, PathBuf, Dir)> = None;
        for disk in self.known() {
            if !disk.lies_on(way) {
                continue;
            }
            let there = find(root, &disk)?.ok_or_else(|| self.missing_error(&disk))?;
            let depth = disk.components().count();
            if last.as_ref().is_none_or(|(deepest, ..)| *deepest <= depth) {
                last = Some((depth, at(&self.inbox, &disk), there));
            }
        }
        Ok(last.map(|(_, path, there)| (path, there)))
    }

    /// Does the `way` down from the inbox lead to a known disk, whether or not that is there?
    pub(super) fn is_crossed(&self, way: &[Vec<u8>]) -> bool {
        self.lock().iter().any(|disk| disk.lies_on(way))
    }

    /// From now on it is missed when it is not there.
    pub(super) fn remember(&self, border: &[u8], marked: &[u8], folder_id: [u8; 16]) -> io::Result<()> {
        let disk = KnownDisk {
            folder_id,
            border: border.to_vec(),
            marked: marked.to_vec(),
        };
        let mut known = self.lock();
        if known.contains(&disk) || failpoints::mutant("disk-remembered") {
            return Ok(());
        }
        let mut all: Vec<KnownDisk> = known.iter().filter(|old| old.marked != marked).cloned().collect();
        if all.len() >= MOST {
            return Err(io::Error::other("the inbox has too many disks inside it"));
        }
        all.push(disk);
        write(&self.own, &all)?;
        *known = all;
        Ok(())
    }

    /// Why nothing is taken for some folders, a sentence each.
    pub(super) fn missing(&self, root: &Dir) -> Vec<String> {
        missing(&self.inbox, root, &self.known())
    }

    fn missing_error(&self, disk: &KnownDisk) -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, Missing(sentence(&self.inbox, disk)))
    }

    fn known(&self) -> Vec<KnownDisk> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<KnownDisk>> {
        self.known.lock().unpoisoned()
    }
}

/// What is missing of the disks inside the inbox `root` at `inbox`, whether or not an agent has it open.
pub fn missing_disks(inbox: &Path, root: &Dir) -> Vec<String> {
    let known = match root.open_dir_nofollow(own_folder::NAME) {
        Ok(own) => read(&own),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    };
    match known {
        Ok(known) => missing(inbox, root, &known),
        Err(error) => {
            let what = format!("the list of disks inside {} (.dropwire/{FILE})", shown(inbox));
            vec![owner::unreadable(&what, &error, inbox, "to forget them")]
        }
    }
}

/// Forgets those that are missing; what is there stays known.
pub fn forget_missing_disks(root: &Dir) -> io::Result<()> {
    let own = own_folder::open_or_make(root)?;
    let mut known = read(&own).unwrap_or_default(); // else none of them can be told
    known.retain(|disk| matches!(find(root, disk), Ok(Some(_))));
    write(&own, &known)
}

fn missing(inbox: &Path, root: &Dir, known: &[KnownDisk]) -> Vec<String> {
    let mut sentences: Vec<String> = known
        .iter()
        .filter_map(|disk| match find(root, disk) {
            Ok(Some(_)) => None,
            Ok(None) => Some(sentence(inbox, disk)),
            Err(error) => Some(format!("{} cannot be used: {error}", shown(&at(inbox, disk)))),
        })
        .collect();
    sentences.dedup();
    sentences
}

fn sentence(inbox: &Path, disk: &KnownDisk) -> String {
    format!(
        "{} was a disk of its own, which is not there now: is it not mounted? What is for it waits. If it is gone for good: \
         `{}`",
        shown(&at(inbox, disk)),
        owner::adopt(inbox)
    )
}

fn at(inbox: &Path, disk: &KnownDisk) -> PathBuf {
    let below = disk.border.split(|b| *b == b'/').map(os_name);
    inbox.join(below.collect::<PathBuf>())
}

/// A folder of the disk; None: it is not there.
fn find(root: &Dir, disk: &KnownDisk) -> io::Result<Option<Dir>> {
    let mut folder = root.try_clone()?;
    let mut path: Vec<u8> = Vec::new();
    let mut is_there = false;
    for component in disk.marked.split(|b| *b == b'/') {
        let next = match folder.open_dir_nofollow(os_name(component)) {
            Ok(next) => next,
            // The disk is there, and somebody took the marked folder out of it.
            Err(e) if is_there && e.kind() == io::ErrorKind::NotFound => return Ok(Some(folder)),
            Err(e) if meaning(&e) == Meaning::NotOurs => return Ok(None),
            Err(e) => return Err(e),
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        if path == disk.border && path != disk.marked {
            is_there = is_border(&folder, &next)?;
            if !is_there {
                return Ok(None);
            }
        }
        folder = next;
    }
    Ok(is_it(&folder, disk)?.then_some(folder))
}

/// Does the marked `folder` have the disk's id? One below the border may have been made again.
fn is_it(folder: &Dir, disk: &KnownDisk) -> io::Result<bool> {
    Ok(match folder_id::read(folder)? {
        Some(folder_id) => folder_id == disk.folder_id || failpoints::mutant("disk-folder-id"),
        None => disk.marked != disk.border,
    })
}

/// Does something that is mounted begin with `folder`, or another file system?
pub(super) fn is_border(above: &Dir, folder: &Dir) -> io::Result<bool> {
    Ok(Side::of(above)? != Side::of(folder)? || failpoints::mutant("disk-border"))
}

fn read(own: &Dir) -> io::Result<Vec<KnownDisk>> {
    let file = match confined::open_file(own, OsStr::new(FILE)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
    text.lines().map(|line| parse(line).ok_or_else(damaged)).collect()
}

fn write(own: &Dir, known: &[KnownDisk]) -> io::Result<()> {
    let line = |disk: &KnownDisk| {
        let [folder_id, border, marked] =
            [&disk.folder_id[..], &disk.border, &disk.marked].map(|bytes| HEXLOWER.encode(bytes));
        format!("{folder_id} {border} {marked}\n")
    };
    let text: String = known.iter().map(line).collect();
    durable::replace_file(own, OsStr::new(FILE), text.as_bytes())
}

/// Folder id, border, and the folder that has the id, each in hex: a path may hold any byte.
fn parse(line: &str) -> Option<KnownDisk> {
    let mut fields = line
        .split(' ')
        .map(|field| HEXLOWER.decode(field.as_bytes()).ok());
    let disk = KnownDisk {
        folder_id: fields.next()??.try_into().ok()?,
        border: fields.next()??,
        marked: fields.next()??,
    };
    let within = disk.marked.strip_prefix(&disk.border[..]);
    let is_whole = within.is_some_and(|below| below.is_empty() || below[0] == b'/');
    (fields.next().is_none() && is_whole && !disk.border.is_empty()).then_some(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let own = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        (temp, own)
    }

    /// As the first version wrote it.
    const KEPT: &str = "000102030405060708090a0b0c0d0e0f 616e61 616e61\n\
                        0f0e0d0c0b0a09080706050403020100 626f620a 626f620a2f64656570\n";

    #[test]
    fn what_was_kept_is_read_and_written_the_same() {
        let (_temp, own) = own();
        own.write(FILE, KEPT).unwrap();
        let disks = Disks::open(Path::new("/in"), own.try_clone().unwrap()).unwrap();
        let known = disks.known();
        assert_eq!(
            (known[0].border.as_slice(), known[0].folder_id[15]),
            (&b"ana"[..], 15)
        );
        assert_eq!(known[1].marked, b"bob\n/deep");
        write(&own, &known).unwrap();
        assert_eq!(own.read_to_string(FILE).unwrap(), KEPT);
    }

    #[test]
    fn what_is_damaged_is_an_error_and_not_nothing() {
        let (_temp, own) = own();
        let whole = KEPT.lines().next().unwrap();
        for text in [
            &whole[..40],
            "x",
            &format!("{whole} 00"),
            &whole.replace(" 616e61 ", " 62 "),
            "\n",
        ] {
            own.write(FILE, text).unwrap();
            assert!(
                Disks::open(Path::new("/in"), own.try_clone().unwrap()).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn they_are_bounded() {
        let (_temp, own) = own();
        let disks = Disks::open(Path::new("/in"), own).unwrap();
        for n in 0..MOST {
            let path = format!("d{n}");
            disks.remember(path.as_bytes(), path.as_bytes(), [7; 16]).unwrap();
        }
        disks.remember(b"d7", b"d7", [8; 16]).unwrap();
        assert!(disks.remember(b"more", b"more", [7; 16]).is_err());
        assert_eq!(disks.known().len(), MOST);
    }
}
