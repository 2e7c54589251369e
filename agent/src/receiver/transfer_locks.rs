//! Who works on which transfer: one at a time, the newest wins, and only after the one before it has ended.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use dropwire_protocol::{AgentId, TransferId};
use tokio::sync::watch;

use crate::poison::Unpoisoned as _;

/// A transfer, by its authenticated sender and its id.
pub(super) type Key = (AgentId, TransferId);

/// The locks of an inbox's transfers: one link at a time works on each.
#[derive(Default)]
pub(super) struct TransferLocks {
    table: Mutex<Table>,
    ended: Condvar,
    /// Tells of the end of a lock those that wait without a thread.
    ends: watch::Sender<()>,
}

#[derive(Default)]
struct Table {
    locks: HashMap<Key, Entry>,
    /// How many wait for a lock's end.
    waiting: usize,
}

struct Entry {
    fenced: Arc<AtomicBool>,
    exclusive: bool,
    /// Wakes an owner that waits for something else; must not block.
    wake: Option<Box<dyn Fn() + Send>>,
}

/// The right to work on a transfer, given back when dropped.
pub(super) struct TransferLock {
    transfer_locks: Arc<TransferLocks>,
    key: Key,
    fenced: Arc<AtomicBool>,
}

impl TransferLocks {
    /// Locks `key` exclusively: a newer lock waits until this is dropped. An older one is fenced and waited for, unless
    /// the lock is not `wanted` any more, which is asked again at each end of a lock and each
    /// [`TransferLocks::ask_again`].
    pub(super) fn take(
        self: &Arc<Self>,
        key: Key,
        wake: Option<Box<dyn Fn() + Send>>,
        wanted: &dyn Fn() -> bool,
    ) -> Option<TransferLock> {
        let mut table = self.lock();
        while fence(&table.locks, key) {
            if !wanted() {
                return None;
            }
            table = self.wait(table);
        }
        Some(self.insert(table, key, true, wake))
    }

    /// Locks `key` preemptibly: a newer lock takes it away without waiting. An older one is fenced and, if exclusive,
    /// waited for.
    pub(super) fn take_preemptible(self: &Arc<Self>, key: Key) -> TransferLock {
        let mut table = self.lock();
        while fence(&table.locks, key) {
            table = self.wait(table);
        }
        self.insert(table, key, false, None)
    }

    /// Some lock that is waited for may not be wanted any more.
    pub(super) fn ask_again(&self) {
        drop(self.lock()); // whoever has asked waits by now
        self.ended.notify_all();
    }

    /// Locks `key` exclusively if that needs no waiting. Whoever works on it is asked to end: [`TransferLocks::ends`]
    /// tells when to try again.
    pub(super) fn take_now(self: &Arc<Self>, key: Key) -> Option<TransferLock> {
        let table = self.lock();
        match fence(&table.locks, key) {
            true => None,
            false => Some(self.insert(table, key, true, None)),
        }
    }

    /// Changes whenever a lock ends.
    pub(super) fn ends(&self) -> watch::Receiver<()> {
        self.ends.subscribe()
    }

    /// Locks `key` only if nobody has it.
    pub(super) fn try_take(self: &Arc<Self>, key: Key) -> Option<TransferLock> {
        let table = self.lock();
        match table.locks.contains_key(&key) {
            true => None,
            false => Some(self.insert(table, key, true, None)),
        }
    }

    /// How many wait for a lock's end.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    fn wait<'a>(&self, mut table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        table.waiting += 1;
        let mut table = self.ended.wait(table).unpoisoned();
        table.waiting -= 1;
        table
    }

    fn insert(
        self: &Arc<Self>,
        mut table: MutexGuard<'_, Table>,
        key: Key,
        exclusive: bool,
        wake: Option<Box<dyn Fn() + Send>>,
    ) -> TransferLock {
        let fenced = Arc::new(AtomicBool::new(false));
        let entry = Entry {
            fenced: fenced.clone(),
            exclusive,
            wake,
        };
        table.locks.insert(key, entry);
        TransferLock {
            transfer_locks: self.clone(),
            key,
            fenced,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unpoisoned()
    }
}

/// Fences whoever has `key`. True: that lock is exclusive, and has to end first.
fn fence(table: &HashMap<Key, Entry>, key: Key) -> bool {
    let Some(older) = table.get(&key) else {
        return false;
    };
    older.fenced.store(true, Ordering::Release);
    if let Some(wake) = older.wake.as_ref().filter(|_| older.exclusive) {
        wake();
    }
    older.exclusive
}

impl TransferLock {
    /// Which transfer.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Does a newer one want it?
    pub(super) fn fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Makes a preemptible lock exclusive; false if a newer one has it by now.
    pub(super) fn make_exclusive(&self) -> bool {
        let mut table = self.transfer_locks.lock();
        match table.locks.get_mut(&self.key) {
            Some(entry) if Arc::ptr_eq(&entry.fenced, &self.fenced) => {
                entry.exclusive = true;
                !self.fenced()
            }
            _ => false,
        }
    }
}

impl Drop for TransferLock {
    fn drop(&mut self) {
        let mut table = self.transfer_locks.lock();
        let ours = |e: &Entry| Arc::ptr_eq(&e.fenced, &self.fenced);
        if table.locks.get(&self.key).is_some_and(ours) {
            table.locks.remove(&self.key);
        }
        let is_waited_for = table.waiting > 0;
        drop(table);
        if is_waited_for {
            self.transfer_locks.ended.notify_all(); // a system call, also where nobody waits
        }
        self.transfer_locks.ends.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const KEY: Key = (AgentId([1; 32]), TransferId([2; 16]));

    #[test]
    fn an_exclusive_lock_is_fenced_woken_and_waited_for() {
        let transfer_locks = Arc::new(TransferLocks::default());
        let (wake, woken) = mpsc::channel();
        let old = transfer_locks.take(KEY, Some(Box::new(move || wake.send(()).unwrap())), &|| true);
        let newer = std::thread::spawn({
            let transfer_locks = transfer_locks.clone();
            move || transfer_locks.take(KEY, None, &|| true)
        });
        woken.recv().unwrap();
        assert!(old.as_ref().unwrap().fenced());
        drop(old);
        assert!(!newer.join().unwrap().unwrap().fenced());
        assert!(transfer_locks.try_take(KEY).is_some());
    }

    #[test]
    fn who_does_not_wait_is_told_when_to_try_again() {
        let transfer_locks = Arc::new(TransferLocks::default());
        let old = transfer_locks.take_now(KEY).unwrap();
        let ends = transfer_locks.ends();
        assert!(transfer_locks.take_now(KEY).is_none());
        assert!(old.fenced() && !ends.has_changed().unwrap());
        drop(old);
        assert!(ends.has_changed().unwrap());
        let preemptible = transfer_locks.take_preemptible(KEY);
        assert!(transfer_locks.take_now(KEY).is_some_and(|newer| !newer.fenced()));
        assert!(preemptible.fenced());
    }

    #[test]
    fn a_preemptible_lock_is_taken_away() {
        let transfer_locks = Arc::new(TransferLocks::default());
        let old = transfer_locks.take_preemptible(KEY);
        let newer = transfer_locks.take_preemptible(KEY);
        assert!(!old.make_exclusive());
        drop(old);
        assert!(transfer_locks.try_take(KEY).is_none(), "only its own entry goes");
        assert!(newer.make_exclusive());
    }
}
