//! What is found by whom, and what listings and counts hold.

use super::*;

#[tokio::test]
async fn jobs_that_end_undelivered_are_gathered_by_peer_and_kind() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let items = (0..1300)
        .map(|n| item_of(found(&format!("f\n{n}"), 1), AfterSend::Delete, &[1, 2]))
        .collect();
    let ids = queue.enqueue(items, 0).await.unwrap().queued;
    assert_eq!(ids.len(), 2600);
    let of_two: Vec<_> = ids.iter().skip(1).step_by(2).copied().collect();
    queue.cancel(of_two[..1290].to_vec(), 5).await.unwrap();
    queue.gone(of_two[1299], 5).await.unwrap();
    queue.cancel(of_two[..1290].to_vec(), 6).await.unwrap(); // ended already
    queue.delivered(vec![proof(ids[0], 5)], 6).await.unwrap();
    let ended = queue.ends().take();
    let told: Vec<_> = ended
        .iter()
        .map(|((peer, end), e)| (peer.0[0], *end, e.count))
        .collect();
    assert_eq!(
        told,
        [(1, End::Gone, 1), (2, End::Gone, 1), (2, End::Cancelled, 1290)]
    );
    let first = &ended[&(peer(2), End::Cancelled)];
    assert_eq!((first.job, first.path.as_str()), (of_two[0], "f\\u{a}0"));
    assert!(queue.ends().take().is_empty(), "each is told once");

    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.peers[0].1.queued, counts.peers[0].1.failed), (1298, 1));
    assert_eq!(
        (
            counts.peers[1].1.queued,
            counts.peers[1].1.failed,
            counts.peers[1].1.cancelled
        ),
        (9, 1, 1290)
    );
    assert_eq!(counts.outboxes, [(OUTBOX, 1298 + 9)]);
    assert_eq!(counts.oldest_queued_ms, Some(0));
}

#[tokio::test]
async fn lookups_and_listings() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let mut copied = item_of(found("copy", 1), AfterSend::Delete, &[1]);
    copied.origin = Some("/home/ana/report.pdf".into());
    let inside = item_of(found("sub/b", 1), AfterSend::Delete, &[1, 2]);
    let ids = queue.enqueue(vec![copied, inside], 100).await.unwrap().queued;
    for (path, expected) in [
        ("/home/ana/report.pdf", vec![ids[0]]),
        ("/out/copy", vec![]),
        ("/out/sub/b", vec![ids[2], ids[1]]),
        ("/out/sub", vec![]),
        ("/elsewhere", vec![]),
        ("/out", vec![]),
    ] {
        assert_eq!(queue.by_path(Path::new(path)).await.unwrap(), expected, "{path}");
    }
    let hex = ids[0].to_string();
    for (prefix, found) in [
        (hex.as_str(), 1),
        (&hex.to_uppercase()[..31], 1),
        ("", 2),
        ("xyz", 0),
        ("ä", 0),
    ] {
        assert_eq!(
            queue.by_prefix(prefix.into()).await.unwrap().len(),
            found,
            "{prefix}"
        );
    }
    let job = queue.get(ids[0]).await.unwrap().unwrap();
    assert_eq!(job.absolute(), Path::new("/home/ana/report.pdf"));
    assert_eq!(job.manifest().path, found("copy", 1).path);
    let job = queue.get(ids[1]).await.unwrap().unwrap();
    assert_eq!(job.absolute(), Path::new("/out/sub/b"));

    queue.cancel(vec![ids[2]], 1000).await.unwrap();
    let any = Filter::default();
    let cancelled = Filter {
        state: Some(JobState::Cancelled),
        ..any
    };
    for (filter, expected) in [
        (any, vec![0, 1, 2]),
        (cancelled, vec![2]),
        (
            Filter {
                since_ms: 1001,
                ..any
            },
            vec![0, 1],
        ),
        (
            Filter {
                peer: Some(peer(1)),
                ..any
            },
            vec![0, 1],
        ),
    ] {
        let mut after = 0;
        let mut listed = Vec::new();
        loop {
            let page = queue.list(filter, Page { after, limit: 1 }).await.unwrap();
            let Some(line) = page.into_iter().next() else {
                break;
            };
            after = line.cursor;
            listed.push(line.job.id);
        }
        let expected: Vec<_> = expected.into_iter().map(|n: usize| ids[n]).collect();
        assert_eq!(listed, expected, "{filter:?}");
    }
}
