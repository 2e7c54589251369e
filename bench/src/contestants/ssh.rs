//! rsync over ssh: encrypted, not synced. A daemon of our own on loopback, with keys made for it.

use std::{fs, io, os::unix::fs::PermissionsExt as _, process::Command};

use super::{
    Contestant, Session, Site,
    rsync::{self, Pushing},
};
use crate::{
    failed,
    process::{Running, find, output},
    work::Work,
};

/// With AES-128-GCM, which is the fastest that it has here, and without compression.
pub(super) struct RsyncOverSsh;

impl Contestant for RsyncOverSsh {
    fn name(&self) -> &'static str {
        "rsync over ssh"
    }

    fn missing(&self) -> Option<String> {
        let missing = ["rsync", "ssh", "sshd", "ssh-keygen"]
            .into_iter()
            .find(|p| find(p).is_none());
        missing.map(|program| format!("{program} is not installed"))
    }

    fn does(&self, work: Work) -> bool {
        matches!(work, Work::Large | Work::Small | Work::Wide)
    }

    fn begin<'a>(&self, site: &'a Site) -> io::Result<Box<dyn Session + 'a>> {
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd")?; // sshd insists on it, and only a service would have made it
        }
        let (host, user) = (site.root.join("receiver/host"), site.root.join("sender/user"));
        for key in [&host, &user] {
            output(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(key),
            )?;
        }
        let allowed = site.root.join("receiver/allowed");
        fs::copy(user.with_extension("pub"), &allowed)?;
        fs::set_permissions(&allowed, fs::Permissions::from_mode(0o600))?;
        let address = site.free_address()?;
        let mut daemon = Command::new(find("sshd").ok_or_else(|| failed("no sshd"))?);
        daemon
            .args([
                "-D",
                "-e",
                "-f",
                "/dev/null",
                "-p",
                &address.port().to_string(),
                "-h",
            ])
            .arg(host);
        for option in [
            format!("ListenAddress={}", address.ip()),
            format!("AuthorizedKeysFile={}", allowed.display()),
            "StrictModes=no".into(),
            "UsePAM=no".into(),
            "PidFile=none".into(),
            "PermitRootLogin=prohibit-password".into(),
        ] {
            daemon.args(["-o", &option]);
        }
        let daemon = Running::start(daemon, site.receiver())?;
        site.listens(address)?;
        let dial = site.dial(address);
        let shell = format!(
            "ssh -F /dev/null -p {} -i {} -c aes128-gcm@openssh.com -o Compression=no -o BatchMode=yes \
             -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            dial.port(),
            user.display()
        );
        let (outbox, to) = (
            site.outbox(),
            format!("{}:{}/", dial.ip(), site.inbox().display()),
        );
        let client = move |name: &str, again| {
            let mut client = rsync::command(again);
            client.args(["-e", &shell]).arg(outbox.join(name)).arg(&to);
            client
        };
        Ok(Box::new(Pushing::new(site.sender(), daemon, false, client)))
    }
}
