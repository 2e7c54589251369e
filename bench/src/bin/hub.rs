//! One agent that many are linked to: its memory, how soon it answers, what it does while nothing happens, how long
//! one file takes to all of them, and one from each at the same time.
//!
//! `hub [DROPWIRE [LINKS]]`. The agent is real, and so is its config. The others are no more than what a link
//! needs: a key, TLS, the conversation, a storage that forgets the bytes once it has signed for them, and files of
//! zeros. All of them live in this process.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use dropwire::identity::Identity;
use dropwire_bench::{
    failed,
    home::Home,
    process::{Running, eventually, output},
    statistics::Spread,
};
use dropwire_protocol::{
    AgentId, Conversation, Digest, Event, FrameCodec, Kind, Local, Manifest, Mtime, ReceiptBody, RemotePath,
    RunningDigest, TransferId,
    message::{DeclineReason, Hello, MAX_CHUNK},
    receiver::{Command as Storage, Outcome},
    sender::SenderEvent,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    sync::{Semaphore, watch},
    time::timeout_at,
};
use tokio_rustls::TlsConnector;
use tokio_util::codec::{Decoder as _, Encoder as _};

const LINKS: usize = 1000;
/// Handshakes at once: the agent bounds those who have not proven their key.
const AT_ONCE: usize = 32;
const QUIET: Duration = Duration::from_secs(30);
const ANSWERS: usize = 21;
/// Bytes of what each sends to it.
const SIZES: [u64; 2] = [4 << 10, 1 << 20];
static ZEROS: [u8; MAX_CHUNK] = [0; MAX_CHUNK];

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let beside = std::env::current_exe()?.with_file_name("dropwire");
    let program = arguments.next().map_or(beside, PathBuf::from);
    let links = match arguments.next() {
        Some(number) => number
            .parse()
            .map_err(|_| failed(format!("{number} is no number")))?,
        None => LINKS,
    };
    let home = tempfile::tempdir()?;
    let hub = Hub::new(&program, home.path())?;
    let others: Vec<Arc<Identity>> = (0..links).map(|_| Arc::new(Identity::generate())).collect();
    let running = hub.start(&others)?;
    let runtime = Runtime::new()?;
    let tally = Arc::new(Tally::default());
    row("started, no link yet", &running)?;

    let began = Instant::now();
    let (offer, offers) = watch::channel(0);
    runtime.spawn(link_all(others, hub.target()?, Arc::clone(&tally), offers));
    until("all are linked", &running, || hub.linked() == links)?;
    println!("{links} linked after {:.1} s", began.elapsed().as_secs_f64());
    row("all linked", &running)?;

    let (cpu, switches) = (running.cpu()?, running.switches()?);
    std::thread::sleep(QUIET);
    println!(
        "at rest for {} s: {:.2} s of processor, {} times awake",
        QUIET.as_secs(),
        running.cpu()? - cpu,
        running.switches()?.saturating_sub(switches) // of threads that are there still
    );
    hub.answer("at rest")?;

    let began = Instant::now();
    fs::write(home.path().join("outbox/one"), "one for each")?;
    until("one file to all", &running, || {
        tally.taken.load(Ordering::Relaxed) >= links
    })?;
    println!("one file to all after {:.2} s", began.elapsed().as_secs_f64());
    until("the outbox is empty", &running, || {
        !home.path().join("outbox/one").exists()
    })?;
    println!("out of the outbox after {:.2} s", began.elapsed().as_secs_f64());
    hub.answer("after it")?;
    row("after it", &running)?;

    for size in SIZES {
        let began = Instant::now();
        let goal = tally.given.load(Ordering::Relaxed) + links;
        // A receiver of this lives as long as the links do.
        let _ = offer.send(size);
        let what = format!("{} KiB from each", size >> 10);
        until(&what, &running, || {
            tally.given.load(Ordering::Relaxed) + tally.failed.load(Ordering::Relaxed) >= goal
        })?;
        println!("{what} after {:.2} s", began.elapsed().as_secs_f64());
        row("after it", &running)?;
    }
    hub.answer("after all")?;
    running.stop()?;
    let came = fs::read_dir(home.path().join("inbox"))?.count() - 1; // its own folder
    let (taken, given) = (
        tally.taken.load(Ordering::Relaxed),
        tally.given.load(Ordering::Relaxed),
    );
    let exactly = taken == links && given == SIZES.len() * links && came == given;
    let wrong = || failed(format!("{taken} of {links} taken, {given} given and {came} came"));
    exactly.then_some(()).ok_or_else(wrong)
}

/// Waits for as long as ever is needed, but not for an agent that is gone.
fn until(what: &str, running: &Running, done: impl Fn() -> bool) -> io::Result<()> {
    let mut last = Ok(());
    for _ in 0..10 {
        last = eventually(what, || Ok(done().then_some(())));
        if last.is_ok() {
            break;
        }
        row(what, running)?;
    }
    last
}

fn row(when: &str, running: &Running) -> io::Result<()> {
    let used = running.used()?;
    println!(
        "{when}: peak {:.1} MiB, {:.2} s of processor",
        used.peak, used.cpu
    );
    Ok(())
}

/// The agent under measurement.
struct Hub {
    home: Home,
}

impl Hub {
    fn new(program: &Path, root: &Path) -> io::Result<Self> {
        let hub = Self {
            home: Home::make(program, root)?,
        };
        hub.write_config(&[])?;
        output(&mut hub.home.command(&["init"]))?;
        Ok(hub)
    }

    fn write_config(&self, others: &[Arc<Identity>]) -> io::Result<()> {
        let mut peers = String::new();
        for (number, peer) in others.iter().enumerate() {
            let id = dropwire::id::format(peer.id());
            // A String takes all that is written.
            let _ = write!(peers, "[[peer]]\nname = \"peer-{number}\"\nid = {id:?}\n");
        }
        self.home
            .write_config("hub", "listen = \"127.0.0.1:0\"\n", "", &peers)
    }

    fn start(&self, others: &[Arc<Identity>]) -> io::Result<Running> {
        self.write_config(others)?;
        let mut command = self.home.command(&["run"]);
        command.env("RUST_LOG", "error");
        let mut running = Running::start(command, None)?;
        eventually("the agent answers", || {
            running.lives()?;
            Ok(self.home.status())
        })?;
        Ok(running)
    }

    /// Where and who it is.
    fn target(&self) -> io::Result<(SocketAddr, AgentId)> {
        let status = self.home.status().ok_or_else(|| failed("no status"))?;
        let address = status["listen"].as_str().and_then(|a| a.parse().ok());
        let id = dropwire::id::parse(&output(&mut self.home.command(&["id"]))?).map_err(io::Error::other)?;
        Ok((
            address.ok_or_else(|| failed(format!("no address: {status}")))?,
            id,
        ))
    }

    fn linked(&self) -> usize {
        let status = self.home.status().unwrap_or_default();
        let peers = status["peers"].as_array().map_or(&[][..], |peers| peers);
        peers.iter().filter(|peer| peer["connected"] == true).count()
    }

    /// How long the command takes that asks, its own start included.
    fn answer(&self, when: &str) -> io::Result<()> {
        let times: Vec<f64> = (0..ANSWERS)
            .map(|_| {
                let began = Instant::now();
                self.home.status().ok_or_else(|| failed("no status"))?;
                Ok(began.elapsed().as_secs_f64() * 1e3)
            })
            .collect::<io::Result<_>>()?;
        if let Some(Spread { median, least, most }) = Spread::of(&times) {
            println!("`status --json` {when}: {median:.1} ms ({least:.1} to {most:.1})");
        }
        Ok(())
    }
}

/// What all of them together have taken.
#[derive(Default)]
struct Tally {
    taken: AtomicUsize,
    /// With a receipt.
    given: AtomicUsize,
    /// Declined, and links that ended.
    failed: AtomicUsize,
}

async fn link_all(
    others: Vec<Arc<Identity>>,
    hub: (SocketAddr, AgentId),
    tally: Arc<Tally>,
    offers: watch::Receiver<u64>,
) {
    let doors = Arc::new(Semaphore::new(AT_ONCE));
    for identity in others {
        let Ok(door) = Arc::clone(&doors).acquire_owned().await else {
            return; // never closed
        };
        let peer = Peer::new(identity, hub.1, Arc::clone(&tally));
        let (offers, tally) = (offers.clone(), Arc::clone(&tally));
        tokio::spawn(async move {
            if let Err(error) = peer.run(hub.0, door, offers).await {
                eprintln!("a link ended: {error}");
                tally.failed.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

/// One of those who are linked to the hub.
struct Peer {
    identity: Arc<Identity>,
    hub: AgentId,
    tally: Arc<Tally>,
    open: HashMap<TransferId, (Manifest, RunningDigest)>,
    giving: Option<Giving>,
}

/// A file of zeros on its way to the hub.
struct Giving {
    id: TransferId,
    pass: u32,
    /// Of what was given.
    hash: RunningDigest,
}

impl Peer {
    fn new(identity: Arc<Identity>, hub: AgentId, tally: Arc<Tally>) -> Self {
        Self {
            identity,
            hub,
            tally,
            open: HashMap::new(),
            giving: None,
        }
    }

    /// Until the hub ends. The door is for the handshake.
    async fn run(
        mut self,
        to: SocketAddr,
        door: tokio::sync::OwnedSemaphorePermit,
        mut offers: watch::Receiver<u64>,
    ) -> Result<(), dropwire_protocol::Error> {
        let tcp = TcpStream::connect(to).await?;
        let config = self.identity.client_config(self.hub);
        let mut stream = TlsConnector::from(config)
            .connect(ServerName::from(to.ip()), tcp)
            .await?;
        let epoch = Instant::now();
        let mut door = Some(door);
        let mut conversation = Conversation::new(local(), Duration::ZERO);
        let mut codec = FrameCodec::default();
        let (mut read, mut write) = (BytesMut::new(), BytesMut::new());
        loop {
            while let Some(message) = conversation.poll_message() {
                codec.encode(message, &mut write)?;
            }
            stream.write_all_buf(&mut write).await?;
            stream.flush().await?;
            if let Some(message) = codec.decode(&mut read)? {
                conversation.receive(message, epoch.elapsed())?;
                while let Some(event) = conversation.poll_event() {
                    match event {
                        Event::Ready { .. } => drop(door.take()),
                        Event::Storage(command) => {
                            if let Some(outcome) = self.store(command) {
                                conversation.outcome(outcome);
                            }
                        }
                        Event::Sender(event) => self.told(event),
                        Event::SharedKey(_) => {}
                        Event::Bye(_) => return Ok(()),
                    }
                }
                self.give(&mut conversation, *offers.borrow());
                continue;
            }
            let deadline = (epoch + conversation.deadline()).into();
            let came = tokio::select! {
                came = timeout_at(deadline, stream.read_buf(&mut read)) => came,
                Ok(()) = offers.changed() => {
                    let size = *offers.borrow_and_update();
                    self.offer(&mut conversation, size);
                    continue;
                }
            };
            match came {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => conversation.tick(epoch.elapsed())?,
            }
        }
    }

    fn offer(&mut self, conversation: &mut Conversation, size: u64) {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&size.to_le_bytes()); // a file of each size
        let name = format!("{size} from {}", dropwire::id::format(self.identity.id()));
        if let (Some(sender), Ok(path)) = (conversation.sender(), RemotePath::parse(name.as_bytes())) {
            let manifest = Manifest {
                path,
                size,
                mtime: Mtime { seconds: 0, nanos: 0 },
                kind: Kind::File,
            };
            sender.offer(TransferId(id), manifest, false);
        }
    }

    fn told(&mut self, event: SenderEvent) {
        match event {
            SenderEvent::Read { id, pass, .. } => {
                self.giving = Some(Giving {
                    id,
                    pass,
                    hash: RunningDigest::default(),
                });
            }
            SenderEvent::Delivered { .. } => {
                self.tally.given.fetch_add(1, Ordering::Relaxed);
            }
            SenderEvent::Declined { text, .. } => {
                eprintln!("declined: {text}");
                self.tally.failed.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// As much as the hub takes now.
    fn give(&mut self, conversation: &mut Conversation, size: u64) {
        let (Some(giving), Some(sender)) = (&mut self.giving, conversation.sender()) else {
            return;
        };
        let Giving { id, pass, hash } = giving;
        loop {
            let left = size - hash.length();
            let length = left.min(sender.credit(*id, *pass)).min(MAX_CHUNK as u64);
            if length == 0 {
                if left == 0 {
                    sender.done(*id, *pass, hash.value());
                    self.giving = None;
                }
                return;
            }
            let (offset, bytes) = (hash.length(), Bytes::from_static(&ZEROS[..length as usize]));
            hash.update(&bytes);
            sender.chunk(*id, *pass, offset, bytes, hash.value());
        }
    }

    /// A storage that keeps nothing but the digest.
    fn store(&mut self, command: Storage) -> Option<Outcome> {
        match command {
            Storage::Open {
                id,
                sequence,
                manifest,
                ..
            } => {
                let hash = RunningDigest::default();
                let digest = hash.value();
                self.open.insert(id, (manifest, hash));
                Some(Outcome::Opened {
                    id,
                    sequence,
                    offset: 0,
                    digest,
                })
            }
            Storage::Write {
                id,
                sequence,
                offset,
                bytes,
                ..
            } => {
                let (_, hash) = self.open.get_mut(&id)?;
                hash.update(&bytes);
                let offset = offset + bytes.len() as u64;
                Some(Outcome::Written { id, sequence, offset })
            }
            Storage::Finish {
                id, sequence, digest, ..
            } => {
                let (manifest, hash) = self.open.remove(&id)?;
                if hash.value() != digest {
                    return Some(Outcome::Refused {
                        id,
                        sequence,
                        reason: DeclineReason::Conflict,
                        text: "another digest".into(),
                        retry_after_ms: None,
                    });
                }
                self.tally.taken.fetch_add(1, Ordering::Relaxed);
                let receipt = self.identity.sign(&self.receipt(id, manifest, digest));
                Some(Outcome::Committed {
                    id,
                    sequence,
                    receipt,
                })
            }
            Storage::Release { id, .. } => {
                self.open.remove(&id);
                None
            }
            Storage::Withdraw { id } => Some(Outcome::Withdrawn { id }),
            Storage::Forget { ids, .. } => Some(Outcome::Forgotten { ids }),
        }
    }

    fn receipt(&self, transfer: TransferId, manifest: Manifest, digest: Digest) -> ReceiptBody {
        ReceiptBody {
            transfer,
            sender: self.hub,
            receiver: self.identity.id(),
            delivered_as: manifest.path.clone(),
            path: manifest.path,
            size: manifest.size,
            digest,
            delivered_at: 0,
            salt: [0; 16],
        }
    }
}

fn local() -> Local {
    Local {
        hello: Hello {
            version_min: 0, // both are filled in by the conversation
            version_max: 0,
            name: "one of many".into(),
            software: "hub".into(),
            window: 1 << 20,
            max_open: 256,
            run: None,
        },
        max_file_size: None,
        ping_after: Duration::from_secs(20),
        dead_after: Duration::from_secs(120),
    }
}
