//! A top-level folder goes whole, or each file in it by itself, and never both ways: where an outbox's `folder` was
//! changed, what was found before goes on as it began.

use dropwire_protocol::RemotePath;
use rusqlite::{Connection, Result, params};

use super::Queue;
use crate::{
    db::DbError,
    failpoints,
    fs::version::{Found, OutboxId},
};

impl Queue {
    /// The top-level folders of which something is known that lies there, and that go whole, or (not `whole`) file by
    /// file. What is missed does not count.
    pub async fn folders_that_go(&self, outbox: OutboxId, whole: bool) -> Result<Vec<RemotePath>, DbError> {
        self.read(move |db| {
            let folders = db
                .prepare(if whole { THAT_GO_WHOLE } else { THAT_GO_BY_FILES })?
                .query_map([outbox.0], |row| row.get::<_, Vec<u8>>(0))?
                .collect::<Result<Vec<_>>>()?;
            Ok(folders
                .into_iter()
                .filter_map(|folder| RemotePath::parse(&folder).ok())
                .collect())
        })
        .await
    }
}

/// Is a part of it, or the folder that it lies in, still to be delivered or to leave the other way?
pub(super) fn goes_otherwise(db: &Connection, found: &Found) -> Result<bool> {
    if failpoints::mutant("S2-otherwise") {
        return Ok(false);
    }
    let (outbox, path) = (found.outbox.0, found.path.as_bytes());
    if found.version.folder {
        let (from, to) = bounds(path);
        for which in BY_FILES {
            if db.prepare_cached(which)?.exists(params![outbox, &from, &to])? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    match found.path.components().next().filter(|top| *top != path) {
        Some(top) => db.prepare_cached(WHOLE)?.exists(params![outbox, top]),
        None => Ok(false),
    }
}

/// All paths in a folder lie between these: `folder/` and `folder0`, which is the next byte.
pub(super) fn bounds(folder: &[u8]) -> (Vec<u8>, Vec<u8>) {
    ([folder, b"/"].concat(), [folder, b"0"].concat())
}

pub(super) const WHOLE: &str = "
    SELECT 1 FROM drops INDEXED BY drops_whole
    WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND path = ?2 AND folder = 1 AND state IN (0, 2)
      AND state < 3";

pub(super) const BY_FILES: [&str; 2] = [
    "SELECT 1 FROM drops INDEXED BY drops_lying
     WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND path > ?2 AND path < ?3 AND state < 2 AND state = 0",
    "SELECT 1 FROM drops INDEXED BY drops_leaving
     WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND path > ?2 AND path < ?3 AND state = 2",
];

pub(super) const THAT_GO_WHOLE: &str = "
    SELECT path FROM drops INDEXED BY drops_whole
    WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND folder = 1 AND state < 3
      AND (state <> 1 OR left_running_ms IS NULL)";

/// Only a file's path has a `/` in it.
pub(super) const THAT_GO_BY_FILES: &str = "
    SELECT substr(path, 1, instr(path, x'2f') - 1) FROM drops INDEXED BY drops_lying
    WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND state < 2 AND instr(path, x'2f') > 0
      AND (state <> 1 OR left_running_ms IS NULL)
    UNION
    SELECT substr(path, 1, instr(path, x'2f') - 1) FROM drops INDEXED BY drops_leaving
    WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND state = 2 AND instr(path, x'2f') > 0";
