//! `on_arrival`: a program of the user's, run for each file that arrived. A convenience: files count as delivered before it.

use std::{path::Path, process::Stdio, sync::Arc};

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Shared;

/// Runs until cancelled, one program at a time.
pub async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut arrivals = shared.inbox.arrivals();
    while let Some(received) = cancel.run_until_cancelled(arrivals.recv()).await {
        let arrival = match received {
            Ok(arrival) => arrival,
            Err(RecvError::Lagged(missed)) => {
                warn!(missed, "on_arrival is too slow: it is not run for some files");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let command = shared
            .config()
            .inbox
            .as_ref()
            .map(|i| i.on_arrival.clone())
            .unwrap_or_default();
        let Some((program, arguments)) = command.split_first() else {
            continue;
        };
        let ran = cancel
            .run_until_cancelled(run_one(program, arguments, &arrival.path))
            .await;
        if let Some(Err(error)) = ran {
            warn!(program, %error, "on_arrival");
        }
    }
}

async fn run_one(program: &str, arguments: &[String], path: &Path) -> Result<(), String> {
    let mut command = tokio::process::Command::new(program);
    for argument in arguments {
        if argument == "{path}" {
            command.arg(path);
        } else {
            command.arg(argument);
        }
    }
    let status = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|e| format!("cannot be started: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("ended with {status}"))
    }
}
