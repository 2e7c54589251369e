//! Syncthing: two homes that know of nobody else, one folder, sent only on one side and received only on the other.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Contestant, PATIENCE, Session, Site};
use crate::{
    arrivals::Arrivals,
    process::{Running, Usage, eventually, find, output},
    work::Work,
};

/// With the watcher's shortest delay, and `caseSensitiveFS`, which makes many files four times as fast.
pub(super) struct Syncthing;

impl Contestant for Syncthing {
    fn name(&self) -> &'static str {
        "Syncthing"
    }

    fn missing(&self) -> Option<String> {
        find("syncthing")
            .is_none()
            .then(|| "syncthing is not installed".into())
    }

    fn does(&self, _: Work) -> bool {
        true
    }

    fn begin<'a>(&self, site: &'a Site) -> io::Result<Box<dyn Session + 'a>> {
        let receiver = Home::new(&site.root.join("receiver"), site.inbox(), "receiveonly")?;
        let sender = Home::new(&site.root.join("sender"), site.outbox(), "sendonly")?;
        let address = site.free_address()?;
        receiver.write_config(&sender, &format!("tcp://{address}"), "dynamic")?;
        let dialled = format!("tcp://{}", site.dial(address));
        sender.write_config(&receiver, &format!("tcp://{}:0", site.receiver_ip()), &dialled)?;
        let mut receiver_runs = Running::start(receiver.run(), site.receiver())?;
        let mut sender_runs = Running::start(sender.run(), site.sender())?;
        for (home, peer) in [(&sender, &receiver), (&receiver, &sender)] {
            eventually("both are connected and at rest", || {
                sender_runs.lives()?;
                receiver_runs.lives()?;
                Ok(home.is_ready(&peer.id))
            })?;
        }
        // Its watcher begins some time later, which nothing tells: the first file shows it.
        fs::write(site.outbox().join("first"), "x")?;
        Arrivals::watch(&site.inbox())?
            .wait_for("first", Instant::now() + PATIENCE.min(Duration::from_secs(60)))?;
        Ok(Box::new(Pair([sender_runs, receiver_runs])))
    }
}

struct Pair([Running; 2]);

impl Session for Pair {
    fn push(&mut self, _: &str) -> Option<io::Result<()>> {
        None
    }

    fn syncs(&self) -> bool {
        true
    }

    fn cpu(&self) -> io::Result<[f64; 2]> {
        Ok([self.0[0].cpu()?, self.0[1].cpu()?])
    }

    fn end(self: Box<Self>) -> io::Result<[Usage; 2]> {
        Ok([self.0[0].used()?, self.0[1].used()?])
    }
}

struct Home {
    home: PathBuf,
    folder: PathBuf,
    kind: &'static str,
    id: String,
}

impl Home {
    fn new(root: &Path, folder: PathBuf, kind: &'static str) -> io::Result<Self> {
        let home = root.join("home");
        let at = format!("--home={}", home.display());
        output(Command::new("syncthing").args([
            "generate",
            "--no-default-folder",
            "--skip-port-probing",
            &at,
        ]))?;
        let id = output(Command::new("syncthing").args(["serve", "--device-id", &at]))?;
        Ok(Self {
            home,
            folder,
            kind,
            id,
        })
    }

    fn write_config(&self, peer: &Self, listen: &str, address: &str) -> io::Result<()> {
        let (folder, kind, own, other) = (self.folder.display(), self.kind, &self.id, &peer.id);
        let gui = self.socket();
        let gui = gui.display();
        let text = format!(
            r#"<configuration version="36">
<folder id="bench" label="bench" path="{folder}" type="{kind}" rescanIntervalS="3600" fsWatcherEnabled="true" fsWatcherDelayS="1">
  <filesystemType>basic</filesystemType><device id="{own}"/><device id="{other}"/>
  <minDiskFree unit="">0</minDiskFree><caseSensitiveFS>true</caseSensitiveFS>
</folder>
<device id="{own}" name="own"><address>dynamic</address></device>
<device id="{other}" name="other"><address>{address}</address></device>
<gui enabled="true" tls="false"><address>{gui}</address><apikey>bench</apikey></gui>
<options>
  <listenAddress>{listen}</listenAddress><globalAnnounceEnabled>false</globalAnnounceEnabled>
  <localAnnounceEnabled>false</localAnnounceEnabled><relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled>
  <reconnectionIntervalS>1</reconnectionIntervalS><startBrowser>false</startBrowser><urAccepted>-1</urAccepted>
  <autoUpgradeIntervalH>0</autoUpgradeIntervalH><crashReportingEnabled>false</crashReportingEnabled>
  <setLowPriority>false</setLowPriority>
</options>
</configuration>
"#
        );
        fs::write(self.home.join("config.xml"), text)
    }

    /// As one process: its supervisor does no work.
    fn run(&self) -> Command {
        let mut command = Command::new("syncthing");
        command
            .arg("serve")
            .arg(format!("--home={}", self.home.display()))
            .args(["--no-browser", "--no-upgrade", "--no-restart"])
            .env("STMONITORED", "yes")
            .env("HOME", &self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn is_ready(&self, peer: &str) -> Option<()> {
        let connections = self.ask("system/connections")?;
        let folder = self.ask("db/status?folder=bench")?;
        let ready = connections["connections"][peer]["connected"] == true && folder["state"] == "idle";
        ready.then_some(())
    }

    /// One answer of its REST interface; None when there is none (yet).
    fn ask(&self, what: &str) -> Option<Value> {
        let mut socket = UnixStream::connect(self.socket()).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = format!("GET /rest/{what} HTTP/1.0\r\nHost: localhost\r\nX-API-Key: bench\r\n\r\n");
        socket.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }

    fn socket(&self) -> PathBuf {
        self.home.join("gui")
    }
}
