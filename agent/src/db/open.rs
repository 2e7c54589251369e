//! Opens the database: every step may be repeated, for a start waits where one of them cannot be done now.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::Connection;
use rusqlite_migration::MigrationDefinitionError::DatabaseTooFarAhead;

use super::{
    error::OpenError,
    room::Room,
    tuning::{CACHE, STATEMENTS},
    verdict::{self, Verdict},
};
use crate::{
    failpoints,
    fs::own_files,
    io_error::{self, Meaning, Wait},
};

/// What of the log's index has its blocks before the first use. SQLite maps that file into memory, where a block that the
/// disk does not have is no error but a signal that ends the process. The rest would be needed for a log beyond 64 MiB.
const INDEX: u64 = 128 << 10;
/// What has to be free beside it before anything is opened: the first blocks of the log.
const FIRST: u64 = 64 << 10;
/// How long SQLite itself waits for a lock, before it is said that somebody has it.
const LOCKED: Duration = Duration::from_secs(1);

/// The database at `path`, checked and up to date, and the file that is its log's index.
pub(super) fn open(
    path: &Path,
    migrations: &rusqlite_migration::Migrations<'_>,
    room: &Room,
) -> Result<(Connection, Option<File>), OpenError> {
    if !room.gives(INDEX + FIRST) {
        return Err(OpenError::NotNow(Wait::Space, "its disk is full".into()));
    }
    let mut connection = Connection::open(path).map_err(|error| {
        let system = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        unopened(verdict::of_error(&error, system), error)
    })?;
    configure(&connection)?;
    let check = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get::<_, String>(0));
    let check = check.map_err(|e| failed(&connection, e))?;
    if check != "ok" {
        return Err(OpenError::Damaged(check.into()));
    }
    let index = failpoints::step("index-blocks", || hold_index(path))?;
    own_files::remember(path);
    migrations.to_latest(&mut connection).map_err(|e| match e {
        rusqlite_migration::Error::MigrationDefinition(DatabaseTooFarAhead) => OpenError::Newer(e),
        rusqlite_migration::Error::RusqliteError { err, .. } => failed(&connection, err),
        other => OpenError::Cannot(other.into()),
    })?;
    // What a crash left in the log goes into the file, so that a log damaged later takes little with it. Where the disk
    // is too full for that now, it is done later.
    let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    match emptied.map_err(|e| failed(&connection, e)) {
        Ok(()) | Err(OpenError::NotNow(..)) => Ok((connection, index)),
        Err(cannot) => Err(cannot),
    }
}

fn configure(connection: &Connection) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| failed(connection, error);
    connection.busy_timeout(LOCKED).map_err(failed)?;
    // Some file systems have no shared memory, and then SQLite silently stays with another journal.
    let journal: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    if journal != "wal" {
        return Err(OpenError::Cannot(
            "its file system has no write-ahead log; move the state folder to a local disk".into(),
        ));
    }
    let settings = || -> rusqlite::Result<()> {
        connection.pragma_update(None, "synchronous", synced())?;
        connection.pragma_update(None, "foreign_keys", true)?;
        // A killed agent leaves no temporary files behind.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "cache_size", CACHE)
    };
    settings().map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

/// How SQLite has commits synced.
pub(super) fn synced() -> &'static str {
    match failpoints::mutant("commit-sync") {
        true => "OFF",
        false => "FULL",
    }
}

/// Gives the log's index its blocks; see [`INDEX`]. None where the system has no call for it.
fn hold_index(path: &Path) -> Result<Option<File>, OpenError> {
    match allocated(&beside(path, "-shm")) {
        Ok(index) => Ok(index),
        Err(error) => match io_error::meaning(&error) {
            Meaning::NotNow(wait) => Err(OpenError::NotNow(wait, error.into())),
            _ => Ok(None), // this file system cannot do it
        },
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(target_os = "linux")]
fn allocated(index: &Path) -> io::Result<Option<File>> {
    let file = File::options().read(true).write(true).open(index)?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, INDEX) {
        // To close it would let go of SQLite's locks, so it is kept either way.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(Some(file)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocated(_: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

fn failed(connection: &Connection, error: rusqlite::Error) -> OpenError {
    unopened(verdict::verdict(connection, &error), error)
}

fn unopened(verdict: Verdict, error: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match (verdict, error.sqlite_error_code()) {
        (Verdict::NotNow(wait), _) => OpenError::NotNow(wait, error.into()),
        (_, Some(DatabaseCorrupt | NotADatabase)) => OpenError::Damaged(error.into()),
        _ => OpenError::Cannot(error.into()),
    }
}
