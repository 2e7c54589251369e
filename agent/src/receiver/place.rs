//! Finds the folder and a free name for a file, one component at a time below the inbox's handle, following nothing.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::{AgentId, Kind, PathError, RemotePath};

use super::{
    aliases::Aliases,
    inbox_dir::InboxDir,
    ledger::Alias,
    naming::{Names, os_name},
};
use crate::{
    failpoints,
    fs::{durable, free_name::first_free},
    io_error::blames_the_name,
    poison::Unpoisoned as _,
};

/// Names being given at this moment, and folders that have another name here.
pub(super) struct Places {
    inner: Mutex<Inner>,
}

struct Inner {
    given: HashSet<Vec<u8>>,
    aliases: Aliases,
}

/// What an offer says of its place.
#[derive(Clone, Copy)]
pub(super) struct Offered<'a> {
    /// Who offers.
    pub sender: AgentId,
    /// The folder of the inbox below which it goes, if one is given.
    pub top: Option<&'a str>,
    /// As the sender calls it.
    pub path: &'a RemotePath,
    /// A file or a whole folder.
    pub kind: Kind,
}

/// A name that was free; nobody else is given it while this lives.
pub(super) struct Place {
    /// Below the inbox.
    pub path: RemotePath,
    /// The folders on the way, the inbox first; the last one holds the file.
    pub folders: Vec<Folder>,
    /// The file's own name.
    pub name: OsString,
    /// Folders that have another name here: as offered, and the alias; None: it is forgotten. To be kept with the intent.
    pub aliases: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// How the names were made.
    pub names: Names,
    /// Does no rename lead from the partials into the folder that holds the file?
    pub is_elsewhere: bool,
    made: Made,
    places: Arc<Places>,
}

/// A folder by its path below the inbox, and its handle.
pub(super) type Folder = (Vec<u8>, Arc<Dir>);

/// Folders that are open already, by their paths: files that are placed together share them, so that a deep tree takes
/// a descriptor for each folder and not for each file and folder.
pub(super) type Opened = HashMap<Vec<u8>, Arc<Dir>>;

/// Why there is no place for a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// The path cannot be one here.
    #[error("the path cannot be used here")]
    BadName(#[from] BadName),
    /// A folder on the way cannot be opened or made, or not be looked into.
    #[error("the folder cannot be used")]
    Io(#[from] io::Error),
}

/// Why a path cannot be one in this inbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadName {
    /// The file system refuses it.
    #[error(transparent)]
    Refused(io::Error),
    /// With the names that it gets here it is no path.
    #[error(transparent)]
    NoPath(#[from] PathError),
    /// It would lie where nothing but dropwire's own files lie.
    #[error("it leads into dropwire's own folder")]
    Own,
}

impl Places {
    /// With the aliases that the ledger knows.
    pub(super) fn new(aliases: Vec<Alias>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                given: HashSet::new(),
                aliases: Aliases::new(aliases),
            }),
        })
    }

    /// Forgets the aliases of all who are no peers any more.
    pub(super) fn keep_aliases_of(&self, peers: &HashSet<AgentId>) {
        self.lock().aliases.keep_of(peers);
    }

    /// A free place for what is `offered`, its names made as `names` has it; one that the file system refuses all the
    /// same (of another disk inside the inbox, say) is made stricter. Makes the folders on the way; they are durable
    /// once each of [`Place::folders`] is synced.
    pub(super) fn choose(
        self: &Arc<Self>,
        inbox_dir: &InboxDir,
        names: Names,
        offered: Offered<'_>,
        opened: &mut Opened,
    ) -> Result<Place, PlaceError> {
        let mut choose = |names| self.choose_by(inbox_dir, names, offered, opened);
        let chosen = match choose(names) {
            Err(PlaceError::Io(e)) if blames_the_name(&e) => choose(Names::STRICT),
            chosen => chosen,
        };
        match chosen {
            Err(PlaceError::Io(e)) if blames_the_name(&e) => Err(BadName::Refused(e).into()),
            chosen => chosen,
        }
    }

    fn choose_by(
        self: &Arc<Self>,
        inbox_dir: &InboxDir,
        names: Names,
        offered: Offered<'_>,
        opened: &mut Opened,
    ) -> Result<Place, PlaceError> {
        let Offered {
            sender,
            top,
            path,
            kind,
        } = offered;
        let root = reuse(opened, &[], || inbox_dir.root.try_clone())?;
        let mut walk = Walk {
            folders: vec![(Vec::new(), root)],
            aliases: Vec::new(),
            names,
            is_elsewhere: false,
            made: Made::default(),
            opened,
        };
        let offered: Vec<&[u8]> = path.components().collect();
        let Some((file, above)) = offered.split_last() else {
            return Err(BadName::NoPath(PathError::Empty).into());
        };
        if let Some(top) = top {
            self.descend(inbox_dir, sender, &mut walk, b"/", top.as_bytes())?; // no offered folder is called `/`
        }
        for depth in 0..above.len() {
            let folder = above[..=depth].join(&b'/');
            self.descend(inbox_dir, sender, &mut walk, &folder, above[depth])?;
        }
        let wanted = names.mapped(file);
        let (path, name) = self.free_name(&walk, &wanted, kind)?;
        Ok(Place {
            path,
            folders: walk.folders,
            name,
            aliases: walk.aliases,
            names,
            is_elsewhere: walk.is_elsewhere,
            made: walk.made,
            places: self.clone(),
        })
    }

    /// The names of the folders on the way to what `sender` calls `path`, as far as they can be told without asking the
    /// disk.
    pub(super) fn way(
        &self,
        inbox_dir: &InboxDir,
        sender: AgentId,
        top: Option<&str>,
        path: &RemotePath,
    ) -> Vec<Vec<u8>> {
        let offered: Vec<&[u8]> = path.components().collect();
        let mut inner = self.lock();
        let mut called = |offered: &[u8], component: &[u8]| {
            let alias = inner.aliases.get(sender, offered);
            alias.unwrap_or_else(|| inbox_dir.names.mapped(component))
        };
        let top = top.map(|top| called(b"/", top.as_bytes()));
        let folders =
            (1..offered.len()).map(|depth| called(&offered[..depth].join(&b'/'), offered[depth - 1]));
        let folders: Vec<_> = folders.collect();
        top.into_iter().chain(folders).collect()
    }

    /// One folder down. `offered` is its path as the sender calls it; a name taken by something else (a file, a
    /// symlink) becomes an alias that stays.
    fn descend(
        &self,
        inbox_dir: &InboxDir,
        sender: AgentId,
        walk: &mut Walk<'_>,
        offered: &[u8],
        component: &[u8],
    ) -> Result<(), PlaceError> {
        let known = self.lock().aliases.get(sender, offered);
        let name = known.clone().unwrap_or_else(|| walk.names.mapped(component));
        let names = walk.names;
        let (path, dir) = walk.last()?;
        let taken = |n| -> io::Result<bool> {
            let candidate = os_name(&names.numbered(&name, Kind::Folder, n));
            match dir.symlink_metadata(&candidate) {
                Ok(meta) => Ok(!meta.is_dir()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(e) => Err(e),
            }
        };
        let number = if taken(0)? { first_free(taken)? } else { 0 };
        let chosen = names.numbered(&name, Kind::Folder, number);
        let path = joined(path, &chosen);
        let dir = dir.clone();
        let next = match walk.opened.get(&path) {
            Some(open) => open.clone(),
            None => {
                walk.made.make(&dir, os_name(&chosen))?;
                reuse(walk.opened, &path, || dir.open_dir_nofollow(os_name(&chosen)))?
            }
        };
        inbox_dir.disks.stands(&path, &dir, &next)?;
        walk.is_elsewhere = inbox_dir.is_elsewhere(&next)?;
        if inbox_dir.is_own(&next)? {
            return Err(BadName::Own.into());
        }
        if number > 0 || known.is_some() {
            let mut inner = self.lock();
            let forgotten = inner.aliases.set(sender, offered.to_vec(), chosen.clone());
            walk.aliases.push((offered.to_vec(), Some(chosen)));
            walk.aliases.extend(forgotten.map(|folder| (folder, None)));
        }
        walk.folders.push((path, next));
        Ok(())
    }

    fn free_name(
        &self,
        walk: &Walk<'_>,
        wanted: &[u8],
        kind: Kind,
    ) -> Result<(RemotePath, OsString), PlaceError> {
        let names = walk.names;
        let numbered = |n| names.numbered(wanted, kind, n);
        let (folder, dir) = walk.last()?;
        // The disk may hang: nobody else waits for it here.
        let is_there = |n: u64| match dir.symlink_metadata(os_name(&numbered(n))) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        };
        let full = |n| joined(folder, &numbered(n));
        let is_taken = |n| Ok::<_, io::Error>(self.lock().given.contains(&full(n)) || is_there(n)?);
        // Given first and then checked on disk: what was free before may have been given, named and let go of since.
        let give = |n| -> io::Result<bool> {
            if !self.lock().given.insert(full(n)) {
                return Ok(false);
            }
            let taken = is_there(n);
            if !matches!(taken, Ok(false)) {
                self.lock().given.remove(&full(n));
            }
            Ok(!taken?)
        };
        let mut number = 0;
        while !give(number)? {
            number = first_free(is_taken)?;
        }
        let path = RemotePath::parse(&full(number)).map_err(|e| {
            self.lock().given.remove(&full(number));
            BadName::NoPath(e)
        })?;
        Ok((path, os_name(&numbered(number))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unpoisoned()
    }
}

impl Place {
    /// The folders that were made for it, to be let go of after all files that may share them.
    pub(super) fn take_made(&mut self) -> Made {
        std::mem::take(&mut self.made)
    }

    /// The folder that holds the file.
    pub(super) fn parent(&self) -> io::Result<&Dir> {
        let last = self.folders.last().map(|(_, dir)| &**dir);
        last.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().given.remove(self.path.as_bytes());
    }
}

/// The folders on the way to the file at `path` (which lies where it was once placed) as far as they are there, the
/// inbox first.
pub(super) fn existing_folders(inbox_dir: &InboxDir, path: &RemotePath) -> io::Result<Vec<Folder>> {
    let mut folders = vec![(Vec::new(), Arc::new(inbox_dir.root.try_clone()?))];
    let components: Vec<&[u8]> = path.components().collect();
    for component in components.split_last().map_or(&[][..], |(_, above)| above) {
        let next = match folders.last() {
            Some((path, dir)) => match dir.open_dir_nofollow(os_name(component)) {
                Ok(next) => (joined(path, component), Arc::new(next)),
                Err(e) if is_no_folder(&e) => break,
                Err(e) => return Err(e),
            },
            None => break,
        };
        folders.push(next);
    }
    Ok(folders)
}

struct Walk<'a> {
    folders: Vec<Folder>,
    aliases: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    names: Names,
    is_elsewhere: bool,
    made: Made,
    opened: &'a mut Opened,
}

/// Folders made on the way to a place; unless a file is put there they go again, as long as nothing else is in them.
#[derive(Default)]
pub(super) struct Made(Vec<(Arc<Dir>, OsString)>);

impl Made {
    /// A file was put there.
    pub(super) fn stays(mut self) {
        self.0.clear();
    }

    /// Makes a folder where it is missing.
    fn make(&mut self, parent: &Arc<Dir>, name: OsString) -> io::Result<()> {
        match durable::make_shared_dir(parent, &name) {
            Ok(()) => self.0.push((parent.clone(), name)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        while let Some((parent, name)) = self.0.pop() {
            if failpoints::mutant("unmake") || parent.remove_dir(name).is_err() {
                return; // somebody uses it
            }
        }
    }
}

impl Walk<'_> {
    fn last(&self) -> io::Result<(&[u8], &Arc<Dir>)> {
        let last = self.folders.last().map(|(path, dir)| (path.as_slice(), dir));
        last.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The folder at `path` from those that are open, else by `open`. Nothing gets a name where that cannot be made durable.
fn reuse(opened: &mut Opened, path: &[u8], open: impl FnOnce() -> io::Result<Dir>) -> io::Result<Arc<Dir>> {
    if let Some(dir) = opened.get(path) {
        return Ok(dir.clone());
    }
    let dir = Arc::new(open()?);
    failpoints::step("R6-readable", || durable::can_sync_dir(&dir)).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => {
            let text = format!("the agent cannot read it, which syncing it takes: {e}");
            io::Error::new(e.kind(), text)
        }
        _ => e,
    })?;
    opened.insert(path.to_vec(), dir.clone());
    Ok(dir)
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() {
        return name.to_vec();
    }
    [folder, b"/", name].concat()
}

/// Nothing there, a file, or a symlink.
fn is_no_folder(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::ELOOP) {
        return true;
    }
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
#[path = "tests/place.rs"]
mod tests;
