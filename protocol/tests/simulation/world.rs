//! Two agents, a wire that cuts and delays, a clock that is passed in, and things that go wrong.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Bytes, BytesMut};
use dropwire_protocol::{
    Conversation, Error, Event, FrameCodec, Kind, Local, Manifest, Mtime, Receipt, RemotePath, RunningDigest,
    TransferId,
    message::{DeclineReason, Hello, MAX_CHUNK, MAX_EAGER},
    sender::SenderEvent,
};
use tokio_util::codec::{Decoder, Encoder};

use crate::{
    chance::Chance,
    storage::{Link, Storage, digest_of},
};

pub struct Job {
    content: Bytes,
    manifest: Manifest,
    eager: bool,
    state: JobState,
}

#[derive(Debug, PartialEq)]
enum JobState {
    Waiting(Duration),
    Open,
    Withdrawing,
    Withdrawn,
    Delivered(Receipt),
    Forgotten(Receipt),
}

struct Reading {
    pass: u32,
    digest: RunningDigest,
    /// Size of the next chunk, kept until there is credit for it.
    piece: usize,
}

struct Side {
    conversation: Conversation,
    /// Written by the other side, not delivered yet.
    wire: BytesMut,
    buffer: BytesMut,
    storage: Storage,
    jobs: BTreeMap<TransferId, Job>,
    reading: BTreeMap<TransferId, Reading>,
}

pub struct World {
    sides: [Side; 2],
    chance: Chance,
    now: Duration,
    link: Link,
    /// Nothing gets through, and nobody was told.
    black_hole: bool,
    max_open: u32,
}

const ENOUGH_STEPS: usize = 500_000;
const ENOUGH_TIME: Duration = Duration::from_secs(3600);

impl World {
    /// `files` are (from which side, size, whether eager where that can be).
    pub fn new(seed: u64, faults: u32, max_open: u32, files: &[(bool, usize, bool)]) -> Self {
        let mut chance = Chance::new(seed, faults);
        let mut sides = [side(max_open), side(max_open)];
        for (i, (from, size, eager)) in files.iter().enumerate() {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(chance.below(usize::MAX) as u64).to_be_bytes());
            id[8..].copy_from_slice(&(i as u64).to_be_bytes());
            let job = Job {
                content: (0..*size)
                    .map(|at| (at * 31 + i) as u8 ^ (at >> 8) as u8)
                    .collect(),
                manifest: Manifest {
                    path: RemotePath::parse(format!("folder/file {i}").as_bytes()).expect("a path"),
                    size: *size as u64,
                    mtime: Mtime {
                        seconds: -1,
                        nanos: 7,
                    },
                    kind: Kind::File,
                },
                eager: *eager && *size as u64 <= MAX_EAGER,
                state: JobState::Waiting(Duration::ZERO),
            };
            sides[usize::from(*from)].jobs.insert(TransferId(id), job);
        }
        Self {
            sides,
            chance,
            now: Duration::ZERO,
            link: 0,
            black_hole: false,
            max_open,
        }
    }

    /// Goes on until every job has ended, or fails.
    pub fn run(&mut self) {
        for _ in 0..ENOUGH_STEPS {
            if self.chance.fault(400) {
                self.fault();
            }
            let first = self.chance.below(14);
            let acted = (0..14).any(|i| self.act((first + i) % 14));
            if !acted {
                if self
                    .sides
                    .iter()
                    .all(|side| side.jobs.values().all(Job::has_ended))
                {
                    return self.judge();
                }
                self.wait();
            }
        }
        panic!(
            "not done after {ENOUGH_STEPS} steps at {:?}: {:?}",
            self.now,
            self.jobs()
        );
    }

    /// Does one of the things that either side can do; false when there is nothing of it to do.
    fn act(&mut self, what: usize) -> bool {
        let (who, what) = (what % 2, what / 2);
        match what {
            0 | 1 => self.write(who),
            2 => self.deliver(who),
            3 => self.sides[who].storage.step(&mut self.chance),
            4 => self.answer(who),
            5 => self.offer(who),
            _ => self.read(who),
        }
    }

    fn write(&mut self, who: usize) -> bool {
        let [this, other] = self.pair(who);
        if other.wire.len() > 3 * MAX_CHUNK {
            return false; // the peer reads slowly: TCP holds us back
        }
        let Some(message) = this.conversation.poll_message() else {
            return false;
        };
        FrameCodec::default()
            .encode(message, &mut other.wire)
            .expect("what we say can be written");
        true
    }

    fn deliver(&mut self, who: usize) -> bool {
        let available = self.sides[who].wire.len();
        if available == 0 || self.black_hole {
            return false;
        }
        let most = [1, 100, 70_000, 2 * MAX_CHUNK][self.chance.below(4)];
        let side = &mut self.sides[who];
        let piece = side.wire.split_to(most.min(available));
        side.buffer.extend_from_slice(&piece);
        side.conversation.heard(self.now);
        while let Some(message) = FrameCodec::default()
            .decode(&mut self.sides[who].buffer)
            .expect("well formed")
        {
            self.sides[who]
                .conversation
                .receive(message, self.now)
                .expect("two honest agents");
            self.drain(who);
        }
        true
    }

    fn answer(&mut self, who: usize) -> bool {
        let side = &mut self.sides[who];
        let Some((link, outcome)) = side.storage.outcomes.pop_front() else {
            return false;
        };
        if link == self.link {
            side.conversation.outcome(outcome);
            self.drain(who);
        }
        true
    }

    fn offer(&mut self, who: usize) -> bool {
        let now = self.now;
        let side = &mut self.sides[who];
        let Some(sender) = side.conversation.sender() else {
            return false;
        };
        if !sender.can_offer() {
            return false;
        }
        let due = |job: &Job| matches!(job.state, JobState::Waiting(at) if at <= now);
        let Some((id, job)) = side.jobs.iter_mut().find(|(_, job)| due(job)) else {
            return false;
        };
        assert!(sender.offer(*id, job.manifest.clone(), job.eager));
        job.state = JobState::Open;
        self.drain(who);
        true
    }

    fn read(&mut self, who: usize) -> bool {
        let side = &mut self.sides[who];
        let Some(sender) = side.conversation.sender() else {
            return false;
        };
        let skip = self.chance.below(side.reading.len());
        for (id, reading) in side.reading.iter_mut().skip(skip) {
            let content = &side.jobs[id].content;
            let at = reading.digest.length() as usize;
            if at == content.len() {
                sender.done(*id, reading.pass, reading.digest.value());
                let id = *id;
                side.reading.remove(&id);
                return true;
            }
            let piece = reading.piece.min(content.len() - at);
            if sender.credit(*id, reading.pass) >= piece as u64 {
                let bytes = content.slice(at..at + piece);
                reading.digest.update(&bytes);
                sender.chunk(*id, reading.pass, at as u64, bytes, reading.digest.value());
                reading.piece = [3000, 65_536, 200_000, MAX_CHUNK][self.chance.below(4)];
                return true;
            }
        }
        false
    }

    fn drain(&mut self, who: usize) {
        while let Some(event) = self.sides[who].conversation.poll_event() {
            match event {
                Event::Ready { .. } => self.resume(who),
                Event::Storage(command) => self.sides[who].storage.commands.push_back((self.link, command)),
                Event::Sender(event) => self.sent(who, event),
                Event::SharedKey(seen) => panic!("nobody has another key: {seen}"),
                Event::Bye(bye) => panic!("{bye:?}"),
            }
        }
    }

    /// A new link: what was open is offered again, what was asked is asked again.
    fn resume(&mut self, who: usize) {
        let side = &mut self.sides[who];
        let sender = side.conversation.sender().expect("ready");
        for (id, job) in &mut side.jobs {
            match &job.state {
                JobState::Open => job.state = JobState::Waiting(self.now),
                JobState::Withdrawing => sender.withdraw(*id),
                JobState::Delivered(_) => sender.forget(vec![*id], Vec::new()),
                JobState::Waiting(_) | JobState::Withdrawn | JobState::Forgotten(_) => {}
            }
        }
    }

    fn sent(&mut self, who: usize, event: SenderEvent) {
        let side = &mut self.sides[who];
        let sender = side.conversation.sender().expect("ready");
        match event {
            SenderEvent::Read {
                id,
                pass,
                offset,
                digest,
            } => {
                let before = digest_of(&side.jobs[&id].content[..offset as usize]);
                assert_eq!(before.value(), digest, "what the receiver holds is the file's");
                side.reading.insert(
                    id,
                    Reading {
                        pass,
                        digest: before,
                        piece: MAX_CHUNK,
                    },
                );
            }
            SenderEvent::Progress { id, offset } => assert!(offset <= side.jobs[&id].manifest.size),
            SenderEvent::Delivered { id, receipt } | SenderEvent::Settled { id, receipt } => {
                let job = side.jobs.get_mut(&id).expect("ours");
                assert!(
                    matches!(job.state, JobState::Open | JobState::Withdrawing),
                    "{:?}",
                    job.state
                );
                job.state = JobState::Delivered(receipt);
                side.reading.remove(&id);
                sender.forget(vec![id], Vec::new());
            }
            SenderEvent::Declined { id, reason, .. } => {
                assert_eq!(reason, DeclineReason::NoSpace);
                let later = [Duration::ZERO, Duration::from_secs(20)][self.chance.below(2)];
                side.jobs.get_mut(&id).expect("ours").state = JobState::Waiting(self.now + later);
                side.reading.remove(&id);
            }
            SenderEvent::Withdrawn { id } => {
                let job = side.jobs.get_mut(&id).expect("ours");
                assert_eq!(job.state, JobState::Withdrawing);
                job.state = JobState::Withdrawn;
            }
            SenderEvent::Retimed { .. } => panic!("nothing is retimed here"),
            SenderEvent::Forgotten { ids } => {
                for id in ids {
                    let job = side.jobs.get_mut(&id).expect("ours");
                    let JobState::Delivered(receipt) = &job.state else {
                        panic!("forgotten, but {:?}", job.state)
                    };
                    job.state = JobState::Forgotten(receipt.clone());
                }
            }
        }
    }

    /// One of the things that happen to links, agents and people.
    fn fault(&mut self) {
        let who = self.chance.below(2);
        match self.chance.below(6) {
            0 => self.reconnect(),
            1 => self.black_hole = true,
            2 => {
                self.sides[who].storage.crash();
                self.reconnect();
            }
            3 => self.with_a_job(who, |sender, id, job, _| {
                sender.withdraw(id);
                job.state = JobState::Withdrawing;
            }),
            // Broken off and offered again at once, before the other side knows of either.
            _ => self.with_a_job(who, |sender, id, job, now| {
                if job.state == JobState::Open {
                    sender.close(id);
                    job.state = JobState::Waiting(now);
                }
            }),
        }
    }

    fn with_a_job(
        &mut self,
        who: usize,
        act: impl FnOnce(&mut dropwire_protocol::sender::Sender, TransferId, &mut Job, Duration),
    ) {
        let side = &mut self.sides[who];
        let skip = self.chance.below(side.jobs.len());
        let undecided = |job: &Job| matches!(job.state, JobState::Open | JobState::Waiting(_));
        let job = side.jobs.iter_mut().filter(|(_, job)| undecided(job)).nth(skip);
        if let (Some(sender), Some((id, job))) = (side.conversation.sender(), job) {
            side.reading.remove(id);
            act(sender, *id, job, self.now);
        }
    }

    /// The link ends and another one begins.
    fn reconnect(&mut self) {
        for who in 0..2 {
            self.sides[who].conversation.end();
            self.drain_ended(who);
            let side = &mut self.sides[who];
            side.conversation = Conversation::new(local(self.max_open), self.now);
            side.reading.clear();
            side.wire.clear();
            side.buffer.clear();
        }
        self.link += 1;
        self.black_hole = false;
    }

    fn drain_ended(&mut self, who: usize) {
        let side = &mut self.sides[who];
        while let Some(event) = side.conversation.poll_event() {
            if let Event::Storage(command) = event {
                side.storage.commands.push_back((self.link, command));
            }
        }
    }

    /// Nothing can be done now: time goes on to what is due next.
    fn wait(&mut self) {
        let deadlines = self.sides.iter().map(|side| side.conversation.deadline());
        let jobs = self.sides.iter().flat_map(|side| side.jobs.values());
        let retries = jobs.filter_map(|job| match job.state {
            JobState::Waiting(at) if at > self.now => Some(at),
            _ => None,
        });
        self.now = deadlines.chain(retries).min().expect("two links").max(self.now);
        assert!(self.now < ENOUGH_TIME, "waits for nothing: {:?}", self.jobs());
        for who in 0..2 {
            match self.sides[who].conversation.tick(self.now) {
                Ok(()) => {}
                Err(Error::Silent(_)) => {
                    assert!(self.black_hole, "silence without a reason");
                    return self.reconnect();
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    fn judge(&self) {
        for (who, side) in self.sides.iter().enumerate() {
            let receiver = &self.sides[1 - who].storage;
            for (id, job) in &side.jobs {
                let copies: Vec<_> = receiver.inbox.iter().filter(|(file, _)| file == id).collect();
                match &job.state {
                    JobState::Forgotten(receipt) => {
                        assert_eq!(copies.len(), 1, "delivered once");
                        assert_eq!(copies[0].1, job.content, "and whole");
                        assert_eq!(receiver.ledger.get(id), Some(receipt), "byte for byte");
                        let body = receipt.decode_body_unverified().expect("a body");
                        assert_eq!((body.transfer, body.size), (*id, job.manifest.size));
                        assert_eq!(body.digest, digest_of(&job.content).value());
                        assert!(receiver.forgotten.contains(id));
                    }
                    JobState::Withdrawn => assert!(copies.is_empty(), "withdrawn and yet there"),
                    other => panic!("{id} ended as {other:?}"),
                }
            }
        }
    }

    fn jobs(&self) -> Vec<String> {
        let jobs = self.sides.iter().flat_map(|side| &side.jobs);
        jobs.filter(|(_, job)| !job.has_ended())
            .map(|(id, job)| format!("{id} {:?}", job.state))
            .collect()
    }

    fn pair(&mut self, who: usize) -> [&mut Side; 2] {
        let [first, second] = &mut self.sides;
        if who == 0 {
            [first, second]
        } else {
            [second, first]
        }
    }
}

impl Job {
    fn has_ended(&self) -> bool {
        matches!(self.state, JobState::Withdrawn | JobState::Forgotten(_))
    }
}

fn side(max_open: u32) -> Side {
    Side {
        conversation: Conversation::new(local(max_open), Duration::ZERO),
        wire: BytesMut::new(),
        buffer: BytesMut::new(),
        storage: Storage::default(),
        jobs: BTreeMap::new(),
        reading: BTreeMap::new(),
    }
}

fn local(max_open: u32) -> Local {
    Local {
        hello: Hello {
            version_min: 0,
            version_max: 0,
            name: "simulated".repeat(20),
            software: "test".into(),
            window: 0,
            max_open,
            run: None,
        },
        max_file_size: None,
        ping_after: Duration::from_secs(15),
        dead_after: Duration::from_secs(60),
    }
}
