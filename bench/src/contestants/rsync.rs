//! rsync to its daemon on the other side: neither encrypted, nor synced unless `--fsync` asks for it.

use std::{fs, io, process::Command};

use super::{Contestant, PATIENCE, Session, Site};
use crate::{
    namespace::Namespace,
    process::{Running, Usage, find, output},
    work::Work,
};

/// With or without `--fsync` (each file, rsync 3.2.4 and later).
pub(super) struct Rsync {
    /// With it.
    pub fsync: bool,
}

impl Contestant for Rsync {
    fn name(&self) -> &'static str {
        if self.fsync {
            "rsync daemon, --fsync"
        } else {
            "rsync daemon"
        }
    }

    fn missing(&self) -> Option<String> {
        if find("rsync").is_none() {
            return Some("rsync is not installed".into());
        }
        let help = output(Command::new("rsync").arg("--help")).unwrap_or_default();
        (self.fsync && !help.contains("--fsync")).then(|| "this rsync has no --fsync (3.2.4 has)".into())
    }

    fn does(&self, work: Work) -> bool {
        match work {
            Work::Large | Work::Small => true,
            Work::Resume | Work::Wide => !self.fsync,
            Work::Latency | Work::Beside | Work::Idle => false,
        }
    }

    fn begin<'a>(&self, site: &'a Site) -> io::Result<Box<dyn Session + 'a>> {
        let address = site.free_address()?;
        let config = site.root.join("rsyncd.conf");
        let owner = if rustix::process::geteuid().is_root() {
            "uid = root\ngid = root\n"
        } else {
            ""
        };
        let inbox = site.inbox();
        let text = format!(
            "use chroot = no\nread only = no\n{owner}[inbox]\npath = {}\n",
            inbox.display()
        );
        fs::write(&config, text)?;
        let mut daemon = Command::new("rsync");
        daemon
            .args(["--daemon", "--no-detach"])
            .arg(format!("--address={}", address.ip()))
            .arg(format!("--port={}", address.port()))
            .arg(format!("--config={}", config.display()))
            .arg(format!("--log-file={}", site.root.join("rsyncd.log").display()));
        let daemon = Running::start(daemon, site.receiver())?;
        site.listens(address)?;
        let (outbox, to) = (site.outbox(), format!("rsync://{}/inbox/", site.dial(address)));
        let fsync = self.fsync;
        let client = move |name: &str, again| {
            let mut client = command(again);
            if fsync {
                client.arg("--fsync");
            }
            client.arg(outbox.join(name)).arg(&to);
            client
        };
        Ok(Box::new(Pushing::new(site.sender(), daemon, fsync, client)))
    }
}

/// What is common to every call of rsync; `again` after a cut.
pub(super) fn command(again: bool) -> Command {
    let mut command = Command::new("rsync");
    command.args(["-rt", "--partial"]);
    command.arg(if again { "--append-verify" } else { "--whole-file" });
    command
}

/// The call for a name, and whether it was tried before.
type Call = Box<dyn Fn(&str, bool) -> Command>;

/// A session of a tool that is called for each drop, with a daemon on the other side.
pub(super) struct Pushing<'a> {
    network: Option<&'a Namespace>,
    daemon: Running,
    syncs: bool,
    client: Call,
    spent: Usage,
    again: bool,
}

impl<'a> Pushing<'a> {
    /// Calls `client` in `network`.
    pub(super) fn new(
        network: Option<&'a Namespace>,
        daemon: Running,
        syncs: bool,
        client: impl Fn(&str, bool) -> Command + 'static,
    ) -> Self {
        Pushing {
            network,
            daemon,
            syncs,
            client: Box::new(client),
            spent: Usage::default(),
            again: false,
        }
    }
}

impl Session for Pushing<'_> {
    fn push(&mut self, name: &str) -> Option<io::Result<()>> {
        let client = (self.client)(name, self.again);
        let ended = Running::start(client, self.network).and_then(|client| client.finish(PATIENCE));
        self.again = ended.is_err();
        Some(ended.map(|usage| self.spent = self.spent.with(usage)))
    }

    fn syncs(&self) -> bool {
        self.syncs
    }

    fn cpu(&self) -> io::Result<[f64; 2]> {
        Ok([0.0; 2])
    }

    fn end(self: Box<Self>) -> io::Result<[Usage; 2]> {
        // Its workers are known only once they have ended and it has.
        Ok([self.spent, self.daemon.stop()?])
    }
}
