//! `dropwire cancel`: ends jobs for good; their files stay.

use super::{Stop, Which, render};
use crate::{config::paths::Paths, control::Client, error::Fatal};

/// What `cancel` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    which: Which,
}

/// Ends jobs for good; their files stay.
pub fn run(args: Args, paths: &Paths) -> Result<(), Fatal> {
    super::run(ask(args, Client::new(&paths.control)))
}

async fn ask(args: Args, client: Client) -> Result<(), Stop> {
    let changed = client.cancel(&args.which.into()).await?;
    Ok(render::print(&render::changed(changed.count, "cancelled"))?)
}
