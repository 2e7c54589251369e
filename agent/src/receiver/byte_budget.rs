//! How much memory small files may take, those that come in and those that wait for their batch, all links together,
//! and who gets it.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use dropwire_protocol::AgentId;

use crate::poison::Unpoisoned as _;

/// A budget of bytes; who wants more waits for others to be done. While several peers want some, none has more than an
/// equal share, and each at least one file.
pub(super) struct ByteBudget {
    all: u64,
    state: Mutex<State>,
    given_back: Condvar,
}

#[derive(Default)]
struct State {
    taken: u64,
    /// How many wait, all peers together.
    waiting: usize,
    /// Of the peers that have some or wait for some: bytes, and how many wait.
    peers: HashMap<AgentId, (u64, usize)>,
}

/// Bytes taken from the budget; given back when dropped.
pub(super) struct Taken {
    byte_budget: Arc<ByteBudget>,
    peer: AgentId,
    bytes: u64,
}

impl ByteBudget {
    /// A budget of `all` bytes.
    pub(super) fn new(all: u64) -> Arc<Self> {
        Arc::new(Self {
            all,
            state: Mutex::default(),
            given_back: Condvar::new(),
        })
    }

    /// Takes `bytes` for `peer`, and blocks until it may have them; of more than the whole budget, the whole.
    pub(super) fn take(self: &Arc<Self>, peer: AgentId, bytes: u64) -> Taken {
        let bytes = bytes.min(self.all);
        let mut state = self.lock();
        state.peers.entry(peer).or_default().1 += 1;
        state.waiting += 1;
        let mut state = self
            .given_back
            .wait_while(state, |state| !state.may_take(self.all, peer, bytes))
            .unpoisoned();
        state.taken += bytes;
        state.waiting -= 1;
        let (has, waiting) = state.peers.entry(peer).or_default();
        *has += bytes;
        *waiting -= 1;
        Taken {
            byte_budget: self.clone(),
            peer,
            bytes,
        }
    }

    /// Takes `bytes` for `peer` if it may have them now: while there are some, and in any case if it has none.
    pub(super) fn try_take(self: &Arc<Self>, peer: AgentId, bytes: u64) -> Option<Taken> {
        let mut state = self.lock();
        let has = state.peers.get(&peer).map_or(0, |(has, _)| *has);
        if has > 0 && state.taken + bytes > self.all && !crate::failpoints::mutant("begun-memory") {
            return None;
        }
        state.taken += bytes;
        state.peers.entry(peer).or_default().0 += bytes;
        drop(state);
        Some(Taken {
            byte_budget: self.clone(),
            peer,
            bytes,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }
}

impl State {
    fn may_take(&self, all: u64, peer: AgentId, bytes: u64) -> bool {
        let has = self.peers.get(&peer).map_or(0, |(has, _)| *has);
        let share = all / self.peers.len().max(1) as u64;
        let fair = has == 0 || has + bytes <= share || crate::failpoints::mutant("fair-memory");
        self.taken + bytes <= all && fair
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.byte_budget.lock();
        state.taken -= self.bytes;
        if let Some((has, waiting)) = state.peers.get_mut(&self.peer) {
            *has -= self.bytes;
            if (*has, *waiting) == (0, 0) {
                state.peers.remove(&self.peer);
            }
        }
        let is_waited_for = state.waiting > 0;
        drop(state);
        if is_waited_for {
            self.byte_budget.given_back.notify_all(); // a system call, also where nobody waits
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    const ANA: AgentId = AgentId([1; 32]);
    const BOB: AgentId = AgentId([2; 32]);

    #[test]
    fn who_wants_more_than_is_free_waits_until_it_is_given_back() {
        let byte_budget = ByteBudget::new(10);
        let first = byte_budget.take(ANA, 7);
        let second = byte_budget.take(ANA, 3);
        let (told, heard) = mpsc::channel();
        let waiting = {
            let byte_budget = byte_budget.clone();
            thread::spawn(move || {
                let taken = byte_budget.take(ANA, 5);
                told.send("taken").unwrap();
                drop(taken);
            })
        };
        assert!(heard.try_recv().is_err(), "nothing is free");
        drop(first);
        assert_eq!(heard.recv(), Ok("taken"));
        waiting.join().unwrap();
        drop(second);
        drop(byte_budget.take(ANA, 7));
        assert!(byte_budget.lock().peers.is_empty(), "nobody stays in the table");
    }

    #[test]
    fn who_never_gives_back_takes_no_more_than_there_is_and_others_get_one_file_each() {
        let byte_budget = ByteBudget::new(10);
        let has = |peer, bytes| byte_budget.try_take(peer, bytes);
        let taken = [has(ANA, 4), has(ANA, 6)];
        assert!(taken.iter().all(Option::is_some));
        assert!(has(ANA, 1).is_none());
        let first = has(BOB, 5);
        assert!(first.is_some() && has(BOB, 1).is_none());
        drop(taken);
        assert!(has(BOB, 5).is_some() && has(BOB, 6).is_none());
        drop(first);
        assert!(byte_budget.lock().peers.is_empty() && byte_budget.lock().taken == 0);
    }

    #[test]
    fn nobody_has_more_than_a_share_while_others_want_some() {
        let mut state = State::default();
        assert!(state.may_take(10, ANA, 10), "alone, all of it");
        state.taken = 6;
        state.peers.insert(ANA, (6, 0));
        state.peers.insert(BOB, (0, 1));
        assert!(!state.may_take(10, ANA, 1), "half is 5");
        assert!(state.may_take(10, BOB, 4));
        assert!(!state.may_take(10, BOB, 5), "there is no more");
        state.peers.insert(BOB, (4, 0));
        state.taken = 4;
        assert!(
            state.may_take(10, AgentId([3; 32]), 6),
            "the first file in any case"
        );
    }
}
