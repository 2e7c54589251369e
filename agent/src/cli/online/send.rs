//! `dropwire send`: queues files from anywhere, and waits for their receipts if asked to.

mod files;

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{Stop, jobs, render, wait::wait};
use crate::{
    cli::output::remark,
    config::paths::Paths,
    control::{
        Client, QUICK,
        api::{JobReport, SendReply, SendRequest},
        client::Sending,
    },
    error::{Exit, Fatal},
};
use files::{Files, Opened};

/// Between two tries to pass files to an agent that has no descriptors left for them.
const PAUSE: Duration = Duration::from_millis(200);

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
    let mut files = Files::new(&args.files)?;
    let reply = pass(&client, &mut files, &args.to).await?;
    let queued = match args.json {
        true => render::json(&serde_json::json!({ "jobs": reply.jobs }))?,
        false => reply
            .jobs
            .iter()
            .map(|job| format!("{}\n", render::text(job)))
            .collect(),
    };
    render::print(&queued)?;
    if files.left_out() > 0 {
        remark(format_args!(
            "left out {} symbolic links, devices and the like in folders",
            files.left_out()
        ));
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

/// Passes all files, group by group; nothing is queued before the last one was copied.
async fn pass(client: &Client, files: &mut Files, peers: &[String]) -> Result<SendReply, Fatal> {
    let mut sending = client.sending().await?;
    let mut request = SendRequest {
        peers: peers.to_vec(),
        files: Vec::new(),
        last: false,
    };
    // Asked without files first: a peer that is not known is told before anything is copied.
    sending.pass(&request, Vec::new()).await?;
    loop {
        let group = files.group()?;
        if group.is_empty() {
            break;
        }
        pass_group(&mut sending, peers, group).await?;
    }
    request.last = true;
    sending.pass(&request, Vec::new()).await
}

async fn pass_group(sending: &mut Sending, peers: &[String], mut group: Vec<Opened>) -> Result<(), Fatal> {
    let mut waited = Duration::ZERO;
    while !group.is_empty() {
        let request = SendRequest {
            peers: peers.to_vec(),
            files: group.iter().map(|opened| opened.named.clone()).collect(),
            last: false,
        };
        let opened = group.iter().map(|opened| Arc::clone(&opened.file)).collect();
        let taken = sending.pass(&request, opened).await?.taken.min(group.len());
        for opened in group.drain(..taken) {
            opened.check()?;
        }
        if taken > 0 {
            waited = Duration::ZERO;
        } else if waited < QUICK {
            tokio::time::sleep(PAUSE).await;
            waited += PAUSE;
        } else {
            let message = "the agent has too many files open to take another";
            return Err(Fatal::new(Exit::NotYet, message).hint("try again in a moment"));
        }
    }
    Ok(())
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
    use crate::{control::api::JobState, control::fake};
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
        let missing = Files::new(&[folder.path().join("missing")]).unwrap_err();
        assert_eq!(missing.exit, Exit::NoInput);
    }

    #[test]
    fn an_ended_job_is_one_line() {
        let mut job = fake::job(1, JobState::Failed);
        job.error = Some("gone\n".into());
        let shown = anstream::adapter::strip_str(&line(&job)).to_string();
        assert_eq!(shown, "000000000000  failed  office  1  gone\\u{a}\n");
    }
}
