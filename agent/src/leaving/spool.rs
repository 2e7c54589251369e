//! Copies for the command `send`: durable before it answers, so that the original may go at once.
//!
//! Each `send` has a folder of its own below the spool, `<32 hex>`, which is a small outbox with its own folder id: the
//! files in it are items like others, below their own names, and leave with `after_send = "delete"`. Where several things
//! of one name are sent at once, there is a folder for each of them. [`Filling`] makes and fills these folders.

mod filling;
mod room;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use crate::{
    error::shown,
    fs::{confined, durable, folder_id, own_folder, remove_tree::remove_tree_at, version::OutboxId},
};
#[cfg(test)]
pub use filling::one;
pub use filling::{Copied, Filling, Original};

/// What the spool is called, in the state folder.
pub const FOLDER: &str = "spool";

/// Why nothing was put away.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct SpoolError {
    /// Escaped.
    pub path: String,
    /// `InvalidInput` for what cannot be sent, `WouldBlock` where it changed meanwhile, `Interrupted` where nobody
    /// waits for it any more.
    #[source]
    pub source: io::Error,
}

/// Its files are queued: from now on only a folder without files is ever removed, even if the job list is lost.
pub fn note_queued(root: &Path) -> io::Result<()> {
    File::create(root.join(own_folder::NAME).join(QUEUED)).map(drop)
}

const QUEUED: &str = "queued";

/// Removes the folders of sends below `spool` that are not wanted any more, and says where the others lie now.
///
/// `is_wanted` knows which outboxes were ever queued, and whether a file of theirs is still to be sent. Of those that
/// it does not know, what was never queued goes; else, the job list is lost, and only a folder without files does.
pub fn discard_unused(
    spool: &Path,
    is_wanted: impl Fn(OutboxId) -> Option<bool>,
) -> io::Result<Vec<(OutboxId, PathBuf)>> {
    let mut wanted = Vec::new();
    let entries = match fs::read_dir(spool) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(wanted),
        entries => entries?,
    };
    for entry in entries {
        let root = entry?.path();
        match mark_of(&root).and_then(|id| sort_out(&root, id, &is_wanted)) {
            Ok(found) => wanted.extend(found.map(|id| (id, root))),
            Err(error) => tracing::warn!(folder = %shown(&root), %error, "old copies of `send` stay"),
        }
    }
    Ok(wanted)
}

fn mark_of(root: &Path) -> io::Result<Option<OutboxId>> {
    Ok(folder_id::read(&confined::root(root)?)?.map(OutboxId))
}

/// None: it went, or nobody knows it.
fn sort_out(
    root: &Path,
    id: Option<OutboxId>,
    is_wanted: impl Fn(OutboxId) -> Option<bool>,
) -> io::Result<Option<OutboxId>> {
    match id.and_then(&is_wanted) {
        Some(true) => return Ok(id),
        Some(false) => discard(root)?,
        None if !root.join(own_folder::NAME).join(QUEUED).exists() => discard(root)?,
        None if discard_if_done(root)? => {}
        None => tracing::warn!(folder = %shown(root), "no job knows these sent copies"),
    }
    Ok(None)
}

/// Removes the copy at `path` in the send's folder `root`, which nobody will ask for any more, and the folder with its
/// last one. Crashed in between, it goes at the next start.
pub fn discard_copy(root: &Path, path: &RemotePath) -> io::Result<()> {
    let removed = confined::root(root)
        .and_then(|dir| confined::parent(&dir, path))
        .and_then(|folder| durable::unlink(&folder, confined::os_str(path.file_name())?));
    match removed {
        Err(e) if !confined::is_absent(&e) => Err(e),
        _ => discard_if_done(root).map(drop),
    }
}

/// Removes a send's folder with all that is in it: only when none of its files is still to be sent.
pub fn discard(root: &Path) -> io::Result<()> {
    match remove_tree_at(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes a send's folder if no file is left in it; true if it went. To be called after a disposal in it.
pub fn discard_if_done(root: &Path) -> io::Result<bool> {
    let dir = match confined::root(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        dir => dir?,
    };
    for entry in dir.entries()? {
        let entry = entry?;
        if entry.file_name() != own_folder::NAME
            && (!confined::kind(&entry)?.is_dir() || holds_files(&entry.open_dir()?, 1)?)
        {
            return Ok(false);
        }
    }
    match dir
        .open_dir_nofollow(own_folder::NAME)
        .and_then(|own| own.open_dir_nofollow("leaving"))
    {
        Ok(leaving) if holds_files(&leaving, 1)? => return Ok(false),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    discard(root).map(|()| true)
}

/// Deeper than any path that is sent counts as holding some.
fn holds_files(dir: &Dir, depth: usize) -> io::Result<bool> {
    if depth > RemotePath::MAX_DEPTH {
        return Ok(true);
    }
    for entry in dir.entries()? {
        let entry = entry?;
        if !confined::kind(&entry)?.is_dir() || holds_files(&entry.open_dir()?, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
