//! A delivered folder leaves as one (S5): renamed into `leaving`, walked again there, and then moved on or removed.
//!
//! | on disk | found by the next call |
//! |---|---|
//! | under its path | the same checks again |
//! | in `leaving/<name>` | the same checks there, with the bytes' digest |
//! | in `leaving/<name>.gone` | decided: what is left of it is removed by `leaving/<name>.list`; without that, archived |
//!
//! One that holds what was left out of its delivery is archived even where delivered ones are deleted: nothing is
//! removed that did not arrive.

use std::{ffi::OsStr, io, time::SystemTime};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;

use super::{
    Disposal, DisposeError, Disposed,
    beside::rename_beside,
    check::{COMPARED_BELOW, Compare, shows_too_little},
    marker, removal,
    siblings::Siblings,
    steps::Steps,
    top::Tops,
    touched::Area,
};
use crate::{
    config::AfterSend,
    failpoints,
    fs::{
        bundle::{self, Halt, Listing, Trouble},
        confined, durable,
        file_system::FileSystem,
        version::Version,
    },
};

/// See [`super::dispose_all`].
pub(super) fn dispose(
    what: &Disposal,
    siblings: &Siblings,
    stopped: &dyn Fn() -> bool,
) -> Result<Disposed, DisposeError> {
    if what.after == AfterSend::Keep {
        return Ok(Disposed::Done);
    }
    let begin = || {
        let outbox = super::open(what)?;
        let top = Tops::of(&outbox).and_then(|mut tops| tops.find_folder(&what.path));
        let top = top.map_err(|e| format!("it cannot be looked through: {e}"))?;
        Steps::begin(what, &outbox, &top, siblings, stopped)
    };
    let mut steps = begin().map_err(|reason: String| what.held(&reason))?;
    steps.trusted()?;
    let mut own = None;
    let answer = disposed(&mut steps, what, &mut own).and_then(|answer| {
        let answer = steps.unmark(what, answer, own)?;
        if what.marker.is_some() {
            steps.sync_left().map_err(|e| what.failed("synced", e))?;
        }
        Ok(answer)
    });
    answer.map_err(|error| steps.judged(error))
}

/// The folder itself, and its marker taken along. `own` becomes its inode and birth: a folder's version has others.
fn disposed(
    steps: &mut Steps<'_>,
    what: &Disposal,
    own: &mut Option<(u64, i64)>,
) -> Result<Disposed, DisposeError> {
    let name = OsStr::new(&what.name);
    let failed = |e: io::Error| what.failed("moved", e);
    if steps.left_over {
        if let Some(gone) = removal::find_decided(&steps.leaving, &what.name).map_err(failed)? {
            if let Some(folder) = open(&steps.leaving, &gone).map_err(failed)? {
                *own = Some(identity(&folder).map_err(failed)?);
            }
            return match removal::find_list(&steps.leaving, &what.name).map_err(failed)? {
                Some(list) => remove(steps, what, &gone, list),
                None => archive(steps, what, &gone),
            };
        }
        removal::forget_list(&steps.leaving, &what.name).map_err(failed)?;
    }
    // A crash, or an error, left it there: the bytes decide.
    if let Some(folder) = open(&steps.leaving, name).map_err(failed)? {
        *own = Some(identity(&folder).map_err(failed)?);
        steps.touch(what)?; // that it left its path may not be durable yet
        steps.sync_staged().map_err(|e| what.failed("synced", e))?;
        let checked = check(what, &folder, &Compare::Always, steps.stopped)?;
        return leave(steps, what, checked);
    }
    let parent = match confined::parent(&steps.outbox, &what.path) {
        Ok(parent) => parent,
        Err(e) if confined::is_absent(&e) => return absent(steps, what),
        Err(e) => return Err(failed(e)),
    };
    let at = confined::os_str(what.path.file_name()).map_err(failed)?;
    let Some(folder) = open(&parent, at).map_err(failed)? else {
        return absent(steps, what);
    };
    *own = Some(identity(&folder).map_err(failed)?);
    let mut before = match check(what, &folder, &Compare::IfTouched, steps.stopped)? {
        Ok(listing) => listing,
        Err(answer) => return Ok(answer),
    };
    drop(folder);
    marker::take(&parent, &steps.leaving, what).map_err(failed)?;
    match durable::rename_noreplace(&parent, at, &steps.leaving, name) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return absent(steps, what),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            return Err(what.held(&format!(
                "{} in it is a mount point, which cannot be moved",
                what.path
            )));
        }
        Err(e) => return Err(failed(e)),
    }
    steps.touched.add((Area::Outbox, what.path.parent()), parent);
    steps.sync_staged().map_err(|e| what.failed("synced", e))?;
    // What was moved is what was checked, and nobody came in between.
    let after = match open(&steps.leaving, name).map_err(failed)? {
        Some(folder) => list(what, &folder)?,
        None => Err(Disposed::Changed),
    };
    let checked = after.and_then(|after| {
        if after.is_undisturbed(&before) || failpoints::mutant("S5-folder-again") {
            before.left_out = after.left_out;
            Ok(before) // its times are those of before the renaming
        } else {
            Err(Disposed::Changed)
        }
    });
    leave(steps, what, checked)
}

/// What the checks say: what was delivered lies there, and nobody writes; or what follows from it.
type Checked = Result<Listing, Disposed>;

fn check(
    what: &Disposal,
    folder: &Dir,
    compare: &Compare,
    stopped: &dyn Fn() -> bool,
) -> Result<Checked, DisposeError> {
    if stopped() {
        return Err(DisposeError::Stopped);
    }
    let listing = match list(what, folder)? {
        Ok(listing) => listing,
        Err(answer) => return Ok(Err(answer)),
    };
    let version = listing.version();
    if matches!(compare, Compare::IfTouched) && what.lingers(version.ctime_ns) {
        return Ok(Err(Disposed::Lingers));
    }
    if matches!(compare, Compare::IfTouched) && version.is_fresh(SystemTime::now()) {
        return Ok(Err(Disposed::Busy)); // a write within the clock's step would not show
    }
    if !version.same_identity(&what.version) && !failpoints::mutant("S5-folder-version") {
        return Ok(Err(Disposed::Changed));
    }
    let touched = version.ctime_ns != what.version.ctime_ns;
    let must = matches!(compare, Compare::Always) || touched || version.size < COMPARED_BELOW;
    let on = FileSystem::of_folder(folder).unwrap_or_default();
    let must = must || shows_too_little(&version, on);
    if must && !failpoints::mutant("S5-folder-digest") {
        let digest = match bundle::digest(folder, version.size, stopped) {
            Ok(digest) => digest,
            Err(Halt::Stopped) => return Err(DisposeError::Stopped),
            Err(Halt::Trouble(trouble)) => return Ok(Err(answer_to(what, trouble)?)),
        };
        match list(what, folder)? {
            Ok(again) if again.is_undisturbed(&listing) => {}
            _ => return Ok(Err(Disposed::Busy)),
        }
        if digest != what.digest {
            return Ok(Err(Disposed::OtherBytes));
        }
    }
    Ok(Ok(listing))
}

fn list(what: &Disposal, folder: &Dir) -> Result<Checked, DisposeError> {
    match bundle::list(folder, true, &mut |_| Ok(())) {
        Ok(listing) => Ok(Ok(listing)),
        Err(trouble) => answer_to(what, trouble).map(Err),
    }
}

/// What cannot be read says nothing of its version: it is tried again.
fn answer_to(what: &Disposal, trouble: Trouble) -> Result<Disposed, DisposeError> {
    match trouble {
        Trouble::Writer(_) | Trouble::Changed => Ok(Disposed::Busy),
        Trouble::Held(why) => Err(what.failed("looked through", io::Error::other(why))),
    }
}

/// From `leaving` to where it goes: on, if it is what was delivered, else back.
fn leave(steps: &mut Steps<'_>, what: &Disposal, checked: Checked) -> Result<Disposed, DisposeError> {
    let listing = match checked {
        Ok(listing) => listing,
        Err(answer) => return steps.give_back(what, answer),
    };
    let name = OsStr::new(&what.name);
    if what.after == AfterSend::Archive || !listing.left_out.is_empty() {
        if what.after == AfterSend::Delete {
            tracing::warn!(path = %what.path, "archived, not deleted: it holds what was left out of its delivery");
        }
        return archive(steps, what, name);
    }
    let failed = |e: io::Error| what.failed("moved", e);
    let Some(folder) = open(&steps.leaving, name).map_err(failed)? else {
        return absent(steps, what);
    };
    let list = match removal::write_list(&steps.leaving, &what.name, &folder) {
        Ok((again, list)) if again.is_undisturbed(&listing) => list,
        Ok(_) => return given_back(steps, what, Disposed::Changed),
        Err(trouble) => return answer_to(what, trouble).and_then(|answer| given_back(steps, what, answer)),
    };
    drop(folder);
    let gone = removal::decided_name(&what.name);
    durable::rename_noreplace(&steps.leaving, name, &steps.leaving, &gone).map_err(failed)?;
    failpoints::step("S5-folder-gone", || steps.sync(&steps.leaving))
        .map_err(|e| what.failed("synced", e))?;
    remove(steps, what, &gone, list)
}

fn given_back(steps: &Steps<'_>, what: &Disposal, answer: Disposed) -> Result<Disposed, DisposeError> {
    removal::forget_list(&steps.leaving, &what.name).map_err(|e| what.failed("put back", e))?;
    steps.give_back(what, answer)
}

/// Moves what has this name in `leaving` into the archive.
fn archive(steps: &mut Steps<'_>, what: &Disposal, name: &OsStr) -> Result<Disposed, DisposeError> {
    steps.make_place(what)?;
    steps.sync_touched().map_err(|e| what.failed("synced", e))?;
    steps.archive(what, name).map_err(|e| what.failed("moved", e))?;
    steps.sync_left().map_err(|e| what.failed("synced", e))?;
    Ok(Disposed::Done)
}

/// Durably gone; what the list does not name stays, in the folder under its old name or the next free one.
fn remove(
    steps: &Steps<'_>,
    what: &Disposal,
    gone: &OsStr,
    list: removal::List,
) -> Result<Disposed, DisposeError> {
    let removed = removal::remove(&steps.leaving, gone, list, steps.stopped);
    let removed = removed.map_err(|e| match (steps.stopped)() {
        true => DisposeError::Stopped,
        false => what.failed("removed", e),
    });
    let answer = if removed? {
        Disposed::Done
    } else {
        let back = || {
            let wanted = confined::os_str(what.path.file_name())?;
            rename_beside(&steps.leaving, gone, &steps.outbox, wanted)?;
            steps.sync(&steps.outbox)
        };
        back().map_err(|e| what.failed("put back", e))?;
        Disposed::Changed
    };
    removal::forget_list(&steps.leaving, &what.name).map_err(|e| what.failed("removed", e))?;
    steps.sync_leaving().map_err(|e| what.failed("synced", e))?;
    Ok(answer)
}

/// Nowhere: made durable.
fn absent(steps: &mut Steps<'_>, what: &Disposal) -> Result<Disposed, DisposeError> {
    steps.gone(what)?;
    steps.sync_staged().map_err(|e| what.failed("synced", e))?;
    Ok(Disposed::Gone)
}

fn identity(folder: &Dir) -> io::Result<(u64, i64)> {
    let (version, _) = Version::of_folder(folder)?;
    Ok((version.inode, version.birth_ns))
}

/// None: nothing, or no folder, has that name.
fn open(folder: &Dir, name: &OsStr) -> io::Result<Option<Dir>> {
    match folder.open_dir_nofollow(name) {
        Ok(dir) => Ok(Some(dir)),
        Err(e) if confined::is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
