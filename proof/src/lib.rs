//! The proof of "exactly once, through any crash": two real agents, one of them ended at a chosen system call, and an
//! oracle that compares what was dropped with what came of it.
//!
//! ```text
//!  scenario ──drops──▶ sender ═══════link═══════▶ receiver          each agent in a world of its own
//!                        │                           │
//!                        └── one of them runs under the tracer: at its k-th `renameat2` it is killed, is told EIO …
//!                                                    │
//!  oracle ◀── outbox, sent folder, inbox, job list ──┘              when everything came to rest again
//! ```
//!
//! - [`calls`]: the system calls that are points
//! - [`tracer`]: stops an agent at one of them (no strace: a counter of its own over all threads leaves no gaps)
//! - [`world`]: folders, configs and processes of one run
//! - [`scenario`]: what is dropped, and what happens meanwhile
//! - [`oracle`]: lost, doubled, torn, wrongly acknowledged
//! - [`point`]: one run with one fault, from an empty world to the oracle's word
//! - [`enumerate`]: all points of a scenario
//! - [`field`]: file systems, other programs and shortages that agents meet on other people's machines
//! - [`disk`]: loop-mounted file systems whose power can be cut
//!
//! And apart from that: [`soak`], agents under random trouble for as long as one likes; [`churn`], outboxes in which
//! all changes under way, [`hostile`], a paired peer that lies and floods, each with its [`report`]; and [`mutants`],
//! the list of safeguards with the tests that fail without them.
//!
//! For Linux on x86-64.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

pub mod calls;
pub mod churn;
pub mod disk;
pub mod enumerate;
pub mod field;
pub mod hostile;
pub mod mutants;
pub mod oracle;
pub mod point;
pub mod report;
pub mod scenario;
pub mod soak;
pub mod table;
pub mod tracer;
pub mod world;

#[path = "../../tests/harness/mod.rs"]
#[allow(dead_code)] // the tests use more of it
pub mod harness;

use std::{path::PathBuf, sync::OnceLock};

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Settles which dropwire is proven: `named`, else the build beside this program. The error says how to get one.
pub fn choose_program(named: Option<PathBuf>) -> Result<PathBuf, String> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("dropwire"));
    let wanted = named.or_else(beside).unwrap_or_default();
    let found = wanted.canonicalize().map_err(|e| {
        format!(
            "no dropwire at {}: {e}; `cargo build --release` makes one",
            wanted.display()
        )
    })?;
    Ok(PROGRAM.get_or_init(|| found).clone())
}

/// The program that is proven.
pub fn program() -> PathBuf {
    PROGRAM.get().cloned().unwrap_or_else(|| "dropwire".into())
}
