//! Restarts, jumping clocks, giving up and retention.

use super::*;
use crate::running_time;

const DAY_MS: i64 = 24 * 3600 * 1000;

#[tokio::test]
async fn giving_up_and_keeping_count_running_time() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let day = Duration::from_secs(24 * 3600);
    let first = enqueue(&queue, 1, AfterSend::Delete, &[1]).await.queued;
    running_time::advance(&queue.db, day * 4).await.unwrap();
    let other = item_of(found("b", 1), AfterSend::Delete, &[1]);
    let second = queue.enqueue(vec![other], 100).await.unwrap().queued;
    assert!(queue.expire(day * 5, 900 * DAY_MS).await.unwrap().is_empty());
    queue.retry(first[0], "it is full".into(), 2, 1).await.unwrap();
    running_time::advance(&queue.db, day).await.unwrap();
    assert_eq!(queue.expire(day * 5, 5).await.unwrap(), first);
    let text = "given up after 5days: it is full".to_string();
    assert_eq!(state(&queue, first[0]).await, (JobState::Failed, Some(text)));

    let items = queue
        .delivered(vec![proof(second[0], 5)], 5)
        .await
        .unwrap()
        .acknowledged;
    queue.disposed(vec![(items[0], None)], 6).await.unwrap();
    running_time::advance(&queue.db, KEPT * 2).await.unwrap();
    assert!(!queue.sweep().await.unwrap());
    assert!(
        queue.get(second[0]).await.unwrap().is_some(),
        "its peer still has to forget"
    );
    queue.forgotten(second.clone()).await.unwrap();
    running_time::advance(&queue.db, KEPT).await.unwrap();
    queue.sweep().await.unwrap();
    assert_eq!(queue.get(second[0]).await.unwrap(), None);
    assert!(
        queue.get(first[0]).await.unwrap().is_some(),
        "its file lies there"
    );
}

/// Each `send` has an outbox of its own.
#[tokio::test]
async fn outboxes_without_drops_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let mut found = found("a", 1);
        found.outbox = OutboxId([n; 16]);
        let new = item_of(found, AfterSend::Delete, &[1]);
        ids.extend(queue.enqueue(vec![new], 1).await.unwrap().queued);
    }
    let proofs = ids.iter().map(|id| proof(*id, 5)).take(2).collect();
    let items = queue.delivered(proofs, 2).await.unwrap().acknowledged;
    let ended = items.into_iter().map(|item| (item, None)).collect();
    queue.disposed(ended, 3).await.unwrap();
    queue.forgotten(ids[..2].to_vec()).await.unwrap();
    assert_eq!(queue.outboxes().await.unwrap().len(), 3);
    running_time::advance(&queue.db, KEPT).await.unwrap();
    queue.sweep().await.unwrap();
    let left = queue.outboxes().await.unwrap();
    assert_eq!(left.into_iter().collect::<Vec<_>>(), [(OutboxId([2; 16]), true)]);
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.outboxes.len(), counts.peers[0].1.queued), (1, 1));
    let delivered = counts.peers[0].1.delivered;
    assert_eq!(delivered, 0, "not listed any more");
}

#[tokio::test]
async fn all_of_it_survives_a_restart_and_the_ids_survive_even_its_loss() {
    let folder = tempfile::tempdir().unwrap();
    let first = queue(folder.path()).await;
    let ids = enqueue(&first, 1, AfterSend::Delete, &[1]).await.queued;
    first.retry(ids[0], "far".into(), 10 * DAY_MS, 5).await.unwrap();
    drop(first);
    let second = queue(folder.path()).await;
    let job = second.get(ids[0]).await.unwrap().unwrap();
    assert_eq!((job.attempts, job.state), (1, JobState::Queued));
    assert_eq!(job.next_attempt_ms, 300_000, "pulled in: the clock was set back");
    assert!(!is_unknown(&second, found("a", 1)).await);
    drop(second);

    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(
        folder.path().join("identity.key"),
        elsewhere.path().join("identity.key"),
    )
    .unwrap();
    let third = queue(elsewhere.path()).await;
    assert_eq!(enqueue(&third, 1, AfterSend::Delete, &[1]).await.queued, ids);
}

/// A file that changes for ever without a sign of it must not be sent without a pause.
#[tokio::test]
async fn what_had_other_bytes_waits_longer_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let mut id = enqueue(&queue, 1, AfterSend::Archive, &[1]).await.queued[0];
    for attempts in 0..3 {
        let item = queue
            .delivered(vec![proof(id, 5)], 1000)
            .await
            .unwrap()
            .acknowledged[0];
        let wait = |attempts: u32| Duration::from_millis(10 << attempts);
        queue.begin_again(item, wait, 1000).await.unwrap();
        let due_at = 1000 + (10 << attempts);
        assert!(due(&queue, due_at - 1).await.is_empty());
        let again = due(&queue, due_at).await;
        assert!(again.len() == 1 && again[0] != id);
        id = again[0];
    }
}
