//! What a job waits for, in one sentence. Pure, so that every case stands in a table.

use std::time::SystemTime;

use crate::{
    control::wire::Time,
    queue::{Job, JobState},
};

/// A job, as far as the sentence depends on it.
pub(super) enum JobView {
    /// On its way.
    Sending {
        /// Bytes that the receiver has.
        sent: u64,
        /// Bytes in all.
        size: u64,
    },
    /// Not on its way.
    Queued {
        /// Milliseconds since 1970; in the future: backoff.
        next_attempt_ms: i64,
        /// Why the last attempt failed.
        error: Option<String>,
    },
    /// The peer has it.
    Delivered {
        /// Below the peer's inbox, escaped.
        delivered_as: String,
        /// Milliseconds since 1970.
        at_ms: i64,
    },
    /// Final, and why.
    Failed(String),
    /// Final.
    Cancelled,
}

/// What is known of the way to the peer.
pub(super) struct PeerView {
    /// Our name for it.
    pub name: String,
    /// It was not taken out of the config.
    pub in_config: bool,
    /// A link is up.
    pub connected: bool,
    /// Is there an address to dial?
    pub dials: bool,
    /// When we dial next.
    pub next_dial_at: Option<SystemTime>,
    /// Why the last dial or link failed.
    pub last_error: Option<String>,
}

/// Why the jobs of a peer wait that was taken out of the config.
pub(super) fn taken_out(peer: &str) -> String {
    format!("{peer} is not in the config")
}

/// Why the jobs of such a peer wait, and what people can do about it.
pub(super) fn taken_out_at_length(peer: &str) -> String {
    format!(
        "{}; its jobs go on when a peer with the same id is there again, or end with `dropwire cancel --peer`",
        taken_out(peer)
    )
}

/// One sentence.
pub(super) fn sentence(job: &JobView, to: &PeerView, now_ms: i64) -> String {
    let peer = &to.name;
    match job {
        JobView::Sending { sent, size } => {
            format!("is being sent to {peer}: {sent} of {size} bytes transferred")
        }
        JobView::Delivered { delivered_as, at_ms } => {
            format!(
                "delivered to {peer} as {delivered_as} at {}",
                Time::from_ms(*at_ms)
            )
        }
        JobView::Failed(why) => format!("failed for {peer}: {why}"),
        JobView::Cancelled => format!("cancelled for {peer}"),
        JobView::Queued { .. } if !to.in_config => format!("waits: {}", taken_out_at_length(peer)),
        JobView::Queued { .. } if !to.connected => {
            let cause = to
                .last_error
                .as_ref()
                .map(|e| format!(" ({e})"))
                .unwrap_or_default();
            match (to.dials, to.next_dial_at) {
                (true, Some(at)) => format!(
                    "waits for a link to {peer}{cause}; dials again {}",
                    until(at, now_ms)
                ),
                (true, None) => format!("waits for a link to {peer}{cause}; is dialling"),
                (false, _) => format!("waits for {peer} to dial in{cause}: it has no address in the config"),
            }
        }
        JobView::Queued {
            next_attempt_ms,
            error,
        } if *next_attempt_ms > now_ms => {
            let at = Time::from_ms(*next_attempt_ms).system();
            let cause = error.as_deref().unwrap_or("it was put off");
            format!(
                "waits for its next attempt to {peer} {}: {cause}",
                until(at, now_ms)
            )
        }
        JobView::Queued { .. } => format!("waits for its turn on the link to {peer}"),
    }
}

/// Of a file's jobs, newest first, those that say where it stands: the open ones; else, of its last version, those
/// that keep it in the outbox; else the last one.
pub(super) fn telling(jobs: &[Job]) -> Vec<&Job> {
    let such = |which: fn(&Job, &Job) -> bool| -> Vec<&Job> {
        let newest = jobs.first();
        jobs.iter()
            .filter(|job| newest.is_some_and(|n| which(job, n)))
            .collect()
    };
    let ways: [fn(&Job, &Job) -> bool; 3] = [
        |job, _| job.state == JobState::Queued,
        |job, newest| job.item == newest.item && job.state != JobState::Delivered,
        |job, newest| job.id == newest.id,
    ];
    ways.into_iter()
        .map(such)
        .find(|told| !told.is_empty())
        .unwrap_or_default()
}

fn until(at: SystemTime, now_ms: i64) -> String {
    match at.duration_since(Time::from_ms(now_ms).system()) {
        Ok(wait) => format!("in {:.1} s", wait.as_secs_f64()),
        Err(_) => "now".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::AfterSend,
        fs::version::{Found, OutboxId, Version},
        queue::ItemId,
    };
    use dropwire_protocol::{AgentId, RemotePath, TransferId};

    fn peer() -> PeerView {
        PeerView {
            name: "office".into(),
            in_config: true,
            connected: true,
            dials: true,
            next_dial_at: None,
            last_error: None,
        }
    }

    fn queued(next_attempt_ms: i64, error: Option<&str>) -> JobView {
        JobView::Queued {
            next_attempt_ms,
            error: error.map(Into::into),
        }
    }

    #[test]
    fn every_standing_has_its_sentence() {
        let cut = || PeerView {
            connected: false,
            last_error: Some("refused".into()),
            ..peer()
        };
        let cases = [
            (
                JobView::Sending { sent: 3, size: 9 },
                peer(),
                "is being sent to office: 3 of 9 bytes transferred",
            ),
            (
                JobView::Delivered {
                    delivered_as: "a (1).txt".into(),
                    at_ms: 0,
                },
                peer(),
                "delivered to office as a (1).txt at 1970-01-01T00:00:00.000Z",
            ),
            (JobView::Failed("gone".into()), peer(), "failed for office: gone"),
            (JobView::Cancelled, peer(), "cancelled for office"),
            (
                queued(0, None),
                peer(),
                "waits for its turn on the link to office",
            ),
            (
                queued(3000, Some("full")),
                peer(),
                "waits for its next attempt to office in 2.0 s: full",
            ),
            (
                queued(0, None),
                cut(),
                "waits for a link to office (refused); is dialling",
            ),
            (
                queued(0, None),
                PeerView {
                    next_dial_at: Some(Time::from_ms(1500).system()),
                    ..cut()
                },
                "waits for a link to office (refused); dials again in 0.5 s",
            ),
            (
                queued(0, None),
                PeerView {
                    dials: false,
                    last_error: None,
                    ..cut()
                },
                "waits for office to dial in: it has no address in the config",
            ),
            (
                queued(3000, Some("refused")),
                PeerView {
                    in_config: false,
                    ..cut()
                },
                "waits: office is not in the config; its jobs go on when a peer with the same id is there again, \
                 or end with `dropwire cancel --peer`",
            ),
        ];
        for (job, peer, wanted) in cases {
            assert_eq!(sentence(&job, &peer, 1000), wanted);
        }
    }

    #[test]
    fn a_files_jobs_tell_where_it_stands() {
        use JobState::{Cancelled, Delivered, Failed, Queued};
        // Newest first: item, state; then which of them tell.
        let cases: [Case<'_>; 6] = [
            (&[], &[]),
            (&[(1, Delivered), (1, Delivered)], &[0]),
            (&[(1, Delivered), (1, Queued), (1, Queued)], &[1, 2]),
            (&[(1, Delivered), (1, Cancelled), (1, Failed)], &[1, 2]),
            (&[(2, Delivered), (1, Queued)], &[1]),
            (&[(2, Delivered), (1, Failed)], &[0]),
        ];
        for (jobs, wanted) in cases {
            let number = |(n, (item, state)): (usize, &(i64, JobState))| job(n, *item, *state);
            let jobs: Vec<Job> = jobs.iter().enumerate().map(number).collect();
            let told: Vec<usize> = telling(&jobs).iter().map(|j| usize::from(j.id.0[0])).collect();
            assert_eq!(told, wanted);
        }
    }

    type Case<'a> = (&'a [(i64, JobState)], &'a [usize]);

    fn job(n: usize, item: i64, state: JobState) -> Job {
        let version = Version {
            inode: 1,
            birth_ns: 0,
            size: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            folder: false,
        };
        Job {
            row: 0,
            id: TransferId([u8::try_from(n).unwrap(); 16]),
            item: ItemId(item),
            peer: AgentId([0; 32]),
            found: Found {
                outbox: OutboxId([0; 16]),
                path: RemotePath::parse(b"a").unwrap(),
                version,
            },
            root: "/o".into(),
            origin: None,
            after_send: AfterSend::Keep,
            state,
            attempts: 0,
            next_attempt_ms: 0,
            error: None,
            queued_ms: 0,
            ended_ms: None,
            delivered_ms: None,
            delivered_as: None,
            sha256: None,
        }
    }
}
