//! What was found in an outbox becomes an item with a job for each peer (S2).

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use dropwire_protocol::{AgentId, Digest, RemotePath, TransferId};
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use super::{
    Class, Doubt, End, Enqueued, ItemId, JobState, NewItem, Question, Queue, change,
    edit::Edit,
    job::path_bytes,
    retimed::{self, Who},
    schema::ItemState,
    signals::Signals,
};
use crate::{
    clock::milliseconds,
    config::AfterSend,
    db::DbError,
    failpoints,
    fs::version::{Found, OutboxId, Version},
};

impl Queue {
    /// Those of `found` that have to be queued, in their order.
    ///
    /// Known is a version (ctime aside) that lies there and has an item, however its jobs ended. Blocks.
    pub fn unknown(&self, found: Vec<Found>) -> Result<Vec<Found>, DbError> {
        self.db.read_blocking(move |db| {
            let mut unknown = Vec::new();
            for found in found {
                if !past(db, &found)?.lies() || failpoints::mutant("S2-unknown") {
                    unknown.push(found);
                }
            }
            Ok(unknown)
        })
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

    /// [`outbox_is_at`] for each of them.
    pub async fn outboxes_are_at(&self, found: Vec<(OutboxId, PathBuf)>) -> Result<(), DbError> {
        self.each(found, |db, (outbox, root), _: &mut Vec<()>| {
            outbox_is_at(db, *outbox, root)
        })
        .await
        .map(|_| ())
    }

    /// Queues what is not known, one job for each peer. A version's jobs share one commit.
    ///
    /// Older versions of the path that not everybody has are superseded: their jobs end failed and are withdrawn from
    /// their peers, their files are never disposed of. After Ok all of it is on disk, and the peers' work is notified.
    pub async fn enqueue(&self, items: Vec<NewItem>, now_ms: i64) -> Result<Enqueued, DbError> {
        let peers: BTreeSet<AgentId> = items.iter().flat_map(|new| new.peers.iter().copied()).collect();
        let enqueue = move |db: &Edit<'_>, new: &NewItem, parts: &mut Vec<Enqueued>| {
            parts.push(enqueue_one(db, new, now_ms)?);
            Ok(())
        };
        let wake = move |signals: &Signals| {
            signals.queued.notify_one();
            peers.iter().for_each(|peer| signals.wake(*peer));
        };
        let parts = self.each_then(items, enqueue, wake).await?;
        let mut all = Enqueued::default();
        for part in parts {
            all.queued.extend(part.queued);
            all.doubts.extend(part.doubts);
        }
        Ok(all)
    }

    /// These items are in their outboxes as these versions now, with the bytes that were delivered; one that counted as
    /// left may be among them. Each goes on as if it had been that version from the beginning, and leaves where that
    /// was what it was to do. Where it stays, whoever has it is told its time once that has rested for `linger`, if it
    /// was set no longer than that after the delivery; returns whom.
    pub async fn same(
        &self,
        items: Vec<(ItemId, Found)>,
        now_ms: i64,
        linger: Duration,
    ) -> Result<BTreeSet<AgentId>, DbError> {
        let linger_ms = milliseconds(linger);
        let tell_ms = now_ms.saturating_add(linger_ms);
        let same = move |db: &Edit<'_>, (item, found): &(ItemId, Found), told: &mut Vec<AgentId>| {
            let past = past(db, found)?;
            if past.lies() {
                return Ok(()); // answered already
            }
            if past.last == Some((*item, ItemState::Left)) {
                return change::come_back(db, *item);
            }
            if retimed::turn(db, *item, found, past.next_counter)? {
                told.extend(retimed::tell(db, *item, Who::Within(linger_ms), tell_ms)?);
            }
            Ok(())
        };
        let told = self.each_then(items, same, |signals| signals.leaving.notify_one());
        told.await.map(BTreeSet::from_iter)
    }
}

/// All paths in a folder lie between these: `folder/` and `folder0`, which is the next byte.
fn bounds(folder: &[u8]) -> (Vec<u8>, Vec<u8>) {
    ([folder, b"/"].concat(), [folder, b"0"].concat())
}

/// The outbox with this folder id was found at `root`: its items are there from now on. Does nothing for one without
/// any. To share a commit with what makes it so.
pub fn outbox_is_at(db: &Connection, outbox: OutboxId, root: &Path) -> Result<()> {
    db.prepare_cached("UPDATE outboxes SET root = ?1 WHERE mark = ?2 AND root <> ?1")?
        .execute(params![path_bytes(root), outbox.0])?;
    Ok(())
}

fn enqueue_one(db: &Edit<'_>, new: &NewItem, now_ms: i64) -> Result<Enqueued> {
    let path = &new.found.path;
    let past = past(db, &new.found)?;
    let mut done = Enqueued::default();
    let is_known = past.lies() && !failpoints::mutant("S2-known");
    if new.peers.is_empty() || is_known {
        return Ok(done);
    }
    if let Some((earlier, question)) = doubted(db, new, &past)? {
        let new = new.clone();
        done.doubts.push(Doubt {
            new,
            earlier,
            question,
        });
        return Ok(done);
    }
    if let Some(open) = retimed::open(db, new)? {
        retimed::turn(db, open, &new.found, past.next_counter)?;
        retimed::due_now(db, open, now_ms)?;
        return Ok(done);
    }
    let outbox_row = outbox_row(db, new)?;
    failpoints::step("S2-supersede", || {
        supersede(db, outbox_row, path.as_bytes(), now_ms)
    })?;
    let item = insert_item(db, outbox_row, new, past.next_counter)?;
    for peer in new.sorted_peers() {
        let id = insert_job(db, item, peer, new, past.next_counter, now_ms)?;
        db.count(peer, outbox_row, JobState::Queued, 1);
        done.queued.push(id);
    }
    Ok(done)
}

fn insert_job(
    db: &Edit<'_>,
    item: ItemId,
    peer: AgentId,
    new: &NewItem,
    counter: u64,
    now_ms: i64,
) -> Result<TransferId> {
    let (id, counter) = change::unused_id(db, peer, &new.found, counter)?;
    let large = Class::of(&new.found.version) == Class::Large;
    db.prepare_cached(
        "INSERT INTO jobs (drop_id, peer, transfer, counter, large, state, next_attempt_ms, queued_ms,
                           queued_running_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?6, (SELECT ms FROM running))",
    )?
    .execute(params![
        item.0,
        peer.0,
        id.0,
        counter.cast_signed(),
        large,
        now_ms
    ])?;
    Ok(id)
}

/// What the list holds of a version.
struct Past {
    /// The newest item of it.
    last: Option<(ItemId, ItemState)>,
    /// Above every counter that an item of it used.
    next_counter: u64,
}

impl Past {
    /// It is known, and as far as is known it is still in the outbox.
    fn lies(&self) -> bool {
        self.last.is_some_and(|(_, state)| state != ItemState::Left)
    }
}

/// Whether `new` may be an earlier item, whatever its version says, and what has to be asked then.
fn doubted(db: &Connection, new: &NewItem, past: &Past) -> Result<Option<(ItemId, Question)>> {
    let delivered = match new.after_send {
        AfterSend::Keep if !failpoints::mutant("S2-kept") => kept(db, &new.found)?,
        _ => retimed::delivered(db, &new.found)?,
    };
    if let Some((earlier, digest)) = delivered {
        // Its bytes were read: so it is there as well.
        return Ok((new.is_not != Some(earlier)).then_some((earlier, Question::IsOther(digest))));
    }
    let left = past.last.filter(|(_, state)| *state == ItemState::Left);
    let left = left.filter(|(left, _)| new.is_not != Some(*left) && !failpoints::mutant("S2-left"));
    let Some((left, _)) = left else {
        return Ok(None);
    };
    // Where files stay now, it would leave as the outbox had it then.
    let hidden = match new.after_send {
        AfterSend::Keep => None,
        AfterSend::Archive | AfterSend::Delete => hidden(db, left, &new.found.version)?,
    };
    Ok(Some((left, hidden.map_or(Question::IsThere, Question::IsOther))))
}

/// The digest of what was delivered of an item that counts as left, if it may have been out of sight only: behind what
/// was mounted over its folder, or with another disk in the place of its own. To leave, or to be brought back, it would
/// have been renamed, which changes ctime where inode numbers last; another file would have another time of birth.
fn hidden(db: &Connection, left: ItemId, version: &Version) -> Result<Option<Digest>> {
    let tells = version.inode != 0 && version.birth_ns != 0 && !version.has_coarse_clock();
    if !tells || failpoints::mutant("S2-hidden") {
        return Ok(None);
    }
    db.prepare_cached(HIDDEN)?
        .query_row(params![left.0, version.ctime_ns, AfterSend::Keep], |row| {
            row.get(0).map(Digest)
        })
        .optional()
}

/// Everybody has it, and the same bytes.
pub(super) const HIDDEN: &str = "
    SELECT j.sha256 FROM drops d CROSS JOIN jobs j ON j.drop_id = d.id
    WHERE d.id = ?1 AND d.ctime_ns = ?2 AND d.after_send <> ?3 AND j.sha256 IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM jobs WHERE drop_id = d.id AND (state <> 1 OR sha256 IS NOT j.sha256))
    LIMIT 1";

/// The item that lies at the path, has this size, and was delivered to somebody, with the digest of that.
fn kept(db: &Connection, found: &Found) -> Result<Option<(ItemId, Digest)>> {
    let (outbox, path, version) = (found.outbox.0, found.path.as_bytes(), &found.version);
    db.prepare_cached(KEPT)?
        .query_row(
            params![outbox, path, version.size.cast_signed(), version.folder],
            |row| Ok((ItemId(row.get(0)?), Digest(row.get(1)?))),
        )
        .optional()
}

pub(super) const KEPT: &str = "
    SELECT d.id, j.sha256
    FROM drops d CROSS JOIN jobs j ON j.drop_id = d.id AND j.state = 1 AND j.sha256 IS NOT NULL
    WHERE d.outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND d.path = ?2 AND d.state < 2 AND d.size = ?3
      AND d.folder = ?4
    LIMIT 1";

/// With the highest counter of the item and its jobs.
pub(super) const PAST: &str = "
    SELECT d.id, d.state, max(d.counter, coalesce((SELECT max(counter) FROM jobs WHERE drop_id = d.id), 0))
    FROM drops d
    WHERE d.outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND d.path = ?2 AND d.mtime_ns = ?3
      AND d.inode = ?4 AND d.birth_ns = ?5 AND d.size = ?6
    ORDER BY d.counter DESC LIMIT 1";

/// Finds past items where inode numbers do not last: an older version of this program kept them all the same, so there
/// may be several; one that is there goes before those that left.
pub(super) const PAST_BY_TIME: &str = "
    SELECT d.id, min(d.state), max(d.counter, coalesce((SELECT max(counter) FROM jobs WHERE drop_id = d.id), 0))
    FROM drops d
    WHERE d.outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND d.path = ?2 AND d.mtime_ns = ?3 AND d.size = ?4
    GROUP BY d.outbox";

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
    let (mtime_ns, size) = (version.mtime_ns, version.size.cast_signed());
    let row = |row: &Row<'_>| {
        let counter: i64 = row.get(2)?;
        Ok((ItemId(row.get(0)?), row.get(1)?, counter.cast_unsigned() + 1))
    };
    let mut last: Option<(ItemId, ItemState, u64)> = db
        .prepare_cached(PAST)?
        .query_row(
            params![
                outbox.0,
                path.as_bytes(),
                mtime_ns,
                version.inode.cast_signed(),
                version.birth_ns,
                size
            ],
            row,
        )
        .optional()?;
    if last.is_none() && (version.inode, version.birth_ns) == (0, 0) {
        let by_time = params![outbox.0, path.as_bytes(), mtime_ns, size];
        last = db
            .prepare_cached(PAST_BY_TIME)?
            .query_row(by_time, row)
            .optional()?;
    }
    Ok(Past {
        next_counter: last.map_or(0, |(_, _, next_counter)| next_counter),
        last: last.map(|(id, state, _)| (id, state)),
    })
}

/// Where a known one lies, only [`outbox_is_at`] says: what was found before it was moved may come after that.
fn outbox_row(db: &Connection, new: &NewItem) -> Result<i64> {
    let OutboxId(folder_id) = new.found.outbox;
    let known = db
        .prepare_cached("SELECT id FROM outboxes WHERE mark = ?")?
        .query_row([folder_id], |row| row.get(0))
        .optional()?;
    match known {
        Some(id) if !failpoints::mutant("S2-moved") => Ok(id),
        _ => db
            .prepare_cached(
                "INSERT INTO outboxes (mark, root) VALUES (?, ?)
                 ON CONFLICT (mark) DO UPDATE SET root = excluded.root RETURNING id",
            )?
            .query_row(params![folder_id, path_bytes(&new.root)], |row| row.get(0)),
    }
}

fn insert_item(db: &Connection, outbox: i64, new: &NewItem, counter: u64) -> Result<ItemId> {
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
    Ok(ItemId(db.last_insert_rowid()))
}

/// Ends what lies at the path as open or staying. An acknowledged one goes on to its disposal, which looks at
/// the version itself and may have the file in `leaving` already.
fn supersede(db: &Edit<'_>, outbox: i64, path: &[u8], now_ms: i64) -> Result<()> {
    let older: Option<i64> = db
        .prepare_cached(LYING)?
        .query_row(params![outbox, path], |row| row.get(0))
        .optional()?;
    match older.map(ItemId) {
        Some(older) => change::end_version(db, older, End::Superseded, now_ms),
        None => Ok(()),
    }
}
