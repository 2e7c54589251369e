//! `dropwire send`: queues files from anywhere, and waits for their receipts if asked to.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Stop, absolute, jobs, render, wait::wait};
use crate::{
    cli::output::remark,
    config::paths::Paths,
    control::{
        Client,
        api::{JobReport, SendRequest},
        wire::LocalPath,
    },
    error::{Fatal, shown},
};

/// What `send` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Files or folders; they are copied, and may go as soon as the command answers
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Who gets them; may be given again
    #[arg(long, value_name = "PEER", required = true)]
    to: Vec<String>,
    /// Show progress, and end when all receipts are in
    #[arg(long)]
    wait: bool,
    /// With --wait: how long at most, like 30s or 5m
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// The jobs as one JSON object; with --wait then each job's own when it has ended
    #[arg(long)]
    json: bool,
}

/// Queues the files; prints a job's id for each file and peer.
pub fn run(args: Args, paths: &Paths) -> Result<(), Fatal> {
    super::run(send(args, Client::new(&paths.control)))
}

async fn send(args: Args, client: Client) -> Result<(), Stop> {
    let paths = args
        .files
        .iter()
        .map(|file| there(file))
        .collect::<Result<_, _>>()?;
    let reply = client
        .send(&SendRequest {
            paths,
            peers: args.to,
        })
        .await?;
    let queued = match args.json {
        true => render::json(&reply)?,
        false => reply
            .jobs
            .iter()
            .map(|job| format!("{}\n", render::text(job)))
            .collect(),
    };
    render::print(&queued)?;
    if reply.jobs.is_empty() {
        remark("nothing to send: there is no file in it");
    }
    if !args.wait {
        return Ok(());
    }
    let ended = |job: &JobReport| {
        render::print(&match args.json {
            true => render::json(job)?,
            false => line(job),
        })
    };
    wait(&client, reply.jobs, args.timeout, ended).await
}

fn there(file: &Path) -> Result<LocalPath, Fatal> {
    file.symlink_metadata()
        .map_err(|error| Fatal::io(format_args!("cannot send {}", shown(file)), &error))?;
    absolute(file).map(LocalPath)
}

fn line(job: &JobReport) -> String {
    let state = render::paint(render::style(job.state), job.state.name());
    let note = render::note(job, std::time::SystemTime::now());
    let line = format!(
        "{}  {state}  {}  {}  {note}",
        jobs::short(&job.job),
        render::text(&job.peer),
        render::name(job.raw_name())
    );
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::api::JobState, control::fake, error::Exit};
    use clap::Parser;

    #[derive(clap::Parser, Debug)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn files_and_peers_are_asked_for_and_a_timeout_only_with_wait() {
        let good = [
            "send",
            "a",
            "b",
            "--to",
            "p",
            "--to",
            "q",
            "--wait",
            "--timeout",
            "30s",
        ];
        let args = Line::try_parse_from(good).unwrap().args;
        assert_eq!(args.files, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(args.to, ["p", "q"]);
        assert_eq!(args.timeout, Some(Duration::from_secs(30)));
        for wrong in [
            &["send", "--to", "p"][..],
            &["send", "a"],
            &["send", "a", "--to", "p", "--timeout", "30s"],
        ] {
            assert!(Line::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_66_before_anyone_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            there(&folder.path().join("missing")).unwrap_err().exit,
            Exit::NoInput
        );
    }

    #[test]
    fn an_ended_job_is_one_line() {
        let mut job = fake::job(1, JobState::Failed);
        job.error = Some("gone\n".into());
        let shown = anstream::adapter::strip_str(&line(&job)).to_string();
        assert_eq!(shown, "000000000000  failed  office  1  gone\\u{a}\n");
    }
}
