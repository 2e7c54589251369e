//! Agents, the wires between them, and their small disks.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use super::clock::Clock;
use crate::{
    field::Entered,
    harness::{Agent, Proxy, Toward, mount::SmallDisk, pair::peer, settings::Settings},
};

/// Each agent's way with delivered files.
const AFTER_SEND: [&str; 3] = ["archive", "delete", "keep"];
const NAMES: [&str; 3] = ["laptop", "office", "server"];

/// Everything that a soak troubles.
pub(super) struct World {
    /// Each talks to all others; the first only dials.
    pub agents: Vec<Agent>,
    /// The wire to each agent that listens.
    pub wires: Vec<Arc<Proxy>>,
    /// None where mounting is not allowed.
    pub disks: Vec<Disk>,
    /// Of each agent; none without a C compiler.
    pub clocks: Vec<Clock>,
    /// The agents' folders go with them; else they stay, to be looked at.
    pub tidy: bool,
}

/// A folder of an agent that can fill up.
pub(super) struct Disk {
    /// Of the agent.
    pub index: usize,
    /// Where it is mounted.
    pub folder: PathBuf,
    /// Fills and frees it.
    pub disk: Arc<SmallDisk>,
}

impl World {
    /// `count` (2 or 3) agents in the `field`, running.
    pub(super) fn new(count: usize, field: Option<&Entered>) -> Self {
        let mut world = Self {
            agents: Vec::new(),
            wires: Vec::new(),
            disks: Vec::new(),
            clocks: Vec::new(),
            tidy: false,
        };
        for index in 0..count {
            world.add(index);
        }
        for agent in &mut world.agents {
            field.iter().for_each(|field| field.surround(agent));
        }
        world.mount(field.is_some_and(|field| field.boxes.is_some()));
        world.wind();
        for agent in &mut world.agents {
            agent.start();
        }
        world
    }

    /// Bytes that passed on all wires.
    pub(super) fn passed(&self) -> u64 {
        let both = |wire: &Arc<Proxy>| wire.passed(Toward::Listener) + wire.passed(Toward::Dialler);
        self.wires.iter().map(both).sum()
    }

    /// An agent that all before it dial.
    fn add(&mut self, index: usize) {
        let settings = Settings {
            listen: index > 0,
            outbox: vec![format!("after_send = {:?}", AFTER_SEND[index])],
            ..Settings::default()
        };
        let mut agent = Agent::new(NAMES[index], settings);
        agent.env.push(("RUST_LOG".into(), "info,dropwire=debug".into()));
        let address = (index > 0).then(|| {
            let wire = Arc::new(Proxy::start());
            agent.behind(wire.clone());
            let address = wire.address().to_string();
            self.wires.push(wire);
            address
        });
        for other in &mut self.agents {
            agent.settings.peers.push(peer(other, None));
            other.settings.peers.push(peer(&agent, address.clone()));
        }
        self.agents.push(agent);
    }

    /// Each agent gets a clock of its own.
    fn wind(&mut self) {
        for agent in &mut self.agents {
            match Clock::of(agent) {
                Ok(clock) => self.clocks.push(clock),
                Err(why) => return eprintln!("SKIPPED: clock jumps: {why}"),
            }
        }
    }

    /// The first agent's state and the second's inbox lie on small disks, where that is allowed and no field says
    /// where inboxes have to be.
    fn mount(&mut self, boxes_are_elsewhere: bool) {
        let state = self.agents[0].state.clone();
        let inbox = self.agents[1].inbox.clone();
        let small = [(0, state, 192), (1, inbox, 256)];
        for (index, folder, mebibytes) in small.into_iter().take(if boxes_are_elsewhere { 1 } else { 2 }) {
            let before = tempfile::tempdir().expect("a temporary folder");
            copy(&folder, before.path());
            match SmallDisk::mount(&folder, mebibytes) {
                Ok(disk) => {
                    copy(before.path(), &folder);
                    let disk = Arc::new(disk);
                    self.disks.push(Disk { index, folder, disk });
                }
                Err(why) => eprintln!("SKIPPED: full disks: {why}"),
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            agent.kill();
        }
        if self.tidy {
            self.disks.clear();
            return;
        }
        for agent in self.agents.drain(..) {
            eprintln!("kept: {}", agent.root.display());
            std::mem::forget(agent);
        }
        for disk in self.disks.drain(..) {
            eprintln!("kept, to be unmounted: {}", disk.folder.display());
            std::mem::forget(disk);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(copied.is_ok_and(|s| s.success()), "cp -a {}", from.display());
}
