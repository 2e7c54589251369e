//! One large transfer: a thread that opens or resumes its partial, writes, checkpoints, and hands it to the commit.
//!
//! Every chunk is verified before it is written. Bytes from before a resume are read once more while the rest comes in,
//! and nothing is committed until they proved right; bytes that this run of the agent wrote are trusted to the page
//! cache and the disk, through a cut of the link too, as long as nobody else touched the partial (see
//! `verified_prefixes`).

mod ending;

use std::{
    io, mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError},
    },
    time::Instant,
};

use bytes::Bytes;
use dropwire_protocol::{Kind, Manifest, RunningDigest};

use super::{
    Shared,
    admit::{self, Admitted},
    checkpoint::Checkpointer,
    inbox_dir::InboxDir,
    incoming::{Came, End, Incoming, Order},
    keeping::{self, Bounds},
    ledger::{self, Checkpoint},
    output::Output,
    partial::{self, Reread, Verdict},
    reply::{self, Answer, Reply, spoils},
    space::Reservation,
    transfer_locks::Key,
};
use crate::{clock::now_ms, failpoints, id};

/// Bytes between two checkpoints.
const CHECKPOINT: u64 = 16 << 20;
/// From this size on a file is written past the page cache: its bytes are more than a checkpoint's.
const DIRECT: u64 = CHECKPOINT;
/// Most bytes that are written and not yet told.
const TELL: u64 = 256 << 10;

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
    let opened = match open(shared, lock.key(), &manifest, &wake) {
        Ok(opened) => opened,
        Err(answer) => {
            drop(lock);
            return reply.end(answer);
        }
    };
    let (body, reservation, digest) = opened;
    let incoming = Incoming::new(manifest, reply, lock, reservation, digest);
    incoming.ask();
    let mut writer = Writer {
        shared,
        incoming,
        body,
    };
    let received = writer.receive(orders);
    writer.close(received);
}

struct Writer<'a> {
    shared: &'a Arc<Shared>,
    incoming: Incoming,
    body: Body,
}

/// The bytes on their way into the partial.
struct Body {
    inbox_dir: Arc<InboxDir>,
    output: Output,
    told: u64,
    /// Up to where a checkpoint was asked for.
    asked: u64,
    checkpointer: Option<Checkpointer>,
    prefix: Prefix,
    /// All bytes came; only the re-reading is waited for.
    finishing: bool,
}

/// What lay in the partial before the resume.
enum Prefix {
    /// It is right, or there was nothing.
    Proven,
    /// It is read again.
    BeingRead(Reread),
    /// Some of it is not what was received, and it is not cut yet.
    Damaged,
}

/// R1, R2, or the resume from the last checkpoint.
fn open(
    shared: &Arc<Shared>,
    key: Key,
    manifest: &Manifest,
    wake: &Weak<SyncSender<Order>>,
) -> Result<(Body, Reservation, RunningDigest), Answer> {
    let (known, checkpoints) = admit::look(shared, key)?;
    let unknown = known.is_none();
    let Admitted {
        inbox_dir,
        may_resume,
    } = admit::admit(shared, key, manifest, known)?;
    admit::takes(&inbox_dir, manifest)?;
    let not_opened = |e: io::Error| Answer::io("opening the partial", &e);
    if manifest.kind == Kind::Folder {
        // One half made, by a try that was cut off, holds the room that this one asks for.
        partial::remove_folder(&inbox_dir, key).map_err(not_opened)?;
    }
    let resumed = if may_resume {
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
    let missing = admit::needed(manifest).saturating_sub(held);
    let room = admit::reserve(shared, &inbox_dir, key.0, manifest, missing);
    let reservation = room.inspect_err(|_| {
        if let Some(resumed) = resumed.as_ref().filter(|r| r.sealed) {
            shared.verified_prefixes.set(key, &resumed.file);
        }
    })?;
    let (file, digest, prefix) = match resumed {
        Some(resumed) => {
            let wake = wake.clone();
            let proven = resumed.sealed || held == 0 || failpoints::mutant("R4-reread");
            let prefix = if proven {
                Prefix::Proven
            } else {
                let file = partial::open(&inbox_dir, key).map_err(not_opened)?;
                let file = file.ok_or_else(|| not_opened(io::ErrorKind::NotFound.into()))?;
                let reread = Reread::start(file, resumed.checkpoints, move || poke(&wake));
                Prefix::BeingRead(reread.map_err(not_opened)?)
            };
            (resumed.file, resumed.digest, prefix)
        }
        None => {
            let (bound, folder_id, now) = (manifest.clone(), inbox_dir.folder_id, now_ms());
            shared
                .db
                .call_blocking(move |tx| ledger::begin(tx, key, &bound, folder_id, now))?;
            (
                partial::create(&inbox_dir, key).map_err(not_opened)?,
                RunningDigest::default(),
                Prefix::Proven,
            )
        }
    };
    // A folder's stream is read again at once.
    let output = match manifest.size >= DIRECT && manifest.kind == Kind::File {
        true => {
            let wake = wake.clone();
            let size = inbox_dir.keeps_holes.then_some(manifest.size);
            let spare = shared.spare_blocks.clone();
            Output::direct(file, held, size, spare, move || poke(&wake)).map_err(not_opened)?
        }
        false => Output::cached(file, held),
    };
    let checkpointer = checkpointer(shared, key, &output, held).map_err(not_opened)?;
    let body = Body {
        inbox_dir,
        output,
        told: held,
        asked: held,
        checkpointer: Some(checkpointer),
        prefix,
        finishing: false,
    };
    Ok((body, reservation, digest))
}

/// One for the partial that is written by `output`, durable up to `durable`.
fn checkpointer(shared: &Shared, key: Key, output: &Output, durable: u64) -> io::Result<Checkpointer> {
    Checkpointer::start(output.file().try_clone()?, key, shared.db.clone(), durable)
}

impl Writer<'_> {
    /// Ok: everything came and is verified.
    fn receive(&mut self, orders: &Receiver<Order>) -> Result<(), End> {
        loop {
            let order = match orders.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Empty) => {
                    self.tell(1);
                    orders.recv().map_err(|_| End::Released)?
                }
                Err(TryRecvError::Disconnected) => return Err(End::Released),
            };
            if let Some(checkpointer) = &self.body.checkpointer {
                checkpointer.durable()?;
            }
            self.hear_reread()?;
            let (body, size) = (&mut self.body, self.incoming.manifest.size);
            match self
                .incoming
                .take(order, |bytes, reservation| body.write(bytes, size, reservation))?
            {
                Came::Nothing => {}
                Came::Bytes => self.written()?,
                Came::Damage => self.body.told = self.incoming.digest().length(),
                Came::End => {
                    let flushed = self.body.output.flush();
                    flushed.map_err(|error| self.body.unwritten(&error, size))?;
                    self.body.finishing = true;
                }
            }
            if self.body.finishing && matches!(self.body.prefix, Prefix::Proven) {
                return Ok(());
            }
        }
    }

    fn written(&mut self) -> Result<(), End> {
        if self.incoming.digest().length() - self.body.asked >= CHECKPOINT {
            self.checkpoint()?;
        }
        self.tell(TELL);
        Ok(())
    }

    /// R4's second half, as soon as it is known: a prefix that does not re-read right is cut.
    fn hear_reread(&mut self) -> Result<(), End> {
        let verdict = match mem::replace(&mut self.body.prefix, Prefix::Proven) {
            Prefix::BeingRead(reread) if reread.is_done() => reread.verdict(),
            prefix => {
                self.body.prefix = prefix;
                return Ok(());
            }
        };
        let Verdict::Good(good) = verdict else {
            return Ok(());
        };
        self.body.prefix = Prefix::Damaged;
        let (key, length) = (self.incoming.lock.key(), good.length());
        tracing::warn!(
            peer = %id::format(key.0),
            job = %key.1,
            path = %self.incoming.manifest.path,
            from = length,
            "what lay here before the resume is damaged; it is asked for again"
        );
        if let Some(checkpointer) = self.body.checkpointer.take() {
            checkpointer.finish()?;
        }
        let flushed = self.body.output.flush();
        flushed.map_err(|error| self.body.unwritten(&error, self.incoming.manifest.size))?;
        let cut = self
            .shared
            .db
            .call_blocking(move |tx| ledger::cut_checkpoints(tx, key, length));
        cut.map_err(Answer::from)?;
        let cutting = |e: io::Error| Answer::io("cutting the partial", &e);
        let body = &mut self.body;
        body.output.cut(length).map_err(cutting)?;
        (body.told, body.asked, body.finishing) = (length, length, false);
        self.incoming.cut(good);
        self.body.prefix = Prefix::Proven;
        let again = checkpointer(self.shared, key, &self.body.output, length);
        self.body.checkpointer = Some(again.map_err(cutting)?);
        Ok(())
    }

    fn tell(&mut self, at_least: u64) {
        let written = self.body.output.written();
        if written.saturating_sub(self.body.told) >= at_least {
            self.incoming.reply.written(written);
            self.body.told = written;
        }
    }

    /// Has one taken at everything that came, once that is written.
    fn checkpoint(&mut self) -> Result<(), End> {
        let here = self.checkpoint_here();
        let (body, size) = (&mut self.body, self.incoming.manifest.size);
        let Some(checkpointer) = &body.checkpointer else {
            return Ok(());
        };
        let there = partial::is_there(&body.inbox_dir, self.incoming.lock.key(), body.output.file());
        if !there.map_err(|error| body.unwritten(&error, size))? && !failpoints::mutant("R3-there") {
            return Err(End::Said {
                answer: reply::taken(),
                keep: false,
            });
        }
        let (offset, request) = (here.offset, checkpointer.request());
        let asked = body.output.then(move || request(here));
        asked.map_err(|error| body.unwritten(&error, size))?;
        body.asked = offset;
        Ok(())
    }

    fn checkpoint_here(&self) -> Checkpoint {
        let digest = self.incoming.digest();
        Checkpoint {
            offset: digest.length(),
            digest: digest.value(),
            hash_state: digest.state(),
        }
    }
}

impl Body {
    /// Bytes of a file that is `size` long; the reservation covers them.
    fn write(&mut self, bytes: &Bytes, size: u64, reservation: &mut Reservation) -> Result<(), End> {
        let length = bytes.len() as u64;
        admit::cover(&self.inbox_dir, reservation, length)?;
        let written = self.output.write(bytes);
        written.map_err(|error| self.unwritten(&error, size))?;
        reservation.used(length, Instant::now());
        Ok(())
    }

    /// A full disk or a shortage is no reason to give up what there is; a file system that can never have all `size`
    /// bytes of it is.
    fn unwritten(&self, error: &io::Error, size: u64) -> End {
        let never = error.kind() == io::ErrorKind::FileTooLarge;
        if never {
            self.inbox_dir.is_too_small_for(size);
        }
        End::Said {
            answer: Answer::io("writing the partial", error),
            keep: !never && !spoils(error),
        }
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
