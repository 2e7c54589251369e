//! Dialling: one task a peer. It dials while no link is up, with backoff, and rests while one is, and as long as the
//! peer has no address.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{handshake, links::Shared, pair::Pair};
use crate::{backoff, identity};

/// Keeps a link to the peer until cancelled; begins anew when its address changes.
pub(super) async fn keep(shared: Arc<Shared>, pair: Arc<Pair>) {
    let mut terms = pair.terms();
    loop {
        let address = terms.borrow_and_update().address.clone();
        let dialling = async {
            match &address {
                Some(address) => redial(&shared, &pair, address).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pair.cancel.cancelled() => return,
            _ = terms.wait_for(|peer| peer.address != address) => pair.plan_dial(None),
            () = dialling => {}
        }
    }
}

async fn redial(shared: &Arc<Shared>, pair: &Arc<Pair>, address: &str) {
    let mut linked = pair.linked();
    // Dials since a link last held.
    let mut attempt: u32 = 0;
    loop {
        if *linked.borrow_and_update() {
            let up = Instant::now();
            let _ = linked.wait_for(|linked| !linked).await;
            if up.elapsed() >= HELD {
                attempt = 0;
            }
        }
        let wait = match attempt.checked_sub(1) {
            None => Duration::ZERO,
            Some(failed) => {
                let retry = shared.terms().retry;
                backoff::delay(retry.first, retry.max, failed, seed())
            }
        };
        pair.plan_dial(SystemTime::now().checked_add(wait));
        tokio::select! {
            () = sleep(wait) => {}
            () = pair.dial_now.notified() => {}
            _ = linked.wait_for(|linked| *linked) => {
                pair.plan_dial(None);
                continue;
            }
        }
        pair.plan_dial(None);
        attempt = attempt.saturating_add(1);
        if let Err(error) = dial(shared, pair, address).await {
            tracing::info!(peer = %pair.name(), address, attempt, error, "cannot reach the peer");
            pair.dial_failed(error);
        }
    }
}

/// Tries all addresses that the name has now, one after the other.
async fn dial(shared: &Arc<Shared>, pair: &Arc<Pair>, address: &str) -> Result<(), String> {
    let within = shared.timing.handshake;
    let found = match timeout(within, lookup_host(address)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(format!("cannot look up {address}: {error}")),
        Err(_) => return Err(format!("cannot look up {address}: no answer in time")),
    };
    let mut errors = Vec::new();
    for to in found {
        match timeout(within, connect(shared, pair, to)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => errors.push(format!("{to}: {}", handshake::explain(&error))),
            Err(_) => errors.push(format!("{to}: no answer in time")),
        }
    }
    if errors.is_empty() {
        return Err(format!("{address} has no address"));
    }
    Err(errors.join("; "))
}

async fn connect(
    shared: &Arc<Shared>,
    pair: &Arc<Pair>,
    to: std::net::SocketAddr,
) -> Result<(), dropwire_protocol::Error> {
    let tcp = TcpStream::connect(to).await?;
    let (socket, traffic) = handshake::socket(tcp, &shared.timing);
    let config = shared.identity.client_config(pair.id);
    // The name is never looked at: the key is pinned.
    let name = ServerName::from(to.ip());
    let stream = TlsConnector::from(config).connect(name, socket).await?;
    if identity::peer_id(stream.get_ref().1) != Some(pair.id) {
        return Err(std::io::Error::other("it does not speak dropwire's protocol").into());
    }
    shared.meet(pair, stream.into(), traffic, true).await
}

/// Spreads the dials of many agents; any number serves.
fn seed() -> u64 {
    getrandom::u64().unwrap_or_default()
}

/// A link that lasted this long counts as a success: the next dial is at once.
const HELD: Duration = Duration::from_secs(5);
