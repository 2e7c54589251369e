//! Large transfers that break off and go on.

use dropwire_protocol::message::DeclineReason;

use super::*;

const MIB: usize = 1 << 20;

/// Sends the first `end` bytes of a large file and lets the link go.
pub(super) async fn break_off(rig: &Rig, bytes: &[u8], end: usize) {
    let mut link = rig.link(ANA);
    let (sequence, _) = link.opened(id(1), "big", bytes.len() as u64).await;
    link.write(id(1), sequence, 0, bytes, 0, end).await;
    link.written(end as u64).await;
    link.command(Command::Release { id: id(1), sequence }).await;
}

/// Waits until nobody works on the transfer any more.
async fn let_go(rig: &Rig) {
    let transfer_locks = rig.inbox.shared.transfer_locks.clone();
    let wait = move || drop(transfer_locks.take((ANA, id(1)), None, &|| true));
    tokio::task::spawn_blocking(wait).await.unwrap();
}

fn partial_path(root: &Path) -> PathBuf {
    let mut entries = root.join(".dropwire/partial").read_dir().unwrap();
    entries.next().unwrap().unwrap().path()
}

fn flip(path: &Path, at: u64) {
    use std::io::{Read, Seek, SeekFrom, Write};
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

/// By nobody: the file's time of change stays.
fn flip_unseen(path: &Path, at: u64) {
    let untouched = path.metadata().unwrap().modified().unwrap();
    flip(path, at);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    crate::fs::file_system::set_modified(&file, untouched).unwrap();
}

/// An agent that starts with 20 MiB of the file, of which a bit at 18 is flipped.
async fn damaged_at_18_of_20(bytes: &[u8]) -> Rig {
    let rig = Rig::new().await;
    break_off(&rig, bytes, 20 * MIB).await;
    rig.restarted(|root| flip(&partial_path(root), 18 * MIB as u64))
        .await
}

#[track_caller]
fn damaged_from(outcome: &Outcome) -> (usize, Digest) {
    match outcome {
        Outcome::Damaged { offset, digest, .. } => (*offset as usize, *digest),
        other => panic!("not damaged: {other:?}"),
    }
}

pub(super) async fn go_on(rig: &Rig, bytes: &[u8], expected: usize) -> (Link, OfferSequence) {
    let mut link = rig.link(ANA);
    let (sequence, first) = link.opened(id(1), "big", bytes.len() as u64).await;
    match first {
        Outcome::Opened {
            offset, digest: held, ..
        } => {
            assert_eq!(offset as usize, expected);
            assert_eq!(held, digest(&bytes[..expected]));
        }
        other => panic!("{other:?}"),
    }
    (link, sequence)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_transfer_goes_on_where_it_was() {
    let rig = Rig::new().await;
    let bytes = content(24 * MIB);
    break_off(&rig, &bytes, 19 * MIB).await;
    let rig = rig.restarted(|_| ()).await;
    let (mut link, sequence) = go_on(&rig, &bytes, 19 * MIB).await;
    let outcome = link.rest(id(1), sequence, 0, &bytes, 19 * MIB).await;
    assert_eq!(delivered_as(&outcome), "big");
    assert!(rig.files() == [("big".into(), bytes)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_prefix_is_cut_to_the_last_good_checkpoint() {
    let bytes = content(24 * MIB);
    let rig = damaged_at_18_of_20(&bytes).await;
    let (mut link, sequence) = go_on(&rig, &bytes, 20 * MIB).await;
    let outcome = link.rest(id(1), sequence, 0, &bytes, 20 * MIB).await;
    assert_eq!(damaged_from(&outcome), (16 * MIB, digest(&bytes[..16 * MIB])));
    let outcome = link.rest(id(1), sequence, 1, &bytes, 16 * MIB).await;
    assert_eq!(delivered_as(&outcome), "big");
    assert!(rig.files() == [("big".into(), bytes)]);
}

/// Between two links to an agent that goes on running.
#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_was_touched_meanwhile_is_read_again() {
    let rig = Rig::new().await;
    let bytes = content(2 * MIB);
    break_off(&rig, &bytes, MIB).await;
    let_go(&rig).await;
    flip(&partial_path(&rig.root()), 5);
    let (mut link, sequence) = go_on(&rig, &bytes, MIB).await;
    assert!(matches!(link.next().await, Outcome::Damaged { offset: 0, .. }));
    let outcome = link.rest(id(1), sequence, 1, &bytes, 0).await;
    assert_eq!(delivered_as(&outcome), "big");
    assert!(rig.files() == [("big".into(), bytes)]);
}

/// Damage shows whether it was read: none that leaves the time of change alone happens otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_nobody_touched_is_read_again_after_a_restart_only() {
    if !crate::failpoints::needs::lasting_inodes() {
        return; // it is read before it gets its name
    }
    for restart in [false, true] {
        let rig = Rig::new().await;
        let bytes = content(2 * MIB);
        break_off(&rig, &bytes, MIB).await;
        let_go(&rig).await;
        flip_unseen(&partial_path(&rig.root()), 5);
        let rig = if restart { rig.restarted(|_| ()).await } else { rig };
        let (mut link, sequence) = go_on(&rig, &bytes, MIB).await;
        let outcome = link.rest(id(1), sequence, 0, &bytes, MIB).await;
        match (restart, outcome) {
            (true, Outcome::Damaged { offset: 0, .. }) | (false, Outcome::Committed { .. }) => {}
            (_, other) => panic!("{restart}: {other:?}"),
        }
    }
}

/// That it is not read again shows by damage that nobody could have done.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_between_two_links_costs_no_second_reading() {
    if !crate::failpoints::needs::lasting_inodes() {
        return; // it is read before it gets its name
    }
    let rig = Rig::new().await;
    let bytes = content(2 * MIB);
    break_off(&rig, &bytes, MIB).await;
    let_go(&rig).await;
    let mut full = rig.settings.clone();
    full.inbox.as_mut().unwrap().min_free = Some(u64::MAX / 2);
    rig.inbox.apply(&full);
    let declined = rig.link(ANA).opened(id(1), "big", bytes.len() as u64).await.1;
    assert_eq!(refused(&declined), DeclineReason::NoSpace);
    let_go(&rig).await;
    rig.inbox.apply(&rig.settings);
    flip_unseen(&partial_path(&rig.root()), 5);
    let (mut link, sequence) = go_on(&rig, &bytes, MIB).await;
    let outcome = link.rest(id(1), sequence, 0, &bytes, MIB).await;
    assert_eq!(delivered_as(&outcome), "big");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_that_was_not_read_to_its_end_is_read_again() {
    let bytes = content(24 * MIB);
    for _ in 0..20 {
        let rig = damaged_at_18_of_20(&bytes).await;
        let (link, sequence) = go_on(&rig, &bytes, 20 * MIB).await;
        link.command(Command::Release { id: id(1), sequence }).await;
        let_go(&rig).await;
        let mut link = rig.link(ANA);
        let (sequence, first) = link.opened(id(1), "big", bytes.len() as u64).await;
        if matches!(first, Outcome::Opened { offset, .. } if offset < 20 * MIB as u64) {
            continue; // the reading was quicker than the release
        }
        let outcome = link.rest(id(1), sequence, 0, &bytes, 20 * MIB).await;
        assert_eq!(damaged_from(&outcome), (16 * MIB, digest(&bytes[..16 * MIB])));
        return;
    }
    panic!("no release was ever quicker than the reading");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_prefix_that_could_not_be_cut_is_read_again() {
    let bytes = content(24 * MIB);
    let rig = damaged_at_18_of_20(&bytes).await;
    let change = async |sql| rig.db.call(move |tx| tx.execute_batch(sql)).await.unwrap();
    change("CREATE TRIGGER kept BEFORE DELETE ON inbox_checkpoint BEGIN SELECT RAISE(ABORT, 'kept'); END")
        .await;
    let (mut link, _) = go_on(&rig, &bytes, 20 * MIB).await;
    refused(&link.next().await);
    let_go(&rig).await;
    change("DROP TRIGGER kept").await;
    let (mut link, sequence) = go_on(&rig, &bytes, 20 * MIB).await;
    let outcome = link.rest(id(1), sequence, 0, &bytes, 20 * MIB).await;
    assert_eq!(damaged_from(&outcome), (16 * MIB, digest(&bytes[..16 * MIB])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_first_checkpoint_starts_over() {
    let rig = Rig::new().await;
    let bytes = content(2 * MIB);
    break_off(&rig, &bytes, MIB).await;
    let rig = rig.restarted(|root| flip(&partial_path(root), 5)).await;
    let (mut link, sequence) = go_on(&rig, &bytes, MIB).await;
    assert!(
        matches!(link.next().await, Outcome::Damaged { offset: 0, .. }),
        "without being asked"
    );
    let outcome = link.rest(id(1), sequence, 1, &bytes, 0).await;
    assert_eq!(delivered_as(&outcome), "big");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_shorter_than_its_checkpoint_or_gone_starts_over() {
    let bytes = content(2 * MIB);
    let harms: [fn(&Path); 2] = [
        |partial| {
            std::fs::File::options()
                .write(true)
                .open(partial)
                .unwrap()
                .set_len(1000)
                .unwrap();
        },
        |partial| std::fs::remove_file(partial).unwrap(),
    ];
    for harm in harms {
        let rig = Rig::new().await;
        break_off(&rig, &bytes, MIB).await;
        let rig = rig.restarted(|root| harm(&partial_path(root))).await;
        go_on(&rig, &bytes, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_past_the_checkpoint_are_cut() {
    let rig = Rig::new().await;
    let bytes = content(2 * MIB);
    break_off(&rig, &bytes, MIB).await;
    let rig = rig
        .restarted(|root| {
            use std::io::Write;
            let mut file = std::fs::File::options()
                .append(true)
                .open(partial_path(root))
                .unwrap();
            file.write_all(&[0; 3 << 20]).unwrap();
        })
        .await;
    let (mut link, sequence) = go_on(&rig, &bytes, MIB).await;
    let outcome = link.rest(id(1), sequence, 0, &bytes, MIB).await;
    assert_eq!(delivered_as(&outcome), "big");
    assert!(rig.files() == [("big".into(), bytes)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_state_of_no_use_is_made_from_the_bytes() {
    let rig = Rig::new().await;
    let bytes = content(2 * MIB);
    break_off(&rig, &bytes, MIB).await;
    let rig = rig.restarted(|_| ()).await;
    rig.db
        .call(|tx| tx.execute("UPDATE inbox_checkpoint SET hash_state = x'00'", []))
        .await
        .unwrap();
    go_on(&rig, &bytes, MIB).await;
}
