//! What is known of an outbox and would not have been found with another `folder`.

use super::*;
use crate::config::Folder;

fn folder(path: &str) -> Found {
    let mut found = found(path, 1);
    found.version.folder = true;
    found
}

/// `waiting` and `staying`, of what would not have been found with "files", and with "whole".
async fn ways(queue: &Queue) -> [(u64, u64); 2] {
    let mut ways = Vec::new();
    for folder in [Folder::Files, Folder::Whole] {
        let other = queue.read(move |db| other_way(db, OUTBOX, folder)).await.unwrap();
        assert_eq!(other.is_none(), (other.waiting, other.staying) == (0, 0));
        ways.push((other.waiting, other.staying));
    }
    [ways[0], ways[1]]
}

/// Each state that an item may have, of a whole folder and of a file in one.
#[tokio::test]
async fn only_what_has_left_is_in_no_way() {
    for whole in [true, false] {
        let of = |counts: (u64, u64)| match whole {
            true => [counts, (0, 0)],
            false => [(0, 0), counts],
        };
        let found = match whole {
            true => folder("a"),
            false => found("a/b/1", 1),
        };
        let temp = tempfile::tempdir().unwrap();
        let queue = queue(temp.path()).await;
        let queue_one = async |found: &Found, after_send| {
            let new = item_of(found.clone(), after_send, &[1]);
            queue.enqueue(vec![new], 1).await.unwrap().queued[0]
        };
        assert_eq!(ways(&queue).await, of((0, 0)), "nothing");
        let id = queue_one(&found, AfterSend::Archive).await;
        assert_eq!(ways(&queue).await, of((1, 0)), "open");
        let items = queue.delivered(vec![proof(id, 5)], 1).await.unwrap().acknowledged;
        assert_eq!(ways(&queue).await, of((1, 0)), "leaving");
        queue.disposed(vec![(items[0], None)], 2).await.unwrap();
        assert_eq!(ways(&queue).await, of((0, 0)), "left");

        let mut kept = found.clone();
        kept.version.mtime_ns += 1;
        kept.version.inode -= 1;
        let id = queue_one(&kept, AfterSend::Keep).await;
        queue.delivered(vec![proof(id, 5)], 3).await.unwrap();
        assert_eq!(ways(&queue).await, of((0, 1)), "kept");
        let resting = queue.resting(ItemId(0), 9).await.unwrap().pop().unwrap();
        queue.seen(Vec::new(), vec![resting.item]).await.unwrap();
        assert_eq!(
            ways(&queue).await,
            of((0, 1)),
            "missed: only the disk says whether it is back"
        );
        queue.left(vec![resting.item]).await.unwrap();
        assert_eq!(ways(&queue).await, of((0, 0)), "gone");

        let mut cancelled = kept.clone();
        cancelled.version.mtime_ns += 1;
        cancelled.version.inode -= 1;
        let id = queue_one(&cancelled, AfterSend::Archive).await;
        queue.cancel(vec![id], 4).await.unwrap();
        assert_eq!(ways(&queue).await, of((0, 1)), "cancelled");
    }
}

#[tokio::test]
async fn a_file_at_the_top_is_in_no_way_and_neither_is_another_outbox() {
    let temp = tempfile::tempdir().unwrap();
    let queue = queue(temp.path()).await;
    let mut elsewhere = [found("a/1", 1), folder("b")];
    elsewhere
        .iter_mut()
        .for_each(|found| found.outbox = OutboxId([8; 16]));
    for found in elsewhere.into_iter().chain([found("loose", 1)]) {
        for folder in [Folder::Files, Folder::Whole] {
            let expected = match (&found.version.folder, found.path.parent()) {
                (true, _) => folder == Folder::Files,
                (false, parent) => parent.is_some() && folder == Folder::Whole,
            };
            assert_eq!(goes_other_way(&found, folder), expected, "{found:?}");
        }
        let new = item_of(found, AfterSend::Archive, &[1]);
        queue.enqueue(vec![new], 1).await.unwrap();
    }
    assert_eq!(ways(&queue).await, [(0, 0); 2]);
}
