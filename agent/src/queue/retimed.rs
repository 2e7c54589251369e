//! A file whose times were set after it was found: programs do so once they have closed it. It is the item that it was,
//! as another version. Where a peer has that already, only if the bytes are those that were delivered
//! ([`Queue::same`]). Where none is known to have it, at once: its jobs keep their ids, so that a peer that has it
//! after all says so, and a receipt counts only once the bytes of this version were compared with it.
//!
//! Who has it is told the time: with Forget when the file leaves, and where it stays, once its times rest. Of several
//! only the last one is told. Of a file that stays, times that are set long after the delivery are no program's that
//! wrote it, and are not told.

use dropwire_protocol::{AgentId, Digest, message::LateTime};
use rusqlite::{Connection, OptionalExtension, Params, Result, params};

use super::{ItemId, NewItem, Queue, change, edit::Edit, schema::Step};
use crate::{
    db::DbError,
    failpoints,
    fs::version::{Found, mtime_of},
};

/// Condition for one file with another time: path, inode, birth and size are equal, the modification time is not. Where
/// inodes and births are not kept, or do not last, it may be another one: in either case the bytes decide.
macro_rules! same_file {
    () => {
        "d.outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND d.path = ?2 AND d.mtime_ns <> ?3 AND d.inode = ?4
         AND d.birth_ns = ?5 AND d.size = ?6 AND d.folder = 0 AND d.state < 3"
    };
}

pub(super) const OPEN: &str = concat!(
    "SELECT d.id FROM drops d WHERE d.state = 0 AND d.after_send = ?7 AND d.marker IS ?8 AND ",
    same_file!()
);

pub(super) const OPEN_TO: &str = "SELECT peer FROM jobs WHERE drop_id = ? AND state = 0";

pub(super) const DELIVERED: &str = concat!(
    "SELECT d.id, j.sha256 FROM drops d CROSS JOIN jobs j ON j.drop_id = d.id AND j.state = 1 AND j.sha256 IS NOT NULL
     WHERE ",
    same_file!(),
    " LIMIT 1"
);

/// The item that `new` is with other times, if it is open and goes to the same peers, none of which is known to have it.
pub(super) fn open(db: &Connection, new: &NewItem) -> Result<Option<ItemId>> {
    let Found {
        outbox,
        path,
        version,
    } = &new.found;
    if version.folder || failpoints::mutant("S2-open") {
        return Ok(None);
    }
    let open: Option<ItemId> = db
        .prepare_cached(OPEN)?
        .query_row(
            params![
                outbox.0,
                path.as_bytes(),
                version.mtime_ns,
                version.inode.cast_signed(),
                version.birth_ns,
                version.size.cast_signed(),
                new.after_send,
                new.marker,
            ],
            |row| row.get(0).map(ItemId),
        )
        .optional()?;
    let Some(item) = open else {
        return Ok(None);
    };
    let mut to: Vec<AgentId> = db
        .prepare_cached(OPEN_TO)?
        .query_map([item.0], |row| row.get(0).map(AgentId))?
        .collect::<Result<_>>()?;
    to.sort_unstable();
    Ok((to == new.sorted_peers()).then_some(item))
}

/// It lies there as this version now, and gives whether that has another time; `counter` is above all that items of the
/// version used.
pub(super) fn turn(db: &Edit<'_>, item: ItemId, found: &Found, counter: u64) -> Result<bool> {
    let version = &found.version;
    let is_retimed = db
        .prepare_cached("SELECT 1 FROM drops WHERE id = ? AND mtime_ns <> ?")?
        .exists([item.0, version.mtime_ns])?;
    db.prepare_cached(
        "UPDATE drops SET retimed = retimed OR mtime_ns <> ?2, mtime_ns = ?2, inode = ?3, birth_ns = ?4,
                          ctime_ns = ?5, counter = ?6, state = 0, left_running_ms = NULL
         WHERE id = ?1 AND state < 3",
    )?
    .execute(params![
        item.0,
        version.mtime_ns,
        version.inode.cast_signed(),
        version.birth_ns,
        version.ctime_ns,
        counter.cast_signed()
    ])?;
    change::settle(db, item).map(|_| is_retimed)
}

/// Which of those who have an item whose time was set late are told it.
pub(super) enum Who {
    /// Whose job this is: the time was set before the receipt came.
    Of(i64),
    /// Those whose receipt came at most so many milliseconds before the time was set, by the file system's clock.
    Within(i64),
}

/// They are told it from `tell_ms` on; gives whom. Nobody where it is about to leave: Forget says it.
pub(super) fn tell(db: &Connection, item: ItemId, who: Who, tell_ms: i64) -> Result<Vec<AgentId>> {
    let (job, within_ms) = match who {
        _ if failpoints::mutant("S5-kept-time") => return Ok(Vec::new()),
        Who::Of(job) => (Some(job), None),
        Who::Within(_) if failpoints::mutant("S5-long-after") => (None, Some(i64::MAX)),
        Who::Within(ms) => (None, Some(ms)),
    };
    db.prepare_cached(TELL)?
        .query_map(params![item.0, Step::Retime, tell_ms, job, within_ms], |row| {
            row.get(0).map(AgentId)
        })?
        .collect()
}

pub(super) const TELL: &str = "
    INSERT OR REPLACE INTO closing (transfer, peer, step, mtime_ns, not_before_ms)
    SELECT j.transfer, j.peer, ?2, d.mtime_ns, ?3 FROM drops d CROSS JOIN jobs j ON j.drop_id = d.id
    WHERE d.id = ?1 AND d.state < 2 AND d.retimed AND j.state = 1 AND j.receipt IS NOT NULL
      AND (j.id = ?4 OR d.ctime_ns / 1000000 - j.ended_ms <= ?5)
    RETURNING peer";

/// When the next late time becomes due to be told to `peer`; None where there is none.
pub(super) fn next_to_tell(db: &Connection, peer: AgentId, now_ms: i64) -> Result<Option<i64>> {
    db.prepare_cached(NEXT_TO_TELL)?
        .query_row(params![peer.0, Step::Retime, now_ms], |row| row.get(0))
}

pub(super) const NEXT_TO_TELL: &str =
    "SELECT min(not_before_ms) FROM closing WHERE peer = ? AND step = ? AND not_before_ms > ?";

impl Queue {
    /// The peer has these times; a later one is still to be told.
    pub async fn retimed(&self, told: Vec<LateTime>) -> Result<(), DbError> {
        self.each(told, |db, late, _: &mut Vec<()>| {
            let row = db
                .prepare_cached("SELECT mtime_ns FROM closing WHERE transfer = ? AND step = ?")?
                .query_row(params![late.id.0, Step::Retime], |row| row.get(0))
                .optional()?;
            if row.is_some_and(|mtime_ns| mtime_of(mtime_ns) == late.mtime)
                || failpoints::mutant("S5-last-time")
            {
                db.prepare_cached("DELETE FROM closing WHERE transfer = ? AND step = ?")?
                    .execute(params![late.id.0, Step::Retime])?;
            }
            Ok(())
        })
        .await
        .map(|_| ())
    }
}

/// What the item waits for begins again, as with every version that is found.
pub(super) fn due_now(db: &Connection, item: ItemId, now_ms: i64) -> Result<()> {
    db.prepare_cached(
        "UPDATE jobs SET next_attempt_ms = min(next_attempt_ms, ?2), queued_ms = ?2,
                         queued_running_ms = (SELECT ms FROM running) WHERE drop_id = ?1 AND state = 0",
    )?
    .execute([item.0, now_ms])
    .map(|_| ())
}

/// The item that `found` may be, and what a peer has of it.
pub(super) fn delivered(db: &Connection, found: &Found) -> Result<Option<(ItemId, Digest)>> {
    if found.version.folder || failpoints::mutant("S2-retimed") {
        return Ok(None);
    }
    db.prepare_cached(DELIVERED)?
        .query_row(of_file(found), |row| {
            Ok((ItemId(row.get(0)?), Digest(row.get(1)?)))
        })
        .optional()
}

/// The parameters of both statements.
fn of_file(found: &Found) -> impl Params + '_ {
    let version = &found.version;
    (
        found.outbox.0,
        found.path.as_bytes(),
        version.mtime_ns,
        version.inode.cast_signed(),
        version.birth_ns,
        version.size.cast_signed(),
    )
}
