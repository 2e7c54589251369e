//! Partials that this run let go of and nobody touched since: what is in them needs no second reading.
//!
//! A link that was cut leaves a partial whose every byte this run verified, as those of a transfer that was never
//! cut. It is sealed with a time of change that no clock gives: whoever writes into it breaks that. A restart forgets
//! all seals, so after a crash every byte is read again.

use std::{
    collections::HashMap,
    fs::{File, FileTimes},
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{claims::Key, partial};
use crate::fault;

/// Most partials whose seals are remembered; those of more are read again.
const MOST: usize = 1024;
/// Long past, in whole even seconds, which every file system keeps as they are.
const SEAL: Duration = Duration::from_secs(1_000_000_000);

/// The seals of an inbox.
#[derive(Default)]
pub struct Seals {
    /// By the partial's inode, so that a copy does not pass for it.
    sealed: Mutex<HashMap<Key, u64>>,
}

impl Seals {
    /// Seals a partial, of which this run wrote every byte or read it again. Where that fails it is read again.
    pub fn set(&self, key: Key, file: &File) {
        let sealing = || -> io::Result<u64> {
            file.set_times(FileTimes::new().set_modified(time()))?;
            partial::inode(file)
        };
        let mut sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        match sealing() {
            Ok(inode) if sealed.len() < MOST || sealed.contains_key(&key) => sealed.insert(key, inode),
            _ => sealed.remove(&key),
        };
    }

    /// Takes the seal off a partial, before anything else is done to it. Was it unbroken?
    pub fn take(&self, key: Key, file: &File) -> bool {
        let mut sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inode) = sealed.remove(&key) else {
            return false;
        };
        let untouched = || -> io::Result<bool> {
            Ok(partial::inode(file)? == inode && file.metadata()?.modified()? == time())
        };
        untouched().unwrap_or(false) || fault::mutant("R4-seal")
    }
}

fn time() -> SystemTime {
    UNIX_EPOCH + SEAL
}

#[cfg(test)]
mod tests {
    use dropwire_protocol::{AgentId, TransferId};

    use super::*;

    const KEY: Key = (AgentId([1; 32]), TransferId([2; 16]));

    fn sealed(bytes: &[u8]) -> (Seals, File) {
        let file = tempfile::tempfile().unwrap();
        partial::write_at(&file, 0, bytes).unwrap();
        let seals = Seals::default();
        seals.set(KEY, &file);
        (seals, file)
    }

    #[test]
    fn a_seal_holds_once() {
        let (seals, file) = sealed(b"abc");
        assert!(seals.take(KEY, &file));
        assert!(!seals.take(KEY, &file));
    }

    #[test]
    fn writing_cutting_or_replacing_breaks_it() {
        let (seals, file) = sealed(b"abc");
        partial::write_at(&file, 1, b"b").unwrap();
        assert!(!seals.take(KEY, &file), "even the same bytes");
        let (seals, file) = sealed(b"abc");
        file.set_len(2).unwrap();
        assert!(!seals.take(KEY, &file));
        let (seals, _file) = sealed(b"abc");
        let (_, copy) = sealed(b"abc");
        assert_eq!(seals.take(KEY, &copy), cfg!(not(unix)), "inodes tell them apart");
    }

    #[test]
    fn no_more_than_the_most_are_remembered() {
        let (seals, file) = sealed(b"abc");
        for n in 0..MOST as u32 {
            let mut job = [0; 16];
            job[..4].copy_from_slice(&n.to_le_bytes());
            seals.set((KEY.0, TransferId(job)), &file);
        }
        assert_eq!(seals.sealed.lock().unwrap().len(), MOST);
        seals.set(KEY, &file);
        assert!(seals.take(KEY, &file), "sealed anew, without being one more");
    }
}
