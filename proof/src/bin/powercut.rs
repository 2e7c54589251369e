//! Cuts the power of one agent's disks at every storage and socket call, and judges what came of it.
//!
//! `powercut [--kind K]… [--side S] [--scenario S]… [--most N]`. The struck side's folders lie on a loop-mounted
//! ext4, xfs or btrfs, its job list there too and on a file system of its own. The agent is killed at the call, then
//! what was not on the disk is lost. Every receipt that the other side had seen has to be true as soon as the disk is
//! mounted again, and once both agents ran to rest nothing may be lost, doubled or torn. Needs root and loop devices.
//!
//! `--unsynced`: the files were written and named, but their writer did not sync them. Until the agent has, a cut may
//! take them or cut them short, and what is left is then the drop; once one is queued, it is whole.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::Instant,
};

use clap::Parser;
use dropwire_proof::{
    calls::{self, Call},
    choose_program,
    disk::{self, Disk, Kind},
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
    /// What is dropped was not synced by its writer; the sender's power alone is cut
    #[arg(long)]
    unsynced: bool,
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
    if options.unsynced {
        options.side = Sides::Sender;
    }
    if options.kind.is_empty() {
        options.kind = vec![Kind::Ext4, Kind::Xfs, Kind::Btrfs];
    }
    if options.kind.iter().any(|kind| kind.missing().is_none()) {
        disk::mount_in_private()?;
    }
    if options.scenario.is_empty() {
        options.scenario = Scenario::ALL.to_vec();
        // What is left of a folder that nobody synced is told file by file.
        options.scenario.retain(|s| !(options.unsynced && s.is_whole()));
    }
    let elsewhere: &[bool] = match options.job_list {
        JobList::Same => &[false],
        JobList::Other => &[true],
        JobList::Both => &[false, true],
    };
    println!("{}", program.display());
    let start = Instant::now();
    let keys = Arc::new(Keys::make()?);
    let folder = disk::folder_in(&options.base.clone().unwrap_or_else(std::env::temp_dir))?;
    let mut rows = Vec::new();
    for &kind in &options.kind {
        if let Some(why) = kind.missing() {
            println!("SKIPPED {}: {why}", kind.name());
            continue;
        }
        let below = match kind {
            Kind::Btrfs => Some(Disk::for_images(folder.path(), 2 * (options.jobs + 1))?),
            _ => None,
        };
        let images = below.as_ref().map_or(folder.path(), Disk::path);
        for &elsewhere in elsewhere {
            for &scenario in &options.scenario {
                for &side in options.side.all() {
                    let place = if elsewhere { "other" } else { "same" };
                    let stage = Stage {
                        name: format!("{} {place} {} {}", kind.name(), scenario.name(), side.name()),
                        again: format!(
                            "powercut --kind {} --job-list {place} --scenario {} --side {}{}",
                            kind.name(),
                            scenario.name(),
                            side.name(),
                            if options.unsynced { " --unsynced" } else { "" },
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
                        ground: &|worker| {
                            let mut cut = Cut::make(kind, elsewhere, images, worker)?;
                            cut.unsynced = options.unsynced;
                            Ok(Box::new(cut))
                        },
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

/// What only reads leaves the disk as it was: the cut is that before the next change.
fn matters(call: &Call) -> bool {
    call.kind != calls::Kind::Look
}

/// A worker's disks, used for run after run.
struct Cut {
    boxes: Disk,
    state: Option<Disk>,
    unsynced: bool,
    runs: u64,
}

impl Cut {
    fn make(kind: Kind, elsewhere: bool, folder: &Path, worker: usize) -> io::Result<Self> {
        let disk = |name: &str| Disk::make(kind, folder, &format!("{name}-{worker}"));
        Ok(Self {
            boxes: disk("boxes")?,
            state: elsewhere.then(|| disk("state")).transpose()?,
            unsynced: false,
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
        !self.unsynced
    }

    fn cuts_power(&self) -> bool {
        true
    }

    fn killed(&mut self, _: &mut World) -> io::Result<()> {
        self.disks().try_for_each(Disk::cut)
    }

    fn over(&mut self, keep: Option<&Path>) {
        for (disk, name) in self.disks().zip(["boxes", "state"]) {
            let run = disk.path().join(format!("run-{}", self.runs));
            if let Some(keep) = keep {
                // A finding can be read without it.
                let _ = Command::new("cp")
                    .arg("-a")
                    .arg(&run)
                    .arg(keep.join(name))
                    .status();
            }
            let _ = std::fs::remove_dir_all(run); // only to make room for the next run
        }
    }
}
