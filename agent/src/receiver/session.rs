//! One link's session: takes its commands in order, collects small files, and passes the large ones' orders to their
//! writers. While nothing comes it is no thread: an agent may have a thousand links.

use std::{collections::HashMap, iter, sync::Arc};

use dropwire_protocol::{
    AgentId, Manifest, RunningDigest, TransferId,
    message::{DeclineReason, LateTime},
    receiver::{Command, OfferSequence, Outcome},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::spawn_blocking,
};

use super::{
    COMMANDS, Shared, admit,
    batch::{self, Small},
    byte_budget::Taken,
    fair_queue::FairQueue,
    incoming::{self, Came, End, Incoming, Order},
    keeping, late, ledger,
    ledger::Known,
    reply::{Answer, Outcomes, Reply},
    transfer_locks::Key,
    withdrawal, writer,
    writers::Writers,
};
use crate::{error::chain, failpoints, id};

/// Most bytes of small files that are begun and not whole yet, all peers together; each may have one file in any case. A
/// sender that gives one file after the other never has more.
pub(super) const BEGUN: u64 = 6 << 20;

/// Everything that is open on one link.
pub(super) struct ReceiveSession {
    shared: Arc<Shared>,
    peer: AgentId,
    outcomes: Outcomes,
    batch: Arc<FairQueue<Small>>,
    small: HashMap<TransferId, Collecting>,
    large: Writers,
    withdrawals: u64,
    /// Withdrawn while somebody still works on them: each waits for the end of that. The link itself lets the other side
    /// have no more than `MAX_ASKED` questions open.
    waiting: Vec<TransferId>,
    /// Tells when to look at these again.
    ends: watch::Receiver<()>,
}

/// A small file that is coming in.
struct Collecting {
    incoming: Incoming,
    /// A copy: a chunk shares the buffer it was read into, which can be a thousand times its size.
    bytes: Vec<u8>,
    /// Room for these in memory, from the first on.
    begun: Option<Taken>,
}

impl ReceiveSession {
    /// For a link with `peer`.
    pub(super) fn new(
        shared: Arc<Shared>,
        peer: AgentId,
        outcomes: Outcomes,
        batch: Arc<FairQueue<Small>>,
    ) -> Self {
        Self {
            ends: shared.transfer_locks.ends(),
            shared,
            peer,
            outcomes,
            batch,
            small: HashMap::new(),
            large: Writers::default(),
            withdrawals: 0,
            waiting: Vec::new(),
        }
    }

    /// Serves until the link closes its end or the agent stops; then everything open is released, and waited for. Begins
    /// once the peer has a place among its `links`.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, links: Arc<Semaphore>) {
        let (cancel, turns) = (self.shared.cancel.clone(), self.shared.turns.clone());
        let Some(Ok(_place)) = cancel.run_until_cancelled(links.acquire_owned()).await else {
            return;
        };
        loop {
            let first = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                command = commands.recv() => match command {
                    Some(command) => Some(command),
                    None => break,
                },
                _ = self.ends.changed(), if !self.waiting.is_empty() => None,
            };
            let Some(Ok(turn)) = cancel.run_until_cancelled(turns.clone().acquire_owned()).await else {
                break;
            };
            let serving = spawn_blocking(move || {
                self.withdraw_waiting();
                let more = iter::from_fn(|| commands.try_recv().ok());
                let mut taken = first.into_iter().chain(more).take(COMMANDS).peekable();
                while let Some(command) = taken.next() {
                    if self.shared.cancel.is_cancelled() {
                        break;
                    }
                    match command {
                        Command::Withdraw { id } => {
                            let mut ids = vec![id];
                            while let Some(Command::Withdraw { id }) =
                                taken.next_if(|next| matches!(next, Command::Withdraw { .. }))
                            {
                                ids.push(id);
                            }
                            self.withdraw_all(ids);
                        }
                        command => self.serve(command),
                    }
                }
                drop(turn);
                (self, commands)
            });
            match serving.await {
                Ok(served) => (self, commands) = served,
                Err(_) => return, // the runtime ends, or in a debug build it panicked
            }
        }
        drop((commands, self.small));
        let threads = self.large.release_all();
        self.shared.transfer_locks.ask_again();
        if !threads.is_empty() {
            let turn = turns.acquire_owned().await;
            let joined = spawn_blocking(move || {
                for thread in threads {
                    let _ = thread.join();
                }
                drop(turn);
            });
            let _ = joined.await;
        }
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::Open {
                id,
                sequence,
                manifest,
                eager,
            } => {
                let reply = Reply {
                    outcomes: self.outcomes.clone(),
                    id,
                    sequence,
                };
                self.release(id);
                if manifest.is_small() {
                    self.open_small(manifest, reply, eager);
                } else {
                    self.open_large(manifest, reply);
                }
            }
            Command::Write {
                id,
                sequence,
                pass,
                offset,
                bytes,
                digest,
            } => {
                let order = Order::Write {
                    pass,
                    offset,
                    bytes,
                    digest,
                };
                self.pass_on(id, sequence, order);
            }
            Command::Finish {
                id,
                sequence,
                pass,
                digest,
            } => self.pass_on(id, sequence, Order::Finish { pass, digest }),
            Command::Release { id, sequence } => {
                if self.is_small(id, sequence) || self.large.has(id, sequence) {
                    self.release(id);
                }
            }
            Command::Withdraw { id } => self.withdraw_all(vec![id]),
            Command::Forget { ids, times } => self.forget(ids, &times),
        }
    }

    /// What comes next does not wait for the commit: an id that is forgotten is never offered again.
    fn forget(&self, ids: Vec<TransferId>, times: &[LateTime]) {
        late::set(&self.shared, self.peer, times);
        if ids.is_empty() {
            let ids = times.iter().map(|late| late.id).collect();
            return self.outcomes.send(Outcome::Forgotten { ids });
        }
        let (shared, peer, outcomes) = (self.shared.clone(), self.peer, self.outcomes.clone());
        let forgetting = async move {
            let named = ids.clone();
            match shared
                .db
                .call_soon(move |tx| ledger::forget(tx, peer, &named))
                .await
            {
                Ok(()) => outcomes.send(Outcome::Forgotten { ids }),
                Err(error) => {
                    tracing::error!(peer = %id::format(peer), error = %chain(&error), "outcomes could not be forgotten");
                }
            }
        };
        self.shared.rows.spawn_on(forgetting, &self.shared.runtime);
    }

    fn open_large(&mut self, manifest: Manifest, reply: Reply) {
        if self.large.is_full() {
            let text = "too many large files at once";
            return reply.end(Answer::refused(DeclineReason::Busy, text, Some(1_000)));
        }
        let (shared, key, outcomes) = (self.shared.clone(), (self.peer, reply.id), self.outcomes.clone());
        let (id, sequence) = (reply.id, reply.sequence);
        let started = self.large.start(id, sequence, move |orders, wake| {
            writer::run(&shared, key, manifest, reply, orders, wake);
        });
        if let Err(error) = started {
            let reply = Reply {
                outcomes,
                id,
                sequence,
            };
            let text = format!("no thread for it: {error}");
            reply.end(Answer::refused(DeclineReason::Busy, text, Some(5_000)));
        }
    }

    fn open_small(&mut self, manifest: Manifest, reply: Reply, eager: bool) {
        let lock = self.shared.transfer_locks.take_preemptible((self.peer, reply.id));
        let admitted = self.look(lock.key()).and_then(|known| {
            let inbox_dir = match known {
                None if eager => {
                    admit::takes_more(&self.shared, self.peer)?;
                    admit::expect(&self.shared)?
                }
                known => admit::admit(&self.shared, lock.key(), &manifest, known)?.inbox_dir,
            };
            admit::reserve(&self.shared, &inbox_dir, self.peer, &manifest, manifest.size)
        });
        match admitted {
            Err(answer) => reply.end(answer),
            Ok(reservation) => {
                let id = reply.id;
                let incoming = Incoming::new(manifest, reply, lock, reservation, RunningDigest::default());
                if !eager {
                    incoming.ask(); // else its bytes are on their way
                }
                let collecting = Collecting {
                    incoming,
                    bytes: Vec::new(),
                    begun: None,
                };
                self.small.insert(id, collecting);
            }
        }
    }

    fn pass_on(&mut self, id: TransferId, sequence: OfferSequence, order: Order) {
        if self.is_small(id, sequence) {
            self.collect(id, order);
        } else {
            self.large.pass_on(id, sequence, order);
        }
    }

    /// Is this offer of the transfer one of the small ones?
    fn is_small(&self, id: TransferId, sequence: OfferSequence) -> bool {
        let of = |small: &Collecting| small.incoming.reply.sequence == sequence;
        self.small.get(&id).is_some_and(of)
    }

    fn collect(&mut self, id: TransferId, order: Order) {
        let Some(Collecting {
            incoming,
            bytes,
            begun,
        }) = self.small.get_mut(&id)
        else {
            return;
        };
        let (shared, peer, size) = (&self.shared, self.peer, incoming.manifest.size);
        let came = incoming.take(order, |more, _| {
            if begun.is_none() {
                *begun = shared.begun.try_take(peer, size);
            }
            if begun.is_none() {
                let text = "too many small files are begun and not ended";
                return Err(Answer::refused(DeclineReason::Busy, text, Some(1_000)).into());
            }
            bytes.extend_from_slice(more);
            Ok(())
        });
        match came {
            Ok(Came::End) => {
                if let Some(collecting) = self.small.remove(&id) {
                    self.store(collecting);
                }
            }
            Ok(Came::Nothing | Came::Bytes | Came::Damage) => {}
            Err(end) => {
                if let (Some(small), End::Said { answer, .. }) = (self.small.remove(&id), end) {
                    small.incoming.reply.end(answer);
                }
            }
        }
    }

    /// Hands a small file over to be stored with others.
    fn store(&self, small: Collecting) {
        let verified = small.incoming.verified();
        if !verified.lock.make_exclusive() {
            return verified.reply.end(incoming::fenced());
        }
        let work = batch::work(&self.shared, self.peer, &verified.manifest.path);
        let byte_budget = self
            .shared
            .byte_budget
            .take(self.peer, batch::weight(&verified.manifest));
        let small = Small {
            verified,
            bytes: small.bytes,
            byte_budget,
        };
        self.batch.push(self.peer, work, small);
    }

    fn release(&mut self, id: TransferId) {
        self.small.remove(&id);
        if self.large.release(id) {
            self.shared.transfer_locks.ask_again();
        }
    }

    fn withdraw_all(&mut self, ids: Vec<TransferId>) {
        ids.iter().for_each(|id| self.release(*id));
        let before = self.withdrawals;
        self.withdrawals += ids.len() as u64;
        if let Err(error) = keeping::bound_tombstones(&self.shared, self.peer, before..self.withdrawals) {
            tracing::error!(peer = %id::format(self.peer), error = %chain(&error), "old withdrawals stay");
        }
        self.withdraw(ids);
    }

    /// At once, or as soon as nobody works on them any more.
    fn withdraw(&mut self, ids: Vec<TransferId>) {
        let mut free = Vec::new();
        for id in ids {
            match self.shared.transfer_locks.take_now((self.peer, id)) {
                Some(lock) => free.push(lock),
                None => self.waiting.push(id),
            }
        }
        if !free.is_empty() {
            withdrawal::withdraw(&self.shared, free, &self.outcomes);
        }
    }

    /// Those that nobody works on any more.
    fn withdraw_waiting(&mut self) {
        if failpoints::mutant("withdraw-again") {
            return;
        }
        self.ends.mark_unchanged(); // first: whatever ends from here on wakes this session once more
        let waiting = std::mem::take(&mut self.waiting);
        self.withdraw(waiting);
    }

    /// By a connection that only reads, so that a flood of small offers does not queue behind the commits.
    fn look(&self, key: Key) -> Result<Option<Known>, Answer> {
        Ok(self.shared.db.read_blocking(|db| ledger::find(db, key))?)
    }
}
