//! What a crash left, cleared up when the inbox is opened: rows *placing* are finished, litter is removed.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    path::Path,
};

use super::{
    Shared, admit,
    inbox_dir::{InboxDir, Trouble},
    ledger,
    ledger::{Known, State},
    partial,
    reply::Answer,
    rule,
    transfer_locks::{Key, TransferLock},
};
use crate::{db::DbError, error::chain, failpoints, fs::durable::How, homes, id};

/// Opens the inbox at `path`: with the folder id that the ledger knows for it, or (the first time) with the one it has or
/// gets. Blocks.
pub(super) fn open(shared: &Shared, path: &Path) -> Result<InboxDir, Trouble> {
    let name = path.to_path_buf();
    let expected = shared
        .db
        .call_blocking(move |tx| homes::expected(tx, &name))
        .map_err(broken)?;
    let inbox_dir = shared.handle.open_at(path, expected)?;
    settle(shared, path, inbox_dir.folder_id)?;
    finish_placing(shared, &inbox_dir, Copies::Later)?;
    give_up_placing(shared)?;
    remove_litter(shared, &inbox_dir)?;
    Ok(inbox_dir)
}

/// The folder is at home here, unless it is a copy of an outbox.
fn settle(shared: &Shared, path: &Path, folder_id: [u8; 16]) -> Result<(), Trouble> {
    let (here, others) = (path.to_path_buf(), shared.outboxes.clone());
    let settle = move |tx: &rusqlite::Transaction<'_>| homes::claim(tx, folder_id, &here, &others, None);
    match shared.db.call_blocking(settle).map_err(broken)? {
        None => Ok(()),
        Some(other) => Err(Trouble {
            reason: homes::There::find(folder_id, path, &other).reason(path, &other),
        }),
    }
}

/// What was being placed in a folder that another one replaced for good is taken again. Who works on one finds it out.
fn give_up_placing(shared: &Shared) -> Result<(), Trouble> {
    let keys = shared.db.call_blocking(|tx| ledger::homeless_placing(tx));
    for key in keys.map_err(broken)? {
        if let Some(_lock) = shared.transfer_locks.try_take(key) {
            admit::give_up(shared, key).map_err(broken)?;
        }
    }
    Ok(())
}

/// What becomes of rows whose file is to be copied to another disk inside the inbox, or has been: either may take hours,
/// and whoever opens the inbox keeps all others waiting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copies {
    /// They are finished too.
    Now,
    /// They wait for the next offer, or for [`finish_copies`].
    Later,
}

/// Finishes what no sender offers again, and what could not be finished before. Blocks for long.
pub(super) fn finish_copies(shared: &Shared) {
    if let Ok(_one_at_a_time) = shared.finishing.try_lock()
        && let Ok(inbox_dir) = shared.handle.last_seen()
        && let Err(trouble) = finish_placing(shared, &inbox_dir, Copies::Now)
    {
        tracing::warn!(
            reason = trouble.reason,
            "what was being placed cannot be finished yet"
        );
    }
}

/// The rule, for every row of this inbox that nobody works on.
fn finish_placing(shared: &Shared, inbox_dir: &InboxDir, copies: Copies) -> Result<(), Trouble> {
    let folder_id = inbox_dir.folder_id;
    let keys = shared
        .db
        .call_blocking(move |tx| ledger::all_placing(tx, folder_id))
        .map_err(broken)?;
    let mut open = false;
    for key in keys {
        let Some(_lock) = shared.transfer_locks.try_take(key) else {
            open = true;
            continue;
        };
        let known = match admit::look(shared, key) {
            Ok((known, _)) => known,
            Err(error @ DbError::Change(_)) => {
                open = true;
                tracing::warn!(peer = %id::format(key.0), job = %key.1, error = %chain(&error), "its row cannot be read");
                continue;
            }
            Err(error) => return Err(broken(error)),
        };
        let Some(Known {
            manifest: Some(manifest),
            state: State::Placing(placing),
            ..
        }) = known
        else {
            continue;
        };
        if copies == Copies::Later && placing.how == How::Copied && !failpoints::mutant("start-copies") {
            open = true;
            continue;
        }
        let peer = id::format(key.0);
        match rule::resolve(shared, inbox_dir, key, &manifest, placing) {
            Ok(Some(_)) => {
                tracing::info!(%peer, job = %key.1, path = %manifest.path, "delivered before the last stop");
            }
            Ok(None) => {
                tracing::warn!(%peer, job = %key.1, path = %manifest.path, "its partial was taken away; it is received again");
            }
            Err(Answer::Refused(refusal)) => {
                open = true;
                tracing::warn!(%peer, job = %key.1, path = %manifest.path, reason = refusal.text, "cannot be placed yet");
            }
            Err(_) => return Err(broken_list()),
        }
    }
    if !open {
        inbox_dir.named.start_over();
    }
    Ok(())
}

/// Partials without a row that could still use them, left by an earlier run or while the inbox was held. What is worked
/// on is left alone.
fn remove_litter(shared: &Shared, inbox_dir: &InboxDir) -> Result<(), Trouble> {
    let names = partial::names(inbox_dir).unwrap_or_else(|error| {
        tracing::warn!(%error, "old partials could not be looked for");
        Vec::new()
    });
    // Locked before the rows are read: so none of them can come to need its partial until that is gone.
    let mut transfer_locks: HashMap<Key, Option<TransferLock>> = HashMap::new();
    let unlocked = |name: &OsString| match partial::key_of(name) {
        Some(key) => transfer_locks
            .entry(key)
            .or_insert_with(|| shared.transfer_locks.try_take(key))
            .is_some(),
        None => true,
    };
    let mut litter: Vec<OsString> = names.into_iter().filter(unlocked).collect();
    let folder_id = inbox_dir.folder_id;
    let keys: HashSet<Key> = shared
        .db
        .call_blocking(move |tx| ledger::all_partials(tx, folder_id))
        .map_err(broken)?
        .into_iter()
        .collect();
    litter.retain(|name| partial::key_of(name).is_none_or(|key| !keys.contains(&key)));
    for name in litter {
        if let Err(error) = partial::remove_all(&inbox_dir.partials, &name) {
            tracing::warn!(%error, "an old partial could not be removed");
        }
    }
    Ok(())
}

fn broken(error: DbError) -> Trouble {
    Trouble {
        reason: chain(&error),
    }
}

fn broken_list() -> Trouble {
    Trouble {
        reason: "the job list cannot be written".into(),
    }
}
