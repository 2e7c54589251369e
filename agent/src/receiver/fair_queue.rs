//! What waits for the thread of small files: peers take turns, so that nobody waits behind all that another one sends.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard},
};

use dropwire_protocol::AgentId;

use crate::poison::Unpoisoned as _;

/// A queue for each peer, read in turns. What may wait is bounded by [`super::byte_budget`].
pub(super) struct FairQueue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

struct State<T> {
    waiting: HashMap<AgentId, VecDeque<(usize, T)>>,
    /// Peers for whom something waits, the next one first.
    order: VecDeque<AgentId>,
    closed: bool,
}

impl<T> FairQueue<T> {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: HashMap::new(),
                order: VecDeque::new(),
                closed: false,
            }),
            filled: Condvar::new(),
        }
    }

    /// Puts `item`, which is so much `work`, behind what waits for `peer`.
    pub(super) fn push(&self, peer: AgentId, work: usize, item: T) {
        let mut state = self.lock();
        let queue = state.waiting.entry(peer).or_default();
        queue.push_back((work, item));
        if queue.len() == 1 {
            state.order.push_back(peer);
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Nothing is put in any more: [`FairQueue::batch`] gives the rest, then None.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    /// Waits for something, then takes one of each peer in turn: at most `number`, and no further one once they are so
    /// much `work` together.
    pub(super) fn batch(&self, number: usize, work: usize) -> Option<Vec<T>> {
        let nothing = |state: &mut State<T>| state.order.is_empty() && !state.closed;
        let waited = self.filled.wait_while(self.lock(), nothing);
        let mut state = waited.unpoisoned();
        let (mut batch, mut done) = (Vec::new(), 0);
        while batch.len() < number
            && done < work
            && let Some((its, item)) = state.next()
        {
            done += its;
            batch.push(item);
        }
        (!batch.is_empty()).then_some(batch)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unpoisoned()
    }
}

impl<T> State<T> {
    fn next(&mut self) -> Option<(usize, T)> {
        let peer = self.order.pop_front()?;
        let queue = self.waiting.get_mut(&peer)?;
        let next = queue.pop_front();
        match (queue.is_empty(), crate::failpoints::mutant("fair-turns")) {
            (true, _) => drop(self.waiting.remove(&peer)),
            (false, false) => self.order.push_back(peer),
            (false, true) => self.order.push_front(peer),
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANA: AgentId = AgentId([1; 32]);
    const BOB: AgentId = AgentId([2; 32]);

    #[test]
    fn peers_take_turns_and_each_keeps_its_order() {
        let queue = FairQueue::new();
        for n in 0..1000 {
            queue.push(ANA, 1, ("ana", n));
        }
        for n in 0..2 {
            queue.push(BOB, 1, ("bob", n));
        }
        let batch = queue.batch(5, 100).unwrap();
        assert_eq!(
            batch,
            [("ana", 0), ("bob", 0), ("ana", 1), ("bob", 1), ("ana", 2)]
        );
        let rest = queue.batch(2000, 2000).unwrap();
        assert!(rest.into_iter().eq((3..1000).map(|n| ("ana", n))));
    }

    #[test]
    fn a_batch_ends_once_it_is_work_enough() {
        let queue = FairQueue::new();
        for n in 0..100 {
            queue.push(ANA, 128, n);
        }
        queue.push(BOB, 1, 1000);
        assert_eq!(queue.batch(512, 256).unwrap(), [0, 1000, 1]);
        assert_eq!(queue.batch(512, 1).unwrap(), [2], "one at least");
    }

    #[test]
    fn a_closed_one_gives_what_is_left() {
        let queue = FairQueue::new();
        queue.push(ANA, 1, 7);
        queue.close();
        assert_eq!(queue.batch(512, 512).unwrap(), [7]);
        assert!(queue.batch(512, 512).is_none());
    }
}
