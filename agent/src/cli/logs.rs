//! Logs go to stderr: for people on a terminal, else a JSON object a line. A command that runs an agent never waits for
//! stderr: see [`lossy`].

mod lossy;

use std::{
    io::{self, IsTerminal as _, Write},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use lossy::Lossy;
use tracing_subscriber::EnvFilter;

/// How long the end of the process waits for lines that are still to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The way to stderr since [`init`].
static LOG: OnceLock<Lossy> = OnceLock::new();

/// Starts logging. `DROPWIRE_LOG`, then `RUST_LOG`, say what is logged, then `verbose`; by default `quiet`'s level.
pub(super) fn init(verbose: u8, quiet: &str) {
    let level = match verbose {
        0 => format!("{quiet},{HUSHED}"),
        1 => format!("info,dropwire=debug,dropwire_protocol=debug,{HUSHED}"),
        _ => "trace".into(),
    };
    let chosen = ["DROPWIRE_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let filter = EnvFilter::builder().parse_lossy(chosen.as_deref().unwrap_or(&level));
    let terminal = io::stderr().is_terminal();
    let lost = if terminal { lost_for_people } else { lost_as_json };
    let log = LOG.get_or_init(|| Lossy::start(io::stderr(), lost)).clone();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false) // they would go to stderr past the queue
        .with_writer(move || log.clone());
    let started = if terminal {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        logs.with_ansi(colours).with_target(false).try_init()
    } else {
        logs.json().flatten_event(true).try_init()
    };
    // Only a second start in one process fails, and then logs go where the first one said.
    drop(started);
}

/// Writes the last text of the process to stderr, behind the lines that wait; not for long where logs are written by an
/// agent.
pub(super) fn last_words(text: &str) {
    match LOG.get() {
        Some(log) => {
            log.line(text.as_bytes());
            flush();
        }
        // Nobody can be told when stderr is gone; the exit code still says it.
        None => drop(io::stderr().lock().write_all(text.as_bytes())),
    }
}

/// Waits, not for long, until the lines that were logged are written.
pub(super) fn flush() {
    if let Some(log) = LOG.get() {
        log.flush(LAST_WORDS);
    }
}

/// The line that stands for lost ones, on a terminal.
fn lost_for_people(lines: u64) -> String {
    format!("{}  WARN {}\n", now(), lost(lines))
}

/// The line that stands for lost ones, in a log for programs.
fn lost_as_json(lines: u64) -> String {
    let line = serde_json::json!({
        "timestamp": now(),
        "level": "WARN",
        "message": lost(lines),
        "lost": lines,
        "target": module_path!(),
    });
    format!("{line}\n")
}

fn lost(lines: u64) -> String {
    format!("{lines} lines of this log were lost, because they could not be written to stderr in time")
}

fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
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

    #[test]
    fn lost_lines_are_told_in_the_form_of_the_log() {
        let json = lost_as_json(7);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["level"], &json["lost"]), (&"WARN".into(), &7.into()));
        assert!(lost_for_people(7).ends_with('\n'));
    }
}
