//! The config. `table` and `value` read what is written, `check` makes the [`Config`] of it that is in effect; errors
//! point at the line and say what to write instead.

mod address;
mod check;
mod current;
mod diagnostic;
mod edits;
mod effective;
mod folders;
pub mod paths;
mod peers;
mod read;
mod table;
mod units;
mod value;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use dropwire_protocol::AgentId;

pub use check::default_name;
pub use current::Current;
pub use diagnostic::{Diagnostic, Invalid};
pub use edits::{Edits, undisturbed};
pub use effective::effective;
pub use folders::home;
pub use read::{load, parse, read};
pub use units::format_duration;
pub use value::{quoted, written};

/// The config that is in effect, checked: paths absolute, names unique, every outbox's peers known.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Shown to peers.
    pub name: String,
    /// `host:port` or None on a machine that only dials.
    pub listen: Option<String>,
    /// From the file only; flags and environment come before it (see `paths`).
    pub state_dir: Option<PathBuf>,
    /// Control socket, from the file only.
    pub control: Option<PathBuf>,
    /// None on a machine that only receives.
    pub outboxes: Vec<Outbox>,
    /// None on a machine that only sends.
    pub inbox: Option<Inbox>,
    /// The agents we are paired with.
    pub peers: Vec<Peer>,
    /// How failed attempts are repeated.
    pub retry: Retry,
    /// Rates.
    pub limits: Limits,
}

impl Config {
    /// Every outbox and the inbox.
    pub fn folders(&self) -> Vec<PathBuf> {
        let inbox = self.inbox.iter().map(|inbox| inbox.path.clone());
        self.outbox_paths().into_iter().chain(inbox).collect()
    }

    /// How long a delivered file is left in place in the outbox there.
    pub fn linger(&self, outbox: &Path) -> Duration {
        let outbox = self.outboxes.iter().find(|it| it.path == outbox);
        outbox.map_or(Duration::ZERO, |outbox| outbox.linger)
    }

    /// Every outbox.
    pub fn outbox_paths(&self) -> Vec<PathBuf> {
        self.outboxes.iter().map(|outbox| outbox.path.clone()).collect()
    }
}

/// A folder whose files are sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Outbox {
    /// Absolute.
    pub path: PathBuf,
    /// Ids of the peers its files go to (all, where the file says nothing).
    pub to: Vec<AgentId>,
    /// What becomes of a delivered file.
    pub after_send: AfterSend,
    /// A file is sent once a file of its name and this suffix is beside it; None: files need no marker.
    pub marker: Option<String>,
    /// How long a file must rest where the OS cannot say who has it open.
    pub quiet: Duration,
    /// A file that never rests is reported after this.
    pub max_wait: Duration,
    /// How long a delivered file is left in place after its delivery and after each change of its times.
    pub linger: Duration,
    /// Added to the built-in list; glob patterns.
    pub ignore: Vec<String>,
    /// How it is watched.
    pub watch: Watch,
    /// Time between full scans.
    pub rescan: Duration,
    /// What a top-level folder in it is.
    pub folder: Folder,
}

/// What becomes of a file once every peer has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum AfterSend {
    /// Into `<outbox>/.dropwire/sent`.
    Archive,
    /// Removed.
    Delete,
    /// Stays.
    Keep,
}

/// What a top-level folder in an outbox is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Folder {
    /// Each of its files is a delivery of its own, with its path.
    Files,
    /// One delivery, which arrives at once and complete.
    Whole,
}

impl Folder {
    /// The other value.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Files => Self::Whole,
            Self::Whole => Self::Files,
        }
    }
}

/// What makes a file ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Ready {
    /// Nobody writes to it any more.
    Auto,
    /// Nobody writes to it any more, and a marker is beside it.
    Marker,
}

/// How an outbox is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Watch {
    /// Native where it works, else polling.
    Auto,
    /// Native events only (and scans).
    Native,
    /// Polling.
    Poll,
}

/// Where files arrive.
#[derive(Clone, PartialEq, Debug)]
pub struct Inbox {
    /// Absolute.
    pub path: PathBuf,
    /// Flat, or one folder a peer.
    pub layout: Layout,
    /// Bytes that stay free; None: the smaller of 1 GiB and a twentieth of the disk.
    pub min_free: Option<u64>,
    /// Program and arguments run for each file; `{path}` is replaced.
    pub on_arrival: Vec<String>,
}

/// How the inbox is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Layout {
    /// All peers' files together.
    Flat,
    /// A folder for each peer, by our name for it.
    ByPeer,
}

/// An agent we are paired with.
#[derive(Clone, PartialEq, Debug)]
pub struct Peer {
    /// Our name for it.
    pub name: String,
    /// What `dropwire id` prints there.
    pub id: AgentId,
    /// `host:port`; None for a peer that dials us.
    pub address: Option<String>,
    /// Bytes; larger files are declined.
    pub max_file_size: Option<u64>,
}

/// How failed attempts are repeated.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Retry {
    /// Before the second attempt.
    pub first: Duration,
    /// Never longer than this.
    pub max: Duration,
    /// None: never.
    pub give_up_after: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            max: Duration::from_secs(300),
            give_up_after: None,
        }
    }
}

/// Rates in bytes a second; None: unlimited.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[allow(missing_docs)] // the names say it
pub struct Limits {
    pub upload: Option<u64>,
    pub download: Option<u64>,
}

#[cfg(test)]
mod tests;
