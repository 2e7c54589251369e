//! Files that stay in their outboxes for good (kept, failed, cancelled) are looked after now and then.
//!
//! - One that was missed for [`KEPT`] has left: its peers may forget it, and seen again it is a new drop, whatever its
//!   ctime. Until then it may come back (a folder that is moved, an editor that sets a file aside), and stays what it
//!   was.
//! - One whose ctime alone is another has its bytes compared with what was delivered: equal ones are the same drop
//!   under a new witness, others are a new drop. Where nothing was delivered there is nothing to compare with:
//!   whatever lies there is read when it is sent.
//! - A copy that `send` took and whose jobs ended otherwise waits for a retry for [`KEPT`], and is removed.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Shared, blocking};
use crate::{
    bundle, confined,
    db::DbError,
    fault, mark,
    outbox::spool,
    queue::{DropId, KEPT, Queue, Resting},
    send,
    version::{Found, OutboxId, Version},
};

/// Between two looks at all of them.
const EVERY: Duration = Duration::from_secs(600);
/// The same, where some were too fresh to compare.
const SOON: Duration = Duration::from_secs(1);
/// Files looked at in one go.
const PAGE: usize = 512;

/// Runs until cancelled; the first look is at once. Comparing large files takes its time, so the two go on apart.
pub async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    let look_after = async {
        loop {
            told(look_after(&shared.queue, &shared.spool()).await);
            tokio::time::sleep(EVERY).await;
        }
    };
    let compare = async {
        let changed = |found: &Found| {
            if let Some(outbox) = shared.outbox(found.outbox) {
                outbox.recheck(found.path.clone());
            } // else its first scan finds it
        };
        loop {
            let compared = compare(&shared.queue, &shared.spool(), &changed, &cancel).await;
            let some_are_fresh = matches!(compared, Ok(true));
            told(compared.map(drop));
            tokio::time::sleep(if some_are_fresh { SOON } else { EVERY }).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = look_after => {}
        () = compare => {}
    }
}

fn told(round: Result<(), DbError>) {
    if let Err(error) = round {
        warn!(%error, "job list");
    }
}

/// Who is missed, who came back, and who has left.
async fn look_after(queue: &Queue, spool: &Path) -> Result<(), DbError> {
    let mut pages = Pages::new(queue, spool);
    while let Some(page) = pages.next().await? {
        let (mut there, mut missed, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for (resting, lies) in page {
            match (lies, resting.missed) {
                (Lies::There(_), Some(_)) => there.push(resting.drop),
                (Lies::Missing | Lies::Spooled, None) => missed.push(resting.drop),
                (Lies::Missing | Lies::Spooled, Some(since)) if since >= KEPT => left.push((resting, lies)),
                _ => {}
            }
        }
        queue.seen(there, missed).await?;
        let_go(queue, left).await?;
    }
    Ok(())
}

/// They were missed for long: none of them can be retried after that, and a copy of ours is removed.
async fn let_go(queue: &Queue, missed: Vec<(Resting, Lies)>) -> Result<(), DbError> {
    // First on disk: what was retried since it was looked at is to be sent, and nobody retries what is being removed.
    let left = queue.left(missed.iter().map(|(resting, _)| resting.drop).collect());
    let left: HashSet<DropId> = left.await?.into_iter().collect();
    for (
        Resting {
            drop, root, found, ..
        },
        lies,
    ) in missed
    {
        if !left.contains(&drop) {
            continue;
        }
        debug!(path = %found.path, "the version that stayed is not there any more");
        if matches!(lies, Lies::Spooled) {
            let discard = move || spool::discard_copy(&root, &found.path);
            if let Ok(Err(error)) = blocking(discard).await {
                warn!(%error, "a sent copy stays until the next start");
            }
        }
    }
    Ok(())
}

/// Compares those whose ctime alone is another, one after the other; tells which ones are `changed`. True: some were
/// touched so recently that what is written after a comparison might not show; they wait for the next.
async fn compare(
    queue: &Queue,
    spool: &Path,
    changed: &(dyn Fn(&Found) + Sync),
    cancel: &CancellationToken,
) -> Result<bool, DbError> {
    let mut some_are_fresh = false;
    let mut pages = Pages::new(queue, spool);
    while let Some(page) = pages.next().await? {
        for (resting, lies) in page {
            let Resting {
                drop,
                root,
                found,
                digest: Some(delivered),
                ..
            } = resting
            else {
                continue;
            };
            match lies {
                Lies::There(now) if now.ctime_ns != found.version.ctime_ns => {
                    if now.is_fresh(SystemTime::now()) {
                        some_are_fresh = true;
                        continue;
                    }
                }
                _ => continue,
            }
            let (stopped, path) = (cancel.clone(), found.clone());
            let read = blocking(move || send::digest_of(&root, &path, &|| stopped.is_cancelled())).await;
            match read {
                Ok(Ok((digest, ctime_ns))) if digest == delivered || fault::mutant("keep-witness") => {
                    queue.witnessed(drop, ctime_ns).await?;
                }
                Ok(Ok(_)) => {
                    info!(path = %found.path, "other bytes under an old version: looked at as a new drop");
                    queue.left(vec![drop]).await?;
                    changed(&found);
                }
                Ok(Err(_)) | Err(_) => {} // somebody writes to it, or it went: the next look tells
            }
        }
    }
    Ok(some_are_fresh)
}

/// All resting files, and how each lies there now.
struct Pages<'a> {
    queue: &'a Queue,
    spool: PathBuf,
    after: DropId,
}

impl<'a> Pages<'a> {
    fn new(queue: &'a Queue, spool: &Path) -> Self {
        Pages {
            queue,
            spool: spool.to_owned(),
            after: DropId(0),
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<(Resting, Lies)>>, DbError> {
        let page = self.queue.resting(self.after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        self.after = last.drop;
        let spool = self.spool.clone();
        let look = move |resting: Resting| {
            let lies = if resting.root.starts_with(&spool) {
                Lies::Spooled
            } else {
                lies(&resting.root, &resting.found)
            };
            (resting, lies)
        };
        let looked = blocking(move || page.into_iter().map(look).collect()).await;
        Ok(Some(looked.unwrap_or_default()))
    }
}

/// How a version lies in its outbox.
#[derive(Clone, Copy, Debug)]
pub enum Lies {
    /// That version, with the ctime that it has now.
    There(Version),
    /// Nothing, or another version.
    Missing,
    /// It is a copy of ours: nobody but a retry needs it.
    Spooled,
    /// The outbox is not there, or cannot be read: that says nothing of its files.
    Unknown,
}

/// Looks at the disk.
pub fn lies(root: &Path, found: &Found) -> Lies {
    let look = || -> io::Result<Lies> {
        let root = confined::root(root)?;
        if mark::read(&root)?.map(OutboxId) != Some(found.outbox) {
            return Ok(Lies::Unknown);
        }
        let path = &found.path;
        let version = if found.version.folder {
            confined::open_folder(&root, path).and_then(|folder| {
                let listing = bundle::list_quickly(&folder);
                listing
                    .map(|l| l.version())
                    .map_err(|e| io::Error::other(format!("{e:?}")))
            })
        } else {
            confined::parent(&root, path).and_then(|folder| {
                let meta = folder.symlink_metadata(confined::os_str(path.file_name())?)?;
                Ok(Version::listed(&meta))
            })
        };
        match version {
            Ok(now) if now.same_identity(&found.version) => Ok(Lies::There(now)),
            Ok(_) => Ok(Lies::Missing),
            Err(e) if confined::is_absent(&e) => Ok(Lies::Missing),
            Err(e) => Err(e),
        }
    };
    look().unwrap_or(Lies::Unknown)
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Mutex};

    use dropwire_protocol::{AgentId, Digest, RemotePath, RunningDigest, TransferId};
    use rusqlite_migration::{M, Migrations};

    use super::*;
    use crate::{
        clock,
        config::AfterSend,
        db::Db,
        identity::Identity,
        queue::{NewDrop, Proof, SCHEMA_1},
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
        async fn new() -> World {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir(temp.path().join("outbox")).unwrap();
            let outbox =
                OutboxId(mark::create(&confined::root(&temp.path().join("outbox")).unwrap()).unwrap());
            let migrations = Migrations::new(vec![M::up(clock::RUNNING), M::up(SCHEMA_1)]);
            let db = Db::open(&temp.path().join("jobs.db"), &migrations).unwrap();
            let identity = Arc::new(Identity::generate());
            let queue = Queue::open(db.clone(), identity, 0, KEPT).await.unwrap();
            World {
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
                version: Version::of(&file.metadata().unwrap()),
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
                receipt: vec![1],
                delivered_as: found.path.clone(),
                digest: digest(bytes),
                delivered_at_ms: 1,
            };
            self.queue.delivered(vec![proof], 1).await.unwrap();
            found
        }

        async fn enqueue(&self, found: Found, root: PathBuf, after_send: AfterSend) -> TransferId {
            let drop = NewDrop {
                found,
                root,
                origin: None,
                after_send,
                marker: None,
                peers: vec![PEER],
            };
            self.queue.enqueue(vec![drop], 1).await.unwrap().queued[0]
        }

        /// Changes the file until its ctime says so and is not fresh any more, with its mtime set to what it was.
        fn touch(&self, change: impl Fn(&Path)) -> Version {
            let (path, before) = (self.root().join("file"), self.found().version);
            let mtime = fs::metadata(&path).unwrap().modified().unwrap();
            loop {
                change(&path);
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(mtime).unwrap();
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
            !self.queue.unknown(vec![self.found()]).await.unwrap().is_empty()
        }

        async fn resting(&self) -> Vec<Resting> {
            self.queue.resting(DropId(0), 9).await.unwrap()
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
        let drop = world.resting().await[0].drop;
        let other = world.touch(|path| fs::write(path, b"OTHER").unwrap());
        world.queue.witnessed(drop, other.ctime_ns).await.unwrap();
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
            clock::advance(&world.db, away).await.unwrap();
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
        clock::advance(&world.db, KEPT).await.unwrap();
        world.look_after().await;
        fs::rename(&outside, &inside).unwrap();
        assert_eq!(world.found_as("folder/file"), found);
        assert_eq!(world.queue.unknown(vec![found.clone()]).await.unwrap(), [found]);
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
    async fn a_sent_copy_waits_for_a_retry_and_then_goes() {
        let world = World::new().await;
        let original = world.temp.path().join("by hand");
        fs::write(&original, b"bytes").unwrap();
        let taken = spool::take(&world.spool(), &[original]).unwrap();
        let (found, _) = taken.files[0].clone();
        let id = world.enqueue(found, taken.root.clone(), AfterSend::Delete).await;
        world.queue.cancel(vec![id], 2).await.unwrap();
        world.look_after().await;
        clock::advance(&world.db, KEPT / 2).await.unwrap();
        world.look_after().await;
        let seen = (world.resting().await.remove(0), Lies::Spooled);
        let id = world.queue.resend(vec![id], 3).await.unwrap()[0];
        let_go(&world.queue, vec![seen]).await.unwrap();
        assert!(
            taken.root.join("by hand").exists(),
            "retried since it was looked at"
        );
        clock::advance(&world.db, KEPT).await.unwrap();
        world.look_after().await;
        assert!(taken.root.join("by hand").exists(), "it is to be sent");
        world.queue.cancel(vec![id], 4).await.unwrap();
        world.look_after().await;
        assert!(taken.root.join("by hand").exists(), "its time begins anew");
        clock::advance(&world.db, KEPT).await.unwrap();
        world.look_after().await;
        assert!(!taken.root.exists());
        assert!(world.queue.resend(vec![id], 5).await.unwrap().is_empty());
    }
}
