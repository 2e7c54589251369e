//! What was synced and renamed, in order, for tests that hold it against the steps that are promised; and a way to
//! have something happen, or fail, at one of them.
//!
//! A power cut shows a missing sync only with luck and with root; the order of the calls shows it always.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use cap_std::fs::Dir;

use crate::poison::Unpoisoned as _;

/// One call; paths are whole, or below the folder that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// A file, its data, a folder or a whole file system, by what it was called on.
    Sync(&'static str, PathBuf),
    /// A new name was asked for.
    Name(PathBuf, PathBuf),
    /// A name was taken away.
    Unlink(PathBuf),
}

static CALLS: Mutex<Vec<Call>> = Mutex::new(Vec::new());

/// The calls so far in the folder `root`, paths below it. Folders of tests have names of their own.
pub fn of(root: &Path) -> Vec<Call> {
    let root = root.canonicalize().expect("a folder");
    let below = |path: &PathBuf| path.strip_prefix(&root).ok().map(PathBuf::from);
    let calls = calls();
    let ours = calls.iter().filter_map(|call| match call {
        Call::Sync(what, path) => Some(Call::Sync(what, below(path)?)),
        Call::Name(from, to) => Some(Call::Name(below(from)?, below(to)?)),
        Call::Unlink(path) => Some(Call::Unlink(below(path)?)),
    });
    ours.collect()
}

/// A folder's or a file's sync.
pub fn sync(path: &str) -> Call {
    Call::Sync("sync", path.into())
}

/// Every name given at `from`: its bytes durable before it, by a sync of the file and then its folder or by one of
/// the file system; both folders after it, or the file system.
#[track_caller]
pub fn holds_the_order(calls: &[Call]) {
    for (at, call) in calls.iter().enumerate() {
        let Call::Name(from, to) = call else { continue };
        let (before, after) = calls.split_at(at);
        let synced =
            |calls: &[Call], path: &Path| calls.iter().rposition(|c| *c == Call::Sync("sync", path.into()));
        let folder = from.parent().expect("a name in a folder");
        // Synced once more where it was read again, it has been there under that name since the first time.
        let file = before.iter().position(|c| *c == Call::Sync("sync", from.into()));
        let by_itself = file.is_some_and(|file| synced(&before[file..], folder).is_some());
        let together = |calls: &[Call]| calls.iter().any(|c| matches!(c, Call::Sync("syncfs", _)));
        assert!(
            by_itself || together(before),
            "{call:?} before it was durable: {calls:#?}"
        );
        for folder in [folder, to.parent().expect("a name in a folder")] {
            assert!(
                synced(after, folder).is_some() || together(after),
                "{call:?} without {folder:?} after it: {calls:#?}"
            );
        }
    }
}

type Hook = Box<dyn FnOnce() -> io::Result<()> + Send>;

static HOOKS: Mutex<Vec<(Call, Hook)>> = Mutex::new(Vec::new());

/// Right before `call` (paths below `root`) is next made, `hook` runs; its error comes in place of the call.
pub fn before(root: &Path, call: Call, hook: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let root = root.canonicalize().expect("a folder");
    let whole = |path: PathBuf| {
        if path.as_os_str().is_empty() {
            root.clone()
        } else {
            root.join(path)
        }
    };
    let call = match call {
        Call::Sync(what, path) => Call::Sync(what, whole(path)),
        Call::Name(from, to) => Call::Name(whole(from), whole(to)),
        Call::Unlink(path) => Call::Unlink(whole(path)),
    };
    hooks().push((call, Box::new(hook)));
}

/// As a failing disk has it.
pub fn disk_error() -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EIO))
}

pub(super) fn note(what: &'static str, at: &impl AsFd) -> io::Result<()> {
    happens(Call::Sync(what, path_of(at)))
}

/// Of what is to be synced; not one of the calls, but something may happen there: `Call::Sync("open", …)`.
pub(super) fn opens(at: &impl AsFd) -> io::Result<()> {
    hook(&Call::Sync("open", path_of(at)))
}

/// Notes the opening of a private file, whether or not the file is there.
pub(super) fn opens_in(dir: &Dir, name: &OsStr) -> io::Result<()> {
    hook(&Call::Sync("open", path_of(dir).join(name)))
}

pub(super) fn named(from_dir: &Dir, from: &OsStr, to_dir: &Dir, to: &OsStr) -> io::Result<()> {
    happens(Call::Name(path_of(from_dir).join(from), path_of(to_dir).join(to)))
}

pub(super) fn unlinked(dir: &Dir, name: &OsStr) -> io::Result<()> {
    happens(Call::Unlink(path_of(dir).join(name)))
}

fn happens(call: Call) -> io::Result<()> {
    calls().push(call.clone());
    hook(&call)
}

fn hook(call: &Call) -> io::Result<()> {
    let hook = {
        let mut hooks = hooks();
        let at = hooks.iter().position(|(wanted, _)| wanted == call);
        at.map(|at| hooks.swap_remove(at).1)
    };
    hook.map_or(Ok(()), |hook| hook())
}

fn hooks() -> MutexGuard<'static, Vec<(Call, Hook)>> {
    HOOKS.lock().unpoisoned()
}

fn path_of(at: &impl AsFd) -> PathBuf {
    let link = format!("/proc/self/fd/{}", at.as_fd().as_raw_fd());
    std::fs::read_link(link).unwrap_or_default()
}

fn calls() -> MutexGuard<'static, Vec<Call>> {
    CALLS.lock().unpoisoned()
}
