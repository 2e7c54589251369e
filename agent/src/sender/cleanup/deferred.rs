//! Delivered folders that cannot leave because they changed since. Looking one through may take long, so it is left alone
//! until its outbox tells of it: as a version that was not told before, or as what was delivered.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use dropwire_protocol::RemotePath;

use crate::{
    fs::{
        confined,
        version::{Found, OutboxId, Version},
    },
    poison::Unpoisoned as _,
    queue::{Disposal, ItemId},
};

/// Most folders; further ones are tried again by time.
const MOST: usize = 4096;

/// Those of all outboxes.
#[derive(Default)]
pub(super) struct Deferred(Mutex<HashMap<(OutboxId, RemotePath), Folder>>);

struct Folder {
    root: PathBuf,
    /// Left alone, and as which version they were delivered.
    items: HashMap<ItemId, Version>,
    /// As its outbox told of it last.
    told: Option<Version>,
}

/// What was told of a folder before it was looked through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before(Option<Version>);

impl Deferred {
    /// A folder is about to be looked through: what is told of it from now on is not missed. None: there are too many.
    pub(super) fn begin(&self, disposal: &Disposal) -> Option<Before> {
        let mut folders = self.lock();
        let key = key(disposal);
        if folders.len() >= MOST && !folders.contains_key(&key) {
            return None;
        }
        let folder = folders.entry(key).or_insert_with(|| Folder {
            root: disposal.root.clone(),
            items: HashMap::new(),
            told: None,
        });
        Some(Before(folder.told))
    }

    /// It had changed: left alone, unless something was told of it meanwhile (false).
    pub(super) fn hold(&self, disposal: &Disposal, before: Before) -> bool {
        match self.lock().get_mut(&key(disposal)) {
            Some(folder) if folder.told == before.0 => {
                folder.items.insert(disposal.item, disposal.found.version);
                true
            }
            _ => false,
        }
    }

    /// Is it left alone? A file never is.
    pub(super) fn holds(&self, disposal: &Disposal) -> bool {
        if !disposal.found.version.folder {
            return false;
        }
        let folders = self.lock();
        folders
            .get(&key(disposal))
            .is_some_and(|folder| folder.items.contains_key(&disposal.item))
    }

    /// Another version of it left, or it did not change after all. True: there are some to try again.
    pub(super) fn forget(&self, disposal: &Disposal) -> bool {
        let folder = self.lock().remove(&key(disposal));
        folder.is_some_and(|folder| folder.items.keys().any(|item| *item != disposal.item))
    }

    /// An outbox tells how these lie there. True: there are some to try again.
    pub(super) fn told(&self, found: &[Found]) -> bool {
        let mut folders = self.lock();
        if folders.is_empty() {
            return false;
        }
        let mut some = false;
        for found in found.iter().filter(|found| found.version.folder) {
            let Some(folder) = folders.get_mut(&(found.outbox, found.path.clone())) else {
                continue;
            };
            let is_new = folder.told.replace(found.version) != Some(found.version);
            let alone = folder.items.len();
            folder
                .items
                .retain(|_, delivered| !is_new && !found.version.same_identity(delivered));
            some |= folder.items.len() < alone;
        }
        some
    }

    /// The outboxes that these are in.
    pub(super) fn outboxes(&self) -> HashSet<OutboxId> {
        self.lock().keys().map(|(outbox, _)| *outbox).collect()
    }

    /// Lets go of those of an outbox that are gone, or of all of them if it `is_away`: nobody tells of them. True: there are
    /// some to try again. Blocks for the outbox's disk.
    pub(super) fn forget_gone(&self, outbox: OutboxId, is_away: bool) -> bool {
        let folders: Vec<_> = self
            .lock()
            .iter()
            .filter(|((of, _), _)| *of == outbox)
            .map(|(key, f)| (key.clone(), f.root.clone()))
            .collect();
        let is_gone = |root: &Path, path: &RemotePath| {
            let meta = std::fs::symlink_metadata(confined::join(root, path));
            meta.is_err_and(|e| confined::is_absent(&e))
        };
        let gone = |((_, path), root): &((OutboxId, RemotePath), PathBuf)| is_away || is_gone(root, path);
        let gone: Vec<_> = folders.into_iter().filter(gone).collect();
        let mut folders = self.lock();
        let gone = gone.into_iter().filter_map(|(key, _)| folders.remove(&key));
        gone.filter(|folder| !folder.items.is_empty()).count() > 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(OutboxId, RemotePath), Folder>> {
        self.0.lock().unpoisoned()
    }
}

fn key(disposal: &Disposal) -> (OutboxId, RemotePath) {
    (disposal.found.outbox, disposal.found.path.clone())
}

#[cfg(test)]
mod tests {
    use dropwire_protocol::Digest;

    use super::*;
    use crate::config::AfterSend;

    fn version(size: u64) -> Version {
        Version {
            inode: 1,
            birth_ns: 1,
            size,
            mtime_ns: 1,
            ctime_ns: 1,
            folder: true,
        }
    }

    fn disposal(root: &Path, item: i64) -> Disposal {
        Disposal {
            item: ItemId(item),
            name: String::new(),
            root: root.to_owned(),
            found: Found {
                outbox: OutboxId([1; 16]),
                path: RemotePath::parse(b"folder").unwrap(),
                version: version(1),
            },
            digest: Digest([0; 32]),
            after_send: AfterSend::Delete,
            delivered_ms: 0,
            marker: None,
        }
    }

    fn found(size: u64) -> Vec<Found> {
        vec![Found {
            version: version(size),
            ..disposal(Path::new("/"), 0).found
        }]
    }

    #[test]
    fn it_is_left_alone_until_another_version_of_it_is_told() {
        let (changed, one) = (Deferred::default(), disposal(Path::new("/outbox"), 1));
        assert!(!changed.told(&found(1)), "nothing is left alone");
        let hold = || {
            let before = changed.begin(&one).unwrap();
            assert!(changed.hold(&one, before) && changed.holds(&one));
        };
        for size in 2..4 {
            hold();
            assert!(changed.told(&found(size)), "told, as a scan or a look does");
            assert!(!changed.holds(&one));
        }
        hold();
        assert!(!changed.told(&found(3)) && changed.holds(&one), "told before");
        for _ in 0..2 {
            assert!(
                changed.told(&found(1)) && !changed.holds(&one),
                "what was delivered"
            );
            hold();
        }
    }

    #[test]
    fn what_is_told_while_it_is_looked_through_is_not_missed() {
        let (changed, one) = (Deferred::default(), disposal(Path::new("/outbox"), 1));
        let before = changed.begin(&one).unwrap();
        assert!(!changed.told(&found(2)));
        assert!(!changed.hold(&one, before) && !changed.holds(&one));
    }

    #[test]
    fn what_ends_one_version_lets_go_of_the_others() {
        let changed = Deferred::default();
        let (one, two) = (
            disposal(Path::new("/outbox"), 1),
            disposal(Path::new("/outbox"), 2),
        );
        let before = changed.begin(&one).unwrap();
        assert!(changed.hold(&one, before));
        changed.begin(&two).unwrap();
        assert!(changed.forget(&two) && !changed.holds(&one));
        assert!(!changed.forget(&two));
    }

    #[test]
    fn it_is_let_go_once_it_is_gone_or_nobody_tells_of_it() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("folder")).unwrap();
        let (changed, one) = (Deferred::default(), disposal(temp.path(), 1));
        let hold = || {
            let before = changed.begin(&one).unwrap();
            assert!(changed.hold(&one, before));
        };
        hold();
        let outbox = one.found.outbox;
        assert_eq!(changed.outboxes(), [outbox].into());
        assert!(!changed.forget_gone(outbox, false) && changed.holds(&one));
        assert!(!changed.forget_gone(OutboxId([9; 16]), true) && changed.holds(&one));
        assert!(changed.forget_gone(outbox, true) && !changed.holds(&one));
        hold();
        std::fs::remove_dir(temp.path().join("folder")).unwrap();
        assert!(changed.forget_gone(outbox, false) && !changed.holds(&one));
    }
}
