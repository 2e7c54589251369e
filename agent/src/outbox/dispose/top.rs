//! The folder by which a file leaves: the outbox itself or, where a disk, a bind mount or a btrfs subvolume lies between
//! it and the file, the top of that, which then has a `.dropwire` with `leaving` and `sent` of its own.

use std::{borrow::Cow, io};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::Disposal;
use crate::{
    border::{Noted, Side},
    confined, fault,
};

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Top {
    /// Below the outbox; None: that itself.
    pub(super) path: Option<RemotePath>,
    pub(super) side: Side,
    /// On the way to the file something used to be mounted here, and is not now: its absence proves nothing.
    pub(super) missing: Option<RemotePath>,
}

/// Finds them; files that follow each other in one folder have it found once.
pub(super) struct Tops<'a> {
    outbox: &'a Dir,
    noted: Noted,
    last: Option<(Option<RemotePath>, Top)>,
}

impl<'a> Tops<'a> {
    pub(super) fn of(outbox: &'a Dir) -> io::Result<Self> {
        Ok(Tops {
            outbox,
            noted: Noted::of(outbox)?,
            last: None,
        })
    }

    /// That of the file with this path. The same again after a crash, whether or not its folder is still there.
    pub(super) fn find(&mut self, path: &RemotePath) -> io::Result<Top> {
        let folder = path.parent();
        if let Some((of, top)) = &self.last
            && *of == folder
        {
            return Ok(top.clone());
        }
        let top = self.walk(folder.as_ref())?;
        self.last = Some((folder, top.clone()));
        Ok(top)
    }

    fn walk(&self, folder: Option<&RemotePath>) -> io::Result<Top> {
        let mut top = Top {
            path: None,
            side: Side::of(self.outbox)?,
            missing: None,
        };
        let mut on_the_way: Vec<_> = std::iter::successors(folder.cloned(), RemotePath::parent).collect();
        on_the_way.reverse();
        let mut last: Option<Dir> = None;
        for at in on_the_way {
            let parent = last.as_ref().unwrap_or(self.outbox);
            let dir = match parent.open_dir_nofollow(confined::os_str(at.file_name())?) {
                Err(e) if confined::is_absent(&e) => break, // a folder at which something is mounted cannot go
                dir => dir?,
            };
            let side = Side::of(&dir)?;
            if side != top.side {
                (top.path, top.side) = (Some(at), side);
            } else if self.noted.has(&at) && !fault::mutant("S5-mount") {
                top.missing = Some(at);
            }
            last = Some(dir);
        }
        Ok(top)
    }
}

impl Disposal {
    /// The same, with this folder for its outbox.
    pub(super) fn below<'a>(&'a self, top: Option<&RemotePath>) -> Cow<'a, Disposal> {
        let rest = top.and_then(|top| {
            let rest = self.path.as_bytes().strip_prefix(top.as_bytes())?;
            RemotePath::parse(rest.strip_prefix(b"/")?).ok()
        });
        match (top, rest) {
            (Some(top), Some(path)) => Cow::Owned(Disposal {
                root: confined::join(&self.root, top),
                path,
                ..self.clone()
            }),
            _ => Cow::Borrowed(self),
        }
    }
}
