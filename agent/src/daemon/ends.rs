//! Tells the log of jobs that ended without being delivered: one line for each peer and kind of end, with a count where
//! several ended together.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    commands::Names,
    queue::{End, Ended, Queue},
};

/// What ends within this time of each other is told together.
const TOGETHER: Duration = Duration::from_secs(1);
/// The longest that a line waits for more of its kind.
const AT_MOST: Duration = Duration::from_secs(60);

/// Runs until cancelled; what ends after that is for [`tell`].
pub(super) async fn run(queue: Queue, names: Names, cancel: CancellationToken) {
    let telling = async {
        loop {
            queue.ends().more().await;
            let latest = Instant::now() + AT_MOST;
            let pause = || (Instant::now() + TOGETHER).min(latest);
            while timeout_at(pause(), queue.ends().more()).await.is_ok() && Instant::now() < latest {}
            tell(&queue, &names);
        }
    };
    cancel.run_until_cancelled(telling).await;
}

/// Tells of all that ended since it was last told.
pub(super) fn tell(queue: &Queue, names: &Names) {
    for ((peer, end), ended) in queue.ends().take() {
        let Ended {
            count,
            job,
            path,
            why,
        } = ended;
        let peer = names.name(peer);
        let text = match count {
            1 => "a job ended without being delivered".to_owned(),
            _ => format!("{count} jobs ended without being delivered, this one first"),
        };
        match end {
            // The newer version is on its way.
            End::Superseded => info!(peer, %job, path, why, count, "{text}"),
            End::Gone | End::Replaced | End::GivenUp | End::Refused | End::Cancelled => {
                warn!(peer, %job, path, why, count, "{text}");
            }
        }
    }
}
