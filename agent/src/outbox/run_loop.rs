//! An outbox whose folder is there: hints and scans go in, settled files come out, until it goes.

mod inspections;
mod watch_check;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    time::Instant,
};

use dropwire_protocol::{RemotePath, name::escape};
use tokio::sync::mpsc;

use super::{
    Command, Problem, State,
    mounts::Mounts,
    place::{self, Place},
    scan::{Report, Walk},
    scan_cache::ScanCache,
    schedule::Schedule,
    stability::{Stability, Urgency},
    task::{Task, Watched},
    watch::{Hint, Went},
};
use crate::{
    blocking::blocking,
    config::AfterSend,
    error::{brief, shown},
    failpoints,
    fs::{
        border::{self, Mounted, Noted},
        confined, own_folder,
        unsent::{self, Why},
    },
    poison::Unpoisoned as _,
};

/// Files inspected, and hints taken, at a time.
const INSPECTIONS: usize = 256;
/// Entries in each of the lists that are kept for later.
const LISTED: usize = 4096;

/// The folder is there; everything here ends with it.
pub(super) struct RunLoop<'a> {
    task: &'a mut Task,
    place: Arc<Place>,
    watched: Watched,
    scan_cache: Arc<Mutex<ScanCache>>,
    scans: mpsc::Sender<Scanned>,
    reports: mpsc::Receiver<Scanned>,
    schedule: Schedule,
    /// Files were found but not kept: there were too many unsettled ones.
    overflowed: bool,
    /// Folders that may have become empty, and when to check.
    emptied: BTreeMap<RemotePath, Instant>,
    /// There were too many of them to keep.
    emptied_more: bool,
    mounts: Mounts,
    /// What was mounted inside when that was asked last.
    inside: Option<BTreeSet<Mounted>>,
    /// Something may have become of the outbox's folder itself.
    check: bool,
    /// The watch is to be tested.
    probe: bool,
}

pub(super) enum Scanned {
    Report(Report),
    EndOfAll,
    EndOfFolders,
}

/// Nobody takes events any more.
pub(super) struct Closed;

impl<'a> RunLoop<'a> {
    pub(super) fn new(task: &'a mut Task, place: Place, watched: Watched) -> Self {
        let (scans, reports) = mpsc::channel(2);
        let schedule = Schedule::new(Instant::now(), task.shared.config.rescan, place.id.0[0]);
        RunLoop {
            task,
            place: Arc::new(place),
            watched,
            scan_cache: Arc::default(),
            scans,
            reports,
            schedule,
            overflowed: false,
            emptied: BTreeMap::new(),
            emptied_more: false,
            mounts: Mounts::watch(),
            inside: None,
            check: false,
            probe: false,
        }
    }

    /// The watch goes on telling what becomes of the folder.
    pub(super) fn into_watched(self) -> Watched {
        self.watched
    }

    /// Until the folder is gone, or nobody listens.
    pub(super) async fn run(&mut self) -> Result<(), Closed> {
        self.look_for_mounts().await;
        loop {
            self.start_scans();
            self.test_watch().await;
            if std::mem::take(&mut self.check) {
                let place = Arc::clone(&self.place);
                if !blocking(move || place.still()).await.unwrap_or(false) {
                    return Ok(());
                }
            }
            let wake_at = tokio::time::Instant::from_std(self.wake_at());
            let behind = self.is_behind();
            let watcher = self.watched.0.clone();
            tokio::select! {
                Some(hint) = self.watched.1.recv() => {
                    self.hint(hint);
                    for _ in 1..INSPECTIONS {
                        let Ok(hint) = self.watched.1.try_recv() else { break };
                        self.hint(hint);
                    }
                }
                at = watch_check::probe_received(watcher.as_deref()) => self.probe_received(at),
                told = self.mounts.changed() => {
                    self.check = true;
                    if told {
                        self.scan_cache().clear(); // another disk may have come back changed
                        self.look_for_mounts().await;
                    }
                }
                Some(command) = self.task.commands.recv() => self.command(command),
                Some(scanned) = self.reports.recv(), if !behind => self.scanned(scanned).await,
                () = tokio::time::sleep_until(wake_at) => {}
            }
            self.inspect().await?;
            self.remove_emptied().await;
        }
    }

    /// No event reports files on a disk that was mounted inside the outbox, or files that an unmount uncovered, and
    /// they are not watched yet.
    async fn look_for_mounts(&mut self) {
        let place = Arc::clone(&self.place);
        let inspect = move || {
            let inside = border::mounted_below(&place.root);
            if !inside.is_empty() {
                // Else it is noted when the first file leaves by it.
                let noted = place
                    .open()
                    .and_then(|dir| border::note_all(&dir, &place.root, &inside));
                if let Err(error) = noted {
                    tracing::debug!(%error, "what is mounted in the outbox is not noted");
                }
            }
            inside
        };
        let inside = blocking(inspect).await.ok();
        if inside.is_some() && inside != self.inside && !failpoints::mutant("S1-mounted") {
            self.inside = inside;
            self.schedule.want();
        }
    }

    fn wake_at(&self) -> Instant {
        let (stability, overdue) = {
            let state = self.task.shared.state();
            (state.stability.next(), state.watch_state.overdue_at())
        };
        let emptied = self.emptied.values().min().copied();
        let times = [stability, overdue, emptied];
        let scan = self.schedule.wake_at();
        times.into_iter().flatten().fold(scan, Instant::min)
    }

    /// There are files to inspect before further ones are taken in.
    fn is_behind(&self) -> bool {
        let next = self.task.shared.state().stability.next();
        next.is_some_and(|next| next <= Instant::now())
    }

    fn hint(&mut self, hint: Hint) {
        let root = &self.place.root;
        match hint {
            Hint::Look(path, urgency) => {
                if let Ok(below) = confined::below(root, &path) {
                    self.notice(below, urgency);
                }
            }
            Hint::Gone(path, went) if path == *root => {
                if went == Went::Removed {
                    self.task.expected = None;
                }
                self.check = true;
            }
            Hint::Gone(path, _) if path.parent() == Some(root) && path.ends_with(own_folder::NAME) => {
                self.check = true;
            }
            Hint::Gone(path, _) => {
                if let Ok(below) = confined::below(root, &path) {
                    self.task.shared.state().problems.listed.remove(below.as_bytes());
                    self.hurry_beside(&below);
                }
            }
        }
    }

    /// When `x.part` goes, `x` need not wait for it any more.
    fn hurry_beside(&self, gone: &RemotePath) {
        let name = gone.file_name();
        let stem = unsent::suffixes(&[Why::Download, Why::InPlace])
            .find_map(|suffix| name.strip_suffix(suffix.as_bytes()));
        if let Some(Ok(stem)) = stem.map(|stem| gone.with_file_name(stem)) {
            let mut state = self.task.shared.state();
            if state.stability.why(&stem, Instant::now()).is_some() {
                state.stability.notice(stem, Urgency::Now, Instant::now());
            }
        }
    }

    fn notice(&mut self, path: RemotePath, urgency: Urgency) {
        let shared = Arc::clone(&self.task.shared);
        let suffix = shared.config.marker.as_deref();
        if let Some(stem) = suffix.and_then(|suffix| crate::fs::marker::stem(path.file_name(), suffix))
            && let Ok(file) = path.with_file_name(stem)
        {
            self.notice(file, urgency); // what looks like a marker may be a folder all the same
        }
        if shared.ignore.as_ref().is_some_and(|i| i.matched(&path).is_some()) {
            return;
        }
        let (path, urgency) = match shared.delivery_of(&path) {
            // What goes on inside a folder that is waited for changes nothing about when to inspect it.
            Some(folder) => (folder, Urgency::Calm),
            None => (path, urgency),
        };
        if !shared.state().stability.notice(path, urgency, Instant::now()) {
            self.overflowed = true;
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Recheck(path) => self.notice(path, Urgency::Now),
            Command::Scan => {} // it is seen to before the next wait
            Command::Emptied(folder) => {
                if self.emptied.len() < LISTED {
                    self.emptied
                        .insert(folder, Instant::now() + self.task.shared.config.quiet);
                } else {
                    self.emptied_more = true;
                }
            }
        }
    }

    async fn scanned(&mut self, scanned: Scanned) {
        match scanned {
            Scanned::Report(Report::Files(found)) => {
                let known = Arc::clone(&self.task.known);
                match blocking(move || known.unknown(found)).await {
                    Ok(Ok(unknown)) => {
                        for found in unknown {
                            self.notice(found.path, Urgency::Calm);
                        }
                    }
                    Ok(Err(reason)) => {
                        self.scan_cache().clear(); // what was found there is to be found again
                        self.schedule.failed(&reason);
                    }
                    Err(_) => {} // the runtime ends
                }
            }
            Scanned::Report(Report::Empty(folders)) => {
                let emptied = self.task.known.emptied(self.place.id, folders).await;
                if emptied.is_none() {
                    self.task.shared.missed.store(true, Ordering::Release);
                }
                for folder in emptied.unwrap_or_default() {
                    self.command(Command::Emptied(folder));
                }
            }
            Scanned::Report(Report::Problem(path, reason)) => self.problem(path, reason),
            Scanned::Report(Report::Later(path, reason)) => self.later(path, reason),
            Scanned::EndOfAll => {
                self.schedule.ended(Instant::now());
                self.warn_of_limit();
                let (scan, limited) = (self.schedule.number(), self.is_limited());
                let mut state = self.task.shared.state();
                let State {
                    problems, stability, ..
                } = &mut *state;
                // What is waited for is inspected ever more rarely: what one inspection found counts until the next one.
                problems.listed.retain(|path, problem| {
                    problem.scan >= scan.saturating_sub(1) || stability.waits_for(path)
                });
                // They are tried again at the next scan, and listed again; this one may have remembered them.
                let mut scan_cache = self.scan_cache.lock().unpoisoned();
                for path in state.problems.listed.keys() {
                    scan_cache.forget(folder_of(path));
                }
                drop(scan_cache);
                let polled = state.watch_state.polls();
                state.watch_state.limit(limited);
                let changed = polled != state.watch_state.polls();
                drop(state);
                if changed {
                    self.plan_scan();
                }
            }
            Scanned::EndOfFolders => self.schedule.folders_ended(),
        }
    }

    fn start_scans(&mut self) {
        let shared = Arc::clone(&self.task.shared);
        let now = Instant::now();
        self.warn_of_limit();
        if self.overflowed && shared.state().stability.len() < Stability::MOST / 2 {
            self.overflowed = false;
            self.scan_all();
        }
        if self.emptied_more && self.emptied.len() < LISTED / 2 {
            self.emptied_more = false;
            self.scan_all();
        }
        if shared.missed.swap(false, Ordering::AcqRel) {
            self.scan_all();
        }
        if let Some(reason) = self.schedule.plan_again(now) {
            tracing::warn!(outbox = %shown(&self.place.root), reason, "some of it is not sent now; it is looked at again");
        }
        let is_polled = shared.state().watch_state.polls();
        if self.schedule.begin(now, is_polled) {
            (self.check, self.probe) = (true, true);
            if let Some(watcher) = &self.watched.0 {
                watcher.begin_round();
            }
            shared.state().problems.further = 0;
            self.scan(vec![None], || Scanned::EndOfAll);
        }
        let folders = self.schedule.begin_folders();
        if !folders.is_empty() {
            self.scan(folders.into_iter().map(Some).collect(), || Scanned::EndOfFolders);
        }
    }

    /// Wants a scan that lists every folder.
    fn scan_all(&mut self) {
        self.schedule.want();
        self.scan_cache().clear();
    }

    /// Locked only for moments, never across a wait.
    fn scan_cache(&self) -> MutexGuard<'_, ScanCache> {
        self.scan_cache.lock().unpoisoned()
    }

    /// On a thread that may block; held up by the bounded channel while we are busy.
    fn scan(&self, folders: Vec<Option<RemotePath>>, end: fn() -> Scanned) {
        let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.task.shared));
        let (watcher, scans) = (self.watched.0.clone(), self.scans.clone());
        // What is listed unwatched is not remembered: it has to be listed again once it is watched.
        let scan_cache = match &watcher {
            Some(_) => Arc::clone(&self.scan_cache),
            None => Arc::default(),
        };
        let scan = self.schedule.number();
        // Where it is polled, listings are all there is to tell of writes; and a folder that came just now may have been
        // elsewhere, unwatched, as it was.
        let leave_out = shared.state().watch_state.is_proven() && folders.iter().all(Option::is_none);
        tokio::task::spawn_blocking(move || {
            if let (Ok(dir), Some(ignore)) = (place.open(), &shared.ignore) {
                let walk = Walk {
                    outbox: place.id,
                    root: &place.root,
                    ignore,
                    marker: shared.config.marker.as_deref(),
                    whole: shared.is_whole(),
                    // One that leaves would take its watches along to where it is archived.
                    watch_inside: shared.config.after_send == AfterSend::Keep,
                    watch: &|folder| {
                        if let Some(watcher) = &watcher {
                            watcher.folder(folder);
                        }
                    },
                    report: &|report| scans.blocking_send(Scanned::Report(report)).is_ok(),
                    scan_cache: &scan_cache,
                    leave_out: leave_out.then_some(scan),
                    paced: scan > 1,
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

    /// `path` is below the outbox. One that is not listed yet is said in the log.
    fn problem(&self, path: Vec<u8>, reason: String) {
        let said = reason.clone();
        let shown = brief(&escape(&path));
        self.list(
            path,
            reason,
            || tracing::warn!(path = %shown, reason = %said, "not sent"),
        );
    }

    /// Notes what cannot be sent now, for a reason that passes by itself and that many may have: one line tells of all.
    fn later(&mut self, path: Vec<u8>, reason: String) {
        self.schedule.failed(&reason);
        self.list(path, reason, || {});
    }

    /// Lists it as not sent; `new`: for the first time.
    fn list(&self, path: Vec<u8>, reason: String, new: impl FnOnce()) {
        self.scan_cache().forget(folder_of(&path)); // tried again at the next scan
        let problems = &mut self.task.shared.state().problems;
        let known = problems.listed.get(&path);
        let is_new = known.is_none_or(|known| known.reason != reason);
        if known.is_none() && problems.listed.len() >= LISTED {
            problems.further = problems.further.saturating_add(1);
            return;
        }
        if is_new {
            new();
        }
        let scan = self.schedule.number();
        problems.listed.insert(path, Problem { reason, scan });
    }

    async fn remove_emptied(&mut self) {
        let now = Instant::now();
        let due = self.emptied.extract_if(.., |_, at| *at <= now);
        let due: Vec<RemotePath> = due.take(INSPECTIONS).map(|(folder, _)| folder).collect();
        if due.is_empty() {
            return;
        }
        let (place, quiet) = (Arc::clone(&self.place), self.task.shared.config.quiet);
        let next = blocking(move || {
            let dir = place.open().ok()?;
            let noted = Noted::of(&dir).ok()?;
            let next = due
                .iter()
                .filter_map(|due| place::remove_empty(&dir, &noted, due, quiet));
            Some(next.collect::<Vec<_>>())
        });
        for next in next.await.ok().flatten().unwrap_or_default() {
            self.emptied.insert(next, Instant::now() + quiet);
        }
    }
}

/// In which `path` lies; empty: the outbox itself.
fn folder_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    &path[..end]
}
