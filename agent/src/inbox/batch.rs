//! Small files, many to a commit: what waits is written, synced, noted, renamed and synced together.
//!
//! A single one goes the same way at once; nothing waits for a batch to fill. Small files have no row *receiving*:
//! nothing of them is ever resumed, and a partial without a row is litter.

use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering},
};

use dropwire_protocol::{AgentId, Digest, Manifest, RemotePath};

use super::{
    Shared,
    claims::Claim,
    commit::{self, Ready, Told},
    fair_queue::FairQueue,
    memory::Taken,
    output, partial,
    reply::{Answer, Reply},
    rights::{Known, Rights},
    site::Site,
    space::Reservation,
};
use crate::{durable, fault};

/// Most files of one batch.
const BATCH: usize = 512;
/// Folders on the files' paths, and the files themselves, and what [`COPY`] says, after which a batch takes no further one: others' files wait as
/// long as it takes to make and sync them.
const WORK: usize = 2048;
/// What a file counts for that is copied to another disk: one after the other, each with some syncs of its own. With
/// fewer of them to a batch, what a batch costs by itself would weigh more than they do.
const COPY: usize = WORK / 32;
/// What a file takes beside its bytes and its path while it waits.
const OVERHEAD: u64 = 512;
/// Most files that are open until each is synced for itself: descriptors are few.
const OPEN: usize = 64;
/// From so many on, one syncfs is cheaper than a sync of each...
const TOGETHER: usize = 4;
/// ...and so many while a large transfer's dirty data would be written with them.
const TOGETHER_BESIDE_LARGE: usize = 64;

/// A small file, whole in memory and verified.
pub struct Small {
    /// What was offered.
    pub manifest: Manifest,
    /// All of it.
    pub bytes: Vec<u8>,
    /// Of them.
    pub digest: Digest,
    /// Who is told.
    pub reply: Reply,
    /// Firm.
    pub claim: Claim,
    /// Room for it on the disk.
    pub reservation: Reservation,
    /// Room for it in memory.
    #[expect(dead_code, reason = "giving it back is what it is for")]
    pub memory: Taken,
}

/// Bytes of small files that wait for their batch or are in it. Half of it is a large batch, so that one is
/// received while another is synced.
pub const MEMORY: u64 = 3 << 20;

/// Bytes that a file takes of [`MEMORY`].
pub fn weight(manifest: &Manifest) -> u64 {
    manifest.size + manifest.path.as_bytes().len() as u64 + OVERHEAD
}

/// How much work `path` of `peer` is: the names on it, and the copy if it leads to another disk (one that is known, so not
/// the first file there).
pub fn work(shared: &Shared, peer: AgentId, path: &RemotePath) -> usize {
    let names = path.components().count();
    let is_copied = shared.gate.last_seen().is_ok_and(|site| {
        let top = shared.top(peer);
        let way = || shared.places.way(&site, peer, top.as_deref(), path);
        !site.disks.is_empty() && site.disks.is_crossed(&way())
    });
    match is_copied && !fault::mutant("fair-copies") {
        true => names + COPY,
        false => names,
    }
}

/// Takes batches until the queue is closed.
pub fn run(shared: &Arc<Shared>, waiting: &FairQueue<Small>) {
    while let Some(batch) = next(waiting) {
        store(shared, batch);
    }
}

/// What is stored together next.
pub fn next<T>(waiting: &FairQueue<T>) -> Option<Vec<T>> {
    waiting.batch(BATCH, WORK)
}

fn store(shared: &Arc<Shared>, batch: Vec<Small>) {
    let site = match shared.enter() {
        Ok(site) => site,
        Err(trouble) => {
            let answer = Answer::from(trouble);
            return batch.iter().for_each(|small| small.reply.end(answer.clone()));
        }
    };
    let enough = match shared.large.load(Ordering::Relaxed) {
        0 => TOGETHER,
        _ => TOGETHER_BESIDE_LARGE,
    };
    let batch = if site.syncfs && batch.len() >= enough {
        match store_together(shared, &site, batch) {
            None => return,
            Some(batch) => batch,
        }
    } else {
        batch
    };
    let mut waiting = batch.into_iter().peekable();
    while waiting.peek().is_some() {
        store_each(shared, &site, waiting.by_ref().take(OPEN));
    }
}

/// R2 to R9 with one syncfs. Gives the batch back when that failed; then nothing of it is on the disk.
fn store_together(shared: &Arc<Shared>, site: &Site, batch: Vec<Small>) -> Option<Vec<Small>> {
    let anchor = site.anchor(); // before the first write: errors count from here
    let mut known = Known::new();
    let written: Vec<_> = batch
        .into_iter()
        .filter_map(|small| write(shared, site, small, &mut known))
        .map(|Written { small, told, .. }| (small, told))
        .collect();
    match anchor.and_then(|a| fault::step("R5-syncfs", || durable::sync_filesystem(&a))) {
        Ok(()) => {
            place(shared, site, written);
            None
        }
        Err(error) => {
            tracing::warn!(files = written.len(), %error, "small files could not be synced at once");
            for (small, _) in &written {
                partial::remove(site, small.claim.key());
            }
            Some(written.into_iter().map(|(small, _)| small).collect())
        }
    }
}

/// R2 to R9, each file synced for itself.
fn store_each(shared: &Arc<Shared>, site: &Site, batch: impl Iterator<Item = Small>) {
    let mut known = Known::new();
    let written: Vec<_> = batch
        .filter_map(|small| write(shared, site, small, &mut known))
        .collect();
    let mut synced = Vec::with_capacity(written.len());
    for Written { small, told, file } in written {
        match fault::step("R5-small", || durable::sync_file(&file)) {
            Ok(()) => synced.push((small, told)),
            Err(e) => refuse(site, &small, Answer::io("syncing the file", &e)),
        }
    }
    if synced.is_empty() {
        return;
    }
    match fault::step("R5-small-dir", || durable::sync_dir(&site.partials)) {
        Ok(()) => place(shared, site, synced),
        Err(e) => {
            let answer = Answer::io("syncing the partials' folder", &e);
            synced
                .iter()
                .for_each(|(small, _)| refuse(site, small, answer.clone()));
        }
    }
}

/// A small file on its way to the disk.
struct Written {
    small: Small,
    told: Told,
    file: File,
}

/// R2, R3 and the first half of R5. None: it cannot be written, and is refused.
fn write(shared: &Shared, site: &Site, small: Small, known: &mut Known) -> Option<Written> {
    let (key, path) = (small.claim.key(), &small.manifest.path);
    let rights = Rights::expected(shared, site, key, path, known);
    let write = || -> io::Result<(Told, File)> {
        let file = partial::create(site, small.claim.key())?;
        output::write_at(&file, 0, &small.bytes)?;
        partial::dress(&file, &rights, small.manifest.mtime);
        Ok((Told::of(site, &file)?, file))
    };
    match write() {
        Ok((told, file)) => Some(Written { small, told, file }),
        Err(e) => {
            refuse(site, &small, Answer::io("writing the file", &e));
            None
        }
    }
}

fn place(shared: &Arc<Shared>, site: &Site, synced: Vec<(Small, Told)>) {
    let ready = synced.into_iter().map(|(small, told)| Ready {
        manifest: small.manifest,
        digest: small.digest,
        told,
        keep: None,
        reply: small.reply,
        claim: small.claim,
        reservation: small.reservation,
    });
    commit::place_all(shared, site, ready.collect());
}

fn refuse(site: &Site, small: &Small, answer: Answer) {
    partial::remove(site, small.claim.key()); // never had a row
    small.reply.end(answer);
}
