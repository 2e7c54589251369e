//! One peer's jobs on their way: due jobs become offers, what the link tells becomes changes of the job list.
//!
//! One task a peer, so that a dead or slow peer holds up nobody else. It never waits for the link while the link
//! waits for it: every event answers a request that is in flight, and those are bounded by [`schedule::MOST`].

mod setbacks;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use dropwire_protocol::{Receipt, ReceiptBody, TransferId, message::LateTime};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Shared,
    flight::{Flight, Moved, Reread, STALLED, voided_text},
    proof::{self, Claim},
};
use crate::{
    clock::now_ms,
    config::{self, Config},
    db::DbError,
    fault,
    identity::Verifier,
    link::{LinkEvent, MAX_OPEN, Outgoing, Request, Voided},
    queue::{
        Class, Job, Proof,
        schedule::{self, Load},
    },
    send::{self, FileSource},
};

/// Most events handled, and most receipts written, in one go.
const BATCH: usize = 256;
/// Most transfers remembered as offered without an answer.
const MOST_UNANSWERED: usize = 4096;

/// One peer's task.
pub struct Dispatcher {
    shared: Arc<Shared>,
    /// As `peer` was taken up from it.
    config: Arc<Config>,
    peer: config::Peer,
    linked: bool,
    flights: HashMap<TransferId, Flight>,
    /// Offered on a link that went down before the answer.
    unanswered: HashSet<TransferId>,
    /// A Forget is on its way; the next one waits for its answer.
    forgetting: bool,
    /// Late times that the peer is told right now; the next ones wait for its answers.
    retiming: Vec<LateTime>,
    /// Files read again because their receipt came without our Done; large ones must not hold up the rest.
    rereading: JoinSet<Reread>,
    verifier: Verifier,
    cancel: CancellationToken,
}

impl Dispatcher {
    /// Runs until cancelled.
    pub async fn run(
        shared: Arc<Shared>,
        peer: config::Peer,
        mut events: mpsc::Receiver<LinkEvent>,
        cancel: CancellationToken,
    ) {
        let _ended = cancel.clone().drop_guard(); // nobody waits for what is being read again
        let wake = shared.wake(peer.id);
        let mut this = Dispatcher {
            config: shared.config(),
            shared,
            peer,
            linked: false,
            flights: HashMap::new(),
            unanswered: HashSet::new(),
            forgetting: false,
            retiming: Vec::new(),
            rereading: JoinSet::new(),
            verifier: Verifier::default(),
            cancel: cancel.clone(),
        };
        let mut batch = Vec::new(); // mostly few, and there are as many as peers
        loop {
            this.take_up_peer();
            // Whatever it waits for (a link that is behind, a large file read once more) does not hold up the end.
            let Some(filled) = cancel.run_until_cancelled(this.fill()).await else {
                break;
            };
            let next_due = match filled {
                Ok(next_due) => next_due,
                Err(error) => {
                    warn!(peer = %this.peer.name, %error, "the job list failed");
                    Some(Instant::now() + Duration::from_secs(5))
                }
            };
            let due = async {
                match next_due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => break,
                count = events.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    match cancel.run_until_cancelled(this.handle(batch.drain(..))).await {
                        Some(Ok(())) => {}
                        Some(Err(error)) => warn!(peer = %this.peer.name, %error, "the job list failed"),
                        None => break,
                    }
                }
                Some(reread) = this.rereading.join_next() => {
                    if let Err(error) = this.reread(reread).await {
                        warn!(peer = %this.peer.name, %error, "the job list failed");
                    }
                }
                () = wake.notified() => {}
                () = due => {}
            }
        }
        this.land_all();
    }

    /// Our name for it may be another since a reload.
    fn take_up_peer(&mut self) {
        let config = self.shared.config();
        if Arc::ptr_eq(&config, &self.config) {
            return;
        }
        if let Some(peer) = config.peers.iter().find(|peer| peer.id == self.peer.id) {
            self.peer.clone_from(peer);
        }
        self.config = config;
    }

    /// Offers what is due and there is room for; says when the next job becomes due.
    async fn fill(&mut self) -> Result<Option<Instant>, DbError> {
        if !self.linked {
            return Ok(None);
        }
        self.break_off_stalled().await?;
        let under_way = Load {
            small: self.in_flight(Class::Small),
            large: self.in_flight(Class::Large),
        };
        let room = schedule::room(under_way, MAX_OPEN as usize);
        let busy = self.flights.keys().copied().collect();
        let todo = self.shared.queue.todo(self.peer.id, room, busy, now_ms()).await?;
        for id in todo.withdraw {
            if !matches!(self.flights.get(&id), Some(Flight::Withdrawing { .. })) {
                self.withdraw(id, None).await;
            }
        }
        if !self.forgetting && !todo.forget.is_empty() {
            self.forgetting = self.request(Request::Forget(todo.forget, todo.times)).await;
        }
        if self.retiming.is_empty()
            && !todo.retimed.is_empty()
            && self.request(Request::Retime(todo.retimed.clone())).await
        {
            self.retiming = todo.retimed;
        }
        for job in todo.due {
            self.offer(job).await?;
        }
        let next = todo.next_due_ms;
        let due = next.map(|at| {
            Instant::now() + Duration::from_millis(at.saturating_sub(now_ms()).max(1).unsigned_abs())
        });
        let stalled = (!self.flights.is_empty()).then(|| Instant::now() + STALLED);
        Ok(due.into_iter().chain(stalled).min())
    }

    /// Transfers of which nothing moves: the peer lives, but does not answer.
    async fn break_off_stalled(&mut self) -> Result<(), DbError> {
        let now = Instant::now();
        let stalled: Vec<TransferId> = self
            .flights
            .iter_mut()
            .filter_map(|(id, flight)| match flight {
                Flight::Offered { moved, .. } => moved.is_stalled(now).then_some(*id),
                Flight::Rereading { .. } | Flight::Withdrawing { .. } => None,
            })
            .collect();
        for id in stalled {
            self.request(Request::Close(id)).await;
            if let Some(Flight::Offered { job, .. }) = self.land(id) {
                self.retry(&job, format!("{} did not answer", self.peer.name), None)
                    .await?;
            }
        }
        Ok(())
    }

    fn in_flight(&self, wanted: Class) -> usize {
        let of_class = |f: &&Flight| f.class() == Some(wanted);
        self.flights.values().filter(of_class).count()
    }

    async fn offer(&mut self, job: Job) -> Result<(), DbError> {
        let class = Class::of(&job.found.version);
        let source = Arc::new(self.source(&job, class).await?);
        let progress = Arc::new(AtomicU64::new(0));
        let outgoing = Outgoing {
            id: job.id,
            manifest: job.manifest(),
            eager: self.is_first_offer(&job),
            source: source.clone(),
            progress: progress.clone(),
        };
        // First: whoever asks whether it is on its way must not be told too late.
        self.shared.live.started(job.id, self.peer.id, progress.clone());
        if self.request(Request::Offer(outgoing)).await {
            debug!(peer = %self.peer.name, job = %job.id, path = %job.found.path, "offered");
            let moved = Moved::since(Instant::now(), progress);
            self.flights.insert(
                job.id,
                Flight::Offered {
                    job: Box::new(job),
                    source,
                    class,
                    moved,
                },
            );
        } else {
            self.shared.live.ended(job.id);
        }
        Ok(())
    }

    /// Only then do the bytes of a small file run ahead of the answer. Whatever was offered before, in an earlier life
    /// of the agent too, may lie across or be declined again: asking costs a round trip, and no bytes.
    fn is_first_offer(&mut self, job: &Job) -> bool {
        let offered_on_a_lost_link = self.unanswered.remove(&job.id);
        !offered_on_a_lost_link && job.attempts == 0 && self.shared.queue.is_of_this_run(job)
    }

    async fn source(&self, job: &Job, class: Class) -> Result<FileSource, DbError> {
        let (root, found, reads) = (job.root.clone(), job.found.clone(), self.shared.reads.clone());
        if class == Class::Small {
            return Ok(FileSource::new(root, found, reads));
        }
        let kept = self.shared.queue.checkpoints(job.drop).await?;
        let (checkpoints, drop) = (self.shared.checkpoints.clone(), job.drop);
        let keep = Box::new(move |bytes| {
            // Full: the next one says more.
            let _ = checkpoints.try_send((drop, bytes));
        });
        Ok(FileSource::resumable(root, found, reads, &kept, keep))
    }

    /// Asks how a transfer ended that will not be sent any more.
    async fn withdraw(&mut self, id: TransferId, job: Option<Box<Job>>) {
        self.shared.live.ended(id);
        if self.request(Request::Withdraw(id)).await {
            self.flights.insert(id, Flight::Withdrawing { job });
        } else {
            self.flights.remove(&id);
        }
    }

    /// False: the link is gone, a Down is on its way.
    async fn request(&mut self, request: Request) -> bool {
        let sent = self.shared.links.request(self.peer.id, request).await.is_ok();
        self.linked &= sent;
        sent
    }

    /// All of them, whatever happens to one: each is the only answer to a request that is in flight. Where the job list
    /// did not take one, the job is still as it was, and is offered again.
    async fn handle(&mut self, events: impl Iterator<Item = LinkEvent>) -> Result<(), DbError> {
        let mut proofs = Vec::new();
        let mut all = Ok(());
        for event in events {
            all = self.heed(event, &mut proofs).await.and(all);
        }
        if !proofs.is_empty() {
            self.delivered(proofs).await?;
        }
        all
    }

    async fn delivered(&mut self, proofs: Vec<(Proof, Receipt)>) -> Result<(), DbError> {
        let told: Vec<_> = proofs
            .iter()
            .map(|(p, _)| (p.id, p.delivered_as.clone()))
            .collect();
        let noted = self.shared.delivered(proofs).await;
        told.iter().for_each(|(job, _)| self.shared.live.ended(*job));
        let unproven = noted?;
        for (job, path) in told {
            if unproven.iter().all(|(proof, _)| proof.id != job) {
                info!(peer = %self.peer.name, %job, delivered_as = %path, "delivered");
            }
        }
        for (proof, receipt) in unproven {
            if let Some(job) = self.shared.queue.get(proof.id).await? {
                self.settled(Box::new(job), receipt).await?;
            }
        }
        Ok(())
    }

    async fn heed(&mut self, event: LinkEvent, proofs: &mut Vec<(Proof, Receipt)>) -> Result<(), DbError> {
        match event {
            LinkEvent::Up { .. } => {
                fault::panic_at("dispatch");
                self.linked = true;
            }
            LinkEvent::Down { .. } => self.down(),
            LinkEvent::Delivered { id, receipt, .. } => {
                let Some(Flight::Offered { job, source, .. }) = self.flights.remove(&id) else {
                    self.shared.live.ended(id);
                    return Ok(());
                };
                let same = |body| match source.digest() {
                    Some(read) => proof::same_digest(&body, read).map(|()| body),
                    None => Err("the receipt came before all bytes were read".to_owned()),
                };
                match self.check(&job, &receipt).and_then(same) {
                    Ok(body) => proofs.push((proof::proof(&receipt, &body, job.found.version), receipt)),
                    Err(why) => {
                        self.shared.live.ended(id);
                        self.retry(&job, format!("receipt ignored: {why}"), None).await?;
                    }
                }
            }
            LinkEvent::Settled { id, receipt, .. } => match self.land(id) {
                Some(Flight::Offered { job, .. }) => self.settled(job, receipt).await?,
                Some(Flight::Withdrawing { job }) => {
                    let job = match job {
                        Some(job) => Some(*job),
                        None => self.shared.queue.by_any_id(id).await?,
                    };
                    match job.map(|job| (self.check(&job, &receipt), job.found.version)) {
                        Some((Ok(body), version)) => {
                            proofs.push((proof::proof(&receipt, &body, version), receipt));
                        }
                        Some((Err(why), _)) => {
                            warn!(peer = %self.peer.name, job = %id, why, "receipt ignored");
                            // Asked again by the next link: on this one the answer would be the same.
                            self.flights.insert(id, Flight::Withdrawing { job: None });
                        }
                        None => self.shared.queue.withdrawn(vec![id], now_ms()).await?, // no job wants to know
                    }
                }
                Some(Flight::Rereading { .. }) | None => {}
            },
            LinkEvent::Declined {
                id,
                reason,
                text,
                retry_after_ms,
                ..
            } => {
                if let Some(Flight::Offered { job, .. }) = self.land(id) {
                    self.declined(*job, reason, &text, retry_after_ms).await?;
                }
            }
            LinkEvent::Withdrawn { id, .. } => {
                if let Some(Flight::Withdrawing { job: Some(job) }) = self.land(id) {
                    self.gone(job).await?;
                }
                self.shared.queue.withdrawn(vec![id], now_ms()).await?;
            }
            LinkEvent::Forgotten { ids, .. } => {
                self.forgetting = false;
                self.shared.queue.forgotten(ids).await?;
            }
            LinkEvent::Retimed { ids, .. } => {
                let told = self
                    .retiming
                    .extract_if(.., |late| ids.contains(&late.id))
                    .collect();
                self.shared.queue.retimed(told).await?;
            }
            LinkEvent::Voided { id, why, .. } => {
                if let Some(Flight::Offered { job, .. }) = self.land(id) {
                    self.voided(job, why).await?;
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, job: &Job, receipt: &Receipt) -> Result<ReceiptBody, String> {
        let claim = Claim {
            id: job.id,
            sender: self.shared.identity.id(),
            receiver: self.peer.id,
            path: &job.found.path,
            size: job.found.version.size,
        };
        proof::check(&mut self.verifier, receipt, &claim)
    }

    /// The peer has had it before. That counts for what lies in the outbox only if it is the same version with the
    /// same bytes, so the file is read again.
    async fn settled(&mut self, job: Box<Job>, receipt: Receipt) -> Result<(), DbError> {
        let body = match self.check(&job, &receipt) {
            Ok(body) => body,
            Err(why) => return self.retry(&job, format!("receipt ignored: {why}"), None).await,
        };
        let class = Class::of(&job.found.version);
        self.flights.insert(job.id, Flight::Rereading { class });
        let cancel = self.cancel.clone();
        self.rereading.spawn_blocking(move || {
            let digest = send::digest_of(&job.root, &job.found, &|| cancel.is_cancelled());
            let digest = digest.map(|(digest, _)| digest);
            Reread {
                job,
                receipt,
                body,
                digest,
            }
        });
        Ok(())
    }

    async fn reread(&mut self, reread: Result<Reread, JoinError>) -> Result<(), DbError> {
        // The daemon learns of a panic itself; without a receipt the job is offered again.
        let Ok(Reread {
            job,
            receipt,
            body,
            digest,
        }) = reread
        else {
            return Ok(());
        };
        self.land(job.id);
        match digest {
            Ok(digest) if digest != body.digest && !fault::mutant("S4-rehash") => {
                warn!(peer = %self.peer.name, job = %job.id, %digest, "the peer has other bytes under this id: sent anew");
                return self
                    .begin_anew(*job, "the peer has other bytes under its id")
                    .await;
            }
            // That version was delivered. Disposal will leave alone what lies there now.
            Ok(_) | Err(Voided::Changed | Voided::Gone) => {}
            Err(why) => return self.retry(&job, voided_text(&why), None).await,
        }
        let proof = proof::proof(&receipt, &body, job.found.version);
        self.delivered(vec![(proof, receipt)]).await?;
        // After the receipt is in: with its bytes, what lies there now is the same drop.
        if digest == Err(Voided::Changed) {
            self.shared.recheck(&job);
        }
        Ok(())
    }

    fn down(&mut self) {
        self.linked = false;
        self.forgetting = false;
        self.retiming.clear();
        if self.unanswered.len() > MOST_UNANSWERED {
            self.unanswered.clear(); // jobs that ended otherwise; at worst some bytes go once more
        }
        // What is being read again is not offered once more before that ends: a large file would be read anew with
        // every link.
        let (reading, flights) = std::mem::take(&mut self.flights)
            .into_iter()
            .partition(|(_, flight)| flight.outlives_link());
        self.flights = flights;
        self.unanswered.extend(self.flights.keys());
        self.land_all();
        self.flights = reading;
    }

    fn land(&mut self, id: TransferId) -> Option<Flight> {
        self.shared.live.ended(id);
        self.flights.remove(&id)
    }

    fn land_all(&mut self) {
        for id in std::mem::take(&mut self.flights).into_keys() {
            self.shared.live.ended(id);
        }
    }
}
