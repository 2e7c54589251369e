//! The command line: one file a command, errors and exit codes in one place (`exit`).

mod adopt;
mod check;
mod completions;
mod demo;
mod exit;
mod id;
mod init;
mod logs;
pub mod online;
mod output;
mod paths;
mod run;
mod signals;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    path::PathBuf,
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Parser, Subcommand};
use dropwire_protocol::message::VERSION_MAX;

use crate::{
    config::{
        self, Config,
        paths::{Flags, Paths},
    },
    error::{Exit, Fatal},
};

/// Drop a file into a folder; it arrives in a folder on another machine.
#[derive(Parser)]
#[command(name = "dropwire", version = VERSION.as_str(), arg_required_else_help = false)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(clap::Args)]
#[command(next_help_heading = "For every command")]
struct Global {
    /// The config file
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The folder of identity and job list
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// The socket of the running agent
    #[arg(long, value_name = "SOCKET", global = true)]
    control: Option<PathBuf>,
    /// The system's agent instead of the user's
    #[arg(long, global = true)]
    system: bool,
    /// Log more; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Write config, identity and folders where they are missing
    Init(init::Args),
    /// Run the agent in the foreground
    Run,
    /// Try it out: two agents in a temporary folder
    Demo(demo::Args),
    /// Read the config, test folders and address, print what holds
    Check(check::Args),
    /// Print this agent's id
    Id(id::Args),
    /// Print where things are
    Paths(paths::Args),
    /// Show peers, links, folders and queue of the running agent
    Status(online::status::Args),
    /// List the jobs
    Jobs(online::jobs::Args),
    /// Say what a file or job waits for
    Why(online::why::Args),
    /// Queue files from anywhere
    Send(online::send::Args),
    /// Try jobs again now
    Retry(online::retry::Args),
    /// Give jobs up
    Cancel(online::cancel::Args),
    /// Take over an inbox or outbox folder that has no id or another's
    Adopt(adopt::Args),
    /// Print completions for a shell
    Completions(completions::Args),
}

/// Reads the command line, runs the command, reports its error; the program's exit code.
pub fn main() -> ExitCode {
    end_on_panic();
    let cli = Cli::parse(); // wrong usage ends here with 2
    let exit = match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => exit::report(&fatal),
    };
    logs::flush();
    exit
}

/// A thread or task that panicked answers nobody any more, and others would wait for it in silence: the whole process
/// ends, whether anybody reads its last words or not. A restart resumes everything, as after a crash.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let trace = Backtrace::capture();
        let mut text = format!("thread '{name}' {panic}\n");
        if trace.status() == BacktraceStatus::Captured {
            text += &format!("{trace}\n");
        }
        logs::last_words(&text);
        std::process::exit(Exit::Failed as i32);
    }));
}

fn dispatch(cli: Cli) -> Result<(), Fatal> {
    let flags = Flags {
        config: cli.global.config,
        state_dir: cli.global.state_dir,
        control: cli.global.control,
        system: cli.global.system,
    };
    let find = || Paths::find(&flags).map_err(exit::invalid);
    match cli.command {
        Command::Init(args) => init::run(&args, &flags),
        Command::Run => run::run(&find()?, flags, cli.global.verbose),
        Command::Demo(args) => demo::run(&args, cli.global.verbose),
        Command::Check(args) => check::run(&args, &find()?),
        Command::Id(args) => id::run(&args, &find()?),
        Command::Paths(args) => paths::run(&args, &find()?),
        Command::Status(args) => online::status::run(args, &find()?),
        Command::Jobs(args) => online::jobs::run(args, &find()?),
        Command::Why(args) => online::why::run(args, &find()?),
        Command::Send(args) => online::send::run(args, &find()?),
        Command::Retry(args) => online::retry::run(args, &find()?),
        Command::Cancel(args) => online::cancel::run(args, &find()?),
        Command::Adopt(args) => adopt::run(&args, &find()?),
        Command::Completions(args) => completions::run(&args),
    }
}

/// The config with all that a file alone cannot tell of: its errors are coloured where stderr is.
fn load(paths: &Paths) -> Result<Config, Fatal> {
    let config = config::read(&paths.config).map_err(exit::invalid)?;
    config.check_paths(paths)?;
    config::paths::check_control(&paths.control)?;
    Ok(config)
}

/// Two versions, as they change apart from each other.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (protocol {VERSION_MAX})", env!("CARGO_PKG_VERSION")));

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
