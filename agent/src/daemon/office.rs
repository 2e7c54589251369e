//! Answers what the command line asks of a running agent.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use dropwire_protocol::AgentId;

use super::{
    ConfigError, SPOOL, adopt, explain,
    explain::{Standing, Way},
    job_list,
    peers::Names,
    problems,
    selection::{self, Change, no_such_job, page_after},
    sending,
};
use crate::{
    blocking::blocking,
    clock::now_ms,
    config::{Current, Folder},
    control::{
        self, Passed,
        api::{
            AdoptReply, AdoptRequest, Changed, Event, InboxReport, JobFilter, JobKind, JobPage, JobParts,
            JobReport, JobState, NotSent, OutboxReport, PeerReport, ProblemReport, SCHEMA, Selection,
            SendReply, SendRequest, StatusReport, WhyQuery, WhyReport,
        },
        wire::Time,
    },
    db::Db,
    error::{Exit, Fatal, shown},
    id,
    inbox::Inbox,
    link::{Links, PeerLink},
    owner::Me,
    queue::{self, Filter, Job, Queue},
    sender::{Cleanup, InFlight, Outboxes},
};

/// Ended jobs are listed this long.
const LISTED_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// The agent as its control socket shows it.
pub struct Office {
    pub(super) config: Current,
    pub(super) config_error: ConfigError,
    pub(super) started: Instant,
    pub(super) state_dir: PathBuf,
    pub(super) own: AgentId,
    pub(super) db: Db,
    pub(super) queue: Queue,
    pub(super) links: Links,
    pub(super) inbox: Inbox,
    pub(super) outboxes: Outboxes,
    pub(super) in_flight: InFlight,
    pub(super) cleanup: Cleanup,
    pub(super) names: Names,
}

impl control::Agent for Office {
    async fn status(&self) -> Result<StatusReport, Fatal> {
        let config = self.config.get();
        let counts = self.queue.counts().await.map_err(|e| job_list(&e))?;
        let of_peer: HashMap<_, _> = counts.peers.into_iter().collect();
        let of_outbox: HashMap<_, _> = counts.outboxes.into_iter().collect();
        let mut links = self.peer_links();
        let problems = self.problems(&links);
        let mut peers: Vec<_> = config.peers.iter().map(|p| (p.id, p.name.clone())).collect();
        let taken_out = of_peer
            .iter()
            .filter(|(id, jobs)| jobs.queued > 0 && !self.names.is_peer(**id));
        let mut taken_out: Vec<_> = taken_out.map(|(id, _)| (*id, self.names.name(*id))).collect();
        taken_out.sort_by(|(_, one), (_, other)| one.cmp(other));
        peers.append(&mut taken_out);
        let peers = peers.into_iter().map(|(peer, name)| {
            let jobs = of_peer.get(&peer).copied().unwrap_or_default();
            let sending = self.in_flight.sending_to(peer) as u64;
            let link = links.remove(&peer);
            let last_error = match self.names.is_peer(peer) {
                true => link.as_ref().and_then(|l| l.last_error.clone()),
                false => Some(explain::taken_out_at_length(&name)),
            };
            PeerReport {
                name,
                id: id::format(peer),
                connected: link.as_ref().is_some_and(|l| l.connected),
                paused: false,
                next_dial_at: link.as_ref().and_then(|l| l.next_dial_at).map(Time::from),
                sent_bytes: link.as_ref().map_or(0, |l| l.sent_bytes),
                received_bytes: link.as_ref().map_or(0, |l| l.received_bytes),
                last_error,
                queued: jobs.queued.saturating_sub(sending),
                sending,
                failed: jobs.failed,
                delivered: jobs.delivered,
            }
        });
        let outboxes = self.outboxes.all();
        let outboxes = outboxes.iter().map(|outbox| {
            let status = outbox.status();
            let queued = outbox
                .id()
                .and_then(|id| of_outbox.get(&id))
                .copied()
                .unwrap_or_default();
            let not_sent = status.not_sent.into_iter();
            let mut report = OutboxReport::new(
                &status.path,
                status.watch,
                status.settling as u64,
                queued,
                status.held,
            );
            if status.folder == Folder::Whole {
                report.folder = "whole".to_owned();
            }
            report.disposal_held = self.cleanup.unsynced(&status.path);
            if let Some(told) = self.cleanup.stuck_at(&status.path) {
                report.cannot_leave_count = told.files as u64;
                report.cannot_leave = Some(told.reason.to_string());
                report.cannot_leave_since = Some(Time::from_ms(told.since_ms));
            }
            report.cautions = status.cautions.into_iter().map(str::to_owned).collect();
            report.watch_reason = status.watch_reason;
            report.watch_latency_seconds = status.latency.map(|l| l.as_secs_f64());
            report.not_sent = not_sent.map(|(name, why)| NotSent::new(&name, why)).collect();
            report.not_sent_count = status.not_sent_count as u64;
            report
        });
        let inbox = self.inbox.status().await;
        let (files, bytes) = (inbox.received_files, inbox.received_bytes);
        let inbox = inbox.path.map(|path| {
            let (free, held) = (inbox.free_bytes, inbox.held);
            let mut report = InboxReport::new(&path, free.unwrap_or(0), files, bytes, held);
            report.free_unknown = free.is_none() && report.held.is_none();
            report.held = report.held.or(inbox.missing).or(inbox.declined);
            report
        });
        let age_s = |since: i64| now_ms().saturating_sub(since).max(0) as f64 / 1000.0;
        Ok(StatusReport {
            schema: SCHEMA,
            name: config.name.clone(),
            id: id::format(self.own),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            starting: false,
            listen: self.links.listen_addr().map(|a| a.to_string()),
            config_error: self
                .config_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            problems,
            outboxes: outboxes.collect(),
            inbox,
            peers: peers.collect(),
            oldest_undelivered_seconds: counts.oldest_queued_ms.map(age_s),
        })
    }

    async fn jobs(&self, filter: JobFilter, page: Option<String>) -> Result<JobPage, Fatal> {
        let peer = filter.peer.map(|p| self.names.whose_jobs(&p)).transpose()?;
        // "sending" is known only here, not on disk: those are listed from memory.
        if filter.state == Some(JobState::Sending) {
            let mut jobs = Vec::new();
            for id in self.in_flight.ids() {
                let job = self.queue.get(id).await.map_err(|e| job_list(&e))?;
                jobs.extend(
                    job.filter(|j| peer.is_none_or(|p| p == j.peer))
                        .map(|j| self.report(j)),
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
        let rows = self.queue.list(disk, page_after(after)).await;
        let rows = rows.map_err(|e| job_list(&e))?;
        let next = if rows.len() < control::PAGE {
            None
        } else {
            rows.last().map(|r| r.cursor.to_string())
        };
        let jobs = rows.into_iter().map(|row| self.report(row.job));
        let jobs = jobs.filter(|job| filter.state.is_none_or(|wanted| wanted == job.state));
        Ok(JobPage {
            jobs: jobs.collect(),
            next,
        })
    }

    async fn job(&self, id: String) -> Result<JobReport, Fatal> {
        let id = selection::one_job(&self.queue, &id).await?;
        let job = self.queue.get(id).await.map_err(|e| job_list(&e))?;
        job.map(|job| self.report(job))
            .ok_or_else(|| no_such_job(&id.to_string()))
    }

    async fn why(&self, query: WhyQuery) -> Result<WhyReport, Fatal> {
        let ids = match &query {
            WhyQuery::Job(prefix) => vec![selection::one_job(&self.queue, prefix).await?],
            WhyQuery::File(path) => {
                let queue = &self.queue;
                let ids = queue.by_path(&path.0).await.map_err(|e| job_list(&e))?;
                // A file may go as a part of its folder.
                let folder = self.outboxes.all().iter().find_map(|o| o.folder_of(&path.0));
                match folder.filter(|_| ids.is_empty()) {
                    Some(folder) => queue.by_path(&folder).await.map_err(|e| job_list(&e))?,
                    None => ids,
                }
            }
        };
        let mut jobs = Vec::new();
        let mut history = Vec::new();
        for id in ids {
            let queue = &self.queue;
            let Some(job) = queue.get(id).await.map_err(|e| job_list(&e))? else {
                continue;
            };
            for (at, text) in queue.history(id).await.map_err(|e| job_list(&e))? {
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
                let (outboxes, path) = (self.outboxes.all(), path.0.clone());
                blocking(move || outboxes.iter().find_map(|o| o.why(&path))).await?
            }
            WhyQuery::Job(_) => None,
        };
        let mut sentences: Vec<String> = explain::telling(&jobs)
            .into_iter()
            .map(|job| self.sentence(job))
            .collect();
        sentences.extend(self.stuck(&jobs).await?);
        let sentence = match (watched, &query) {
            (Some(watched), _) if sentences.is_empty() => watched,
            (Some(watched), _) => format!("{watched}; before that: {}", sentences.join("; ")),
            (None, WhyQuery::File(path)) if sentences.is_empty() => return Err(self.not_queued(&path.0)),
            (None, _) => sentences.join("; "),
        };
        let jobs = jobs.into_iter().map(|job| self.report(job)).collect();
        Ok(WhyReport {
            sentence,
            jobs,
            history,
        })
    }

    type Sending = sending::Sending;

    async fn send(
        &self,
        sending: &mut sending::Sending,
        request: SendRequest,
        passed: Passed,
    ) -> Result<SendReply, Fatal> {
        let work = sending::Context {
            config: self.config.clone(),
            db: self.db.clone(),
            queue: self.queue.clone(),
            spool: self.state_dir.join(SPOOL),
            folders: sending::Folders::of(
                &self.state_dir,
                &self.config.get(),
                &self.outboxes.all(),
                &self.inbox,
            ),
        };
        sending::take(work, sending, request, passed).await
    }

    async fn retry(&self, selection: Selection) -> Result<Changed, Fatal> {
        self.change(selection, Change::Retry).await
    }

    async fn cancel(&self, selection: Selection) -> Result<Changed, Fatal> {
        self.change(selection, Change::Cancel).await
    }

    async fn adopt(&self, request: AdoptRequest) -> Result<AdoptReply, Fatal> {
        let config = self.config.get();
        let adopter = adopt::Adopter {
            me: Me {
                id: self.own,
                name: config.name.clone(),
            },
            config,
            db: self.db.clone(),
            queue: self.queue.clone(),
        };
        let lock = adopt::LockOf::of(&self.inbox);
        let reply = adopter.answer(request, Arc::new(lock)).await?;
        if reply.adopted {
            for outbox in self.outboxes.all() {
                outbox.look();
            }
            let inbox = self.inbox.clone();
            blocking(move || inbox.look().ok()).await?;
            self.queue.wake_all();
        }
        Ok(reply)
    }
}

impl Office {
    async fn change(&self, which: Selection, change: Change) -> Result<Changed, Fatal> {
        selection::apply(&self.queue, &self.links, &self.names, which, change).await
    }

    fn problems(&self, links: &HashMap<AgentId, PeerLink>) -> Vec<ProblemReport> {
        let state = self.db.troubles().into_iter();
        let state = state.map(|trouble| problems::of_state(&self.state_dir, trouble));
        let config = self.config.get();
        let keys = config.peers.iter().filter_map(|peer| {
            let key = links.get(&peer.id)?.shared_key.clone()?;
            Some((peer.name.clone(), key))
        });
        let outboxes = config.outboxes.iter().map(|outbox| outbox.path.as_path());
        let stuck = outboxes.filter_map(|path| Some((path, self.cleanup.stuck_at(path)?)));
        problems::all(state, keys, stuck)
    }

    fn report(&self, job: Job) -> JobReport {
        let sent = self.in_flight.sent_bytes(job.peer, job.id);
        let size = job.found.version.size;
        let state = match job.state {
            queue::JobState::Queued if sent.is_some() => JobState::Sending,
            queue::JobState::Queued => JobState::Queued,
            queue::JobState::Delivered => JobState::Delivered,
            queue::JobState::Failed => JobState::Failed,
            queue::JobState::Cancelled => JobState::Cancelled,
        };
        let peer = self.names.name(job.peer);
        let taken_out =
            (state == JobState::Queued && !self.names.is_peer(job.peer)).then(|| explain::taken_out(&peer));
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

    fn sentence(&self, job: &Job) -> String {
        let standing = match job.state {
            queue::JobState::Delivered => Standing::Delivered {
                delivered_as: job
                    .delivered_as
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                at_ms: job.delivered_ms.unwrap_or_default(),
            },
            queue::JobState::Failed => Standing::Failed(job.error.clone().unwrap_or_default()),
            queue::JobState::Cancelled => Standing::Cancelled,
            queue::JobState::Queued => match self.in_flight.sent_bytes(job.peer, job.id) {
                Some(sent) => Standing::Sending {
                    sent,
                    size: job.found.version.size,
                },
                None => Standing::Queued {
                    next_attempt_ms: job.next_attempt_ms,
                    error: job.error.clone(),
                },
            },
        };
        let config = self.config.get();
        let link = self.peer_links().remove(&job.peer);
        let way = Way {
            peer: self.names.name(job.peer),
            in_config: self.names.is_peer(job.peer),
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
            explain::sentence(&standing, &way, now_ms())
        )
    }

    /// Why one that everybody has is in its outbox still.
    async fn stuck(&self, jobs: &[Job]) -> Result<Option<String>, Fatal> {
        for job in jobs {
            let cannot_leave = || {
                let reason = self.cleanup.stuck(&job.root, job.drop)?;
                Some(format!("cannot leave the outbox: {reason}"))
            };
            let lingers = || {
                let since = now_ms().saturating_sub(job.delivered_ms?).max(0).unsigned_abs();
                let linger = self.config.get().linger(&job.root);
                let left = linger.checked_sub(Duration::from_millis(since))?;
                Some(format!("leaves the outbox in {:.1} s", left.as_secs_f64()))
            };
            let why = self
                .cleanup
                .unsynced(&job.root)
                .or_else(cannot_leave)
                .or_else(lingers);
            let leaving = self.queue.is_leaving(job.drop);
            if why.is_some() && leaving.await.map_err(|e| job_list(&e))? {
                return Ok(why);
            }
        }
        Ok(None)
    }

    /// The job list does not have the file, nor does it wait for anything.
    fn not_queued(&self, path: &Path) -> Fatal {
        let config = self.config.get();
        if let Some(outbox) = config.outboxes.iter().find(|o| path.starts_with(&o.path)) {
            let message = format!("there is no file {}, and none was ever queued", shown(path));
            let hint = format!("name a file that lies in {} or did", shown(&outbox.path));
            return Fatal::new(Exit::NoInput, message).hint(hint);
        }
        let message = format!("{} is in no outbox and was never queued", shown(path));
        Fatal::new(Exit::NoInput, message)
            .hint("`dropwire status` shows the outboxes, `dropwire jobs` the files that were queued")
    }

    fn peer_links(&self) -> HashMap<AgentId, PeerLink> {
        self.links
            .status()
            .into_iter()
            .map(|link| (link.peer, link))
            .collect()
    }
}

fn on_disk(state: JobState) -> queue::JobState {
    match state {
        JobState::Queued | JobState::Sending => queue::JobState::Queued,
        JobState::Delivered => queue::JobState::Delivered,
        JobState::Failed => queue::JobState::Failed,
        JobState::Cancelled => queue::JobState::Cancelled,
    }
}
