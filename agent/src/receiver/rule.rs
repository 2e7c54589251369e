//! The rule for a row *placing*: what a crash, or another link, left between intent and durability is finished, or taken
//! back.
//!
//! | partial | its final name | means |
//! |---|---|---|
//! | there | the same file, or its copy | named by a link or a copy, or both names survived a power cut: the new one is synced, the old one goes |
//! | there, of a link or a copy that [`super::named`] has | anything | somebody took what was named: the old name goes |
//! | there, as verified | free, or another file | R7 again |
//! | gone | the verified file, or the folder and all of it | R8 again, then delivered |
//! | gone | free, or another file | delivered if [`super::named`] has it, else the row is taken back: it is received again |
//!
//! A partial that is gone proves nothing by itself: whoever cleans up, imports or scans for viruses may have taken it.

use std::io;

use dropwire_protocol::{Manifest, Receipt};

use super::{
    Shared, commit,
    evidence::{self, Found},
    inbox_dir::InboxDir,
    ledger, partial, place,
    placing::Placing,
    reply::Answer,
    transfer_locks::Key,
};
use crate::{
    clock::now_ms,
    failpoints,
    io_error::{Meaning, meaning},
};

/// Applies the rule; None: the file is nowhere, and its row says no more that it is *placing*. The caller has locked
/// `key` and read the inbox's folder id, and it is the row's. Repeatable after any crash.
pub(super) fn resolve(
    shared: &Shared,
    inbox_dir: &InboxDir,
    key: Key,
    manifest: &Manifest,
    placing: Placing,
) -> Result<Option<Receipt>, Answer> {
    if shared.is_placed(key) {
        return Ok(Some(placing.receipt));
    }
    let unknown = |e: io::Error| Answer::io("looking for the partial", &e);
    let found = match evidence::find(inbox_dir, key, manifest, &placing) {
        // A sync of what was found failed: asked again, it would be called good.
        Err(e) if meaning(&e) == Meaning::Lost => {
            commit::give_up(shared, inbox_dir, key, manifest.kind)?;
            return Err(unknown(e));
        }
        found => found.map_err(unknown)?,
    };
    let placing = match found {
        Found::Linked => {
            // As when it was linked: the name that stays is durable before the other goes.
            let folders = place::existing_folders(inbox_dir, &placing.place).map_err(unknown)?;
            failpoints::step("rule-link", || commit::make_durable(shared, inbox_dir, &folders))?;
            partial::remove_staged(inbox_dir, key, manifest.kind).map_err(unknown)?;
            placing
        }
        Found::Partial => commit::place_again(shared, inbox_dir, key, manifest, placing)?,
        Found::Named => placing,
        Found::Nothing if inbox_dir.named.has(&placing.receipt) || failpoints::mutant("rule-absence") => {
            placing
        }
        Found::Nothing => {
            commit::give_up(shared, inbox_dir, key, manifest.kind)?;
            return Ok(None);
        }
    };
    let folders = place::existing_folders(inbox_dir, &placing.place).map_err(unknown)?;
    failpoints::step("rule-R8", || commit::make_durable(shared, inbox_dir, &folders))?;
    let (placed, now) = ((key, manifest.kind, manifest.size), now_ms());
    if shared
        .db
        .call_blocking(move |tx| ledger::deliver(tx, &[placed], now))?
        > 0
    {
        shared.delivered(inbox_dir, key, &placing.place, manifest.size);
    }
    inbox_dir.named.forget(&placing.receipt);
    partial::remove_stream(inbox_dir, key, manifest.kind);
    Ok(Some(placing.receipt))
}
