//! An agent's wall clock, moved by hand while the machine's stays: a small library is loaded before the agent.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{field::preload, harness::Agent};

const SOURCE: &str = include_str!("clock.c");

/// Where an agent's clock stands.
pub(super) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Gives `agent`, which does not run yet, such a clock; the reason where there is no C compiler.
    pub(super) fn of(agent: &mut Agent) -> Result<Self, String> {
        let (source, library) = (agent.root.join("clock.c"), agent.root.join("clock.so"));
        let file = agent.root.join("clock");
        let clock = Self { file };
        fs::write(&source, SOURCE)
            .and_then(|()| clock.set(0))
            .map_err(|e| e.to_string())?;
        compile(&source, &library)?;
        preload(agent, &library);
        agent
            .env
            .push(("SOAK_CLOCK".into(), clock.file.display().to_string()));
        Ok(clock)
    }

    /// So many seconds ahead of the machine's, or behind it.
    pub(super) fn set(&self, ahead: i64) -> io::Result<()> {
        // In place: an agent that runs has the file mapped.
        let mut options = fs::File::options();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.file)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &ahead.to_ne_bytes(), 0)
    }
}

fn compile(source: &Path, library: &Path) -> Result<(), String> {
    let ran = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([library, source])
        .output()
        .map_err(|e| format!("cc: {e}"))?;
    match ran.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
    }
}
