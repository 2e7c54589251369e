//! What would be found once more if an outbox had another `folder`: a folder that was found whole, by its files, and a
//! file in a folder, with all of that folder.

use rusqlite::{Connection, Result, params};

use crate::{
    config::Folder,
    fs::version::{Found, OutboxId},
};

/// How many items of an outbox were found under another `folder` than is asked about.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub struct OtherWay {
    /// Those that are still to be delivered, or to leave.
    pub waiting: u64,
    /// Those of which nothing is to be done (kept, failed, cancelled), and which were in the outbox when they were last
    /// looked at, or are missed.
    pub staying: u64,
}

impl OtherWay {
    /// Are there none?
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Would this item of an outbox not have been found with `folder`?
pub fn goes_other_way(found: &Found, folder: Folder) -> bool {
    match folder {
        Folder::Files => found.version.folder,
        Folder::Whole => found.path.parent().is_some(),
    }
}

/// The items of `outbox` that have not left and would not have been found with `folder`. A file at the top of the outbox
/// is found either way.
pub fn other_way(db: &Connection, outbox: OutboxId, folder: Folder) -> Result<OtherWay> {
    let statements: &[&str] = match folder {
        Folder::Files => &[WHOLE],
        Folder::Whole => &IN_FOLDERS,
    };
    let mut all = OtherWay::default();
    for statement in statements {
        let (waiting, staying) = db
            .prepare_cached(statement)?
            .query_row(params![outbox.0], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })?;
        all.waiting += waiting.cast_unsigned();
        all.staying += staying.cast_unsigned();
    }
    Ok(all)
}

pub(super) const WHOLE: &str = "
    SELECT count(*) FILTER (WHERE state <> 1), count(*) FILTER (WHERE state = 1) FROM drops INDEXED BY drops_whole
    WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND folder = 1 AND state < 3";

/// Only a file's path has a `/` in it.
pub(super) const IN_FOLDERS: [&str; 2] = [
    "SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1) FROM drops INDEXED BY drops_lying
     WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND state < 2 AND instr(path, x'2f') > 0",
    "SELECT count(*), 0 FROM drops INDEXED BY drops_leaving
     WHERE outbox = (SELECT id FROM outboxes WHERE mark = ?1) AND state = 2 AND instr(path, x'2f') > 0",
];
