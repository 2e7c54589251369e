//! Files that stay in their outboxes for good (kept, failed, cancelled) are looked after now and then.
//!
//! - One that was missed for [`KEPT`] has left: its peers may forget it, and seen again it is a new item, whatever its
//!   ctime. Until then it may come back (a folder that is moved, an editor that sets a file aside), and stays what it
//!   was.
//! - One whose ctime alone is another has its bytes compared with what was delivered: equal ones are the same item
//!   under the new ctime, others are a new item. Where nothing was delivered there is nothing to compare with:
//!   whatever is there is read when it is sent.
//! - A copy that `send` took and whose jobs ended otherwise waits for a retry for [`KEPT`], and is removed.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    outboxes::Outboxes,
    presence::{self, Presence},
    source,
};
use crate::{
    blocking::blocking,
    db::DbError,
    error::chain,
    failpoints,
    fs::version::Found,
    leaving::spool,
    queue::{ItemId, KEPT, Queue, Resting},
};

/// Time between two rounds through all of them.
const EVERY: Duration = Duration::from_secs(600);
/// Time until the next round where some files were too fresh to compare.
const SOON: Duration = Duration::from_secs(1);
/// Files checked at a time.
const PAGE: usize = 512;

/// Runs until cancelled; the first round is at once. Comparing large files takes its time, so the two go on apart.
pub(super) async fn run(queue: Queue, outboxes: Outboxes, spool: PathBuf, cancel: CancellationToken) {
    let look_after = async {
        loop {
            told(look_after(&queue, &spool).await);
            tokio::time::sleep(EVERY).await;
        }
    };
    let compare = async {
        loop {
            let changed = |found: &Found| outboxes.recheck(found);
            let compared = compare(&queue, &spool, &changed, &cancel).await;
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
        warn!(error = %chain(&error), "job list");
    }
}

/// Who is missed, who came back, and who has left.
async fn look_after(queue: &Queue, spool: &Path) -> Result<(), DbError> {
    let mut pages = Pages::new(queue, spool);
    while let Some(page) = pages.next().await? {
        let (mut there, mut missed, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for (resting, presence) in page {
            match (presence, resting.missed) {
                (Presence::There(_), Some(_)) => there.push(resting.item),
                (Presence::Missing | Presence::Spooled, None) => missed.push(resting.item),
                (Presence::Missing | Presence::Spooled, Some(since)) if since >= KEPT => {
                    left.push((resting, presence));
                }
                _ => {}
            }
        }
        queue.seen(there, missed).await?;
        let_go(queue, left).await?;
    }
    Ok(())
}

/// They were missed for long: none of them can be retried after that, and a copy of ours is removed.
async fn let_go(queue: &Queue, missed: Vec<(Resting, Presence)>) -> Result<(), DbError> {
    // First on disk: what was retried since it was read is to be sent, and nobody retries what is being removed.
    let left = queue.left(missed.iter().map(|(resting, _)| resting.item).collect());
    let left: HashSet<ItemId> = left.await?.into_iter().collect();
    for (
        Resting {
            item, root, found, ..
        },
        presence,
    ) in missed
    {
        if !left.contains(&item) {
            continue;
        }
        debug!(path = %found.path, "the version that stayed is not there any more");
        if matches!(presence, Presence::Spooled) {
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
        for (resting, presence) in page {
            let Resting {
                item,
                root,
                found,
                digest: Some(delivered),
                ..
            } = resting
            else {
                continue;
            };
            match presence {
                Presence::There(now) if now.ctime_ns != found.version.ctime_ns => {
                    if now.is_fresh(SystemTime::now()) {
                        some_are_fresh = true;
                        continue;
                    }
                }
                _ => continue,
            }
            let (stopped, path) = (cancel.clone(), found.clone());
            let read = blocking(move || source::digest_of(&root, &path, &|| stopped.is_cancelled())).await;
            match read {
                Ok(Ok((digest, ctime_ns))) if digest == delivered || failpoints::mutant("keep-witness") => {
                    queue.compared(item, ctime_ns).await?;
                }
                Ok(Ok(_)) => {
                    info!(path = %found.path, "other bytes under an old version: looked at as a new drop");
                    queue.left(vec![item]).await?;
                    changed(&found);
                }
                Ok(Err(_)) | Err(_) => {} // somebody writes to it, or it went: the next round tells
            }
        }
    }
    Ok(some_are_fresh)
}

/// All resting files, and whether each is there now.
struct Pages<'a> {
    queue: &'a Queue,
    spool: PathBuf,
    after: ItemId,
}

impl<'a> Pages<'a> {
    fn new(queue: &'a Queue, spool: &Path) -> Self {
        Pages {
            queue,
            spool: spool.to_owned(),
            after: ItemId(0),
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<(Resting, Presence)>>, DbError> {
        let page = self.queue.resting(self.after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        self.after = last.item;
        let spool = self.spool.clone();
        let look = move |resting: Resting| {
            let presence = if resting.root.starts_with(&spool) {
                Presence::Spooled
            } else {
                presence::find(&resting.root, &resting.found)
            };
            (resting, presence)
        };
        let looked = blocking(move || page.into_iter().map(look).collect()).await;
        Ok(Some(looked.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
