//! Who works on which transfer: one at a time, the newest wins, and only after the one before it has ended.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use dropwire_protocol::{AgentId, TransferId};
use tokio::sync::watch;

/// A transfer, by its authenticated sender and its id.
pub type Key = (AgentId, TransferId);

/// All claims of an inbox.
#[derive(Default)]
pub struct Claims {
    table: Mutex<HashMap<Key, Entry>>,
    ended: Condvar,
    /// The same for those that wait without a thread.
    ends: watch::Sender<()>,
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
    /// Claims `key`, firmly: a newer one waits until this is dropped. An older one is fenced and waited for, unless the
    /// claim is not `wanted` any more, which is asked again at each end of a claim and each [`Claims::look_again`].
    pub fn take(
        self: &Arc<Self>,
        key: Key,
        wake: Option<Box<dyn Fn() + Send>>,
        wanted: &dyn Fn() -> bool,
    ) -> Option<Claim> {
        let mut table = self.lock();
        while fence(&table, key) {
            if !wanted() {
                return None;
            }
            table = self.wait(table);
        }
        Some(self.enter(table, key, true, wake))
    }

    /// Claims `key` softly: a newer one takes it away without waiting. An older one is fenced and, if firm, waited for.
    pub fn take_softly(self: &Arc<Self>, key: Key) -> Claim {
        let mut table = self.lock();
        while fence(&table, key) {
            table = self.wait(table);
        }
        self.enter(table, key, false, None)
    }

    /// Some claim that is waited for may not be wanted any more.
    pub fn look_again(&self) {
        drop(self.lock()); // whoever has asked waits by now
        self.ended.notify_all();
    }

    /// Claims `key` firmly if that needs no waiting. If somebody works on it, that one is asked to end: [`Claims::ends`]
    /// tells when to try again.
    pub fn take_now(self: &Arc<Self>, key: Key) -> Option<Claim> {
        let table = self.lock();
        match fence(&table, key) {
            true => None,
            false => Some(self.enter(table, key, true, None)),
        }
    }

    /// Changes whenever a claim ends.
    pub fn ends(&self) -> watch::Receiver<()> {
        self.ends.subscribe()
    }

    /// Claims `key` only if nobody has it.
    pub fn try_take(self: &Arc<Self>, key: Key) -> Option<Claim> {
        let table = self.lock();
        match table.contains_key(&key) {
            true => None,
            false => Some(self.enter(table, key, true, None)),
        }
    }

    fn wait<'a>(&self, table: MutexGuard<'a, HashMap<Key, Entry>>) -> MutexGuard<'a, HashMap<Key, Entry>> {
        self.ended.wait(table).unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(
        self: &Arc<Self>,
        mut table: MutexGuard<'_, HashMap<Key, Entry>>,
        key: Key,
        firm: bool,
        wake: Option<Box<dyn Fn() + Send>>,
    ) -> Claim {
        let fenced = Arc::new(AtomicBool::new(false));
        let entry = Entry {
            fenced: fenced.clone(),
            firm,
            wake,
        };
        table.insert(key, entry);
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

/// Fences the one who has `key`. True: its claim is firm, and has to end first.
fn fence(table: &HashMap<Key, Entry>, key: Key) -> bool {
    let Some(older) = table.get(&key) else {
        return false;
    };
    older.fenced.store(true, Ordering::Release);
    if let Some(wake) = older.wake.as_ref().filter(|_| older.firm) {
        wake();
    }
    older.firm
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
        drop(table);
        self.claims.ended.notify_all();
        self.claims.ends.send_replace(());
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
        let old = claims.take(KEY, Some(Box::new(move || wake.send(()).unwrap())), &|| true);
        let newer = std::thread::spawn({
            let claims = claims.clone();
            move || claims.take(KEY, None, &|| true)
        });
        woken.recv().unwrap();
        assert!(old.as_ref().unwrap().fenced());
        drop(old);
        assert!(!newer.join().unwrap().unwrap().fenced());
        assert!(claims.try_take(KEY).is_some());
    }

    #[test]
    fn who_does_not_wait_is_told_when_to_try_again() {
        let claims = Arc::new(Claims::default());
        let old = claims.take_now(KEY).unwrap();
        let ends = claims.ends();
        assert!(claims.take_now(KEY).is_none());
        assert!(old.fenced() && !ends.has_changed().unwrap());
        drop(old);
        assert!(ends.has_changed().unwrap());
        let soft = claims.take_softly(KEY);
        assert!(claims.take_now(KEY).is_some_and(|newer| !newer.fenced()));
        assert!(soft.fenced());
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
