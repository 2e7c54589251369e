//! Asks the kernel whether anybody has a file open for writing, and hears of it when somebody comes.
//!
//! Linux: a read lease (`fcntl(F_SETLEASE, F_RDLCK)`) fails while a writer, or a shared writable mapping, is there.
//! Elsewhere, and where leases are refused, [`Lease::take`] says so and the caller falls back to waiting.

use std::fs::File;

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

/// A read lease; given up when dropped, or by itself as soon as a writer knocks (then [`Lease::whole`] is false).
#[derive(Debug)]
pub struct Lease {}

impl Lease {
    /// Asks for a read lease on `file` (opened for reading).
    pub fn take(file: &File) -> Asked {
        let _ = file;
        todo!()
    }

    /// Still held: nobody opened the file for writing since it was taken.
    pub fn whole(&self) -> bool {
        todo!()
    }
}
