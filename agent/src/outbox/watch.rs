//! Native events as hints: each says "look there", none is believed, and a lost one costs only delay.
//!
//! The watch is tested by itself: [`probe`] opens a file in the outbox's own folder for writing, and
//! [`Watcher::probe_received`] tells when the event of its closing came.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt};
use cap_std::fs::{Dir, OpenOptions};
use notify::{
    Config, Event, EventKind, EventKindMask, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::sync::{Notify, mpsc};

use super::stability::Urgency;
use crate::{
    failpoints,
    fs::{dev_ino::DevIno, own_folder},
    poison::Unpoisoned as _,
    watcher::with_its_thread,
};

/// Where to look.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// Something is there: written, made, moved in, changed.
    Look(PathBuf, Urgency),
    /// It was removed, or moved away.
    Gone(PathBuf, Went),
}

/// How a name went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Went {
    Removed,
    Moved,
}

/// Watches an outbox natively for as long as it lives.
pub(super) struct Watcher {
    inner: Mutex<Folders>,
    /// Rises with each round.
    round: AtomicU64,
    limited: Arc<AtomicBool>,
    probe_received: Arc<ProbeReceived>,
}

/// The folders that are watched one by one.
struct Folders {
    watcher: RecommendedWatcher,
    /// Which folder was at each path, and in which round. Another one may be there without any event: a disk that was
    /// mounted on it.
    watched: HashMap<PathBuf, (DevIno, u64)>,
    /// The round in which the last one was watched.
    round: u64,
}

impl Folders {
    fn watch(&mut self, path: &Path, round: u64) -> notify::Result<()> {
        if self.round != round {
            // Those that were not watched again in the whole of the last round are gone.
            let last = self.round;
            self.watched.retain(|_, (_, watched)| *watched == last);
            self.round = round;
        }
        let found = path.symlink_metadata().ok().as_ref().and_then(DevIno::of);
        let watched = self.watched.get(path).map(|(watched, _)| *watched);
        if watched.is_some() && watched != found {
            // A path that is watched already is not opened once more. Refused: it was not watched any more.
            let _ = self.watcher.unwatch(path);
        }
        self.watcher.watch(path, RecursiveMode::NonRecursive)?;
        if let Some(found) = found {
            self.watched.insert(path.to_path_buf(), (found, self.round));
        }
        Ok(())
    }
}

/// When a probe's event came last.
#[derive(Default)]
struct ProbeReceived {
    at: Mutex<Option<Instant>>,
    news: Notify,
}

impl Watcher {
    /// Hints go into `hints`; if that is full, or the system lost some, `missed` is set: then scan.
    pub(super) fn start(
        root: &Path,
        hints: mpsc::Sender<Hint>,
        missed: Arc<AtomicBool>,
    ) -> notify::Result<Self> {
        let limited = Arc::new(AtomicBool::new(false));
        let probe_received = Arc::new(ProbeReceived::default());
        let own = root.join(own_folder::NAME);
        let probe = own.join(PROBE);
        let handler = {
            let (limited, probe_received) = (Arc::clone(&limited), Arc::clone(&probe_received));
            move |event: notify::Result<Event>| match event {
                Ok(_) if failpoints::deaf() => {}
                Ok(event) if event.paths.first() == Some(&probe) => {
                    *probe_received.at.lock().unpoisoned() = Some(Instant::now());
                    probe_received.news.notify_one();
                }
                // Its own folder: only that something became of it matters.
                Ok(event) if event.paths.iter().any(|p| *p != own && p.starts_with(&own)) => {}
                Ok(event) => {
                    if event.need_rescan() {
                        missed.store(true, Ordering::Release);
                    }
                    for hint in hints_of(event) {
                        if hints.try_send(hint).is_err() {
                            missed.store(true, Ordering::Release);
                        }
                    }
                }
                Err(error) => note_limit(&limited, &error),
            }
        };
        let config = Config::default().with_event_kinds(KINDS);
        let mut inner = with_its_thread(|| RecommendedWatcher::new(handler, config))?;
        if !FOLDER_BY_FOLDER {
            inner.watch(root, RecursiveMode::Recursive)?;
        }
        let watcher = Self {
            inner: Mutex::new(Folders {
                watcher: inner,
                watched: HashMap::new(),
                round: 0,
            }),
            round: AtomicU64::new(0),
            limited,
            probe_received,
        };
        watcher.folder(root);
        Ok(watcher)
    }

    /// Watches the outbox's own folder too, where [`probe`] works; to be asked for before each probe, as the system may
    /// have refused it, or dropped it with the folder.
    pub(super) fn own_folder(&self, root: &Path) {
        self.folder(&root.join(own_folder::NAME));
    }

    /// Watches this folder too; to be called before it is read. Not while handling a hint on the watcher's thread.
    pub(super) fn folder(&self, path: &Path) {
        if FOLDER_BY_FOLDER {
            let mut inner = self.inner.lock().unpoisoned();
            let watched = match failpoints::refuses_watch() {
                true => Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch)),
                false => inner.watch(path, self.round.load(Ordering::Relaxed)),
            };
            if let Err(error) = watched {
                note_limit(&self.limited, &error);
            }
        }
    }

    /// The system refused further watches since [`Watcher::begin_round`]: some folders are only scanned.
    pub(super) fn limited(&self) -> bool {
        self.limited.load(Ordering::Acquire)
    }

    /// To be called before every folder is watched again.
    pub(super) fn begin_round(&self) {
        self.limited.store(false, Ordering::Release);
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for a probe's event; tells when it came. May be dropped at any time.
    pub(super) async fn probe_received(&self) -> Instant {
        loop {
            self.probe_received.news.notified().await;
            if let Some(at) = self.take_probe_received() {
                return at;
            }
        }
    }

    /// When a probe's event came, if one did that was not told yet.
    pub(super) fn take_probe_received(&self) -> Option<Instant> {
        let at = &self.probe_received.at;
        at.lock().unpoisoned().take()
    }
}

/// Does in `outbox` what a native watch has to tell of: opens a file for writing and closes it. Writes nothing, so that
/// it costs no disk any work but the first time.
pub(super) fn probe(outbox: &Dir) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).follow(FollowSymlinks::No);
    #[cfg(unix)]
    cap_std::fs::OpenOptionsExt::mode(&mut options, 0o600);
    own_folder::without_waiting(&mut options);
    let own = outbox.open_dir_nofollow(own_folder::NAME)?;
    own.open_with(PROBE, &options).map(drop)
}

/// In the outbox's own folder; always empty.
const PROBE: &str = "probe";

/// inotify watches folders, not trees. Each is watched before it is read, which a watcher that adds them on its own,
/// after it told of them, cannot promise. The other systems watch trees themselves.
const FOLDER_BY_FOLDER: bool = cfg!(target_os = "linux");

/// All but what reading makes: each look and each sending opens the file, and would wake the watcher's thread for
/// nothing.
const KINDS: EventKindMask = EventKindMask::CORE.union(EventKindMask::ACCESS_CLOSE);

fn note_limit(limited: &AtomicBool, error: &notify::Error) {
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => limited.store(true, Ordering::Release),
        notify::ErrorKind::PathNotFound => {} // gone again
        _ => tracing::debug!(%error, "watching"),
    }
}

fn hints_of(event: Event) -> Vec<Hint> {
    let hint = |path, urgency| vec![Hint::Look(path, urgency)];
    let Event { kind, mut paths, .. } = event;
    let Some(path) = paths.pop() else {
        return Vec::new();
    };
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => hint(path, Urgency::Now),
        EventKind::Access(_) => Vec::new(), // our own reading makes these
        EventKind::Create(_) => hint(path, Urgency::Now),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => vec![Hint::Gone(path, Went::Moved)],
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => Vec::new(), // follows From and To
        EventKind::Modify(ModifyKind::Name(_)) => hint(path, Urgency::Now),
        EventKind::Remove(_) => vec![Hint::Gone(path, Went::Removed)],
        EventKind::Modify(_) | EventKind::Any | EventKind::Other => hint(path, Urgency::Calm),
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, RemoveKind};

    use super::*;

    #[test]
    fn table() {
        let hint = |urgency| vec![Hint::Look("/o/f".into(), urgency)];
        let gone = |went| vec![Hint::Gone("/o/f".into(), went)];
        let name = |mode| EventKind::Modify(ModifyKind::Name(mode));
        let access = EventKind::Access;
        for (kind, hints) in [
            (access(AccessKind::Close(AccessMode::Write)), hint(Urgency::Now)),
            (access(AccessKind::Close(AccessMode::Read)), vec![]),
            (access(AccessKind::Open(AccessMode::Any)), vec![]),
            (EventKind::Create(CreateKind::Folder), hint(Urgency::Now)),
            (EventKind::Create(CreateKind::File), hint(Urgency::Now)),
            (name(RenameMode::To), hint(Urgency::Now)),
            (name(RenameMode::Any), hint(Urgency::Now)),
            (name(RenameMode::Both), vec![]),
            (name(RenameMode::From), gone(Went::Moved)),
            (
                EventKind::Modify(ModifyKind::Data(DataChange::Any)),
                hint(Urgency::Calm),
            ),
            (EventKind::Remove(RemoveKind::File), gone(Went::Removed)),
        ] {
            assert_eq!(
                hints_of(Event::new(kind).add_path("/o/f".into())),
                hints,
                "{kind:?}"
            );
        }
        assert!(hints_of(Event::new(EventKind::Other)).is_empty());
    }

    #[tokio::test]
    async fn a_probe_is_heard_and_gives_no_hint() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let dir = crate::fs::confined::root(&root).unwrap();
        assert!(probe(&dir).is_err(), "its folder is never made");
        std::fs::create_dir(root.join(own_folder::NAME)).unwrap();
        let (hints_in, mut hints) = mpsc::channel(16);
        let watcher = Watcher::start(&root, hints_in, Arc::default()).unwrap();
        let deadline = Instant::now() + std::time::Duration::from_secs(20);
        for gone_before in [false, false, true] {
            if gone_before {
                std::fs::remove_dir_all(root.join(own_folder::NAME)).unwrap(); // and its watch with it
                std::fs::create_dir(root.join(own_folder::NAME)).unwrap();
            }
            // Asked for again until one comes, as scans do: the end of the old watch may be told late.
            let begun = Instant::now();
            let mut probe_received = None;
            while probe_received.is_none_or(|probe_received| probe_received < begun) {
                assert!(Instant::now() < deadline, "no event");
                watcher.own_folder(&root);
                probe(&dir).unwrap();
                let wait = std::time::Duration::from_millis(200);
                probe_received = tokio::time::timeout(wait, watcher.probe_received()).await.ok();
            }
        }
        std::fs::write(root.join("file"), "").unwrap();
        loop {
            match hints.recv().await.unwrap() {
                Hint::Look(path, _) if path == root.join("file") => break,
                Hint::Look(path, _) | Hint::Gone(path, _) => assert!(!path.ends_with(PROBE), "{path:?}"),
            }
        }
    }
}
