//! The files that leave by one link: which are being read, and whose piece goes next.
//!
//! Two lanes: small files go whole, one after the other, large ones in turns of one piece. Small ones go first, so that a
//! large file never holds one up; now and then a large one's piece goes all the same. In each lane only a few files
//! are read at once: that bounds memory, and a small file that goes whole lies at the receiver no longer than it has to.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};

use dropwire_protocol::{Digest, TransferId, message::MAX_CHUNK, sender::Sender};
use tokio::sync::mpsc;

use super::{Outgoing, Piece, Voided};

/// All transfers that were offered on this link and have not ended.
pub(super) struct Outgoings {
    open: HashMap<TransferId, Outgoing>,
    small: Lane,
    large: Lane,
    /// Pieces of small files since the last one of a large file.
    small_in_a_row: u32,
}

/// Asked for by the other side: read from `offset` on.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) id: TransferId,
    pub(super) pass: u32,
    pub(super) offset: u64,
    pub(super) digest: Digest,
}

impl Default for Outgoings {
    fn default() -> Self {
        Self {
            open: HashMap::new(),
            small: Lane::new(READING_SMALL, SMALL_BYTES, false),
            large: Lane::new(READING_LARGE, u64::MAX, true),
            small_in_a_row: 0,
        }
    }
}

impl Outgoings {
    /// An offer left. One that is open already (offered on the link before this one) only gets its new handle.
    pub(super) fn add(&mut self, outgoing: Outgoing) {
        self.open.insert(outgoing.id, outgoing);
    }

    /// Offered and not ended?
    pub(super) fn is_open(&self, id: TransferId) -> bool {
        self.open.contains_key(&id)
    }

    /// A transfer ended, however; its reading stops.
    pub(super) fn remove(&mut self, id: TransferId) {
        self.stop(id);
        self.open.remove(&id);
    }

    /// The receiver has all before `offset`.
    pub(super) fn progress(&self, id: TransferId, offset: u64) {
        if let Some(outgoing) = self.open.get(&id) {
            outgoing.progress.store(offset, Relaxed);
        }
    }

    /// A pass begins; what was read for earlier ones is dropped.
    pub(super) fn begin(&mut self, pass: Pass) {
        self.stop(pass.id);
        let Some(outgoing) = self.open.get(&pass.id) else {
            return;
        };
        outgoing.progress.store(pass.offset, Relaxed);
        let lane = if outgoing.manifest.is_small() {
            &mut self.small
        } else {
            &mut self.large
        };
        lane.wanted.push_back(pass);
    }

    /// Starts reading where there is room.
    pub(super) fn read_on(&mut self) {
        self.small.start(&self.open);
        self.large.start(&self.open);
    }

    /// The next piece that the receiver has room for: transfer, pass, piece. Never takes a piece without giving it.
    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        sender: &Sender,
    ) -> Poll<(TransferId, u32, Piece)> {
        let large_first = self.small_in_a_row >= SMALL_IN_A_ROW;
        let lanes = if large_first {
            [&mut self.large, &mut self.small]
        } else {
            [&mut self.small, &mut self.large]
        };
        for (place, lane) in lanes.into_iter().enumerate() {
            if let Poll::Ready(piece) = lane.poll(cx, sender) {
                let was_small = (place == 0) != large_first;
                self.small_in_a_row = if was_small { self.small_in_a_row + 1 } else { 0 };
                return Poll::Ready(piece);
            }
        }
        Poll::Pending
    }

    fn stop(&mut self, id: TransferId) {
        for lane in [&mut self.small, &mut self.large] {
            lane.wanted.retain(|pass| pass.id != id);
            lane.reading.retain(|reading| reading.id != id);
        }
    }
}

/// Files of one class.
struct Lane {
    wanted: VecDeque<Pass>,
    reading: VecDeque<Reading>,
    /// Most that are read at once: files, and their bytes.
    most: (usize, u64),
    /// They take turns, a piece each.
    round_robin: bool,
}

/// A pass whose source is at work.
struct Reading {
    id: TransferId,
    pass: u32,
    size: u64,
    pieces: mpsc::Receiver<Piece>,
    /// Taken out of the channel, waiting for credit.
    next: Option<Piece>,
}

impl Lane {
    fn new(files: usize, bytes: u64, round_robin: bool) -> Self {
        Self {
            wanted: VecDeque::new(),
            reading: VecDeque::new(),
            most: (files, bytes),
            round_robin,
        }
    }

    fn is_full(&self) -> bool {
        let (files, bytes) = self.most;
        self.reading.len() >= files || self.reading.iter().map(|reading| reading.size).sum::<u64>() >= bytes
    }

    fn start(&mut self, open: &HashMap<TransferId, Outgoing>) {
        while !self.is_full() {
            let Some(Pass {
                id,
                pass,
                offset,
                digest,
            }) = self.wanted.pop_front()
            else {
                return;
            };
            let Some(outgoing) = open.get(&id) else { continue };
            let (give, pieces) = mpsc::channel(PIECES);
            outgoing.source.read(offset, digest, give);
            self.reading.push_back(Reading {
                id,
                pass,
                size: outgoing.manifest.size,
                pieces,
                next: None,
            });
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, sender: &Sender) -> Poll<(TransferId, u32, Piece)> {
        for place in 0..self.reading.len() {
            let Poll::Ready(piece) = self.reading[place].poll(cx, sender) else {
                continue;
            };
            // A pass that is over leaves.
            if let Some(reading) = self.reading.remove(place) {
                let turn = (reading.id, reading.pass, piece);
                match turn.2 {
                    Piece::Chunk { .. } if self.round_robin => self.reading.push_back(reading),
                    Piece::Chunk { .. } => self.reading.push_front(reading),
                    _ => {}
                }
                return Poll::Ready(turn);
            }
        }
        Poll::Pending
    }
}

impl Reading {
    fn poll(&mut self, cx: &mut Context<'_>, sender: &Sender) -> Poll<Piece> {
        if self.next.is_none() {
            let Poll::Ready(piece) = self.pieces.poll_recv(cx) else {
                return Poll::Pending;
            };
            self.next = Some(match piece {
                Some(Piece::Chunk { bytes, .. }) if bytes.is_empty() || bytes.len() > MAX_CHUNK => {
                    Piece::Void(Voided::Unreadable(format!(
                        "a chunk of {} bytes was read",
                        bytes.len()
                    )))
                }
                Some(piece) => piece,
                None => Piece::Void(Voided::Unreadable("reading it was broken off".into())),
            });
        }
        let ready = match &self.next {
            Some(Piece::Chunk { bytes, .. }) => sender.credit(self.id, self.pass) >= bytes.len() as u64,
            _ => true,
        };
        // Without credit nothing wakes us here: an Ack does, which is a message that came in.
        if !ready {
            return Poll::Pending;
        }
        self.next.take().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Files read at once, and chunks read ahead for each: at most
/// 2 MiB of small ones and one + 4 large × (3 + 1 + 1 in the source's hands) × 256 KiB = 7.25 MiB a link.
const READING_SMALL: usize = 16;
const SMALL_BYTES: u64 = 2 << 20;
const READING_LARGE: usize = 4;
const PIECES: usize = 3;
/// After so many pieces of small files a large one has its turn.
const SMALL_IN_A_ROW: u32 = 32;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use dropwire_protocol::{Kind, Manifest, Mtime, RemotePath, message::MAX_EAGER, sender::SenderEvent};

    use super::*;
    use crate::link::Source;

    /// Hands out its channel instead of reading.
    #[derive(Default)]
    struct ByHand(Mutex<Option<mpsc::Sender<Piece>>>);

    impl Source for ByHand {
        fn read(&self, _offset: u64, _digest: Digest, out: mpsc::Sender<Piece>) {
            *self.0.lock().unwrap() = Some(out);
        }
    }

    impl ByHand {
        fn give(&self, piece: Piece) {
            self.0.lock().unwrap().as_ref().unwrap().try_send(piece).unwrap();
        }

        fn is_read(&self) -> bool {
            self.0
                .lock()
                .unwrap()
                .as_ref()
                .is_some_and(|out| !out.is_closed())
        }
    }

    fn chunk(bytes: usize) -> Piece {
        Piece::Chunk {
            offset: 0,
            bytes: vec![0; bytes].into(),
            digest: Digest([0; 32]),
        }
    }

    struct Fixture {
        sender: Sender,
        outgoing: Outgoings,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                sender: Sender::new(1 << 20, 256),
                outgoing: Outgoings::default(),
            }
        }

        /// Offers a file and lets the other side accept it.
        fn open(&mut self, number: u8, size: u64) -> Arc<ByHand> {
            let id = TransferId([number; 16]);
            let path = RemotePath::parse(b"f").unwrap();
            let manifest = Manifest {
                path,
                size,
                mtime: Mtime { seconds: 0, nanos: 0 },
                kind: Kind::File,
            };
            let source = Arc::new(ByHand::default());
            assert!(self.sender.offer(id, manifest.clone(), size <= MAX_EAGER));
            self.outgoing.add(Outgoing {
                id,
                manifest,
                eager: true,
                source: source.clone(),
                progress: Arc::default(),
            });
            let digest = Digest([0; 32]);
            if size > MAX_EAGER {
                let serial = u64::from(number);
                let accept = dropwire_protocol::message::Accept {
                    id,
                    serial,
                    pass: 0,
                    offset: 0,
                    digest,
                };
                self.sender
                    .receive(dropwire_protocol::Message::Accept(accept))
                    .unwrap();
            }
            while let Some(event) = self.sender.poll_event() {
                let SenderEvent::Read {
                    id,
                    pass,
                    offset,
                    digest,
                } = event
                else {
                    panic!("{event:?}")
                };
                self.outgoing.begin(Pass {
                    id,
                    pass,
                    offset,
                    digest,
                });
            }
            self.outgoing.read_on();
            source
        }

        /// Whose piece goes next.
        fn next(&mut self) -> Option<u8> {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            match self.outgoing.poll_piece(&mut cx, &self.sender) {
                Poll::Ready((id, ..)) => Some(id.0[0]),
                Poll::Pending => None,
            }
        }
    }

    #[test]
    fn small_files_go_first_and_large_ones_take_turns() {
        let mut it = Fixture::new();
        let large = [it.open(0, 1 << 30), it.open(1, 1 << 30)];
        for source in &large {
            source.give(chunk(1000));
            source.give(chunk(1000));
        }
        assert_eq!(it.next(), Some(0));
        let small = it.open(2, 10);
        small.give(chunk(10));
        assert_eq!(it.next(), Some(2));
        assert_eq!(it.next(), Some(1));
        assert_eq!(it.next(), Some(0));
        assert_eq!(it.next(), Some(1));
        assert_eq!(it.next(), None);
    }

    #[test]
    fn a_stream_of_small_files_does_not_starve_a_large_one() {
        let mut it = Fixture::new();
        it.open(0, 1 << 30).give(chunk(1));
        let mut number = 1;
        let turns = std::iter::from_fn(|| {
            let small = it.open(number, 1);
            number += 1;
            small.give(Piece::End {
                digest: Digest([0; 32]),
            });
            it.next()
        });
        assert!(turns.take(SMALL_IN_A_ROW as usize + 1).any(|number| number == 0));
    }

    #[test]
    fn few_are_read_at_once_and_the_next_begins_when_one_is_over() {
        let mut it = Fixture::new();
        let all: Vec<_> = (0..READING_LARGE as u8 + 2)
            .map(|number| it.open(number, 1 << 30))
            .collect();
        let read = |all: &[Arc<ByHand>]| all.iter().filter(|source| source.is_read()).count();
        assert_eq!(read(&all), READING_LARGE);
        it.outgoing.remove(TransferId([1; 16]));
        assert!(!all[1].is_read(), "its source is told by the closed channel");
        it.outgoing.read_on();
        assert_eq!(read(&all), READING_LARGE);
        assert!(all[READING_LARGE].is_read());
        all[0].give(Piece::End {
            digest: Digest([0; 32]),
        });
        assert_eq!(it.next(), Some(0));
        it.outgoing.read_on();
        assert!(all[READING_LARGE + 1].is_read());
    }

    #[test]
    fn small_files_go_whole_and_of_the_longest_fewer_are_read_at_once() {
        let mut it = Fixture::new();
        let all: Vec<_> = (0..READING_SMALL as u8)
            .map(|number| it.open(number, MAX_EAGER))
            .collect();
        let read = all.iter().filter(|source| source.is_read()).count();
        assert_eq!(read as u64, SMALL_BYTES / MAX_EAGER);
        for source in &all[..2] {
            source.give(chunk(MAX_CHUNK));
            source.give(Piece::End {
                digest: Digest([0; 32]),
            });
        }
        assert_eq!(
            [it.next(), it.next(), it.next(), it.next()],
            [Some(0), Some(0), Some(1), Some(1)]
        );
        it.outgoing.read_on();
        assert!(all[read + 1].is_read() && !all[read + 2].is_read());
    }

    #[test]
    fn without_credit_nothing_goes_and_nothing_is_lost() {
        let mut it = Fixture::new();
        let source = it.open(0, 1 << 30);
        let digest = Digest([0; 32]);
        for number in 0..4u64 {
            let bytes = Bytes::from(vec![0; MAX_CHUNK]);
            it.sender
                .chunk(TransferId([0; 16]), 0, number * MAX_CHUNK as u64, bytes, digest);
        }
        source.give(chunk(1));
        assert_eq!(it.next(), None);
        let ack = dropwire_protocol::message::Ack {
            id: TransferId([0; 16]),
            serial: 0,
            pass: 0,
            offset: 1 << 18,
        };
        while it.sender.poll_message().is_some() {}
        it.sender.receive(dropwire_protocol::Message::Ack(ack)).unwrap();
        assert_eq!(it.next(), Some(0));
    }

    #[test]
    fn a_source_that_breaks_off_or_overshoots_voids_the_pass() {
        let mut it = Fixture::new();
        for (number, piece) in [(0, None), (1, Some(chunk(0))), (2, Some(chunk(MAX_CHUNK + 1)))] {
            let source = it.open(number, 1 << 30);
            if let Some(piece) = piece {
                source.give(piece);
            }
            *source.0.lock().unwrap() = None;
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let Poll::Ready((_, _, Piece::Void(Voided::Unreadable(_)))) =
                it.outgoing.poll_piece(&mut cx, &it.sender)
            else {
                panic!("pass {number} is void")
            };
        }
    }
}
