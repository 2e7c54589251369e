//! Files whose times were set after they had been sent.

use std::collections::BTreeSet;

use dropwire_protocol::Mtime;

use super::*;

/// The file that was found first, with this time, which was set before anything was delivered.
fn retimed(mtime_ns: i64) -> Found {
    let mut found = found("a", 1);
    (found.version.mtime_ns, found.version.ctime_ns) = (mtime_ns, 0);
    found
}

async fn doubt_to(queue: &Queue, found: Found, peers: &[u8]) -> Doubt {
    let new = item_of(found, AfterSend::Archive, peers);
    queue.enqueue(vec![new], 9).await.unwrap().doubts.remove(0)
}

async fn doubt(queue: &Queue, found: Found, after_send: AfterSend) -> Option<Doubt> {
    let new = item_of(found, after_send, &[1, 2]);
    let mut enqueued = queue.enqueue(vec![new], 9).await.unwrap();
    (enqueued.doubts.len() == 1).then(|| enqueued.doubts.remove(0))
}

#[tokio::test]
async fn a_delivered_file_with_other_times_is_the_same_drop_and_its_peers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Archive, &[1, 2]).await.queued;
    let late = retimed(5_000_000_002);
    queue.delivered(vec![proof(ids[0], 5)], 1).await.unwrap();
    let one_has_it = doubt(&queue, late.clone(), AfterSend::Archive).await.unwrap();
    assert_eq!(one_has_it.question, Question::IsOther(Digest([5; 32])));
    queue
        .same(vec![(one_has_it.earlier, late.clone())], 9, Duration::ZERO)
        .await
        .unwrap();
    assert!(!is_unknown(&queue, late.clone()).await);
    assert_eq!(queue.get(ids[1]).await.unwrap().unwrap().found, late);
    let items = queue
        .delivered(vec![proof(ids[1], 5)], 2)
        .await
        .unwrap()
        .acknowledged;
    assert_eq!(items, [one_has_it.earlier]);
    let leaving = queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap();
    assert_eq!((leaving[0].found.clone(), leaving[0].delivered_ms), (late, 2));
    let path_of = |name: &str| queue.path_of(name).unwrap();
    assert_eq!(path_of(&leaving[0].name), Some(leaving[0].found.path.clone()));
    assert_eq!((path_of("file"), path_of(""), path_of("00")), (None, None, None));
    let told = queue.disposed(vec![(items[0], None)], 3).await.unwrap();
    assert_eq!(told, [peer(1), peer(2)]);
    for (n, id) in [(1, ids[0]), (2, ids[1])] {
        let todo = todo(&queue, n).await;
        assert_eq!(todo.forget, [id]);
        let mtime = Mtime { seconds: 5, nanos: 2 };
        assert_eq!(todo.times, [LateTime { id, mtime }]);
    }
}

async fn retimed_to(queue: &Queue, now_ms: i64) -> (Vec<LateTime>, Option<i64>) {
    let todo = queue.todo(peer(1), Load::default(), HashSet::new(), now_ms).await;
    let todo = todo.unwrap();
    assert!(todo.forget.is_empty());
    (todo.retimed, todo.next_due_ms)
}

/// Of two times the last one counts, also where the first one is being told.
#[tokio::test]
async fn a_kept_files_time_is_told_once_it_rests_and_the_last_one_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = queue(folder.path()).await;
    let id = enqueue(&queue, 1, AfterSend::Keep, &[1]).await.queued[0];
    queue.delivered(vec![proof(id, 5)], 1).await.unwrap();
    assert_eq!(retimed_to(&queue, 9).await, (vec![], None));
    let late = |seconds| LateTime {
        id,
        mtime: Mtime { seconds, nanos: 2 },
    };
    let set = async |queue: &Queue, seconds: i64, tell_ms| {
        let found = retimed(seconds * 1_000_000_000 + 2);
        let item = doubt(queue, found.clone(), AfterSend::Keep).await;
        let same = item.map(|doubt| (doubt.earlier, found));
        let same = queue.same(Vec::from_iter(same), tell_ms, Duration::ZERO);
        same.await.unwrap()
    };
    assert_eq!(set(&queue, 5, 100).await, [peer(1)].into());
    assert_eq!(set(&queue, 5, 120).await, [].into(), "known");
    assert_eq!(set(&queue, 6, 150).await, [peer(1)].into());
    queue = reopened(queue, folder.path()).await;
    assert_eq!(retimed_to(&queue, 149).await, (vec![], Some(150)));
    assert_eq!(retimed_to(&queue, 150).await, (vec![late(6)], None));
    set(&queue, 7, 200).await;
    queue.retimed(vec![late(6)]).await.unwrap();
    assert_eq!(retimed_to(&queue, 199).await, (vec![], Some(200)));
    queue.pull_in(0, Duration::from_millis(50)).await.unwrap();
    assert_eq!(retimed_to(&queue, 50).await, (vec![late(7)], None));
    queue.retimed(vec![late(7)]).await.unwrap();
    assert_eq!(retimed_to(&queue, 999).await, (vec![], None));
    let mut moved = retimed(7_000_000_002);
    moved.version.inode = 3; // the same time
    let item = doubt(&queue, moved.clone(), AfterSend::Keep)
        .await
        .unwrap()
        .earlier;
    let same = queue.same(vec![(item, moved)], 300, Duration::ZERO);
    assert_eq!(same.await.unwrap(), [].into());
    set(&queue, 8, 400).await;
    queue.left(vec![item]).await.unwrap();
    let todo = todo(&queue, 1).await;
    assert_eq!((todo.forget, todo.times), (vec![id], vec![late(8)]));
    assert_eq!((todo.retimed, todo.next_due_ms), (vec![], None));
}

/// By each one's own delivery; nor does Forget tell the time, where none is left to be told.
#[tokio::test]
async fn a_kept_files_time_that_is_set_long_after_the_delivery_is_told_to_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Keep, &[1, 2]).await.queued;
    queue.delivered(vec![proof(ids[0], 5)], 1_000).await.unwrap();
    queue.delivered(vec![proof(ids[1], 5)], 2_000).await.unwrap();
    let mut item = ItemId(0);
    for (mtime_ns, ctime_ns, told) in [
        (5, 3_000_999_999, vec![peer(1), peer(2)]),
        (6, 3_001_000_000, vec![peer(2)]),
        (7, 4_000_999_999, vec![peer(2)]),
        (8, 4_001_000_000, vec![]),
    ] {
        let mut late = retimed(mtime_ns);
        late.version.ctime_ns = ctime_ns;
        item = doubt(&queue, late.clone(), AfterSend::Keep)
            .await
            .unwrap()
            .earlier;
        let same = queue.same(vec![(item, late)], 9_000, Duration::from_secs(2));
        assert_eq!(same.await.unwrap(), BTreeSet::from_iter(told), "{mtime_ns}");
    }
    let (told, _) = retimed_to(&queue, 11_000).await;
    assert_eq!(told[0].mtime.nanos, 5);
    queue.retimed(told).await.unwrap();
    queue.left(vec![item]).await.unwrap();
    assert_eq!(todo(&queue, 1).await.times, []);
    assert_eq!(
        todo(&queue, 2).await.times[0].mtime.nanos,
        7,
        "it was not told yet"
    );
}

async fn reopened(queue: Queue, folder: &Path) -> Queue {
    drop(queue);
    super::queue(folder).await
}

/// Whether the peer got the time with the file, or had the file before, nobody knows here.
#[tokio::test]
async fn a_kept_files_time_that_was_set_before_its_receipt_is_told_too() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Keep, &[1, 2]).await.queued;
    let late = item_of(retimed(5_000_000_000), AfterSend::Keep, &[1, 2]);
    queue.enqueue(vec![late], 9).await.unwrap();
    queue.delivered(vec![proof(ids[0], 5)], 10).await.unwrap();
    let (told, _) = retimed_to(&queue, 10).await;
    assert_eq!((told.len(), told[0].id), (1, ids[0]));
    queue.retimed(told).await.unwrap();
    queue.delivered(vec![proof(ids[1], 5)], 11).await.unwrap();
    assert_eq!(retimed_to(&queue, 11).await, (vec![], None), "once each");
}

/// Of the version that was read; nothing tells whether a peer has it.
fn proof_of(id: TransferId, version: Version) -> Proof {
    let version = Some(version);
    Proof {
        version,
        ..proof(id, 5)
    }
}

/// A peer may have it already, without our knowing: under a new id it would get it twice.
#[tokio::test]
async fn an_open_drop_with_other_times_keeps_its_ids_and_needs_a_receipt_for_what_lies_there() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Archive, &[1, 2]).await.queued;
    queue.retry(ids[0], "no".into(), 5_000, 1).await.unwrap();
    let late = retimed(5_000_000_002);
    let new = item_of(late.clone(), AfterSend::Archive, &[2, 1, 1]);
    assert_eq!(queue.enqueue(vec![new], 200).await.unwrap(), Enqueued::default());
    assert!(!is_unknown(&queue, late.clone()).await);
    assert_eq!(due(&queue, 200).await, [ids[0]], "as every version that is found");
    for id in &ids {
        let job = queue.get(*id).await.unwrap().unwrap();
        assert_eq!((job.found, job.queued_ms), (late.clone(), 200));
    }
    let early = ids.iter().map(|id| proof_of(*id, found("a", 1).version));
    let recorded = queue.delivered(early.collect(), 300).await.unwrap();
    assert_eq!((recorded.acknowledged, recorded.unproven), (vec![], ids.clone()));
    assert_eq!(state(&queue, ids[0]).await.0, JobState::Queued);
    let now = ids.iter().map(|id| proof_of(*id, late.version));
    let recorded = queue.delivered(now.collect(), 300).await.unwrap();
    assert_eq!((recorded.acknowledged.len(), recorded.unproven), (1, vec![]));
    queue
        .disposed(vec![(recorded.acknowledged[0], None)], 400)
        .await
        .unwrap();
    assert_eq!(todo(&queue, 1).await.times.len(), 1);
}

/// What ended otherwise keeps its state, whatever lies there.
#[tokio::test]
async fn a_receipt_for_an_earlier_version_is_kept_where_nothing_waits_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let id = enqueue(&queue, 1, AfterSend::Archive, &[1]).await.queued[0];
    queue.cancel(vec![id], 1).await.unwrap();
    let recorded = queue.delivered(vec![proof_of(id, retimed(2).version)], 2).await;
    assert_eq!(recorded.unwrap(), Recorded::default());
    assert!(queue.get(id).await.unwrap().unwrap().sha256.is_some());
}

#[tokio::test]
async fn what_is_to_go_another_way_is_another_drop_whatever_else_it_is() {
    let changes: [fn(&mut NewItem); 6] = [
        |new| new.peers = vec![peer(1), peer(2)],
        |new| new.peers = vec![peer(2)],
        |new| new.after_send = AfterSend::Delete,
        |new| new.marker = None,
        |new| new.found.version.inode = 3,
        |new| new.found.version.size = 3,
    ];
    for change in changes {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let ids = enqueue(&queue, 1, AfterSend::Archive, &[1]).await.queued;
        let mut new = item_of(retimed(2), AfterSend::Archive, &[1]);
        change(&mut new);
        queue.enqueue(vec![new], 2).await.unwrap();
        assert_eq!(state(&queue, ids[0]).await, superseded());
    }
}

/// FAT and exFAT keep neither, some ext4 no time of birth: the bytes are asked all the same.
#[tokio::test]
async fn where_numbers_are_not_kept_the_bytes_decide() {
    for (inode, birth_ns) in [(0, 0), (7, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let seen = |mtime_ns| {
            let mut found = retimed(mtime_ns);
            (found.version.inode, found.version.birth_ns) = (inode, birth_ns);
            item_of(found, AfterSend::Archive, &[1])
        };
        let ids = queue.enqueue(vec![seen(1)], 1).await.unwrap().queued;
        assert_eq!(
            queue.enqueue(vec![seen(2)], 1).await.unwrap(),
            Enqueued::default()
        );
        queue.delivered(vec![proof(ids[0], 5)], 1).await.unwrap();
        let doubts = queue.enqueue(vec![seen(3)], 1).await.unwrap().doubts;
        assert_eq!(doubts[0].question, Question::IsOther(Digest([5; 32])));
    }
}

#[tokio::test]
async fn another_file_is_another_drop() {
    let changes: [fn(&mut Version); 4] = [
        |v| v.inode = 3,
        |v| v.size = 3,
        |v| v.birth_ns = 3,
        |v| v.folder = true,
    ];
    for change in changes {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let ids = enqueue(&queue, 1, AfterSend::Archive, &[1]).await.queued;
        queue.delivered(vec![proof(ids[0], 5)], 1).await.unwrap();
        let mut other = retimed(2);
        change(&mut other.version);
        assert_eq!(doubt(&queue, other, AfterSend::Archive).await, None);
    }
}

/// Found changed before anybody compared it: it was to stay, and leaves all the same. Times may come back, too.
#[tokio::test]
async fn it_leaves_also_where_the_old_version_was_missed_and_under_times_that_were_there_before() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    for round in 0..3 {
        let new = item_of(found("a", 1), AfterSend::Delete, &[1]);
        let mut enqueued = queue.enqueue(vec![new], 1).await.unwrap();
        if let Some(doubt) = enqueued.doubts.pop() {
            let is_not = Some(doubt.earlier); // it is there again
            let new = NewItem { is_not, ..doubt.new };
            enqueued = queue.enqueue(vec![new], 1).await.unwrap();
        }
        let items = queue
            .delivered(vec![proof(enqueued.queued[0], 5)], 1)
            .await
            .unwrap()
            .acknowledged;
        let changed = Some((found("a", 1).version, "changed".into()));
        queue.disposed(vec![(items[0], changed)], 2).await.unwrap();
        let late = retimed(2);
        let doubt = doubt(&queue, late.clone(), AfterSend::Delete).await.unwrap();
        assert_eq!(doubt.earlier, items[0], "{round}");
        queue
            .same(vec![(items[0], late.clone())], 9, Duration::ZERO)
            .await
            .unwrap();
        let leaving = queue.to_dispose(OUTBOX, ItemId(0), 9).unwrap();
        assert_eq!((leaving.len(), &leaving[0].found), (1, &late), "{round}");
        queue.disposed(vec![(items[0], None)], 3).await.unwrap();
    }
}

/// An earlier item of the version used the next counters already.
#[tokio::test]
async fn a_drop_that_turned_into_a_version_that_was_there_before_takes_none_of_its_ids() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let late = retimed(2);
    let new = item_of(late.clone(), AfterSend::Archive, &[1]);
    let mut used = queue.enqueue(vec![new], 1).await.unwrap().queued;
    used.extend(queue.recount(used[0], 1).await.unwrap());
    used.extend(queue.recount(used[1], 1).await.unwrap());
    queue.gone(used[2], 1).await.unwrap();
    used.extend(enqueue(&queue, 1, AfterSend::Archive, &[1]).await.queued);
    let doubt = doubt_to(&queue, late.clone(), &[1]).await;
    let new = NewItem {
        is_not: Some(doubt.earlier),
        ..doubt.new
    };
    assert_eq!(queue.enqueue(vec![new], 2).await.unwrap(), Enqueued::default());
    for _ in 0..3 {
        let last = used[used.len() - 1];
        let next = queue.recount(last, 3).await.unwrap().unwrap();
        assert!(!used.contains(&next));
        used.push(next);
    }
    assert_eq!(queue.get(used[6]).await.unwrap().unwrap().found, late);
}
