use std::{
    fs,
    sync::{Arc, Mutex},
};

use dropwire_protocol::{AgentId, Digest, RemotePath, RunningDigest, TransferId};
use rusqlite_migration::{M, Migrations};

use super::*;
use crate::{
    config::AfterSend,
    db::Db,
    fs::{
        border, confined, folder_id, own_folder,
        version::{OutboxId, Version},
    },
    identity::Identity,
    queue::{NewItem, Proof, SCHEMA_1, SCHEMA_2, SCHEMA_3},
    running_time,
};

const PEER: AgentId = AgentId([1; 32]);

/// An outbox with a job list.
struct World {
    temp: tempfile::TempDir,
    db: Db,
    queue: Queue,
    outbox: OutboxId,
}

impl World {
    async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("outbox")).unwrap();
        let outbox =
            OutboxId(folder_id::create(&confined::root(&temp.path().join("outbox")).unwrap()).unwrap());
        let migrations = Migrations::new(vec![
            M::up(running_time::SCHEMA_1),
            M::up(SCHEMA_1),
            M::up(SCHEMA_2),
            M::up(SCHEMA_3),
        ]);
        let db = Db::open(&temp.path().join("jobs.db"), &migrations).unwrap();
        let identity = Arc::new(Identity::generate());
        let queue = Queue::open(db.clone(), identity, 0, KEPT).await.unwrap();
        Self {
            temp,
            db,
            queue,
            outbox,
        }
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("outbox")
    }

    fn spool(&self) -> PathBuf {
        self.temp.path().join("spool")
    }

    /// As it lies there now.
    fn found(&self) -> Found {
        self.found_as("file")
    }

    fn found_as(&self, name: &str) -> Found {
        let file = fs::File::open(self.root().join(name)).unwrap();
        Found {
            outbox: self.outbox,
            path: RemotePath::parse(name.as_bytes()).unwrap(),
            version: Version::read(&file).unwrap().0,
        }
    }

    /// A kept file, delivered.
    async fn kept(&self, bytes: &[u8]) -> Found {
        self.kept_as("file", bytes).await
    }

    async fn kept_as(&self, name: &str, bytes: &[u8]) -> Found {
        fs::write(self.root().join(name), bytes).unwrap();
        let found = self.found_as(name);
        let id = self.enqueue(found.clone(), self.root(), AfterSend::Keep).await;
        let proof = Proof {
            id,
            version: None,
            receipt: vec![1],
            delivered_as: found.path.clone(),
            digest: digest(bytes),
            delivered_at_ms: 1,
        };
        self.queue.delivered(vec![proof], 1).await.unwrap();
        found
    }

    async fn enqueue(&self, found: Found, root: PathBuf, after_send: AfterSend) -> TransferId {
        let item = NewItem {
            is_not: None,
            found,
            root,
            origin: None,
            after_send,
            marker: None,
            peers: vec![PEER],
        };
        self.queue.enqueue(vec![item], 1).await.unwrap().queued[0]
    }

    /// Changes the file until its ctime says so and is not fresh any more, with its mtime set to what it was.
    fn touch(&self, change: impl Fn(&Path)) -> Version {
        let (path, before) = (self.root().join("file"), self.found().version);
        let mtime = fs::metadata(&path).unwrap().modified().unwrap();
        loop {
            change(&path);
            let file = fs::File::options().write(true).open(&path).unwrap();
            crate::fs::file_system::set_modified(&file, mtime).unwrap();
            drop(file);
            let now = self.found().version;
            if now.ctime_ns != before.ctime_ns {
                assert!(now.same_identity(&before));
                while now.is_fresh(SystemTime::now()) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                return now;
            }
        }
    }

    async fn compare(&self) -> usize {
        let changed = Mutex::new(0);
        let count = |found: &Found| {
            assert_eq!(found.outbox, self.outbox);
            *changed.lock().unwrap() += 1;
        };
        let cancel = CancellationToken::new();
        compare(&self.queue, &self.spool(), &count, &cancel)
            .await
            .unwrap();
        changed.into_inner().unwrap()
    }

    async fn look_after(&self) {
        look_after(&self.queue, &self.spool()).await.unwrap();
    }

    async fn is_unknown(&self) -> bool {
        !self.queue.unknown(vec![self.found()]).unwrap().is_empty()
    }

    async fn resting(&self) -> Vec<Resting> {
        self.queue.resting(ItemId(0), 9).await.unwrap()
    }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hash = RunningDigest::default();
    hash.update(bytes);
    hash.value()
}

#[tokio::test]
async fn where_ctime_alone_differs_the_bytes_decide() {
    let world = World::new().await;
    world.kept(b"bytes").await;
    assert_eq!(world.compare().await, 0);
    let touched = world.touch(|_| {});
    assert_eq!(world.compare().await, 0);
    assert_eq!(world.resting().await[0].found.version, touched, "a new witness");
    assert!(!world.is_unknown().await);
    let item = world.resting().await[0].item;
    let other = world.touch(|path| fs::write(path, b"OTHER").unwrap());
    world.queue.compared(item, other.ctime_ns).await.unwrap();
    assert_eq!(world.compare().await, 0, "what is witnessed is not read");
    world.touch(|path| fs::write(path, b"other").unwrap());
    assert!(!world.is_unknown().await, "the list does not know of the bytes");
    assert_eq!(world.compare().await, 1);
    assert!(world.is_unknown().await, "a new drop");
    assert!(world.resting().await.is_empty());
    assert_eq!(world.compare().await, 0, "once");
}

#[tokio::test]
async fn a_comparison_that_was_stopped_decides_nothing() {
    let world = World::new().await;
    world.kept(b"bytes").await;
    world.touch(|path| fs::write(path, b"other").unwrap());
    let cancel = CancellationToken::new();
    cancel.cancel();
    let never = |_: &Found| panic!("stopped");
    compare(&world.queue, &world.spool(), &never, &cancel)
        .await
        .unwrap();
    assert_eq!(world.resting().await.len(), 1);
}

#[tokio::test]
async fn what_moves_away_and_back_is_the_same_drop_unless_it_is_away_for_long() {
    let world = World::new().await;
    world.kept(b"bytes").await;
    let (inside, outside) = (world.root().join("file"), world.temp.path().join("file"));
    for away in [KEPT / 2, KEPT] {
        fs::rename(&inside, &outside).unwrap();
        world.look_after().await;
        running_time::advance(&world.db, away).await.unwrap();
        world.look_after().await;
        fs::rename(&outside, &inside).unwrap();
        assert_eq!(world.is_unknown().await, away == KEPT, "{away:?}");
        world.look_after().await;
        assert!(
            world.resting().await.iter().all(|r| r.missed.is_none()),
            "it is back"
        );
    }
}

#[tokio::test]
async fn a_folder_that_returns_after_long_is_new_although_no_ctime_in_it_changed() {
    let world = World::new().await;
    let (inside, outside) = (world.root().join("folder"), world.temp.path().join("folder"));
    fs::create_dir(&inside).unwrap();
    let found = world.kept_as("folder/file", b"bytes").await;
    fs::rename(&inside, &outside).unwrap();
    world.look_after().await;
    running_time::advance(&world.db, KEPT).await.unwrap();
    world.look_after().await;
    fs::rename(&outside, &inside).unwrap();
    assert_eq!(world.found_as("folder/file"), found);
    assert_eq!(world.queue.unknown(vec![found.clone()]).unwrap(), [found]);
}

#[tokio::test]
async fn an_outbox_that_is_away_says_nothing_of_its_files() {
    let world = World::new().await;
    world.kept(b"bytes").await;
    fs::rename(world.root(), world.temp.path().join("elsewhere")).unwrap();
    world.look_after().await;
    assert_eq!(world.resting().await[0].missed, None);
}

#[tokio::test]
async fn what_lies_on_a_disk_that_is_not_mounted_is_not_missed() {
    let world = World::new().await;
    let (root, disk) = (
        confined::root(&world.root()).unwrap(),
        RemotePath::parse(b"disk").unwrap(),
    );
    fs::create_dir(world.root().join("disk")).unwrap();
    border::note(&own_folder::open_or_make(&root).unwrap(), &disk).unwrap();
    world.kept_as("disk/file", b"bytes").await;
    fs::rename(world.root().join("disk"), world.temp.path().join("elsewhere")).unwrap();
    for given_up in [false, true] {
        world.look_after().await;
        assert_eq!(world.resting().await[0].missed.is_some(), given_up);
        border::forget_missing(&root).unwrap();
    }
}

#[tokio::test]
async fn a_sent_copy_waits_for_a_retry_and_then_goes() {
    let world = World::new().await;
    let original = world.temp.path().join("by hand");
    fs::write(&original, b"bytes").unwrap();
    let taken = spool::one(&world.spool(), &original);
    let id = world
        .enqueue(taken.found, taken.root.clone(), AfterSend::Delete)
        .await;
    world.queue.cancel(vec![id], 2).await.unwrap();
    world.look_after().await;
    running_time::advance(&world.db, KEPT / 2).await.unwrap();
    world.look_after().await;
    let seen = (world.resting().await.remove(0), Presence::Spooled);
    let id = world.queue.resend(vec![id], 3).await.unwrap()[0];
    let_go(&world.queue, vec![seen]).await.unwrap();
    assert!(
        taken.root.join("by hand").exists(),
        "retried since it was looked at"
    );
    running_time::advance(&world.db, KEPT).await.unwrap();
    world.look_after().await;
    assert!(taken.root.join("by hand").exists(), "it is to be sent");
    world.queue.cancel(vec![id], 4).await.unwrap();
    world.look_after().await;
    assert!(taken.root.join("by hand").exists(), "its time begins again");
    running_time::advance(&world.db, KEPT).await.unwrap();
    world.look_after().await;
    assert!(!taken.root.exists());
    assert!(world.queue.resend(vec![id], 5).await.unwrap().is_empty());
}
