//! A folder and its files.

use super::*;

fn folder(path: &str) -> Found {
    let mut found = found(path, 1);
    found.version.folder = true;
    found
}

async fn going(queue: &Queue, whole: bool) -> Vec<String> {
    let folders = queue.folders_that_go(OUTBOX, whole).await.unwrap();
    folders.iter().map(ToString::to_string).collect()
}

async fn queue_one(queue: &Queue, found: Found, after_send: AfterSend) -> Option<TransferId> {
    let new = item_of(found, after_send, &[1]);
    queue.enqueue(vec![new], 1).await.unwrap().queued.pop()
}

#[tokio::test]
async fn a_folder_waits_until_its_files_have_left() {
    let temp = tempfile::tempdir().unwrap();
    let queue = queue(temp.path()).await;
    let id = queue_one(&queue, found("a/b/1", 1), AfterSend::Archive)
        .await
        .unwrap();
    queue_one(&queue, found("loose", 1), AfterSend::Archive)
        .await
        .unwrap();
    let waits = async || {
        assert_eq!(going(&queue, false).await, ["a"]);
        assert!(!is_unknown(&queue, folder("a")).await);
        assert_eq!(queue_one(&queue, folder("a"), AfterSend::Archive).await, None);
        assert!(is_unknown(&queue, folder("a0")).await && is_unknown(&queue, folder("b")).await);
    };
    waits().await;
    let items = queue.delivered(vec![proof(id, 5)], 1).await.unwrap().acknowledged;
    waits().await;
    queue.disposed(vec![(items[0], None)], 2).await.unwrap();
    assert!(going(&queue, false).await.is_empty() && going(&queue, true).await.is_empty());
    assert!(queue_one(&queue, folder("a"), AfterSend::Archive).await.is_some());
}

#[tokio::test]
async fn files_wait_until_their_folder_has_left() {
    let temp = tempfile::tempdir().unwrap();
    let queue = queue(temp.path()).await;
    let id = queue_one(&queue, folder("a"), AfterSend::Archive).await.unwrap();
    let waits = async || {
        assert_eq!(going(&queue, true).await, ["a"]);
        assert!(!is_unknown(&queue, found("a/b/1", 1)).await);
        assert_eq!(queue_one(&queue, found("a/1", 1), AfterSend::Archive).await, None);
        assert!(is_unknown(&queue, found("ab/1", 1)).await && is_unknown(&queue, found("b", 1)).await);
    };
    waits().await;
    let items = queue.delivered(vec![proof(id, 5)], 1).await.unwrap().acknowledged;
    waits().await;
    queue.disposed(vec![(items[0], None)], 2).await.unwrap();
    assert!(going(&queue, true).await.is_empty() && going(&queue, false).await.is_empty());
    assert!(
        queue_one(&queue, found("a/1", 1), AfterSend::Archive)
            .await
            .is_some()
    );
}

#[tokio::test]
async fn what_stays_goes_on_as_it_went_unless_it_is_missed() {
    let temp = tempfile::tempdir().unwrap();
    let queue = queue(temp.path()).await;
    for (found, whole) in [(folder("a"), true), (found("b/1", 1), false)] {
        let id = queue_one(&queue, found, AfterSend::Keep).await.unwrap();
        queue.delivered(vec![proof(id, 5)], 1).await.unwrap();
        assert_eq!(going(&queue, whole).await.len(), 1);
        let resting = queue.resting(ItemId(0), 9).await.unwrap().pop().unwrap();
        queue.seen(Vec::new(), vec![resting.item]).await.unwrap();
        assert!(going(&queue, whole).await.is_empty());
    }
}
