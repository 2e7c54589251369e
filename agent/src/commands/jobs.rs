//! Jobs as `jobs` and `why` show them.

use super::{
    explain,
    running_agent::RunningAgent,
    selection::{self, no_such_job, page_after},
};
use crate::{
    clock::now_ms,
    control::{
        self,
        api::{JobFilter, JobKind, JobPage, JobParts, JobReport, JobState},
    },
    error::{Exit, Fatal},
    queue::{self, Filter, Job},
};

/// Ended jobs are listed this long.
const LISTED_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// A page of those that `filter` lets through.
pub(super) async fn page(
    agent: &RunningAgent,
    filter: JobFilter,
    page: Option<String>,
) -> Result<JobPage, Fatal> {
    let peer = filter.peer.map(|p| agent.names.whose_jobs(&p)).transpose()?;
    // "sending" is known only here, not on disk: those are listed from memory.
    if filter.state == Some(JobState::Sending) {
        let mut jobs = Vec::new();
        for id in agent.in_flight.ids() {
            let job = agent.queue.get(id).await?;
            jobs.extend(
                job.filter(|j| peer.is_none_or(|p| p == j.peer))
                    .map(|j| report(agent, j)),
            );
        }
        return Ok(JobPage { jobs, next: None });
    }
    let after = match page {
        None => 0,
        Some(page) => page
            .parse()
            .map_err(|_| Fatal::new(Exit::Usage, "no such page"))?,
    };
    let disk = Filter {
        state: filter.state.map(on_disk),
        peer,
        since_ms: now_ms().saturating_sub(LISTED_MS),
    };
    let rows = agent.queue.list(disk, page_after(after)).await?;
    let next = if rows.len() < control::PAGE {
        None
    } else {
        rows.last().map(|r| r.cursor.to_string())
    };
    let jobs = rows.into_iter().map(|row| report(agent, row.job));
    let jobs = jobs.filter(|job| filter.state.is_none_or(|wanted| wanted == job.state));
    Ok(JobPage {
        jobs: jobs.collect(),
        next,
    })
}

/// The job whose id begins with `prefix`.
pub(super) async fn one(agent: &RunningAgent, prefix: &str) -> Result<JobReport, Fatal> {
    let id = selection::one_job(&agent.queue, prefix).await?;
    let job = agent.queue.get(id).await?;
    job.map(|job| report(agent, job))
        .ok_or_else(|| no_such_job(&id.to_string()))
}

/// One job, with how far it is.
pub(super) fn report(agent: &RunningAgent, job: Job) -> JobReport {
    let sent = agent.in_flight.sent_bytes(job.peer, job.id);
    let size = job.found.version.size;
    let state = match job.state {
        queue::JobState::Queued if sent.is_some() => JobState::Sending,
        queue::JobState::Queued => JobState::Queued,
        queue::JobState::Delivered => JobState::Delivered,
        queue::JobState::Failed => JobState::Failed,
        queue::JobState::Cancelled => JobState::Cancelled,
    };
    let peer = agent.names.name(job.peer);
    let taken_out =
        (state == JobState::Queued && !agent.names.is_peer(job.peer)).then(|| explain::taken_out(&peer));
    let waits = state == JobState::Queued && job.error.is_some() && taken_out.is_none();
    JobReport::new(JobParts {
        id: job.id,
        peer,
        path: job.absolute(),
        state,
        // The list counts those that failed; one under way, or that brought the receipt, is one more.
        attempts: job.attempts + u32::from(matches!(state, JobState::Sending | JobState::Delivered)),
        next_attempt_at_ms: waits.then_some(job.next_attempt_ms),
        sent_bytes: if state == JobState::Delivered {
            size
        } else {
            sent.unwrap_or(0)
        },
        error: taken_out.or(job.error),
        queued_at_ms: job.queued_ms,
        delivered_at_ms: job.delivered_ms,
        digest: job.sha256,
        delivered_as: job.delivered_as,
        name: job.found.path,
        kind: match job.found.version.folder {
            true => JobKind::Folder,
            false => JobKind::File,
        },
        size,
    })
}

fn on_disk(state: JobState) -> queue::JobState {
    match state {
        JobState::Queued | JobState::Sending => queue::JobState::Queued,
        JobState::Delivered => queue::JobState::Delivered,
        JobState::Failed => queue::JobState::Failed,
        JobState::Cancelled => queue::JobState::Cancelled,
    }
}
