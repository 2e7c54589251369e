//! Two machines with one key, a copied disk image for instance: each would take the link from the other without end.
//!
//! Every run of an agent draws a number of its own. A restart brings a new one, and the one before never comes again.
//! One that does come again, after another took its place, is a second machine: it does not get the link while the
//! other has it. At its second return that is certain (what comes late from a run that has ended comes once) and is
//! told.
//!
//! Pure: the clock is passed in.

use std::{fmt, net::IpAddr, time::Duration};

use tokio::time::Instant;

use crate::failpoints;

/// Which runs used the key of one peer lately.
#[derive(Default, Debug)]
pub(super) struct Twins {
    /// The one seen last is the last.
    runs: Vec<Run>,
    /// Whose link was let in last.
    holder: Option<u64>,
    /// Certain that there are two.
    certain: bool,
}

#[derive(Debug)]
struct Run {
    number: u64,
    from: IpAddr,
    seen: Instant,
    returns: u32,
}

/// Whether a new link may take the place of the one that is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// Yes.
    Free,
    /// No: another run has it.
    KeptOut,
}

/// What changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Two machines are seen from now on.
    Begins,
    /// Not any more.
    Ends,
}

impl Twins {
    /// A link of `run` begins; `up`: another link of the pair is up.
    pub(super) fn meet(&mut self, run: u64, from: IpAddr, up: bool, now: Instant) -> (Entry, Option<Change>) {
        let earlier = self.runs.iter().position(|known| known.number == run);
        let mut seen = match earlier {
            Some(at) => self.runs.remove(at),
            None => Run {
                number: run,
                from,
                seen: now,
                returns: 0,
            },
        };
        let other_holds = self.holder.is_some_and(|holder| holder != run);
        if earlier.is_some() && other_holds {
            seen.returns += 1;
        }
        (seen.from, seen.seen) = (from, now);
        let (returns, known) = (seen.returns, seen.returns > 0 || self.certain);
        if self.runs.len() >= MOST {
            self.runs.remove(0);
        }
        self.runs.push(seen);
        let begins = returns >= 2 && !self.certain && !failpoints::mutant("twins-certain");
        self.certain |= begins;
        let change = begins.then_some(Change::Begins);
        if up && other_holds && known && !failpoints::mutant("twins-kept-out") {
            return (Entry::KeptOut, change);
        }
        self.holder = Some(run);
        (Entry::Free, change)
    }

    /// Time went by; `up`: the link of the one that was let in last is up.
    pub(super) fn check(&mut self, up: bool, within: Duration, now: Instant) -> Option<Change> {
        let holder = self.holder.filter(|_| up);
        self.runs
            .retain(|run| Some(run.number) == holder || now.saturating_duration_since(run.seen) < within);
        let ends = self.certain && self.runs.len() < 2;
        self.certain &= !ends;
        ends.then_some(Change::Ends)
    }

    /// Are two machines seen?
    pub(super) fn certain(&self) -> bool {
        self.certain
    }
}

impl fmt::Display for Twins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two machines use the key of this peer")?;
        let mut seen: Vec<_> = self.runs.iter().map(|run| run.from).collect();
        seen.sort();
        seen.dedup();
        if let [one, other, ..] = seen[..] {
            write!(f, ", at {one} and at {other}")?;
        }
        f.write_str(": one is a copy of the other, and only one of them is let in at a time")
    }
}

/// How it is ended, for both who see it and who cause it.
pub(super) const WAY_OUT: &str = "stop the agent on the copy, move its state folder away, \
    run `dropwire init` there, and pair it under its new id";
/// Most runs that are remembered.
const MOST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const AT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const WITHIN: Duration = Duration::from_secs(900);

    /// Runs arrive one after the other while a link is up.
    fn meet(twins: &mut Twins, runs: &[u64]) -> Vec<(Entry, Option<Change>)> {
        let now = Instant::now();
        runs.iter()
            .map(|run| twins.meet(*run, AT, twins.holder.is_some(), now))
            .collect()
    }

    #[test]
    fn restarts_and_new_dials_are_no_twins() {
        let mut twins = Twins::default();
        let free = (Entry::Free, None);
        assert_eq!(meet(&mut twins, &[1, 1, 2, 2, 3, 4, 4]), [free; 7]);
        // The last connection of a run that has ended comes late.
        assert_eq!(meet(&mut twins, &[3]), [(Entry::KeptOut, None)]);
        assert_eq!(meet(&mut twins, &[4, 5, 5]), [free; 3]);
        assert!(!twins.certain());
    }

    #[test]
    fn who_comes_back_is_kept_out_and_at_the_second_time_it_is_certain() {
        let mut twins = Twins::default();
        let steps = meet(&mut twins, &[1, 2, 1, 1, 1, 2]);
        assert_eq!(steps[..2], [(Entry::Free, None); 2]);
        assert_eq!(steps[2], (Entry::KeptOut, None));
        assert_eq!(steps[3], (Entry::KeptOut, Some(Change::Begins)));
        assert_eq!(steps[4], (Entry::KeptOut, None));
        assert_eq!(
            steps[5],
            (Entry::Free, None),
            "the one that has the link may dial again"
        );
        assert!(twins.certain());
        // A restart of one of the two is not let in either, while the other has the link.
        assert_eq!(meet(&mut twins, &[3]), [(Entry::KeptOut, None)]);
        // Without a link it is.
        assert_eq!(twins.meet(3, AT, false, Instant::now()), (Entry::Free, None));
    }

    #[test]
    fn who_takes_turns_without_meeting_is_seen_too() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        let changes = [1, 2, 1, 2, 1].map(|run| twins.meet(run, AT, false, now));
        assert!(changes.iter().all(|(entry, _)| *entry == Entry::Free));
        assert_eq!(changes.iter().filter(|(_, change)| change.is_some()).count(), 1);
    }

    #[test]
    fn it_ends_once_only_one_is_seen() {
        let mut twins = Twins::default();
        meet(&mut twins, &[1, 2, 1, 1]);
        let now = Instant::now();
        assert_eq!(twins.check(true, WITHIN, now), None);
        assert_eq!(twins.check(true, WITHIN, now + WITHIN), Some(Change::Ends));
        assert_eq!(twins.check(true, WITHIN, now + WITHIN), None);
        assert!(!twins.certain());
        assert_eq!(meet(&mut twins, &[2, 2]), [(Entry::Free, None); 2]);
    }

    #[test]
    fn runs_without_end_are_not_remembered() {
        let mut twins = Twins::default();
        meet(&mut twins, &(0..1000).collect::<Vec<_>>());
        assert_eq!(twins.runs.len(), MOST);
        assert!(!twins.certain());
    }
}
