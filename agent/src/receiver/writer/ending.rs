//! How the work on a large partial ends: kept, given up, or committed.

use std::{sync::Arc, time::Instant};

use dropwire_protocol::{Kind, message::DeclineReason};

use super::{End, Writer};
use crate::{
    failpoints,
    fs::durable,
    receiver::{
        admit,
        checkpoint::Checkpointer,
        commit::{self, Ready, Told, Whole},
        ledger, partial,
        reply::{Answer, Reply, spoils},
        rights::{Known, Rights},
        unpack::{self, Target},
    },
};

impl Writer<'_> {
    /// Is the inbox, of which this holds handles, still the one at its path? What is whole is not placed in a folder that
    /// was moved away or replaced since, nor after a sync of it failed.
    fn still_there(&self) -> Result<(), Answer> {
        let inbox_dir = self.shared.open_inbox()?;
        if inbox_dir.is_same(&self.inbox_dir) || failpoints::mutant("R5-site") {
            return Ok(());
        }
        let text = "the inbox was replaced by another folder meanwhile";
        Err(Answer::refused(
            DeclineReason::InboxUnavailable,
            text,
            Some(1_000),
        ))
    }

    /// Ends the work on the partial, and only then answers.
    pub(super) fn close(mut self, end: End, reply: Reply) {
        let end = match end {
            End::Whole => match self.still_there() {
                Ok(()) => End::Whole,
                Err(answer) => {
                    self.finishing = false; // what there is is kept
                    answer.into()
                }
            },
            end => end,
        };
        // Where a damaged prefix could not be cut, it is there still, and no checkpointer is.
        let proven =
            (self.reread.is_none() && self.checkpointer.is_some()) || failpoints::mutant("R4-proven");
        if let Some(reread) = self.reread.take() {
            reread.cancel();
        }
        if !matches!(end, End::Said { keep: false, .. })
            // Unpacking takes its time: a crash in it must not cost the stream.
            && (!self.finishing || self.manifest.kind == Kind::Folder)
            && self.digest.length() > self.asked
        {
            // What cannot be written comes again, from the last checkpoint on.
            let _ = self.checkpoint(true);
        }
        let synced = self.checkpointer.take().map_or(Ok(0), Checkpointer::finish);
        let end = match (end, synced) {
            (end @ End::Said { keep: false, .. }, _) => end,
            (End::Released, Err(failure)) => End::Said {
                answer: Answer::Silent,
                keep: !failure.disk,
            },
            (End::Said { answer, .. }, Err(failure)) => End::Said {
                answer,
                keep: !failure.disk,
            },
            (End::Whole, Err(failure)) => failure.into(),
            (end, Ok(_)) => end,
        };
        if proven && matches!(end, End::Released | End::Said { keep: true, .. }) {
            self.shared
                .verified_prefixes
                .set(self.lock.key(), self.output.file());
        }
        match end {
            End::Released => {}
            End::Said { answer, keep } => {
                if keep || self.give_up() {
                    reply.end(answer);
                }
            }
            End::Whole => self.commit(reply),
        }
    }

    /// R5, then the rest.
    fn commit(self, reply: Reply) {
        if self.manifest.kind == Kind::Folder {
            return self.commit_folder(reply);
        }
        partial::set_metadata(self.output.file(), &self.rights(), self.manifest.mtime);
        let durable = failpoints::step("R5-partial", || durable::sync_file(self.output.file()))
            .and_then(|()| failpoints::step("R5-partial-dir", || durable::sync_dir(&self.inbox_dir.partials)))
            .and_then(|()| Told::of(&self.inbox_dir, self.output.file()));
        match durable {
            Ok(told) => self.place(told, reply),
            Err(e) if spoils(&e) => {
                if self.give_up() {
                    reply.end(Answer::io("syncing the file", &e));
                }
            }
            // Its folder could not be opened to be synced: the file itself may not be durable, so no checkpoint is made.
            Err(e) => reply.end(Answer::io("syncing the file", &e)),
        }
    }

    fn rights(&self) -> Arc<Rights> {
        let (key, path) = (self.lock.key(), &self.manifest.path);
        Rights::expected(self.shared, &self.inbox_dir, key, path, &mut Known::new())
    }

    /// The same for a whole folder, which is unpacked first. A newer link waits for that, and then finds it delivered:
    /// if it began anew, a link that breaks often would never see the end.
    fn commit_folder(mut self, reply: Reply) {
        let unpacked = unpack::survey(self.output.file()).and_then(|need| {
            self.make_room(need).map_err(unpack::Failure::NotNow)?;
            let (key, digest) = (self.lock.key(), self.digest.value());
            let target = Target::of(&self.inbox_dir, self.rights());
            let (reservation, cancel) = (&mut self.reservation, &self.shared.cancel);
            unpack::unpack(&target, key, self.output.file(), digest, &mut |bytes| {
                reservation.used(bytes, Instant::now());
                !cancel.is_cancelled()
            })
        });
        match unpacked {
            Ok(inode) => self.place(Told::folder(inode), reply),
            Err(unpack::Failure::NotNow(answer)) => {
                if let Err(error) = partial::remove_folder(&self.inbox_dir, self.lock.key()) {
                    tracing::warn!(%error, "a folder that could not be made stays until the next try");
                }
                reply.end(answer);
            }
            Err(unpack::Failure::Stopped) => {
                reply.end(Answer::refused(DeclineReason::Busy, "the agent stops", None));
            }
            Err(unpack::Failure::Useless(answer)) => {
                if self.give_up() {
                    reply.end(answer);
                }
            }
        }
    }

    /// Promises the `need` of the unpacked folder: the stream itself is on the disk.
    fn make_room(&mut self, need: u64) -> Result<(), Answer> {
        admit::cover(&self.inbox_dir, &mut self.reservation, need)
    }

    /// R6 and on.
    fn place(self, told: Told, reply: Reply) {
        let checkpoint = self.checkpoint_here();
        let file = self.output.file().try_clone().ok(); // else some of it is sent again
        let ready = Ready {
            manifest: self.manifest,
            digest: self.digest.value(),
            told,
            keep: Some(Whole { checkpoint, file }),
            reply,
            lock: self.lock,
            reservation: self.reservation,
        };
        commit::place_all(self.shared, &self.inbox_dir, vec![ready]);
    }

    /// The partial is not to be trusted: it starts over. False if the ledger could not be written, and nothing may
    /// be said or removed.
    fn give_up(&self) -> bool {
        let key = self.lock.key();
        let reset = self
            .shared
            .db
            .call_blocking(move |tx| ledger::cut_checkpoints(tx, key, 0));
        if reset.is_ok() {
            partial::remove(&self.inbox_dir, key);
        }
        reset.is_ok()
    }
}
