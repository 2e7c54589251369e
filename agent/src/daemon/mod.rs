//! The agent: the only room that knows all the others. It wires them, starts them, and stops them.
//!
//! ```text
//!  outbox ──Settled──▶ intake ──enqueue──▶ queue ◀──due, outcomes──▶ dispatch (one a peer) ◀──▶ link ◀──▶ inbox
//!     ▲                                      │
//!     └───────────── disposal ◀──to_dispose──┘                          control ──▶ office (answers the CLI)
//! ```

mod adopt;
mod arrival;
mod dispatch;
mod disposal;
mod doors;
mod doubts;
mod ends;
mod explain;
mod flight;
mod intake;
mod live;
mod office;
mod peers;
mod problems;
mod program;
mod proof;
mod reload;
mod rest;
mod selection;
mod sending;
mod starting;
mod state;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use dropwire_protocol::{AgentId, Receipt};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    clock::{self, now_ms},
    config::{Config, paths::Paths},
    control,
    db::{Db, DbError},
    error::{Exit, Fatal, shown},
    identity::Identity,
    inbox::Inbox,
    link::{self, Links},
    outbox::{Outbox, dispose::Siblings},
    owner::Me,
    queue::{DropId, Job, Proof, Queue},
    send::SmallReads,
    version::OutboxId,
};
pub use adopt::{offline as adopt_offline, trouble as folder_trouble};
use doors::Doors;
use live::Live;
pub use program::more_descriptors;
pub use reload::Reloaded;
use starting::{Starting, patiently};
pub use state::{check_private, private_folder};

/// What `check` asks without an agent.
pub use crate::link::{Unreached, probe};

/// Events of one link that may wait: more than one peer's requests in flight (the schedule's `MOST` offers, 256
/// withdrawals) can ever cause, so that nobody blocks.
const EVENTS: usize = 2048;
/// The copies of `send`, in the state folder.
const SPOOL: &str = "spool";
/// Checkpoints that wait for the job list; more are dropped, as the next one says more.
const CHECKPOINTS: usize = 16;
/// How long a clean end may take.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// The longest time between two notes of running time (retention and `give_up_after` count it, not the wall clock).
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// The same while no job waits: nothing is in a hurry then, and the disk may sleep.
const IDLE_HOUSEKEEPING: Duration = Duration::from_secs(600);

/// A running agent.
pub struct Agent {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Ends watching, dispatching and the control socket.
    cancel: CancellationToken,
    _state: Arc<state::Locked>,
}

/// What the agent's tasks share.
struct Shared {
    /// What holds now; a reload replaces it whole.
    config: RwLock<Arc<Config>>,
    /// Why what is written in the file does not hold.
    config_error: Mutex<Option<String>>,
    started: Instant,
    state_dir: PathBuf,
    identity: Arc<Identity>,
    db: Db,
    queue: Queue,
    links: Links,
    inbox: Inbox,
    outboxes: RwLock<Vec<intake::Running>>,
    doors: Doors,
    live: Live,
    reads: SmallReads,
    /// A peer's dispatcher looks for due jobs when woken.
    wakes: Mutex<HashMap<AgentId, Arc<Notify>>>,
    /// What they are called, also those that were taken out of the config.
    names: peers::Names,
    disposal: Notify,
    /// Folders that are left alone by it until something is told of them.
    changed: disposal::Changed,
    /// Delivered files that cannot leave.
    stuck: disposal::Stuck,
    siblings: Siblings,
    /// Outboxes whose disk lost what it was told to keep, and how that was told: nothing leaves them until the agent
    /// starts anew.
    unsynced: Mutex<HashMap<PathBuf, String>>,
    /// Jobs were queued: an idle agent is so no more.
    queued: Notify,
    /// How far large files were read, on the way to the job list.
    checkpoints: mpsc::Sender<(DropId, Vec<u8>)>,
    deliveries: broadcast::Sender<Arc<Receipt>>,
}

impl Agent {
    /// Opens the state folder, recovers what a crash left, and starts everything. The agent is ready when it returns; what
    /// passes is waited for, and commands are told so meanwhile. Dropped before, nothing of it goes on.
    pub async fn start(config: Config, paths: &Paths) -> Result<Agent, Fatal> {
        let cancel = CancellationToken::new();
        let ends = cancel.clone().drop_guard();
        let tasks = TaskTracker::new();
        let agent = Agent::started(config, paths, &tasks, &cancel).await;
        match agent {
            Ok(_) => drop(ends.disarm()),
            Err(_) => {
                cancel.cancel();
                tasks.close();
                tasks.wait().await; // the control socket is free for the next
            }
        }
        agent
    }

    async fn started(
        config: Config,
        paths: &Paths,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Result<Agent, Fatal> {
        let config = Arc::new(config);
        let waits = state::waits(&paths.state_dir);
        let folder = paths.state_dir.clone();
        let state = patiently(&waits, move || state::Locked::take(&folder)).await?;
        let state = Arc::new(state);
        let access = if paths.is_system() {
            control::Access::Group("dropwire".into())
        } else {
            control::Access::Owner
        };
        let control = control::Socket::open(&paths.control, access)?;
        let starting = Starting::new(&config.name, &paths.state_dir, waits.clone(), cancel.clone());
        let starting = Arc::new(starting);
        tasks.spawn(control::serve(control, starting.clone(), cancel.clone()));
        let (identity, db) = {
            let (state, told) = (state.clone(), waits.clone());
            patiently(&waits, move || state.open(&told)).await?
        };
        config.check_own_id(identity.id())?;
        let queue = Queue::open(db.clone(), identity.clone(), now_ms(), config.retry.max)
            .await
            .map_err(|e| job_list(&e))?;
        intake::clear_spool(&queue, paths.state_dir.join(SPOOL))
            .await
            .map_err(|e| job_list(&e))?;
        let listener = match &config.listen {
            Some(address) => Some(link::bind(address).await?),
            None => None,
        };
        // The last that may say no to a config: from here on things run, and end only all together.
        let inbox = Inbox::open(
            reload::inbox_settings(&config),
            db.clone(),
            identity.clone(),
            CancellationToken::new(),
        )
        .await?;
        let (events_in, events) = mpsc::channel(EVENTS);
        let links = Links::start(
            reload::link_settings(&config),
            listener,
            identity.clone(),
            Arc::new(inbox.clone()),
            events_in,
            cancel.clone(),
        );
        let (checkpoints, kept) = mpsc::channel(CHECKPOINTS);
        let shared = Arc::new(Shared {
            config: RwLock::new(config.clone()),
            config_error: Mutex::default(),
            started: Instant::now(),
            state_dir: paths.state_dir.clone(),
            identity,
            db,
            queue,
            links,
            inbox,
            outboxes: RwLock::default(),
            doors: Doors::default(),
            live: Live::default(),
            reads: SmallReads::default(),
            wakes: Mutex::default(),
            names: peers::Names::default(),
            disposal: Notify::new(),
            changed: disposal::Changed::default(),
            stuck: disposal::Stuck::default(),
            siblings: Siblings::default(),
            unsynced: Mutex::default(),
            queued: Notify::new(),
            checkpoints,
            deliveries: broadcast::channel(256).0,
        });
        let agent = Agent {
            shared,
            tasks: tasks.clone(),
            cancel: cancel.clone(),
            _state: state,
        };
        match agent.begin(&starting, events, kept).await {
            Ok(()) => Ok(agent),
            Err(error) => {
                agent.stop().await;
                Err(job_list(&error))
            }
        }
    }

    async fn begin(
        &self,
        starting: &Starting,
        events: mpsc::Receiver<link::LinkEvent>,
        kept: mpsc::Receiver<(DropId, Vec<u8>)>,
    ) -> Result<(), DbError> {
        let Agent {
            shared,
            tasks,
            cancel,
            ..
        } = self;
        let config = shared.config();
        shared.names.learn(&shared.db, &shared.queue, &config).await?;
        let office = office::Office {
            shared: shared.clone(),
        };
        starting.runs(office);
        for peer in &config.peers {
            shared.doors.open(shared, peer, tasks, cancel);
        }
        tasks.spawn(doors::pass_on(shared.clone(), events, cancel.clone()));
        tasks.spawn(disposal::run(shared.clone(), cancel.clone()));
        tasks.spawn(keep_checkpoints(shared.queue.clone(), kept, cancel.clone()));
        tasks.spawn(arrival::run(shared.clone(), cancel.clone()));
        tasks.spawn(ends::run(shared.clone(), cancel.clone()));
        tasks.spawn(keep_house(shared.clone(), cancel.clone()));
        intake::begin(shared, &config.outboxes, tasks, cancel).await?;
        tasks.spawn(rest::run(shared.clone(), cancel.clone()));
        Ok(())
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
        Fatal::new(Exit::Disk, format_args!("the job list failed: {reason}")).mend(format_args!(
            "check the disk of {}, then start the agent again; nothing is lost",
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
        shared.db.wait_no_longer(); // or tasks would wait for a full disk
        let ending = async {
            tokio::join!(shared.links.shutdown(), self.tasks.wait());
            ends::tell(shared);
            shared.inbox.shutdown().await;
            shared.db.close().await;
        };
        let ended = tokio::time::timeout(STOP_DEADLINE, ending).await.is_ok();
        if ended {
            info!("stopped");
        } else {
            warn!("shutdown timed out; unfinished transfers resume at the next start");
        }
        ended
    }
}

impl Shared {
    /// This agent, as the folders that it owns name it.
    fn me(&self) -> Me {
        Me {
            id: self.identity.id(),
            name: self.config().name.clone(),
        }
    }

    fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn config_error(&self) -> Option<String> {
        let error = self.config_error.lock();
        error.unwrap_or_else(PoisonError::into_inner).clone()
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

    /// Why nothing leaves the outbox there any more.
    fn unsynced(&self, root: &Path) -> Option<String> {
        let unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        unsynced.get(root).cloned()
    }

    /// How long a delivered file is left in place in the outbox there.
    fn linger(&self, root: &Path) -> Duration {
        let config = self.config();
        let outbox = config.outboxes.iter().find(|outbox| outbox.path == root);
        outbox.map_or(Duration::ZERO, |outbox| outbox.linger)
    }

    /// Where `send` keeps its copies.
    fn spool(&self) -> PathBuf {
        self.state_dir.join(SPOOL)
    }

    fn outboxes(&self) -> Vec<Outbox> {
        let running = self.outboxes.read().unwrap_or_else(PoisonError::into_inner);
        running.iter().map(|running| running.outbox.clone()).collect()
    }

    /// S4: receipts that were found right go to the job list in one commit; files that all peers have now may leave.
    /// Returns those that prove nothing yet ([`Recorded::unproven`](crate::queue::Recorded::unproven)).
    async fn delivered(&self, proofs: Vec<(Proof, Receipt)>) -> Result<Vec<(Proof, Receipt)>, DbError> {
        let told = proofs.iter().map(|(proof, _)| proof.clone()).collect();
        let unproven = self.queue.delivered(told, now_ms()).await?.unproven;
        self.disposal.notify_one();
        let (unproven, recorded) = proofs
            .into_iter()
            .partition(|(proof, _)| unproven.contains(&proof.id));
        let recorded: Vec<(Proof, Receipt)> = recorded;
        for (_, receipt) in recorded {
            // Nobody listens but the demo.
            let _ = self.deliveries.send(Arc::new(receipt));
        }
        Ok(unproven)
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
    let mut ran_since = Instant::now();
    while cancel.run_until_cancelled(house_pause(&shared)).await.is_some() {
        let ran = ran_since.elapsed();
        ran_since = Instant::now();
        if let Err(error) = house_round(&shared, ran).await {
            warn!(%error, "the job list failed");
        }
        // What ended is withdrawn, what was pulled in is due.
        shared.wake_all();
    }
    // An agent that is started for an hour each day ages too.
    if let Err(error) = clock::advance(&shared.db, ran_since.elapsed()).await {
        warn!(%error, "the job list failed");
    }
}

/// Until the next round: a period after the last one while jobs wait, or after one was queued.
async fn house_pause(shared: &Shared) {
    // A short `give_up_after` is kept to within a quarter.
    let period = shared.config().retry.give_up_after.map_or(HOUSEKEEPING, |after| {
        (after / 4).clamp(Duration::from_secs(1), HOUSEKEEPING)
    });
    let counts = shared.queue.counts().await;
    let idle = counts.is_ok_and(|counts| counts.oldest_queued_ms.is_none());
    if idle {
        let longest = tokio::time::sleep(IDLE_HOUSEKEEPING.saturating_sub(period));
        tokio::select! {
            () = longest => {}
            () = shared.queued.notified() => {}
        }
    }
    tokio::time::sleep(period).await;
}

async fn house_round(shared: &Shared, ran: Duration) -> Result<(), DbError> {
    let (queue, config) = (&shared.queue, shared.config());
    let retry = config.retry;
    clock::advance(&shared.db, ran).await?;
    queue.pull_in(now_ms(), retry.max).await?; // the clock may have been set back
    if let Some(give_up_after) = retry.give_up_after {
        queue.expire(give_up_after, now_ms()).await?;
    }
    while queue.sweep().await? {}
    shared.inbox.sweep().await
}

fn job_list(error: &DbError) -> Fatal {
    Fatal::new(Exit::Disk, error).mend("check the disk of the state folder")
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fatal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Fatal::new(Exit::Failed, format_args!("a task failed: {e}")))
}
