//! A receiver's storage in memory: what has to outlive links and restarts, and the rules that `receiver.rs` states.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dropwire_protocol::{
    AgentId, Digest, Manifest, Receipt, ReceiptBody, RunningDigest, TransferId,
    message::{DeclineReason, MIN_WINDOW},
    receiver::{Command, OfferSequence, Outcome},
};

use crate::chance::Chance;

/// Which link something belongs to; openings are counted from zero on each.
pub type Link = u64;

#[derive(Default)]
pub struct Storage {
    pub commands: VecDeque<(Link, Command)>,
    pub outcomes: VecDeque<(Link, Outcome)>,
    /// Each commit adds one.
    pub inbox: Vec<(TransferId, Vec<u8>)>,
    pub ledger: BTreeMap<TransferId, Receipt>,
    pub forgotten: BTreeSet<TransferId>,
    tombstones: BTreeSet<TransferId>,
    partials: BTreeMap<TransferId, Partial>,
    open: BTreeMap<TransferId, Open>,
}

#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    checkpoint: usize,
}

struct Open {
    link: Link,
    sequence: OfferSequence,
    pass: u32,
    manifest: Manifest,
    digest: RunningDigest,
    reported: u64,
}

pub fn digest_of(bytes: &[u8]) -> RunningDigest {
    let mut digest = RunningDigest::default();
    digest.update(bytes);
    digest
}

impl Storage {
    /// Carries out one command. False: there is none.
    pub fn step(&mut self, chance: &mut Chance) -> bool {
        let Some((link, command)) = self.commands.pop_front() else {
            return false;
        };
        let outcome = match command {
            Command::Open {
                id,
                sequence,
                manifest,
                eager,
            } => Some(self.open(chance, link, id, sequence, manifest, eager)),
            Command::Write {
                id,
                sequence,
                pass,
                offset,
                bytes,
                digest,
            } => self
                .current(link, id, sequence, pass)
                .then(|| self.write(chance, id, offset, &bytes, digest))
                .flatten(),
            Command::Finish {
                id,
                sequence,
                pass,
                digest,
            } => self
                .current(link, id, sequence, pass)
                .then(|| self.finish(chance, id, digest))
                .flatten(),
            Command::Release { id, sequence } => {
                if self
                    .open
                    .get(&id)
                    .is_some_and(|open| (open.link, open.sequence) == (link, sequence))
                {
                    self.open.remove(&id);
                }
                None
            }
            Command::Withdraw { id } => {
                self.open.remove(&id);
                Some(match self.ledger.get(&id).cloned() {
                    Some(receipt) => Outcome::Settled {
                        id,
                        sequence: None,
                        receipt,
                    },
                    None => {
                        self.tombstones.insert(id);
                        Outcome::Withdrawn { id }
                    }
                })
            }
            Command::Forget { ids, .. } => {
                self.forgotten.extend(&ids);
                Some(Outcome::Forgotten { ids })
            }
        };
        self.outcomes.extend(outcome.map(|outcome| (link, outcome)));
        true
    }

    /// A restart: what was not made durable is gone.
    pub fn crash(&mut self) {
        self.commands.clear();
        self.outcomes.clear();
        self.open.clear();
        for partial in self.partials.values_mut() {
            partial.bytes.truncate(partial.checkpoint);
        }
    }

    fn current(&self, link: Link, id: TransferId, sequence: OfferSequence, pass: u32) -> bool {
        self.open.get(&id).is_some_and(|open| {
            assert!(
                open.link != link || open.sequence != sequence || pass <= open.pass,
                "a pass from the future"
            );
            open.link == link && open.sequence == sequence && pass == open.pass
        })
    }

    fn open(
        &mut self,
        chance: &mut Chance,
        link: Link,
        id: TransferId,
        sequence: OfferSequence,
        manifest: Manifest,
        eager: bool,
    ) -> Outcome {
        let refused = |reason| Outcome::Refused {
            id,
            sequence,
            reason,
            text: "ü".repeat(200),
            retry_after_ms: None,
        };
        if let Some(receipt) = self.ledger.get(&id).cloned() {
            return Outcome::Settled {
                id,
                sequence: Some(sequence),
                receipt,
            };
        }
        if self.tombstones.contains(&id) {
            return refused(DeclineReason::Withdrawn);
        }
        if chance.fault(8) {
            return refused(DeclineReason::NoSpace);
        }
        let partial = self.partials.entry(id).or_default();
        if eager {
            *partial = Partial::default();
        }
        let digest = digest_of(&partial.bytes);
        let (offset, value) = (digest.length(), digest.value());
        let reported = offset;
        self.open.insert(
            id,
            Open {
                link,
                sequence,
                pass: 0,
                manifest,
                digest,
                reported,
            },
        );
        Outcome::Opened {
            id,
            sequence,
            offset,
            digest: value,
        }
    }

    fn write(
        &mut self,
        chance: &mut Chance,
        id: TransferId,
        offset: u64,
        bytes: &[u8],
        digest: Digest,
    ) -> Option<Outcome> {
        let (open, partial) = (self.open.get_mut(&id)?, self.partials.get_mut(&id)?);
        assert_eq!(offset, open.digest.length(), "writes follow each other");
        open.digest.update(bytes);
        assert!(open.digest.length() <= open.manifest.size);
        assert_eq!(open.digest.value(), digest, "the bytes are the sender's");
        if chance.fault(20) {
            return self.damaged(id);
        }
        partial.bytes.extend_from_slice(bytes);
        if chance.one_in(4) {
            partial.checkpoint = partial.bytes.len();
        }
        let (written, sequence) = (open.digest.length(), open.sequence);
        if written - open.reported < MIN_WINDOW / 4 {
            return None;
        }
        open.reported = written;
        Some(Outcome::Written {
            id,
            sequence,
            offset: written,
        })
    }

    fn finish(&mut self, chance: &mut Chance, id: TransferId, digest: Digest) -> Option<Outcome> {
        let open = self.open.get(&id)?;
        assert_eq!(open.digest.length(), open.manifest.size, "all came");
        assert_eq!(open.digest.value(), digest);
        if chance.fault(8) {
            return self.damaged(id);
        }
        let open = self.open.remove(&id)?;
        let partial = self.partials.remove(&id)?;
        let body = ReceiptBody {
            transfer: id,
            sender: AgentId([0; 32]),
            receiver: AgentId([1; 32]),
            path: open.manifest.path.clone(),
            delivered_as: open.manifest.path.clone(),
            size: open.manifest.size,
            digest,
            delivered_at: 0,
            salt: [0; 16],
        };
        let receipt = Receipt {
            body: minicbor::to_vec(body).expect("into memory"),
            key: vec![0; 44],
            signature: vec![0; 64],
            audit_path: vec![],
        };
        self.inbox.push((id, partial.bytes));
        self.ledger.insert(id, receipt.clone());
        Some(Outcome::Committed {
            id,
            sequence: open.sequence,
            receipt,
        })
    }

    fn damaged(&mut self, id: TransferId) -> Option<Outcome> {
        let (open, partial) = (self.open.get_mut(&id)?, self.partials.get_mut(&id)?);
        partial.bytes.truncate(partial.checkpoint);
        open.pass += 1;
        open.digest = digest_of(&partial.bytes);
        open.reported = open.digest.length();
        Some(Outcome::Damaged {
            id,
            sequence: open.sequence,
            pass: open.pass,
            offset: open.digest.length(),
            digest: open.digest.value(),
        })
    }
}
