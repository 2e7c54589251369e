//! A paired peer that lies, floods, withholds and starves: prints one table, and fails if that costs the agent more
//! than it may, or an honest peer more than half its speed. Run it again with the seed it prints; a failed run keeps
//! the agents' folders with their logs.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use dropwire_proof::{
    choose_program,
    hostile::{self, Attack, Plan},
    report,
};

/// A hostile peer beside an honest one.
#[derive(Parser)]
struct Arguments {
    /// How long the attacks last.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Of an earlier run; default: by the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this kind of attack; may be given several times.
    #[arg(long, value_enum)]
    attack: Vec<Attack>,
    /// About a minute: what a continuous integration has time for.
    #[arg(long, conflicts_with = "seconds")]
    short: bool,
    /// Default: the one beside this program.
    dropwire: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let program = match choose_program(arguments.dropwire) {
        Ok(program) => program,
        Err(hint) => {
            eprintln!("{hint}");
            return ExitCode::from(2);
        }
    };
    let seed = report::seed(arguments.seed);
    let seconds = match arguments.short {
        true => 50,
        false => arguments.seconds,
    };
    println!("{} with seed {seed}", program.display());
    hostile::run(&Plan {
        seed,
        most: Duration::from_secs(seconds),
        only: arguments.attack,
    })
    .show()
}
