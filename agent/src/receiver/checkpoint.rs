//! Makes a large partial's prefixes durable beside the writing: data synced first, then the ledger's row.

use std::{
    fs::File,
    io,
    sync::{
        Arc, Mutex,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{ledger, ledger::Checkpoint, reply::Answer, transfer_locks::Key};
use crate::{clock::now_ms, db::Db, failpoints, fs::durable, poison::Unpoisoned as _};

/// Most checkpoints that wait for the one before them. With that one and one that waits for a place, so many times the
/// bytes between two may be written and not yet durable.
const WAITING: usize = 2;

/// A thread that takes one checkpoint at a time.
pub(super) struct Checkpointer {
    queue: SyncSender<Checkpoint>,
    thread: JoinHandle<()>,
    progress: Arc<Mutex<Progress>>,
}

#[derive(Default)]
struct Progress {
    durable: u64,
    failure: Option<Failure>,
}

/// Why a checkpoint could not be taken; the partial's bytes are not to be trusted any more.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// What the transfer ends with.
    pub answer: Answer,
    /// The sync failed: the partial is given up. Otherwise it was the ledger.
    pub disk: bool,
}

impl Checkpointer {
    /// For the partial `file` (a descriptor of the one that is written) of `key`, durable up to `durable`.
    pub(super) fn start(file: File, key: Key, db: Db, durable: u64) -> io::Result<Self> {
        let (queue, waiting) = sync_channel::<Checkpoint>(WAITING);
        let progress = Arc::new(Mutex::new(Progress {
            durable,
            failure: None,
        }));
        let thread = thread::Builder::new().name("inbox-sync".into()).spawn({
            let progress = progress.clone();
            move || {
                for checkpoint in waiting {
                    let offset = checkpoint.offset;
                    let taken = take(&file, key, &db, checkpoint);
                    let mut progress = progress.lock().unpoisoned();
                    match taken {
                        Ok(()) => progress.durable = offset,
                        Err(failure) => {
                            progress.failure = Some(failure);
                            return; // a failed sync is never tried again
                        }
                    }
                }
            }
        })?;
        Ok(Self {
            queue,
            thread,
            progress,
        })
    }

    /// Asks for a checkpoint, waiting while too many wait. To be dropped before [`Checkpointer::finish`].
    pub(super) fn request(&self) -> impl FnOnce(Checkpoint) + Send + 'static {
        let queue = self.queue.clone();
        move |checkpoint| {
            let _ = queue.send(checkpoint); // an ended thread left its failure
        }
    }

    /// Up to where the partial is durable, or why that ended.
    pub(super) fn durable(&self) -> Result<u64, Failure> {
        let progress = self.progress.lock().unpoisoned();
        match &progress.failure {
            None => Ok(progress.durable),
            Some(failure) => Err(failure.clone()),
        }
    }

    /// Waits until everything that was asked for is done.
    pub(super) fn finish(self) -> Result<u64, Failure> {
        drop(self.queue);
        let _ = self.thread.join();
        let progress = self.progress.lock().unpoisoned();
        match &progress.failure {
            None => Ok(progress.durable),
            Some(failure) => Err(failure.clone()),
        }
    }
}

/// R3: crashed in between, the ledger names an earlier prefix; never one that is not durable.
fn take(file: &File, key: Key, db: &Db, checkpoint: Checkpoint) -> Result<(), Failure> {
    failpoints::step("R3-data", || durable::sync_data(file)).map_err(|e| Failure {
        answer: Answer::io("syncing what arrived", &e),
        disk: true,
    })?;
    let now = now_ms();
    db.call_blocking(move |tx| ledger::add_checkpoint(tx, key, &checkpoint, now))
        .map_err(|e| Failure {
            answer: e.into(),
            disk: false,
        })
}
