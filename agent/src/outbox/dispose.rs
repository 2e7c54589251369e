//! What becomes of a delivered file (S5): it leaves by way of `.dropwire/leaving`, where nobody writes to it unseen.
//!
//! Each step may be the last before a crash; [`dispose_all`] is then called again and goes on from what it finds:
//!
//! | on disk | found by the next call |
//! |---|---|
//! | under its path | the same checks again: another version stays, and is a new drop |
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
//! meantime, under the next free one beside it (`report (1).pdf`). It was never sent, so it is a new drop there:
//! nothing is lost and nothing sent twice.

use std::{
    borrow::Cow,
    cell::OnceCell,
    ffi::OsStr,
    fs::File,
    io, mem,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use cap_std::fs::Dir;
use dropwire_protocol::{Digest, RemotePath};

use crate::{
    border::{self, Side},
    config::AfterSend,
    confined, durable,
    error::shown,
    fault,
    io_error::{self, LostWrite, Meaning},
    mark,
    outbox::marker,
    version::{OutboxId, Version},
};

mod adopted;
pub(super) mod beside;
mod check;
mod folder;
mod removal;
mod top;
mod touched;

pub use adopted::give_back_all;
use beside::rename_beside;
use check::{Checked, Compare};
use top::{Top, Tops};
use touched::{Area, Touched};

/// A delivered file that has to leave.
#[derive(Clone, Debug)]
pub struct Disposal {
    /// Its name in `leaving`: unique among all drops, the same at every repetition, one plain component.
    pub name: String,
    /// The mark of the outbox it lies in.
    pub outbox: OutboxId,
    /// Where that outbox is.
    pub root: PathBuf,
    /// Below it.
    pub path: RemotePath,
    /// What was delivered.
    pub version: Version,
    /// What was delivered.
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
    /// Another version lies there: it stays, and is to be looked at again.
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
    /// The outbox is not there, or without its mark: nothing is concluded from what is missing in it.
    #[error("the outbox {0} is held: {1}")]
    Held(String, String),
    /// A folder in the outbox could not be synced. The system tells of such a loss once, so it is not to be asked again:
    /// nothing may leave this outbox until the agent starts anew.
    #[error(
        "nothing leaves the outbox {0} until the agent is started anew, for its disk failed to keep what was moved \
         ({1}): check the disk, then do that"
    )]
    Unsynced(String, String),
    /// It was told to stop; to be tried again.
    #[error("stopped")]
    Stopped,
    /// The disk or permissions.
    #[error("{0} of {1}: {2}")]
    Disk(&'static str, RemotePath, #[source] io::Error),
}

/// Disposes of delivered files; an answer for each, in their order. Those of one outbox that follow each other share
/// their syncs. Blocks for the disk; once `stopped` says so, what is begun is ended and no more is read. Safe to repeat
/// after any answer and any crash; what it answers is durable.
pub fn dispose_all(
    disposals: &[Disposal],
    stopped: &dyn Fn() -> bool,
) -> Vec<Result<Disposed, DisposeError>> {
    disposals
        .chunk_by(|a, b| a.root == b.root && a.outbox == b.outbox && a.version.folder == b.version.folder)
        .flat_map(|batch| match batch.first() {
            Some(first) if first.version.folder => {
                batch.iter().map(|what| folder::dispose(what, stopped)).collect()
            }
            _ => dispose_in_one_outbox(batch, stopped),
        })
        .collect()
}

/// How many share their syncs; each holds two descriptors meanwhile, and its folders two.
const TOGETHER: usize = 128;

fn dispose_in_one_outbox(
    disposals: &[Disposal],
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
            .flat_map(|batch| dispose_by_one_top(outbox, batch, stopped))
            .collect(),
        Err(reason) => disposals.iter().map(|what| Err(what.held(&reason))).collect(),
    }
}

fn dispose_by_one_top(
    outbox: &Dir,
    found: &[(&Disposal, io::Result<Top>)],
    stopped: &dyn Fn() -> bool,
) -> Vec<Result<Disposed, DisposeError>> {
    let Some((first, top)) = found.first() else {
        return Vec::new();
    };
    let top = match top {
        Ok(top) => top,
        Err(e) => return vec![Err(first.failed("the disposal", io_error::copy(e)))],
    };
    let disposals: Vec<_> = found
        .iter()
        .map(|(what, _)| what.below(top.path.as_ref()))
        .collect();
    match Steps::begin(&first.below(top.path.as_ref()), outbox, top, stopped) {
        Ok(mut steps) => disposals
            .chunks(TOGETHER)
            .flat_map(|batch| dispose_together(&mut steps, batch))
            .collect(),
        Err(reason) => disposals.iter().map(|what| Err(what.held(&reason))).collect(),
    }
}

/// The outbox, if it is the one that is meant; else the reason why it is held.
fn open(what: &Disposal) -> Result<Dir, String> {
    fault::hang(&what.root);
    let outbox = confined::root(&what.root).map_err(|e| e.to_string())?;
    match mark::read(&outbox) {
        Ok(Some(id)) if OutboxId(id) == what.outbox => Ok(outbox),
        Ok(Some(_)) if !fault::mutant("S5-mark") => Err("another folder's mark is there".into()),
        Ok(None) if !fault::mutant("S5-mark") => Err("its mark (.dropwire/id) is missing".into()),
        Ok(_) => Ok(outbox),
        Err(e) => Err(format!("its mark cannot be read: {e}")),
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
            (_, Err(e)) => Err(what.failed("the syncing", io_error::copy(e))),
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
            (Ok(Disposed::Done | Disposed::Gone), Err(e)) => {
                Err(what.failed("the syncing", io_error::copy(e)))
            }
            (ended, _) => ended,
        })
        .map(|ended| ended.map_err(|error| steps.judged(error)))
        .collect()
}

/// Inode and birth, as the drop has them.
fn of_file(what: &Disposal) -> Option<(u64, i64)> {
    Some((what.version.inode, what.version.birth_ns))
}

/// The folders that disposals in one outbox work in.
struct Steps<'a> {
    /// Is no more to be begun?
    stopped: &'a dyn Fn() -> bool,
    /// For people.
    root: String,
    /// Or the top of what is mounted in it.
    outbox: Dir,
    /// See [`Top::missing`].
    missing: Option<RemotePath>,
    own: Dir,
    leaving: Dir,
    /// Something lay in it when they began.
    left_over: bool,
    /// For a sync of the whole file system, where that is trusted.
    anchor: Option<File>,
    /// Names left these, or were made in them, since the last sync.
    touched: Touched,
    /// Files are moved there.
    archived: Touched,
    /// Why the first sync failed that did.
    unsynced: OnceCell<String>,
}

/// Where a file stands before the first sync.
enum Stage {
    /// Under its path; answered.
    Stays(Disposed),
    /// Nowhere; to be made durable.
    Gone,
    /// In `leaving`.
    Leaving { file: File, checked: Checked },
}

impl Stage {
    /// As far as is known.
    fn leaves(&self) -> bool {
        let checked = match self {
            Stage::Leaving { checked, .. } => checked,
            Stage::Stays(_) | Stage::Gone => return false,
        };
        matches!(checked, Checked::Delivered(_))
    }
}

impl<'a> Steps<'a> {
    /// For those that leave by `top` of `outbox`; `first` is one of them, as seen from there. The error is the reason why
    /// that is held.
    fn begin(
        first: &Disposal,
        outbox: &Dir,
        top: &Top,
        stopped: &'a dyn Fn() -> bool,
    ) -> Result<Self, String> {
        let unusable = |e: io::Error| format!("`.dropwire` in it cannot be used: {e}");
        let folder = match &top.path {
            Some(path) => confined::open_folder(outbox, path),
            None => outbox.try_clone(),
        };
        let folder = folder.map_err(unusable)?;
        if Side::of(&folder).map_err(unusable)? != top.side {
            return Err("what is mounted there changes at this moment".into());
        }
        let open = || {
            let own = mark::folder(&folder)?;
            let leaving = durable::open_or_make_dir(&own, OsStr::new("leaving"))?;
            Ok((own, leaving))
        };
        let (own, leaving) = open().map_err(unusable)?;
        let steps = Steps {
            stopped,
            root: shown(&first.root),
            outbox: folder,
            missing: top.missing.clone(),
            own,
            left_over: leaving
                .entries()
                .map_or(true, |mut entries| entries.next().is_some()),
            anchor: durable::anchor(&leaving).ok().filter(durable::supports_syncfs),
            leaving,
            touched: Touched::default(),
            archived: Touched::default(),
            unsynced: OnceCell::new(),
        };
        let sync = || {
            if fault::loses(&first.root) {
                return Err(LostWrite::wrap(io::Error::other("asked for")));
            }
            if let Some(path) = &top.path {
                fault::step("S5-mount-note", || border::note(&mark::folder(outbox)?, path))?;
                durable::sync_dir(&steps.outbox)?;
            }
            durable::sync_dir(&steps.own)
        };
        match fault::step("S5-own-dir", || steps.synced(sync)) {
            Err(e) if steps.trusted().is_ok() => Err(format!("`.dropwire` in it cannot be synced: {e}")),
            _ => Ok(steps), // each step asks whether all is well
        }
    }

    /// Every sync of a folder. After one that lost something none is tried: the system would say that all is well.
    fn sync(&self, folder: &Dir) -> io::Result<()> {
        self.synced(|| durable::sync_dir(folder))
    }

    fn synced(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if let Some(reason) = self.unsynced.get() {
            return Err(io::Error::other(reason.clone()));
        }
        sync().inspect_err(|error| {
            if io_error::meaning(error) == Meaning::Lost || fault::mutant("S5-shortage") {
                let _ = self.unsynced.set(error.to_string());
            }
        })
    }

    /// Did the disk keep all that it was asked to?
    fn trusted(&self) -> Result<(), DisposeError> {
        match self.unsynced.get() {
            None => Ok(()),
            Some(reason) => Err(DisposeError::Unsynced(self.root.clone(), reason.clone())),
        }
    }

    /// What is to be made of a failure: behind a sync that failed it is that.
    fn judged(&self, error: DisposeError) -> DisposeError {
        self.trusted().err().unwrap_or(error)
    }

    /// Up to the rename into `leaving`, not yet durable.
    fn stage(&mut self, what: &Disposal) -> Result<Stage, DisposeError> {
        let name = OsStr::new(&what.name);
        if what.after == AfterSend::Keep {
            return Ok(Stage::Stays(Disposed::Done));
        }
        let failed = |e| what.failed("the disposal", e);
        let at = confined::os_str(what.path.file_name()).map_err(failed)?;
        // Anew for each file: one that was opened for another may have been moved out of the outbox since.
        let folder = match confined::parent(&self.outbox, &what.path) {
            Ok(folder) => Some(folder),
            Err(e) if confined::is_absent(&e) => None,
            Err(e) => return Err(failed(e)),
        };
        // A crash, or an error, left it there: ctime says nothing after the rename, so the bytes decide.
        if self.left_over
            && let Some(file) = what.open(&self.leaving, name)?
        {
            let both = folder.as_ref().map(|folder| self.under_both(name, folder, at));
            if !both.transpose().map_err(failed)?.unwrap_or(false) {
                self.touch(what)?; // that it left there may not be durable yet
                let checked = what.check(&file, Compare::Always, self.stopped)?;
                return Ok(Stage::Leaving { file, checked });
            }
            durable::unlink(&self.leaving, name).map_err(failed)?;
        }
        let Some(folder) = folder else {
            return self.gone(what);
        };
        let Some(file) = what.open(&folder, at)? else {
            return self.gone(what);
        };
        let lease = match what.check(&file, Compare::IfTouched, self.stopped)? {
            Checked::Delivered(lease) => lease,
            Checked::Not(answer) => return Ok(Stage::Stays(answer)),
        };
        marker::take(&folder, &self.leaving, what).map_err(failed)?;
        match durable::rename_noreplace(&folder, at, &self.leaving, name) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.gone(what),
            Err(e) => return Err(failed(e)),
        }
        self.touched.add((Area::Outbox, what.path.parent()), folder);
        let checked = what.check_again(lease, &self.leaving, self.stopped)?;
        Ok(Stage::Leaving { file, checked })
    }

    /// Is what lies in `leaving` still under its path too? The same file, not another one of that name.
    fn under_both(&self, leaving: &OsStr, folder: &Dir, at: &OsStr) -> io::Result<bool> {
        match beside::same_file((&self.leaving, leaving), (folder, at)) {
            Ok(same) => Ok(same && !fault::mutant("S5-both")),
            Err(e) if confined::is_absent(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn gone(&mut self, what: &Disposal) -> Result<Stage, DisposeError> {
        if let Some(at) = &self.missing {
            return Err(what.held(&format!("what was mounted at {at} in it is not there")));
        }
        self.touch(what)?;
        self.sync_place(what).map_err(|e| what.failed("the syncing", e))?;
        Ok(Stage::Gone)
    }

    /// It may have reached the archive before a sync there could not be asked for: that name first, as always.
    fn sync_place(&self, what: &Disposal) -> io::Result<()> {
        if what.after != AfterSend::Archive {
            return Ok(());
        }
        let sent = RemotePath::parse(b"sent").map_err(io::Error::other)?;
        let place =
            confined::open_folder(&self.own, &sent).and_then(|sent| confined::parent(&sent, &what.path));
        match place {
            Ok(place) => fault::step("S5-gone-place", || self.sync(&place)),
            Err(e) if confined::is_absent(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Its absence from its path is made durable by the next sync, in the last folder on the way that is there.
    fn touch(&mut self, what: &Disposal) -> Result<(), DisposeError> {
        let mut at = what.path.parent();
        loop {
            let folder = match &at {
                Some(at) => confined::open_folder(&self.outbox, at),
                None => self.outbox.try_clone(),
            };
            match folder {
                Ok(folder) => {
                    self.touched.add((Area::Outbox, at), folder);
                    return Ok(());
                }
                Err(e) if confined::is_absent(&e) && at.is_some() => {}
                Err(e) => return Err(what.failed("the disposal", e)),
            }
            at = at.and_then(|at| at.parent());
        }
    }

    /// After Ok, what was moved into `leaving` survives a power cut, and so do the folders made for it in the archive.
    /// The new names first: cut in between, a file has two names, never none.
    fn sync_staged(&mut self) -> io::Result<()> {
        self.sync_leaving()?;
        self.sync_touched()
    }

    /// After Ok, what was moved out of `leaving`, on or back, survives a power cut; the new names first again.
    fn sync_left(&mut self) -> io::Result<()> {
        let archived = mem::take(&mut self.archived);
        let archived = self.synced(|| archived.sync(self.anchor.as_ref()));
        archived.and(self.sync_touched())?;
        self.sync_leaving()
    }

    fn sync_touched(&mut self) -> io::Result<()> {
        let touched = mem::take(&mut self.touched);
        self.synced(|| touched.sync(self.anchor.as_ref()))
    }

    fn sync_leaving(&self) -> io::Result<()> {
        fault::step("S5-leaving-dir", || self.sync(&self.leaving))
    }

    /// From `leaving` to where it goes: on, if it is what was delivered, else back.
    fn leave(&mut self, what: &Disposal, file: &File, checked: Checked) -> Result<Disposed, DisposeError> {
        let lease = match checked {
            Checked::Delivered(lease) => lease,
            Checked::Not(answer) => return self.give_back(what, answer),
        };
        // The last moment: the writer that the lease held up gets its file back instead of one without a name.
        if lease.as_ref().is_some_and(|lease| !lease.whole()) && !fault::mutant("S5-last-lease") {
            return self.give_back(what, Disposed::Busy);
        }
        if lease.is_none() && !what.version(file)?.same_identity(&what.version) {
            return self.give_back(what, Disposed::Changed);
        }
        let name = OsStr::new(&what.name);
        let done = match what.after {
            AfterSend::Archive => self.archive(what, name),
            AfterSend::Delete | AfterSend::Keep => durable::unlink(&self.leaving, name),
        };
        done.map_err(|e| what.failed("the disposal", e))?;
        Ok(Disposed::Done)
    }

    /// The folder of the archive that it goes to, made where it is missing; durable after [`Steps::sync_staged`].
    fn make_place(&mut self, what: &Disposal) -> Result<(), DisposeError> {
        let place = (Area::Sent, what.path.parent());
        if self.archived.get(&place).is_some() {
            return Ok(());
        }
        let mut make = || -> io::Result<Dir> {
            let mut dir = durable::open_or_make_dir(&self.own, OsStr::new("sent"))?;
            self.touched.add((Area::Own, None), self.own.try_clone()?);
            let mut above: Option<RemotePath> = None;
            for component in place.1.iter().flat_map(RemotePath::components) {
                let below = durable::open_or_make_dir(&dir, confined::os_str(component)?)?;
                let path = [above.as_ref().map_or(&[][..], RemotePath::as_bytes), component].join(&b'/');
                self.touched.add((Area::Sent, above), dir);
                let path = path.strip_prefix(b"/").unwrap_or(&path);
                above = Some(RemotePath::parse(path).map_err(io::Error::other)?);
                dir = below;
            }
            Ok(dir)
        };
        let dir = make().map_err(|e| what.failed("the disposal", e))?;
        self.archived.add(place, dir);
        Ok(())
    }

    /// Moves what has this name in `leaving`.
    fn archive(&self, what: &Disposal, from: &OsStr) -> io::Result<()> {
        let place = (Area::Sent, what.path.parent());
        let Some(folder) = self.archived.get(&place) else {
            return Err(io::ErrorKind::NotFound.into()); // not reached: it was made before
        };
        let name = confined::os_str(what.path.file_name())?;
        rename_beside(&self.leaving, from, folder, name)
    }

    /// The marker goes with its file, or back with it.
    fn unmark(
        &self,
        what: &Disposal,
        answer: Disposed,
        own: Option<(u64, i64)>,
    ) -> Result<Disposed, DisposeError> {
        let left = matches!(answer, Disposed::Done | Disposed::Gone);
        let folder = || self.make_folders(&self.outbox, &what.path);
        marker::end(&self.leaving, what, left, own, folder, |folder| self.sync(folder))
            .map(|()| answer)
            .map_err(|e| what.failed("the moving of its marker", e))
    }

    /// Its old name, or the next free one beside it; its folders are made again where they are gone. One that is only
    /// busy waits in `leaving` where its name is taken: it may still be what was delivered.
    fn give_back(&self, what: &Disposal, answer: Disposed) -> Result<Disposed, DisposeError> {
        let back = || {
            let folder = self.make_folders(&self.outbox, &what.path)?;
            let (name, old) = (OsStr::new(&what.name), confined::os_str(what.path.file_name())?);
            let answer = match durable::rename_noreplace(&self.leaving, name, &folder, old) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && answer == Disposed::Busy => answer,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    rename_beside(&self.leaving, name, &folder, old)?;
                    Disposed::Changed
                }
                other => other.map(|_| answer)?,
            };
            fault::step("S5-back-dir", || self.sync(&folder))?;
            fault::step("S5-back-leaving-dir", || self.sync(&self.leaving))?;
            Ok(answer)
        };
        back().map_err(|e| what.failed("the giving back", e))
    }

    /// The folders on the way to `path` below `root`, made where they are missing, each name durable.
    fn make_folders(&self, root: &Dir, path: &RemotePath) -> io::Result<Dir> {
        let mut dir = root.try_clone()?;
        if let Some(folder) = path.parent() {
            for component in folder.components() {
                let below = durable::open_or_make_dir(&dir, confined::os_str(component)?)?;
                fault::step("S5-folders", || self.sync(&dir))?;
                dir = below;
            }
        }
        Ok(dir)
    }
}

impl Disposal {
    /// None: nothing, or no regular file, has that name.
    fn open(&self, folder: &Dir, name: &OsStr) -> Result<Option<File>, DisposeError> {
        match confined::open_file(folder, name) {
            Ok(file) => Ok(Some(file)),
            Err(e) if confined::is_absent(&e) => Ok(None),
            Err(e) => Err(self.failed("the opening", e)),
        }
    }

    /// Was this version changed less than `linger` ago? A time in the future (another machine's clock) says nothing.
    fn lingers(&self, now: &Version) -> bool {
        let changed = u64::try_from(now.ctime_ns).map(Duration::from_nanos);
        let since = changed.ok().map(|changed| SystemTime::UNIX_EPOCH + changed);
        let since = since.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        since.is_some_and(|since| since < self.linger) && !fault::mutant("S5-linger")
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
