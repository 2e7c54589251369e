//! Rows of delivered transfers above a peer's bound.

use super::{ledger, tally::Tally};
use crate::{
    db::{Db, DbError},
    id,
};

/// Most rows that go in one commit.
pub(super) const AT_ONCE: usize = 512;

/// Makes room for more rows of the peers that come near their bound: those go first whose outcome the peer had first.
pub(super) fn ease(db: &Db, tally: &Tally) -> Result<(), DbError> {
    let near = tally.near();
    if !near.is_empty() {
        tally.set(db.read_blocking(ledger::tally)?);
    }
    for peer in near {
        while !tally.is_eased(peer) {
            let dropped = db.call_blocking(move |tx| ledger::drop_known(tx, peer, AT_ONCE))?;
            tally.removed(peer, dropped);
            if dropped.number == 0 {
                tracing::warn!(
                    peer = %id::format(peer),
                    "this peer does not say that it has the outcomes of its transfers; at its bound nothing new of it is taken"
                );
                break;
            }
        }
    }
    Ok(())
}
