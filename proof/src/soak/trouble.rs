//! What befalls the agents and their wires, one thing at a time.

use std::thread;

use rustix::process::Signal;

use super::Soak;
use crate::harness::{Fault, Toward};

/// How the agent ends whose job list finds no room.
const DISK: i32 = 74;

impl Soak<'_> {
    /// One trouble; without `kills` only such as end nobody.
    pub(super) fn trouble(&mut self, kills: bool) {
        let kind = if kills {
            self.chance.below(100)
        } else {
            70 + self.chance.below(30)
        };
        thread::sleep(self.chance.pause(1, 250));
        self.of_the_field();
        match kind {
            0..=39 => self.kill_one(),
            40..=54 => self.kill_all(),
            55..=69 => self.kill_while_starting(),
            70..=77 => self.cut(),
            78..=84 => self.cut_later(),
            85..=90 => self.stall(),
            91..=94 => self.stop(),
            95..=97 => self.jump(),
            _ => self.fill_a_disk(),
        }
    }

    /// Ends every trouble that may still come.
    pub(super) fn calm(&mut self) {
        for wire in &self.world.wires {
            wire.set(Toward::Listener, Fault::None);
            wire.set(Toward::Dialler, Fault::None);
        }
    }

    fn kill_one(&mut self) {
        let index = self.any_agent();
        self.kill(index);
        if self.chance.percent(30) {
            self.drop_one(); // while nobody watches
        }
        self.start(index);
    }

    fn kill_all(&mut self) {
        let all = 0..self.world.agents.len();
        all.clone().for_each(|index| self.kill(index));
        let mut order: Vec<usize> = all.collect();
        if self.chance.percent(50) {
            order.reverse();
        }
        order.into_iter().for_each(|index| self.start(index));
    }

    /// Killed, and again while it recovers.
    fn kill_while_starting(&mut self) {
        let index = self.any_agent();
        self.kill(index);
        self.world.agents[index].spawn();
        thread::sleep(self.chance.pause(1, 80));
        self.kill(index);
        self.start(index);
    }

    fn kill(&mut self, index: usize) {
        let agent = &mut self.world.agents[index];
        if let Some(status) = agent.ended() {
            let text = format!("{} had ended by itself: {status}", agent.name);
            self.violations.push(text);
        }
        self.tally.kills += 1;
        agent.kill();
    }

    fn start(&mut self, index: usize) {
        self.world.agents[index].start();
    }

    fn cut(&mut self) {
        self.tally.cuts += 1;
        self.any_wire().cut_all();
    }

    /// A reset after some more bytes, wherever that is.
    fn cut_later(&mut self) {
        self.tally.cuts += 1;
        let (toward, after) = (self.any_direction(), self.chance.magnitude(1, 32 << 20));
        self.any_wire().set(toward, Fault::Reset(after));
    }

    /// Silence for a while, and then the rest, or the end.
    fn stall(&mut self) {
        self.tally.stalls += 1;
        let (toward, after) = (self.any_direction(), self.chance.magnitude(1, 1 << 20));
        let wire = self.any_wire();
        wire.set(toward, Fault::Stall(after));
        self.drop_one();
        thread::sleep(self.chance.pause(50, 1_500));
        if self.chance.percent(50) {
            wire.cut_all();
        }
        wire.set(toward, Fault::None);
    }

    fn stop(&mut self) {
        self.tally.stops += 1;
        let index = self.any_agent();
        self.world.agents[index].signal(Signal::STOP);
        self.drop_one();
        thread::sleep(self.chance.pause(20, 1_000));
        self.world.agents[index].signal(Signal::CONT);
    }

    /// A wall clock goes wrong, by a second or a year, or right again.
    fn jump(&mut self) {
        if self.world.clocks.is_empty() {
            return self.cut();
        }
        self.tally.jumps += 1;
        let ahead = self.chance.magnitude(1, 366 * 24 * 3600) as i64;
        let ahead = match self.chance.below(3) {
            0 => ahead,
            1 => -ahead,
            _ => 0,
        };
        let clock = &self.world.clocks[self.chance.index(self.world.clocks.len())];
        clock.set(ahead).expect("a clock's file");
    }

    /// An agent whose state has no room ends with a clear error, one whose inbox has none goes on.
    fn fill_a_disk(&mut self) {
        if self.world.disks.is_empty() {
            return self.cut();
        }
        self.tally.full_disks += 1;
        let at = self.chance.index(self.world.disks.len());
        let disk = &self.world.disks[at];
        let (index, holds_state) = (disk.index, self.world.agents[disk.index].state == disk.folder);
        disk.disk.fill();
        self.drop_one();
        thread::sleep(self.chance.pause(50, 1_000));
        let agent = &mut self.world.agents[index];
        if !holds_state {
            self.world.disks[at].disk.free();
            return;
        }
        // It may be about to end: what ends it is not waited for.
        let ended = agent.ended();
        if ended.is_some_and(|status| status.code() != Some(DISK)) {
            let text = format!("{} ended for want of room with {ended:?}", agent.name);
            self.violations.push(text);
        }
        agent.kill();
        self.world.disks[at].disk.free();
        self.start(index);
    }

    fn any_agent(&mut self) -> usize {
        self.chance.index(self.world.agents.len())
    }

    fn any_wire(&mut self) -> std::sync::Arc<crate::harness::Proxy> {
        self.world.wires[self.chance.index(self.world.wires.len())].clone()
    }

    fn any_direction(&mut self) -> Toward {
        if self.chance.percent(50) {
            Toward::Listener
        } else {
            Toward::Dialler
        }
    }
}
