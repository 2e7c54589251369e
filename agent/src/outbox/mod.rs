//! Outboxes: what lies there and is ready becomes an item.
//!
//! ```text
//!   watch ──hints──▶ ┐
//!                    ├─▶ stability ──due──▶ inspect ──ready──▶ unknown? ──▶ sync (S1) ──▶ Ready
//!   scan ──truth───▶ ┘      ▲              │
//!                           └──not yet─────┘
//! ```
//!
//! A lost hint costs delay, never a file: scans find everything that lies there.

mod ignore;
mod inspect;
mod mounts;
mod place;
mod run_loop;
mod scan;
mod scan_cache;
mod schedule;
mod stability;
mod supervisor;
mod task;
mod watch;
mod watch_state;
mod whole;

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use dropwire_protocol::RemotePath;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::{ignore::Ignore, stability::Stability, watch_state::WatchState};
use crate::{
    config::{self, Folder},
    fs::{
        confined,
        version::{Found, OutboxId},
    },
    owner::{self, Claimed, Me},
    poison::Unpoisoned as _,
};

/// Answers [`Known::claim_home`].
pub type Claiming<'a> = Pin<Box<dyn Future<Output = Option<Result<(), String>>> + Send + 'a>>;

/// Tells which found files are already in the job list.
pub trait Known: Send + Sync {
    /// The outbox with this folder id was found, and is at home at its path from now on: whatever is known of it is
    /// looked for there. The error is why nothing is looked for in it: the folder is a copy, or was found under another
    /// `folder` setting. One that `is_new` took the place of any other for good. None: it cannot be told now.
    fn claim_home(&self, outbox: OutboxId, is_new: bool) -> Claiming<'_>;

    /// Those of `found` (at most 1,000) that have no job for this version yet; an error says why that cannot be told now.
    /// Blocks.
    fn unknown(&self, found: Vec<Found>) -> Result<Vec<Found>, String>;

    /// Those of `folders` (at most 1,000) out of which, or out of folders in them, something was delivered and left.
    /// None: it cannot be told now.
    fn emptied(
        &self,
        outbox: OutboxId,
        folders: Vec<RemotePath>,
    ) -> Pin<Box<dyn Future<Output = Option<Vec<RemotePath>>> + Send + '_>>;
}

/// Versions that rest and are on disk (S1): ready to be queued. The same one may come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The outbox, as in the config.
    pub root: PathBuf,
    /// At most 256.
    pub found: Vec<Found>,
}

/// What `status` shows of an outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxStatus {
    /// As in the config.
    pub path: PathBuf,
    /// `native`, `poll`, or `none` while it is held.
    pub watch: &'static str,
    /// As in the config.
    pub folder: Folder,
    /// Why events cannot be relied on.
    pub watch_reason: Option<String>,
    /// From a change to its event, as measured last.
    pub latency: Option<Duration>,
    /// Files that are not ready yet.
    pub settling: usize,
    /// Why nothing is sent from it.
    pub held: Option<String>,
    /// What its file system is not trusted with, a sentence each.
    pub cautions: Vec<&'static str>,
    /// What is not sent, by its path below the outbox, and why; the first [`OutboxStatus::NOT_SENT`] of them.
    pub not_sent: Vec<(Vec<u8>, String)>,
    /// How many those are in all.
    pub not_sent_count: usize,
}

impl OutboxStatus {
    /// So many of what is not sent are named.
    pub const NOT_SENT: usize = 20;
}

/// A handle to a running outbox; cheap to clone. It ends by the token given to [`start`].
#[derive(Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// Starts to watch and scan the outbox `config` names, on the current runtime, for the agent `me`. `expected` is the
/// folder id it had before.
pub fn start(
    config: config::Outbox,
    me: Me,
    expected: Option<OutboxId>,
    known: Arc<dyn Known>,
    ready: mpsc::Sender<Ready>,
    cancel: CancellationToken,
) -> Outbox {
    let (commands, commands_in) = mpsc::channel(1024);
    let ignore = Ignore::new(&config.ignore);
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            id: None,
            place: None,
            watch_state: WatchState::new(config.watch, config.rescan),
            held: ignore.as_ref().err().cloned(),
            cautions: Vec::new(),
            problems: Problems::default(),
            stability: Stability::new(config.quiet, config.max_wait),
        }),
        missed: Arc::default(),
        recheck: Notify::new(),
        ignore: ignore.ok(),
        config,
    });
    tokio::spawn(supervisor::run(task::Task {
        shared: Arc::clone(&shared),
        known,
        ready,
        cancel,
        commands: commands_in,
        expected,
        me,
    }));
    Outbox { shared, commands }
}

impl Outbox {
    /// As it is now.
    pub fn status(&self) -> OutboxStatus {
        let state = self.shared.state();
        let there = state.id.is_some();
        let listed = state.problems.listed.iter();
        let mut not_sent: Vec<_> = listed.map(|(path, p)| (path.clone(), p.reason.clone())).collect();
        not_sent.extend(state.stability.unstable().map(|(path, why)| {
            let reason = format!("it has not settled for longer than `max_wait`: {why}");
            (path.as_bytes().to_vec(), reason)
        }));
        let not_sent_count = not_sent.len().saturating_add(state.problems.further);
        not_sent.sort_unstable();
        not_sent.truncate(OutboxStatus::NOT_SENT);
        OutboxStatus {
            path: self.shared.config.path.clone(),
            watch: if there { state.watch_state.name() } else { "none" },
            folder: self.shared.config.folder,
            watch_reason: state.watch_state.reason().filter(|_| there),
            latency: state.watch_state.latency().filter(|_| there),
            settling: state.stability.len(),
            held: state.held.clone(),
            cautions: state.cautions.clone(),
            not_sent,
            not_sent_count,
        }
    }

    /// Where it is, as in the config.
    pub fn path(&self) -> &Path {
        &self.shared.config.path
    }

    /// Its folder id, while it is there.
    pub fn id(&self) -> Option<OutboxId> {
        self.shared.state().id
    }

    /// Where it is without symlinks, and on which device, while it is there.
    pub fn place(&self) -> Option<(PathBuf, u64)> {
        self.shared.state().place.clone()
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
        let suffix = self.shared.config.marker.as_deref();
        // Whoever asks may not be allowed to see what a link in the outbox leads to.
        let inspect = |path: &RemotePath| {
            let folder = confined::parent_through(&confined::root(root)?, path, owner::unclaimed)?;
            folder.symlink_metadata(confined::os_str(path.file_name())?)
        };
        let meta = inspect(&below);
        if let Some(claimed) = meta.as_ref().err().and_then(Claimed::of) {
            return Some(format!("not sent: {claimed}"));
        }
        let meta = meta.ok();
        let beside = suffix.map(|suffix| [below.file_name(), suffix.as_bytes()].concat());
        let beside = beside.and_then(|name| below.with_file_name(&name).ok());
        if let Some(file) = suffix.and_then(|suffix| crate::fs::marker::stem(below.file_name(), suffix))
            && self.shared.delivery_of(&below).is_none()
            && !meta.as_ref().is_some_and(cap_std::fs::Metadata::is_dir)
        {
            if meta.is_some_and(|meta| meta.len() > 0) {
                return Some(format!("not sent: {}", crate::fs::marker::HAS_BYTES));
            }
            let file = dropwire_protocol::name::escape(file);
            return Some(format!("never sent: it is the marker of {file}"));
        }
        let state = self.shared.state();
        if let Some(held) = &state.held {
            return Some(format!("the outbox is held: {held}"));
        }
        if let Some(problem) = state.problems.listed.get(below.as_bytes()) {
            return Some(format!("not sent: {}", problem.reason));
        }
        let unit = self.shared.delivery_of(&below).unwrap_or(below);
        if let Some(problem) = state.problems.listed.get(unit.as_bytes()) {
            return Some(format!("not sent: {}", problem.reason));
        }
        if let Some((why, waited)) = state.stability.why(&unit, Instant::now()) {
            return Some(format!("waits to settle, for {} s now: {why}", waited.as_secs()));
        }
        drop(state);
        // Not seen yet, or one of too many.
        let meta = meta?;
        if !meta.is_file() {
            return (!meta.is_dir()).then(|| "not sent: it is not a regular file".into());
        }
        let there = inspect(&beside?).is_ok_and(|m| m.is_file() && m.len() == 0);
        (!there).then(|| {
            format!(
                "not sent: {}",
                crate::fs::marker::missing(unit.file_name(), suffix.unwrap_or_default())
            )
        })
    }

    /// The folder that is one delivery and holds `path` (absolute); None: `path` goes by itself, or lies elsewhere.
    pub fn folder_of(&self, path: &Path) -> Option<PathBuf> {
        let root = &self.shared.config.path;
        let folder = self.shared.delivery_of(&confined::below(root, path).ok()?)?;
        Some(confined::join(root, &folder))
    }

    /// Inspects `path` again soon.
    pub fn recheck(&self, path: RemotePath) {
        self.command(Command::Recheck(path));
    }

    /// Files in `folder` were disposed of: it goes too, if it is empty for `quiet`.
    pub fn emptied(&self, folder: RemotePath) {
        self.command(Command::Emptied(folder));
    }

    /// Looks for the folder now, where it is held.
    pub fn find_folder(&self) {
        self.shared.recheck.notify_one();
    }

    /// Scans everything again soon: what was found is not queued.
    pub fn find_again(&self) {
        self.shared.missed.store(true, Ordering::Release); // seen before the task waits again
        let _ = self.commands.try_send(Command::Scan); // wakes it; one that is busy needs no waking
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
    /// Something was missed.
    Scan,
}

/// Between handle and task.
struct Shared {
    config: config::Outbox,
    /// None: the config's patterns are wrong, and the outbox is held.
    ignore: Option<Ignore>,
    /// Hints or commands were lost: scan.
    missed: Arc<AtomicBool>,
    /// While it is held: look for the folder now.
    recheck: Notify,
    state: Mutex<State>,
}

struct State {
    id: Option<OutboxId>,
    /// Path without symlinks, and device.
    place: Option<(PathBuf, u64)>,
    watch_state: WatchState,
    held: Option<String>,
    /// Of the file system that it is on.
    cautions: Vec<&'static str>,
    problems: Problems,
    stability: Stability,
}

/// What cannot be sent.
#[derive(Default)]
struct Problems {
    /// By the path below the outbox; bounded.
    listed: BTreeMap<Vec<u8>, Problem>,
    /// How many more the last scan met.
    further: usize,
}

struct Problem {
    reason: String,
    /// The scan that met it last.
    scan: u64,
}

impl Shared {
    /// Is each top-level folder one delivery?
    fn is_whole(&self) -> bool {
        self.config.folder == Folder::Whole
    }

    /// The top-level folder by which `path` goes; None: by itself.
    fn delivery_of(&self, path: &RemotePath) -> Option<RemotePath> {
        if path.parent().is_none() || !self.is_whole() {
            return None;
        }
        RemotePath::parse(path.components().next()?).ok()
    }

    /// Locked only for moments, never across a wait.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }
}

#[cfg(test)]
mod tests;
