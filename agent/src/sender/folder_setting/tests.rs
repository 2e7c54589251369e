use std::{fs, path::Path, sync::Arc};

use dropwire_protocol::{AgentId, Digest, TransferId};
use rusqlite_migration::{M, Migrations};

use super::*;
use crate::{
    config::{AfterSend, Watch},
    fs::{
        confined, folder_id, own_folder,
        version::{Found, Version},
    },
    identity::Identity,
    queue::{NewItem, Proof, SCHEMA_1, SCHEMA_2, SCHEMA_3},
    running_time,
};

const PEER: AgentId = AgentId([1; 32]);

/// An outbox at home where the config says, and a job list.
struct World {
    temp: tempfile::TempDir,
    db: Db,
    queue: Queue,
    id: OutboxId,
}

impl World {
    async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("outbox");
        fs::create_dir(&root).unwrap();
        let id = folder_id::create(&confined::root(&root).unwrap()).unwrap();
        let schemas = [
            running_time::SCHEMA_1,
            SCHEMA_1,
            SCHEMA_2,
            SCHEMA_3,
            homes::SCHEMA_1,
        ];
        let migrations = Migrations::new(schemas.map(M::up).to_vec());
        let db = Db::open(&temp.path().join("jobs.db"), &migrations).unwrap();
        db.call(move |tx| homes::settle(tx, id, &root)).await.unwrap();
        let identity = Arc::new(Identity::generate());
        let queue = Queue::open(db.clone(), identity, 0, Duration::ZERO)
            .await
            .unwrap();
        Self {
            temp,
            db,
            queue,
            id: OutboxId(id),
        }
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("outbox")
    }

    fn config(&self, folder: Folder) -> config::Outbox {
        config::Outbox {
            path: self.root(),
            to: vec![PEER],
            after_send: AfterSend::Keep,
            marker: None,
            quiet: Duration::ZERO,
            max_wait: Duration::ZERO,
            linger: Duration::ZERO,
            ignore: Vec::new(),
            watch: Watch::Auto,
            rescan: Duration::ZERO,
            folder,
        }
    }

    /// Queues `name/file`, or all of `name`, as an outbox with `found_with` finds it.
    async fn found(&self, name: &str, found_with: Folder, after_send: AfterSend) -> TransferId {
        let file = self.root().join(name).join("file");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "bytes").unwrap();
        let mut version = Version::read(&fs::File::open(&file).unwrap()).unwrap().0;
        version.folder = found_with == Folder::Whole;
        let path = match found_with {
            Folder::Files => format!("{name}/file"),
            Folder::Whole => name.to_owned(),
        };
        let found = Found {
            outbox: self.id,
            path: RemotePath::parse(path.as_bytes()).unwrap(),
            version,
        };
        let item = NewItem {
            is_not: None,
            found,
            root: self.root(),
            origin: None,
            after_send,
            marker: None,
            peers: vec![PEER],
        };
        self.queue.enqueue(vec![item], 1).await.unwrap().queued[0]
    }

    async fn delivered(&self, id: TransferId) -> Vec<ItemId> {
        let proof = Proof {
            id,
            version: None,
            receipt: vec![1],
            delivered_as: RemotePath::parse(b"name").unwrap(),
            digest: Digest([1; 32]),
            delivered_at_ms: 1,
        };
        self.queue.delivered(vec![proof], 1).await.unwrap().acknowledged
    }

    /// Why the outbox cannot have this value, as whoever reads the job list says it, and an agent.
    async fn refused(&self, folder: Folder) -> Option<FolderInUse> {
        let outbox = self.config(folder);
        let list = Connection::open(self.temp.path().join("jobs.db")).unwrap();
        let refused = check_one(&list, &outbox).unwrap();
        match check(&self.db, &[outbox]).await {
            Ok(()) => assert_eq!(refused, None),
            Err(fatal) => {
                let expected = refused
                    .as_ref()
                    .map(|refused| (refused.to_string(), refused.hint()));
                assert_eq!(Some((fatal.message, fatal.hint.unwrap())), expected);
                assert_eq!(fatal.exit, Exit::Config);
            }
        }
        refused
    }

    async fn begins(&self, folder: Folder) -> Result<(), FolderInUse> {
        let outbox = self.config(folder);
        begin(&self.db, &self.queue, &outbox, self.id).await.unwrap()
    }

    /// The outbox has this value, and goes on with it.
    async fn may_have(&self, folder: Folder) {
        assert_eq!(self.refused(folder).await, None);
        assert_eq!(self.begins(folder).await, Ok(()));
    }

    /// The outbox cannot have this value, because of these.
    async fn may_not_have(&self, folder: Folder, waiting: u64, staying: u64) {
        let known = OtherWay { waiting, staying };
        let refused = self.refused(folder).await.expect("refused");
        assert_eq!(refused.items.known, known);
        assert_eq!(self.begins(folder).await, Err(refused));
    }
}

const BOTH: [Folder; 2] = [Folder::Files, Folder::Whole];

#[tokio::test]
async fn it_changes_once_everything_was_delivered_and_left() {
    for found_with in BOTH {
        let world = World::new().await;
        world.may_have(Folder::Files).await;
        world.may_have(Folder::Whole).await;
        let id = world.found("a", found_with, AfterSend::Archive).await;
        world.may_have(found_with).await;
        world.may_not_have(found_with.other(), 1, 0).await;
        let leaving = world.delivered(id).await;
        world.may_not_have(found_with.other(), 1, 0).await;
        fs::remove_dir_all(world.root().join("a")).unwrap();
        world.may_not_have(found_with.other(), 1, 0).await;
        world.queue.disposed(vec![(leaving[0], None)], 2).await.unwrap();
        world.may_have(found_with.other()).await;
        world.may_have(found_with).await;
    }
}

#[tokio::test]
async fn what_stays_has_to_be_moved_out() {
    for found_with in BOTH {
        let world = World::new().await;
        let kept = world.found("a", found_with, AfterSend::Keep).await;
        world.delivered(kept).await;
        let cancelled = world.found("b", found_with, AfterSend::Archive).await;
        world.queue.cancel(vec![cancelled], 2).await.unwrap();
        world.may_have(found_with).await;
        world.may_not_have(found_with.other(), 0, 2).await;
        fs::rename(world.root().join("a"), world.temp.path().join("a")).unwrap();
        world.may_not_have(found_with.other(), 0, 1).await;
        fs::rename(world.temp.path().join("a"), world.root().join("a")).unwrap();
        world.may_not_have(found_with.other(), 0, 2).await;
        for name in ["a", "b"] {
            fs::rename(world.root().join(name), world.temp.path().join(name)).unwrap();
        }
        world.may_have(found_with.other()).await;
        // What had gone then is new if it comes back, and stands in nobody's way.
        fs::rename(world.temp.path().join("a"), world.root().join("a")).unwrap();
        world.may_have(found_with.other()).await;
        world.may_have(found_with).await;
        assert!(world.queue.resend(vec![cancelled], 3).await.unwrap().is_empty());
    }
}

/// Also where its folder, or a disk on the way, tells nothing now.
#[tokio::test]
async fn what_is_missing_with_its_outbox_has_not_gone() {
    let world = World::new().await;
    let kept = world.found("a", Folder::Files, AfterSend::Keep).await;
    world.delivered(kept).await;
    fs::remove_dir_all(world.root().join("a")).unwrap();
    let own = world.root().join(own_folder::NAME);
    fs::rename(&own, world.temp.path().join("own")).unwrap();
    world.may_not_have(Folder::Whole, 0, 1).await;
    fs::rename(world.temp.path().join("own"), &own).unwrap();
    world.may_have(Folder::Whole).await;
}

#[tokio::test]
async fn only_the_outbox_itself_counts() {
    let world = World::new().await;
    world.found("a", Folder::Files, AfterSend::Archive).await;
    let elsewhere = config::Outbox {
        path: world.temp.path().join("elsewhere"),
        ..world.config(Folder::Whole)
    };
    assert!(check(&world.db, std::slice::from_ref(&elsewhere)).await.is_ok());
    let both = [elsewhere, world.config(Folder::Whole)];
    assert!(check(&world.db, &both).await.is_err());
    // Found elsewhere, it is held: the config could not tell.
    assert!(
        begin(&world.db, &world.queue, &both[0], world.id)
            .await
            .unwrap()
            .is_err()
    );
}

/// As earlier versions left it: there is no value without a fault, so the agent starts, and the outbox waits.
#[tokio::test]
async fn an_outbox_found_both_ways_is_held_until_one_is_gone() {
    for wanted in BOTH {
        let world = World::new().await;
        let mut ids = Vec::new();
        for (name, found_with) in [("a", Folder::Files), ("b", Folder::Whole)] {
            ids.push((
                found_with,
                world.found(name, found_with, AfterSend::Archive).await,
            ));
        }
        assert_eq!(world.refused(wanted).await, None);
        let held = world.begins(wanted).await.unwrap_err();
        assert_eq!(held.items.known.waiting, 1);
        let (_, other) = ids.into_iter().find(|(with, _)| *with != wanted).unwrap();
        let leaving = world.delivered(other).await;
        world.queue.disposed(vec![(leaving[0], None)], 2).await.unwrap();
        world.may_have(wanted).await;
    }
}

#[test]
fn it_is_said_with_the_numbers_and_the_way_out() {
    let in_use = |folder, waiting, staying, first: Option<&str>| FolderInUse {
        outbox: Path::new("/out").into(),
        wanted: folder,
        items: Items {
            found_with: folder.other(),
            known: OtherWay { waiting, staying },
            first: first.map(|path| RemotePath::parse(path.as_bytes()).unwrap()),
        },
    };
    let one = in_use(Folder::Whole, 0, 1, Some("a/b"));
    assert_eq!(
        one.to_string(),
        "`folder` of the outbox /out cannot change from \"files\" to \"whole\" now: 1 file of a folder is still in it, \
         a/b for one"
    );
    assert!(one.hint().starts_with("set `folder = \"files\"` again"));
    let more = in_use(Folder::Files, 2, 3, None);
    assert_eq!(
        more.to_string(),
        "`folder` of the outbox /out cannot change from \"whole\" to \"files\" now: 2 whole folders are yet to be \
         delivered or to leave; 3 whole folders are still in it"
    );
    assert!(more.hint().starts_with("set `folder = \"whole\"` again"));
}
