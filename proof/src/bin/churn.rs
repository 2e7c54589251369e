//! Outboxes in which everything changes while it is being sent: prints one table, and fails if a version was lost,
//! doubled or torn. Run it again with the seed it prints; a failed run keeps the agents' folders with their logs.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use dropwire_proof::{
    choose_program,
    churn::{self, Plan},
    field::Field,
    report,
};

/// Files that change under way: the last version of each arrives once, none torn.
#[derive(Parser)]
struct Arguments {
    /// Changes to the outboxes.
    #[arg(long, default_value_t = 10_000)]
    steps: u64,
    /// SIGKILLs, spread over them.
    #[arg(long, default_value_t = 0)]
    kills: u64,
    /// Of an earlier run; default: by the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Some seconds: what a continuous integration has time for.
    #[arg(long, conflicts_with_all = ["steps", "kills"])]
    short: bool,
    /// What surrounds the agents; default: nothing special.
    #[arg(long, value_enum)]
    field: Option<Field>,
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
    let field = match arguments.field.map(Field::enter).transpose() {
        Ok(field) => field,
        Err(why) => {
            println!("SKIPPED: churn in this field: {why}");
            return ExitCode::SUCCESS;
        }
    };
    let seed = report::seed(arguments.seed);
    let (steps, kills) = match arguments.short {
        true => (1000, 2),
        false => (arguments.steps, arguments.kills),
    };
    println!("{} with seed {seed}", program.display());
    churn::run(Plan {
        steps,
        kills,
        seed,
        after_send: ["archive", "delete"][(seed % 2) as usize],
        field: field.as_ref(),
    })
    .show()
}
