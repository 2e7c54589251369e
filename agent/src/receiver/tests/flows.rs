//! Transfers that nothing crashes: small, large, refused, withdrawn, forgotten, fenced.

use std::collections::HashSet;

use dropwire_protocol::message::DeclineReason::*;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_arrives_with_mode_time_and_receipt() {
    let rig = Rig::new().await;
    let mut arrivals = rig.inbox.arrivals();
    let mut link = rig.link(ANA);
    let outcome = link.send(id(1), "sub/a.txt", b"hello").await;
    let Outcome::Committed { receipt, .. } = &outcome else {
        panic!("{outcome:?}");
    };
    let body = receipt.decode_body_unverified().unwrap();
    assert_eq!((body.transfer, body.sender, body.receiver), (id(1), ANA, ME));
    assert_eq!((body.size, body.digest), (5, digest(b"hello")));
    assert_eq!(body.delivered_as.as_bytes(), b"sub/a.txt");
    assert_eq!(rig.files(), [("sub/a.txt".into(), b"hello".to_vec())]);
    assert_eq!(arrivals.recv().await.unwrap().path, rig.root().join("sub/a.txt"));
    let meta = std::fs::metadata(rig.root().join("sub/a.txt")).unwrap();
    let modified = meta
        .modified()
        .unwrap()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(modified.as_secs(), 1_600_000_000);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(rig.temp.path().join("plain"), "").unwrap();
        let plain = std::fs::metadata(rig.temp.path().join("plain")).unwrap();
        assert_eq!(
            meta.permissions().mode(),
            plain.permissions().mode(),
            "the umask's"
        );
    }
    assert_eq!(rig.partials(), 0);
    let status = rig.inbox.status().await;
    assert_eq!(
        (status.received_files, status.received_bytes, status.held),
        (1, 5, None)
    );
    assert!(status.free_bytes > Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_and_large_files_arrive() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.send(id(1), "empty", b"").await), "empty");
    let large = content(20 << 20);
    assert_eq!(delivered_as(&link.send(id(2), "large", &large).await), "large");
    assert!(rig.files() == [("empty".into(), vec![]), ("large".into(), large)]);
    assert_eq!(rig.partials(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_go_together() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for n in 0..100 {
        let sequence = link.open(id(n), "same/name.txt", 1).await;
        link.write(id(n), sequence, 0, &[n], 0, 1).await;
        link.finish(id(n), sequence, 0, digest(&[n])).await;
    }
    let mut names = Vec::new();
    while names.len() < 100 {
        match link.next().await {
            Outcome::Opened { .. } => {}
            outcome => names.push(delivered_as(&outcome)),
        }
    }
    names.sort();
    assert_eq!(names, rig.names());
    let mut contents: Vec<_> = rig.files().into_iter().map(|(_, bytes)| bytes[0]).collect();
    contents.sort_unstable();
    assert_eq!(contents, (0..100).collect::<Vec<u8>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_transfer_is_settled_byte_for_byte() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let Outcome::Committed { receipt, .. } = link.send(id(1), "a", b"x").await else {
        panic!()
    };
    let rig = rig.restarted(|_| ()).await;
    let mut link = rig.link(ANA);
    match link.opened(id(1), "a", 1).await.1 {
        Outcome::Settled { receipt: again, .. } => assert_eq!(again, receipt),
        other => panic!("{other:?}"),
    }
    assert_eq!(refused(&link.opened(id(1), "b", 1).await.1), Conflict);
    assert_eq!(refused(&link.opened(id(1), "a", 2).await.1), Conflict);
    let mut other = rig.link(BOB);
    assert_eq!(
        delivered_as(&other.send(id(1), "a", b"y").await),
        "a (1)",
        "another sender's id"
    );
    assert_eq!(rig.inbox.status().await.received_files, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_signed_by_this_agent_and_arrivals_told_once() {
    let rig = Rig::new().await;
    rig.inbox.shutdown().await;
    std::fs::remove_file(rig.root().join(".dropwire/owner")).unwrap(); // this agent is another one
    let identity = Arc::new(Identity::generate());
    let (settings, db) = (rig.settings.clone(), rig.db.clone());
    let inbox = Inbox::open(settings, db, identity.clone(), CancellationToken::new())
        .await
        .unwrap();
    let mut arrivals = inbox.arrivals();
    let rig = Rig { inbox, ..rig };
    let mut link = rig.link(ANA);
    let mut salts = HashSet::new();
    for n in 0..20 {
        let Outcome::Committed { receipt, .. } = link.send(id(n), "f", b"x").await else {
            panic!();
        };
        let body = crate::identity::verify(&receipt).unwrap();
        assert!(
            salts.insert(body.salt),
            "nobody can guess a receipt that was not given"
        );
        assert_eq!((body.receiver, body.transfer), (identity.id(), id(n)));
        // Its row may still say *placing*.
        assert!(
            matches!(link.opened(id(n), "f", 1).await.1, Outcome::Settled { receipt: again, .. } if again == receipt)
        );
    }
    rig.inbox.shutdown().await;
    assert_eq!(rig.inbox.status().await.received_files, 20);
    for _ in 0..20 {
        arrivals.try_recv().unwrap();
    }
    assert!(arrivals.try_recv().is_err());
    assert_eq!(rig.db.call(|tx| ledger::totals(tx)).await.unwrap(), (20, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_asked_for_again() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for (n, bytes) in [(1, content(1000)), (2, content(3 * CHUNK))] {
        let end = bytes.len();
        let (sequence, _) = link.opened(id(n), "f", end as u64).await;
        let middle = end / 2;
        link.write(id(n), sequence, 0, &bytes, 0, middle).await;
        let mut flipped = bytes.clone();
        flipped[middle] ^= 1;
        link.command(Command::Write {
            id: id(n),
            sequence,
            pass: 0,
            offset: middle as u64,
            bytes: Bytes::from(flipped[middle..].to_vec()),
            digest: digest(&bytes),
        })
        .await;
        link.finish(id(n), sequence, 0, digest(&bytes)).await; // of the damaged pass: dropped
        match link.next().await {
            Outcome::Damaged {
                offset, digest: at, ..
            } => {
                assert_eq!((offset, at), (middle as u64, digest(&bytes[..middle])));
            }
            other => panic!("{other:?}"),
        }
        link.write(id(n), sequence, 1, &bytes, middle, end).await;
        link.finish(id(n), sequence, 1, digest(&bytes)).await;
        delivered_as(&link.next().await);
    }
    assert!(rig.files() == [("f".into(), content(1000)), ("f (1)".into(), content(3 * CHUNK))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_damage_begins_the_pass_that_it_names() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for (n, bytes) in [(1, content(10)), (2, content(3 * CHUNK))] {
        let (sequence, _) = link.opened(id(n), "f", bytes.len() as u64).await;
        for pass in 0..4 {
            link.command(Command::Write {
                id: id(n),
                sequence,
                pass,
                offset: 0,
                bytes: Bytes::from_static(b"wrong"),
                digest: digest(b"right"),
            })
            .await;
            let next = link.next().await;
            assert!(
                matches!(&next, Outcome::Damaged { offset: 0, pass: begun, .. } if *begun == pass + 1),
                "{next:?}"
            );
        }
        let outcome = link.rest(id(n), sequence, 4, &bytes, 0).await;
        delivered_as(&outcome);
    }
    assert_eq!(rig.names().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_that_are_begun_and_not_ended_take_only_so_much_memory() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let begun = vec![7; CHUNK - 1];
    let mut taken = 0;
    for n in 0..=200 {
        let (sequence, _) = link.opened(id(n), "f", CHUNK as u64).await;
        link.write(id(n), sequence, 0, &begun, 0, begun.len()).await;
        // Answers come in order: what the next Open is answered by stands behind a refusal of this one.
        let (_, next) = link.opened(id(255), "g", CHUNK as u64).await;
        match next {
            Outcome::Opened { .. } => taken += begun.len(),
            other => {
                assert_eq!(refused(&other), Busy);
                break;
            }
        }
    }
    assert!((1 << 20..=16 << 20).contains(&taken), "{taken}");
    // What ends makes room.
    link.command(Command::Withdraw { id: id(0) }).await;
    while !matches!(link.next().await, Outcome::Withdrawn { .. }) {}
    assert_eq!(delivered_as(&link.send(id(254), "h", &begun).await), "h");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_unasked_is_not_written_into_a_folder_that_is_not_the_inbox_any_more() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let away = rig.temp.path().join("away");
    std::fs::rename(rig.root(), &away).unwrap();
    std::fs::create_dir(rig.root()).unwrap();
    let sequence = OfferSequence(1);
    link.command(Command::Open {
        id: id(1),
        sequence,
        manifest: manifest("f", 1),
        eager: true,
    })
    .await;
    link.write(id(1), sequence, 0, b"x", 0, 1).await;
    link.finish(id(1), sequence, 0, digest(b"x")).await;
    assert_eq!(refused(&link.next().await), InboxUnavailable);
    assert_eq!(rig.root().read_dir().unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_bytes_than_announced_and_wrong_digests_are_refused() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for (n, size) in [(1, 10), (2, 2 * CHUNK)] {
        let bytes = content(size + 1);
        let (sequence, _) = link.opened(id(n), "f", size as u64).await;
        link.write(id(n), sequence, 0, &bytes, 0, size + 1).await;
        assert_eq!(refused(&link.next().await), Conflict);
        let (sequence, _) = link.opened(id(n), "f", size as u64).await;
        link.write(id(n), sequence, 0, &bytes, 0, size).await;
        link.finish(id(n), sequence, 0, digest(b"another")).await;
        assert_eq!(refused(&link.next().await), Conflict);
    }
    assert!(rig.names().is_empty());
    assert_eq!(rig.partials(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_transfer_is_never_delivered_and_a_delivered_one_is_settled() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let bytes = content(3 * CHUNK);
    let (sequence, _) = link.opened(id(1), "f", bytes.len() as u64).await;
    link.write(id(1), sequence, 0, &bytes, 0, CHUNK).await;
    link.command(Command::Withdraw { id: id(1) }).await;
    let mut answer = link.next().await;
    if matches!(answer, Outcome::Refused { .. }) {
        answer = link.next().await; // the last answer to the offer that it ended, if its writer was busy
    }
    assert_eq!(answer, Outcome::Withdrawn { id: id(1) });
    assert_eq!(rig.partials(), 0);
    assert_eq!(
        refused(&link.opened(id(1), "f", bytes.len() as u64).await.1),
        Withdrawn
    );

    link.command(Command::Withdraw { id: id(2) }).await;
    assert_eq!(link.next().await, Outcome::Withdrawn { id: id(2) });
    assert_eq!(refused(&link.opened(id(2), "g", 1).await.1), Withdrawn);

    let committed = link.send(id(3), "h", b"x").await;
    link.command(Command::Withdraw { id: id(3) }).await;
    let settled = link.next().await;
    assert!(matches!(settled, Outcome::Settled { sequence: None, .. }));
    assert_eq!(delivered_as(&settled), delivered_as(&committed));
    assert_eq!(rig.names(), ["h"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_link_takes_over() {
    let rig = Rig::new().await;
    let (mut old, mut new) = (rig.link(ANA), rig.link(ANA));
    let bytes = content(4 * CHUNK);
    let size = bytes.len();
    let (sequence, _) = old.opened(id(1), "f", size as u64).await;
    old.write(id(1), sequence, 0, &bytes, 0, 2 * CHUNK).await;
    old.written(2 * CHUNK as u64).await;
    let committed = new.send(id(1), "f", &bytes).await;
    assert_eq!(delivered_as(&committed), "f");
    assert_eq!(refused(&old.next().await), Fenced);

    let (sequence, _) = old.opened(id(2), "s", 1).await;
    assert_eq!(delivered_as(&new.send(id(2), "s", b"x").await), "s");
    old.write(id(2), sequence, 0, b"x", 0, 1).await;
    assert_eq!(refused(&old.next().await), Fenced);
    assert!(rig.files() == [("f".into(), bytes), ("s".into(), b"x".to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_that_goes_away_is_held_and_comes_back() {
    let rig = Rig::new().await;
    let away = rig.temp.path().join("away");
    let mut link = rig.link(ANA);
    std::fs::rename(rig.root(), &away).unwrap();
    for size in [1, 1 << 20] {
        assert_eq!(refused(&link.opened(id(1), "f", size).await.1), InboxUnavailable);
    }
    assert!(rig.inbox.status().await.held.is_some());
    assert!(!rig.root().exists(), "never made");
    std::fs::create_dir(rig.root()).unwrap();
    assert_eq!(
        refused(&link.opened(id(1), "f", 1).await.1),
        InboxUnavailable,
        "no id"
    );
    std::fs::remove_dir(rig.root()).unwrap();
    std::fs::rename(&away, rig.root()).unwrap();
    assert_eq!(delivered_as(&link.send(id(1), "f", b"x").await), "f");
    assert_eq!(rig.inbox.status().await.held, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_not_placed_in_a_folder_that_is_not_the_inbox_any_more() {
    if !crate::failpoints::needs::removal_of_open_files() {
        return;
    }
    let rig = Rig::new().await;
    let away = rig.temp.path().join("away");
    let (mut link, bytes) = (rig.link(ANA), content(2 * CHUNK));
    let size = bytes.len() as u64;
    let (mut sequence, _) = link.opened(id(1), "f", size).await;
    link.write(id(1), sequence, 0, &bytes, 0, bytes.len()).await;
    link.written(size).await;
    for with_its_id in [false, true] {
        std::fs::rename(rig.root(), &away).unwrap();
        std::fs::create_dir_all(rig.root().join(".dropwire")).unwrap();
        if with_its_id {
            std::fs::copy(away.join(".dropwire/id"), rig.root().join(".dropwire/id")).unwrap();
        }
        link.finish(id(1), sequence, 0, digest(&bytes)).await;
        assert_eq!(refused(&link.next().await), InboxUnavailable);
        assert!(rig.names().is_empty() && !away.join("f").exists());
        std::fs::remove_dir_all(rig.root()).unwrap();
        std::fs::rename(&away, rig.root()).unwrap();
        let (again, first) = link.opened(id(1), "f", size).await;
        assert!(
            matches!(first, Outcome::Opened { offset, .. } if offset == size),
            "nothing is sent twice: {first:?}"
        );
        sequence = again;
    }
    link.finish(id(1), sequence, 0, digest(&bytes)).await;
    assert_eq!(delivered_as(&link.next().await), "f");
    assert!(rig.files() == [("f".into(), bytes)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_inbox_takes_nothing() {
    let mut rig = Rig::new().await;
    rig.inbox.shutdown().await;
    rig.settings.inbox = None;
    let inbox = start(&rig.settings, &rig.db).await.unwrap();
    let (commands, outcomes) = inbox.attach(ANA);
    let mut link = Link {
        commands,
        outcomes,
        openings: 0,
        kind: Kind::File,
    };
    assert_eq!(refused(&link.opened(id(1), "f", 1).await.1), InboxUnavailable);
    assert_eq!(
        (inbox.status().await.path, inbox.status().await.held),
        (None, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_asked_for_before_anything_is_written() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    assert_eq!(refused(&link.opened(id(1), "f", 1 << 60).await.1), NoSpace);
    assert_eq!(refused(&link.opened(id(2), "f", u64::MAX).await.1), NoSpace);
    assert_eq!(rig.partials(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_is_offered_and_never_sent_keeps_nobody_out() {
    let rig = Rig::new().await;
    let free = rig.inbox.status().await.free_bytes.unwrap();
    let (mut silent, mut other) = (rig.link(ANA), rig.link(BOB));
    silent.opened(id(1), "never sent", free / 4 * 3).await;
    assert_eq!(refused(&other.opened(id(1), "f", free / 8 * 5).await.1), NoSpace);
    assert!(
        rig.inbox
            .status()
            .await
            .declined
            .unwrap()
            .contains("not enough space")
    );
    rig.inbox.shared.space.age(space::WINDOW);
    let (_, opened) = other.opened(id(1), "f", free / 8 * 5).await;
    assert!(matches!(opened, Outcome::Opened { .. }), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_others_have_taken_meanwhile_is_asked_for_again() {
    let rig = Rig::new().await;
    let (mut link, bytes) = (rig.link(ANA), content(3 * CHUNK));
    let (sequence, _) = link.opened(id(1), "f", bytes.len() as u64).await;
    link.write(id(1), sequence, 0, &bytes, 0, CHUNK).await;
    link.written(CHUNK as u64).await;
    let space = &rig.inbox.shared.space;
    space.age(space::WINDOW * 2);
    let taken = space.reserve(
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
    link.write(id(1), sequence, 0, &bytes, CHUNK, 2 * CHUNK).await;
    assert_eq!(refused(&link.next().await), NoSpace);
    drop(taken);
    let (_, resumed) = link.opened(id(1), "f", bytes.len() as u64).await;
    assert!(
        matches!(resumed, Outcome::Opened { offset, .. } if offset == CHUNK as u64),
        "{resumed:?}"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_declines_and_resumes() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("Inbox");
    std::fs::create_dir(&path).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(&path)
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        crate::failpoints::skip("no small file system can be mounted here");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .status();
        }
    }
    let _unmount = Unmount(path.clone());
    let rig = Rig::at(temp, path).await;
    let mut link = rig.link(ANA);
    let bytes = content(5 << 20);
    let size = bytes.len() as u64;
    let (sequence, first) = link.opened(id(1), "f", size).await;
    assert!(matches!(first, Outcome::Opened { offset: 0, .. }));
    let filler = rig.root().join("filler");
    std::fs::write(&filler, content(5 << 20)).unwrap();
    link.write(id(1), sequence, 0, &bytes, 0, bytes.len()).await;
    assert_eq!(refused(&link.next().await), NoSpace);
    assert_eq!(refused(&link.opened(id(1), "f", size).await.1), NoSpace);
    assert_eq!(
        delivered_as(&link.send(id(2), "small", b"x").await),
        "small",
        "others go on"
    );
    std::fs::remove_file(filler).unwrap();
    let (sequence, first) = link.opened(id(1), "f", size).await;
    let Outcome::Opened { offset, .. } = first else {
        panic!("{first:?}");
    };
    assert!(offset > 1 << 20, "what had arrived is kept: {offset}");
    let outcome = link.rest(id(1), sequence, 0, &bytes, offset as usize).await;
    assert_eq!(delivered_as(&outcome), "f");
    rig.inbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_for_each_peer_is_called_as_we_call_the_peer() {
    let mut rig = Rig::new().await;
    rig.inbox.shutdown().await;
    if let Some(inbox) = &mut rig.settings.inbox {
        inbox.layout = Layout::ByPeer;
    }
    rig.settings.peers = vec![config::Peer {
        name: "office".into(),
        id: ANA,
        address: None,
        max_file_size: None,
    }];
    let rig = rig.restarted(|_| ()).await;
    assert_eq!(
        delivered_as(&rig.link(ANA).send(id(1), "a/b", b"x").await),
        "office/a/b"
    );
    assert_eq!(rig.names(), ["office/a/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shutdown_ends_links_that_are_still_open() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    link.opened(id(1), "f", 1 << 20).await;
    rig.inbox.shutdown().await;
    assert!(link.outcomes.recv().await.is_none());
    assert!(rig.inbox.attach(ANA).1.recv().await.is_none(), "no more links");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_all_turns_are_taken_a_link_waits() {
    let rig = Rig::new().await;
    let turns = rig.inbox.shared.turns.clone();
    let hung = turns.acquire_many(TURNS as u32 - 1).await.unwrap();
    for n in 2..5 {
        let opened = rig.link(BOB).opened(id(n), "by turns", 3).await.1;
        assert!(matches!(opened, Outcome::Opened { .. }), "{opened:?}");
    }
    let last = turns.acquire().await.unwrap();
    let mut link = rig.link(ANA);
    link.open(id(1), "a", 3).await;
    let answer = tokio::time::timeout(Duration::from_millis(50), link.next()).await;
    assert!(answer.is_err(), "{answer:?}");
    drop((hung, last));
    assert!(matches!(link.next().await, Outcome::Opened { .. }));
}

/// Each of these used to be a thread that nobody joined.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_withdrawn_while_it_is_busy_takes_an_entry_and_is_answered_once_it_is_free() {
    const BUSY: usize = 300;
    let rig = Rig::new().await;
    let (outcomes, mut answers) = mpsc::channel(2 * BUSY);
    let stuck = Arc::new(FairQueue::new());
    let outcomes = reply::Outcomes::new(outcomes, Arc::default());
    let session = session::ReceiveSession::new(rig.inbox.shared.clone(), ANA, outcomes, stuck.clone());
    let (commands, taken) = mpsc::channel(COMMANDS);
    let links = Arc::new(Semaphore::new(1));
    let serving = tokio::spawn(session.run(taken, links));
    let withdrawn = |n: usize| {
        let mut bytes = [1; 16];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        TransferId(bytes)
    };
    for n in 0..BUSY {
        let (id, sequence) = (withdrawn(n), OfferSequence(n as u64));
        let open = Command::Open {
            id,
            sequence,
            manifest: manifest("empty", 0),
            eager: true,
        };
        let finish = Command::Finish {
            id,
            sequence,
            pass: 0,
            digest: digest(b""),
        };
        for command in [open, finish, Command::Withdraw { id }] {
            commands.send(command).await.unwrap();
        }
    }
    // What is asked last is answered: all before it is served, and no one of the busy ones held it up.
    let last = TransferId([0xEE; 16]);
    commands.send(Command::Withdraw { id: last }).await.unwrap();
    let mut answer = async || tokio::time::timeout(Duration::from_secs(60), answers.recv()).await;
    assert_eq!(answer().await.unwrap(), Some(Outcome::Withdrawn { id: last }));
    drop(stuck.batch(usize::MAX, usize::MAX)); // the locks in it end
    for _ in 0..BUSY {
        let answer = answer().await.unwrap();
        assert!(matches!(answer, Some(Outcome::Withdrawn { .. })), "{answer:?}");
    }
    drop(commands);
    serving.await.unwrap();
}

/// A peer that makes and drops links waits for what its own earlier ones left at work; others do not.
#[tokio::test(flavor = "multi_thread")]
async fn so_many_links_of_a_peer_are_at_work_and_no_more() {
    let rig = Rig::new().await;
    let mut links: Vec<Link> = (0..LINKS).map(|_| rig.link(ANA)).collect();
    for (n, link) in (1..).zip(&mut links) {
        link.opened(id(n), "f", 1 << 20).await;
    }
    let mut one_more = rig.link(ANA);
    one_more.open(id(100), "f", 3).await;
    assert_eq!(rig.inbox.shared.links_of(ANA).available_permits(), 0);
    let other = rig.link(BOB).opened(id(1), "f", 3).await.1;
    assert!(matches!(other, Outcome::Opened { .. }), "{other:?}");
    drop(links.pop());
    let turn = one_more.next().await;
    assert!(matches!(turn, Outcome::Opened { .. }), "{turn:?}");
}

/// What waits for the end of another link's commit ends with its own link, and keeps no place.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_commit_and_a_flapping_link_keep_nobody_out() {
    let rig = Rig::new().await;
    let commit = rig.inbox.shared.transfer_locks.try_take((ANA, id(1))).unwrap();
    let wait_for = async |count| {
        let waits = async {
            while rig.inbox.shared.transfer_locks.waiting() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), waits).await;
        in_time.unwrap_or_else(|_| panic!("not {count} wait"));
    };
    for _ in 0..=LINKS {
        let mut link = rig.link(ANA);
        link.open(id(1), "large", 1 << 20).await;
        wait_for(1).await;
        drop(link);
        wait_for(0).await;
    }
    let sent = rig.link(ANA).send(id(2), "small", b"x").await;
    assert_eq!(delivered_as(&sent), "small");
    drop(commit);
}

/// Many at once share a commit; each has its own answer.
#[tokio::test(flavor = "multi_thread")]
async fn offers_that_are_taken_back_together_are_each_answered() {
    let rig = Rig::new().await;
    let (mut link, bytes) = (rig.link(ANA), content(2 * CHUNK));
    assert_eq!(delivered_as(&link.send(id(1), "f", b"x").await), "f");
    link.opened(id(2), "large", bytes.len() as u64).await;
    for n in 1..=60 {
        link.command(Command::Withdraw { id: id(n) }).await;
    }
    let mut answered = Vec::new();
    while answered.len() < 60 {
        match link.next().await {
            Outcome::Withdrawn { id } => answered.push(id),
            Outcome::Settled { id: settled, .. } => {
                assert_eq!(settled, id(1));
                answered.push(settled);
            }
            Outcome::Refused { id: refused, .. } => assert_eq!(refused, id(2)),
            other => panic!("{other:?}"),
        }
    }
    answered.sort();
    assert_eq!(answered, (1..=60).map(id).collect::<Vec<_>>());
    for n in [2, 3, 60] {
        let row = rig.row(ANA, id(n)).await;
        assert!(matches!(row, Some(ledger::State::Withdrawn)), "{row:?}");
    }
    assert_eq!((rig.names(), rig.partials()), (vec!["f".to_owned()], 0));
}
