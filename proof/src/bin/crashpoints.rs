//! Ends an agent at every storage and socket call between a drop and its disposal, and judges what came of it.
//!
//! `crashpoints [--side S] [--scenario S]… [--fault F]… [--quick]`. For each scenario and side one undisturbed run
//! tells which calls there are. Then, for each call, before it and after it: struck at the 1st, the 2nd, the k-th, each
//! in a world of its own, until three runs went by without. Exits with 1 if the oracle found anything; a line to
//! run that point again alone is printed with each finding.

use std::{
    io,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use dropwire_proof::{
    calls::{Call, Kind},
    choose_program,
    enumerate::Stage,
    field::{Field, There},
    point::Plain,
    scenario::Scenario,
    table, tracer,
    tracer::What,
    world::{Keys, Sides},
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
    /// Outboxes and inboxes lie there; only file systems make a difference
    #[arg(long, value_enum)]
    field: Option<Field>,
    /// Worlds are made there; default: the temporary folder
    #[arg(long)]
    base: Option<PathBuf>,
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
            Self::Kill => What::Kill,
            Self::Eio => What::Fail(libc::EIO),
            Self::Enospc => What::Fail(libc::ENOSPC),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Eio => "eio",
            Self::Enospc => "enospc",
        }
    }

    /// Which calls it makes sense at.
    fn hits(self, call: &Call) -> bool {
        match self {
            Self::Kill => true,
            Self::Eio => call.kind != Kind::Socket,
            Self::Enospc => call.kind == Kind::Storage && !call.name.contains("unlink"),
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
        options.most = 1;
        if options.scenario.is_empty() {
            options.scenario = vec![Scenario::Collision, Scenario::Recovery];
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
    let field = match options.field.map(Field::enter).transpose() {
        Ok(field) => field,
        Err(why) => {
            println!("SKIPPED: crash points in this field: {why}");
            return Ok(0);
        }
    };
    let boxes = field.as_ref().and_then(|field| field.boxes.as_deref());
    let sides = options.side.all();
    println!("{}", program.display());
    let base = options.base.clone().unwrap_or_else(std::env::temp_dir);
    let start = Instant::now();
    let until = options.quick.then(|| start + QUICK);
    let keys = Arc::new(Keys::make()?);
    let mut rows = Vec::new();
    for &fault in &options.fault {
        for &scenario in &options.scenario {
            for &side in sides {
                let stage = Stage {
                    name: format!("{} {} {}", fault.name(), scenario.name(), side.name()),
                    again: format!(
                        "crashpoints --fault {} --scenario {} --side {}",
                        fault.name(),
                        scenario.name(),
                        side.name()
                    ),
                    keys: keys.clone(),
                    base: base.clone(),
                    jobs: options.jobs,
                    most: options.most,
                    until,
                    only: options.only.clone(),
                    what: fault.what(),
                    hits: &|call| fault.hits(call),
                    scenario,
                    side,
                    ground: &|worker| match boxes {
                        Some(boxes) => Ok(Box::new(There::new(boxes, worker))),
                        None => Ok(Box::new(Plain)),
                    },
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
    if until.is_some_and(|until| Instant::now() > until) {
        println!("SKIPPED: the points that would have begun after {QUICK:?}");
    }
    Ok(rows.iter().map(|row| row.violations).sum())
}

/// A quick proof begins no run after this.
const QUICK: Duration = Duration::from_secs(90);
