//! `dropwire retry`: makes queued jobs due at once, and queues failed and cancelled ones again.

use super::{Stop, Which, render};
use crate::{config::paths::Paths, control::Client, error::Fatal};

/// What `retry` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    which: Which,
}

/// Makes jobs due at once, and queues ended ones again.
pub fn run(args: Args, paths: &Paths) -> Result<(), Fatal> {
    super::run(ask(args, Client::new(&paths.control)))
}

async fn ask(args: Args, client: Client) -> Result<(), Stop> {
    let changed = client.retry(&args.which.into()).await?;
    Ok(render::print(&render::changed(changed.count, "due now"))?)
}
