//! Who works on which transfer: one at a time, the newest wins, and only after the one before it has ended.

use std::{
    collections::{HashMap, hash_map},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use dropwire_protocol::{AgentId, TransferId};

/// A transfer, by its authenticated sender and its id.
pub type Key = (AgentId, TransferId);

/// All claims of an inbox.
#[derive(Default)]
pub struct Claims {
    table: Mutex<HashMap<Key, Entry>>,
    ended: Condvar,
}

struct Entry {
    fenced: Arc<AtomicBool>,
    firm: bool,
    /// Wakes an owner that waits for something else; must not block.
    wake: Option<Box<dyn Fn() + Send>>,
}

/// The right to work on a transfer, given back when dropped.
pub struct Claim {
    claims: Arc<Claims>,
    key: Key,
    fenced: Arc<AtomicBool>,
}

impl Claims {
    /// Claims `key`, firmly: a newer one waits until this is dropped. An older one is fenced and waited for.
    pub fn take(self: &Arc<Self>, key: Key, wake: Option<Box<dyn Fn() + Send>>) -> Claim {
        self.insert(key, true, wake)
    }

    /// Claims `key` softly: a newer one takes it away without waiting. An older one is fenced and, if firm, waited for.
    pub fn take_softly(self: &Arc<Self>, key: Key) -> Claim {
        self.insert(key, false, None)
    }

    /// Claims `key` only if nobody has it.
    pub fn try_take(self: &Arc<Self>, key: Key) -> Option<Claim> {
        let mut table = self.lock();
        match table.entry(key) {
            hash_map::Entry::Occupied(_) => None,
            hash_map::Entry::Vacant(entry) => {
                let fenced = Arc::new(AtomicBool::new(false));
                entry.insert(Entry {
                    fenced: fenced.clone(),
                    firm: true,
                    wake: None,
                });
                drop(table);
                Some(self.claim(key, fenced))
            }
        }
    }

    fn insert(self: &Arc<Self>, key: Key, firm: bool, wake: Option<Box<dyn Fn() + Send>>) -> Claim {
        let mut table = self.lock();
        while let Some(older) = table.get(&key) {
            older.fenced.store(true, Ordering::Release);
            if !older.firm {
                break;
            }
            if let Some(wake) = &older.wake {
                wake();
            }
            table = self.ended.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let fenced = Arc::new(AtomicBool::new(false));
        table.insert(
            key,
            Entry {
                fenced: fenced.clone(),
                firm,
                wake,
            },
        );
        drop(table);
        self.claim(key, fenced)
    }

    fn claim(self: &Arc<Self>, key: Key, fenced: Arc<AtomicBool>) -> Claim {
        Claim {
            claims: self.clone(),
            key,
            fenced,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Which transfer.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Does a newer one want it?
    pub fn fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Makes a soft claim firm; false if a newer one has it by now.
    pub fn make_firm(&self) -> bool {
        let mut table = self.claims.lock();
        match table.get_mut(&self.key) {
            Some(entry) if Arc::ptr_eq(&entry.fenced, &self.fenced) => {
                entry.firm = true;
                !self.fenced()
            }
            _ => false,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = self.claims.lock();
        let ours = |e: &Entry| Arc::ptr_eq(&e.fenced, &self.fenced);
        if table.get(&self.key).is_some_and(ours) {
            table.remove(&self.key);
        }
        self.claims.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const KEY: Key = (AgentId([1; 32]), TransferId([2; 16]));

    #[test]
    fn a_firm_claim_is_fenced_woken_and_waited_for() {
        let claims = Arc::new(Claims::default());
        let (wake, woken) = mpsc::channel();
        let old = claims.take(KEY, Some(Box::new(move || wake.send(()).unwrap())));
        let newer = std::thread::spawn({
            let claims = claims.clone();
            move || claims.take(KEY, None)
        });
        woken.recv().unwrap();
        assert!(old.fenced());
        drop(old);
        assert!(!newer.join().unwrap().fenced());
        assert!(claims.try_take(KEY).is_some());
    }

    #[test]
    fn a_soft_claim_is_taken_away() {
        let claims = Arc::new(Claims::default());
        let old = claims.take_softly(KEY);
        let newer = claims.take_softly(KEY);
        assert!(!old.make_firm());
        drop(old);
        assert!(claims.try_take(KEY).is_none(), "only its own entry goes");
        assert!(newer.make_firm());
    }
}
