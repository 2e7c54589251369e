//! The hash tree under which receipts that are made together share one signature, as in RFC 6962: a leaf is hashed
//! behind a zero byte, two nodes behind a one, so that neither can pass for the other. A node without a neighbour moves
//! up as it is.

use sha2::{Digest as _, Sha256};

use crate::Digest;

/// A step of an audit path: 1 where the neighbour stands on the left, else 0, then the neighbour.
const STEP: usize = 1 + 32;

/// A node and the leaves below it.
struct Node {
    digest: Digest,
    leaves: std::ops::Range<usize>,
}

/// The root above `leaves`, and for each leaf the audit path that leads there. No leaves: as for an empty one.
pub(crate) fn build<L: AsRef<[u8]>>(leaves: &[L]) -> (Digest, Vec<Vec<u8>>) {
    let mut paths = vec![Vec::new(); leaves.len()];
    let mut level: Vec<Node> = (0..leaves.len())
        .map(|at| Node {
            digest: leaf(leaves[at].as_ref()),
            leaves: at..at + 1,
        })
        .collect();
    while level.len() > 1 {
        let mut above = Vec::with_capacity(level.len().div_ceil(2));
        let mut nodes = level.into_iter();
        while let Some(left) = nodes.next() {
            let Some(right) = nodes.next() else {
                above.push(left);
                break;
            };
            for (below, side, neighbour) in [(&left, 0, &right), (&right, 1, &left)] {
                for path in &mut paths[below.leaves.clone()] {
                    path.push(side);
                    path.extend_from_slice(&neighbour.digest.0);
                }
            }
            above.push(Node {
                digest: join(&left.digest.0, &right.digest.0),
                leaves: left.leaves.start..right.leaves.end,
            });
        }
        level = above;
    }
    let root = level.first().map_or_else(|| leaf(&[]), |node| node.digest);
    (root, paths)
}

/// The root to which an audit path leads from a leaf; None: not whole steps, or an unknown side.
pub(crate) fn root(bytes: &[u8], audit_path: &[u8]) -> Option<Digest> {
    audit_path
        .chunks(STEP)
        .try_fold(leaf(bytes), |node, step| match step.split_first() {
            Some((0, neighbour)) if step.len() == STEP => Some(join(&node.0, neighbour)),
            Some((1, neighbour)) if step.len() == STEP => Some(join(neighbour, &node.0)),
            _ => None,
        })
}

fn leaf(bytes: &[u8]) -> Digest {
    Digest(
        Sha256::new()
            .chain_update([0])
            .chain_update(bytes)
            .finalize()
            .into(),
    )
}

fn join(left: &[u8], right: &[u8]) -> Digest {
    let hash = Sha256::new().chain_update([1]).chain_update(left);
    Digest(hash.chain_update(right).finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leaf_has_its_way_to_the_root() {
        for count in 1..=33u8 {
            let leaves: Vec<_> = (0..count).map(|at| vec![at; usize::from(at)]).collect();
            let (top, paths) = build(&leaves);
            for (at, path) in paths.iter().enumerate() {
                assert!(path.len() <= STEP * 6);
                assert_eq!(root(&leaves[at], path), Some(top), "leaf {at} of {count}");
                let other = &leaves[(at + 1) % leaves.len()];
                assert!(
                    count == 1 || root(other, path) != Some(top),
                    "leaf {at} of {count}"
                );
            }
        }
    }

    #[test]
    fn the_roots_are_those_of_rfc_6962() {
        // The test vectors of Certificate Transparency's reference implementation.
        let leaves: [&[u8]; 3] = [&[], &[0x00], &[0x10]];
        let root_of = |count| format!("{}", build(&leaves[..count]).0);
        assert_eq!(
            root_of(1),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        assert_eq!(
            root_of(2),
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
        );
        assert_eq!(
            root_of(3),
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
        );
    }

    #[test]
    fn what_is_no_path_leads_nowhere() {
        let (_, paths) = build(&[b"a", b"b", b"c"]);
        let good = &paths[0];
        assert_eq!(good.len(), 2 * STEP);
        for length in 1..good.len() {
            assert_eq!(root(b"a", &good[..length]).is_some(), length == STEP, "{length}");
        }
        let mut bad_side = good.clone();
        bad_side[0] = 2;
        assert_eq!(root(b"a", &bad_side), None);
    }
}
