//! Tells when the config file was edited.
//!
//! Its folder is watched: editors write another file and rename it. If the path leads through symbolic links
//! (Kubernetes' `..data`, NixOS' `/etc/static`), each of them can be put elsewhere, so the folder of each is watched.
//! And the file is, which a container may see by another name than who writes it.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{sync::Notify, time::Instant};
use tracing::warn;

use crate::{
    clock::reached,
    error::shown,
    fs::lease::{Asked, Lease},
    watcher::with_its_thread,
};

/// An edit is over once nothing has happened to the file for so long.
const REST: Duration = Duration::from_millis(500);
/// Most symbolic links on the way; Linux follows as many.
const MOST_LINKS: usize = 40;

/// Watches the config file for as long as it lives.
pub struct Edits {
    config: PathBuf,
    touched: Arc<Notify>,
    /// When the edit under way is over.
    over_at: Option<Instant>,
    watcher: Option<RecommendedWatcher>,
    /// That it cannot be watched was said.
    said: bool,
}

impl Edits {
    /// Watches `config`, absolute, and tells of an edit soon: it may have been made since the file was read. Where it
    /// cannot be watched, the log says so, and no further one is told.
    pub async fn watch(config: &Path) -> Self {
        let mut edits = Self {
            config: config.to_owned(),
            touched: Arc::default(),
            over_at: Some(Instant::now() + REST),
            watcher: None,
            said: false,
        };
        edits.renew().await;
        edits
    }

    /// Follows the path as it leads now. To be called before the file is read: whatever comes later is told.
    pub async fn renew(&mut self) {
        let (config, touched) = (self.config.clone(), self.touched.clone());
        let watcher = tokio::task::spawn_blocking(move || start(&config, touched)).await;
        let error = match watcher {
            Ok(Ok(watcher)) => {
                self.watcher = Some(watcher); // only now the one before ends
                self.said = false;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if !self.said {
            self.said = true;
            let config = shown(&self.config);
            warn!(
                config,
                error, "the config file cannot be watched: send SIGHUP after an edit"
            );
        }
    }

    /// The next edit is to be told at once, or, with one under way, when that is over.
    pub fn hurry(&mut self) {
        self.over_at.get_or_insert_with(Instant::now);
    }

    /// Returns after an edit, or what may be one. Safe to cancel.
    pub async fn next(&mut self) {
        loop {
            tokio::select! {
                biased;
                () = self.touched.notified() => self.over_at = Some(Instant::now() + REST),
                () = reached(self.over_at) => {
                    self.over_at = None;
                    return;
                }
            }
        }
    }
}

/// What `read` makes of the config file; None: somebody is writing to it, and the end of that will be told.
pub fn undisturbed<T>(config: &Path, read: impl FnOnce() -> T) -> Option<T> {
    let lease = match File::open(config).map(|file| Lease::take(&file)) {
        Ok(Asked::Writer) => return None,
        Ok(Asked::Lease(lease)) => Some(lease),
        // Nothing to open, or nobody to ask: then resting has to do.
        Ok(Asked::Unsupported) | Err(_) => None,
    };
    let result = read();
    lease.is_none_or(|lease| lease.whole()).then_some(result)
}

fn start(config: &Path, touched: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let way = way(config);
    let folders: BTreeSet<PathBuf> = way
        .iter()
        .filter_map(|place| place.parent().map(PathBuf::from))
        .collect();
    let (places, own) = (way, folders.clone());
    let handler = move |event: notify::Result<Event>| match event {
        Ok(event) if event.need_rescan() || concerns(&event, &places, &own) => touched.notify_one(),
        Ok(_) => {}
        Err(_) => touched.notify_one(),
    };
    let mut watcher = with_its_thread(|| notify::recommended_watcher(handler))?;
    for folder in &folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    // It need not be there.
    let _ = watcher.watch(config, RecursiveMode::NonRecursive);
    Ok(watcher)
}

/// Whether something happened at one of the `places`, or became of their `folders`. Reading is no news: we do it too.
fn concerns(event: &Event, places: &BTreeSet<PathBuf>, folders: &BTreeSet<PathBuf>) -> bool {
    let news = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    };
    news && event
        .paths
        .iter()
        .any(|path| places.contains(path) || folders.contains(path))
}

/// The file's own place and that of each symbolic link that leads to it, in folders without links; what is missing is
/// the last.
fn way(config: &Path) -> BTreeSet<PathBuf> {
    let mut way = BTreeSet::new();
    let mut at = PathBuf::new();
    let mut left: Vec<OsString> = Vec::new();
    push(&mut left, config);
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(&part);
        let last = left.is_empty();
        match at.symlink_metadata() {
            Ok(found) if found.is_symlink() => {
                links += 1;
                // The root's own links are the system's, and much happens beside them.
                if at.parent().is_some_and(|folder| folder.parent().is_some()) {
                    way.insert(at.clone());
                }
                let Ok(target) = at.read_link() else { break };
                if links > MOST_LINKS {
                    break;
                }
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::new();
                }
                push(&mut left, &target);
            }
            Ok(_) if !last => {}
            Ok(_) | Err(_) => {
                way.insert(at);
                break;
            }
        }
    }
    way
}

/// The parts of `path` on top of those that are `left`, the first uppermost.
fn push(left: &mut Vec<OsString>, path: &Path) {
    let parts = path.components().rev().filter(|part| *part != Component::CurDir);
    left.extend(parts.map(|part| part.as_os_str().to_owned()));
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        (dir, root)
    }

    #[test]
    fn every_link_on_the_way_counts() {
        let (_dir, root) = folder();
        fs::create_dir_all(root.join("store/v1")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("store/v1/config.toml"), "").unwrap();
        symlink("../store/./v1", root.join("etc/..data")).unwrap();
        symlink("..data/config.toml", root.join("etc/config.toml")).unwrap();
        symlink(root.join("etc"), root.join("link")).unwrap();
        let expected = ["link", "etc/config.toml", "etc/..data", "store/v1/config.toml"];
        assert_eq!(
            way(&root.join("link/config.toml")),
            expected.into_iter().map(|place| root.join(place)).collect()
        );
    }

    #[test]
    fn what_is_missing_is_waited_for_where_it_would_be() {
        let (_dir, root) = folder();
        let only = |place: &str| BTreeSet::from([root.join(place)]);
        assert_eq!(way(&root.join("config.toml")), only("config.toml"));
        assert_eq!(way(&root.join("none/below/config.toml")), only("none"));
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(way(&root.join("loop/config.toml")), only("loop"));
    }

    /// Returns once an edit was told.
    async fn told(edits: &mut Edits) {
        tokio::time::timeout(Duration::from_secs(60), edits.next())
            .await
            .expect("it was told");
        edits.renew().await;
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_being_written_is_not_read() {
        let (_dir, root) = folder();
        let config = root.join("config.toml");
        assert_eq!(undisturbed(&config, || 0), Some(0));
        let writer = File::create(&config).unwrap();
        assert_eq!(undisturbed(&config, || 1), None);
        drop(writer);
        assert_eq!(undisturbed(&config, || 2), Some(2));
        let comes_meanwhile = || drop(File::options().append(true).open(&config).unwrap());
        assert_eq!(undisturbed(&config, comes_meanwhile), None);
    }

    #[tokio::test]
    async fn edits_are_told_however_they_are_made() {
        let (_dir, root) = folder();
        let config = root.join("etc/config.toml");
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(&config, "1").unwrap();
        let mut edits = Edits::watch(&config).await;
        told(&mut edits).await;
        fs::write(&config, "2").unwrap();
        told(&mut edits).await;
        fs::write(root.join("etc/new"), "3").unwrap();
        fs::rename(root.join("etc/new"), &config).unwrap();
        told(&mut edits).await;
        // All of its folder goes, and another comes.
        fs::rename(root.join("etc"), root.join("old")).unwrap();
        told(&mut edits).await;
        fs::create_dir(root.join("etc")).unwrap();
        told(&mut edits).await;
        fs::write(&config, "4").unwrap();
        told(&mut edits).await;
        fs::hard_link(&config, root.join("outside")).unwrap();
        told(&mut edits).await;
        if crate::failpoints::needs::telling_of_changes() {
            fs::write(root.join("outside"), "5").unwrap();
            told(&mut edits).await;
        }
        // As Kubernetes does it.
        for version in ["v1", "v2"] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("config.toml"), version).unwrap();
        }
        symlink("../v1", root.join("etc/..data")).unwrap();
        symlink("..data/config.toml", root.join("etc/link")).unwrap();
        fs::rename(root.join("etc/link"), &config).unwrap();
        told(&mut edits).await;
        symlink("../v2", root.join("etc/..tmp")).unwrap();
        fs::rename(root.join("etc/..tmp"), root.join("etc/..data")).unwrap();
        told(&mut edits).await;
        assert_eq!(fs::read_to_string(&config).unwrap(), "v2");
        // Nor is anything told that is none.
        fs::write(root.join("etc/other"), "").unwrap();
        fs::read(&config).unwrap();
        let silence = tokio::time::timeout(REST * 2, edits.next()).await;
        assert!(silence.is_err(), "another file, and reading, are no edits");
    }
}
