//! One agent: its folders, its config and the process that runs on them.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Proxy, Ran, eventually, files, report, settings::Settings, until};
use crate::program;

/// An agent in a temporary folder. Killed when dropped; tells where it stood when its test is failing.
pub struct Agent {
    /// Its name in its own config and in its peers'.
    pub name: String,
    /// What `dropwire id` prints.
    pub id: String,
    /// Written to the config file at each start.
    pub settings: Settings,
    /// Added to the environment of `run`.
    pub env: Vec<(String, String)>,
    /// Most descriptors it may have open; None: as many as the test.
    pub descriptors: Option<u32>,
    /// Where its next start writes its log instead of the file [`Agent::log`].
    pub stderr: Option<OwnedFd>,
    /// False: what it logs goes into a pipe that nobody reads.
    pub log_is_read: bool,
    /// The temporary folder, which is also HOME.
    pub root: PathBuf,
    /// The state folder.
    pub state: PathBuf,
    /// What is put here is sent.
    pub outbox: PathBuf,
    /// What comes arrives here.
    pub inbox: PathBuf,
    /// The config file.
    pub config: PathBuf,
    /// Everything that `run` printed, over all starts.
    pub log: PathBuf,
    child: Option<Child>,
    /// The end of the log's pipe that would be read.
    unread: Option<std::io::PipeReader>,
    front: Option<Arc<Proxy>>,
    _folder: TempDir, // last: removed after the process is gone
}

impl Agent {
    /// Makes folders, config and identity; starts nothing.
    pub fn new(name: &str, settings: Settings) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("dw-")
            .tempdir()
            .expect("a temporary folder");
        let root = folder.path().canonicalize().expect("the temporary folder");
        let mut agent = Self {
            name: name.into(),
            id: String::new(),
            settings,
            env: Vec::new(),
            descriptors: None,
            stderr: None,
            log_is_read: true,
            state: root.join("state"),
            outbox: root.join("outbox"),
            inbox: root.join("inbox"),
            config: root.join("config.toml"),
            log: root.join("log"),
            root,
            child: None,
            unread: None,
            front: None,
            _folder: folder,
        };
        agent.write_config();
        agent.run(&["init"]).exits(0);
        agent.id = agent.run(&["id"]).exits(0).out().trim().to_owned();
        agent
    }

    /// Connections to `proxy` reach this agent, whatever port it has after a restart.
    pub fn behind(&mut self, proxy: Arc<Proxy>) {
        self.front = Some(proxy);
    }

    /// Writes the config file from [`Agent::settings`].
    pub fn write_config(&self) {
        let text = self
            .settings
            .render(&self.name, &self.state, &self.outbox, &self.inbox);
        fs::write(&self.config, text).expect("the config file");
    }

    /// Starts the process and returns once it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        let status = eventually("the agent answers `status`", || {
            let ended = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().expect("our own child"));
            assert!(
                ended.is_none(),
                "{} ended while starting: {ended:?}\n{}",
                self.name,
                self.log_text()
            );
            let ran = self.run(&["status", "--json"]);
            let status = (ran.code == Some(0)).then(|| parse(&ran.out()));
            status.filter(|status| status["starting"] != true)
        });
        if let Some(front) = &self.front {
            let port = status["listen"].as_str().expect("`listen` in status");
            front.forward_to(Some(port.parse().expect("an address with the port in use")));
        }
    }

    /// Starts the process, which may end at once.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        self.write_config();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the log");
        let mut command = self.command(&["run"]);
        if let Some(most) = self.descriptors {
            command = limited(&command, most);
        }
        command
            .env("RUST_BACKTRACE", "1")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(self.stderr.take().unwrap_or_else(|| log.into()));
        if !self.log_is_read {
            let (unread, log) = std::io::pipe().expect("a pipe");
            self.unread = Some(unread);
            command.stderr(log);
        }
        self.child = Some(command.spawn().expect("the agent starts"));
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(&mut self) {
        self.unreachable();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, which has to end it with exit code 0.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let code = self.exit_code();
        assert_eq!(code, Some(0), "{} after SIGTERM\n{}", self.name, self.log_text());
    }

    /// [`Agent::stop`], then [`Agent::start`].
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Sends the running process a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("a running agent");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).expect("our own child");
    }

    /// Waits for the process to end by itself; None when a signal ended it.
    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        assert!(self.child.is_some(), "a running agent");
        // It stays ours until it has ended: one that does not end is killed with its test.
        let status = eventually("the agent ends", || self.ended());
        self.child = None;
        self.unreachable();
        status.code()
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.is_none() || self.ended().is_some()
    }

    /// How the process ended; None while it runs, and after [`Agent::kill`].
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut()?.try_wait().expect("our own child")
    }

    /// Process id of the running agent.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running agent").id()
    }

    /// A command line for this agent, nothing of the caller's environment in it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .arg("--config")
            .arg(&self.config)
            .args(args)
            .current_dir(&self.root)
            .env_clear();
        command
            .env("HOME", &self.root)
            .env("NO_COLOR", "1")
            .env("RUST_LOG", "info,dropwire=debug");
        for kept in ["PATH", "TMPDIR", "DROPWIRE_MUTANT"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::run(self.command(args))
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        parse(&self.run(&["status", "--json"]).exits(0).out())
    }

    /// One peer's part of the status.
    #[track_caller]
    pub fn peer(&self, name: &str) -> Value {
        let status = self.status();
        let peers = status["peers"].as_array().expect("peers");
        peers
            .iter()
            .find(|p| p["name"] == name)
            .expect("a known peer")
            .clone()
    }

    /// `jobs --json`, a value a line.
    #[track_caller]
    pub fn jobs(&self) -> Vec<Value> {
        self.run(&["jobs", "--json"])
            .exits(0)
            .out()
            .lines()
            .map(parse)
            .collect()
    }

    /// The jobs of one file, by its name below the outbox.
    #[track_caller]
    pub fn jobs_of(&self, name: &str) -> Vec<Value> {
        self.jobs().into_iter().filter(|j| j["name"] == name).collect()
    }

    /// Returns once this agent has `count` delivered jobs and none in another state.
    #[track_caller]
    pub fn delivers(&self, count: usize) {
        eventually(&format!("{count} jobs delivered by {}", self.name), || {
            let jobs = self.jobs();
            (jobs.len() == count && jobs.iter().all(|j| j["state"] == "delivered")).then_some(())
        });
    }

    /// Returns once every file has left the outbox, which is a moment after the receipts.
    #[track_caller]
    pub fn empties_outbox(&self) {
        until(&format!("the outbox of {} is empty", self.name), || {
            files::list(&self.outbox).is_empty()
        });
    }

    /// A whole file appears in the outbox at once: written elsewhere on the same disk, then renamed.
    pub fn drop_file(&self, name: impl AsRef<Path>, bytes: &[u8]) -> PathBuf {
        let aside = tempfile::Builder::new()
            .prefix("aside-")
            .tempfile_in(self.boxes())
            .expect("a file aside");
        fs::write(aside.path(), bytes).expect("the file aside");
        let path = self.outbox.join(name);
        fs::create_dir_all(path.parent().expect("below the outbox")).expect("its folder");
        aside.persist(&path).expect("into the outbox");
        path
    }

    /// The folder that outbox and inbox lie in.
    pub fn boxes(&self) -> &Path {
        self.outbox.parent().unwrap_or(&self.root)
    }

    /// Returns once `name` is in the inbox; its content has to be `bytes` once it is seen.
    #[track_caller]
    pub fn receives(&self, name: impl AsRef<Path>, bytes: &[u8]) {
        let path = self.inbox.join(&name);
        let found = eventually(
            &format!("{} in the inbox of {}", path.display(), self.name),
            || fs::read(&path).ok(),
        );
        assert!(
            found == bytes,
            "{} arrived with other bytes: {} of {}",
            path.display(),
            found.len(),
            bytes.len()
        );
    }

    /// What lies in the inbox, dropwire's own folder aside.
    pub fn received(&self) -> Vec<PathBuf> {
        files::list(&self.inbox)
    }

    /// The partial files of transfers that are under way.
    pub fn partials(&self) -> Vec<PathBuf> {
        files::files_in(&self.inbox.join(files::OWN).join("partial"))
    }

    /// All it printed so far.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Highest resident memory of the running process in KiB; None where the system does not say.
    pub fn peak_memory_kib(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    }

    fn unreachable(&self) {
        if let Some(front) = &self.front {
            front.forward_to(None);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A second panic would end the test run: a report that fails is left out.
            let tell = std::panic::AssertUnwindSafe(|| report::print(self));
            let _ = std::panic::catch_unwind(tell);
        }
        self.kill();
    }
}

/// The command with a limit of descriptors.
fn limited(command: &Command, descriptors: u32) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -n \"$0\" && exec \"$@\""])
        .arg(descriptors.to_string())
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
}

#[track_caller]
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON: {e}\n{text}"))
}
