//! R6 to R9 (ARCHITECTURE.md, 'What is on disk when'): intent, name, certainty, receipt; for one file or a thousand.
//!
//! | step | a crash after it |
//! |---|---|
//! | R5 partial and its directory entry durable (the caller's part) | *receiving*; sent or resumed again |
//! | R6 rows *placing*, each with the whole receipt | [`super::rule`]: partial there → R7 again |
//! | R7 final name given, nothing replaced | [`super::rule`]: found under that name → R8 again, then delivered |
//! | R8 every folder on the way, and the partials' folder, synced | the same |
//! | R9 receipt out; row *delivered*, on a later commit | the same receipt, byte for byte |

mod certain;
mod naming;

use std::{fs::File, io, sync::Arc};

use dropwire_protocol::{
    Digest, Kind, Manifest, ReceiptBody,
    message::{DeclineReason, MAX_EAGER},
};

pub use self::{certain::make_certain, naming::Told};
use self::{
    certain::{FOLDERS_TOGETHER, make_certain_at_once},
    naming::{Work, way_first},
};
use super::{
    Shared,
    claims::{Claim, Key},
    ledger::{self, Checkpoint},
    naming::Names,
    partial,
    place::{Offered, Opened, Place},
    placing::Placing,
    reply::{Answer, Reply},
    site::Site,
    space::Reservation,
    tally::Rows,
};
use crate::{clock::now_ms, db::DbError, durable::How, fault};

/// From so many open folders on, the next file waits for the next commit: descriptors are few.
const MOST_FOLDERS: usize = 128;

/// A whole, verified, durable partial (R5 is done).
pub struct Ready {
    /// What was offered.
    pub manifest: Manifest,
    /// Of all its bytes.
    pub digest: Digest,
    /// By what the partial is known again.
    pub told: Told,
    /// A partial that cannot be placed stays for another try; None: it goes.
    pub keep: Option<Whole>,
    /// Who is told.
    pub reply: Reply,
    /// Held until the end.
    pub claim: Claim,
    /// Held until the end.
    #[expect(dead_code, reason = "giving it back is what it is for")]
    pub reservation: Reservation,
}

/// A large partial, of which no byte needs to be sent again if it cannot be placed now.
pub struct Whole {
    /// At its end; durable by R5.
    pub checkpoint: Checkpoint,
    /// Open; None: it could not be.
    pub file: Option<File>,
}

impl Whole {
    /// Of a partial that an earlier run made whole; None of a small one. It is read once more before it is gone on with.
    fn of(manifest: &Manifest, digest: Digest) -> Option<Whole> {
        let is_large = manifest.kind == Kind::Folder || manifest.size > MAX_EAGER;
        is_large.then(|| Whole {
            checkpoint: Checkpoint {
                offset: manifest.size,
                digest,
                hash_state: Vec::new(),
            },
            file: None,
        })
    }

    /// The row is *receiving*: the next offer goes on at the end.
    pub fn keep(&self, shared: &Shared, key: Key) {
        let (checkpoint, now) = (self.checkpoint.clone(), now_ms());
        let kept = fault::step("R7-keep", || {
            shared
                .db
                .call_blocking(move |tx| ledger::add_checkpoint(tx, key, &checkpoint, now))
        });
        if let (Ok(()), Some(file)) = (kept, &self.file) {
            shared.seals.set(key, file); // else it is read once more
        }
    }
}

/// How a file is to get its name.
#[derive(Clone, Copy)]
struct Way {
    names: Names,
    how: How,
}

impl Way {
    fn of(site: &Site) -> Way {
        Way {
            names: site.names,
            how: site.how,
        }
    }
}

/// Where a file is to lie, and what its receipt will say.
struct Chosen {
    place: Place,
    how: How,
    inode: u64,
    body: ReceiptBody,
}

/// A file's intended place, its receipt signed.
struct Intent {
    place: Place,
    placing: Arc<Placing>,
}

/// Gives all of `ready` their final names and answers each. Blocks.
pub fn place_all(shared: &Arc<Shared>, site: &Site, ready: Vec<Ready>) {
    let folders = |file: &Ready| file.manifest.path.components().count() - 1;
    let many = ready.iter().map(folders).sum::<usize>() >= FOLDERS_TOGETHER;
    let mut waiting = ready.into_iter().peekable();
    while waiting.peek().is_some() {
        // Before the first folder is made: errors count from here.
        let anchor = (many && site.syncfs).then(|| site.anchor().ok()).flatten();
        place_some(shared, site, &mut waiting, anchor.as_ref());
    }
}

/// As many of `waiting` as [`MOST_FOLDERS`] allows, at least one.
fn place_some(
    shared: &Arc<Shared>,
    site: &Site,
    waiting: &mut impl Iterator<Item = Ready>,
    anchor: Option<&File>,
) {
    let (mut files, mut chosen) = (Vec::new(), Vec::new());
    let mut opened = Opened::new();
    while opened.len() < MOST_FOLDERS
        && let Some(file) = waiting.next()
    {
        let (key, digest) = (file.claim.key(), file.digest);
        let way = Way::of(site);
        match choose(
            shared,
            site,
            way,
            key,
            &file.manifest,
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
                not_placed(shared, site, &file, answer);
            }
        }
    }
    let intents: Vec<_> = files.into_iter().zip(sign(shared, chosen)).collect();
    let rows = intents
        .iter()
        .map(|(file, intent)| row(file.claim.key(), &file.manifest, intent))
        .collect();
    if let Err(e) = write_down(shared, site, rows) {
        for (file, _) in &intents {
            match e {
                DbError::Change(_) | DbError::NotNow(..) => not_placed(shared, site, file, e.clone().into()),
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
        Some(_) => way_first(|| make_certain(shared, site, ways)),
        None => Ok(()),
    };
    let mut placed = Vec::with_capacity(intents.len());
    let mut of_no_use = Vec::new();
    for (file, mut intent) in intents {
        let made = intent.place.take_made();
        let (key, keep) = (file.claim.key(), file.keep.as_ref());
        let work = Work {
            shared,
            site,
            key,
            manifest: &file.manifest,
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
                file.reply.end(answer);
            }
        }
    }
    drop(of_no_use); // after the last one that may have used these folders
    if placed.is_empty() {
        return;
    }
    let folders = placed.iter().flat_map(|(_, intent)| &intent.place.folders);
    if let Err(answer) = make_certain_at_once(shared, site, folders, anchor) {
        return placed.iter().for_each(|(file, _)| file.reply.end(answer.clone()));
    }
    let certain = |(file, _): &(Ready, Intent)| (file.claim.key(), file.manifest.kind, file.manifest.size);
    let certain: Vec<_> = placed.iter().map(certain).collect();
    shared.note_certain(&certain);
    for (file, intent) in &placed {
        shared.delivered(site, file.claim.key(), &intent.placing.place, file.manifest.size);
        partial::remove_stream(site, file.claim.key(), file.manifest.kind);
        file.reply.end(Answer::Committed(intent.placing.receipt.clone()));
    }
    if !fault::mutant("R9") {
        let placed = placed.into_iter().map(|(_, intent)| intent.placing).collect();
        shared.write_down_delivered(site.named.clone(), certain, placed);
    }
}

/// R7 again, under the name that was meant if it is still free, else under the next one (R6 first).
pub fn place_again(
    shared: &Shared,
    site: &Site,
    key: Key,
    manifest: &Manifest,
    placing: Placing,
) -> Result<Placing, Answer> {
    let body = placing.receipt.decode_body_unverified();
    let digest = body
        .map_err(|e| Answer::refused(DeclineReason::DiskError, e.to_string(), None))?
        .digest;
    let mut intent = intend(shared, site, Way::of(site), key, manifest, digest, placing.inode)?;
    if intent.place.path == placing.place && intent.placing.how == placing.how {
        intent.placing = Arc::new(placing);
    } else {
        fault::step("rule-next-name", || {
            write_down(shared, site, vec![row(key, manifest, &intent)])
        })?;
    }
    let whole = Whole::of(manifest, digest);
    let work = Work {
        shared,
        site,
        key,
        manifest,
        keep: whole.as_ref(),
    };
    let named = naming::give(work, intent, false)?;
    Ok(Arc::unwrap_or_clone(named.placing))
}

/// Chooses a place, and what the receipt will say.
#[expect(clippy::too_many_arguments, reason = "what a row says, and how")]
fn choose(
    shared: &Shared,
    site: &Site,
    way: Way,
    key: Key,
    manifest: &Manifest,
    digest: Digest,
    inode: u64,
    opened: &mut Opened,
) -> Result<Chosen, Answer> {
    let top = shared.top(key.0);
    let offered = Offered {
        sender: key.0,
        top: top.as_deref(),
        path: &manifest.path,
        kind: manifest.kind,
    };
    let place = shared.places.choose(site, way.names, offered, opened)?;
    let mut salt = [0; 16];
    fault::step("R6-salt", || getrandom::fill(&mut salt))
        .map_err(|e| Answer::io("asking for random bytes", &io::Error::other(e)))?;
    let body = ReceiptBody {
        transfer: key.1,
        sender: key.0,
        receiver: shared.me,
        path: manifest.path.clone(),
        delivered_as: place.path.clone(),
        size: manifest.size,
        digest,
        delivered_at: now_ms().max(0) as u64,
        salt,
    };
    let how = if place.is_elsewhere { How::Copied } else { way.how };
    Ok(Chosen {
        place,
        how,
        inode,
        body,
    })
}

/// Those that are signed together share signatures.
fn sign(shared: &Shared, chosen: Vec<Chosen>) -> Vec<Intent> {
    let apart = |chosen: Chosen| ((chosen.place, chosen.how, chosen.inode), chosen.body);
    let (places, bodies): (Vec<_>, Vec<_>) = chosen.into_iter().map(apart).unzip();
    let receipts = (shared.sign)(&bodies);
    debug_assert_eq!(receipts.len(), places.len());
    let signed = places.into_iter().zip(receipts);
    signed
        .map(|((place, how, inode), receipt)| Intent {
            placing: Arc::new(Placing {
                place: place.path.clone(),
                inode,
                how,
                receipt,
            }),
            place,
        })
        .collect()
}

/// A place for one file, signed.
fn intend(
    shared: &Shared,
    site: &Site,
    way: Way,
    key: Key,
    manifest: &Manifest,
    digest: Digest,
    inode: u64,
) -> Result<Intent, Answer> {
    let chosen = choose(
        shared,
        site,
        way,
        key,
        manifest,
        digest,
        inode,
        &mut Opened::new(),
    )?;
    Ok(sign(shared, vec![chosen]).swap_remove(0))
}

/// What R6 writes for one file.
struct IntentRow {
    key: Key,
    manifest: Manifest,
    placing: Arc<Placing>,
    aliases: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn row(key: Key, manifest: &Manifest, intent: &Intent) -> IntentRow {
    IntentRow {
        key,
        manifest: manifest.clone(),
        placing: intent.placing.clone(),
        aliases: intent.place.aliases.clone(),
    }
}

/// R6, all in one commit.
fn write_down(shared: &Shared, site: &Site, rows: Vec<IntentRow>) -> Result<(), DbError> {
    let (mark, now) = (site.mark, now_ms());
    if rows.is_empty() || fault::mutant("R6") {
        return Ok(());
    }
    let added: Vec<_> = rows
        .iter()
        .map(|row| (row.key.0, Rows::one(&row.manifest, &row.placing)))
        .collect();
    shared.db.call_blocking(move |tx| {
        for row in &rows {
            ledger::place(tx, row.key, &row.manifest, mark, &row.placing, now)?;
            for (folder, alias) in &row.aliases {
                ledger::set_alias(tx, row.key.0, folder, alias.as_deref())?;
            }
        }
        Ok(())
    })?;
    for (peer, rows) in added {
        shared.tally.added(peer, rows);
    }
    Ok(())
}

/// Its row never was *placing*.
fn not_placed(shared: &Shared, site: &Site, file: &Ready, answer: Answer) {
    match &file.keep {
        Some(whole) => whole.keep(shared, file.claim.key()),
        None => partial::remove(site, file.claim.key()),
    }
    file.reply.end(answer);
}
