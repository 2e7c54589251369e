//! `dropwire adopt`: takes over an inbox or outbox folder that has no id or another's, after saying what that means.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    path::PathBuf,
};

use super::{
    online::{absolute, runtime},
    output::{remark, say},
};
use crate::{
    config::paths::Paths,
    control::{
        Client,
        api::{AdoptReply, AdoptRequest},
        wire::LocalPath,
    },
    daemon,
    error::{Exit, Fatal},
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The inbox or outbox, as the config names it
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Asks on a terminal, unless it is told not to.
pub(super) fn run(args: &Args, paths: &Paths) -> Result<(), Fatal> {
    let path = LocalPath(absolute(&args.folder)?);
    let ask = |go| {
        let request = AdoptRequest {
            path: path.clone(),
            go,
        };
        runtime()?.block_on(answer(paths, request))
    };
    let plan = ask(false)?;
    let Some(reason) = plan.reason else {
        return say(format_args!("nothing to adopt: {} is used as it is", plan.folder));
    };
    remark(format_args!(
        "{reason}\n\nAdopting it makes it this agent's, under a new id:"
    ));
    for sentence in &plan.meaning {
        remark(format_args!("  - {sentence}"));
    }
    if !args.yes && !agreed()? {
        return Err(Fatal::new(Exit::Failed, "not adopted: nothing was changed"));
    }
    let done = ask(true)?;
    say(format_args!("adopted {}", done.folder))
}

/// By the running agent, else by this command itself.
async fn answer(paths: &Paths, request: AdoptRequest) -> Result<AdoptReply, Fatal> {
    match Client::new(&paths.control).adopt(&request).await {
        Err(fatal) if fatal.exit == Exit::Unavailable => {
            // An agent that runs after all has the state folder's lock, and said what is the matter.
            match daemon::adopt_offline(super::load(paths)?, paths, request).await {
                Err(locked) if locked.exit == Exit::CannotCreate => Err(fatal),
                done => done,
            }
        }
        answered => answered,
    }
}

fn agreed() -> Result<bool, Fatal> {
    if !io::stdin().is_terminal() {
        return Err(
            Fatal::new(Exit::Usage, "nobody can be asked: standard input is no terminal")
                .hint("add --yes if that is meant"),
        );
    }
    remark("\nAdopt it? [y/N]");
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| Fatal::io("cannot read the answer", &e))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
