//! Agents under random trouble, and an oracle that knows what has to come of it.
//!
//! ```text
//!  drops ──▶ outbox ─ agent ══ troubled wire ══ agent ─ inbox ──▶ harvest ──▶ ledger: lost, doubled, torn
//!                       ▲          ▲              ▲
//!                       └── kills, cuts, stalls, stops, full disks, clock jumps, by a seed
//! ```
//!
//! One thread does everything in turn: some drops, one trouble, a harvest. The agents do the rest at the same time.

pub(crate) mod chance;
mod clock;
mod drops;
pub(crate) mod ledger;
mod surroundings;
mod trouble;
mod world;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use chance::Chance;
use ledger::{Item, Ledger};
use world::World;

use crate::{field::Entered, harness::files, report::Report};

/// How much is done.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Deliveries: a drop for two peers is two.
    pub transfers: u64,
    /// SIGKILLs, spread over them.
    pub kills: u64,
    /// Decides everything but the timing.
    pub seed: u64,
    /// Two or three.
    pub agents: usize,
    /// Nothing new is begun after so long.
    pub most: Duration,
    /// What surrounds the agents; None: nothing special.
    pub field: Option<&'a Entered>,
}

/// What happened so far.
#[derive(Clone, Copy, Default, Debug)]
struct Tally {
    drops: u64,
    transfers: u64,
    bytes: u64,
    replaced: u64,
    kills: u64,
    cuts: u64,
    stalls: u64,
    stops: u64,
    full_disks: u64,
    jumps: u64,
    swept: u64,
    late: u64,
    seconds: u64,
}

/// More than this under way, and no more is dropped for a while.
const BACKLOG: u64 = 400;
/// Without a single arrival for so long, what is missing is lost.
const PATIENCE: Duration = Duration::from_secs(90);
/// Files up to this size may be left in the inbox, where later ones collide with them.
const LEFT: u64 = 64 << 10;

/// Runs `plan` to its end, or to the first file that should not be there.
pub fn run(plan: Plan<'_>) -> Report {
    let mut soak = Soak {
        plan,
        chance: Chance::new(plan.seed),
        world: World::new(plan.agents, plan.field),
        ledger: Ledger::default(),
        tally: Tally::default(),
        seen: HashSet::new(),
        recent: Vec::new(),
        late: Vec::new(),
        violations: Vec::new(),
        started: Instant::now(),
    };
    soak.trouble_until_done();
    if soak.fine() {
        soak.settle();
    }
    soak.report()
}

struct Soak<'a> {
    plan: Plan<'a>,
    chance: Chance,
    world: World,
    ledger: Ledger,
    tally: Tally,
    /// Harvested and left where they lie.
    seen: HashSet<PathBuf>,
    /// The newest drops' agents and paths, to be replaced some day.
    recent: Vec<(usize, PathBuf)>,
    /// Drops whose producers have yet to set their times.
    late: Vec<PathBuf>,
    violations: Vec<String>,
    started: Instant,
}

impl Soak<'_> {
    fn trouble_until_done(&mut self) {
        let mut told = Instant::now();
        while self.fine() && self.started.elapsed() < self.plan.most {
            let all_killed = self.tally.kills >= self.plan.kills;
            if all_killed && self.tally.transfers >= self.plan.transfers {
                return;
            }
            // As many drops as keep pace with the kills.
            let goal = match self.plan.kills {
                0 => self.plan.transfers,
                kills => self.plan.transfers * (self.tally.kills + 1).min(kills) / kills,
            };
            let most = self.tally.transfers + 100;
            while self.tally.transfers < goal.min(most) {
                self.drop_one();
            }
            self.trouble(!all_killed);
            self.harvest();
            if self.ledger.missing() > BACKLOG {
                self.wait(Duration::from_secs(20), |soak| {
                    soak.ledger.missing() < BACKLOG / 2
                });
            }
            if told.elapsed() > Duration::from_secs(15) {
                told = Instant::now();
                let Tally { transfers, kills, .. } = self.tally;
                let (missing, seconds) = (self.ledger.missing(), self.started.elapsed().as_secs());
                eprintln!("{seconds:>5} s: {transfers} transfers, {kills} kills, {missing} under way");
            }
        }
    }

    /// No more trouble: all that is missing has to come, outboxes empty themselves, and nothing comes twice.
    fn settle(&mut self) {
        self.calm();
        let (mut missing, mut since) = (self.ledger.missing(), Instant::now());
        while missing > 0 && since.elapsed() < PATIENCE && self.fine() {
            self.wait(Duration::from_secs(1), |soak| soak.ledger.missing() == 0);
            if self.ledger.missing() != missing {
                (missing, since) = (self.ledger.missing(), Instant::now());
            }
        }
        // Whatever would be delivered a second time is queued before these.
        for from in 0..self.plan.agents {
            self.drop_from(from, Path::new("last.marker"), &self.tally.drops.to_le_bytes());
        }
        self.wait(PATIENCE, |soak| {
            soak.ledger.missing() == 0 && soak.left_behind().is_empty()
        });
        let left = self.left_behind();
        self.violations.extend(left);
        let lost: Vec<String> = self.ledger.lost().map(|i| format!("lost: {i:?}")).collect();
        self.violations.extend(lost);
    }

    /// Files in outboxes that empty themselves, and partials.
    fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        for agent in &self.world.agents {
            let keeps = agent.settings.outbox.iter().any(|l| l.contains("keep"));
            let outbox = if keeps {
                Vec::new()
            } else {
                files::list(&agent.outbox)
            };
            for path in outbox.into_iter().chain(agent.partials()) {
                left.push(format!("left with {}: {}", agent.name, path.display()));
            }
        }
        left
    }

    fn wait(&mut self, most: Duration, done: impl Fn(&Soak) -> bool) {
        let start = Instant::now();
        loop {
            self.harvest();
            if done(self) || start.elapsed() > most || !self.fine() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn fine(&self) -> bool {
        self.ledger.clean() && self.violations.is_empty()
    }

    /// Looks at everything that arrived, and takes most of it away: as often before the agent knows for certain
    /// that it lies there as after.
    fn harvest(&mut self) {
        for index in 0..self.world.agents.len() {
            let agent = &self.world.agents[index];
            let folders = [
                (agent.inbox.clone(), inbox(&agent.name), true),
                (
                    agent.outbox.join(files::OWN).join("sent"),
                    archive(&agent.name),
                    false,
                ),
            ];
            for (folder, place, may_stay) in folders {
                for path in files::list(&folder) {
                    let whole = folder.join(&path);
                    if path != Path::new("filler") && !self.seen.contains(&whole) {
                        self.gather(&whole, &path, &place, may_stay);
                    }
                }
            }
        }
    }

    fn gather(&mut self, whole: &Path, path: &Path, place: &str, may_stay: bool) {
        let digest = match files::sha256(whole) {
            Ok(digest) => digest,
            Err(e) => {
                return self
                    .violations
                    .push(format!("{} cannot be read: {e}", whole.display()));
            }
        };
        let size = fs::metadata(whole).map_or(0, |m| m.len());
        self.ledger.found(Item {
            place: place.to_owned(),
            path: ledger::unnumbered(path),
            digest,
        });
        if may_stay && size <= LEFT && self.chance.percent(12) {
            self.seen.insert(whole.to_path_buf());
        } else {
            if let Err(e) = fs::remove_file(whole) {
                self.violations
                    .push(format!("{} cannot be removed: {e}", whole.display()));
            }
        }
    }

    fn report(mut self) -> Report {
        let lost = self.ledger.lost().count();
        let found = |what: &str, items: &[Item]| -> Vec<String> {
            items.iter().map(|item| format!("{what}: {item:?}")).collect()
        };
        let mut violations = found("doubled", &self.ledger.doubled);
        violations.extend(found("torn", &self.ledger.torn));
        violations.append(&mut self.violations);
        let wire: u64 = self.world.passed();
        let of = |part: u64| part as f64 / (1 << 20) as f64;
        let Tally { bytes, transfers, .. } = self.tally;
        let again = wire.saturating_sub(bytes);
        let seconds = self.started.elapsed().as_secs_f64();
        let rows = vec![
            ("transfers", format!("{transfers} ({} drops)", self.tally.drops)),
            ("kills", self.tally.kills.to_string()),
            ("cuts", self.tally.cuts.to_string()),
            ("stalls", self.tally.stalls.to_string()),
            ("stops", self.tally.stops.to_string()),
            ("full disks", self.tally.full_disks.to_string()),
            ("clock jumps", self.tally.jumps.to_string()),
            ("partials swept away", self.tally.swept.to_string()),
            ("late times", self.tally.late.to_string()),
            ("second agents", self.tally.seconds.to_string()),
            ("replaced drops", self.tally.replaced.to_string()),
            ("lost", lost.to_string()),
            ("doubled", self.ledger.doubled.len().to_string()),
            ("torn", self.ledger.torn.len().to_string()),
            ("bytes of files", format!("{:.1} MiB", of(bytes))),
            (
                "re-sent bytes",
                format!("{:.1} MiB, all overhead of the wire included", of(again)),
            ),
            ("took", format!("{seconds:.0} s")),
            ("seed", self.plan.seed.to_string()),
        ];
        self.world.tidy = violations.is_empty();
        Report { rows, violations }
    }
}

/// The ledger's name for an agent's inbox.
fn inbox(agent: &str) -> String {
    format!("inbox of {agent}")
}

/// The ledger's name for an agent's archive of what it sent.
fn archive(agent: &str) -> String {
    format!("archive of {agent}")
}
