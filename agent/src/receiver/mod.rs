//! The receiving side: what arrives is written beside the inbox, verified, made durable, and only then seen under its
//! name.
//!
//! ```text
//!  link ── Command ──▶ session (a task a link) ─▶ writer (a thread a large transfer) ─┐
//!   ▲                   │ admit: R1, R2            │ partial, checkpoint: R3 to R5     ├─▶ commit: R6 to R9
//!   │                   └──▶ batch (one thread, all small files) ────────────────────────┘      │
//!   └─────────────────────────────────── Outcome ◀──────────────────────────────────────────────┘
//! ```
//!
//! The steps R1 to R9, and what a crash after each leaves, stand in `commit`, `admit`, `incoming` and `writer`;
//! `recover` clears up by the `rule`, for which `named` keeps a record. `ledger` remembers every offer,
//! `transfer_locks` keeps two links off one transfer, `verified_prefixes` spares a second reading, `inbox_dir` knows
//! whether the folder is there at all, `place` and `naming` find a free name below it, `space` reserves disk space,
//! `declines` tells when there is none, `elsewhere` copies to the `disks` inside it, `keeping` removes what nobody
//! comes back for, and `late` sets times that come after the delivery.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use dropwire_protocol::{AgentId, Kind, Receipt, ReceiptBody, RemotePath, TransferId, receiver::Outcome};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, broadcast, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::fair_queue::FairQueue;
use crate::{
    clock::now_ms,
    config::{self, Layout},
    db::{Db, DbError},
    error::{Exit, Fatal, chain},
    fs::disk::Disk,
    identity::Identity,
    link::{Commands, ReceiveBudget, Sink},
    owner::{Lock, Me},
    poison::Unpoisoned as _,
};

mod admit;
mod aliases;
mod asking;
mod batch;
mod byte_budget;
mod checkpoint;
mod commit;
mod declines;
mod dialect;
mod disks;
mod elsewhere;
mod evidence;
mod fair_queue;
mod inbox_dir;
mod incoming;
mod inherited;
mod keeping;
mod late;
mod ledger;
mod named;
mod naming;
mod output;
mod partial;
mod place;
mod placing;
mod recover;
mod reply;
mod rights;
mod row_bounds;
mod rule;
mod session;
mod space;
mod staging;
mod tally;
#[cfg(test)]
mod tests;
mod transfer_locks;
mod unpack;
mod verified_prefixes;
mod withdrawal;
mod writer;
mod writers;

pub use disks::{forget_missing_disks, missing_disks};
pub use inbox_dir::parted;
pub use ledger::{SCHEMA_1, SCHEMA_2, digests, give_up_elsewhere, placing_elsewhere};

/// Commands of one link that wait.
const COMMANDS: usize = 64;
/// Bytes of chunks that wait for a session or a writer, all links together.
const ROOM: usize = 6 << 20;
/// Links of one peer that are served, or still at work on what came by them, at the same time: one, and some that ended
/// just now. A peer that makes and drops links without end waits for its own.
const LINKS: usize = 4;
/// Links that are served at the same time, each by a thread that may block: where the inbox's disk hangs, so many hang
/// with it, and the runtime has more for all other work.
const TURNS: usize = 1024;
/// Outcomes of one link that wait; a live link never lets it come near (see `reply::Outcomes`).
const OUTCOMES: usize = 8192;
/// How long a start waits for the first check of the inbox's folder.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Arrivals that wait for a slow listener.
const ARRIVALS: usize = 1024;

/// What the inbox needs of the config.
#[derive(Clone, Debug)]
pub struct Settings {
    /// None on a machine that only sends: every offer is declined.
    pub inbox: Option<config::Inbox>,
    /// For the folders' names in the layout by peer.
    pub peers: Vec<config::Peer>,
    /// This agent's name.
    pub name: String,
    /// Folders that the inbox must not be a copy of.
    pub outboxes: Vec<PathBuf>,
}

impl Settings {
    fn peer_ids(&self) -> HashSet<AgentId> {
        self.peers.iter().map(|peer| peer.id).collect()
    }

    fn min_free(&self) -> Option<u64> {
        self.inbox.as_ref().and_then(|inbox| inbox.min_free)
    }

    /// In the layout by peer, the folder of each.
    fn tops(&self) -> Option<HashMap<AgentId, String>> {
        let by_peer = self.inbox.as_ref()?.layout == Layout::ByPeer;
        let top = |peer: &config::Peer| (peer.id, peer.name.clone());
        by_peer.then(|| self.peers.iter().map(top).collect())
    }
}

/// How the inbox is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InboxStatus {
    /// None without an inbox.
    pub path: Option<PathBuf>,
    /// None while it is held, and where the file system does not tell.
    pub free_bytes: Option<u64>,
    /// Ever delivered.
    pub received_files: u64,
    /// Bytes ever delivered.
    pub received_bytes: u64,
    /// Why nothing is taken, as of the last check.
    pub held: Option<String>,
    /// Why files are declined: for lack of space, or by what its disk says.
    pub declined: Option<String>,
    /// Why nothing is taken for some of its folders: their disks are missing.
    pub missing: Option<String>,
}

/// A file that has just arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Absolute.
    pub path: PathBuf,
    /// Who sent it.
    pub peer: AgentId,
    /// Its job there.
    pub job: TransferId,
}

/// The inbox; clones are the same one.
#[derive(Clone)]
pub struct Inbox {
    shared: Arc<Shared>,
    /// None after the shutdown.
    batch: Arc<Mutex<Option<Arc<FairQueue<batch::Small>>>>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    sessions: TaskTracker,
    asking: Arc<asking::Asking<Disks>>,
}

/// One receipt for each body, in their order.
type Sign = Box<dyn Fn(&[ReceiptBody]) -> Vec<Receipt> + Send + Sync>;

/// What all threads of an inbox share.
struct Shared {
    db: Db,
    handle: inbox_dir::InboxHandle,
    transfer_locks: Arc<transfer_locks::TransferLocks>,
    verified_prefixes: verified_prefixes::VerifiedPrefixes,
    places: Arc<place::Places>,
    space: Arc<space::Space>,
    tally: tally::Tally,
    declines: Arc<declines::Declines>,
    byte_budget: Arc<byte_budget::ByteBudget>,
    begun: Arc<byte_budget::ByteBudget>,
    room: ReceiveBudget,
    turns: Arc<Semaphore>,
    /// [`LINKS`] for each peer that has one.
    links: Mutex<HashMap<AgentId, Arc<Semaphore>>>,
    me: AgentId,
    sign: Sign,
    outboxes: Vec<PathBuf>,
    /// The folder of each peer; None: all together.
    tops: RwLock<Option<HashMap<AgentId, String>>>,
    files: AtomicU64,
    bytes: AtomicU64,
    /// Large transfers that are open.
    large: AtomicUsize,
    /// What they have of memory beyond one block each.
    spare_blocks: Arc<output::SpareBlocks>,
    arrivals: broadcast::Sender<Arrival>,
    /// Held by whoever finishes copies that nobody offers again.
    finishing: Mutex<()>,
    runtime: Handle,
    /// Made durable in this run, while their rows are on their way to *delivered*.
    placed: Mutex<HashSet<transfer_locks::Key>>,
    /// These rows' writing.
    rows: TaskTracker,
    cancel: CancellationToken,
}

impl Inbox {
    /// Opens the inbox and finishes what a crash left *placing*. One that is not there is no error: it is held, and
    /// looked for at each offer. It is never made.
    ///
    /// Fails only where the job list does.
    pub async fn open(
        settings: Settings,
        db: Db,
        identity: Arc<Identity>,
        cancel: CancellationToken,
    ) -> Result<Self, Fatal> {
        let me = identity.id();
        Self::with_signer(
            settings,
            db,
            me,
            Box::new(move |bodies| identity.sign_all(bodies)),
            cancel,
        )
        .await
    }

    async fn with_signer(
        settings: Settings,
        db: Db,
        me: AgentId,
        sign: Sign,
        cancel: CancellationToken,
    ) -> Result<Self, Fatal> {
        crate::fs::disk::survive_file_size_limit();
        let failed = |e: DbError| Fatal::new(Exit::Disk, chain(&e));
        let (aliases, (files, bytes)) = db
            .call({
                let peers = settings.peer_ids();
                move |tx| {
                    ledger::bound_aliases(tx, &peers, aliases::MOST)?;
                    Ok((ledger::aliases(tx)?, ledger::totals(tx)?))
                }
            })
            .await
            .map_err(failed)?;
        let counted = db.read(ledger::tally).await.map_err(failed)?;
        let tally = tally::Tally::new(counted, tally::Rows::bound(db.disk_size()));
        let shared = Arc::new(Shared {
            db,
            handle: inbox_dir::InboxHandle::new(
                settings.inbox.as_ref().map(|i| i.path.clone()),
                Me {
                    id: me,
                    name: settings.name.clone(),
                },
            ),
            transfer_locks: Arc::default(),
            verified_prefixes: verified_prefixes::VerifiedPrefixes::default(),
            places: place::Places::new(aliases),
            space: space::Space::new(settings.min_free()),
            tally,
            declines: Arc::default(),
            byte_budget: byte_budget::ByteBudget::new(batch::MEMORY),
            begun: byte_budget::ByteBudget::new(session::BEGUN),
            room: ReceiveBudget::new(ROOM),
            turns: Arc::new(Semaphore::new(TURNS)),
            links: Mutex::default(),
            me,
            sign,
            outboxes: settings.outboxes.clone(),
            tops: RwLock::new(settings.tops()),
            files: files.into(),
            bytes: bytes.into(),
            large: AtomicUsize::new(0),
            spare_blocks: Arc::default(),
            arrivals: broadcast::Sender::new(ARRIVALS),
            finishing: Mutex::default(),
            runtime: Handle::current(),
            placed: Mutex::default(),
            rows: TaskTracker::new(),
            cancel,
        });
        let first_look = tokio::task::spawn_blocking({
            let shared = shared.clone();
            move || shared.open_inbox().map(drop)
        });
        match tokio::time::timeout(FIRST_LOOK, first_look).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(Fatal::new(Exit::Failed, format_args!("opening the inbox: {e}"))),
            // It goes on by itself; what sends need not wait for it.
            Err(_) => tracing::warn!("the inbox is held: {}", inbox_dir::NO_LOOK),
        }
        let batch = Arc::new(FairQueue::new());
        let thread = thread::Builder::new().name("inbox-small".into()).spawn({
            let (shared, waiting) = (shared.clone(), batch.clone());
            move || batch::run(&shared, &waiting)
        });
        let thread = thread.map_err(|e| Fatal::io("starting the inbox's thread", &e))?;
        Ok(Self {
            shared,
            batch: Arc::new(Mutex::new(Some(batch))),
            thread: Arc::new(Mutex::new(Some(thread))),
            sessions: TaskTracker::new(),
            asking: Arc::default(),
        })
    }

    /// The config says this now. Takes up what stays free and the peers' names; path and layout are those it was
    /// opened with.
    pub fn apply(&self, settings: &Settings) {
        let shared = &self.shared;
        shared.space.set_min_free(settings.min_free());
        shared.places.keep_aliases_of(&settings.peer_ids()); // the ledger lets them go at the next start
        let mut tops = shared.tops.write().unpoisoned();
        if let (Some(tops), Some(now)) = (tops.as_mut(), settings.tops()) {
            tops.extend(now); // something of one who is gone may still be on its way
        }
    }

    /// Checks its folder now, and says why it is held if it is. Blocks.
    pub fn recheck(&self) -> Result<(), String> {
        let inbox_dir = self.shared.open_inbox().map_err(|trouble| trouble.reason)?;
        inbox_dir.disks.reload().map_err(|error| error.to_string())
    }

    /// The lock of its folder.
    pub fn lock(&self) -> &Lock {
        self.shared.handle.lock()
    }

    /// How it is doing, as far as its disk answers in time.
    pub async fn status(&self) -> InboxStatus {
        let shared = self.shared.clone();
        let (disks, silent) = self
            .asking
            .ask(asking::PATIENCE, move || shared.ask_disks())
            .await;
        let seen = self.shared.handle.last_seen();
        let path = self.shared.handle.path().map(PathBuf::from);
        let silent = silent.map(|since| format!("its disk has not answered for {} s", since.as_secs()));
        InboxStatus {
            free_bytes: disks.free.filter(|_| seen.is_ok()),
            received_files: self.shared.files.load(Ordering::Relaxed),
            received_bytes: self.shared.bytes.load(Ordering::Relaxed),
            held: seen.err().or(silent).filter(|_| path.is_some()),
            declined: self.shared.declines.reason(Instant::now()),
            missing: (!disks.missing.is_empty()).then(|| disks.missing.join("; ")),
            path,
        }
    }

    /// Where it is, and on which device, as it was seen last while it was there.
    pub fn place(&self) -> Option<(PathBuf, u64)> {
        let inbox_dir = self.shared.handle.last_seen().ok()?;
        Some((inbox_dir.path.clone(), inbox_dir.device()))
    }

    /// Every file that arrives from now on. A listener that is slow by more than 1,024 files misses the oldest, and is
    /// told so.
    pub fn arrivals(&self) -> broadcast::Receiver<Arrival> {
        self.shared.arrivals.subscribe()
    }

    /// Releases everything open, after the last checkpoint, and ends all threads.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        let batch = self.batch.lock().unpoisoned().take();
        self.sessions.close();
        self.sessions.wait().await;
        batch.iter().for_each(|batch| batch.close());
        let thread = self.thread.lock().unpoisoned().take();
        let _ = tokio::task::spawn_blocking(|| thread.map(JoinHandle::join)).await;
        self.shared.rows.close();
        self.shared.rows.wait().await;
        self.shared.handle.lock().release();
    }
}

impl Sink for Inbox {
    fn attach(&self, peer: AgentId) -> (Commands, mpsc::Receiver<Outcome>) {
        let (commands_in, commands) = mpsc::channel(COMMANDS);
        let (outcomes, outcomes_out) = mpsc::channel(OUTCOMES);
        let batch = self.batch.lock().unpoisoned().clone();
        if let Some(batch) = batch {
            let session = session::ReceiveSession::new(
                self.shared.clone(),
                peer,
                reply::Outcomes::new(outcomes, self.shared.declines.clone()),
                batch,
            );
            let serving = session.run(commands, self.shared.links_of(peer));
            self.sessions.spawn_on(serving, &self.shared.runtime);
        }
        (Commands::new(commands_in, self.shared.room.clone()), outcomes_out)
    }
}

/// What only the disks can tell.
#[derive(Clone, Default)]
struct Disks {
    free: Option<u64>,
    missing: Vec<String>,
}

impl Shared {
    /// May block where a disk hangs.
    fn ask_disks(&self) -> Disks {
        let Ok(inbox_dir) = self.open_inbox() else {
            return Disks::default();
        };
        let disk = Disk::of(&inbox_dir.root).ok().flatten();
        Disks {
            free: disk.map(|disk| disk.free),
            missing: inbox_dir.disks.missing(&inbox_dir.root),
        }
    }

    /// The inbox, checked again; see [`inbox_dir::InboxHandle::open`].
    fn open_inbox(&self) -> Result<Arc<inbox_dir::InboxDir>, inbox_dir::Trouble> {
        self.handle.open(|path| recover::open(self, path))
    }

    fn links_of(&self, peer: AgentId) -> Arc<Semaphore> {
        let mut links = self.links.lock().unpoisoned();
        links.retain(|_, places| Arc::strong_count(places) > 1);
        let most = match crate::failpoints::mutant("session-links") {
            true => Semaphore::MAX_PERMITS,
            false => LINKS,
        };
        let places = links
            .entry(peer)
            .or_insert_with(|| Arc::new(Semaphore::new(most)));
        places.clone()
    }

    /// The folder for a peer's files, if each has one.
    fn top(&self, peer: AgentId) -> Option<String> {
        let tops = self.tops.read().unpoisoned();
        let tops = tops.as_ref()?;
        Some(tops.get(&peer).cloned().unwrap_or_else(|| format!("{peer:?}")))
    }

    /// Counts and tells of a file that lies in the inbox for good.
    fn delivered(
        &self,
        inbox_dir: &inbox_dir::InboxDir,
        key: transfer_locks::Key,
        place: &RemotePath,
        size: u64,
    ) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        let below: PathBuf = place.components().map(naming::os_name).collect();
        let path = inbox_dir.path.join(below);
        let (peer, job) = key;
        let _ = self.arrivals.send(Arrival { path, peer, job }); // nobody listens: fine
    }

    /// R8 has ended for these: their receipts are true.
    fn note_placed(&self, placed: &[(transfer_locks::Key, Kind, u64)]) {
        self.lock_placed().extend(placed.iter().map(|(key, ..)| *key));
    }

    /// Is its receipt true, though its row may still say *placing*?
    fn is_placed(&self, key: transfer_locks::Key) -> bool {
        self.lock_placed().contains(&key)
    }

    /// R9's rows. Nobody waits for them: until they are there, the rule gives the same receipts.
    fn write_down_delivered(
        self: &Arc<Self>,
        named: Arc<named::Named>,
        rows: Vec<(transfer_locks::Key, Kind, u64)>,
        placings: Vec<Arc<placing::Placing>>,
    ) {
        let (shared, now) = (self.clone(), now_ms());
        let writing = async move {
            let delivered = rows.clone();
            let change = move |tx: &rusqlite::Transaction<'_>| ledger::deliver(tx, &delivered, now).map(drop);
            match shared.db.call_soon(change).await {
                Ok(()) => {
                    rows.iter().for_each(|(key, ..)| {
                        shared.lock_placed().remove(key);
                    });
                    placings.iter().for_each(|placing| named.forget(&placing.receipt));
                }
                Err(error) => tracing::error!(error = %chain(&error), "deliveries could not be written down"),
            }
        };
        self.rows.spawn_on(writing, &self.runtime);
    }

    fn lock_placed(&self) -> MutexGuard<'_, HashSet<transfer_locks::Key>> {
        self.placed.lock().unpoisoned()
    }
}
