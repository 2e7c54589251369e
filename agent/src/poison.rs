//! Locks that a panic left behind: what they guard is whole all the same, for no change of it is cut off half-way.

use std::sync::{LockResult, PoisonError};

/// What is locked, whoever panicked while they held it.
pub trait Unpoisoned<Guard> {
    /// The guard.
    fn unpoisoned(self) -> Guard;
}

impl<Guard> Unpoisoned<Guard> for LockResult<Guard> {
    fn unpoisoned(self) -> Guard {
        self.unwrap_or_else(PoisonError::into_inner)
    }
}
