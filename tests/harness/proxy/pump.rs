//! Moves the bytes of one direction, each as the fault of the moment wants it.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{
        MutexGuard,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use super::{Fault, LOOK, Lane, Plan, Shared, lock};

/// One direction of one connection.
pub(super) struct Pump<'a> {
    pub(super) lane: &'a Lane,
    pub(super) shared: &'a Shared,
    pub(super) born: u64,
    pub(super) dead: &'a AtomicBool,
    pub(super) from: &'a TcpStream,
    pub(super) to: &'a TcpStream,
}

impl Pump<'_> {
    /// Passes bytes on until an orderly end; anything else is an error.
    pub(super) fn run(&self) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = self.patiently(|| (&*self.from).read(&mut buffer))?;
            if length == 0 {
                return self.to.shutdown(Shutdown::Write);
            }
            self.pass(&mut buffer[..length])?;
        }
    }

    /// Passes `bytes` on, piece by piece, each as the fault of the moment wants it.
    fn pass(&self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let step = self.next_step(bytes.len());
            match step {
                Step::Hold => thread::sleep(LOOK),
                Step::Reset => {
                    reset(self.from);
                    reset(self.to);
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Step::Close => {
                    let _ = self.from.shutdown(Shutdown::Both);
                    let _ = self.to.shutdown(Shutdown::Both);
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Step::Pass { length, flip } => {
                    let (piece, rest) = bytes.split_at_mut(length);
                    if flip {
                        piece[0] ^= 0xFF;
                    }
                    self.write(piece)?;
                    bytes = rest;
                }
            }
            self.wanted()?;
        }
        Ok(())
    }

    fn next_step(&self, available: usize) -> Step {
        let mut plan = lock(&self.lane.fault);
        let left = |at: u64, passed: u64| usize::try_from(at - passed.min(at)).unwrap_or(usize::MAX);
        let mut flip = false;
        let length = match plan.fault {
            Fault::None => available,
            Fault::Slice(most) => available.min(most.max(1)),
            Fault::Delay(pause) => {
                drop(plan);
                thread::sleep(pause);
                plan = lock(&self.lane.fault);
                available
            }
            Fault::Reset(at) | Fault::Close(at) | Fault::Stall(at) | Fault::Flip(at)
                if left(at, plan.passed) > 0 =>
            {
                available.min(left(at, plan.passed))
            }
            Fault::Reset(_) => {
                self.fire(&mut plan, Fault::None);
                return Step::Reset;
            }
            Fault::Close(_) => {
                self.fire(&mut plan, Fault::None);
                return Step::Close;
            }
            Fault::Stall(_) => {
                if !plan.fired {
                    self.fire(&mut plan, Fault::Stall(0));
                }
                return Step::Hold;
            }
            Fault::Flip(_) => {
                self.fire(&mut plan, Fault::None);
                flip = true;
                1
            }
        };
        plan.passed = plan.passed.saturating_add(length as u64);
        Step::Pass { length, flip }
    }

    fn fire(&self, plan: &mut MutexGuard<'_, Plan>, then: Fault) {
        self.lane.fired.fetch_add(1, SeqCst);
        **plan = Plan {
            fault: then,
            passed: 0,
            fired: true,
        };
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.patiently(|| (&*self.to).write(bytes))?;
            self.lane.passed.fetch_add(written as u64, SeqCst);
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn patiently(&self, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
        loop {
            match call() {
                Err(e) if matches!(e.kind(), WouldBlock | TimedOut | Interrupted) => self.wanted()?,
                other => return other,
            }
        }
    }

    fn wanted(&self) -> io::Result<()> {
        let cut = self.shared.generation.load(SeqCst) != self.born;
        if cut || self.dead.load(SeqCst) || self.shared.ended.load(SeqCst) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

enum Step {
    Pass { length: usize, flip: bool },
    Hold,
    Reset,
    Close,
}

/// Closing it from now on sends RST instead of FIN.
pub(super) fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
