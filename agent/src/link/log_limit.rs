//! What others can cause as often as they like is logged only so often.

use tokio::time::{Duration, Instant};

/// Says when a line may be logged: some at once, then one a minute. Counts those in between.
#[derive(Debug)]
pub(super) struct LogLimit {
    left: u32,
    /// Since when the next one is earned.
    since: Instant,
    missed: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self {
            left: AT_ONCE,
            since: Instant::now(),
            missed: 0,
        }
    }
}

impl LogLimit {
    /// May it be logged? Then how many were not, since the last one that was.
    pub(super) fn due(&mut self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.since).as_secs() / EVERY.as_secs();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.since += EVERY * earned;
        self.left = self.left.saturating_add(earned).min(AT_ONCE);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.missed))
            }
            None => {
                self.missed += 1;
                None
            }
        }
    }
}

const AT_ONCE: u32 = 10;
const EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_a_line_a_minute_and_the_missed_ones_are_counted() {
        let (mut log_limit, start) = (LogLimit::default(), Instant::now());
        let lines = |log_limit: &mut LogLimit, from: u32, to: u32| -> Vec<u64> {
            let seconds = (from..to).map(|second| start + Duration::from_secs(second.into()));
            seconds.filter_map(|now| log_limit.due_at(now)).collect()
        };
        assert_eq!(lines(&mut log_limit, 0, 59), vec![0; 10]);
        assert_eq!(lines(&mut log_limit, 59, 600).len(), 9);
        assert_eq!(lines(&mut log_limit, 600, 660), [59]);
        let quiet = start + Duration::from_secs(100_000);
        let again = (0..20).filter_map(|_| log_limit.due_at(quiet)).count();
        assert_eq!(again, 10, "after a pause as at first");
    }
}
