//! Whether files are declined for lack of space, or because the inbox's disk refuses them: a condition, told when it
//! begins and when it ends, not for each file.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use dropwire_protocol::TransferId;

use crate::poison::Unpoisoned as _;

/// For the log it is over once nothing that was declined waits any more, for so long: it may begin again at once.
const QUIET: Duration = Duration::from_secs(150);
/// Or once nobody asked for so long: they have gone.
const GONE: Duration = Duration::from_secs(900);
/// Most declined transfers that are remembered; further ones are only counted.
const MOST: usize = 4096;

/// The condition of one inbox.
#[derive(Default)]
pub(super) struct Declines(Mutex<Option<Begun>>);

struct Begun {
    /// Those that were declined and wait.
    waiting: HashSet<TransferId>,
    /// How often it was said.
    declined: u64,
    /// When it was said last...
    last: Instant,
    /// ...and why.
    text: String,
}

impl Declines {
    /// A transfer was declined because of this.
    pub(super) fn declined(&self, id: TransferId, text: &str, now: Instant) {
        let mut condition = self.lock();
        end_if_over(&mut condition, now);
        let begun = condition.get_or_insert_with(|| {
            tracing::warn!(reason = text, "the inbox declines files, from now on");
            Begun {
                waiting: HashSet::new(),
                declined: 0,
                last: now,
                text: String::new(),
            }
        });
        if begun.waiting.len() < MOST {
            begun.waiting.insert(id);
        }
        begun.declined += 1;
        begun.last = now;
        text.clone_into(&mut begun.text);
    }

    /// It waits no more: it is taken, or was withdrawn.
    pub(super) fn waits_no_more(&self, id: TransferId) {
        if let Some(begun) = &mut *self.lock() {
            begun.waiting.remove(&id);
        }
    }

    /// Why files are declined now, if any that was declined waits.
    pub(super) fn reason(&self, now: Instant) -> Option<String> {
        let mut condition = self.lock();
        end_if_over(&mut condition, now);
        condition
            .as_ref()
            .filter(|begun| !begun.waiting.is_empty())
            .map(|begun| format!("files are declined: {}", begun.text))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Begun>> {
        self.0.lock().unpoisoned()
    }
}

fn end_if_over(condition: &mut Option<Begun>, now: Instant) {
    let over = condition.as_ref().is_some_and(|begun| {
        let since = now.saturating_duration_since(begun.last);
        since >= GONE || begun.waiting.is_empty() && since >= QUIET
    });
    if over && let Some(begun) = condition.take() {
        tracing::info!(declined = begun.declined, "the inbox takes files again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_until_nobody_waits_any_more() {
        let (declines, start) = (Declines::default(), Instant::now());
        let id = |n| TransferId([n; 16]);
        assert_eq!(declines.reason(start), None);
        declines.declined(id(1), "5 B short", start);
        declines.declined(id(2), "6 B short", start);
        assert_eq!(declines.reason(start).unwrap(), "files are declined: 6 B short");
        declines.waits_no_more(id(1));
        assert!(declines.reason(start + QUIET).is_some(), "one waits");
        declines.declined(id(2), "6 B short", start + QUIET);
        declines.waits_no_more(id(2));
        assert_eq!(declines.reason(start + QUIET), None);
        assert!(
            declines.lock().is_some(),
            "it may begin again at once, without a further line in the log"
        );
        assert_eq!(declines.reason(start + QUIET * 2), None);
        assert!(declines.lock().is_none());
        declines.declined(id(3), "7 B short", start);
        assert_eq!(declines.reason(start + GONE), None, "who asked has gone");
    }
}
