//! What `status` shows.

use std::collections::HashMap;

use dropwire_protocol::AgentId;

use super::{explain, problems, running_agent::RunningAgent};
use crate::{
    clock::now_ms,
    config::Folder,
    control::{
        api::{InboxReport, NotSent, OutboxReport, PeerReport, ProblemReport, SCHEMA, StatusReport},
        wire::Time,
    },
    error::Fatal,
    id,
    link::PeerLink,
    outbox::Outbox,
    poison::Unpoisoned as _,
    queue::PeerCounts,
};

/// All of it, as it is now.
pub(super) async fn report(agent: &RunningAgent) -> Result<StatusReport, Fatal> {
    let config = agent.config.get();
    let counts = agent.queue.counts().await?;
    let links = agent.peer_links();
    let queued_in: HashMap<_, _> = counts.outboxes.into_iter().collect();
    let outboxes = agent.outboxes.all();
    let outboxes = outboxes.iter().map(|outbox| {
        let queued = outbox.id().and_then(|id| queued_in.get(&id));
        outbox_report(agent, outbox, queued.copied().unwrap_or_default())
    });
    let age_s = |since: i64| now_ms().saturating_sub(since).max(0) as f64 / 1000.0;
    let config_error = agent.config_error.lock();
    let config_error = config_error.unpoisoned().clone();
    Ok(StatusReport {
        schema: SCHEMA,
        name: config.name.clone(),
        id: id::format(agent.own),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_seconds: agent.started.elapsed().as_secs_f64(),
        starting: false,
        listen: agent.links.listen_addr().map(|a| a.to_string()),
        config_error,
        problems: problems(agent, &links),
        outboxes: outboxes.collect(),
        inbox: inbox_report(agent).await,
        peers: peer_reports(agent, counts.peers, links),
        oldest_undelivered_seconds: counts.oldest_queued_ms.map(age_s),
    })
}

/// Those of the config, and those that were taken out of it but have jobs.
fn peer_reports(
    agent: &RunningAgent,
    counts: Vec<(AgentId, PeerCounts)>,
    mut links: HashMap<AgentId, PeerLink>,
) -> Vec<PeerReport> {
    let counts: HashMap<_, _> = counts.into_iter().collect();
    let config = agent.config.get();
    let of_config = config.peers.iter().map(|p| (p.id, p.name.clone()));
    let taken_out = counts
        .iter()
        .filter(|(id, jobs)| jobs.queued > 0 && !agent.names.is_peer(**id));
    let mut taken_out: Vec<_> = taken_out.map(|(id, _)| (*id, agent.names.name(*id))).collect();
    taken_out.sort_by(|(_, one), (_, other)| one.cmp(other));
    let reports = of_config.chain(taken_out).map(|(peer, name)| {
        let jobs = counts.get(&peer).copied().unwrap_or_default();
        let sending = agent.in_flight.sending_to(peer) as u64;
        let link = links.remove(&peer);
        let last_error = match agent.names.is_peer(peer) {
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
    reports.collect()
}

fn outbox_report(agent: &RunningAgent, outbox: &Outbox, queued: u64) -> OutboxReport {
    let status = outbox.status();
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
    report.disposal_held = agent.cleanup.unsynced(&status.path);
    if let Some(told) = agent.cleanup.stuck_at(&status.path) {
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
}

async fn inbox_report(agent: &RunningAgent) -> Option<InboxReport> {
    let inbox = agent.inbox.status().await;
    let path = inbox.path?;
    let (free, held) = (inbox.free_bytes, inbox.held);
    let (files, bytes) = (inbox.received_files, inbox.received_bytes);
    let mut report = InboxReport::new(&path, free.unwrap_or(0), files, bytes, held);
    report.free_unknown = free.is_none() && report.held.is_none();
    report.held = report.held.or(inbox.missing).or(inbox.declined);
    Some(report)
}

fn problems(agent: &RunningAgent, links: &HashMap<AgentId, PeerLink>) -> Vec<ProblemReport> {
    let state = agent.db.troubles().into_iter();
    let state = state.map(|trouble| problems::of_state(&agent.state_dir, trouble));
    let config = agent.config.get();
    let keys = config.peers.iter().filter_map(|peer| {
        let key = links.get(&peer.id)?.shared_key.clone()?;
        Some((peer.name.clone(), key))
    });
    let outboxes = config.outboxes.iter().map(|outbox| outbox.path.as_path());
    let stuck = outboxes.filter_map(|path| Some((path, agent.cleanup.stuck_at(path)?)));
    problems::all(state, keys, stuck)
}
