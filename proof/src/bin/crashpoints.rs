//! Ends an agent at every storage and socket call between a drop and its disposal, and looks what came of it.
//!
//! `crashpoints [--side S] [--scenario S]… [--fault F]… [--quick]`. For each scenario and side one undisturbed run
//! tells which calls there are. Then, for each call, before it and after it: struck at the 1st, the 2nd, the k-th, each
//! in a world of its own, until three runs went by without. Exits with 1 if the oracle found anything; a line to
//! run that point again alone is printed with each finding.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use clap::{Parser, ValueEnum};
use dropwire_proof::{
    calls::{self, Call, Kind},
    choose_program,
    point::{self, Outcome, Plain, Setup},
    scenario::Scenario,
    table::{self, Row},
    tracer::{self, Strike, What, When},
    world::{Keys, Side},
};

/// Strikes an agent at every storage and socket call between a drop and its disposal.
#[derive(Parser)]
struct Options {
    /// The program; default: the build beside this one
    #[arg(long)]
    dropwire: Option<PathBuf>,
    /// Which agent is struck
    #[arg(long, value_enum, default_value = "both")]
    side: Sides,
    /// Which scenarios; default: all
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// What happens at the call; default: kill
    #[arg(long, value_enum)]
    fault: Vec<FaultName>,
    /// A part of it, in less than two minutes
    #[arg(long)]
    quick: bool,
    /// Most points of one call in one scenario, spread evenly; 0: all
    #[arg(long, default_value_t = 0)]
    most: u64,
    /// Runs at once
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// One point alone: CALL:K:before or CALL:K:after
    #[arg(long)]
    only: Option<String>,
    /// Worlds are made there; default: the temporary folder
    #[arg(long)]
    base: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sides {
    Sender,
    Receiver,
    Both,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum FaultName {
    Kill,
    Eio,
    Enospc,
}

impl FaultName {
    fn what(self) -> What {
        match self {
            FaultName::Kill => What::Kill,
            FaultName::Eio => What::Fail(libc::EIO),
            FaultName::Enospc => What::Fail(libc::ENOSPC),
        }
    }

    fn name(self) -> &'static str {
        match self {
            FaultName::Kill => "kill",
            FaultName::Eio => "eio",
            FaultName::Enospc => "enospc",
        }
    }

    /// Which calls it makes sense at.
    fn hits(self, call: &Call) -> bool {
        match self {
            FaultName::Kill => true,
            FaultName::Eio => call.kind != Kind::Socket,
            FaultName::Enospc => call.kind == Kind::Storage && !call.name.contains("unlink"),
        }
    }
}

fn main() -> ExitCode {
    tracer::serve_if_asked();
    match prove(Options::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crashpoints: {error}");
            ExitCode::from(2)
        }
    }
}

fn prove(mut options: Options) -> io::Result<u64> {
    let program = choose_program(options.dropwire.clone()).map_err(io::Error::other)?;
    if options.quick {
        options.most = 2;
        if options.scenario.is_empty() {
            options.scenario = vec![Scenario::Small, Scenario::Collision, Scenario::Recovery];
        }
        if options.fault.is_empty() {
            options.fault = vec![FaultName::Kill, FaultName::Eio];
        }
    }
    if options.scenario.is_empty() {
        options.scenario = Scenario::ALL.to_vec();
    }
    if options.fault.is_empty() {
        options.fault = vec![FaultName::Kill];
    }
    let sides = match options.side {
        Sides::Sender => vec![Side::Sender],
        Sides::Receiver => vec![Side::Receiver],
        Sides::Both => Side::BOTH.to_vec(),
    };
    println!("{}", program.display());
    let start = Instant::now();
    let keys = Arc::new(Keys::make()?);
    let mut rows = Vec::new();
    for &fault in &options.fault {
        for &scenario in &options.scenario {
            for &side in &sides {
                let stage = Stage {
                    options: &options,
                    keys: &keys,
                    fault,
                    scenario,
                    side,
                };
                let row = stage.enumerate()?;
                eprintln!(
                    "{}: {} points, {} violations ({:.0} s)",
                    row.name,
                    row.points,
                    row.violations,
                    start.elapsed().as_secs_f64()
                );
                rows.push(row);
            }
        }
    }
    table::print("fault, scenario, side", &rows);
    println!("{:.0} s", start.elapsed().as_secs_f64());
    Ok(rows.iter().map(|row| row.violations).sum())
}

/// One fault in one scenario at one side.
struct Stage<'a> {
    options: &'a Options,
    keys: &'a Arc<Keys>,
    fault: FaultName,
    scenario: Scenario,
    side: Side,
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
    fn enumerate(&self) -> io::Result<Row> {
        let series = match &self.options.only {
            Some(only) => vec![parse_only(only)?],
            None => self.learn()?,
        };
        let name = format!(
            "{} {} {}",
            self.fault.name(),
            self.scenario.name(),
            self.side.name()
        );
        let row = Row {
            name,
            calls: series
                .iter()
                .map(|s| s.call.name.to_owned())
                .collect::<BTreeSet<_>>(),
            ..Row::default()
        };
        let shared = Mutex::new((series, row));
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.options.jobs.max(1))
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
        for _ in 0..2 {
            let outcome = point::run(&self.setup(0)?, &mut Plain, self.scenario, self.side, None)?;
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
            .filter(|(call, _)| self.fault.hits(call));
        let whens: &[When] = match self.fault {
            FaultName::Kill => &[When::Before, When::After],
            _ => &[When::Before],
        };
        Ok(found
            .flat_map(|(call, count)| {
                let step = match self.options.most {
                    0 => 1,
                    most => count.div_ceil(most).max(1),
                };
                whens
                    .iter()
                    // After a look everything is as before it.
                    .filter(move |&&when| call.kind != Kind::Look || when == When::Before)
                    .map(move |&when| Series {
                        call,
                        when,
                        next: 1,
                        step,
                        single: false,
                        missed: 0,
                    })
            })
            .collect())
    }

    fn work(&self, worker: usize, shared: &Mutex<(Vec<Series>, Row)>) -> io::Result<()> {
        let setup = self.setup(worker + 1)?;
        while let Some((index, strike)) = self.take(shared) {
            let outcome = point::run(&setup, &mut Plain, self.scenario, self.side, Some(strike))?;
            self.note(shared, index, strike, &outcome);
        }
        Ok(())
    }

    fn take(&self, shared: &Mutex<(Vec<Series>, Row)>) -> Option<(usize, Strike)> {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, series) = shared
            .0
            .iter_mut()
            .enumerate()
            .filter(|(_, s)| s.missed < MISSES)
            .min_by_key(|(_, s)| s.next)?;
        let strike = Strike {
            call: series.call,
            nth: series.next,
            when: series.when,
            what: self.fault.what(),
        };
        series.next += series.step;
        if series.single {
            series.missed = MISSES;
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
            "  again: crashpoints --scenario {} --side {} --fault {} --only {}:{}:{when}",
            self.scenario.name(),
            self.side.name(),
            self.fault.name(),
            strike.call.name,
            strike.nth
        );
    }

    fn setup(&self, worker: usize) -> io::Result<Setup> {
        let own = std::process::id() % 200 + 20;
        Ok(Setup {
            keys: self.keys.clone(),
            base: self
                .options
                .base
                .clone()
                .unwrap_or_else(std::env::temp_dir)
                .canonicalize()?,
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

/// So many runs in a row without a strike end a series.
const MISSES: u32 = 3;
