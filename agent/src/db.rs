//! The job list's and the ledger's database: one SQLite file, one writer thread, many changes to a commit.
//!
//! Rooms bring their tables as migrations and their changes as closures. Changes that wait together share one
//! commit (WAL, `synchronous=FULL`), so a thousand small ones cost one sync.
//!
//! Crash promise: [`Db::call`] answers only after its commit is on disk. After a failed commit nothing is
//! known (it may be there after a restart), so the database refuses everything from then on and
//! [`Db::failed`] tells the daemon to end.

use std::{path::Path, sync::Arc, thread};

use rusqlite::{Connection, OpenFlags, Transaction};
use tokio::sync::{mpsc, oneshot, watch};

/// Most changes in one commit.
const BATCH: usize = 1024;

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

/// A handle to the writer thread; cheap to clone. The thread ends with the last handle.
#[derive(Clone)]
pub struct Db {
    changes: mpsc::Sender<Change>,
    failed: watch::Receiver<Option<String>>,
    path: Arc<Path>,
}

impl Db {
    /// Opens or makes the database, brings its tables up to date and checks it.
    pub fn open(path: &Path, migrations: &rusqlite_migration::Migrations<'_>) -> Result<Db, OpenError> {
        assert!(
            rusqlite::version_number() >= 3_051_003,
            "SQLite before 3.51.3 has the WAL-reset bug"
        );
        let mut connection = Connection::open(path).map_err(open_error)?;
        configure(&connection).map_err(open_error)?;
        migrations.to_latest(&mut connection).map_err(|e| match e {
            rusqlite_migration::Error::MigrationDefinition(_) => OpenError::Newer(e.to_string()),
            rusqlite_migration::Error::RusqliteError { err, .. } => open_error(err),
            other => OpenError::Cannot(other.to_string()),
        })?;
        let check: String = connection
            .query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
            .map_err(open_error)?;
        if check != "ok" {
            return Err(OpenError::Damaged(check));
        }
        let (changes, inbox) = mpsc::channel(BATCH);
        let (failed_tx, failed) = watch::channel(None);
        thread::Builder::new()
            .name("job-list".into())
            .spawn(move || write_loop(connection, inbox, &failed_tx))
            .map_err(|e| OpenError::Cannot(e.to_string()))?;
        Ok(Db {
            changes,
            failed,
            path: path.into(),
        })
    }

    /// Runs `change` in the next commit and answers once that is on disk.
    pub async fn call<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (change, answer) = package(change);
        self.changes.send(change).await.map_err(|_| self.why_failed())?;
        answer.await.map_err(|_| self.why_failed())?
    }

    /// The same from a thread that may block.
    pub fn call_blocking<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (change, answer) = package(change);
        self.changes
            .blocking_send(change)
            .map_err(|_| self.why_failed())?;
        answer.blocking_recv().map_err(|_| self.why_failed())?
    }

    /// A connection of its own for long listings; it blocks, so not on the runtime, and writes nothing.
    pub fn reader(&self) -> rusqlite::Result<Connection> {
        Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
    }

    /// Ends with the reason once a commit failed; never, while all is well.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "its thread ended".into(),
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
            .filter(|e| is_disk(e))
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
    if result.is_err() {
        transaction.execute_batch("ROLLBACK TO change")?;
    }
    transaction.execute_batch("RELEASE change")?;
    result
}

fn write_loop(
    mut connection: Connection,
    mut inbox: mpsc::Receiver<Change>,
    failed: &watch::Sender<Option<String>>,
) {
    while let Some(first) = inbox.blocking_recv() {
        let mut finishes: Vec<Finish> = Vec::new();
        let result = commit_batch(&mut connection, first, &mut inbox, &mut finishes);
        if let Err(error) = &result {
            failed.send_replace(Some(error.to_string()));
        }
        for finish in finishes {
            finish(result.clone());
        }
        if result.is_err() {
            return; // waiting callers see the closed channel and `failed`
        }
    }
}

fn commit_batch(
    connection: &mut Connection,
    first: Change,
    inbox: &mut mpsc::Receiver<Change>,
    finishes: &mut Vec<Finish>,
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
        next = if finishes.len() < BATCH {
            inbox.try_recv().ok()
        } else {
            None
        };
    }
    transaction.commit().map_err(failed)
}

/// Errors after which SQLite may have rolled the whole transaction back by itself.
fn is_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        DatabaseCorrupt, DiskFull, NotADatabase, OutOfMemory, ReadOnly, SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(DiskFull | SystemIoFailure | DatabaseCorrupt | NotADatabase | ReadOnly | OutOfMemory)
    )
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn open_error(error: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => OpenError::Damaged(error.to_string()),
        _ => OpenError::Cannot(error.to_string()),
    }
}
