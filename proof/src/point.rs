//! One run: an empty world, a scenario, at most one strike, restart, rest, and the oracle's word.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    calls,
    harness::{Fault, Proxy, Toward},
    oracle,
    scenario::{CUT_AFTER, Drop, Scenario},
    tracer::{Seen, Strike, What, When},
    world::{Home, Keys, Side, World, wait},
};

/// How long everything may take to come to rest. Far more than it needs: a run that takes so long is stuck.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long everything may take before an agent that was told of a failing disk is restarted (a person would read its
/// log by then).
const BEFORE_HELP: Duration = Duration::from_secs(3);

/// A rest is one that lasts: *delivered* in the ledger and *Forget* come behind what can be seen.
const REST: Duration = Duration::from_millis(60);

/// Where the agents' folders lie, and what else happens at the kill.
pub trait Ground {
    /// Empty folders for both; the side is the one that is struck.
    fn homes(&mut self, root: &Path, _: Side) -> io::Result<[Home; 2]> {
        let home = |side: Side| {
            let path = root.join(side.name());
            Home::new(&path, &path)
        };
        Ok(Side::BOTH.map(home))
    }

    /// They are furnished.
    fn made(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Are files and their names made durable before they count as dropped?
    fn durable_drops(&self) -> bool {
        false
    }

    /// Does what was not durable go when the agent is killed?
    fn cuts_power(&self) -> bool {
        false
    }

    /// The struck agent is dead.
    fn killed(&mut self, _: &mut World) -> io::Result<()> {
        Ok(())
    }

    /// The run is over, its processes gone; what a finding needs is put into the folder `keep`.
    fn over(&mut self, _keep: Option<&Path>) {}
}

/// The file system of the temporary folder, which nothing happens to.
pub struct Plain;

impl Ground for Plain {}

/// What all runs of a worker share.
pub struct Setup {
    /// The agents' keys.
    pub keys: Arc<Keys>,
    /// Worlds are made below it.
    pub base: PathBuf,
    /// A loopback address that only this worker uses.
    pub address: String,
}

/// What came of a run.
#[derive(Default, Debug)]
pub struct Outcome {
    /// All points (only without a strike).
    pub seen: Vec<Seen>,
    /// Where it struck; None: the run was over before.
    pub struck: Option<Seen>,
    /// The oracle's sentences.
    pub violations: Vec<String>,
    /// After a refused call the agent ended, or took nothing more, and was restarted.
    pub helped: bool,
    /// The world, kept if there are violations.
    pub kept: Option<PathBuf>,
    /// From the empty world on.
    pub took: Duration,
}

/// Runs `scenario` with `strike` at `side`.
pub fn run(
    setup: &Setup,
    ground: &mut dyn Ground,
    scenario: Scenario,
    side: Side,
    strike: Option<Strike>,
) -> io::Result<Outcome> {
    let start = Instant::now();
    let folder = tempfile::Builder::new().prefix("p-").tempdir_in(&setup.base)?;
    let wire = scenario.breaks_the_wire().then(|| Arc::new(Proxy::start()));
    let homes = ground.homes(folder.path(), side)?;
    let mut world = World::make(&setup.keys, folder.path(), homes, &setup.address, wire)?;
    if scenario.is_whole() {
        world.deliver_whole()?;
    }
    for stranger in scenario.strangers() {
        let path = world.home(Side::Receiver).inbox.join(&stranger.name);
        std::fs::write(path, &*stranger.bytes)?;
    }
    ground.made()?;
    let mut run = Run {
        world: &mut world,
        ground,
        scenario,
        side,
        drops: scenario.drops(),
        strangers: scenario.strangers(),
        queued_before: None,
        outcome: Outcome::default(),
    };
    run.story(strike)?;
    let mut outcome = run.outcome;
    Side::BOTH.into_iter().for_each(|side| world.kill(side));
    if !outcome.violations.is_empty() {
        outcome.kept = Some(folder.keep());
    }
    ground.over(outcome.kept.as_deref());
    outcome.took = start.elapsed();
    Ok(outcome)
}

struct Run<'a> {
    world: &'a mut World,
    ground: &'a mut dyn Ground,
    scenario: Scenario,
    side: Side,
    drops: Vec<Drop>,
    strangers: Vec<Drop>,
    /// Drops that nobody had synced, and when the power was cut.
    queued_before: Option<(Vec<Drop>, String)>,
    outcome: Outcome,
}

impl Run<'_> {
    fn story(&mut self, strike: Option<Strike>) -> io::Result<()> {
        match self.scenario {
            Scenario::Start => {
                self.drop_all()?;
                self.world.start(self.side.other())?;
                self.world.start_traced(self.side, true, strike)?;
            }
            Scenario::Recovery => {
                self.world.start(self.side.other())?;
                self.world.start_traced(self.side, false, self.first_kill())?;
                self.linked()?;
                self.world.arm(self.side);
                self.drop_all()?;
                let ended = wait(PATIENCE, || self.world.ended(self.side));
                if ended.is_none() {
                    return Err(io::Error::other(
                        "the first kill of `recovery` did not come about",
                    ));
                }
                self.world.kill(self.side);
                self.world.start_traced(self.side, true, strike)?;
            }
            _ => {
                self.world.start(self.side.other())?;
                self.world.start_traced(self.side, false, strike)?;
                self.linked()?;
                if let Some(wire) = &self.world.wire {
                    wire.set(Toward::Listener, Fault::Reset(CUT_AFTER as u64));
                }
                self.world.arm(self.side);
                self.drop_all()?;
            }
        }
        self.until_struck(strike)?;
        if !self.outcome.violations.is_empty() {
            return Ok(());
        }
        self.last_word(strike)
    }

    /// Amid the renames of a batch: by the receiver into the inbox, by the sender into the archive.
    fn first_kill(&self) -> Option<Strike> {
        Some(Strike {
            call: calls::by_name("renameat2")?,
            nth: match self.side {
                Side::Sender => self.drops.len() as u64 + 3,
                Side::Receiver => 4,
            },
            when: When::After,
            what: What::Kill,
        })
    }

    fn drop_all(&self) -> io::Result<()> {
        self.drops.iter().try_for_each(|drop| {
            let durable = self.ground.durable_drops();
            match drop.inside.is_empty() {
                true => self.world.drop_file(&drop.name, &drop.bytes, durable),
                false => self.world.drop_folder(drop, durable),
            }
        })
    }

    fn linked(&self) -> io::Result<()> {
        wait(PATIENCE, || self.world.linked().then_some(()))
            .ok_or_else(|| io::Error::other("the agents do not connect"))
    }

    /// Until the strike came about and what it left is cleared up, or all is at rest without it.
    fn until_struck(&mut self, strike: Option<Strike>) -> io::Result<()> {
        let patience = match strike.map(|s| s.what) {
            Some(What::Fail(_)) => BEFORE_HELP,
            _ => PATIENCE,
        };
        let mut resting = None;
        let ended = wait(patience, || {
            if self.world.ended(self.side).is_some() {
                return Some(true);
            }
            let rests = self.at_rest().is_ok();
            let since = *resting.get_or_insert_with(Instant::now);
            if !rests {
                resting = None;
            }
            (rests && since.elapsed() > REST).then_some(false)
        });
        self.world_is_struck(ended, strike)
    }

    fn world_is_struck(&mut self, ended: Option<bool>, strike: Option<Strike>) -> io::Result<()> {
        match strike.map(|s| s.what) {
            Some(What::Kill) => {
                if ended == Some(false) {
                    self.world.kill(self.side); // else it could be struck by what comes after
                }
                self.read_report();
                if self.outcome.struck.is_none() {
                    if ended == Some(true) {
                        let found = format!("the {} ended, but not by the strike", self.side.name());
                        self.outcome.violations.push(found);
                    }
                    return self.world.restart(self.side);
                }
                let jobs = match self.side {
                    Side::Receiver => self.world.jobs().unwrap_or_default(),
                    Side::Sender => Vec::new(), // nobody is there to ask
                };
                self.world.kill(self.side);
                let cut = now()?;
                self.ground.killed(self.world)?;
                if self.ground.cuts_power() && !self.ground.durable_drops() && self.side == Side::Sender {
                    let left = oracle::left_of(&self.world.homes);
                    self.queued_before = Some((std::mem::replace(&mut self.drops, left), cut));
                }
                let found = &mut self.outcome.violations;
                let homes = &self.world.homes;
                found.extend(oracle::at_the_fault(homes, &self.drops, &self.strangers));
                found.extend(oracle::receipts_are_true(homes, &jobs));
                self.world.start(self.side)
            }
            _ => {
                self.outcome.helped = ended != Some(false);
                self.world.kill(self.side);
                self.read_report();
                self.world.start(self.side)
            }
        }
    }

    fn read_report(&mut self) {
        let report = self.world.report(self.side);
        self.outcome.struck = report.struck;
        self.outcome.seen = report.seen;
    }

    /// At rest, restarted once more where nothing was struck, and a marker delivered behind it all.
    fn last_word(&mut self, strike: Option<Strike>) -> io::Result<()> {
        self.rests()?;
        if matches!(strike.map(|s| s.what), Some(What::Fail(_))) {
            self.world.restart(Side::Receiver)?;
            self.world.restart(Side::Sender)?;
        }
        let marker = Drop::new("marker", b"the last drop".to_vec());
        self.world.drop_file(&marker.name, &marker.bytes, false)?;
        self.drops.push(marker);
        self.rests()?;
        if self.outcome.violations.is_empty() {
            self.judge();
        }
        Ok(())
    }

    fn at_rest(&self) -> Result<(), String> {
        let (drops, strangers) = (self.drops.len(), self.strangers.len());
        oracle::at_rest(&self.world.homes, drops, strangers, || self.world.jobs())
    }

    fn judge(&mut self) {
        let jobs = self.world.jobs();
        let found = &mut self.outcome.violations;
        let homes = &self.world.homes;
        found.extend(oracle::judge(
            homes,
            &self.drops,
            &self.strangers,
            jobs.as_deref(),
        ));
        if let (Some((dropped, cut)), Some(jobs)) = (&self.queued_before, &jobs) {
            found.extend(oracle::queued_is_whole(dropped, &self.drops, jobs, cut));
        }
    }

    fn rests(&mut self) -> io::Result<()> {
        if wait(PATIENCE, || self.at_rest().ok()).is_none() {
            let why = self.at_rest().err();
            self.outcome.violations.push(format!(
                "stuck: {}",
                why.unwrap_or_else(|| "at rest only late".into())
            ));
            self.judge(); // what the oracle sees as it stands says more
        }
        Ok(())
    }
}

/// As the job list writes times, so that they can be compared.
fn now() -> io::Result<String> {
    let ran = std::process::Command::new("date")
        .args(["-u", "+%FT%T.%3NZ"])
        .output()?;
    Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}
