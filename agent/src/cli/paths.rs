//! `dropwire paths`: where things are.

use serde_json::json;

use super::output;
use crate::{config::paths::Paths, error::Fatal, error::shown};

#[derive(clap::Args)]
pub(super) struct Args {
    /// As one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, paths: &Paths) -> Result<(), Fatal> {
    if args.json {
        return output::say_json(&json!({
            "config": paths.config.to_string_lossy(),
            "state_dir": paths.state_dir.to_string_lossy(),
            "control": paths.control.to_string_lossy(),
        }));
    }
    for (what, path) in [
        ("config", &paths.config),
        ("state", &paths.state_dir),
        ("control", &paths.control),
    ] {
        let missing = if path.exists() { "" } else { "  (not there yet)" };
        output::say(format_args!("{what:<8} {}{missing}", shown(path)))?;
    }
    Ok(())
}
