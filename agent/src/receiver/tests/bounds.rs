//! What the ledger takes of the disk of the state folder: it is bounded a peer, and nothing new begins on a full disk.

use dropwire_protocol::message::{DeclineReason, MAX_EAGER};

use super::{
    super::{row_bounds, tally::Rows},
    *,
};

/// A small file, an eager one and a large one.
async fn offers(rig: &Rig, peer: AgentId, first: u8) -> Vec<Option<DeclineReason>> {
    let mut link = rig.link(peer);
    let mut answers = Vec::new();
    for (n, size) in [(0, 5), (1, MAX_EAGER + 1)] {
        let (_, outcome) = link.opened(id(first + n), "file", size).await;
        answers.push(outcome);
    }
    let bytes = content(5);
    let sequence = OfferSequence(100);
    link.command(Command::Open {
        id: id(first + 2),
        sequence,
        manifest: manifest("eager", 5),
        eager: true,
    })
    .await;
    answers.push(link.rest(id(first + 2), sequence, 0, &bytes, 0).await);
    let reason = |answer: Outcome| match answer {
        Outcome::Refused { reason, .. } => Some(reason),
        _ => None,
    };
    answers.into_iter().map(reason).collect()
}

const NO_SPACE: [Option<DeclineReason>; 3] = [Some(DeclineReason::NoSpace); 3];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_is_taken_while_the_state_disk_is_nearly_full() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    link.send(id(1), "before", b"bytes").await;
    let (sequence, _) = link.opened(id(2), "begun", MAX_EAGER + 5).await;
    rig.db.pretend_short_of_room(true);
    assert_eq!(offers(&rig, BOB, 10).await, NO_SPACE);
    let mut again = rig.link(ANA);
    assert_eq!(
        delivered_as(&again.send(id(1), "before", b"bytes").await),
        "before"
    );
    let rest = content(MAX_EAGER as usize + 5);
    assert_eq!(
        delivered_as(&link.rest(id(2), sequence, 0, &rest, 0).await),
        "begun",
        "what was begun is finished"
    );
    rig.db.pretend_short_of_room(false);
    assert_eq!(offers(&rig, BOB, 20).await, [None; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_forgets_is_declined_at_its_bound_and_others_are_not() {
    let rig = Rig::new().await;
    let tally = &rig.inbox.shared.tally;
    rig.link(ANA).send(id(1), "before", b"bytes").await;
    tally.added(
        ANA,
        Rows {
            number: 1 << 20,
            bytes: 1,
        },
    );
    // Counted wrong, and so counted again, but not for each offer.
    assert_eq!(offers(&rig, ANA, 40).await, [None; 3]);
    tally.added(
        ANA,
        Rows {
            number: 1 << 20,
            bytes: 1,
        },
    );
    assert_eq!(offers(&rig, ANA, 10).await, NO_SPACE);
    assert_eq!(offers(&rig, BOB, 10).await, [None; 3]);
    assert_eq!(
        delivered_as(&rig.link(ANA).send(id(1), "before", b"bytes").await),
        "before"
    );
    rig.inbox.sweep().await.unwrap();
    assert_eq!(offers(&rig, ANA, 20).await, [None; 3]);
    tally.added(
        ANA,
        Rows {
            number: 1,
            bytes: 1 << 40,
        },
    );
    assert_eq!(offers(&rig, ANA, 30).await, NO_SPACE);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_peer_near_its_bound_those_go_whose_outcome_it_has() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for n in 1..=20 {
        link.send(id(n), &format!("file{n}"), b"bytes").await;
    }
    let ids: Vec<_> = (1..=10).map(id).collect();
    let times = Vec::new();
    link.command(Command::Forget { ids, times }).await;
    assert!(matches!(link.next().await, Outcome::Forgotten { .. }));
    let counted = rig.db.read(ledger::tally).await.unwrap();
    assert_eq!(counted.keys().collect::<Vec<_>>(), [&ANA]);
    let rows = counted[&ANA];
    assert_eq!(rows.number, 20);
    assert!((20 * 256..20 * 1024).contains(&rows.bytes), "{rows:?}");
    let small = tally::Tally::new(
        counted,
        Rows {
            number: 16,
            bytes: 1 << 20,
        },
    );
    assert!(small.is_full(ANA) && !small.is_full(BOB) && small.near() == [ANA]);
    tokio::task::block_in_place(|| row_bounds::ease(&rig.db, &small)).unwrap();
    assert!(!small.is_full(ANA));
    assert!(rig.row(ANA, id(1)).await.is_none(), "known to the peer");
    assert!(
        rig.row(ANA, id(11)).await.is_some(),
        "nobody knows whether the peer has it"
    );
}

/// None of its bytes are sent once more to find that out, nor those of larger ones.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_too_large_for_the_file_system_is_declined_from_then_on() {
    let rig = Rig::new().await;
    let size = 2 * MAX_EAGER;
    rig.inbox.shared.open_inbox().unwrap().is_too_small_for(size);
    let mut link = rig.link(ANA);
    for (n, size, taken) in [(1, size - 1, true), (2, size, false), (3, 3 * size, false)] {
        let (_, outcome) = link.opened(id(n), "file", size).await;
        match outcome {
            Outcome::Opened { .. } => assert!(taken, "{size}"),
            other => {
                assert_eq!(refused(&other), DeclineReason::TooLarge, "{size}");
                assert!(!taken);
            }
        }
    }
    assert_eq!(rig.partials(), 1);
}

#[test]
fn a_small_disk_bounds_a_peer_by_its_size() {
    let all = Rows::bound(None);
    assert_eq!(Rows::bound(Some(u64::MAX)), all);
    let small = Rows::bound(Some(40 << 20));
    assert_eq!((small.number, small.bytes), (all.number, 10 << 20));
}
