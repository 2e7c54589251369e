//! What the victim takes of the machine, and how much of that it may.

use std::{
    fs,
    io::{self, BufRead as _},
    path::Path,
};

use crate::harness::Agent;

/// Most of what a hostile peer may cost, beyond what the victim took before.
pub(super) const BOUNDS: Gauge = Gauge {
    memory_kib: 256 << 10,
    threads: 600,
    descriptors: 700,
    rows: (1 << 20) + (1 << 16) + 4096, // of docs/limits.md: delivered ones, withdrawn ones, the rest
    withdrawn: (1 << 16) + 4096,
    log_bytes: 256 << 10,
};

/// One look at it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Gauge {
    /// Resident.
    pub memory_kib: u64,
    /// Of the process.
    pub threads: u64,
    /// Open ones.
    pub descriptors: u64,
    /// In the tables of its state, except those of honest files.
    pub rows: u64,
    /// Of these, outcomes of withdrawn transfers.
    pub withdrawn: u64,
    /// Written so far, a line for each file that arrived aside: those cost the peer a file each.
    pub log_bytes: u64,
}

impl Gauge {
    /// Now; None once the process is gone.
    pub(super) fn of(agent: &Agent) -> Option<Self> {
        let process = Path::new("/proc").join(agent.pid().to_string());
        let status = fs::read_to_string(process.join("status")).ok()?;
        let figure = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            memory_kib: figure("VmRSS:")?,
            threads: figure("Threads:")?,
            descriptors: fs::read_dir(process.join("fd")).ok()?.count() as u64,
            ..Self::default()
        })
    }

    /// Measures also what takes longer to find out: log, and rows beside those of so many honest files.
    pub(super) fn all_of(agent: &Agent, honest: u64) -> Option<Self> {
        Some(Self {
            rows: rows(agent)?.saturating_sub(honest),
            withdrawn: withdrawn(agent)?,
            log_bytes: log_bytes(agent).ok()?,
            ..Self::of(agent)?
        })
    }

    /// The larger of each.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            memory_kib: self.memory_kib.max(other.memory_kib),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
            rows: self.rows.max(other.rows),
            withdrawn: self.withdrawn.max(other.withdrawn),
            log_bytes: self.log_bytes.max(other.log_bytes),
        }
    }

    /// Each by its name.
    pub(super) fn figures(self) -> [(&'static str, u64); 6] {
        [
            ("memory, KiB", self.memory_kib),
            ("threads", self.threads),
            ("descriptors", self.descriptors),
            ("rows", self.rows),
            ("withdrawn rows", self.withdrawn),
            ("log, bytes", self.log_bytes),
        ]
    }
}

fn log_bytes(agent: &Agent) -> io::Result<u64> {
    let mut bytes = 0;
    for line in io::BufReader::new(fs::File::open(&agent.log)?).split(b'\n') {
        let line = line?;
        if !line.windows(ARRIVED.len()).any(|part| part == ARRIVED) {
            bytes += 1 + line.len() as u64;
        }
    }
    Ok(bytes)
}

const ARRIVED: &[u8] = br#""message":"arrived""#;

fn open(path: &Path) -> Option<rusqlite::Connection> {
    rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()
}

/// Rows of withdrawn transfers; None while they cannot be read.
fn withdrawn(agent: &Agent) -> Option<u64> {
    let db = open(&agent.state.join("jobs.db"))?;
    let count = "SELECT count(*) FROM inbox_transfer WHERE state = 3";
    let count = db.query_row(count, [], |row| row.get::<_, i64>(0)).ok()?;
    u64::try_from(count).ok()
}

/// Rows in all tables of the agent's state; None while it cannot be read.
fn rows(agent: &Agent) -> Option<u64> {
    let mut total = 0;
    for entry in fs::read_dir(&agent.state).ok()?.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "db") {
            continue;
        }
        let db = open(&path)?;
        let mut tables = db
            .prepare("SELECT name FROM sqlite_master WHERE type = 'table'")
            .ok()?;
        let names: Vec<String> = tables.query_map([], |row| row.get(0)).ok()?.flatten().collect();
        for name in names {
            let count: i64 = db
                .query_row(&format!("SELECT count(*) FROM {name:?}"), [], |row| row.get(0))
                .ok()?;
            total += count as u64;
        }
    }
    Some(total)
}
