//! One large file: equal at the end, and neither side held it in memory.

use std::{fs, time::Duration};

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
