//! The agent: wires the rooms, starts them, stops them, and follows the config. It knows nothing of a job's way, which is
//! the [`sender`]'s, nor of commands, which [`crate::commands`] carries out.

mod arrival;
mod ends;
mod maintenance;
mod offline;
mod program;
mod reload;
mod state;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use dropwire_protocol::{AgentId, Receipt};
use tokio::sync::{broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    clock::now_ms,
    commands::{ConfigError, Names, RunningAgent, Starting},
    config::{Config, Current, paths::Paths},
    control,
    db::{Db, DbError},
    error::{Exit, Fatal, chain, shown},
    identity::Identity,
    leaving::spool,
    link::{self, Links},
    owner::Me,
    queue::Queue,
    receiver::Inbox,
    sender::{self, Sender, folder_setting},
};
pub use offline::adopt_offline;
pub use program::more_descriptors;
pub use reload::Reloaded;
use state::patiently;
pub use state::{check_private, private_folder};

/// What `check` asks without an agent.
pub use crate::link::{Unreached, probe};

/// How long a clean end may take.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A running agent.
pub struct Agent {
    /// What is in effect; a reload replaces it whole.
    config: watch::Sender<Arc<Config>>,
    config_error: ConfigError,
    state_dir: PathBuf,
    identity: Arc<Identity>,
    db: Db,
    queue: Queue,
    links: Links,
    inbox: Inbox,
    sender: Sender,
    names: Names,
    tasks: TaskTracker,
    /// Ends watching, dispatching and the control socket.
    cancel: CancellationToken,
    _state: Arc<state::Locked>,
}

impl Agent {
    /// Opens the state folder, recovers what a crash left, and starts everything. The agent is ready when it returns;
    /// what passes is waited for, and commands are told so meanwhile. Dropped before, nothing of it goes on.
    pub async fn start(config: Config, paths: &Paths) -> Result<Self, Fatal> {
        let cancel = CancellationToken::new();
        let ends = cancel.clone().drop_guard();
        let tasks = TaskTracker::new();
        let agent = Self::started(config, paths, &tasks, &cancel).await;
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
    ) -> Result<Self, Fatal> {
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
        let queue = Queue::open(db.clone(), identity.clone(), now_ms(), config.retry.max).await?;
        folder_setting::check(&db, &config.outboxes).await?;
        let spool = paths.state_dir.join(spool::FOLDER);
        sender::clear_spool(&queue, spool.clone()).await?;
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
        let links = Links::start(
            reload::link_settings(&config),
            listener,
            identity.clone(),
            Arc::new(inbox.clone()),
            cancel.clone(),
        );
        let (config, current) = watch::channel(config);
        let current = Current::new(current);
        let parts = sender::Parts {
            own: identity.id(),
            config: current.clone(),
            db: db.clone(),
            queue: queue.clone(),
            links: links.clone(),
            spool,
        };
        let agent = Self {
            config,
            config_error: ConfigError::default(),
            state_dir: paths.state_dir.clone(),
            identity,
            db,
            queue,
            links,
            inbox,
            sender: Sender::start(parts, tasks.clone(), cancel.clone()),
            names: Names::new(current),
            tasks: tasks.clone(),
            cancel: cancel.clone(),
            _state: state,
        };
        match agent.begin(&starting).await {
            Ok(()) => Ok(agent),
            Err(error) => {
                agent.stop().await;
                Err(error.into())
            }
        }
    }

    async fn begin(&self, starting: &Starting) -> Result<(), DbError> {
        let Self {
            tasks,
            cancel,
            names,
            queue,
            inbox,
            ..
        } = self;
        let (config, current) = (self.config(), Current::new(self.config.subscribe()));
        names.learn(&self.db, queue, &config).await?;
        starting.runs(self.running_agent(current.clone()));
        tasks.spawn(arrival::run(
            inbox.clone(),
            current.clone(),
            names.clone(),
            cancel.clone(),
        ));
        tasks.spawn(ends::run(queue.clone(), names.clone(), cancel.clone()));
        let maintenance = maintenance::Task {
            config: current,
            db: self.db.clone(),
            queue: queue.clone(),
            inbox: inbox.clone(),
        };
        tasks.spawn(maintenance::run(maintenance, cancel.clone()));
        self.sender.begin_outboxes(&config.outboxes, &self.me()).await?;
        self.sender.reconcile();
        Ok(())
    }

    fn running_agent(&self, config: Current) -> RunningAgent {
        RunningAgent {
            config,
            config_error: self.config_error.clone(),
            started: Instant::now(),
            state_dir: self.state_dir.clone(),
            own: self.id(),
            db: self.db.clone(),
            queue: self.queue.clone(),
            links: self.links.clone(),
            inbox: self.inbox.clone(),
            outboxes: self.sender.outboxes().clone(),
            in_flight: self.sender.in_flight().clone(),
            cleanup: self.sender.cleanup().clone(),
            names: self.names.clone(),
        }
    }

    /// This agent, as the folders that it owns name it.
    fn me(&self) -> Me {
        Me {
            id: self.id(),
            name: self.config().name.clone(),
        }
    }

    /// Where it listens; None on a machine that only dials.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.links.listen_addr()
    }

    /// This agent's id.
    pub fn id(&self) -> AgentId {
        self.identity.id()
    }

    /// Every receipt that this agent accepts, as a sender, from now on.
    pub fn receipts(&self) -> broadcast::Receiver<Arc<Receipt>> {
        self.sender.receipts()
    }

    /// Returns only when the agent has to end: its job list cannot be written any more.
    pub async fn wait(&mut self) -> Fatal {
        let why = chain(&self.db.failed().await);
        Fatal::new(Exit::Disk, format_args!("the job list failed: {why}")).hint(format_args!(
            "check the disk of {}, then start the agent again; nothing is lost",
            shown(&self.state_dir)
        ))
    }

    /// Ends cleanly: links say Bye, what is being committed is finished; bounded in time.
    ///
    /// False: something is still at work (a disk that hangs). It ends with the process, in which no other agent may
    /// use these folders any more: the two would not know of each other's partials.
    pub async fn stop(self) -> bool {
        self.cancel.cancel();
        self.tasks.close();
        self.db.wait_no_longer(); // or tasks would wait for a full disk
        let ending = async {
            tokio::join!(self.links.shutdown(), self.tasks.wait());
            ends::tell(&self.queue, &self.names);
            self.inbox.shutdown().await;
            self.db.close().await;
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
