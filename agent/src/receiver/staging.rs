//! The partials' folder on another disk inside the inbox.

use std::io;

use cap_std::fs::Dir;

use super::{
    dialect,
    disks::is_border,
    inbox_dir::{InboxDir, PARTIALS},
    naming::Names,
    place::Folder,
};
use crate::{
    failpoints,
    fs::{durable, folder_id, own_folder},
    io_error::{Meaning, Wait, meaning},
};

/// Which names the file system takes that the last of these folders is on.
pub(super) fn names(inbox_dir: &InboxDir, folders: &[Folder]) -> io::Result<Names> {
    dialect::probe(&staging(inbox_dir, folders)?)
}

/// The partials' folder on the other side: in the folder where that begins, or, where this agent may not write there,
/// in the nearest one below it; there the disk gets its id. Where the border is none that a folder tells of, in the
/// last one.
pub(super) fn staging(inbox_dir: &InboxDir, folders: &[Folder]) -> io::Result<Dir> {
    let (_, last) = folders.last().ok_or(io::ErrorKind::NotFound)?;
    let elsewhere = inbox_dir.is_elsewhere(last)?;
    let mut begin = folders.len() - 1;
    while elsewhere && begin > 0 && !is_border(&folders[begin - 1].1, &folders[begin].1)? {
        begin -= 1;
    }
    let border = &folders[begin].0;
    let mut refused = None;
    for (path, folder) in &folders[begin..] {
        match staging_in(inbox_dir, folder, elsewhere) {
            Ok((staging, None)) => return Ok(staging),
            Ok((staging, Some(folder_id))) => {
                inbox_dir.disks.remember(border, path, folder_id)?;
                return Ok(staging);
            }
            Err(e) if is_no_place(&e) && !failpoints::mutant("elsewhere-below") => {
                refused.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// The partials' folder in `folder`, and the folder id of that if it is to have one.
fn staging_in(inbox_dir: &InboxDir, folder: &Dir, marked: bool) -> io::Result<(Dir, Option<[u8; 16]>)> {
    let own = own_folder::open_or_make(folder)?;
    if inbox_dir.is_own(&own)? {
        return Err(io::ErrorKind::CrossesDevices.into()); // nowhere else to copy to
    }
    let staging = durable::open_or_make_dir(&own, PARTIALS.as_ref())?;
    #[cfg(unix)]
    {
        use rustix::fs::{Access, AtFlags, accessat};
        accessat(
            &staging,
            ".",
            Access::WRITE_OK | Access::EXEC_OK,
            AtFlags::empty(),
        )?;
    }
    let folder_id = match marked {
        true => Some(match folder_id::read(folder)? {
            Some(folder_id) => folder_id,
            None => folder_id::create(folder)?,
        }),
        false => None,
    };
    Ok((staging, folder_id))
}

fn is_no_place(error: &io::Error) -> bool {
    matches!(
        meaning(error),
        Meaning::NotNow(Wait::Access) | Meaning::Never | Meaning::NotOurs
    )
}
