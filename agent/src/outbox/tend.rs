//! An outbox whose folder is there: hints and scans go in, settled files come out, until it goes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::File,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use dropwire_protocol::RemotePath;
use tokio::sync::mpsc;

use super::{
    Command, OutboxEvent, Problem,
    ignore::DOWNLOADS,
    look::{self, Seen},
    place::{self, Place},
    scan::{Report, Walk},
    settle::{Settle, Sight, Urgency, Verdict},
    task::{Task, Watched, blocking},
    watch::{Hint, Went},
    whole,
};
use crate::{
    config::{AfterSend, Watch},
    confined,
    error::shown,
    version::Found,
};

/// Time between looks whether the folder is still there.
const PRESENT: Duration = Duration::from_secs(5);
/// Time between scans where native events do not tell everything.
const POLL: Duration = Duration::from_secs(5);
/// Files looked at, and hints taken, in one go.
const LOOKS: usize = 256;
/// Entries in each of the lists that are kept for later.
const LISTED: usize = 4096;

/// The folder is there; everything here ends with it.
pub(super) struct Tending<'a> {
    task: &'a mut Task,
    place: Arc<Place>,
    watched: Watched,
    scans: mpsc::Sender<Scanned>,
    reports: mpsc::Receiver<Scanned>,
    /// A scan of everything is under way.
    scanning: bool,
    /// A scan of new folders is under way.
    walking: bool,
    scan_wanted: bool,
    /// Files were found but not kept: there were too many unsettled ones.
    overflowed: bool,
    /// New folders, to be scanned.
    folders: BTreeSet<RemotePath>,
    /// Folders that may have become empty, and when to look.
    emptied: BTreeMap<RemotePath, Instant>,
    check_at: Instant,
    scan_at: Instant,
    warned_of_limit: bool,
    /// Numbers the scans of everything.
    scans_begun: u64,
}

pub(super) enum Scanned {
    Report(Report),
    EndOfAll,
    EndOfFolders,
}

/// Nobody takes events any more.
pub(super) struct Deaf;

impl<'a> Tending<'a> {
    pub(super) fn new(task: &'a mut Task, place: Place, watched: Watched) -> Self {
        let (scans, reports) = mpsc::channel(2);
        Tending {
            task,
            place: Arc::new(place),
            watched,
            scans,
            reports,
            scanning: false,
            walking: false,
            scan_wanted: true,
            overflowed: false,
            folders: BTreeSet::new(),
            emptied: BTreeMap::new(),
            check_at: Instant::now() + PRESENT,
            scan_at: Instant::now(),
            warned_of_limit: false,
            scans_begun: 0,
        }
    }

    /// The watch goes on telling what becomes of the folder.
    pub(super) fn into_watched(self) -> Watched {
        self.watched
    }

    /// Until the folder is gone, or nobody listens.
    pub(super) async fn tend(&mut self) -> Result<(), Deaf> {
        loop {
            self.start_scans();
            let wake_at = tokio::time::Instant::from_std(self.wake_at());
            let behind = self.is_behind();
            tokio::select! {
                Some(hint) = self.watched.1.recv() => {
                    let mut check = self.hint(hint);
                    for _ in 1..LOOKS {
                        let Ok(hint) = self.watched.1.try_recv() else { break };
                        check |= self.hint(hint);
                    }
                    if check {
                        self.check_at = Instant::now();
                    }
                }
                Some(command) = self.task.commands.recv() => self.command(command),
                Some(scanned) = self.reports.recv(), if !behind => self.scanned(scanned).await,
                () = tokio::time::sleep_until(wake_at) => {}
            }
            self.look().await?;
            self.remove_emptied().await;
            if self.check_at <= Instant::now() {
                let place = Arc::clone(&self.place);
                if !blocking(move || place.still()).await.unwrap_or(false) {
                    return Ok(());
                }
                self.check_at = Instant::now() + PRESENT;
            }
        }
    }

    fn wake_at(&self) -> Instant {
        let settle = self.task.shared.state().settle.next();
        let emptied = self.emptied.values().min().copied();
        let times = [settle, emptied, Some(self.check_at), Some(self.scan_at)];
        times.into_iter().flatten().min().unwrap_or(self.check_at)
    }

    /// There are files to look at before further ones are taken in.
    fn is_behind(&self) -> bool {
        let next = self.task.shared.state().settle.next();
        next.is_some_and(|next| next <= Instant::now())
    }

    /// True: something happened to the outbox's folder itself.
    fn hint(&mut self, hint: Hint) -> bool {
        let root = &self.place.root;
        match hint {
            Hint::Look(path, urgency) => {
                if let Ok(below) = confined::below(root, &path) {
                    self.notice(below, urgency);
                }
                false
            }
            Hint::Gone(path, went) => {
                if path == *root {
                    if went == Went::Removed {
                        self.task.expected = None;
                    }
                    return true;
                }
                if let Ok(below) = confined::below(root, &path) {
                    self.hurry_beside(&below);
                }
                false
            }
        }
    }

    /// When `x.part` goes, `x` need not wait for it any more.
    fn hurry_beside(&self, gone: &RemotePath) {
        let name = gone.file_name();
        let stem = DOWNLOADS
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix.as_bytes()));
        if let Some(Ok(stem)) = stem.map(|stem| gone.with_file_name(stem)) {
            let mut state = self.task.shared.state();
            if state.settle.why(&stem, Instant::now()).is_some() {
                state.settle.notice(stem, Urgency::Now, Instant::now());
            }
        }
    }

    fn notice(&mut self, path: RemotePath, urgency: Urgency) {
        let shared = &self.task.shared;
        if shared.ignore.as_ref().is_some_and(|i| i.matched(&path).is_some()) {
            return;
        }
        let (path, urgency) = match shared.delivery_of(&path) {
            // What goes on inside a folder that is waited for changes nothing about when to look at it.
            Some(folder) => (folder, Urgency::Calm),
            None => (path, urgency),
        };
        if !shared.state().settle.notice(path, urgency, Instant::now()) {
            self.overflowed = true;
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Recheck(path) => self.notice(path, Urgency::Now),
            Command::Emptied(folder) => {
                if self.emptied.len() < LISTED {
                    self.emptied
                        .insert(folder, Instant::now() + self.task.shared.config.quiet);
                }
            }
        }
    }

    async fn scanned(&mut self, scanned: Scanned) {
        match scanned {
            Scanned::Report(Report::Files(found)) => {
                for found in self.task.known.unknown(found).await {
                    self.notice(found.path, Urgency::Calm);
                }
            }
            Scanned::Report(Report::Empty(folders)) => {
                for folder in self.task.known.emptied(self.place.id, folders).await {
                    self.command(Command::Emptied(folder));
                }
            }
            Scanned::Report(Report::Problem(path, reason)) => self.problem(path, reason),
            Scanned::EndOfAll => {
                self.scanning = false;
                let scan = self.scans_begun;
                self.task
                    .shared
                    .state()
                    .problems
                    .retain(|_, problem| problem.scan >= scan.saturating_sub(1));
            }
            Scanned::EndOfFolders => self.walking = false,
        }
    }

    fn start_scans(&mut self) {
        let shared = Arc::clone(&self.task.shared);
        let now = Instant::now();
        self.warn_of_limit();
        if self.overflowed && shared.state().settle.len() < Settle::MOST / 2 {
            self.overflowed = false;
            self.scan_wanted = true;
        }
        self.scan_wanted |= shared.missed.swap(false, Ordering::AcqRel);
        if self.scan_at <= now {
            self.scan_wanted = true;
            let polls = shared.state().watch == "poll";
            let rescan = shared.config.rescan;
            self.scan_at = now + if polls { POLL.min(rescan) } else { rescan };
        }
        if self.scan_wanted && !self.scanning {
            self.scan_wanted = false;
            self.scanning = true;
            self.scans_begun += 1;
            self.scan(vec![None], || Scanned::EndOfAll);
        }
        if !self.folders.is_empty() && !self.walking {
            self.walking = true;
            let folders = std::mem::take(&mut self.folders);
            self.scan(folders.into_iter().map(Some).collect(), || Scanned::EndOfFolders);
        }
    }

    /// On a thread that may block; held up by the bounded channel while we are busy.
    fn scan(&self, folders: Vec<Option<RemotePath>>, end: fn() -> Scanned) {
        let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.task.shared));
        let (watcher, scans) = (self.watched.0.clone(), self.scans.clone());
        tokio::task::spawn_blocking(move || {
            if let (Ok(dir), Some(ignore)) = (place.open(), &shared.ignore) {
                let walk = Walk {
                    outbox: place.id,
                    root: &place.root,
                    ignore,
                    whole: shared.is_whole(),
                    // One that leaves would take its watches along to where it is archived.
                    watch_inside: shared.config.after_send == AfterSend::Keep,
                    waiting: RefCell::default(),
                    watch: &|folder| {
                        if let Some(watcher) = &watcher {
                            watcher.folder(folder);
                        }
                    },
                    report: &|report| scans.blocking_send(Scanned::Report(report)).is_ok(),
                };
                for folder in &folders {
                    if !walk.run(&dir, folder.as_ref()) {
                        return;
                    }
                }
            }
            let _ = scans.blocking_send(end()); // fails only if nobody waits for it
        });
    }

    fn warn_of_limit(&mut self) {
        let limited = self.watched.0.as_ref().is_some_and(|watcher| watcher.limited());
        if !limited || self.warned_of_limit {
            return;
        }
        self.warned_of_limit = true;
        let outbox = shown(&self.place.root);
        tracing::warn!(
            %outbox,
            "the system's limit of watched folders is reached (raise fs.inotify.max_user_watches)"
        );
        if self.task.shared.config.watch == Watch::Auto {
            self.task.shared.state().watch = "poll";
            self.scan_at = self.scan_at.min(Instant::now() + POLL);
        }
    }

    /// Looks at what is due; what is ready and not yet known is made durable (S1) and told.
    async fn look(&mut self) -> Result<(), Deaf> {
        let paths = self.task.shared.state().settle.due(Instant::now(), LOOKS);
        if paths.is_empty() {
            return Ok(());
        }
        let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.task.shared));
        let looked = blocking(move || {
            let (dir, quiet) = (place.open().ok()?, shared.config.quiet);
            let look = |path| match (look::look(&dir, &path, quiet), &shared.ignore) {
                (Seen::Folder, Some(ignore)) if shared.is_whole() => {
                    (whole::look(&dir, &path, quiet, ignore), path)
                }
                (seen, _) => (seen, path),
            };
            Some(paths.into_iter().map(look).collect::<Vec<_>>())
        });
        let Some(seen) = looked.await.flatten() else {
            self.check_at = Instant::now(); // the folder is not what it was
            self.task.shared.state().settle.clear();
            self.scan_wanted = true;
            return Ok(());
        };
        let ready: Vec<(Found, Option<File>)> = seen
            .into_iter()
            .filter_map(|(seen, path)| self.seen(path, seen))
            .collect();
        if ready.is_empty() {
            return Ok(());
        }
        let unknown = self
            .task
            .known
            .unknown(ready.iter().map(|(found, _)| found.clone()).collect());
        let unknown: HashSet<Found> = unknown.await.into_iter().collect();
        let (folders, files): (Vec<_>, Vec<_>) = ready
            .into_iter()
            .filter(|(found, _)| unknown.contains(found))
            .partition(|(found, _)| found.version.folder);
        let folders = self.sync_folders(folders.into_iter().map(|(found, _)| found).collect());
        let mut ready = folders.await;
        let (found, files) = files
            .into_iter()
            .filter_map(|(found, file)| Some((found, file?)))
            .unzip();
        ready.extend(self.sync(found, files).await);
        let found = ready;
        if found.is_empty() {
            return Ok(());
        }
        let root = self.task.shared.config.path.clone();
        let told = self.task.events.send(OutboxEvent::Settled { root, found }).await;
        told.map_err(|_| Deaf)
    }

    fn seen(&mut self, path: RemotePath, seen: Seen) -> Option<(Found, Option<File>)> {
        let now = Instant::now();
        let shared = Arc::clone(&self.task.shared);
        let looked = |sight| {
            let mut state = shared.state();
            if !state.problems.is_empty() {
                state.problems.remove(&path.to_string());
            }
            state.settle.looked(&path, sight, now)
        };
        match seen {
            Seen::Nothing => {
                looked(Sight::Nothing);
                None
            }
            Seen::Folder => {
                looked(Sight::Nothing);
                if self.folders.len() < LISTED {
                    self.folders.insert(path);
                } else {
                    self.scan_wanted = true;
                }
                None
            }
            Seen::Unreadable(reason) => {
                shared.state().settle.looked(&path, Sight::Nothing, now);
                self.problem(path.to_string(), reason);
                None
            }
            Seen::Held { why, reason } => {
                shared.state().settle.looked(&path, Sight::Held { why }, now);
                self.problem(path.to_string(), reason);
                None
            }
            Seen::Whole { sight, left_out } => {
                let verdict = looked(sight);
                if verdict == Verdict::Ready {
                    for (below, what) in left_out {
                        self.problem(
                            format!("{path}/{below}"),
                            format!("left out of its folder: it is {what}"),
                        );
                    }
                    if shared.config.after_send == AfterSend::Keep {
                        self.folders.insert(path.clone()); // to be watched
                    }
                }
                self.decided(path, verdict, sight, None, now)
            }
            Seen::File { sight, file } => {
                let verdict = looked(sight);
                self.decided(path, verdict, sight, file, now)
            }
        }
    }

    fn decided(
        &self,
        path: RemotePath,
        verdict: Verdict,
        sight: Sight,
        file: Option<File>,
        now: Instant,
    ) -> Option<(Found, Option<File>)> {
        match (verdict, sight) {
            (Verdict::Ready, Sight::Still { version, .. }) => {
                let outbox = self.place.id;
                Some((
                    Found {
                        outbox,
                        path,
                        version,
                    },
                    file,
                ))
            }
            (Verdict::Restless, _) => {
                let state = self.task.shared.state();
                let why = state.settle.why(&path, now).map_or("", |(why, _)| why);
                tracing::warn!(%path, why, "has not settled for longer than max_wait");
                None
            }
            _ => None,
        }
    }

    /// The same for whole folders.
    async fn sync_folders(&self, found: Vec<Found>) -> Vec<Found> {
        if found.is_empty() {
            return found;
        }
        let place = Arc::clone(&self.place);
        let synced = blocking(move || {
            let synced = |found: &Found| whole::sync(&place.open()?, &found.path);
            found.into_iter().map(|found| (synced(&found), found)).collect()
        });
        let synced: Vec<(std::io::Result<()>, Found)> = synced.await.unwrap_or_default();
        self.durable(synced)
    }

    fn durable(&self, synced: Vec<(std::io::Result<()>, Found)>) -> Vec<Found> {
        let mut done = Vec::with_capacity(synced.len());
        for (synced, found) in synced {
            match synced {
                Ok(()) => done.push(found),
                Err(e) => self.problem(found.path.to_string(), format!("it cannot be made durable: {e}")),
            }
        }
        done
    }

    /// S1's sync; those that fail are reported, and tried again at the next scan.
    async fn sync(&mut self, found: Vec<Found>, files: Vec<File>) -> Vec<Found> {
        let synced = blocking(move || look::sync(&files)).await.unwrap_or_default();
        self.durable(synced.into_iter().zip(found).collect())
    }

    fn problem(&self, path: String, reason: String) {
        let mut state = self.task.shared.state();
        if state
            .problems
            .get(&path)
            .is_none_or(|known| known.reason != reason)
        {
            tracing::warn!(%path, %reason, "not sent");
        }
        if state.problems.len() < LISTED {
            let scan = self.scans_begun;
            state.problems.insert(path, Problem { reason, scan });
        }
    }

    async fn remove_emptied(&mut self) {
        let now = Instant::now();
        let due = self.emptied.iter().find(|(_, at)| **at <= now);
        let Some(folder) = due.map(|(folder, _)| folder.clone()) else {
            return;
        };
        self.emptied.remove(&folder);
        let (place, quiet) = (Arc::clone(&self.place), self.task.shared.config.quiet);
        let next = blocking(move || place::remove_empty(&place.open().ok()?, &folder, quiet));
        if let Some(next) = next.await.flatten() {
            self.emptied.insert(next, Instant::now() + quiet);
        }
    }
}
