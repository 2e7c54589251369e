//! What is found by whom, and what listings and counts hold.

use super::*;

#[tokio::test]
async fn jobs_of_removed_peers_fail() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let drops = (0..1300)
        .map(|n| drop_of(found(&format!("f{n}"), 1), AfterSend::Delete, &[1, 2]))
        .collect();
    assert_eq!(queue.enqueue(drops, 0).await.unwrap().queued.len(), 2600);
    let ended = queue.peer_removed(vec![peer(1), peer(3)], 5).await.unwrap();
    assert_eq!(ended.len(), 1300);
    assert_eq!(
        state(&queue, ended[0]).await,
        (JobState::Failed, Some(PEER_REMOVED.into()))
    );
    let counts = queue.counts().await.unwrap();
    let count = |queued, failed| PeerCounts {
        queued,
        failed,
        ..PeerCounts::default()
    };
    assert_eq!(
        counts.peers,
        [(peer(1), count(1300, 0)), (peer(2), count(0, 1300))]
    );
    assert_eq!(counts.outboxes, [(OUTBOX, 1300)]);
    assert_eq!(counts.oldest_queued_ms, Some(0));
}

#[tokio::test]
async fn lookups_and_listings() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let mut copied = drop_of(found("copy", 1), AfterSend::Delete, &[1]);
    copied.origin = Some("/home/ana/report.pdf".into());
    let inside = drop_of(found("sub/b", 1), AfterSend::Delete, &[1, 2]);
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
