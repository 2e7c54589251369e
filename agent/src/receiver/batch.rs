//! Small files, many to a commit: what waits is written, synced, noted, renamed and synced together.
//!
//! A single one goes the same way at once; nothing waits for a batch to fill. Small files have no row *receiving*:
//! nothing of them is ever resumed, and a partial without a row is litter.

use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering},
};

use dropwire_protocol::{AgentId, Manifest, RemotePath};

use super::{
    Shared,
    byte_budget::Taken,
    commit::{self, Ready, Told},
    fair_queue::FairQueue,
    inbox_dir::InboxDir,
    incoming::Verified,
    output, partial,
    reply::Answer,
    rights::{Known, Rights},
};
use crate::{failpoints, fs::durable};

/// Most files of one batch.
const BATCH: usize = 512;
/// Work budget of a batch: the files, the folders on their paths, and [`COPY`] for each copied file. A batch that reached
/// it takes no more files, for others' files wait as long as these take to make and sync.
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

/// A small file, whole in memory.
pub(super) struct Small {
    /// What came.
    pub verified: Verified,
    /// All its bytes.
    pub bytes: Vec<u8>,
    /// Room for them in memory.
    #[expect(dead_code, reason = "giving it back is what it is for")]
    pub byte_budget: Taken,
}

/// Bytes of small files that wait for their batch or are in it. Half of it is a large batch, so that one is
/// received while another is synced.
pub(super) const MEMORY: u64 = 3 << 20;

/// Bytes that a file takes of [`MEMORY`].
pub(super) fn weight(manifest: &Manifest) -> u64 {
    manifest.size + manifest.path.as_bytes().len() as u64 + OVERHEAD
}

/// How much work `path` of `peer` is: the names on it, and the copy if it leads to another disk (one that is known, so
/// not the first file there).
pub(super) fn work(shared: &Shared, peer: AgentId, path: &RemotePath) -> usize {
    let names = path.components().count();
    let is_copied = shared.handle.last_seen().is_ok_and(|inbox_dir| {
        let top = shared.top(peer);
        let way = || shared.places.way(&inbox_dir, peer, top.as_deref(), path);
        !inbox_dir.disks.is_empty() && inbox_dir.disks.is_crossed(&way())
    });
    match is_copied && !failpoints::mutant("fair-copies") {
        true => names + COPY,
        false => names,
    }
}

/// Takes batches until the queue is closed.
pub(super) fn run(shared: &Arc<Shared>, waiting: &FairQueue<Small>) {
    while let Some(batch) = next(waiting) {
        store(shared, batch);
    }
}

/// What is stored together next.
pub(super) fn next<T>(waiting: &FairQueue<T>) -> Option<Vec<T>> {
    waiting.batch(BATCH, WORK)
}

fn store(shared: &Arc<Shared>, batch: Vec<Small>) {
    let inbox_dir = match shared.open_inbox() {
        Ok(inbox_dir) => inbox_dir,
        Err(trouble) => {
            let answer = Answer::from(trouble);
            return batch
                .iter()
                .for_each(|small| small.verified.reply.end(answer.clone()));
        }
    };
    let enough = match shared.large.load(Ordering::Relaxed) {
        0 => TOGETHER,
        _ => TOGETHER_BESIDE_LARGE,
    };
    let batch = if inbox_dir.syncfs && batch.len() >= enough {
        match store_together(shared, &inbox_dir, batch) {
            None => return,
            Some(batch) => batch,
        }
    } else {
        batch
    };
    let mut waiting = batch.into_iter().peekable();
    while waiting.peek().is_some() {
        store_each(shared, &inbox_dir, waiting.by_ref().take(OPEN));
    }
}

/// R2 to R9 with one syncfs. Gives the batch back when that failed; then nothing of it is on the disk.
fn store_together(shared: &Arc<Shared>, inbox_dir: &InboxDir, batch: Vec<Small>) -> Option<Vec<Small>> {
    let sync_handle = inbox_dir.sync_handle(); // before the first write: errors count from here
    let mut known = Known::new();
    let written: Vec<_> = batch
        .into_iter()
        .filter_map(|small| write(shared, inbox_dir, small, &mut known))
        .map(|Written { small, told, .. }| (small, told))
        .collect();
    match sync_handle.and_then(|a| failpoints::step("R5-syncfs", || durable::sync_filesystem(&a))) {
        Ok(()) => {
            place(shared, inbox_dir, written);
            None
        }
        Err(error) => {
            tracing::warn!(files = written.len(), %error, "small files could not be synced at once");
            for (small, _) in &written {
                partial::remove(inbox_dir, small.verified.lock.key());
            }
            Some(written.into_iter().map(|(small, _)| small).collect())
        }
    }
}

/// R2 to R9, each file synced for itself.
fn store_each(shared: &Arc<Shared>, inbox_dir: &InboxDir, batch: impl Iterator<Item = Small>) {
    let mut known = Known::new();
    let written: Vec<_> = batch
        .filter_map(|small| write(shared, inbox_dir, small, &mut known))
        .collect();
    let mut synced = Vec::with_capacity(written.len());
    for Written { small, told, file } in written {
        match failpoints::step("R5-small", || durable::sync_file(&file)) {
            Ok(()) => synced.push((small, told)),
            Err(e) => refuse(inbox_dir, &small, Answer::io("syncing the file", &e)),
        }
    }
    if synced.is_empty() {
        return;
    }
    match failpoints::step("R5-small-dir", || durable::sync_dir(&inbox_dir.partials)) {
        Ok(()) => place(shared, inbox_dir, synced),
        Err(e) => {
            let answer = Answer::io("syncing the partials' folder", &e);
            synced
                .iter()
                .for_each(|(small, _)| refuse(inbox_dir, small, answer.clone()));
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
fn write(shared: &Shared, inbox_dir: &InboxDir, small: Small, known: &mut Known) -> Option<Written> {
    let (key, path) = (small.verified.lock.key(), &small.verified.manifest.path);
    let rights = Rights::expected(shared, inbox_dir, key, path, known);
    let write = || -> io::Result<(Told, File)> {
        // Whole in memory, so it may be made with the permissions that it is seen with.
        let file = partial::create_in(&inbox_dir.partials, &partial::file_name(key), rights.file_mode())?;
        output::write_at(&file, 0, &small.bytes)?;
        let meta = file.metadata()?;
        partial::set_metadata(&file, &meta, &rights, small.verified.manifest.mtime);
        Ok((Told::of(inbox_dir, &file, partial::inode(&meta))?, file))
    };
    match write() {
        Ok((told, file)) => Some(Written { small, told, file }),
        Err(e) => {
            refuse(inbox_dir, &small, Answer::io("writing the file", &e));
            None
        }
    }
}

fn place(shared: &Arc<Shared>, inbox_dir: &InboxDir, synced: Vec<(Small, Told)>) {
    let ready = synced.into_iter().map(|(small, told)| Ready {
        verified: small.verified,
        told,
        keep: None,
    });
    commit::place_all(shared, inbox_dir, ready.collect());
}

fn refuse(inbox_dir: &InboxDir, small: &Small, answer: Answer) {
    partial::remove(inbox_dir, small.verified.lock.key()); // never had a row
    small.verified.reply.end(answer);
}
