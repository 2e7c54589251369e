//! Work that blocks, away from the threads that run tasks.

use crate::error::{Exit, Fatal};

/// Waits for `future`, on a thread that may block.
pub fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Handle::current().block_on(future)
}

/// Runs `work` on a thread of its own. Fails only where it panics or the runtime ends.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fatal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Fatal::new(Exit::Failed, format_args!("a task failed: {e}")))
}
