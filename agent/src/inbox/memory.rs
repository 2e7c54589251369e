//! How much memory small files may take that wait for their batch, all links together.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A budget of bytes; who wants more waits for others to be done.
pub struct Memory {
    free: Mutex<u64>,
    given_back: Condvar,
}

/// Bytes taken from the budget; given back when dropped.
pub struct Taken {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Arc<Memory> {
        Arc::new(Memory {
            free: Mutex::new(bytes),
            given_back: Condvar::new(),
        })
    }

    /// Takes `bytes`, which must not be more than the whole budget, and blocks until there are so many.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Taken {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .given_back
            .wait_while(free, |free| *free < bytes)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        drop(free);
        Taken {
            memory: self.clone(),
            bytes,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.memory.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.memory.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn who_wants_more_than_is_free_waits_until_it_is_given_back() {
        let memory = Memory::new(10);
        let first = memory.take(7);
        let _second = memory.take(3);
        let (told, heard) = mpsc::channel();
        let waiting = {
            let memory = memory.clone();
            thread::spawn(move || {
                let taken = memory.take(5);
                told.send("taken").unwrap();
                drop(taken);
            })
        };
        assert!(heard.try_recv().is_err(), "nothing is free");
        drop(first);
        assert_eq!(heard.recv(), Ok("taken"));
        waiting.join().unwrap();
        drop(memory.take(7));
    }
}
