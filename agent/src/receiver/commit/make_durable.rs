//! R8: every folder on the way to a name, and the partials' folder, synced.

use std::{collections::HashMap, fs::File, io};

use cap_std::fs::Dir;
use dropwire_protocol::message::DeclineReason;

use crate::{
    failpoints,
    fs::durable,
    io_error::{Meaning, meaning},
    receiver::{Shared, inbox_dir::InboxDir, place::Folder, reply::Answer},
};

/// From so many folders on, one syncfs is cheaper than a sync of each.
pub(super) const FOLDERS_TOGETHER: usize = 32;

/// R8: each folder once, then the partials'. After a failure no receipt leaves, now or for the next offer, nor for what
/// is at this step at the same time.
pub(crate) fn make_durable<'a>(
    shared: &Shared,
    inbox_dir: &InboxDir,
    folders: impl IntoIterator<Item = &'a Folder>,
) -> Result<(), Answer> {
    make_durable_at_once(shared, inbox_dir, folders, None)
}

/// Does what [`make_durable`] does; many folders by one sync of the file system, if `sync_handle` was opened before they
/// were touched.
pub(super) fn make_durable_at_once<'a>(
    shared: &Shared,
    inbox_dir: &InboxDir,
    folders: impl IntoIterator<Item = &'a Folder>,
    sync_handle: Option<&File>,
) -> Result<(), Answer> {
    let each: HashMap<&[u8], &Dir> = folders
        .into_iter()
        .map(|(path, dir)| (path.as_slice(), &**dir))
        .collect();
    let held = |reason| Answer::refused(DeclineReason::InboxUnavailable, reason, None);
    if let Some(reason) = shared.handle.broken().filter(|_| !failpoints::mutant("R8-held")) {
        return Err(held(reason));
    }
    let each_alone = || {
        failpoints::step("R8-inbox-dirs", || {
            each.values().try_for_each(|dir| durable::sync_dir(dir))
        })
        .and_then(|()| failpoints::step("R8-partial-dir", || durable::sync_dir(&inbox_dir.partials)))
    };
    let synced = match sync_handle.filter(|_| each.len() >= FOLDERS_TOGETHER) {
        Some(sync_handle) => failpoints::step("R8-syncfs", || durable::sync_filesystem(sync_handle)),
        None => each_alone(),
    };
    synced.map_err(|e| {
        if !is_lost(&e) && !failpoints::mutant("R8-shortage") {
            return Answer::io("opening a folder of the inbox to sync it", &e);
        }
        let reason = format!("a folder of the inbox could not be synced: {e}");
        if !failpoints::mutant("R8-hold") {
            shared.handle.break_off(reason.clone());
        }
        held(reason)
    })?;
    shared.handle.broken().map_or(Ok(()), |reason| Err(held(reason)))
}

/// May what was written before be gone?
pub(super) fn is_lost(error: &io::Error) -> bool {
    meaning(error) == Meaning::Lost
}
