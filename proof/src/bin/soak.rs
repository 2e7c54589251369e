//! Agents under random kills, cuts, stalls, stops, full disks and clock jumps: prints one table, and fails if a file
//! was lost, doubled or torn. Run it again with the seed it prints; a failed run keeps the agents' folders with their
//! logs.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use dropwire_proof::{choose_program, field::Field, report, soak};

/// Agents under random trouble: nothing is lost, doubled or torn.
#[derive(Parser)]
struct Arguments {
    /// Deliveries.
    #[arg(long, default_value_t = 20_000)]
    transfers: u64,
    /// SIGKILLs, spread over them.
    #[arg(long, default_value_t = 2_000)]
    kills: u64,
    /// Of an earlier run; default: by the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// How many agents, each paired with all others.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    agents: u8,
    /// Begins nothing new after so long.
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// About a minute: what a continuous integration has time for.
    #[arg(long, conflicts_with_all = ["transfers", "kills", "minutes"])]
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
            println!("SKIPPED: soak in this field: {why}");
            return ExitCode::SUCCESS;
        }
    };
    let seed = report::seed(arguments.seed);
    let (transfers, kills, most) = match arguments.short {
        true => (800, 80, Duration::from_secs(60)),
        false => (
            arguments.transfers,
            arguments.kills,
            Duration::from_secs(arguments.minutes * 60),
        ),
    };
    println!("{} with seed {seed}", program.display());
    soak::run(soak::Plan {
        transfers,
        kills,
        seed,
        agents: arguments.agents.into(),
        most,
        field: field.as_ref(),
    })
    .show()
}
