//! Cuts the power of one agent's disks at every storage and socket call, and looks what came of it.
//!
//! `powercut [--kind K]… [--side S] [--scenario S]… [--most N]`. The struck side's folders lie on a loop-mounted
//! ext4, xfs or btrfs, its job list there too and on a file system of its own. The agent is killed at the call, then
//! what was not on the disk is lost. Every receipt that the other side had seen has to be true as soon as the disk is
//! mounted again, and once both agents ran to rest nothing may be lost, doubled or torn. Needs root and loop devices.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use clap::Parser;
use dropwire_proof::{
    calls::{self, Call},
    choose_program,
    disk::{Disk, Kind},
    enumerate::Stage,
    point::Ground,
    scenario::Scenario,
    table,
    tracer::{self, What},
    world::{Home, Keys, Side, Sides, World},
};

/// Cuts the power of an agent's disks at every storage and socket call.
#[derive(Parser)]
struct Options {
    /// The program; default: the build beside this one
    #[arg(long)]
    dropwire: Option<PathBuf>,
    /// Which file systems; default: all
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Where the job list lies
    #[arg(long, value_enum, default_value = "both")]
    job_list: JobList,
    /// Whose power is cut
    #[arg(long, value_enum, default_value = "both")]
    side: Sides,
    /// Which scenarios; default: all
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// Most points of one call in one scenario, spread evenly; 0: all
    #[arg(long, default_value_t = 0)]
    most: u64,
    /// Runs at once
    #[arg(long, default_value_t = 3)]
    jobs: usize,
    /// One point alone: CALL:K:before or CALL:K:after
    #[arg(long)]
    only: Option<String>,
    /// Images and worlds are made there; default: the temporary folder
    #[arg(long)]
    base: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum JobList {
    /// On the disk of outbox and inbox.
    Same,
    /// On a file system of its own.
    Other,
    /// One after the other.
    Both,
}

fn main() -> ExitCode {
    tracer::serve_if_asked();
    match prove(Options::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("powercut: {error}");
            ExitCode::from(2)
        }
    }
}

fn prove(mut options: Options) -> io::Result<u64> {
    let program = choose_program(options.dropwire.clone()).map_err(io::Error::other)?;
    if options.kind.is_empty() {
        options.kind = vec![Kind::Ext4, Kind::Xfs, Kind::Btrfs];
    }
    if options.scenario.is_empty() {
        options.scenario = Scenario::ALL.to_vec();
    }
    let elsewhere: &[bool] = match options.job_list {
        JobList::Same => &[false],
        JobList::Other => &[true],
        JobList::Both => &[false, true],
    };
    println!("{}", program.display());
    let start = Instant::now();
    let keys = Arc::new(Keys::make()?);
    let folder = match &options.base {
        Some(base) => tempfile::tempdir_in(base)?,
        None => tempfile::tempdir()?,
    };
    let mut rows = Vec::new();
    for &kind in &options.kind {
        if let Some(why) = kind.missing() {
            println!("SKIPPED {}: {why}", kind.name());
            continue;
        }
        for &elsewhere in elsewhere {
            for &scenario in &options.scenario {
                for &side in options.side.all() {
                    let place = if elsewhere { "other" } else { "same" };
                    let stage = Stage {
                        name: format!("{} {place} {} {}", kind.name(), scenario.name(), side.name()),
                        again: format!(
                            "powercut --kind {} --job-list {place} --scenario {} --side {}",
                            kind.name(),
                            scenario.name(),
                            side.name()
                        ),
                        keys: keys.clone(),
                        base: folder.path().into(),
                        jobs: options.jobs,
                        most: options.most,
                        until: None,
                        only: options.only.clone(),
                        what: What::Kill,
                        hits: &matters,
                        scenario,
                        side,
                        ground: &|worker| Ok(Box::new(Cut::make(kind, elsewhere, folder.path(), worker)?)),
                    };
                    let row = stage.enumerate()?;
                    eprintln!(
                        "{}: {} points, {} violations ({:.0} s)",
                        row.name,
                        row.points,
                        row.violations,
                        start.elapsed().as_secs_f64()
                    );
                    rows.push(row);
                }
            }
        }
    }
    table::print("disk, job list, scenario, side", &rows);
    println!("{:.0} s", start.elapsed().as_secs_f64());
    let violations = rows.iter().map(|row| row.violations).sum();
    if violations > 0 {
        println!("kept: {}", folder.keep().display());
    }
    Ok(violations)
}

/// What only looks leaves the disk as it was: the cut is that before the next change.
fn matters(call: &Call) -> bool {
    call.kind != calls::Kind::Look
}

/// A worker's disks, used for run after run.
struct Cut {
    boxes: Disk,
    state: Option<Disk>,
    runs: u64,
}

impl Cut {
    fn make(kind: Kind, elsewhere: bool, folder: &Path, worker: usize) -> io::Result<Cut> {
        let disk = |name: &str| Disk::make(kind, folder, &format!("{name}-{worker}"));
        Ok(Cut {
            boxes: disk("boxes")?,
            state: elsewhere.then(|| disk("state")).transpose()?,
            runs: 0,
        })
    }

    fn disks(&self) -> impl Iterator<Item = &Disk> {
        [Some(&self.boxes), self.state.as_ref()].into_iter().flatten()
    }
}

impl Ground for Cut {
    fn homes(&mut self, root: &Path, side: Side) -> io::Result<[Home; 2]> {
        self.runs += 1;
        let name = format!("run-{}", self.runs);
        let boxes = self.boxes.path().join(&name);
        let state = self.state.as_ref().unwrap_or(&self.boxes).path().join(&name);
        Ok(Side::BOTH.map(|each| {
            if each == side {
                Home::new(&boxes, &state)
            } else {
                let plain = root.join(each.name());
                Home::new(&plain, &plain)
            }
        }))
    }

    fn made(&mut self) -> io::Result<()> {
        self.disks().try_for_each(Disk::sync)
    }

    fn durable_drops(&self) -> bool {
        true
    }

    fn killed(&mut self, _: &mut World) -> io::Result<()> {
        self.disks().try_for_each(Disk::cut)
    }

    fn over(&mut self) {
        for disk in self.disks() {
            // Only to make room for the next run.
            let _ = std::fs::remove_dir_all(disk.path().join(format!("run-{}", self.runs)));
        }
    }
}
