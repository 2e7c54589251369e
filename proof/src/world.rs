//! Folders, configs and processes of one run: a sender that dials, a receiver that listens.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    harness::{
        Proxy,
        files::{self, OWN},
    },
    program,
    tracer::{Order, Report, Strike},
};

/// Names a safeguard that a debug build leaves out, to see that the proof finds it.
const MUTANT: &str = "DROPWIRE_MUTANT";

/// Pause between two checks of a condition.
pub const LOOK: Duration = Duration::from_millis(10);

/// One of the two agents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// Files are dropped there.
    Sender,
    /// They arrive there.
    Receiver,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Sender, Self::Receiver];

    /// Its name, as its peer's config has it too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }
}

/// Which sides a proof strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Sides {
    /// The sender alone.
    Sender,
    /// The receiver alone.
    Receiver,
    /// One after the other.
    Both,
}

impl Sides {
    /// The sides.
    pub fn all(self) -> &'static [Side] {
        match self {
            Self::Sender => &[Side::Sender],
            Self::Receiver => &[Side::Receiver],
            Self::Both => &Side::BOTH,
        }
    }
}

/// Both agents' keys and ids, made once and copied into each world.
pub struct Keys {
    ids: [String; 2],
    keys: [Vec<u8>; 2],
}

impl Keys {
    /// Lets the program make them.
    pub fn make() -> io::Result<Self> {
        let mut ids = [String::new(), String::new()];
        let mut keys = [Vec::new(), Vec::new()];
        for side in Side::BOTH {
            let folder = tempfile::tempdir()?;
            let config = folder.path().join("config.toml");
            let path = |name: &str| folder.path().join(name).display().to_string();
            fs::write(
                &config,
                format!(
                    "name = \"x\"\nstate_dir = {:?}\n[inbox]\npath = {:?}\n",
                    path("state"),
                    path("inbox")
                ),
            )?;
            for command in ["init", "id"] {
                let ran = Command::new(program())
                    .arg("--config")
                    .arg(&config)
                    .arg(command)
                    .output()?;
                if !ran.status.success() {
                    return Err(io::Error::other(
                        String::from_utf8_lossy(&ran.stderr).into_owned(),
                    ));
                }
                ids[side as usize] = String::from_utf8_lossy(&ran.stdout).trim().to_owned();
            }
            keys[side as usize] = fs::read(folder.path().join("state/identity.key"))?;
        }
        Ok(Self { ids, keys })
    }
}

/// Where an agent's things lie.
#[derive(Clone, Debug)]
pub struct Home {
    /// State, job list.
    pub state: PathBuf,
    /// Outbox.
    pub outbox: PathBuf,
    /// Inbox.
    pub inbox: PathBuf,
    /// For files that are renamed into the outbox.
    pub aside: PathBuf,
}

impl Home {
    /// Everything below `boxes`, the job list below `state`.
    pub fn new(boxes: &Path, state: &Path) -> Self {
        Self {
            state: state.join("state"),
            outbox: boxes.join("outbox"),
            inbox: boxes.join("inbox"),
            aside: boxes.join("aside"),
        }
    }

    /// `.dropwire/leaving`, where disposed files pass through.
    pub fn leaving(&self) -> PathBuf {
        self.outbox.join(OWN).join("leaving")
    }

    /// The archive.
    pub fn sent(&self) -> PathBuf {
        self.outbox.join(OWN).join("sent")
    }

    /// Files under way.
    pub fn partials(&self) -> PathBuf {
        self.inbox.join(OWN).join("partial")
    }

    fn make(&self, key: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
        for folder in [&self.state, &self.outbox, &self.inbox, &self.aside] {
            fs::create_dir_all(folder)?;
        }
        fs::set_permissions(&self.state, fs::Permissions::from_mode(0o700))?;
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(self.state.join("identity.key"))?;
        io::Write::write_all(&mut file, key)?;
        file.sync_all()
    }
}

/// A run's two agents.
pub struct World {
    /// Configs, logs and reports; also the homes, where they are not on disks of their own.
    pub root: PathBuf,
    /// By side.
    pub homes: [Home; 2],
    /// Between the two, where a scenario troubles the wire.
    pub wire: Option<Arc<Proxy>>,
    running: [Option<Running>; 2],
}

struct Running {
    child: Child,
    traced: bool,
}

impl World {
    /// Makes folders, keys and configs. `address`: the receiver's, for itself alone.
    pub fn make(
        keys: &Keys,
        root: &Path,
        homes: [Home; 2],
        address: &str,
        wire: Option<Arc<Proxy>>,
    ) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let world = Self {
            root: root.into(),
            homes,
            wire,
            running: [None, None],
        };
        if let Some(wire) = &world.wire {
            wire.forward_to(address.parse().ok());
        }
        for side in Side::BOTH {
            let home = world.home(side);
            home.make(&keys.keys[side as usize])?;
            let dialled = world
                .wire
                .as_ref()
                .map_or(address.to_owned(), |w| w.address().to_string());
            let (listen, dial) = match side {
                Side::Sender => (String::new(), format!("address = {dialled:?}\n")),
                Side::Receiver => (format!("listen = {address:?}\n"), String::new()),
            };
            let other = side.other();
            let text = format!(
                "name = {:?}\n{listen}state_dir = {:?}\ncontrol = {:?}\n\
                 [[outbox]]\npath = {:?}\nquiet = \"50ms\"\nlinger = \"0s\"\n\
                 [inbox]\npath = {:?}\nmin_free = \"1 MiB\"\n\
                 [[peer]]\nname = {:?}\nid = {:?}\n{dial}\
                 [retry]\nfirst = \"20ms\"\nmax = \"200ms\"\n",
                side.name(),
                home.state,
                world.root.join(format!("{}.sock", side.name())),
                home.outbox,
                home.inbox,
                other.name(),
                keys.ids[other as usize],
            );
            fs::write(world.config(side), text)?;
        }
        Ok(world)
    }

    /// A side's folders.
    pub fn home(&self, side: Side) -> &Home {
        &self.homes[side as usize]
    }

    /// Starts an agent as a user's is.
    pub fn start(&mut self, side: Side) -> io::Result<()> {
        let command = self.agent(side);
        self.spawn(side, command, false)
    }

    /// Starts it under a tracer; see [`Order`].
    pub fn start_traced(&mut self, side: Side, armed: bool, strike: Option<Strike>) -> io::Result<()> {
        let home = self.home(side);
        let roots = [home.state.clone(), home.outbox.clone(), home.inbox.clone()];
        let order = Order {
            roots: &roots,
            report: &self.report_path(side),
            armed,
            strike,
        };
        let command = order.command(&self.agent(side))?;
        self.spawn(side, command, true)
    }

    /// From now on the tracer of this side counts.
    pub fn arm(&self, side: Side) {
        if let Some(Running { child, traced: true }) = &self.running[side as usize] {
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::USR1); // it may have ended
        }
    }

    /// What the tracer of this side wrote.
    pub fn report(&self, side: Side) -> Report {
        Report::read(&self.report_path(side))
    }

    /// How it ended, if it did by itself (or by its tracer).
    pub fn ended(&mut self, side: Side) -> Option<ExitStatus> {
        self.running[side as usize].as_mut()?.child.try_wait().ok()?
    }

    /// SIGKILL; a tracer takes its agent with it.
    pub fn kill(&mut self, side: Side) {
        if let Some(mut running) = self.running[side as usize].take() {
            // The agent first: its tracer ends once the last thread is gone, and so is the lock on the state folder.
            let agent = running.traced.then(|| child_of(running.child.id())).flatten();
            let killed = agent.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
            if killed.is_none_or(|done| done.is_err()) {
                let _ = running.child.kill();
            }
            let _ = running.child.wait();
        }
    }

    /// [`World::kill`], then [`World::start`].
    pub fn restart(&mut self, side: Side) -> io::Result<()> {
        self.kill(side);
        self.start(side)
    }

    /// A whole file appears in the outbox at once, durable before its name is.
    pub fn drop_file(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let home = self.home(Side::Sender);
        let aside = home.aside.join("file");
        // After a power cut that may be a second name of a file dropped before, which is not to be written to.
        let _ = fs::remove_file(&aside);
        let mut file = File::create_new(&aside)?;
        io::Write::write_all(&mut file, bytes)?;
        let path = home.outbox.join(name);
        let folder = path.parent().unwrap_or(&home.outbox);
        fs::create_dir_all(folder)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&aside, &path)?;
        if durable {
            File::open(folder)?.sync_all()?;
            File::open(&home.outbox)?.sync_all()?;
        }
        Ok(())
    }

    /// Drops a whole folder.
    pub fn drop_folder(&self, folder: &crate::scenario::Drop, durable: bool) -> io::Result<()> {
        let home = self.home(Side::Sender);
        let aside = home.aside.join(&folder.name);
        fs::create_dir_all(&aside)?;
        let mut folders = vec![aside.clone(), home.aside.clone()];
        for (path, bytes) in &folder.inside {
            let path = aside.join(path);
            match bytes {
                None => {
                    fs::create_dir(&path)?;
                    folders.push(path);
                }
                Some(bytes) => {
                    let mut file = File::create(&path)?;
                    io::Write::write_all(&mut file, bytes)?;
                    if durable {
                        file.sync_all()?;
                    }
                }
            }
        }
        for folder in folders.iter().filter(|_| durable) {
            File::open(folder)?.sync_all()?;
        }
        fs::rename(&aside, home.outbox.join(&folder.name))?;
        if durable {
            File::open(&home.outbox)?.sync_all()?;
        }
        Ok(())
    }

    /// From its next start on the sender delivers folders whole.
    pub fn deliver_whole(&self) -> io::Result<()> {
        let config = self.config(Side::Sender);
        let text = fs::read_to_string(&config)?;
        fs::write(
            &config,
            text.replacen("quiet = ", "folder = \"whole\"\nquiet = ", 1),
        )
    }

    /// The sender's job list; None while it does not answer.
    pub fn jobs(&self) -> Option<Vec<Value>> {
        let ran = self.ask(Side::Sender, &["jobs", "--json"])?;
        ran.lines().map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Is the sender connected?
    pub fn linked(&self) -> bool {
        let status = self.ask(Side::Sender, &["status", "--json"]);
        let status: Option<Value> = status.and_then(|text| serde_json::from_str(&text).ok());
        status.is_some_and(|s| s["peers"][0]["connected"] == true)
    }

    /// Names in the inbox, dropwire's own folder aside.
    pub fn received(&self) -> Vec<PathBuf> {
        files::list(&self.home(Side::Receiver).inbox)
    }

    /// What a side printed, its last lines.
    pub fn log_tail(&self, side: Side, lines: usize) -> String {
        let text = fs::read(self.log_path(side)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn ask(&self, side: Side, args: &[&str]) -> Option<String> {
        let ran = self.command(side, args).stderr(Stdio::null()).output().ok()?;
        ran.status
            .success()
            .then(|| String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    fn agent(&self, side: Side) -> Command {
        self.command(side, &["run"])
    }

    fn command(&self, side: Side, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--config").arg(self.config(side)).args(args);
        command.env_clear().env("HOME", &self.root).env("NO_COLOR", "1");
        command.env("RUST_LOG", "info,dropwire=debug");
        command.envs(std::env::var_os(MUTANT).map(|name| (MUTANT, name)));
        command
    }

    fn spawn(&mut self, side: Side, mut command: Command, traced: bool) -> io::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path(side))?;
        command
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: between fork and exec, one system call.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()), // no agent outlives the proof, however that ends
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = command.spawn()?;
        self.running[side as usize] = Some(Running { child, traced });
        Ok(())
    }

    fn config(&self, side: Side) -> PathBuf {
        self.root.join(format!("{}.toml", side.name()))
    }

    fn log_path(&self, side: Side) -> PathBuf {
        self.root.join(format!("{}.log", side.name()))
    }

    fn report_path(&self, side: Side) -> PathBuf {
        self.root.join(format!("{}.calls", side.name()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        Side::BOTH.into_iter().for_each(|side| self.kill(side));
    }
}

/// Waits until `look` finds something, or `patience` is over.
pub fn wait<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        match look() {
            None if start.elapsed() < patience => thread::sleep(LOOK),
            found => return found,
        }
    }
}

fn child_of(pid: u32) -> Option<rustix::process::Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    rustix::process::Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}
