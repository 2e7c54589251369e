//! Files whose times were set after they had been sent.

use dropwire_protocol::Mtime;

use super::*;

/// The file that was found first, with this time.
fn retimed(mtime_ns: i64) -> Found {
    let mut found = found("a", 1);
    (found.version.mtime_ns, found.version.ctime_ns) = (mtime_ns, mtime_ns);
    found
}

async fn doubt(queue: &Queue, found: Found, after_send: AfterSend) -> Option<Doubt> {
    let new = drop_of(found, after_send, &[1, 2]);
    let mut enqueued = queue.enqueue(vec![new], 9).await.unwrap();
    (enqueued.doubts.len() == 1).then(|| enqueued.doubts.remove(0))
}

#[tokio::test]
async fn a_delivered_file_with_other_times_is_the_same_drop_and_its_peers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let ids = enqueue(&queue, 1, AfterSend::Archive, &[1, 2]).await.queued;
    let late = retimed(5_000_000_002);
    let mut open = queue.under_way(vec![late.clone()]).await.unwrap().remove(0);
    open.sort();
    let mut all = ids.clone();
    all.sort();
    assert_eq!(open, all);
    queue.delivered(vec![proof(ids[0], 5)], 1).await.unwrap();
    let open = queue.under_way(vec![late.clone(), found("b", 1)]).await.unwrap();
    assert_eq!(open, [vec![ids[1]], vec![]]);
    let one_has_it = doubt(&queue, late.clone(), AfterSend::Archive).await.unwrap();
    assert_eq!(one_has_it.question, Question::IsOther(Digest([5; 32])));
    queue
        .same(vec![(one_has_it.earlier, late.clone())])
        .await
        .unwrap();
    assert!(!is_unknown(&queue, late.clone()).await);
    assert_eq!(queue.get(ids[1]).await.unwrap().unwrap().found, late);
    let drops = queue.delivered(vec![proof(ids[1], 5)], 2).await.unwrap();
    assert_eq!(drops, [one_has_it.earlier]);
    let leaving = queue.to_dispose(OUTBOX, DropId(0), 9).await.unwrap();
    assert_eq!((leaving[0].found.clone(), leaving[0].delivered_ms), (late, 2));
    queue.disposed(vec![(drops[0], None)], 3).await.unwrap();
    for (n, id) in [(1, ids[0]), (2, ids[1])] {
        let todo = todo(&queue, n).await;
        assert_eq!(todo.forget, [id]);
        let mtime = Mtime { seconds: 5, nanos: 2 };
        assert_eq!(todo.times, [LateTime { id, mtime }]);
    }
}

/// Where numbers are not kept, a file of the same size may be another.
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

/// Found changed before anybody looked at it: it was to stay, and leaves all the same. Times may come back, too.
#[tokio::test]
async fn it_leaves_also_where_the_old_version_was_missed_and_under_times_that_were_there_before() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    for round in 0..3 {
        let new = drop_of(found("a", 1), AfterSend::Delete, &[1]);
        let mut enqueued = queue.enqueue(vec![new], 1).await.unwrap();
        if let Some(doubt) = enqueued.doubts.pop() {
            let is_not = Some(doubt.earlier); // it is there again
            let new = NewDrop { is_not, ..doubt.new };
            enqueued = queue.enqueue(vec![new], 1).await.unwrap();
        }
        let drops = queue
            .delivered(vec![proof(enqueued.queued[0], 5)], 1)
            .await
            .unwrap();
        let changed = Some((found("a", 1).version, "changed".into()));
        queue.disposed(vec![(drops[0], changed)], 2).await.unwrap();
        let late = retimed(2);
        let doubt = doubt(&queue, late.clone(), AfterSend::Delete).await.unwrap();
        assert_eq!(doubt.earlier, drops[0], "{round}");
        queue.same(vec![(drops[0], late.clone())]).await.unwrap();
        let leaving = queue.to_dispose(OUTBOX, DropId(0), 9).await.unwrap();
        assert_eq!((leaving.len(), &leaving[0].found), (1, &late), "{round}");
        queue.disposed(vec![(drops[0], None)], 3).await.unwrap();
    }
}
