//! R6 to R9 (ARCHITECTURE.md, 'What is on disk when'): intent, name, durability, receipt; for one file or a thousand.
//!
//! | step | a crash after it |
//! |---|---|
//! | R5 partial and its directory entry durable (the caller's part) | *receiving*; sent or resumed again |
//! | R6 rows *placing*, each with the whole receipt | [`super::rule`]: partial there → R7 again |
//! | R7 final name given, nothing replaced | [`super::rule`]: found under that name → R8 again, then delivered |
//! | R8 every folder on the way, and the partials' folder, synced | the same |
//! | R9 receipt out; row *delivered*, on a later commit | the same receipt, byte for byte |

mod intent;
mod make_durable;
mod naming;
mod told;

use std::{fs::File, sync::Arc};

use dropwire_protocol::Manifest;

use self::{
    intent::{Intent, Way, choose, intend, row, sign, write_down},
    make_durable::{FOLDERS_TOGETHER, make_durable_at_once},
    naming::{Work, way_first},
};
pub(super) use self::{
    intent::{Ready, Whole, give_up},
    make_durable::make_durable,
    told::Told,
};
use super::{
    Shared, inbox_dir::InboxDir, partial, place::Opened, placing::Placing, reply::Answer, transfer_locks::Key,
};
use crate::{db::DbError, failpoints, fs::durable::How};

/// From so many open folders on, the next file waits for the next commit: descriptors are few.
const MOST_FOLDERS: usize = 128;

/// Gives all of `ready` their final names and answers each. Blocks.
pub(super) fn place_all(shared: &Arc<Shared>, inbox_dir: &InboxDir, ready: Vec<Ready>) {
    let folders = |file: &Ready| file.verified.manifest.path.components().count() - 1;
    let many = ready.iter().map(folders).sum::<usize>() >= FOLDERS_TOGETHER;
    let mut waiting = ready.into_iter().peekable();
    while waiting.peek().is_some() {
        // Before the first folder is made: errors count from here.
        let sync_handle = (many && inbox_dir.syncfs)
            .then(|| inbox_dir.sync_handle().ok())
            .flatten();
        place_some(shared, inbox_dir, &mut waiting, sync_handle.as_ref());
    }
}

/// As many of `waiting` as [`MOST_FOLDERS`] allows, at least one.
fn place_some(
    shared: &Arc<Shared>,
    inbox_dir: &InboxDir,
    waiting: &mut impl Iterator<Item = Ready>,
    sync_handle: Option<&File>,
) {
    let (mut files, mut chosen) = (Vec::new(), Vec::new());
    let mut opened = Opened::new();
    while opened.len() < MOST_FOLDERS
        && let Some(file) = waiting.next()
    {
        let (key, digest) = (file.verified.lock.key(), file.verified.digest);
        let way = Way::of(inbox_dir);
        match choose(
            shared,
            inbox_dir,
            way,
            key,
            &file.verified.manifest,
            digest,
            file.told.inode(),
            &mut opened,
        ) {
            Ok(place) => {
                chosen.push(place);
                files.push(file);
            }
            Err(answer) => {
                opened.clear(); // of its folders some may be gone
                not_placed(shared, inbox_dir, &file, answer);
            }
        }
    }
    let signed = match sign(shared, chosen) {
        Ok(signed) => signed,
        Err(answer) => {
            return files
                .iter()
                .for_each(|file| not_placed(shared, inbox_dir, file, answer.clone()));
        }
    };
    let intents: Vec<_> = files.into_iter().zip(signed).collect();
    let rows = intents
        .iter()
        .map(|(file, intent)| row(file.verified.lock.key(), &file.verified.manifest, intent))
        .collect();
    if let Err(e) = write_down(shared, inbox_dir, rows) {
        for (file, _) in &intents {
            match e {
                DbError::Change(_) | DbError::NotNow(..) => {
                    not_placed(shared, inbox_dir, file, e.clone().into());
                }
                DbError::Failed(_) => {} // it may be there after the restart: nothing is removed, nothing said
            }
        }
        return;
    }
    let not_renamed = |(_, intent): &&(Ready, Intent)| intent.placing.how != How::Renamed;
    let mut ways = intents
        .iter()
        .filter(not_renamed)
        .flat_map(|(_, intent)| &intent.place.folders)
        .peekable();
    // Once for all of them.
    let way = match ways.peek() {
        Some(_) => way_first(|| make_durable(shared, inbox_dir, ways)),
        None => Ok(()),
    };
    let mut placed = Vec::with_capacity(intents.len());
    let mut of_no_use = Vec::new();
    for (file, mut intent) in intents {
        let made = intent.place.take_made();
        let (key, keep) = (file.verified.lock.key(), file.keep.as_ref());
        let work = Work {
            shared,
            inbox_dir,
            key,
            manifest: &file.verified.manifest,
            keep,
        };
        let first = match intent.placing.how {
            How::Renamed => Ok(()),
            _ => way.clone(),
        };
        let first = first.and_then(|()| naming::still_there(work, &file));
        match first.and_then(|()| naming::give(work, intent, true)) {
            Ok(intent) => {
                made.stays();
                placed.push((file, intent));
            }
            Err(answer) => {
                of_no_use.push(made);
                file.verified.reply.end(answer);
            }
        }
    }
    drop(of_no_use); // after the last one that may have used these folders
    if placed.is_empty() {
        return;
    }
    let folders = placed.iter().flat_map(|(_, intent)| &intent.place.folders);
    if let Err(answer) = make_durable_at_once(shared, inbox_dir, folders, sync_handle) {
        return placed
            .iter()
            .for_each(|(file, _)| file.verified.reply.end(answer.clone()));
    }
    let placed_rows = |(file, _): &(Ready, Intent)| {
        (
            file.verified.lock.key(),
            file.verified.manifest.kind,
            file.verified.manifest.size,
        )
    };
    let rows: Vec<_> = placed.iter().map(placed_rows).collect();
    shared.note_placed(&rows);
    for (file, intent) in &placed {
        shared.delivered(
            inbox_dir,
            file.verified.lock.key(),
            &intent.placing.place,
            file.verified.manifest.size,
        );
        partial::remove_stream(inbox_dir, file.verified.lock.key(), file.verified.manifest.kind);
        file.verified
            .reply
            .end(Answer::Committed(intent.placing.receipt.clone()));
    }
    if !failpoints::mutant("R9") {
        let placed = placed.into_iter().map(|(_, intent)| intent.placing).collect();
        shared.write_down_delivered(inbox_dir.named.clone(), rows, placed);
    }
}

/// R7 again, under the name that was meant if it is still free, else under the next one (R6 first).
pub(super) fn place_again(
    shared: &Shared,
    inbox_dir: &InboxDir,
    key: Key,
    manifest: &Manifest,
    placing: Placing,
) -> Result<Placing, Answer> {
    let digest = placing.digest;
    let mut intent = intend(
        shared,
        inbox_dir,
        Way::of(inbox_dir),
        key,
        manifest,
        digest,
        placing.inode,
    )?;
    if intent.place.path == placing.place && intent.placing.how == placing.how {
        intent.placing = Arc::new(placing);
    } else {
        failpoints::step("rule-next-name", || {
            write_down(shared, inbox_dir, vec![row(key, manifest, &intent)])
        })?;
    }
    let whole = Whole::of(manifest, digest);
    let work = Work {
        shared,
        inbox_dir,
        key,
        manifest,
        keep: whole.as_ref(),
    };
    let named = naming::give(work, intent, false)?;
    Ok(Arc::unwrap_or_clone(named.placing))
}

/// Its row never was *placing*.
fn not_placed(shared: &Shared, inbox_dir: &InboxDir, file: &Ready, answer: Answer) {
    match &file.keep {
        Some(whole) => whole.keep(shared, file.verified.lock.key()),
        None => partial::remove(inbox_dir, file.verified.lock.key()),
    }
    file.verified.reply.end(answer);
}
