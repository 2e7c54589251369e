//! `dropwire jobs`: the job list, shown as it comes, so that its length does not matter.

use std::time::SystemTime;

use super::{
    Stop,
    render::{self, Columns},
};
use crate::{
    config::paths::Paths,
    control::{
        Client, PAGE,
        api::{JobFilter, JobKind, JobReport, JobState},
        client::JobLines,
    },
    error::Fatal,
};

/// What `jobs` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Only jobs in this state
    #[arg(long, value_name = "STATE")]
    state: Option<JobState>,
    /// Only jobs for this peer
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Lists open jobs and those that ended within 30 days.
pub fn run(args: Args, paths: &Paths) -> Result<(), Fatal> {
    super::run(list(args, Client::new(&paths.control)))
}

async fn list(args: Args, client: Client) -> Result<(), Stop> {
    let mut lines = client
        .jobs(&JobFilter {
            state: args.state,
            peer: args.peer,
        })
        .await?;
    let mut columns = columns();
    loop {
        let (jobs, end) = next_page(&mut lines).await;
        let text = match args.json {
            true => jobs.iter().map(render::json).collect::<Result<String, _>>()?,
            false if jobs.is_empty() => String::new(),
            false => columns.rows(jobs.iter().map(|job| row(job, SystemTime::now())).collect()),
        };
        render::print(&text)?;
        if let Some(end) = end {
            return Ok(end?);
        }
    }
}

/// The table that [`row`]s are for.
pub(super) fn columns() -> Columns {
    Columns::new(&["JOB", "STATE", "SIZE", "PEER", "NAME", ""], &[2])
}

/// A job for people.
pub(super) fn row(job: &JobReport, now: SystemTime) -> (anstyle::Style, Vec<String>) {
    let cells = vec![
        short(&job.job),
        job.state.name().to_owned(),
        render::size(job.size),
        render::text(&job.peer),
        match job.kind {
            JobKind::File => render::name(job.raw_name()),
            JobKind::Folder => render::name(job.raw_name()) + "/",
        },
        render::note(job, now),
    ];
    (render::style(job.state), cells)
}

/// Enough of a job's id to name it.
pub(super) fn short(id: &str) -> String {
    render::text(&id.chars().take(12).collect::<String>())
}

/// Jobs up to a page, and the list's end if it came.
async fn next_page(lines: &mut JobLines) -> (Vec<JobReport>, Option<Result<(), Fatal>>) {
    let mut jobs = Vec::new();
    while jobs.len() < PAGE {
        match lines.next().await {
            Ok(Some(job)) => jobs.push(job),
            Ok(None) => return (jobs, Some(Ok(()))),
            Err(error) => return (jobs, Some(Err(error))),
        }
    }
    (jobs, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake;

    #[test]
    fn a_job_a_line_with_its_name_escaped() {
        let mut waits = fake::job(1, JobState::Queued);
        waits.name = "a\nb\u{202e}.txt".into();
        waits.error = Some("refused".into());
        waits.next_attempt_at = Some(crate::control::wire::Time::from_ms(5000));
        let mut half = fake::job(2048, JobState::Sending);
        half.sent_bytes = 1024;
        half.kind = JobKind::Folder;
        let mut renamed = fake::job(3, JobState::Delivered);
        renamed.delivered_as = Some("3 (1)".into());
        let rows = [waits, half, renamed].map(|job| row(&job, SystemTime::UNIX_EPOCH));
        let text = anstream::adapter::strip_str(&columns().rows(rows.into())).to_string();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                vec!["JOB", "STATE", "SIZE", "PEER", "NAME"],
                vec![
                    "000000000000",
                    "queued",
                    "1",
                    "B",
                    "office",
                    "a\\u{a}b\\u{202e}.txt",
                    "refused;",
                    "again",
                    "in",
                    "5s"
                ],
                vec!["000000000000", "sending", "2.0", "KiB", "office", "2048/", "50%"],
                vec![
                    "000000000000",
                    "delivered",
                    "3",
                    "B",
                    "office",
                    "3",
                    "as",
                    "3",
                    "(1)"
                ],
            ]
        );
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn pages_end_with_the_list_or_with_its_error() {
        let served = fake::serve(fake::Fake {
            jobs: PAGE as u64 + 1,
            ..Default::default()
        });
        let mut lines = served.client.jobs(&JobFilter::default()).await.unwrap();
        let (jobs, end) = next_page(&mut lines).await;
        assert!(jobs.len() == PAGE && end.is_none());
        let (jobs, end) = next_page(&mut lines).await;
        assert!(jobs.len() == 1 && matches!(end, Some(Ok(()))));

        let served = fake::serve(fake::Fake {
            jobs: 3 * PAGE as u64,
            broken_after: Some(1),
            ..Default::default()
        });
        let mut lines = served.client.jobs(&JobFilter::default()).await.unwrap();
        assert!(next_page(&mut lines).await.1.is_none());
        assert!(matches!(next_page(&mut lines).await, (jobs, Some(Err(_))) if jobs.is_empty()));
    }
}
