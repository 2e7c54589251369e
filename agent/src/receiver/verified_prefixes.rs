//! Partials that this run let go of and nobody touched since: what is in them needs no second reading.
//!
//! A link that was cut leaves a partial whose every byte this run verified, as those of a transfer that was never
//! cut. It is sealed with a time of change that no clock gives: whoever writes into it breaks that. A restart forgets
//! all seals, so after a crash every byte is read again.

use std::{
    collections::HashMap,
    fs::File,
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::transfer_locks::Key;
use crate::{
    failpoints,
    fs::{file_system, version::Version},
    poison::Unpoisoned as _,
};

/// Most seals that are remembered; for one more, an arbitrary one is forgotten.
const MOST: usize = 1024;
/// Long past, in whole even seconds, which every file system keeps as they are.
const SEAL: Duration = Duration::from_secs(1_000_000_000);

/// The sealed partials of an inbox.
#[derive(Default)]
pub(super) struct VerifiedPrefixes {
    /// With the partial's birth and inode, so that a copy does not pass for it.
    sealed: Mutex<HashMap<Key, Version>>,
}

impl VerifiedPrefixes {
    /// Seals a partial of which this run wrote, or read again, every byte. One that cannot be sealed is read again.
    pub(super) fn set(&self, key: Key, file: &File) {
        let sealing = file_system::set_modified(file, time());
        let version = sealing
            .and_then(|()| file.metadata())
            .map(|meta| Version::raw(&meta));
        let mut sealed = self.sealed.lock().unpoisoned();
        sealed.remove(&key);
        if let Ok(version) = version {
            if sealed.len() >= MOST
                && let Some(any) = sealed.keys().next().copied()
            {
                sealed.remove(&any);
            }
            sealed.insert(key, version);
        }
    }

    /// Takes the seal off a partial, before anything else is done to it. Was it unbroken?
    pub(super) fn take(&self, key: Key, file: &File) -> bool {
        let mut sealed = self.sealed.lock().unpoisoned();
        let Some(version) = sealed.remove(&key) else {
            return false;
        };
        drop(sealed); // a disk may hang
        let now = file.metadata().map(|meta| Version::raw(&meta));
        now.is_ok_and(|now| now.same_identity(&version)) || failpoints::mutant("R4-seal")
    }
}

fn time() -> SystemTime {
    UNIX_EPOCH + SEAL
}

#[cfg(test)]
mod tests {
    use dropwire_protocol::{AgentId, TransferId};

    use super::*;
    use crate::receiver::output;

    const KEY: Key = (AgentId([1; 32]), TransferId([2; 16]));

    fn sealed(bytes: &[u8]) -> (VerifiedPrefixes, File) {
        let file = tempfile::tempfile().unwrap();
        output::write_at(&file, 0, bytes).unwrap();
        let verified_prefixes = VerifiedPrefixes::default();
        verified_prefixes.set(KEY, &file);
        (verified_prefixes, file)
    }

    #[test]
    fn a_seal_holds_once() {
        let (verified_prefixes, file) = sealed(b"abc");
        assert!(verified_prefixes.take(KEY, &file));
        assert!(!verified_prefixes.take(KEY, &file));
    }

    #[test]
    fn writing_cutting_or_replacing_breaks_it() {
        let (verified_prefixes, file) = sealed(b"abc");
        output::write_at(&file, 1, b"b").unwrap();
        assert!(!verified_prefixes.take(KEY, &file), "even the same bytes");
        let (verified_prefixes, file) = sealed(b"abc");
        file.set_len(2).unwrap();
        assert!(!verified_prefixes.take(KEY, &file));
        let (verified_prefixes, _file) = sealed(b"abc");
        let (_, copy) = sealed(b"abc");
        assert_eq!(
            verified_prefixes.take(KEY, &copy),
            cfg!(not(unix)),
            "inodes tell them apart"
        );
    }

    #[test]
    fn no_more_than_the_most_are_remembered_and_the_newest_always() {
        let (verified_prefixes, file) = sealed(b"abc");
        for n in 0..2 * MOST as u32 {
            let mut job = [0; 16];
            job[..4].copy_from_slice(&n.to_le_bytes());
            let key = (KEY.0, TransferId(job));
            verified_prefixes.set(key, &file);
            assert!(verified_prefixes.sealed.lock().unwrap().contains_key(&key));
        }
        assert_eq!(verified_prefixes.sealed.lock().unwrap().len(), MOST);
    }
}
