//! Tells when something was mounted or unmounted, of which a native watch says nothing: an outbox may be hidden, or
//! gone, or there again.

#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;

    use tokio::io::{Interest, unix::AsyncFd};

    /// The kernel's list of mounts, whose descriptor becomes ready with every change.
    pub(in crate::outbox) struct Mounts(Option<AsyncFd<File>>);

    impl Mounts {
        /// On the runtime.
        pub(in crate::outbox) fn watch() -> Self {
            let list = File::open("/proc/self/mountinfo").ok();
            // SAFETY: a `File` names the same open descriptor as long as it lives.
            let register = |list| unsafe { AsyncFd::register_with_interest(list, Interest::PRIORITY) }.ok();
            Mounts(list.and_then(register))
        }

        /// Returns at the next change; where nobody tells of changes, after some seconds. May be dropped at any time.
        pub(in crate::outbox) async fn changed(&self) {
            if let Some(list) = &self.0
                && let Ok(mut ready) = list.ready(Interest::PRIORITY).await
            {
                ready.clear_ready();
            } else {
                tokio::time::sleep(super::LOOK).await;
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub(in crate::outbox) struct Mounts;

    impl Mounts {
        pub(in crate::outbox) fn watch() -> Self {
            Mounts
        }

        /// After some seconds: nobody tells here.
        pub(in crate::outbox) async fn changed(&self) {
            tokio::time::sleep(super::LOOK).await;
        }
    }
}

pub(super) use system::Mounts;

/// Between two looks where nobody tells of mounts.
const LOOK: std::time::Duration = std::time::Duration::from_secs(5);
