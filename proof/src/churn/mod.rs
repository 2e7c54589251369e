//! Outboxes in which everything changes while it is being sent, and an oracle that knows what may come of it.
//!
//! Every step is a change that programs make: create, append, save, overwrite, truncate, rename, delete, chmod, folders
//! made, moved and removed, a file swapped for a symlink, a writer that keeps its file open. The last settled version
//! of each path has to arrive exactly once, earlier ones at most once, and nothing that was never settled: no
//! mixture of versions, no half of one, nothing from behind a link.
//!
//! Two agents churn at the same time, one of them keeping its files; the steps follow from the seed alone, what the
//! agents have done by then does not.

mod outbox;

use std::{
    collections::HashSet,
    fs,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use self::outbox::Outbox;
use crate::{
    field::Entered,
    harness::{Agent, Pair, files},
    report::Report,
    soak::{
        chance::Chance,
        ledger::{Item, Ledger, unnumbered},
    },
};

/// How much is done.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Changes, in both outboxes together.
    pub steps: u64,
    /// SIGKILLs of either agent, spread over them.
    pub kills: u64,
    /// Decides the steps.
    pub seed: u64,
    /// What becomes of the first agent's delivered files: `archive` or `delete`.
    pub after_send: &'static str,
    /// What surrounds the agents; None: nothing special.
    pub field: Option<&'a Entered>,
}

/// Without a single arrival for so long, what is missing is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps between two checks of the inboxes.
const HARVEST: u64 = 50;

/// Runs `plan` to its end, or to the first file that should not be there.
pub fn run(plan: Plan<'_>) -> Report {
    let pair = Pair::with(|laptop, office| {
        laptop
            .settings
            .outbox
            .push(format!("after_send = {:?}", plan.after_send));
        office.settings.outbox.push("after_send = \"keep\"".into());
        if let Some(field) = plan.field {
            field.surround(laptop);
            field.surround(office);
        }
    });
    let outbox = |agent: &Agent, other: &Agent, keeps| {
        let beneath = plan
            .field
            .map_or_else(|| agent.outbox.clone(), |field| field.beneath(&agent.outbox));
        Outbox::new(&agent.outbox, beneath, agent.boxes(), &other.name, keeps)
    };
    let outboxes = [
        outbox(&pair.laptop, &pair.office, false),
        outbox(&pair.office, &pair.laptop, true),
    ];
    let mut churn = Churn {
        plan,
        chance: Chance::new(plan.seed),
        luck: Chance::new(!plan.seed),
        agents: [pair.laptop, pair.office],
        _wire: pair.wire,
        outboxes,
        ledger: Ledger::default(),
        left: HashSet::new(),
        arrived: 0,
        kills: 0,
        violations: Vec::new(),
        started: Instant::now(),
    };
    churn.step_until_done();
    if churn.fine() {
        churn.settle();
    }
    churn.report()
}

struct Churn<'a> {
    plan: Plan<'a>,
    chance: Chance,
    /// For the harvest, which does not come at the same steps of another run.
    luck: Chance,
    agents: [Agent; 2],
    _wire: Arc<crate::harness::Proxy>,
    /// Of the agents, in their order.
    outboxes: [Outbox; 2],
    ledger: Ledger,
    /// Harvested and left where they lie, for others to collide with.
    left: HashSet<PathBuf>,
    arrived: u64,
    kills: u64,
    violations: Vec<String>,
    started: Instant,
}

impl Churn<'_> {
    fn step_until_done(&mut self) {
        for step in 0..self.plan.steps {
            // The chance of its own that each step has keeps a run the same whatever the agents took away meanwhile.
            let mut chance = Chance::new(self.chance.number());
            let index = chance.index(2);
            if let Err(e) = self.outboxes[index].step(&mut chance, &mut self.ledger) {
                self.violations.push(format!("step {step} failed: {e}"));
            }
            match chance.below(100) {
                0..80 => {}
                80..97 => thread::sleep(chance.pause(1, 10)),
                _ => thread::sleep(chance.pause(10, 100)),
            }
            if self.plan.kills * step / self.plan.steps > self.kills {
                self.kills += 1;
                let agent = &mut self.agents[chance.index(2)];
                agent.kill();
                agent.start();
            }
            if step % HARVEST == 0 {
                self.harvest();
            }
            if !self.fine() {
                return;
            }
        }
    }

    /// Nothing changes any more: all that is missing has to come, and nothing comes twice.
    fn settle(&mut self) {
        for outbox in &mut self.outboxes {
            if let Err(e) = outbox.rest(&mut self.chance, &mut self.ledger) {
                self.violations.push(format!("the last writers: {e}"));
            }
        }
        self.wait();
        // Whatever would be delivered a second time is queued before these.
        for (agent, other) in [(0, 1), (1, 0)] {
            let bytes = b"whatever comes twice comes before this";
            self.agents[agent].drop_file("last.marker", bytes);
            self.ledger.expect(Item {
                place: self.agents[other].name.clone(),
                path: "last.marker".into(),
                digest: files::sha256_of(bytes),
            });
        }
        self.wait();
        let lost = self.missing().into_iter().map(|item| format!("lost: {item:?}"));
        self.violations.extend(lost.collect::<Vec<_>>());
        for (agent, outbox) in self.agents.iter().zip(&self.outboxes) {
            let left = outbox.left().into_iter().chain(agent.partials());
            let left = left.map(|path| format!("left with {}: {}", agent.name, path.display()));
            self.violations.extend(left);
            self.violations
                .extend(agent.jobs().iter().filter_map(unexplained));
        }
    }

    fn wait(&mut self) {
        let (mut arrived, mut since) = (self.arrived, Instant::now());
        while since.elapsed() < PATIENCE && self.fine() {
            self.harvest();
            let left = self.outboxes.iter().any(|outbox| !outbox.left().is_empty());
            if !left && self.missing().is_empty() && self.agents.iter().all(has_ended) {
                return;
            }
            if self.arrived != arrived {
                (arrived, since) = (self.arrived, Instant::now());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn missing(&self) -> Vec<&Item> {
        let missing = self.ledger.lost();
        missing
            .filter(|item| !self.outboxes.iter().any(|o| o.arrived_before(item, &self.ledger)))
            .collect()
    }

    fn fine(&self) -> bool {
        self.ledger.clean() && self.violations.is_empty()
    }

    fn harvest(&mut self) {
        for agent in &self.agents {
            for path in files::list(&agent.inbox) {
                let whole = agent.inbox.join(&path);
                if self.left.contains(&whole) {
                    continue;
                }
                let Ok(digest) = files::sha256(&whole) else {
                    self.violations
                        .push(format!("{} cannot be read", whole.display()));
                    continue;
                };
                self.arrived += 1;
                self.ledger.found(Item {
                    place: agent.name.clone(),
                    path: unnumbered(&path),
                    digest,
                });
                if !self.ledger.clean() {
                    return; // it stays, to be looked at
                }
                if self.luck.percent(20) || fs::remove_file(&whole).is_err() {
                    self.left.insert(whole);
                }
            }
        }
    }

    fn report(mut self) -> Report {
        let found = |what: &str, items: &[Item]| -> Vec<String> {
            items.iter().map(|item| format!("{what}: {item:?}")).collect()
        };
        let mut violations = found("doubled", &self.ledger.doubled);
        violations.extend(found("torn", &self.ledger.torn));
        violations.append(&mut self.violations);
        let seconds = self.started.elapsed().as_secs_f64();
        let rows = vec![
            ("steps", self.plan.steps.to_string()),
            ("arrived", self.arrived.to_string()),
            ("kills", self.kills.to_string()),
            ("after sending", format!("{}, keep", self.plan.after_send)),
            ("took", format!("{seconds:.0} s")),
            ("seed", self.plan.seed.to_string()),
        ];
        if !violations.is_empty() {
            for mut agent in self.agents {
                agent.kill();
                eprintln!("kept: {}", agent.root.display());
                std::mem::forget(agent);
            }
        }
        Report { rows, violations }
    }
}

/// Nothing is on its way from there.
fn has_ended(agent: &Agent) -> bool {
    let peers = &agent.status()["peers"];
    let open = |peer: &Value| peer["queued"] != 0 || peer["sending"] != 0;
    !peers.as_array().is_none_or(|peers| peers.iter().any(open))
}

/// A job that neither goes on nor says why it ended.
fn unexplained(job: &Value) -> Option<String> {
    let state = job["state"].as_str().unwrap_or_default();
    let explained = match state {
        "delivered" => true,
        "failed" => job["error"].is_string(),
        _ => false,
    };
    (!explained).then(|| format!("a job that is not explained: {job}"))
}
