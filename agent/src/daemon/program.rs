//! A program of the user's, run by the agent: it starts as from a shell, with nothing of what the agent has set for
//! itself.

use std::process::Stdio;

use tokio::process::Command;

/// `program`, to be given its arguments and started: it ends with whoever waits for it, and inherits the environment,
/// the working folder and the agent's output; but no capability, no descriptor, no ignored or blocked signal, and no
/// limit that the agent raised.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    // The service manager's words are for the agent.
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"] {
        command.env_remove(variable);
    }
    #[cfg(unix)]
    if !crate::failpoints::mutant("program-clean") {
        // SAFETY: between fork and exec it makes system calls only, all of them async-signal-safe, and takes no memory.
        unsafe { command.pre_exec(system::clean) };
    }
    command
}

/// As many descriptors as may be had, up to `most`, for this process; programs that it runs get as many as it had.
pub fn more_descriptors(most: u64) {
    #[cfg(unix)]
    system::more_descriptors(most);
    #[cfg(not(unix))]
    let _ = most;
}

#[cfg(unix)]
mod system {
    use std::{io, mem, ptr, sync::OnceLock};

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    /// What the limit of descriptors was before it was raised.
    static BEFORE: OnceLock<Rlimit> = OnceLock::new();

    pub(super) fn more_descriptors(most: u64) {
        let before = getrlimit(Resource::Nofile);
        let most = before.maximum.map_or(most, |maximum| maximum.min(most));
        if before.current.is_some_and(|now| now < most) {
            let _ = BEFORE.set(before);
            let more = Rlimit {
                current: Some(most),
                ..before
            };
            let _ = setrlimit(Resource::Nofile, more); // refused: fewer links and files at once
        }
    }

    /// Runs in the child, before the program.
    pub(super) fn clean() -> io::Result<()> {
        default_signals();
        if let Some(before) = BEFORE.get() {
            let _ = setrlimit(Resource::Nofile, *before);
        }
        #[cfg(target_os = "linux")]
        {
            close_at_exec();
            drop_capabilities()?;
        }
        Ok(())
    }

    /// None is ignored, none is blocked.
    fn default_signals() {
        for signal in 1..=MOST_SIGNALS {
            default_signal(signal);
        }
        // SAFETY: `sigset_t` is plain data, for which all zeros is a value; the calls only read it and write it.
        unsafe {
            let mut none: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        }
    }

    /// Asks the kernel itself: the C library keeps two signals to itself, and leaves them ignored in what it spawned.
    #[cfg(target_os = "linux")]
    fn default_signal(signal: libc::c_int) {
        const MASK_BYTES: usize = 8;
        // As large as the kernel's structure is anywhere, in which all zeros mean SIG_DFL.
        let default = [0_u64; 8];
        // SAFETY: the kernel reads the structure, which is long enough, and writes nothing. Numbers whose action is fixed
        // are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                MASK_BYTES,
            );
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn default_signal(signal: libc::c_int) {
        // SAFETY: `sigaction` is plain data, for which all zeros is a value (SIG_DFL), and is only read. Numbers that
        // are no signals, or whose action is fixed, are refused.
        unsafe {
            let default: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
    }

    /// Real-time signals included.
    const MOST_SIGNALS: libc::c_int = 64;

    /// Descriptors that the agent itself was started with; its own are all closed by the exec. A kernel before 5.11 does
    /// not know the call.
    #[cfg(target_os = "linux")]
    fn close_at_exec() {
        const AFTER_STDERR: libc::c_uint = 3;
        // SAFETY: takes numbers only, and changes a flag of descriptors in this process.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                AFTER_STDERR,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
        }
    }

    /// What is not inheritable is not ambient either. A process of root's gets its rights by its user, as ever.
    #[cfg(target_os = "linux")]
    fn drop_capabilities() -> io::Result<()> {
        use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
        let own = capabilities(None)?;
        set_capabilities(
            None,
            CapabilitySets {
                inheritable: CapabilitySet::empty(),
                ..own
            },
        )?;
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::fd::AsRawFd as _;

    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

    use super::*;

    /// What the agent has under its systemd unit, and more: for the calling thread, and for all of this process.
    fn set_what_is_not_to_be_inherited() -> bool {
        // SAFETY: no handler of ours is set, and the mask is the calling thread's.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let mut blocked: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut blocked, libc::SIGUSR2);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
        }
        let own = capabilities(None).unwrap();
        let inheritable = CapabilitySet::LEASE & own.permitted;
        let raised = set_capabilities(None, CapabilitySets { inheritable, ..own });
        let ambient = rustix::thread::configure_capability_in_ambient_set(CapabilitySet::LEASE, true);
        raised.is_ok() && ambient.is_ok()
    }

    #[test]
    fn a_program_inherits_nothing_that_the_agent_set_for_itself() {
        let own = std::thread::spawn(|| {
            if !set_what_is_not_to_be_inherited() {
                crate::failpoints::skip("a program inherits no capability: this user has none");
            }
            let file = tempfile::tempfile().unwrap();
            // SAFETY: the new descriptor belongs to nobody, and is closed with the process.
            let leak = unsafe { libc::dup(file.as_raw_fd()) };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let output = runtime.unwrap().block_on(async {
                let mut command = command("sh");
                command.args(["-c", "cat /proc/self/status; ls /proc/$$/fd"]);
                command.output().await.unwrap()
            });
            (leak, String::from_utf8(output.stdout).unwrap())
        });
        let (leak, told) = own.join().unwrap();
        for line in ["SigIgn:", "SigBlk:", "CapInh:", "CapAmb:"] {
            let value = told.lines().find_map(|told| told.strip_prefix(line));
            let value = u64::from_str_radix(value.unwrap().trim(), 16).unwrap();
            assert_eq!(value, 0, "{line} {told}");
        }
        let open: Vec<i32> = told.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(
            leak > 2 && open.contains(&1) && !open.contains(&leak),
            "{leak}: {told}"
        );
    }
}
