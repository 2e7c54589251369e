//! A rate limit in bytes a second, shared by all links of the agent.

use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::poison::Unpoisoned as _;

/// Lets bytes through at a rate. What was spent is never refused, it makes the next one wait: so a chunk larger than
/// a second's worth passes too.
pub(super) struct Rate {
    /// Bytes a second; 0: unlimited.
    limit: AtomicU64,
    /// When everything spent so far is paid for.
    free_at: Mutex<Instant>,
}

impl Rate {
    /// None: unlimited.
    pub(super) fn new(bytes_a_second: Option<u64>) -> Self {
        Self {
            limit: AtomicU64::new(bytes_a_second.unwrap_or(0)),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// From now on; what was spent at another rate is forgiven. Whoever waits has to ask again.
    pub(super) fn set(&self, bytes_a_second: Option<u64>) {
        let limit = bytes_a_second.unwrap_or(0);
        if self.limit.swap(limit, Ordering::Relaxed) != limit {
            *self.free_at() = Instant::now();
        }
    }

    /// Counts bytes that go through now.
    pub(super) fn spend(&self, bytes: usize, now: Instant) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return;
        }
        let cost = Duration::from_nanos(bytes as u64 * 1_000_000_000 / limit);
        let mut free_at = self.free_at();
        // What was not used a moment ago may be used up; more would be a burst.
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *free_at = (*free_at).max(earliest) + cost;
    }

    /// When the next bytes may go; None: now.
    pub(super) fn wait_until(&self, now: Instant) -> Option<Instant> {
        if self.limit.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let free_at = *self.free_at();
        (free_at > now).then_some(free_at)
    }

    fn free_at(&self) -> MutexGuard<'_, Instant> {
        self.free_at.lock().unpoisoned()
    }
}

const BURST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time() {
        let rate = Rate::new(Some(1000));
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            rate.spend(100, now);
            now = rate.wait_until(now).unwrap_or(now);
        }
        let took = now - start;
        assert!(
            took >= Duration::from_millis(9_800) && took <= Duration::from_millis(10_100),
            "{took:?}"
        );
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let rate = Rate::new(Some(1000));
        let now = Instant::now() + Duration::from_secs(3600);
        rate.spend(1000, now);
        assert!(rate.wait_until(now).unwrap() >= now + Duration::from_millis(900));
        assert_eq!(Rate::new(None).wait_until(now), None);
    }

    #[test]
    fn a_new_rate_holds_at_once() {
        let rate = Rate::new(Some(1000));
        let now = Instant::now();
        rate.spend(1_000_000, now);
        assert!(rate.wait_until(now).unwrap() >= now + Duration::from_secs(900));
        rate.set(Some(1000));
        assert!(
            rate.wait_until(now).unwrap() >= now + Duration::from_secs(900),
            "the same one"
        );
        rate.set(Some(1_000_000));
        let now = Instant::now();
        assert_eq!(rate.wait_until(now), None);
        rate.spend(1_000_000, now);
        let wait = rate.wait_until(now).unwrap() - now;
        assert!(
            wait > Duration::from_millis(800) && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
        rate.set(None);
        assert_eq!(rate.wait_until(now), None);
    }
}
