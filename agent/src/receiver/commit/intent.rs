//! R6: where a file is to be, and the receipt that says so, written down before the file gets its name.

use std::{fs::File, io, sync::Arc};

use dropwire_protocol::{Digest, Kind, Manifest, ReceiptBody};

use super::told::Told;
use crate::{
    clock::now_ms,
    db::DbError,
    failpoints,
    fs::durable::How,
    receiver::{
        Shared,
        inbox_dir::InboxDir,
        incoming::Verified,
        ledger::{self, Checkpoint},
        naming::Names,
        partial,
        place::{Offered, Opened, Place},
        placing::Placing,
        reply::Answer,
        tally::Rows,
        transfer_locks::Key,
    },
};

/// A whole, verified, durable partial (R5 is done).
pub(crate) struct Ready {
    /// What came.
    pub verified: Verified,
    /// By what the partial is known again.
    pub told: Told,
    /// A partial that cannot be placed stays for another try; None: it goes.
    pub keep: Option<Whole>,
}

/// A large partial, of which no byte needs to be sent again if it cannot be placed now.
pub(crate) struct Whole {
    /// At its end; durable by R5.
    pub checkpoint: Checkpoint,
    /// Open; None: it could not be.
    pub file: Option<File>,
}

impl Whole {
    /// Of a partial that an earlier run made whole; None of a small one. It is read once more before it is gone on with.
    pub(crate) fn of(manifest: &Manifest, digest: Digest) -> Option<Self> {
        (!manifest.is_small()).then(|| Self {
            checkpoint: Checkpoint {
                offset: manifest.size,
                digest,
                hash_state: Vec::new(),
            },
            file: None,
        })
    }

    /// The row is *receiving*: the next offer goes on at the end.
    pub(crate) fn keep(&self, shared: &Shared, key: Key) {
        let (checkpoint, now) = (self.checkpoint.clone(), now_ms());
        let kept = failpoints::step("R7-keep", || {
            shared
                .db
                .call_blocking(move |tx| ledger::add_checkpoint(tx, key, &checkpoint, now))
        });
        if let (Ok(()), Some(file)) = (kept, &self.file) {
            shared.verified_prefixes.set(key, file); // else it is read once more
        }
    }
}

/// How a file is to get its name.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub names: Names,
    pub how: How,
}

impl Way {
    pub(super) fn of(inbox_dir: &InboxDir) -> Self {
        Self {
            names: inbox_dir.names,
            how: inbox_dir.how,
        }
    }
}

/// Where a file is to lie, and what its receipt will say.
pub(super) struct Chosen {
    pub place: Place,
    pub how: How,
    pub inode: u64,
    pub body: ReceiptBody,
}

/// A file's intended place, its receipt signed.
pub(super) struct Intent {
    pub place: Place,
    pub placing: Arc<Placing>,
}

/// Chooses a place, and what the receipt will say.
#[expect(clippy::too_many_arguments, reason = "what a row says, and how")]
pub(super) fn choose(
    shared: &Shared,
    inbox_dir: &InboxDir,
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
    let place = shared.places.choose(inbox_dir, way.names, offered, opened)?;
    let body = ReceiptBody {
        transfer: key.1,
        sender: key.0,
        receiver: shared.me,
        path: manifest.path.clone(),
        delivered_as: place.path.clone(),
        size: manifest.size,
        digest,
        delivered_at: now_ms().max(0) as u64,
        salt: [0; 16], // drawn when it is signed
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
pub(super) fn sign(shared: &Shared, mut chosen: Vec<Chosen>) -> Result<Vec<Intent>, Answer> {
    let mut salts = vec![[0; 16]; chosen.len()];
    failpoints::step("R6-salt", || getrandom::fill(salts.as_flattened_mut()))
        .map_err(|e| Answer::io("asking for random bytes", &io::Error::other(e)))?;
    for (chosen, salt) in chosen.iter_mut().zip(salts) {
        chosen.body.salt = salt;
    }
    let apart = |Chosen {
                     place,
                     how,
                     inode,
                     body,
                 }: Chosen| ((place, how, inode, body.digest), body);
    let (places, bodies): (Vec<_>, Vec<_>) = chosen.into_iter().map(apart).unzip();
    let receipts = (shared.sign)(&bodies);
    debug_assert_eq!(receipts.len(), places.len());
    let signed = places.into_iter().zip(receipts);
    let intents = signed
        .map(|((place, how, inode, digest), receipt)| Intent {
            placing: Arc::new(Placing {
                place: place.path.clone(),
                inode,
                how,
                digest,
                receipt,
            }),
            place,
        })
        .collect();
    Ok(intents)
}

/// A place for one file, signed.
pub(super) fn intend(
    shared: &Shared,
    inbox_dir: &InboxDir,
    way: Way,
    key: Key,
    manifest: &Manifest,
    digest: Digest,
    inode: u64,
) -> Result<Intent, Answer> {
    let chosen = choose(
        shared,
        inbox_dir,
        way,
        key,
        manifest,
        digest,
        inode,
        &mut Opened::new(),
    )?;
    Ok(sign(shared, vec![chosen])?.swap_remove(0))
}

/// What R6 writes for one file.
pub(super) struct IntentRow {
    pub key: Key,
    pub manifest: Manifest,
    pub placing: Arc<Placing>,
    pub aliases: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

pub(super) fn row(key: Key, manifest: &Manifest, intent: &Intent) -> IntentRow {
    IntentRow {
        key,
        manifest: manifest.clone(),
        placing: intent.placing.clone(),
        aliases: intent.place.aliases.clone(),
    }
}

/// R6, all in one commit.
pub(super) fn write_down(shared: &Shared, inbox_dir: &InboxDir, rows: Vec<IntentRow>) -> Result<(), DbError> {
    let (folder_id, now) = (inbox_dir.folder_id, now_ms());
    if rows.is_empty() || failpoints::mutant("R6") {
        return Ok(());
    }
    let added: Vec<_> = rows
        .iter()
        .map(|row| (row.key.0, Rows::one(&row.manifest, &row.placing)))
        .collect();
    shared.db.call_blocking(move |tx| {
        for row in &rows {
            ledger::place(tx, row.key, &row.manifest, folder_id, &row.placing, now)?;
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

/// Nothing of it counts any more: *receiving* again. A folder's stream, if it is there, is what it is made of again.
pub(crate) fn give_up(shared: &Shared, inbox_dir: &InboxDir, key: Key, kind: Kind) -> Result<(), DbError> {
    shared.db.call_blocking(move |tx| {
        ledger::unplace(tx, key)?;
        match kind {
            Kind::File => ledger::drop_receiving(tx, key).map(drop),
            Kind::Folder => Ok(()),
        }
    })?;
    match kind {
        Kind::File => partial::remove(inbox_dir, key),
        Kind::Folder => {
            let _ = partial::remove_folder(inbox_dir, key); // else the next try does
        }
    }
    Ok(())
}
