//! Files that stay in their outboxes for good (kept, failed, cancelled) are looked after now and then: one that is not
//! there any more is a new drop when it returns, and its peers may forget it.

use std::{io, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Shared, blocking};
use crate::{
    bundle, confined,
    db::DbError,
    mark,
    queue::{DropId, Resting},
    version::{OutboxId, Version},
};

/// Between two looks at all of them.
const EVERY: Duration = Duration::from_secs(600);
/// Files looked at in one go.
const PAGE: usize = 512;

/// Runs until cancelled; the first look is at once.
pub async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    loop {
        match cancel.run_until_cancelled(round(&shared)).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => warn!(%error, "job list"),
        }
        if cancel
            .run_until_cancelled(tokio::time::sleep(EVERY))
            .await
            .is_none()
        {
            return;
        }
    }
}

async fn round(shared: &Shared) -> Result<(), DbError> {
    let mut after = DropId(0);
    loop {
        let page = shared.queue.resting(after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = last.drop;
        let look = move || page.into_iter().filter(has_left).collect::<Vec<_>>();
        let left = blocking(look).await.unwrap_or_default();
        for resting in &left {
            debug!(path = %resting.found.path, "the version that stayed is not there any more");
        }
        shared.queue.left(left.iter().map(|r| r.drop).collect()).await?;
    }
}

/// Only where the outbox is there: an unmounted one says nothing of its files.
fn has_left(resting: &Resting) -> bool {
    let look = || -> io::Result<Option<Version>> {
        let root = confined::root(&resting.root)?;
        if mark::read(&root)?.map(OutboxId) != Some(resting.found.outbox) {
            return Err(io::Error::other("another folder"));
        }
        let path = &resting.found.path;
        if resting.found.version.folder {
            return match confined::open_folder(&root, path) {
                Ok(folder) => bundle::list_quickly(&folder)
                    .map(|listing| Some(listing.version()))
                    .map_err(|trouble| io::Error::other(format!("{trouble:?}"))),
                Err(e) if confined::is_absent(&e) => Ok(None),
                Err(e) => Err(e),
            };
        }
        let version = confined::parent(&root, path).and_then(|folder| {
            let meta = folder.symlink_metadata(confined::os_str(path.file_name())?)?;
            Ok(Version::listed(&meta))
        });
        match version {
            Err(e) if confined::is_absent(&e) => Ok(None),
            version => version.map(Some),
        }
    };
    look().is_ok_and(|version| version.is_none_or(|v| !v.same_identity(&resting.found.version)))
}
