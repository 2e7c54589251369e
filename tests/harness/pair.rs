//! Two paired agents with a wire between them that can be troubled.

use std::sync::Arc;

use super::{
    Agent, Proxy, eventually,
    settings::{Peer, Settings},
};

/// `laptop` dials `office`, always through `wire`.
pub struct Pair {
    /// Dials; nobody can dial it.
    pub laptop: Agent,
    /// Listens; knows no address of the laptop.
    pub office: Agent,
    /// What every connection goes through.
    pub wire: Arc<Proxy>,
}

impl Pair {
    /// Both run and are connected.
    pub fn linked() -> Self {
        Self::with(|_, _| {})
    }

    /// A linked pair, both changed by `change` first (laptop first).
    pub fn with(change: impl FnOnce(&mut Agent, &mut Agent)) -> Self {
        let mut pair = Self::idle();
        change(&mut pair.laptop, &mut pair.office);
        pair.office.start();
        pair.laptop.start();
        pair.connects();
        pair
    }

    /// Paired, nothing started.
    pub fn idle() -> Self {
        let wire = Arc::new(Proxy::start());
        let mut office = Agent::new(
            "office",
            Settings {
                listen: true,
                ..Settings::default()
            },
        );
        let mut laptop = Agent::new("laptop", Settings::default());
        office.behind(wire.clone());
        office.settings.peers.push(peer(&laptop, None));
        laptop
            .settings
            .peers
            .push(peer(&office, Some(wire.address().to_string())));
        Self { laptop, office, wire }
    }

    /// Returns once both sides call the other connected.
    #[track_caller]
    pub fn connects(&self) {
        for (agent, other) in [(&self.laptop, "office"), (&self.office, "laptop")] {
            eventually(&format!("{} connected to {other}", agent.name), || {
                (agent.peer(other)["connected"] == true).then_some(())
            });
        }
    }
}

/// The `[[peer]]` table by which others know `agent`.
pub fn peer(agent: &Agent, address: Option<String>) -> Peer {
    Peer {
        name: agent.name.clone(),
        id: agent.id.clone(),
        address,
    }
}
