//! The order of syncs and names, as DURABILITY's R3, R5, R7 and R8 have it.

use dropwire_protocol::message::DeclineReason::{DiskError, InboxUnavailable};

use super::*;
use crate::fs::durable::{
    How,
    trace::{self, Call},
};

pub(super) fn partial_of(n: u8) -> PathBuf {
    Path::new(".dropwire/partial").join(partial::file_name((ANA, id(n))))
}

fn names(calls: &[Call]) -> usize {
    calls.iter().filter(|c| matches!(c, Call::Name(..))).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_is_durable_before_it_has_its_name() {
    let rig = Rig::new().await;
    let before = trace::of(&rig.root()).len();
    let mut link = rig.link(ANA);
    delivered_as(&link.send(id(1), "a/b/small", b"x").await);
    let calls = &trace::of(&rig.root())[before..];
    assert_eq!(names(calls), 1);
    trace::holds_the_order(calls);
    for folder in ["", "a", "a/b"] {
        assert!(calls.contains(&trace::sync(folder)), "{folder:?}: {calls:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_are_many_that_go_together() {
    let rig = Rig::new().await;
    let before = trace::of(&rig.root()).len();
    let mut link = rig.link(ANA);
    for n in 0..100 {
        let sequence = link.open(id(n), &n.to_string(), 1).await;
        link.write(id(n), sequence, 0, b"x", 0, 1).await;
        link.finish(id(n), sequence, 0, digest(b"x")).await;
    }
    let mut committed = 0;
    while committed < 100 {
        committed += usize::from(matches!(link.next().await, Outcome::Committed { .. }));
    }
    let calls = &trace::of(&rig.root())[before..];
    assert_eq!(names(calls), 100);
    trace::holds_the_order(calls);
}

/// A sync for each of them would hold up everybody else's files.
#[tokio::test(flavor = "multi_thread")]
async fn many_new_folders_share_a_sync() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let before = trace::of(&rig.root()).len();
    let deep = vec!["d"; 100].join("/") + "/file";
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.send(id(1), &deep, b"x").await), deep);
    let calls = &trace::of(&rig.root())[before..];
    trace::holds_the_order(calls);
    let is_folder = |c: &Call| matches!(c, Call::Sync("sync", path) if path.starts_with("d"));
    let alone = calls.iter().filter(|c| is_folder(c)).count();
    let together = rig
        .inbox
        .shared
        .open_inbox()
        .is_ok_and(|inbox_dir| inbox_dir.syncfs);
    assert_eq!(alone, if together { 0 } else { 100 }, "{calls:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_and_its_checkpoints_too() {
    let rig = Rig::new().await;
    let bytes = content(3 * CHUNK);
    let before = trace::of(&rig.root()).len();
    let mut link = rig.link(ANA);
    let (sequence, _) = link.opened(id(1), "large", bytes.len() as u64).await;
    link.write(id(1), sequence, 0, &bytes, 0, CHUNK).await;
    link.written(CHUNK as u64).await;
    // The release waits for its checkpoint; the next offer, for the release.
    link.command(Command::Release { id: id(1), sequence }).await;
    let (sequence, resumed) = link.opened(id(1), "large", bytes.len() as u64).await;
    assert!(matches!(resumed, Outcome::Opened { offset, .. } if offset == CHUNK as u64));
    let is_data = |c: &Call| matches!(c, Call::Sync("data", path) if path.starts_with(".dropwire/partial"));
    let calls = trace::of(&rig.root());
    assert!(
        calls[before..].iter().any(is_data),
        "a checkpoint without its bytes"
    );
    delivered_as(&link.rest(id(1), sequence, 0, &bytes, CHUNK).await);
    let calls = &trace::of(&rig.root())[before..];
    assert_eq!(names(calls), 1);
    trace::holds_the_order(calls);
}

/// The rule: a partial that is gone says that the name was given, not that it is durable.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_placed_before_a_crash_is_made_durable_before_it_counts() {
    let mut before = 0;
    let (rig, _, _) = recovery::recovered(How::Renamed, |root, partial| {
        std::fs::create_dir(root.join("sub")).unwrap();
        std::fs::rename(partial, root.join("sub/x.txt")).unwrap();
        before = trace::of(root).len();
    })
    .await;
    let calls = &trace::of(&rig.root())[before..];
    for folder in ["", "sub", ".dropwire/partial"] {
        assert!(calls.contains(&trace::sync(folder)), "{folder:?}: {calls:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_gives_no_receipt_and_leaves_no_partial() {
    if !crate::failpoints::needs::removal_of_open_files() {
        return;
    }
    let rig = Rig::new().await;
    let large = content(2 * CHUNK);
    for (n, bytes) in [(1, &b"small"[..]), (2, &large)] {
        trace::before(&rig.root(), Call::Sync("sync", partial_of(n)), trace::disk_error);
        let mut link = rig.link(ANA);
        assert_eq!(refused(&link.send(id(n), "file", bytes).await), DiskError);
        assert_eq!((rig.partials(), rig.files().len()), (0, 0));
    }
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.send(id(2), "file", &large).await), "file");
}

/// Asked again, the system would say that all is well.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_sync_of_a_folder_no_receipt_leaves_until_the_next_start() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let named = Call::Name(partial_of(1), "file".into());
    let root = rig.root();
    trace::before(&rig.root(), named, move || {
        trace::before(&root, trace::sync(""), trace::disk_error);
        Ok(())
    });
    assert_eq!(refused(&link.send(id(1), "file", b"x").await), InboxUnavailable);
    assert_eq!(refused(&link.opened(id(1), "file", 1).await.1), InboxUnavailable);
    let rig = rig.restarted(|_| ()).await;
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.opened(id(1), "file", 1).await.1), "file");
    assert_eq!(rig.names(), ["file"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_taken_at_the_last_moment_is_not_what_the_ledger_says() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let taken = rig.root().join("file.txt");
    let named = Call::Name(partial_of(1), "file.txt".into());
    trace::before(&rig.root(), named, move || std::fs::write(taken, "taken"));
    let outcome = link.send(id(1), "file.txt", b"x").await;
    assert_eq!(delivered_as(&outcome), "file (1).txt");
    let rig = rig.restarted(|_| ()).await;
    let mut link = rig.link(ANA);
    let settled = link.opened(id(1), "file.txt", 1).await.1;
    assert_eq!(delivered_as(&settled), "file (1).txt");
}

/// Where only a link gives a name: the old one goes after the new one, and the way to it, are durable.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_durable_before_the_partial_s_name_goes() {
    let rig = Rig::new().await;
    rig.inbox.shared.handle.link_from_now_on();
    let before = trace::of(&rig.root()).len();
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.send(id(1), "a/b/f", b"x").await), "a/b/f");
    goes_last(&trace::of(&rig.root())[before..], &["", "a", "a/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_where_a_crash_left_both_names() {
    let mut before = 0;
    let (rig, _, _) = recovery::recovered(How::Linked, |root, partial| {
        std::fs::create_dir(root.join("sub")).unwrap();
        std::fs::hard_link(partial, root.join("sub/x.txt")).unwrap();
        before = trace::of(root).len();
    })
    .await;
    goes_last(&trace::of(&rig.root())[before..], &["", "sub"]);
}

/// The first partial's name, after a sync of each of `folders`; and its own folder is synced after that.
#[track_caller]
fn goes_last(calls: &[Call], folders: &[&str]) {
    let gone = calls.iter().position(|c| *c == Call::Unlink(partial_of(1)));
    let (before, after) = calls.split_at(gone.expect("the partial's name goes"));
    for folder in folders {
        // What opening the inbox syncs comes before the names are checked.
        let synced = before.iter().rev().take_while(|c| !is_probe(c));
        assert!(
            synced.clone().any(|c| *c == trace::sync(folder)),
            "{folder:?}: {calls:#?}"
        );
    }
    assert!(after.contains(&trace::sync(".dropwire/partial")), "{calls:#?}");
}

fn is_probe(call: &Call) -> bool {
    matches!(call, Call::Name(_, to) if to.ends_with("probed"))
}

/// The link is made, its folder's sync fails: asked again, that sync would say that all is well.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_whose_sync_failed_gives_no_receipt_until_the_next_start() {
    let rig = Rig::new().await;
    rig.inbox.shared.handle.link_from_now_on();
    let mut link = rig.link(ANA);
    let named = Call::Name(partial_of(1), "file".into());
    let root = rig.root();
    trace::before(&rig.root(), named, move || {
        trace::before(&root, trace::sync(""), trace::disk_error);
        Ok(())
    });
    refused(&link.send(id(1), "file", b"x").await);
    assert_eq!(refused(&link.opened(id(1), "file", 1).await.1), InboxUnavailable);
    let rig = rig.restarted(|_| ()).await;
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.opened(id(1), "file", 1).await.1), "file");
    assert_eq!((rig.names(), rig.partials()), (vec!["file".into()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_what_was_under_way_when_a_folder_s_sync_failed() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let bytes = content(2 * CHUNK);
    let (sequence, _) = link.opened(id(2), "large", bytes.len() as u64).await;
    link.write(id(2), sequence, 0, &bytes, 0, bytes.len()).await;
    link.written(bytes.len() as u64).await;
    let named = Call::Name(partial_of(1), "small".into());
    let root = rig.root();
    trace::before(&rig.root(), named, move || {
        trace::before(&root, trace::sync(""), trace::disk_error);
        Ok(())
    });
    assert_eq!(refused(&link.send(id(1), "small", b"x").await), InboxUnavailable);
    link.finish(id(2), sequence, 0, digest(&bytes)).await;
    assert_eq!(refused(&link.next().await), InboxUnavailable);
    let rig = rig.restarted(|_| ()).await;
    let (_, resumed) = rig.link(ANA).opened(id(2), "large", bytes.len() as u64).await;
    assert!(
        matches!(resumed, Outcome::Opened { offset, .. } if offset == bytes.len() as u64),
        "nothing is sent twice: {resumed:?}"
    );
}

/// A folder's sync that fails between R7 of one file and of the next, in one batch over more folders than are open at
/// once.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_the_whole_batch() {
    let rig = Rig::new().await;
    let inbox_dir = rig
        .inbox
        .shared
        .handle
        .last_seen()
        .map_err(|e| panic!("{e}"))
        .unwrap();
    rig.inbox.shared.handle.break_off("a sync failed".into());
    let folders = place::existing_folders(&inbox_dir, &RemotePath::parse(b"f").unwrap()).unwrap();
    let before = trace::of(&rig.root()).len();
    let answer = commit::make_durable(&rig.inbox.shared, &inbox_dir, &folders);
    assert!(matches!(answer, Err(reply::Answer::Refused(_))), "{answer:?}");
    assert_eq!(trace::of(&rig.root())[before..], [], "nothing is asked again");
}
