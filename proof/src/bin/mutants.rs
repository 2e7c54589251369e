//! Leaves out each safeguard in turn and shows which test fails then. Run it in the project's folder; names of
//! mutants choose some of them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use dropwire_proof::mutants::{MUTANTS, Proof};

/// A test that waits for what never comes has failed.
const PATIENCE: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = chosen
        .iter()
        .find(|name| MUTANTS.iter().all(|(known, ..)| known != name))
    {
        eprintln!("no mutant is called {unknown}; proof/src/mutants.rs has them all");
        return ExitCode::from(2);
    }
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|c| c == name);
    let mutants: Vec<_> = MUTANTS.iter().filter(|(name, ..)| wanted(name)).collect();
    let Some(tests) = Tests::build() else {
        eprintln!("the tests could not be built: run this in the project's folder");
        return ExitCode::from(2);
    };
    // A test that fails anyway, or a filter that finds none, shows nothing.
    let groups = |(.., proof): &&&(_, _, Proof)| match proof {
        Proof::Inside(filters) => Some((false, *filters)),
        Proof::EndToEnd(filters) => Some((true, *filters)),
        Proof::Equivalent(_) => None,
    };
    let groups: BTreeSet<(bool, &[&str])> = mutants.iter().filter_map(|m| groups(&m)).collect();
    for (end_to_end, filters) in groups {
        match tests.run(end_to_end, filters, None) {
            Run {
                passed: 1.., failed, ..
            } if failed.is_empty() => {}
            run => {
                eprintln!("{filters:?} with nothing left out: {run:?}");
                return ExitCode::from(2);
            }
        }
    }
    let mut survived = 0;
    for (name, what, proof) in mutants {
        let run = match proof {
            Proof::Inside(filters) => tests.run(false, filters, Some(name)),
            Proof::EndToEnd(filters) => tests.run(true, filters, Some(name)),
            Proof::Equivalent(reason) => {
                println!("{name:<20} {what}: equivalent: {reason}");
                continue;
            }
        };
        let verdict = match run.failed.first() {
            Some(test) => format!("caught by {test}"),
            None if run.hangs => "caught: its test never ends".to_owned(),
            None => {
                survived += 1;
                "SURVIVED".to_owned()
            }
        };
        println!("{name:<20} {what}: {verdict}");
    }
    println!("{survived} survived");
    match survived {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The agent's test programs.
struct Tests {
    inside: PathBuf,
    end_to_end: PathBuf,
}

/// What a run of tests said.
#[derive(Debug)]
struct Run {
    passed: usize,
    failed: Vec<String>,
    hangs: bool,
}

impl Tests {
    fn build() -> Option<Self> {
        let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["test", "-p", "dropwire", "--lib", "--test", "e2e", "--no-run"])
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        let program = |kind: &str| {
            let line = said
                .lines()
                .find(|l| l.contains("Executable") && l.contains(kind))?;
            let path = line.rsplit_once('(')?.1.strip_suffix(')')?;
            PathBuf::from(path).canonicalize().ok()
        };
        Some(Self {
            inside: program("src/lib.rs")?,
            end_to_end: program("main.rs")?,
        })
    }

    fn run(&self, end_to_end: bool, filters: &[&str], mutant: Option<&str>) -> Run {
        let program = if end_to_end {
            &self.end_to_end
        } else {
            &self.inside
        };
        let folder = tempfile::tempdir().expect("a temporary folder"); // with all that killed tests leave
        let said = folder.path().join("said");
        let mut command = Command::new(program);
        command
            .args(filters)
            .env_remove("DROPWIRE_MUTANT")
            .envs(mutant.map(|name| ("DROPWIRE_MUTANT", name)))
            .env("TMPDIR", folder.path())
            .current_dir("agent")
            .stdin(Stdio::null())
            .stdout(File::create(&said).expect("a temporary file"))
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("the tests start");
        let start = Instant::now();
        let mut hangs = false;
        while child.try_wait().expect("our own child").is_none() {
            thread::sleep(Duration::from_millis(20));
            hangs = start.elapsed() > PATIENCE;
            // One failure is enough; others may wait long for what never comes.
            if hangs || (mutant.is_some() && read(&said).contains(" ... FAILED")) {
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
        }
        let text = read(&said);
        let ended = |how: &str| {
            let tests = text
                .lines()
                .filter_map(|l| l.strip_prefix("test ")?.strip_suffix(how));
            tests.map(str::to_owned).collect::<Vec<_>>()
        };
        Run {
            passed: ended(" ... ok").len(),
            failed: ended(" ... FAILED"),
            hangs,
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
