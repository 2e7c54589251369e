//! One peer's jobs on their way: due jobs become offers, what the link tells becomes changes of the job list.
//!
//! One task a peer, so that a dead or slow peer holds up nobody else. It never waits for the link while the link
//! waits for it: every event answers a request that is in flight, and those are bounded by [`schedule::MOST`].

mod retry;

use std::{
    collections::HashSet,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use dropwire_protocol::{AgentId, Digest, Receipt, ReceiptBody, TransferId, message::LateTime};
use tokio::{
    sync::{broadcast, mpsc},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    checkpoints::CheckpointSink,
    in_flight::{InFlight, OfPeer, Progress, STALLED, Transfer},
    outboxes::Outboxes,
    receipts::{self, Claim},
    source::{self, FileSource, SmallReads},
};
use crate::{
    clock::{now_ms, reached},
    config::{self, Config, Current},
    db::DbError,
    error::chain,
    failpoints,
    identity::Verifier,
    link::{LinkEvent, Links, MAX_OPEN, Outgoing, Request, Voided},
    queue::{
        Class, Job, Proof, Queue,
        schedule::{self, Load},
    },
};

/// Most events handled, and most receipts written, in one go.
const BATCH: usize = 256;
/// Most transfers remembered as offered without an answer.
const MOST_UNANSWERED: usize = 4096;

/// What the dispatcher of each peer works with.
#[derive(Clone)]
pub(super) struct Context {
    /// This agent.
    pub(super) own: AgentId,
    pub(super) config: Current,
    pub(super) queue: Queue,
    pub(super) links: Links,
    pub(super) outboxes: Outboxes,
    pub(super) in_flight: InFlight,
    pub(super) reads: SmallReads,
    pub(super) checkpoints: CheckpointSink,
    /// Receipts that went to the job list; nobody listens but the demo.
    pub(super) receipts: broadcast::Sender<Arc<Receipt>>,
}

/// One peer's task.
pub(super) struct Dispatcher {
    context: Context,
    /// The one that `peer` is from.
    config: Arc<Config>,
    peer: config::Peer,
    linked: bool,
    in_flight: OfPeer,
    /// Offered on a link that went down before the answer.
    unanswered: HashSet<TransferId>,
    /// A Forget is on its way; the next one waits for its answer.
    forgetting: bool,
    /// That answer on its way into the job list.
    forgets: JoinSet<Result<(), DbError>>,
    /// Late times that the peer is told right now; the next ones wait for its answers.
    retiming: Vec<LateTime>,
    /// Files read again because their receipt came without our Done; large ones must not hold up the rest.
    rereading: JoinSet<Reread>,
    verifier: Verifier,
    cancel: CancellationToken,
}

/// A file that was read again.
struct Reread {
    /// Whose file.
    job: Box<Job>,
    /// Found to be for this job...
    receipt: Receipt,
    /// ...by what it says, whose digest is to be compared with...
    body: ReceiptBody,
    /// ...what was read now.
    digest: Result<Digest, Voided>,
}

impl Dispatcher {
    pub(super) fn new(context: Context, peer: config::Peer, cancel: CancellationToken) -> Self {
        Self {
            config: context.config.get(),
            in_flight: context.in_flight.of(peer.id),
            context,
            peer,
            linked: false,
            unanswered: HashSet::new(),
            forgetting: false,
            forgets: JoinSet::new(),
            retiming: Vec::new(),
            rereading: JoinSet::new(),
            verifier: Verifier::default(),
            cancel,
        }
    }

    /// Runs until cancelled, or until no link will tell `events` any more.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<LinkEvent>) {
        let cancel = self.cancel.clone();
        let _ended = cancel.clone().drop_guard(); // nobody waits for what is being read again
        let work = self.context.queue.work_for(self.peer.id);
        let mut batch = Vec::new(); // mostly few, and there are as many as peers
        loop {
            self.follow_config();
            // Whatever it waits for (a link that is behind, a large file read once more) does not hold up the end.
            let Some(filled) = cancel.run_until_cancelled(self.fill()).await else {
                break;
            };
            let next_due = match filled {
                Ok(next_due) => next_due,
                Err(error) => {
                    warn!(peer = %self.peer.name, error = %chain(&error), "the job list failed");
                    Some(Instant::now() + Duration::from_secs(5))
                }
            };
            tokio::select! {
                () = cancel.cancelled() => break,
                count = events.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    match cancel.run_until_cancelled(self.handle(batch.drain(..))).await {
                        Some(Ok(())) => {}
                        Some(Err(error)) => warn!(peer = %self.peer.name, error = %chain(&error), "the job list failed"),
                        None => break,
                    }
                }
                Some(reread) = self.rereading.join_next() => {
                    if let Err(error) = self.reread(reread).await {
                        warn!(peer = %self.peer.name, error = %chain(&error), "the job list failed");
                    }
                }
                Some(forgotten) = self.forgets.join_next() => {
                    self.forgetting = false;
                    if let Ok(Err(error)) = forgotten {
                        warn!(peer = %self.peer.name, error = %chain(&error), "the job list failed");
                    }
                }
                () = work.notified() => {}
                () = reached(next_due) => {}
            }
        }
    }

    /// Our name for the peer may be another since a reload.
    fn follow_config(&mut self) {
        let config = self.context.config.get();
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
            small: self.in_flight.count(Class::Small),
            large: self.in_flight.count(Class::Large),
        };
        let room = schedule::room(under_way, MAX_OPEN as usize);
        let busy = self.in_flight.ids().into_iter().collect();
        let todo = self
            .context
            .queue
            .todo(self.peer.id, room, busy, now_ms())
            .await?;
        for id in todo.withdraw {
            if !self.in_flight.is_withdrawing(id) {
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
        let stalled = (!self.in_flight.is_empty()).then(|| Instant::now() + STALLED);
        Ok(due.into_iter().chain(stalled).min())
    }

    /// Transfers of which nothing moves: the peer lives, but does not answer.
    async fn break_off_stalled(&mut self) -> Result<(), DbError> {
        for id in self.in_flight.stalled(Instant::now()) {
            self.request(Request::Close(id)).await;
            if let Some(Transfer::Offered { job, .. }) = self.in_flight.remove(id) {
                self.retry(&job, format!("{} did not answer", self.peer.name), None)
                    .await?;
            }
        }
        Ok(())
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
        debug!(peer = %self.peer.name, job = %job.id, path = %job.found.path, "offered");
        let id = job.id;
        let offered = Transfer::Offered {
            job: Box::new(job),
            source,
            class,
            progress: Progress::since(Instant::now(), progress),
        };
        // First: whoever asks whether it is on its way must not be told too late.
        self.in_flight.insert(id, offered);
        if !self.request(Request::Offer(outgoing)).await {
            self.in_flight.remove(id);
        }
        Ok(())
    }

    /// Only then do the bytes of a small file run ahead of the answer. Whatever was offered before, in an earlier life
    /// of the agent too, may lie across or be declined again: asking costs a round trip, and no bytes.
    fn is_first_offer(&mut self, job: &Job) -> bool {
        let offered_on_a_lost_link = self.unanswered.remove(&job.id);
        !offered_on_a_lost_link && job.attempts == 0 && self.context.queue.is_of_this_run(job)
    }

    async fn source(&self, job: &Job, class: Class) -> Result<FileSource, DbError> {
        let (root, found, reads) = (job.root.clone(), job.found.clone(), self.context.reads.clone());
        if class == Class::Small {
            return Ok(FileSource::new(root, found, reads));
        }
        let kept = self.context.queue.checkpoints(job.item).await?;
        let keep = self.context.checkpoints.keeping(job.item);
        Ok(FileSource::resumable(root, found, reads, &kept, keep))
    }

    /// Asks how a transfer ended that will not be sent any more.
    async fn withdraw(&mut self, id: TransferId, job: Option<Box<Job>>) {
        self.in_flight.insert(id, Transfer::Withdrawing { job });
        if !self.request(Request::Withdraw(id)).await {
            self.in_flight.remove(id);
        }
    }

    /// False: the link is gone, a Down is on its way.
    async fn request(&mut self, request: Request) -> bool {
        let sent = self.context.links.request(self.peer.id, request).await.is_ok();
        self.linked &= sent;
        sent
    }

    /// All of them, whatever happens to one: each is the only answer to a request that is in flight. Where the job list
    /// did not take one, the job is still as it was, and is offered again.
    async fn handle(&mut self, events: impl Iterator<Item = LinkEvent>) -> Result<(), DbError> {
        let mut proofs = Vec::new();
        let mut all = Ok(());
        for event in events {
            all = self.on_event(event, &mut proofs).await.and(all);
        }
        if !proofs.is_empty() {
            self.delivered(proofs).await?;
        }
        all
    }

    /// S4: receipts that were found right go to the job list in one commit; files that all peers have now may leave.
    async fn delivered(&mut self, proofs: Vec<(Proof, Receipt)>) -> Result<(), DbError> {
        let told = proofs.iter().map(|(proof, _)| proof.clone()).collect();
        let recorded = self.context.queue.delivered(told, now_ms()).await;
        for (proof, _) in &proofs {
            self.in_flight.remove(proof.id);
        }
        let unproven = recorded?.unproven;
        let is_unproven = |(proof, _): &(Proof, Receipt)| unproven.contains(&proof.id);
        let (unproven, delivered): (Vec<_>, Vec<_>) = proofs.into_iter().partition(is_unproven);
        for (proof, receipt) in delivered {
            info!(peer = %self.peer.name, job = %proof.id, delivered_as = %proof.delivered_as, "delivered");
            let _ = self.context.receipts.send(Arc::new(receipt));
        }
        for (proof, receipt) in unproven {
            if let Some(job) = self.context.queue.get(proof.id).await? {
                self.settled(Box::new(job), receipt).await?;
            }
        }
        Ok(())
    }

    async fn on_event(
        &mut self,
        event: LinkEvent,
        proofs: &mut Vec<(Proof, Receipt)>,
    ) -> Result<(), DbError> {
        match event {
            LinkEvent::Up => {
                failpoints::panic_at("dispatch");
                self.linked = true;
            }
            LinkEvent::Down { .. } => self.down(),
            LinkEvent::Delivered { id, receipt, .. } => {
                let Some((job, source)) = self.in_flight.delivered(id) else {
                    return Ok(());
                };
                let same = |body| match source.digest() {
                    Some(read) => receipts::same_digest(&body, read).map(|()| body),
                    None => Err("the receipt came before all bytes were read".to_owned()),
                };
                match self.check(&job, &receipt).and_then(same) {
                    Ok(body) => proofs.push((receipts::proof(&receipt, &body, job.found.version), receipt)),
                    Err(why) => {
                        self.in_flight.remove(id);
                        self.retry(&job, format!("receipt ignored: {why}"), None).await?;
                    }
                }
            }
            LinkEvent::Settled { id, receipt, .. } => match self.in_flight.remove(id) {
                Some(Transfer::Offered { job, .. }) => self.settled(job, receipt).await?,
                Some(Transfer::Withdrawing { job }) => {
                    let job = match job {
                        Some(job) => Some(*job),
                        None => self.context.queue.by_any_id(id).await?,
                    };
                    match job.map(|job| (self.check(&job, &receipt), job.found.version)) {
                        Some((Ok(body), version)) => {
                            proofs.push((receipts::proof(&receipt, &body, version), receipt));
                        }
                        Some((Err(why), _)) => {
                            warn!(peer = %self.peer.name, job = %id, why, "receipt ignored");
                            // Asked again by the next link: on this one the answer would be the same.
                            self.in_flight.insert(id, Transfer::Withdrawing { job: None });
                        }
                        None => self.context.queue.withdrawn(vec![id], now_ms()).await?, // no job wants to know
                    }
                }
                Some(Transfer::Delivered { .. } | Transfer::Rereading { .. }) | None => {}
            },
            LinkEvent::Declined {
                id,
                reason,
                text,
                retry_after_ms,
                ..
            } => {
                if let Some(Transfer::Offered { job, .. }) = self.in_flight.remove(id) {
                    self.declined(*job, reason, &text, retry_after_ms).await?;
                }
            }
            LinkEvent::Withdrawn { id, .. } => {
                if let Some(Transfer::Withdrawing { job: Some(job) }) = self.in_flight.remove(id) {
                    self.gone(job).await?;
                }
                self.context.queue.withdrawn(vec![id], now_ms()).await?;
            }
            LinkEvent::Forgotten { ids, .. } => {
                let queue = self.context.queue.clone();
                self.forgets.spawn(async move { queue.forgotten(ids).await });
            }
            LinkEvent::Retimed { ids, .. } => {
                let told = self
                    .retiming
                    .extract_if(.., |late| ids.contains(&late.id))
                    .collect();
                self.context.queue.retimed(told).await?;
            }
            LinkEvent::Voided { id, why, .. } => {
                if let Some(Transfer::Offered { job, .. }) = self.in_flight.remove(id) {
                    self.voided(job, why).await?;
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, job: &Job, receipt: &Receipt) -> Result<ReceiptBody, String> {
        let claim = Claim {
            id: job.id,
            sender: self.context.own,
            receiver: self.peer.id,
            path: &job.found.path,
            size: job.found.version.size,
        };
        receipts::check(&mut self.verifier, receipt, &claim)
    }

    /// The peer has had it before. That counts for what lies in the outbox only if it is the same version with the
    /// same bytes, so the file is read again.
    async fn settled(&mut self, job: Box<Job>, receipt: Receipt) -> Result<(), DbError> {
        let body = match self.check(&job, &receipt) {
            Ok(body) => body,
            Err(why) => return self.retry(&job, format!("receipt ignored: {why}"), None).await,
        };
        let class = Class::of(&job.found.version);
        self.in_flight.insert(job.id, Transfer::Rereading { class });
        let cancel = self.cancel.clone();
        self.rereading.spawn_blocking(move || {
            let digest = source::digest_of(&job.root, &job.found, &|| cancel.is_cancelled());
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
        // Without a receipt the job is offered again.
        let Ok(Reread {
            job,
            receipt,
            body,
            digest,
        }) = reread
        else {
            return Ok(());
        };
        self.in_flight.remove(job.id);
        match digest {
            Ok(digest) if digest != body.digest && !failpoints::mutant("S4-rehash") => {
                warn!(peer = %self.peer.name, job = %job.id, %digest, "the peer has other bytes under this id; sent again");
                return self
                    .begin_anew(*job, "the peer has other bytes under its id")
                    .await;
            }
            // That version was delivered. Cleanup will leave alone what is there now.
            Ok(_) | Err(Voided::Changed | Voided::Gone) => {}
            Err(why) => return self.retry(&job, retry::voided_text(&why), None).await,
        }
        let proof = receipts::proof(&receipt, &body, job.found.version);
        self.delivered(vec![(proof, receipt)]).await?;
        // After the receipt is in: with its bytes, what lies there now is the same item.
        if digest == Err(Voided::Changed) {
            self.context.outboxes.recheck(&job.found);
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
        self.unanswered.extend(self.in_flight.cut());
    }
}
