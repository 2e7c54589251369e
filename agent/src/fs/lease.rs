//! Asks the kernel whether anybody has a file open for writing, and hears of it when somebody comes.
//!
//! Linux: a read lease (`fcntl(F_SETLEASE, F_RDLCK)`) fails while a writer, or a shared writable mapping, is there.
//! Elsewhere, and where leases are refused, [`Lease::take`] says so and the caller falls back to waiting.
//!
//! A writer that comes is held up by the kernel until the lease is given up. So every live lease stands in a list;
//! the kernel's signal wakes a thread that gives up those being broken, whatever their holders are doing.

use std::{fs::File, io};

use crate::{
    failpoints,
    fs::{
        file_system::{self, FileSystem},
        version::Version,
    },
};

/// What the kernel says of a file.
#[derive(Debug)]
pub enum Asked {
    /// Nobody writes; while the lease lives, a writer's open waits until the lease is given up.
    Lease(Lease),
    /// Somebody has it open for writing.
    Writer,
    /// No leases here (file system, owner, operating system): rest for `quiet` instead.
    Unsupported,
}

/// An open file that nobody is known to write to.
#[derive(Debug)]
pub struct Inspected {
    /// None: writers cannot be seen here, so the file has to rest, and has to be compared after it was read.
    pub lease: Option<Lease>,
    /// As it was once the lease was held.
    pub version: Version,
    /// What the file system is trusted with.
    pub on: FileSystem,
}

/// Asks who writes to `file` (opened for reading, not writing), and then which version it is. None: somebody writes.
///
/// A lease counts only where the file system sees every writer: elsewhere the kernel grants one while somebody writes at
/// the other side. That somebody on this side writes is believed everywhere. What is read of the file after this is not
/// older than the version.
pub fn inspect(file: &File) -> io::Result<Option<Inspected>> {
    let lease = match Lease::take(file) {
        Asked::Writer => return Ok(None),
        Asked::Lease(lease) => Some(lease),
        Asked::Unsupported => None,
    };
    let (version, on) = Version::read(file)?;
    if !on.sees_writers {
        file_system::read_anew(file);
    }
    let lease = lease.filter(|_| on.sees_writers || failpoints::mutant("S1-writers"));
    Ok(Some(Inspected { lease, version, on }))
}

/// A read lease; given up when dropped, or by itself as soon as a writer knocks (then [`Lease::whole`] is false).
///
/// It keeps a descriptor of its own, so it may outlive the file it was taken on.
#[derive(Debug)]
pub struct Lease {
    held: system::Held,
}

impl Lease {
    /// Asks for a read lease on `file` (opened for reading, not writing).
    pub fn take(file: &File) -> Asked {
        match system::take(file) {
            system::Taken::Held(held) => Asked::Lease(Self { held }),
            system::Taken::Writer => Asked::Writer,
            system::Taken::Unsupported => Asked::Unsupported,
        }
    }

    /// Still held: nobody opened the file for writing, nor cut it, since it was taken.
    pub fn whole(&self) -> bool {
        self.held.whole()
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::{
        collections::HashSet,
        fs::File,
        io,
        os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        sync::{
            LazyLock, Mutex, MutexGuard,
            atomic::{AtomicI32, Ordering},
        },
        thread,
    };

    use crate::poison::Unpoisoned as _;

    pub(super) enum Taken {
        Held(Held),
        Writer,
        Unsupported,
    }

    #[derive(Debug)]
    pub(super) struct Held(OwnedFd);

    /// Descriptors of the leases that live; each is taken out before it is closed.
    static LIVE: Mutex<Option<HashSet<RawFd>>> = Mutex::new(None);
    /// The eventfd that the signal handler writes to.
    static WAKE: AtomicI32 = AtomicI32::new(-1);
    /// Whether breaks are answered; without that no lease may be taken (the signal would end the process).
    static ANSWERED: LazyLock<bool> = LazyLock::new(|| match answer_breaks() {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "no leases: files rest for `quiet` instead");
            false
        }
    });

    pub(super) fn take(file: &File) -> Taken {
        if !*ANSWERED {
            return Taken::Unsupported;
        }
        let Ok(own) = file.try_clone().map(OwnedFd::from) else {
            return Taken::Unsupported;
        };
        // The list stays locked across the call: a break that comes right after it finds the lease there.
        let mut live = live();
        match fcntl(&own, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(_) => {
                live.get_or_insert_default().insert(own.as_raw_fd());
                Taken::Held(Held(own))
            }
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Taken::Writer,
            Err(_) => Taken::Unsupported,
        }
    }

    impl Held {
        pub(super) fn whole(&self) -> bool {
            is_whole(self.0.as_raw_fd())
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let mut live = live();
            if let Some(live) = live.as_mut() {
                live.remove(&self.0.as_raw_fd());
            }
            // Said aloud: a copy of the descriptor in a child about to exec would keep the lease a moment longer.
            let _ = fcntl(&self.0, libc::F_SETLEASE, libc::F_UNLCK);
        }
    }

    fn live() -> MutexGuard<'static, Option<HashSet<RawFd>>> {
        LIVE.lock().unpoisoned()
    }

    /// While a break is under way the kernel names the type that it is to become, and after it none.
    fn is_whole(fd: RawFd) -> bool {
        matches!(fcntl(&fd, libc::F_GETLEASE, 0), Ok(libc::F_RDLCK))
    }

    fn fcntl(fd: &impl AsRawFd, command: i32, argument: i32) -> io::Result<i32> {
        // SAFETY: these commands take an int and touch no memory of ours.
        match unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) } {
            -1 => Err(io::Error::last_os_error()),
            answer => Ok(answer),
        }
    }

    /// Installs the handler and starts the thread; once a process.
    fn answer_breaks() -> io::Result<()> {
        // SAFETY: plain call; the result is checked.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let wake = unsafe { OwnedFd::from_raw_fd(raw) };
        thread::Builder::new()
            .name("lease-breaks".into())
            .spawn(move || {
                let wake = File::from(wake);
                while wait(&wake) {
                    give_up_broken();
                }
            })?;
        WAKE.store(raw, Ordering::Release);
        // SAFETY: all-zero is a valid sigaction (no flags, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is initialised, and the handler does only what a handler may.
        match unsafe { libc::sigaction(libc::SIGIO, &action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    extern "C" fn on_signal(_: libc::c_int) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: write(2) is async-signal-safe, the buffer is local; errno is put back for the interrupted code.
        unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            libc::write(WAKE.load(Ordering::Acquire), one.as_ptr().cast(), one.len());
            *errno = before;
        }
    }

    fn wait(mut wake: &File) -> bool {
        let mut count = [0; 8];
        loop {
            match io::Read::read(&mut wake, &mut count) {
                Ok(_) => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    fn give_up_broken() {
        let mut live = live();
        let Some(live) = live.as_mut() else { return };
        live.retain(|fd| {
            let whole = is_whole(*fd);
            if !whole {
                let _ = fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
            }
            whole
        });
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::fs::File;

    /// Only [`Taken::Unsupported`] occurs here.
    #[allow(dead_code)]
    pub(super) enum Taken {
        Held(Held),
        Writer,
        Unsupported,
    }

    #[derive(Debug)]
    pub(super) struct Held;

    impl Held {
        pub(super) fn whole(&self) -> bool {
            false
        }
    }

    pub(super) fn take(_: &File) -> Taken {
        Taken::Unsupported
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{fs::OpenOptions, os::fd::AsRawFd, path::Path, thread};

    use super::*;

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "some bytes").unwrap();
        file
    }

    fn ask(path: &Path) -> Asked {
        Lease::take(&File::open(path).unwrap())
    }

    fn must_take(path: &Path) -> Lease {
        match ask(path) {
            Asked::Lease(lease) => lease,
            other => panic!("no lease: {other:?} (does this file system know leases?)"),
        }
    }

    fn write(path: &Path) -> File {
        OpenOptions::new().write(true).open(path).unwrap()
    }

    #[test]
    fn a_writer_is_seen_until_it_closes() {
        let (file, path) = file().into_parts();
        assert!(matches!(ask(&path), Asked::Writer));
        drop(file);
        assert!(must_take(&path).whole());
    }

    #[test]
    fn a_shared_writable_mapping_counts_as_a_writer() {
        let path = file().into_temp_path();
        let on = FileSystem::of(&File::open(&path).unwrap()).unwrap();
        if !on.sees_writers {
            return failpoints::skip(&format!("a mapping may be of a file below {}", on.name));
        }
        let mapped = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: a new mapping of an open file, which nobody accesses.
        let map = unsafe {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                10,
                rights,
                libc::MAP_SHARED,
                mapped.as_raw_fd(),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED);
        drop(mapped);
        assert!(matches!(ask(&path), Asked::Writer));
        // SAFETY: the mapping made above.
        assert_eq!(unsafe { libc::munmap(map, 10) }, 0);
        assert!(must_take(&path).whole());
    }

    #[test]
    fn a_writer_that_comes_gets_in_at_once_and_the_lease_says_so() {
        let path = file().into_temp_path();
        let leases: Vec<Lease> = (0..3).map(|_| must_take(&path)).collect();
        let other = file().into_temp_path();
        let untouched = must_take(&other);
        // It would wait for the kernel's lease-break-time, 45 s by default, if nobody answered.
        let begun = std::time::Instant::now();
        let writer = thread::scope(|s| s.spawn(|| write(&path)).join().unwrap());
        assert!(begun.elapsed().as_secs() < 30);
        assert!(leases.iter().all(|l| !l.whole()));
        assert!(untouched.whole());
        drop(writer);
        assert!(leases.iter().all(|l| !l.whole()), "it does not heal");
    }

    #[test]
    fn dropping_gives_it_up() {
        let path = file().into_temp_path();
        let file = File::open(&path).unwrap();
        let Asked::Lease(lease) = Lease::take(&file) else {
            panic!("no lease")
        };
        drop(lease);
        let nonblocking = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::open(&*path, nonblocking, rustix::fs::Mode::empty()).unwrap();
    }

    #[test]
    fn a_file_being_cut_breaks_it() {
        let path = file().into_temp_path();
        let lease = must_take(&path);
        write(&path).set_len(0).unwrap();
        assert!(!lease.whole());
    }
}
