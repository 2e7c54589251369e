//! What becomes of a delivered file (S5): it leaves by way of `.dropwire/leaving`, where nobody writes to it unseen.
//!
//! Each step may be the last before a crash; [`dispose_all`] is then called again and goes on from what it finds:
//!
//! | on disk | found by the next call |
//! |---|---|
//! | under its path | the same checks again: another version stays, and is a new item |
//! | in `leaving/<name>` | the same checks there, with the bytes' digest; then archived or removed |
//! | under both | the name in `leaving` goes, and it is begun again from the path |
//! | in `leaving` and the archive, or given back beside its path | only the name in `leaving` goes |
//! | in none | both directories synced, then gone |
//! | its marker in `leaving/<name>.marker` | goes with it, or back with it |
//!
//! Two names are left where a crash came between the syncs of a rename's two directories (btrfs), or between link and
//! unlink where nothing else can name a file without replacing. The new name is always the first to be durable, and no
//! step begins before the one before it is: so there are never three, and none only when it has left.
//!
//! A file that turns out changed in `leaving` is given back under its old name; where somebody took that in the
//! meantime, under the next free one beside it (`report (1).pdf`). It was never sent, so it is a new item there:
//! nothing is lost and nothing sent twice.

use std::{
    borrow::Cow,
    ffi::OsStr,
    fs::File,
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use cap_std::fs::Dir;
use dropwire_protocol::{Digest, RemotePath};

use crate::{
    config::AfterSend,
    descriptors::affordable,
    error::shown,
    failpoints,
    fs::{
        border::Way,
        confined, folder_id,
        version::{OutboxId, Version},
    },
    io_error,
};

mod adopted;
mod beside;
mod check;
mod folder;
mod marker;
mod removal;
mod siblings;
pub mod spool;
mod steps;
mod top;
mod touched;

pub use adopted::give_back_all;
pub use siblings::Siblings;
use steps::{Stage, Steps};
use top::Tops;

/// A delivered file that has to leave.
#[derive(Clone, Debug)]
pub struct Disposal {
    /// Its name in `leaving`: unique among all items, the same at every repetition, one plain component.
    pub name: String,
    /// The folder id of the outbox it lies in.
    pub outbox: OutboxId,
    /// Where that outbox is.
    pub root: PathBuf,
    /// Below it.
    pub path: RemotePath,
    /// The version that was delivered.
    pub version: Version,
    /// Of its bytes.
    pub digest: Digest,
    /// Where it goes; [`AfterSend::Keep`] does nothing.
    pub after: AfterSend,
    /// It stays for so long after each change of it, its times included.
    pub linger: Duration,
    /// What its marker's name adds to its own, if it waited for one; the marker leaves with it.
    pub marker: Option<String>,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposed {
    /// It left, durably.
    Done,
    /// Another version is there: it stays, and is to be inspected again.
    Changed,
    /// The delivered version by all that the file system says of it, but with other bytes: it stays, and its jobs need
    /// a new counter to be sent again.
    OtherBytes,
    /// Somebody has it open for writing: to be tried again later.
    Busy,
    /// It was changed, or its times were, less than `linger` ago: to be tried again after that.
    Lingers,
    /// It is not there any more, durably.
    Gone,
}

/// Why it could not be done; nothing is lost, and it may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DisposeError {
    /// The outbox is not there, or without its id: nothing is concluded from what is missing in it.
    #[error("the outbox {0} is held: {1}")]
    Held(String, String),
    /// A folder in the outbox could not be synced. The system tells of such a loss once, so it is not to be asked again:
    /// nothing may leave this outbox until the agent is restarted.
    #[error(
        "nothing leaves the outbox {0} until the agent is restarted, for its disk failed to keep what was moved \
         ({1}): check the disk, then do that"
    )]
    Unsynced(String, String),
    /// It was told to stop; to be tried again.
    #[error("stopped")]
    Stopped,
    /// The disk or permissions.
    #[error("{1} cannot be {0}: {2}")]
    Disk(&'static str, RemotePath, #[source] io::Error),
}

/// Disposes of delivered files; an answer for each, in their order. Those of one outbox that follow each other share
/// their syncs. Blocks for the disk; once `stopped` says so, what is begun is ended and no more is read. Safe to repeat
/// after any answer and any crash; what it answers is durable. `siblings` are those of earlier calls.
pub fn dispose_all(
    disposals: &[Disposal],
    siblings: &Siblings,
    stopped: &dyn Fn() -> bool,
) -> Vec<Result<Disposed, DisposeError>> {
    disposals
        .chunk_by(|a, b| a.root == b.root && a.outbox == b.outbox && a.version.folder == b.version.folder)
        .flat_map(|batch| match batch.first() {
            Some(first) if first.version.folder => batch
                .iter()
                .map(|what| folder::dispose(what, siblings, stopped))
                .collect(),
            _ => dispose_in_one_outbox(batch, siblings, stopped),
        })
        .collect()
}

/// How many share their syncs, where this process can open so much; each holds two descriptors meanwhile, and its folders
/// two.
const TOGETHER: usize = 128;

fn together() -> usize {
    match failpoints::mutant("S5-descriptors") {
        true => TOGETHER,
        false => affordable(TOGETHER, 4),
    }
}

fn dispose_in_one_outbox(
    disposals: &[Disposal],
    siblings: &Siblings,
    stopped: &dyn Fn() -> bool,
) -> Vec<Result<Disposed, DisposeError>> {
    let Some(first) = disposals.first() else {
        return Vec::new();
    };
    let outbox = open(first);
    let tops = outbox.as_ref().map_err(Clone::clone).and_then(|outbox| {
        let mut tops = Tops::of(outbox).map_err(|e| format!("it cannot be looked through: {e}"))?;
        let found = disposals.iter().map(|what| (what, tops.find(&what.path)));
        Ok((outbox, found.collect::<Vec<_>>()))
    });
    match tops {
        Ok((outbox, found)) => found
            .chunk_by(|(_, a), (_, b)| matches!((a, b), (Ok(a), Ok(b)) if a == b))
            .flat_map(|batch| dispose_by_one_top(outbox, batch, siblings, stopped))
            .collect(),
        Err(reason) => disposals.iter().map(|what| Err(what.held(&reason))).collect(),
    }
}

fn dispose_by_one_top(
    outbox: &Dir,
    found: &[(&Disposal, io::Result<Way>)],
    siblings: &Siblings,
    stopped: &dyn Fn() -> bool,
) -> Vec<Result<Disposed, DisposeError>> {
    let Some((first, way)) = found.first() else {
        return Vec::new();
    };
    let way = match way {
        Ok(way) => way,
        Err(e) => return vec![Err(first.failed("moved", io_error::copy(e)))],
    };
    let disposals: Vec<_> = found
        .iter()
        .map(|(what, _)| what.below(way.top.as_ref()))
        .collect();
    match Steps::begin(&first.below(way.top.as_ref()), outbox, way, siblings, stopped) {
        Ok(mut steps) => disposals
            .chunks(together())
            .flat_map(|batch| dispose_together(&mut steps, batch))
            .collect(),
        Err(reason) => disposals.iter().map(|what| Err(what.held(&reason))).collect(),
    }
}

/// The outbox, if it is the one that is meant; else the reason why it is held.
fn open(what: &Disposal) -> Result<Dir, String> {
    failpoints::hang(&what.root);
    let outbox = confined::root(&what.root).map_err(|e| e.to_string())?;
    match folder_id::read(&outbox) {
        Ok(Some(id)) if OutboxId(id) == what.outbox => Ok(outbox),
        Ok(Some(_)) if !failpoints::mutant("S5-folder-id") => Err("another folder's id is there".into()),
        Ok(None) if !failpoints::mutant("S5-folder-id") => Err("its id (.dropwire/id) is missing".into()),
        Ok(_) => Ok(outbox),
        Err(e) => Err(format!("its id cannot be read: {e}")),
    }
}

fn dispose_together(
    steps: &mut Steps<'_>,
    batch: &[Cow<'_, Disposal>],
) -> Vec<Result<Disposed, DisposeError>> {
    let staged: Vec<_> = batch
        .iter()
        .map(|what| {
            steps.trusted()?;
            let staged = steps.stage(what)?;
            if what.after == AfterSend::Archive && staged.leaves() {
                steps.make_place(what)?;
            }
            Ok(staged)
        })
        .collect();
    let synced = steps.sync_staged();
    let ended: Vec<_> = batch
        .iter()
        .zip(staged)
        .map(|(what, staged)| match (staged?, &synced) {
            (Stage::Stays(answer), _) => steps.unmark(what, answer, of_file(what)),
            (_, Err(e)) => Err(what.failed("synced", io_error::copy(e))),
            (Stage::Gone, Ok(())) => steps.unmark(what, Disposed::Gone, of_file(what)),
            (Stage::Leaving { file, checked }, Ok(())) => {
                let answer = steps.leave(what, &file, checked)?;
                steps.unmark(what, answer, of_file(what))
            }
        })
        .collect();
    let synced = steps.sync_left();
    batch
        .iter()
        .zip(ended)
        .map(|(what, ended)| match (ended, &synced) {
            (Ok(Disposed::Done | Disposed::Gone), Err(e)) => Err(what.failed("synced", io_error::copy(e))),
            (ended, _) => ended,
        })
        .map(|ended| ended.map_err(|error| steps.judged(error)))
        .collect()
}

/// Inode and birth, as the item has them.
fn of_file(what: &Disposal) -> Option<(u64, i64)> {
    Some((what.version.inode, what.version.birth_ns))
}

impl Disposal {
    /// None: nothing, or no regular file, has that name.
    fn open(&self, folder: &Dir, name: &OsStr) -> Result<Option<File>, DisposeError> {
        match confined::open_file(folder, name) {
            Ok(file) => Ok(Some(file)),
            Err(e) if confined::is_absent(&e) => Ok(None),
            Err(e) => Err(self.failed("opened", e)),
        }
    }

    /// Was it changed less than `linger` ago? A time in the future (another machine's clock) says nothing.
    fn lingers(&self, changed_ns: i64) -> bool {
        let changed = u64::try_from(changed_ns).map(Duration::from_nanos);
        let since = changed.ok().map(|changed| SystemTime::UNIX_EPOCH + changed);
        let since = since.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        since.is_some_and(|since| since < self.linger) && !failpoints::mutant("S5-linger")
    }

    fn held(&self, reason: &str) -> DisposeError {
        DisposeError::Held(shown(&self.root), reason.to_owned())
    }

    fn failed(&self, doing: &'static str, error: io::Error) -> DisposeError {
        DisposeError::Disk(doing, self.path.clone(), error)
    }
}

#[cfg(test)]
mod tests;
