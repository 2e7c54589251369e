//! The one thread that writes: what waits together goes into one commit, and a commit that cannot be now is made later.
//!
//! Nobody is told of a change before its commit is on disk (or, for [`super::Db::call_loosely`], made), and nothing
//! that a rolled-back commit did is left. So a change may be run again as often as it takes.

use std::{mem, sync::Arc, thread};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::{
    error::{DbError, Failure},
    health::Health,
    open::synced,
    readers::Readers,
    tuning::{BATCH, LATER, PAUSE},
    verdict::{self, Verdict},
};
use crate::{failpoints, io_error::Wait};

/// What the thread is asked.
pub(super) enum Work {
    /// Part of the next commit.
    Change(Box<dyn Change>),
    /// Part of the next commit that is made for others, or because of [`Work::Flush`].
    Later(Box<dyn Change>, Durability),
    /// Commit what waits for others.
    Flush,
    /// End, and say so.
    Close(oneshot::Sender<()>),
}

/// Does a commit of this alone need a sync?
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Durability {
    None,
    Full,
}

/// A change and whoever waits for it.
pub(super) trait Change: Send {
    /// Does it, again where it was rolled back, and keeps the result.
    fn run(&mut self, transaction: &Transaction<'_>) -> Result<(), Stop>;

    /// Gives the result to whoever waits, after the commit.
    fn finish(self: Box<Self>, committed: Result<(), DbError>);
}

/// Why the whole commit is not made.
pub(super) enum Stop {
    /// It is rolled back, and may be made later.
    NotNow(Wait, rusqlite::Error),
    /// Nobody knows what is on the disk.
    Fatal(Failure),
}

impl Stop {
    fn of(connection: &Connection, error: rusqlite::Error) -> Self {
        match verdict::verdict(connection, &error) {
            Verdict::NotNow(wait) if !failpoints::mutant("commit-not-now") => Self::NotNow(wait, error),
            _ => Self::Fatal(error.into()),
        }
    }
}

/// A closure as a [`Change`].
struct Packaged<T, F, A> {
    change: F,
    after: A,
    result: Option<rusqlite::Result<T>>,
    reply: oneshot::Sender<Result<T, DbError>>,
}

/// `change`, what is done with its result once it is on disk, and where that comes.
pub(super) fn package<T, F, A>(
    change: F,
    after: A,
) -> (Box<dyn Change>, oneshot::Receiver<Result<T, DbError>>)
where
    T: Send + 'static,
    F: FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    A: FnOnce() + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let packaged = Packaged {
        change,
        after,
        result: None,
        reply,
    };
    (Box::new(packaged), answer)
}

impl<T, F, A> Change for Packaged<T, F, A>
where
    T: Send,
    F: FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send,
    A: FnOnce() + Send,
{
    fn run(&mut self, transaction: &Transaction<'_>) -> Result<(), Stop> {
        let stands_alone = |error: &_| verdict::verdict(transaction, error) == Verdict::Change;
        match in_savepoint(transaction, &mut self.change) {
            Err(error) if !stands_alone(&error) => Err(Stop::of(transaction, error)),
            // It ended the transaction of all.
            Err(error) if transaction.is_autocommit() => Err(Stop::Fatal(error.into())),
            result => {
                self.result = Some(result);
                Ok(())
            }
        }
    }

    fn finish(self: Box<Self>, committed: Result<(), DbError>) {
        let result = match (committed, self.result) {
            (Ok(()), Some(result)) => result.map_err(|e| DbError::Change(Arc::new(e))),
            (Ok(()), None) => Err(DbError::Failed(Failure::Ended)), // cannot be: it ran
            (Err(error), _) => Err(error),
        };
        if result.is_ok() {
            (self.after)();
        }
        let _ = self.reply.send(result); // nobody waits any more when the caller was cancelled
    }
}

/// One change fails alone: what it did is rolled back, the rest of the commit stands.
fn in_savepoint<T>(
    transaction: &Transaction<'_>,
    mut change: impl FnMut(&Transaction<'_>) -> rusqlite::Result<T>,
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

/// The thread's own.
pub(super) struct Writer {
    /// Declared before `readers`, and so closed before them: SQLite's locks hang on what they keep.
    pub connection: Connection,
    pub work: mpsc::Receiver<Work>,
    pub health: Health,
    pub readers: Readers,
    /// Changes that wait for others, and whether one of them needs a sync.
    pub later: Vec<Box<dyn Change>>,
    pub later_sync: Durability,
}

impl Writer {
    /// Until it is closed, or a commit failed for good.
    pub(super) fn run(mut self) {
        let closed = self.serve();
        let Self {
            connection,
            health,
            readers,
            ..
        } = self;
        drop(connection);
        drop(readers);
        health.room.keep_what_is_free();
        if let Some(closed) = closed {
            let _ = closed.send(()); // whoever asked may have stopped waiting
        }
    }

    /// Gives whoever asked to close it.
    fn serve(&mut self) -> Option<oneshot::Sender<()>> {
        let mut next = self.work.blocking_recv();
        loop {
            let (is_due, sync, end) = match next {
                Some(Work::Change(change)) => {
                    self.later.push(change); // behind those that came before it
                    (true, Durability::Full, None)
                }
                Some(Work::Later(change, sync)) => {
                    self.later.push(change);
                    self.later_sync = self.later_sync.max(sync);
                    (self.later.len() >= LATER, self.later_sync, None)
                }
                Some(Work::Flush) => (true, self.later_sync, None),
                Some(Work::Close(closed)) => (true, Durability::Full, Some(Some(closed))),
                None => (true, Durability::Full, Some(None)),
            };
            let mut after = None;
            if is_due {
                let mut waiting = mem::take(&mut self.later);
                self.later_sync = Durability::None;
                match self.settle(&mut waiting, &mut after, sync) {
                    Ok(()) => {}
                    // It is to end, and what waits is not on the disk: as after a crash.
                    Err(Stop::NotNow(..)) => return None,
                    Err(Stop::Fatal(failure)) => {
                        self.health.fails(failure.clone());
                        for change in waiting {
                            change.finish(Err(DbError::Failed(failure.clone())));
                        }
                        if !failpoints::mutant("commit-failed") {
                            return None; // whoever still waits sees the closed channel and `failed`
                        }
                    }
                }
            }
            if let Some(closed) = end {
                return closed;
            }
            next = after.or_else(|| self.work.blocking_recv());
        }
    }

    /// Commits what waits, however long it takes to be possible. [`Stop::NotNow`] only when it has to end.
    fn settle(
        &mut self,
        waiting: &mut Vec<Box<dyn Change>>,
        after: &mut Option<Work>,
        sync: Durability,
    ) -> Result<(), Stop> {
        if waiting.is_empty() {
            return Ok(());
        }
        if sync == Durability::None {
            match self.commit_loosely(waiting) {
                Err(Stop::NotNow(..)) => {} // as all others, then
                done => return done,
            }
        }
        while !waiting.is_empty() {
            let (wait, error) = match commit(&self.connection, Some(&mut self.work), waiting, after) {
                Err(Stop::NotNow(wait, error)) => (wait, error),
                Err(fatal) => return Err(fatal),
                Ok(()) => break,
            };
            if wait == Wait::Space && self.health.room.give_up() {
                continue;
            }
            self.health.waits.begin(wait, &error);
            if wait == Wait::Space && self.one_by_one(waiting, after)? {
                continue;
            }
            if self.health.is_closing() || after.is_some() || self.work.is_closed() {
                return Err(Stop::NotNow(wait, error));
            }
            thread::sleep(PAUSE);
        }
        self.health.waits.end();
        Ok(())
    }

    /// Commits what waits, and nothing that comes behind it, without a sync: the next one that has one covers it.
    fn commit_loosely(&self, waiting: &mut Vec<Box<dyn Change>>) -> Result<(), Stop> {
        let set = |synchronous| self.connection.pragma_update(None, "synchronous", synchronous);
        set("NORMAL").map_err(|error| Stop::Fatal(error.into()))?;
        let done = commit(&self.connection, None, waiting, &mut None);
        if !failpoints::mutant("commit-full-again") {
            set(synced()).map_err(|error| Stop::Fatal(error.into()))?;
        }
        done
    }

    /// Commits what waits and what comes behind it, each for itself: among many that need room some may fit, and make
    /// room. Leaves those that have to wait. True: some were committed.
    fn one_by_one(
        &mut self,
        waiting: &mut Vec<Box<dyn Change>>,
        after: &mut Option<Work>,
    ) -> Result<bool, Stop> {
        while let Some(change) = next_change(&mut self.work, waiting.len(), after) {
            waiting.push(change);
        }
        let all = waiting.len();
        let mut fatal = None;
        for change in mem::take(waiting) {
            let mut one = vec![change];
            if fatal.is_none()
                && let Err(stop @ Stop::Fatal(_)) = commit(&self.connection, None, &mut one, &mut None)
            {
                fatal = Some(stop);
            }
            waiting.append(&mut one);
        }
        fatal.map_or(Ok(waiting.len() < all), Err)
    }
}

/// What comes behind those that are `taken`. What is no change goes into `after`, and nothing is taken behind that.
fn next_change(
    work: &mut mpsc::Receiver<Work>,
    taken: usize,
    after: &mut Option<Work>,
) -> Option<Box<dyn Change>> {
    if taken >= BATCH || after.is_some() {
        return None;
    }
    loop {
        match work.try_recv().ok()? {
            Work::Change(change) | Work::Later(change, _) => return Some(change),
            Work::Flush => {} // nothing waits for it any more
            close @ Work::Close(_) => {
                *after = Some(close);
                return None;
            }
        }
    }
}

/// Commits what waits, and with `more` what comes behind it, and tells each; after an error all of it waits still.
fn commit(
    connection: &Connection,
    more: Option<&mut mpsc::Receiver<Work>>,
    waiting: &mut Vec<Box<dyn Change>>,
    after: &mut Option<Work>,
) -> Result<(), Stop> {
    let stop = |error| Stop::of(connection, error);
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate).map_err(stop)?;
    for change in waiting.iter_mut() {
        change.run(&transaction)?;
    }
    if let Some(more) = more {
        while let Some(mut change) = next_change(more, waiting.len(), after) {
            let ran = change.run(&transaction);
            waiting.push(change);
            ran?;
        }
    }
    transaction.commit().map_err(stop)?;
    for change in mem::take(waiting) {
        change.finish(Ok(()));
    }
    Ok(())
}
