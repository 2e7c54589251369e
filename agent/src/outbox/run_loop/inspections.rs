//! Inspects what is due, and acts on what it finds: what is ready is made durable (S1) and told.

use std::{collections::HashSet, fs::File, sync::Arc, time::Instant};

use dropwire_protocol::RemotePath;

use super::{Closed, INSPECTIONS, LISTED, RunLoop};
use crate::{
    blocking::blocking,
    config::AfterSend,
    descriptors,
    fs::{
        confined::Parents,
        file_system::OTHERS,
        version::{Found, OutboxId},
    },
    outbox::{
        Known, Ready, Shared,
        inspect::{self, Inspection, Rules},
        place::Place,
        stability::{Observation, Verdict},
        whole,
    },
    owner,
};

impl RunLoop<'_> {
    /// Inspects what is due; what is ready and not yet known is made durable (S1) and told.
    pub(super) async fn inspect(&mut self) -> Result<(), Closed> {
        // Each that is ready is held open, twice with its lease, until it is durable.
        let most = descriptors::affordable(INSPECTIONS, 2);
        let paths = self.task.shared.state().stability.due(Instant::now(), most);
        if paths.is_empty() {
            return Ok(());
        }
        let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.task.shared));
        let known = Arc::clone(&self.task.known);
        let rules = {
            let config = &self.task.shared.config;
            Rules {
                quiet: config.quiet,
                keep: config.after_send == AfterSend::Keep,
                marker: config.marker.clone(),
            }
        };
        let inspected = blocking(move || {
            let mut parents = Parents::through(place.enter()?, owner::unclaimed);
            let mut inspect = |path| match (inspect::inspect(&mut parents, &path, &rules), &shared.ignore) {
                (Inspection::Folder, Some(ignore)) if ignore.matched_folder(&path).is_some() => {
                    (Inspection::Nothing, path)
                }
                (Inspection::Folder, Some(ignore)) if path.parent().is_none() && shared.is_whole() => {
                    (whole::inspect(parents.root(), &path, &rules, ignore), path)
                }
                (seen, _) => (seen, path),
            };
            let inspected: Vec<_> = paths.into_iter().map(&mut inspect).collect();
            let judge = |(inspection, path)| Inspected::judge(&shared, path, inspection);
            let mut inspected: Vec<_> = inspected.into_iter().map(judge).collect();
            let ready = inspected.iter_mut().filter_map(|it| it.take_ready(place.id));
            let ready = make_durable(&*known, &place, ready.collect());
            Some((inspected, ready))
        });
        let Some((inspected, ready)) = inspected.await.ok().flatten() else {
            self.check = true; // the folder is not what it was
            self.task.shared.state().stability.clear();
            self.scan_all();
            return Ok(());
        };
        for one in inspected {
            self.follow(one);
        }
        let mut found = Vec::with_capacity(ready.len());
        for (ready, durable) in ready {
            match durable {
                Ok(()) => found.push(ready),
                Err(NotReady { reason, passes }) => {
                    let path = ready.path.as_bytes().to_vec();
                    match passes {
                        true => self.later(path, reason),
                        false => self.problem(path, reason),
                    }
                }
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let root = self.task.shared.config.path.clone();
        let told = self.task.ready.send(Ready { root, found }).await;
        told.map_err(|_| Closed)
    }

    /// What is to be done and said of it, beside sending it.
    fn follow(&mut self, inspected: Inspected) {
        let Inspected {
            path,
            inspection,
            verdict,
        } = inspected;
        let at = path.as_bytes().to_vec();
        match inspection {
            Inspection::Nothing => {}
            Inspection::Folder if self.schedule.folders() < LISTED => self.schedule.add_folder(path),
            Inspection::Folder => self.scan_all(),
            Inspection::Unmarked(reason) => self.list(at, reason, || {}),
            Inspection::Refused(reason) => self.problem(at, reason),
            // Said once of the folder, whatever comes in it.
            Inspection::Claimed { at, reason } => self.problem(at, reason),
            Inspection::Held { reason, .. } => {
                // A folder that is being filled is nothing to tell of before it takes long.
                if verdict == Verdict::Unstable {
                    tracing::warn!(%path, why = reason, "has not settled for longer than max_wait");
                }
                self.list(at, reason, || {});
            }
            Inspection::Whole { left_out, .. } => {
                if verdict == Verdict::Ready {
                    for (below, what) in left_out {
                        let below = [path.as_bytes(), b"/", below.as_bytes()].concat();
                        self.problem(below, whole::left_out(what));
                    }
                    if self.task.shared.config.after_send == AfterSend::Keep {
                        self.schedule.add_folder(path.clone()); // to be watched
                    }
                }
                self.warn_if_unstable(&path, verdict);
            }
            Inspection::File { of_others, .. } => {
                if of_others {
                    self.caution(&path);
                }
                self.warn_if_unstable(&path, verdict);
            }
        }
    }

    fn warn_if_unstable(&self, path: &RemotePath, verdict: Verdict) {
        if verdict == Verdict::Unstable {
            let state = self.task.shared.state();
            let why = state
                .stability
                .why(path, Instant::now())
                .map_or("", |(why, _)| why);
            tracing::warn!(%path, why, "has not settled for longer than max_wait");
        }
    }

    /// Says once that writers may be unseen here.
    fn caution(&self, path: &RemotePath) {
        let cautions = &mut self.task.shared.state().cautions;
        if !cautions.contains(&OTHERS) {
            tracing::warn!(%path, "{OTHERS}");
            cautions.push(OTHERS);
        }
    }
}

/// A path that was looked at, and what follows for when to look again.
struct Inspected {
    path: RemotePath,
    inspection: Inspection,
    verdict: Verdict,
}

impl Inspected {
    fn judge(shared: &Shared, path: RemotePath, inspection: Inspection) -> Self {
        let (observation, may_be_sent) = match &inspection {
            Inspection::Whole { observation, .. } | Inspection::File { observation, .. } => {
                (*observation, true)
            }
            Inspection::Held { why, .. } => (Observation::Held { why }, false),
            Inspection::Nothing | Inspection::Folder => (Observation::Nothing, true),
            Inspection::Unmarked(_) | Inspection::Refused(_) | Inspection::Claimed { .. } => {
                (Observation::Nothing, false)
            }
        };
        let mut state = shared.state();
        if may_be_sent {
            state.problems.listed.remove(path.as_bytes());
        }
        let verdict = state.stability.inspected(&path, observation, Instant::now());
        drop(state);
        Self {
            path,
            inspection,
            verdict,
        }
    }

    /// The version that is ready, and a file's handle.
    fn take_ready(&mut self, outbox: OutboxId) -> Option<(Found, Option<File>)> {
        let (observation, file) = match &mut self.inspection {
            Inspection::File {
                observation, file, ..
            } => (*observation, file.take()),
            Inspection::Whole { observation, .. } => (*observation, None),
            _ => return None,
        };
        match (self.verdict, observation) {
            (Verdict::Ready, Observation::Still { version, .. }) => {
                let found = Found {
                    outbox,
                    path: self.path.clone(),
                    version,
                };
                Some((found, file))
            }
            _ => None,
        }
    }
}

/// Why what is ready is not told.
struct NotReady {
    reason: String,
    /// It passes by itself.
    passes: bool,
}

/// S1 for what is ready and has no job yet. Those that fail are tried again at the next scan. Blocks.
fn make_durable(
    known: &dyn Known,
    place: &Place,
    ready: Vec<(Found, Option<File>)>,
) -> Vec<(Found, Result<(), NotReady>)> {
    if ready.is_empty() {
        return Vec::new();
    }
    let found: Vec<Found> = ready.iter().map(|(found, _)| found.clone()).collect();
    let unknown: HashSet<Found> = match known.unknown(found) {
        Ok(unknown) => unknown.into_iter().collect(),
        Err(reason) => {
            let unasked = |found| {
                let reason = reason.clone();
                (found, Err(NotReady { reason, passes: true }))
            };
            return ready.into_iter().map(|(found, _)| unasked(found)).collect();
        }
    };
    let (folders, files): (Vec<_>, Vec<_>) = ready
        .into_iter()
        .filter(|(found, _)| unknown.contains(found))
        .partition(|(found, _)| found.version.folder);
    let sync_folder = |found: &Found| whole::sync(&place.open()?, &found.path);
    let folders = folders.into_iter().map(|(found, _)| (sync_folder(&found), found));
    let mut synced: Vec<_> = folders.collect();
    let files = files.into_iter().filter_map(|(found, file)| Some((found, file?)));
    let (found, files): (Vec<_>, Vec<_>) = files.unzip();
    synced.extend(inspect::sync(&files).into_iter().zip(found));
    let told = synced.into_iter().map(|(synced, found)| {
        let durable = synced.map_err(|e| NotReady {
            reason: format!("it cannot be made durable: {e}"),
            passes: inspect::passing(&e).is_some(),
        });
        (found, durable)
    });
    told.collect()
}
