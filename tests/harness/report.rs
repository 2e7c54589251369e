//! What a failing test says of an agent: enough to understand the failure without running it again.

use std::fs;

use super::{Agent, files};

const LOG_LINES: usize = 60;
const TREE_LINES: usize = 100;

/// Prints command, config, folders, jobs, status and the end of the log.
pub(super) fn print(agent: &Agent) {
    let config = fs::read_to_string(&agent.config).unwrap_or_default();
    eprintln!("\n======== {} ({})", agent.name, agent.root.display());
    eprintln!("{:?}", agent.command(&["run"]));
    eprintln!("-- config\n{}", config.trim());
    for folder in [&agent.outbox, &agent.inbox] {
        eprintln!("-- {}\n{}", folder.display(), tree(folder));
    }
    for args in [["jobs", "--json"], ["status", "--json"]] {
        eprintln!("-- {}", agent.run(&args));
    }
    let log = agent.log_text();
    let lines: Vec<&str> = log.lines().collect();
    eprintln!("-- the log's last lines of {}", lines.len());
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        eprintln!("{line}");
    }
}

fn tree(root: &std::path::Path) -> String {
    let mut lines = Vec::new();
    files::walk(root, &mut |path| {
        let size = path.symlink_metadata().map_or(0, |m| m.len());
        lines.push(format!(
            "{size:>12} {:?}",
            path.strip_prefix(root).unwrap_or(path)
        ));
        lines.len() < TREE_LINES
    });
    lines.join("\n")
}
