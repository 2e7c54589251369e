//! Modification times that a sender tells after the delivery: programs set them once they have closed a file.

use std::io;

use dropwire_protocol::{AgentId, Mtime, message::LateTime};

use super::{Shared, ledger, partial, site::Site};
use crate::{confined, fault, version::Version};

/// Gives delivered files of `peer` these times, each only where it still is what was delivered. Never a reason to refuse
/// anything: a crash, or an error, leaves the time of the offer.
pub fn set(shared: &Shared, peer: AgentId, times: &[LateTime]) {
    if times.is_empty() {
        return;
    }
    let keys: Vec<_> = times.iter().map(|late| (peer, late.id)).collect();
    let files = shared.db.call_blocking(move |tx| {
        let file = |key: &_| ledger::delivered_file(tx, *key);
        keys.iter().map(file).collect::<rusqlite::Result<Vec<_>>>()
    });
    let (Ok(files), Ok(site)) = (files, shared.gate.last_seen()) else {
        return;
    };
    for (late, file) in times.iter().zip(files) {
        if let Some((place, inode, manifest)) = file
            && let Err(error) = set_one(&site, &place, inode, manifest.size, manifest.mtime, late.mtime)
        {
            tracing::debug!(%place, %error, "it keeps the modification time that was announced");
        }
    }
}

fn set_one(
    site: &Site,
    place: &dropwire_protocol::RemotePath,
    inode: u64,
    size: u64,
    announced: Mtime,
    late: Mtime,
) -> io::Result<()> {
    let folder = confined::parent(&site.root, place)?;
    let file = confined::open_file(&folder, confined::os_str(place.file_name())?)?;
    let there = Version::raw(&file.metadata()?);
    // Some file systems keep whole seconds.
    let is_as_delivered = partial::inode(&file)? == inode
        && there.size == size
        && there.mtime().seconds == announced.seconds
        && [0, announced.nanos].contains(&there.mtime().nanos);
    if is_as_delivered || fault::mutant("late-time") {
        partial::set_mtime(&file, late);
    }
    Ok(())
}
