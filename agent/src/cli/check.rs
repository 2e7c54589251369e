//! `dropwire check`: would the agent run well with this config? Nothing is changed by asking.

use std::{
    io,
    net::{TcpListener, ToSocketAddrs as _},
    path::Path,
};

use serde_json::json;

use super::output::{remark, say, say_json};
use crate::{
    config::{self, Config, paths::Paths},
    daemon,
    error::{Exit, Fatal, shown},
    id,
    identity::Identity,
};

#[derive(clap::Args)]
pub struct Args {
    /// As one line of JSON
    #[arg(long)]
    json: bool,
}

/// What was found goes to stderr, the settings that hold to stdout; the first trouble is the command's error.
pub fn run(args: &Args, paths: &Paths) -> Result<(), Fatal> {
    let config = super::load(paths)?;
    let findings = look(&config, paths);
    let settings = config::effective(&config);
    if args.json {
        say_json(&report(&config, paths, &findings, &settings))?;
    } else {
        for finding in &findings {
            match &finding.result {
                Ok(good) => remark(format_args!("ok       {}: {good}", finding.subject)),
                Err(bad) => remark(format_args!("trouble  {}: {bad}", finding.subject)),
            }
        }
        say(settings.trim_end())?;
    }
    match findings.into_iter().find_map(|finding| finding.result.err()) {
        None => Ok(()),
        Some(trouble) => Err(trouble),
    }
}

struct Finding {
    subject: String,
    result: Result<String, Fatal>,
}

fn look(config: &Config, paths: &Paths) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |subject: String, result| findings.push(Finding { subject, result });
    add("config".into(), Ok(shown(&paths.config)));
    if paths.state_dir.exists() {
        let private = daemon::check_private(&paths.state_dir).map(|()| "is closed to others".into());
        add(format!("state folder {}", shown(&paths.state_dir)), private);
    }
    add("identity".into(), identity(config, paths));
    for outbox in &config.outboxes {
        add(format!("outbox {}", shown(&outbox.path)), folder(&outbox.path));
    }
    if let Some(inbox) = &config.inbox {
        add(format!("inbox {}", shown(&inbox.path)), folder(&inbox.path));
    }
    if let Some(address) = &config.listen {
        add(format!("listen {address}"), listen(address, paths));
    }
    let peers = match config.peers.len() {
        0 => "none yet: add a `[[peer]]`, its block is what `dropwire init` prints there".into(),
        n => n.to_string(),
    };
    add("peers".into(), Ok(peers));
    findings
}

/// Also tells of a key that others may read.
fn identity(config: &Config, paths: &Paths) -> Result<String, Fatal> {
    let Some(identity) = Identity::load(&paths.state_dir)? else {
        return Ok(format!(
            "none yet in {}: `dropwire init` makes it",
            shown(&paths.state_dir)
        ));
    };
    config.check_own_id(identity.id())?;
    Ok(id::format(identity.id()))
}

fn folder(path: &Path) -> Result<String, Fatal> {
    let metadata = path.metadata().map_err(|error| {
        let fatal = Fatal::io(shown(path), &error);
        match error.kind() {
            io::ErrorKind::NotFound => fatal.mend("make it, or run `dropwire init`; the agent waits for it"),
            _ => fatal.mend("let this user enter the folders above it"),
        }
    })?;
    if !metadata.is_dir() {
        return Err(
            Fatal::new(Exit::CannotCreate, format_args!("{} is no folder", shown(path)))
                .mend("name a folder"),
        );
    }
    writable(path).map_err(|error| {
        Fatal::io(format_args!("cannot read and write in {}", shown(path)), &error)
            .mend("let the user that runs the agent read and write there")
    })?;
    Ok("can be read and written".into())
}

/// Asks without writing: a file made for a test would be sent.
#[cfg(unix)]
fn writable(path: &Path) -> io::Result<()> {
    use rustix::fs::Access;
    Ok(rustix::fs::access(
        path,
        Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
    )?)
}

#[cfg(not(unix))]
fn writable(path: &Path) -> io::Result<()> {
    match path.metadata()?.permissions().readonly() {
        true => Err(io::ErrorKind::PermissionDenied.into()),
        false => Ok(()),
    }
}

fn listen(address: &str, paths: &Paths) -> Result<String, Fatal> {
    let bound = address
        .to_socket_addrs()
        .and_then(|addresses| TcpListener::bind(addresses.collect::<Vec<_>>().as_slice()));
    match bound {
        Ok(_) => Ok("is free".into()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && agent_answers(paths) => {
            Ok("is in use by the running agent".into())
        }
        Err(error) => {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                _ => Exit::CannotCreate,
            };
            Err(
                Fatal::new(exit, format_args!("cannot listen on {address}: {error}")).mend(
                    match error.kind() {
                        io::ErrorKind::AddrInUse => "another program has it: choose another port in `listen`",
                        io::ErrorKind::PermissionDenied => "choose a port above 1023 in `listen`",
                        _ => "write an address of this machine in `listen`, or `0.0.0.0` for all",
                    },
                ),
            )
        }
    }
}

#[cfg(unix)]
fn agent_answers(paths: &Paths) -> bool {
    std::os::unix::net::UnixStream::connect(&paths.control).is_ok()
}

#[cfg(not(unix))]
fn agent_answers(_: &Paths) -> bool {
    false
}

fn report(config: &Config, paths: &Paths, findings: &[Finding], settings: &str) -> serde_json::Value {
    let settings: Option<toml::Table> = toml::from_str(settings).ok();
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| {
            let (detail, mend) = match &finding.result {
                Ok(good) => (good.clone(), None),
                Err(bad) => (bad.to_string(), bad.mend.clone()),
            };
            json!({"subject": finding.subject, "ok": finding.result.is_ok(), "detail": detail, "mend": mend})
        })
        .collect();
    json!({
        "schema": 1,
        "name": config.name,
        "config": paths.config.to_string_lossy(),
        "ok": findings.iter().all(|finding| finding["ok"] == true),
        "findings": findings,
        "settings": settings,
    })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn folders_are_looked_at_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        assert!(folder(dir.path()).is_ok());
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        let missing = folder(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.exit, Exit::NoInput);
        assert!(missing.mend.is_some());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(folder(&file).unwrap_err().exit, Exit::CannotCreate);
    }

    #[test]
    fn an_address_in_use_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            config: dir.path().join("config.toml"),
            state_dir: dir.path().into(),
            control: dir.path().join("control.sock"),
        };
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        assert_eq!(listen(&address, &paths).unwrap_err().exit, Exit::CannotCreate);
        let _agent = std::os::unix::net::UnixListener::bind(&paths.control).unwrap();
        assert_eq!(
            listen(&address, &paths).unwrap(),
            "is in use by the running agent"
        );
        assert_eq!(listen("127.0.0.1:0", &paths).unwrap(), "is free");
    }
}
