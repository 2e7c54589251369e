//! One peer's jobs on their way: due jobs become offers, what the link tells becomes changes of the job list.
//!
//! One task a peer, so that a dead or slow peer holds up nobody else. It never waits for the link while the link
//! waits for it: every event answers a request that is in flight, and those are bounded by [`schedule::MOST`].

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use dropwire_protocol::{Receipt, TransferId, message::DeclineReason};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Shared,
    proof::{self, Claim},
    state::now_ms,
};
use crate::{
    backoff, config,
    db::DbError,
    fault,
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
    peer: config::Peer,
    linked: bool,
    flights: HashMap<TransferId, Flight>,
    /// Offered on a link that went down before the answer: the peer may have all of it, and is asked first.
    unanswered: HashSet<TransferId>,
    /// A Forget is on its way; the next one waits for its answer.
    forgetting: bool,
}

/// What is under way for one transfer.
enum Flight {
    /// Offered; bytes come from `source`.
    Offered {
        job: Box<Job>,
        source: Arc<FileSource>,
        class: Class,
    },
    /// Withdrawn; `job` is there if its own end depends on the answer (the file is gone).
    Withdrawing { job: Option<Box<Job>> },
}

impl Dispatcher {
    /// Runs until cancelled.
    pub async fn run(
        shared: Arc<Shared>,
        peer: config::Peer,
        mut events: mpsc::Receiver<LinkEvent>,
        cancel: CancellationToken,
    ) {
        let wake = shared.wake(peer.id);
        let mut this = Dispatcher {
            shared,
            peer,
            linked: false,
            flights: HashMap::new(),
            unanswered: HashSet::new(),
            forgetting: false,
        };
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let next_due = match this.fill().await {
                Ok(next_due) => next_due,
                Err(error) => {
                    warn!(peer = %this.peer.name, %error, "job list");
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
                    if let Err(error) = this.handle(batch.drain(..)).await {
                        warn!(peer = %this.peer.name, %error, "job list");
                    }
                }
                () = wake.notified() => {}
                () = due => {}
            }
        }
        this.land_all();
    }

    /// Offers what is due and there is room for; says when the next job becomes due.
    async fn fill(&mut self) -> Result<Option<Instant>, DbError> {
        if !self.linked {
            return Ok(None);
        }
        let queue = &self.shared.queue;
        for id in queue.to_withdraw(self.peer.id, BATCH).await? {
            if !matches!(self.flights.get(&id), Some(Flight::Withdrawing { .. })) {
                self.withdraw(id, None).await;
            }
        }
        if !self.forgetting {
            let ids = self.shared.queue.to_forget(self.peer.id, BATCH).await?;
            if !ids.is_empty() {
                self.forgetting = self.request(Request::Forget(ids)).await;
            }
        }
        let under_way = Load {
            small: self.in_flight(Class::Small),
            large: self.in_flight(Class::Large),
        };
        let room = schedule::room(under_way, MAX_OPEN as usize);
        for (class, room) in [(Class::Small, room.small), (Class::Large, room.large)] {
            if room == 0 {
                continue;
            }
            let busy: HashSet<TransferId> = self.flights.keys().copied().collect();
            for job in self
                .shared
                .queue
                .due(self.peer.id, class, room, busy, now_ms())
                .await?
            {
                self.offer(job, class).await;
            }
        }
        let next = self.shared.queue.next_due_ms(self.peer.id, now_ms()).await?;
        Ok(next.map(|at| {
            Instant::now() + Duration::from_millis(at.saturating_sub(now_ms()).max(1).unsigned_abs())
        }))
    }

    fn in_flight(&self, wanted: Class) -> usize {
        let of_class = |f: &&Flight| matches!(f, Flight::Offered { class, .. } if *class == wanted);
        self.flights.values().filter(of_class).count()
    }

    async fn offer(&mut self, job: Job, class: Class) {
        let source = Arc::new(FileSource::new(
            job.root.clone(),
            job.found.path.clone(),
            job.found.version,
        ));
        let progress = Arc::new(AtomicU64::new(0));
        let outgoing = Outgoing {
            id: job.id,
            manifest: job.manifest(),
            eager: !self.unanswered.remove(&job.id),
            source: source.clone(),
            progress: progress.clone(),
        };
        if self.request(Request::Offer(outgoing)).await {
            debug!(peer = %self.peer.name, job = %job.id, path = %job.found.path, "offered");
            self.shared.live.started(job.id, self.peer.id, progress);
            self.flights.insert(
                job.id,
                Flight::Offered {
                    job: Box::new(job),
                    source,
                    class,
                },
            );
        }
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

    async fn handle(&mut self, events: impl Iterator<Item = LinkEvent>) -> Result<(), DbError> {
        let mut proofs = Vec::new();
        for event in events {
            match event {
                LinkEvent::Up { .. } => {
                    info!(peer = %self.peer.name, "linked");
                    self.linked = true;
                }
                LinkEvent::Down { error, .. } => {
                    info!(peer = %self.peer.name, error, "link down");
                    self.down();
                }
                LinkEvent::Delivered { id, receipt, .. } => {
                    if let Some(Flight::Offered { job, source, .. }) = self.land(id) {
                        let read = source.digest();
                        match self.check(&job, &receipt).and_then(|body| match read {
                            Some(read) => proof::same_digest(&body, read).map(|()| body),
                            None => Err("the receipt came before all bytes were read".to_owned()),
                        }) {
                            Ok(body) => proofs.push((proof::proof(&receipt, &body), receipt)),
                            Err(why) => self.retry(&job, format!("receipt ignored: {why}"), None).await?,
                        }
                    }
                }
                LinkEvent::Settled { id, receipt, .. } => match self.land(id) {
                    Some(Flight::Offered { job, .. }) => proofs.extend(self.settled(*job, &receipt).await?),
                    Some(Flight::Withdrawing { job }) => {
                        let job = match job {
                            Some(job) => Some(*job),
                            None => self.shared.queue.get(id).await?,
                        };
                        if let Some(job) = job {
                            match self.check(&job, &receipt) {
                                Ok(body) => proofs.push((proof::proof(&receipt, &body), receipt)),
                                Err(why) => warn!(peer = %self.peer.name, job = %id, why, "receipt ignored"),
                            }
                        }
                    }
                    None => {}
                },
                LinkEvent::Declined {
                    id,
                    reason,
                    text,
                    retry_after_ms,
                    ..
                } => {
                    if let Some(Flight::Offered { job, .. }) = self.land(id) {
                        self.declined(&job, reason, &text, retry_after_ms).await?;
                    }
                }
                LinkEvent::Withdrawn { id, .. } => {
                    if let Some(Flight::Withdrawing { job: Some(job) }) = self.land(id) {
                        let why = "gone: the file was removed before it was delivered".to_owned();
                        self.shared.queue.fail(job.id, why, now_ms()).await?;
                    }
                    self.shared.queue.withdrawn(vec![id], now_ms()).await?;
                }
                LinkEvent::Forgotten { ids, .. } => {
                    self.forgetting = false;
                    self.shared.queue.forgotten(ids).await?;
                }
                LinkEvent::Voided { id, why, .. } => {
                    if let Some(Flight::Offered { job, .. }) = self.land(id) {
                        self.voided(job, why).await?;
                    }
                }
            }
        }
        if !proofs.is_empty() {
            self.shared.delivered(proofs).await?;
        }
        Ok(())
    }

    fn check(&self, job: &Job, receipt: &Receipt) -> Result<dropwire_protocol::ReceiptBody, String> {
        let claim = Claim {
            id: job.id,
            sender: self.shared.identity.id(),
            receiver: self.peer.id,
            path: &job.found.path,
            size: job.found.version.size,
        };
        proof::check(receipt, &claim)
    }

    /// The peer has had it before. That counts for what lies in the outbox only if it is the same version with the same bytes.
    async fn settled(&mut self, job: Job, receipt: &Receipt) -> Result<Option<(Proof, Receipt)>, DbError> {
        let body = match self.check(&job, receipt) {
            Ok(body) => body,
            Err(why) => {
                self.retry(&job, format!("receipt ignored: {why}"), None).await?;
                return Ok(None);
            }
        };
        let (root, path, version) = (job.root.clone(), job.found.path.clone(), job.found.version);
        let hashed = tokio::task::spawn_blocking(move || send::digest_of(&root, &path, &version)).await;
        match hashed {
            Ok(Ok(digest)) if digest == body.digest || fault::mutant("S4-rehash") => {
                Ok(Some((proof::proof(receipt, &body), receipt.clone())))
            }
            Ok(Ok(digest)) => {
                warn!(peer = %self.peer.name, job = %job.id, %digest, "the peer has other bytes under this id: sent anew");
                self.shared.queue.recount(job.id, now_ms()).await?;
                Ok(None)
            }
            Ok(Err(Voided::Gone)) => Ok(Some((proof::proof(receipt, &body), receipt.clone()))),
            Ok(Err(Voided::Changed)) => {
                // That version was delivered; what lies there now is a new drop, which disposal will leave alone.
                self.shared.recheck(&job);
                Ok(Some((proof::proof(receipt, &body), receipt.clone())))
            }
            Ok(Err(why)) => {
                self.retry(&job, voided_text(&why), None).await?;
                Ok(None)
            }
            Err(panicked) => {
                self.retry(&job, panicked.to_string(), None).await?;
                Ok(None)
            }
        }
    }

    async fn declined(
        &mut self,
        job: &Job,
        reason: DeclineReason,
        text: &str,
        retry_after_ms: Option<u64>,
    ) -> Result<(), DbError> {
        use DeclineReason as R;
        match reason {
            // The id is of no more use there; the same file goes under a new one.
            R::Conflict | R::Withdrawn => {
                self.shared.queue.recount(job.id, now_ms()).await?;
                Ok(())
            }
            R::NoSpace
            | R::TooLarge
            | R::InboxUnavailable
            | R::Busy
            | R::BadName
            | R::Fenced
            | R::DiskError => {
                let text = dropwire_protocol::name::escape(text.as_bytes());
                let error = format!("{} declined: {text}", self.peer.name);
                self.retry(job, error, retry_after_ms.map(Duration::from_millis))
                    .await
            }
        }
    }

    async fn voided(&mut self, job: Box<Job>, why: Voided) -> Result<(), DbError> {
        match why {
            // Done may have left in an earlier attempt: the peer knows how it ended.
            Voided::Gone => {
                self.withdraw(job.id, Some(job)).await;
                Ok(())
            }
            Voided::PrefixDiffers => {
                self.withdraw(job.id, None).await;
                self.shared.queue.recount(job.id, now_ms()).await?;
                Ok(())
            }
            Voided::Changed | Voided::Writer | Voided::Unreadable(_) => {
                self.shared.recheck(&job);
                self.retry(&job, voided_text(&why), None).await
            }
        }
    }

    /// A later attempt: after the backoff, or when the peer said, whichever is later.
    async fn retry(&mut self, job: &Job, error: String, not_before: Option<Duration>) -> Result<(), DbError> {
        let policy = self.shared.config().retry;
        let seed = u64::from_be_bytes(job.id.0[..8].try_into().unwrap_or_default());
        let wait = backoff::delay(
            policy.first,
            policy.max,
            job.attempts,
            seed ^ now_ms().unsigned_abs(),
        );
        let wait = wait.max(not_before.unwrap_or_default().min(policy.max));
        info!(peer = %self.peer.name, job = %job.id, path = %job.found.path, error, wait_s = wait.as_secs_f64(), "tried in vain");
        let at = now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        self.shared.queue.retry(job.id, error, at, now_ms()).await
    }

    fn down(&mut self) {
        self.linked = false;
        self.forgetting = false;
        if self.unanswered.len() > MOST_UNANSWERED {
            self.unanswered.clear(); // jobs that ended otherwise; at worst some bytes go once more
        }
        self.unanswered.extend(self.flights.keys());
        self.land_all();
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

fn voided_text(why: &Voided) -> String {
    match why {
        Voided::Changed => "changed while it was being sent; waits until it rests".into(),
        Voided::Gone => "gone".into(),
        Voided::Writer => "a program has it open for writing; waits until it is closed".into(),
        Voided::PrefixDiffers => "the peer's partial is of other bytes; sent anew".into(),
        Voided::Unreadable(cause) => format!("cannot be read: {cause}"),
    }
}
