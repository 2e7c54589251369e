//! The inbox folder as it is now: there, marked as ours, on one file system with its partials; or *held*.
//!
//! The folder is checked again for each offer, and nothing is concluded from what is missing in a folder without its id.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::Dir;

use super::{dialect, disks::Disks, inherited, named::Named, naming::Names};
use crate::{
    error::shown,
    failpoints,
    fs::{
        border::Side,
        dev_ino::DevIno,
        durable::{self, How},
        file_system::FileSystem,
        folder_id, own_folder,
    },
    io_error::is_shortage,
    owner::{self, Lock, Me},
    poison::Unpoisoned as _,
};

/// Where partials lie, below `.dropwire`.
pub(super) const PARTIALS: &str = "partial";
const PROBE: &str = "probe";
const PROBED: &str = "probed";
const WITNESS: &str = "witness";
/// Said as long as nothing is known of it.
pub(super) const NO_LOOK: &str = "the first look at it is not over yet (does its disk answer?)";

/// An inbox folder that is there.
pub(super) struct InboxDir {
    /// Absolute.
    pub path: PathBuf,
    /// Its handle: every path that a peer names is resolved below it.
    pub root: Dir,
    /// `.dropwire/partial`.
    pub partials: Dir,
    /// Its folder id.
    pub folder_id: [u8; 16],
    /// Which names the file system takes.
    pub names: Names,
    /// How files get their final names here.
    pub how: How,
    /// May many files be made durable at once?
    pub syncfs: bool,
    /// See [`FileSystem::keeps_holes`].
    pub keeps_holes: bool,
    /// Does a file keep its inode number over mounts?
    pub lasting_inodes: bool,
    /// Which files got their names.
    pub named: Arc<Named>,
    /// Other disks inside it.
    pub disks: Disks,
    /// What a new file's permissions are here (the umask's doing); Unix mode bits.
    pub mode: u32,
    /// The size of the smallest file that turned out to be too large for the file system; `u64::MAX`: none did.
    too_large: AtomicU64,
    own: DevIno,
    side: Side,
}

/// Why the inbox takes nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    /// For people.
    pub reason: String,
}

impl InboxDir {
    /// Opens the folder at `path` for this agent, which then has the lock. It has to have the folder id `expected`;
    /// None: one that it has or gets now. Nothing is touched in a folder that belongs to another agent.
    pub(super) fn open(
        path: &Path,
        expected: Option<[u8; 16]>,
        me: &Me,
        lock: &Lock,
    ) -> Result<Self, Trouble> {
        let root = whole(path)?;
        let held = |reason: String| Trouble { reason };
        owner::check(&root, path, me).map_err(held)?;
        let folder_id = check_folder_id(path, &root, expected)?;
        let unwritable = |e: io::Error| trouble(path, "cannot be written", &e);
        let own = own_folder::open_or_make(&root).map_err(unwritable)?;
        owner::take(&root, path, me).map_err(held)?;
        lock.hold(&root).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => held(format!(
                "{} is in use by another dropwire process with this agent's key; stop that one",
                shown(path)
            )),
            _ => unwritable(e),
        })?;
        let partials = durable::open_or_make_dir(&own, OsStr::new(PARTIALS)).map_err(unwritable)?;
        durable::sync_dir(&own).map_err(unwritable)?;
        durable::sync_dir(&root).map_err(unwritable)?;
        inherited::hand_on_nothing(&partials);
        let (how, mode) = probe(&partials).map_err(|e| match e.kind() {
            io::ErrorKind::Unsupported => held(format!(
                "the file system of {} can neither rename without replacing nor make hard links: choose another folder as \
                 the inbox",
                shown(path)
            )),
            _ => unwritable(e),
        })?;
        let named = Arc::new(Named::open(&own).map_err(unwritable)?);
        let names = dialect::probe(&partials).map_err(unwritable)?;
        let on = durable::sync_handle(&root).and_then(|a| FileSystem::of(&a));
        let on = match on {
            // Not believed for as long as the inbox is open.
            Err(e) if is_shortage(&e) => return Err(unwritable(e)),
            on => on,
        };
        let lasting_inodes = on.as_ref().is_ok_and(|on| on.lasting_inodes);
        let side = Side::of(&root).map_err(unwritable)?;
        let identity_of_own = DevIno::of_found(&own.dir_metadata().map_err(unwritable)?);
        let disks = Disks::open(path, own).map_err(|e| {
            trouble(
                path,
                "has a list of disks (.dropwire/disks) that cannot be read",
                &e,
            )
        })?;
        Ok(Self {
            path: path.into(),
            root,
            names,
            partials,
            folder_id,
            how,
            syncfs: on.as_ref().is_ok_and(|on| on.syncfs_reports),
            lasting_inodes,
            keeps_holes: on.as_ref().is_ok_and(FileSystem::keeps_holes),
            named,
            disks,
            mode,
            too_large: AtomicU64::new(u64::MAX),
            own: identity_of_own,
            side,
        })
    }

    /// For tests that need no agent. (Theirs is the one of the room's tests.)
    #[cfg(test)]
    pub(super) fn alone(path: &Path) -> Self {
        let me = Me {
            id: super::tests::ME,
            name: "me".into(),
        };
        Self::open(path, None, &me, &Lock::default()).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// A new descriptor of the folder, for syncfs and for asking how much is free.
    pub(super) fn sync_handle(&self) -> io::Result<File> {
        durable::sync_handle(&self.root)
    }

    /// The file system did not take a file of `size` bytes.
    pub(super) fn is_too_small_for(&self, size: u64) {
        self.too_large.fetch_min(size, Relaxed);
    }

    /// Does it take files of `size` bytes, as far as was seen since the inbox was opened?
    pub(super) fn may_take(&self, size: u64) -> bool {
        let too_large = self.too_large.load(Relaxed);
        size < too_large || too_large == u64::MAX || failpoints::mutant("R1-too-large")
    }

    /// The device that it is on.
    pub(super) fn device(&self) -> u64 {
        self.own.device
    }

    /// Is this dropwire's own folder, under whatever name the file system finds it?
    pub(super) fn is_own(&self, folder: &Dir) -> io::Result<bool> {
        let meta = folder.dir_metadata()?;
        let by_folder_id = || {
            !self.lasting_inodes
                && meta.dev() == self.device()
                && folder_id::lies_in(folder, self.folder_id)
                && !failpoints::mutant("R5-own")
        };
        Ok(DevIno::of_found(&meta) == self.own || by_folder_id())
    }

    /// Does no rename lead from the partials into this folder?
    pub(super) fn is_elsewhere(&self, folder: &Dir) -> io::Result<bool> {
        Ok(Side::of(folder)? != self.side)
    }

    /// Is the other the same folder with the same partials, opened another time?
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.folder_id == other.folder_id && self.are_ours(&other.root, &other.partials)
    }

    /// Still the folder at its path, with its id and its partials?
    fn still_there(&self) -> Result<bool, Trouble> {
        let root = whole(&self.path)?;
        check_folder_id(&self.path, &root, Some(self.folder_id))?;
        let partials = root
            .open_dir_nofollow(own_folder::NAME)
            .and_then(|own| own.open_dir_nofollow(PARTIALS));
        Ok(partials.is_ok_and(|partials| self.are_ours(&root, &partials)))
    }

    /// Are these the folders of which this has handles? The folder id of `root` is right.
    fn are_ours(&self, root: &Dir, partials: &Dir) -> bool {
        let same = |a: &Dir, b: &Dir| matches!((a.dir_metadata(), b.dir_metadata()), (Ok(a), Ok(b)) if DevIno::of_found(&a) == DevIno::of_found(&b));
        match same(root, &self.root) && same(partials, &self.partials) {
            false if !self.lasting_inodes => shows(partials, &self.partials).unwrap_or(false),
            same => same,
        }
    }
}

/// The folder at `path`, if nothing parts it from its own `.dropwire`.
fn whole(path: &Path) -> Result<Dir, Trouble> {
    let root = Dir::open_ambient_dir(path, cap_std::ambient_authority())
        .map_err(|e| trouble(path, "cannot be opened", &e))?;
    match parted(path, &root) {
        Ok(None) => Ok(root),
        Ok(Some(reason)) => Err(Trouble { reason }),
        Err(e) => Err(trouble(path, "cannot be looked into", &e)),
    }
}

/// Why no file can be renamed from the partials' folder into the inbox `root` at `path`; None: they can.
pub fn parted(path: &Path, root: &Dir) -> io::Result<Option<String>> {
    let side = Side::of(root)?;
    let (mut folder, mut at) = (root.try_clone()?, path.to_path_buf());
    for name in [own_folder::NAME, PARTIALS] {
        folder = match folder.open_dir_nofollow(name) {
            Ok(next) => next,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break, // it is made there
            Err(e) => return Err(e),
        };
        at.push(name);
        if Side::of(&folder)? != side && !failpoints::mutant("R2-parted") {
            return Ok(Some(format!(
                "no file can be renamed from {} into {}: is something mounted there? Unmount it, or make it an ordinary \
                 folder again; the agent waits for that",
                shown(&at),
                shown(path)
            )));
        }
    }
    Ok(None)
}

/// Are the two folders one? What is made in one is seen in the other: for where no number tells.
fn shows(now: &Dir, then: &Dir) -> io::Result<bool> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unpoisoned();
    let witness = OsStr::new(WITNESS);
    match durable::unlink(now, witness) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {} // one that a crash left would speak for a copy
    }
    drop(durable::create_private(then, witness)?);
    let seen = now.symlink_metadata(witness).is_ok();
    let _ = durable::unlink(then, witness); // else the next check does
    Ok(seen || failpoints::mutant("R5-witness"))
}

/// The way to the inbox: gives out its [`InboxDir`] while it is there, else says why not.
pub(super) struct InboxHandle {
    path: Option<PathBuf>,
    me: Me,
    lock: Lock,
    entering: Mutex<()>,
    state: Mutex<State>,
}

enum State {
    Open(Arc<InboxDir>),
    Held(String),
    /// Until the agent is restarted.
    Broken(String),
}

impl InboxHandle {
    /// For this agent, to the folder at `path`; None: it has no inbox.
    pub(super) fn new(path: Option<PathBuf>, me: Me) -> Self {
        Self {
            path,
            me,
            lock: Lock::default(),
            entering: Mutex::new(()),
            state: Mutex::new(State::Held(NO_LOOK.into())),
        }
    }

    /// Where it leads.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// [`InboxDir::open`] for this agent.
    pub(super) fn open_at(&self, path: &Path, expected: Option<[u8; 16]>) -> Result<InboxDir, Trouble> {
        InboxDir::open(path, expected, &self.me, &self.lock)
    }

    /// The folder's lock.
    pub(super) fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The inbox, checked again. Where it comes (back), `open` opens it and clears up what a crash left.
    pub(super) fn open(
        &self,
        open: impl FnOnce(&Path) -> Result<InboxDir, Trouble>,
    ) -> Result<Arc<InboxDir>, Trouble> {
        let one_at_a_time = self.entering.lock().unpoisoned();
        let held = |reason: &str| Trouble {
            reason: reason.into(),
        };
        let path = self
            .path
            .as_deref()
            .ok_or_else(|| held("this agent has no inbox"))?;
        let entered = match self.last_seen() {
            Ok(inbox_dir) => match inbox_dir.still_there() {
                Ok(true) => Ok(inbox_dir),
                Ok(false) => open(path).map(Arc::new),
                Err(trouble) => Err(trouble),
            },
            Err(reason) if self.broken().is_some() => return Err(held(&reason)),
            Err(_) => open(path).map(Arc::new),
        };
        let mut state = self.state();
        drop(one_at_a_time);
        if let State::Broken(reason) = &*state {
            return Err(held(reason)); // by what `open` cleared up, or by others meanwhile
        }
        match &entered {
            Ok(inbox_dir) => *state = State::Open(inbox_dir.clone()),
            Err(trouble) => {
                if !matches!(&*state, State::Held(reason) if *reason == trouble.reason) {
                    tracing::warn!(reason = trouble.reason, "the inbox is held");
                }
                *state = State::Held(trouble.reason.clone());
            }
        }
        entered
    }

    /// The inbox as it was at the last check; the error is why it is held.
    pub(super) fn last_seen(&self) -> Result<Arc<InboxDir>, String> {
        match &*self.state() {
            State::Open(inbox_dir) => Ok(inbox_dir.clone()),
            State::Held(reason) | State::Broken(reason) => Err(reason.clone()),
        }
    }

    /// Takes nothing more until the agent is restarted: a directory could not be made durable, and asking the
    /// kernel again would be answered with a lie.
    pub(super) fn break_off(&self, reason: String) {
        tracing::error!(reason, "the inbox takes nothing until a restart");
        *self.state() = State::Broken(reason);
    }

    /// Why, if [`InboxHandle::break_off`] was called.
    pub(super) fn broken(&self) -> Option<String> {
        match &*self.state() {
            State::Broken(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// As on a file system that cannot rename without replacing.
    #[cfg(test)]
    pub(super) fn link_from_now_on(&self) {
        self.pretend(|inbox_dir| inbox_dir.how = How::Linked);
    }

    /// As on one where inode numbers do not last.
    #[cfg(test)]
    pub(super) fn distrust_numbers_from_now_on(&self) {
        self.pretend(|inbox_dir| inbox_dir.lasting_inodes = false);
    }

    #[cfg(test)]
    fn pretend(&self, change: impl FnOnce(&mut InboxDir)) {
        let mut inbox_dir = self
            .open_at(self.path().unwrap(), None)
            .unwrap_or_else(|e| panic!("{e:?}"));
        change(&mut inbox_dir);
        *self.state() = State::Open(Arc::new(inbox_dir));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }
}

fn check_folder_id(path: &Path, root: &Dir, expected: Option<[u8; 16]>) -> Result<[u8; 16], Trouble> {
    let found = folder_id::read(root)
        .map_err(|e| trouble(path, "has an id (.dropwire/id) that cannot be read", &e))?;
    let other = |what: &str| Trouble {
        reason: format!(
            "{} {what}; is its disk not mounted, or was the folder replaced? To use the one that is there now: `{}`",
            shown(path),
            owner::adopt(path)
        ),
    };
    match (found, expected) {
        (Some(found), Some(expected)) if found != expected => {
            Err(other("has another id (.dropwire/id) than before"))
        }
        (Some(found), _) => Ok(found),
        (None, Some(_)) => Err(other("has lost its id (.dropwire/id)")),
        (None, None) => folder_id::create(root).map_err(|e| trouble(path, "cannot be written", &e)),
    }
}

/// Which way of naming without replacing works, and what permissions new files get.
fn probe(partials: &Dir) -> io::Result<(How, u32)> {
    for litter in [PROBE, PROBED] {
        match durable::unlink(partials, OsStr::new(litter)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let file = partials.create(PROBE)?;
    #[cfg(unix)]
    let mode = cap_std::fs::PermissionsExt::mode(&file.metadata()?.permissions()) & 0o666;
    #[cfg(not(unix))]
    let mode = 0;
    drop(file);
    let how =
        durable::rename_noreplace(partials, OsStr::new(PROBE), partials, OsStr::new(PROBED)).map_err(|e| {
            match e.kind() {
                // Without renaming, a hard link was tried: these are its refusals.
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
                    io::ErrorKind::Unsupported.into()
                }
                _ => e,
            }
        });
    for litter in [PROBE, PROBED] {
        let _ = durable::unlink(partials, OsStr::new(litter)); // else the next probe does
    }
    Ok((how?, mode))
}

fn trouble(path: &Path, what: &str, error: &io::Error) -> Trouble {
    Trouble {
        reason: format!("{} {what}: {error}", shown(path)),
    }
}

#[cfg(test)]
mod tests {
    use dropwire_protocol::AgentId;

    use super::*;

    fn me(n: u8) -> Me {
        Me {
            id: AgentId([n; 32]),
            name: "me".into(),
        }
    }

    #[test]
    fn a_second_agent_touches_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let lock = Lock::default();
        let inbox_dir = InboxDir::open(temp.path(), None, &me(1), &lock).unwrap();
        std::fs::write(temp.path().join(".dropwire/partial/x"), "bytes").unwrap();
        let other = Lock::default();
        let held = |n| {
            InboxDir::open(temp.path(), None, &me(n), &other)
                .map(|_| ())
                .unwrap_err()
                .reason
        };
        assert!(held(2).contains("belongs to the agent"), "{}", held(2));
        assert!(held(1).contains("in use"), "a clone: {}", held(1));
        assert!(temp.path().join(".dropwire/partial/x").exists());
        drop(inbox_dir);
        lock.release();
        InboxDir::open(temp.path(), None, &me(1), &other).unwrap();
    }

    #[test]
    fn an_inbox_is_held_until_it_is_back_with_its_id() {
        let open = |p: &Path, expected| InboxDir::open(p, expected, &me(1), &Lock::default());
        let temp = tempfile::tempdir().unwrap();
        let (path, away) = (temp.path().join("in"), temp.path().join("away"));
        let handle = InboxHandle::new(Some(path.clone()), me(1));
        assert!(handle.open(|p| open(p, None)).is_err(), "never made");
        assert!(!path.exists());

        std::fs::create_dir(&path).unwrap();
        let folder_id = handle.open(|p| open(p, None)).map(|s| s.folder_id).unwrap();
        assert_eq!(
            handle.open(|_| panic!("still open")).map(|s| s.folder_id),
            Ok(folder_id)
        );

        std::fs::rename(&path, &away).unwrap();
        assert!(handle.open(|p| open(p, Some(folder_id))).is_err());
        std::fs::create_dir(&path).unwrap();
        let held = handle
            .open(|p| open(p, Some(folder_id)))
            .map(|s| s.folder_id)
            .unwrap_err();
        assert!(held.reason.contains("lost its id"), "{held:?}");
        assert!(handle.last_seen().is_err());

        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&away, &path).unwrap();
        assert_eq!(
            handle.open(|p| open(p, Some(folder_id))).map(|s| s.folder_id),
            Ok(folder_id)
        );
    }

    #[test]
    fn two_handles_on_one_folder_are_told_from_a_copy_without_numbers() {
        let temp = tempfile::tempdir().unwrap();
        let (path, away) = (temp.path().join("in"), temp.path().join("away"));
        let open = || Dir::open_ambient_dir(&path, cap_std::ambient_authority()).unwrap();
        std::fs::create_dir(&path).unwrap();
        let then = open();
        assert!(shows(&open(), &then).unwrap());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);

        std::fs::rename(&path, &away).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(WITNESS), "").unwrap();
        assert!(!shows(&open(), &then).unwrap(), "what a crash left says nothing");
        std::fs::remove_dir(&away).unwrap();
        assert!(!shows(&open(), &then).unwrap_or(false), "it is gone");
    }

    #[test]
    fn our_own_folder_is_known_by_its_id() {
        let temp = tempfile::tempdir().unwrap();
        let mut inbox_dir = InboxDir::alone(temp.path());
        inbox_dir.root.create_dir("other").unwrap();
        let is_own =
            |inbox_dir: &InboxDir, name| inbox_dir.is_own(&inbox_dir.root.open_dir(name).unwrap()).unwrap();
        assert!(is_own(&inbox_dir, own_folder::NAME) && !is_own(&inbox_dir, "other"));
        (inbox_dir.lasting_inodes, inbox_dir.own.inode) = (false, 0);
        assert!(is_own(&inbox_dir, own_folder::NAME) && !is_own(&inbox_dir, "other"));
        inbox_dir.root.write("other/id", "no id").unwrap();
        assert!(!is_own(&inbox_dir, "other"));
    }

    #[test]
    fn another_folder_s_mark_is_not_taken_for_ours() {
        let temp = tempfile::tempdir().unwrap();
        let lock = Lock::default();
        InboxDir::open(temp.path(), None, &me(1), &lock).unwrap();
        let held = InboxDir::open(temp.path(), Some([7; 16]), &me(1), &lock)
            .map(|s| s.folder_id)
            .unwrap_err();
        assert!(held.reason.contains("another id"), "{held:?}");
    }

    #[test]
    fn a_broken_one_stays_broken() {
        let temp = tempfile::tempdir().unwrap();
        let handle = InboxHandle::new(Some(temp.path().into()), me(1));
        handle
            .open(|p| InboxDir::open(p, None, &me(1), &Lock::default()))
            .map(|s| s.folder_id)
            .unwrap();
        handle.break_off("the disk".into());
        assert!(handle.open(|_| panic!("not opened again")).is_err());
    }
}
