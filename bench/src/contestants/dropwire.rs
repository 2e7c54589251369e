//! dropwire itself: two agents with the defaults of their config.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Contestant, Session, Site};
use crate::{
    failed,
    process::{Running, Usage, eventually, output},
    works::Work,
};

/// The program to measure.
pub struct Dropwire {
    /// A release build.
    pub program: PathBuf,
}

impl Contestant for Dropwire {
    fn name(&self) -> &'static str {
        "dropwire"
    }

    fn missing(&self) -> Option<String> {
        let mend = || format!("no {}: `cargo build --release` makes one", self.program.display());
        (!self.program.is_file()).then(mend)
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
        let mut office_runs = Running::start(office.command(&["run"]), site.receiver())?;
        let status = eventually("the receiver answers", || {
            office_runs.lives()?;
            Ok(office.status())
        })?;
        let address = status["listen"].as_str().and_then(|a| a.parse().ok());
        let address = site.dial(address.ok_or_else(|| failed(format!("no address: {status}")))?);
        laptop.keep = site.keep;
        laptop.write_config(Some(&office), Some(address.to_string()))?;
        let mut laptop_runs = Running::start(laptop.command(&["run"]), site.sender())?;
        for agent in [&laptop, &office] {
            eventually("both agents are connected", || {
                laptop_runs.lives()?;
                let status = agent.status();
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
    program: PathBuf,
    root: PathBuf,
    name: &'static str,
    id: String,
    listen: Option<String>,
    keep: bool,
}

impl Agent {
    fn new(program: &Path, root: &Path, name: &'static str) -> io::Result<Agent> {
        let mut agent = Agent {
            program: program.into(),
            root: root.into(),
            name,
            id: String::new(),
            listen: None,
            keep: false,
        };
        for folder in ["outbox", "inbox"] {
            fs::create_dir_all(root.join(folder))?;
        }
        agent.write_config(None, None)?;
        output(&mut agent.command(&["init"]))?;
        agent.id = output(&mut agent.command(&["id"]))?;
        Ok(agent)
    }

    fn write_config(&self, peer: Option<&Agent>, address: Option<String>) -> io::Result<()> {
        let folder = |name| self.root.join(name);
        let mut text = format!("name = {:?}\nstate_dir = {:?}\n", self.name, folder("state"));
        if let Some(listen) = &self.listen {
            text += &format!("listen = {listen:?}\n");
        }
        let (outbox, inbox) = (folder("outbox"), folder("inbox"));
        text += &format!("[[outbox]]\npath = {outbox:?}\n");
        if self.keep {
            text += "after_send = \"keep\"\n";
        }
        text += &format!("[inbox]\npath = {inbox:?}\nmin_free = \"1 MiB\"\n");
        if let Some(peer) = peer {
            text += &format!("[[peer]]\nname = {:?}\nid = {:?}\n", peer.name, peer.id);
        }
        if let Some(address) = address {
            text += &format!("address = {address:?}\n");
        }
        fs::write(folder("config.toml"), text)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.root.join("config.toml"))
            .args(arguments);
        command.env_clear().env("HOME", &self.root);
        command
    }

    /// None until it answers.
    fn status(&self) -> Option<serde_json::Value> {
        let text = output(&mut self.command(&["status", "--json"])).ok()?;
        serde_json::from_str(&text).ok()
    }
}
