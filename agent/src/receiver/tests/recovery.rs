//! The rule for rows *placing*: each state a crash can leave is built by hand, then the inbox is opened.

use std::fs;

use super::*;
use dropwire_protocol::message::DeclineReason;

use crate::fs::{confined, durable::How, folder_id};

const NAME: &str = "sub/x.txt";
const BYTES: &[u8] = b"verified";

/// A row *placing* with its durable partial, as R6 leaves them. Gives the partial's path and the receipt.
pub(super) async fn placing(rig: &Rig, how: How) -> (PathBuf, Receipt) {
    let inbox_dir = rig
        .inbox
        .shared
        .handle
        .last_seen()
        .map_err(|e| panic!("{e}"))
        .unwrap();
    let key = (ANA, id(1));
    let file = partial::create(&inbox_dir, key).unwrap();
    output::write_at(&file, 0, BYTES).unwrap();
    let place = RemotePath::parse(NAME.as_bytes()).unwrap();
    let receipt = sign(&ReceiptBody {
        transfer: id(1),
        sender: ANA,
        receiver: ME,
        path: place.clone(),
        delivered_as: place.clone(),
        size: BYTES.len() as u64,
        digest: digest(BYTES),
        delivered_at: 7,
        salt: [0; 16],
    });
    let row = placing::Placing {
        place,
        inode: partial::inode(&file.metadata().unwrap()),
        how,
        digest: digest(BYTES),
        receipt: receipt.clone(),
    };
    let (folder_id, size) = (inbox_dir.folder_id, BYTES.len() as u64);
    rig.db
        .call(move |tx| ledger::place(tx, key, &manifest(NAME, size), folder_id, &row, 0))
        .await
        .unwrap();
    (
        rig.root().join(".dropwire/partial").join(partial::file_name(key)),
        receipt,
    )
}

/// Builds the state, changes it, opens the inbox, and asks for the outcome by offering again.
pub(super) async fn recovered(how: How, change: impl FnOnce(&Path, &Path)) -> (Rig, Receipt, Outcome) {
    let rig = Rig::new().await;
    let (partial, receipt) = placing(&rig, how).await;
    let rig = rig.restarted(|root| change(root, &partial)).await;
    let (_, outcome) = rig.link(ANA).opened(id(1), NAME, BYTES.len() as u64).await;
    (rig, receipt, outcome)
}

#[track_caller]
fn settled(outcome: &Outcome) -> &Receipt {
    match outcome {
        Outcome::Settled { receipt, .. } => receipt,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_there_is_placed_again_with_the_same_receipt() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let (rig, receipt, outcome) = recovered(How::Renamed, |_, _| ()).await;
    assert_eq!(settled(&outcome), &receipt);
    assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);
    assert_eq!((rig.partials(), rig.inbox.status().await.received_files), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_under_its_name_is_delivered() {
    let (rig, receipt, outcome) = recovered(How::Renamed, |root, partial| {
        fs::create_dir(root.join("sub")).unwrap();
        fs::rename(partial, root.join(NAME)).unwrap();
    })
    .await;
    assert_eq!(settled(&outcome), &receipt);
    assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_under_its_name_is_not_it() {
    let other: [&'static [u8]; 2] = [b"verifieD", b"longer than that"];
    for bytes in other {
        let (rig, _, outcome) = recovered(How::Renamed, |root, partial| {
            fs::remove_file(partial).unwrap();
            fs::create_dir(root.join("sub")).unwrap();
            fs::write(root.join(NAME), bytes).unwrap();
        })
        .await;
        assert!(
            matches!(outcome, Outcome::Opened { offset: 0, .. }),
            "{outcome:?}"
        );
        let sent = rig.link(ANA).send(id(1), NAME, BYTES).await;
        assert_eq!(delivered_as(&sent), "sub/x (1).txt");
    }
}

/// File systems use the number of a file again once that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn another_file_with_its_inode_number_is_not_it() {
    let (_, _, outcome) = recovered(How::Renamed, |root, partial| {
        fs::write(partial, b"verifieD").unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        fs::rename(partial, root.join(NAME)).unwrap();
    })
    .await;
    assert!(
        matches!(outcome, Outcome::Opened { offset: 0, .. }),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_was_taken_away_was_not_delivered() {
    let (rig, _, outcome) = recovered(How::Renamed, |_, partial| fs::remove_file(partial).unwrap()).await;
    assert!(
        matches!(outcome, Outcome::Opened { offset: 0, .. }),
        "{outcome:?}"
    );
    assert_eq!(rig.inbox.status().await.received_files, 0);
    let sent = rig.link(ANA).send(id(1), NAME, BYTES).await;
    assert_eq!(delivered_as(&sent), NAME);
    assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);

    let rig = Rig::new().await;
    let (partial, _) = placing(&rig, How::Renamed).await;
    fs::remove_file(partial).unwrap();
    let mut link = rig.link(ANA);
    link.command(Command::Withdraw { id: id(1) }).await;
    assert_eq!(link.next().await, Outcome::Withdrawn { id: id(1) });
}

/// The agent was killed between R7 and the commit of R9, and somebody took the file out of the inbox before that. Of a
/// link the old name may be there still.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_named_and_taken_out_is_delivered() {
    for how in [How::Renamed, How::Linked] {
        let rig = Rig::new().await;
        let (partial, receipt) = placing(&rig, how).await;
        let inbox_dir = rig.inbox.shared.handle.last_seen().unwrap();
        inbox_dir.named.note(&receipt);
        let rig = rig
            .restarted(|_| {
                if how == How::Renamed {
                    fs::remove_file(partial).unwrap();
                }
            })
            .await;
        let (_, outcome) = rig.link(ANA).opened(id(1), NAME, BYTES.len() as u64).await;
        assert_eq!(settled(&outcome), &receipt);
        assert!(rig.names().is_empty());
        assert_eq!(rig.partials(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_taken_meanwhile_gives_the_next_one_and_a_new_receipt() {
    let (rig, _, outcome) = recovered(How::Renamed, |root, _| {
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join(NAME), "mine").unwrap();
    })
    .await;
    assert_eq!(delivered_as(&outcome), "sub/x (1).txt");
    let expected = [
        ("sub/x (1).txt".into(), BYTES.to_vec()),
        (NAME.into(), b"mine".to_vec()),
    ];
    assert_eq!(rig.files(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_names_mean_placed() {
    // Renamed too: a power cut between the two directories' syncs leaves both names on btrfs.
    for how in [How::Linked, How::Renamed] {
        let (rig, receipt, outcome) = recovered(how, |root, partial| {
            fs::create_dir(root.join("sub")).unwrap();
            fs::hard_link(partial, root.join(NAME)).unwrap();
        })
        .await;
        assert_eq!(settled(&outcome), &receipt);
        assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);
        assert_eq!(rig.partials(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_not_made_is_made_up_for() {
    let (rig, _, outcome) = recovered(How::Linked, |_, _| ()).await;
    assert_eq!(delivered_as(&outcome), NAME);
    assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_beside_a_renamed_partial_does_not_mean_placed() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let (rig, receipt, outcome) = recovered(How::Renamed, |root, partial| {
        fs::hard_link(partial, root.parent().unwrap().join("backup")).unwrap();
    })
    .await;
    assert_eq!(settled(&outcome), &receipt);
    assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_partial_counts_only_with_the_right_bytes() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let replace = |bytes: &'static [u8]| {
        move |_: &Path, partial: &Path| {
            let new = partial.with_extension("new");
            fs::write(&new, bytes).unwrap();
            fs::rename(new, partial).unwrap();
        }
    };
    let (rig, receipt, outcome) = recovered(How::Renamed, replace(BYTES)).await;
    assert_eq!(settled(&outcome), &receipt);
    assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);

    let (rig, _, outcome) = recovered(How::Renamed, replace(b"verifieD")).await;
    assert!(
        matches!(outcome, Outcome::Opened { offset: 0, .. }),
        "{outcome:?}"
    );
    assert!(rig.names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_concluded_without_the_mark() {
    let (rig, _, outcome) = recovered(How::Renamed, |root, partial| {
        fs::remove_file(partial).unwrap();
        fs::remove_file(root.join(".dropwire/id")).unwrap();
    })
    .await;
    refused(&outcome);
    assert!(matches!(
        rig.row(ANA, id(1)).await,
        Some(ledger::State::Placing(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_inbox_folder_says_nothing_about_this_one_s_rows() {
    let mut rig = Rig::new().await;
    placing(&rig, How::Renamed).await;
    rig.inbox.shutdown().await;
    let other = rig.temp.path().join("Other");
    fs::create_dir(&other).unwrap();
    let first = rig.root();
    rig.settings.inbox.as_mut().unwrap().path = other;
    let mut rig = rig.restarted(|_| ()).await;
    let (_, outcome) = rig.link(ANA).opened(id(1), NAME, BYTES.len() as u64).await;
    refused(&outcome);
    rig.settings.inbox.as_mut().unwrap().path = first;
    let rig = rig.restarted(|_| ()).await;
    assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_finishes_what_is_placing() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let (_, receipt) = placing(&rig, How::Renamed).await;
    let mut link = rig.link(ANA);
    link.command(Command::Withdraw { id: id(1) }).await;
    assert_eq!(settled(&link.next().await), &receipt);
    assert_eq!(rig.names(), [NAME]);
}

#[tokio::test(flavor = "multi_thread")]
async fn litter_goes_and_partials_with_a_row_stay() {
    let rig = Rig::new().await;
    rig.link(ANA).opened(id(2), "big", 1 << 20).await;
    let rig = rig
        .restarted(|root| fs::write(root.join(".dropwire/partial/litter"), "").unwrap())
        .await;
    assert_eq!(rig.partials(), 1);
}

/// The folder was replaced for good while a file was being placed in it: nobody can tell whether it got its name there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_being_placed_in_a_folder_that_was_given_up_is_taken_again() {
    let rig = Rig::new().await;
    let (old, _) = placing(&rig, How::Renamed).await;
    let away = rig.temp.path().join("away");
    let rig = rig
        .restarted(|root| {
            fs::rename(root, &away).unwrap();
            fs::create_dir(root).unwrap();
        })
        .await;
    let held = rig.inbox.status().await.held.unwrap();
    assert!(
        held.contains("lost its id") && held.contains("dropwire adopt"),
        "{held}"
    );
    let (_, outcome) = rig.link(ANA).opened(id(1), NAME, BYTES.len() as u64).await;
    assert_eq!(refused(&outcome), DeclineReason::InboxUnavailable);

    let root = confined::root(&rig.root()).unwrap();
    let (new, path) = (folder_id::replace(&root).unwrap(), rig.root());
    rig.db
        .call(move |tx| homes::settle(tx, new, &path))
        .await
        .unwrap();
    let inbox = rig.inbox.clone();
    // While it is opened, a link that is on its way out still has the transfer.
    let shared = inbox.shared.clone();
    let lock = loop {
        match shared.transfer_locks.try_take((ANA, id(1))) {
            Some(lock) => break lock,
            None => tokio::task::yield_now().await,
        }
    };
    tokio::task::spawn_blocking(move || inbox.recheck().unwrap())
        .await
        .unwrap();
    drop(lock);
    let outcome = rig.link(ANA).send(id(1), NAME, BYTES).await;
    assert_eq!(delivered_as(&outcome), NAME);
    assert_eq!(rig.files(), [(NAME.into(), BYTES.to_vec())]);
    assert!(
        away.join(old.strip_prefix(rig.root()).unwrap()).exists(),
        "not touched"
    );
}

/// A copy of an outbox is no inbox, and its partials are none of ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_a_copy_is_held() {
    let mut rig = Rig::new().await;
    let (folder_id, other) = (
        rig.inbox.shared.handle.last_seen().unwrap().folder_id,
        PathBuf::from("/out"),
    );
    rig.settings.outboxes.push(other.clone());
    rig.db
        .call(move |tx| homes::settle(tx, folder_id, &other))
        .await
        .unwrap();
    let litter = rig.root().join(".dropwire/partial/x");
    let rig = rig.restarted(|_| fs::write(&litter, "bytes").unwrap()).await;
    let held = rig.inbox.status().await.held.unwrap();
    assert!(held.contains("has the id") && held.contains("/out"), "{held}");
    assert!(litter.exists());
}
