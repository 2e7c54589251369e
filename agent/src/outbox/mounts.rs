//! Tells when something was mounted or unmounted, of which a native watch says nothing: an outbox may be hidden, or
//! gone, or there again, or have another disk inside it. Where nobody tells of mounts either, the outbox's folder is looked at now and then.

#[cfg(target_os = "linux")]
mod system {
    use std::{
        collections::BTreeSet,
        fs::{self, File},
        os::unix::ffi::OsStrExt,
        path::Path,
        sync::Once,
    };

    use tokio::io::{Interest, unix::AsyncFd};

    const LIST: &str = "/proc/self/mountinfo";

    /// The kernel's list of mounts, whose descriptor becomes ready with every change.
    pub(in crate::outbox) struct Mounts(Option<AsyncFd<File>>);

    static SAID: Once = Once::new();

    impl Mounts {
        /// On the runtime.
        pub(in crate::outbox) fn watch() -> Self {
            let list = File::open(LIST).ok();
            // SAFETY: a `File` names the same open descriptor as long as it lives.
            let register = |list| unsafe { AsyncFd::register_with_interest(list, Interest::PRIORITY) }.ok();
            let list = list.and_then(register);
            if list.is_none() {
                SAID.call_once(|| {
                    tracing::warn!(
                        "the system does not tell of mounts here: outboxes are looked for now and then"
                    )
                });
            }
            Mounts(list)
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

    /// What is mounted below this folder, each by its number and where it is. May block.
    pub(in crate::outbox) fn inside(root: &Path) -> BTreeSet<String> {
        let Ok(root) = root.canonicalize() else {
            return BTreeSet::new();
        };
        let list = fs::read(LIST).unwrap_or_default();
        of_list(&String::from_utf8_lossy(&list), &root)
    }

    pub(super) fn of_list(list: &str, root: &Path) -> BTreeSet<String> {
        let mut below = escaped(root);
        if !below.ends_with('/') {
            below.push('/');
        }
        let mounts = list.lines().filter_map(|line| {
            let mut fields = line.split(' ');
            Some((fields.next()?, fields.nth(3)?))
        });
        mounts
            .filter(|(_, at)| at.starts_with(&below) && at.len() > below.len())
            .map(|(number, at)| format!("{number} {at}"))
            .collect()
    }

    /// As the kernel writes a path there (proc_pid_mountinfo(5)).
    fn escaped(path: &Path) -> String {
        let mut written = Vec::new();
        for &byte in path.as_os_str().as_bytes() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' => written.extend(format!("\\{byte:03o}").into_bytes()),
                _ => written.push(byte),
            }
        }
        String::from_utf8_lossy(&written).into_owned()
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::{collections::BTreeSet, path::Path};

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

    pub(in crate::outbox) fn inside(_: &Path) -> BTreeSet<String> {
        BTreeSet::new()
    }
}

pub(super) use system::{Mounts, inside};

/// Between two looks where nobody tells of mounts.
const LOOK: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::path::Path;

    use super::system::of_list;

    #[test]
    fn only_what_is_mounted_below() {
        let list = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 22 0:30 / /home/me/Out\\040box rw - tmpfs tmpfs rw
32 31 0:31 / /home/me/Out\\040box/disk rw - tmpfs tmpfs rw
33 22 0:32 / /home/me/Out\\040boxes/disk rw - tmpfs tmpfs rw
34 22 0:33 / /home/me rw - tmpfs tmpfs rw
";
        let found = |root: &str| of_list(list, Path::new(root)).into_iter().collect::<Vec<_>>();
        assert_eq!(found("/home/me/Out box"), ["32 /home/me/Out\\040box/disk"]);
        assert_eq!(found("/home/me/Outbox"), [""; 0]);
        assert_eq!(found("/").len(), 4);
    }
}
