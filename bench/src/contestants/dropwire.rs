//! dropwire itself: two agents with the defaults of their config.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Contestant, Session, Site};
use crate::{
    failed,
    home::Home,
    process::{Running, Usage, eventually, output},
    work::Work,
};

/// The program to measure.
pub(super) struct Dropwire {
    /// A release build.
    pub program: PathBuf,
}

impl Contestant for Dropwire {
    fn name(&self) -> &'static str {
        "dropwire"
    }

    fn missing(&self) -> Option<String> {
        let hint = || format!("no {}: `cargo build --release` makes one", self.program.display());
        (!self.program.is_file()).then(hint)
    }

    fn is_ours(&self) -> bool {
        true
    }

    fn does(&self, _: Work) -> bool {
        true
    }

    fn begin<'a>(&self, site: &'a Site) -> io::Result<Box<dyn Session + 'a>> {
        let mut office = Agent::new(&self.program, &site.root.join("receiver"), "office")?;
        let mut laptop = Agent::new(&self.program, &site.root.join("sender"), "laptop")?;
        office.listen = Some(format!("{}:0", site.receiver_ip()));
        office.write_config(Some(&laptop), None)?;
        let mut office_runs = Running::start(office.home.command(&["run"]), site.receiver())?;
        let status = eventually("the receiver answers", || {
            office_runs.lives()?;
            Ok(office.home.status())
        })?;
        let address = status["listen"].as_str().and_then(|a| a.parse().ok());
        let address = site.dial(address.ok_or_else(|| failed(format!("no address: {status}")))?);
        laptop.keep = site.keep;
        laptop.write_config(Some(&office), Some(address.to_string()))?;
        let mut laptop_runs = Running::start(laptop.home.command(&["run"]), site.sender())?;
        for agent in [&laptop, &office] {
            eventually("both agents are connected", || {
                laptop_runs.lives()?;
                let status = agent.home.status();
                Ok(status.filter(|s| s["peers"][0]["connected"] == true))
            })?;
        }
        Ok(Box::new(Pair {
            sides: [laptop_runs, office_runs],
            leaves: (!site.keep).then(|| site.outbox()),
        }))
    }
}

struct Pair {
    sides: [Running; 2],
    /// Emptied by what is sent.
    leaves: Option<PathBuf>,
}

impl Session for Pair {
    fn push(&mut self, _: &str) -> Option<io::Result<()>> {
        None
    }

    fn syncs(&self) -> bool {
        true
    }

    fn cpu(&self) -> io::Result<[f64; 2]> {
        Ok([self.sides[0].cpu()?, self.sides[1].cpu()?])
    }

    fn end(self: Box<Self>) -> io::Result<[Usage; 2]> {
        let [laptop, office] = self.sides;
        // What follows the arrival costs, too.
        if let Some(outbox) = self.leaves {
            eventually("the outbox is empty", || Ok(is_empty(&outbox)?.then_some(())))?;
        }
        let used = [laptop.used()?, office.used()?];
        laptop.stop()?;
        office.stop()?;
        Ok(used)
    }
}

/// Whether no file is left in an outbox, nor in a folder of it.
fn is_empty(outbox: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(outbox)? {
        let entry = entry?;
        let holds_files = || fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_some());
        let own = entry.file_name() == ".dropwire";
        if !own && (!entry.path().is_dir() || holds_files()) {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Agent {
    home: Home,
    name: &'static str,
    id: String,
    listen: Option<String>,
    keep: bool,
}

impl Agent {
    fn new(program: &Path, root: &Path, name: &'static str) -> io::Result<Self> {
        let mut agent = Self {
            home: Home::make(program, root)?,
            name,
            id: String::new(),
            listen: None,
            keep: false,
        };
        agent.write_config(None, None)?;
        output(&mut agent.home.command(&["init"]))?;
        agent.id = output(&mut agent.home.command(&["id"]))?;
        Ok(agent)
    }

    fn write_config(&self, peer: Option<&Self>, address: Option<String>) -> io::Result<()> {
        let listen = self.listen.as_ref();
        let listen = listen.map_or(String::new(), |at| format!("listen = {at:?}\n"));
        let outbox = if self.keep { "after_send = \"keep\"\n" } else { "" };
        let mut peers = String::new();
        if let Some(peer) = peer {
            peers += &format!("[[peer]]\nname = {:?}\nid = {:?}\n", peer.name, peer.id);
        }
        if let Some(address) = address {
            peers += &format!("address = {address:?}\n");
        }
        self.home.write_config(self.name, &listen, outbox, &peers)
    }
}
