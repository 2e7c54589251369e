//! Names as they become visible in a folder, told by the kernel.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

use crate::{failed, too_long};

/// Names that are or were visible in a folder since it is watched. Those that begin with a dot (temporary names,
/// a tool's own folder) do not count.
pub struct Arrivals {
    events: OwnedFd,
    seen: HashSet<OsString>,
}

impl Arrivals {
    /// Watches `folder`, what lies there already included.
    pub fn watch(folder: &Path) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&events, folder, WatchFlags::MOVED_TO | WatchFlags::CREATE)?;
        let mut arrivals = Self {
            events,
            seen: HashSet::new(),
        };
        for entry in fs::read_dir(folder)? {
            arrivals.note(entry?.file_name());
        }
        Ok(arrivals)
    }

    /// Returns as soon as `name` is visible.
    pub fn wait_for(&mut self, name: &str, deadline: Instant) -> io::Result<()> {
        while !self.has(name)? {
            self.pause(deadline, name)?;
        }
        Ok(())
    }

    /// Whether `name` is visible, without waiting.
    pub fn has(&mut self, name: &str) -> io::Result<bool> {
        self.take()?;
        Ok(self.seen.contains(OsStr::new(name)))
    }

    /// Returns once `count` names are visible. Checks every few milliseconds, so that many names do not cost a wake-up
    /// each.
    pub fn wait_for_count(&mut self, count: usize, deadline: Instant) -> io::Result<()> {
        loop {
            self.take()?;
            if self.seen.len() >= count {
                return Ok(());
            }
            self.pause(deadline, &format!("{count} files, {} are there", self.seen.len()))?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn pause(&self, deadline: Instant, what: &str) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&limit))? {
            0 => Err(too_long(&format!("the arrival of {what}"))),
            _ => Ok(()),
        }
    }

    fn take(&mut self) -> io::Result<()> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 64 * 1024];
        let mut names = Vec::new();
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    return Err(failed("the kernel lost events"));
                }
                Ok(event) => names.extend(
                    event
                        .file_name()
                        .map(|n| OsStr::from_bytes(n.to_bytes()).to_owned()),
                ),
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        names.into_iter().for_each(|name| self.note(name));
        Ok(())
    }

    fn note(&mut self, name: OsString) {
        if !name.as_bytes().starts_with(b".") {
            self.seen.insert(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_before_and_after_and_hidden_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name| fs::write(folder.path().join(name), "").unwrap();
        let soon = || Instant::now() + Duration::from_secs(20);
        put("before");
        let mut arrivals = Arrivals::watch(folder.path()).unwrap();
        assert!(arrivals.has("before").unwrap());
        put(".after");
        assert!(!arrivals.has(".after").unwrap());
        let late = std::thread::spawn({
            let path = folder.path().join("after");
            move || fs::write(path, "").unwrap()
        });
        arrivals.wait_for("after", soon()).unwrap();
        late.join().unwrap();
        arrivals.wait_for_count(2, soon()).unwrap();
        let error = arrivals.wait_for("never", Instant::now()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
