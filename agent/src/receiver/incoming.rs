//! What arrives of one offer: which bytes count, whether they are kept in memory (small files) or in a partial (large
//! ones). The checks of R3 and R4 are here, and nowhere else.

use bytes::Bytes;
use dropwire_protocol::{Digest, Manifest, RunningDigest, message::DeclineReason};

use super::{
    checkpoint::Failure,
    reply::{Answer, Reply},
    space::Reservation,
    transfer_locks::TransferLock,
};
use crate::failpoints;

/// What the link asks of an open offer.
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
    /// Looks around: a newer link wants the transfer, or the re-reading of its prefix ended.
    Wake,
}

/// What an order came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Came {
    /// Nothing that counts: it was under way before the last damage was known.
    Nothing,
    /// More bytes, and they are kept.
    Bytes,
    /// Bytes that do not fit what was announced; they are asked for again.
    Damage,
    /// The end, and all bytes are right.
    End,
}

/// Why an offer ends before it is committed.
pub(super) enum End {
    /// The link let go: what there is is kept.
    Released,
    /// Said to the link; what there is is kept, if `keep`.
    Said { answer: Answer, keep: bool },
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

/// One offer that was taken, until all its bytes are verified.
pub(super) struct Incoming {
    /// What was offered.
    pub manifest: Manifest,
    /// Who is told.
    pub reply: Reply,
    /// On the transfer.
    pub lock: TransferLock,
    /// Room for it on the disk.
    pub reservation: Reservation,
    /// Over everything that came and was right.
    digest: RunningDigest,
    /// Counted up with each damage, which voids the passes before.
    pass: u32,
}

/// A transfer whose bytes came and are right.
pub(super) struct Verified {
    /// What was offered.
    pub manifest: Manifest,
    /// Of all its bytes.
    pub digest: Digest,
    /// Who is told.
    pub reply: Reply,
    /// Held until the end.
    pub lock: TransferLock,
    /// Held until the end.
    #[expect(dead_code, reason = "giving it back is what it is for")]
    pub reservation: Reservation,
}

impl Incoming {
    /// Goes on after the bytes that `digest` is of.
    pub(super) fn new(
        manifest: Manifest,
        reply: Reply,
        lock: TransferLock,
        reservation: Reservation,
        digest: RunningDigest,
    ) -> Self {
        Self {
            manifest,
            reply,
            lock,
            reservation,
            digest,
            pass: 0,
        }
    }

    /// Asks the link for the bytes from here on.
    pub(super) fn ask(&self) {
        self.reply.opened(self.digest.length(), self.digest.value());
    }

    /// Over everything that came and was right.
    pub(super) fn digest(&self) -> &RunningDigest {
        &self.digest
    }

    /// Carries out an order; bytes that are right are handed to `keep`. An error ends the offer.
    pub(super) fn take(
        &mut self,
        order: Order,
        keep: impl FnOnce(&Bytes, &mut Reservation) -> Result<(), End>,
    ) -> Result<Came, End> {
        if self.lock.fenced() && !failpoints::mutant("R1-fence") {
            return Err(fenced().into());
        }
        match order {
            Order::Write {
                pass,
                offset,
                bytes,
                digest,
            } if pass >= self.pass => self.bytes(offset, &bytes, digest, keep),
            Order::Finish { pass, digest } if pass >= self.pass => self.end(digest),
            Order::Write { .. } | Order::Finish { .. } | Order::Wake => Ok(Came::Nothing),
        }
    }

    /// R3: within what was announced, in order, and with the digest that the sender has for it.
    fn bytes(
        &mut self,
        offset: u64,
        bytes: &Bytes,
        digest: Digest,
        keep: impl FnOnce(&Bytes, &mut Reservation) -> Result<(), End>,
    ) -> Result<Came, End> {
        let at = self.digest.length();
        if bytes.len() as u64 > self.manifest.size.saturating_sub(at) && !failpoints::mutant("R3-length") {
            return Err(conflict("more bytes came than were announced"));
        }
        let mut next = self.digest.clone();
        next.update(bytes);
        if offset != at || (next.value() != digest && !failpoints::mutant("R3-chunk-digest")) {
            self.damaged();
            return Ok(Came::Damage);
        }
        keep(bytes, &mut self.reservation)?;
        self.digest = next;
        Ok(Came::Bytes)
    }

    /// R4: all that was announced, and with the digest of the file that the sender read.
    fn end(&self, digest: Digest) -> Result<Came, End> {
        let is_right = self.digest.length() == self.manifest.size && self.digest.value() == digest;
        match is_right || failpoints::mutant("R4-digest") {
            true => Ok(Came::End),
            false => Err(conflict("its length or digest is not what was announced")),
        }
    }

    /// What is kept was found damaged: only what `good` is of is left of it.
    pub(super) fn cut(&mut self, good: RunningDigest) {
        self.reservation
            .returned(self.digest.length().saturating_sub(good.length()));
        self.digest = good;
        self.damaged();
    }

    /// The next pass begins at what is verified. How many there may be the link knows.
    fn damaged(&mut self) {
        self.pass += 1;
        self.reply
            .damaged(self.pass, self.digest.length(), self.digest.value());
    }

    /// Everything came ([`Came::End`]).
    pub(super) fn verified(self) -> Verified {
        Verified {
            manifest: self.manifest,
            digest: self.digest.value(),
            reply: self.reply,
            lock: self.lock,
            reservation: self.reservation,
        }
    }
}

/// A newer link has the transfer.
pub(super) fn fenced() -> Answer {
    Answer::refused(DeclineReason::Fenced, "a newer link carries this transfer", None)
}

fn conflict(text: &str) -> End {
    End::Said {
        answer: Answer::refused(DeclineReason::Conflict, text, None),
        keep: false,
    }
}
