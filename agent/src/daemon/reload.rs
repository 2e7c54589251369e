//! A new config for a running agent: what differs is changed, all else goes on, transfers too.
//!
//! Whatever can fail comes first and touches nothing: either the whole new config is in effect, or the old one.

use std::{path::PathBuf, sync::Arc};

use dropwire_protocol::AgentId;
use tracing::{info, warn};

use super::Agent;
use crate::{
    clock::now_ms,
    config::{self, Config},
    db::DbError,
    error::{Fatal, chain},
    link,
    poison::Unpoisoned as _,
    receiver,
    sender::folder_setting,
};

/// What came of a new config.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reloaded {
    /// It holds.
    Holds,
    /// The old config stays in effect: for this change, all of the agent has to restart.
    Restart(&'static str),
}

/// What has to be done for it.
#[derive(PartialEq, Debug)]
enum Plan {
    Change(Changes),
    /// What cannot be changed while the agent runs.
    Restart(&'static str),
}

/// What differs, as far as something begins or ends; all else is read from the config whenever it is needed.
#[derive(Default, PartialEq, Debug)]
struct Changes {
    /// One that is different ends and begins again.
    outboxes_end: Vec<PathBuf>,
    outboxes_begin: Vec<config::Outbox>,
    peers_leave: Vec<AgentId>,
    peers_come: Vec<config::Peer>,
    /// Another place to listen on, or none from now on.
    listen: Option<Option<String>>,
}

impl Agent {
    /// What holds.
    pub fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Why what is written in the config file does not hold, as `status` shows it.
    pub fn config_error(&self) -> Option<String> {
        let error = self.config_error.lock();
        error.unpoisoned().clone()
    }

    /// Notes it; None: it holds.
    pub fn set_config_error(&self, why: Option<String>) {
        let error = self.config_error.lock();
        *error.unpoisoned() = why;
    }

    /// Takes up a new config. An error, and also [`Reloaded::Restart`]: nothing has changed. One at a time.
    ///
    /// A link ends only when its peer is not in the config any more; the peer's jobs wait until it is back. An outbox
    /// that is not in it any more finds nothing new, but what it found is still delivered.
    pub async fn reload(&self, new: Config) -> Result<Reloaded, Fatal> {
        let old = self.config();
        new.check_own_id(self.id())?;
        let changes = match plan(&old, &new) {
            Plan::Change(changes) => changes,
            Plan::Restart(why) => {
                // Before this agent ends: a start would refuse it too.
                folder_setting::check(&self.db, &new.outboxes).await?;
                return Ok(Reloaded::Restart(why));
            }
        };
        folder_setting::check(&self.db, &changes.outboxes_begin).await?;
        let listen = match &changes.listen {
            Some(Some(address)) => Some(Some(link::bind(address).await?)),
            Some(None) => Some(None),
            None => None,
        };
        match self.change(Arc::new(new), &changes, listen).await {
            Ok(()) => Ok(Reloaded::Holds),
            Err(error) => {
                warn!(error = %chain(&error), "the job list failed");
                Ok(Reloaded::Restart("the job list failed"))
            }
        }
    }

    /// Fails only where the job list does; then only a new agent can go on.
    async fn change(
        &self,
        new: Arc<Config>,
        changes: &Changes,
        listen: Option<Option<tokio::net::TcpListener>>,
    ) -> Result<(), DbError> {
        self.sender.end_outboxes(&changes.outboxes_end).await;
        self.config.send_replace(new.clone());
        self.sender
            .begin_outboxes(&changes.outboxes_begin, &self.me())
            .await?;
        self.links.apply(link_settings(&new)).await;
        self.sender.follow_peers();
        if let Some(listener) = listen {
            self.links.listen_on(listener);
        }
        self.inbox.apply(&inbox_settings(&new));
        for peer in &changes.peers_leave {
            self.sender.remove_peer(*peer).await;
        }
        self.names.learn(&self.db, &self.queue, &new).await?;
        self.queue.pull_in(now_ms(), new.retry.max).await?;
        self.queue.wake_all();
        info!(
            outboxes_begun = changes.outboxes_begin.len(),
            outboxes_ended = changes.outboxes_end.len(),
            peers_added = changes.peers_come.len(),
            peers_removed = changes.peers_leave.len(),
            "the new config is in effect"
        );
        Ok(())
    }
}

/// What links need of the config.
pub(super) fn link_settings(config: &Config) -> link::Settings {
    link::Settings {
        name: config.name.clone(),
        peers: config.peers.clone(),
        retry: config.retry,
        limits: config.limits,
    }
}

/// What the inbox needs of it.
pub(super) fn inbox_settings(config: &Config) -> receiver::Settings {
    receiver::Settings {
        inbox: config.inbox.clone(),
        peers: config.peers.clone(),
        name: config.name.clone(),
        outboxes: config.outbox_paths(),
    }
}

/// How an agent with the `old` config comes to run with the `new` one.
fn plan(old: &Config, new: &Config) -> Plan {
    let place = |config: &Config| {
        config
            .inbox
            .as_ref()
            .map(|inbox| (inbox.path.clone(), inbox.layout))
    };
    if place(old) != place(new) {
        return Plan::Restart("the inbox is another");
    }
    if old.listen != new.listen && same_port(old.listen.as_deref(), new.listen.as_deref()) {
        return Plan::Restart("the port to listen on is taken by this agent itself");
    }
    let stays = |peer: &AgentId, config: &Config| config.peers.iter().any(|p| p.id == *peer);
    let missing_in = |config: &Config, outbox: &config::Outbox| !config.outboxes.contains(outbox);
    Plan::Change(Changes {
        outboxes_end: old
            .outboxes
            .iter()
            .filter(|outbox| missing_in(new, outbox))
            .map(|outbox| outbox.path.clone())
            .collect(),
        outboxes_begin: new
            .outboxes
            .iter()
            .filter(|outbox| missing_in(old, outbox))
            .cloned()
            .collect(),
        peers_leave: old
            .peers
            .iter()
            .map(|peer| peer.id)
            .filter(|peer| !stays(peer, new))
            .collect(),
        peers_come: new
            .peers
            .iter()
            .filter(|peer| !stays(&peer.id, old))
            .cloned()
            .collect(),
        listen: (old.listen != new.listen).then(|| new.listen.clone()),
    })
}

/// The new address may be bound only once the old one is left.
fn same_port(old: Option<&str>, new: Option<&str>) -> bool {
    let port = |address: &str| -> Option<u16> { address.rsplit_once(':')?.1.parse().ok() };
    let (old, new) = (old.and_then(port), new.and_then(port));
    old.is_some_and(|port| port != 0) && old == new
}

#[cfg(all(test, unix))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::id;

    const BASE: &str = r#"
        name = "a"
        listen = "0.0.0.0:7420"
        [[outbox]]
        path = "/out"
        to = ["one"]
        [inbox]
        path = "/in"
        [[peer]]
        name = "one"
        id = "ID1"
    "#;

    fn config(text: &str) -> Config {
        let with_ids = [1, 2].into_iter().fold(text.to_owned(), |text, n| {
            text.replace(&format!("ID{n}"), &id::format(peer(n)))
        });
        config::parse(&with_ids, Path::new("config.toml"), None).unwrap()
    }

    fn peer(number: u8) -> AgentId {
        AgentId([number; 32])
    }

    /// What begins and ends, in short.
    fn told(plan: Plan) -> String {
        let changes = match plan {
            Plan::Restart(why) => return why.into(),
            Plan::Change(changes) => changes,
        };
        let mut told = Vec::new();
        told.extend(
            changes
                .outboxes_end
                .iter()
                .map(|path| format!("-{}", path.display())),
        );
        told.extend(
            changes
                .outboxes_begin
                .iter()
                .map(|o| format!("+{}", o.path.display())),
        );
        told.extend(changes.peers_leave.iter().map(|id| format!("-{}", id.0[0])));
        told.extend(changes.peers_come.iter().map(|peer| format!("+{}", peer.name)));
        told.extend(changes.listen.map(|listen| format!("listen {listen:?}")));
        told.join(" ")
    }

    #[test]
    fn table() {
        let two = "[[peer]]\nname = \"two\"\nid = \"ID2\"\n";
        let add = |more: &str| format!("{BASE}\n{more}");
        let with = |from: &str, to: &str| {
            assert!(BASE.contains(from));
            BASE.replace(from, to)
        };
        let another = "the inbox is another";
        for (new, expected) in [
            (add("# a remark"), ""),
            (with("name = \"a\"", "name = \"b\""), ""),
            (
                with("name = \"one\"", "name = \"1\"").replace("to = [\"one\"]", "to = [\"1\"]"),
                "",
            ),
            (add("address = \"host:1\"\nmax_file_size = \"1 B\""), ""),
            (add("[limits]\nupload = \"1 MB/s\"\n[retry]\nmax = \"1h\""), ""),
            (
                with("\"/in\"", "\"/in\"\nmin_free = \"0 B\"\non_arrival = [\"x\"]"),
                "",
            ),
            (add("[[outbox]]\npath = \"/more\""), "+/more"),
            (with("\"/out\"", "\"/out\"\nquiet = \"1s\""), "-/out +/out"),
            (with("\"/out\"", "\"/other\""), "-/out +/other"),
            (
                with(
                    "        [[outbox]]\n        path = \"/out\"\n        to = [\"one\"]\n",
                    "",
                ),
                "-/out",
            ),
            (add(two), "+two"),
            (
                add(two).replace("        to = [\"one\"]\n", ""),
                "-/out +/out +two",
            ),
            (with("ID1", "ID2"), "-/out +/out -1 +one"),
            (with("listen = \"0.0.0.0:7420\"\n", ""), "listen None"),
            (with(":7420", ":7421"), "listen Some(\"0.0.0.0:7421\")"),
            (
                with("0.0.0.0:7420", "127.0.0.1:0"),
                "listen Some(\"127.0.0.1:0\")",
            ),
            (
                with("0.0.0.0", "127.0.0.1"),
                "the port to listen on is taken by this agent itself",
            ),
            (with("\"/in\"", "\"/inbox\""), another),
            (with("\"/in\"", "\"/in\"\nlayout = \"by-peer\""), another),
            (with("        [inbox]\n        path = \"/in\"\n", ""), another),
        ] {
            assert_eq!(told(plan(&config(BASE), &config(&new))), expected, "{new}");
        }
    }

    #[test]
    fn nothing_to_do_for_the_same() {
        let same = plan(&config(BASE), &config(BASE));
        assert_eq!(same, Plan::Change(Changes::default()));
    }
}
