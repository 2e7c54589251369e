//! How much at once, and how long between.

use std::time::Duration;

/// Most changes in one commit.
pub(super) const BATCH: usize = 1024;
/// Pause before what cannot be done now is tried again.
pub const PAUSE: Duration = Duration::from_secs(1);
/// How long a change for which nobody waits is kept for the next commit; see [`super::Db::call_soon`].
pub(super) const SOON: Duration = Duration::from_millis(20);
/// Most of them that are kept.
pub(super) const LATER: usize = 512;
/// Prepared statements that a connection keeps.
pub(super) const STATEMENTS: usize = 128;
/// A connection's page cache, in KiB as SQLite has it; a larger one spares next to nothing, since the system has the
/// pages.
pub(super) const CACHE: i64 = -512;
