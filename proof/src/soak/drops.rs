//! What is dropped: sizes from nothing to 64 MiB, most of them small; equal names and equal bytes among them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{Soak, archive, inbox, ledger::Item};
use crate::{field::Field, harness::files};

/// How many names are used again and again.
const NAMES: u64 = 24;
/// How many contents are used again and again.
const CONTENTS: u64 = 6;
/// How many drops are remembered, to be replaced.
const RECENT: usize = 32;
/// How often a place in an outbox is tried for.
const TRIES: usize = 100;

impl Soak<'_> {
    /// One drop, by chance.
    pub(super) fn drop_one(&mut self) {
        let serial = self.tally.drops;
        let replaces = !self.recent.is_empty() && self.chance.percent(4);
        let (from, path) = if replaces {
            self.recent[self.chance.index(self.recent.len())].clone()
        } else {
            (self.chance.index(self.world.agents.len()), self.name(serial))
        };
        let bytes = self.content(serial);
        self.drop_from(from, &path, &bytes);
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push((from, path));
    }

    /// A whole file appears in an outbox. What has the name there is taken out in the same moment, and is no drop
    /// any more that has to arrive.
    pub(super) fn drop_from(&mut self, from: usize, path: &Path, bytes: &[u8]) {
        let items = self.items(from, path, files::sha256_of(bytes));
        let receivers = self.world.agents.len() as u64 - 1;
        let (outbox, aside) = {
            let agent = &self.world.agents[from];
            (agent.outbox.clone(), agent.boxes().join("aside"))
        };
        // Before it can arrive.
        items.into_iter().for_each(|item| self.ledger.expect(item));
        self.tally.drops += 1;
        self.tally.transfers += receivers;
        self.tally.bytes += bytes.len() as u64 * receivers;
        fs::write(&aside, bytes).expect("a file beside the outbox");
        let late = self.plan.field.is_some_and(|f| f.field == Field::LateTimes);
        self.late.extend(late.then(|| outbox.join(path)));
        if place(&aside, &outbox.join(path)).expect("a place in the outbox") {
            let old = files::sha256(&aside).expect("the replaced file");
            let receivers_of_old = self.items(from, path, old);
            receivers_of_old.iter().for_each(|item| self.ledger.excuse(item));
            self.tally.replaced += 1;
            fs::remove_file(&aside).expect("the replaced file");
        }
    }

    /// Where a drop has to be found.
    fn items(&self, from: usize, path: &Path, digest: String) -> Vec<Item> {
        let agents = &self.world.agents;
        let archives = agents[from].settings.outbox.iter().any(|l| l.contains("archive"));
        let others = agents.iter().enumerate().filter(|(index, _)| *index != from);
        let places = others.map(|(_, agent)| inbox(&agent.name));
        places
            .chain(archives.then(|| archive(&agents[from].name)))
            .map(|place| Item {
                place,
                path: path.to_path_buf(),
                digest: digest.clone(),
            })
            .collect()
    }

    fn name(&mut self, serial: u64) -> PathBuf {
        let name = match self.chance.below(4) {
            0 => format!("report-{}.pdf", self.chance.below(NAMES)),
            _ => format!("{serial}.bin"),
        };
        match self.chance.below(6) {
            0 => PathBuf::from(format!("sub-{}", self.chance.below(4))).join(name),
            1 => PathBuf::from(format!("a/b-{}/c", self.chance.below(4))).join(name),
            _ => name.into(),
        }
    }

    fn content(&mut self, serial: u64) -> Vec<u8> {
        if self.chance.percent(8) {
            return files::noise(1 + self.chance.below(CONTENTS), 700);
        }
        let size = match self.chance.below(1000) {
            0..=29 => self.chance.below(16),
            30..=899 => self.chance.magnitude(16, 64 << 10),
            900..=991 => self.chance.magnitude(64 << 10, 4 << 20),
            _ => self.chance.magnitude(4 << 20, 64 << 20),
        };
        files::noise(self.plan.seed ^ ((serial + 1) << 20), size as usize)
    }
}

/// Moves `aside` to `path`; true: what was there lies at `aside` now.
fn place(aside: &Path, path: &Path) -> io::Result<bool> {
    // The agent removes folders that it emptied, and files that it delivered, at the same time.
    for _ in 0..TRIES {
        if fs::create_dir_all(path.parent().unwrap_or(path)).is_err() {
            continue;
        }
        for flags in [RenameFlags::NOREPLACE, RenameFlags::EXCHANGE] {
            match renameat_with(CWD, aside, CWD, path, flags) {
                Ok(()) => return Ok(flags == RenameFlags::EXCHANGE),
                // Some FUSE file systems know no flags.
                Err(Errno::INVAL) => return place_without_flags(aside, path),
                Err(_) => {}
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Places it in several steps: what is there is taken out first, and a link takes the free place.
fn place_without_flags(aside: &Path, path: &Path) -> io::Result<bool> {
    let old = aside.with_extension("old");
    let mut replaced = false;
    for _ in 0..TRIES {
        replaced |= fs::rename(path, &old).is_ok();
        let folder = fs::create_dir_all(path.parent().unwrap_or(path));
        if folder.and_then(|()| fs::hard_link(aside, path)).is_ok() {
            fs::remove_file(aside)?;
            if replaced {
                fs::rename(&old, aside)?;
            }
            return Ok(replaced);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
