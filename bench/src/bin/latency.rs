//! Drop to inbox: how long a closed 1 KiB file takes until its name is visible at the peer.
//!
//! `latency [DROPWIRE [FILES]]`. Two agents on loopback; one file after the other, each only once the one before has
//! arrived. Both ways in which files come: renamed into the outbox, and written there and closed. The clock starts
//! before the rename or close, and stops at the inbox's own inotify event.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    time::{Duration, Instant},
};

use dropwire_bench::{choose_program, quiet_pair};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};

const SIZE: usize = 1024;
const WARM_UP: usize = 20;
const DEADLINE: Duration = Duration::from_secs(30);

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = choose_program(arguments.next());
    let files = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(500);
    println!("{} with {files} files of {SIZE} bytes", program.display());
    let pair = quiet_pair();
    let arrivals = Arrivals::watch(&pair.office.inbox)?;
    for (way, drop) in [
        ("renamed in", renamed as Drop),
        ("written in place", written as Drop),
    ] {
        let mut taken = Vec::with_capacity(files);
        for n in 0..WARM_UP + files {
            let name = format!("{}-{n}", way.replace(' ', "-"));
            let start = drop(&pair.laptop.root, &pair.laptop.outbox, &name)?;
            arrivals.wait_for(&name)?;
            if n >= WARM_UP {
                taken.push(start.elapsed());
            }
        }
        report(way, taken);
    }
    Ok(())
}

/// Puts a file into the outbox and says since when it is whole.
type Drop = fn(aside: &Path, outbox: &Path, name: &str) -> io::Result<Instant>;

fn renamed(aside: &Path, outbox: &Path, name: &str) -> io::Result<Instant> {
    let path = aside.join(name);
    fs::write(&path, vec![7; SIZE])?;
    let start = Instant::now();
    fs::rename(path, outbox.join(name))?;
    Ok(start)
}

fn written(_: &Path, outbox: &Path, name: &str) -> io::Result<Instant> {
    let mut file = File::create_new(outbox.join(name))?;
    file.write_all(&[7; SIZE])?;
    let start = Instant::now();
    drop(file);
    Ok(start)
}

fn report(way: &str, mut taken: Vec<Duration>) {
    taken.sort();
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    println!(
        "{way:<17} median {:.2} ms, p99 {:.2} ms, min {:.2} ms, max {:.2} ms",
        at(0.5),
        at(0.99),
        at(0.0),
        at(1.0)
    );
}

/// Names that become visible in a folder, as the kernel tells them.
struct Arrivals {
    events: OwnedFd,
}

impl Arrivals {
    fn watch(folder: &Path) -> io::Result<Arrivals> {
        let events = inotify::init(inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(
            &events,
            folder,
            inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE,
        )?;
        Ok(Arrivals { events })
    }

    fn wait_for(&self, name: &str) -> io::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        while Instant::now() < deadline {
            poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&second))?;
            if self.names()?.iter().any(|found| found == name) {
                return Ok(());
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{name} did not arrive within {DEADLINE:?}"),
        ))
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        let mut names = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => names.extend(
                    event
                        .file_name()
                        .map(|n| std::ffi::OsStr::from_bytes(n.to_bytes()).to_owned()),
                ),
                Err(rustix::io::Errno::AGAIN) => return Ok(names),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
