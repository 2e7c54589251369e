//! What runs while it is measured: started in its network, ended within a deadline, and what it spent.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    param::clock_ticks_per_second,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

use crate::{failed, namespace::Namespace, too_long};

/// What an ended process may take until it is gone.
const ENDING: Duration = Duration::from_secs(20);

/// What one side has spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time in seconds, user and system, children that ended included.
    pub cpu: f64,
    /// Peak resident memory in MiB of its largest process.
    pub peak: f64,
}

impl Usage {
    /// Both together: time adds up, the larger peak counts.
    pub fn with(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            peak: self.peak.max(other.peak),
        }
    }
}

/// A child process; killed when dropped.
pub struct Running {
    child: Child,
    what: String,
    said: File,
    ended: bool,
}

impl Running {
    /// Starts `command` in `network` (None: where we are). What it says on stderr is kept for errors.
    pub fn start(mut command: Command, network: Option<&Namespace>) -> io::Result<Self> {
        let what = command.get_program().to_string_lossy().into_owned();
        let said = tempfile::tempfile()?;
        command.stderr(said.try_clone()?);
        // SAFETY: prctl with these arguments only sets a flag of the new process; it allocates and locks nothing.
        unsafe {
            // However we end, it ends with us.
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut start = || command.spawn();
        let child = match network {
            Some(network) => network.within(start)?,
            None => start(),
        };
        let child = child.map_err(|e| failed(format!("{what}: {e}")))?;
        Ok(Self {
            child,
            what,
            said,
            ended: false,
        })
    }

    /// Its pipes, where it was given any.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Processor time in seconds that it has spent so far, to a hundredth.
    pub fn cpu(&self) -> io::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        cpu_of(&stat).ok_or_else(|| failed(format!("/proc: {stat}")))
    }

    /// How often its threads went to sleep of their own will so far: each time, something woke them again.
    pub fn switches(&self) -> io::Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // One that ended meanwhile counts no more.
            let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            sum += line.and_then(|l| l.trim().parse().ok()).unwrap_or(0);
        }
        Ok(sum)
    }

    /// What it has spent so far, children of it that live still left out.
    pub fn used(&self) -> io::Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        let peak = kib.ok_or_else(|| failed(format!("{} has no peak memory", self.what)))? / 1024.0;
        Ok(Usage {
            cpu: self.cpu()?,
            peak,
        })
    }

    /// Asks it to end, and what it spent in all, children that it waited for included.
    pub fn stop(mut self) -> io::Result<Usage> {
        kill_process(self.pid(), Signal::TERM)?;
        self.reap(ENDING).map(|(_, usage)| usage)
    }

    /// Waits until it ends by itself, with success, and says what it spent in all.
    pub fn finish(mut self, most: Duration) -> io::Result<Usage> {
        let (status, usage) = self.reap(most)?;
        match status {
            0 => Ok(usage),
            _ => Err(failed(format!("{} failed: {}", self.what, said(&mut self.said)))),
        }
    }

    /// Whether it has ended by itself; an agent that did is no use.
    pub fn lives(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                self.ended = true;
                let said = said(&mut self.said);
                Err(failed(format!("{} ended, {status}: {said}", self.what)))
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn reap(&mut self, most: Duration) -> io::Result<(i32, Usage)> {
        let handle = pidfd_open(self.pid(), PidfdFlags::empty())?;
        let limit = Timespec {
            tv_sec: most.as_secs() as i64,
            tv_nsec: most.subsec_nanos().into(),
        };
        if poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit))? == 0 {
            let _ = self.child.kill();
            return Err(too_long(&self.what));
        }
        let mut status = 0;
        // SAFETY: rusage is plain numbers, for which all zeros is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both point to values of ours that outlive the call.
        let ended = unsafe { libc::wait4(self.child.id() as i32, &mut status, 0, &mut usage) };
        if ended < 0 {
            return Err(io::Error::last_os_error());
        }
        self.ended = true;
        let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
        let usage = Usage {
            cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            peak: usage.ru_maxrss as f64 / 1024.0,
        };
        Ok((status, usage))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end; its standard output.
pub fn output(command: &mut Command) -> io::Result<String> {
    let ran = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(format!("{command:?}: {e}")))?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        return Err(failed(format!("{command:?}: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}

/// The end of what was printed.
fn said(to: &mut File) -> String {
    let mut text = Vec::new();
    let _ = to.rewind().and_then(|()| to.read_to_end(&mut text));
    let end = &text[text.len().saturating_sub(2000)..];
    String::from_utf8_lossy(end).trim().to_owned()
}

/// Calls `look` until it finds something, for half a minute at most.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        if let Some(found) = look()? {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(too_long(what))
}

/// Where a program is, in PATH or where daemons are.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into(), Path::new("/sbin").into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// User and system time, also of children waited for, from the text of `/proc/PID/stat`. The name in it may hold
/// anything.
fn cpu_of(stat: &str) -> Option<f64> {
    let after = &stat[stat.rfind(')')? + 1..];
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|f| f.parse::<f64>().ok());
    Some(ticks.sum::<Option<f64>>()? / clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) b) R 1 2 3 4 5 6 7 8 9 10 100 20 3 1 20 0 1 0 55";
        let ticks = clock_ticks_per_second() as f64;
        assert_eq!(cpu_of(stat), Some(124.0 / ticks));
        assert_eq!(cpu_of("7 (a) R 1"), None);
    }

    #[test]
    fn a_child_tells_what_it_spent_and_why_it_failed() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            Running::start(command, None).unwrap()
        };
        let usage = shell("exit 0").finish(ENDING).unwrap();
        assert!(usage.peak > 0.0);
        let error = shell("echo no such luck >&2; exit 3").finish(ENDING).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
        assert!(shell("exec sleep 100").stop().is_ok());
    }
}
