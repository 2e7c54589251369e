//! The job list as its rooms use it.

use std::{fs, sync::mpsc as std_mpsc};

use rusqlite_migration::{M, Migrations};

use super::*;
use crate::error::chain;

const TABLES: &str = "
    CREATE TABLE number (n INTEGER PRIMARY KEY) STRICT;
    CREATE TABLE later (n INTEGER REFERENCES number (n) DEFERRABLE INITIALLY DEFERRED) STRICT;";

fn open(path: &Path) -> Result<Db, OpenError> {
    Db::open(path, &Migrations::new(vec![M::up(TABLES)]))
}

#[tokio::test]
async fn every_commit_is_synced() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(&temp.path().join("db")).unwrap();
    let synchronous = db.call(|tx| tx.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0)));
    assert!(synchronous.await.unwrap() >= 2, "FULL");
}

fn insert(db: &Transaction<'_>, n: i64) -> rusqlite::Result<usize> {
    db.execute("INSERT INTO number VALUES (?)", [n])
}

fn numbers(db: &Connection) -> Vec<i64> {
    let mut all = db.prepare("SELECT n FROM number ORDER BY n").unwrap();
    let rows = all.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn committed(db: &Db) -> Vec<i64> {
    db.read_blocking(|db| Ok(numbers(db))).unwrap()
}

/// Holds the writer inside a commit until told to go on, so that what comes meanwhile waits together.
async fn hold(db: &Db) -> (std_mpsc::Sender<()>, tokio::task::JoinHandle<Result<(), DbError>>) {
    let (go_on, wait) = std_mpsc::channel();
    let (held, is_held) = oneshot::channel();
    let mut held = Some(held);
    let holder = db.clone();
    let held_commit = tokio::spawn(async move {
        let change = move |db: &Transaction<'_>| {
            let _ = held.take().map(|held| held.send(()));
            let _ = wait.recv();
            insert(db, 0).map(drop)
        };
        holder.call(change).await
    });
    is_held.await.unwrap();
    (go_on, held_commit)
}

#[tokio::test]
async fn what_waits_together_shares_a_commit_and_a_failing_change_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder.path().join("state.db")).unwrap();
    let (go_on, held) = hold(&db).await;
    let outside = db.clone();
    // Polled in order, each is sent before the next; all of them wait for the held commit.
    let (first, failing, last, ()) = tokio::join!(
        biased;
        db.call(|db| insert(db, 1)),
        db.call(|db| {
            insert(db, 2)?;
            insert(db, 1)
        }),
        db.call(move |db| {
            insert(db, 3)?;
            Ok((numbers(db), committed(&outside)))
        }),
        async { go_on.send(()).unwrap() },
    );
    held.await.unwrap().unwrap();
    first.unwrap();
    assert!(matches!(failing, Err(DbError::Change(_))));
    let (inside, outside) = last.unwrap();
    assert_eq!(
        (inside, outside),
        (vec![0, 1, 3], vec![]),
        "none was committed before the others"
    );
    assert_eq!(committed(&db), [0, 1, 3]);
}

#[tokio::test]
async fn reading_waits_for_no_commit_and_sees_all_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder.path().join("state.db")).unwrap();
    for n in [7, 8] {
        db.call(move |db| insert(db, n)).await.unwrap();
        let read = db.read(|db| Ok(numbers(db))).await.unwrap();
        assert_eq!(read.last(), Some(&n));
    }
    let (go_on, held) = hold(&db).await;
    assert_eq!(db.read(|db| Ok(numbers(db))).await.unwrap(), [7, 8]);
    go_on.send(()).unwrap();
    held.await.unwrap().unwrap();
    assert_eq!(db.read(|db| Ok(numbers(db))).await.unwrap(), [0, 7, 8]);
    assert!(db.read(|db| db.execute("DELETE FROM number", [])).await.is_err());
    db.close().await;
    let log = fs::metadata(folder.path().join("state.db-wal"));
    assert!(log.is_err(), "a kept reader does not keep the log");
}

#[tokio::test]
async fn after_a_failed_commit_everything_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let db = open(&path).unwrap();
    db.call(|db| insert(db, 1)).await.unwrap();
    let watcher = db.clone();
    let failed = tokio::spawn(async move { watcher.failed().await });
    let (go_on, held) = hold(&db).await;
    // A reference to nothing is only found by the commit.
    let (dangling, innocent, ()) = tokio::join!(
        biased;
        db.call(|db| db.execute("INSERT INTO later VALUES (9)", [])),
        db.call(|db| insert(db, 2)),
        async { go_on.send(()).unwrap() },
    );
    let is_dangling = |failure: &Failure| {
        let code = match failure {
            Failure::Sqlite(error) => error.sqlite_error().map(|error| error.extended_code),
            _ => None,
        };
        code == Some(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
    };
    let is_refused =
        |error: Option<DbError>| matches!(error, Some(DbError::Failed(why)) if is_dangling(&why));
    assert!(is_refused(held.await.unwrap().err()));
    assert!(is_refused(dangling.err()));
    assert!(is_refused(innocent.err()));
    assert!(is_dangling(&failed.await.unwrap()));
    assert!(is_refused(db.call(|db| insert(db, 3)).await.err()));
    let refused = tokio::task::spawn_blocking(move || db.call_blocking(|db| insert(db, 4)));
    let refused = refused.await.unwrap().unwrap_err();
    let told = chain(&refused);
    assert!(
        told == "the job list cannot be written: FOREIGN KEY constraint failed",
        "{told}"
    );
    assert!(is_refused(Some(refused)));
    assert_eq!(committed(&open(&path).unwrap()), [1]);
}

#[tokio::test]
async fn a_change_that_loses_the_transaction_fails_the_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let db = open(&path).unwrap();
    let (go_on, held) = hold(&db).await;
    let (lost, next, ()) = tokio::join!(
        biased;
        db.call(|db| {
            db.execute_batch("ROLLBACK")?;
            db.execute_batch("no SQL")
        }),
        db.call(|db| insert(db, 1)),
        async { go_on.send(()).unwrap() },
    );
    assert!(held.await.unwrap().is_err() && lost.is_err() && next.is_err());
    let left = committed(&db);
    assert!(left.is_empty(), "written outside any transaction: {left:?}");
    assert!(matches!(db.failed().await, Failure::Sqlite(_)));
}

#[test]
fn what_is_no_database_or_a_damaged_one_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let db = open(&path).unwrap();
    db.call_blocking(|db| (0..5000).try_for_each(|n| insert(db, n).map(|_| ())))
        .unwrap();
    drop(db);
    checkpoint(&path);
    let whole = fs::read(&path).unwrap();
    let page = 4096;
    for damage in [0, 5 * page] {
        let mut damaged = whole.clone();
        damaged[damage..damage + page].fill(0xAB);
        fs::write(&path, &damaged).unwrap();
        assert!(matches!(open(&path), Err(OpenError::Damaged(_))), "at {damage}");
        assert!(fs::read(&path).unwrap() == damaged, "at {damage}: written to");
    }
}

#[test]
fn a_newer_schema_is_named_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let newer = Migrations::new(vec![M::up(TABLES), M::up("CREATE TABLE more (n)")]);
    drop(Db::open(&path, &newer).unwrap());
    assert!(matches!(open(&path), Err(OpenError::Newer(_))));
    assert!(matches!(
        open(&folder.path().join("no/such/folder")),
        Err(OpenError::Cannot(_))
    ));
}

/// Puts all that is in the log into the file.
fn checkpoint(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection
        .busy_timeout(std::time::Duration::from_secs(60))
        .unwrap();
    let busy: i64 = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .unwrap();
    assert_eq!(busy, 0);
}

/// Holds the database's write lock, as another program may.
fn lock(path: &Path) -> Connection {
    let other = Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

/// Waits for it.
async fn until(what: impl Fn() -> bool) {
    use std::time::Duration;
    let come = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), come).await;
    in_time.expect("what is waited for");
}

/// A block that is missing when it is used ends the process by a signal.
#[cfg(target_os = "linux")]
#[test]
fn the_index_of_the_log_has_its_blocks_from_the_start() {
    if !failpoints::needs::blocks_in_advance() {
        return;
    }
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let _db = open(&folder.path().join("state.db")).unwrap();
    let index = fs::metadata(folder.path().join("state.db-shm")).unwrap();
    assert!(index.len() >= 128 << 10, "{} bytes", index.len());
    assert!(index.blocks() * 512 >= 128 << 10, "{} blocks", index.blocks());
}

#[tokio::test]
async fn a_lock_of_another_program_is_waited_for_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let db = open(&path).unwrap();
    let other = lock(&path);
    let change = tokio::spawn({
        let db = db.clone();
        async move { db.call(|db| insert(db, 1)).await }
    });
    until(|| {
        db.troubles()
            .iter()
            .any(|trouble| trouble.text.contains("locked"))
    })
    .await;
    other.execute_batch("ROLLBACK").unwrap();
    change.await.unwrap().unwrap();
    until(|| db.troubles().is_empty()).await;
    assert_eq!(committed(&db), [1]);
}

#[tokio::test]
async fn an_end_does_not_wait_for_what_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let db = open(&path).unwrap();
    let other = lock(&path);
    let change = tokio::spawn({
        let db = db.clone();
        async move { db.call(|db| insert(db, 1)).await }
    });
    until(|| !db.troubles().is_empty()).await;
    db.close().await;
    assert!(matches!(change.await.unwrap(), Err(DbError::Failed(_))));
    drop(other);
    assert!(committed(&open(&path).unwrap()).is_empty());
}

/// The size of the file is bounded here as a disk bounds it. What makes room comes behind what needs it.
#[tokio::test]
async fn what_finds_no_room_runs_again_and_does_not_hold_up_what_makes_room() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder.path().join("state.db")).unwrap();
    let limit = |pages: u32| {
        move |db: &Transaction<'_>| db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
    };
    db.call(limit(10)).await.unwrap();
    let tries = Arc::new(AtomicU32::new(0));
    let large = tokio::spawn({
        let (db, tries) = (db.clone(), tries.clone());
        let change = move |db: &Transaction<'_>| {
            tries.fetch_add(1, Ordering::Relaxed);
            (0..10_000).try_for_each(|n| insert(db, n).map(drop))
        };
        async move { db.call(change).await }
    });
    until(|| db.troubles().iter().any(|trouble| trouble.text.contains("full"))).await;
    assert!(!large.is_finished());
    db.call(limit(1_000_000)).await.unwrap();
    large.await.unwrap().unwrap();
    assert!(tries.load(Ordering::Relaxed) > 1);
    assert_eq!(committed(&db).len(), 10_000);
    until(|| db.troubles().is_empty()).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_page_that_is_read_damaged_is_the_end() {
    use std::os::unix::fs::FileExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let db = open(&path).unwrap();
    db.call(|db| (0..5000).try_for_each(|n| insert(db, n).map(drop)))
        .await
        .unwrap();
    db.close().await;
    let db = open(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0xAB; 4096], 5 * 4096).unwrap();
    let read = db.read(|db| db.query_row("SELECT sum(n) FROM number", [], |row| row.get::<_, i64>(0)));
    assert!(read.await.is_err());
    assert!(matches!(db.failed().await, Failure::Sqlite(_)));
}

/// As with no descriptor left: what cannot be read now is asked again, and nothing has failed.
#[tokio::test]
async fn what_cannot_be_opened_for_reading_now_may_be_read_later() {
    let folder = tempfile::tempdir().unwrap();
    let [path, away] = ["db", "away"].map(|name| folder.path().join(name));
    let db = open(&path).unwrap();
    db.call(|db| insert(db, 1)).await.unwrap();
    db.readers.close(); // none is kept open
    fs::rename(&path, &away).unwrap();
    let read = || db.read(|db| Ok(numbers(db)));
    assert!(matches!(read().await, Err(DbError::NotNow(Wait::Shortage, _))));
    fs::rename(&away, &path).unwrap();
    assert_eq!(read().await.unwrap(), [1]);
}

/// What `PRAGMA synchronous` says inside a change: 2 is FULL, 1 is NORMAL.
fn synchronous(tx: &Transaction<'_>) -> rusqlite::Result<i64> {
    tx.pragma_query_value(None, "synchronous", |row| row.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_has_a_commit_of_its_own_if_no_other_comes() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(&temp.path().join("db")).unwrap();
    assert_eq!(db.call_loosely(synchronous).await.unwrap(), 1);
    assert_eq!(db.call_soon(synchronous).await.unwrap(), 2);
    let (loosely, soon) = tokio::join!(db.call_loosely(synchronous), db.call_soon(synchronous));
    assert_eq!((loosely.unwrap(), soon.unwrap()), (2, 2), "one of them needs it");
    assert_eq!(db.call(synchronous).await.unwrap(), 2, "as before");
}

/// In the order in which they were asked for, and before who waits is answered.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_goes_with_what_comes_next() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(&temp.path().join("db")).unwrap();
    db.call(|tx| tx.execute_batch("CREATE TABLE seen (n INTEGER)"))
        .await
        .unwrap();
    let insert = |n: i64| {
        move |tx: &Transaction<'_>| {
            tx.execute("INSERT INTO seen VALUES (?)", [n])?;
            synchronous(tx)
        }
    };
    for _ in 0..20 {
        let (first, second, all) = tokio::join!(
            biased;
            db.call_loosely(insert(1)),
            db.call_soon(insert(2)),
            db.call(|tx| {
                let synchronous = synchronous(tx)?;
                let all = tx.query_row("SELECT group_concat(n) FROM seen", [], |row| row.get::<_, String>(0))?;
                tx.execute("DELETE FROM seen", [])?;
                Ok((synchronous, all))
            })
        );
        assert_eq!((first.unwrap(), second.unwrap()), (2, 2));
        assert_eq!(all.unwrap(), (2, "1,2".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_waits_for_what_nobody_waits_for() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("db");
    let db = open(&path).unwrap();
    let make = db.call_loosely(|tx| tx.execute_batch("CREATE TABLE made (n INTEGER)"));
    let (made, ()) = tokio::join!(biased; make, db.close());
    made.unwrap();
    let db = open(&path).unwrap();
    db.call(|tx| tx.execute("INSERT INTO made VALUES (1)", []))
        .await
        .unwrap();
}
