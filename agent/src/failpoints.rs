//! Faults that tests ask for through `DROPWIRE_FAULT`; a release build holds none of this.
//!
//! A comma list: `bad-read@1048576` flips one bit, once, in the read buffer that holds this offset of a file, after
//! its hash was taken, so that the receiver's check has to find it; `panic@NAME` panics at the place of that name;
//! `deaf@PATH` drops native events, and `no-watch@PATH` refuses to watch folders, as long as something has that path
//! (of `no-watch`: except the outbox itself and its own folder); as long as something has that path, what leaves the
//! outbox that it lies in hangs with `hang@PATH`, and is said to be lost by the disk with `no-sync@PATH`.
//!
//! `DROPWIRE_MUTANT` names one safeguard that is left out; the program `mutants` shows that some test then fails.

#[cfg(test)]
pub mod needs;

/// Is this safeguard to be left out? Never in a release build.
#[cfg(debug_assertions)]
pub fn mutant(name: &str) -> bool {
    use std::sync::LazyLock;
    static LEFT_OUT: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("DROPWIRE_MUTANT").ok());
    LEFT_OUT.as_deref() == Some(name)
}

/// Never in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub const fn mutant(_: &str) -> bool {
    false
}

/// A step that can be left out by its name.
#[inline]
pub fn step<T: Default, E>(name: &str, take: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    if mutant(name) { Ok(T::default()) } else { take() }
}

/// Says that a test was left out, and why, past the test runner's capture.
#[cfg(test)]
pub fn skip(why: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = std::io::Write::write_fmt(&mut stderr, format_args!("SKIPPED: {why}\n"));
}

/// Panics at this place, if that was asked for.
#[cfg(debug_assertions)]
pub fn panic_at(place: &str) {
    let asked = std::env::var("DROPWIRE_FAULT").unwrap_or_default();
    if asked
        .split(',')
        .any(|fault| fault.trim().strip_prefix("panic@") == Some(place))
    {
        panic!("asked for");
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn panic_at(_: &str) {}

/// Are native events to be dropped just now?
#[cfg(debug_assertions)]
pub fn deaf() -> bool {
    static WHILE: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| asked("deaf@"));
    WHILE
        .as_deref()
        .is_some_and(|path| std::fs::exists(path).unwrap_or(false))
}

/// Never in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub const fn deaf() -> bool {
    false
}

/// Is the system to refuse to watch any folder just now?
#[cfg(debug_assertions)]
pub fn refuses_watch() -> bool {
    static WHILE: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| asked("no-watch@"));
    WHILE
        .as_deref()
        .is_some_and(|path| std::fs::exists(path).unwrap_or(false))
}

/// Never in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub const fn refuses_watch() -> bool {
    false
}

/// Does the disk under this outbox hang just now? Then this returns once it does so no more.
#[cfg(debug_assertions)]
pub fn hang(outbox: &std::path::Path) {
    while lies_in("hang@", outbox) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn hang(_: &std::path::Path) {}

/// Does the disk under this outbox lose what it is told to keep just now?
#[cfg(debug_assertions)]
pub fn loses(outbox: &std::path::Path) -> bool {
    lies_in("no-sync@", outbox)
}

/// Never in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub const fn loses(_: &std::path::Path) -> bool {
    false
}

#[cfg(debug_assertions)]
fn lies_in(fault: &str, outbox: &std::path::Path) -> bool {
    asked(fault).is_some_and(|path| {
        std::path::Path::new(&path).starts_with(outbox) && std::fs::exists(&path).unwrap_or(false)
    })
}

/// What stands behind `failpoints` in what was asked for.
#[cfg(debug_assertions)]
fn asked(fault: &str) -> Option<String> {
    let all = std::env::var("DROPWIRE_FAULT").ok()?;
    all.split(',')
        .find_map(|one| one.trim().strip_prefix(fault).map(str::to_owned))
}

/// Damages `bytes`, which are a file's from `offset` on, if that was asked for.
#[cfg(debug_assertions)]
pub fn bad_read(offset: u64, bytes: bytes::Bytes) -> bytes::Bytes {
    use std::sync::{LazyLock, Mutex};

    use crate::poison::Unpoisoned as _;
    static LEFT: LazyLock<Mutex<Vec<u64>>> = LazyLock::new(|| {
        let asked = std::env::var("DROPWIRE_FAULT").unwrap_or_default();
        Mutex::new(offsets(&asked))
    });
    let mut left = LEFT.lock().unpoisoned();
    if left.is_empty() {
        return bytes;
    }
    let mut bytes = bytes.to_vec();
    flip(&mut left, offset, &mut bytes);
    bytes.into()
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn bad_read(_: u64, bytes: bytes::Bytes) -> bytes::Bytes {
    bytes
}

#[cfg(debug_assertions)]
fn offsets(asked: &str) -> Vec<u64> {
    asked
        .split(',')
        .filter_map(|fault| fault.trim().strip_prefix("bad-read@")?.parse().ok())
        .collect()
}

#[cfg(debug_assertions)]
fn flip(left: &mut Vec<u64>, offset: u64, buffer: &mut [u8]) {
    left.retain(|at| {
        let here = at
            .checked_sub(offset)
            .and_then(|i| buffer.get_mut(usize::try_from(i).ok()?));
        match here {
            Some(byte) => {
                *byte ^= 1;
                false
            }
            None => true,
        }
    });
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn one_bit_once() {
        let mut left = offsets("other, bad-read@5 ,bad-read@x");
        let mut buffer = [0; 4];
        flip(&mut left, 0, &mut buffer);
        assert_eq!(buffer, [0; 4]);
        flip(&mut left, 4, &mut buffer);
        assert_eq!(buffer, [0, 1, 0, 0]);
        flip(&mut left, 4, &mut buffer);
        assert_eq!(buffer, [0, 1, 0, 0]);
    }
}
