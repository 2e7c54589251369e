//! What is let go, and when: partials nobody comes back for, rows, tombstones.

use dropwire_protocol::message::{DeclineReason, LateTime};

use super::{
    super::keeping::{self, Bounds, KEEP_ENDED, KEEP_IDLE},
    resume::{break_off, go_on},
    *,
};

const MIB: usize = 1 << 20;
const MOMENT: Duration = Duration::from_millis(1);

fn numbered(n: u16) -> TransferId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&n.to_be_bytes());
    TransferId(id)
}

fn inbox_dir(rig: &Rig) -> Arc<inbox_dir::InboxDir> {
    rig.inbox
        .shared
        .handle
        .last_seen()
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Rows *receiving* of ANA's, each with a partial of one MiB, the first one idle longest.
async fn idle_partials(rig: &Rig, count: u16) {
    let inbox_dir = inbox_dir(rig);
    for n in 0..count {
        let key = (ANA, numbered(n));
        partial::create(&inbox_dir, key)
            .unwrap()
            .set_len(MIB as u64)
            .unwrap();
        let folder_id = inbox_dir.folder_id;
        rig.db
            .call(move |tx| ledger::begin(tx, key, &manifest("old", 2 << 20), folder_id, n.into()))
            .await
            .unwrap();
    }
}

/// Which of [`idle_partials`] have their row and their file; never one of the two alone.
async fn left(rig: &Rig, count: u16) -> Vec<u16> {
    let mut left = Vec::new();
    for n in 0..count {
        let row = rig.row(ANA, numbered(n)).await.is_some();
        let file = partial::look(&inbox_dir(rig), (ANA, numbered(n)), Kind::File)
            .unwrap()
            .is_some();
        assert_eq!(row, file, "{n}");
        if row {
            left.push(n);
        }
    }
    left
}

fn make_way(rig: &Rig, number: usize, bytes: u64) -> Result<(), reply::Answer> {
    let bounds = Bounds { number, bytes };
    tokio::task::block_in_place(|| keeping::make_way(&rig.inbox.shared, &inbox_dir(rig), ANA, bounds))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_nobody_comes_back_for_goes_after_its_time() {
    let rig = Rig::new().await;
    let bytes = content(2 * MIB);
    break_off(&rig, &bytes, MIB).await;
    let rig = rig.restarted(|_| ()).await;
    rig.after(KEEP_IDLE - MOMENT).await;
    go_on(&rig, &bytes, MIB).await; // an offer is a sign of life
    let rig = rig.restarted(|_| ()).await;
    rig.after(KEEP_IDLE - MOMENT).await;
    let (mut link, sequence) = go_on(&rig, &bytes, MIB).await;
    rig.after(KEEP_IDLE).await;
    assert_eq!(rig.partials(), 1, "somebody works on it");
    let end = MIB + CHUNK;
    link.write(id(1), sequence, 0, &bytes, MIB, end).await; // so are bytes
    link.written(end as u64).await;
    let rig = rig.restarted(|_| ()).await;
    rig.after(KEEP_IDLE - MOMENT).await;
    assert_eq!(rig.partials(), 1);
    rig.after(MOMENT).await;
    assert_eq!(rig.partials(), 0);
    assert!(rig.row(ANA, id(1)).await.is_none());

    // Its sender comes back after all: from the beginning, once.
    let mut link = rig.link(ANA);
    let committed = link.send(id(1), "big", &bytes).await;
    assert_eq!(delivered_as(&committed), "big");
    assert_eq!(delivered_as(&link.send(id(1), "big", &bytes).await), "big");
    assert!(rig.files() == [("big".into(), bytes)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_too_long_while_the_inbox_was_away_goes_when_it_is_back() {
    let rig = Rig::new().await;
    let bytes = content(2 * MIB);
    break_off(&rig, &bytes, MIB).await;
    let rig = rig.restarted(|_| ()).await;
    let away = rig.temp.path().join("away");
    std::fs::rename(rig.root(), &away).unwrap();
    let mut link = rig.link(ANA);
    let declined = link.opened(id(2), "other", 1).await.1;
    assert_eq!(refused(&declined), DeclineReason::InboxUnavailable);
    rig.after(KEEP_IDLE).await;
    assert!(rig.row(ANA, id(1)).await.is_none());
    std::fs::rename(&away, rig.root()).unwrap();
    assert_eq!(rig.partials(), 1);
    assert_eq!(delivered_as(&link.send(id(2), "other", b"x").await), "other");
    assert_eq!(rig.partials(), 0);
}

/// A sender that is told again and again that there is no room has not gone.
#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_is_declined_is_a_sign_of_life_too() {
    let rig = Rig::new().await;
    let bytes = content(2 * MIB);
    break_off(&rig, &bytes, MIB).await;
    let rig = rig.restarted(|_| ()).await;
    rig.after(KEEP_IDLE - MOMENT).await;
    let taken = rig.inbox.shared.space.reserve(
        ANA,
        u64::MAX / 2,
        Some(Disk {
            device: rig.inbox.place().unwrap().1,
            free: u64::MAX,
            size: u64::MAX,
            inodes: None,
        }),
        Instant::now(),
    );
    let declined = rig.link(ANA).opened(id(1), "big", bytes.len() as u64).await.1;
    assert_eq!(refused(&declined), DeclineReason::NoSpace);
    drop(taken);
    rig.after(KEEP_IDLE - MOMENT).await;
    go_on(&rig, &bytes, MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_can_still_be_withdrawn() {
    let rig = Rig::new().await;
    break_off(&rig, &content(2 * MIB), MIB).await;
    let rig = rig.restarted(|_| ()).await;
    rig.after(KEEP_IDLE).await;
    let mut link = rig.link(ANA);
    link.command(Command::Withdraw { id: id(1) }).await;
    assert_eq!(link.next().await, Outcome::Withdrawn { id: id(1) });
    let offered = link.opened(id(1), "big", 2 << 20).await.1;
    assert_eq!(refused(&offered), DeclineReason::Withdrawn);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_of_the_wall_clock_lets_nothing_go() {
    let rig = Rig::new().await;
    let folder_id = inbox_dir(&rig).folder_id;
    rig.db
        .call(move |tx| ledger::begin(tx, (ANA, id(1)), &manifest("old", 1 << 20), folder_id, i64::MIN))
        .await
        .unwrap();
    rig.inbox.sweep().await.unwrap();
    assert!(rig.row(ANA, id(1)).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_keeps_only_so_many_partials() {
    let rig = Rig::new().await;
    idle_partials(&rig, 300).await;
    let first = rig.link(ANA).opened(id(200), "new", 1 << 20).await.1;
    assert!(matches!(first, Outcome::Opened { .. }));
    let rows = rig.db.call(|tx| ledger::receiving_of(tx, ANA)).await.unwrap();
    assert_eq!((rows.len(), rig.partials()), (256, 256));
    assert_eq!(left(&rig, 300).await[0], 45, "the oldest went");
    // Another peer's are not touched.
    rig.link(BOB).opened(id(200), "new", 1 << 20).await;
    assert_eq!(rig.partials(), 257);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_s_partials_take_only_so_many_bytes() {
    let rig = Rig::new().await;
    idle_partials(&rig, 6).await;
    if inbox_dir(&rig).keeps_holes {
        make_way(&rig, 256, 0).unwrap();
        assert_eq!(
            left(&rig, 6).await.len(),
            6,
            "they have their length, but no bytes yet"
        );
    }
    for n in 0..6 {
        let partial = partial::open(&inbox_dir(&rig), (ANA, numbered(n))).unwrap();
        output::write_at(&partial.unwrap(), 0, &content(MIB)).unwrap();
    }
    make_way(&rig, 256, 6 * MIB as u64).unwrap();
    assert_eq!(left(&rig, 6).await.len(), 6);
    make_way(&rig, 256, 4 * MIB as u64).unwrap();
    assert_eq!(left(&rig, 6).await, [2, 3, 4, 5]);
    // One that is worked on neither goes nor counts.
    let open = rig.inbox.shared.transfer_locks.try_take((ANA, numbered(2)));
    make_way(&rig, 256, 2 * MIB as u64).unwrap();
    assert_eq!(left(&rig, 6).await, [2, 4, 5]);
    drop(open);
    make_way(&rig, 256, 0).unwrap();
    assert_eq!(
        left(&rig, 6).await,
        [5],
        "a single one may be as large as there is room"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_are_worked_on_the_next_is_declined_for_a_while() {
    let rig = Rig::new().await;
    idle_partials(&rig, 2).await;
    let transfer_locks = &rig.inbox.shared.transfer_locks;
    let _open = [0, 1].map(|n| transfer_locks.try_take((ANA, numbered(n))).unwrap());
    match make_way(&rig, 2, u64::MAX) {
        Err(reply::Answer::Refused(refusal)) => {
            assert_eq!(refusal.reason, DeclineReason::Busy);
            assert!(refusal.retry_after_ms.is_some());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(left(&rig, 2).await, [0, 1]);
}

/// Between the reading of the rows and the lock a transfer may have come as far as that.
#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_is_being_placed_never_goes() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let (partial, receipt) = recovery::placing(&rig, crate::fs::durable::How::Renamed).await;
    let lock = rig.inbox.shared.transfer_locks.try_take((ANA, id(1))).unwrap();
    tokio::task::block_in_place(|| keeping::drop_partial(&rig.inbox.shared, &lock)).unwrap();
    drop(lock);
    assert!(partial.exists());
    let rig = rig.restarted(|_| ()).await;
    let settled = rig.link(ANA).opened(id(1), "sub/x.txt", 8).await.1;
    assert!(matches!(settled, Outcome::Settled { receipt: again, .. } if again == receipt));
    assert_eq!(rig.names(), ["sub/x.txt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_rows_and_tombstones_are_let_go_after_their_time() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    link.send(id(1), "a", b"x").await;
    link.send(id(2), "b", b"x").await;
    link.command(Command::Withdraw { id: id(3) }).await;
    link.next().await;
    let ids = vec![id(1), id(9)];
    let times = Vec::new();
    link.command(Command::Forget {
        ids: ids.clone(),
        times,
    })
    .await;
    assert_eq!(link.next().await, Outcome::Forgotten { ids });
    delivered_as(&link.opened(id(1), "a", 1).await.1);
    let rig = rig.restarted(|_| ()).await; // until then a row may still say *placing*
    rig.after(KEEP_ENDED - MOMENT).await;
    for n in 1..=3 {
        assert!(rig.row(ANA, id(n)).await.is_some(), "{n}");
    }
    rig.after(MOMENT).await;
    assert!(rig.row(ANA, id(1)).await.is_none());
    assert!(rig.row(ANA, id(2)).await.is_some(), "not forgotten");
    assert!(rig.row(ANA, id(3)).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_only_so_many_tombstones_and_the_newest_stay() {
    let rig = Rig::new().await;
    rig.db
        .call(|tx| {
            for n in 0..100u16 {
                ledger::withdraw(tx, (ANA, numbered(n)), n.into())?;
            }
            ledger::withdraw(tx, (BOB, numbered(0)), 0)?;
            ledger::drop_tombstones(tx, ANA, 100)?;
            Ok(())
        })
        .await
        .unwrap();
    assert!(rig.row(ANA, numbered(0)).await.is_some());
    // Later, whatever the wall clock says.
    running_time::advance(&rig.db, MOMENT).await.unwrap();
    rig.db
        .call(|tx| {
            ledger::withdraw(tx, (ANA, numbered(100)), -5)?;
            ledger::drop_tombstones(tx, ANA, 10)
        })
        .await
        .unwrap();
    for (n, stays) in [(0, false), (90, false), (91, true), (99, true), (100, true)] {
        assert_eq!(rig.row(ANA, numbered(n)).await.is_some(), stays, "{n}");
    }
    assert!(rig.row(BOB, numbered(0)).await.is_some(), "another's");
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawals_without_end_do_not_fill_the_ledger() {
    let rig = Rig::new().await;
    let most = keeping::MAX_TOMBSTONES as u32;
    rig.db
        .call(move |tx| {
            for n in 0..2 * most {
                let mut id = [0xFF; 16];
                id[..4].copy_from_slice(&n.to_be_bytes());
                ledger::withdraw(tx, (ANA, TransferId(id)), n.into())?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let mut link = rig.link(ANA);
    link.command(Command::Withdraw { id: id(1) }).await;
    assert_eq!(link.next().await, Outcome::Withdrawn { id: id(1) });
    let count = |tx: &rusqlite::Transaction<'_>| {
        tx.query_row("SELECT count(*) FROM inbox_transfer", [], |r| r.get::<_, u32>(0))
    };
    assert_eq!(rig.db.call(count).await.unwrap(), most + 1);
    assert!(matches!(
        rig.row(ANA, id(1)).await,
        Some(ledger::State::Withdrawn)
    ));
}

/// Also such as an earlier release kept without a bound, and a peer that is none any more.
#[tokio::test(flavor = "multi_thread")]
async fn aliases_of_folders_are_bounded_and_go_with_their_peer() {
    const STRANGER: AgentId = AgentId([0xDD; 32]);
    let rig = Rig::new().await;
    let known = |tx: &rusqlite::Transaction<'_>| {
        for n in 0..2 * aliases::MOST {
            ledger::set_alias(tx, ANA, n.to_string().as_bytes(), Some(b"alias"))?;
        }
        ledger::set_alias(tx, STRANGER, b"sub", Some(b"sub (1)"))
    };
    rig.db.call(known).await.unwrap();
    let rig = rig.restarted(|_| ()).await;
    let left = rig.db.call(|tx| ledger::aliases(tx)).await.unwrap();
    assert_eq!(left.len(), aliases::MOST);
    assert!(left.iter().all(|(sender, ..)| *sender == ANA));
}

/// A producer sets a file's times once it has closed it.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_comes_late_is_given_to_the_file_if_it_is_as_it_was_delivered() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for (n, name) in [(1, "a"), (2, "changed"), (3, "other"), (4, "gone"), (5, "bobs")] {
        link.send(id(n), name, b"x").await;
    }
    let at = |name: &str| rig.root().join(name);
    let mtime = |name: &str| std::fs::metadata(at(name)).unwrap().modified().unwrap();
    std::fs::write(at("changed"), "y").unwrap();
    std::fs::rename(at("other"), at("kept")).unwrap();
    std::fs::write(at("other"), "x").unwrap();
    std::fs::remove_file(at("gone")).unwrap();
    let before = ["changed", "other", "kept", "bobs"].map(mtime);
    let late = |n| LateTime {
        id: id(n),
        mtime: Mtime {
            seconds: 1_000_000_000,
            nanos: 7,
        },
    };
    let times: Vec<_> = (1..=4).map(late).collect();
    let ids: Vec<_> = times.iter().map(|late| late.id).collect();
    link.command(Command::Forget {
        ids: ids.clone(),
        times,
    })
    .await;
    assert_eq!(link.next().await, Outcome::Forgotten { ids });
    let mut bobs = rig.link(BOB);
    let (ids, times) = (vec![id(5)], vec![late(5)]);
    bobs.command(Command::Forget {
        ids: ids.clone(),
        times,
    })
    .await;
    assert_eq!(bobs.next().await, Outcome::Forgotten { ids });
    let set = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 7);
    assert_eq!(mtime("a"), crate::fs::version::as_kept(&rig.root(), set));
    assert_eq!(["changed", "other", "kept", "bobs"].map(mtime), before);
}

/// Of a file that stays with its sender: no Forget follows, and the last time is the one that counts.
#[tokio::test(flavor = "multi_thread")]
async fn times_that_come_late_one_after_the_other_are_all_heeded_and_forget_nothing() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    link.send(id(1), "a", b"x").await;
    for seconds in [1_000_000_000, 1_000_000_001, 1_000_000_001, 1_000_000_002] {
        let mtime = Mtime { seconds, nanos: 7 };
        let (ids, times) = (vec![], vec![LateTime { id: id(1), mtime }]);
        link.command(Command::Forget { ids, times }).await;
        assert_eq!(link.next().await, Outcome::Forgotten { ids: vec![id(1)] });
        let there = std::fs::metadata(rig.root().join("a")).unwrap();
        let told = there
            .modified()
            .unwrap()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        assert_eq!(
            told.as_secs(),
            seconds.unsigned_abs(),
            "some disks keep no more than seconds"
        );
    }
    let is_known = |db: &rusqlite::Connection| {
        db.query_row("SELECT idle_since IS NOT NULL FROM inbox_transfer", [], |row| {
            row.get::<_, bool>(0)
        })
    };
    assert!(!rig.db.read_blocking(is_known).unwrap(), "it is not forgotten");
}
