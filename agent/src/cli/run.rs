//! `dropwire run`: the agent in the foreground, until a signal or an error that it cannot live with.

use std::{convert::Infallible, time::Duration};

use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tracing::{error, info, warn};

use super::{
    logs,
    signals::{Asked, Signals},
};
use crate::{
    config::{
        self, Config, Edits,
        paths::{Flags, Paths},
    },
    daemon::{self, Agent, Reloaded},
    error::{Exit, Fatal, shown},
};

/// Runs until SIGTERM or SIGINT. When the config file was edited, and on SIGHUP, the config is read again.
pub(super) fn run(paths: &Paths, mut flags: Flags, verbose: u8) -> Result<(), Fatal> {
    spare_memory();
    daemon::more_descriptors(DESCRIPTORS);
    let config = super::load(paths)?;
    logs::init(verbose, "info");
    let runtime = runtime()?;
    flags.config = Some(paths.config.clone());
    let result = runtime.block_on(serve(config, Places { paths, flags }));
    // Threads that sit in a system call must not keep the process.
    runtime.shutdown_timeout(PATIENCE);
    result
}

/// Two pools of memory for all threads instead of eight a core: what one freed is there for the others. And what was
/// freed is kept, up to a bound: pages that went back to the system and are faulted in again cost a large file 6 % of its
/// processor time.
fn spare_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_TRIM_THRESHOLD, KEPT),
        (libc::M_MMAP_THRESHOLD, OWN_PAGES),
    ] {
        // SAFETY: sets a number in the allocator; no other thread runs yet. Refused means no harm.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Bytes at the end of each pool that stay though nobody uses them: more than a large file has under way on a short line.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 8 << 20;
/// What is larger does not come from the pools: chunks and blocks of a large file do, what is rare does not.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_PAGES: libc::c_int = 1 << 20;

/// Descriptors of one process: each link and each open file takes some, and shells allow 1,024 unless asked for more.
const DESCRIPTORS: u64 = 65_536;

/// The runtime agents run on: their heavy work is on threads of its own.
pub(super) fn runtime() -> Result<Runtime, Fatal> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MOST_BLOCKED)
        .thread_name("dropwire")
        .enable_all()
        .build()
        .map_err(|error| Fatal::io("cannot start the runtime", &error))
}

/// Threads that may sit in system calls: several times as many as serve the links to an inbox whose disk hangs.
const MOST_BLOCKED: usize = 4096;
/// How long threads may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where things are, and why there.
struct Places<'a> {
    paths: &'a Paths,
    flags: Flags,
}

async fn serve(config: Config, places: Places<'_>) -> Result<(), Fatal> {
    // Before anything starts, so that an early signal ends it cleanly too.
    let mut signals = Signals::catch().map_err(|error| Fatal::io("cannot catch signals", &error))?;
    let mut edits = Edits::watch(&places.paths.config).await;
    let mut agent = tokio::select! {
        agent = Agent::start(config, places.paths) => agent?,
        () = signals.stop() => return Ok(()),
        never = ask_for_time() => match never {},
    };
    info!(
        name = agent.config().name,
        id = crate::id::format(agent.id()),
        listen = agent.listen_addr().map(tracing::field::display),
        config = shown(&places.paths.config),
        "running"
    );
    notify(&[NotifyState::Ready]);
    let mut asked = false;
    loop {
        tokio::select! {
            fatal = agent.wait() => {
                error!("ending: {fatal}");
                return Err(fatal);
            }
            signal = signals.next() => {
                if signal == Asked::Stop {
                    stop(agent).await;
                    return Ok(());
                }
                asked = true;
                edits.hurry();
                continue;
            }
            () = edits.next() => {}
        }
        edits.renew().await; // before it is read: what is written later is told
        let Some(read) = reread(&places, &agent, asked).await else {
            info!("the config file is being written: it is read when that is over");
            continue;
        };
        // What looked like an edit, and changes nothing.
        let unchanged = read.as_ref().map_err(told) == known(&agent).as_ref().map_err(String::clone);
        if unchanged && !std::mem::take(&mut asked) {
            continue;
        }
        asked = false;
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
        agent = match reload(agent, read, &places, &mut signals).await? {
            Some(agent) => agent,
            None => return Ok(()),
        };
        notify(&[NotifyState::Ready]);
    }
}

/// A start that waits is none that hangs: the service manager is not to end it.
async fn ask_for_time() -> Infallible {
    const EACH: Duration = Duration::from_secs(5);
    const MORE_US: u32 = 60_000_000;
    loop {
        tokio::time::sleep(EACH).await;
        notify(&[NotifyState::ExtendTimeoutUsec(MORE_US)]);
    }
}

async fn stop(agent: Agent) {
    info!("stopping");
    notify(&[NotifyState::Stopping]);
    agent.stop().await;
}

/// What the last reading came to.
fn known(agent: &Agent) -> Result<Config, String> {
    match agent.config_error() {
        None => Ok(Config::clone(&agent.config())),
        Some(error) => Err(error),
    }
}

/// The config as it is written now, if it is right; None while it is being written. Where somebody `asked` for it, it
/// is read whoever has it open: that may be a program which never closes it.
async fn reread(places: &Places<'_>, agent: &Agent, asked: bool) -> Option<Result<Config, Fatal>> {
    let (paths, flags, old) = (places.paths.clone(), places.flags.clone(), agent.config());
    let read = move || match asked {
        true => Some(read_over(&old, &paths, &flags)),
        false => config::undisturbed(&paths.config, || read_over(&old, &paths, &flags)),
    };
    let failed = |join| Fatal::new(Exit::Failed, format_args!("cannot read the config: {join}"));
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        Err(join) => Some(Err(failed(join))),
    }
}

/// Also holds it against what cannot follow, and what nobody can have meant.
fn read_over(old: &Config, paths: &Paths, flags: &Flags) -> Result<Config, Fatal> {
    let config = config::load(&paths.config)?;
    let is_empty =
        |config: &Config| config.peers.is_empty() && config.outboxes.is_empty() && config.inbox.is_none();
    // A file cut short, most likely.
    if is_empty(&config) && !is_empty(old) {
        let message = format!("{} names no outbox, inbox or peer any more", shown(&paths.config));
        return Err(
            Fatal::new(Exit::Config, message).hint("write it again; if that is meant, start the agent again")
        );
    }
    config.check_paths(paths)?;
    if Paths::find(flags)? != *paths {
        let message = "`state_dir` or `control` is another now, which a running agent cannot follow";
        return Err(Fatal::new(Exit::Config, message).hint("take it back, or start the agent again"));
    }
    Ok(config)
}

/// Takes up what was read. If that cannot be, the config stays as it was, and log and status say why. None: it was
/// asked to stop meanwhile, and did.
async fn reload(
    mut agent: Agent,
    read: Result<Config, Fatal>,
    places: &Places<'_>,
    signals: &mut Signals,
) -> Result<Option<Agent>, Fatal> {
    let old = agent.config();
    let reloaded = match read {
        Err(fatal) => Err(fatal),
        Ok(new) if new == *old => {
            info!("the config is unchanged");
            Ok(Reloaded::Holds)
        }
        Ok(new) => {
            let taken_up = tokio::select! {
                taken_up = agent.reload(new.clone()) => taken_up,
                () = signals.stop() => {
                    stop(agent).await;
                    return Ok(None);
                }
            };
            match taken_up {
                Ok(Reloaded::Restart(why)) => {
                    info!(why, "restarts inside this process");
                    let old = Config::clone(&old);
                    let Some((started, how)) = restart(agent, old, new, places.paths, signals).await? else {
                        return Ok(None);
                    };
                    agent = started;
                    how
                }
                taken_up => taken_up,
            }
        }
    };
    if let Err(fatal) = &reloaded {
        warn!(help = fatal.hint, "the config stays as it was: {fatal}");
    }
    agent.set_config_error(reloaded.as_ref().err().map(told));
    Ok(Some(agent))
}

/// As `status` shows it.
fn told(fatal: &Fatal) -> String {
    match &fatal.hint {
        None => fatal.message.clone(),
        Some(hint) => format!("{}\nhelp: {hint}", fatal.message),
    }
}

/// Ends the agent and starts it with the `new` config; transfers under way resume. Where it cannot start so, the `old`
/// config holds on. None: it was asked to stop meanwhile.
async fn restart(
    agent: Agent,
    old: Config,
    new: Config,
    paths: &Paths,
    signals: &mut Signals,
) -> Result<Option<(Agent, Result<Reloaded, Fatal>)>, Fatal> {
    if !agent.stop().await {
        return Err(Fatal::new(
            Exit::Failed,
            "what was under way did not end in time, so this process cannot go on with the new config",
        )
        .hint("start the agent again (a service manager does that by itself); nothing is lost"));
    }
    let start = async {
        match Agent::start(new, paths).await {
            Ok(agent) => {
                info!("the new config is in effect, in a new agent");
                Ok((agent, Ok(Reloaded::Holds)))
            }
            Err(fatal) => Ok((Agent::start(old, paths).await?, Err(fatal))),
        }
    };
    tokio::select! {
        started = start => started.map(Some),
        () = signals.stop() => {
            info!("stopping");
            Ok(None)
        }
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot tell the service manager: {error}");
    }
}
