//! A file whose times were set after it was found: programs do so once they have closed it. It is the drop that it was, as
//! another version. Where a peer has that already, only if the bytes are those that were delivered ([`Queue::same`]). Where
//! none is known to have it, at once: its jobs keep their ids, so that a peer that has it after all says so, and a receipt
//! counts only once the bytes of this version were compared with it.

use dropwire_protocol::{AgentId, Digest};
use rusqlite::{Connection, OptionalExtension, Params, Result, params};

use super::{DropId, NewDrop, change, edit::Edit};
use crate::{fault, version::Found};

/// The same file: path, inode, birth and size are equal, the modification time is not. Where inodes and births are not
/// kept, or do not last, it may be another one: in either case the bytes decide.
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

/// The drop that `new` is with other times, if it is open and goes to the same peers, none of which is known to have it.
pub(super) fn open(db: &Connection, new: &NewDrop) -> Result<Option<DropId>> {
    let Found {
        outbox,
        path,
        version,
    } = &new.found;
    if version.folder || fault::mutant("S2-open") {
        return Ok(None);
    }
    let open: Option<DropId> = db
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
            |row| row.get(0).map(DropId),
        )
        .optional()?;
    let Some(drop) = open else {
        return Ok(None);
    };
    let mut to: Vec<AgentId> = db
        .prepare_cached(OPEN_TO)?
        .query_map([drop.0], |row| row.get(0).map(AgentId))?
        .collect::<Result<_>>()?;
    to.sort_unstable();
    Ok((to == new.sorted_peers()).then_some(drop))
}

/// It lies there as this version now; `counter` is above all that drops of the version used.
pub(super) fn turn(db: &Edit<'_>, drop: DropId, found: &Found, counter: u64) -> Result<()> {
    let version = &found.version;
    db.prepare_cached(
        "UPDATE drops SET retimed = retimed OR mtime_ns <> ?2, mtime_ns = ?2, inode = ?3, birth_ns = ?4,
                          ctime_ns = ?5, counter = ?6, state = 0, left_running_ms = NULL
         WHERE id = ?1 AND state < 3",
    )?
    .execute(params![
        drop.0,
        version.mtime_ns,
        version.inode.cast_signed(),
        version.birth_ns,
        version.ctime_ns,
        counter.cast_signed()
    ])?;
    change::settle(db, drop).map(|_| ())
}

/// What it waits for begins anew, as with every version that is found.
pub(super) fn due_now(db: &Connection, drop: DropId, now_ms: i64) -> Result<()> {
    db.prepare_cached(
        "UPDATE jobs SET next_attempt_ms = min(next_attempt_ms, ?2), queued_ms = ?2,
                         queued_running_ms = (SELECT ms FROM running) WHERE drop_id = ?1 AND state = 0",
    )?
    .execute([drop.0, now_ms])
    .map(|_| ())
}

/// The drop that `found` may be, and what a peer has of it.
pub(super) fn delivered(db: &Connection, found: &Found) -> Result<Option<(DropId, Digest)>> {
    if found.version.folder || fault::mutant("S2-retimed") {
        return Ok(None);
    }
    db.prepare_cached(DELIVERED)?
        .query_row(of_file(found), |row| {
            Ok((DropId(row.get(0)?), Digest(row.get(1)?)))
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
