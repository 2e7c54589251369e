//! What every change of a job needs of it.

use dropwire_protocol::{AgentId, TransferId};

use super::{ItemId, JobState};

/// As much of a job as changes need.
pub(super) struct Key {
    pub row: i64,
    pub item: ItemId,
    pub outbox: i64,
    pub peer: AgentId,
    pub transfer: TransferId,
    pub state: JobState,
    pub has_receipt: bool,
}
