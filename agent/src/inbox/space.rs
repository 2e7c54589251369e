//! Room on the disk: what stays free, and what open transfers have been promised.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cap_std::fs::Dir;

/// How long room is kept for a transfer of which no byte comes, so that one that is offered and never sent does not
/// keep the others out. With its next byte it has to ask again.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Promises of room.
pub struct Space {
    promises: Mutex<Promises>,
}

#[derive(Default)]
struct Promises {
    min_free: u64,
    next: u64,
    open: HashMap<u64, Promise>,
}

struct Promise {
    bytes: u64,
    /// When it was made, or the last bytes came.
    alive: Instant,
}

impl Promise {
    fn holds(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.alive) < PATIENCE
    }
}

/// Room promised to one transfer; given back when dropped.
pub struct Reservation {
    space: Arc<Space>,
    number: u64,
}

impl Space {
    /// `min_free` bytes always stay free.
    pub fn new(min_free: u64) -> Arc<Space> {
        let promises = Promises {
            min_free,
            ..Promises::default()
        };
        Arc::new(Space {
            promises: Mutex::new(promises),
        })
    }

    /// So many stay free from now on; promises made are kept.
    pub fn set_min_free(&self, min_free: u64) {
        self.lock().min_free = min_free;
    }

    /// Promises `bytes` out of `free`, or says how many are missing.
    pub fn reserve(self: &Arc<Self>, bytes: u64, free: u64, now: Instant) -> Result<Reservation, u64> {
        let mut promises = self.lock();
        let holding = promises.open.values().filter(|promise| promise.holds(now));
        let promised = holding.fold(0, |sum: u64, promise| sum.saturating_add(promise.bytes));
        let wanted = promised.saturating_add(bytes).saturating_add(promises.min_free);
        if wanted > free {
            return Err(wanted - free);
        }
        let number = promises.next;
        promises.next += 1;
        promises.open.insert(number, Promise { bytes, alive: now });
        Ok(Reservation {
            space: self.clone(),
            number,
        })
    }

    /// So much time goes by.
    #[cfg(test)]
    pub fn age(&self, by: Duration) {
        self.lock()
            .open
            .values_mut()
            .for_each(|promise| promise.alive -= by);
    }

    fn lock(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// So many bytes of it are on the disk now and no longer free.
    pub fn used(&mut self, bytes: u64, now: Instant) {
        if let Some(promise) = self.space.lock().open.get_mut(&self.number) {
            promise.bytes = promise.bytes.saturating_sub(bytes);
            promise.alive = now;
        }
    }

    /// So many bytes on the disk are about to be free again: they stay promised, as they come once more.
    pub fn returned(&mut self, bytes: u64) {
        if let Some(promise) = self.space.lock().open.get_mut(&self.number) {
            promise.bytes = promise.bytes.saturating_add(bytes);
        }
    }

    /// Was the room given to others, as no byte came for [`PATIENCE`]?
    pub fn has_lapsed(&self, now: Instant) -> bool {
        let promises = self.space.lock();
        let promise = promises.open.get(&self.number);
        promise.is_none_or(|promise| promise.bytes > 0 && !promise.holds(now))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.lock().open.remove(&self.number);
    }
}

/// Bytes free for us on the file system of `folder`. Where the system has no such call here, "enough": then only a
/// full disk says no.
pub fn free(folder: &Dir) -> io::Result<u64> {
    blocks(folder).map(|(free, _)| free)
}

/// Bytes that the file system of `folder` has, free or not; "enough" as in [`free`].
pub fn size(folder: &Dir) -> io::Result<u64> {
    blocks(folder).map(|(_, all)| all)
}

/// How much room there is where an inbox is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Bytes free for us.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

impl Disk {
    /// The disk that `folder` is on; None where its file system does not tell.
    pub fn of(folder: &Dir) -> io::Result<Option<Disk>> {
        let (free, size) = blocks(folder)?;
        Ok((size > 0 && size < u64::MAX).then_some(Disk { free, size }))
    }
}

fn blocks(folder: &Dir) -> io::Result<(u64, u64)> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::fstatvfs(folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok((bytes(stat.f_bavail), bytes(stat.f_blocks)))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        Ok((u64::MAX, u64::MAX))
    }
}

/// A file-size limit must be an error (EFBIG), not the signal that kills.
pub fn survive_file_size_limit() {
    #[cfg(unix)]
    // SAFETY: SIG_IGN is no handler, so nothing of ours runs in signal context.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_add_up_and_end() {
        let (space, now) = (Space::new(100), Instant::now());
        let mut a = space.reserve(500, 1000, now).unwrap();
        assert_eq!(space.reserve(401, 1000, now).err(), Some(1));
        let b = space.reserve(400, 1000, now).unwrap();
        a.used(300, now);
        drop(b);
        assert_eq!(space.reserve(701, 1000, now).err(), Some(1));
        a.used(u64::MAX, now);
        drop(space.reserve(900, 1000, now).unwrap());
        drop(a);
        assert!(space.lock().open.is_empty());
        assert!(space.reserve(u64::MAX, 1000, now).is_err());
        space.set_min_free(600);
        assert_eq!(space.reserve(500, 1000, now).err(), Some(100));
    }

    #[test]
    fn room_that_is_not_used_goes_to_others_until_it_is_asked_for_again() {
        let (space, start) = (Space::new(0), Instant::now());
        let mut large = space.reserve(900, 1000, start).unwrap();
        let small = |now| space.reserve(200, 1000, now).map(drop);
        large.used(1, start + PATIENCE / 2);
        assert_eq!(small(start + PATIENCE), Err(99), "bytes came");
        let late = start + PATIENCE * 2;
        assert!(large.has_lapsed(late));
        assert_eq!(small(late), Ok(()));
        let again = space.reserve(899, 1000, late).unwrap();
        drop(large);
        assert_eq!(small(late), Err(99));
        assert!(!again.has_lapsed(late));
    }

    #[test]
    fn room_that_is_returned_stays_promised_or_is_asked_for_again() {
        let (space, start) = (Space::new(0), Instant::now());
        let mut cut = space.reserve(5, 10, start).unwrap();
        cut.used(5, start);
        cut.returned(3);
        assert_eq!(space.reserve(8, 10, start).err(), Some(1));
        assert!(!cut.has_lapsed(start) && cut.has_lapsed(start + PATIENCE));
    }

    #[test]
    fn a_promise_that_is_used_up_does_not_lapse() {
        let (space, start) = (Space::new(0), Instant::now());
        let mut all = space.reserve(5, 10, start).unwrap();
        all.used(5, start);
        assert!(!all.has_lapsed(start + PATIENCE * 2));
    }
}
