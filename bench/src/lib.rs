//! What both measurements share: the tests' harness (so that agents are set up and paired in one way only) and the
//! choice of the program that is measured. For Linux.

#[path = "../../tests/harness/mod.rs"]
pub mod harness;

use std::{path::PathBuf, sync::OnceLock};

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Settles which program is measured: `argument`, else a release build beside this one.
///
/// Ends the process with a mend when there is none.
pub fn choose_program(argument: Option<String>) -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("dropwire"));
    let named = argument.map(PathBuf::from).or_else(beside).unwrap_or_default();
    let Ok(found) = named.canonicalize() else {
        eprintln!(
            "no dropwire at {}: `cargo build --release` makes one",
            named.display()
        );
        std::process::exit(2);
    };
    PROGRAM.get_or_init(|| found).clone()
}

/// Two agents, connected, that log as little as they do at a user's.
pub fn quiet_pair() -> harness::Pair {
    let level = || ("RUST_LOG".to_owned(), "info".to_owned());
    harness::Pair::with(|laptop, office| {
        laptop.env.push(level());
        office.env.push(level());
    })
}

/// What the harness runs.
fn program() -> PathBuf {
    PROGRAM.get().cloned().unwrap_or_else(|| "dropwire".into())
}
