//! The task of one outbox: waits for the folder, runs its loop as long as it is there, and waits again.

use std::{path::PathBuf, time::Duration};

use super::{
    Problems,
    mounts::Mounts,
    place::Place,
    run_loop::RunLoop,
    task::{Task, Watched},
    watch::{Hint, Went},
};
use crate::error::shown;

/// Time between the first looks for a folder that is not there; then it grows.
const ABSENT: Duration = Duration::from_secs(1);
/// The longest time between them. Mounting is told at once.
const LONG_ABSENT: Duration = Duration::from_secs(8);

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
            let watched = self.watch(&place).await;
            {
                let mut state = self.shared.state();
                state.id = Some(place.id);
                state.place = Some((place.root.clone(), place.device()));
                state.held = None;
                state.cautions = place.on.cautions();
            }
            let root = place.root.clone();
            let mut running = RunLoop::new(self, place, watched);
            let gone = running.run().await;
            former = Some((root, running.into_watched()));
            let mut state = self.shared.state();
            state.id = None;
            state.place = None;
            state.stability.clear();
            state.problems = Problems::default();
            if gone.is_err() {
                return;
            }
        }
    }

    /// A folder that was removed for good took its id with it: a new one there is a new outbox. One that was
    /// moved or unmounted comes back with its id.
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
                () = self.shared.recheck.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONG_ABSENT);
        }
    }
}
