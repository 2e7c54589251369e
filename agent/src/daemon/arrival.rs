//! Tells of files that arrived: in the log, and to `on_arrival`, a program of the user's that is run for each. A
//! convenience: files count as delivered before it.

use std::path::Path;

use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::program;
use crate::{
    commands::Names,
    config::Current,
    error::shown,
    receiver::{Arrival, Inbox},
};

/// Most files that wait for their program: one that is slow by more is not run for the rest.
const WAITING: usize = 100_000;

/// Runs until cancelled, one program at a time.
pub(super) async fn run(inbox: Inbox, config: Current, names: Names, cancel: CancellationToken) {
    let (waiting, mut next) = mpsc::channel(WAITING);
    let tell = async {
        let mut arrivals = inbox.arrivals();
        while let Some(arrival) = hear(&mut arrivals).await {
            let peer = names.name(arrival.peer);
            info!(peer, job = %arrival.job, path = shown(&arrival.path), "arrived");
            if on_arrival(&config).is_some() && waiting.try_send(arrival).is_err() {
                warn!(peer, "on_arrival is too slow: not run for a file");
            }
        }
    };
    let programs = async {
        while let Some(Arrival { path, peer, job }) = next.recv().await {
            let Some((program, arguments)) = on_arrival(&config) else {
                continue;
            };
            if let Err(error) = run_one(&program, &arguments, &path).await {
                let peer = names.name(peer);
                warn!(peer, %job, path = shown(&path), program, error, "on_arrival");
            }
        }
    };
    // Dropping both also ends a program that runs.
    let both = async { tokio::join!(tell, programs) };
    cancel.run_until_cancelled(both).await;
}

/// The next one; those that were missed are told of. None once there is no inbox.
async fn hear(arrivals: &mut broadcast::Receiver<Arrival>) -> Option<Arrival> {
    loop {
        match arrivals.recv().await {
            Ok(arrival) => return Some(arrival),
            Err(RecvError::Lagged(missed)) => {
                warn!(missed, "more files arrived at once than could be told of");
            }
            Err(RecvError::Closed) => return None,
        }
    }
}

/// The program and its arguments, as the config has them now.
fn on_arrival(config: &Current) -> Option<(String, Vec<String>)> {
    let config = config.get();
    let (program, arguments) = config.inbox.as_ref()?.on_arrival.split_first()?;
    Some((program.clone(), arguments.to_vec()))
}

async fn run_one(program: &str, arguments: &[String], path: &Path) -> Result<(), String> {
    let mut command = program::command(program);
    for argument in arguments {
        if argument == "{path}" {
            command.arg(path);
        } else {
            command.arg(argument);
        }
    }
    let status = command
        .status()
        .await
        .map_err(|e| format!("cannot be started: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("ended with {status}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dropwire_protocol::{AgentId, TransferId};

    #[tokio::test]
    async fn who_missed_some_still_hears_of_the_rest() {
        let (tell, mut arrivals) = broadcast::channel(2);
        for path in ["a", "b", "c"] {
            let (peer, job) = (AgentId([0; 32]), TransferId([0; 16]));
            tell.send(Arrival {
                path: path.into(),
                peer,
                job,
            })
            .unwrap();
        }
        drop(tell);
        assert_eq!(hear(&mut arrivals).await.unwrap().path, Path::new("b"));
        assert_eq!(hear(&mut arrivals).await.unwrap().path, Path::new("c"));
        assert_eq!(hear(&mut arrivals).await, None);
    }
}
