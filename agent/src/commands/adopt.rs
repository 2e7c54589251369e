//! Takes over an inbox or outbox folder that has no id or another's, by the word of a person: it becomes this agent's,
//! under a new id. With the running agent or, under the state folder's lock, without.
//!
//! First the owner's record is replaced, then what was leaving an outbox is given back, then the id is replaced, then it
//! is noted where that is at home. Whatever a crash cuts off, the folder is held as before and can be adopted again.

mod held;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    blocking::blocking,
    clock::now_ms,
    config::Config,
    control::api::{AdoptReply, AdoptRequest},
    db::{Db, DbError},
    error::{Exit, Fatal, shown},
    fs::{border, confined, folder_id, own_folder, version::OutboxId},
    homes, leaving,
    owner::{self, Lock, Me},
    queue::Queue,
    receiver,
};
use held::{Known, Seen, of_the_whole, reason};
pub use held::{setting_trouble, trouble};

/// What it takes.
pub struct Adopter {
    /// Where the folder has to be named.
    pub config: Arc<Config>,
    /// The agent that takes it.
    pub me: Me,
    /// Its job list's file.
    pub db: Db,
    /// Its jobs.
    pub queue: Queue,
}

impl Adopter {
    /// Says what adopting the folder means and, if that is what is asked, does it. Where nothing holds the folder there
    /// is nothing to adopt: then the answer has no reason. `lock` is the inbox's.
    pub async fn answer(&self, request: AdoptRequest, lock: Arc<InboxLock>) -> Result<AdoptReply, Fatal> {
        let (path, is_inbox) = self.configured(&request.path.0)?;
        let known = self.known(&path).await?;
        let (known, seen, is_one_of_two) = {
            let (path, me) = (path.clone(), self.me.clone());
            blocking(move || {
                let mut homes = known.homes.iter();
                let twin = homes.any(|(_, home)| *home != path && homes::is_same(&path, home));
                let seen = Seen::of(&path, is_inbox, &me, &known);
                (known, seen, twin)
            })
            .await?
        };
        let seen = seen.map_err(|e| {
            Fatal::io(format_args!("cannot open {}", shown(&path)), &e).hint("make or mount the folder first")
        })?;
        if let Some(parted) = seen.parted {
            return Err(Fatal::new(Exit::Config, parted).hint("nothing needs to be adopted"));
        }
        let mut reply = AdoptReply {
            folder: shown(&path),
            reason: reason(&path, is_inbox, &seen, &known),
            meaning: Vec::new(),
            adopted: false,
        };
        if reply.reason.is_none() {
            return Ok(reply);
        }
        if is_one_of_two {
            return Err(Fatal::new(Exit::Config, reply.reason.unwrap_or_default())
                .hint("an id of its own would only take it from the other"));
        }
        if of_the_whole(&path, is_inbox, &seen, &known).is_none() {
            return without_disks(&path, is_inbox, reply, request.go).await;
        }
        reply.meaning = self.meaning(&path, is_inbox, &seen, &known).await?;
        if request.go {
            self.take(&path, is_inbox, lock).await?;
            reply.adopted = true;
        }
        Ok(reply)
    }

    /// The folder as the config names it, and whether it is the inbox.
    fn configured(&self, path: &Path) -> Result<(PathBuf, bool), Fatal> {
        let named = |folder: &PathBuf| folder == path;
        let is_there = |folder: &PathBuf| {
            let (a, b) = (folder.canonicalize(), path.canonicalize());
            matches!((a, b), (Ok(a), Ok(b)) if a == b)
        };
        let folders = self.config.folders();
        let folder = folders
            .iter()
            .find(|f| named(f))
            .or_else(|| folders.iter().find(|f| is_there(f)));
        let folder = folder.ok_or_else(|| {
            Fatal::new(
                Exit::NoInput,
                format_args!("{} is no inbox or outbox of this agent", shown(path)),
            )
            .hint("name it in the config first")
        })?;
        let inbox = self.config.inbox.as_ref();
        Ok((folder.clone(), inbox.is_some_and(|inbox| inbox.path == *folder)))
    }

    async fn known(&self, path: &Path) -> Result<Known, DbError> {
        let (config, path) = (self.config.clone(), path.to_path_buf());
        self.db.read(move |db| Known::read(db, &config, &path)).await
    }

    /// In sentences.
    async fn meaning(
        &self,
        path: &Path,
        is_inbox: bool,
        seen: &Seen,
        known: &Known,
    ) -> Result<Vec<String>, DbError> {
        let mut meaning = Vec::new();
        if let Some(owner) = seen.owner.as_ref().filter(|_| seen.refused.is_some()) {
            meaning.push(format!(
                "It is taken from {owner}. That agent must no longer use it: files would be lost or arrive twice."
            ));
            if owner.runs_here() {
                meaning.push(format!(
                    "That agent seems to run on this machine now (process {}): stop it, or take the folder out of its \
                     config first.",
                    owner.pid
                ));
            }
        }
        if is_inbox {
            meaning.push(
                "Files that are in it stay as they are; what had arrived only in part begins again.".into(),
            );
            let placing = match (&seen.id, known.expected(path)) {
                (Ok(Some(id)), Some(expected)) if *id == expected => known.placing_elsewhere,
                _ => {
                    self.db
                        .read(|db| receiver::placing_elsewhere(db, folder_id::FolderId::default()))
                        .await?
                }
            };
            if placing > 0 {
                meaning.push(format!(
                    "Files that were just getting their names in the earlier folder ({placing}) are taken again when they \
                     are offered again: each may then be in both folders."
                ));
            }
            return Ok(meaning);
        }
        let to: Vec<String> = self.recipients(path);
        meaning.push(format!(
            "Every file in it is sent to {}, also what was sent from this folder before.",
            to.join(", ")
        ));
        let waiting = self.queue.waiting_at(path.to_path_buf()).await?;
        if waiting > 0 {
            meaning.push(format!(
                "Jobs that wait for files of the folder that was here before ({waiting}) end as failed; those files are \
                 not touched."
            ));
        }
        Ok(meaning)
    }

    fn recipients(&self, path: &Path) -> Vec<String> {
        let outbox = self.config.outboxes.iter().find(|outbox| outbox.path == path);
        let peers = self.config.peers.iter();
        let to = peers.filter(|peer| outbox.is_some_and(|outbox| outbox.to.contains(&peer.id)));
        to.map(|peer| peer.name.clone()).collect()
    }

    async fn take(&self, path: &Path, is_inbox: bool, lock: Arc<InboxLock>) -> Result<(), Fatal> {
        let (me, queue, folder) = (self.me.clone(), self.queue.clone(), path.to_path_buf());
        let id = blocking(move || replace(&folder, is_inbox, &me, &queue, lock.get())).await??;
        let (folder, now) = (path.to_path_buf(), now_ms());
        let noted = self.db.call(move |tx| {
            homes::settle(tx, id, &folder)?;
            if is_inbox {
                receiver::give_up_elsewhere(tx, id)?;
            }
            Ok(())
        });
        noted.await?;
        if !is_inbox {
            let replaced = self.queue.outbox_replaced(path.to_path_buf(), OutboxId(id), now);
            replaced.await?;
        }
        tracing::info!(folder = %shown(path), "adopted");
        Ok(())
    }
}

/// Of a folder that is used as it is, except for disks inside it that are missing: they are given up, and nothing else
/// changes.
async fn without_disks(
    path: &Path,
    is_inbox: bool,
    mut reply: AdoptReply,
    go: bool,
) -> Result<AdoptReply, Fatal> {
    let meaning = match is_inbox {
        true => [
            "What comes for the missing disk is put into the folder that is there now. If the disk is mounted there again, that \
             is hidden.",
            "A file that was just getting its name on it may then be in both.",
        ],
        false => [
            "What was delivered from the missing disk and is not there now counts as having left.",
            "If the disk is mounted there again, what is still on it is sent again.",
        ],
    };
    reply.meaning = meaning.map(String::from).into();
    if go {
        let folder = path.to_path_buf();
        let forget = move || match is_inbox {
            true => receiver::forget_missing_disks(&confined::root(&folder)?),
            false => border::forget_missing(&confined::root(&folder)?),
        };
        let forgotten = blocking(forget).await?;
        forgotten.map_err(|e| Fatal::io(format_args!("cannot take {}", shown(path)), &e))?;
        reply.adopted = true;
        tracing::info!(folder = %shown(path), "disks that are missing were given up");
    }
    Ok(reply)
}

/// The lock of an inbox: the running agent's, or one for this command.
#[derive(Default)]
pub struct InboxLock {
    inbox: Option<receiver::Inbox>,
    own: Lock,
}

impl InboxLock {
    /// The lock of this open inbox.
    pub fn of(inbox: &receiver::Inbox) -> Self {
        Self {
            inbox: Some(inbox.clone()),
            own: Lock::default(),
        }
    }

    fn get(&self) -> &Lock {
        self.inbox.as_ref().map_or(&self.own, receiver::Inbox::lock)
    }
}

/// Owner, then id.
fn replace(
    path: &Path,
    is_inbox: bool,
    me: &Me,
    queue: &Queue,
    lock: &Lock,
) -> Result<folder_id::FolderId, Fatal> {
    let failed = |e: io::Error| Fatal::io(format_args!("cannot take {}", shown(path)), &e);
    let root = confined::root(path).map_err(failed)?;
    own_folder::open_or_make(&root).map_err(failed)?;
    if is_inbox {
        lock.hold(&root).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => Fatal::new(
                Exit::CannotCreate,
                format_args!("{} is in use by another dropwire process", shown(path)),
            )
            .hint("stop that agent, or take the folder out of its config"),
            _ => failed(e),
        })?;
    }
    owner::replace(&root, me).map_err(failed)?;
    if is_inbox {
        receiver::forget_missing_disks(&root).map_err(failed)?;
    } else {
        // What the job list does not tell comes back all the same.
        let path_of = |name: &str| queue.path_of(name).ok().flatten();
        leaving::give_back_all(&root, &path_of).map_err(failed)?;
        border::forget_missing(&root).map_err(failed)?;
    }
    folder_id::replace(&root).map_err(failed)
}
