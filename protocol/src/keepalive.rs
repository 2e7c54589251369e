//! When to ask for a sign of life and when to give up. Pure: the clock is passed in.

use std::time::Duration;

use crate::Error;

/// Watches one direction of silence: how long the other side has said nothing.
#[derive(Debug)]
pub struct Keepalive {
    ping_after: Duration,
    dead_after: Duration,
    heard_at: Duration,
    /// None once asked, until something is heard.
    ask_at: Option<Duration>,
    dead_at: Duration,
}

impl Keepalive {
    /// Counts from `now`. Asking no earlier than dying would be of no use: then no question is asked.
    pub fn new(ping_after: Duration, dead_after: Duration, now: Duration) -> Self {
        Self {
            ping_after,
            dead_after,
            heard_at: now,
            ask_at: Some(now.saturating_add(ping_after)),
            dead_at: now.saturating_add(dead_after),
        }
    }

    /// A byte came in.
    pub fn heard(&mut self, now: Duration) {
        *self = Self::new(self.ping_after, self.dead_after, now);
    }

    /// A question goes out now: without an answer the link is dead after `within`, or earlier if it was to be.
    pub fn probe(&mut self, now: Duration, within: Duration) {
        self.ask_at = None;
        self.dead_at = self.dead_at.min(now.saturating_add(within));
    }

    /// When [`Keepalive::tick`] has something to say.
    pub fn deadline(&self) -> Duration {
        self.ask_at.map_or(self.dead_at, |at| at.min(self.dead_at))
    }

    /// True: a Ping is to go out now. [`Error::Silent`]: nothing was heard for too long.
    pub fn tick(&mut self, now: Duration) -> Result<bool, Error> {
        if now >= self.dead_at {
            return Err(Error::Silent(now.saturating_sub(self.heard_at)));
        }
        let ask = self.ask_at.is_some_and(|at| now >= at);
        if ask {
            self.ask_at = None;
        }
        Ok(ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn asks_once_then_gives_up() {
        let mut keepalive = Keepalive::new(s(10), s(30), s(100));
        assert_eq!(keepalive.deadline(), s(110));
        assert!(!keepalive.tick(s(109)).unwrap());
        assert!(keepalive.tick(s(110)).unwrap());
        assert!(!keepalive.tick(s(111)).unwrap());
        assert_eq!(keepalive.deadline(), s(130));
        assert!(matches!(keepalive.tick(s(131)), Err(Error::Silent(silence)) if silence == s(31)));
    }

    #[test]
    fn any_byte_begins_anew() {
        let mut keepalive = Keepalive::new(s(10), s(30), s(0));
        assert!(keepalive.tick(s(10)).unwrap());
        keepalive.heard(s(20));
        assert_eq!(keepalive.deadline(), s(30));
        assert!(keepalive.tick(s(30)).unwrap());
        assert!(keepalive.tick(s(50)).is_err());
    }

    #[test]
    fn a_probe_shortens_the_wait_and_never_prolongs_it() {
        let mut keepalive = Keepalive::new(s(10), s(30), s(0));
        keepalive.probe(s(5), s(3));
        assert_eq!(keepalive.deadline(), s(8));
        keepalive.heard(s(6));
        assert_eq!(keepalive.deadline(), s(16));
        keepalive.probe(s(7), s(300));
        assert_eq!(keepalive.deadline(), s(36));
    }
}
