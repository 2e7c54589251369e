//! Observed running time, by which things are kept or given up, so that a jump of the wall clock ends nothing, nor does a
//! machine that was off.

use std::time::Duration;

use crate::{
    clock::milliseconds,
    db::{Db, DbError},
};

/// The table that holds the running time of all runs together: `(SELECT ms FROM running)`. Comes before all others.
pub const SCHEMA_1: &str = "
CREATE TABLE running (one INTEGER PRIMARY KEY CHECK (one = 1), ms INTEGER NOT NULL) STRICT;
INSERT INTO running VALUES (1, 0);
";

/// The agent ran for so long since it last said so. What a crash cuts off is not counted.
pub async fn advance(db: &Db, ran: Duration) -> Result<(), DbError> {
    db.call(move |tx| {
        tx.prepare_cached("UPDATE running SET ms = ms + ?")?
            .execute([milliseconds(ran)])?;
        Ok(())
    })
    .await
}
