//! `dropwire why`: what a file or job waits for, and what befell it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{Stop, absolute, jobs, render};
use crate::{
    config::paths::Paths,
    control::{
        Client,
        api::{WhyQuery, WhyReport},
        wire::LocalPath,
    },
    error::Fatal,
};

/// What `why` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// A file, or a job by its id or a unique beginning of it
    #[arg(value_name = "FILE|JOB")]
    what: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Says what it waits for, then its history.
pub fn run(args: Args, paths: &Paths) -> Result<(), Fatal> {
    super::run(ask(args, Client::new(&paths.control)))
}

async fn ask(args: Args, client: Client) -> Result<(), Stop> {
    let report = client.why(&query(&args.what)?).await?;
    let text = match args.json {
        true => render::json(&report)?,
        false => text(&report, SystemTime::now()),
    };
    Ok(render::print(&text)?)
}

/// A file that is there is meant before a job of the same letters.
fn query(what: &Path) -> Result<WhyQuery, Fatal> {
    match what.to_str().filter(|text| is_job(text)) {
        Some(job) if what.symlink_metadata().is_err() => Ok(WhyQuery::Job(job.to_ascii_lowercase())),
        _ => Ok(WhyQuery::File(LocalPath(absolute(what)?))),
    }
}

fn is_job(text: &str) -> bool {
    (4..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn text(report: &WhyReport, now: SystemTime) -> String {
    let mut text = format!("{}\n", render::text(&report.sentence));
    if !report.jobs.is_empty() {
        let rows = report.jobs.iter().map(|job| jobs::row(job, now)).collect();
        let _ = write!(text, "\n{}", jobs::columns().rows(rows));
    }
    if !report.history.is_empty() {
        text.push('\n');
    }
    let several = report.jobs.len() > 1;
    for event in &report.history {
        let job = if several {
            format!("{}  ", jobs::short(&event.job))
        } else {
            String::new()
        };
        let at = humantime::format_rfc3339_seconds(event.at.system());
        let _ = writeln!(text, "{at}  {job}{}", render::text(&event.text));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        api::{Event, JobState},
        fake,
        wire::Time,
    };

    #[test]
    fn hex_is_a_job_unless_a_file_has_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("abcd");
        std::fs::write(&there, "").unwrap();
        assert_eq!(query(&there).unwrap(), WhyQuery::File(LocalPath(there)));
        let job = |text: &str| WhyQuery::Job(text.into());
        assert_eq!(query(Path::new("0123ABCDef")).unwrap(), job("0123abcdef"));
        assert_eq!(query(Path::new(&"0f".repeat(16))).unwrap(), job(&"0f".repeat(16)));
        for file in ["abc", "abcg", "./abcd", &"0".repeat(33)] {
            assert!(
                matches!(query(Path::new(file)), Ok(WhyQuery::File(LocalPath(path))) if path.is_absolute()),
                "{file}"
            );
        }
    }

    #[test]
    fn the_sentence_comes_first_then_jobs_and_history() {
        let job = fake::job(1, JobState::Queued);
        let event = Event {
            at: Time::from_ms(1500),
            job: job.job.clone(),
            text: "queued\x1b".into(),
        };
        let mut report = WhyReport {
            sentence: "Waits for a link.".into(),
            jobs: vec![job],
            history: vec![event],
        };
        let shown = anstream::adapter::strip_str(&text(&report, SystemTime::UNIX_EPOCH)).to_string();
        assert!(shown.starts_with("Waits for a link.\n\nJOB "), "{shown}");
        assert!(
            shown.ends_with("\n\n1970-01-01T00:00:01Z  queued\\u{1b}\n"),
            "{shown}"
        );
        report.jobs.push(fake::job(2, JobState::Queued));
        assert!(text(&report, SystemTime::UNIX_EPOCH).ends_with("Z  000000000000  queued\\u{1b}\n"));
        let report = WhyReport {
            sentence: "Ignored.".into(),
            jobs: vec![],
            history: vec![],
        };
        assert_eq!(text(&report, SystemTime::UNIX_EPOCH), "Ignored.\n");
    }
}
