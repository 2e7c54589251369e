//! What a long run did and found; how its program tells it.

use std::{process::ExitCode, time::UNIX_EPOCH};

/// What was done and what came of it.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// A name and a figure each, in the order in which they are shown.
    pub rows: Vec<(&'static str, String)>,
    /// What is wrong, a line each.
    pub violations: Vec<String>,
}

impl Report {
    /// Prints it; success if nothing is wrong.
    pub fn show(&self) -> ExitCode {
        for (name, figure) in &self.rows {
            println!("{name:<16} {figure}");
        }
        for violation in &self.violations {
            println!("VIOLATION {violation}");
        }
        match self.violations.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}

/// The seed that was asked for, else one by the clock.
pub fn seed(asked: Option<u64>) -> u64 {
    let clock = || UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
    asked.unwrap_or_else(clock)
}
