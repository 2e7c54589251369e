//! Tells when something was mounted or unmounted, of which a native watch says nothing: an outbox may be hidden, or
//! gone, or there again, or have another disk inside it. Where nobody tells of mounts either, the outbox's folder is
//! checked now and then.

#[cfg(target_os = "linux")]
mod system {
    use std::{fs::File, sync::Once};

    use tokio::io::{Interest, unix::AsyncFd};

    use crate::fs::border;

    /// The kernel's list of mounts, whose descriptor becomes ready with every change.
    pub(in crate::outbox) struct Mounts(Option<AsyncFd<File>>);

    static SAID: Once = Once::new();

    impl Mounts {
        /// On the runtime.
        pub(in crate::outbox) fn watch() -> Self {
            let list = File::open(border::MOUNTS).ok();
            // SAFETY: a `File` names the same open descriptor as long as it lives.
            let register = |list| unsafe { AsyncFd::register_with_interest(list, Interest::PRIORITY) }.ok();
            let list = list.and_then(register);
            if list.is_none() {
                SAID.call_once(|| {
                    tracing::warn!(
                        "the system does not tell of mounts here: outboxes are looked for now and then"
                    );
                });
            }
            Self(list)
        }

        /// Returns at the next change, with true; where nobody tells of changes, after some seconds, with false. May be
        /// dropped at any time.
        pub(in crate::outbox) async fn changed(&self) -> bool {
            if let Some(list) = &self.0
                && let Ok(mut ready) = list.ready(Interest::PRIORITY).await
            {
                ready.clear_ready();
                return true;
            }
            tokio::time::sleep(super::LOOK).await;
            false
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

        /// False, after some seconds: nobody tells here.
        pub(in crate::outbox) async fn changed(&self) -> bool {
            tokio::time::sleep(super::LOOK).await;
            false
        }
    }
}

pub(super) use system::Mounts;

/// Time between two checks where nobody tells of mounts.
const LOOK: std::time::Duration = std::time::Duration::from_secs(5);
