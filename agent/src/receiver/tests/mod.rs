//! The whole room, driven as a link drives it, on a real folder and a real job list.

mod bounds;
#[cfg(target_os = "linux")]
mod disks;
#[cfg(target_os = "linux")]
mod elsewhere;
mod flows;
mod keeping;
#[cfg(target_os = "linux")]
mod order;
mod recovery;
mod resume;
mod steps;
#[cfg(target_os = "linux")]
mod taken;
#[cfg(target_os = "linux")]
mod team;
mod whole;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use dropwire_protocol::{
    AgentId, Digest, Kind, Manifest, Mtime, Receipt, ReceiptBody, RemotePath, RunningDigest, TransferId,
    receiver::{Command, OfferSequence, Outcome},
};
use rusqlite_migration::{M, Migrations};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{homes, running_time};

const ANA: AgentId = AgentId([0xAA; 32]);
const BOB: AgentId = AgentId([0xBB; 32]);
pub(super) const ME: AgentId = AgentId([0xCC; 32]);
const CHUNK: usize = 256 * 1024;

/// An inbox in a folder of its own.
struct Rig {
    temp: Arc<tempfile::TempDir>,
    db: Db,
    inbox: Inbox,
    settings: Settings,
}

fn migrations() -> Migrations<'static> {
    let schema = [running_time::SCHEMA_1, SCHEMA_1, homes::SCHEMA_1, SCHEMA_2];
    let mut migrations = schema.map(M::up).to_vec();
    migrations.push(digests());
    Migrations::new(migrations)
}

fn peer((name, id): (&str, AgentId)) -> config::Peer {
    config::Peer {
        name: name.into(),
        id,
        address: None,
        max_file_size: None,
    }
}

impl Rig {
    async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("Inbox");
        std::fs::create_dir(&path).unwrap();
        Self::at(temp, path).await
    }

    async fn at(temp: tempfile::TempDir, path: PathBuf) -> Self {
        let settings = Settings {
            inbox: Some(config::Inbox {
                path,
                layout: Layout::Flat,
                min_free: Some(0),
                on_arrival: Vec::new(),
            }),
            peers: [("ana", ANA), ("bob", BOB)].map(peer).into(),
            name: "me".into(),
            outboxes: Vec::new(),
        };
        let db = Db::open(&temp.path().join("state.db"), &migrations()).unwrap();
        let inbox = start(&settings, &db).await.unwrap();
        Self {
            temp: Arc::new(temp),
            db,
            inbox,
            settings,
        }
    }

    /// Stops the inbox, does something, and opens it again.
    async fn restarted(self, meanwhile: impl FnOnce(&Path)) -> Self {
        self.inbox.shutdown().await;
        meanwhile(&self.root());
        let inbox = start(&self.settings, &self.db).await.unwrap();
        Self { inbox, ..self }
    }

    /// Opened again; something happens once, when a receipt is first signed.
    async fn signing(self, meanwhile: impl FnOnce() + Send + 'static) -> Self {
        self.inbox.shutdown().await;
        let once = Mutex::new(Some(meanwhile));
        let signer = move |bodies: &[ReceiptBody]| {
            if let Some(meanwhile) = once.lock().unwrap().take() {
                meanwhile();
            }
            bodies.iter().map(sign).collect()
        };
        let inbox = start_with(&self.settings, &self.db, Box::new(signer)).await;
        Self {
            inbox: inbox.unwrap(),
            ..self
        }
    }

    fn root(&self) -> PathBuf {
        self.settings.inbox.as_ref().unwrap().path.clone()
    }

    fn link(&self, peer: AgentId) -> Link {
        let (commands, outcomes) = self.inbox.attach(peer);
        Link {
            commands,
            outcomes,
            openings: 0,
            kind: Kind::File,
        }
    }

    /// Everything visible, with its content.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![self.root()];
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().unwrap() {
                let entry = entry.unwrap();
                if entry.file_name() == ".dropwire" {
                    continue;
                }
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    let below = entry
                        .path()
                        .strip_prefix(self.root())
                        .unwrap()
                        .display()
                        .to_string();
                    found.push((below, std::fs::read(entry.path()).unwrap_or_default()));
                }
            }
        }
        found.sort();
        found
    }

    fn names(&self) -> Vec<String> {
        self.files().into_iter().map(|(name, _)| name).collect()
    }

    fn partials(&self) -> usize {
        self.root().join(".dropwire/partial").read_dir().unwrap().count()
    }

    /// So much running time goes by, and what was kept for its time goes.
    async fn after(&self, ran: Duration) {
        running_time::advance(&self.db, ran).await.unwrap();
        self.inbox.sweep().await.unwrap();
    }

    async fn row(&self, peer: AgentId, id: TransferId) -> Option<ledger::State> {
        let known = self
            .db
            .call(move |tx| ledger::find(tx, (peer, id)))
            .await
            .unwrap();
        known.map(|k| k.state)
    }
}

async fn start(settings: &Settings, db: &Db) -> Result<Inbox, Fatal> {
    let sign = Box::new(|bodies: &[ReceiptBody]| bodies.iter().map(sign).collect());
    start_with(settings, db, sign).await
}

async fn start_with(settings: &Settings, db: &Db, sign: Sign) -> Result<Inbox, Fatal> {
    let cancel = CancellationToken::new();
    Inbox::with_signer(settings.clone(), db.clone(), ME, sign, cancel).await
}

fn sign(body: &ReceiptBody) -> Receipt {
    Receipt {
        body: minicbor::to_vec(body).unwrap(),
        key: b"key".to_vec(),
        signature: b"signature".to_vec(),
        audit_path: vec![],
    }
}

/// The link's side of the channels.
struct Link {
    commands: Commands,
    outcomes: mpsc::Receiver<Outcome>,
    openings: u64,
    /// Of what it offers.
    kind: Kind,
}

impl Link {
    async fn command(&self, command: Command) {
        assert!(self.commands.send(command).await);
    }

    /// The next outcome, Written aside.
    async fn next(&mut self) -> Outcome {
        let next = async {
            loop {
                match self
                    .outcomes
                    .recv()
                    .await
                    .expect("the inbox has cut the link off")
                {
                    Outcome::Written { .. } => {}
                    outcome => return outcome,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), next)
            .await
            .expect("an outcome")
    }

    /// Waits until it is told that everything before `end` is written.
    async fn written(&mut self, end: u64) {
        let told = async {
            while !matches!(self.outcomes.recv().await, Some(Outcome::Written { offset, .. }) if offset == end)
            {
            }
        };
        tokio::time::timeout(Duration::from_secs(60), told)
            .await
            .expect("written");
    }

    async fn open(&mut self, id: TransferId, path: &str, size: u64) -> OfferSequence {
        self.openings += 1;
        let sequence = OfferSequence(self.openings);
        let manifest = Manifest {
            kind: self.kind,
            ..manifest(path, size)
        };
        self.command(Command::Open {
            id,
            sequence,
            manifest,
            eager: false,
        })
        .await;
        sequence
    }

    /// Opens and waits for what comes: the resume point or the refusal.
    async fn opened(&mut self, id: TransferId, path: &str, size: u64) -> (OfferSequence, Outcome) {
        let sequence = self.open(id, path, size).await;
        (sequence, self.next().await)
    }

    /// Sends `bytes` from `offset` up to `end` as one pass.
    async fn write(
        &self,
        id: TransferId,
        sequence: OfferSequence,
        pass: u32,
        bytes: &[u8],
        offset: usize,
        end: usize,
    ) {
        let mut digest = RunningDigest::default();
        digest.update(&bytes[..offset]);
        let mut at = offset;
        while at < end {
            let piece = &bytes[at..end.min(at + CHUNK)];
            digest.update(piece);
            self.command(Command::Write {
                id,
                sequence,
                pass,
                offset: at as u64,
                bytes: Bytes::copy_from_slice(piece),
                digest: digest.value(),
            })
            .await;
            at += piece.len();
        }
    }

    async fn finish(&self, id: TransferId, sequence: OfferSequence, pass: u32, digest: Digest) {
        self.command(Command::Finish {
            id,
            sequence,
            pass,
            digest,
        })
        .await;
    }

    /// Sends `bytes` from `offset` on as one pass, to its end; gives the outcome.
    async fn rest(
        &mut self,
        id: TransferId,
        sequence: OfferSequence,
        pass: u32,
        bytes: &[u8],
        offset: usize,
    ) -> Outcome {
        self.write(id, sequence, pass, bytes, offset, bytes.len()).await;
        self.finish(id, sequence, pass, digest(bytes)).await;
        self.next().await
    }

    /// A whole transfer; gives its last outcome.
    async fn send(&mut self, id: TransferId, path: &str, bytes: &[u8]) -> Outcome {
        let (sequence, first) = self.opened(id, path, bytes.len() as u64).await;
        let Outcome::Opened { offset, .. } = first else {
            return first;
        };
        self.rest(id, sequence, 0, bytes, offset as usize).await
    }
}

fn id(n: u8) -> TransferId {
    TransferId([n; 16])
}

fn manifest(path: &str, size: u64) -> Manifest {
    Manifest {
        path: RemotePath::parse(path.as_bytes()).unwrap(),
        size,
        mtime: Mtime {
            seconds: 1_600_000_000,
            nanos: 5,
        },
        kind: Kind::File,
    }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut digest = RunningDigest::default();
    digest.update(bytes);
    digest.value()
}

/// Bytes that differ everywhere.
fn content(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[track_caller]
fn delivered_as(outcome: &Outcome) -> String {
    let receipt = match outcome {
        Outcome::Committed { receipt, .. } | Outcome::Settled { receipt, .. } => receipt,
        other => panic!("not delivered: {other:?}"),
    };
    receipt.decode_body_unverified().unwrap().delivered_as.to_string()
}

#[track_caller]
fn refused(outcome: &Outcome) -> dropwire_protocol::message::DeclineReason {
    match outcome {
        Outcome::Refused { reason, .. } => *reason,
        other => panic!("not refused: {other:?}"),
    }
}
