//! The proofs that anyone can run, made of the tests' harness so that agents are set up in one way only. For Linux.
//!
//! | program | shows |
//! |---|---|
//! | `soak` | agents under random kills, cuts and full disks lose, double and tear nothing |
//! | `mutants` | each safeguard is needed: some test fails without it |

#[path = "../../tests/harness/mod.rs"]
pub mod harness;
pub mod mutants;
pub mod soak;

use std::{path::PathBuf, sync::OnceLock};

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Settles which `dropwire` runs: `named`, else the one beside this program. The error is the mend.
pub fn choose_program(named: Option<PathBuf>) -> Result<PathBuf, String> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("dropwire"));
    let named = named.or_else(beside).unwrap_or_default();
    let found = named.canonicalize().map_err(|_| {
        format!(
            "no dropwire at {}: `cargo build --release` makes one",
            named.display()
        )
    })?;
    Ok(PROGRAM.get_or_init(|| found).clone())
}

/// What the harness runs.
fn program() -> PathBuf {
    PROGRAM.get().cloned().unwrap_or_else(|| "dropwire".into())
}
