//! Which peers and jobs a command means, and what `retry` and `cancel` do to them.

use dropwire_protocol::{AgentId, TransferId, name::escape};

use super::peers::Names;
use crate::{
    clock::now_ms,
    control::{
        self,
        api::{Changed, Selection},
    },
    error::{Exit, Fatal},
    link::Links,
    queue::{Filter, JobState, Page, Queue},
};

/// What becomes of the jobs that are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Due now, or queued again.
    Retry,
    /// Ended for good.
    Cancel,
}

/// Changes the jobs that are named, else all of a peer or of everybody that the change concerns.
pub(super) async fn apply(
    queue: &Queue,
    links: &Links,
    names: &Names,
    which: Selection,
    change: Change,
) -> Result<Changed, Fatal> {
    let mut named = Vec::new();
    for prefix in &which.jobs {
        named.push(one_job(queue, prefix).await?);
    }
    let jobs_are_named = !named.is_empty();
    let changed = if jobs_are_named {
        change_some(queue, named, change).await?
    } else {
        let peer = which.peer.map(|p| names.whose_jobs(&p)).transpose()?;
        if peer.is_none() && !which.all {
            return Err(Fatal::new(Exit::Usage, "no job is named").hint("name jobs, a peer, or --all"));
        }
        change_all(queue, peer, change).await?
    };
    if change == Change::Retry {
        links.dial_all_now();
    }
    let listed = changed.iter().filter(|_| jobs_are_named);
    Ok(Changed {
        count: changed.len() as u64,
        jobs: listed.map(ToString::to_string).collect(),
    })
}

/// The job that a unique prefix of its id means.
pub(super) async fn one_job(queue: &Queue, prefix: &str) -> Result<TransferId, Fatal> {
    match queue.by_prefix(prefix.to_owned()).await?[..] {
        [one] => Ok(one),
        [] => Err(no_such_job(prefix)),
        _ => Err(Fatal::new(
            Exit::NoInput,
            format_args!("more than one job begins with {}", escape(prefix.as_bytes())),
        )
        .hint("give more digits")),
    }
}

/// There is none.
pub(super) fn no_such_job(prefix: &str) -> Fatal {
    Fatal::new(
        Exit::NoInput,
        format_args!("no job begins with {}", escape(prefix.as_bytes())),
    )
    .hint("`dropwire jobs` lists them")
}

/// The next page of a listing.
pub(super) fn page_after(after: i64) -> Page {
    Page {
        after,
        limit: control::PAGE,
    }
}

async fn change_some(queue: &Queue, jobs: Vec<TransferId>, change: Change) -> Result<Vec<TransferId>, Fatal> {
    let changed = match change {
        Change::Retry => queue.resend(jobs, now_ms()).await,
        Change::Cancel => queue.cancel(jobs, now_ms()).await,
    };
    Ok(changed?)
}

/// Cancelled jobs are retried only by name: somebody meant it.
async fn change_all(queue: &Queue, peer: Option<AgentId>, change: Change) -> Result<Vec<TransferId>, Fatal> {
    let states: &[JobState] = match change {
        Change::Retry => &[JobState::Queued, JobState::Failed],
        Change::Cancel => &[JobState::Queued],
    };
    let mut changed = Vec::new();
    for state in states {
        let filter = Filter {
            state: Some(*state),
            peer,
            since_ms: 0,
        };
        let mut after = 0;
        loop {
            let rows = queue.list(filter, page_after(after)).await?;
            let Some(last) = rows.last() else { break };
            after = last.cursor;
            let ids = rows.iter().map(|row| row.job.id).collect();
            changed.extend(change_some(queue, ids, change).await?);
        }
    }
    Ok(changed)
}
