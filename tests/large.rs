//! One large file: equal at the end, and neither side held it in memory.

use std::{fs, process::Command, time::Duration};

use crate::harness::{Pair, files, skip, within};

const SIZE: u64 = 1 << 30;
const MOST_MEMORY_KIB: u64 = 64 * 1024;

#[test]
fn a_gibibyte_in_bounded_memory() {
    let pair = Pair::linked();
    let aside = pair.laptop.root.join("aside");
    files::sparse(&aside, SIZE, 32 << 20).expect("the file");
    let digest = files::sha256(&aside).expect("its digest");
    fs::rename(&aside, pair.laptop.outbox.join("large")).expect("moved in");
    let arrived = pair.office.inbox.join("large");
    within(Duration::from_secs(180), "the large file arrived", || {
        arrived.exists().then_some(())
    });
    assert_eq!(fs::metadata(&arrived).expect("it is there").len(), SIZE);
    assert_eq!(files::sha256(&arrived).expect("readable"), digest);
    pair.laptop.delivers(1);
    assert_eq!(pair.laptop.jobs()[0]["sha256"], digest.as_str());
    for agent in [&pair.laptop, &pair.office] {
        match agent.peak_memory_kib() {
            Some(peak) => assert!(peak < MOST_MEMORY_KIB, "{} peaked at {peak} KiB", agent.name),
            None => skip("a_gibibyte_in_bounded_memory", "this system tells no peak memory"),
        }
    }
}

/// As on FAT, with its 4 GiB.
#[test]
fn what_the_inbox_cannot_hold_is_declined_and_not_sent_again() {
    let pair = Pair::linked();
    let limit = Command::new("prlimit")
        .args(["--pid", &pair.office.pid().to_string(), "--fsize=3145728"])
        .status();
    if !limit.is_ok_and(|status| status.success()) {
        return skip(
            "what_the_inbox_cannot_hold_is_declined_and_not_sent_again",
            "prlimit is not there",
        );
    }
    pair.laptop.drop_file("too large", &files::noise(1, 6 << 20));
    within(
        Duration::from_secs(60),
        "it was declined without its bytes",
        || {
            let jobs = pair.laptop.jobs();
            let error = jobs.first()?["error"].as_str()?;
            error.contains("takes no file of 6.0 MiB").then_some(())
        },
    );
    let partials = pair.office.inbox.join(".dropwire/partial");
    assert_eq!(fs::read_dir(partials).expect("it is there").count(), 0);
    pair.laptop.drop_file("small enough", &files::noise(2, 2 << 20));
    let arrived = pair.office.inbox.join("small enough");
    within(Duration::from_secs(60), "a smaller one arrives", || {
        arrived.exists().then_some(())
    });
}
