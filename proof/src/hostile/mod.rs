//! A paired peer that lies, floods, withholds and starves, while an honest one delivers files to the same agent.
//!
//! ```text
//!  honest agent ══ files, round after round ══▶ victim ◀══ attacks, one after the other ══ hostile peer
//!                                                 │
//!         how long they wait, without and with it ┴ memory, threads, descriptors, rows, log
//! ```
//!
//! The seed decides which attacks come, in which order, and what they say.

mod attacks;
mod gauge;
mod link;

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use dropwire::identity::Identity;

pub use attacks::Attack;
use gauge::{BOUNDS, Gauge};
use link::Target;

use crate::{
    harness::{Agent, files, pair::peer, settings::Settings},
    report::Report,
    soak::chance::Chance,
};

/// How much is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides the attacks.
    pub seed: u64,
    /// How long they last, all together.
    pub most: Duration,
    /// Only these; none: all.
    pub only: Vec<Attack>,
}

/// Rounds of honest files before the attacks.
const ROUNDS: usize = 12;
/// Files of a round: small ones, and one of some megabytes.
const SMALL: usize = 20;
const LARGE: usize = 4 << 20;
/// An honest round may take twice as long as without the hostile peer, and this on top.
const SLACK: Duration = Duration::from_millis(500);
/// And no round more than this.
const LONGEST: Duration = Duration::from_secs(10);
/// Without an arrival for so long an honest file is held up for good.
const PATIENCE: Duration = Duration::from_secs(60);
/// After the last attack honest files have to come through within this.
const RECOVERS: Duration = Duration::from_secs(5);
/// What the victim may open: what systemd and most shells give.
const DESCRIPTORS: u32 = 1024;
/// Each attack lasts so long at least.
const TURN: Duration = Duration::from_secs(2);

/// Runs `plan` to its end.
pub fn run(plan: &Plan) -> Report {
    let mut scene = Scene::new(plan);
    scene.calm();
    scene.under_attack();
    scene.report()
}

struct Scene<'a> {
    plan: &'a Plan,
    victim: Agent,
    honest: Agent,
    target: Arc<Target>,
    round: usize,
    /// How long the rounds took without the hostile peer.
    before: Vec<Duration>,
    /// And with it, by the attack in which they ended.
    during: BTreeMap<String, Vec<Duration>>,
    /// At rest, and the most of each under attack.
    rest: Gauge,
    most: Gauge,
    violations: Vec<String>,
    started: Instant,
}

impl<'a> Scene<'a> {
    fn new(plan: &'a Plan) -> Self {
        let mut victim = Agent::new(
            "victim",
            Settings {
                listen: true,
                ..Settings::default()
            },
        );
        let mut honest = Agent::new("honest", Settings::default());
        let hostile = Agent::new("hostile", Settings::default()); // its key is all that is used of it
        for agent in [&mut victim, &mut honest] {
            agent.env.push(("RUST_LOG".into(), "info".into()));
        }
        victim.descriptors = Some(DESCRIPTORS);
        victim.settings.peers.push(peer(&honest, None));
        victim.settings.peers.push(peer(&hostile, None));
        victim.start();
        let address = victim.status()["listen"].as_str().unwrap_or_default().to_owned();
        honest.settings.peers.push(peer(&victim, Some(address.clone())));
        honest.start();
        let identity = Identity::load(&hostile.state)
            .expect("a sound key")
            .expect("a key");
        let target = Target {
            identity,
            victim: dropwire::id::parse(&victim.id).expect("an id"),
            address: address.parse().expect("an address"),
            made: AtomicU64::new(0),
            said: Arc::default(),
            attack: Mutex::default(),
        };
        Scene {
            plan,
            victim,
            honest,
            target: Arc::new(target),
            round: 0,
            before: Vec::new(),
            during: BTreeMap::new(),
            rest: Gauge::default(),
            most: Gauge::default(),
            violations: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Honest files alone.
    fn calm(&mut self) {
        self.deliver(); // links and files are warm now
        for _ in 0..ROUNDS {
            let took = self.deliver();
            self.before.push(took);
        }
        self.rest = Gauge::all_of(&self.victim, self.delivered()).unwrap_or_default();
    }

    fn under_attack(&mut self) {
        // The victim has files for the hostile peer, too; about these it may lie.
        for number in 0..5 {
            self.victim.drop_file(format!("for both {number}"), b"for both");
        }
        let over = Arc::new(AtomicBool::new(false));
        let attacks = attack(self.plan, self.target.clone(), over.clone());
        while !over.load(Relaxed) && self.violations.is_empty() {
            let took = self.deliver();
            let attack = lock(&self.target.attack).clone();
            self.during.entry(attack).or_default().push(took);
            self.look();
        }
        over.store(true, Relaxed);
        let _ = attacks.join();
        if self.violations.is_empty() {
            let took = self.deliver();
            if took > RECOVERS {
                self.violations.push(format!(
                    "the first honest files after the attacks took {took:.1?}"
                ));
            }
            match Gauge::all_of(&self.victim, self.delivered()) {
                Some(now) => self.most = self.most.max(now),
                None => self
                    .violations
                    .push("what it took in the end cannot be told".into()),
            }
            self.judge();
        }
    }

    /// A round of honest files; how long until all have arrived.
    fn deliver(&mut self) -> Duration {
        self.round += 1;
        let begun = Instant::now();
        let mut names: Vec<_> = (0..SMALL)
            .map(|number| format!("honest {} {number}", self.round))
            .collect();
        for (number, name) in names.iter().enumerate() {
            let seed = (self.round * SMALL + number) as u64;
            self.honest.drop_file(name, &files::noise(seed, 4096));
        }
        let large = format!("honest {} large", self.round);
        self.honest
            .drop_file(&large, &files::noise(self.round as u64, LARGE));
        names.push(large);
        while !names.is_empty() {
            names.retain(|name| !self.victim.inbox.join(name).exists());
            if begun.elapsed() > PATIENCE || self.victim.has_ended() {
                let ended = self.victim.ended();
                self.violations.push(format!(
                    "{} honest files did not arrive in {PATIENCE:?}; the victim ended: {ended:?}",
                    names.len()
                ));
                break;
            }
            self.look();
            thread::sleep(Duration::from_millis(5));
        }
        let took = begun.elapsed();
        for path in files::files_in(&self.victim.inbox) {
            let _ = fs::remove_file(path);
        }
        took
    }

    /// Honest files so far.
    fn delivered(&self) -> u64 {
        (self.round * (SMALL + 1)) as u64
    }

    fn look(&mut self) {
        if let Some(now) = Gauge::of(&self.victim) {
            self.most = self.most.max(now);
        }
    }

    fn judge(&mut self) {
        let figures = self.most.figures().into_iter().zip(self.rest.figures());
        for (((name, most), (_, rest)), (_, bound)) in figures.zip(BOUNDS.figures()) {
            if most.saturating_sub(rest) > bound {
                self.violations.push(format!(
                    "{name}: from {rest} to {most}, at most {bound} more are allowed"
                ));
            }
        }
        let (before, during) = (median(&self.before), median(&self.attacked()));
        if during > before * 2 + SLACK {
            self.violations.push(format!(
                "honest rounds took {during:.2?}, {before:.2?} without the hostile peer"
            ));
        }
        let longest = self.attacked().into_iter().max().unwrap_or_default();
        if longest > LONGEST {
            self.violations.push(format!(
                "an honest round took {longest:.1?}, at most {LONGEST:?} are allowed"
            ));
        }
    }

    fn attacked(&self) -> Vec<Duration> {
        self.during.values().flatten().copied().collect()
    }

    fn report(mut self) -> Report {
        let attacked = self.attacked();
        let mut rows = vec![
            ("honest, alone", spread(&self.before)),
            ("attacked", spread(&attacked)),
        ];
        rows.extend(
            self.during
                .iter()
                .map(|(attack, took)| ("to the end of", format!("{attack}: {}", spread(took)))),
        );
        let figures = self.most.figures().into_iter().zip(self.rest.figures());
        rows.extend(
            figures.map(|((name, most), (_, rest))| (name, format!("{rest} at rest, {most} at most"))),
        );
        rows.extend([
            ("connections", self.target.made.load(Relaxed).to_string()),
            ("messages", self.target.said.load(Relaxed).to_string()),
            ("took", format!("{:.0} s", self.started.elapsed().as_secs_f64())),
            ("seed", self.plan.seed.to_string()),
        ]);
        if !self.violations.is_empty() {
            let mut again = format!(
                "again: hostile --seed {} --seconds {}",
                self.plan.seed,
                self.plan.most.as_secs()
            );
            for attack in &self.plan.only {
                again.push_str(&format!(" --attack {}", name_of(*attack)));
            }
            self.violations.push(again);
            for mut agent in [self.victim, self.honest] {
                agent.kill();
                eprintln!("kept: {}", agent.root.display());
                std::mem::forget(agent);
            }
        }
        Report {
            rows,
            violations: self.violations,
        }
    }
}

/// One attack after the other, in a thread of its own, behind the agents in the queue for the processor: what is measured
/// is what the victim does for the hostile peer, not what that takes itself.
fn attack(plan: &Plan, target: Arc<Target>, over: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let (plan, until) = (plan.clone(), Instant::now() + plan.most);
    thread::spawn(move || {
        // SAFETY: it takes no pointers; on Linux it is about the calling thread alone.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        let mut chance = Chance::new(plan.seed);
        let mut left = Vec::new();
        while Instant::now() < until && !over.load(Relaxed) {
            if left.is_empty() {
                left = match plan.only.is_empty() {
                    true => Attack::all().to_vec(),
                    false => plan.only.clone(),
                };
            }
            let attack = left.swap_remove(chance.index(left.len()));
            let turn = TURN + chance.pause(1, 2_000);
            let turn = turn.min(until.saturating_duration_since(Instant::now()));
            eprintln!("{:>4.0?} left: {}", until - Instant::now(), name_of(attack));
            let mut own = Chance::new(chance.number());
            let until = tokio::time::Instant::now() + turn;
            *lock(&target.attack) = name_of(attack);
            runtime.block_on(attack.run(&target, &mut own, until));
        }
        over.store(true, Relaxed);
    })
}

fn lock(name: &Mutex<String>) -> MutexGuard<'_, String> {
    name.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name_of(attack: Attack) -> String {
    use clap::ValueEnum as _;
    let value = attack.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn spread(times: &[Duration]) -> String {
    let longest = times.iter().max().copied().unwrap_or_default();
    format!(
        "{} rounds, {:.2?} at the median, {longest:.2?} at most",
        times.len(),
        median(times)
    )
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
