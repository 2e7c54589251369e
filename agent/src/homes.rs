//! Which folder is at home where: each id of an inbox or outbox belongs to one path, and each path to one id.
//!
//! A folder without the id that its path had is another folder (unmounted, replaced) and is held. A folder whose id is at
//! home at another path of the config is a copy, and is held too: the path where the id was seen first goes on, in
//! whatever order the config names them. One that was moved is at home where it is found.

use std::path::{Path, PathBuf};

use cap_fs_ext::MetadataExt as _;
use rusqlite::{Connection, OptionalExtension as _, Result, params};

use crate::{confined, error::shown, fault, owner};

/// A folder's id (see [`crate::mark`]).
pub type FolderId = [u8; 16];

/// The table.
pub const SCHEMA_1: &str =
    "CREATE TABLE folder_home (id BLOB PRIMARY KEY, path BLOB NOT NULL UNIQUE) STRICT, WITHOUT ROWID;";

/// What earlier versions kept in a table each for outboxes and inboxes. Of two outboxes with one id the one where the job
/// list looks for its files comes first.
pub const FROM_MARKS: &str = "
INSERT OR IGNORE INTO folder_home
    SELECT m.id, m.path FROM outbox_mark m JOIN outboxes o ON o.mark = m.id AND o.root = m.path;
INSERT OR IGNORE INTO folder_home SELECT id, path FROM outbox_mark;
INSERT OR IGNORE INTO folder_home SELECT mark, path FROM inbox_mark;
DROP TABLE outbox_mark;
DROP TABLE inbox_mark;
";

/// The id that is at home at `path`.
pub fn expected(db: &Connection, path: &Path) -> Result<Option<FolderId>> {
    db.prepare_cached("SELECT id FROM folder_home WHERE path = ?1")?
        .query_row([bytes(path)], |row| row.get(0))
        .optional()
}

/// Where a folder with this id is at home, if that is another of the `configured` paths than `path`.
pub fn elsewhere(
    db: &Connection,
    id: FolderId,
    path: &Path,
    configured: &[PathBuf],
) -> Result<Option<PathBuf>> {
    let home: Option<Vec<u8>> = db
        .prepare_cached("SELECT path FROM folder_home WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    let other = configured
        .iter()
        .find(|other| home.as_ref().is_some_and(|home| bytes(other) == *home));
    Ok(other
        .filter(|other| *other != path && !fault::mutant("folder-home"))
        .cloned())
}

/// From now on the folder with this id is at home at `path`, and no other one.
pub fn settle(db: &Connection, id: FolderId, path: &Path) -> Result<()> {
    if expected(db, path)? == Some(id) {
        return Ok(());
    }
    db.prepare_cached("DELETE FROM folder_home WHERE path = ?1")?
        .execute([bytes(path)])?;
    db.prepare_cached("INSERT OR REPLACE INTO folder_home (id, path) VALUES (?1, ?2)")?
        .execute(params![id, bytes(path)])?;
    Ok(())
}

/// Why the folder at `path`, whose id is at home at `other`, is held. Looks at both.
pub fn reason(path: &Path, other: &Path) -> String {
    match is_same(path, other) {
        true => format!(
            "{} and {} are the same folder: take one of them out of the config",
            shown(path),
            shown(other)
        ),
        false => format!(
            "{} has the same id (.dropwire/id) as {}, of which it seems to be a copy; to use it as a folder of its own: `{}`",
            shown(path),
            shown(other),
            owner::adopt(path)
        ),
    }
}

/// Do both paths lead to one folder, by a link or a second mount?
pub fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let meta = confined::root(path).and_then(|dir| dir.dir_metadata());
        meta.map(|meta| (meta.dev(), meta.ino())).ok()
    };
    identity(a).is_some() && identity(a) == identity(b)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: FolderId = [1; 16];
    const B: FolderId = [2; 16];

    fn db() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(SCHEMA_1).unwrap();
        db
    }

    #[test]
    fn the_original_goes_on_and_the_copy_is_held_in_whatever_order() {
        let db = db();
        let (original, copy) = (Path::new("/out"), Path::new("/copy"));
        let config = [copy.to_path_buf(), original.to_path_buf()];
        assert_eq!(
            elsewhere(&db, A, original, &config).unwrap(),
            None,
            "the first one"
        );
        settle(&db, A, original).unwrap();
        for config in [config.clone(), [config[1].clone(), config[0].clone()]] {
            assert_eq!(elsewhere(&db, A, original, &config).unwrap(), None);
            assert_eq!(
                elsewhere(&db, A, copy, &config).unwrap().as_deref(),
                Some(original)
            );
        }
        // Moved: the config names only the new path.
        assert_eq!(elsewhere(&db, A, copy, &[copy.to_path_buf()]).unwrap(), None);
        settle(&db, A, copy).unwrap();
        assert_eq!(expected(&db, copy).unwrap(), Some(A));
        assert_eq!(expected(&db, original).unwrap(), None);
        // The copy was given an id of its own.
        settle(&db, A, original).unwrap();
        settle(&db, B, copy).unwrap();
        assert_eq!(elsewhere(&db, B, copy, &config).unwrap(), None);
        assert_eq!(expected(&db, original).unwrap(), Some(A));
    }

    #[test]
    fn what_earlier_versions_kept_is_taken_over() {
        let db = db();
        db.execute_batch(
            "CREATE TABLE outbox_mark (path BLOB PRIMARY KEY, id BLOB NOT NULL) STRICT, WITHOUT ROWID;
             CREATE TABLE inbox_mark (path BLOB PRIMARY KEY, mark BLOB NOT NULL) WITHOUT ROWID;
             CREATE TABLE outboxes (id INTEGER PRIMARY KEY, mark BLOB NOT NULL UNIQUE, root BLOB NOT NULL) STRICT;
             INSERT INTO outbox_mark VALUES (x'2f636f7079', x'01010101010101010101010101010101'); -- /copy
             INSERT INTO outbox_mark VALUES (x'2f6f7574', x'01010101010101010101010101010101');   -- /out
             INSERT INTO outboxes VALUES (1, x'01010101010101010101010101010101', x'2f6f7574');
             INSERT INTO inbox_mark VALUES (x'2f696e', x'02020202020202020202020202020202');      -- /in",
        )
        .unwrap();
        db.execute_batch(FROM_MARKS).unwrap();
        assert_eq!(expected(&db, Path::new("/out")).unwrap(), Some(A));
        assert_eq!(expected(&db, Path::new("/copy")).unwrap(), None);
        assert_eq!(expected(&db, Path::new("/in")).unwrap(), Some(B));
    }

    #[cfg(unix)]
    #[test]
    fn one_folder_under_two_names_is_told_from_a_copy() {
        let temp = tempfile::tempdir().unwrap();
        let (a, link, copy) = (
            temp.path().join("a"),
            temp.path().join("link"),
            temp.path().join("copy"),
        );
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&copy).unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        assert!(reason(&link, &a).contains("same folder"));
        assert!(reason(&copy, &a).contains("dropwire adopt"));
    }
}
