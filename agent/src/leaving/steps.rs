//! The steps by which files leave one outbox, or what is mounted in it, and the syncs between them.

use std::{cell::OnceCell, ffi::OsStr, fs::File, io, mem};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::{
    Disposal, DisposeError, Disposed,
    beside::{self, folder_beside, rename_beside},
    check::{Checked, Compare},
    marker,
    siblings::Siblings,
    touched::{Area, Touched},
};
use crate::{
    config::AfterSend,
    error::shown,
    failpoints,
    fs::{
        border::{self, Side, Way},
        confined, durable, own_folder,
    },
    io_error::{self, LostWrite, Meaning},
    owner,
};

/// The folders that disposals in one outbox work in.
pub(super) struct Steps<'a> {
    /// Is no more to be begun?
    pub(super) stopped: &'a dyn Fn() -> bool,
    siblings: &'a Siblings,
    /// For people.
    root: String,
    /// Or the top of what is mounted in it.
    pub(super) outbox: Dir,
    /// See [`Way::missing`].
    missing: Option<RemotePath>,
    own: Dir,
    pub(super) leaving: Dir,
    /// Something lay in it when they began.
    pub(super) left_over: bool,
    /// For a sync of the whole file system, where that is trusted.
    sync_handle: Option<File>,
    /// Names left these, or were made in them, since the last sync.
    pub(super) touched: Touched,
    /// Files are moved there.
    archived: Touched,
    /// Why the first sync failed that did.
    unsynced: OnceCell<String>,
}

/// Where a file stands before the first sync.
pub(super) enum Stage {
    /// Under its path; answered.
    Stays(Disposed),
    /// Nowhere; to be made durable.
    Gone,
    /// In `leaving`.
    Leaving { file: File, checked: Checked },
}

impl Stage {
    /// As far as is known.
    pub(super) fn leaves(&self) -> bool {
        let checked = match self {
            Self::Leaving { checked, .. } => checked,
            Self::Stays(_) | Self::Gone => return false,
        };
        matches!(checked, Checked::Delivered(_))
    }
}

impl<'a> Steps<'a> {
    /// For those that leave by the top of `way`, in `outbox`; `first` is one of them, as seen from there. The error is
    /// the reason why that is held.
    pub(super) fn begin(
        first: &Disposal,
        outbox: &Dir,
        way: &Way,
        siblings: &'a Siblings,
        stopped: &'a dyn Fn() -> bool,
    ) -> Result<Self, String> {
        let unusable = |e: io::Error| format!("`.dropwire` in it cannot be used: {e}");
        let folder = match &way.top {
            Some(path) => confined::open_folder(outbox, path),
            None => outbox.try_clone(),
        };
        let folder = folder.map_err(unusable)?;
        if Side::of(&folder).map_err(unusable)? != way.side {
            return Err("what is mounted there changes at this moment".into());
        }
        let open = || {
            let own = own_folder::open_or_make(&folder)?;
            let leaving = durable::open_or_make_dir(&own, OsStr::new("leaving"))?;
            Ok((own, leaving))
        };
        let (own, leaving) = open().map_err(unusable)?;
        if first.after == AfterSend::Archive
            && border::is_archive_elsewhere(&own)
            && !failpoints::mutant("S5-archive-elsewhere")
        {
            return Err(format!("{}; {}", border::NO_ARCHIVE, border::NO_ARCHIVE_HELP));
        }
        let steps = Steps {
            stopped,
            siblings,
            root: shown(&first.root),
            outbox: folder,
            missing: way.missing.clone(),
            own,
            left_over: leaving
                .entries()
                .map_or(true, |mut entries| entries.next().is_some()),
            sync_handle: durable::sync_handle(&leaving)
                .ok()
                .filter(durable::supports_syncfs),
            leaving,
            touched: Touched::default(),
            archived: Touched::default(),
            unsynced: OnceCell::new(),
        };
        let sync = || {
            if failpoints::loses(&first.root) {
                return Err(LostWrite::wrap(io::Error::other("asked for")));
            }
            if let Some(path) = &way.top {
                failpoints::step("S5-mount-note", || {
                    border::note(&own_folder::open_or_make(outbox)?, path)
                })?;
                durable::sync_dir(&steps.outbox)?;
            }
            durable::sync_dir(&steps.own)
        };
        match failpoints::step("S5-own-dir", || steps.synced(sync)) {
            Err(e) if steps.trusted().is_ok() => Err(format!("`.dropwire` in it cannot be synced: {e}")),
            _ => Ok(steps), // each step asks whether all is well
        }
    }

    /// Every sync of a folder. After one that lost something none is tried: the system would say that all is well.
    pub(super) fn sync(&self, folder: &Dir) -> io::Result<()> {
        self.synced(|| durable::sync_dir(folder))
    }

    pub(super) fn synced(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if let Some(reason) = self.unsynced.get() {
            return Err(io::Error::other(reason.clone()));
        }
        sync().inspect_err(|error| {
            if io_error::meaning(error) == Meaning::Lost || failpoints::mutant("S5-shortage") {
                let _ = self.unsynced.set(error.to_string());
            }
        })
    }

    /// Did the disk keep all that it was asked to?
    pub(super) fn trusted(&self) -> Result<(), DisposeError> {
        match self.unsynced.get() {
            None => Ok(()),
            Some(reason) => Err(DisposeError::Unsynced(self.root.clone(), reason.clone())),
        }
    }

    /// What is to be made of a failure: behind a sync that failed it is that.
    pub(super) fn judged(&self, error: DisposeError) -> DisposeError {
        self.trusted().err().unwrap_or(error)
    }

    /// Up to the rename into `leaving`, not yet durable.
    pub(super) fn stage(&mut self, what: &Disposal) -> Result<Stage, DisposeError> {
        let name = OsStr::new(&what.name);
        if what.after == AfterSend::Keep {
            return Ok(Stage::Stays(Disposed::Done));
        }
        let failed = |e| what.failed("moved", e);
        let at = confined::os_str(what.path.file_name()).map_err(failed)?;
        // Opened for each file: one that was opened for another may have been moved out of the outbox since.
        // Not out of a folder that became somebody else's.
        let gate = match failpoints::mutant("S5-claimed") {
            true => |_: &Dir, _: &[u8]| Ok(()),
            false => owner::unclaimed,
        };
        let folder = match confined::parent_through(&self.outbox, &what.path, gate) {
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
                let checked = what.check(&file, Compare::Always, self.siblings, self.stopped)?;
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
        let lease = match what.check(&file, Compare::IfTouched, self.siblings, self.stopped)? {
            Checked::Delivered(lease) => lease,
            Checked::Not(answer) => return Ok(Stage::Stays(answer)),
        };
        marker::take(&folder, &self.leaving, what).map_err(failed)?;
        let rename = || durable::rename_noreplace(&folder, at, &self.leaving, name);
        match self.siblings.step(&file, rename) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.gone(what),
            Err(e) => return Err(failed(e)),
        }
        self.touched.add((Area::Outbox, what.path.parent()), folder);
        let checked = what.check_again(lease, &self.leaving, self.siblings, self.stopped)?;
        Ok(Stage::Leaving { file, checked })
    }

    /// Is what lies in `leaving` still under its path too? The same file, not another one of that name.
    fn under_both(&self, leaving: &OsStr, folder: &Dir, at: &OsStr) -> io::Result<bool> {
        match beside::same_file((&self.leaving, leaving), (folder, at)) {
            Ok(same) => Ok(same && !failpoints::mutant("S5-both")),
            Err(e) if confined::is_absent(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(super) fn gone(&mut self, what: &Disposal) -> Result<Stage, DisposeError> {
        if let Some(at) = &self.missing {
            return Err(what.held(&format!(
                "what was mounted at {at} in it is not there; `dropwire adopt` of the outbox gives that up"
            )));
        }
        self.touch(what)?;
        self.sync_place(what).map_err(|e| what.failed("synced", e))?;
        Ok(Stage::Gone)
    }

    /// An earlier call may have archived the file without syncing the archive: its name there is synced first, as always.
    fn sync_place(&self, what: &Disposal) -> io::Result<()> {
        if what.after != AfterSend::Archive {
            return Ok(());
        }
        let find = || {
            let mut place = self.own.open_dir_nofollow("sent")?;
            for component in what.path.parent().iter().flat_map(RemotePath::components) {
                place = folder_beside(&place, confined::os_str(component)?, false)?;
            }
            Ok(place)
        };
        match find() {
            Ok(place) => failpoints::step("S5-gone-place", || self.sync(&place)),
            Err(e) if confined::is_absent(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Its absence from its path is made durable by the next sync, in the last folder on the way that is there.
    pub(super) fn touch(&mut self, what: &Disposal) -> Result<(), DisposeError> {
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
                Err(e) => return Err(what.failed("moved", e)),
            }
            at = at.and_then(|at| at.parent());
        }
    }

    /// After Ok, what was moved into `leaving` survives a power cut, and so do the folders made for it in the archive.
    /// The new names first: cut in between, a file has two names, never none.
    pub(super) fn sync_staged(&mut self) -> io::Result<()> {
        self.sync_leaving()?;
        self.sync_touched()
    }

    /// After Ok, what was moved out of `leaving`, on or back, survives a power cut; the new names first again.
    pub(super) fn sync_left(&mut self) -> io::Result<()> {
        let archived = mem::take(&mut self.archived);
        let archived = self.synced(|| archived.sync(self.sync_handle.as_ref()));
        archived.and(self.sync_touched())?;
        self.sync_leaving()
    }

    pub(super) fn sync_touched(&mut self) -> io::Result<()> {
        let touched = mem::take(&mut self.touched);
        self.synced(|| touched.sync(self.sync_handle.as_ref()))
    }

    pub(super) fn sync_leaving(&self) -> io::Result<()> {
        failpoints::step("S5-leaving-dir", || self.sync(&self.leaving))
    }

    /// From `leaving` to where it goes: on, if it is what was delivered, else back.
    pub(super) fn leave(
        &mut self,
        what: &Disposal,
        file: &File,
        checked: Checked,
    ) -> Result<Disposed, DisposeError> {
        let lease = match checked {
            Checked::Delivered(lease) => lease,
            Checked::Not(answer) => return self.give_back(what, answer),
        };
        // The last moment: the writer that the lease held up gets its file back instead of one without a name.
        if lease.as_ref().is_some_and(|lease| !lease.whole()) && !failpoints::mutant("S5-last-lease") {
            return self.give_back(what, Disposed::Busy);
        }
        if lease.is_none() && !what.version(file)?.same_identity(&what.version) {
            return self.give_back(what, Disposed::Changed);
        }
        let name = OsStr::new(&what.name);
        let done = self.siblings.step(file, || match what.after {
            AfterSend::Archive => self.archive(what, name),
            AfterSend::Delete | AfterSend::Keep => durable::unlink(&self.leaving, name),
        });
        done.map_err(|e| what.failed("moved", e))?;
        Ok(Disposed::Done)
    }

    /// The folder of the archive that it goes to, made where it is missing; durable after [`Steps::sync_staged`].
    pub(super) fn make_place(&mut self, what: &Disposal) -> Result<(), DisposeError> {
        let place = (Area::Sent, what.path.parent());
        if self.archived.get(&place).is_some() {
            return Ok(());
        }
        let mut make = || -> io::Result<Dir> {
            let mut dir = durable::open_or_make_dir(&self.own, OsStr::new("sent"))?;
            self.touched.add((Area::Own, None), self.own.try_clone()?);
            let mut above: Option<RemotePath> = None;
            for component in place.1.iter().flat_map(RemotePath::components) {
                let below = folder_beside(&dir, confined::os_str(component)?, true)?;
                let path = [above.as_ref().map_or(&[][..], RemotePath::as_bytes), component].join(&b'/');
                self.touched.add((Area::Sent, above), dir);
                let path = path.strip_prefix(b"/").unwrap_or(&path);
                above = Some(RemotePath::parse(path).map_err(io::Error::other)?);
                dir = below;
            }
            Ok(dir)
        };
        let dir = make().map_err(|e| what.failed("moved", e))?;
        self.archived.add(place, dir);
        Ok(())
    }

    /// Moves what has this name in `leaving`.
    pub(super) fn archive(&self, what: &Disposal, from: &OsStr) -> io::Result<()> {
        let place = (Area::Sent, what.path.parent());
        let Some(folder) = self.archived.get(&place) else {
            return Err(io::ErrorKind::NotFound.into()); // not reached: it was made before
        };
        let name = confined::os_str(what.path.file_name())?;
        rename_beside(&self.leaving, from, folder, name)
    }

    /// The marker goes with its file, or back with it.
    pub(super) fn unmark(
        &self,
        what: &Disposal,
        answer: Disposed,
        own: Option<(u64, i64)>,
    ) -> Result<Disposed, DisposeError> {
        let left = matches!(answer, Disposed::Done | Disposed::Gone);
        let folder = || self.way_back(what);
        marker::end(&self.leaving, what, left, own, folder, |folder| self.sync(folder))
            .map(|()| answer)
            .map_err(|e| what.failed("moved with its marker", e))
    }

    /// Its old name, or the next free one beside it; its folders are made again where they are gone. One that is only
    /// busy waits in `leaving` where its name is taken: it may still be what was delivered.
    pub(super) fn give_back(&self, what: &Disposal, answer: Disposed) -> Result<Disposed, DisposeError> {
        let back = || {
            let folder = self.way_back(what)?;
            let (name, old) = (OsStr::new(&what.name), confined::os_str(what.path.file_name())?);
            let answer = match durable::rename_noreplace(&self.leaving, name, &folder, old) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && answer == Disposed::Busy => answer,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    rename_beside(&self.leaving, name, &folder, old)?;
                    Disposed::Changed
                }
                other => other.map(|_| answer)?,
            };
            failpoints::step("S5-back-dir", || self.sync(&folder))?;
            failpoints::step("S5-back-leaving-dir", || self.sync(&self.leaving))?;
            Ok(answer)
        };
        back().map_err(|e| what.failed("put back", e))
    }

    /// The folder that it came from, made again where it is gone.
    fn way_back(&self, what: &Disposal) -> io::Result<Dir> {
        make_folders(&self.outbox, &what.path, |folder| {
            failpoints::step("S5-folders", || self.sync(folder))
        })
    }
}

/// The folders on the way to `path` below `root`, made where they are missing; each name is durable if `sync` makes it
/// so.
pub(super) fn make_folders(
    root: &Dir,
    path: &RemotePath,
    sync: impl Fn(&Dir) -> io::Result<()>,
) -> io::Result<Dir> {
    let mut dir = root.try_clone()?;
    for component in path.parent().iter().flat_map(RemotePath::components) {
        let below = durable::open_or_make_dir(&dir, confined::os_str(component)?)?;
        sync(&dir)?;
        dir = below;
    }
    Ok(dir)
}
