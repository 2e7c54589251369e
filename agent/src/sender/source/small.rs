//! Small files are read whole, by one of a few workers, and only then fed to the link.
//!
//! What is asked for before a worker comes to it is one group, read without a further change of threads: one file
//! where nothing else waits, more the busier the machine is. A read that hangs holds up its own group only.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard},
};

use dropwire_protocol::Digest;
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, error::TrySendError},
};

use super::{pass::Opened, subject::Subject};
use crate::{link::Piece, poison::Unpoisoned as _};

/// Most groups that are read at the same time.
const MOST_WORKERS: usize = 16;
/// Most files of a group.
const GROUP: usize = 16;

/// The workers that all of an agent's links share.
#[derive(Clone, Default)]
pub(crate) struct SmallReads {
    work: Arc<Mutex<Work>>,
}

/// Bounded by the links, each of which reads only a few files at once.
#[derive(Default)]
struct Work {
    waiting: VecDeque<Job>,
    /// Those that run, and the one that is being started.
    workers: usize,
    /// One is on its way to what waits.
    starting: bool,
}

struct Job {
    subject: Arc<Subject>,
    offset: u64,
    digest: Digest,
    out: mpsc::Sender<Piece>,
}

impl SmallReads {
    /// Reads from `offset` and feeds `out`, as [`crate::link::Source::read`] says. Must be called on the runtime.
    pub(super) fn read(&self, subject: Arc<Subject>, offset: u64, digest: Digest, out: mpsc::Sender<Piece>) {
        let mut work = self.lock();
        work.waiting.push_back(Job {
            subject,
            offset,
            digest,
            out,
        });
        self.see_to(&mut work, &Handle::current());
    }

    /// Sends a worker to what waits, unless one is on its way.
    fn see_to(&self, work: &mut Work, runtime: &Handle) {
        if work.waiting.is_empty() || work.starting || work.workers >= MOST_WORKERS {
            return;
        }
        (work.starting, work.workers) = (true, work.workers + 1);
        let (reads, own) = (self.clone(), runtime.clone());
        runtime.spawn_blocking(move || {
            let _counted = Counted(reads.clone());
            reads.lock().starting = false;
            while let Some(group) = reads.next_group(&own) {
                let mut opened = Opened::default();
                group.into_iter().for_each(|job| job.run(&own, &mut opened));
            }
        });
    }

    fn next_group(&self, runtime: &Handle) -> Option<VecDeque<Job>> {
        let mut work = self.lock();
        let rest = work.waiting.len().min(GROUP);
        let rest = work.waiting.split_off(rest);
        let group = mem::replace(&mut work.waiting, rest);
        self.see_to(&mut work, runtime);
        (!group.is_empty()).then_some(group)
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unpoisoned()
    }
}

/// A worker, until it ends.
struct Counted(SmallReads);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.lock().workers -= 1;
    }
}

impl Job {
    fn run(self, runtime: &Handle, opened: &mut Opened) {
        let Self {
            subject,
            offset,
            digest,
            out,
        } = self;
        if out.is_closed() {
            return;
        }
        let mut late = Vec::new();
        let mut feed = |piece| {
            // A link has room for all of a small file; whoever has less does not hold up the group.
            if !late.is_empty() {
                late.push(piece);
            } else if let Err(TrySendError::Full(piece)) = out.try_send(piece) {
                late.push(piece);
            }
            true
        };
        subject.read(opened, offset, digest, &mut feed, &|| false);
        if !late.is_empty() {
            runtime.spawn(async move {
                for piece in late {
                    if out.send(piece).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}
