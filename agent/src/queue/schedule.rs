//! How many jobs to fetch for a link, given what is under way on it. Pure.
//!
//! Small files go many at a time, so that a round trip is shared; large ones few at a time, so that each gets on.
//! The two are counted apart: a large file never holds up a small one.

/// How many transfers, by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)] // the classes themselves
pub struct Load {
    pub small: usize,
    pub large: usize,
}

/// The most that are under way on one link: so many small ones that, while some are synced and answered together, others
/// are read and sent.
pub const MOST: Load = Load {
    small: 1000,
    large: 2,
};

/// How many more to fetch when `under_way` are open and the receiver takes `max_open` transfers in all.
///
/// Small ones are fetched once half of their room is free, in one query instead of one for each that ends. Where
/// `max_open` is tight, one place is left to large ones.
pub fn room(under_way: Load, max_open: usize) -> Load {
    let most_small = MOST.small.min(max_open.saturating_sub(1).max(1));
    let free = max_open.saturating_sub(under_way.small.saturating_add(under_way.large));
    let small = most_small.saturating_sub(under_way.small);
    let small = if small.saturating_mul(2) >= most_small {
        small.min(free)
    } else {
        0
    };
    let large = MOST.large.saturating_sub(under_way.large).min(free - small);
    Load { small, large }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fetches_small_ones_by_the_half() {
        for (under_way, max_open, fetched) in [
            ((0, 0), 2000, (1000, 2)),
            ((500, 0), 2000, (500, 2)),
            ((501, 0), 2000, (0, 2)),
            ((1000, 2), 2000, (0, 0)),
            ((0, 2), 2000, (1000, 0)),
            ((0, 0), 10, (9, 1)),
            ((0, 2), 10, (8, 0)),
            ((0, 0), 1, (1, 0)),
            ((0, 0), 0, (0, 0)),
            ((1200, 9), 10, (0, 0)),
        ] {
            let load = |(small, large)| Load { small, large };
            assert_eq!(
                room(load(under_way), max_open),
                load(fetched),
                "{under_way:?} of {max_open}"
            );
        }
    }

    proptest! {
        #[test]
        fn exceeds_no_bound_and_starves_no_class(small in 0usize..1200, large in 0usize..4, max_open in 2usize..1600) {
            let more = room(Load { small, large }, max_open);
            prop_assert!(more == Load::default() || small + large + more.small + more.large <= max_open);
            prop_assert!(more.small == 0 || small + more.small <= MOST.small);
            prop_assert!(more.large == 0 || large + more.large <= MOST.large);
            if small == 0 && large < max_open {
                prop_assert!(more.small > 0);
            }
            if large == 0 && small < MOST.small.min(max_open) {
                prop_assert!(more.large > 0);
            }
        }
    }
}
