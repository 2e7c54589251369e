//! One large transfer: a thread that opens or resumes its partial, writes, checkpoints, and hands it to the commit.
//!
//! Every chunk is verified before it is written. Bytes from before a resume are read once more while the rest comes
//! in, and nothing is committed until they proved right; bytes that this run of the agent wrote are trusted to the page
//! cache and the disk, through a cut of the link too, as long as nobody else touched the partial (see `verified_prefixes`).

mod ending;

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError},
    },
    time::Instant,
};

use bytes::Bytes;
use dropwire_protocol::{Digest, Kind, Manifest, RunningDigest, message::DeclineReason};

use super::{
    Shared, admit,
    checkpoint::{Checkpointer, Failure},
    inbox_dir::InboxDir,
    keeping::{self, Bounds},
    ledger::{self, Checkpoint},
    output::Output,
    partial::{self, Reread, Verdict},
    reply::{self, Answer, Reply, spoils},
    space::Reservation,
    transfer_locks::{Key, TransferLock},
};
use crate::{clock::now_ms, failpoints, id};

/// Bytes between two checkpoints.
const CHECKPOINT: u64 = 16 << 20;
/// Most bytes that are written and not yet durable.
const MAX_DIRTY: u64 = 4 * CHECKPOINT;
/// From this size on a file is written past the page cache: its bytes are more than a checkpoint's.
const DIRECT: u64 = CHECKPOINT;
/// Most bytes that are written and not yet told.
const TELL: u64 = 256 << 10;
/// After so many damages in one offer it is not the link's fault.
const MAX_DAMAGES: u32 = 16;

/// What the link asks of a writer. The end of the channel is a release.
pub(super) enum Order {
    /// The next bytes of a pass.
    Write {
        pass: u32,
        offset: u64,
        bytes: Bytes,
        digest: Digest,
    },
    /// The end of a pass.
    Finish { pass: u32, digest: Digest },
    /// Look around: a newer link wants the transfer, or the re-reading ended.
    Wake,
}

/// Why a writer ends.
enum End {
    /// The link let go: what there is is kept.
    Released,
    /// Said to the link; what there is is kept, if `keep`.
    Said { answer: Answer, keep: bool },
    /// Whole and verified.
    Whole,
}

impl From<Answer> for End {
    fn from(answer: Answer) -> Self {
        Self::Said { answer, keep: true }
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Said {
            answer: failure.answer,
            keep: !failure.disk,
        }
    }
}

/// Receives one transfer; returns when its offer has ended and nobody touches the partial any more.
pub(super) fn run(
    shared: &Arc<Shared>,
    key: Key,
    manifest: Manifest,
    reply: Reply,
    orders: &Receiver<Order>,
    wake: Weak<SyncSender<Order>>,
) {
    let _counted = Counted::new(&shared.large);
    let waker = wake.clone();
    let wanted = || wake.strong_count() > 0 || failpoints::mutant("session-wanted");
    let Some(lock) = shared
        .transfer_locks
        .take(key, Some(Box::new(move || poke(&waker))), &wanted)
    else {
        return; // its link let go while another one's commit went on
    };
    match Writer::open(shared, lock, manifest, &reply, &wake) {
        Err(answer) => reply.end(answer),
        Ok(mut writer) => {
            reply.opened(writer.digest.length(), writer.digest.value());
            let end = writer.receive(orders, &reply).err().unwrap_or(End::Whole);
            writer.close(end, reply);
        }
    }
}

struct Writer<'a> {
    shared: &'a Arc<Shared>,
    inbox_dir: Arc<InboxDir>,
    lock: TransferLock,
    manifest: Manifest,
    reservation: Reservation,
    output: Output,
    /// Over everything that came and was right: what is written, and what the output holds back.
    digest: RunningDigest,
    pass: u32,
    told: u64,
    /// Up to where a checkpoint was asked for.
    asked: u64,
    checkpointer: Option<Checkpointer>,
    reread: Option<Reread>,
    /// All bytes came; only the re-reading is waited for.
    finishing: bool,
}

impl<'a> Writer<'a> {
    /// R1, R2, or the resume from the last checkpoint.
    fn open(
        shared: &'a Arc<Shared>,
        lock: TransferLock,
        manifest: Manifest,
        reply: &Reply,
        wake: &Weak<SyncSender<Order>>,
    ) -> Result<Self, Answer> {
        let key = (lock.key().0, reply.id);
        let (known, checkpoints) = admit::look(shared, key)?;
        let unknown = known.is_none();
        let (inbox_dir, resume) = admit::admit(shared, key, &manifest, known)?;
        admit::takes(&inbox_dir, &manifest)?;
        let not_opened = |e: io::Error| Answer::io("opening the partial", &e);
        if manifest.kind == Kind::Folder {
            // One half made, by a try that was cut off, holds the room that this one asks for.
            partial::remove_folder(&inbox_dir, key).map_err(not_opened)?;
        }
        let resumed = if resume {
            partial::resume(&inbox_dir, &shared.verified_prefixes, key, checkpoints).map_err(not_opened)?
        } else {
            None
        };
        let held = resumed.as_ref().map_or(0, |r| r.digest.length());
        // Before room is asked for: an offer that is declined is a sign of life, and what makes way makes room.
        if resumed.is_some() {
            let now = now_ms();
            shared.db.call_blocking(move |tx| {
                ledger::touch(tx, key, now)?;
                ledger::cut_checkpoints(tx, key, held)
            })?;
        } else if unknown {
            keeping::make_way(shared, &inbox_dir, key.0, Bounds::of(&inbox_dir)?)?;
        }
        let room = admit::reserve(
            shared,
            &inbox_dir,
            key.0,
            &manifest,
            admit::needed(&manifest).saturating_sub(held),
        );
        let reservation = room.inspect_err(|_| {
            if let Some(resumed) = resumed.as_ref().filter(|r| r.sealed) {
                shared.verified_prefixes.set(key, &resumed.file);
            }
        })?;
        let (file, digest, reread) = match resumed {
            Some(resumed) => {
                let wake = wake.clone();
                let proven = resumed.sealed || held == 0 || failpoints::mutant("R4-reread");
                let reread = if proven {
                    None
                } else {
                    let file = partial::open(&inbox_dir, key).map_err(not_opened)?;
                    let file = file.ok_or_else(|| not_opened(io::ErrorKind::NotFound.into()))?;
                    let reread = Reread::start(file, resumed.checkpoints, move || poke(&wake));
                    Some(reread.map_err(not_opened)?)
                };
                (resumed.file, resumed.digest, reread)
            }
            None => {
                let (bound, folder_id, now) = (manifest.clone(), inbox_dir.folder_id, now_ms());
                shared
                    .db
                    .call_blocking(move |tx| ledger::begin(tx, key, &bound, folder_id, now))?;
                (
                    partial::create(&inbox_dir, key).map_err(not_opened)?,
                    RunningDigest::default(),
                    None,
                )
            }
        };
        // A folder's stream is read again at once.
        let direct = manifest.size >= DIRECT && manifest.kind == Kind::File;
        let output = Output::new(file, held, direct);
        let mut writer = Writer {
            shared,
            inbox_dir,
            lock,
            manifest,
            reservation,
            output,
            digest,
            pass: 0,
            told: held,
            asked: held,
            checkpointer: None,
            reread,
            finishing: false,
        };
        writer.start_checkpointer().map_err(not_opened)?;
        Ok(writer)
    }

    /// Ok: everything came and is verified.
    fn receive(&mut self, orders: &Receiver<Order>, reply: &Reply) -> Result<(), End> {
        loop {
            let order = match orders.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Empty) => {
                    self.tell(reply, 1);
                    orders.recv().map_err(|_| End::Released)?
                }
                Err(TryRecvError::Disconnected) => return Err(End::Released),
            };
            if self.lock.fenced() && !failpoints::mutant("R1-fence") {
                let text = "a newer link carries this transfer";
                return Err(Answer::refused(DeclineReason::Fenced, text, None).into());
            }
            if let Some(checkpointer) = &self.checkpointer {
                checkpointer.durable()?;
            }
            self.hear_reread(reply)?;
            match order {
                Order::Write {
                    pass,
                    offset,
                    bytes,
                    digest,
                } if pass >= self.pass => {
                    self.write(offset, &bytes, digest, reply)?;
                }
                Order::Finish { pass, digest } if pass >= self.pass => self.all_came(digest)?,
                _ => {}
            }
            if self.finishing && self.reread.is_none() {
                return Ok(());
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &Bytes, digest: Digest, reply: &Reply) -> Result<(), End> {
        let at = self.digest.length();
        if bytes.len() as u64 > self.manifest.size.saturating_sub(at) && !failpoints::mutant("R3-length") {
            return Err(conflict("more bytes came than were announced"));
        }
        let mut next = self.digest.clone();
        next.update(bytes);
        if offset != at || (next.value() != digest && !failpoints::mutant("R3-chunk-digest")) {
            return self.damaged(reply);
        }
        admit::cover(&self.inbox_dir, &mut self.reservation, bytes.len() as u64)?;
        let written = self.output.write(bytes);
        written.map_err(|error| self.unwritten(error))?;
        self.digest = next;
        self.reservation.used(bytes.len() as u64, Instant::now());
        if self.digest.length() - self.asked >= CHECKPOINT {
            self.checkpoint(false)?;
        }
        self.tell(reply, TELL);
        Ok(())
    }

    fn all_came(&mut self, digest: Digest) -> Result<(), End> {
        if !failpoints::mutant("R4-digest")
            && (self.digest.length() != self.manifest.size || self.digest.value() != digest)
        {
            return Err(conflict("its length or digest is not what was announced"));
        }
        let written = self.output.flush();
        written.map_err(|error| self.unwritten(error))?;
        self.finishing = true;
        Ok(())
    }

    /// R4's second half, as soon as it is known: a prefix that does not re-read right is cut.
    fn hear_reread(&mut self, reply: &Reply) -> Result<(), End> {
        let verdict = match self.reread.take() {
            Some(reread) if reread.is_done() => reread.verdict(),
            waiting => {
                self.reread = waiting;
                return Ok(());
            }
        };
        let Verdict::Good(good) = verdict else {
            return Ok(());
        };
        tracing::warn!(
            peer = %id::format(self.lock.key().0),
            job = %self.lock.key().1,
            path = %self.manifest.path,
            from = good.length(),
            "what lay here before the resume is damaged; it is asked for again"
        );
        if let Some(checkpointer) = self.checkpointer.take() {
            checkpointer.finish()?;
        }
        let (key, length) = (self.lock.key(), good.length());
        let cut = self
            .shared
            .db
            .call_blocking(move |tx| ledger::cut_checkpoints(tx, key, length));
        cut.map_err(Answer::from)?;
        let cutting = |e: io::Error| Answer::io("cutting the partial", &e);
        self.reservation
            .returned(self.digest.length().saturating_sub(length));
        self.output.cut(length).map_err(cutting)?;
        (self.told, self.asked, self.digest) = (length, length, good);
        self.start_checkpointer().map_err(cutting)?;
        self.finishing = false;
        self.damaged(reply)
    }

    /// The next pass begins at what is verified.
    fn damaged(&mut self, reply: &Reply) -> Result<(), End> {
        self.pass += 1;
        if self.pass > MAX_DAMAGES {
            let text = "it arrived damaged too often; memory or disk of one side may be failing";
            return Err(Answer::refused(DeclineReason::DiskError, text, None).into());
        }
        self.told = self.digest.length();
        reply.damaged(self.digest.length(), self.digest.value());
        Ok(())
    }

    fn tell(&mut self, reply: &Reply, at_least: u64) {
        let written = self.output.written();
        if written.saturating_sub(self.told) >= at_least {
            reply.written(written);
            self.told = written;
        }
    }

    /// Asks for one at everything that came, which is written first.
    fn checkpoint(&mut self, wait: bool) -> Result<(), End> {
        let Some(checkpointer) = &self.checkpointer else {
            return Ok(());
        };
        let written = self.output.flush();
        written.map_err(|error| self.unwritten(error))?;
        let offset = self.digest.length();
        if self.output.written() < offset {
            return Ok(()); // an earlier write failed
        }
        let there = partial::is_there(&self.inbox_dir, self.lock.key(), self.output.file());
        if !there.map_err(|error| self.unwritten(error))? && !failpoints::mutant("R3-there") {
            return Err(End::Said {
                answer: reply::taken(),
                keep: false,
            });
        }
        let durable = checkpointer.durable().unwrap_or(offset); // a failure is heard at the next order
        if checkpointer.request(self.checkpoint_here(), wait || offset - durable > MAX_DIRTY) {
            self.asked = offset;
        }
        Ok(())
    }

    /// A full disk or a shortage is no reason to give up what there is; a file system that can never have all of it is.
    fn unwritten(&self, error: io::Error) -> End {
        let never = error.kind() == io::ErrorKind::FileTooLarge;
        if never {
            self.inbox_dir.is_too_small_for(self.manifest.size);
        }
        End::Said {
            answer: Answer::io("writing the partial", &error),
            keep: !never && !spoils(&error),
        }
    }

    fn checkpoint_here(&self) -> Checkpoint {
        Checkpoint {
            offset: self.digest.length(),
            digest: self.digest.value(),
            hash_state: self.digest.state(),
        }
    }

    fn start_checkpointer(&mut self) -> io::Result<()> {
        let file = self.output.file().try_clone()?;
        let durable = self.digest.length();
        let checkpointer = Checkpointer::start(file, self.lock.key(), self.shared.db.clone(), durable)?;
        self.checkpointer = Some(checkpointer);
        Ok(())
    }
}

fn conflict(text: &str) -> End {
    End::Said {
        answer: Answer::refused(DeclineReason::Conflict, text, None),
        keep: false,
    }
}

fn poke(wake: &Weak<SyncSender<Order>>) {
    if let Some(orders) = wake.upgrade() {
        let _ = orders.try_send(Order::Wake); // full: the writer is awake
    }
}

/// Counts for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
