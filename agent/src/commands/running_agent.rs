//! The handles of a running agent from which the answers to commands are made.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

use dropwire_protocol::AgentId;

use super::peers::Names;
use crate::{
    config::Current,
    db::Db,
    link::{Links, PeerLink},
    queue::Queue,
    receiver::Inbox,
    sender::{Cleanup, InFlight, Outboxes},
};

/// Why what is written in the config file is not in effect.
pub type ConfigError = Arc<Mutex<Option<String>>>;

/// A running agent as its control socket shows it.
pub struct RunningAgent {
    /// What is in effect.
    pub config: Current,
    /// Why a later edit of the config file is not.
    pub config_error: ConfigError,
    /// When the agent started.
    pub started: Instant,
    /// Where it keeps its key and its job list.
    pub state_dir: PathBuf,
    /// Its own id.
    pub own: AgentId,
    /// The job list's file.
    pub db: Db,
    /// The jobs.
    pub queue: Queue,
    /// The links to peers.
    pub links: Links,
    /// The folder for what arrives.
    pub inbox: Inbox,
    /// The folders that are watched.
    pub outboxes: Outboxes,
    /// What is being sent right now.
    pub in_flight: InFlight,
    /// What takes delivered files out of their outboxes.
    pub cleanup: Cleanup,
    /// What peers are called.
    pub names: Names,
}

impl RunningAgent {
    /// The state of the link to each peer.
    pub fn peer_links(&self) -> HashMap<AgentId, PeerLink> {
        let links = self.links.status().into_iter();
        links.map(|link| (link.peer, link)).collect()
    }
}
