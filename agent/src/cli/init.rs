//! `dropwire init`: config, identity and folders, each only where it is missing; so it can be run again at any time.

use std::{fs, io, path::Path};

use super::{
    exit,
    output::{remark, say},
};
use crate::{
    config::{
        self, Config, Invalid,
        paths::{Flags, Paths},
        quoted,
    },
    daemon::private_folder,
    error::{Exit, Fatal, shown},
    fs::durable,
    id,
    identity::Identity,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Shown to peers; default: the host's name
    #[arg(long)]
    name: Option<String>,
    /// Where peers may dial this machine, such as 0.0.0.0:7420
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

pub(super) fn run(args: &Args, flags: &Flags) -> Result<(), Fatal> {
    let paths = Paths::find_new(flags).map_err(exit::invalid)?;
    let is_new = !paths.config.exists() && write_config(args, flags, &paths)?;
    if !is_new {
        remark(format_args!(
            "{} is there already and stays as it is",
            shown(&paths.config)
        ));
    }
    let config = super::load(&paths)?;
    private_folder(&paths.state_dir)?;
    let identity = Identity::load_or_create(&paths.state_dir)?;
    let outboxes = config.outboxes.iter().map(|outbox| &outbox.path);
    for folder in outboxes.chain(config.inbox.iter().map(|inbox| &inbox.path)) {
        if !folder.exists() {
            make_folder(folder)?;
            remark(format_args!("made {}", shown(folder)));
        }
    }
    let id = id::format(identity.id());
    say(&id)?;
    remark("\nFor the config of the other side:");
    say(format_args!("\n{}", peer_block(&config, &id)))?;
    remark(format_args!(
        "\nAdd the other side's block to {}, then start `dropwire run`.",
        shown(&paths.config)
    ));
    Ok(())
}

/// False: another `init` was quicker, and its config counts.
fn write_config(args: &Args, flags: &Flags, paths: &Paths) -> Result<bool, Fatal> {
    let text = new_config(args, flags)?;
    // What the command line says is wrong before anything is written.
    config::parse(&text, &paths.config, config::home().as_deref()).map_err(|invalid| match invalid {
        Invalid::Content { diagnostics, .. } if !diagnostics.is_empty() => {
            Fatal::new(Exit::Usage, &diagnostics[0].message).hint(&diagnostics[0].hint)
        }
        other => other.into(),
    })?;
    if let Some(folder) = paths.config.parent() {
        make_folder(folder)?;
    }
    let failed = |error| Fatal::io(format_args!("cannot write {}", shown(&paths.config)), &error);
    match durable::write_new(&paths.config, text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        written => written.map_err(failed)?,
    }
    // It holds no secret, and the service may run as another user than the one who wrote it.
    #[cfg(unix)]
    fs::set_permissions(&paths.config, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .map_err(failed)?;
    remark(format_args!("wrote {}", shown(&paths.config)));
    Ok(true)
}

fn make_folder(folder: &Path) -> Result<(), Fatal> {
    fs::create_dir_all(folder)
        .map_err(|error| Fatal::io(format_args!("cannot make {}", shown(folder)), &error))
}

fn new_config(args: &Args, flags: &Flags) -> Result<String, Fatal> {
    let name = args.name.clone().unwrap_or_else(config::default_name);
    let listen = match &args.listen {
        Some(listen) => format!("listen = {}", quoted(listen)),
        None => "# listen = \"0.0.0.0:7420\"          # where peers may dial this machine".into(),
    };
    let own = own_places(flags)?;
    let (outbox, inbox) = if flags.system {
        (SYSTEM_BOXES.0.into(), SYSTEM_BOXES.1.into())
    } else {
        let home = config::home().ok_or_else(|| {
            Fatal::new(Exit::Config, "there is no home folder for outbox and inbox")
                .hint("set HOME, or use `dropwire --system init`")
        })?;
        (home.join("Outbox"), home.join("Inbox"))
    };
    Ok(format!(
        r#"# dropwire: what is dropped into the outbox arrives in the inbox of the other side.
# `dropwire check` tells whether all is well. Every key is in config.example.toml.

name = {name}
{listen}
{own}
[[outbox]]                          # one or more
path = {outbox}
# to = ["office"]                   # default: every peer
# after_send = "archive"            # "archive" (into <path>/.dropwire/sent), "delete" or "keep"

[inbox]
path = {inbox}
# layout = "flat"                   # "flat", or "by-peer": one folder a peer
# min_free = "1 GiB"                # default: the smaller of 1 GiB and a twentieth of the disk

# [[peer]]                          # what `dropwire init` printed on the other side
# name = "office"
# id = "…"
# address = "office.example.org:7420" # leave out for a peer that dials us
"#,
        name = quoted(&name),
        outbox = path_text(&outbox),
        inbox = path_text(&inbox),
    ))
}

/// Places named on the command line have to hold for `run` too.
fn own_places(flags: &Flags) -> Result<String, Fatal> {
    let mut lines = String::new();
    for (key, path) in [("state_dir", &flags.state_dir), ("control", &flags.control)] {
        if let Some(path) = path {
            let path = std::path::absolute(path)
                .map_err(|error| Fatal::io(format_args!("cannot tell where {} is", shown(path)), &error))?;
            lines.push_str(&format!("{key} = {}\n", path_text(&path)));
        }
    }
    Ok(lines)
}

fn path_text(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// Outbox and inbox of the system's service.
const SYSTEM_BOXES: (&str, &str) = if cfg!(windows) {
    (r"C:\dropwire\Outbox", r"C:\dropwire\Inbox")
} else {
    ("/srv/dropwire/Outbox", "/srv/dropwire/Inbox")
};

fn peer_block(config: &Config, id: &str) -> String {
    let address = match &config.listen {
        None => "# no address: this machine only dials".into(),
        Some(listen) => address_line(listen),
    };
    format!(
        "[[peer]]\nname = {}\nid = \"{id}\"\n{address}",
        quoted(&config.name)
    )
}

/// How others dial `listen`, as far as can be told from here.
fn address_line(listen: &str) -> String {
    let (host, port) = listen.rsplit_once(':').unwrap_or((listen, ""));
    let everywhere = ["0.0.0.0", "[::]"].contains(&host);
    let own_name = hostname::get().ok().and_then(|name| name.into_string().ok());
    let host = match own_name {
        Some(name) if everywhere => name,
        _ => host.to_owned(),
    };
    let (off, port) = if port == "0" { ("# ", "PORT") } else { ("", port) };
    let remark = if everywhere {
        " # this machine, as the other side reaches it"
    } else {
        ""
    };
    format!("{off}address = {}{remark}", quoted(&format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: Option<&str>, listen: Option<&str>) -> Args {
        Args {
            name: name.map(str::to_owned),
            listen: listen.map(str::to_owned),
        }
    }

    fn read(text: &str) -> Config {
        config::parse(text, Path::new("/c.toml"), None).unwrap()
    }

    #[cfg(unix)]
    #[test]
    fn what_is_written_is_read_and_says_what_was_asked_for() {
        let flags = Flags {
            state_dir: Some("/srv/state".into()),
            system: true,
            ..Flags::default()
        };
        let text = new_config(&args(Some("a \"b\""), Some("0.0.0.0")), &flags).unwrap();
        let config = read(&text);
        assert_eq!(config.name, "a \"b\"");
        assert_eq!(config.listen.as_deref(), Some("0.0.0.0:7420"));
        assert_eq!(config.state_dir.as_deref(), Some(Path::new("/srv/state")));
        assert_eq!(config.outboxes[0].path, Path::new("/srv/dropwire/Outbox"));
        assert!(config.inbox.is_some() && config.peers.is_empty());
        assert!(
            read(&new_config(&args(None, None), &flags).unwrap())
                .listen
                .is_none()
        );
    }

    #[test]
    fn the_block_for_the_other_side_is_toml() {
        const ID: &str = "P56IOI7-MZJNU2Y-IQGDREY-DM2MGTI-MGL3BXN-PQ6W5BM-TBBZ4TJ-XZWICQ2";
        let mut config = read("name = \"laptop\"");
        for (listen, address) in [
            (None, None),
            (Some("192.0.2.7:99"), Some("192.0.2.7:99")),
            (Some("[::1]:7420"), Some("[::1]:7420")),
            (Some("127.0.0.1:0"), None),
        ] {
            config.listen = listen.map(str::to_owned);
            let theirs = read(&peer_block(&config, ID));
            assert_eq!(theirs.peers[0].name, "laptop");
            assert_eq!(theirs.peers[0].address.as_deref(), address);
        }
        config.listen = Some("0.0.0.0:7420".into());
        assert!(!peer_block(&config, ID).contains("0.0.0.0"));
    }
}
