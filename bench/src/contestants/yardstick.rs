//! The yardstick as a contestant: both of its programs run, and are told what to send.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{ChildStdin, ChildStdout, Command, Stdio},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Contestant, PATIENCE, Session, Site};
use crate::{
    failed,
    process::{Running, Usage, eventually},
    too_long,
    work::Work,
};

/// With buffered writes, or large files written past the page cache.
pub(super) struct Yardstick {
    /// The latter.
    pub direct: bool,
}

impl Contestant for Yardstick {
    fn name(&self) -> &'static str {
        if self.direct {
            "yardstick, direct"
        } else {
            "yardstick"
        }
    }

    fn missing(&self) -> Option<String> {
        let program = program();
        (!program.is_file()).then(|| format!("no {}: build the whole of this package", program.display()))
    }

    fn is_ours(&self) -> bool {
        true
    }

    fn does(&self, work: Work) -> bool {
        match work {
            Work::Large => true,
            Work::Small | Work::Latency | Work::Wide => !self.direct,
            Work::Beside | Work::Resume | Work::Idle => false,
        }
    }

    fn begin<'a>(&self, site: &'a Site) -> io::Result<Box<dyn Session + 'a>> {
        let card = site.root.join("card");
        let mut receiver = Command::new(program());
        receiver
            .arg("receive")
            .arg(site.inbox())
            .arg(site.receiver_ip().to_string())
            .arg(&card);
        if self.direct {
            receiver.arg("direct");
        }
        let mut sender = Command::new(program());
        sender.arg("send").arg(site.outbox()).arg(&card);
        sender.stdin(Stdio::piped()).stdout(Stdio::piped());
        if site.wide.is_some() {
            for side in [&mut receiver, &mut sender] {
                side.arg("auto"); // only the kernel knows how large buffers have to be there
            }
        }
        let receiver = Running::start(receiver, site.receiver())?;
        eventually("the yardstick listens", || Ok(card.exists().then_some(())))?;
        let mut sender = Running::start(sender, site.sender())?;
        let pipes = sender.child().stdin.take().zip(sender.child().stdout.take());
        let (ask, answer) = pipes.ok_or_else(|| failed("no pipes"))?;
        let mut asked = Asked {
            sides: [sender, receiver],
            ask,
            answer: BufReader::new(answer),
        };
        asked.hear()?; // it is connected
        Ok(Box::new(asked))
    }
}

struct Asked {
    sides: [Running; 2],
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Asked {
    fn hear(&mut self) -> io::Result<()> {
        let limit = Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        if poll(
            &mut [PollFd::new(self.answer.get_ref(), PollFlags::IN)],
            Some(&limit),
        )? == 0
        {
            return Err(too_long("the yardstick"));
        }
        let mut line = String::new();
        match self.answer.read_line(&mut line)? {
            0 => self
                .sides
                .iter_mut()
                .try_for_each(Running::lives)
                .and(Err(failed("the yardstick ended"))),
            _ => Ok(()),
        }
    }
}

impl Session for Asked {
    fn push(&mut self, name: &str) -> Option<io::Result<()>> {
        Some(writeln!(self.ask, "{name}").and_then(|()| self.hear()))
    }

    fn syncs(&self) -> bool {
        true
    }

    fn cpu(&self) -> io::Result<[f64; 2]> {
        Ok([self.sides[0].cpu()?, self.sides[1].cpu()?])
    }

    fn end(self: Box<Self>) -> io::Result<[Usage; 2]> {
        Ok([self.sides[0].used()?, self.sides[1].used()?])
    }
}

fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("yardstick")
}
