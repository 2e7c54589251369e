//! A watcher of `notify` is used once its thread has answered.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::failpoints;

/// Watchers that have no thread, and stay: each keeps a descriptor.
static WITHOUT: AtomicUsize = AtomicUsize::new(0);
/// Most of them; from then on folders are scanned.
const MOST_WITHOUT: usize = 16;

/// What `make` makes, once it answers. notify does not tell that the system gave its thread none, and panics then at the
/// first call, even when it is dropped.
pub fn with_its_thread<W: notify::Watcher>(make: impl FnOnce() -> notify::Result<W>) -> notify::Result<W> {
    if WITHOUT.load(Ordering::Relaxed) >= MOST_WITHOUT {
        return Err(notify::Error::generic(
            "there were no threads for it again and again",
        ));
    }
    let mut watcher = make()?;
    if watcher.configure(notify::Config::default()).is_ok() || failpoints::mutant("watch-thread") {
        return Ok(watcher);
    }
    WITHOUT.fetch_add(1, Ordering::Relaxed);
    std::mem::forget(watcher);
    Err(notify::Error::generic("the system has no thread for it"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use notify::RecursiveMode;

    use super::*;

    /// As notify's, where no thread could be made.
    struct Threadless;

    impl notify::Watcher for Threadless {
        fn new<F: notify::EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
            Ok(Self)
        }
        fn watch(&mut self, _: &Path, _: RecursiveMode) -> notify::Result<()> {
            panic!("no thread")
        }
        fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
            panic!("no thread")
        }
        fn configure(&mut self, _: notify::Config) -> notify::Result<bool> {
            Err(notify::Error::generic("disconnected"))
        }
        fn kind() -> notify::WatcherKind {
            notify::WatcherKind::NullWatcher
        }
    }

    impl Drop for Threadless {
        fn drop(&mut self) {
            panic!("no thread");
        }
    }

    #[test]
    fn a_watcher_without_a_thread_is_refused_and_left_alone() {
        let refused = with_its_thread(|| Ok(Threadless)).is_err();
        assert!(refused);
        WITHOUT.fetch_sub(1, Ordering::Relaxed); // for the other tests
    }
}
