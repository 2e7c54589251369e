//! One run of a command line, with what it said.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    process::{Command, Stdio},
};

use super::{PATIENCE, within};

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// As it was called.
    pub command: String,
    /// Exit code; None when a signal ended it.
    pub code: Option<i32>,
    /// Raw, for tests that look at bytes.
    pub stdout: Vec<u8>,
    /// Raw.
    pub stderr: Vec<u8>,
}

impl Ran {
    /// Runs `command` to its end; one that hangs is killed and fails the test.
    #[track_caller]
    pub fn run(mut command: Command) -> Self {
        let line = format!("{command:?}");
        let (mut stdout, mut stderr) = (temporary(), temporary());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().expect("a second handle"))
            .stderr(stderr.try_clone().expect("a second handle"))
            .spawn()
            .unwrap_or_else(|e| panic!("{line}: {e}"));
        let started = std::time::Instant::now();
        let status = within(PATIENCE * 2, &format!("{line} ends"), || {
            if started.elapsed() > PATIENCE {
                let _ = child.kill();
            }
            child.try_wait().expect("our own child")
        });
        let ran = Self {
            command: line,
            code: status.code(),
            stdout: contents(&mut stdout),
            stderr: contents(&mut stderr),
        };
        assert!(started.elapsed() < PATIENCE, "did not end by itself: {ran}");
        ran
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} → {:?}", self.command, self.code)?;
        writeln!(f, "--- stdout\n{}", self.out())?;
        write!(f, "--- stderr\n{}", self.err())
    }
}

fn temporary() -> File {
    tempfile::tempfile().expect("a temporary file")
}

fn contents(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("a plain file");
    file.read_to_end(&mut bytes).expect("a plain file");
    bytes
}
