//! Two honest agents with both machines, over a simulated wire: whatever goes wrong around them, neither calls the other
//! a liar, every wait ends, and every drop lies once and whole in the other's inbox, with its receipt.

#![allow(unreachable_pub)] // all of it is one program

mod chance;
mod storage;
mod world;

use proptest::prelude::*;
use world::World;

fn size() -> impl Strategy<Value = usize> {
    const EAGER: usize = dropwire_protocol::message::MAX_EAGER as usize;
    prop_oneof![
        3 => 0..5000usize,
        2 => Just(0),
        1 => Just(EAGER),
        1 => Just(EAGER + 1),
        2 => EAGER..12 * EAGER,
    ]
}

fn files() -> impl Strategy<Value = Vec<(bool, usize, bool)>> {
    proptest::collection::vec((any::<bool>(), size(), any::<bool>()), 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_nothing_going_wrong(seed: u64, max_open in 1..8u32, files in files()) {
        World::new(seed, 0, max_open, &files).run();
    }

    #[test]
    fn with_everything_going_wrong(seed: u64, faults in 1..40u32, max_open in 1..8u32, files in files()) {
        World::new(seed, faults, max_open, &files).run();
    }
}
