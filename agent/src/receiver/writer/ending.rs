//! How the work on a large partial ends: kept, given up, or committed.

use std::{io, mem, sync::Arc, time::Instant};

use dropwire_protocol::{Kind, message::DeclineReason};

use super::{Prefix, Writer};
use crate::{
    failpoints,
    fs::durable,
    receiver::{
        admit,
        checkpoint::Checkpointer,
        commit::{self, Ready, Told, Whole},
        incoming::End,
        ledger, partial,
        reply::{Answer, spoils},
        rights::{Known, Rights},
        transfer_locks::Key,
        unpack::{self, Target},
    },
};

impl Writer<'_> {
    /// Is the inbox, of which this holds handles, still the one at its path? What is whole is not placed in a folder that
    /// was moved away or replaced since, nor after a sync of it failed.
    fn still_there(&self) -> Result<(), Answer> {
        let inbox_dir = self.shared.open_inbox()?;
        if inbox_dir.is_same(&self.body.inbox_dir) || failpoints::mutant("R5-inbox-dir") {
            return Ok(());
        }
        let text = "the inbox was replaced by another folder meanwhile";
        Err(Answer::refused(
            DeclineReason::InboxUnavailable,
            text,
            Some(1_000),
        ))
    }

    /// Ends the work on the partial, and only then answers. `received`: all bytes came and are right.
    pub(super) fn close(mut self, received: Result<(), End>) {
        let end = received.and_then(|()| match self.still_there() {
            Ok(()) => Ok(()),
            Err(answer) => {
                self.body.finishing = false; // what there is is kept
                Err(answer.into())
            }
        });
        let body = &mut self.body;
        let proven = matches!(body.prefix, Prefix::Proven) || failpoints::mutant("R4-proven");
        drop(mem::replace(&mut body.prefix, Prefix::Damaged)); // a reading breaks off
        if !matches!(end, Err(End::Said { keep: false, .. }))
            // Unpacking takes its time: a crash in it must not cost the stream.
            && (!body.finishing || self.incoming.manifest.kind == Kind::Folder)
            && self.incoming.digest().length() > body.asked
        {
            // What cannot be written comes again, from the last checkpoint on.
            let _ = self.checkpoint();
        }
        self.body.output.close();
        let synced = self.body.checkpointer.take().map_or(Ok(0), Checkpointer::finish);
        let end = match (end, synced) {
            (end, Ok(_)) | (end @ Err(End::Said { keep: false, .. }), _) => end,
            (Err(End::Said { answer, .. }), Err(failure)) => Err(End::Said {
                answer,
                keep: !failure.disk,
            }),
            (Err(End::Released), Err(failure)) => Err(End::Said {
                answer: Answer::Silent,
                keep: !failure.disk,
            }),
            (Ok(()), Err(failure)) => Err(failure.into()),
        };
        if proven && matches!(end, Err(End::Released | End::Said { keep: true, .. })) {
            self.shared
                .verified_prefixes
                .set(self.key(), self.body.output.file());
        }
        match end {
            Ok(()) => self.commit(),
            Err(End::Released) => {}
            Err(End::Said { answer, keep }) => {
                if keep || self.give_up() {
                    self.incoming.reply.end(answer);
                }
            }
        }
    }

    fn key(&self) -> Key {
        self.incoming.lock.key()
    }

    /// R5, then the rest.
    fn commit(self) {
        if self.incoming.manifest.kind == Kind::Folder {
            return self.commit_folder();
        }
        match self.make_durable() {
            Ok(told) => self.place(told),
            Err(e) if spoils(&e) => {
                if self.give_up() {
                    self.incoming.reply.end(Answer::io("syncing the file", &e));
                }
            }
            // Its folder could not be opened to be synced: the file itself may not be durable, so no checkpoint is made.
            Err(e) => self.incoming.reply.end(Answer::io("syncing the file", &e)),
        }
    }

    fn make_durable(&self) -> io::Result<Told> {
        let (file, inbox_dir) = (self.body.output.file(), &*self.body.inbox_dir);
        let meta = file.metadata()?;
        partial::set_metadata(file, &meta, &self.rights(), self.incoming.manifest.mtime);
        failpoints::step("R5-partial", || durable::sync_file(file))?;
        failpoints::step("R5-partial-dir", || durable::sync_dir(&inbox_dir.partials))?;
        Told::of(inbox_dir, file, partial::inode(&meta))
    }

    fn rights(&self) -> Arc<Rights> {
        let (key, path) = (self.key(), &self.incoming.manifest.path);
        Rights::expected(self.shared, &self.body.inbox_dir, key, path, &mut Known::new())
    }

    /// Commits a whole folder, which is unpacked first. A newer link waits for that, and then finds the folder delivered:
    /// if it began again, a link that breaks often would never see the end.
    fn commit_folder(mut self) {
        let unpacked = unpack::survey(self.body.output.file()).and_then(|need| {
            self.make_room(need).map_err(unpack::Failure::NotNow)?;
            let (key, digest) = (self.key(), self.incoming.digest().value());
            let target = Target::of(&self.body.inbox_dir, self.rights());
            let (reservation, cancel) = (&mut self.incoming.reservation, &self.shared.cancel);
            unpack::unpack(&target, key, self.body.output.file(), digest, &mut |bytes| {
                reservation.used(bytes, Instant::now());
                !cancel.is_cancelled()
            })
        });
        match unpacked {
            Ok(inode) => self.place(Told::folder(inode)),
            Err(unpack::Failure::NotNow(answer)) => {
                if let Err(error) = partial::remove_folder(&self.body.inbox_dir, self.key()) {
                    tracing::warn!(%error, "a folder that could not be made stays until the next try");
                }
                self.incoming.reply.end(answer);
            }
            Err(unpack::Failure::Stopped) => {
                self.incoming
                    .reply
                    .end(Answer::refused(DeclineReason::Busy, "the agent stops", None));
            }
            Err(unpack::Failure::Useless(answer)) => {
                if self.give_up() {
                    self.incoming.reply.end(answer);
                }
            }
        }
    }

    /// Promises the `need` of the unpacked folder: the stream itself is on the disk.
    fn make_room(&mut self, need: u64) -> Result<(), Answer> {
        admit::cover(&self.body.inbox_dir, &mut self.incoming.reservation, need)
    }

    /// R6 and on.
    fn place(self, told: Told) {
        let checkpoint = self.checkpoint_here();
        let file = self.body.output.file().try_clone().ok(); // else some of it is sent again
        let ready = Ready {
            verified: self.incoming.verified(),
            told,
            keep: Some(Whole { checkpoint, file }),
        };
        commit::place_all(self.shared, &self.body.inbox_dir, vec![ready]);
    }

    /// The partial is not to be trusted: it starts over. False if the ledger could not be written, and nothing may
    /// be said or removed.
    fn give_up(&self) -> bool {
        let key = self.key();
        let reset = self
            .shared
            .db
            .call_blocking(move |tx| ledger::cut_checkpoints(tx, key, 0));
        if reset.is_ok() {
            partial::remove(&self.body.inbox_dir, key);
        }
        reset.is_ok()
    }
}
