//! Which mark each outbox had: a folder without the mark it once had is another folder (unmounted, moved) and is held.

use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, params};

use crate::{
    db::{Db, DbError},
    version::OutboxId,
};

/// The table.
pub const SCHEMA_1: &str =
    "CREATE TABLE outbox_mark (path BLOB PRIMARY KEY, id BLOB NOT NULL) STRICT, WITHOUT ROWID;";

/// The mark that the outbox at `path` had when it was last seen.
pub async fn expected(db: &Db, path: &Path) -> Result<Option<OutboxId>, DbError> {
    let path = path_bytes(path);
    db.call(move |tx| {
        let mut statement = tx.prepare_cached("SELECT id FROM outbox_mark WHERE path = ?1")?;
        statement
            .query_row([path], |row| row.get::<_, [u8; 16]>(0))
            .optional()
    })
    .await
    .map(|id| id.map(OutboxId))
}

/// Keeps the mark, durably.
pub async fn remember(db: &Db, path: PathBuf, id: OutboxId) -> Result<(), DbError> {
    let path = path_bytes(&path);
    db.call(move |tx| {
        tx.execute(
            "INSERT OR REPLACE INTO outbox_mark (path, id) VALUES (?1, ?2)",
            params![path, id.0],
        )?;
        Ok(())
    })
    .await
}

fn path_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_encoded_bytes().to_vec()
}
