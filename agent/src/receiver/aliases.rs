//! Folders that have another name here, because a file or a link has theirs: they keep it for their sender.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
};

use dropwire_protocol::AgentId;
use lru::LruCache;

use super::ledger::Alias;

/// Most aliases of a peer; the one used longest ago is forgotten for a new one. A forgotten one is found again by
/// looking, as long as what took the folder's own name is there.
pub(super) const MOST: usize = 128;

/// The aliases of all peers, as the ledger has them.
#[derive(Default)]
pub(super) struct Aliases {
    of: HashMap<AgentId, LruCache<Vec<u8>, Vec<u8>>>,
}

impl Aliases {
    /// With those that the ledger knows.
    pub(super) fn new(known: Vec<Alias>) -> Self {
        let mut aliases = Self::default();
        for (sender, folder, alias) in known {
            aliases.set(sender, folder, alias);
        }
        aliases
    }

    /// What the last component of the sender's `folder` is called here.
    pub(super) fn get(&mut self, sender: AgentId, folder: &[u8]) -> Option<Vec<u8>> {
        self.of.get_mut(&sender)?.get(folder).cloned()
    }

    /// From now on it is called so. Gives the folder whose alias was forgotten for it.
    pub(super) fn set(&mut self, sender: AgentId, folder: Vec<u8>, alias: Vec<u8>) -> Option<Vec<u8>> {
        const BOUND: NonZeroUsize = NonZeroUsize::new(MOST).unwrap();
        let most = match crate::failpoints::mutant("alias-bound") {
            true => NonZeroUsize::MAX,
            false => BOUND,
        };
        let its = self.of.entry(sender).or_insert_with(LruCache::unbounded);
        its.put(folder, alias);
        (its.len() > most.get())
            .then(|| its.pop_lru())
            .flatten()
            .map(|(forgotten, _)| forgotten)
    }

    /// Forgets those of all who are no peers any more.
    pub(super) fn keep_of(&mut self, peers: &HashSet<AgentId>) {
        self.of.retain(|sender, _| peers.contains(sender));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANA: AgentId = AgentId([1; 32]);
    const BOB: AgentId = AgentId([2; 32]);

    #[test]
    fn a_peer_has_so_many_and_those_in_use_stay() {
        let folder = |n: usize| n.to_string().into_bytes();
        let known = (0..MOST).map(|n| (ANA, folder(n), b"alias".to_vec())).collect();
        let mut aliases = Aliases::new(known);
        assert!(aliases.get(ANA, b"0").is_some());
        let forgotten = aliases.set(ANA, b"new".to_vec(), b"other".to_vec());
        assert_eq!(forgotten, Some(folder(1)), "0 was just used");
        assert_eq!(aliases.get(ANA, b"1"), None);
        assert_eq!(aliases.get(ANA, b"new"), Some(b"other".to_vec()));
        assert_eq!(
            aliases.set(BOB, b"new".to_vec(), b"his".to_vec()),
            None,
            "each its own"
        );
        aliases.keep_of(&HashSet::from([BOB]));
        assert_eq!(aliases.get(ANA, b"new"), None);
        assert!(aliases.get(BOB, b"new").is_some());
    }
}
