//! `dropwire run`: the agent in the foreground, until a signal or an error that it cannot live with.

use std::{fs, io, path::Path, time::Duration};

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
    let config = super::load(paths)?;
    private_folder(&paths.state_dir)?;
    logs::init(verbose, "info");
    let runtime = runtime()?;
    let result = runtime.block_on(serve(config, paths));
    // Threads that sit in a system call must not keep the process.
    runtime.shutdown_timeout(PATIENCE);
    result
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

/// Makes `dir` where it is missing, for its owner alone. One that others can enter is refused, for key and job list
/// lie there; one without anything in it is closed to them instead.
pub(super) fn private_folder(dir: &Path) -> Result<(), Fatal> {
    let failed =
        |error: &io::Error| Fatal::io(format_args!("cannot make the state folder {}", shown(dir)), error);
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .recursive(true)
        .create(dir)
        .map_err(|error| match error.kind() {
            // Something else has the name, or stands on the way.
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                Fatal::new(Exit::CannotCreate, format_args!("{} is no folder", shown(dir)))
                    .mend("name another with `state_dir` or `--state-dir`")
            }
            _ => failed(&error),
        })?;
    close_if_empty(dir).map_err(|error| failed(&error))?;
    check_private(dir)
}

/// Whether only its owner can enter `dir`.
#[cfg(unix)]
pub(super) fn check_private(dir: &Path) -> Result<(), Fatal> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = fs::metadata(dir).map_err(|error| {
        Fatal::io(
            format_args!("cannot look at the state folder {}", shown(dir)),
            &error,
        )
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Fatal::new(
        Exit::Permission,
        format_args!(
            "the state folder {} is open to others (mode {mode:o})",
            shown(dir)
        ),
    )
    .mend(format_args!("chmod 700 {}", shown(dir))))
}

/// Access lists of other systems are left to whoever made the folder.
#[cfg(not(unix))]
pub(super) fn check_private(_: &Path) -> Result<(), Fatal> {
    Ok(())
}

#[cfg(unix)]
fn close_if_empty(dir: &Path) -> io::Result<()> {
    match fs::read_dir(dir)?.next() {
        None => fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)),
        Some(_) => Ok(()),
    }
}

#[cfg(not(unix))]
fn close_if_empty(_: &Path) -> io::Result<()> {
    Ok(())
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
    agent.stop().await;
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_state_folder_is_the_owners_alone() {
        let root = tempfile::tempdir().unwrap();
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
        let open = |dir: &Path| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();

        let missing = root.path().join("a/b");
        private_folder(&missing).unwrap();
        assert_eq!(mode(&missing), 0o700);
        open(&missing);
        private_folder(&missing).unwrap();
        assert_eq!(mode(&missing), 0o700, "an empty one is closed");

        fs::write(missing.join("x"), "").unwrap();
        private_folder(&missing).unwrap();
        open(&missing);
        let refused = private_folder(&missing).unwrap_err();
        assert_eq!(refused.exit, Exit::Permission);
        assert!(refused.mend.unwrap().starts_with("chmod 700"));
        assert_eq!(mode(&missing), 0o755, "and is left as it is");

        let error = private_folder(&missing.join("x")).unwrap_err();
        assert_eq!(error.exit, Exit::CannotCreate);
    }
}
