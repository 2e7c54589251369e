//! What this agent knows of every transfer that was offered to it: the tables and their typed changes.
//!
//! A row is keyed by the sender's authenticated id and the transfer's id. It goes from *receiving* over *placing* to
//! *delivered*, or ends *withdrawn*. Small files are written as *placing* right away: nothing of them is ever resumed.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use dropwire_protocol::{AgentId, Digest, Kind, Manifest, Mtime, Receipt, RemotePath, TransferId};
use rusqlite::{Connection, OptionalExtension, Result, Row, Transaction, params, types::Type};
use rusqlite_migration::M;

use super::{
    placing::Placing,
    tally::{ROW, Rows},
    transfer_locks::Key,
};
use crate::{clock::milliseconds, fs::durable::How};

/// The inbox's tables, beside [`crate::running_time::SCHEMA_1`].
pub const SCHEMA_1: &str = "
CREATE TABLE inbox_transfer (
    sender BLOB NOT NULL,
    id BLOB NOT NULL,
    state INTEGER NOT NULL,     -- 0 receiving, 1 placing, 2 delivered, 3 withdrawn
    path BLOB,                  -- as offered; path and size are null for a withdrawn one that never was offered
    size INTEGER,
    mtime_s INTEGER,
    mtime_ns INTEGER,
    folder INTEGER NOT NULL DEFAULT 0, -- a whole one
    mark BLOB,                  -- of the inbox in which its partial lies
    place BLOB,                 -- below the inbox; from placing on, as are the next three
    inode INTEGER,
    how INTEGER,                -- 0 renamed, 1 linked
    receipt BLOB,
    changed_ms INTEGER NOT NULL,
    idle_since INTEGER,         -- running time: last sign of life (receiving), Forget (delivered), withdrawal
    UNIQUE (sender, id)         -- not the rows' order: one by one, ids lie anywhere, and each row would be a page to write
);
CREATE INDEX inbox_unfinished ON inbox_transfer (state, sender, idle_since, changed_ms) WHERE state < 2;
CREATE INDEX inbox_withdrawn ON inbox_transfer (sender, idle_since, changed_ms) WHERE state = 3;
CREATE INDEX inbox_ended ON inbox_transfer (idle_since) WHERE state >= 2;
CREATE TABLE inbox_checkpoint (
    sender BLOB NOT NULL,
    id BLOB NOT NULL,
    at INTEGER NOT NULL,
    digest BLOB NOT NULL,
    hash_state BLOB NOT NULL,
    PRIMARY KEY (sender, id, at)
) WITHOUT ROWID;
CREATE TABLE inbox_folder_alias (
    sender BLOB NOT NULL,
    folder BLOB NOT NULL,       -- as offered, from the top
    alias BLOB NOT NULL,        -- last component, as it is called here
    PRIMARY KEY (sender, folder)
) WITHOUT ROWID;
CREATE TABLE inbox_mark (path BLOB PRIMARY KEY, mark BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE inbox_total (files INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO inbox_total VALUES (0, 0);
";

/// Indexes that the statements below can use: a partial one serves only those that say its condition word for word.
pub const SCHEMA_2: &str = "
DROP INDEX inbox_unfinished;
DROP INDEX inbox_ended;
CREATE INDEX inbox_receiving ON inbox_transfer (sender, idle_since, changed_ms) WHERE state = 0;
CREATE INDEX inbox_placing ON inbox_transfer (mark) WHERE state = 1;
CREATE INDEX inbox_known ON inbox_transfer (sender, idle_since) WHERE state = 2 AND idle_since IS NOT NULL;
CREATE INDEX inbox_ended ON inbox_transfer (idle_since) WHERE state >= 2 AND idle_since IS NOT NULL;
";

/// The digest of what a row is *placing*; once *delivered*, its receipt says it.
const SCHEMA_3: &str = "ALTER TABLE inbox_transfer ADD COLUMN digest BLOB;";

/// Adds the digest to the rows, those of older versions included, which have it in their receipts alone.
pub fn digests() -> M<'static> {
    M::up_with_hook(SCHEMA_3, |tx: &Transaction<'_>| Ok(fill_digests(tx)?))
}

fn fill_digests(db: &Connection) -> Result<()> {
    let mut read = db.prepare("SELECT sender, id, receipt FROM inbox_transfer WHERE state = 1")?;
    let mut write = db.prepare("UPDATE inbox_transfer SET digest = ?3 WHERE sender = ?1 AND id = ?2")?;
    let rows: Vec<(Key, Option<Vec<u8>>)> = read
        .query_map([], |row| Ok((key(row)?, row.get(2)?)))?
        .collect::<Result<_>>()?;
    for (key, receipt) in rows {
        // A row with a damaged receipt gets none: whoever needs that row says so, and all others go on.
        let receipt = receipt.and_then(|bytes| receipt_of(&bytes).ok());
        if let Some(Ok(body)) = receipt.map(|receipt| receipt.decode_body_unverified()) {
            write.execute(params![key.0.0, key.1.0, body.digest.0])?;
        }
    }
    Ok(())
}

/// A known transfer.
#[derive(Debug)]
pub(super) struct Known {
    /// None for a withdrawn one, except in rows of older versions.
    pub manifest: Option<Manifest>,
    /// Of the inbox in which its partial lies.
    pub folder_id: Option<[u8; 16]>,
    /// How far it got.
    pub state: State,
}

/// How far a transfer got.
#[derive(Debug)]
pub(super) enum State {
    /// Bytes are coming in.
    Receiving,
    /// Between intent and durability: the receipt counts once the final name is durable.
    Placing(Placing),
    /// The receipt is true.
    Delivered(Receipt),
    /// Never will be delivered.
    Withdrawn,
}

/// A sender's folder as offered, and what its last component is called here.
pub(super) type Alias = (AgentId, Vec<u8>, Vec<u8>);

/// A durable prefix of a partial.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    /// Bytes.
    pub offset: u64,
    /// Of these bytes.
    pub digest: Digest,
    /// The hash's inner state, for going on from here.
    pub hash_state: Vec<u8>,
}

/// *Placing* in a folder that is at home nowhere any more.
macro_rules! homeless {
    () => {
        "state = 1 AND mark NOT IN (SELECT id FROM folder_home)"
    };
}

/// The row of a transfer.
pub(super) fn find(db: &Connection, key: Key) -> Result<Option<Known>> {
    db.prepare_cached("SELECT path, size, mtime_s, mtime_ns, mark, state, place, inode, how, receipt, folder, digest FROM inbox_transfer WHERE sender = ?1 AND id = ?2")?
        .query_row(params![key.0.0, key.1.0], known)
        .optional()
}

/// A new row *receiving*, with the offer bound to it; an older one that never was placed starts over.
pub(super) fn begin(
    db: &Connection,
    key: Key,
    manifest: &Manifest,
    folder_id: [u8; 16],
    now_ms: i64,
) -> Result<()> {
    cut_checkpoints(db, key, 0)?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO inbox_transfer
             (sender, id, state, path, size, mtime_s, mtime_ns, mark, changed_ms, folder, idle_since)
         VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, ?7, ?8, ?9, (SELECT ms FROM running))",
    )?
    .execute(params![
        key.0.0,
        key.1.0,
        manifest.path.as_bytes(),
        manifest.size as i64,
        manifest.mtime.seconds,
        manifest.mtime.nanos,
        folder_id,
        now_ms,
        manifest.kind == Kind::Folder
    ])?;
    Ok(())
}

/// All durable prefixes, shortest first.
pub(super) fn checkpoints(db: &Connection, key: Key) -> Result<Vec<Checkpoint>> {
    db.prepare_cached(
        "SELECT at, digest, hash_state FROM inbox_checkpoint WHERE sender = ?1 AND id = ?2 ORDER BY at",
    )?
    .query_map(params![key.0.0, key.1.0], |r| {
        Ok(Checkpoint {
            offset: r.get::<_, i64>(0)? as u64,
            digest: Digest(r.get(1)?),
            hash_state: r.get(2)?,
        })
    })?
    .collect()
}

/// One more durable prefix.
pub(super) fn add_checkpoint(db: &Connection, key: Key, checkpoint: &Checkpoint, now_ms: i64) -> Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO inbox_checkpoint VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            key.0.0,
            key.1.0,
            checkpoint.offset as i64,
            checkpoint.digest.0,
            checkpoint.hash_state
        ])?;
    touch(db, key, now_ms)
}

/// A sign of life of a transfer that is *receiving*: its idle time begins again.
pub(super) fn touch(db: &Connection, key: Key, now_ms: i64) -> Result<()> {
    db.prepare_cached(
        "UPDATE inbox_transfer SET changed_ms = ?3, idle_since = (SELECT ms FROM running)
         WHERE sender = ?1 AND id = ?2 AND state = 0",
    )?
    .execute(params![key.0.0, key.1.0, now_ms])?;
    Ok(())
}

/// Drops every prefix longer than `offset`.
pub(super) fn cut_checkpoints(db: &Connection, key: Key, offset: u64) -> Result<()> {
    db.prepare_cached("DELETE FROM inbox_checkpoint WHERE sender = ?1 AND id = ?2 AND at > ?3")?
        .execute(params![key.0.0, key.1.0, offset as i64])?;
    Ok(())
}

/// R6: the intent to place. An error for what ended meanwhile, which the locks rule out.
pub(super) fn place(
    db: &Connection,
    key: Key,
    manifest: &Manifest,
    folder_id: [u8; 16],
    placing: &Placing,
    now_ms: i64,
) -> Result<()> {
    let changed = db.prepare_cached(
        "INSERT INTO inbox_transfer (sender, id, state, path, size, mtime_s, mtime_ns, mark, place, inode, how, receipt, changed_ms, folder, digest)
         VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT (sender, id) DO UPDATE SET state = 1, place = excluded.place, inode = excluded.inode,
             how = excluded.how, receipt = excluded.receipt, digest = excluded.digest, mark = excluded.mark, changed_ms = excluded.changed_ms,
             idle_since = NULL
         WHERE state < 2",
    )?
    .execute(params![
        key.0.0,
        key.1.0,
        manifest.path.as_bytes(),
        manifest.size as i64,
        manifest.mtime.seconds,
        manifest.mtime.nanos,
        folder_id,
        placing.place.as_bytes(),
        placing.inode as i64,
        match placing.how {
            How::Renamed => 0,
            How::Linked => 1,
            How::Copied => 2,
        },
        encode(&placing.receipt)?,
        now_ms,
        manifest.kind == Kind::Folder,
        placing.digest.0
    ])?;
    match changed {
        1 => Ok(()),
        _ => Err(rusqlite::Error::StatementChangedRows(changed)),
    }
}

/// Placing did not work, and the partial surely is where it was: *receiving* again.
pub(super) fn unplace(db: &Connection, key: Key) -> Result<()> {
    db.prepare_cached(
        "UPDATE inbox_transfer SET state = 0, place = NULL, inode = NULL, how = NULL, receipt = NULL, digest = NULL,
             idle_since = (SELECT ms FROM running)
         WHERE sender = ?1 AND id = ?2 AND state = 1",
    )?
    .execute(params![key.0.0, key.1.0])?;
    Ok(())
}

/// Takes a row back to *receiving* if it was being placed in a folder that is at home nowhere any more. Was it so?
pub(super) fn unplace_homeless(db: &Connection, key: Key) -> Result<bool> {
    let is_homeless = db
        .prepare_cached(concat!(
            "SELECT 1 FROM inbox_transfer WHERE sender = ?1 AND id = ?2 AND ",
            homeless!()
        ))?
        .exists(params![key.0.0, key.1.0])?;
    if is_homeless {
        unplace(db, key)?;
    }
    Ok(is_homeless)
}

/// R9: the receipts of these are true, of whose kind and size they are. Counts each transfer once, and says how many were
/// not *delivered* already.
pub(super) fn deliver(db: &Connection, placed: &[(Key, Kind, u64)], now_ms: i64) -> Result<usize> {
    let mut turn = db.prepare_cached(
        "UPDATE inbox_transfer SET state = 2, digest = NULL, changed_ms = ?3 WHERE sender = ?1 AND id = ?2 AND state = 1",
    )?;
    let (mut files, mut bytes) = (0, 0);
    for (key, kind, size) in placed {
        if turn.execute(params![key.0.0, key.1.0, now_ms])? == 0 {
            continue;
        }
        if !kind.is_small(*size) {
            cut_checkpoints(db, *key, 0)?; // a small file has none
        }
        (files, bytes) = (files + 1, bytes + size);
    }
    if files > 0 {
        db.prepare_cached("UPDATE inbox_total SET files = files + ?1, bytes = bytes + ?2")?
            .execute(params![files as i64, bytes as i64])?;
    }
    Ok(files)
}

/// A tombstone, unless it is placing or delivered.
pub(super) fn withdraw(db: &Connection, key: Key, now_ms: i64) -> Result<()> {
    cut_checkpoints(db, key, 0)?;
    db.prepare_cached(
        "INSERT INTO inbox_transfer (sender, id, state, changed_ms, idle_since)
         VALUES (?1, ?2, 3, ?3, (SELECT ms FROM running))
         ON CONFLICT (sender, id) DO UPDATE SET state = 3, changed_ms = excluded.changed_ms,
             idle_since = excluded.idle_since, path = NULL, size = NULL
         WHERE state = 0",
    )?
    .execute(params![key.0.0, key.1.0, now_ms])?;
    Ok(())
}

/// Drops a peer's tombstones but the newest `most`.
pub(super) fn drop_tombstones(db: &Connection, sender: AgentId, most: usize) -> Result<()> {
    db.prepare_cached(
        "DELETE FROM inbox_transfer WHERE rowid IN (
             SELECT rowid FROM inbox_transfer WHERE state = 3 AND sender = ?1
             ORDER BY idle_since DESC, changed_ms DESC LIMIT -1 OFFSET ?2)",
    )?
    .execute(params![sender.0, most as i64])?;
    Ok(())
}

/// Drops a row that is still *receiving*, as if it never was offered; false: it is not, or not any more.
pub(super) fn drop_receiving(db: &Connection, key: Key) -> Result<bool> {
    let dropped = db
        .prepare_cached("DELETE FROM inbox_transfer WHERE sender = ?1 AND id = ?2 AND state = 0")?
        .execute(params![key.0.0, key.1.0])?
        > 0;
    if dropped {
        cut_checkpoints(db, key, 0)?;
    }
    Ok(dropped)
}

/// The sender has the outcome; a tombstone's time began before. (A row may still be *placing* here when its *delivered*
/// waits for a commit.)
pub(super) fn forget(db: &Connection, sender: AgentId, ids: &[TransferId]) -> Result<()> {
    let mut statement = db.prepare_cached(
        "UPDATE inbox_transfer SET idle_since = coalesce(idle_since, (SELECT ms FROM running))
         WHERE sender = ?1 AND id = ?2 AND state > 0",
    )?;
    for id in ids {
        statement.execute(params![sender.0, id.0])?;
    }
    Ok(())
}

/// A delivered file: its place below the inbox, its inode, and what was announced of it, with the modification time that
/// it got since. None: no file was delivered. (A row may still be *placing* here, as at [`forget`].)
pub(super) fn delivered_file(db: &Connection, key: Key) -> Result<Option<(RemotePath, u64, Manifest)>> {
    db.prepare_cached("SELECT path, size, mtime_s, mtime_ns, mark, 3, place, inode, how, receipt, folder, digest FROM inbox_transfer WHERE sender = ?1 AND id = ?2 AND state IN (1, 2) AND folder = 0 AND place IS NOT NULL")?
        .query_row(params![key.0.0, key.1.0], |row| {
            let place = path_of(&row.get::<_, Vec<u8>>(6)?, 6)?;
            let inode = row.get::<_, i64>(7)? as u64;
            Ok(known(row)?.manifest.map(|manifest| (place, inode, manifest)))
        })
        .optional()
        .map(Option::flatten)
}

/// These delivered files have these modification times now.
pub(super) fn retime(db: &Connection, files: &[(Key, Mtime)]) -> Result<()> {
    let mut statement = db.prepare_cached(
        "UPDATE inbox_transfer SET mtime_s = ?3, mtime_ns = ?4 WHERE sender = ?1 AND id = ?2 AND state IN (1, 2)",
    )?;
    for (key, mtime) in files {
        statement.execute(params![key.0.0, key.1.0, mtime.seconds, mtime.nanos])?;
    }
    Ok(())
}

/// Drops up to `limit` rows whose outcome was known for `kept` of running time, and says how many.
pub(super) fn drop_ended(db: &Connection, kept: Duration, limit: usize) -> Result<usize> {
    db.prepare_cached(
        "DELETE FROM inbox_transfer WHERE rowid IN (
             SELECT rowid FROM inbox_transfer
             WHERE state >= 2 AND idle_since <= (SELECT ms FROM running) - ?1 LIMIT ?2)",
    )?
    .execute(params![milliseconds(kept), limit as i64])
}

/// What one row *placing* or *delivered* takes, beside [`ROW`].
macro_rules! bytes_of_row {
    () => {
        "coalesce(length(path), 0) + coalesce(length(place), 0) + coalesce(length(receipt), 0)"
    };
}

/// Rows *placing* or *delivered* of each peer. It reads them all, as they lie in the file.
pub(super) fn tally(db: &Connection) -> Result<HashMap<AgentId, Rows>> {
    let mut peers = HashMap::<AgentId, Rows>::new();
    let mut statement = db.prepare(concat!(
        "SELECT sender, ",
        bytes_of_row!(),
        " FROM inbox_transfer NOT INDEXED WHERE state IN (1, 2)"
    ))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        count(peers.entry(AgentId(row.get(0)?)).or_default(), row.get(1)?);
    }
    Ok(peers)
}

/// Drops up to `limit` of a peer's rows whose outcome it has, the longest known to it first, and says what they were.
pub(super) fn drop_known(db: &Connection, sender: AgentId, limit: usize) -> Result<Rows> {
    let mut dropped = Rows::default();
    let mut statement = db.prepare_cached(concat!(
        "DELETE FROM inbox_transfer WHERE rowid IN (
             SELECT rowid FROM inbox_transfer
             WHERE state = 2 AND idle_since IS NOT NULL AND sender = ?1 ORDER BY idle_since LIMIT ?2)
         RETURNING ",
        bytes_of_row!()
    ))?;
    let mut rows = statement.query(params![sender.0, limit as i64])?;
    while let Some(row) = rows.next()? {
        count(&mut dropped, row.get(0)?);
    }
    Ok(dropped)
}

/// Adds a row that takes so many bytes beside [`ROW`].
fn count(rows: &mut Rows, bytes: i64) {
    rows.number += 1;
    rows.bytes += ROW + bytes as u64;
}

/// The *receiving* rows without a sign of life for `kept` of running time.
pub(super) fn idle(db: &Connection, kept: Duration) -> Result<Vec<Key>> {
    db.prepare_cached(
        "SELECT sender, id FROM inbox_transfer
         WHERE state = 0 AND idle_since <= (SELECT ms FROM running) - ?1",
    )?
    .query_map([milliseconds(kept)], key)?
    .collect()
}

/// Is it *receiving*, without a sign of life for `kept` of running time?
pub(super) fn is_idle(db: &Connection, key: Key, kept: Duration) -> Result<bool> {
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM inbox_transfer WHERE sender = ?1 AND id = ?2
             AND state = 0 AND idle_since <= (SELECT ms FROM running) - ?3)",
    )?
    .query_row(params![key.0.0, key.1.0, milliseconds(kept)], |r| r.get(0))
}

/// The rows *placing* in the inbox with this folder id.
pub(super) fn all_placing(db: &Connection, folder_id: [u8; 16]) -> Result<Vec<Key>> {
    db.prepare_cached("SELECT sender, id FROM inbox_transfer WHERE state = 1 AND mark = ?1")?
        .query_map([folder_id], key)?
        .collect()
}

/// The rows that may have a partial in the inbox with this folder id.
pub(super) fn all_partials(db: &Connection, folder_id: [u8; 16]) -> Result<Vec<Key>> {
    db.prepare_cached(
        "SELECT sender, id FROM inbox_transfer WHERE state = 0 AND mark = ?1
         UNION ALL SELECT sender, id FROM inbox_transfer WHERE state = 1 AND mark = ?1",
    )?
    .query_map([folder_id], key)?
    .collect()
}

/// A peer's *receiving* rows, the longest idle first.
pub(super) fn receiving_of(db: &Connection, sender: AgentId) -> Result<Vec<Key>> {
    db.prepare_cached(
        "SELECT sender, id FROM inbox_transfer WHERE state = 0 AND sender = ?1 ORDER BY idle_since, changed_ms",
    )?
    .query_map([sender.0], key)?
    .collect()
}

/// Every alias of a folder.
pub(super) fn aliases(db: &Connection) -> Result<Vec<Alias>> {
    db.prepare("SELECT sender, folder, alias FROM inbox_folder_alias")?
        .query_map([], |r| Ok((AgentId(r.get(0)?), r.get(1)?, r.get(2)?)))?
        .collect()
}

/// Remembers that a sender's folder has another name here, or (None) forgets it.
pub(super) fn set_alias(db: &Connection, sender: AgentId, folder: &[u8], alias: Option<&[u8]>) -> Result<()> {
    match alias {
        Some(alias) => db
            .prepare_cached("INSERT OR REPLACE INTO inbox_folder_alias VALUES (?1, ?2, ?3)")?
            .execute(params![sender.0, folder, alias])?,
        None => db
            .prepare_cached("DELETE FROM inbox_folder_alias WHERE sender = ?1 AND folder = ?2")?
            .execute(params![sender.0, folder])?,
    };
    Ok(())
}

/// Forgets the aliases of all but `peers`, and of each of these all but `most`.
pub(super) fn bound_aliases(db: &Connection, peers: &HashSet<AgentId>, most: usize) -> Result<()> {
    let senders: Vec<[u8; 32]> = db
        .prepare("SELECT DISTINCT sender FROM inbox_folder_alias")?
        .query_map([], |r| r.get(0))?
        .collect::<Result<_>>()?;
    for sender in senders {
        let most = match peers.contains(&AgentId(sender)) {
            true => most,
            false => 0,
        };
        db.execute(
            "DELETE FROM inbox_folder_alias WHERE sender = ?1 AND folder NOT IN
             (SELECT folder FROM inbox_folder_alias WHERE sender = ?1 ORDER BY folder LIMIT ?2)",
            params![sender, most as i64],
        )?;
    }
    Ok(())
}

/// The rows *placing* in a folder that is at home nowhere any more, since another one took its place.
pub(super) fn homeless_placing(db: &Connection) -> Result<Vec<Key>> {
    db.prepare_cached(concat!(
        "SELECT sender, id FROM inbox_transfer WHERE ",
        homeless!()
    ))?
    .query_map([], key)?
    .collect()
}

/// How many rows are *placing* in another folder than the one with this id.
pub fn placing_elsewhere(db: &Connection, folder_id: [u8; 16]) -> Result<u64> {
    db.query_row(
        "SELECT count(*) FROM inbox_transfer WHERE state = 1 AND mark <> ?1",
        [folder_id],
        |row| Ok(row.get::<_, i64>(0)? as u64),
    )
}

/// Folders with another id in which something was being placed are at home nowhere any more.
pub fn give_up_elsewhere(db: &Connection, folder_id: [u8; 16]) -> Result<()> {
    db.execute(
        "DELETE FROM folder_home WHERE id <> ?1 AND id IN (SELECT mark FROM inbox_transfer WHERE state = 1)",
        [folder_id],
    )?;
    Ok(())
}

/// Files and bytes ever delivered.
pub(super) fn totals(db: &Connection) -> Result<(u64, u64)> {
    db.query_row("SELECT files, bytes FROM inbox_total", [], |r| {
        Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64))
    })
}

fn key(row: &Row<'_>) -> Result<Key> {
    Ok((AgentId(row.get(0)?), TransferId(row.get(1)?)))
}

fn known(row: &Row<'_>) -> Result<Known> {
    let manifest = match row.get::<_, Option<Vec<u8>>>(0)? {
        None => None,
        Some(path) => Some(Manifest {
            path: path_of(&path, 0)?,
            size: row.get::<_, i64>(1)? as u64,
            mtime: Mtime {
                seconds: row.get(2)?,
                nanos: row.get(3)?,
            },
            kind: match row.get(10)? {
                true => Kind::Folder,
                false => Kind::File,
            },
        }),
    };
    let state = match row.get::<_, i64>(5)? {
        0 => State::Receiving,
        1 => State::Placing(Placing {
            place: path_of(&row.get::<_, Vec<u8>>(6)?, 6)?,
            inode: row.get::<_, i64>(7)? as u64,
            how: match row.get::<_, i64>(8)? {
                0 => How::Renamed,
                1 => How::Linked,
                _ => How::Copied,
            },
            digest: Digest(row.get(11)?),
            receipt: receipt_of(&row.get::<_, Vec<u8>>(9)?)?,
        }),
        2 => State::Delivered(receipt_of(&row.get::<_, Vec<u8>>(9)?)?),
        _ => State::Withdrawn,
    };
    Ok(Known {
        manifest,
        folder_id: row.get(4)?,
        state,
    })
}

fn path_of(bytes: &[u8], column: usize) -> Result<RemotePath> {
    RemotePath::parse(bytes)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, e.into()))
}

fn receipt_of(bytes: &[u8]) -> Result<Receipt> {
    minicbor::decode(bytes).map_err(|e| rusqlite::Error::FromSqlConversionFailure(9, Type::Blob, e.into()))
}

fn encode(receipt: &Receipt) -> Result<Vec<u8>> {
    minicbor::to_vec(receipt).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}
