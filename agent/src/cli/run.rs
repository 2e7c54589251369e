//! `dropwire run`: the agent in the foreground, until a signal or an error that it cannot live with.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tracing::{error, info, warn};

use super::{
    logs,
    signals::{Asked, Signals},
};
use crate::{
    config::{Config, paths::Paths},
    daemon::Agent,
    error::{Exit, Fatal, shown},
};

/// Runs until SIGTERM or SIGINT; SIGHUP re-reads the config and starts the agent anew with it, in the same process.
pub fn run(paths: &Paths, verbose: u8) -> Result<(), Fatal> {
    spare_memory();
    let config = super::load(paths)?;
    logs::init(verbose, "info");
    end_on_panic();
    let runtime = runtime()?;
    let result = runtime.block_on(serve(config, paths));
    // Threads that sit in a system call must not keep the process.
    runtime.shutdown_timeout(PATIENCE);
    result
}

/// Two pools of memory for all threads instead of eight a core: what one freed is there for the others.
fn spare_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a number in the allocator; no other thread runs yet. Refused means no harm.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// A thread or task that panicked answers nobody any more, and others would wait for it in silence: the whole process
/// ends. A restart takes up everything, as after a crash.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::exit(Exit::Failed as i32);
    }));
}

/// The runtime agents run on: their heavy work is on threads of its own.
pub(super) fn runtime() -> Result<Runtime, Fatal> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("dropwire")
        .enable_all()
        .build()
        .map_err(|error| Fatal::io("cannot start the runtime", &error))
}

/// How long threads may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

async fn serve(mut config: Config, paths: &Paths) -> Result<(), Fatal> {
    // Before anything starts, so that an early signal ends it cleanly too.
    let mut signals = Signals::catch().map_err(|error| Fatal::io("cannot catch signals", &error))?;
    let mut agent = tokio::select! {
        agent = Agent::start(config.clone(), paths) => agent?,
        () = signals.stop() => return Ok(()),
    };
    info!(
        name = config.name,
        id = crate::id::format(agent.id()),
        listen = agent.listen_addr().map(tracing::field::display),
        config = shown(&paths.config),
        "running"
    );
    notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            fatal = agent.wait() => {
                error!("ending: {fatal}");
                return Err(fatal);
            }
            asked = signals.next() => match asked {
                Asked::Stop => {
                    info!("stopping");
                    notify(&[NotifyState::Stopping]);
                    agent.stop().await;
                    return Ok(());
                }
                Asked::Reload => {
                    if let Ok(now) = NotifyState::monotonic_usec_now() {
                        notify(&[NotifyState::Reloading, now]);
                    }
                    match reread(paths).await {
                        Ok(new) if new == config => info!("the config is unchanged"),
                        Ok(new) => (agent, config) = restart(agent, config, new, paths).await?,
                        Err(fatal) => warn!(mend = fatal.mend, "the config stays as it was: {fatal}"),
                    }
                    notify(&[NotifyState::Ready]);
                }
            },
        }
    }
}

/// The config as it is written now, if it is right.
async fn reread(paths: &Paths) -> Result<Config, Fatal> {
    let path = paths.config.clone();
    let read = tokio::task::spawn_blocking(move || crate::config::read(&path)).await;
    let config =
        read.map_err(|join| Fatal::new(Exit::Failed, format_args!("cannot read the config: {join}")))??;
    config.check_paths(paths)?;
    Ok(config)
}

/// Ends the agent and starts it with the `new` config; transfers under way resume. Where it cannot start so (a port
/// in use, say), the old config holds on.
async fn restart(agent: Agent, old: Config, new: Config, paths: &Paths) -> Result<(Agent, Config), Fatal> {
    if !agent.stop().await {
        return Err(Fatal::new(
            Exit::Failed,
            "what was under way did not end in time, so this process cannot go on with the new config",
        )
        .mend("start the agent again (a service manager does that by itself); nothing is lost"));
    }
    match Agent::start(new.clone(), paths).await {
        Ok(agent) => {
            info!("runs with the new config");
            Ok((agent, new))
        }
        Err(fatal) => {
            warn!(
                mend = fatal.mend,
                "cannot run with the new config, so the old one holds: {fatal}"
            );
            Ok((Agent::start(old.clone(), paths).await?, old))
        }
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot tell the service manager: {error}");
    }
}
