//! An outbox's `folder` changes only while nothing that was found under its former value is open or still in the outbox.
//! Else that would be found once more, and sent twice: a folder after its files, or files after their folder.
//!
//! A config that changes `folder` earlier is refused ([`check`]). Where the config cannot tell (the outbox was moved
//! too, and its id is known only once its folder is there; or files were found after the config was checked), the
//! outbox is held (`begin`). It asks once the outbox that ran before has ended and all that was found is in the job
//! list, so nothing comes in between.

use std::{fmt, path::PathBuf, time::Duration};

use dropwire_protocol::RemotePath;
use rusqlite::Connection;

use super::presence;
use crate::{
    blocking::blocking,
    config::{self, Folder, written},
    db::{Db, DbError},
    error::{Exit, Fatal, shown},
    failpoints,
    fs::version::OutboxId,
    homes,
    queue::{self, ItemId, OtherWay, Queue, Resting, goes_other_way},
};

/// Items looked at in one go.
const PAGE: usize = 512;
/// A disk that takes longer to tell what is still in an outbox is not waited for: what the job list has counts.
const LOOK: Duration = Duration::from_secs(10);

/// Why an outbox cannot have the `folder` that the config names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`folder` of the outbox {} cannot change from \"{}\" to \"{}\" now: {items}",
    shown(outbox),
    written(&wanted.other()),
    written(wanted)
)]
pub struct FolderInUse {
    outbox: PathBuf,
    wanted: Folder,
    items: Items,
}

/// What was found under the former value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Items {
    found_with: Folder,
    known: OtherWay,
    /// One of those that stay.
    first: Option<RemotePath>,
}

impl FolderInUse {
    fn new(outbox: &config::Outbox, known: OtherWay, first: Option<RemotePath>) -> Self {
        Self {
            outbox: outbox.path.clone(),
            wanted: outbox.folder,
            items: Items {
                found_with: outbox.folder.other(),
                known,
                first,
            },
        }
    }

    /// The way out.
    pub fn hint(&self) -> String {
        format!(
            "set `folder = \"{}\"` again, and change it once all of them have been delivered and have left the outbox; what \
             stays there (kept, failed or cancelled) has to be moved out by hand",
            written(&self.items.found_with)
        )
    }
}

impl fmt::Display for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: u64| match (self.found_with, n) {
            (Folder::Files, 1) => "1 file of a folder is".to_owned(),
            (Folder::Files, n) => format!("{n} files of folders are"),
            (Folder::Whole, 1) => "1 whole folder is".to_owned(),
            (Folder::Whole, n) => format!("{n} whole folders are"),
        };
        let OtherWay { waiting, staying } = self.known;
        let waiting = (waiting > 0).then(|| format!("{} yet to be delivered or to leave", count(waiting)));
        let staying = (staying > 0).then(|| match &self.first {
            Some(first) => format!("{} still in it, {first} for one", count(staying)),
            None => format!("{} still in it", count(staying)),
        });
        let all: Vec<String> = waiting.into_iter().chain(staying).collect();
        f.write_str(&all.join("; "))
    }
}

impl From<FolderInUse> for Fatal {
    fn from(in_use: FolderInUse) -> Self {
        Self::new(Exit::Config, &in_use).hint(in_use.hint())
    }
}

/// A job list that can be read: a running agent's, or that of one that does not run.
pub trait JobList {
    /// Why it could not be read.
    type Error;

    /// Reads from it. Blocks.
    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Self::Error>;
}

impl JobList for Db {
    type Error = DbError;

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, DbError> {
        self.read_blocking(read)
    }
}

impl JobList for Connection {
    type Error = rusqlite::Error;

    fn read<T>(&self, read: impl FnOnce(&Self) -> rusqlite::Result<T>) -> Result<T, rusqlite::Error> {
        read(self)
    }
}

/// May these outboxes have the `folder` that the config names? To be asked before that config is in effect.
pub async fn check(db: &Db, outboxes: &[config::Outbox]) -> Result<(), Fatal> {
    for outbox in outboxes {
        let asked = {
            let (db, outbox) = (db.clone(), outbox.clone());
            blocking(move || check_one(&db, &outbox))
        };
        let in_use = match tokio::time::timeout(LOOK, asked).await {
            Ok(asked) => asked??,
            Err(_) => {
                let (db, outbox) = (db.clone(), outbox.clone());
                blocking(move || {
                    let changed = changed(&db, &outbox)?;
                    Ok::<_, DbError>(changed.map(|(_, known)| FolderInUse::new(&outbox, known, None)))
                })
                .await??
            }
        };
        if let Some(in_use) = in_use {
            return Err(in_use.into());
        }
    }
    Ok(())
}

/// Why this outbox cannot have the `folder` that its config names. Blocks.
pub fn check_one<L: JobList>(list: &L, outbox: &config::Outbox) -> Result<Option<FolderInUse>, L::Error> {
    match changed(list, outbox)? {
        Some((id, known)) => Ok(still_there(list, outbox, id, known)?.err()),
        None => Ok(None),
    }
}

/// The outbox that is at home at the config's path, if its `folder` differs from the one under which all of its items
/// were found, and those items.
///
/// Where some were found under either, which earlier versions allowed, no value would be right: then the agent runs, with
/// this outbox held until only those are left that were found under the config's.
fn changed<L: JobList>(list: &L, outbox: &config::Outbox) -> Result<Option<(OutboxId, OtherWay)>, L::Error> {
    list.read(|db| {
        let Some(id) = homes::expected(db, &outbox.path)?.map(OutboxId) else {
            return Ok(None); // nothing is known of it
        };
        let other = queue::other_way(db, id, outbox.folder)?;
        let is_changed = !other.is_none() && queue::other_way(db, id, outbox.folder.other())?.is_none();
        Ok((is_changed && !failpoints::mutant("folder-in-use")).then_some((id, other)))
    })
}

/// Those of the `known` items that stay, if each of them has gone from the outbox and no other one waits. Blocks.
fn still_there<L: JobList>(
    list: &L,
    outbox: &config::Outbox,
    id: OutboxId,
    mut known: OtherWay,
) -> Result<Result<Vec<ItemId>, FolderInUse>, L::Error> {
    let mut gone = Vec::new();
    if known.waiting > 0 {
        return Ok(Err(FolderInUse::new(outbox, known, None)));
    }
    let (mut first, mut after) = (None, ItemId(0));
    while known.staying > gone.len() as u64 && first.is_none() {
        let page = list.read(|db| queue::resting(db, after, PAGE))?;
        let Some(last) = page.last() else {
            break; // some of them went on meanwhile
        };
        after = last.item;
        let is_meant = |r: &Resting| r.found.outbox == id && goes_other_way(&r.found, outbox.folder);
        for Resting {
            item, root, found, ..
        } in page.into_iter().filter(is_meant)
        {
            match presence::is_vacant(&root, &found) {
                true => gone.push(item),
                false => first = first.or(Some(found.path)),
            }
        }
    }
    known.staying = known.staying.saturating_sub(gone.len() as u64);
    Ok(match first {
        None if known.staying == 0 => Ok(gone),
        first => Err(FolderInUse::new(outbox, known, first)),
    })
}

/// The outbox whose folder has this id begins: nothing that is found from now on was found under another `folder`. What
/// has gone of that counts as left, so that it is new if it ever comes back.
pub(super) async fn begin(
    db: &Db,
    queue: &Queue,
    outbox: &config::Outbox,
    id: OutboxId,
) -> Result<Result<(), FolderInUse>, DbError> {
    let folder = outbox.folder;
    let known = db.read(move |db| queue::other_way(db, id, folder)).await?;
    if known.is_none() || failpoints::mutant("S2-way") {
        return Ok(Ok(()));
    }
    let (list, outbox, again) = (db.clone(), outbox.clone(), outbox.clone());
    let looked = tokio::task::spawn_blocking(move || still_there(&list, &outbox, id, known)).await;
    match looked.map_err(|e| DbError::Failed(e.into()))?? {
        Ok(gone) => queue.left(gone).await?,
        Err(in_use) => return Ok(Err(in_use)),
    };
    // Some may have been retried meanwhile.
    let known = db.read(move |db| queue::other_way(db, id, folder)).await?;
    Ok(match known.is_none() {
        true => Ok(()),
        false => Err(FolderInUse::new(&again, known, None)),
    })
}

#[cfg(test)]
mod tests;
