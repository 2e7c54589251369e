//! Jobs that ended without being delivered, gathered for whoever tells people of them: one entry for each peer and kind
//! of end, however many jobs that is.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, MutexGuard},
};

use dropwire_protocol::{AgentId, TransferId};
use tokio::sync::Notify;

use super::JobState;

use crate::poison::Unpoisoned as _;

/// How a job ends that is not delivered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum End {
    /// A newer version of the file was found: what happens to every file that is edited before it was delivered.
    Superseded,
    /// The file is not there any more.
    Gone,
    /// Its outbox's folder was replaced by another for good.
    Replaced,
    /// `give_up_after` has passed.
    GivenUp,
    /// The peer can never take it as it is.
    Refused,
    /// The user does not want it sent.
    Cancelled,
}

impl End {
    /// The job's state from then on.
    pub(super) fn state(self) -> JobState {
        match self {
            Self::Superseded | Self::Gone | Self::Replaced | Self::GivenUp | Self::Refused => {
                JobState::Failed
            }
            Self::Cancelled => JobState::Cancelled,
        }
    }

    /// The reason that the job keeps, where there is no more to say.
    pub fn text(self) -> &'static str {
        match self {
            Self::Superseded => "superseded by a newer version",
            Self::Gone => "gone: the file was removed before it was delivered",
            Self::Replaced => "its outbox was replaced",
            Self::GivenUp => "given up",
            Self::Refused => "the peer cannot take it",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Jobs of one peer that ended in the same way.
#[derive(Clone, PartialEq, Debug)]
pub struct Ended {
    /// How many.
    pub count: u64,
    /// One of them.
    pub job: TransferId,
    /// Its file, relative to the outbox, escaped.
    pub path: String,
    /// Why it ended.
    pub why: String,
}

/// By peer and kind, so that there are never more entries than peers times kinds.
pub type Gathered = BTreeMap<(AgentId, End), Ended>;

/// What has ended and was not told yet.
#[derive(Default)]
pub struct Ends {
    gathered: Mutex<Gathered>,
    more: Notify,
}

impl Ends {
    /// Adds what one change ended, once it is on disk.
    pub(super) fn add(&self, change: Gathered) {
        if change.is_empty() {
            return;
        }
        let mut gathered = self.lock();
        for (key, ended) in change {
            match gathered.get_mut(&key) {
                Some(before) => before.count += ended.count,
                None => {
                    gathered.insert(key, ended);
                }
            }
        }
        self.more.notify_one();
    }

    /// Returns once more has ended since the last call.
    pub async fn more(&self) {
        self.more.notified().await;
    }

    /// All that is to be told; it is not given a second time.
    pub fn take(&self) -> Gathered {
        mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unpoisoned()
    }
}
