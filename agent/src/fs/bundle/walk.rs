//! The walk through a folder in the stream's order: each folder before what lies in it, names by their bytes.

use std::{ffi::OsStr, ffi::OsString};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::Dir;
use dropwire_protocol::{
    RemotePath,
    bundle::{MAX_ENTRIES, Node},
};

use super::{Trouble, unsendable};
use crate::fs::{
    border::Side,
    confined,
    unsent::{self, Why},
    version::Version,
};

/// One thing in the folder.
pub struct Step<'a> {
    /// Holds it; for the folder itself: that.
    pub parent: &'a Dir,
    /// Its name there; empty for the folder itself.
    pub name: &'a OsStr,
    /// Below the folder; None: the folder itself, which comes first.
    pub path: Option<RemotePath>,
    /// What it is.
    pub kind: Kind,
    /// As listed.
    pub version: Version,
    /// How many names it has, as listed.
    pub links: u64,
}

/// What a thing in a folder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// What is never sent, and why.
    Other(&'static str),
}

impl Step<'_> {
    /// What stands in the stream for it; None: nothing does.
    pub fn node(&self) -> Option<Node> {
        match self.kind {
            Kind::Folder => Some(Node::Folder),
            Kind::File => Some(Node::File {
                size: self.version.size,
                mtime: self.version.mtime().seconds,
            }),
            Kind::Other(_) => None,
        }
    }
}

/// Visits `folder` and everything in it but litter. Holds the names of one folder a level, never more than a stream
/// may have entries; follows nothing, and stays on one file system. What vanishes meanwhile is not visited.
pub fn walk<E: From<Trouble>>(
    folder: &Dir,
    visit: &mut dyn FnMut(&Step<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let side = Side::of(folder).map_err(|e| unsendable(b".", &e))?;
    let (version, _) = Version::of_folder(folder).map_err(|e| unsendable(b".", &e))?;
    visit(&Step {
        parent: folder,
        name: OsStr::new(""),
        path: None,
        kind: Kind::Folder,
        version,
        links: 1,
    })?;
    let mut walk = Walk {
        side,
        entries: 1,
        visit,
    };
    walk.inside(folder, &mut Vec::new())
}

/// Of such a name, and a file: a folder may hold anything.
pub fn is_litter(dir: &Dir, name: &OsStr) -> bool {
    is(name, false, Why::Litter) && dir.symlink_metadata(name).is_ok_and(|meta| meta.is_file())
}

fn is(name: &OsStr, is_folder: bool, why: Why) -> bool {
    unsent::matching(name, is_folder).is_some_and(|(_, its)| its == why)
}

/// Why a folder with a border in it is not sent as a whole: it could not leave so.
const MOUNTED: &str = "something is mounted there";

struct Walk<'a, E> {
    side: Side,
    entries: u64,
    visit: &'a mut dyn FnMut(&Step<'_>) -> Result<(), E>,
}

impl<E: From<Trouble>> Walk<'_, E> {
    fn inside(&mut self, dir: &Dir, path: &mut Vec<u8>) -> Result<(), E> {
        for name in self.names(dir, path)? {
            let length = path.len();
            let bytes =
                confined::bytes(&name).ok_or_else(|| unsendable(path, &"a name in it is not Unicode"))?;
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(bytes);
            self.entry(dir, &name, path)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, dir: &Dir, name: &OsStr, path: &mut Vec<u8>) -> Result<(), E> {
        let meta = match dir.symlink_metadata(name) {
            Ok(meta) => meta,
            Err(e) if confined::is_absent(&e) => return Ok(()),
            Err(e) => return Err(unsendable(path, &e).into()),
        };
        let kind = if meta.is_dir() && is(name, true, Why::SystemFolder) {
            Kind::Other("a folder that a system keeps for itself")
        } else if meta.is_dir() {
            Kind::Folder
        } else if meta.is_file() {
            Kind::File
        } else if meta.is_symlink() {
            Kind::Other("a symlink")
        } else {
            Kind::Other("neither file nor folder")
        };
        if !self.side.holds(dir, name, &meta) {
            return Err(unsendable(path, &MOUNTED).into());
        }
        let step = Step {
            parent: dir,
            name,
            path: Some(RemotePath::parse(path).map_err(|e| unsendable(path, &e))?),
            kind,
            version: Version::listed(dir, name, &meta),
            links: meta.nlink(),
        };
        (self.visit)(&step)?;
        if kind != Kind::Folder {
            return Ok(());
        }
        match dir.open_dir_nofollow(name) {
            // A bind mount of the same file system has its device.
            Ok(below) => match Side::of(&below) {
                Ok(side) if side == self.side => self.inside(&below, path),
                Ok(_) => Err(unsendable(path, &MOUNTED).into()),
                Err(e) => Err(unsendable(path, &e).into()),
            },
            Err(e) if confined::is_absent(&e) => Ok(()),
            Err(e) => Err(unsendable(path, &e).into()),
        }
    }

    fn names(&mut self, dir: &Dir, path: &[u8]) -> Result<Vec<OsString>, Trouble> {
        let mut names = Vec::new();
        for entry in dir.entries().map_err(|e| unsendable(path, &e))? {
            let name = entry.map_err(|e| unsendable(path, &e))?.file_name();
            if is_litter(dir, &name) {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(Trouble::Held(format!("it holds more than {MAX_ENTRIES} entries")));
            }
            names.push(name);
        }
        names.sort_unstable_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
        Ok(names)
    }
}
