//! A job as chunks: reads one version of a file or of a whole folder, hashes it once, never a mix.
//!
//! Small files are read by a few workers (`small`); a larger one has a thread of its own. So a stalled transfer holds
//! up no other, and a thousand small ones need no thousand threads.

mod buffers;
mod checkpoints;
mod folder;
mod pass;
mod small;
mod subject;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use dropwire_protocol::Digest;
use tokio::sync::mpsc;

use self::{checkpoints::Checkpoints, pass::Opened, subject::Subject};
pub(super) use self::{
    small::SmallReads,
    subject::{Keep, digest_of},
};
use crate::{
    fs::version::Found,
    link::{Piece, Source, Voided},
    poison::Unpoisoned as _,
};

/// One version of one file in an outbox, as the link wants to read it; kept as long as the transfer may be rewound.
pub(super) struct FileSource {
    subject: Arc<Subject>,
    reads: SmallReads,
}

impl FileSource {
    /// The file that was `found` in the outbox at `root`, read among the agent's `reads` if it is small; any other
    /// version of it is [`Voided::Changed`].
    pub(super) fn new(root: PathBuf, found: Found, reads: SmallReads) -> Self {
        Self::resumable(root, found, reads, &[], Box::new(|_| {}))
    }

    /// A large file that was `found`, read from its checkpoints on: `kept` is what `keep` was given last, in an earlier
    /// attempt or an earlier life of the agent, or nothing.
    pub(super) fn resumable(root: PathBuf, found: Found, reads: SmallReads, kept: &[u8], keep: Keep) -> Self {
        let checkpoints = Mutex::new(Checkpoints::from_bytes(kept));
        Self {
            subject: Arc::new(Subject {
                root,
                found,
                checkpoints,
                keep,
                read: Mutex::default(),
            }),
            reads,
        }
    }

    /// The whole file's digest, once a pass read all of it as one version: what a receipt has to agree with.
    pub(super) fn digest(&self) -> Option<Digest> {
        *self.subject.read.lock().unpoisoned()
    }
}

/// Must be called on the runtime.
impl Source for FileSource {
    fn read(&self, offset: u64, digest: Digest, out: mpsc::Sender<Piece>) {
        let subject = Arc::clone(&self.subject);
        if subject.found.version.is_small() {
            return self.reads.read(subject, offset, digest, out);
        }
        let refused = out.clone();
        let started = thread::Builder::new().name("send".into()).spawn(move || {
            let mut feed = |piece| out.blocking_send(piece).is_ok();
            subject.read(&mut Opened::default(), offset, digest, &mut feed, &|| {
                out.is_closed()
            });
        });
        if let Err(error) = started {
            // The channel is new and empty; if not, its end says the same.
            let _ = refused.try_send(Piece::Void(Voided::Unreadable(format!("no thread: {error}"))));
        }
    }
}

#[cfg(test)]
mod tests;
