//! A sender takes offers back: what was not delivered never will be.

use dropwire_protocol::{Manifest, Receipt, receiver::Outcome};

use super::{
    Shared, admit,
    ledger::{self, Known, State},
    partial,
    placing::Placing,
    reply::{Answer, Outcomes},
    rule,
    transfer_locks::{Key, TransferLock},
};
use crate::{clock::now_ms, id};

/// Makes the tombstones durable, all in one commit, before anything is said or removed.
pub(super) fn withdraw(shared: &Shared, transfer_locks: Vec<TransferLock>, outcomes: &Outcomes) {
    let (keys, now): (Vec<Key>, _) = (transfer_locks.iter().map(TransferLock::key).collect(), now_ms());
    let withdrawn = shared.db.call_blocking(move |tx| {
        let one = |key: &Key| {
            let known = ledger::find(tx, *key)?;
            let ends = |known: &Known| matches!(known.state, State::Delivered(_) | State::Placing(_));
            if !known.as_ref().is_some_and(ends) {
                ledger::withdraw(tx, *key, now)?;
            }
            Ok(known)
        };
        keys.iter().map(one).collect::<rusqlite::Result<Vec<_>>>()
    });
    let known = match withdrawn {
        Ok(known) => known,
        Err(error) => {
            return transfer_locks
                .iter()
                .for_each(|lock| not_withdrawn(lock.key(), &error.clone().into()));
        }
    };
    for (lock, known) in transfer_locks.into_iter().zip(known) {
        let key = lock.key();
        let settled = match known {
            Some(Known {
                state: State::Delivered(receipt),
                ..
            }) => Ok(Some(receipt)),
            Some(Known {
                state: State::Placing(placing),
                manifest: Some(manifest),
                folder_id,
            }) => end_placing(shared, key, &manifest, folder_id, placing),
            _ => Ok(None),
        };
        match settled {
            Ok(None) => {
                if let Ok(inbox_dir) = shared.handle.last_seen() {
                    partial::remove(&inbox_dir, key);
                }
                outcomes.send(Outcome::Withdrawn { id: key.1 });
            }
            Ok(Some(receipt)) => outcomes.send(Outcome::Settled {
                id: key.1,
                sequence: None,
                receipt,
            }),
            Err(answer) => not_withdrawn(key, &answer),
        }
    }
}

/// Of one that is *placing*: it is delivered, with its receipt, or it can be withdrawn after all, and is.
fn end_placing(
    shared: &Shared,
    key: Key,
    manifest: &Manifest,
    folder_id: Option<[u8; 16]>,
    placing: Placing,
) -> Result<Option<Receipt>, Answer> {
    let receipt = match admit::enter_of(shared, key, folder_id)? {
        Some(inbox_dir) => rule::resolve(shared, &inbox_dir, key, manifest, placing)?,
        None => None,
    };
    if receipt.is_none() {
        let now = now_ms();
        shared
            .db
            .call_blocking(move |tx| ledger::withdraw(tx, key, now))?;
    }
    Ok(receipt)
}

/// Neither may be said yet; the sender asks again by its next link.
fn not_withdrawn((peer, job): Key, answer: &Answer) {
    tracing::warn!(peer = %id::format(peer), %job, ?answer, "a withdrawal cannot be answered yet");
}
