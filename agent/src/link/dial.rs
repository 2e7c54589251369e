//! Dialling: one task a peer. It dials while no link is up, with backoff, and rests while one is, and as long as the
//! peer has no address.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use dropwire_protocol::Error;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, timeout},
};

use super::{
    client::{self, Dialled},
    handshake,
    join_token::JoinToken,
    joining,
    pair::Pair,
    shared::Shared,
    transport::Transport,
};
use crate::{backoff, identity::Role};

/// Keeps a link to the peer until cancelled; begins again when its address changes.
pub(super) async fn keep(shared: Arc<Shared>, pair: Arc<Pair>) {
    let mut link_config = pair.link_config();
    loop {
        let address = link_config.borrow_and_update().address.clone();
        let dialling = async {
            match &address {
                Some(address) => redial(&shared, &pair, address).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pair.cancel.cancelled() => return,
            _ = link_config.wait_for(|peer| peer.address != address) => pair.plan_dial(None),
            () = dialling => {}
        }
    }
}

async fn redial(shared: &Arc<Shared>, pair: &Arc<Pair>, address: &str) {
    let mut linked = pair.linked();
    // Dials since a link last held.
    let mut attempt: u32 = 0;
    // What the log says of them.
    let mut told = None;
    loop {
        if *linked.borrow_and_update() {
            told = None;
            let up = Instant::now();
            let _ = linked.wait_for(|linked| !linked).await;
            if up.elapsed() >= HELD {
                attempt = 0;
            }
        }
        let wait = match attempt.checked_sub(1) {
            None => Duration::ZERO,
            Some(failed) => {
                let retry = shared.link_config().retry;
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
            if told.as_ref() != Some(&error)
                && let Some(more) = pair.log_limit().failed.due()
            {
                tracing::info!(peer = %pair.name(), address, attempt, error, more, "cannot reach the peer; dialling on");
                told = Some(error.clone());
            }
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

async fn connect(shared: &Arc<Shared>, pair: &Arc<Pair>, to: SocketAddr) -> Result<(), Error> {
    let since = Instant::now();
    let tcp = TcpStream::connect(to).await?;
    let roles: &[Role] = if handshake::round_trip(&tcp, since.elapsed()) >= shared.timing.far {
        &[Role::First, Role::Whole]
    } else {
        &[Role::Whole]
    };
    let Dialled {
        stream,
        role,
        name,
        traffic,
    } = client::secure(shared, pair, tcp, roles).await?;
    if role != Role::First {
        shared
            .meet(pair, Transport::Single(stream.into()), traffic, to.ip(), None)
            .await?;
        return Ok(());
    }
    let (transport, token) = JoinToken::open(stream, name, &traffic);
    if shared.meet(pair, transport, traffic, to.ip(), None).await? {
        let subflows = joining::dial_subflows(shared.clone(), pair.clone(), to, token);
        shared.tasks.spawn(subflows);
    }
    Ok(())
}

/// Spreads the dials of many agents; any number serves.
fn seed() -> u64 {
    getrandom::u64().unwrap_or_default()
}

/// A link that lasted this long counts as a success: the next dial is at once.
const HELD: Duration = Duration::from_secs(5);
