//! What the field does to the agents beside all other trouble.

use std::{
    fs::{self, File},
    io,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use super::Soak;
use crate::{
    field::Field,
    harness::{Agent, files, settings::Settings},
};

impl Soak<'_> {
    /// One turn of whatever surrounds the agents.
    pub(super) fn of_the_field(&mut self) {
        match self.plan.field.map(|entered| entered.field) {
            Some(Field::Sweeper) => self.sweep(),
            Some(Field::LateTimes) => self.set_late_times(),
            Some(Field::SecondAgent) if self.chance.percent(10) => self.try_second_agent(),
            Some(Field::FullState) if self.chance.percent(10) => self.fill_the_state(),
            _ => {}
        }
    }

    /// Some of the files that are arriving go, those in unpacked folders too.
    fn sweep(&mut self) {
        let inboxes = self.world.agents.iter().map(|agent| agent.inbox.clone());
        for inbox in inboxes.collect::<Vec<_>>() {
            files::walk(&inbox.join(files::OWN).join("partial"), &mut |partial| {
                if self.chance.percent(50) && fs::remove_file(partial).is_ok() {
                    self.tally.swept += 1;
                }
                true
            });
        }
    }

    /// Producers set the times of what they wrote, if it is still there.
    fn set_late_times(&mut self) {
        let past = Duration::from_secs(self.chance.magnitude(1, 1 << 30));
        let time = SystemTime::now()
            .checked_sub(past)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let set = |path: &Path| -> io::Result<()> { files::set_modified(&File::open(path)?, time) };
        for path in std::mem::take(&mut self.late) {
            self.tally.late += u64::from(set(&path).is_ok());
        }
    }

    /// An agent with another key gets the folders of one that runs, for a while.
    fn try_second_agent(&mut self) {
        let victim = &self.world.agents[self.chance.index(self.world.agents.len())];
        let mut second = Agent::new("second", Settings::default());
        second.outbox.clone_from(&victim.outbox);
        second.inbox.clone_from(&victim.inbox);
        second.spawn();
        self.tally.seconds += 1;
        let pause = self.chance.pause(200, 2_000);
        self.drop_one();
        thread::sleep(pause);
        second.kill();
    }

    /// The job list finds no room for a while; its agent waits for it.
    fn fill_the_state(&mut self) {
        let states = self.world.disks.iter().filter(|disk| {
            let agent = &self.world.agents[disk.index];
            agent.state == disk.folder
        });
        let Some(disk) = states.map(|disk| disk.disk.clone()).next() else {
            return;
        };
        self.tally.full_disks += 1;
        disk.fill();
        self.drop_one();
        thread::sleep(self.chance.pause(50, 2_000));
        disk.free();
    }
}
