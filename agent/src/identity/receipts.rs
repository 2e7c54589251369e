//! What a receiver signs, and how anyone checks it.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use dropwire_protocol::{Digest, Receipt, ReceiptBody};

use super::{Identity, id_of};
use crate::failpoints;

/// Most receipts under one signature: spares 15 of 16, for 132 bytes of audit path a receipt.
const GROUP: usize = 16;
/// An Ed25519 key has one encoding only: this, then its 32 bytes.
const ED25519_SPKI_HEAD: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

impl Identity {
    /// Signs what the receiver says of one delivery.
    pub fn sign(&self, body: &ReceiptBody) -> Receipt {
        self.sign_all(std::slice::from_ref(body)).swap_remove(0)
    }

    /// Signs what the receiver says of deliveries, one receipt for each, in their order. Those that are signed together
    /// share signatures, and each can be checked without the others.
    pub fn sign_all(&self, bodies: &[ReceiptBody]) -> Vec<Receipt> {
        let encode = |body| minicbor::to_vec(body).expect("a Vec takes all that is written");
        let groups = bodies.chunks(GROUP).flat_map(|group| {
            let bodies: Vec<_> = group.iter().map(encode).collect();
            let (root, paths) = Receipt::group(&bodies);
            let signature = self.key.sign(&Receipt::signed_bytes(root));
            bodies
                .into_iter()
                .zip(paths)
                .map(move |(body, audit_path)| Receipt {
                    body,
                    key: self.spki.clone(),
                    signature: signature.as_ref().to_vec(),
                    audit_path,
                })
        });
        groups.collect()
    }
}

/// Why a receipt proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// Its body cannot be decoded.
    #[error("the receipt is damaged")]
    Undecodable(#[source] minicbor::decode::Error),
    /// Its audit path has half a step, or a side that there is not.
    #[error("the receipt is damaged: its audit path leads nowhere")]
    BadPath,
    /// Its key is of another kind, or none.
    #[error("the receipt's key is not an Ed25519 key")]
    NoKey,
    /// The key in it is not the receiver's it names.
    #[error("the receipt is signed by another key than the receiver's")]
    WrongKey,
    /// The signature does not fit.
    #[error("the receipt's signature does not fit")]
    BadSignature,
}

/// Checks key and signature; needs nothing but the receipt.
pub fn verify(receipt: &Receipt) -> Result<ReceiptBody, ReceiptError> {
    Verifier::default().verify(receipt)
}

/// Checks receipts one after the other, and each signature that they share once.
#[derive(Default)]
pub struct Verifier {
    /// The last signature that fitted.
    fitted: Option<Signed>,
}

/// A signature, whose it is, and what it is of.
struct Signed {
    key: Vec<u8>,
    root: Digest,
    signature: Vec<u8>,
}

impl Verifier {
    /// As [`verify`].
    pub fn verify(&mut self, receipt: &Receipt) -> Result<ReceiptBody, ReceiptError> {
        let body = receipt.decode_body_unverified();
        let body = body.map_err(ReceiptError::Undecodable)?;
        if id_of(&receipt.key) != body.receiver && !failpoints::mutant("S4-key") {
            return Err(ReceiptError::WrongKey);
        }
        let root = receipt.root().ok_or(ReceiptError::BadPath)?;
        let is_fitted = self.fitted.as_ref().is_some_and(|fitted| {
            fitted.root == root && fitted.key == receipt.key && fitted.signature == receipt.signature
        });
        if !is_fitted {
            failpoints::step("S4-signature", || check(receipt, root))?;
            self.fitted = Some(Signed {
                key: receipt.key.clone(),
                root,
                signature: receipt.signature.clone(),
            });
        }
        Ok(body)
    }
}

/// Is the receipt's signature its key's, of this root?
fn check(receipt: &Receipt, root: Digest) -> Result<(), ReceiptError> {
    let key = receipt
        .key
        .strip_prefix(&ED25519_SPKI_HEAD)
        .ok_or(ReceiptError::NoKey)?;
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&Receipt::signed_bytes(root), &receipt.signature)
        .map_err(|_| ReceiptError::BadSignature)
}

#[cfg(test)]
mod tests {
    use std::mem::discriminant;

    use super::*;
    use dropwire_protocol::{AgentId, RemotePath, TransferId};

    fn body(receiver: AgentId, number: u8) -> ReceiptBody {
        let path = RemotePath::parse(b"a/b.txt").unwrap();
        ReceiptBody {
            transfer: TransferId([number; 16]),
            sender: AgentId([1; 32]),
            receiver,
            path: path.clone(),
            delivered_as: path,
            size: 3,
            digest: Digest([9; 32]),
            delivered_at: 1,
            salt: [0; 16],
        }
    }

    fn bodies(identity: &Identity, count: u8) -> Vec<ReceiptBody> {
        (0..count).map(|number| body(identity.id(), number)).collect()
    }

    #[test]
    fn receipts_verify_until_anything_is_changed() {
        let identity = Identity::generate();
        for count in [1, 2, 5] {
            let bodies = bodies(&identity, count);
            let mut receipts = identity.sign_all(&bodies);
            let verified = receipts.iter().map(|receipt| verify(receipt).unwrap());
            assert!(verified.eq(bodies.iter().cloned()));
            let receipt = receipts.pop().unwrap();
            assert_eq!(receipt.audit_path.is_empty(), count == 1);

            // With all others of its group seen before, too.
            let mut verifier = Verifier::default();
            let mut refused = |change: &dyn Fn(&mut Receipt)| {
                receipts
                    .iter()
                    .for_each(|good| drop(verifier.verify(good).unwrap()));
                let mut changed = receipt.clone();
                change(&mut changed);
                let error = verify(&changed).unwrap_err();
                let again = verifier.verify(&changed).unwrap_err();
                assert_eq!(discriminant(&again), discriminant(&error));
                error
            };
            let body = refused(&|r| *r.body.last_mut().unwrap() ^= 1);
            assert!(matches!(body, ReceiptError::BadSignature));
            let signature = refused(&|r| r.signature[0] ^= 1);
            assert!(matches!(signature, ReceiptError::BadSignature));
            let stranger = Identity::generate();
            let key = refused(&|r| r.key.clone_from(&stranger.spki));
            assert!(matches!(key, ReceiptError::WrongKey));
            let theirs = refused(&|r| *r = stranger.sign_all(&bodies).pop().unwrap());
            assert!(matches!(theirs, ReceiptError::WrongKey));
            let longer = refused(&|r| r.audit_path.extend([0; 33]));
            assert!(matches!(longer, ReceiptError::BadSignature));
            let no_path = refused(&|r| r.audit_path.push(0));
            assert!(matches!(no_path, ReceiptError::BadPath));
            let no_body = refused(&|r| r.body.clear());
            assert!(matches!(no_body, ReceiptError::Undecodable(_)));
            if count > 1 {
                let other_side = refused(&|r| r.audit_path[0] ^= 1);
                assert!(matches!(other_side, ReceiptError::BadSignature));
                let neighbour = refused(&|r| *r.audit_path.last_mut().unwrap() ^= 1);
                assert!(matches!(neighbour, ReceiptError::BadSignature));
            }
        }
    }

    #[test]
    fn as_many_share_a_signature_as_a_group_has() {
        let identity = Identity::generate();
        let receipts = identity.sign_all(&bodies(&identity, 2 * GROUP as u8 + 1));
        let signatures: std::collections::HashSet<_> = receipts.iter().map(|r| &r.signature).collect();
        assert_eq!(signatures.len(), 3);
        assert!(
            receipts
                .iter()
                .all(|r| verify(r).is_ok() && r.audit_path.len() <= 132)
        );
    }

    /// PROTOCOL.md's recipe, run as it stands there.
    #[cfg(unix)]
    #[test]
    fn anyone_can_check_a_receipt_with_openssl() {
        use std::process::Command;
        if Command::new("openssl").arg("version").output().is_err() {
            failpoints::skip("there is no openssl here");
            return;
        }
        let text = include_str!("../../../protocol/PROTOCOL.md");
        let recipe: Vec<_> = text
            .lines()
            .skip_while(|line| !line.starts_with("## Receipts"))
            .filter_map(|line| line.strip_prefix("    "))
            .collect();
        let identity = Identity::generate();
        let check = |receipt: &Receipt| {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in [
                ("body", &receipt.body),
                ("key", &receipt.key),
                ("signature", &receipt.signature),
                ("audit-path", &receipt.audit_path),
                ("the-file", &vec![]),
            ] {
                std::fs::write(dir.path().join(name), bytes).unwrap();
            }
            let mut sh = Command::new("sh");
            sh.arg("-ec")
                .arg(recipe.join("\n"))
                .current_dir(&dir)
                .output()
                .unwrap()
        };
        for count in [1, 7] {
            for receipt in identity.sign_all(&bodies(&identity, count)) {
                let said = check(&receipt);
                assert!(said.status.success(), "{said:?}");
                let id = data_encoding::HEXLOWER.encode(&identity.id().0);
                assert!(String::from_utf8_lossy(&said.stdout).contains(&id), "{said:?}");
                let other_body = |r: &mut Receipt| *r.body.last_mut().unwrap() ^= 1;
                let half_a_step = |r: &mut Receipt| r.audit_path.truncate(40);
                let refused = |forge: &dyn Fn(&mut Receipt)| {
                    let mut forged = receipt.clone();
                    forge(&mut forged);
                    assert!(!check(&forged).status.success() && verify(&forged).is_err());
                };
                refused(&other_body);
                if count > 1 {
                    refused(&half_a_step);
                    [2, 10, 11]
                        .iter()
                        .for_each(|side| refused(&|r| r.audit_path[0] = *side));
                }
            }
        }
    }
}
