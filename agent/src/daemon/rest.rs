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
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Shared, blocking};
use crate::{
    border, bundle, confined,
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
    // Each outbox for itself: the disk of one may hang.
    let forget_gone = async {
        let mut asked: HashMap<OutboxId, JoinHandle<()>> = HashMap::new();
        loop {
            asked.retain(|_, asked| !asked.is_finished());
            for outbox in shared.changed.outboxes() {
                let all = shared.clone();
                let ask = move || {
                    if all.changed.forget_gone(outbox, all.outbox(outbox).is_none()) {
                        all.disposal.notify_one();
                    }
                };
                asked.entry(outbox).or_insert_with(|| spawn_blocking(ask));
            }
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
        () = forget_gone => {}
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
    /// The outbox, or what was mounted in it on the way, is not there or cannot be read: that says nothing of its files.
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
                let name = confined::os_str(path.file_name())?;
                let meta = folder.symlink_metadata(name)?;
                Ok(Version::listed(&folder, name, &meta))
            })
        };
        match version {
            Ok(now) if now.same_identity(&found.version) => Ok(Lies::There(now)),
            Err(e) if !confined::is_absent(&e) => Err(e),
            _ => match border::missing_on_the_way(&root, path)? {
                Some(_) if !fault::mutant("keep-mount") => Ok(Lies::Unknown),
                _ => Ok(Lies::Missing),
            },
        }
    };
    look().unwrap_or(Lies::Unknown)
}

#[cfg(test)]
mod tests;
