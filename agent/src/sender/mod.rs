//! The sending side of a running agent: what outboxes find becomes jobs, jobs become transfers, and what all peers have
//! leaves its outbox.
//!
//! ```text
//!  outbox ──ready──▶ intake ──enqueue──▶ queue ◀──due, outcomes──▶ dispatch (one a peer) ◀──▶ link
//!     ▲                                    │
//!     └──────────── cleanup ◀──to_dispose──┘
//! ```
//!
//! | part | does |
//! |---|---|
//! | `intake` | takes in what outboxes find ready (S2); `doubts` asks the disk where the job list cannot tell |
//! | `dispatch` | due jobs become offers, what the link tells becomes changes of the job list; `dispatch/retry`: failures |
//! | `folder_setting` | `folder` changes only while nothing is open or kept that was found under its former value |
//! | `in_flight` | what is under way right now |
//! | `receipts` | does a receipt prove this job? (S4) |
//! | `source` | reads a job as chunks (S3) |
//! | `checkpoints` | how far large files were read, on the way into the job list |
//! | `cleanup` | delivered files leave their outbox (S5, S6) |
//! | `reconcile` | looks after files that stay; `presence`: is a version where it was found? |
//! | `copies` | what `send` copied, as items |
//! | `outboxes` | those that are watched now |

mod checkpoints;
mod cleanup;
mod copies;
mod dispatch;
mod doubts;
pub mod folder_setting;
mod in_flight;
mod intake;
mod outboxes;
mod presence;
mod receipts;
mod reconcile;
mod source;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use dropwire_protocol::{AgentId, Receipt};
use tokio::{sync::broadcast, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    checkpoints::CheckpointSink,
    dispatch::{Context, Dispatcher},
    source::SmallReads,
};
pub use self::{
    cleanup::{Cleanup, stuck},
    copies::{clear_spool, take_copies},
    in_flight::InFlight,
    outboxes::Outboxes,
};
use crate::{
    config::{self, Current},
    db::{Db, DbError},
    link::Links,
    owner::Me,
    poison::Unpoisoned as _,
    queue::Queue,
};

/// What the sender works with.
pub struct Parts {
    /// This agent.
    pub own: AgentId,
    /// What is in effect.
    pub config: Current,
    /// The job list, and the table of folders that is in the same file.
    pub db: Db,
    /// See `db`.
    pub queue: Queue,
    /// To offer on.
    pub links: Links,
    /// Where `send` keeps its copies.
    pub spool: PathBuf,
}

/// Starts and ends what sends: a task for each peer and outbox, and those that they share.
pub struct Sender {
    context: Context,
    intake: intake::Task,
    cleanup: Cleanup,
    spool: PathBuf,
    dispatchers: Mutex<HashMap<AgentId, JoinHandle<()>>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Sender {
    /// Starts what delivers and cleans up: jobs that are queued already go on. Outboxes begin with
    /// [`Sender::begin_outboxes`]. Ends when `cancel` is cancelled; then `tasks` are over.
    pub fn start(parts: Parts, tasks: TaskTracker, cancel: CancellationToken) -> Self {
        let Parts {
            own,
            config,
            db,
            queue,
            links,
            spool,
        } = parts;
        let (outboxes, cleanup, in_flight) = (Outboxes::default(), Cleanup::default(), InFlight::default());
        let (checkpoints, kept) = CheckpointSink::new();
        tasks.spawn(checkpoints::keep(queue.clone(), kept, cancel.clone()));
        let leaving = cleanup::Task {
            cleanup: cleanup.clone(),
            config: config.clone(),
            queue: queue.clone(),
            outboxes: outboxes.clone(),
            in_flight: in_flight.clone(),
            spool: spool.clone(),
        };
        tasks.spawn(cleanup::run(leaving, cancel.clone()));
        let sender = Self {
            intake: intake::Task {
                config: config.clone(),
                db,
                queue: queue.clone(),
                outboxes: outboxes.clone(),
            },
            cleanup,
            context: Context {
                own,
                config,
                queue,
                links,
                outboxes,
                in_flight,
                reads: SmallReads::default(),
                checkpoints,
                receipts: broadcast::channel(256).0,
            },
            spool,
            dispatchers: Mutex::default(),
            tasks,
            cancel,
        };
        sender.follow_peers();
        sender
    }

    /// Starts a dispatcher for each peer of the config that has none: the links have to know the peer already.
    pub fn follow_peers(&self) {
        for peer in &self.context.config.get().peers {
            let Some(events) = self.context.links.events(peer.id) else {
                continue; // it has one
            };
            let cancel = self.cancel.child_token(); // which it cancels itself when it ends
            let dispatcher = Dispatcher::new(self.context.clone(), peer.clone(), cancel);
            let running = self.tasks.spawn(dispatcher.run(events));
            self.dispatchers().insert(peer.id, running);
        }
    }

    /// Returns once the peer's dispatcher has ended, after all that its link told. The links must have let go of it.
    pub async fn remove_peer(&self, peer: AgentId) {
        let dispatcher = self.dispatchers().remove(&peer);
        if let Some(dispatcher) = dispatcher {
            let _ = dispatcher.await; // a panic ends the process by itself
        }
    }

    /// Starts these outboxes for the agent `me`; all are in the config's order then.
    pub async fn begin_outboxes(&self, outboxes: &[config::Outbox], me: &Me) -> Result<(), DbError> {
        for outbox in outboxes {
            let cancel = self.cancel.child_token();
            intake::begin(&self.intake, outbox, me.clone(), &self.tasks, cancel).await?;
        }
        Ok(())
    }

    /// Ends the outboxes at these paths; what they found is queued when it returns. Their jobs go on.
    pub async fn end_outboxes(&self, paths: &[PathBuf]) {
        intake::end(&self.context.outboxes, paths).await;
    }

    /// Looks after what stays in the outboxes, from now on.
    pub fn reconcile(&self) {
        self.tasks.spawn(reconcile::run(
            self.context.queue.clone(),
            self.context.outboxes.clone(),
            self.spool.clone(),
            self.cancel.clone(),
        ));
    }

    /// The outboxes that are watched now.
    pub fn outboxes(&self) -> &Outboxes {
        &self.context.outboxes
    }

    /// What is under way right now.
    pub fn in_flight(&self) -> &InFlight {
        &self.context.in_flight
    }

    /// What is known of delivered files that have not left yet.
    pub fn cleanup(&self) -> &Cleanup {
        &self.cleanup
    }

    /// Every receipt that is accepted from now on.
    pub fn receipts(&self) -> broadcast::Receiver<Arc<Receipt>> {
        self.context.receipts.subscribe()
    }

    fn dispatchers(&self) -> MutexGuard<'_, HashMap<AgentId, JoinHandle<()>>> {
        self.dispatchers.lock().unpoisoned()
    }
}
