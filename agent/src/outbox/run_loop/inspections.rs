//! Looks at what is due, and what follows from what is seen: what is ready is made durable (S1) and told.

use std::{collections::HashSet, fs::File, sync::Arc, time::Instant};

use dropwire_protocol::RemotePath;

use super::{Closed, INSPECTIONS, LISTED, RunLoop};
use crate::{
    blocking::blocking,
    config::AfterSend,
    descriptors,
    fs::{confined::Parents, file_system::OTHERS, version::Found},
    outbox::{
        Ready,
        inspect::{self, Inspection, Rules},
        stability::{Observation, Verdict},
        whole,
    },
    owner,
};

impl RunLoop<'_> {
    /// Looks at what is due; what is ready and not yet known is made durable (S1) and told.
    pub(super) async fn inspect(&mut self) -> Result<(), Closed> {
        // Each that is ready is held open, twice with its lease, until it is durable.
        let most = descriptors::affordable(INSPECTIONS, 2);
        let paths = self.task.shared.state().stability.due(Instant::now(), most);
        if paths.is_empty() {
            return Ok(());
        }
        let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.task.shared));
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
            let inspect = |path| match (inspect::inspect(&mut parents, &path, &rules), &shared.ignore) {
                (Inspection::Folder, Some(ignore)) if ignore.matched_folder(&path).is_some() => {
                    (Inspection::Nothing, path)
                }
                (Inspection::Folder, Some(ignore)) if path.parent().is_none() && shared.is_whole() => {
                    (whole::inspect(parents.root(), &path, &rules, ignore), path)
                }
                (seen, _) => (seen, path),
            };
            Some(paths.into_iter().map(inspect).collect::<Vec<_>>())
        });
        let Some(seen) = inspected.await.ok().flatten() else {
            self.check = true; // the folder is not what it was
            self.task.shared.state().stability.clear();
            self.scan_all();
            return Ok(());
        };
        let ready: Vec<(Found, Option<File>)> = seen
            .into_iter()
            .filter_map(|(seen, path)| self.seen(path, seen))
            .collect();
        if ready.is_empty() {
            return Ok(());
        }
        let unknown = self.unknown(ready.iter().map(|(found, _)| found.clone()).collect());
        let unknown: HashSet<Found> = unknown.await.into_iter().collect();
        let (folders, files): (Vec<_>, Vec<_>) = ready
            .into_iter()
            .filter(|(found, _)| unknown.contains(found))
            .partition(|(found, _)| found.version.folder);
        let folders = self.sync_folders(folders.into_iter().map(|(found, _)| found).collect());
        let mut found = folders.await;
        let files = files.into_iter().filter_map(|(found, file)| Some((found, file?)));
        let (files_found, files) = files.unzip();
        found.extend(self.sync(files_found, files).await);
        if found.is_empty() {
            return Ok(());
        }
        let root = self.task.shared.config.path.clone();
        let told = self.task.ready.send(Ready { root, found }).await;
        told.map_err(|_| Closed)
    }

    fn seen(&mut self, path: RemotePath, seen: Inspection) -> Option<(Found, Option<File>)> {
        let now = Instant::now();
        let shared = Arc::clone(&self.task.shared);
        let inspected = |observation| {
            let mut state = shared.state();
            state.problems.listed.remove(path.as_bytes());
            state.stability.inspected(&path, observation, now)
        };
        match seen {
            Inspection::Nothing => {
                inspected(Observation::Nothing);
                None
            }
            Inspection::Folder => {
                inspected(Observation::Nothing);
                if self.schedule.folders() < LISTED {
                    self.schedule.add_folder(path);
                } else {
                    self.scan_all();
                }
                None
            }
            Inspection::Unmarked(reason) => {
                shared
                    .state()
                    .stability
                    .inspected(&path, Observation::Nothing, now);
                self.list(path.as_bytes().to_vec(), reason, || {});
                None
            }
            Inspection::Refused(reason) => {
                shared
                    .state()
                    .stability
                    .inspected(&path, Observation::Nothing, now);
                self.problem(path.as_bytes().to_vec(), reason);
                None
            }
            // Said once of the folder, whatever comes in it.
            Inspection::Claimed { at, reason } => {
                shared
                    .state()
                    .stability
                    .inspected(&path, Observation::Nothing, now);
                self.problem(at, reason);
                None
            }
            Inspection::Held { why, reason } => {
                let verdict = shared
                    .state()
                    .stability
                    .inspected(&path, Observation::Held { why }, now);
                // A folder that is being filled is nothing to tell of before it takes long.
                if verdict == Verdict::Restless {
                    tracing::warn!(%path, why = reason, "has not settled for longer than max_wait");
                }
                self.list(path.as_bytes().to_vec(), reason, || {});
                None
            }
            Inspection::Whole {
                observation,
                left_out,
            } => {
                let verdict = inspected(observation);
                if verdict == Verdict::Ready {
                    for (below, what) in left_out {
                        let below = [path.as_bytes(), b"/", below.as_bytes()].concat();
                        self.problem(below, whole::left_out(what));
                    }
                    if shared.config.after_send == AfterSend::Keep {
                        self.schedule.add_folder(path.clone()); // to be watched
                    }
                }
                self.decided(path, verdict, observation, None, now)
            }
            Inspection::File {
                observation,
                file,
                of_others,
            } => {
                let verdict = inspected(observation);
                if of_others {
                    self.caution(&path);
                }
                self.decided(path, verdict, observation, file, now)
            }
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

    fn decided(
        &self,
        path: RemotePath,
        verdict: Verdict,
        observation: Observation,
        file: Option<File>,
        now: Instant,
    ) -> Option<(Found, Option<File>)> {
        match (verdict, observation) {
            (Verdict::Ready, Observation::Still { version, .. }) => {
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
                let why = state.stability.why(&path, now).map_or("", |(why, _)| why);
                tracing::warn!(%path, why, "has not settled for longer than max_wait");
                None
            }
            _ => None,
        }
    }

    /// S1's sync of whole folders.
    async fn sync_folders(&mut self, found: Vec<Found>) -> Vec<Found> {
        if found.is_empty() {
            return found;
        }
        let place = Arc::clone(&self.place);
        let synced = blocking(move || {
            let synced = |found: &Found| whole::sync(&place.open()?, &found.path);
            found.into_iter().map(|found| (synced(&found), found)).collect()
        });
        self.durable(synced.await.unwrap_or_default())
    }

    fn durable(&mut self, synced: Vec<(std::io::Result<()>, Found)>) -> Vec<Found> {
        let mut done = Vec::with_capacity(synced.len());
        for (synced, found) in synced {
            match synced {
                Ok(()) => done.push(found),
                Err(e) => {
                    let path = found.path.as_bytes().to_vec();
                    let reason = format!("it cannot be made durable: {e}");
                    match inspect::passing(&e) {
                        Some(_) => self.later(path, reason),
                        None => self.problem(path, reason),
                    }
                }
            }
        }
        done
    }

    /// S1's sync; those that fail are reported, and tried again at the next scan.
    async fn sync(&mut self, found: Vec<Found>, files: Vec<File>) -> Vec<Found> {
        let synced = blocking(move || inspect::sync(&files)).await.unwrap_or_default();
        self.durable(synced.into_iter().zip(found).collect())
    }
}
