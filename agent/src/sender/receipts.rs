//! Whether a receipt proves this job's delivery: signature, both ids, path, size and, where we read the bytes, the
//! digest.

use dropwire_protocol::{AgentId, Digest, Receipt, ReceiptBody, RemotePath, TransferId};

use crate::{error::chain, failpoints, fs::version::Version, identity::Verifier, queue::Proof};

/// What a receipt has to agree with.
pub(super) struct Claim<'a> {
    /// The job's transfer.
    pub id: TransferId,
    /// This agent.
    pub sender: AgentId,
    /// The peer on whose link it came.
    pub receiver: AgentId,
    /// As offered.
    pub path: &'a RemotePath,
    /// As offered.
    pub size: u64,
}

/// The receipt's content, if it is what we asked for. The digest is left to the caller: it depends on what was read.
pub(super) fn check(
    verifier: &mut Verifier,
    receipt: &Receipt,
    claim: &Claim<'_>,
) -> Result<ReceiptBody, String> {
    let body = verifier.verify(receipt).map_err(|e| chain(&e))?;
    let agrees = [
        ("transfer", body.transfer == claim.id),
        ("sender", body.sender == claim.sender),
        ("receiver", body.receiver == claim.receiver),
        ("path", body.path == *claim.path),
        ("size", body.size == claim.size),
    ];
    match agrees
        .iter()
        .find(|(field, fits)| !fits && !failpoints::mutant(&format!("S4-{field}")))
    {
        Some((field, _)) => Err(format!("the receipt names another {field}")),
        None => Ok(body),
    }
}

/// What the job list keeps of it; it was found right for this version.
pub(super) fn proof(receipt: &Receipt, body: &ReceiptBody, version: Version) -> Proof {
    Proof {
        id: body.transfer,
        version: Some(version),
        receipt: receipt.to_bytes(),
        delivered_as: body.delivered_as.clone(),
        digest: body.digest,
        delivered_at_ms: i64::try_from(body.delivered_at).unwrap_or(i64::MAX),
    }
}

/// Says so when the receiver has other bytes than were read.
pub(super) fn same_digest(body: &ReceiptBody, read: Digest) -> Result<(), String> {
    if body.digest == read || failpoints::mutant("S4-digest") {
        Ok(())
    } else {
        Err(format!("the receipt is for {}, but {read} was sent", body.digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_receipt_has_to_agree_in_everything() {
        let receiver = Identity::generate();
        let path = |name: &str| RemotePath::parse(name.as_bytes()).unwrap();
        let (offered, other) = (path("a"), path("b"));
        let claim = || Claim {
            id: TransferId([1; 16]),
            sender: AgentId([2; 32]),
            receiver: receiver.id(),
            path: &offered,
            size: 3,
        };
        let receipt = receiver.sign(&ReceiptBody {
            transfer: TransferId([1; 16]),
            sender: AgentId([2; 32]),
            receiver: receiver.id(),
            path: path("a"),
            delivered_as: path("a (1)"),
            size: 3,
            digest: Digest([4; 32]),
            delivered_at: 5,
            salt: [0; 16],
        });
        let mut verifier = Verifier::default();
        let body = check(&mut verifier, &receipt, &claim()).unwrap();
        assert_eq!(same_digest(&body, Digest([4; 32])), Ok(()));
        assert!(same_digest(&body, Digest([5; 32])).is_err());
        let id = TransferId([9; 16]);
        let stranger = AgentId([9; 32]);
        for claim in [
            Claim { id, ..claim() },
            Claim {
                sender: stranger,
                ..claim()
            },
            Claim {
                receiver: stranger,
                ..claim()
            },
            Claim {
                path: &other,
                ..claim()
            },
            Claim { size: 4, ..claim() },
        ] {
            assert!(check(&mut verifier, &receipt, &claim).is_err());
        }
    }
}
