//! dropwire beside its peers on the same work, in turns, on one machine: what a user waits for, what both sides spend on
//! it, and how far the limit is. For Linux.
//!
//! ```text
//!   works          what is done: drop, wait, and the figures that come of it
//!   contestants    who does it: one file for each; all look the same from outside (Contestant, Session)
//!   yardstick      the barest pair of programs that does the same: the limit
//!   home           the folder that an agent lives in
//!   process        what runs, what it spent, and that it ends
//!   sources        random bytes, made once; fresh pages taken before they count
//!   arrivals       names as they appear in an inbox
//!   meter          a line that counts and cuts
//!   wide           a long line with loss, between two network namespaces
//!   statistics, table    medians, ratios, and how they are shown
//! ```

pub mod arrivals;
pub mod contestants;
pub mod home;
pub mod meter;
pub mod namespace;
pub mod process;
pub mod sources;
pub mod statistics;
pub mod table;
pub mod wide;
pub mod work;
pub mod works;
pub mod yardstick;

use std::io;

/// An error with a sentence of its own.
pub fn failed(why: impl Into<String>) -> io::Error {
    io::Error::other(why.into())
}

/// The error of something that took longer than it may.
pub fn too_long(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("took too long: {what}"))
}
