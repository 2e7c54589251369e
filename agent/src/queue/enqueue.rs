//! What was found in an outbox becomes a drop with a job for each peer (S2).

use std::path::PathBuf;

use dropwire_protocol::{RemotePath, TransferId};
use rusqlite::{Connection, OptionalExtension, Result, params};

use super::{
    Class, DropId, End, Enqueued, JobState, NewDrop, Queue, change,
    edit::Edit,
    job::path_bytes,
    overlap::{bounds, goes_otherwise},
    schema::DropState,
};
use crate::{
    db::DbError,
    fault,
    version::{Found, OutboxId, Version},
};

impl Queue {
    /// Those of `found` that have to be queued, in their order.
    ///
    /// Known is a version (ctime aside) that lies there and has a drop, however its jobs ended. A version that had left
    /// and is seen again is a new drop; if every peer has it and even its ctime is the old one, it was only looked at
    /// before it left. A file of a folder that is still to go whole is known too, and so is a folder of which files are.
    pub async fn unknown(&self, found: Vec<Found>) -> Result<Vec<Found>, DbError> {
        self.read(move |db| {
            let mut unknown = Vec::new();
            for found in found {
                let is_new = past(db, &found)?.is_new(&found.version) || fault::mutant("S2-unknown");
                if is_new && !goes_otherwise(db, &found)? {
                    unknown.push(found);
                }
            }
            Ok(unknown)
        })
        .await
    }

    /// Those of `folders` out of which, or out of folders in them, something was delivered and left.
    pub async fn emptied(
        &self,
        outbox: OutboxId,
        folders: Vec<RemotePath>,
    ) -> Result<Vec<RemotePath>, DbError> {
        self.read(move |db| {
            let mut emptied = Vec::new();
            for folder in folders {
                let (from, to) = bounds(folder.as_bytes());
                if db.prepare_cached(EMPTIED)?.exists(params![outbox.0, from, to])? {
                    emptied.push(folder);
                }
            }
            Ok(emptied)
        })
        .await
    }

    /// The outboxes with these marks were found there: their drops lie there from now on. Nothing for one without any.
    pub async fn outboxes_lie_at(&self, found: Vec<(OutboxId, PathBuf)>) -> Result<(), DbError> {
        self.each(found, |db, (outbox, root), _: &mut Vec<()>| {
            db.prepare_cached("UPDATE outboxes SET root = ?1 WHERE mark = ?2 AND root <> ?1")?
                .execute(params![path_bytes(root), outbox.0])?;
            Ok(())
        })
        .await
        .map(|_| ())
    }

    /// Queues what is not known, one job for each peer. A version's jobs share one commit.
    ///
    /// Older versions of the path that not everybody has are superseded: their jobs end failed and are withdrawn
    /// from their peers, their files are never disposed of. After Ok all of it is on disk.
    pub async fn enqueue(&self, drops: Vec<NewDrop>, now_ms: i64) -> Result<Enqueued, DbError> {
        let parts = self
            .each(drops, move |db, new, parts| {
                parts.push(enqueue_one(db, new, now_ms)?);
                Ok(())
            })
            .await?;
        let mut all = Enqueued::default();
        for part in parts {
            all.queued.extend(part.queued);
            all.superseded.extend(part.superseded);
        }
        Ok(all)
    }
}

fn enqueue_one(db: &Edit<'_>, new: &NewDrop, now_ms: i64) -> Result<Enqueued> {
    let Found {
        outbox,
        path,
        version,
    } = &new.found;
    let past = past(db, &new.found)?;
    let mut done = Enqueued::default();
    let is_known = !past.is_new(version) && !fault::mutant("S2-known");
    if new.peers.is_empty() || is_known || goes_otherwise(db, &new.found)? {
        return Ok(done);
    }
    let outbox_row = outbox_row(db, new)?;
    done.superseded = fault::step("S2-supersede", || {
        supersede(db, outbox_row, path.as_bytes(), now_ms)
    })?;
    let drop = insert_drop(db, outbox_row, new, past.next_counter)?;
    let mut insert = db.prepare_cached(
        "INSERT INTO jobs (drop_id, peer, transfer, counter, large, state, next_attempt_ms, queued_ms,
                           queued_running_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?6, (SELECT ms FROM running))",
    )?;
    let mut peers = new.peers.clone();
    peers.sort_unstable();
    peers.dedup();
    for peer in peers {
        let id = db
            .identity
            .transfer_id(peer, outbox.0, path.as_bytes(), version, past.next_counter);
        let large = Class::of(version) == Class::Large;
        insert.execute(params![
            drop.0,
            peer.0,
            id.0,
            past.next_counter.cast_signed(),
            large,
            now_ms
        ])?;
        db.count(peer, outbox_row, JobState::Queued, 1);
        done.queued.push(id);
    }
    Ok(done)
}

/// What the list holds of a version.
struct Past {
    /// The newest drop of it, with its ctime, and whether every peer has it.
    last: Option<(DropState, i64, bool)>,
    /// Above every counter that a drop of it used.
    next_counter: u64,
}

impl Past {
    fn is_new(&self, version: &Version) -> bool {
        match self.last {
            None => true,
            // A folder that moved away and returned leaves its files' ctimes alone, and where there are none (0) a second
            // look cannot be told from a return either: rather a job too many, which ends by itself.
            Some((DropState::Left, ctime_ns, delivered)) => {
                !delivered || ctime_ns != version.ctime_ns || ctime_ns == 0
            }
            Some(_) => false,
        }
    }
}

pub(super) const PAST: &str = "
    SELECT d.state, d.ctime_ns, (SELECT max(counter) FROM jobs WHERE drop_id = d.id),
           NOT EXISTS (SELECT 1 FROM jobs WHERE drop_id = d.id AND state <> 1)
    FROM drops d
    WHERE d.outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND d.path = ?2 AND d.mtime_ns = ?3
      AND d.inode = ?4 AND d.birth_ns = ?5 AND d.size = ?6
    ORDER BY d.counter DESC LIMIT 1";

pub(super) const EMPTIED: &str = "
    SELECT 1 FROM drops d
    WHERE d.outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND d.path > ?2 AND d.path < ?3 AND d.state = 3
      AND EXISTS (SELECT 1 FROM jobs WHERE drop_id = d.id AND state = 1)";

pub(super) const LYING: &str = "SELECT id FROM drops WHERE outbox = ? AND path = ? AND state < 2";

fn past(
    db: &Connection,
    Found {
        outbox,
        path,
        version,
    }: &Found,
) -> Result<Past> {
    let mut drops = db.prepare_cached(PAST)?;
    let last: Option<(DropState, i64, i64, bool)> = drops
        .query_row(
            params![
                outbox.0,
                path.as_bytes(),
                version.mtime_ns,
                version.inode.cast_signed(),
                version.birth_ns,
                version.size.cast_signed()
            ],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )
        .optional()?;
    Ok(Past {
        next_counter: last.map_or(0, |(_, _, counter, _)| counter.cast_unsigned() + 1),
        last: last.map(|(state, ctime_ns, _, delivered)| (state, ctime_ns, delivered)),
    })
}

fn outbox_row(db: &Connection, new: &NewDrop) -> Result<i64> {
    let OutboxId(mark) = new.found.outbox;
    let root = path_bytes(&new.root);
    let known: Option<(i64, Vec<u8>)> = db
        .prepare_cached("SELECT id, root FROM outboxes WHERE mark = ?")?
        .query_row([mark], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match known {
        Some((id, old)) if old == root => Ok(id),
        _ => db
            .prepare_cached(
                "INSERT INTO outboxes (mark, root) VALUES (?, ?)
                 ON CONFLICT (mark) DO UPDATE SET root = excluded.root RETURNING id",
            )?
            .query_row(params![mark, root], |row| row.get(0)),
    }
}

fn insert_drop(db: &Connection, outbox: i64, new: &NewDrop, counter: u64) -> Result<DropId> {
    let Found { path, version, .. } = &new.found;
    db.prepare_cached(
        "INSERT INTO drops (outbox, path, mtime_ns, inode, birth_ns, size, counter, ctime_ns, origin, after_send, marker,
                            state, folder)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
    )?
    .execute(params![
        outbox,
        path.as_bytes(),
        version.mtime_ns,
        version.inode.cast_signed(),
        version.birth_ns,
        version.size.cast_signed(),
        counter.cast_signed(),
        version.ctime_ns,
        new.origin.as_deref().map(path_bytes),
        new.after_send,
        new.marker,
        version.folder,
    ])?;
    Ok(DropId(db.last_insert_rowid()))
}

/// Ends what lies at the path as open or staying. An acknowledged one goes on to its disposal, which looks at
/// the version itself and may have the file in `leaving` already.
fn supersede(db: &Edit<'_>, outbox: i64, path: &[u8], now_ms: i64) -> Result<Vec<TransferId>> {
    let older: Option<i64> = db
        .prepare_cached(LYING)?
        .query_row(params![outbox, path], |row| row.get(0))
        .optional()?;
    match older.map(DropId) {
        Some(older) => change::end_version(db, older, End::Superseded, now_ms),
        None => Ok(Vec::new()),
    }
}
