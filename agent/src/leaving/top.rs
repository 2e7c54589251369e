//! The folder by which a file leaves: the outbox itself or, where a disk, a bind mount or a btrfs subvolume lies between
//! it and the file, the top of that, which then has a `.dropwire` with `leaving` and `sent` of its own.

use std::{borrow::Cow, io};

use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::Disposal;
use crate::fs::{
    border::{Noted, Way},
    confined,
};

/// Finds them; files that follow each other in one folder have it found once.
pub(super) struct Tops<'a> {
    outbox: &'a Dir,
    noted: Noted,
    last: Option<(Option<RemotePath>, Way)>,
}

impl<'a> Tops<'a> {
    pub(super) fn of(outbox: &'a Dir) -> io::Result<Self> {
        Ok(Tops {
            outbox,
            noted: Noted::of(outbox)?,
            last: None,
        })
    }

    /// The way to the file with this path, which leaves by the top of it. The same again after a crash, whether or not
    /// its folder is still there: one at which something is mounted cannot go.
    pub(super) fn find(&mut self, path: &RemotePath) -> io::Result<Way> {
        let folder = path.parent();
        if let Some((of, top)) = &self.last
            && *of == folder
        {
            return Ok(top.clone());
        }
        let top = self.noted.way(self.outbox, folder.as_ref())?;
        self.last = Some((folder, top.clone()));
        Ok(top)
    }

    /// That of a whole folder, at which something may have been mounted itself.
    pub(super) fn find_folder(&mut self, path: &RemotePath) -> io::Result<Way> {
        let itself = self.noted.way(self.outbox, Some(path))?;
        let way = self.find(path)?;
        Ok(Way {
            missing: itself.missing,
            ..way
        })
    }
}

impl Disposal {
    /// This disposal with the folder `top` in place of its outbox.
    pub(super) fn below<'a>(&'a self, top: Option<&RemotePath>) -> Cow<'a, Self> {
        let rest = top.and_then(|top| {
            let rest = self.path.as_bytes().strip_prefix(top.as_bytes())?;
            RemotePath::parse(rest.strip_prefix(b"/")?).ok()
        });
        match (top, rest) {
            (Some(top), Some(path)) => Cow::Owned(Self {
                root: confined::join(&self.root, top),
                path,
                ..self.clone()
            }),
            _ => Cow::Borrowed(self),
        }
    }
}
