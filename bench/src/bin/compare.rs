//! dropwire beside its peers on the same work, in turns; prints one table of ratios. See bench/README.md.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use dropwire_bench::{
    contestants::{self, Contestant},
    failed,
    sources::Sources,
    table::{self, Row},
    wide::{self, Wide},
    work::Work,
    works::{Plan, Run, Stage},
};

/// dropwire beside its peers on the same work, in turns: medians, spread and ratios.
#[derive(Parser)]
struct Arguments {
    /// Works to do; default: all.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Work>,
    /// Contestants that take part beside the first, by the beginning of their names; default: all.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Measured rounds; one that does not count comes first.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// MiB of the large file.
    #[arg(long, default_value_t = 2048)]
    large: u64,
    /// Small files.
    #[arg(long, default_value_t = 10_000)]
    small: usize,
    /// A folder on the disk to measure, with room for two large files and 2 GiB; default: the one for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also writes everything that was measured to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Little of everything, twice, to see that it works; the figures say nothing. Syncthing, which takes long to start,
    /// takes part only when `--peers` names it.
    #[arg(long, conflicts_with_all = ["runs", "large", "small"])]
    short: bool,
    /// What is measured; default: the dropwire beside this program.
    dropwire: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nobody of ours failed at anything.
fn run(arguments: &Arguments) -> io::Result<bool> {
    let plan = plan(arguments);
    let program = match &arguments.dropwire {
        Some(program) => fs::canonicalize(program)?,
        None => std::env::current_exe()?.with_file_name("dropwire"),
    };
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new()
        .prefix("dropwire-bench-")
        .tempdir_in(parent)?;
    let sources = Sources::new(&folder.path().join("sources"))?;
    let machine = machine();
    println!("{} on {machine}", program.display());
    room(folder.path(), &plan)?;
    let (taking_part, skipped) = choose(&program, arguments);
    for (who, why) in &skipped {
        println!("SKIPPED {who}: {why}");
    }
    let suite = Suite {
        plan: &plan,
        sources: &sources,
        folder: folder.path(),
    };
    let mut rows = Vec::new();
    let mut fine = true;
    for work in works(&arguments.only) {
        let (of_work, ours_were_fine) = suite.in_turns(work, &taking_part);
        rows.extend(of_work);
        fine &= ours_were_fine;
    }
    println!("\n{}", table::text(&rows));
    if let Some(path) = &arguments.json {
        let report = serde_json::json!({
            "schema": 1,
            "at": std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
            "machine": machine,
            "runs": plan.runs,
            "skipped": skipped.iter().map(|(who, why)| format!("{who}: {why}")).collect::<Vec<_>>(),
            "rows": table::json(&rows),
        });
        fs::write(path, format!("{report:#}\n"))?;
    }
    Ok(fine)
}

struct Suite<'a> {
    plan: &'a Plan,
    sources: &'a Sources,
    folder: &'a Path,
}

impl Suite<'_> {
    /// All rounds of a work, and whether nobody of ours failed.
    fn in_turns(&self, work: Work, taking_part: &[Box<dyn Contestant>]) -> (Vec<Row>, bool) {
        let contestants: Vec<&dyn Contestant> = taking_part
            .iter()
            .map(|c| &**c)
            .filter(|c| c.does(work))
            .collect();
        let row = |contestant: &&dyn Contestant| Row {
            work,
            contestant: contestant.name(),
            runs: Vec::new(),
        };
        let mut rows: Vec<Row> = contestants.iter().map(row).collect();
        let mut fine = true;
        // A minute of idleness needs no warming up, nor often.
        let warm_ups = usize::from(self.plan.warm && work != Work::Idle);
        let runs = if work == Work::Idle { 1 } else { self.plan.runs };
        for round in 0..warm_ups + runs {
            for turn in 0..rows.len() {
                let who = (round + turn) % rows.len();
                let (contestant, runs) = (contestants[who], &mut rows[who].runs);
                if runs.iter().any(Option::is_none) {
                    continue; // who failed once may do so again, and take as long
                }
                let warm_up = round < warm_ups;
                let ran = self.once(contestant, work, round == 0);
                fine &= ran.is_ok() || !contestant.is_ours();
                tell(work, contestant.name(), warm_up, &ran);
                if !warm_up || ran.is_err() {
                    runs.push(ran.ok());
                }
            }
        }
        (rows, fine)
    }

    fn once(&self, contestant: &dyn Contestant, work: Work, check: bool) -> io::Result<Run> {
        let root = tempfile::Builder::new().prefix("run-").tempdir_in(self.folder)?;
        let stage = Stage {
            contestant,
            plan: self.plan,
            sources: self.sources,
            root: root.path(),
            check,
        };
        stage.run(work)
    }
}

fn tell(work: Work, who: &str, warm_up: bool, ran: &io::Result<Run>) {
    let round = if warm_up { ", warming up" } else { "" };
    match ran {
        Err(error) => eprintln!("{}: {who}{round}: FAILED: {error}", work.name()),
        Ok(run) => {
            let figures = work.figures().iter().zip(&run.figures);
            let figures: Vec<String> = figures
                .map(|(f, value)| format!("{} {value:.3}", f.name))
                .collect();
            eprintln!("{}: {who}{round}: {}", work.name(), figures.join(", "));
        }
    }
}

fn plan(arguments: &Arguments) -> Plan {
    if arguments.short {
        return Plan {
            large: 16 << 20,
            small: 200,
            latency: 10,
            latency_time: Duration::from_secs(1),
            idle: Duration::from_millis(200),
            wide_large: 1 << 20,
            wide_small: 20,
            runs: 2,
            warm: false,
        };
    }
    Plan {
        large: arguments.large << 20,
        small: arguments.small,
        latency: 500,
        latency_time: Duration::from_secs(20),
        idle: Duration::from_secs(60),
        wide_large: 256 << 20,
        wide_small: 1000,
        runs: arguments.runs,
        warm: true,
    }
}

/// Who is left out, and why.
type Skipped = (&'static str, String);

/// Those that take part, and why the others do not.
fn choose(program: &Path, arguments: &Arguments) -> (Vec<Box<dyn Contestant>>, Vec<Skipped>) {
    let (mut taking_part, mut skipped) = (Vec::new(), Vec::new());
    for (index, contestant) in contestants::all(program).into_iter().enumerate() {
        let named = |peer: &String| contestant.name().starts_with(peer.as_str());
        let wanted = match &arguments.peers[..] {
            [] => !(arguments.short && contestant.name() == "Syncthing"),
            peers => index == 0 || peers.iter().any(named),
        };
        match contestant.missing() {
            _ if !wanted => {}
            Some(why) => skipped.push((contestant.name(), why)),
            None => taking_part.push(contestant),
        }
    }
    (taking_part, skipped)
}

/// The works that were asked for and are possible here.
fn works(only: &[Work]) -> Vec<Work> {
    let asked = |work: &Work| only.is_empty() || only.contains(work);
    let possible = |work: &Work| match work {
        Work::Wide => Wide::lay()
            .inspect_err(|why| println!("SKIPPED wide: {why}"))
            .is_ok(),
        _ => true,
    };
    Work::ALL.into_iter().filter(asked).filter(possible).collect()
}

/// An error where there is too little room; a warning where nothing is synced.
fn room(folder: &Path, plan: &Plan) -> io::Result<()> {
    const TMPFS: u64 = 0x0102_1994;
    let disk = rustix::fs::statfs(folder)?;
    let (free, needed) = (disk.f_bavail * disk.f_bsize as u64, 2 * plan.large + (2 << 30));
    if plan.warm && free < needed {
        let (free, needed) = (free >> 20, needed >> 20);
        return Err(failed(format!(
            "{}: {free} MiB free, {needed} needed",
            folder.display()
        )));
    }
    if disk.f_type as u64 == TMPFS {
        println!(
            "WARNING: {} is memory, which hides what syncing costs; choose with --dir",
            folder.display()
        );
    }
    Ok(())
}

/// What the figures depend on.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    format!(
        "{cores} cores ({}), Linux {}, {}",
        model.map_or("?", |(_, model)| model),
        read("/proc/sys/kernel/osrelease").trim(),
        wide::congestion_control()
    )
}
