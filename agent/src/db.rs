//! The job list's and the ledger's database: one SQLite file, one writer thread, many changes to a commit.
//!
//! Rooms bring their tables as migrations and their changes as closures. Changes that wait together share one
//! commit (WAL, `synchronous=FULL`), so a thousand small ones cost one sync.
//!
//! Crash promise: [`Db::call`] answers only after its commit is on disk. After a failed commit nothing is
//! known (it may be there after a restart), so the database refuses everything from then on and
//! [`Db::failed`] tells the daemon to end.

mod readers;

use std::{
    path::Path,
    sync::{Arc, Once},
    thread,
};

use rusqlite::{Connection, Transaction};
use rusqlite_migration::MigrationDefinitionError::DatabaseTooFarAhead;
use tokio::sync::{mpsc, oneshot, watch};

use self::readers::Readers;
use crate::fault;

/// Most changes in one commit.
const BATCH: usize = 1024;
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 128;
/// A connection's page cache, in KiB as SQLite has it; a larger one spares next to nothing, since the system has the pages.
const CACHE: i64 = -512;

/// Why the database did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DbError {
    /// This change failed and was rolled back; others are not touched by it.
    #[error("job list: {0}")]
    Change(Arc<rusqlite::Error>),
    /// A commit failed: the agent has to end.
    #[error("job list cannot be written: {0}")]
    Failed(String),
}

/// Why it could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is no database, or a damaged one.
    #[error("the job list is damaged: {0}")]
    Damaged(String),
    /// It was written by a newer dropwire.
    #[error("the job list was written by a newer dropwire: {0}")]
    Newer(String),
    /// The disk or permissions.
    #[error("cannot open the job list: {0}")]
    Cannot(String),
}

/// Gives, beside what to do after the commit, the reason if the whole batch must not be committed.
type Change = Box<dyn FnOnce(&Transaction<'_>) -> (Finish, Option<DbError>) + Send>;
/// Called after the commit with its result.
type Finish = Box<dyn FnOnce(Result<(), DbError>) + Send>;

/// What the writer thread is asked.
enum Work {
    Change(Change),
    Close(oneshot::Sender<()>),
}

/// A handle to the writer thread; cheap to clone. The thread ends with the last handle.
#[derive(Clone)]
pub struct Db {
    work: mpsc::Sender<Work>,
    failed: watch::Receiver<Option<String>>,
    readers: Readers,
}

impl Db {
    /// Opens or makes the database, checks it (a damaged one is not written to) and brings its tables up to date.
    pub fn open(path: &Path, migrations: &rusqlite_migration::Migrations<'_>) -> Result<Db, OpenError> {
        assert!(
            rusqlite::version_number() >= 3_051_003,
            "SQLite before 3.51.3 has the WAL-reset bug"
        );
        spare_statistics();
        let mut connection = Connection::open(path).map_err(open_error)?;
        configure(&connection)?;
        let check: String = connection
            .query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
            .map_err(open_error)?;
        if check != "ok" {
            return Err(OpenError::Damaged(check));
        }
        migrations.to_latest(&mut connection).map_err(|e| match e {
            rusqlite_migration::Error::MigrationDefinition(DatabaseTooFarAhead) => {
                OpenError::Newer(e.to_string())
            }
            rusqlite_migration::Error::RusqliteError { err, .. } => open_error(err),
            other => OpenError::Cannot(other.to_string()),
        })?;
        // What a crash left in the log goes into the file, so that a log damaged later takes little with it.
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(open_error)?;
        let (work, inbox) = mpsc::channel(BATCH);
        let (failed_tx, failed) = watch::channel(None);
        thread::Builder::new()
            .name("job-list".into())
            .spawn(move || write_loop(connection, inbox, &failed_tx))
            .map_err(|e| OpenError::Cannot(e.to_string()))?;
        Ok(Db {
            work,
            failed,
            readers: Readers::new(path),
        })
    }

    /// Runs `change` in the next commit and answers once that is on disk. If it gives an error, what it did is
    /// undone and the rest of the commit stands. A caller that stops waiting does not stop the change.
    pub async fn call<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (change, answer) = package(change);
        self.work
            .send(Work::Change(change))
            .await
            .map_err(|_| self.why_failed())?;
        answer.await.map_err(|_| self.why_failed())?
    }

    /// The same from a thread that may block.
    pub fn call_blocking<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (change, answer) = package(change);
        self.work
            .blocking_send(Work::Change(change))
            .map_err(|_| self.why_failed())?;
        answer.blocking_recv().map_err(|_| self.why_failed())?
    }

    /// Reads on a connection of its own, on a thread that may block: waits for no commit, and sees all that was committed
    /// before.
    pub async fn read<T, F>(&self, read: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = self.readers.clone();
        tokio::task::spawn_blocking(move || readers.read(read))
            .await
            .map_err(|e| DbError::Failed(e.to_string()))?
            .map_err(|e| DbError::Change(Arc::new(e)))
    }

    /// The same from a thread that may block.
    pub fn read_blocking<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.readers.read(read)
    }

    /// Ends with the reason once a commit failed; never, while all is well.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "its thread ended".into(),
        }
    }

    /// Waits for all changes handed in before, and closes the file with nothing left in its log. Every later change
    /// is refused.
    pub async fn close(&self) {
        self.readers.close(); // the last to close clears the log, and that is to be the writer
        let (closed, done) = oneshot::channel();
        if self.work.send(Work::Close(closed)).await.is_ok() {
            // Without an answer the thread had failed before.
            let _ = done.await;
        }
    }

    fn why_failed(&self) -> DbError {
        DbError::Failed(
            self.failed
                .borrow()
                .clone()
                .unwrap_or_else(|| "its thread ended".into()),
        )
    }
}

fn package<T, F>(change: F) -> (Change, oneshot::Receiver<Result<T, DbError>>)
where
    T: Send + 'static,
    F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let change: Change = Box::new(move |transaction| {
        let result = in_savepoint(transaction, change);
        let fatal = result
            .as_ref()
            .err()
            .filter(|e| is_disk(e) || transaction.is_autocommit())
            .map(|e| DbError::Failed(e.to_string()));
        let finish: Finish = Box::new(move |committed| {
            // Nobody waits any more when the caller was cancelled.
            let _ = reply.send(committed.and(result.map_err(|e| DbError::Change(Arc::new(e)))));
        });
        (finish, fatal)
    });
    (change, answer)
}

/// One change fails alone: what it did is rolled back, the rest of the batch stands.
fn in_savepoint<T>(
    transaction: &Transaction<'_>,
    change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    transaction.execute_batch("SAVEPOINT change")?;
    let result = change(transaction);
    // After some errors SQLite has rolled everything back by itself, and there is no savepoint any more.
    if transaction.is_autocommit() {
        return result;
    }
    if result.is_err() {
        transaction.execute_batch("ROLLBACK TO change")?;
    }
    transaction.execute_batch("RELEASE change")?;
    result
}

fn write_loop(
    mut connection: Connection,
    mut inbox: mpsc::Receiver<Work>,
    failed: &watch::Sender<Option<String>>,
) {
    let mut next = inbox.blocking_recv();
    while let Some(work) = next {
        let first = match work {
            Work::Change(first) => first,
            Work::Close(closed) => {
                drop(connection);
                let _ = closed.send(()); // whoever asked may have stopped waiting
                return;
            }
        };
        let mut finishes: Vec<Finish> = Vec::new();
        let mut after = None;
        let result = commit_batch(&mut connection, first, &mut inbox, &mut finishes, &mut after);
        if let Err(error) = &result {
            failed.send_replace(Some(error.to_string()));
        }
        for finish in finishes {
            finish(result.clone());
        }
        if result.is_err() && !fault::mutant("commit-failed") {
            return; // waiting callers see the closed channel and `failed`
        }
        next = after.or_else(|| inbox.blocking_recv());
    }
}

/// Commits `first` and what waits behind it; `after` is what was taken from the channel but is no change.
fn commit_batch(
    connection: &mut Connection,
    first: Change,
    inbox: &mut mpsc::Receiver<Work>,
    finishes: &mut Vec<Finish>,
    after: &mut Option<Work>,
) -> Result<(), DbError> {
    let failed = |e: rusqlite::Error| DbError::Failed(e.to_string());
    let transaction = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(failed)?;
    let mut next = Some(first);
    while let Some(change) = next {
        let (finish, fatal) = change(&transaction);
        finishes.push(finish);
        if let Some(fatal) = fatal {
            return Err(fatal);
        }
        next = None;
        if finishes.len() < BATCH {
            match inbox.try_recv() {
                Ok(Work::Change(change)) => next = Some(change),
                other => *after = other.ok(),
            }
        }
    }
    transaction.commit().map_err(failed)
}

/// Errors after which the disk cannot be trusted with a commit.
fn is_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        DatabaseCorrupt, DiskFull, NotADatabase, OutOfMemory, ReadOnly, SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(DiskFull | SystemIoFailure | DatabaseCorrupt | NotADatabase | ReadOnly | OutOfMemory)
    )
}

/// SQLite counts every allocation under one lock for all connections; nobody asks for the count.
fn spare_statistics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: this option takes an int. After the first connection it is refused, and then all stays as it was.
        unsafe { rusqlite::ffi::sqlite3_config(rusqlite::ffi::SQLITE_CONFIG_MEMSTATUS, 0) };
    });
}

fn configure(connection: &Connection) -> Result<(), OpenError> {
    // Some file systems have no shared memory, and then SQLite silently stays with another journal.
    let journal: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(open_error)?;
    if journal != "wal" {
        return Err(OpenError::Cannot(
            "its file system has no write-ahead log; move the state folder to a local disk".into(),
        ));
    }
    let settings = || -> rusqlite::Result<()> {
        let synchronous = if fault::mutant("commit-sync") {
            "OFF"
        } else {
            "FULL"
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        // A killed agent leaves no temporary files behind.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "cache_size", CACHE)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))
    };
    settings().map_err(open_error)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

fn open_error(error: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => OpenError::Damaged(error.to_string()),
        _ => OpenError::Cannot(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc as std_mpsc};

    use rusqlite_migration::{M, Migrations};

    use super::*;

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
        let synchronous =
            db.call(|tx| tx.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0)));
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
        let holder = db.clone();
        let held_commit = tokio::spawn(async move {
            let change = move |db: &Transaction<'_>| {
                let _ = held.send(());
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
        let log = std::fs::metadata(folder.path().join("state.db-wal"));
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
        assert!(matches!(held.await.unwrap(), Err(DbError::Failed(_))));
        assert!(matches!(dangling, Err(DbError::Failed(_))));
        assert!(matches!(innocent, Err(DbError::Failed(_))));
        assert!(failed.await.unwrap().contains("FOREIGN KEY"));
        let refused = db.call(|db| insert(db, 3)).await.unwrap_err();
        assert!(refused.to_string().contains("FOREIGN KEY"), "{refused}");
        let refused = tokio::task::spawn_blocking(move || db.call_blocking(|db| insert(db, 4)));
        assert!(matches!(refused.await.unwrap(), Err(DbError::Failed(_))));
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
        assert!(!db.failed().await.is_empty());
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
}
