//! Why a folder is held, for `check` and `adopt`.

use std::{
    io,
    path::{Path, PathBuf},
};

use cap_std::fs::Dir;
use rusqlite::{Connection, OpenFlags};

use crate::{
    config::{Config, paths::Paths},
    error::{Fatal, shown},
    fs::{border, confined, folder_id},
    homes,
    owner::{self, Me, Owner},
    receiver,
    sender::folder_setting,
};

/// Why the folder at `path` would be held, as far as can be told without the agent; for `check`. Blocks.
pub fn trouble(config: &Config, paths: &Paths, me: &Me, path: &Path) -> Option<String> {
    // Without a job list nothing is expected yet.
    let known = job_list(paths)
        .and_then(|list| Known::read(&list, config, path))
        .unwrap_or_default();
    let is_inbox = config.inbox.as_ref().is_some_and(|inbox| inbox.path == path);
    let seen = Seen::of(path, is_inbox, me, &known).ok()?;
    match is_inbox {
        true => reason(path, is_inbox, &seen, &known),
        false => of_the_whole(path, is_inbox, &seen, &known), // a disk inside it that is missing holds nothing else
    }
}

/// Why the agent would refuse the `folder` of an outbox, as far as can be told without it; for `check`. Blocks.
pub fn setting_trouble(config: &Config, paths: &Paths) -> Option<Fatal> {
    let list = job_list(paths).ok()?; // without one nothing was found yet
    let mut outboxes = config.outboxes.iter();
    let in_use = outboxes.find_map(|outbox| folder_setting::check_one(&list, outbox).ok().flatten());
    in_use.map(Fatal::from)
}

fn job_list(paths: &Paths) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(paths.state_dir.join("jobs.db"), flags)
}

/// What the job list says.
#[derive(Default)]
pub(super) struct Known {
    /// The ids at home in the config's folders.
    pub homes: Vec<(folder_id::FolderId, PathBuf)>,
    outboxes: Vec<PathBuf>,
    /// Files that were being placed in a folder with another id than is expected here.
    pub placing_elsewhere: u64,
}

impl Known {
    pub(super) fn read(db: &Connection, config: &Config, path: &Path) -> rusqlite::Result<Self> {
        let mut homes = Vec::new();
        for folder in config.folders() {
            homes.extend(homes::expected(db, &folder)?.map(|id| (id, folder)));
        }
        let here = homes::expected(db, path)?.unwrap_or_default();
        Ok(Self {
            homes,
            outboxes: config.outbox_paths(),
            placing_elsewhere: receiver::placing_elsewhere(db, here)?,
        })
    }

    pub(super) fn expected(&self, path: &Path) -> Option<folder_id::FolderId> {
        let home = self.homes.iter().find(|(_, home)| home == path);
        home.map(|(id, _)| *id)
    }

    /// Why a folder with this id is not at home at `path`. Blocks.
    fn elsewhere(&self, id: folder_id::FolderId, path: &Path) -> Option<String> {
        let (_, home) = self.homes.iter().find(|(its, home)| *its == id && home != path)?;
        let there = homes::There::find(id, path, home);
        (!there.is_left(path, home, &self.outboxes)).then(|| there.reason(path, home))
    }
}

/// What is in the folder.
pub(super) struct Seen {
    /// What is mounted over its `.dropwire`, or a part of that: all else says nothing, and there is nothing to adopt.
    pub parted: Option<String>,
    /// Why another agent has it, or nobody can tell.
    pub refused: Option<String>,
    pub owner: Option<Owner>,
    pub id: Result<Option<folder_id::FolderId>, io::Error>,
    /// Why the id is at home in another folder.
    elsewhere: Option<String>,
    /// Why nothing is taken for some folders of an inbox, or leaves some of an outbox.
    missing: Vec<String>,
}

impl Seen {
    pub(super) fn of(path: &Path, is_inbox: bool, me: &Me, known: &Known) -> io::Result<Self> {
        let root = confined::root(path)?;
        let id = folder_id::read(&root);
        Ok(Self {
            parted: match is_inbox {
                true => receiver::parted(path, &root)?,
                false => None,
            },
            refused: owner::check(&root, path, me).err(),
            owner: owner::read(&root).ok().flatten(),
            elsewhere: id.as_ref().ok().and_then(|id| known.elsewhere((*id)?, path)),
            id,
            missing: match is_inbox {
                true => receiver::missing_disks(path, &root),
                false => missing_mounts(path, &root),
            },
        })
    }
}

/// One sentence for all of them; none where that cannot be told.
fn missing_mounts(path: &Path, root: &Dir) -> Vec<String> {
    let missing = border::missing(root).unwrap_or_default();
    let Some((first, others)) = missing.split_first() else {
        return Vec::new();
    };
    let others = match others.len() {
        0 => String::new(),
        n => format!(" (and at {n} other places)"),
    };
    vec![format!(
        "what was mounted at {first}{others} in {} is not there now: what is missing behind it may not have left. If it is \
         gone for good: `{}`",
        shown(path),
        owner::adopt(path)
    )]
}

/// Why the folder is held; None: it is used as it is.
pub(super) fn reason(path: &Path, is_inbox: bool, seen: &Seen, known: &Known) -> Option<String> {
    let missing = (!seen.missing.is_empty()).then(|| seen.missing.join("; "));
    let parted = seen.parted.clone();
    parted
        .or_else(|| of_the_whole(path, is_inbox, seen, known))
        .or(missing)
}

/// Why the folder as a whole is held, by the rules by which inboxes and outboxes are opened; disks inside it do not
/// count.
pub(super) fn of_the_whole(path: &Path, is_inbox: bool, seen: &Seen, known: &Known) -> Option<String> {
    if seen.refused.is_some() {
        return seen.refused.clone();
    }
    let adopt = owner::adopt(path);
    match (&seen.id, known.expected(path)) {
        (Err(error), _) => {
            let what = format!("the id of {} (.dropwire/id)", shown(path));
            Some(owner::unreadable(&what, error, path, "to give it a new one"))
        }
        (Ok(None), Some(_)) => Some(format!(
            "{} has lost its id (.dropwire/id): is the right disk mounted? To use the folder that is there now: `{adopt}`",
            shown(path)
        )),
        (Ok(Some(id)), Some(expected)) if is_inbox && *id != expected => Some(format!(
            "{} has another id (.dropwire/id) than before: is the right disk mounted? To use the folder that is there \
             now: `{adopt}`",
            shown(path)
        )),
        _ if seen.elsewhere.is_some() => seen.elsewhere.clone(),
        _ if is_inbox && known.placing_elsewhere > 0 => Some(format!(
            "{} files were being placed in another inbox folder and wait for it; to give that one up: `{adopt}`",
            known.placing_elsewhere
        )),
        _ => None,
    }
}
