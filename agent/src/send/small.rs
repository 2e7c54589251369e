//! Small files are read whole, by one of a few workers, and only then fed to the link.
//!
//! What is asked for before a worker comes to it is one group, read without a further change of threads: one file
//! where nothing else waits, more the busier the machine is. A read that hangs holds up its own group only.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dropwire_protocol::Digest;
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, error::TrySendError},
};

use super::{Subject, pass::Opened};
use crate::link::Piece;

/// Most groups that are read at the same time.
const MOST_WORKERS: usize = 16;
/// Most files of a group.
const GROUP: usize = 16;

static WORK: Mutex<Work> = Mutex::new(Work {
    waiting: VecDeque::new(),
    workers: 0,
    starting: false,
});

/// Bounded by the links, each of which reads only a few files at once.
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

/// Reads from `offset` and feeds `out`, as [`crate::link::Source::read`] says. Must be called on the runtime.
pub(super) fn read(subject: Arc<Subject>, offset: u64, digest: Digest, out: mpsc::Sender<Piece>) {
    let mut work = work();
    work.waiting.push_back(Job {
        subject,
        offset,
        digest,
        out,
    });
    work.see_to(&Handle::current());
}

impl Work {
    /// Sends a worker to what waits, unless one is on its way.
    fn see_to(&mut self, runtime: &Handle) {
        if self.waiting.is_empty() || self.starting || self.workers >= MOST_WORKERS {
            return;
        }
        (self.starting, self.workers) = (true, self.workers + 1);
        let own = runtime.clone();
        runtime.spawn_blocking(move || {
            let _counted = Counted;
            work().starting = false;
            while let Some(group) = next_group(&own) {
                let mut opened = Opened::default();
                group.into_iter().for_each(|job| job.run(&own, &mut opened));
            }
        });
    }
}

/// A worker, until it ends.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        work().workers -= 1;
    }
}

fn next_group(runtime: &Handle) -> Option<VecDeque<Job>> {
    let mut work = work();
    let rest = work.waiting.len().min(GROUP);
    let rest = work.waiting.split_off(rest);
    let group = mem::replace(&mut work.waiting, rest);
    work.see_to(runtime);
    (!group.is_empty()).then_some(group)
}

impl Job {
    fn run(self, runtime: &Handle, opened: &mut Opened) {
        let Job {
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

fn work() -> MutexGuard<'static, Work> {
    WORK.lock().unwrap_or_else(PoisonError::into_inner)
}
