//! Logs go to stderr: for people on a terminal, else a JSON object a line.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// Starts logging. `DROPWIRE_LOG`, then `RUST_LOG`, say what is logged, then `verbose`; by default `quiet`'s level.
pub fn init(verbose: u8, quiet: &str) {
    let level = match verbose {
        0 => format!("{quiet},{HUSHED}"),
        1 => format!("info,dropwire=debug,dropwire_protocol=debug,{HUSHED}"),
        _ => "trace".into(),
    };
    let chosen = ["DROPWIRE_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let filter = EnvFilter::builder().parse_lossy(chosen.as_deref().unwrap_or(&level));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let terminal = io::stderr().is_terminal();
    let started = if terminal {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        logs.with_ansi(colours).with_target(false).try_init()
    } else {
        logs.json().flatten_event(true).try_init()
    };
    // Only a second start in one process fails, and then logs go where the first one said.
    drop(started);
}

/// Libraries that speak of what is no news: a watch that went with its folder, a job list that was made.
const HUSHED: &str = "notify=error,rusqlite_migration=warn";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hushed_is_a_filter() {
        assert!(EnvFilter::try_new(HUSHED).is_ok());
    }
}
