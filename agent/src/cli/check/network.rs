//! Where this agent listens, and whether it and its peers can reach each other.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use tokio::{net::lookup_host, sync::Semaphore, task::JoinSet, time::timeout};

use super::{Assessment, Finding};
use crate::{
    config::{Config, Peer},
    control::api::StatusReport,
    daemon::{Unreached, probe},
    error::{Exit, Fatal},
    failpoints,
    identity::Identity,
};

/// For looking up the address to listen on.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Peers that are dialled at the same time.
const AT_ONCE: usize = 32;

pub(super) async fn check(
    config: &Config,
    identity: Option<Identity>,
    agent: Option<StatusReport>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(address) = &config.listen {
        let ours = agent
            .as_ref()
            .and_then(|agent| agent.listen.as_ref()?.parse().ok());
        findings.push(Finding::new(
            format!("listen {address}"),
            listen(address, ours).await,
        ));
    }
    if config.peers.is_empty() {
        let none = "none yet: add a `[[peer]]`, its block is what `dropwire init` prints there";
        findings.push(Finding::new("peers", Ok(none.into())));
    }
    findings.extend(peers(config, identity, agent).await);
    findings
}

/// `ours`: where our running agent listens.
async fn listen(address: &str, ours: Option<SocketAddr>) -> Result<String, Fatal> {
    let found = timeout(LOOK_UP, lookup_host(address)).await;
    let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let addresses: Vec<SocketAddr> = match found {
        Ok(found) => found.collect(),
        Err(error) => {
            let fatal = Fatal::new(
                Exit::CannotCreate,
                format_args!("cannot look up {address}: {error}"),
            );
            return Err(fatal.hint("write an address of this machine in `listen`, or `0.0.0.0` for all"));
        }
    };
    // With port 0 the system chose one.
    let is_ours = |wanted: &SocketAddr| {
        ours.is_some_and(|ours| {
            let same = wanted.ip() == ours.ip() && [ours.port(), 0].contains(&wanted.port());
            same || failpoints::mutant("check-ours")
        })
    };
    if addresses.iter().any(is_ours) {
        return Ok("the running agent listens there".into());
    }
    match TcpListener::bind(addresses.as_slice()) {
        Ok(_) => Ok("is free".into()),
        Err(error) => {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                _ => Exit::CannotCreate,
            };
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another program has it, or another agent: choose another port in `listen`"
                }
                io::ErrorKind::PermissionDenied => "choose a port above 1023 in `listen`",
                _ => "write an address of this machine in `listen`, or `0.0.0.0` for all",
            };
            Err(Fatal::new(exit, format_args!("cannot listen on {address}: {error}")).hint(hint))
        }
    }
}

/// In the config's order.
async fn peers(config: &Config, identity: Option<Identity>, agent: Option<StatusReport>) -> Vec<Finding> {
    let identity = identity.map(Arc::new);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let listens = config.listen.is_some();
    let mut asked = JoinSet::new();
    for (number, peer) in config.peers.iter().cloned().enumerate() {
        let connected = agent.as_ref().is_some_and(|agent| {
            let known = agent.peers.iter().find(|known| known.name == peer.name);
            known.is_some_and(|known| known.connected)
        });
        let (identity, places) = (identity.clone(), places.clone());
        asked.spawn(async move {
            let _place = places.acquire().await;
            let told = match connected {
                true => Assessment::Good("is linked with the running agent".into()),
                false => reach(&peer, listens, identity.as_deref()).await,
            };
            (number, Finding::new(format!("peer {}", peer.name), told))
        });
    }
    let mut findings = asked.join_all().await;
    findings.sort_by_key(|(number, _)| *number);
    findings.into_iter().map(|(_, finding)| finding).collect()
}

async fn reach(peer: &Peer, listens: bool, identity: Option<&Identity>) -> Assessment {
    let name = &peer.name;
    let Some(address) = &peer.address else {
        return match listens {
            true => Assessment::Good("dials this machine".into()),
            false => Assessment::Trouble(
                Fatal::new(
                    Exit::Config,
                    format_args!(
                        "nobody can dial: this machine has no `listen`, and {name} has no `address`"
                    ),
                )
                .hint(format_args!(
                    "write the `address` of {name}, or `listen` at the top of this config"
                )),
            ),
        };
    };
    let Some(identity) = identity else {
        return Assessment::Note(format!("{address} was not dialled, as there is no identity yet"));
    };
    let unavailable = |text: String| Fatal::new(Exit::Unavailable, text);
    match probe(identity, peer.id, address).await {
        Ok(_) => Assessment::Good(format!("answers at {address}")),
        Err(Unreached::Silent(error)) => Assessment::Note(format!(
            "does not answer now; its files wait until it does, or dials ({error})"
        )),
        Err(Unreached::Unknown(error)) => Assessment::Trouble(
            unavailable(format!("cannot look up {address}: {error}")).hint(format_args!(
                "correct the `address` of {name}, or the name service of this machine"
            )),
        ),
        Err(Unreached::TurnedAway(why)) => Assessment::Trouble(unavailable(why)),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_address_of_our_own_agent_may_be_in_use() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
        let address = taken.1.to_string();
        let other: SocketAddr = "127.0.0.1:1".parse().unwrap();
        for ours in [None, Some(other)] {
            assert_eq!(
                listen(&address, ours).await.unwrap_err().exit,
                Exit::CannotCreate,
                "{ours:?}"
            );
        }
        let told = listen(&address, Some(taken.1)).await.unwrap();
        assert_eq!(told, "the running agent listens there");
        assert!(listen("127.0.0.1:0", Some(taken.1)).await.is_ok());
        assert_eq!(listen("127.0.0.1:0", None).await.unwrap(), "is free");
        assert_eq!(
            listen("no-such-host.invalid:1", None).await.unwrap_err().exit,
            Exit::CannotCreate
        );
    }

    #[tokio::test]
    async fn somebody_can_dial() {
        let identity = Identity::generate();
        let id = Identity::generate().id();
        let nobody = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        // Somebody who does not speak the protocol.
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let others = other.local_addr().unwrap().to_string();
        let _ends = std::thread::spawn(move || {
            use std::io::Write as _;
            let (mut connection, _) = other.accept().unwrap();
            let _ = connection.write_all(b"220 mail.example.org ESMTP\r\n");
        });
        for (address, listens, expected) in [
            (None, true, None),
            (None, false, Some(Exit::Config)),
            (Some(nobody), false, None),
            (
                Some("no-such-host.invalid:1".into()),
                true,
                Some(Exit::Unavailable),
            ),
            (Some(others), true, Some(Exit::Unavailable)),
        ] {
            let peer = Peer {
                name: "office".into(),
                id,
                address: address.clone(),
                max_file_size: None,
            };
            let exit = match reach(&peer, listens, Some(&identity)).await {
                Assessment::Trouble(fatal) => Some(fatal.exit),
                Assessment::Good(_) | Assessment::Note(_) => None,
            };
            assert_eq!(exit, expected, "{address:?}");
        }
    }
}
