//! The folder that an agent lives in while it is measured, and how it is asked.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::output;

/// A folder with an outbox, an inbox, a config and the agent's state.
pub struct Home {
    program: PathBuf,
    root: PathBuf,
}

impl Home {
    /// In `root`, for the agent that is `program`.
    pub fn make(program: &Path, root: &Path) -> io::Result<Self> {
        for folder in ["outbox", "inbox"] {
            fs::create_dir_all(root.join(folder))?;
        }
        Ok(Self {
            program: program.into(),
            root: root.into(),
        })
    }

    /// A file or folder in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The config of an agent called `name`: `top` belongs before its outbox and inbox, `outbox` to the outbox, and
    /// `peers` comes last.
    pub fn write_config(&self, name: &str, top: &str, outbox: &str, peers: &str) -> io::Result<()> {
        let (state, out, inbox) = (self.at("state"), self.at("outbox"), self.at("inbox"));
        let text = format!(
            "name = {name:?}\nstate_dir = {state:?}\n{top}[[outbox]]\npath = {out:?}\n{outbox}\
             [inbox]\npath = {inbox:?}\nmin_free = \"1 MiB\"\n{peers}"
        );
        fs::write(self.at("config.toml"), text)
    }

    /// The program with these arguments, under its config and in an environment of its own.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.at("config.toml"))
            .args(arguments);
        command.env_clear().env("HOME", &self.root);
        command
    }

    /// None until the agent answers.
    pub fn status(&self) -> Option<serde_json::Value> {
        let text = output(&mut self.command(&["status", "--json"])).ok()?;
        serde_json::from_str(&text).ok()
    }
}
