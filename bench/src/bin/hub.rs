//! One agent that many are linked to: its memory, how soon it answers, what it does while nothing happens, and how long
//! one file takes to all of them.
//!
//! `hub [DROPWIRE [LINKS]]`. The agent is real, and so is its config. The others are no more than what a link
//! needs: a key, TLS, the conversation, and a storage that forgets the bytes once it has signed for them. All of them
//! live in this process.

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

use bytes::BytesMut;
use dropwire::identity::Identity;
use dropwire_bench::{
    failed,
    home::Home,
    process::{Running, eventually, output},
    statistics::Spread,
};
use dropwire_protocol::{
    AgentId, Conversation, Digest, Event, FrameCodec, Local, Manifest, ReceiptBody, RunningDigest,
    TransferId,
    message::{DeclineReason, Hello},
    receiver::{Command as Storage, Outcome},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    sync::Semaphore,
    time::timeout_at,
};
use tokio_rustls::TlsConnector;
use tokio_util::codec::{Decoder as _, Encoder as _};

const LINKS: usize = 1000;
/// Handshakes at once: the agent bounds those who have not proven their key.
const AT_ONCE: usize = 32;
const QUIET: Duration = Duration::from_secs(30);
const ANSWERS: usize = 21;

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
    runtime.spawn(link_all(others, hub.target()?, Arc::clone(&tally)));
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
    running.stop()?;
    match tally.taken.load(Ordering::Relaxed) {
        taken if taken == links => Ok(()),
        taken => Err(failed(format!("{taken} deliveries of one file to {links}"))),
    }
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
    fn new(program: &Path, root: &Path) -> io::Result<Hub> {
        let hub = Hub {
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
}

async fn link_all(others: Vec<Arc<Identity>>, hub: (SocketAddr, AgentId), tally: Arc<Tally>) {
    let doors = Arc::new(Semaphore::new(AT_ONCE));
    for identity in others {
        let Ok(door) = Arc::clone(&doors).acquire_owned().await else {
            return; // never closed
        };
        let tally = Arc::clone(&tally);
        tokio::spawn(async move {
            if let Err(error) = Peer::new(identity, hub.1, tally).run(hub.0, door).await {
                eprintln!("a link ended: {error}");
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
}

impl Peer {
    fn new(identity: Arc<Identity>, hub: AgentId, tally: Arc<Tally>) -> Peer {
        Peer {
            identity,
            hub,
            tally,
            open: HashMap::new(),
        }
    }

    /// Until the hub ends. The door is for the handshake.
    async fn run(
        mut self,
        to: SocketAddr,
        door: tokio::sync::OwnedSemaphorePermit,
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
                        Event::Sender(_) => {}
                        Event::Bye(_) => return Ok(()),
                    }
                }
                continue;
            }
            match timeout_at(
                (epoch + conversation.deadline()).into(),
                stream.read_buf(&mut read),
            )
            .await
            {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => conversation.tick(epoch.elapsed())?,
            }
        }
    }

    /// A storage that keeps nothing but the digest.
    fn store(&mut self, command: Storage) -> Option<Outcome> {
        match command {
            Storage::Open {
                id,
                opening,
                manifest,
                ..
            } => {
                let hash = RunningDigest::default();
                let digest = hash.value();
                self.open.insert(id, (manifest, hash));
                Some(Outcome::Opened {
                    id,
                    opening,
                    offset: 0,
                    digest,
                })
            }
            Storage::Write {
                id,
                opening,
                offset,
                bytes,
                ..
            } => {
                let (_, hash) = self.open.get_mut(&id)?;
                hash.update(&bytes);
                let offset = offset + bytes.len() as u64;
                Some(Outcome::Written { id, opening, offset })
            }
            Storage::Finish {
                id, opening, digest, ..
            } => {
                let (manifest, hash) = self.open.remove(&id)?;
                if hash.value() != digest {
                    return Some(Outcome::Refused {
                        id,
                        opening,
                        reason: DeclineReason::Conflict,
                        text: "another digest".into(),
                        retry_after_ms: None,
                    });
                }
                self.tally.taken.fetch_add(1, Ordering::Relaxed);
                let receipt = self.identity.sign(&self.receipt(id, manifest, digest));
                Some(Outcome::Committed { id, opening, receipt })
            }
            Storage::Release { id, .. } => {
                self.open.remove(&id);
                None
            }
            Storage::Withdraw { id } => Some(Outcome::Withdrawn { id }),
            Storage::Forget { ids } => Some(Outcome::Forgotten { ids }),
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
        },
        max_file_size: None,
        ping_after: Duration::from_secs(20),
        dead_after: Duration::from_secs(120),
    }
}
