//! Copies take no more of the spool's disk than leaves enough for the job list.

use std::{fs::File, io};

use crate::{failpoints, fs::disk::Disk};

/// So much stays free on the disk of the copies...
const KEPT: u64 = 8 << 20;
/// ...or this part of a small one.
const SHARE: u64 = 16;
/// Bytes copied between two questions how much is free: others use the disk too.
const STEP: u64 = 16 << 20;

/// The room for one copy.
#[derive(Default)]
pub(super) struct Room {
    /// From here on the free space is asked for again.
    next: u64,
}

impl Room {
    /// Is there room for the rest of a copy of `length` bytes, of which those before `at` are made?
    pub(super) fn lasts(&mut self, copy: &File, at: u64, length: u64) -> io::Result<()> {
        self.asks(at, length, |bytes| has_room(copy, bytes))
    }

    fn asks(&mut self, at: u64, length: u64, room: impl Fn(u64) -> io::Result<()>) -> io::Result<()> {
        if at < self.next {
            return Ok(());
        }
        self.next = at.saturating_add(STEP);
        failpoints::step("send-room", || room(length.saturating_sub(at)))
    }
}

/// An error where `bytes` more would leave too little.
fn has_room(copy: &File, bytes: u64) -> io::Result<()> {
    let disk = Disk::of(copy)?;
    disk.map_or(Ok(()), |disk| check(bytes, disk.free, disk.size))
}

fn check(bytes: u64, free: u64, all: u64) -> io::Result<()> {
    let kept = KEPT.min(all / SHARE);
    if bytes == 0 || free >= bytes.saturating_add(kept) {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let text = format!(
        "not enough space on the disk of the state folder, where `send` keeps its copy: {} MiB are free, and {} MiB are \
         needed beside {} MiB that stay free",
        free >> 20,
        mib(bytes),
        mib(kept)
    );
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_copy_leaves_room_for_the_job_list() {
        let all = 1000 * MIB;
        assert!(check(600 * MIB, 300 * MIB, all).is_err());
        assert!(check(300 * MIB, 300 * MIB, all).is_err());
        assert!(check(300 * MIB, 308 * MIB, all).is_ok());
        assert!(check(0, 0, all).is_ok(), "nothing needs no room");
        assert!(check(8 * MIB, 9 * MIB, 16 * MIB).is_ok(), "a small disk");
        assert!(check(u64::MAX, u64::MAX - 1, u64::MAX).is_err());
    }

    #[test]
    fn a_copy_is_begun_and_goes_on_only_with_room_for_all_of_it() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let size = 2 * STEP;
        assert!(Room::default().asks(0, size, |_| Err(full())).is_err());
        let mut room = Room::default();
        let others = |left| if left == size { Ok(()) } else { Err(full()) };
        assert!(room.asks(0, size, others).is_ok());
        assert!(
            room.asks(STEP - 1, size, others).is_ok(),
            "not asked for each piece"
        );
        assert!(room.asks(STEP, size, others).is_err(), "others took it meanwhile");
    }
}
