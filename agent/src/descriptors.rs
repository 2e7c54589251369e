//! How many things that hold descriptors this process can afford at once.

use std::sync::LazyLock;

/// Asked once: the agent raises its limit before anything else, and never again.
static LIMIT: LazyLock<Option<usize>> = LazyLock::new(limit);

/// `most` of a kind that holds `each` descriptors, but no more than a quarter of what this process may have open, and
/// one at least: what else is done at the time needs some too.
pub fn affordable(most: usize, each: usize) -> usize {
    LIMIT.map_or(most, |limit| (limit / 4 / each.max(1)).clamp(1, most))
}

fn limit() -> Option<usize> {
    #[cfg(unix)]
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(unix))]
    let limit: Option<u64> = None;
    usize::try_from(limit?).ok()
}
