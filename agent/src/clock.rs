//! The two clocks of the job list and the ledger: the wall clock, for what people are told; and observed running time,
//! by which things are kept or given up, so that a jump of the wall clock ends nothing, nor does a machine that was off.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::db::{Db, DbError};

/// The table that holds the running time of all runs together: `(SELECT ms FROM running)`. Comes before all others.
pub const RUNNING: &str = "
CREATE TABLE running (one INTEGER PRIMARY KEY CHECK (one = 1), ms INTEGER NOT NULL) STRICT;
INSERT INTO running VALUES (1, 0);
";

/// Milliseconds since 1970; a clock before that says 0.
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, milliseconds)
}

/// As both clocks count; what is longer is the longest.
pub fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// The agent ran for so long since it last said so. What a crash cuts off is not counted.
pub async fn advance(db: &Db, ran: Duration) -> Result<(), DbError> {
    db.call(move |tx| {
        tx.prepare_cached("UPDATE running SET ms = ms + ?")?
            .execute([milliseconds(ran)])?;
        Ok(())
    })
    .await
}
