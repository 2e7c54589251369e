//! Waiting for jobs to end, with progress on a terminal.

use std::{collections::VecDeque, io, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};

use super::{Stop, jobs::short, render};
use crate::{
    control::{
        Client,
        api::{JobReport, JobState},
    },
    error::{Exit, Fatal},
};

/// Waits until all `jobs` have ended; `ended` sees each as it does.
///
/// Errors: [`Exit::Failed`] where one failed or was cancelled, [`Exit::NotYet`] on Ctrl-C or after `limit`. An agent
/// that is restarted meanwhile is waited for.
pub(super) async fn wait(
    client: &Client,
    jobs: Vec<String>,
    limit: Option<Duration>,
    ended: impl FnMut(&JobReport) -> io::Result<()>,
) -> Result<(), Stop> {
    let mut waiting = Waiting::new(jobs);
    let time_is_up = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let all_ended = tokio::select! {
        result = waiting.until_ended(client, ended) => result.map(|()| true)?,
        _ = tokio::signal::ctrl_c() => false,
        () = time_is_up => false,
    };
    waiting.bar.finish_and_clear();
    Ok(waiting.verdict(all_ended)?)
}

struct Waiting {
    open: VecDeque<Open>,
    total: usize,
    delivered: usize,
    /// Bytes of jobs that have ended.
    bytes: u64,
    /// The first that was not delivered.
    first_failed: Option<String>,
    agent_gone_since: Option<Instant>,
    bar: ProgressBar,
}

struct Open {
    job: String,
    size: u64,
    sent: u64,
}

impl Waiting {
    fn new(jobs: Vec<String>) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {binary_bytes} of {binary_total_bytes}, {msg}")
        {
            bar.set_style(style);
        }
        Self {
            total: jobs.len(),
            open: jobs
                .into_iter()
                .map(|job| Open {
                    job,
                    size: 0,
                    sent: 0,
                })
                .collect(),
            delivered: 0,
            bytes: 0,
            first_failed: None,
            agent_gone_since: None,
            bar,
        }
    }

    async fn until_ended(
        &mut self,
        client: &Client,
        mut ended: impl FnMut(&JobReport) -> io::Result<()>,
    ) -> Result<(), Stop> {
        while !self.open.is_empty() {
            let before = self.open.len();
            // A part of them at a time, so that progress shows however many there are.
            for _ in 0..before.min(ROUND) {
                self.ask_one(client, &mut ended).await?;
            }
            self.draw();
            if self.open.len() == before {
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Asks for the job that was not asked for the longest time.
    async fn ask_one(
        &mut self,
        client: &Client,
        ended: &mut impl FnMut(&JobReport) -> io::Result<()>,
    ) -> Result<(), Stop> {
        let Some(open) = self.open.front() else {
            return Ok(());
        };
        let report = match client.job(&open.job).await {
            Ok(report) => report,
            Err(error) if error.exit == Exit::Unavailable => {
                let since = *self.agent_gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() > AGENT_AWAY {
                    return Err(error.into());
                }
                sleep(PAUSE).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.agent_gone_since = None;
        let Some(open) = self.open.pop_front() else {
            return Ok(());
        };
        if !report.state.ended() {
            self.open.push_back(Open {
                size: report.size,
                sent: report.sent_bytes,
                ..open
            });
            return Ok(());
        }
        self.bytes += report.size;
        if report.state == JobState::Delivered {
            self.delivered += 1;
        } else if self.first_failed.is_none() {
            self.first_failed = Some(failure(&report));
        }
        self.bar.suspend(|| ended(&report))?;
        Ok(())
    }

    fn draw(&self) {
        let sum = |part: fn(&Open) -> u64| self.open.iter().map(part).fold(self.bytes, u64::saturating_add);
        let (size, sent) = (sum(|open| open.size), sum(|open| open.sent));
        self.bar.update(|state| {
            state.set_len(size);
            state.set_pos(sent);
        });
        let message = format!("{} of {} files", self.delivered, self.total);
        if self.bar.message() != message {
            self.bar.set_message(message);
        }
    }

    fn verdict(&self, all_ended: bool) -> Result<(), Fatal> {
        let missing = self.total - self.delivered;
        let total = self.total;
        match &self.first_failed {
            _ if !all_ended => Err(Fatal::new(
                Exit::NotYet,
                format_args!("{missing} of {total} jobs not delivered yet"),
            )
            .hint("the agent goes on with them; see: dropwire jobs")),
            Some(first) => Err(Fatal::new(
                Exit::Failed,
                format_args!("{missing} of {total} jobs not delivered; the first: {first}"),
            )
            .hint("see: dropwire why JOB; to try again: dropwire retry JOB")),
            None => Ok(()),
        }
    }
}

fn failure(job: &JobReport) -> String {
    let why = render::text(job.error.as_deref().unwrap_or("no reason given"));
    format!(
        "{} {} {}: {why}",
        short(&job.job),
        render::name(job.raw_name()),
        job.state.name()
    )
}

const ROUND: usize = 64;
const PAUSE: Duration = Duration::from_millis(200);
const AGENT_AWAY: Duration = Duration::from_secs(10);

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::control::fake;

    #[tokio::test]
    async fn it_ends_when_all_receipts_are_in() {
        let served = fake::serve(fake::Fake::default());
        let jobs: Vec<_> = (0..200).map(fake::id).collect();
        let mut seen = Vec::new();
        wait(&served.client, jobs.clone(), None, |job| {
            seen.push(job.job.clone());
            Ok(())
        })
        .await
        .unwrap();
        seen.sort();
        assert_eq!(seen, jobs);
    }

    #[tokio::test]
    async fn one_that_failed_is_named_once_all_have_ended() {
        let served = fake::serve(fake::Fake::default());
        let jobs = vec![fake::id(1), fake::id(fake::FAILS), fake::id(2)];
        let mut seen = 0;
        let ended = |_: &JobReport| {
            seen += 1;
            Ok(())
        };
        let stop = wait(&served.client, jobs, None, ended).await.unwrap_err();
        let Stop::Fatal(fatal) = stop else {
            panic!("{stop:?}")
        };
        assert_eq!((fatal.exit, seen), (Exit::Failed, 3));
        assert!(fatal.message.starts_with("1 of 3 jobs not delivered"), "{fatal}");
    }

    #[tokio::test]
    async fn what_is_not_there_when_the_time_is_up_is_75() {
        let served = fake::serve(fake::Fake::default());
        let jobs = vec![fake::id(fake::NEVER_ENDS)];
        let stop = wait(&served.client, jobs, Some(Duration::ZERO), |_| Ok(()))
            .await
            .unwrap_err();
        assert!(matches!(stop, Stop::Fatal(fatal) if fatal.exit == Exit::NotYet));
    }

    #[tokio::test]
    async fn a_job_that_is_not_known_is_66_and_a_closed_pipe_no_error() {
        let served = fake::serve(fake::Fake::default());
        let stop = wait(&served.client, vec!["ffff".into()], None, |_| Ok(()))
            .await
            .unwrap_err();
        assert!(matches!(stop, Stop::Fatal(fatal) if fatal.exit == Exit::NoInput));
        let broken = |_: &JobReport| Err(io::ErrorKind::BrokenPipe.into());
        let stop = wait(&served.client, vec![fake::id(1)], None, broken)
            .await
            .unwrap_err();
        assert!(matches!(stop, Stop::Unread));
    }
}
