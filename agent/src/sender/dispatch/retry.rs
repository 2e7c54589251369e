//! What did not work: each failure leads to a later attempt, to a new id, or to the question how it ended.

use std::time::Duration;

use dropwire_protocol::message::DeclineReason;
use tracing::{debug, info};

use super::Dispatcher;
use crate::{
    backoff,
    blocking::blocking,
    clock::now_ms,
    db::DbError,
    link::Voided,
    queue::Job,
    sender::presence::{self, Presence},
};

impl Dispatcher {
    pub(super) async fn declined(
        &mut self,
        job: Job,
        reason: DeclineReason,
        text: &str,
        retry_after_ms: Option<u64>,
    ) -> Result<(), DbError> {
        use DeclineReason as R;
        let text = dropwire_protocol::name::escape(text.as_bytes());
        let error = format!("{} declined: {text}", self.peer.name);
        match reason {
            R::Conflict | R::Withdrawn => self.begin_anew(job, "its id is spent at the peer").await,
            // Only the person who dropped it can give it another name.
            R::BadName => self.context.queue.refused(job.id, error, now_ms()).await,
            R::Busy if retry_after_ms.is_some() => {
                let after = Duration::from_millis(retry_after_ms.unwrap_or_default());
                self.ask_again(&job, error, after).await
            }
            R::NoSpace
            | R::TooLarge
            | R::InboxUnavailable
            | R::Busy
            | R::Fenced
            | R::DiskError
            | R::NoFolders => {
                self.retry(&job, error, retry_after_ms.map(Duration::from_millis))
                    .await
            }
        }
    }

    pub(super) async fn voided(&mut self, job: Box<Job>, why: Voided) -> Result<(), DbError> {
        match why {
            // Done may have left in an earlier attempt: the peer knows how it ended.
            Voided::Gone => {
                self.withdraw(job.id, Some(job)).await;
                Ok(())
            }
            Voided::PrefixDiffers => {
                self.withdraw(job.id, None).await;
                self.begin_anew(*job, &voided_text(&why)).await
            }
            Voided::Changed | Voided::Writer | Voided::Unreadable(_) => {
                // Found changed already: as that version it is due.
                let now = self.context.queue.get(job.id).await?;
                if now.is_some_and(|now| !now.found.version.same_identity(&job.found.version)) {
                    return Ok(());
                }
                self.context.outboxes.recheck(&job.found);
                self.retry(&job, voided_text(&why), None).await
            }
        }
    }

    /// Its file was not there, and the peer will not deliver it. If it came back meanwhile, only this peer's job begins
    /// again: others may have read it, and need it once.
    pub(super) async fn gone(&mut self, job: Box<Job>) -> Result<(), DbError> {
        let (root, found) = (job.root.clone(), job.found.clone());
        if let Ok(Presence::Missing) = blocking(move || presence::find(&root, &found)).await {
            self.context.queue.gone(job.id, now_ms()).await?;
            self.context.outboxes.recheck(&job.found); // there may be another version
            return Ok(());
        }
        self.begin_anew(*job, "its file was away").await
    }

    /// The id is of no more use there; the same file goes under a new one, after the backoff like every other attempt:
    /// a peer that never likes one must not fill the job list with them ([`crate::queue::Queue::recount`] gives no more
    /// after many).
    pub(super) async fn begin_anew(&mut self, job: Job, why: &str) -> Result<(), DbError> {
        match self.context.queue.recount(job.id, now_ms()).await? {
            Some(id) => self.retry(&Job { id, ..job }, why.into(), None).await,
            None => Ok(()),
        }
    }

    /// A later attempt: after the backoff, or when the peer said, whichever is later.
    pub(super) async fn retry(
        &mut self,
        job: &Job,
        error: String,
        not_before: Option<Duration>,
    ) -> Result<(), DbError> {
        let policy = self.context.config.get().retry;
        let seed = u64::from_be_bytes(job.id.0[..8].try_into().unwrap_or_default());
        let wait = backoff::delay(
            policy.first,
            policy.max,
            job.attempts,
            seed ^ now_ms().unsigned_abs(),
        );
        let wait = wait.max(not_before.unwrap_or_default().min(policy.max));
        info!(peer = %self.peer.name, job = %job.id, path = %job.found.path, error, wait_s = wait.as_secs_f64(), "attempt failed; will retry");
        self.context.queue.retry(job.id, error, at(wait), now_ms()).await
    }

    /// The peer has its hands full and says for how long: nothing is wrong with the job, so it does not wait ever longer.
    /// What it says is no reason to ask without a pause.
    async fn ask_again(&self, job: &Job, error: String, after: Duration) -> Result<(), DbError> {
        let policy = self.context.config.get().retry;
        let wait = after.max(policy.first).min(policy.max);
        debug!(peer = %self.peer.name, job = %job.id, path = %job.found.path, error, wait_s = wait.as_secs_f64(), "asked to wait");
        self.context
            .queue
            .postpone(job.id, error, at(wait), now_ms())
            .await
    }
}

/// The clock's time in so long.
fn at(wait: Duration) -> i64 {
    now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
}

/// Why a pass was void, for people.
pub(super) fn voided_text(why: &Voided) -> String {
    match why {
        Voided::Changed => "changed while it was being sent; waits until it rests".into(),
        Voided::Gone => "gone".into(),
        Voided::Writer => "a program has it open for writing; waits until it is closed".into(),
        Voided::PrefixDiffers => "the peer's partial is of other bytes; sent again".into(),
        Voided::Unreadable(cause) => format!("cannot be read: {cause}"),
    }
}
