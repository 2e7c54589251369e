//! Many files waiting: how soon an agent is ready and sends, what memory it takes, what a rescan costs.
//!
//! `backlog [DROPWIRE [FILES]]`. The files (100 bytes, 1,000 to a folder) are made while no agent runs. Then, in turn:
//! the sender starts while its peer is away, until all are queued; it is killed and started again, still alone; the peer
//! comes; the sender is killed in the middle of sending and started again; all has to arrive, once, and to leave the
//! outbox. Everything runs on loopback and lies on the disk of the temporary folder.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use dropwire_proof::{
    choose_program,
    harness::{Agent, Pair, files},
};

const FOLDER: usize = 1000;
const SIZE: usize = 100;
/// Time between two checks of an agent that works for a long time.
const LOOK: Duration = Duration::from_millis(500);
/// Without any progress for so long it is stuck.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = choose_program(arguments.next().map(Into::into)).map_err(io::Error::other)?;
    let count: usize = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    println!("{} with {count} files of {SIZE} bytes", program.display());
    let mut pair = Pair::idle();
    for agent in [&mut pair.laptop, &mut pair.office] {
        agent.env.push(("RUST_LOG".into(), "warn".into()));
    }
    let (laptop, office) = (&mut pair.laptop, &mut pair.office);
    for n in 0..count {
        let folder = laptop.outbox.join(format!("folder {}", n / FOLDER));
        if n % FOLDER == 0 {
            fs::create_dir(&folder)?;
        }
        fs::write(folder.join(format!("file {n}")), content(n))?;
    }

    start(laptop, "start, nothing queued");
    let began = Instant::now();
    let queued = || laptop.peer("office")["queued"].as_u64().unwrap_or(0) as usize;
    until(count, queued);
    row("all queued", began.elapsed(), laptop);
    idle(laptop);
    laptop.kill();
    start(laptop, "killed, start, all queued");
    scan(laptop);
    idle(laptop);
    laptop.kill();

    office.start();
    let began = Instant::now();
    start(laptop, "start with the peer there");
    let received = |office: &Agent| office.status()["inbox"]["received_files"].as_u64().unwrap_or(0) as usize;
    until(1, || received(office));
    row("first arrived", began.elapsed(), laptop);
    until(count / 2, || received(office));
    row("half arrived", began.elapsed(), laptop);
    laptop.kill();
    start(laptop, "killed amid sending, start");
    let again = Instant::now();
    let before = received(office);
    until(before + 1, || received(office));
    row("next arrived", again.elapsed(), laptop);
    until(count, || received(office));
    row("all arrived", began.elapsed(), laptop);
    let left = |outbox: &Path| files::list(outbox).len();
    until(count, || count - left(&laptop.outbox));
    row("outbox empty", began.elapsed(), laptop);
    row("(the receiver)", began.elapsed(), office);

    let names = files::list(&office.inbox);
    assert_eq!(names.len(), count, "files in the inbox");
    for name in names {
        let bytes = fs::read(office.inbox.join(&name))?;
        let n = name
            .to_string_lossy()
            .rsplit(' ')
            .next()
            .and_then(|n| n.parse().ok());
        assert!(
            n.is_some_and(|n| bytes == content(n)),
            "{} has other bytes",
            name.display()
        );
    }
    println!("each arrived once, whole");
    Ok(())
}

fn content(n: usize) -> Vec<u8> {
    files::noise(n as u64, SIZE)
}

/// Until it answers `status`.
fn start(agent: &mut Agent, what: &str) {
    let began = Instant::now();
    agent.start();
    row(what, began.elapsed(), agent);
}

fn row(what: &str, taken: Duration, agent: &Agent) {
    let of = |key| kibibytes(agent.pid(), key) / 1024;
    println!(
        "{what:<28} {:>8.1} s   memory {:>4} MiB, peak {:>4} MiB   processor {:>7.1} s",
        taken.as_secs_f64(),
        of("VmRSS:"),
        of("VmHWM:"),
        processor(agent.pid()).as_secs_f64()
    );
}

/// A scan of everything ends when the agent has been at rest for some checks.
fn scan(agent: &Agent) {
    let began = (Instant::now(), processor(agent.pid()));
    let (mut last, mut rested) = (began.1, 0);
    while rested < 4 && began.0.elapsed() < PATIENCE {
        thread::sleep(LOOK);
        let now = processor(agent.pid());
        rested = if now - last < LOOK / 50 { rested + 1 } else { 0 };
        last = now;
    }
    row("its scan of everything", began.0.elapsed(), agent);
    println!("    processor {:.1} s for it", (last - began.1).as_secs_f64());
}

fn idle(agent: &Agent) {
    const AWHILE: Duration = Duration::from_secs(10);
    let before = processor(agent.pid());
    thread::sleep(AWHILE);
    let used = processor(agent.pid()) - before;
    println!(
        "    at rest {} ms of processor in {} s",
        used.as_millis(),
        AWHILE.as_secs()
    );
}

/// Returns once `reached` gives `goal`; ends the measurement where it stays behind without moving.
fn until(goal: usize, reached: impl Fn() -> usize) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = reached();
        if now >= goal {
            return;
        }
        if now != last {
            (last, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "stuck at {now} of {goal}");
        thread::sleep(LOOK);
    }
}

fn kibibytes(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Of all its threads, as user and in the kernel.
fn processor(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10) // a hundred a second
}
