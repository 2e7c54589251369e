//! Two agents' links with sources and sinks in memory, and a relay between them that can fail.
//!
//! The harness plays the daemon: what is not delivered is offered again on each Up.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use dropwire_protocol::{
    AgentId, Digest, Kind, Manifest, Mtime, Receipt, ReceiptBody, RemotePath, RunningDigest, TransferId,
    message::MAX_CHUNK,
    receiver::{Command, OfferSequence, Outcome},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::super::*;
use crate::{
    config,
    identity::{self, Identity},
};

/// Fails loudly instead of hanging.
pub(super) async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), what)
        .await
        .expect("it came to pass in time")
}

pub(super) fn identities() -> [Arc<Identity>; 2] {
    [Arc::new(Identity::generate()), Arc::new(Identity::generate())]
}

/// Two agents, the second dials the first; both are up.
pub(super) async fn linked() -> (Agent, Agent) {
    let [one, two] = identities();
    let mut a = Agent::start(&one, &two, None).await;
    let mut b = Agent::start(&two, &one, Some(a.addr())).await;
    within(async { tokio::join!(a.up(), b.up()) }).await;
    (a, b)
}

/// Paired with `peer` alone, without limits.
pub(super) fn settings(peer: AgentId, dial: Option<SocketAddr>) -> Settings {
    Settings {
        name: "agent".into(),
        peers: vec![config::Peer {
            name: "peer".into(),
            id: peer,
            address: dial.map(|addr| addr.to_string()),
            max_file_size: None,
        }],
        retry: config::Retry {
            first: Duration::from_millis(5),
            max: Duration::from_millis(50),
            give_up_after: None,
        },
        limits: config::Limits::default(),
    }
}

pub(super) struct File {
    pub(super) id: TransferId,
    pub(super) source: Arc<Bytewise>,
    pub(super) progress: Arc<AtomicU64>,
    pub(super) delivered: bool,
}

impl File {
    pub(super) fn new(id: [u8; 16], size: usize, gated: bool) -> Self {
        let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8 ^ id[1]).collect();
        let source = Bytewise {
            bytes: bytes.into(),
            open: watch::Sender::new(!gated),
        };
        Self {
            id: TransferId(id),
            source: Arc::new(source),
            progress: Arc::default(),
            delivered: false,
        }
    }

    pub(super) fn outgoing(&self) -> Outgoing {
        let manifest = Manifest {
            path: RemotePath::parse(format!("file {}", self.id).as_bytes()).unwrap(),
            size: self.source.bytes.len() as u64,
            mtime: Mtime { seconds: 0, nanos: 0 },
            kind: Kind::File,
        };
        Outgoing {
            id: self.id,
            manifest,
            eager: true,
            source: self.source.clone(),
            progress: self.progress.clone(),
        }
    }
}

pub(super) struct Agent {
    pub(super) identity: Arc<Identity>,
    pub(super) peer: AgentId,
    pub(super) links: Links,
    pub(super) events: mpsc::Receiver<LinkEvent>,
    pub(super) sink: Arc<Store>,
    pub(super) files: Vec<File>,
    pub(super) ups: usize,
    pub(super) downs: usize,
}

impl Agent {
    pub(super) async fn start(
        identity: &Arc<Identity>,
        peer: &Arc<Identity>,
        dial: Option<SocketAddr>,
    ) -> Self {
        Self::start_with(identity, peer, dial, Timing::default()).await
    }

    pub(super) async fn start_with(
        identity: &Arc<Identity>,
        peer: &Arc<Identity>,
        dial: Option<SocketAddr>,
        timing: Timing,
    ) -> Self {
        let settings = settings(peer.id(), dial);
        let sink = Store::new(identity);
        let as_sink: Arc<dyn Sink> = Arc::new(sink.clone());
        let listener = bind("127.0.0.1:0").await.unwrap();
        let links = Links::start_with(
            settings,
            Some(listener),
            identity.clone(),
            as_sink,
            CancellationToken::new(),
            timing,
        );
        let (identity, peer) = (identity.clone(), peer.id());
        let events = links.events(peer).unwrap();
        Self {
            identity,
            peer,
            links,
            events,
            sink,
            files: vec![],
            ups: 0,
            downs: 0,
        }
    }

    pub(super) fn id(&self) -> AgentId {
        self.identity.id()
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.links.listen_addr().unwrap()
    }

    pub(super) fn file(&self, size: usize, gated: bool) -> File {
        let mut id = [self.files.len() as u8; 16];
        id[0] = self.id().0[0];
        File::new(id, size, gated)
    }

    pub(super) async fn drop_files(&mut self, count: usize, size: usize) {
        for _ in 0..count {
            let file = self.file(size, false);
            self.offer(file).await;
        }
    }

    pub(super) fn open_gates(&self) {
        for file in &self.files {
            file.source.open.send_replace(true);
        }
    }

    pub(super) async fn offer(&mut self, file: File) {
        self.files.push(file);
        self.request(self.files.len() - 1).await;
    }

    /// An error means that there is no link; the next Up offers it again.
    pub(super) async fn request(&self, index: usize) {
        let file = &self.files[index];
        let _ = self
            .links
            .request(self.peer, Request::Offer(file.outgoing()))
            .await;
    }

    /// One event, as the daemon would take it. Down's error comes back.
    pub(super) async fn event(&mut self) -> Option<Option<String>> {
        match self.events.recv().await.expect("the links are there") {
            LinkEvent::Up => {
                self.ups += 1;
                assert_eq!(self.ups, self.downs + 1, "Up comes after Down");
                for index in 0..self.files.len() {
                    if !self.files[index].delivered {
                        self.request(index).await;
                    }
                }
            }
            LinkEvent::Down { error } => {
                self.downs += 1;
                assert_eq!(self.ups, self.downs, "Down comes after Up");
                return Some(error);
            }
            LinkEvent::Delivered { id, receipt } | LinkEvent::Settled { id, receipt } => {
                let body = identity::verify(&receipt).unwrap();
                assert_eq!(
                    (body.transfer, body.receiver, body.sender),
                    (id, self.peer, self.id())
                );
                let file = self.files.iter_mut().find(|file| file.id == id).unwrap();
                assert_eq!(body.digest, file.source.digest());
                file.delivered = true;
            }
            other => panic!("{other:?}"),
        }
        None
    }

    /// Takes events for as long as it is polled.
    pub(super) async fn current(&mut self) {
        loop {
            self.event().await;
        }
    }

    pub(super) async fn up(&mut self) {
        while self.ups == self.downs {
            self.event().await;
        }
    }

    pub(super) async fn down(&mut self) -> Option<String> {
        loop {
            if let Some(error) = self.event().await {
                return error;
            }
        }
    }

    pub(super) async fn all_delivered(&mut self) {
        while self.files.iter().any(|file| !file.delivered) {
            self.event().await;
        }
    }

    pub(super) async fn some_progress(&mut self) {
        while self
            .files
            .last()
            .is_some_and(|file| file.progress.load(Relaxed) == 0 && !file.delivered)
        {
            tokio::select! {
                _ = self.event() => {}
                () = tokio::task::yield_now() => {}
            }
        }
    }

    #[track_caller]
    pub(super) fn assert_lies_at(&self, other: &Self) {
        let lies = other.sink.lies();
        assert_eq!(lies.len(), self.files.len());
        for file in &self.files {
            assert!(lies[&file.id].0 == file.source.bytes, "{} is whole", file.id);
        }
    }
}

/// A source in memory that does not end before its gate is open.
pub(super) struct Bytewise {
    pub(super) bytes: Bytes,
    pub(super) open: watch::Sender<bool>,
}

impl Bytewise {
    pub(super) fn digest(&self) -> Digest {
        digest_of(&self.bytes)
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    let mut running = RunningDigest::default();
    running.update(bytes);
    running.value()
}

impl Source for Bytewise {
    fn read(&self, offset: u64, digest: Digest, out: mpsc::Sender<Piece>) {
        let (bytes, mut open) = (self.bytes.clone(), self.open.subscribe());
        tokio::spawn(async move {
            let mut running = RunningDigest::default();
            running.update(&bytes[..offset as usize]);
            assert_eq!(running.value(), digest);
            for (number, chunk) in bytes[offset as usize..].chunks(MAX_CHUNK).enumerate() {
                running.update(chunk);
                let offset = offset + (number * MAX_CHUNK) as u64;
                let (bytes, digest) = (Bytes::copy_from_slice(chunk), running.value());
                if out
                    .send(Piece::Chunk {
                        offset,
                        bytes,
                        digest,
                    })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            let _ = open.wait_for(|open| *open).await.map(drop);
            let _ = out
                .send(Piece::End {
                    digest: running.value(),
                })
                .await;
        });
    }
}

/// A sink in memory, with a ledger.
pub(super) struct Store {
    pub(super) identity: Arc<Identity>,
    pub(super) lies: Mutex<HashMap<TransferId, (Bytes, Receipt)>>,
    pub(super) stalled: watch::Sender<bool>,
    pub(super) changed: Notify,
}

impl Store {
    pub(super) fn new(identity: &Arc<Identity>) -> Arc<Self> {
        Arc::new(Self {
            identity: identity.clone(),
            lies: Mutex::default(),
            stalled: watch::Sender::new(false),
            changed: Notify::new(),
        })
    }

    pub(super) fn lies(&self) -> HashMap<TransferId, (Bytes, Receipt)> {
        self.lies.lock().unwrap().clone()
    }
}

/// The two halves of a test need the store behind an Arc.
impl Sink for Arc<Store> {
    fn attach(&self, peer: AgentId) -> (Commands, mpsc::Receiver<Outcome>) {
        let (commands, take) = mpsc::channel(2);
        let (give, outcomes) = mpsc::channel(2);
        tokio::spawn(store(self.clone(), peer, take, give));
        (Commands::new(commands, ReceiveBudget::new(0)), outcomes)
    }
}

pub(super) async fn store(
    store: Arc<Store>,
    sender: AgentId,
    mut commands: mpsc::Receiver<Command>,
    outcomes: mpsc::Sender<Outcome>,
) {
    let mut open: HashMap<TransferId, (OfferSequence, Manifest, Vec<u8>)> = HashMap::new();
    loop {
        let _ = store.stalled.subscribe().wait_for(|stalled| !stalled).await;
        let Some(command) = commands.recv().await else {
            return;
        };
        let known = |id| store.lies().get(&id).map(|(_, receipt)| receipt.clone());
        let outcome = match command {
            Command::Open {
                id,
                sequence,
                manifest,
                ..
            } => match known(id) {
                Some(receipt) => Outcome::Settled {
                    id,
                    sequence: Some(sequence),
                    receipt,
                },
                None => {
                    open.insert(id, (sequence, manifest, vec![]));
                    Outcome::Opened {
                        id,
                        sequence,
                        offset: 0,
                        digest: digest_of(b""),
                    }
                }
            },
            Command::Write {
                id,
                sequence,
                offset,
                bytes,
                digest,
                ..
            } => match open.get_mut(&id) {
                Some((_, _, file)) => {
                    assert_eq!(offset, file.len() as u64);
                    file.extend_from_slice(&bytes);
                    assert_eq!(digest, digest_of(file));
                    Outcome::Written {
                        id,
                        sequence,
                        offset: file.len() as u64,
                    }
                }
                None => continue,
            },
            Command::Finish {
                id, sequence, digest, ..
            } => {
                let Some((_, manifest, file)) = open.remove(&id) else {
                    continue;
                };
                assert_eq!((file.len() as u64, digest_of(&file)), (manifest.size, digest));
                let receipt = store.identity.sign(&ReceiptBody {
                    transfer: id,
                    sender,
                    receiver: store.identity.id(),
                    path: manifest.path.clone(),
                    delivered_as: manifest.path,
                    size: manifest.size,
                    digest,
                    delivered_at: 0,
                    salt: [0; 16],
                });
                let before = store
                    .lies
                    .lock()
                    .unwrap()
                    .insert(id, (file.into(), receipt.clone()));
                assert!(before.is_none(), "delivered once");
                store.changed.notify_one();
                Outcome::Committed {
                    id,
                    sequence,
                    receipt,
                }
            }
            Command::Release { id, .. } => {
                open.remove(&id);
                continue;
            }
            Command::Withdraw { id } => match known(id) {
                Some(receipt) => Outcome::Settled {
                    id,
                    sequence: None,
                    receipt,
                },
                None => Outcome::Withdrawn { id },
            },
            Command::Forget { ids, .. } => Outcome::Forgotten { ids },
        };
        if outcomes.send(outcome).await.is_err() {
            return;
        }
    }
}

/// A TCP relay whose target is named later, and whose connections can be cut, or frozen: open, but nothing passes.
pub(super) struct Relay {
    pub(super) addr: SocketAddr,
    pub(super) freeze: Arc<Notify>,
    pub(super) target: watch::Sender<Option<SocketAddr>>,
    pub(super) cut: Arc<Notify>,
    /// Of connections that ended in order: bytes in both directions.
    carried: mpsc::UnboundedReceiver<u64>,
}

impl Relay {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (target, cut, freeze) = (
            watch::Sender::new(None),
            Arc::new(Notify::new()),
            Arc::new(Notify::new()),
        );
        let (targets, cuts, freezes) = (target.subscribe(), cut.clone(), freeze.clone());
        let (tell, carried) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut targets, cut, freeze) = (targets.clone(), cuts.clone(), freezes.clone());
                let tell = tell.clone();
                tokio::spawn(async move {
                    let Ok(to) = targets.wait_for(Option::is_some).await.map(|to| to.unwrap()) else {
                        return;
                    };
                    let Ok(mut far) = TcpStream::connect(to).await else {
                        return;
                    };
                    tokio::select! {
                        // One that ends in an error must not stay and wait for the next cut: that is another's.
                        carried = tokio::io::copy_bidirectional(&mut near, &mut far) => {
                            if let Ok((to, fro)) = carried {
                                let _ = tell.send(to + fro);
                            }
                        }
                        () = cut.notified() => {}
                        () = freeze.notified() => std::future::pending().await,
                    }
                });
            }
        });
        Self {
            addr,
            freeze,
            target,
            cut,
            carried,
        }
    }

    /// What each connection of a link carried that has ended in order.
    pub(super) async fn carried(mut self) -> Vec<u64> {
        let mut all = Vec::new();
        while all.len() <= join_token::SUBFLOWS {
            all.extend(within(self.carried.recv()).await);
        }
        all
    }

    pub(super) fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(Some(target));
    }
}
