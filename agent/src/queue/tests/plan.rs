//! What the dispatcher and the scans ask stays quick with many jobs: no statement scans a table or sorts.

use rusqlite::Connection;

use super::*;
use crate::queue::{attempts, change, delivery, enqueue, keeping, list, replaced, retimed, ways};

#[tokio::test]
async fn hot_statements_follow_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    for statement in [
        attempts::due_sql().as_str(),
        attempts::NEXT_DUE,
        attempts::OLD,
        enqueue::PAST,
        enqueue::PAST_BY_TIME,
        enqueue::KEPT,
        enqueue::HIDDEN,
        enqueue::LYING,
        enqueue::EMPTIED,
        retimed::OPEN,
        retimed::OPEN_TO,
        retimed::DELIVERED,
        retimed::TELL,
        change::DELIVERED,
        retimed::NEXT_TO_TELL,
        list::OLDEST,
        ways::WHOLE,
        ways::IN_FOLDERS[0],
        ways::IN_FOLDERS[1],
        delivery::TO_TELL,
        &delivery::to_dispose_sql(),
        &delivery::resting_sql(),
        keeping::OLD_DROPS,
    ] {
        let plan = plan(&queue, statement);
        assert!(!plan.is_empty());
        for step in plan {
            let indexed =
                step.contains("SUBQUERY") || step.contains("USING") && !step.contains("TEMP B-TREE");
            assert!(indexed, "{step}\nin {statement}");
            let scans = step.starts_with("SCAN") && !step.contains("jobs_waiting");
            assert!(!scans, "{step}\nin {statement}");
        }
    }
}

/// The tally is a few rows, and what is far ahead is sought in each peer's part of `jobs_due`.
#[tokio::test]
async fn pulling_in_touches_only_what_is_too_far_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    for (statement, table, index, bound) in [
        (keeping::PULL_IN[0], "jobs", "jobs_due", "next_attempt_ms>?"),
        (
            keeping::PULL_IN[1],
            "closing",
            "closing_by_peer",
            "not_before_ms>?",
        ),
    ] {
        let plan = plan(&queue, statement);
        let sought = plan
            .iter()
            .find(|step| step.starts_with(&format!("SEARCH {table}")))
            .unwrap();
        assert!(sought.contains(index) && sought.contains(bound), "{sought}");
    }
}

/// Asked at each start; what has left is most of the table.
#[tokio::test]
async fn asking_for_outboxes_passes_by_what_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let plan = plan(&queue, list::OUTBOXES);
    for index in ["drops_lying (outbox=?", "drops_leaving (outbox=?"] {
        assert!(
            plan.iter().any(|step| step.contains(index)),
            "{index} in {plan:#?}"
        );
    }
    assert!(
        !plan.iter().any(|step| step.contains("autoindex_drops")),
        "{plan:#?}"
    );
}

/// Asked again for each few that end; what has left is most of the table.
#[tokio::test]
async fn what_waits_in_a_replaced_outbox_is_found_among_what_lies_there() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    for statement in [replaced::WAITING, replaced::COUNT] {
        let plan = plan(&queue, statement);
        let items = plan.iter().find(|step| step.starts_with("SEARCH d "));
        assert!(items.unwrap().contains("drops_lying (outbox=?"), "{plan:#?}");
    }
}

/// It steps from one outbox to the next.
#[tokio::test]
async fn asking_what_leaves_passes_by_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let plan = plan(&queue, delivery::DISPOSING);
    let steps: Vec<_> = plan.iter().filter(|step| step.contains("drops")).collect();
    assert!(!steps.is_empty(), "{plan:#?}");
    for step in steps {
        assert!(
            step.starts_with("SEARCH drops USING COVERING INDEX drops_leaving"),
            "{plan:#?}"
        );
    }
}

#[tokio::test]
async fn a_hundred_thousand_jobs_are_asked_a_few_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path()).await;
    let items = (0..100_000)
        .map(|n| item_of(found(&format!("folder/{n}"), n), AfterSend::Archive, &[1]))
        .collect();
    let ids = queue.enqueue(items, 0).await.unwrap().queued;
    let busy: HashSet<_> = ids[..256].iter().copied().collect();
    let small = Load { small: 256, large: 0 };
    let todo = queue.todo(peer(1), small, busy, 1).await.unwrap();
    let due: Vec<_> = todo.due.into_iter().map(|job| job.id).collect();
    assert_eq!(due, ids[256..512]);
    let known = (0..1000).map(|n| found(&format!("folder/{n}"), n)).collect();
    assert!(queue.unknown(known).unwrap().is_empty());
    assert_eq!(queue.counts().await.unwrap().peers[0].1.queued, 100_000);
}

fn plan(queue: &Queue, statement: &str) -> Vec<String> {
    let explain = |db: &Connection| {
        let mut explain = db.prepare(&format!("EXPLAIN QUERY PLAN {statement}"))?;
        let unbound = rusqlite::params_from_iter(vec![None::<i64>; explain.parameter_count()]);
        explain.query_map(unbound, |row| row.get(3))?.collect()
    };
    queue.db.read_blocking(explain).unwrap()
}
