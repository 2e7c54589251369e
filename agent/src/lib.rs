//! dropwire's agent: drop a file into a folder, it arrives in a folder on another machine.
//!
//! The rooms, from the top down; each imports only rooms below its own rank ([`receiver`] also [`link`]'s
//! traits, [`cli`] also [`control`]'s client). `tests/architecture.rs` checks it.
//!
//! | rank | rooms |
//! |---|---|
//! | 1 | [`cli`]: commands, rendering, exit codes |
//! | 2 | [`daemon`]: the only room that knows the others; wires, starts, stops |
//! | 3 | [`commands`]: what the control socket answers: status, jobs, why, send, retry, cancel, adopt |
//! | 4 | [`sender`]: ready files become jobs, jobs become transfers, what is delivered leaves |
//! | 5 | [`outbox`] watch, scan, settle, dispose · [`queue`] job list, schedule · [`link`] TLS links and the pump · [`receiver`] partials, commit, naming, ledger · [`control`] the local socket |
//! | 6 | [`config`] · [`identity`] · [`db`] · [`descriptors`] · [`disk`] · [`durable`] · [`folder_id`] · [`own_folder`] · [`owner`] · [`homes`] · [`confined`] · [`lease`] · [`snapshot`] · [`unsent`] · [`remove_tree`] · [`version`] · [`watcher`] · [`bundle`] · [`border`] · [`backoff`] · [`blocking`] · [`clock`] · [`running_time`] · [`failpoints`] · [`file_system`] · [`io_error`] · [`own_files`] · [`id`] · [`error`] |

pub mod backoff;
pub mod blocking;
pub mod border;
pub mod bundle;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod confined;
pub mod control;
pub mod daemon;
pub mod db;
pub mod descriptors;
pub mod disk;
pub mod durable;
pub mod error;
pub mod failpoints;
pub mod file_system;
pub mod folder_id;
pub mod homes;
pub mod id;
pub mod identity;
pub mod io_error;
pub mod lease;
pub mod link;
pub mod outbox;
pub mod own_files;
pub mod own_folder;
pub mod owner;
pub mod queue;
pub mod receiver;
pub mod remove_tree;
pub mod running_time;
pub mod sender;
pub mod snapshot;
pub mod unsent;
pub mod version;
pub mod watcher;
