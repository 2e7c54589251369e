//! The job list's tables, and what their numbers mean.
//!
//! An *item* is one version of a file in an outbox (the table is called `drops`); a *job* takes it to one peer. What an
//! item and its jobs may still become:
//!
//! ```text
//! job   queued ──► delivered            item   open ──► acknowledged ──► left
//!         ├──────► failed ───┐                  │  ▲          │            ▲
//!         └──────► cancelled ┤                  ▼  │          ▼            │
//!         ▲                  │                 stays ◄────────┘            │
//!         └─────(resend)─────┘                  └──────────────────────────┘
//! ```
//!
//! *acknowledged*: every peer has it, the file is to be disposed of. *stays*: nothing is open and the file lies
//! there still (a `keep` outbox, a failed or cancelled job). *left*: that version does not lie there any more.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};

use super::JobState;
use crate::config::AfterSend;

/// The first version of the tables, beside [`crate::running_time::SCHEMA_1`].
///
/// Order matters in two places: `jobs_due` is read in its own order by the dispatcher, and the unique index of
/// `drops` begins with what a version is looked up by. `drops_lying` promises one lying version a path.
/// `closing` holds what the peer still has to be told; a row goes once it was. `tally` spares the status page
/// a count over all jobs; `Edit` keeps it.
pub const SCHEMA_1: &str = "
CREATE TABLE outboxes (
    id INTEGER PRIMARY KEY,
    mark BLOB NOT NULL UNIQUE,
    root BLOB NOT NULL
) STRICT;

CREATE TABLE drops (
    id INTEGER PRIMARY KEY,
    outbox INTEGER NOT NULL REFERENCES outboxes (id),
    path BLOB NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    birth_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    origin BLOB,
    after_send INTEGER NOT NULL,
    marker TEXT,
    state INTEGER NOT NULL,
    folder INTEGER NOT NULL,
    problem TEXT,
    left_running_ms INTEGER,
    UNIQUE (outbox, path, mtime_ns, inode, birth_ns, size, counter)
) STRICT;
CREATE UNIQUE INDEX drops_lying ON drops (outbox, path) WHERE state < 2;
CREATE INDEX drops_resting ON drops (id) WHERE state = 1;
CREATE INDEX drops_leaving ON drops (outbox) WHERE state = 2;
CREATE INDEX drops_by_origin ON drops (origin) WHERE origin IS NOT NULL;
CREATE INDEX drops_whole ON drops (outbox, path) WHERE folder = 1 AND state < 3;
CREATE INDEX drops_left ON drops (left_running_ms) WHERE state = 3;

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    drop_id INTEGER NOT NULL REFERENCES drops (id),
    peer BLOB NOT NULL,
    transfer BLOB NOT NULL UNIQUE,
    counter INTEGER NOT NULL,
    large INTEGER NOT NULL,
    state INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_attempt_ms INTEGER NOT NULL,
    error TEXT,
    queued_ms INTEGER NOT NULL,
    queued_running_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    delivered_ms INTEGER,
    receipt BLOB,
    delivered_as BLOB,
    sha256 BLOB,
    UNIQUE (drop_id, peer)
) STRICT;
CREATE INDEX jobs_due ON jobs (peer, large, next_attempt_ms) WHERE state = 0;
CREATE INDEX jobs_waiting ON jobs (queued_running_ms) WHERE state = 0;

CREATE TABLE former (
    transfer BLOB PRIMARY KEY,
    job INTEGER NOT NULL REFERENCES jobs (id),
    receipt BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX former_by_job ON former (job);

CREATE TABLE closing (
    transfer BLOB PRIMARY KEY,
    peer BLOB NOT NULL,
    step INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX closing_by_peer ON closing (peer, step);

CREATE TABLE checkpoints (
    drop_id INTEGER PRIMARY KEY REFERENCES drops (id) ON DELETE CASCADE,
    bytes BLOB NOT NULL
) STRICT;

CREATE TABLE history (
    job INTEGER NOT NULL REFERENCES jobs (id),
    n INTEGER NOT NULL,
    ms INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (job, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE tally (
    peer BLOB NOT NULL,
    outbox INTEGER NOT NULL,
    state INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (peer, outbox, state)
) STRICT, WITHOUT ROWID;
";

/// Modification times that were set after the delivery, to be told with Forget.
pub const SCHEMA_2: &str = "
ALTER TABLE drops ADD COLUMN retimed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE closing ADD COLUMN mtime_ns INTEGER;
";

/// Modification times of files that stay, to be told once they are not set any more.
pub const SCHEMA_3: &str = "
ALTER TABLE closing ADD COLUMN not_before_ms INTEGER NOT NULL DEFAULT 0;
DROP INDEX closing_by_peer;
CREATE INDEX closing_by_peer ON closing (peer, step, not_before_ms);
";

/// Where an item stands; statements name the numbers, because partial indexes need literals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ItemState {
    /// A job is queued.
    Open = 0,
    /// No job is queued and the file lies there still.
    Stays = 1,
    /// Every peer has it; to be disposed of.
    Acknowledged = 2,
    /// This version does not lie there any more.
    Left = 3,
}

/// What the peer has yet to be told of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// It will not be sent; how did it end?
    Withdraw = 0,
    /// Its outcome is on our disk.
    Forget = 1,
    /// Its file got another time, and stays for now.
    Retime = 2,
}

/// An enum that stands in the tables as a number.
macro_rules! stored_as_number {
    ($type:ident: $($variant:ident = $number:literal),+) => {
        impl ToSql for $type {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::from(match self { $($type::$variant => $number),+ }))
            }
        }
        impl FromSql for $type {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                match value.as_i64()? {
                    $($number => Ok($type::$variant),)+
                    other => Err(FromSqlError::OutOfRange(other)),
                }
            }
        }
    };
}
stored_as_number!(ItemState: Open = 0, Stays = 1, Acknowledged = 2, Left = 3);
stored_as_number!(Step: Withdraw = 0, Forget = 1, Retime = 2);
stored_as_number!(JobState: Queued = 0, Delivered = 1, Failed = 2, Cancelled = 3);
stored_as_number!(AfterSend: Archive = 0, Delete = 1, Keep = 2);
