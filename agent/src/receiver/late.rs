//! Modification times that a sender tells after the delivery: programs set them once they have closed a file. The
//! ledger has the last one, so that a later one finds the file as it was left.

use std::io;

use dropwire_protocol::{AgentId, Mtime, message::LateTime};

use super::{Shared, inbox_dir::InboxDir, ledger, partial};
use crate::{
    error::chain,
    failpoints,
    fs::{confined, version::Version},
};

/// Gives delivered files of `peer` these times, each only where it still is what was delivered. Never a reason to refuse
/// anything: a crash, or an error, leaves the time of the offer.
pub(super) fn set(shared: &Shared, peer: AgentId, times: &[LateTime]) {
    if times.is_empty() {
        return;
    }
    let keys: Vec<_> = times.iter().map(|late| (peer, late.id)).collect();
    let files = shared.db.call_blocking(move |tx| {
        let file = |key: &_| ledger::delivered_file(tx, *key);
        keys.iter().map(file).collect::<rusqlite::Result<Vec<_>>>()
    });
    let (Ok(files), Ok(inbox_dir)) = (files, shared.handle.last_seen()) else {
        return;
    };
    let mut set = Vec::new();
    for (late, file) in times.iter().zip(files) {
        let Some((place, inode, manifest)) = file else {
            continue;
        };
        match set_one(
            &inbox_dir,
            &place,
            inode,
            manifest.size,
            manifest.mtime,
            late.mtime,
        ) {
            Ok(now) => set.extend(now.map(|now| ((peer, late.id), now))),
            Err(error) => {
                tracing::debug!(%place, %error, "it keeps the modification time that was announced");
            }
        }
    }
    if set.is_empty() || failpoints::mutant("late-again") {
        return;
    }
    let noted = shared.db.call_blocking(move |tx| ledger::retime(tx, &set));
    if let Err(error) = noted {
        tracing::debug!(error = %chain(&error), "further late times of these files are not heeded");
    }
}

/// The time that it has now; None: it is not as it was left.
fn set_one(
    inbox_dir: &InboxDir,
    place: &dropwire_protocol::RemotePath,
    inode: u64,
    size: u64,
    announced: Mtime,
    late: Mtime,
) -> io::Result<Option<Mtime>> {
    let folder = confined::parent(&inbox_dir.root, place)?;
    let file = confined::open_file(&folder, confined::os_str(place.file_name())?)?;
    let there = Version::raw(&file.metadata()?);
    // Some file systems keep whole seconds.
    let has = |mtime: Mtime| {
        there.mtime().seconds == mtime.seconds && [0, mtime.nanos].contains(&there.mtime().nanos)
    };
    let is_as_left =
        partial::inode(&file.metadata()?) == inode && there.size == size && (has(announced) || has(late));
    if !is_as_left && !failpoints::mutant("late-time") {
        return Ok(None);
    }
    partial::set_mtime(&file, late);
    Ok(Some(Version::raw(&file.metadata()?).mtime()))
}
