//! The way from a link into the sink: bounded in messages for each link, and in bytes over all of them.
//!
//! What counts is how long the bytes of a chunk are held, not how long they wait here: they are counted until the sink
//! has let go of them, wherever it puts them meanwhile.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use dropwire_protocol::{message::MAX_CHUNK, receiver::Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Room for the bytes of chunks between all sockets and the disk; clones share it.
#[derive(Clone)]
pub struct ReceiveBudget(Arc<Semaphore>);

impl ReceiveBudget {
    /// For so many bytes; less than the largest chunk is taken for that.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.max(MOST as usize))))
    }
}

/// One link's way into its sink. A chunk waits while the [`ReceiveBudget`] has no room for it, and so does what comes
/// after it.
pub struct Commands {
    to: mpsc::Sender<Command>,
    budget: ReceiveBudget,
}

impl Commands {
    /// Into a sink's channel.
    pub fn new(to: mpsc::Sender<Command>, budget: ReceiveBudget) -> Self {
        Self { to, budget }
    }

    /// Waits for room; false: nobody takes it any more.
    pub async fn send(&self, command: Command) -> bool {
        let mut held = VecDeque::from([command]);
        self.give_first(&mut held).await
    }

    /// Hands over as much of what is held as there is room for now. That nobody takes it any more shows at the next wait.
    pub(super) fn give_ready(&self, held: &mut VecDeque<Command>) {
        while let Some(first) = held.front()
            && let Ok(slot) = self.to.try_reserve()
            && let Ok(budget) = self.budget.0.clone().try_acquire_many_owned(weight(first))
            && let Some(first) = held.pop_front()
        {
            slot.send(counted(first, budget));
        }
    }

    /// Hands over the first of what is held, once there is room; false: nobody takes it any more. May be dropped
    /// half-way; nothing is lost by it.
    pub(super) async fn give_first(&self, held: &mut VecDeque<Command>) -> bool {
        let weight = held.front().map_or(0, weight);
        let (slot, budget) = tokio::join!(
            self.to.reserve(),
            self.budget.0.clone().acquire_many_owned(weight)
        );
        let (Ok(slot), Ok(budget)) = (slot, budget) else {
            return false;
        };
        if let Some(first) = held.pop_front() {
            slot.send(counted(first, budget));
        }
        true
    }
}

/// What a command holds of the room, in bytes.
fn weight(command: &Command) -> u32 {
    match command {
        Command::Write { bytes, .. } => {
            u32::try_from(bytes.len()).map_or(MOST, |length| MOST.min(length + BESIDE))
        }
        _ => 0,
    }
}

/// Its bytes give the room back once nobody holds them any more.
fn counted(mut command: Command, budget: OwnedSemaphorePermit) -> Command {
    if let Command::Write { bytes, .. } = &mut command {
        // A chunk is a part of what was read with it, which its whole memory holds: that must not be many times the
        // chunk.
        let bytes_alone = match bytes.len() < MAX_CHUNK / 8 {
            true => Bytes::copy_from_slice(bytes),
            false => std::mem::take(bytes),
        };
        let held = Held {
            bytes: bytes_alone,
            _room: budget,
        };
        *bytes = Bytes::from_owner(held);
    }
    command
}

struct Held {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a chunk takes beside its bytes: so that many tiny ones are not taken for nothing.
const BESIDE: u32 = 256;
/// What the largest chunk takes.
const MOST: u32 = MAX_CHUNK as u32 + BESIDE;

#[cfg(test)]
mod tests {
    use dropwire_protocol::{Digest, TransferId, receiver::OfferSequence};

    use super::*;

    const ID: TransferId = TransferId([1; 16]);

    fn write(length: usize) -> Command {
        Command::Write {
            id: ID,
            sequence: OfferSequence(1),
            pass: 0,
            offset: 0,
            bytes: vec![7; length].into(),
            digest: Digest([0; 32]),
        }
    }

    fn link(budget: &ReceiveBudget) -> (Commands, mpsc::Receiver<Command>) {
        let (to, out) = mpsc::channel(8);
        (Commands::new(to, budget.clone()), out)
    }

    fn bytes(command: Option<Command>) -> Bytes {
        match command {
            Some(Command::Write { bytes, .. }) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_chunk_waits_until_another_links_sink_has_let_go_of_enough() {
        let budget = ReceiveBudget::new(2 * MOST as usize);
        let (one, mut one_out) = link(&budget);
        let (two, mut two_out) = link(&budget);
        let release = Command::Release {
            id: ID,
            sequence: OfferSequence(1),
        };
        let mut held = VecDeque::from([write(MAX_CHUNK), release, write(MAX_CHUNK), write(1)]);
        one.give_ready(&mut held);
        assert!(held == [write(1)], "the room is full");
        let first = bytes(one_out.recv().await);
        assert!(first == vec![7; MAX_CHUNK]);
        let part = first.slice(1..2);
        drop(first);
        let mut other = VecDeque::from([write(2), write(3)]);
        two.give_ready(&mut other);
        assert_eq!(other.len(), 2, "a part of the first is held");
        let (given, ()) = tokio::join!(biased; two.give_first(&mut other), async { drop(part) });
        assert!(given);
        assert_eq!(bytes(two_out.recv().await).len(), 2);
        one.give_ready(&mut held);
        assert!(held.is_empty());
    }

    #[tokio::test]
    async fn commands_without_bytes_need_no_room_and_tiny_chunks_count_for_more_than_their_bytes() {
        let budget = ReceiveBudget::new(0);
        let (commands, mut out) = link(&budget);
        let forget = Command::Forget {
            ids: vec![ID],
            times: Vec::new(),
        };
        let mut held = VecDeque::from([write(MAX_CHUNK), forget, write(1)]);
        commands.give_ready(&mut held);
        assert_eq!(held.len(), 1, "the largest chunk always fits, nothing beside it");
        drop(out.recv().await);
        assert!(commands.send(write(MAX_CHUNK - BESIDE as usize)).await);
        commands.give_ready(&mut held);
        assert_eq!(held.len(), 1, "one byte is no more than its command");
        drop(out);
        assert!(
            !commands
                .send(Command::Forget {
                    ids: Vec::new(),
                    times: Vec::new(),
                })
                .await
        );
    }
}
