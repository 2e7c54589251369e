//! `dropwire completions SHELL`

use clap::CommandFactory as _;

use super::{Cli, output};
use crate::error::Fatal;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The shell to complete in
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> Result<(), Fatal> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dropwire", &mut script);
    output::say(String::from_utf8_lossy(&script).trim_end())
}
