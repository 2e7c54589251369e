//! The figures at the end, a row for each scenario and side.

use std::{collections::BTreeSet, time::Duration};

/// A row.
#[derive(Default)]
pub struct Row {
    /// What was run.
    pub name: String,
    /// Calls that were points.
    pub calls: BTreeSet<String>,
    /// Runs in which the strike came about.
    pub points: u64,
    /// Runs in all.
    pub runs: u64,
    /// Agents that had to be restarted after a refused call.
    pub helped: u64,
    /// Runs with a violation.
    pub violations: u64,
    /// Time of all runs, over all workers.
    pub took: Duration,
}

/// Prints rows and totals.
pub fn print(first: &str, rows: &[Row]) {
    println!(
        "\n{first:<34} {:>6} {:>8} {:>6} {:>9} {:>11} {:>9}",
        "calls", "points", "runs", "restarts", "violations", "s a run"
    );
    let mut total = Row {
        name: "all".into(),
        ..Row::default()
    };
    for row in rows {
        line(row);
        total.calls.extend(row.calls.iter().cloned());
        total.points += row.points;
        total.runs += row.runs;
        total.helped += row.helped;
        total.violations += row.violations;
        total.took += row.took;
    }
    line(&total);
    let calls: Vec<&str> = total.calls.iter().map(String::as_str).collect();
    println!("\ncalls: {}", calls.join(", "));
}

fn line(row: &Row) {
    println!(
        "{:<34} {:>6} {:>8} {:>6} {:>9} {:>11} {:>9.2}",
        row.name,
        row.calls.len(),
        row.points,
        row.runs,
        row.helped,
        row.violations,
        row.took.as_secs_f64() / row.runs.max(1) as f64
    );
}
