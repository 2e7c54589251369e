//! Strikes at the 1st, the 2nd, the k-th of each call, until three runs went by without.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use crate::{
    calls::{self, Call, Kind},
    point::{self, Ground, Outcome, Setup},
    scenario::Scenario,
    table::Row,
    tracer::{Strike, What, When},
    world::{Keys, Side},
};

/// One fault in one scenario at one side.
pub struct Stage<'a> {
    /// What is printed of it.
    pub name: String,
    /// The command line that runs it again, up to the point.
    pub again: String,
    /// The agents' keys.
    pub keys: Arc<Keys>,
    /// Worlds are made there.
    pub base: PathBuf,
    /// Runs at once.
    pub jobs: usize,
    /// Most points of a call, spread evenly; 0: all.
    pub most: u64,
    /// Begins no run after that.
    pub until: Option<Instant>,
    /// One point alone.
    pub only: Option<String>,
    /// What happens at the call.
    pub what: What,
    /// At which calls.
    pub hits: &'a (dyn Fn(&Call) -> bool + Sync),
    /// The story.
    pub scenario: Scenario,
    /// Who is struck.
    pub side: Side,
    /// Makes a worker's ground.
    pub ground: &'a (dyn Fn(usize) -> io::Result<Box<dyn Ground>> + Sync),
}

/// The points of one call.
struct Series {
    call: &'static Call,
    when: When,
    next: u64,
    step: u64,
    /// Only this one.
    single: bool,
    /// Runs in a row that ended before the strike.
    missed: u32,
}

impl Stage<'_> {
    /// Every point of it, on several workers.
    pub fn enumerate(&self) -> io::Result<Row> {
        let series = match &self.only {
            Some(only) => vec![parse_only(only)?],
            None => self.learn()?,
        };
        let row = Row {
            name: self.name.clone(),
            calls: series
                .iter()
                .map(|s| s.call.name.to_owned())
                .collect::<BTreeSet<_>>(),
            ..Row::default()
        };
        let shared = Mutex::new((series, row));
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs.max(1))
                .map(|n| {
                    let shared = &shared;
                    scope.spawn(move || self.work(n, shared))
                })
                .collect();
            workers.into_iter().try_for_each(|w| {
                w.join()
                    .unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))
            })
        })?;
        Ok(shared.into_inner().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Undisturbed runs tell which calls there are, and how many of each.
    fn learn(&self) -> io::Result<Vec<Series>> {
        let mut most: BTreeMap<String, u64> = BTreeMap::new();
        let mut ground = (self.ground)(0)?;
        for _ in 0..2 {
            let outcome = point::run(&self.setup(0)?, &mut *ground, self.scenario, self.side, None)?;
            if !outcome.violations.is_empty() {
                return Err(io::Error::other(format!(
                    "undisturbed, {} at the {}: {:?} ({:?})",
                    self.scenario.name(),
                    self.side.name(),
                    outcome.violations,
                    outcome.kept
                )));
            }
            for seen in outcome.seen {
                let count = most.entry(seen.call).or_default();
                *count = seen.nth.max(*count);
            }
        }
        let found = most
            .into_iter()
            .filter_map(|(name, count)| Some((calls::by_name(&name)?, count)))
            .filter(|(call, _)| (self.hits)(call));
        let whens: &[When] = match self.what {
            What::Kill => &[When::Before, When::After],
            _ => &[When::Before],
        };
        Ok(found
            .flat_map(|(call, count)| {
                let step = match self.most {
                    0 => 1,
                    most => count.div_ceil(most).max(1),
                };
                whens
                    .iter()
                    // After a call that only reads everything is as before it.
                    .filter(move |&&when| call.kind != Kind::Look || when == When::Before)
                    .map(move |&when| Series {
                        call,
                        when,
                        next: 1 + (step - 1) / 2,
                        step,
                        single: false,
                        missed: 0,
                    })
            })
            .collect())
    }

    fn work(&self, worker: usize, shared: &Mutex<(Vec<Series>, Row)>) -> io::Result<()> {
        let setup = self.setup(worker + 1)?;
        let mut ground = (self.ground)(worker + 1)?;
        while let Some((index, strike)) = self.take(shared) {
            let outcome = point::run(&setup, &mut *ground, self.scenario, self.side, Some(strike))?;
            self.note(shared, index, strike, &outcome);
        }
        Ok(())
    }

    fn take(&self, shared: &Mutex<(Vec<Series>, Row)>) -> Option<(usize, Strike)> {
        if self.until.is_some_and(|until| Instant::now() > until) {
            return None;
        }
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, series) = shared
            .0
            .iter_mut()
            .enumerate()
            .filter(|(_, s)| s.missed < self.misses())
            .min_by_key(|(_, s)| s.next)?;
        let strike = Strike {
            call: series.call,
            nth: series.next,
            when: series.when,
            what: self.what,
        };
        series.next += series.step;
        if series.single {
            series.missed = u32::MAX / 2;
        }
        Some((index, strike))
    }

    fn note(&self, shared: &Mutex<(Vec<Series>, Row)>, index: usize, strike: Strike, outcome: &Outcome) {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (series, row) = &mut *shared;
        row.runs += 1;
        row.took += outcome.took;
        row.helped += u64::from(outcome.helped);
        match &outcome.struck {
            Some(_) => {
                row.points += 1;
                if !series[index].single {
                    series[index].missed = 0;
                }
            }
            None => series[index].missed += 1,
        }
        if outcome.violations.is_empty() {
            return;
        }
        row.violations += 1;
        let when = match strike.when {
            When::Before => "before",
            When::After => "after",
        };
        let on = outcome.struck.as_ref().map_or("nothing", |s| &s.on);
        println!(
            "\nVIOLATION {} {when} {} {} on {on}",
            row.name, strike.call.name, strike.nth
        );
        for violation in &outcome.violations {
            println!("  {violation}");
        }
        if let Some(kept) = &outcome.kept {
            println!("  kept: {}", kept.display());
        }
        println!(
            "  again: {} --only {}:{}:{when}",
            self.again, strike.call.name, strike.nth
        );
    }

    /// So many runs in a row without a strike end a series: three, or one where points are left out anyway.
    fn misses(&self) -> u32 {
        if self.most == 0 { 3 } else { 1 }
    }

    fn setup(&self, worker: usize) -> io::Result<Setup> {
        let own = std::process::id() % 200 + 20;
        Ok(Setup {
            keys: self.keys.clone(),
            base: self.base.canonicalize()?,
            address: format!("127.{own}.{worker}.1:7420"),
        })
    }
}

fn parse_only(text: &str) -> io::Result<Series> {
    let wrong = || io::Error::other(format!("--only wants CALL:K:before or CALL:K:after, not {text}"));
    let mut words = text.split(':');
    let call = words.next().and_then(calls::by_name).ok_or_else(wrong)?;
    let next = words.next().and_then(|k| k.parse().ok()).ok_or_else(wrong)?;
    let when = match words.next() {
        Some("after") => When::After,
        Some("before") | None => When::Before,
        Some(_) => return Err(wrong()),
    };
    Ok(Series {
        call,
        when,
        next,
        step: 1,
        single: true,
        missed: 0,
    })
}
