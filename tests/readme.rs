//! The README is run: every block marked `sh`, from top to bottom.
//!
//! A word after `sh` names the machine (`sh laptop`, `sh office`); each machine is a home folder of its own. Three lines
//! are left out, the ones in [`NOT_RUN`]: they build dropwire itself, which is what is under test here. `dropwire run` as
//! a block's only line runs in the background, and `$EDITOR` does what the text around it asks the reader to do: it
//! puts the `[[peer]]` block that the other machine printed at the end of the file. The port is a free one.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::harness::{Ran, until};
use crate::program;

const NOT_RUN: [&str; 3] = [
    "cargo run --release -- demo",
    "cargo test --workspace",
    "cargo install --path agent",
];

#[test]
fn the_readme_does_what_it_says() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).expect("README.md");
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port")
        .port();
    let mut machines = Machines {
        port,
        homes: BTreeMap::new(),
        running: Vec::new(),
    };
    let blocks = blocks(&readme);
    assert!(blocks.len() > 3, "the README has {} blocks", blocks.len());
    for (machine, block) in blocks {
        machines.run(&machine, &block);
    }
}

/// Machine and script of each `sh` block.
fn blocks(readme: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in readme.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some((_, script)), None) => *script += &format!("{line}\n"),
            (None, Some(info)) if info == "sh" || info.starts_with("sh ") => {
                let machine = info[2..].trim();
                open = Some((
                    if machine.is_empty() { "laptop" } else { machine }.into(),
                    String::new(),
                ));
            }
            (None, Some(info)) if !info.is_empty() => open = Some(("".into(), String::new())),
            (None, _) => {}
        }
    }
    found.retain(|(machine, _)| !machine.is_empty());
    found
}

struct Machines {
    port: u16,
    homes: BTreeMap<String, tempfile::TempDir>,
    running: Vec<Child>,
}

impl Machines {
    fn run(&mut self, machine: &str, block: &str) {
        let home = self.home(machine);
        let script: Vec<String> = block
            .lines()
            .filter(|l| !NOT_RUN.contains(&l.trim()))
            .map(|l| self.local(l))
            .collect();
        let script = script.join("\n");
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &script])
            .current_dir(&home)
            .env_clear()
            .env("HOME", &home);
        let programs = program();
        let programs = programs
            .parent()
            .expect("the build folder")
            .to_str()
            .expect("plain")
            .to_owned();
        command
            .env("PATH", format!("{programs}:/usr/local/bin:/usr/bin:/bin"))
            .env("NO_COLOR", "1");
        command.env("EDITOR", home.join("editor"));
        if script.trim() == "dropwire run" {
            let log = fs::File::create(home.join("log")).expect("the log");
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a handle"))
                .stderr(log);
            self.running.push(command.spawn().expect("it runs"));
            let mut status = || Ran::run(dropwire(&home, &["status"])).code == Some(0);
            until(&format!("the agent of {machine} answers"), &mut status);
            return;
        }
        let ran = Ran::run(command);
        assert_eq!(
            ran.code,
            Some(0),
            "on {machine}:\n{script}\n{ran}\n{}",
            self.logs()
        );
        // `check` prints peer blocks as well: those of the config it read.
        if let Some(peer) = peer_block(&ran.out()).filter(|_| script.contains("dropwire init")) {
            self.leave_for_the_others(machine, &self.local(&peer));
        }
    }

    /// The other machines' editors will put `peer` at the end of what they open.
    fn leave_for_the_others(&mut self, from: &str, peer: &str) {
        for machine in ["laptop", "office"].into_iter().filter(|m| *m != from) {
            let home = self.home(machine);
            fs::write(home.join("peer.toml"), format!("\n{peer}")).expect("the block");
        }
    }

    fn home(&mut self, machine: &str) -> PathBuf {
        let home = self.homes.entry(machine.to_owned()).or_insert_with(|| {
            let home = tempfile::Builder::new().prefix("dw-").tempdir().expect("a home");
            let editor = home.path().join("editor");
            fs::write(&editor, "#!/bin/sh\ncat \"$HOME/peer.toml\" >> \"$1\"\n").expect("an editor");
            fs::set_permissions(editor, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
            home
        });
        home.path().canonicalize().expect("a home")
    }

    /// Both machines are this one.
    fn local(&self, line: &str) -> String {
        let here = format!("127.0.0.1:{}", self.port);
        let line = line
            .replace("0.0.0.0:7420", &here)
            .replace("office.example.org:7420", &here);
        match line.trim_start().strip_prefix("address = ") {
            Some(_) => format!("address = \"{here}\""),
            None => line,
        }
    }

    fn logs(&self) -> String {
        let log = |home: &tempfile::TempDir| fs::read_to_string(home.path().join("log")).unwrap_or_default();
        self.homes
            .iter()
            .map(|(name, home)| format!("-- log of {name}\n{}\n", log(home)))
            .collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn dropwire(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).env_clear().env("HOME", home);
    command
}

/// From `[[peer]]` to the next empty line.
fn peer_block(printed: &str) -> Option<String> {
    let lines = printed.lines().map(str::trim).skip_while(|l| *l != "[[peer]]");
    let block: Vec<&str> = lines.take_while(|l| !l.is_empty()).collect();
    (!block.is_empty()).then(|| block.join("\n") + "\n")
}
