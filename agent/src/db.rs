//! The job list's and the ledger's database: one SQLite file, one writer thread, many changes to a commit.
//!
//! Rooms bring their tables as migrations and their changes as closures. Changes that wait together share one
//! commit (WAL, `synchronous=FULL`), so a thousand small ones cost one sync.
//!
//! Crash promise: [`Db::call`] answers only after its commit is on disk. A commit that surely did not happen (a full
//! disk, another program's lock: see `verdict`) is made later, and nobody is told before. After any other failed commit
//! nothing is known (it may be there after a restart), so the database refuses everything from then on and
//! [`Db::failed`] tells the daemon to end.

mod error;
mod health;
mod open;
mod readers;
mod room;
mod trouble;
mod tuning;
mod verdict;
mod writer;

use std::{
    path::Path,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rusqlite::{Connection, Transaction};
use tokio::sync::{mpsc, oneshot};

pub use self::{
    error::{Cause, DbError, Failure, OpenError},
    health::{Waits, told},
    trouble::Trouble,
    tuning::PAUSE,
};
use self::{
    health::Health,
    readers::Readers,
    tuning::{BATCH, SOON},
    verdict::Verdict,
    writer::{Durability, Work, Writer},
};
use crate::{failpoints, io_error::Wait};

/// A handle to the writer thread; cheap to clone. The thread ends with the last handle.
#[derive(Clone)]
pub struct Db {
    work: mpsc::Sender<Work>,
    health: Health,
    readers: Readers,
    /// Somebody has [`Work::Flush`] sent soon.
    will_flush: Arc<AtomicBool>,
}

impl Db {
    /// [`Db::try_open`], where nobody asks what it waits for.
    pub fn open(path: &Path, migrations: &rusqlite_migration::Migrations<'_>) -> Result<Self, OpenError> {
        Self::try_open(path, migrations, &Waits::new(path))
    }

    /// Opens or makes the database, checks it (a damaged one is not written to) and brings its tables up to date.
    ///
    /// [`OpenError::NotNow`] where that cannot be done now, on a full disk or beside a program that has it locked: then it
    /// may be tried again, with the same `waits`.
    pub fn try_open(
        path: &Path,
        migrations: &rusqlite_migration::Migrations<'_>,
        waits: &Waits,
    ) -> Result<Self, OpenError> {
        assert!(
            rusqlite::version_number() >= 3_051_003,
            "SQLite before 3.51.3 has the WAL-reset bug"
        );
        spare_statistics();
        let health = Health::new(waits.clone());
        let (connection, index) = loop {
            match open::open(path, migrations, &health.room) {
                Err(OpenError::NotNow(Wait::Space, _)) if health.room.give_up() => {}
                opened => break opened?,
            }
        };
        let (sender, work) = mpsc::channel(BATCH);
        let readers = Readers::new(path, index);
        let writer = Writer {
            connection,
            work,
            health: health.clone(),
            readers: readers.clone(),
            later: Vec::new(),
            later_sync: Durability::None,
        };
        thread::Builder::new()
            .name("job-list".into())
            .spawn(move || writer.run())
            .map_err(|e| OpenError::Cannot(e.into()))?;
        Ok(Self {
            work: sender,
            health,
            readers,
            will_flush: Arc::default(),
        })
    }

    /// Runs `change` in the next commit and answers once that is on disk. If it gives an error, what it did is
    /// undone and the rest of the commit stands. A caller that stops waiting does not stop the change.
    ///
    /// A commit that cannot be made now is rolled back and made later: then `change` runs again.
    pub async fn call<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        self.call_then(change, || ()).await
    }

    /// As [`Db::call`]; once the change is on disk, `after` is called on the writer's own thread, before whoever called
    /// is answered: to wake others at once. It must not block.
    pub async fn call_then<T, F>(
        &self,
        change: F,
        after: impl FnOnce() + Send + 'static,
    ) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (change, answer) = writer::package(change, after);
        self.work
            .send(Work::Change(change))
            .await
            .map_err(|_| self.why_failed())?;
        answer.await.map_err(|_| self.why_failed())?
    }

    /// As [`Db::call`], for a change that nobody waits for: it goes with the next commit that is made for others, and
    /// if none is within 20 ms it has one of its own.
    pub async fn call_soon<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        self.later(change, Durability::Full).await
    }

    /// As [`Db::call_soon`], for a change that is made again where a power cut undoes it: a commit for such changes
    /// alone is not synced, so after Ok it survives a crash of the agent, and a power cut only once any other commit
    /// was answered.
    pub async fn call_loosely<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        self.later(change, Durability::None).await
    }

    async fn later<T, F>(&self, change: F, sync: Durability) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (change, answer) = writer::package(change, || ());
        self.work
            .send(Work::Later(change, sync))
            .await
            .map_err(|_| self.why_failed())?;
        if !self.will_flush.swap(true, Ordering::AcqRel) {
            let (work, will_flush) = (self.work.clone(), Arc::clone(&self.will_flush));
            tokio::spawn(async move {
                tokio::time::sleep(SOON).await;
                will_flush.store(false, Ordering::Release);
                let _ = work.send(Work::Flush).await; // else it has ended
            });
        }
        answer.await.map_err(|_| self.why_failed())?
    }

    /// Does what [`Db::call`] does, from a thread that may block.
    pub fn call_blocking<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (change, answer) = writer::package(change, || ());
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
        let db = self.clone();
        tokio::task::spawn_blocking(move || db.read_blocking(read))
            .await
            .map_err(|e| DbError::Failed(e.into()))?
    }

    /// Reads as [`Db::read`] does, from a thread that may block.
    pub fn read_blocking<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DbError> {
        self.readers.read(read).map_err(|failed| {
            let error = Arc::new(failed.error);
            if failed.verdict == Verdict::Fatal {
                self.health.fails(Failure::Sqlite(error.clone()));
            }
            match failed.verdict {
                Verdict::NotNow(wait) if !failpoints::mutant("read-not-now") => DbError::NotNow(wait, error),
                _ => DbError::Change(error),
            }
        })
    }

    /// What keeps the database from being written as it should, with the way out. Empty while all is well.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.health.troubles()
    }

    /// Why nothing that only adds to the state folder is to be begun: its disk is so full that what is kept for the work
    /// that is under way had to be touched.
    pub fn is_short_of_room(&self) -> Option<Trouble> {
        self.health.room.trouble()
    }

    /// Bytes of the disk that it is on; None where the system does not say.
    pub fn disk_size(&self) -> Option<u64> {
        self.health.room.disk_size()
    }

    /// As if the reserve had to be touched, until it is told otherwise.
    #[cfg(test)]
    pub fn pretend_short_of_room(&self, short: bool) {
        self.health.room.pretend(short);
    }

    /// Waits until there is room for new work: at once, except where the disk is full.
    pub async fn room_for_more(&self) {
        while self.health.room.trouble().is_some() {
            let room = Arc::clone(&self.health.room);
            let has_room = tokio::task::spawn_blocking(move || room.has_room_for_more());
            if has_room.await.unwrap_or(true) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What cannot be committed now is given up from now on, for the agent is about to end. All else goes on.
    pub fn wait_no_longer(&self) {
        self.health.close();
    }

    /// Ends with the reason once a commit failed; never, while all is well.
    pub async fn failed(&self) -> Failure {
        let mut failed = self.health.failed();
        let failure = failed.wait_for(Option::is_some).await;
        let failure = failure.ok().and_then(|failure| failure.clone());
        failure.unwrap_or(Failure::Ended)
    }

    /// Waits for all changes handed in before, and closes the file with nothing left in its log. Every later change
    /// is refused.
    pub async fn close(&self) {
        self.wait_no_longer();
        self.readers.close(); // the last to close clears the log, and that is to be the writer
        let (closed, done) = oneshot::channel();
        if self.work.send(Work::Close(closed)).await.is_ok() {
            // Without an answer the thread had failed before.
            let _ = done.await;
        }
    }

    fn why_failed(&self) -> DbError {
        let failure = self.health.failed().borrow().clone();
        DbError::Failed(failure.unwrap_or(Failure::Ended))
    }
}

/// SQLite counts every allocation under one lock for all connections; nobody asks for the count.
fn spare_statistics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: this option takes an int. After the first connection it is refused, and then all stays as it was.
        unsafe { rusqlite::ffi::sqlite3_config(rusqlite::ffi::SQLITE_CONFIG_MEMSTATUS, 0) };
    });
}

#[cfg(test)]
mod tests;
