//! End to end: real processes, real sockets, real files. What only these can show stands here (wiring, crashes,
//! faults, the surface that scripts rely on); everything else is tested inside its room.
#![cfg(unix)]
// The harness is the proofs' too.
#![allow(unreachable_pub)]

mod harness;

mod architecture;
mod changes;
mod circles;
mod cli;
mod config_errors;
mod crash;
mod damage;
mod delivery;
mod disk_full;
mod file_systems;
mod folders;
mod jobs;
mod json;
mod large;
mod leaving;
mod liars;
mod logs;
mod names;
mod readme;
mod reload;
mod seams;
mod sending;
mod service;
mod settling;
mod source;
mod starting;
mod strangers;
mod times;
mod tree;
mod watching;
mod whole;
mod wire;

/// What the harness runs: the binary that cargo built for these tests.
fn program() -> std::path::PathBuf {
    env!("CARGO_BIN_EXE_dropwire").into()
}
