//! dropwire's agent: drop a file into a folder, it arrives in a folder on another machine.
//!
//! The rooms, from the top down; each imports only rooms below its own rank ([`receiver`] also [`link`]'s
//! traits; the common ones at the bottom may use each other). `tests/architecture.rs` checks it.
//!
//! | rank | rooms |
//! |---|---|
//! | 1 | [`cli`]: commands, rendering, exit codes |
//! | 2 | [`daemon`]: the only room that knows the others; wires, starts, stops |
//! | 3 | [`commands`]: what the control socket answers: status, jobs, why, send, retry, cancel, adopt |
//! | 4 | [`sender`]: ready files become jobs, jobs become transfers, what is delivered leaves |
//! | 5 | [`outbox`] watch, scan, inspect · [`leaving`] what was delivered leaves; copies for `send` · [`queue`] job list, schedule · [`link`] TLS links and the pump · [`receiver`] partials, commit, naming, ledger · [`control`] the local socket |
//! | 6 | [`fs`] what is asked of file systems, and done to them · [`config`] · [`identity`] · [`db`] · [`owner`] · [`homes`] · [`poison`] · [`descriptors`] · [`watcher`] · [`backoff`] · [`blocking`] · [`clock`] · [`running_time`] · [`failpoints`] · [`io_error`] · [`id`] · [`error`] |

pub mod backoff;
pub mod blocking;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod db;
pub mod descriptors;
pub mod error;
pub mod failpoints;
pub mod fs;
pub mod homes;
pub mod id;
pub mod identity;
pub mod io_error;
pub mod leaving;
pub mod link;
pub mod outbox;
pub mod owner;
pub mod poison;
pub mod queue;
pub mod receiver;
pub mod running_time;
pub mod sender;
pub mod watcher;
