//! The oracle: what was dropped, what arrived, and whether the two agree.
//!
//! A drop is known by where it has to arrive, its name and its bytes. Most bytes are unique to a drop; equal ones
//! under one name are counted. A drop that was replaced in the outbox may arrive or not, but never twice.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// A file as it has to be found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Item {
    /// The folder in which it arrives.
    pub place: String,
    /// Below that, without the number that a taken name gets.
    pub path: PathBuf,
    /// SHA-256 in hex.
    pub digest: String,
}

/// What is known of all drops.
#[derive(Default, Debug)]
pub(crate) struct Ledger {
    counts: HashMap<Item, Count>,
    missing: u64,
    /// Files that arrived more often than they were dropped.
    pub doubled: Vec<Item>,
    /// Files that arrived and were never dropped so: other bytes, another name.
    pub torn: Vec<Item>,
}

#[derive(Default, Debug)]
struct Count {
    least: u32,
    most: u32,
    found: u32,
}

impl Ledger {
    /// `item` was dropped and has to arrive once more.
    pub(crate) fn expect(&mut self, item: Item) {
        let count = self.counts.entry(item).or_default();
        count.least += 1;
        count.most += 1;
        // What was found may have been an equal drop that was replaced.
        if count.found < count.least {
            self.missing += 1;
        }
    }

    /// One drop of `item` was replaced before it left: it need not arrive.
    pub(crate) fn excuse(&mut self, item: &Item) {
        let Some(count) = self.counts.get_mut(item) else {
            return;
        };
        if count.found < count.least {
            self.missing -= 1;
        }
        count.least = count.least.saturating_sub(1);
    }

    /// `item` may arrive once more, and need not.
    pub(crate) fn allow(&mut self, item: Item) {
        self.counts.entry(item).or_default().most += 1;
    }

    /// `item` arrived at least once.
    pub(crate) fn has_found(&self, item: &Item) -> bool {
        self.counts.get(item).is_some_and(|count| count.found > 0)
    }

    /// `item` was found.
    pub(crate) fn found(&mut self, item: Item) {
        match self.counts.get_mut(&item) {
            None => self.torn.push(item),
            Some(count) => {
                if count.found < count.least {
                    self.missing -= 1;
                }
                count.found += 1;
                if count.found > count.most {
                    self.doubled.push(item);
                }
            }
        }
    }

    /// How many have still to arrive.
    pub(crate) fn missing(&self) -> u64 {
        self.missing
    }

    /// Which ones.
    pub(crate) fn lost(&self) -> impl Iterator<Item = &Item> {
        let lost = self.counts.iter().filter(|(_, c)| c.found < c.least);
        lost.map(|(item, _)| item)
    }

    /// Nothing arrived that should not have.
    pub(crate) fn clean(&self) -> bool {
        self.doubled.is_empty() && self.torn.is_empty()
    }
}

/// The path without the number that a taken name gets: `a/report (1).pdf` → `a/report.pdf`.
pub(crate) fn unnumbered(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) => (stem, format!(".{extension}")),
        None => (&*name, String::new()),
    };
    let numbered = stem.strip_suffix(')').and_then(|s| s.rsplit_once(" ("));
    match numbered {
        Some((stem, number)) if number.bytes().all(|b| b.is_ascii_digit()) => {
            path.with_file_name(format!("{stem}{extension}"))
        }
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> Item {
        Item {
            place: "inbox".into(),
            path: name.into(),
            digest: "d".into(),
        }
    }

    #[test]
    fn lost_doubled_and_torn_are_told_apart() {
        let mut ledger = Ledger::default();
        for _ in 0..2 {
            ledger.expect(item("twice"));
        }
        ledger.expect(item("lost"));
        ledger.found(item("twice"));
        assert_eq!((ledger.missing(), ledger.clean()), (2, true));
        ledger.found(item("twice"));
        assert_eq!(ledger.lost().collect::<Vec<_>>(), [&item("lost")]);
        ledger.found(item("twice"));
        ledger.found(item("unknown"));
        assert_eq!(ledger.doubled, [item("twice")]);
        assert_eq!(ledger.torn, [item("unknown")]);
    }

    #[test]
    fn a_replaced_drop_may_arrive_once_or_not_at_all() {
        for arrives in [false, true] {
            for excused_first in [false, true] {
                let mut ledger = Ledger::default();
                ledger.expect(item("old"));
                if excused_first {
                    ledger.excuse(&item("old"));
                }
                if arrives {
                    ledger.found(item("old"));
                }
                if !excused_first {
                    ledger.excuse(&item("old"));
                }
                assert_eq!((ledger.missing(), ledger.clean()), (0, true));
                ledger.expect(item("old"));
                assert_eq!(ledger.missing(), ledger.lost().count() as u64);
                ledger.found(item("old"));
                assert_eq!((ledger.missing(), ledger.clean()), (0, true));
                if arrives {
                    ledger.found(item("old"));
                    assert!(!ledger.clean());
                }
            }
        }
    }

    #[test]
    fn numbers_are_taken_off() {
        for (numbered, plain) in [
            ("a/x (12).pdf", "a/x.pdf"),
            ("x (1)", "x"),
            ("x.pdf", "x.pdf"),
            ("x (y).pdf", "x (y).pdf"),
        ] {
            assert_eq!(unnumbered(Path::new(numbered)), Path::new(plain));
        }
    }
}
