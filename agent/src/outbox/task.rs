//! The task of one outbox: waits for the folder, tends it as long as it is there, and waits again.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use dropwire_protocol::RemotePath;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Command, Known, OutboxEvent, Problems, Shared,
    mounts::Mounts,
    place::Place,
    tend::Tending,
    watch::{Hint, Watcher, Went},
};
use crate::{config::Watch, error::shown, fault, owner::Me, version::OutboxId};

/// Time between the first looks for a folder that is not there; then it grows.
const ABSENT: Duration = Duration::from_secs(1);
/// The longest time between them. Mounting is told at once.
const LONG_ABSENT: Duration = Duration::from_secs(8);
/// Said where the system gives no watch: too many are in use (fs.inotify.max_user_instances), mostly.
const CANNOT_WATCH: &str = "the system gives no native watch";
/// Hints that may wait.
const HINTS: usize = 4096;

pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) known: Arc<dyn Known>,
    pub(super) events: mpsc::Sender<OutboxEvent>,
    pub(super) cancel: CancellationToken,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) expected: Option<OutboxId>,
    pub(super) me: Me,
}

/// The native watch and where its hints arrive.
pub(super) type Watched = (Option<Arc<Watcher>>, mpsc::Receiver<Hint>);

pub(super) async fn run(mut task: Task) {
    if task.shared.ignore.is_none() {
        return; // held, with the reason in the status
    }
    let cancel = task.cancel.clone();
    cancel.run_until_cancelled(task.live()).await;
}

impl Task {
    async fn live(&mut self) {
        let mut former = None;
        loop {
            let place = self.wait_for_folder(former.take()).await;
            self.expected = Some(place.id);
            let (root, id) = (self.shared.config.path.clone(), place.id);
            if self.events.send(OutboxEvent::Marked { root, id }).await.is_err() {
                return; // nobody listens any more
            }
            *self.shared.other_way() = self.other_way(place.id).await;
            let watched = self.watch(&place).await;
            {
                let mut state = self.shared.state();
                state.id = Some(place.id);
                state.place = Some((place.root.clone(), place.device()));
                state.held = None;
                state.cautions = place.on.cautions();
            }
            let root = place.root.clone();
            let mut tending = Tending::new(self, place, watched);
            let gone = tending.tend().await;
            former = Some((root, tending.into_watched()));
            let mut state = self.shared.state();
            state.id = None;
            state.place = None;
            state.settle.clear();
            state.problems = Problems::default();
            if gone.is_err() {
                return;
            }
        }
    }

    /// Asked before anything is looked for: what is sent the one way is not to be found the other way.
    async fn other_way(&self, outbox: OutboxId) -> BTreeSet<RemotePath> {
        loop {
            let asked = self.known.folders_that_go(outbox, !self.shared.is_whole());
            match asked.await {
                Some(_) if fault::mutant("S2-way") => return BTreeSet::new(),
                Some(folders) => return folders.into_iter().collect(),
                None => tokio::time::sleep(ABSENT).await,
            }
        }
    }

    /// A folder that was removed for good took its mark with it: a new one there is a new outbox. One that was
    /// moved or unmounted comes back with its mark.
    async fn wait_for_folder(&mut self, mut former: Option<(PathBuf, Watched)>) -> Place {
        let (mut said, mut pause, mounts) = (None, ABSENT, Mounts::watch());
        loop {
            if let Some((root, (_, hints))) = &mut former {
                while let Ok(hint) = hints.try_recv() {
                    if matches!(&hint, Hint::Gone(path, Went::Removed) if path == root) {
                        self.expected = None;
                    }
                }
            }
            let reason = match self.find().await {
                Ok(place) => return place,
                Err(reason) => reason,
            };
            if said.as_ref() != Some(&reason) {
                tracing::warn!(outbox = %shown(&self.shared.config.path), %reason, "held");
                self.shared.state().held = Some(reason.clone());
                said = Some(reason);
            }
            // In either case the folder is looked for.
            tokio::select! {
                _ = mounts.changed() => {}
                () = self.shared.look.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONG_ABSENT);
        }
    }

    /// The outbox, if it is there, this agent's, and at home here; else why it is held.
    async fn find(&self) -> Result<Place, String> {
        let (path, had_mark) = (self.shared.config.path.clone(), self.expected.is_some());
        let me = self.me.clone();
        let place = blocking(move || Place::find(&path, had_mark, &me)).await;
        let place = place.unwrap_or_else(|| Err("the look for it failed".into()))?;
        let settled = self.known.settle(place.id, place.is_new).await;
        settled.unwrap_or_else(|| Err("the job list does not answer".into()))?;
        Ok(place)
    }

    /// Begins to watch natively, where that is wanted and possible; else there are only scans.
    pub(super) async fn watch(&self, place: &Place) -> Watched {
        let (hints_in, hints) = mpsc::channel(HINTS);
        let (wanted, missed) = (self.shared.config.watch, Arc::clone(&self.shared.missed));
        let (root, on) = (place.root.clone(), place.on);
        let started = blocking(move || match wanted {
            Watch::Poll => Err("the config says so".into()),
            Watch::Auto if !on.tells_changes => {
                Err("its file system does not tell of what others change".into())
            }
            Watch::Native | Watch::Auto => {
                Watcher::start(&root, hints_in, missed).map_err(|e| format!("{CANNOT_WATCH}: {e}"))
            }
        });
        let started = started.await.unwrap_or_else(|| Err("the watch failed".into()));
        let mut state = self.shared.state();
        let (watcher, health) = match started {
            Ok(watcher) => (Some(Arc::new(watcher)), Ok(())),
            Err(reason) => (None, Err(reason)),
        };
        if let Err(reason) = &health
            && wanted != Watch::Poll
            && state.health.reason().as_ref() != Some(reason)
        {
            tracing::warn!(outbox = %shown(&place.root), %reason, "polled every few seconds");
        }
        state.health.begin(health);
        (watcher, hints)
    }
}

/// None: the runtime ends.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
