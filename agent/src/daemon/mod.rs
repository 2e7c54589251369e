//! The agent: the only room that knows all the others. It wires them, starts them, and stops them.
//!
//! ```text
//!  outbox ──Settled──▶ intake ──enqueue──▶ queue ◀──due, outcomes──▶ dispatch (one a peer) ◀──▶ link ◀──▶ inbox
//!     ▲                                      │
//!     └───────────── disposal ◀──to_dispose──┘                          control ──▶ office (answers the CLI)
//! ```

mod arrival;
mod dispatch;
mod disposal;
mod explain;
mod flight;
mod intake;
mod live;
mod marks;
mod office;
mod proof;
mod rest;
mod selection;
mod state;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use dropwire_protocol::{AgentId, Receipt};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    clock::{self, now_ms},
    config::{Config, Retry, paths::Paths},
    control,
    db::{Db, DbError},
    error::{Exit, Fatal, shown},
    identity::Identity,
    inbox::{self, Inbox},
    link::{self, LinkEvent, Links},
    outbox::Outbox,
    queue::{DropId, Job, Proof, Queue},
    version::OutboxId,
};
use live::Live;
pub use state::{check_private, private_folder};

/// Events of one link that may wait: more than one peer's requests in flight can ever cause, so that nobody blocks.
const EVENTS: usize = 1024;
/// Checkpoints that wait for the job list; more are dropped, as the next one says more.
const CHECKPOINTS: usize = 16;
/// How long a clean end may take.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// The longest time between two notes of running time (retention and `give_up_after` count it, not the wall clock).
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// A running agent.
pub struct Agent {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Ends watching, dispatching and the control socket.
    cancel: CancellationToken,
    _state: state::State,
}

/// What the agent's tasks share.
struct Shared {
    /// As long as this agent runs; a reload ends it and starts another.
    config: Arc<Config>,
    started: Instant,
    /// The same by the wall clock: what was queued before may have been offered by an earlier run.
    started_ms: i64,
    state_dir: PathBuf,
    identity: Arc<Identity>,
    db: Db,
    queue: Queue,
    links: Links,
    inbox: Inbox,
    outboxes: RwLock<Vec<Outbox>>,
    live: Live,
    /// A peer's dispatcher looks for due jobs when woken.
    wakes: Mutex<HashMap<AgentId, Arc<Notify>>>,
    disposal: Notify,
    /// How far large files were read, on the way to the job list.
    checkpoints: mpsc::Sender<(DropId, Vec<u8>)>,
    deliveries: broadcast::Sender<Arc<Receipt>>,
}

impl Agent {
    /// Opens the state folder, recovers what a crash left, and starts everything. The agent is ready when it returns.
    pub async fn start(config: Config, paths: &Paths) -> Result<Agent, Fatal> {
        let state = {
            let paths = paths.clone();
            blocking(move || state::open(&paths)).await??
        };
        let identity = state.identity.clone();
        let config = Arc::new(config);
        config.check_own_id(identity.id())?;
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let queue = Queue::open(state.db.clone(), identity.clone(), now_ms(), config.retry.max)
            .await
            .map_err(|e| job_list(&e))?;
        queue
            .peer_removed(config.peers.iter().map(|p| p.id).collect(), now_ms())
            .await
            .map_err(|e| job_list(&e))?;
        intake::clear_spool(&queue, paths.state_dir.join("spool"))
            .await
            .map_err(|e| job_list(&e))?;
        let settings = inbox::Settings {
            inbox: config.inbox.clone(),
            peers: config.peers.clone(),
        };
        let inbox = Inbox::open(
            settings,
            state.db.clone(),
            identity.clone(),
            CancellationToken::new(),
        )
        .await?;
        let (events_in, events) = mpsc::channel(EVENTS);
        let settings = link::Settings {
            name: config.name.clone(),
            listen: config.listen.clone(),
            peers: config.peers.clone(),
            retry: config.retry,
            limits: config.limits,
        };
        let links = Links::start(
            settings,
            identity.clone(),
            Arc::new(inbox.clone()),
            events_in,
            cancel.clone(),
        )
        .await?;
        let (checkpoints, kept) = mpsc::channel(CHECKPOINTS);
        let shared = Arc::new(Shared {
            config: config.clone(),
            started: Instant::now(),
            started_ms: now_ms(),
            state_dir: paths.state_dir.clone(),
            identity,
            db: state.db.clone(),
            queue,
            links,
            inbox,
            outboxes: RwLock::default(),
            live: Live::default(),
            wakes: Mutex::default(),
            disposal: Notify::new(),
            checkpoints,
            deliveries: broadcast::channel(256).0,
        });
        let access = if paths.is_system() {
            control::Access::Group("dropwire".into())
        } else {
            control::Access::Owner
        };
        let office = office::Office {
            shared: shared.clone(),
        };
        let listener = control::socket::bind(&paths.control, &access)?;
        tasks.spawn(control::serve(listener, Arc::new(office), cancel.clone()));
        start_dispatch(&shared, &config, events, &tasks, &cancel);
        tasks.spawn(disposal::run(shared.clone(), cancel.clone()));
        tasks.spawn(keep_checkpoints(shared.queue.clone(), kept, cancel.clone()));
        tasks.spawn(arrival::run(shared.clone(), cancel.clone()));
        tasks.spawn(keep_house(shared.clone(), cancel.clone()));
        intake::start(&shared, &config, &tasks, &cancel)
            .await
            .map_err(|e| job_list(&e))?;
        tasks.spawn(rest::run(shared.clone(), cancel.clone()));
        Ok(Agent {
            shared,
            tasks,
            cancel,
            _state: state,
        })
    }

    /// Where it listens; None on a machine that only dials.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.shared.links.listen_addr()
    }

    /// This agent's id.
    pub fn id(&self) -> AgentId {
        self.shared.identity.id()
    }

    /// Every receipt that this agent accepts, as a sender, from now on.
    pub fn deliveries(&self) -> broadcast::Receiver<Arc<Receipt>> {
        self.shared.deliveries.subscribe()
    }

    /// Returns only when the agent has to end: its job list cannot be written any more.
    pub async fn wait(&mut self) -> Fatal {
        let reason = self.shared.db.failed().await;
        Fatal::new(Exit::Disk, reason).mend(format_args!(
            "make room on or mend the disk of {}, then start the agent again; nothing is lost",
            shown(&self.shared.state_dir)
        ))
    }

    /// Ends cleanly: links say Bye, what is being committed is finished; bounded in time.
    ///
    /// False: something is still at work (a disk that hangs). It ends with the process, in which no other agent may
    /// use these folders any more: the two would not know of each other's partials.
    pub async fn stop(self) -> bool {
        self.cancel.cancel();
        self.tasks.close();
        let shared = &self.shared;
        let ending = async {
            tokio::join!(shared.links.shutdown(), self.tasks.wait());
            shared.inbox.shutdown().await;
            shared.db.close().await;
        };
        let ended = tokio::time::timeout(STOP_DEADLINE, ending).await.is_ok();
        if ended {
            info!("stopped");
        } else {
            warn!("ended without waiting longer; what was under way is taken up at the next start");
        }
        ended
    }
}

impl Shared {
    fn config(&self) -> Arc<Config> {
        self.config.clone()
    }

    fn wake(&self, peer: AgentId) -> Arc<Notify> {
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.entry(peer).or_default().clone()
    }

    /// Every dispatcher looks again.
    fn wake_all(&self) {
        for peer in &self.config().peers {
            self.wake(peer.id).notify_one();
        }
    }

    /// Where `send` keeps its copies.
    fn spool(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    fn outboxes(&self) -> Vec<Outbox> {
        self.outboxes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// S4: receipts that were found right go to the job list in one commit; files that all peers have now may leave.
    async fn delivered(&self, proofs: Vec<(Proof, Receipt)>) -> Result<(), DbError> {
        let (proofs, receipts): (Vec<_>, Vec<_>) = proofs.into_iter().unzip();
        self.queue.delivered(proofs, now_ms()).await?;
        self.disposal.notify_one();
        for receipt in receipts {
            // Nobody listens but the demo.
            let _ = self.deliveries.send(Arc::new(receipt));
        }
        Ok(())
    }

    /// The outbox looks at the job's file again: it is no longer what was queued.
    fn recheck(&self, job: &Job) {
        if let Some(outbox) = self.outbox(job.found.outbox) {
            outbox.recheck(job.found.path.clone());
        }
    }

    /// The outbox that has this mark now.
    fn outbox(&self, id: OutboxId) -> Option<Outbox> {
        self.outboxes().into_iter().find(|o| o.id() == Some(id))
    }
}

/// One dispatcher a peer, and the task that hands each its link's events.
fn start_dispatch(
    shared: &Arc<Shared>,
    config: &Config,
    mut events: mpsc::Receiver<LinkEvent>,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) {
    let mut doors = HashMap::new();
    for peer in &config.peers {
        let (door, inbox) = mpsc::channel(EVENTS);
        doors.insert(peer.id, door);
        tasks.spawn(dispatch::Dispatcher::run(
            shared.clone(),
            peer.clone(),
            inbox,
            cancel.clone(),
        ));
    }
    let cancel = cancel.clone();
    tasks.spawn(async move {
        while let Some(Some(event)) = cancel.run_until_cancelled(events.recv()).await {
            if let Some(door) = doors.get(&event.peer()) {
                // Only a dispatcher that ended (the agent stops) does not take it.
                let _ = door.send(event).await;
            }
        }
    });
}

async fn keep_checkpoints(
    queue: Queue,
    mut kept: mpsc::Receiver<(DropId, Vec<u8>)>,
    cancel: CancellationToken,
) {
    let mut batch = Vec::with_capacity(CHECKPOINTS);
    while cancel
        .run_until_cancelled(kept.recv_many(&mut batch, CHECKPOINTS))
        .await
        .is_some_and(|n| n > 0)
    {
        // Of each file only the newest counts.
        let newest: HashMap<_, _> = batch.drain(..).collect();
        for (drop, bytes) in newest {
            if let Err(error) = queue.keep_checkpoints(drop, bytes).await {
                warn!(%error, "the job list failed");
            }
        }
    }
}

async fn keep_house(shared: Arc<Shared>, cancel: CancellationToken) {
    let retry = shared.config().retry;
    // A short `give_up_after` is kept to within a quarter.
    let period = retry.give_up_after.map_or(HOUSEKEEPING, |after| {
        (after / 4).clamp(Duration::from_secs(1), HOUSEKEEPING)
    });
    while cancel
        .run_until_cancelled(tokio::time::sleep(period))
        .await
        .is_some()
    {
        if let Err(error) = house_round(&shared, period, retry).await {
            warn!(%error, "the job list failed");
        }
        // What ended is withdrawn, what was pulled in is due.
        shared.wake_all();
    }
}

async fn house_round(shared: &Shared, period: Duration, retry: Retry) -> Result<(), DbError> {
    let queue = &shared.queue;
    clock::advance(&shared.db, period).await?;
    queue.pull_in(now_ms(), retry.max).await?; // the clock may have been set back
    if let Some(give_up_after) = retry.give_up_after {
        queue.expire(give_up_after, now_ms()).await?;
    }
    while queue.sweep().await? {}
    shared.inbox.sweep().await
}

fn job_list(error: &DbError) -> Fatal {
    Fatal::new(Exit::Disk, error).mend("make room on or mend the disk of the state folder")
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fatal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Fatal::new(Exit::Failed, format_args!("a task failed: {e}")))
}
