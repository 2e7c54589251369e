//! `dropwire id`: this agent's id alone on its line.

use serde_json::json;

use super::output;
use crate::{
    config::paths::Paths,
    error::{Exit, Fatal, shown},
    id,
    identity::Identity,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// As one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, paths: &Paths) -> Result<(), Fatal> {
    let identity = Identity::load(&paths.state_dir)?.ok_or_else(|| {
        Fatal::new(
            Exit::NoInput,
            format_args!("there is no identity in {} yet", shown(&paths.state_dir)),
        )
        .hint("`dropwire init` makes one")
    })?;
    let id = id::format(identity.id());
    match args.json {
        true => output::say_json(&json!({ "id": id })),
        false => output::say(id),
    }
}
