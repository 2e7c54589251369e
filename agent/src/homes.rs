//! Which folder is at home where: each id of an inbox or outbox belongs to one path, and each path to one id.
//!
//! A folder without the id that its path had is another folder (unmounted, replaced) and is held. A folder whose id is at
//! home at another path of the config is a copy, and is held too: the path where the id was seen first goes on, in
//! whatever order the config names them. One that was moved is at home where it is found: the config does not name the
//! other path any more, or another outbox lies there now, with an id of its own (two changed places, say). A path
//! where nothing with an id is found tells nothing of the kind: its disk may not be mounted.

use std::{
    io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension as _, Result, params};

use crate::{
    error::shown,
    failpoints,
    fs::{
        confined,
        dev_ino::DevIno,
        folder_id::{self, FolderId},
    },
    owner,
};

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
fn elsewhere(db: &Connection, id: FolderId, path: &Path, configured: &[PathBuf]) -> Result<Option<PathBuf>> {
    let home: Option<Vec<u8>> = db
        .prepare_cached("SELECT path FROM folder_home WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    let other = configured
        .iter()
        .find(|other| home.as_ref().is_some_and(|home| bytes(other) == *home));
    Ok(other
        .filter(|other| *other != path && !failpoints::mutant("folder-home"))
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

/// [`settle`], if the folder with this id is at home at none of the other `configured` paths, or at the one that it has
/// `left`; else returns where. What was at home here takes the place that was left: so at each path an id goes on to be
/// expected, however many folders change places, and whatever is cut off. In one transaction.
pub fn claim(
    db: &Connection,
    id: FolderId,
    path: &Path,
    configured: &[PathBuf],
    left: Option<&Path>,
) -> Result<Option<PathBuf>> {
    let other = elsewhere(db, id, path, configured)?;
    if other.is_some() && other.as_deref() != left {
        return Ok(other);
    }
    let former = expected(db, path)?;
    settle(db, id, path)?;
    if let (Some(other), Some(former)) = (other, former)
        && !failpoints::mutant("folder-exchange")
    {
        settle(db, former, &other)?;
    }
    Ok(None)
}

/// What lies at the path where the id of a folder is at home that was found at another one.
#[derive(Debug)]
pub enum There {
    /// That very folder, by a link or a second mount.
    Same,
    /// A folder with the same id.
    Original,
    /// One with an id of its own: the folder was moved away from there.
    Another,
    /// None with an id, now.
    Nothing,
    /// That cannot be told.
    Unknown(io::Error),
}

impl There {
    /// Looks at `other`, where the `id` of the folder at `path` is at home. Blocks.
    pub fn find(id: FolderId, path: &Path, other: &Path) -> Self {
        if is_same(path, other) {
            return Self::Same;
        }
        match confined::root(other).and_then(|dir| folder_id::read(&dir)) {
            Ok(Some(found)) if found == id => Self::Original,
            Ok(Some(_)) => Self::Another,
            Ok(None) => Self::Nothing,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Self::Nothing,
            Err(e) => Self::Unknown(e),
        }
    }

    /// Is the folder that was found at the one path at home there from now on? Only `outboxes` change places: what
    /// arrived is never sent for having been moved.
    pub fn is_left(&self, path: &Path, other: &Path, outboxes: &[PathBuf]) -> bool {
        let are_outboxes = [path, other].iter().all(|p| outboxes.iter().any(|o| o == p));
        match self {
            Self::Another => are_outboxes || failpoints::mutant("folder-inbox"),
            Self::Nothing => failpoints::mutant("folder-away"),
            _ => false,
        }
    }

    /// Why the folder at `path`, whose id is at home at `other`, is held.
    pub fn reason(&self, path: &Path, other: &Path) -> String {
        let (folder, home, adopt) = (shown(path), shown(other), owner::adopt(path));
        match self {
            Self::Same => {
                format!("{folder} and {home} are the same folder: take one of them out of the config")
            }
            Self::Original => format!(
                "{folder} has the same id (.dropwire/id) as {home}, of which it seems to be a copy; to use it as a folder \
                 of its own: `{adopt}`"
            ),
            Self::Another => format!(
                "{folder} has the id (.dropwire/id) of {home}, and an inbox and an outbox do not take each other's place by \
                 being moved: move it back, or change the paths in the config; to use it as a folder of its own: `{adopt}`"
            ),
            Self::Nothing => format!(
                "{folder} has the id (.dropwire/id) of {home}, where no folder with an id is now: mount its disk. \
                 If the folder was moved here instead, take {home} out of the config; if it is a copy, run `{adopt}`"
            ),
            Self::Unknown(error) => format!(
                "{folder} has the id (.dropwire/id) of {home}, and what is there cannot be read ({error}): fix \
                 that. If the folder was moved here instead, take {home} out of the config; if it is a copy, run `{adopt}`"
            ),
        }
    }
}

/// Do both paths lead to one folder, by a link or a second mount?
pub fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let meta = confined::root(path).and_then(|dir| dir.dir_metadata());
        meta.map(|meta| DevIno::of_found(&meta)).ok()
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

    /// On disk each of `n` outboxes lies where the next one was.
    fn rotated(n: u8) -> (tempfile::TempDir, Vec<PathBuf>, Vec<FolderId>) {
        let temp = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..n).map(|i| temp.path().join(i.to_string())).collect();
        let ids = paths.iter().map(|path| {
            std::fs::create_dir(path).unwrap();
            folder_id::create(&confined::root(path).unwrap()).unwrap()
        });
        let mut ids: Vec<_> = ids.collect();
        ids.rotate_left(1); // at which path each is at home
        (temp, paths, ids)
    }

    #[test]
    fn folders_that_changed_places_go_on_whichever_is_found_first() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let (_temp, paths, homes) = rotated(3);
            let db = db();
            for (path, id) in paths.iter().zip(&homes) {
                settle(&db, *id, path).unwrap();
            }
            for at in order {
                let path = &paths[at];
                let id = folder_id::read(&confined::root(path).unwrap()).unwrap().unwrap();
                if let Some(other) = claim(&db, id, path, &paths, None).unwrap() {
                    let there = There::find(id, path, &other);
                    assert!(there.is_left(path, &other, &paths), "{there:?}");
                    assert_eq!(claim(&db, id, path, &paths, Some(&other)).unwrap(), None);
                    // Asked again, by what was seen before others settled.
                    assert_eq!(claim(&db, id, path, &paths, Some(&other)).unwrap(), None);
                }
                assert_eq!(expected(&db, path).unwrap(), Some(id));
                for path in &paths {
                    assert!(expected(&db, path).unwrap().is_some(), "cut off here: {order:?}");
                }
            }
        }
    }

    #[test]
    fn a_folder_has_left_only_what_has_another_id_now() {
        let (temp, paths, homes) = rotated(2);
        let (path, other, id) = (&paths[0], &paths[1], homes[1]); // it lies at 0, and its home is 1
        let look = |other: &Path| There::find(id, path, other);
        assert!(look(other).is_left(path, other, &paths));
        let inbox = look(other).is_left(path, other, std::slice::from_ref(path));
        assert!(!inbox, "nor is what arrived sent for having been moved");
        let away = temp.path().join("not mounted");
        std::fs::create_dir_all(away.join("point")).unwrap();
        for nothing in [away.join("point"), away.join("gone")] {
            let there = look(&nothing);
            assert!(!there.is_left(path, &nothing, &[path.clone(), nothing.clone()]));
            assert!(there.reason(path, &nothing).contains("not mounted"), "{there:?}");
        }
        std::fs::write(other.join(".dropwire/id"), "damaged").unwrap();
        assert!(!look(other).is_left(path, other, &paths));
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
        let id = folder_id::create(&confined::root(&a).unwrap()).unwrap();
        let reason = |path: &Path| There::find(id, path, &a).reason(path, &a);
        assert!(reason(&link).contains("same folder"));
        assert!(reason(&copy).contains("dropwire adopt"));
    }
}
