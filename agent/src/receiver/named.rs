//! Which partials this run has given their final names, written where a killed agent's successor finds it.
//!
//! Between R7 and the commit of R9 a row says *placing* while the partial has left the partials' folder. If a person or
//! program takes the delivered file out of the inbox in that moment and the agent is killed, nothing of it is found
//! again: neither under the partial's name nor under its own. Whether it was delivered then, or somebody took the
//! partial before it ever got its name, only a record made in between can tell. Where files are linked or copied to
//! their names, the partial is found, and only the record tells that it had its name already. A commit for it would
//! cost a sync of the disk for each batch; this record is one small write into the page cache, right after the name was
//! given, never synced.
//!
//! It survives the end of the process, however that comes, and is not believed after the end of the system: each record
//! is bound to the boot in which it was made (where the system tells that), since after a power cut the record may be on
//! the disk and the rename it tells of not. So there are two limits, and in both the file is received a second time,
//! never lost: somebody takes the delivered file within some microseconds and the agent is killed in them, or somebody
//! takes it and the system ends before R9, some milliseconds later.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    sync::{LazyLock, Mutex, MutexGuard},
};

use cap_std::fs::Dir;
use dropwire_protocol::{Digest, Receipt, RunningDigest};

use super::output;
use crate::{failpoints, fs::durable, io_error::is_shortage, poison::Unpoisoned as _};

/// The file, below `.dropwire`.
const FILE: &str = "named";
/// Most records; of files beyond it nothing is recorded.
const MOST: u64 = 65_536;

/// What stands for one receipt, in one boot of the system.
type Record = [u8; 16];
const RECORD: u64 = size_of::<Record>() as u64;

/// The record of one inbox.
pub(super) struct Named {
    /// None where it could not be opened: then nothing is recorded.
    file: Option<File>,
    /// As earlier runs left it.
    earlier: HashSet<Record>,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    taken: HashMap<Record, u64>,
    free: Vec<u64>,
    end: u64,
}

impl Named {
    /// Reads what is in `own`, an inbox's `.dropwire`. Without it the inbox works all the same; an error is a shortage,
    /// after which it can be had.
    pub(super) fn open(own: &Dir) -> io::Result<Self> {
        let (file, earlier) = match open(own) {
            Ok((file, earlier)) => (Some(file), earlier),
            Err(error) if is_shortage(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "cannot record which files got their names (.dropwire/{FILE})");
                (None, Vec::new())
            }
        };
        let slots = Slots {
            end: earlier.len() as u64,
            ..Slots::default()
        };
        Ok(Self {
            file,
            earlier: earlier.into_iter().collect(),
            slots: Mutex::new(slots),
        })
    }

    /// The file of this receipt has its final name. Failing at that only costs what the record is for.
    pub(super) fn note(&self, receipt: &Receipt) {
        let Some(file) = self.file.as_ref().filter(|_| !failpoints::mutant("R7-note")) else {
            return;
        };
        let (record, mut slots) = (record(receipt), self.lock());
        if slots.taken.contains_key(&record) {
            return;
        }
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None if slots.end < MOST => {
                slots.end += 1;
                slots.end - 1
            }
            None => return,
        };
        match output::write_at(file, slot * RECORD, &record) {
            Ok(()) => {
                slots.taken.insert(record, slot);
            }
            Err(_) => slots.free.push(slot), // a full disk
        }
    }

    /// Its row says so now: its place in the file may be used again.
    pub(super) fn forget(&self, receipt: &Receipt) {
        let (record, mut slots) = (record(receipt), self.lock());
        if let Some(slot) = slots.taken.remove(&record) {
            slots.free.push(slot);
        }
    }

    /// Did the file of this receipt have its final name?
    pub(super) fn has(&self, receipt: &Receipt) -> bool {
        let record = record(receipt);
        self.earlier.contains(&record) || self.lock().taken.contains_key(&record)
    }

    /// No row needs what earlier runs left.
    pub(super) fn start_over(&self) {
        let mut slots = self.lock();
        if let Some(file) = self.file.as_ref().filter(|_| slots.taken.is_empty())
            && file.set_len(0).is_ok()
        {
            *slots = Slots::default();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unpoisoned()
    }
}

fn open(own: &Dir) -> io::Result<(File, Vec<Record>)> {
    let file = durable::open_private(own, OsStr::new(FILE))?;
    let mut bytes = Vec::new();
    (&file).take(MOST * RECORD).read_to_end(&mut bytes)?;
    let (records, _) = bytes.as_chunks();
    Ok((file, records.to_vec()))
}

/// A receipt has a salt, so each one is told from every other.
fn record(receipt: &Receipt) -> Record {
    let mut digest = RunningDigest::default();
    digest.update(BOOT.as_bytes());
    digest.update(&receipt.body);
    let Digest(bytes) = digest.value();
    std::array::from_fn(|n| bytes[n])
}

/// Tells one boot of the system from the next; empty where the system does not say.
static BOOT: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default());

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(n: u8) -> Receipt {
        Receipt {
            body: vec![n; 200],
            key: Vec::new(),
            signature: Vec::new(),
            audit_path: Vec::new(),
        }
    }

    #[test]
    fn what_was_named_is_known_to_the_next_run_until_no_row_needs_it() {
        let temp = tempfile::tempdir().unwrap();
        let own = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        let first = Named::open(&own).unwrap();
        (0..3).for_each(|n| first.note(&receipt(n)));
        first.forget(&receipt(1));
        first.note(&receipt(3));
        assert_eq!(
            own.metadata(FILE).unwrap().len(),
            3 * RECORD,
            "a place is used again"
        );
        let killed = Named::open(&own).unwrap();
        let known = [0, 1, 2, 3, 4].map(|n| killed.has(&receipt(n)));
        assert_eq!(known, [true, false, true, true, false]);
        killed.note(&receipt(4));
        let killed_again = Named::open(&own).unwrap();
        assert!(killed_again.has(&receipt(0)) && killed_again.has(&receipt(4)));
        killed_again.start_over();
        assert!(!Named::open(&own).unwrap().has(&receipt(0)));
    }

    #[test]
    fn it_has_a_bound() {
        let temp = tempfile::tempdir().unwrap();
        let own = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        own.write(FILE, vec![7; (MOST * RECORD) as usize]).unwrap();
        let full = Named::open(&own).unwrap();
        full.note(&receipt(1));
        assert!(!full.has(&receipt(1)));
        full.start_over();
        full.note(&receipt(1));
        assert!(full.has(&receipt(1)));
    }
}
