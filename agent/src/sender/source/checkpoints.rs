//! States of the hash at some offsets of one version, so that a rewind or a resume need not read the prefix again.
//!
//! They hold only as long as the file's ctime is the one they were made under. Kept by the job list they outlive
//! the agent; a state that does not finalise to its own digest is not used.

use std::{collections::VecDeque, fmt};

use dropwire_protocol::{Digest, RunningDigest};
use minicbor::{Decode, Encode};

/// The newest few.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    ctime_ns: i64,
    states: VecDeque<State>,
}

/// Bytes between two states.
const EVERY: u64 = 16 << 20;
/// How many are kept: the receiver's own checkpoints are at most 64 MiB behind what it has.
const MOST: usize = 12;

struct State(RunningDigest);

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({})", self.0.length())
    }
}

/// As the job list keeps them.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Kept {
    #[n(0)]
    ctime_ns: i64,
    #[n(1)]
    states: Vec<KeptState>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct KeptState {
    #[n(0)]
    length: u64,
    #[n(1)]
    digest: Digest,
    #[cbor(n(2), with = "minicbor::bytes")]
    state: Vec<u8>,
}

impl Checkpoints {
    /// Keeps this state if it stands at a multiple of 16 MiB and is new; says whether it did.
    pub(super) fn note(&mut self, ctime_ns: i64, hash: &RunningDigest) -> bool {
        if self.ctime_ns != ctime_ns {
            self.states.clear();
            self.ctime_ns = ctime_ns;
        }
        let known = self.states.iter().any(|s| s.0.length() == hash.length());
        if known || !hash.length().is_multiple_of(EVERY) || hash.length() == 0 {
            return false;
        }
        self.states.truncate(MOST - 1);
        self.states.push_front(State(hash.clone()));
        true
    }

    /// The furthest state not beyond `offset`; none (the beginning) if the file was touched since they were kept.
    pub(super) fn best(&self, ctime_ns: i64, offset: u64) -> RunningDigest {
        let usable = self
            .states
            .iter()
            .filter(|s| self.ctime_ns == ctime_ns && s.0.length() <= offset);
        usable
            .max_by_key(|s| s.0.length())
            .map_or_else(RunningDigest::default, |s| s.0.clone())
    }

    /// For the job list; at most some 2 KiB.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let states = self.states.iter().map(|State(hash)| KeptState {
            length: hash.length(),
            digest: hash.value(),
            state: hash.state(),
        });
        let kept = Kept {
            ctime_ns: self.ctime_ns,
            states: states.collect(),
        };
        minicbor::to_vec(kept).expect("a Vec takes all that is written")
    }

    /// What [`Self::to_bytes`] gave; what is damaged is left out, which only costs reading.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let Ok(kept) = minicbor::decode::<Kept>(bytes) else {
            return Self::default();
        };
        let restored = kept
            .states
            .iter()
            .take(MOST)
            .filter_map(|s| RunningDigest::restore(&s.state, s.length, s.digest));
        Self {
            ctime_ns: kept.ctime_ns,
            states: restored.map(State).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(length: u64) -> RunningDigest {
        let mut hash = RunningDigest::default();
        let block = vec![7; 1 << 20];
        while hash.length() < length {
            hash.update(&block);
        }
        hash
    }

    #[test]
    fn they_survive_being_kept_but_not_damage_or_a_touched_file() {
        let mut checkpoints = Checkpoints::default();
        assert!(!checkpoints.note(5, &hashed(1 << 20)), "not at a multiple");
        assert!(checkpoints.note(5, &hashed(16 << 20)));
        assert!(!checkpoints.note(5, &hashed(16 << 20)), "known");
        assert!(checkpoints.note(5, &hashed(32 << 20)));

        let bytes = checkpoints.to_bytes();
        let kept = Checkpoints::from_bytes(&bytes);
        for (ctime, offset, length) in [(5, 40, 32), (5, 31, 16), (5, 15, 0), (6, 40, 0)] {
            let best = kept.best(ctime, offset << 20);
            assert_eq!(best.length(), length << 20);
            assert_eq!(best.value(), hashed(length << 20).value());
        }

        let state = hashed(32 << 20).state();
        let at = bytes.windows(state.len()).position(|w| w == state).unwrap();
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(
            Checkpoints::from_bytes(&damaged).best(5, 40 << 20).length(),
            16 << 20
        );
        assert_eq!(Checkpoints::from_bytes(&bytes[..9]).best(5, 40 << 20).length(), 0);
    }
}
