//! What the task of one outbox works with, and how it finds and watches the folder.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Command, Known, Ready, Shared,
    place::Place,
    watch::{Hint, Watcher},
};
use crate::{blocking::blocking, config::Watch, error::shown, fs::version::OutboxId, owner::Me};

/// Shown when the system refuses a watch, usually because too many are in use (fs.inotify.max_user_instances).
const CANNOT_WATCH: &str = "the system gives no native watch";
/// Hints that may wait.
const HINTS: usize = 4096;

pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) known: Arc<dyn Known>,
    pub(super) ready: mpsc::Sender<Ready>,
    pub(super) cancel: CancellationToken,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) expected: Option<OutboxId>,
    pub(super) me: Me,
}

/// The native watch and where its hints arrive.
pub(super) type Watched = (Option<Arc<Watcher>>, mpsc::Receiver<Hint>);

impl Task {
    /// The outbox, if it is there, this agent's, and at home here; else why it is held.
    pub(super) async fn find(&self) -> Result<Place, String> {
        let (path, had_id) = (self.shared.config.path.clone(), self.expected.is_some());
        let me = self.me.clone();
        let place = blocking(move || Place::find(&path, had_id, &me)).await;
        let place = place.unwrap_or_else(|_| Err("the look for it failed".into()))?;
        let settled = self.known.claim_home(place.id, place.is_new).await;
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
        let started = started.await.unwrap_or_else(|_| Err("the watch failed".into()));
        let mut state = self.shared.state();
        let (watcher, watch_state) = match started {
            Ok(watcher) => (Some(Arc::new(watcher)), Ok(())),
            Err(reason) => (None, Err(reason)),
        };
        if let Err(reason) = &watch_state
            && wanted != Watch::Poll
            && state.watch_state.reason().as_ref() != Some(reason)
        {
            tracing::warn!(outbox = %shown(&place.root), %reason, "polled every few seconds");
        }
        state.watch_state.begin(watch_state);
        (watcher, hints)
    }
}
