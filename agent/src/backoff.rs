//! How long to wait before another attempt: exponential, capped, with full jitter. Pure: the randomness is passed in.

use std::time::Duration;

/// The wait after failed attempt number `attempt` (counted from 0): anywhere from zero to `first` doubled `attempt`
/// times, never above `max`. The same arguments give the same wait; different seeds spread evenly.
pub fn delay(first: Duration, max: Duration, attempt: u32, seed: u64) -> Duration {
    let doubled = 2u32
        .checked_pow(attempt)
        .map_or(Duration::MAX, |times| first.saturating_mul(times));
    let most = doubled.min(max).as_nanos().min(u128::from(u64::MAX)) as u64;
    let part = u128::from(mix(seed ^ u64::from(attempt).rotate_left(32)));
    Duration::from_nanos(((u128::from(most) * part) >> 64) as u64)
}

/// SplitMix64's finisher: neighbouring seeds land far apart.
fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_above_the_cap(first in 0..100_000u64, max in 0..1_000_000u64, attempt: u32, seed: u64) {
            let [first, max] = [first, max].map(Duration::from_millis);
            let cap = if attempt < 32 { max.min(first.saturating_mul(1u32 << attempt)) } else { max };
            prop_assert!(delay(first, max, attempt, seed) <= cap);
        }
    }

    #[test]
    fn jitter_spreads_over_the_whole_range() {
        let [first, max] = [Duration::from_secs(1), Duration::from_secs(300)];
        for attempt in [0, 5, 40] {
            let cap = if attempt == 0 {
                first
            } else if attempt == 5 {
                first * 32
            } else {
                max
            };
            let waits: Vec<_> = (0..1000).map(|seed| delay(first, max, attempt, seed)).collect();
            let mean = waits.iter().sum::<Duration>() / 1000;
            assert!(mean > cap * 4 / 10 && mean < cap * 6 / 10, "{attempt}: {mean:?}");
            assert!(waits.iter().any(|w| *w < cap / 10) && waits.iter().any(|w| *w > cap * 9 / 10));
        }
    }
}
