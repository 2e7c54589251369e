//! Room that open transfers were promised. Pure: the disk and the time are passed in.
//!
//! An offer is promised all the room that it needs, so that of two files that do not fit together one is declined at
//! once. After the first minute room is kept only for what can arrive within an hour at the pace of the last minute:
//! who sends nothing keeps nothing, and with the next bytes has to ask again. A peer that holds more than an equal
//! share of what is free keeps the rest of it only as long as no other peer asks.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use dropwire_protocol::AgentId;

use crate::{
    error::size,
    failpoints,
    fs::disk::{Disk, Inodes},
    poison::Unpoisoned as _,
};

/// The time over which a transfer's pace is measured; a new promise holds so long whatever comes.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Room is kept for what can arrive within so many windows.
const AHEAD: u64 = 60;

/// How long the disk's last answer holds, for small files that come many at a time...
const RECENT: Duration = Duration::from_millis(100);
/// ...as long as they ask for no more than this part of what is free, above what stays free...
const NEAR_PART: u64 = 64;
/// ...and for no more bytes than this.
const NEAR: u64 = 16 << 20;

/// Promises of room.
pub(super) struct Space {
    promises: Mutex<Promises>,
}

#[derive(Default)]
struct Promises {
    /// As in the config.
    min_free: Option<u64>,
    recent: Option<Recent>,
    next: u64,
    open: BTreeMap<u64, Promise>,
}

/// What the inbox's disk said last.
struct Recent {
    at: Instant,
    disk: Disk,
    /// Bytes that were asked for since.
    since: u64,
}

impl Recent {
    /// Is it near enough for `bytes` more?
    fn holds(&self, bytes: u64, min_free: u64, now: Instant) -> bool {
        let usable = self.disk.free.saturating_sub(min_free);
        let near = (usable / NEAR_PART).min(NEAR);
        now.saturating_duration_since(self.at) < RECENT && self.since.saturating_add(bytes) <= near
    }
}

struct Promise {
    peer: AgentId,
    /// Of the disk, where that is known.
    device: Option<u64>,
    bytes: u64,
    /// The begin of the current window.
    since: Instant,
    /// Bytes that came in it.
    came: u64,
    /// Bytes that came in the window before; None: this is the first one.
    before: Option<u64>,
}

impl Promise {
    fn new(peer: AgentId, device: Option<u64>, bytes: u64, now: Instant) -> Self {
        Self {
            peer,
            device,
            bytes,
            since: now,
            came: 0,
            before: None,
        }
    }

    fn windows(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs() / WINDOW.as_secs()
    }

    /// Bytes of it that are kept for the transfer.
    fn held(&self, now: Instant) -> u64 {
        let pace = match (self.windows(now), self.before) {
            (0, None) => return self.bytes,
            (0, Some(before)) => before.max(self.came),
            (1, _) => self.came,
            _ => 0,
        };
        match failpoints::mutant("space-decays") {
            true => self.bytes,
            false => self.bytes.min(pace.saturating_mul(AHEAD)),
        }
    }

    fn used(&mut self, bytes: u64, now: Instant) {
        match self.windows(now) {
            0 => {}
            1 => {
                (self.before, self.came) = (Some(self.came), 0);
                self.since += WINDOW;
            }
            _ => (self.before, self.came, self.since) = (Some(0), 0, now),
        }
        self.came = self.came.saturating_add(bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What is missing; shown as a sentence's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Short {
    /// Space.
    Bytes {
        /// So many.
        missing: u64,
        /// What stays free.
        min_free: u64,
        /// What is promised to transfers that are under way.
        promised: u64,
    },
    /// Room for further files and folders, whatever their size.
    Inodes(Inodes),
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bytes {
                missing,
                min_free,
                promised,
            } => {
                let [missing, min_free, promises] = [missing, min_free, promised].map(size);
                write!(
                    f,
                    "not enough space: {missing} short of what `min_free` ({min_free}) reserves"
                )?;
                match promised {
                    0 => Ok(()),
                    _ => write!(f, " and transfers under way still need ({promises})"),
                }
            }
            Self::Inodes(Inodes { free, all }) => write!(
                f,
                "the disk has room for only {free} more files and folders of {all}, and some stay free"
            ),
        }
    }
}

/// Room promised to one transfer; given back when dropped.
pub(super) struct Reservation {
    space: Arc<Space>,
    number: u64,
    /// On another disk, where a copy of it is to lie.
    copy: Option<Box<Self>>,
}

impl Space {
    /// `min_free` bytes always stay free; None: the default for the disk.
    pub(super) fn new(min_free: Option<u64>) -> Arc<Self> {
        let promises = Promises {
            min_free,
            ..Promises::default()
        };
        Arc::new(Self {
            promises: Mutex::new(promises),
        })
    }

    /// So many stay free from now on; promises made are kept.
    pub(super) fn set_min_free(&self, min_free: Option<u64>) {
        self.lock().min_free = min_free;
    }

    /// What the inbox's disk has, to promise `bytes` of it: as it said just now to others, or as it says when it is
    /// `ask`ed, where `bytes` and theirs are more than next to nothing of what is free.
    pub(super) fn disk(
        &self,
        bytes: u64,
        now: Instant,
        ask: impl FnOnce() -> io::Result<Option<Disk>>,
    ) -> io::Result<Option<Disk>> {
        let mut promises = self.lock();
        let configured = promises.min_free;
        if let Some(recent) = &mut promises.recent
            && recent.holds(bytes, recent.disk.min_free(configured), now)
        {
            recent.since += bytes;
            return Ok(Some(recent.disk));
        }
        drop(promises); // the disk may hang
        let disk = ask()?;
        self.lock().recent = disk.map(|disk| Recent {
            at: now,
            disk,
            since: bytes,
        });
        Ok(disk)
    }

    /// Promises `peer` room for `bytes` more on the disk, or says what is missing. On a disk that does not tell (None)
    /// there is always room.
    pub(super) fn reserve(
        self: &Arc<Self>,
        peer: AgentId,
        bytes: u64,
        disk: Option<Disk>,
        now: Instant,
    ) -> Result<Reservation, Short> {
        let mut promises = self.lock();
        promises.find_room(peer, bytes, disk, now)?;
        let number = promises.next;
        promises.next += 1;
        let device = disk.map(|disk| disk.device);
        promises
            .open
            .insert(number, Promise::new(peer, device, bytes, now));
        Ok(Reservation {
            space: self.clone(),
            number,
            copy: None,
        })
    }

    /// Is there room for `bytes` on the disk now, whatever was promised?
    pub(super) fn has_room(&self, bytes: u64, disk: Option<Disk>) -> Result<(), Short> {
        let Some(disk) = disk else {
            return Ok(());
        };
        self.lock().fits(bytes, 0, disk)
    }

    /// So much time goes by.
    #[cfg(test)]
    pub(super) fn age(&self, by: Duration) {
        self.lock()
            .open
            .values_mut()
            .for_each(|promise| promise.since -= by);
    }

    fn lock(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unpoisoned()
    }
}

impl Promises {
    /// The whole offer must fit beside what `min_free` keeps, also where the disk has less than that, and beside what is
    /// `promised`.
    fn fits(&self, bytes: u64, promised: u64, disk: Disk) -> Result<(), Short> {
        if let Some(inodes) = disk.inodes.filter(Inodes::are_short) {
            return Err(Short::Inodes(inodes));
        }
        let min_free = disk.min_free(self.min_free);
        let wanted = promised.saturating_add(bytes).saturating_add(min_free);
        match wanted.checked_sub(disk.free) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(Short::Bytes {
                missing,
                min_free,
                promised,
            }),
        }
    }

    /// Room for `bytes` more of `peer`'s: what is free, beside all that it holds itself, and of what each other peer
    /// holds at most an equal share. What others hold above that goes to it, as far as it is needed.
    fn find_room(
        &mut self,
        peer: AgentId,
        bytes: u64,
        disk: Option<Disk>,
        now: Instant,
    ) -> Result<(), Short> {
        let Some(disk) = disk else {
            return Ok(());
        };
        let min_free = disk.min_free(self.min_free);
        let usable = disk.free.saturating_sub(min_free);
        let mut holds: HashMap<AgentId, u64> = HashMap::new();
        let is_there = |promise: &&mut Promise| promise.device.is_none_or(|device| device == disk.device);
        for promise in self.open.values_mut().filter(is_there) {
            let sum = holds.entry(promise.peer).or_default();
            *sum = sum.saturating_add(promise.held(now));
        }
        let own = holds.remove(&peer).unwrap_or_default();
        holds.retain(|_, sum| *sum > 0);
        let share = match failpoints::mutant("space-share") {
            true => u64::MAX,
            false => usable / (holds.len() as u64 + 1),
        };
        let all = holds.values().fold(own, |all, sum| all.saturating_add(*sum));
        let fair = holds
            .values()
            .fold(own, |all, sum| all.saturating_add((*sum).min(share)));
        self.fits(bytes, fair, disk)?;
        let mut excess = all.saturating_add(bytes).saturating_sub(usable);
        for promise in self.open.values_mut().filter(is_there).rev() {
            let Some(sum) = holds.get_mut(&promise.peer) else {
                continue; // its own
            };
            let held = promise.held(now);
            let taken = excess.min(held).min(sum.saturating_sub(share));
            if taken > 0 {
                (promise.bytes, *sum, excess) = (held - taken, *sum - taken, excess - taken);
            }
        }
        Ok(())
    }
}

impl Reservation {
    /// The transfer takes `copy` on another disk as well.
    pub(super) fn with_copy(mut self, copy: Option<Self>) -> Self {
        self.copy = copy.map(Box::new);
        self
    }

    /// May so many bytes be written now without asking for room?
    pub(super) fn covers(&self, bytes: u64, now: Instant) -> bool {
        let promises = self.space.lock();
        let promise = promises.open.get(&self.number);
        promise.is_some_and(|promise| promise.held(now) >= bytes)
    }

    /// Asks for room for the next `bytes`; no more than that is promised then.
    pub(super) fn cover(&mut self, bytes: u64, disk: Option<Disk>, now: Instant) -> Result<(), Short> {
        let mut promises = self.space.lock();
        let Some(promise) = promises.open.get(&self.number) else {
            return Ok(()); // not reached: it goes with this reservation
        };
        let (peer, device, held) = (promise.peer, promise.device, promise.held(now));
        if held >= bytes {
            return Ok(());
        }
        promises.find_room(peer, bytes - held, disk, now)?;
        promises
            .open
            .insert(self.number, Promise::new(peer, device, bytes, now));
        Ok(())
    }

    /// So many bytes of it are on the disk now and no longer free.
    pub(super) fn used(&mut self, bytes: u64, now: Instant) {
        if let Some(promise) = self.space.lock().open.get_mut(&self.number) {
            promise.used(bytes, now);
        }
        if let Some(copy) = &mut self.copy {
            copy.used(bytes, now); // its pace is the transfer's
            copy.returned(bytes); // and its bytes are still to come
        }
    }

    /// So many bytes on the disk are about to be free again: they stay promised, as they come once more.
    pub(super) fn returned(&mut self, bytes: u64) {
        if let Some(promise) = self.space.lock().open.get_mut(&self.number) {
            promise.bytes = promise.bytes.saturating_add(bytes);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AgentId = AgentId([1; 32]);
    const B: AgentId = AgentId([2; 32]);
    const C: AgentId = AgentId([3; 32]);

    fn free(free: u64) -> Option<Disk> {
        Some(Disk {
            device: 1,
            free,
            size: 1 << 40,
            inodes: None,
        })
    }

    fn missing(answer: Result<Reservation, Short>) -> u64 {
        match answer.err() {
            Some(Short::Bytes { missing, .. }) => missing,
            _ => 0,
        }
    }

    #[test]
    fn a_share_of_the_inodes_is_kept() {
        let (space, now) = (Space::new(None), Instant::now());
        let disk = |free| {
            let inodes = Some(Inodes { free, all: 1000 });
            Some(Disk {
                device: 1,
                free: 1 << 40,
                size: 1 << 40,
                inodes,
            })
        };
        assert!(space.reserve(A, 0, disk(50), now).is_ok());
        let short = space.reserve(A, 0, disk(49), now).err().unwrap();
        assert!(
            short
                .to_string()
                .contains("only 49 more files and folders of 1000"),
            "{short}"
        );
    }

    #[test]
    fn the_disk_is_asked_again_after_a_while_or_for_more_than_next_to_nothing() {
        let (space, start) = (Space::new(Some(0)), Instant::now());
        let usable = 64 << 10;
        let near = usable / NEAR_PART;
        let mut asked = 0;
        let mut ask = |bytes, at| {
            let before = asked;
            let answer = space.disk(bytes, start + at, || {
                asked += 1;
                Ok(free(usable))
            });
            assert_eq!(answer.unwrap(), free(usable));
            asked > before
        };
        let ms = Duration::from_millis;
        let table = [
            (1, ms(0), true),
            (near - 1, ms(1), false),
            (1, ms(2), true),
            (near, ms(3), true),
            (0, ms(4), false),
            (0, ms(3) + RECENT, true),
        ];
        for (bytes, at, expected) in table {
            assert_eq!(ask(bytes, at), expected, "{bytes} at {at:?}");
        }
        let failed = space.disk(u64::MAX, start, || Err(io::ErrorKind::Other.into()));
        assert!(failed.is_err());
    }

    #[test]
    fn promises_add_up_and_end() {
        let (space, now) = (Space::new(Some(100)), Instant::now());
        let mut a = space.reserve(A, 500, free(1000), now).unwrap();
        assert_eq!(missing(space.reserve(A, 401, free(1000), now)), 1);
        let b = space.reserve(A, 400, free(1000), now).unwrap();
        a.used(300, now);
        drop(b);
        assert_eq!(missing(space.reserve(A, 701, free(1000), now)), 1);
        a.used(u64::MAX, now);
        drop(space.reserve(A, 900, free(1000), now).unwrap());
        drop(a);
        assert!(space.lock().open.is_empty());
        assert!(space.reserve(A, u64::MAX, free(1000), now).is_err());
        space.set_min_free(Some(600));
        let short = space.reserve(A, 500, free(1000), now).err().unwrap();
        assert_eq!(
            short.to_string(),
            "not enough space: 100 B short of what `min_free` (600 B) reserves"
        );
    }

    #[test]
    fn a_disk_that_does_not_tell_has_room() {
        let (space, now) = (Space::new(None), Instant::now());
        let mut all = space.reserve(A, u64::MAX, None, now).unwrap();
        assert!(all.covers(1 << 40, now) && all.cover(u64::MAX, None, now + WINDOW * 9).is_ok());
        assert!(space.reserve(B, u64::MAX, None, now).is_ok());
    }

    /// Of 900 bytes so many come in each of three windows.
    #[test]
    fn room_is_kept_for_what_can_arrive_within_the_hour() {
        for (pace, held) in [(0, 0), (1, 60), (4, 240), (15, 855), (90, 630)] {
            let (space, start) = (Space::new(Some(0)), Instant::now());
            let mut large = space.reserve(A, 900, free(1000), start).unwrap();
            assert!(large.covers(900, start + WINDOW / 2), "a new one is whole");
            for n in 0..3 {
                large.used(pace, start + WINDOW * n + WINDOW / 2);
            }
            let now = start + WINDOW * 3;
            assert!(large.covers(held, now) && !large.covers(held + 1, now), "{pace}");
        }
    }

    #[test]
    fn four_bytes_in_three_minutes_keep_no_disk() {
        let (space, start) = (Space::new(Some(0)), Instant::now());
        let mut silent = space.reserve(A, 900_000, free(1_000_000), start).unwrap();
        for n in 1..5u32 {
            let now = start + WINDOW * n - WINDOW / 6;
            if !silent.covers(1, now) {
                silent.cover(1, free(1_000_000), now).unwrap();
            }
            silent.used(1, now);
            if n > 1 {
                assert!(space.reserve(B, 999_000, free(1_000_000), now).is_ok(), "{n}");
            }
        }
    }

    #[test]
    fn a_peer_keeps_no_more_than_a_share_while_others_ask() {
        let (space, now) = (Space::new(Some(0)), Instant::now());
        let hog = space.reserve(A, 600, free(1000), now).unwrap();
        let more = space.reserve(A, 400, free(1000), now).unwrap();
        assert_eq!(
            missing(space.reserve(B, 501, free(1000), now)),
            1,
            "not more than its own share"
        );
        let b = space.reserve(B, 500, free(1000), now).unwrap();
        // The newest gives way; what is written goes on asking and is told.
        assert!(!more.covers(1, now) && hog.covers(500, now) && !hog.covers(501, now));
        assert!(b.covers(500, now));
        let c = space.reserve(C, 333, free(1000), now).unwrap();
        assert!(c.covers(333, now));
        let held: u64 = space.lock().open.values().map(|p| p.held(now)).sum();
        assert!(held <= 1000, "{held} of 1000 promised");
        // A small file of the same peer waits for its own.
        assert!(space.reserve(A, 10, free(1000), now).is_err());
    }

    #[test]
    fn what_fits_is_taken_from_nobody() {
        let (space, now) = (Space::new(Some(0)), Instant::now());
        let large = space.reserve(A, 900, free(1000), now).unwrap();
        let small = space.reserve(B, 100, free(1000), now).unwrap();
        assert!(large.covers(900, now) && small.covers(100, now));
    }

    #[test]
    fn room_that_was_given_to_others_is_asked_for_again() {
        let (space, start) = (Space::new(Some(0)), Instant::now());
        let mut large = space.reserve(A, 900, free(1000), start).unwrap();
        let late = start + WINDOW * 2;
        let other = space.reserve(B, 900, free(1000), late).unwrap();
        assert!(!large.covers(1, late));
        assert!(large.cover(501, free(1000), late).is_err());
        drop(other);
        large.cover(101, free(1000), late).unwrap();
        assert!(
            large.covers(101, late) && !large.covers(102, late),
            "no more than that"
        );
    }

    #[test]
    fn room_that_is_returned_stays_promised() {
        let (space, start) = (Space::new(Some(0)), Instant::now());
        let mut cut = space.reserve(A, 5, free(10), start).unwrap();
        cut.used(5, start);
        cut.returned(3);
        assert_eq!(missing(space.reserve(A, 8, free(10), start)), 1);
        assert!(cut.covers(3, start) && !cut.covers(4, start));
    }
}
