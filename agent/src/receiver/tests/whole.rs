//! Whole folders: received as a stream, seen as a folder, and what a crash in between leaves.

use std::fs;

use dropwire_protocol::message::DeclineReason;

use super::*;
use crate::fs::{bundle, confined, durable::How};

const NAME: &str = "v1.2";

/// Some files and folders, as their stream.
pub(super) fn stream() -> Vec<u8> {
    stream_with("a")
}

/// That stream with another name for one of the files.
pub(super) fn stream_with(name: &str) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir_all(temp.path().join("sub/empty")).unwrap();
    fs::write(temp.path().join(name), "bytes").unwrap();
    fs::write(temp.path().join("sub/b"), content(300_000)).unwrap();
    let folder = confined::root(temp.path()).unwrap();
    let size = bundle::list_quickly(&folder).unwrap().size;
    let mut stream = Vec::new();
    bundle::read(&folder, 0, size, &mut |bytes| {
        stream.extend_from_slice(bytes);
        true
    })
    .unwrap();
    stream
}

pub(super) fn files_of(folder: &str) -> Vec<(String, Vec<u8>)> {
    vec![
        (format!("{folder}/a"), b"bytes".to_vec()),
        (format!("{folder}/sub/b"), content(300_000)),
    ]
}

fn link(rig: &Rig) -> Link {
    Link {
        kind: Kind::Folder,
        ..rig.link(ANA)
    }
}

#[track_caller]
fn refused(outcome: &Outcome) -> DeclineReason {
    match outcome {
        Outcome::Refused { reason, .. } => *reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gets_a_name_of_its_own_and_its_stream_goes() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let (mut link, stream) = (link(&rig), stream());
    assert_eq!(delivered_as(&link.send(id(1), NAME, &stream).await), NAME);
    assert_eq!(rig.files(), files_of(NAME));
    assert!(rig.root().join(NAME).join("sub/empty").is_dir());
    let second = link.send(id(2), NAME, &stream).await;
    assert_eq!(delivered_as(&second), "v1.2 (1)", "a folder has no extension");
    assert_eq!((rig.partials(), rig.inbox.status().await.received_files), (0, 2));
    let (_, again) = link.opened(id(1), NAME, stream.len() as u64).await;
    assert!(matches!(again, Outcome::Settled { .. }), "{again:?}");
    link.kind = Kind::File;
    let (_, other) = link.opened(id(1), NAME, stream.len() as u64).await;
    assert_eq!(refused(&other), DeclineReason::Conflict, "the kind is bound, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sound_stream_is_refused_and_starts_over() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let mut link = link(&rig);
    let mut cut = stream();
    cut.truncate(cut.len() - 512);
    for (n, bytes) in [cut, content(400_000), vec![0; 2048]].into_iter().enumerate() {
        let outcome = link.send(id(n as u8), NAME, &bytes).await;
        assert_eq!(refused(&outcome), DeclineReason::Conflict);
        assert!(rig.names().is_empty() && rig.partials() == 0);
    }
    assert_eq!(delivered_as(&link.send(id(9), NAME, &stream()).await), NAME);
}

/// A crash while it is unpacked: the whole stream is there, and a part of the folder.
#[tokio::test(flavor = "multi_thread")]
async fn half_unpacked_it_goes_on_without_a_byte_sent_again() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let (stream, key) = (stream(), (ANA, id(1)));
    let mut first = link(&rig);
    let (sequence, _) = first.opened(id(1), NAME, stream.len() as u64).await;
    first.write(id(1), sequence, 0, &stream, 0, stream.len()).await;
    first.written(stream.len() as u64).await;
    drop(first);
    let rig = rig
        .restarted(|root| {
            let half = root.join(".dropwire/partial").join(partial::folder_name(key));
            fs::create_dir_all(half.join("sub")).unwrap();
            fs::write(half.join("a"), "by").unwrap();
        })
        .await;
    assert!(rig.names().is_empty());
    let mut link = link(&rig);
    let (sequence, opened) = link.opened(id(1), NAME, stream.len() as u64).await;
    assert!(
        matches!(opened, Outcome::Opened { offset, .. } if offset == stream.len() as u64),
        "{opened:?}"
    );
    let half = rig
        .root()
        .join(".dropwire/partial")
        .join(partial::folder_name(key));
    assert!(!half.exists(), "it holds no room that the next try needs");
    link.finish(id(1), sequence, 0, digest(&stream)).await;
    assert_eq!(delivered_as(&link.next().await), NAME);
    assert_eq!((rig.files(), rig.partials()), (files_of(NAME), 0));
}

/// A row *placing* as R6 leaves it: stream and unpacked folder lie there. Then `change`, a restart, and the offer again.
async fn recovered(change: impl FnOnce(&Path, &Path)) -> (Rig, Receipt, Outcome) {
    let rig = Rig::new().await;
    let (stream, key) = (stream(), (ANA, id(1)));
    let inbox_dir = rig.inbox.shared.handle.last_seen().unwrap();
    let file = partial::create(&inbox_dir, key).unwrap();
    output::write_at(&file, 0, &stream).unwrap();
    let rights = Arc::new(rights::Rights::of(&inbox_dir.root, inbox_dir.mode));
    let target = unpack::Target::of(&inbox_dir, rights);
    let unpacked = unpack::unpack(&target, key, &file, digest(&stream), &mut |_| true);
    let Ok(inode) = unpacked else {
        panic!("it is sound")
    };
    let place = RemotePath::parse(NAME.as_bytes()).unwrap();
    let offered = Manifest {
        kind: Kind::Folder,
        ..manifest(NAME, stream.len() as u64)
    };
    let receipt = sign(&ReceiptBody {
        transfer: id(1),
        sender: ANA,
        receiver: ME,
        path: place.clone(),
        delivered_as: place.clone(),
        size: offered.size,
        digest: digest(&stream),
        delivered_at: 7,
        salt: [0; 16],
    });
    let (folder_id, size) = (inbox_dir.folder_id, offered.size);
    let row = placing::Placing {
        place,
        inode,
        how: How::Renamed,
        digest: digest(&stream),
        receipt: receipt.clone(),
    };
    rig.db
        .call(move |tx| ledger::place(tx, key, &offered, folder_id, &row, 0))
        .await
        .unwrap();
    let folder = rig
        .root()
        .join(".dropwire/partial")
        .join(partial::folder_name(key));
    let rig = rig.restarted(|root| change(root, &folder)).await;
    let (_, outcome) = link(&rig).opened(id(1), NAME, size).await;
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
async fn between_intent_and_name_it_is_placed_with_the_same_receipt() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let (rig, receipt, outcome) = recovered(|_, _| ()).await;
    assert_eq!(settled(&outcome), &receipt);
    assert_eq!((rig.files(), rig.partials()), (files_of(NAME), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_its_name_it_is_delivered() {
    let (rig, receipt, outcome) =
        recovered(|root, folder| fs::rename(folder, root.join(NAME)).unwrap()).await;
    assert_eq!(settled(&outcome), &receipt);
    assert_eq!((rig.files(), rig.partials()), (files_of(NAME), 0));
}

/// Nothing that a crash left says that all of it was there when it got its name.
#[tokio::test(flavor = "multi_thread")]
async fn under_its_name_and_short_it_is_made_again() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let (rig, _, outcome) = recovered(|root, folder| {
        fs::remove_file(folder.join("sub/b")).unwrap();
        fs::rename(folder, root.join(NAME)).unwrap();
    })
    .await;
    assert!(!matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
    let sent = link(&rig).send(id(1), NAME, &stream()).await;
    assert_eq!(delivered_as(&sent), "v1.2 (1)");
}

/// Its stream goes once that is durable.
#[tokio::test(flavor = "multi_thread")]
async fn under_its_name_and_without_its_stream_it_is_delivered() {
    if !crate::failpoints::needs::lasting_inodes() {
        return;
    }
    let (rig, receipt, outcome) = recovered(|root, folder| {
        fs::remove_file(folder.with_extension("")).unwrap();
        fs::rename(folder, root.join(NAME)).unwrap();
    })
    .await;
    assert_eq!(settled(&outcome), &receipt);
    assert_eq!(rig.files(), files_of(NAME));
}

/// All of it, or a piece.
#[tokio::test(flavor = "multi_thread")]
async fn taken_away_it_is_made_again_without_a_byte_sent_again() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let whole: fn(&Path, &Path) = |_, folder| fs::remove_dir_all(folder).unwrap();
    let piece: fn(&Path, &Path) = |_, folder| fs::remove_file(folder.join("sub/b")).unwrap();
    for taken in [whole, piece] {
        let (rig, _, outcome) = recovered(taken).await;
        let stream = stream();
        assert!(!matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
        assert!(rig.names().is_empty());
        let sent = link(&rig).send(id(1), NAME, &stream).await;
        assert_eq!(delivered_as(&sent), NAME);
        assert_eq!((rig.files(), rig.partials()), (files_of(NAME), 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_taken_meanwhile_gives_the_next_one() {
    let (rig, _, outcome) = recovered(|root, _| fs::create_dir(root.join(NAME)).unwrap()).await;
    assert_eq!(delivered_as(&outcome), "v1.2 (1)");
    assert_eq!(rig.files(), files_of("v1.2 (1)"));
}

/// Restored from a copy, say: nobody knows what is in it.
#[tokio::test(flavor = "multi_thread")]
async fn another_folder_in_its_place_is_not_taken_for_it() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let (rig, _, outcome) = recovered(|_, folder| {
        fs::rename(folder, folder.with_extension("away")).unwrap();
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("a"), "forged").unwrap();
    })
    .await;
    assert!(!matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
    assert!(rig.names().is_empty());
    let sent = link(&rig).send(id(1), NAME, &stream()).await;
    assert_eq!(delivered_as(&sent), NAME);
    assert_eq!((rig.files(), rig.partials()), (files_of(NAME), 0));
}

#[test]
fn where_names_are_given_by_links_no_folder_is_taken() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mut inbox_dir = inbox_dir::InboxDir::alone(temp.path());
    let of = |kind| Manifest {
        kind,
        ..manifest(NAME, 5)
    };
    assert!(admit::takes(&inbox_dir, &of(Kind::Folder)).is_ok());
    inbox_dir.how = How::Linked;
    assert!(admit::takes(&inbox_dir, &of(Kind::File)).is_ok());
    assert!(matches!(
        admit::takes(&inbox_dir, &of(Kind::Folder)),
        Err(reply::Answer::Refused(refusal)) if refusal.reason == DeclineReason::NoFolders
    ));
}
