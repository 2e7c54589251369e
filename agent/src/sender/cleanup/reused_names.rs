//! Names that are taken again as soon as a file has left.

use crate::{failpoints, fs::confined, queue};

/// The next file of that name may have had the same version, and was taken for the one that was about to leave: without
/// a time of birth nothing tells a new file from one whose inode it was given.
pub(super) fn is_mistakable(disposal: &queue::DueDisposal) -> bool {
    let version = &disposal.found.version;
    (version.birth_ns == 0 || version.folder) && !failpoints::mutant("S6-again")
}

/// Those whose name is taken. Blocks for the disk.
pub(super) fn is_there(mut gone: Vec<queue::DueDisposal>) -> Vec<queue::DueDisposal> {
    gone.retain(|d| confined::join(&d.root, &d.found.path).symlink_metadata().is_ok());
    gone
}

#[cfg(test)]
mod tests {
    use dropwire_protocol::{Digest, RemotePath};

    use super::*;
    use crate::{
        config::AfterSend,
        fs::version::{Found, OutboxId, Version},
        queue::ItemId,
    };

    #[test]
    fn a_name_that_is_taken_again_is_looked_at_where_nothing_tells_the_new_file() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("there"), "").unwrap();
        let left = |name: &str, birth_ns, folder| queue::DueDisposal {
            item: ItemId(1),
            name: String::new(),
            root: temp.path().to_owned(),
            found: Found {
                outbox: OutboxId([1; 16]),
                path: RemotePath::parse(name.as_bytes()).unwrap(),
                version: Version {
                    inode: 1,
                    birth_ns,
                    size: 1,
                    mtime_ns: 1,
                    ctime_ns: 1,
                    folder,
                },
            },
            digest: Digest([0; 32]),
            delivered_ms: 0,
            after_send: AfterSend::Delete,
            marker: None,
        };
        assert!(is_mistakable(&left("there", 0, false)) && is_mistakable(&left("there", 1, true)));
        assert!(!is_mistakable(&left("there", 1, false)));
        let there = is_there(vec![left("there", 0, false), left("gone", 0, false)]);
        assert_eq!(there, [left("there", 0, false)]);
    }
}
