//! A rate limit in bytes a second, shared by all links of the agent.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

/// Lets bytes through at a rate. What was spent is never refused, it makes the next one wait: so a chunk larger than
/// a second's worth passes too.
pub(super) struct Rate {
    bytes_a_second: Option<u64>,
    /// When everything spent so far is paid for.
    free_at: Mutex<Instant>,
}

impl Rate {
    /// None: unlimited.
    pub(super) fn new(bytes_a_second: Option<u64>) -> Self {
        Rate {
            bytes_a_second,
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Counts bytes that go through now.
    pub(super) fn spend(&self, bytes: usize, now: Instant) {
        let Some(rate) = self.bytes_a_second else { return };
        let cost = Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate.max(1));
        let mut free_at = self.free_at.lock().unwrap_or_else(|e| e.into_inner());
        // What was not used a moment ago may be used up; more would be a burst.
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *free_at = (*free_at).max(earliest) + cost;
    }

    /// When the next bytes may go; None: now.
    pub(super) fn wait_until(&self, now: Instant) -> Option<Instant> {
        self.bytes_a_second?;
        let free_at = *self.free_at.lock().unwrap_or_else(|e| e.into_inner());
        (free_at > now).then_some(free_at)
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
}
