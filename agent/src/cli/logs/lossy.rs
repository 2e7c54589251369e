//! Lines on their way to a log that may be full, closed, or not read by anybody.
//!
//! Whoever logs hands a line over and goes on. A thread of its own writes the lines, and waits where the log lets it
//! wait. Lines that do not fit into the queue meanwhile, and lines whose writing failed, are lost and counted; one line
//! says how many as soon as the log can be written again.

use std::{
    io::{self, ErrorKind, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use crate::{failpoints, poison::Unpoisoned as _};

/// Most bytes of lines that wait.
const ROOM: usize = 256 << 10;
/// What a line takes beside its bytes.
const LINE: usize = 64;
/// Most bytes written at once, unless a line is longer.
const TOGETHER: usize = 64 << 10;
/// How long a line waits for others that may follow it: a burst of them costs few writes.
const GATHER: Duration = Duration::from_millis(10);
/// Pause before a log that takes nothing just now (a full pipe that does not block) is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// The way to one log; clones are the same one.
#[derive(Clone)]
pub(super) struct Lossy {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Box<[u8]>>,
    /// What these take.
    bytes: usize,
    /// Lines behind those that wait, for which there was no room.
    lost: u64,
    /// Lines are being written.
    at_work: bool,
}

impl Lossy {
    /// Starts writing to `log`; `lost` makes the line that stands for so many lost ones. Where no thread can be had, all
    /// lines are lost.
    pub(super) fn start(log: impl Write + Send + 'static, lost: fn(u64) -> String) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let writer = Writer {
            log,
            lost,
            unsaid: 0,
            torn: false,
        };
        let of_thread = shared.clone();
        let spawned = thread::Builder::new().name("log".into()).spawn(move || {
            let_write_in_background();
            writer.run(&of_thread);
        });
        drop(spawned);
        Self { shared }
    }

    /// Hands over a line. Never waits for the log.
    pub(super) fn line(&self, line: &[u8]) {
        let mut state = self.shared.lock();
        let bytes = line.len() + LINE;
        // Behind a lost line comes no other: the count says where they are missing.
        let fits = state.lost == 0 && state.bytes + bytes <= ROOM;
        let is_first = state.lost == 0 && state.waiting.is_empty();
        if fits || failpoints::mutant("log-room") {
            state.bytes += bytes;
            state.waiting.push(line.into());
        } else {
            state.lost += 1;
        }
        drop(state);
        if is_first {
            self.shared.changed.notify_all(); // a system call; behind others the thread is awake
        }
    }

    /// Waits until all lines are written or lost, at most for `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let busy = |state: &mut State| state.at_work || !state.waiting.is_empty();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), patience, busy);
        drop(waited);
    }
}

/// What tracing writes at once is one line.
impl Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }

    /// The next lines, and how many were lost behind them.
    fn next(&self) -> (Vec<Box<[u8]>>, u64) {
        let mut state = self.lock();
        state.at_work = false;
        self.changed.notify_all();
        let nothing = |state: &mut State| state.waiting.is_empty() && state.lost == 0;
        let waited = self.changed.wait_while(state, nothing);
        drop(waited.unpoisoned());
        thread::sleep(GATHER);
        let mut state = self.lock();
        state.at_work = true;
        state.bytes = 0;
        (mem::take(&mut state.waiting), mem::take(&mut state.lost))
    }
}

/// The thread's own.
struct Writer<W> {
    log: W,
    lost: fn(u64) -> String,
    /// Lost lines of which the log does not tell yet.
    unsaid: u64,
    /// The log ends within a line.
    torn: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self, shared: &Shared) {
        loop {
            let (lines, lost) = shared.next();
            let mut lines = &lines[..];
            while !lines.is_empty() {
                let (now, rest) = lines.split_at(fitting(lines, TOGETHER).max(1));
                if self.says_lost() {
                    self.write_all(now);
                } else {
                    self.unsaid += now.len() as u64;
                }
                lines = rest;
            }
            self.unsaid += lost;
            if lost > 0 {
                self.says_lost();
            }
        }
    }

    /// Tells of lost lines, if there are any. False: the log takes nothing.
    fn says_lost(&mut self) -> bool {
        if self.unsaid > 0 {
            let line = (self.lost)(self.unsaid);
            if self.write(line.as_bytes()) == line.len() {
                self.unsaid = 0;
            }
        }
        self.unsaid == 0
    }

    /// Writes these lines at once. Those that are not written as a whole count as lost.
    fn write_all(&mut self, lines: &[Box<[u8]>]) {
        let written = self.write(&lines.concat());
        let whole = fitting(lines, written);
        self.unsaid += (lines.len() - whole) as u64;
        if written > 0 {
            // A line is torn that was begun and not ended.
            self.torn = written > lines[..whole].iter().map(|line| line.len()).sum();
        }
    }

    /// Writes lines, on lines of their own; says how many bytes of them.
    fn write(&mut self, lines: &[u8]) -> usize {
        if self.torn && self.put(b"\n") == 0 {
            return 0;
        }
        self.torn = false;
        let written = self.put(lines);
        self.torn = 0 < written && written < lines.len();
        written
    }

    /// Says how many bytes were written.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.log.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Err(_) => break,
            }
        }
        written
    }
}

/// How many lines there are in so many bytes.
fn fitting(lines: &[Box<[u8]>], most: usize) -> usize {
    let ends = lines.iter().scan(0, |end, line| {
        *end += line.len();
        Some(*end)
    });
    ends.take_while(|end| *end <= most).count()
}

/// A terminal may stop the whole process when it writes from the background (`stty tostop`), unless the thread that
/// writes has that signal blocked.
fn let_write_in_background() {
    #[cfg(unix)]
    // SAFETY: the set is initialised by sigemptyset before it is read, and only this thread's mask changes.
    unsafe {
        let mut signals = mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A log that takes as many bytes as it is told to, fails at a 0, and tells what was written.
    struct SlowLog {
        may: Receiver<usize>,
        left: usize,
        written: Sender<String>,
    }

    impl Write for SlowLog {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                self.left = self.may.recv().unwrap_or(0);
            }
            if self.left == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = self.left.min(bytes.len());
            self.left -= taken;
            let _ = self
                .written
                .send(String::from_utf8_lossy(&bytes[..taken]).into_owned());
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log() -> (Lossy, Sender<usize>, Receiver<String>) {
        let ((go_on, may), (written, lines)) = (channel(), channel());
        let told = SlowLog {
            may,
            left: 0,
            written,
        };
        let lossy = Lossy::start(told, |n| format!("lost {n}\n"));
        (lossy, go_on, lines)
    }

    const PLENTY: usize = 1 << 30;

    #[test]
    fn a_log_that_nobody_reads_costs_lines_and_says_how_many() {
        let (lossy, go_on, lines) = log();
        let line = vec![b'x'; 1000];
        let count = 1000;
        for _ in 0..count {
            lossy.line(&line); // returns, though nothing is read
        }
        lossy.flush(Duration::from_millis(1));
        go_on.send(PLENTY).unwrap();
        lossy.flush(PATIENCE);
        // A count stands wherever lines are missing.
        let writes: Vec<String> = lines.try_iter().collect();
        let (all, writes) = (writes.concat(), writes.len());
        let counts = all.split("lost ").skip(1);
        let lost = counts.map(|count| count.split('\n').next().unwrap().parse::<usize>().unwrap());
        let kept = all.matches('x').count() / line.len();
        assert_eq!(lost.sum::<usize>() + kept, count);
        assert!(kept <= 2 * ROOM / 1000, "{kept} lines waited");
        assert!(kept >= ROOM / 2000, "{kept} lines waited");
        assert!(writes <= 2 * ROOM / TOGETHER + 3, "{writes} writes");
        lossy.line(b"after\n");
        lossy.flush(PATIENCE);
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), ["after\n"]);
    }

    /// Of three lines that are written at once the log takes the first and some of the second.
    #[test]
    fn of_lines_written_together_those_count_as_lost_that_are_not_whole() {
        let ((go_on, may), (written, lines)) = (channel(), channel());
        let log = SlowLog {
            may,
            left: 0,
            written,
        };
        let mut writer = Writer {
            log,
            lost: |n| format!("lost {n}\n"),
            unsaid: 0,
            torn: false,
        };
        for take in [3, 0, PLENTY] {
            go_on.send(take).unwrap();
        }
        writer.write_all(&["a\n", "b\n", "c\n"].map(|line| line.as_bytes().into()));
        assert!(writer.torn && writer.says_lost());
        writer.write_all(&["d\n"].map(|line| line.as_bytes().into()));
        assert_eq!(lines.try_iter().collect::<String>(), "a\nb\nlost 2\nd\n");
    }

    #[test]
    fn a_log_that_fails_costs_lines_and_says_how_many_once_it_can_be_written() {
        let (lossy, go_on, lines) = log();
        for take in [0, 0, 2, 0, PLENTY] {
            go_on.send(take).unwrap();
        }
        for line in ["a\n", "b\n", "c\n", "d\n"] {
            lossy.line(line.as_bytes());
            lossy.flush(PATIENCE);
        }
        // `a` met a 0, `b` too; in `c`'s place the count was begun and torn.
        assert_eq!(lines.try_iter().collect::<String>(), "lo\nlost 3\nd\n");
    }
}
