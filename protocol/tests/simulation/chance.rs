//! Chance from a seed, so that every run can be run again; and a budget of faults, so that every run ends.

pub struct Chance {
    state: u64,
    faults: u32,
}

impl Chance {
    pub fn new(seed: u64, faults: u32) -> Self {
        Self { state: seed, faults }
    }

    /// A number below `end` (splitmix64).
    pub fn below(&mut self, end: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Something goes wrong now: once in `n` times while the budget lasts.
    pub fn fault(&mut self, n: usize) -> bool {
        let fault = self.faults > 0 && self.one_in(n);
        self.faults -= u32::from(fault);
        fault
    }
}
