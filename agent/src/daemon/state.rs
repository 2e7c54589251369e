//! The state folder: made private, locked against a second agent, its key and database opened.

use std::{fs, path::Path, sync::Arc};

use rusqlite_migration::{M, Migrations};

use crate::{
    config::paths::Paths,
    db::{Db, OpenError},
    error::{Exit, Fatal},
    identity::Identity,
    inbox, queue,
};

/// What an agent keeps; the lock is held as long as this lives.
pub struct State {
    /// This agent's key.
    pub identity: Arc<Identity>,
    /// Job list and ledger.
    pub db: Db,
    _lock: fs::File,
}

/// Every change to the tables, oldest first; only ever appended to.
const MIGRATIONS: &[&str] = &[queue::SCHEMA_1, inbox::SCHEMA_1, super::marks::SCHEMA_1];

/// Opens the state folder, making it (0700) where it is missing. A second agent on the same folder gets
/// [`Exit::CannotCreate`], a damaged job list [`Exit::Data`].
pub fn open(paths: &Paths) -> Result<State, Fatal> {
    let folder = &paths.state_dir;
    make_private(folder)?;
    let lock = lock(&folder.join("lock"))?;
    let identity = Arc::new(Identity::load_or_create(folder)?);
    let file = folder.join("jobs.db");
    let migrations = Migrations::new(MIGRATIONS.iter().map(|sql| M::up(sql)).collect());
    let db = Db::open(&file, &migrations).map_err(|e| open_failed(&file, &e))?;
    Ok(State {
        identity,
        db,
        _lock: lock,
    })
}

fn make_private(folder: &Path) -> Result<(), Fatal> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|e| {
        Fatal::io(
            format_args!("cannot make the state folder {}", folder.display()),
            &e,
        )
    })
}

fn lock(path: &Path) -> Result<fs::File, Fatal> {
    let doing = || format!("cannot lock the state folder ({})", path.display());
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| Fatal::io(doing(), &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Fatal::new(
            Exit::CannotCreate,
            format_args!("{}: another agent uses it", doing()),
        )
        .mend("stop that agent, or give this one a state folder of its own (state_dir)")),
        Err(fs::TryLockError::Error(e)) => Err(Fatal::io(doing(), &e)),
    }
}

fn open_failed(file: &Path, error: &OpenError) -> Fatal {
    let message = format!("{}: {error}", file.display());
    match error {
        OpenError::Damaged(_) => Fatal::new(Exit::Data, message).mend(
            "nothing was sent or changed; restore the file from a backup, or move it away: then whatever still \
             lies in the outboxes is offered again, and peers that kept their ledger take nothing twice",
        ),
        OpenError::Newer(_) => Fatal::new(Exit::Data, message).mend("install that newer dropwire again"),
        OpenError::Cannot(_) => Fatal::new(Exit::Disk, message).mend("free space or mend the disk or its permissions"),
    }
}

/// Wall clock: milliseconds since 1970.
pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
