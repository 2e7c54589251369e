//! A file whose times were set after it had been sent: programs do so once they have closed it. With the bytes that were
//! delivered it is the same drop, as another version ([`Queue::same`]), and its peers are told the new time at the end.

use dropwire_protocol::{Digest, TransferId};
use rusqlite::{Connection, OptionalExtension, Params, Result};

use super::{DropId, Queue};
use crate::{db::DbError, fault, version::Found};

impl Queue {
    /// For each of `found`, in order: what has not ended of the transfers of the same file with other times.
    pub async fn under_way(&self, found: Vec<Found>) -> Result<Vec<Vec<TransferId>>, DbError> {
        self.read(move |db| found.iter().map(|found| under_way(db, found)).collect())
            .await
    }
}

/// The same file: path, inode, birth and size are equal, the modification time is not. Where inodes and births are not
/// kept, or do not last, a file of the same size may be another.
macro_rules! same_file {
    () => {
        "d.outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND d.path = ?2 AND d.mtime_ns <> ?3 AND d.inode = ?4
         AND d.birth_ns = ?5 AND d.size = ?6 AND d.folder = 0 AND d.state < 3"
    };
}

pub(super) const UNDER_WAY: &str = concat!(
    "SELECT j.transfer FROM drops d CROSS JOIN jobs j ON j.drop_id = d.id AND j.state = 0 WHERE ",
    same_file!()
);

pub(super) const DELIVERED: &str = concat!(
    "SELECT d.id, j.sha256 FROM drops d CROSS JOIN jobs j ON j.drop_id = d.id AND j.state = 1 AND j.sha256 IS NOT NULL
     WHERE ",
    same_file!(),
    " LIMIT 1"
);

fn under_way(db: &Connection, found: &Found) -> Result<Vec<TransferId>> {
    if !is_told_apart(found) {
        return Ok(Vec::new());
    }
    db.prepare_cached(UNDER_WAY)?
        .query_map(of_file(found), |row| row.get(0).map(TransferId))?
        .collect()
}

/// The drop that `found` may be, and what a peer has of it.
pub(super) fn delivered(db: &Connection, found: &Found) -> Result<Option<(DropId, Digest)>> {
    if !is_told_apart(found) {
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

fn is_told_apart(found: &Found) -> bool {
    let version = &found.version;
    version.inode != 0 && version.birth_ns != 0 && !version.folder && !fault::mutant("S2-retimed")
}
