//! Delivered files that cannot leave their outboxes: told once an outbox, with a count, however many and however often
//! they are tried.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use tracing::{info, warn};

use crate::{
    error::shown,
    io_error::{self, Meaning, Wait},
    leaving::DisposeError,
    poison::Unpoisoned as _,
    queue::{DueDisposal, ItemId},
};

/// Most files of one outbox of which it is known why they stay; further ones are tried as often.
const MOST: usize = 65_536;

/// Those of all outboxes.
#[derive(Default)]
pub(super) struct Stuck(Mutex<BTreeMap<PathBuf, Files>>);

#[derive(Default)]
struct Files {
    since_ms: i64,
    /// Why, in an outbox the same words for most of them: a number of [`Files::reasons`].
    items: HashMap<ItemId, usize>,
    reasons: Vec<Reason>,
    /// How many there were since it began.
    ever: u64,
}

/// Why a file stays, and what can be done about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason {
    /// For people, without the file's name.
    pub text: String,
    /// The way out.
    pub hint: &'static str,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}", self.text, self.hint)
    }
}

/// What is told of one outbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StuckFiles {
    /// How many files.
    pub files: usize,
    /// When the first of them could not leave; milliseconds since 1970.
    pub since_ms: i64,
    /// Why, of most of them.
    pub reason: Reason,
}

/// Most reasons told apart; further ones count as the last.
const REASONS: usize = 8;

impl Stuck {
    /// It could not leave.
    pub(super) fn add(&self, disposal: &DueDisposal, error: &DisposeError, now_ms: i64) {
        let reason = reason(error);
        let mut all = self.lock();
        let files = all.entry(disposal.root.clone()).or_default();
        if files.ever == 0 {
            files.since_ms = now_ms;
            warn!(
                outbox = %shown(&disposal.root), first = %disposal.found.path,
                "delivered files cannot leave their outbox, and are tried again: {reason}"
            );
        }
        let at = files.reasons.iter().position(|known| *known == reason);
        let at = at.unwrap_or_else(|| {
            if files.reasons.len() < REASONS {
                files.reasons.push(reason);
            }
            files.reasons.len() - 1
        });
        let has_room = files.items.len() < MOST;
        if let Some(known) = files.items.get_mut(&disposal.item) {
            *known = at;
        } else if has_room {
            files.items.insert(disposal.item, at);
            files.ever += 1;
        }
    }

    /// It left, or what keeps it is no fault.
    pub(super) fn remove(&self, disposal: &DueDisposal) {
        let mut all = self.lock();
        let Some(files) = all.get_mut(&disposal.root) else {
            return;
        };
        files.items.remove(&disposal.item);
        if files.items.is_empty() {
            info!(outbox = %shown(&disposal.root), files = files.ever, "what could not leave its outbox has left");
            all.remove(&disposal.root);
        }
    }

    /// Only these outboxes have files that are to leave.
    pub(super) fn keep(&self, has_some: impl Fn(&Path) -> bool) {
        self.lock().retain(|root, _| has_some(root));
    }

    /// What is told of the outbox there.
    pub(super) fn told(&self, root: &Path) -> Option<StuckFiles> {
        let all = self.lock();
        let files = all.get(root)?;
        let mut counts = vec![0_usize; files.reasons.len()];
        for at in files.items.values() {
            if let Some(count) = counts.get_mut(*at) {
                *count += 1;
            }
        }
        let most = (0..counts.len()).max_by_key(|at| counts.get(*at).copied())?;
        Some(StuckFiles {
            files: files.items.len(),
            since_ms: files.since_ms,
            reason: files.reasons.get(most)?.clone(),
        })
    }

    /// Why this one stays.
    pub(super) fn why(&self, root: &Path, item: ItemId) -> Option<Reason> {
        let all = self.lock();
        let files = all.get(root)?;
        files.reasons.get(*files.items.get(&item)?).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Files>> {
        self.0.lock().unpoisoned()
    }
}

fn reason(error: &DisposeError) -> Reason {
    let (text, hint) = match error {
        DisposeError::Disk(done, _, error) => (format!("they cannot be {done}: {error}"), hint(error)),
        other => (other.to_string(), "`dropwire check` says what is wrong with it"),
    };
    Reason { text, hint }
}

fn hint(error: &std::io::Error) -> &'static str {
    match io_error::meaning(error) {
        Meaning::NotNow(Wait::Access) => {
            "The agent's user has to be allowed to move and remove them: look for immutable or append-only files and \
             folders (`lsattr`; `chattr -i`, `chattr -a`), a sticky folder of somebody else, missing write rights, and \
             a disk that is mounted read-only"
        }
        Meaning::NotNow(Wait::Space) => "Free some space on the outbox's disk",
        Meaning::NotNow(Wait::Busy) => {
            "A program uses them, or something is mounted there: close it, or unmount it"
        }
        Meaning::NotNow(Wait::Shortage) => "The machine is short of memory or open files for now",
        Meaning::NotNow(Wait::Device) | Meaning::Lost => "Check the outbox's disk",
        Meaning::Never | Meaning::NotOurs => "Move them away by hand: they have been delivered",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use dropwire_protocol::{Digest, RemotePath};

    use super::*;
    use crate::{
        config::AfterSend,
        fs::version::{Found, OutboxId, Version},
    };

    fn disposal(root: &str, item: i64) -> DueDisposal {
        DueDisposal {
            item: ItemId(item),
            name: String::new(),
            root: root.into(),
            found: Found {
                outbox: OutboxId([1; 16]),
                path: RemotePath::parse(b"file").unwrap(),
                version: Version {
                    inode: 1,
                    birth_ns: 1,
                    size: 1,
                    mtime_ns: 1,
                    ctime_ns: 1,
                    folder: false,
                },
            },
            digest: Digest([0; 32]),
            delivered_ms: 0,
            after_send: AfterSend::Delete,
            marker: None,
        }
    }

    fn disk(kind: io::ErrorKind) -> DisposeError {
        DisposeError::Disk("moved", disposal("/a", 1).found.path, kind.into())
    }

    #[test]
    fn an_outbox_is_told_once_until_its_last_file_has_left() {
        let (stuck, a, b) = (Stuck::default(), Path::new("/a"), Path::new("/b"));
        for _ in 0..2 {
            for item in 1..=3 {
                let kind = match item {
                    1 => io::ErrorKind::StorageFull,
                    _ => io::ErrorKind::PermissionDenied,
                };
                stuck.add(&disposal("/a", item), &disk(kind), 7 + item);
            }
        }
        let told = stuck.told(a).unwrap();
        assert_eq!((told.files, told.since_ms), (3, 8));
        assert!(told.reason.hint.contains("chattr -i"), "of most of them");
        assert!(stuck.why(a, ItemId(1)).unwrap().hint.contains("space"));
        assert_eq!((stuck.why(a, ItemId(9)), stuck.told(b)), (None, None));
        stuck.remove(&disposal("/b", 1));
        for item in 1..=3 {
            assert!(stuck.told(a).is_some());
            stuck.remove(&disposal("/a", item));
        }
        assert_eq!(stuck.told(a), None);
        stuck.add(&disposal("/a", 4), &disk(io::ErrorKind::Other), 20);
        assert_eq!(stuck.told(a).unwrap().since_ms, 20, "told again");
        stuck.keep(|root| root != a);
        assert_eq!(stuck.told(a), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let stuck = Stuck::default();
        for item in 0..MOST as i64 + 5 {
            stuck.add(&disposal("/a", item), &disk(io::ErrorKind::PermissionDenied), 1);
        }
        assert_eq!(stuck.told(Path::new("/a")).unwrap().files, MOST);
        for n in 0..REASONS + 5 {
            let error = DisposeError::Held("/a".into(), format!("reason {n}"));
            stuck.add(&disposal("/a", 1), &error, 1);
        }
        assert_eq!(stuck.lock()[Path::new("/a")].reasons.len(), REASONS);
    }
}
