//! What a file or a job waits for.

use std::{path::Path, time::Duration};

use super::{
    explain::{self, JobView, PeerView},
    jobs,
    running_agent::RunningAgent,
    selection,
};
use crate::{
    blocking::blocking,
    clock::now_ms,
    control::{
        api::{Event, WhyQuery, WhyReport},
        wire::Time,
    },
    error::{Exit, Fatal, shown},
    queue::{self, Job},
};

/// In sentences, with the jobs and what they went through.
pub(super) async fn report(agent: &RunningAgent, query: WhyQuery) -> Result<WhyReport, Fatal> {
    let ids = match &query {
        WhyQuery::Job(prefix) => vec![selection::one_job(&agent.queue, prefix).await?],
        WhyQuery::File(path) => {
            let queue = &agent.queue;
            let ids = queue.by_path(&path.0).await?;
            // A file may go as a part of its folder.
            let folder = agent.outboxes.all().iter().find_map(|o| o.folder_of(&path.0));
            match folder.filter(|_| ids.is_empty()) {
                Some(folder) => queue.by_path(&folder).await?,
                None => ids,
            }
        }
    };
    let mut jobs = Vec::new();
    let mut history = Vec::new();
    for id in ids {
        let queue = &agent.queue;
        let Some(job) = queue.get(id).await? else {
            continue;
        };
        for (at, text) in queue.history(id).await? {
            history.push(Event {
                at: Time::from_ms(at),
                job: id.to_string(),
                text,
            });
        }
        jobs.push(job);
    }
    history.sort_by_key(|event| event.at);
    let watched = match &query {
        // What lies there now may be newer than what the job list knows.
        WhyQuery::File(path) => {
            let (outboxes, path) = (agent.outboxes.all(), path.0.clone());
            blocking(move || outboxes.iter().find_map(|o| o.why(&path))).await?
        }
        WhyQuery::Job(_) => None,
    };
    let mut sentences: Vec<String> = explain::telling(&jobs)
        .into_iter()
        .map(|job| sentence(agent, job))
        .collect();
    sentences.extend(stuck(agent, &jobs).await?);
    let sentence = match (watched, &query) {
        (Some(watched), _) if sentences.is_empty() => watched,
        (Some(watched), _) => format!("{watched}; before that: {}", sentences.join("; ")),
        (None, WhyQuery::File(path)) if sentences.is_empty() => return Err(not_queued(agent, &path.0)),
        (None, _) => sentences.join("; "),
    };
    let jobs = jobs.into_iter().map(|job| jobs::report(agent, job)).collect();
    Ok(WhyReport {
        sentence,
        jobs,
        history,
    })
}

fn sentence(agent: &RunningAgent, job: &Job) -> String {
    let standing = match job.state {
        queue::JobState::Delivered => JobView::Delivered {
            delivered_as: job
                .delivered_as
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            at_ms: job.delivered_ms.unwrap_or_default(),
        },
        queue::JobState::Failed => JobView::Failed(job.error.clone().unwrap_or_default()),
        queue::JobState::Cancelled => JobView::Cancelled,
        queue::JobState::Queued => match agent.in_flight.sent_bytes(job.peer, job.id) {
            Some(sent) => JobView::Sending {
                sent,
                size: job.found.version.size,
            },
            None => JobView::Queued {
                next_attempt_ms: job.next_attempt_ms,
                error: job.error.clone(),
            },
        },
    };
    let config = agent.config.get();
    let link = agent.peer_links().remove(&job.peer);
    let peer = PeerView {
        name: agent.names.name(job.peer),
        in_config: agent.names.is_peer(job.peer),
        connected: link.as_ref().is_some_and(|l| l.connected),
        dials: config
            .peers
            .iter()
            .any(|p| p.id == job.peer && p.address.is_some()),
        next_dial_at: link.as_ref().and_then(|l| l.next_dial_at),
        last_error: link.and_then(|l| l.last_error),
    };
    format!(
        "{} {}",
        job.found.path,
        explain::sentence(&standing, &peer, now_ms())
    )
}

/// Why one that everybody has is in its outbox still.
async fn stuck(agent: &RunningAgent, jobs: &[Job]) -> Result<Option<String>, Fatal> {
    for job in jobs {
        let cannot_leave = || {
            let reason = agent.cleanup.stuck(&job.root, job.item)?;
            Some(format!("cannot leave the outbox: {reason}"))
        };
        let lingers = || {
            let since = now_ms().saturating_sub(job.delivered_ms?).max(0).unsigned_abs();
            let linger = agent.config.get().linger(&job.root);
            let left = linger.checked_sub(Duration::from_millis(since))?;
            Some(format!("leaves the outbox in {:.1} s", left.as_secs_f64()))
        };
        let why = agent
            .cleanup
            .unsynced(&job.root)
            .or_else(cannot_leave)
            .or_else(lingers);
        let leaving = agent.queue.is_leaving(job.item);
        if why.is_some() && leaving.await? {
            return Ok(why);
        }
    }
    Ok(None)
}

/// The job list does not have the file, nor does it wait for anything.
fn not_queued(agent: &RunningAgent, path: &Path) -> Fatal {
    let config = agent.config.get();
    if let Some(outbox) = config.outboxes.iter().find(|o| path.starts_with(&o.path)) {
        let message = format!("there is no file {}, and none was ever queued", shown(path));
        let hint = format!("name a file that lies in {} or did", shown(&outbox.path));
        return Fatal::new(Exit::NoInput, message).hint(hint);
    }
    let message = format!("{} is in no outbox and was never queued", shown(path));
    Fatal::new(Exit::NoInput, message)
        .hint("`dropwire status` shows the outboxes, `dropwire jobs` the files that were queued")
}
