//! The highest memory of both agents while one large file goes across.
//!
//! `memory [DROPWIRE [GIBIBYTES]]`. The file has holes, so that it is quick to make; every byte is sent all the same.

use std::{fs, io, time::Duration, time::Instant};

use dropwire_bench::{
    choose_program,
    harness::{files, within},
    quiet_pair,
};

const DEADLINE: Duration = Duration::from_secs(3600);

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = choose_program(arguments.next());
    let gibibytes: u64 = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(4);
    let size = gibibytes << 30;
    println!("{} with one file of {gibibytes} GiB", program.display());
    let pair = quiet_pair();
    let aside = pair.laptop.root.join("aside");
    files::sparse(&aside, size, 64 << 20)?;
    let digest = files::sha256(&aside)?;
    let start = Instant::now();
    fs::rename(&aside, pair.laptop.outbox.join("large"))?;
    let arrived = pair.office.inbox.join("large");
    within(DEADLINE, "the file arrived", || arrived.exists().then_some(()));
    let taken = start.elapsed().as_secs_f64();
    println!(
        "arrived after {taken:.1} s, {:.0} MB/s",
        size as f64 / 1e6 / taken
    );
    for agent in [&pair.laptop, &pair.office] {
        match agent.peak_memory_kib() {
            Some(peak) => println!("{:<7} peak {:.1} MiB", agent.name, peak as f64 / 1024.0),
            None => println!("{:<7} peak unknown: this system does not tell", agent.name),
        }
    }
    assert_eq!(
        files::sha256(&arrived)?,
        digest,
        "the file arrived with other bytes"
    );
    println!("digest equal: {digest}");
    Ok(())
}
