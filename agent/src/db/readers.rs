//! Connections that only read: they wait for no commit, and no commit waits for them.

use std::{
    fs::File,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use rusqlite::{Connection, OpenFlags, Result};

use super::{
    tuning::{CACHE, STATEMENTS},
    verdict::{Verdict, verdict},
};
use crate::{io_error::Wait, poison::Unpoisoned as _};

/// Most connections that are kept for the next read.
const KEPT: usize = 2;

/// Opens connections, and keeps a few with their statements prepared; cheap to clone.
#[derive(Clone)]
pub(super) struct Readers {
    path: Arc<Path>,
    /// None once closed. Declared before `index`, and so closed before it.
    idle: Arc<Mutex<Option<Vec<Connection>>>>,
    /// Closing it lets go of the locks that this process has on it, so it is open as long as a connection is.
    _index: Arc<Option<File>>,
}

/// A read that failed, and what that means.
pub(super) struct FailedRead {
    pub error: rusqlite::Error,
    pub verdict: Verdict,
}

impl Readers {
    /// Of the database at `path` with the `index` of its log.
    pub(super) fn new(path: &Path, index: Option<File>) -> Self {
        Self {
            path: path.into(),
            idle: Arc::new(Mutex::new(Some(Vec::new()))),
            _index: Arc::new(index),
        }
    }

    /// One more.
    fn open(&self) -> Result<Connection> {
        let connection = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "cache_size", CACHE)?;
        Ok(connection)
    }

    /// Reads by one that is free: one state of the database, which is asked for once and not by each statement. Blocks.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T>,
    ) -> std::result::Result<T, FailedRead> {
        let kept = self.idle().as_mut().and_then(Vec::pop);
        let connection = kept.map_or_else(|| self.open(), Ok).map_err(|error| FailedRead {
            error,
            // The writer has it open: it is there, and descriptors or memory are short.
            verdict: Verdict::NotNow(Wait::Shortage),
        })?;
        let result = in_one_state(&connection, read).map_err(|error| FailedRead {
            verdict: verdict(&connection, &error),
            error,
        });
        let is_done = connection.is_autocommit(); // else it could not even be rolled back
        if let Some(idle) = self.idle().as_mut().filter(|idle| is_done && idle.len() < KEPT) {
            idle.push(connection);
        }
        result
    }

    /// Keeps none any more.
    pub(super) fn close(&self) {
        let kept = self.idle().take();
        drop(kept);
    }

    fn idle(&self) -> MutexGuard<'_, Option<Vec<Connection>>> {
        self.idle.lock().unpoisoned()
    }
}

/// Reads within one transaction, which an error rolls back.
fn in_one_state<T>(connection: &Connection, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    let transaction = connection.unchecked_transaction()?;
    let result = read(&transaction)?;
    transaction.commit()?;
    Ok(result)
}
