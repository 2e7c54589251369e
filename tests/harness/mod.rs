//! Agents as child processes, so that a test reads like the story it tells:
//!
//! ```text
//! let mut pair = Pair::linked();
//! pair.laptop.drop_file("report.pdf", b"...");
//! pair.office.receives("report.pdf", b"...");
//! ```
//!
//! Conditions are waited for, never slept for. When a test fails, each agent says where it stood.
//! Whoever uses this harness says in `crate::program` which `dropwire` it runs.

pub mod agent;
pub mod command;
pub mod files;
pub mod mount;
pub mod needs;
pub mod pair;
pub mod proxy;
mod report;
pub mod settings;

pub use agent::Agent;
pub use command::Ran;
pub use pair::Pair;
pub use proxy::{Fault, Proxy, Toward};

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

/// How long a condition may take before the test fails: far more than it needs on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two checks of a condition.
const LOOK: Duration = Duration::from_millis(10);

/// Returns once `condition` holds; panics naming `what` when that takes longer than [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// The first value that `look` finds; panics naming `what` when that takes longer than [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// [`eventually`] with another patience.
#[track_caller]
pub fn within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// Says that a test was left out, past the test runner's capture.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
