//! Outboxes: what lies there and is ready becomes a drop; what was delivered leaves.
//!
//! ```text
//!   watch ──hints──▶ ┐
//!                    ├─▶ settle ──due──▶ look ──ready──▶ unknown? ──▶ sync (S1) ──▶ OutboxEvent::Settled
//!   scan ──truth───▶ ┘      ▲              │
//!                           └──not yet─────┘                    later: dispose (S5)
//! ```
//!
//! A lost hint costs delay, never a file: scans find everything that lies there.

pub mod dispose;
mod ignore;
mod look;
mod place;
mod scan;
mod settle;
pub mod spool;
mod task;
mod tend;
mod watch;
mod whole;

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use dropwire_protocol::RemotePath;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{ignore::Ignore, settle::Settle};
use crate::{
    config::{self, Folder},
    confined,
    version::{Found, OutboxId},
};

/// Tells which found files are already in the job list.
pub trait Known: Send + Sync {
    /// Those of `found` (at most 1,000) that have no job for this version yet.
    fn unknown(&self, found: Vec<Found>) -> Pin<Box<dyn Future<Output = Vec<Found>> + Send + '_>>;

    /// Those of `folders` (at most 1,000) out of which, or out of folders in them, something was delivered and left.
    fn emptied(
        &self,
        outbox: OutboxId,
        folders: Vec<RemotePath>,
    ) -> Pin<Box<dyn Future<Output = Vec<RemotePath>> + Send + '_>>;
}

/// What an outbox tells the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutboxEvent {
    /// The folder was found, with this mark: to be kept, and passed to [`start`] next time. Whatever is known of the
    /// outbox with this mark lies here now.
    Marked {
        /// As in the config.
        root: PathBuf,
        /// Its mark; on disk.
        id: OutboxId,
    },
    /// These versions rest and are on disk (S1): ready to be queued. The same one may come again.
    Settled {
        /// As in the config.
        root: PathBuf,
        /// At most 256.
        found: Vec<Found>,
    },
}

/// What `status` shows of an outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxStatus {
    /// As in the config.
    pub path: PathBuf,
    /// `native`, `poll`, or `none` while it is held.
    pub watch: &'static str,
    /// Files that are not ready yet.
    pub settling: usize,
    /// Why nothing is sent from it.
    pub held: Option<String>,
}

/// A handle to a running outbox; cheap to clone. It ends by the token given to [`start`].
#[derive(Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// Starts to watch and scan the outbox `config` names, on the current runtime. `expected` is the mark it had before.
pub fn start(
    config: config::Outbox,
    expected: Option<OutboxId>,
    known: Arc<dyn Known>,
    events: mpsc::Sender<OutboxEvent>,
    cancel: CancellationToken,
) -> Outbox {
    let (commands, inbox) = mpsc::channel(1024);
    let ignore = Ignore::new(&config.ignore);
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            id: None,
            watch: "none",
            held: ignore.as_ref().err().cloned(),
            problems: BTreeMap::new(),
            settle: Settle::new(config.quiet, config.max_wait),
        }),
        missed: Arc::default(),
        ignore: ignore.ok(),
        config,
    });
    tokio::spawn(task::run(task::Task {
        shared: Arc::clone(&shared),
        known,
        events,
        cancel,
        commands: inbox,
        expected,
    }));
    Outbox { shared, commands }
}

impl Outbox {
    /// As it is now.
    pub fn status(&self) -> OutboxStatus {
        let state = self.shared.state();
        OutboxStatus {
            path: self.shared.config.path.clone(),
            watch: state.watch,
            settling: state.settle.len(),
            held: state.held.clone(),
        }
    }

    /// Its mark, while it is there.
    pub fn id(&self) -> Option<OutboxId> {
        self.shared.state().id
    }

    /// What the file at `path` (absolute) waits for, as a sentence's end ("ignored: …"); None if it lies in no part of
    /// this outbox, or waits for nothing here. Asks the disk once: not on the runtime.
    pub fn why(&self, path: &Path) -> Option<String> {
        let root = &self.shared.config.path;
        if !path.starts_with(root) || path == root {
            return None;
        }
        let below = match confined::below(root, path) {
            Ok(below) => below,
            Err(reason) => return Some(format!("not sent: {reason}")),
        };
        if let Some(pattern) = self.shared.ignore.as_ref().and_then(|i| i.matched(&below)) {
            let pattern = dropwire_protocol::name::escape(pattern.as_bytes());
            return Some(format!("ignored: matches {pattern}"));
        }
        let state = self.shared.state();
        if let Some(held) = &state.held {
            return Some(format!("the outbox is held: {held}"));
        }
        if let Some(problem) = state.problems.get(&below.to_string()) {
            return Some(format!("not sent: {}", problem.reason));
        }
        let unit = self.shared.delivery_of(&below).unwrap_or(below);
        if let Some(problem) = state.problems.get(&unit.to_string()) {
            return Some(format!("not sent: {}", problem.reason));
        }
        if let Some((why, waited)) = state.settle.why(&unit, Instant::now()) {
            return Some(format!("waits to settle, for {} s now: {why}", waited.as_secs()));
        }
        drop(state);
        let meta = std::fs::symlink_metadata(path).ok()?;
        (!meta.is_file() && !meta.is_dir()).then(|| "not sent: it is not a regular file".into())
    }

    /// The folder that is one delivery and holds `path` (absolute); None: `path` goes by itself, or lies elsewhere.
    pub fn folder_of(&self, path: &Path) -> Option<PathBuf> {
        let root = &self.shared.config.path;
        let folder = self.shared.delivery_of(&confined::below(root, path).ok()?)?;
        Some(confined::join(root, &folder))
    }

    /// Looks at `path` again soon.
    pub fn recheck(&self, path: RemotePath) {
        self.command(Command::Recheck(path));
    }

    /// The file at `path` was disposed of: its folder goes too, if that is empty for `quiet`.
    pub fn disposed(&self, path: &RemotePath) {
        if let Some(folder) = path.parent() {
            self.command(Command::Emptied(folder));
        }
    }

    fn command(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            self.shared.missed.store(true, Ordering::Release); // the task is busy; it scans then
        }
    }
}

/// What the handle asks of the task.
#[derive(Debug)]
enum Command {
    Recheck(RemotePath),
    Emptied(RemotePath),
}

/// Between handle and task.
struct Shared {
    config: config::Outbox,
    /// None: the config's patterns are wrong, and the outbox is held.
    ignore: Option<Ignore>,
    /// Hints or commands were lost: scan.
    missed: Arc<AtomicBool>,
    state: Mutex<State>,
}

struct State {
    id: Option<OutboxId>,
    watch: &'static str,
    held: Option<String>,
    /// Paths (escaped) that cannot be sent, and why; bounded.
    problems: BTreeMap<String, Problem>,
    settle: Settle,
}

struct Problem {
    reason: String,
    /// The scan that met it last.
    scan: u64,
}

impl Shared {
    /// Is a top-level folder one delivery here?
    fn is_whole(&self) -> bool {
        self.config.folder == Folder::Whole
    }

    /// The top-level folder by which `path` goes; None: by itself.
    fn delivery_of(&self, path: &RemotePath) -> Option<RemotePath> {
        let within = self.is_whole() && path.parent().is_some();
        path.components()
            .next()
            .filter(|_| within)
            .and_then(|top| RemotePath::parse(top).ok())
    }

    /// Locked only for moments, never across a wait.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
