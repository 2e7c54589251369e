//! The job list as the daemon sees it: tables of cases here, random operations against a model in `model`.

mod listing;
mod model;
mod plan;
mod retimed;
mod time;
mod ways;

use std::{collections::HashSet, path::Path, sync::Arc, time::Duration};

use dropwire_protocol::{AgentId, Digest, RemotePath, TransferId, message::LateTime};
use rusqlite_migration::{M, Migrations};

use super::{schedule::Load, *};
use crate::{
    config::AfterSend,
    fs::version::{Found, OutboxId, Version},
};

pub(super) const OUTBOX: OutboxId = OutboxId([7; 16]);
const MAX_BACKOFF: Duration = Duration::from_secs(300);

pub(super) fn database(folder: &Path) -> Db {
    let migrations = Migrations::new(vec![
        M::up(crate::running_time::SCHEMA_1),
        M::up(SCHEMA_1),
        M::up(SCHEMA_2),
        M::up(SCHEMA_3),
    ]);
    Db::open(&folder.join("state.db"), &migrations).unwrap()
}

pub(super) async fn queue(folder: &Path) -> Queue {
    let identity = Arc::new(Identity::load_or_create(folder).unwrap());
    Queue::open(database(folder), identity, 0, MAX_BACKOFF)
        .await
        .unwrap()
}

pub(super) fn peer(n: u8) -> AgentId {
    AgentId([n; 32])
}

pub(super) fn found(path: &str, mtime_ns: i64) -> Found {
    let version = Version {
        inode: u64::MAX - mtime_ns.unsigned_abs(), // another file: other times alone make no new item
        birth_ns: 0,
        size: 10,
        mtime_ns,
        ctime_ns: mtime_ns,
        folder: false,
    };
    Found {
        outbox: OUTBOX,
        path: RemotePath::parse(path.as_bytes()).unwrap(),
        version,
    }
}

pub(super) fn item_of(found: Found, after_send: AfterSend, peers: &[u8]) -> NewItem {
    NewItem {
        is_not: None,
        found,
        root: "/out".into(),
        origin: None,
        after_send,
        marker: Some(".done".into()),
        peers: peers.iter().copied().map(peer).collect(),
    }
}

pub(super) fn proof(id: TransferId, digest: u8) -> Proof {
    Proof {
        id,
        version: None,
        receipt: vec![1, 2, 3],
        delivered_as: RemotePath::parse(b"a (1)").unwrap(),
        digest: Digest([digest; 32]),
        delivered_at_ms: 77,
    }
}

/// One item of `a` for these peers.
async fn enqueue(queue: &Queue, mtime_ns: i64, after_send: AfterSend, peers: &[u8]) -> Enqueued {
    let new = item_of(found("a", mtime_ns), after_send, peers);
    queue.enqueue(vec![new], 100).await.unwrap()
}

/// Enqueues that item where its version had left and is there again.
async fn enqueue_again(queue: &Queue, mtime_ns: i64, after_send: AfterSend, peers: &[u8]) -> Vec<TransferId> {
    let doubt = enqueue(queue, mtime_ns, after_send, peers).await.doubts.remove(0);
    let is_not = Some(doubt.earlier);
    let new = NewItem { is_not, ..doubt.new };
    queue.enqueue(vec![new], 100).await.unwrap().queued
}

async fn state(queue: &Queue, id: TransferId) -> (JobState, Option<String>) {
    let job = queue.get(id).await.unwrap().unwrap();
    (job.state, job.error)
}

/// As [`state`] has a job of a version that gave way to a newer one.
fn superseded() -> (JobState, Option<String>) {
    (JobState::Failed, Some(End::Superseded.text().into()))
}

async fn is_unknown(queue: &Queue, found: Found) -> bool {
    !queue.unknown(vec![found]).unwrap().is_empty()
}

async fn due(queue: &Queue, now_ms: i64) -> Vec<TransferId> {
    let small = Load { small: 100, large: 0 };
    let todo = queue.todo(peer(1), small, HashSet::new(), now_ms).await.unwrap();
    todo.due.into_iter().map(|j| j.id).collect()
}

/// What this peer has to be told.
async fn todo(queue: &Queue, n: u8) -> Todo {
    let todo = queue
        .todo(peer(n), Load::default(), HashSet::new(), 0)
        .await
        .unwrap();
    assert!(todo.due.is_empty(), "there is no room");
    todo
}

/// By the list's own order: the clock may have been set.
#[tokio::test]
async fn what_an_earlier_run_queued_is_told_from_what_this_one_did() {
    let folder = tempfile::tempdir().unwrap();
    let earlier = queue(folder.path()).await;
    enqueue(&earlier, 1, AfterSend::Keep, &[1]).await;
    drop(earlier);
    let queue = queue(folder.path()).await;
    enqueue(&queue, 2, AfterSend::Keep, &[2]).await;
    let all = Page { after: 0, limit: 9 };
    let rows = queue.list(Filter::default(), all).await.unwrap();
    let of_this_run: Vec<_> = rows.iter().map(|row| queue.is_of_this_run(&row.job)).collect();
    assert_eq!(of_this_run, [false, true]);
}

#[tokio::test]
async fn a_file_goes_its_whole_way() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Archive, &[1, 2]).await.queued;
    assert_eq!(ids.len(), 2);
    let again = enqueue(&queue, 1, AfterSend::Archive, &[1, 2]).await;
    assert_eq!(again, Enqueued::default(), "the same version makes nothing new");

    let early = queue
        .delivered(vec![proof(ids[0], 5)], 200)
        .await
        .unwrap()
        .acknowledged;
    assert!(early.is_empty() && queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap().is_empty());
    let repeated = queue
        .delivered(vec![proof(ids[0], 6)], 201)
        .await
        .unwrap()
        .acknowledged;
    assert!(repeated.is_empty());
    let items = queue
        .delivered(vec![proof(ids[1], 5)], 202)
        .await
        .unwrap()
        .acknowledged;
    let disposal = queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap().remove(0);
    assert_eq!(items, [disposal.item]);
    assert_eq!(
        (disposal.digest, disposal.found.clone()),
        (Digest([5; 32]), found("a", 1))
    );
    assert_eq!(
        (
            disposal.name.len(),
            disposal.after_send,
            disposal.marker.as_deref()
        ),
        (32, AfterSend::Archive, Some(".done"))
    );

    assert!(todo(&queue, 1).await.forget.is_empty(), "not while it lies there");
    queue.disposed(vec![(disposal.item, None)], 300).await.unwrap();
    assert!(queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap().is_empty());
    for (n, id) in [(1, 0), (2, 1)] {
        assert_eq!(todo(&queue, n).await.forget, [ids[id]]);
        queue.forgotten(vec![ids[id]]).await.unwrap();
        assert!(todo(&queue, n).await.forget.is_empty());
    }
    let job = queue.get(ids[0]).await.unwrap().unwrap();
    assert_eq!(
        (job.state, job.sha256),
        (JobState::Delivered, Some(Digest([5; 32])))
    );
    assert_eq!((job.ended_ms, job.delivered_ms), (Some(200), Some(77)));
    assert_eq!(queue.receipt(ids[0]).await.unwrap(), Some(vec![1, 2, 3]));
    let history = queue.history(ids[0]).await.unwrap();
    assert_eq!(
        history,
        [(100, "queued".into()), (200, "delivered as a (1)".into())]
    );
}

#[tokio::test]
async fn a_version_that_left_and_returns_is_a_new_drop() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let first = enqueue(&queue, 1, AfterSend::Archive, &[1]).await.queued[0];
    let items = queue
        .delivered(vec![proof(first, 5)], 1)
        .await
        .unwrap()
        .acknowledged;
    assert!(!is_unknown(&queue, found("a", 1)).await);
    queue.disposed(vec![(items[0], None)], 2).await.unwrap();
    assert!(is_unknown(&queue, found("a", 1)).await);
    // Whatever its times and numbers say: it may have been seen before it left.
    let doubt = enqueue(&queue, 1, AfterSend::Archive, &[1])
        .await
        .doubts
        .remove(0);
    assert_eq!((doubt.earlier, doubt.question), (items[0], Question::IsThere));
    let there = vec![NewItem {
        is_not: Some(doubt.earlier),
        ..doubt.new
    }];
    let again = queue.enqueue(there.clone(), 3).await.unwrap().queued[0];
    assert_ne!(again, first, "another drop has another id");
    let items = queue
        .delivered(vec![proof(again, 5)], 4)
        .await
        .unwrap()
        .acknowledged;
    queue.disposed(vec![(items[0], None)], 5).await.unwrap();
    let late = queue.enqueue(there, 6).await.unwrap();
    assert_eq!(late.doubts[0].earlier, items[0], "an answer is good for one drop");
}

/// What is mounted over its folder hides a file; whoever moves it changes its ctime.
#[tokio::test]
async fn what_was_only_out_of_sight_is_the_drop_that_left() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    type Change = fn(&mut Version);
    let seen = |path: &str, change: Change| {
        let mut found = found(path, 1);
        found.version.birth_ns = 1;
        change(&mut found.version);
        item_of(found, AfterSend::Archive, &[1, 2])
    };
    let unchanged: Change = |_| {};
    let new = |item: NewItem| async { queue.enqueue(vec![item], 1).await.unwrap() };
    let asked = |item: NewItem| async { new(item).await.doubts.remove(0).question };
    let delivered = async |ids: Vec<TransferId>| {
        let proofs = ids.into_iter().map(|id| proof(id, 5)).collect();
        let item = queue.delivered(proofs, 2).await.unwrap().acknowledged[0];
        queue.disposed(vec![(item, None)], 3).await.unwrap();
        item
    };
    let item = delivered(new(seen("a", unchanged)).await.queued).await;
    let other = Question::IsOther(Digest([5; 32]));
    assert_eq!(asked(seen("a", unchanged)).await, other);
    assert_eq!(asked(seen("a", |v| v.ctime_ns += 1)).await, Question::IsThere);
    let same = seen("a", unchanged).found;
    for _ in 0..2 {
        let answer = vec![(item, same.clone())];
        queue.same(answer, 4, Duration::ZERO).await.unwrap();
        assert!(!is_unknown(&queue, same.clone()).await);
        let disposal = queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap().remove(0);
        assert_eq!((disposal.item, &disposal.found), (item, &same));
    }
    queue.disposed(vec![(item, None)], 5).await.unwrap();
    assert_eq!(asked(seen("a", unchanged)).await, other, "and again");
    // Nothing tells a new file from an old one that left.
    let untold: [(&str, Change); 3] = [
        ("b", |v| v.birth_ns = 0),
        ("c", |v| v.inode = 0),
        ("d", |v| v.ctime_ns = 1_000_000_000),
    ];
    for (path, change) in untold {
        delivered(new(seen(path, change)).await.queued).await;
        assert_eq!(asked(seen(path, change)).await, Question::IsThere, "{path}");
    }
    // Files stay there now.
    let mut keeping = seen("a", unchanged);
    keeping.after_send = AfterSend::Keep;
    assert_eq!(asked(keeping).await, Question::IsThere);
    // Not everybody has it.
    let ids = new(seen("e", unchanged)).await.queued;
    queue.delivered(vec![proof(ids[0], 5)], 2).await.unwrap();
    queue.gone(ids[1], 3).await.unwrap();
    assert_eq!(asked(seen("e", unchanged)).await, Question::IsThere);
}

#[tokio::test]
async fn a_kept_file_is_new_by_its_bytes_only() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Keep, &[1, 2]).await.queued;
    let newer = enqueue(&queue, 2, AfterSend::Keep, &[1, 2]).await;
    for id in ids {
        assert_eq!(state(&queue, id).await, superseded(), "nobody has it yet");
    }
    let ids = newer.queued;
    queue.delivered(vec![proof(ids[0], 5)], 1).await.unwrap();
    // One peer has it, the other is away: touched, it is the same item for both.
    let doubt = enqueue(&queue, 3, AfterSend::Keep, &[1, 2])
        .await
        .doubts
        .remove(0);
    assert_eq!(doubt.question, Question::IsOther(Digest([5; 32])));
    let same = (doubt.earlier, found("a", 3));
    queue.same(vec![same.clone()], 0, Duration::ZERO).await.unwrap();
    queue.same(vec![same], 0, Duration::ZERO).await.unwrap();
    assert!(!is_unknown(&queue, found("a", 3)).await);
    let job = queue.get(ids[1]).await.unwrap().unwrap();
    assert_eq!((job.state, job.found), (JobState::Queued, found("a", 3)));
    queue.delivered(vec![proof(ids[1], 5)], 1).await.unwrap();
    assert_eq!(queue.resting(ItemId(0), 9).await.unwrap()[0].found, found("a", 3));
    // Back to the time by which its ids were made, with other bytes.
    let doubt = enqueue(&queue, 2, AfterSend::Keep, &[1, 2])
        .await
        .doubts
        .remove(0);
    let other = NewItem {
        is_not: Some(doubt.earlier),
        ..doubt.new
    };
    let new = queue.enqueue(vec![other], 1).await.unwrap().queued;
    assert!(new.len() == 2 && new.iter().all(|id| !ids.contains(id)));
    // Another size, another path, or an outbox that does not keep: nothing to compare.
    let mut larger = found("a", 4);
    larger.version.size += 1;
    for (found, after_send) in [
        (larger, AfterSend::Keep),
        (found("b", 4), AfterSend::Keep),
        (found("a", 5), AfterSend::Delete),
    ] {
        let done = queue
            .enqueue(vec![item_of(found, after_send, &[1])], 1)
            .await
            .unwrap();
        assert_eq!((done.doubts.len(), done.queued.len()), (0, 1));
    }
}

/// A folder that is moved away and back shows no other ctime on the files in it.
#[tokio::test]
async fn a_version_that_was_gone_and_returns_is_a_new_drop() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let old = enqueue(&queue, 1, AfterSend::Archive, &[1, 2]).await.queued;
    queue.gone(old[0], 1).await.unwrap();
    for id in old {
        assert_eq!(
            state(&queue, id).await,
            (JobState::Failed, Some(End::Gone.text().into())),
            "it is gone for all"
        );
    }
    assert!(is_unknown(&queue, found("a", 1)).await);
    let new = enqueue_again(&queue, 1, AfterSend::Archive, &[1, 2]).await;
    assert_eq!(due(&queue, 100).await, new[..1]);
}

/// An older version of this program kept numbers that do not last.
#[tokio::test]
async fn where_numbers_do_not_last_a_version_is_known_by_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let id = enqueue(&queue, 1, AfterSend::Archive, &[1]).await.queued[0];
    let mut seen = found("a", 1);
    (seen.version.inode, seen.version.birth_ns) = (0, 0);
    assert!(!is_unknown(&queue, seen.clone()).await);
    seen.version.mtime_ns = 2;
    assert!(is_unknown(&queue, seen.clone()).await);
    let new = item_of(seen, AfterSend::Archive, &[1]);
    queue.enqueue(vec![new], 1).await.unwrap();
    assert_eq!(state(&queue, id).await, superseded());
}

#[tokio::test]
async fn a_newer_version_supersedes() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let old = enqueue(&queue, 1, AfterSend::Delete, &[1, 2]).await.queued;
    queue.delivered(vec![proof(old[0], 5)], 1).await.unwrap();
    let new = enqueue(&queue, 2, AfterSend::Delete, &[1, 2]).await;
    assert_eq!(new.queued.len(), 2);
    assert_eq!(state(&queue, old[1]).await, superseded());
    assert_eq!(state(&queue, old[0]).await.0, JobState::Delivered);
    assert_eq!(todo(&queue, 2).await.withdraw, [old[1]]);
    assert_eq!(todo(&queue, 1).await.forget, [old[0]]);

    // Its receipt still comes: kept, and nothing is disposed of.
    let items = queue
        .delivered(vec![proof(old[1], 5)], 2)
        .await
        .unwrap()
        .acknowledged;
    assert!(items.is_empty() && queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap().is_empty());
    assert_eq!(state(&queue, old[1]).await.0, JobState::Failed);
    assert!(queue.receipt(old[1]).await.unwrap().is_some());
    assert!(todo(&queue, 2).await.withdraw.is_empty());
    assert_eq!(todo(&queue, 2).await.forget, [old[1]]);
    assert!(
        queue.resend(vec![old[1]], 3).await.unwrap().is_empty(),
        "it does not lie there"
    );
}

#[tokio::test]
async fn an_acknowledged_version_is_still_disposed_of_beside_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let old = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued;
    let items = queue
        .delivered(vec![proof(old[0], 5)], 1)
        .await
        .unwrap()
        .acknowledged;
    let new = enqueue(&queue, 2, AfterSend::Delete, &[1]).await;
    assert_eq!(state(&queue, old[0]).await.0, JobState::Delivered);
    let first = queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap().swap_remove(0);
    assert_eq!(first.item, items[0]);
    let mut other = first.found.version;
    other.mtime_ns += 1;
    queue
        .disposed(vec![(items[0], Some((other, "changed".into())))], 2)
        .await
        .unwrap();
    let still = queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap();
    assert_eq!(still[0].item, items[0], "another version was judged");
    queue
        .disposed(vec![(items[0], Some((first.found.version, "changed".into())))], 2)
        .await
        .unwrap();
    assert!(
        queue.resting(ItemId(0), 9).await.unwrap().is_empty(),
        "the newer one lies there"
    );
    assert_eq!(due(&queue, 100).await, new.queued);
}

#[tokio::test]
async fn a_job_that_the_peer_can_never_take_fails_with_the_reason_and_is_withdrawn() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued;
    let why = || "office declined: the path is longer than 4096 bytes".to_owned();
    queue.refused(ids[0], why(), 5).await.unwrap();
    assert_eq!(state(&queue, ids[0]).await, (JobState::Failed, Some(why())));
    queue.refused(ids[0], "again".into(), 6).await.unwrap();
    assert_eq!(state(&queue, ids[0]).await.1, Some(why()), "final is final");
    assert_eq!(
        queue.resend(ids.clone(), 7).await.unwrap().len(),
        1,
        "unless asked for"
    );
}

#[tokio::test]
async fn failed_and_cancelled_jobs_keep_the_file() {
    for cancel in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let ids = enqueue(&queue, 1, AfterSend::Delete, &[1, 2]).await.queued;
        if cancel {
            assert_eq!(queue.cancel(vec![ids[0]], 5).await.unwrap(), [ids[0]]);
        } else {
            crate::running_time::advance(&queue.db, Duration::from_secs(9))
                .await
                .unwrap();
            queue.delivered(vec![proof(ids[1], 5)], 5).await.unwrap();
            let given_up = queue.expire(Duration::from_secs(9), 5).await.unwrap();
            assert_eq!(given_up, [ids[0]]);
        }
        queue.retry(ids[0], "late".into(), 6, 6).await.unwrap();
        assert!(queue.cancel(vec![ids[0]], 6).await.unwrap().is_empty());
        let expected = if cancel {
            (JobState::Cancelled, Some("cancelled".into()))
        } else {
            (JobState::Failed, Some("given up after 9s".into()))
        };
        assert_eq!(state(&queue, ids[0]).await, expected, "final is final");
        assert!(
            queue
                .delivered(vec![proof(ids[1], 5)], 6)
                .await
                .unwrap()
                .acknowledged
                .is_empty()
        );
        assert!(queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap().is_empty());
        assert!(
            !is_unknown(&queue, found("a", 1)).await,
            "not queued again by itself"
        );
        assert!(todo(&queue, 2).await.forget.is_empty(), "it lies there still");

        let now = queue.resend(vec![ids[0], ids[1]], 7).await.unwrap();
        assert_eq!(now.len(), 1, "delivered ones are not sent again");
        assert_ne!(now[0], ids[0]);
        assert_eq!(queue.get(ids[0]).await.unwrap(), None);
        assert_eq!(queue.by_prefix(ids[0].to_string()).await.unwrap(), now);
        assert_eq!(todo(&queue, 1).await.withdraw, [ids[0]]);
        assert_eq!(due(&queue, 7).await, now);
        assert_eq!(
            queue
                .delivered(vec![proof(now[0], 5)], 8)
                .await
                .unwrap()
                .acknowledged
                .len(),
            1
        );
    }
}

#[tokio::test]
async fn receipts_of_former_ids_are_kept_and_end_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let old = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued[0];
    let new = queue.recount(old, 5).await.unwrap().unwrap();
    assert_eq!(queue.recount(old, 5).await.unwrap(), None);
    queue.retry(old, "late".into(), 900, 6).await.unwrap();
    assert_eq!(due(&queue, 6).await, [new]);
    assert!(
        queue
            .delivered(vec![proof(old, 1)], 7)
            .await
            .unwrap()
            .acknowledged
            .is_empty()
    );
    assert_eq!(state(&queue, new).await.0, JobState::Queued);
    assert!(todo(&queue, 1).await.withdraw.is_empty());
    assert_eq!(todo(&queue, 1).await.forget, [old]);
    assert!(
        queue
            .history(new)
            .await
            .unwrap()
            .iter()
            .any(|(_, line)| line.contains("a (1)"))
    );
    assert_eq!(
        queue
            .delivered(vec![proof(new, 2)], 8)
            .await
            .unwrap()
            .acknowledged
            .len(),
        1
    );
}

#[tokio::test]
async fn different_bytes_of_one_version_dispose_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let mut there = found("a", 1);
    there.version.birth_ns = 1;
    let item = || vec![item_of(there.clone(), AfterSend::Delete, &[1, 2])];
    let ids = queue.enqueue(item(), 1).await.unwrap().queued;
    let proofs = vec![proof(ids[0], 1), proof(ids[1], 2)];
    assert!(queue.delivered(proofs, 5).await.unwrap().acknowledged.is_empty());
    assert!(queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap().is_empty());
    assert!(
        is_unknown(&queue, there.clone()).await,
        "what lies there is a new drop"
    );
    let asked = queue.enqueue(item(), 6).await.unwrap().doubts.remove(0).question;
    assert_eq!(
        asked,
        Question::IsThere,
        "whatever bytes it has: some peer has others"
    );
}

#[tokio::test]
async fn what_emptied_a_folder_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let path = |path: &str| RemotePath::parse(path.as_bytes()).unwrap();
    let folders = || ["a", "a/b", "a/b/c", "a/b-", "other"].map(path).to_vec();
    let item = |path| item_of(found(path, 1), AfterSend::Delete, &[1]);
    let ids = queue
        .enqueue(["a/b/c", "other/x"].map(item).to_vec(), 1)
        .await
        .unwrap()
        .queued;
    let emptied = async || queue.emptied(OUTBOX, folders()).await.unwrap();
    let left = queue
        .delivered(vec![proof(ids[0], 5)], 5)
        .await
        .unwrap()
        .acknowledged;
    assert_eq!(emptied().await, [], "it lies there still");
    queue.disposed(vec![(left[0], None)], 6).await.unwrap();
    assert_eq!(emptied().await, [path("a"), path("a/b")]);
}

#[tokio::test]
async fn keep_rests_until_it_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Keep, &[1]).await.queued;
    assert!(
        queue
            .delivered(vec![proof(ids[0], 5)], 5)
            .await
            .unwrap()
            .acknowledged
            .is_empty()
    );
    let resting = queue.resting(ItemId(0), 9).await.unwrap().remove(0);
    assert_eq!(
        (resting.digest, &resting.root),
        (Some(Digest([5; 32])), &"/out".into())
    );
    assert!(queue.resting(resting.item, 9).await.unwrap().is_empty());
    let mut touched = found("a", 1);
    touched.version.ctime_ns = 50;
    assert!(!is_unknown(&queue, touched.clone()).await);
    queue.compared(resting.item, 50).await.unwrap();
    assert_eq!(queue.resting(ItemId(0), 9).await.unwrap()[0].found, touched);
    assert_eq!(resting.missed, None);
    queue.seen(vec![], vec![resting.item]).await.unwrap();
    for days in [1, 2] {
        crate::running_time::advance(&queue.db, Duration::from_secs(24 * 3600))
            .await
            .unwrap();
        queue.seen(vec![], vec![resting.item]).await.unwrap();
        let missed = queue.resting(ItemId(0), 9).await.unwrap()[0].missed;
        assert_eq!(missed, Some(Duration::from_secs(24 * 3600 * days)));
    }
    assert!(
        !is_unknown(&queue, touched.clone()).await,
        "it may come back as what it was"
    );
    queue.seen(vec![resting.item], vec![]).await.unwrap();
    assert_eq!(queue.resting(ItemId(0), 9).await.unwrap()[0].missed, None);
    queue.left(vec![resting.item]).await.unwrap();
    assert_eq!(todo(&queue, 1).await.forget, ids);
    touched.version.ctime_ns = 60;
    assert!(is_unknown(&queue, touched).await);
}

#[tokio::test]
async fn retries_wait_for_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let first = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued[0];
    let mut big = found("big", 1);
    big.version.size = 1 << 40;
    let second = queue
        .enqueue(
            vec![
                item_of(found("b", 1), AfterSend::Delete, &[1, 2]),
                item_of(big, AfterSend::Delete, &[1]),
            ],
            101,
        )
        .await
        .unwrap()
        .queued;
    assert_eq!(due(&queue, 99).await, []);
    assert_eq!(due(&queue, 101).await, [first, second[0]]);
    let one_each = Load { small: 1, large: 1 };
    let busy = HashSet::from([first]);
    let todo = queue.todo(peer(1), one_each, busy, 101).await.unwrap();
    let ids: Vec<_> = todo.due.iter().map(|job| job.id).collect();
    assert_eq!(ids, [second[0], second[2]]);

    queue
        .retry(first, "disk full there".into(), 500, 150)
        .await
        .unwrap();
    assert_eq!(due(&queue, 499).await, [second[0]]);
    for (now_ms, next) in [(200, Some(500)), (500, None)] {
        let todo = queue.todo(peer(1), Load::default(), HashSet::new(), now_ms).await;
        assert_eq!(todo.unwrap().next_due_ms, next);
    }
    assert_eq!(due(&queue, 500).await, [second[0], first]);
    let job = queue.get(first).await.unwrap().unwrap();
    assert_eq!((job.attempts, job.error.as_deref()), (1, Some("disk full there")));
    assert_eq!(queue.resend(vec![first], 200).await.unwrap(), [first]);
    assert_eq!(due(&queue, 200).await.len(), 2);
    for n in 0..80 {
        queue.retry(first, format!("no {n}"), 0, 600).await.unwrap();
    }
    let history = queue.history(first).await.unwrap();
    assert_eq!((history.len(), history[50].1.as_str()), (51, "no 79"));
}

#[tokio::test]
async fn a_peer_that_has_its_hands_full_is_asked_when_it_said() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let id = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued[0];
    for (text, at) in [("busy", 10), ("busy", 20), ("full", 30), ("busy", 40)] {
        queue.postpone(id, text.into(), at, at - 1).await.unwrap();
        assert_eq!(due(&queue, at - 1).await, []);
        assert_eq!(due(&queue, at).await, [id]);
    }
    let job = queue.get(id).await.unwrap().unwrap();
    assert_eq!((job.attempts, job.error.as_deref()), (0, Some("busy")));
    let history = queue.history(id).await.unwrap();
    let said = history.iter().map(|(_, line)| line.as_str());
    let said: Vec<_> = said.filter(|line| ["busy", "full"].contains(line)).collect();
    assert_eq!(said, ["busy", "full", "busy"]);
}

#[tokio::test]
async fn a_peer_that_never_likes_an_id_does_not_fill_the_job_list_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let mut id = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued[0];
    let mut used = HashSet::from([id]);
    for _ in 0..100 {
        id = queue.recount(id, 5).await.unwrap().unwrap();
        used.insert(id);
    }
    assert_eq!(used.len() as i64, 1 + attempts::FORMER);
    assert_eq!(due(&queue, 5).await, [id], "it goes on to be tried");
}

#[tokio::test]
async fn without_peers_nothing_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    assert_eq!(
        enqueue(&queue, 1, AfterSend::Delete, &[]).await,
        Enqueued::default()
    );
    assert!(is_unknown(&queue, found("a", 1)).await);
    assert_eq!(
        enqueue(&queue, 1, AfterSend::Delete, &[1, 1]).await.queued.len(),
        1
    );
}

#[tokio::test]
async fn jobs_of_an_outbox_that_was_replaced_end_and_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let waits = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued[0];
    let delivered = item_of(found("b", 2), AfterSend::Delete, &[1]);
    let delivered = queue.enqueue(vec![delivered], 100).await.unwrap().queued[0];
    queue.delivered(vec![proof(delivered, 1)], 100).await.unwrap();
    let new = OutboxId([8; 16]);
    let mut of_new = found("c", 3);
    of_new.outbox = new;
    let of_new = item_of(of_new, AfterSend::Delete, &[1]);
    let of_new = queue.enqueue(vec![of_new], 100).await.unwrap().queued[0];
    let mut elsewhere = found("d", 4);
    elsewhere.outbox = OutboxId([9; 16]);
    let mut elsewhere = item_of(elsewhere, AfterSend::Delete, &[1]);
    elsewhere.root = "/elsewhere".into();
    let elsewhere = queue.enqueue(vec![elsewhere], 100).await.unwrap().queued[0];

    assert_eq!(queue.waiting_at("/out".into()).await.unwrap(), 2);
    assert_eq!(queue.disposing().await.unwrap().len(), 1);
    assert_eq!(queue.outbox_replaced("/out".into(), new, 5).await.unwrap(), 1);
    let failed = (JobState::Failed, Some(End::Replaced.text().to_owned()));
    assert_eq!(state(&queue, waits).await, failed);
    assert_eq!(due(&queue, 200).await, [of_new, elsewhere]);
    assert!(
        queue.disposing().await.unwrap().is_empty(),
        "nothing of it leaves"
    );
    assert!(
        !is_unknown(&queue, found("b", 2)).await,
        "nor is it sent again, should it come back"
    );
}

#[tokio::test]
async fn what_was_found_before_an_outbox_was_moved_is_looked_for_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let first = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued[0];
    let (outbox, moved) = (OUTBOX, std::path::PathBuf::from("/moved"));
    queue
        .outboxes_are_at(vec![(outbox, moved.clone())])
        .await
        .unwrap();
    let late = item_of(found("b", 2), AfterSend::Delete, &[1]);
    let late = queue.enqueue(vec![late], 100).await.unwrap().queued[0];
    for job in [first, late] {
        assert_eq!(queue.get(job).await.unwrap().unwrap().root, moved);
    }
}
