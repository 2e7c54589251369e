//! Each peer's dispatcher, and how its link's events find it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dropwire_protocol::AgentId;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{EVENTS, Shared, dispatch::Dispatcher};
use crate::{config, link::LinkEvent};

/// A door for each peer of the config.
#[derive(Default)]
pub struct Doors(Mutex<HashMap<AgentId, Door>>);

struct Door {
    events: mpsc::Sender<LinkEvent>,
    dispatcher: JoinHandle<()>,
}

impl Doors {
    /// Starts the peer's dispatcher.
    pub fn open(
        &self,
        shared: &Arc<Shared>,
        peer: &config::Peer,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) {
        let (events, inbox) = mpsc::channel(EVENTS);
        let dispatcher = tasks.spawn(Dispatcher::run(
            shared.clone(),
            peer.clone(),
            inbox,
            cancel.child_token(), // which it cancels itself when it ends
        ));
        self.lock().insert(peer.id, Door { events, dispatcher });
    }

    /// Ends the peer's dispatcher, after all that its link told. The link has to be gone.
    pub async fn close(&self, peer: AgentId) {
        let door = self.lock().remove(&peer);
        if let Some(Door { events, dispatcher }) = door {
            drop(events);
            let _ = dispatcher.await; // a panic ends the process by itself
        }
    }

    fn of(&self, peer: AgentId) -> Option<mpsc::Sender<LinkEvent>> {
        self.lock().get(&peer).map(|door| door.events.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AgentId, Door>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands each dispatcher its link's events, until cancelled.
pub async fn pass_on(shared: Arc<Shared>, mut events: mpsc::Receiver<LinkEvent>, cancel: CancellationToken) {
    let mut batch = Vec::with_capacity(EVENTS);
    while cancel
        .run_until_cancelled(events.recv_many(&mut batch, EVENTS))
        .await
        .is_some_and(|n| n > 0)
    {
        for event in batch.drain(..) {
            if let Some(door) = shared.doors.of(event.peer()) {
                // Only a dispatcher that ended (the agent stops) does not take it.
                let _ = door.send(event).await;
            }
        }
    }
}
