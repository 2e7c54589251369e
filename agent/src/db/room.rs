//! A reserve of disk space, so that the work that is under way goes on when the disk of the state folder is full.
//!
//! The reserve is a file beside the database that holds nothing but its blocks. It goes when the database needs room and
//! there is none, and is made again once there is plenty. As long as it is gone, nothing is begun that only adds to the
//! state folder: deliveries go on, for they may be what frees the disk.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Weak},
    thread,
};

use super::{trouble::Trouble, tuning::PAUSE};
use crate::{
    clock::now_ms,
    error::shown,
    failpoints,
    io_error::{self, Meaning, Wait},
    poison::Unpoisoned as _,
};

/// Its usual size: what the log takes between two checkpoints.
const RESERVE: u64 = 4 << 20;
/// Of a small disk, this part.
const SHARE: u64 = 16;
/// At an end on a full disk, the smallest that is of any use at the next start.
const LEAST: u64 = 64 << 10;

/// After the reserve's name: a file that shows whether there is room.
const TRIED: &str = "-tried";

/// The reserve of one database.
pub(super) struct Room {
    folder: PathBuf,
    file: PathBuf,
    size: u64,
    /// Some while the reserve is gone.
    low: Mutex<Option<Trouble>>,
}

/// Bytes of a disk.
struct Space {
    free: u64,
    all: u64,
}

impl Room {
    /// The reserve of the database at `path`, made where it is missing and there is plenty of room.
    pub(super) fn open(path: &Path) -> Arc<Self> {
        let folder = path.parent().unwrap_or(path).to_owned();
        let file = beside(path, "-reserve");
        if !failpoints::mutant("room-tried-left") {
            let _ = fs::remove_file(beside(&file, TRIED)); // of a run that was killed while it tried
        }
        let all = space(&folder).map_or(u64::MAX, |space| space.all);
        let room = Arc::new(Self {
            folder,
            file,
            size: RESERVE.min(all / SHARE),
            low: Mutex::default(),
        });
        let kept = fs::metadata(&room.file).map_or(0, |file| file.len());
        if kept < room.size {
            match room.make_if_plenty() {
                Ok(false) if kept == 0 => room.becomes_low(),
                Ok(_) => {}
                // A folder that cannot be written at all is not for want of room.
                Err(error) => tracing::debug!(%error, "no reserve beside the job list"),
            }
        }
        room
    }

    /// Frees the reserve. True: there is more room now.
    pub(super) fn give_up(self: &Arc<Self>) -> bool {
        if failpoints::mutant("reserve") || fs::remove_file(&self.file).is_err() {
            return false;
        }
        self.becomes_low();
        true
    }

    /// Are so many bytes free? Yes, where the system does not say.
    fn has(&self, bytes: u64) -> bool {
        space(&self.folder).is_none_or(|space| space.free >= bytes)
    }

    /// Are so many bytes to be had? Where the system says no it is tried: what it keeps back for root is room for root.
    /// Blocks for the disk.
    pub(super) fn gives(&self, bytes: u64) -> bool {
        let tried = || {
            let file = beside(&self.file, TRIED);
            make(&file, bytes).and_then(|()| fs::remove_file(file))
        };
        self.has(bytes) || tried().is_ok() && !failpoints::mutant("room-tried")
    }

    #[cfg(test)]
    pub(super) fn pretend(&self, is_low: bool) {
        *self.low() = is_low.then(|| Trouble {
            since_ms: 0,
            text: "a test".into(),
            hint: String::new(),
        });
    }

    /// Bytes of the whole disk; None where the system does not say.
    pub(super) fn disk_size(&self) -> Option<u64> {
        space(&self.folder).map(|space| space.all)
    }

    /// May new work begin? The second half of the reserve is for work that is under way. Blocks for the disk.
    pub(super) fn has_room_for_more(&self) -> bool {
        self.low().is_none() || self.gives(self.size / 2)
    }

    /// Some while the reserve is gone.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.low().clone()
    }

    /// To be called last of all: on a full disk the next start needs what the end of this run freed.
    pub(super) fn keep_what_is_free(&self) {
        if self.low().is_none() {
            return;
        }
        let free = space(&self.folder).map_or(0, |space| space.free / 4 * 3);
        if free >= LEAST {
            let _ = make(&self.file, free.min(self.size)); // then the next start has to wait for room
        }
    }

    fn becomes_low(self: &Arc<Self>) {
        let mut low = self.low();
        if low.is_some() {
            return;
        }
        let folder = shown(&self.folder);
        let text = format!(
            "the disk of the state folder {folder} is nearly full: what is under way goes on, but nothing new is taken \
             from peers or by `send`"
        );
        let needed = (2 * self.size).div_ceil(1 << 20);
        let hint = format!("free space on that disk, until {needed} MiB are free");
        tracing::warn!(help = hint, "{text}");
        *low = Some(Trouble {
            since_ms: now_ms(),
            text,
            hint,
        });
        let room = Arc::downgrade(self);
        let watching = thread::Builder::new().name("state-room".into());
        drop(watching.spawn(move || watch(&room))); // without a thread it stays as it is until the next start
    }

    /// True: the reserve is there again.
    fn restore(&self) -> bool {
        let restored = self.make_if_plenty().unwrap_or(false);
        if restored && self.low().take().is_some() {
            tracing::info!("the disk of the state folder has room again");
        }
        restored
    }

    /// Makes the reserve, if as much again stays free. False: there is not enough room.
    fn make_if_plenty(&self) -> io::Result<bool> {
        if !self.has(2 * self.size) {
            return Ok(false);
        }
        match make(&self.file, self.size) {
            Ok(()) => Ok(true),
            Err(error) if io_error::meaning(&error) == Meaning::NotNow(Wait::Space) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn low(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.low.lock().unpoisoned()
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Until the reserve is there again, or nobody needs it any more.
fn watch(room: &Weak<Room>) {
    loop {
        thread::sleep(PAUSE);
        if room.upgrade().is_none_or(|room| room.restore()) {
            return;
        }
    }
}

/// A file with so many bytes of blocks; none after an error.
fn make(path: &Path, size: u64) -> io::Result<()> {
    let made = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .and_then(|file| allocate(file, size));
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

fn allocate(mut file: File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        done => return done.map_err(io::Error::from),
    }
    // Noise, since zeros take no blocks where a file system compresses.
    let mut noise = [0; 4096];
    let mut left = size;
    while left > 0 {
        getrandom::fill(&mut noise).map_err(io::Error::other)?;
        file.write_all(&noise)?;
        left = left.saturating_sub(noise.len() as u64);
    }
    Ok(())
}

/// None where the system does not say.
fn space(folder: &Path) -> Option<Space> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(folder).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        (stat.f_blocks > 0).then(|| Space {
            free: bytes(stat.f_bavail),
            all: bytes(stat.f_blocks),
        })
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_tried_is_given_back_at_the_next_start() {
        let temp = tempfile::tempdir().unwrap();
        let left = temp.path().join("state.db-reserve-tried");
        fs::write(&left, "blocks").unwrap();
        let room = Room::open(&temp.path().join("state.db"));
        assert!(!left.exists());
        assert!(room.gives(1) && !left.exists());
    }
}
