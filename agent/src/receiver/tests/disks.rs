//! A disk inside the inbox that is missing, or full, or not what it was.

use std::{fs, io, process::Command as Program};

use dropwire_protocol::message::DeclineReason::*;

use super::{elsewhere::mount, order::partial_of, recovery, *};
use crate::fs::{
    confined,
    durable::{
        How,
        trace::{self, Call},
    },
    folder_id, own_folder,
};

/// A file system that is mounted on a folder, `sub` in the inbox mostly, and can be taken away and put there again as
/// it was.
struct Disk {
    _temp: tempfile::TempDir,
    itself: PathBuf,
    sub: PathBuf,
}

impl Disk {
    /// None, said aloud, where nothing can be mounted.
    fn at(root: &Path, options: &str) -> Option<Self> {
        Self::over(root.join("sub"), Some(options))
    }

    /// Without `options` it is a folder of the inbox's own disk.
    fn over(sub: PathBuf, options: Option<&str>) -> Option<Self> {
        let temp = tempfile::tempdir().unwrap();
        let disk = Self {
            itself: temp.path().join("disk"),
            sub,
            _temp: temp,
        };
        fs::create_dir(&disk.itself).unwrap();
        fs::create_dir_all(&disk.sub).unwrap();
        let mounted = match options {
            Some(options) => mount(&disk.itself, options),
            None => bind(&disk.itself, &disk.itself).status().unwrap().success(),
        };
        if !mounted {
            crate::failpoints::skip("no file system can be mounted here");
            return None;
        }
        disk.comes();
        Some(disk)
    }

    fn comes(&self) {
        run(&mut bind(&self.itself, &self.sub));
    }

    fn goes(&self) {
        run(Program::new("umount").arg("-l").arg(&self.sub));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for folder in [&self.sub, &self.itself] {
            let _ = Program::new("umount").arg("-lq").arg(folder).status();
        }
    }
}

fn bind(folder: &Path, at: &Path) -> Program {
    let mut program = Program::new("mount");
    program.arg("--bind").arg(folder).arg(at);
    program
}

fn run(program: &mut Program) {
    assert!(program.status().unwrap().success(), "{program:?}");
}

#[track_caller]
fn waits(outcome: &Outcome) {
    match outcome {
        Outcome::Refused {
            reason: InboxUnavailable,
            text,
            retry_after_ms: Some(_),
            ..
        } => assert!(text.contains("/sub was a disk of its own"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_put_under_the_mount_point_of_one_that_is_missing() {
    for options in [Some("size=8m"), None] {
        nothing_is_put_under_its_mount_point(options).await;
    }
}

async fn nothing_is_put_under_its_mount_point(options: Option<&str>) {
    let rig = Rig::new().await;
    let Some(disk) = Disk::over(rig.root().join("sub"), options) else {
        return;
    };
    let bytes = content(2 * CHUNK);
    assert_eq!(
        delivered_as(&rig.link(ANA).send(id(1), "sub/a", b"x").await),
        "sub/a"
    );
    assert_eq!(rig.inbox.status().await.missing, None);
    disk.goes();
    // Also by an agent that starts only now.
    let rig = rig.restarted(|_| ()).await;
    let mut link = rig.link(ANA);
    waits(&link.send(id(2), "sub/deep/b", b"x").await);
    waits(&link.send(id(3), "sub/large", &bytes).await);
    assert_eq!(disk.sub.read_dir().unwrap().count(), 0);
    assert_eq!(rig.partials(), 0, "no byte of it was asked for");
    assert_eq!(delivered_as(&link.send(id(4), "other/b", b"x").await), "other/b");
    let status = rig.inbox.status().await;
    let missing = status.missing.unwrap();
    assert!(missing.contains("dropwire adopt"), "{missing}");
    assert_eq!(status.declined, None, "it is told once");
    disk.comes();
    assert_eq!(rig.inbox.status().await.missing, None);
    assert_eq!(
        delivered_as(&link.send(id(2), "sub/deep/b", b"x").await),
        "sub/deep/b"
    );
    assert_eq!(
        delivered_as(&link.send(id(3), "sub/large", &bytes).await),
        "sub/large"
    );
}

/// A rename leads out of no mount: it waits until that is gone, whether it came before the agent or later.
#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_waits_while_something_is_mounted_on_its_own_folder() {
    for (own, options) in [
        (".dropwire", Some("size=8m")),
        (".dropwire/partial", Some("size=8m")),
        (".dropwire/partial", None),
    ] {
        let rig = Rig::new().await;
        let mut link = rig.link(ANA);
        assert_eq!(delivered_as(&link.send(id(1), "a", b"x").await), "a");
        let Some(disk) = Disk::over(rig.root().join(own), options) else {
            return;
        };
        assert_eq!(refused(&link.send(id(2), "b", b"x").await), InboxUnavailable);
        let rig = rig.restarted(|_| ()).await;
        let held = rig.inbox.status().await.held.unwrap();
        assert!(
            held.contains(&format!("from {}", disk.sub.display())) && held.contains("Unmount"),
            "{held}"
        );
        let mut link = rig.link(ANA);
        assert_eq!(refused(&link.send(id(2), "b", b"x").await), InboxUnavailable);
        assert_eq!(disk.itself.read_dir().unwrap().count(), 0, "nothing is put on it");
        disk.goes();
        assert_eq!(rig.inbox.status().await.held, None);
        assert_eq!(delivered_as(&link.send(id(2), "b", b"x").await), "b");
    }
}

/// As a service has it that may write to that folder only, until its unit is changed.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_folder_without_its_mount_is_not_missed() {
    let rig = Rig::new().await;
    let sub = rig.root().join("sub");
    fs::create_dir(&sub).unwrap();
    if !bind(&sub, &sub).status().unwrap().success() {
        return crate::failpoints::skip("no folder can be mounted here");
    }
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.send(id(1), "sub/a", b"x").await), "sub/a");
    run(Program::new("umount").arg("-l").arg(&sub));
    assert_eq!(rig.inbox.status().await.missing, None);
    assert_eq!(delivered_as(&link.send(id(2), "sub/b", b"x").await), "sub/b");
    assert_eq!(rig.names(), ["sub/a", "sub/b"]);
}

/// It went away after the offer: what arrived is kept.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_goes_while_a_file_arrives_is_missed_too() {
    let rig = Rig::new().await;
    let Some(disk) = Disk::at(&rig.root(), "size=8m") else {
        return;
    };
    let (mut link, bytes) = (rig.link(ANA), content(2 * CHUNK));
    assert_eq!(delivered_as(&link.send(id(1), "sub/a", b"x").await), "sub/a");
    let (sequence, _) = link.opened(id(2), "sub/large", bytes.len() as u64).await;
    disk.goes();
    waits(&link.rest(id(2), sequence, 0, &bytes, 0).await);
    assert_eq!(disk.sub.read_dir().unwrap().count(), 0);
    disk.comes();
    let (sequence, first) = link.opened(id(2), "sub/large", bytes.len() as u64).await;
    assert!(matches!(first, Outcome::Opened { offset, .. } if offset == bytes.len() as u64));
    link.finish(id(2), sequence, 0, digest(&bytes)).await;
    assert_eq!(delivered_as(&link.next().await), "sub/large");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_disk_waits_until_somebody_says_that_it_is_right() {
    let rig = Rig::new().await;
    let Some(disk) = Disk::at(&rig.root(), "size=8m") else {
        return;
    };
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.send(id(1), "sub/a", b"x").await), "sub/a");
    disk.goes();
    assert!(mount(&disk.sub, "size=1m"));
    folder_id::create(&confined::root(&disk.sub).unwrap()).unwrap();
    waits(&link.send(id(2), "sub/b", b"x").await);
    let root = confined::root(&rig.root()).unwrap();
    let told = missing_disks(&rig.root(), &root);
    assert!(told.len() == 1 && told[0].contains("/sub was a disk"), "{told:?}");
    forget_missing_disks(&root).unwrap();
    rig.inbox.recheck().unwrap();
    assert_eq!(delivered_as(&link.send(id(2), "sub/b", b"x").await), "sub/b");
    assert!(missing_disks(&rig.root(), &root).is_empty());
    run(Program::new("umount").arg("-l").arg(&disk.sub));
    waits(&link.send(id(3), "sub/c", b"x").await);
}

/// Its copy has its name, and the disk is away when the agent starts again: nothing is concluded from that.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_being_placed_on_it_waits_for_it() {
    for there in ["the partial", "the copy"] {
        let rig = Rig::new().await;
        let Some(disk) = Disk::at(&rig.root(), "size=8m") else {
            return;
        };
        assert_eq!(
            delivered_as(&rig.link(BOB).send(id(9), "sub/a", b"x").await),
            "sub/a"
        );
        let (partial, _) = recovery::placing(&rig, How::Copied).await;
        if there == "the copy" {
            fs::copy(&partial, disk.sub.join("x.txt")).unwrap();
            fs::remove_file(&partial).unwrap();
        }
        let rig = rig.restarted(|_| disk.goes()).await;
        let mut link = rig.link(ANA);
        waits(&link.opened(id(1), "sub/x.txt", 8).await.1);
        disk.comes();
        let (_, outcome) = link.opened(id(1), "sub/x.txt", 8).await;
        assert_eq!(delivered_as(&outcome), "sub/x.txt", "{there}");
        assert_eq!(rig.names(), ["sub/a", "sub/x.txt"], "{there}");
    }
}

/// Whoever opens the inbox keeps all others waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_copies_nothing_and_a_sweep_does() {
    let rig = Rig::new().await;
    let Some(_disk) = Disk::at(&rig.root(), "size=8m") else {
        return;
    };
    recovery::placing(&rig, How::Copied).await;
    let rig = rig.restarted(|_| ()).await;
    let row = rig.row(ANA, id(1)).await;
    assert!(matches!(row, Some(ledger::State::Placing(_))), "{row:?}");
    rig.inbox.sweep().await.unwrap();
    while !matches!(rig.row(ANA, id(1)).await, Some(ledger::State::Delivered(_))) {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.names(), ["sub/x.txt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_on_it_is_declined_before_a_byte_comes() {
    let rig = Rig::new().await;
    let Some(_disk) = Disk::at(&rig.root(), "size=512k") else {
        return;
    };
    let mut link = rig.link(ANA);
    assert_eq!(delivered_as(&link.send(id(1), "sub/a", b"x").await), "sub/a");
    let (_, first) = link.opened(id(2), "sub/large", 600 << 10).await;
    assert_eq!(refused(&first), NoSpace);
    let (_, first) = link.opened(id(3), "sub/large", 300 << 10).await;
    assert!(matches!(first, Outcome::Opened { .. }));
    let (_, second) = link.opened(id(4), "sub/large", 300 << 10).await;
    assert_eq!(
        refused(&second),
        NoSpace,
        "the room is promised to the one before"
    );
    let (_, here) = link.opened(id(5), "large", 600 << 10).await;
    assert!(
        matches!(here, Outcome::Opened { .. }),
        "the inbox's own disk has room"
    );
}

/// `min_free` holds on each disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_stays_free_stays_free_on_it_too() {
    let mut rig = Rig::new().await;
    let Some(disk) = Disk::at(&rig.root(), "size=1m") else {
        return;
    };
    let free = |folder: &Path| crate::fs::disk::Disk::of(&confined::root(folder).unwrap());
    assert!(free(&rig.root()).unwrap().is_none_or(|disk| disk.free > 8 << 20));
    rig.settings.inbox.as_mut().unwrap().min_free = Some(4 << 20);
    rig.inbox.apply(&rig.settings);
    assert_eq!(refused(&rig.link(ANA).send(id(1), "sub/a", b"x").await), NoSpace);
    assert!(!disk.sub.join("a").exists());
    assert_eq!(delivered_as(&rig.link(ANA).send(id(2), "a", b"x").await), "a");
}

/// Kept, it would be found as wrong each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_reads_back_wrong_is_received_again() {
    let rig = Rig::new().await;
    let Some(_disk) = Disk::at(&rig.root(), "size=8m") else {
        return;
    };
    let (mut link, bytes) = (rig.link(ANA), content(2 * CHUNK));
    let partial = rig.root().join(partial_of(1));
    let spoils = move || {
        let mut there = fs::read(&partial)?;
        there[7] ^= 1;
        fs::write(&partial, there)
    };
    let copy = Path::new("sub").join(partial_of(1));
    trace::before(&rig.root(), Call::Sync("open", copy), spoils);
    // Busy: where no inode number tells, its bytes were asked at once, and it counts as lost.
    let told = refused(&link.send(id(1), "sub/f", &bytes).await);
    assert!(matches!(told, DiskError | Busy), "{told:?}");
    let (sequence, first) = link.opened(id(1), "sub/f", bytes.len() as u64).await;
    assert!(matches!(first, Outcome::Opened { offset: 0, .. }), "{first:?}");
    assert_eq!(
        delivered_as(&link.rest(id(1), sequence, 0, &bytes, 0).await),
        "sub/f"
    );
    assert!(rig.files() == [("sub/f".into(), bytes)]);
}

/// The disk is another user's, say, and only a folder on it this agent's.
#[tokio::test(flavor = "multi_thread")]
async fn where_its_top_cannot_be_written_a_folder_below_serves() {
    let rig = Rig::new().await;
    let Some(disk) = Disk::at(&rig.root(), "size=8m") else {
        return;
    };
    fs::write(disk.sub.join(own_folder::NAME), "no folder").unwrap();
    let mut link = rig.link(ANA);
    assert_eq!(
        delivered_as(&link.send(id(1), "sub/peer/a/f", b"x").await),
        "sub/peer/a/f"
    );
    assert!(disk.sub.join("peer").join(own_folder::NAME).is_dir());
    assert_eq!(
        delivered_as(&link.send(id(2), "sub/peer/b/f", b"x").await),
        "sub/peer/b/f"
    );
    disk.goes();
    for (n, path) in ["sub/peer/c", "sub/other/c", "sub/c"].into_iter().enumerate() {
        waits(&link.send(id(3 + n as u8), path, b"x").await);
    }
    disk.comes();
    fs::remove_dir_all(disk.sub.join("peer")).unwrap();
    assert_eq!(
        delivered_as(&link.send(id(3), "sub/peer/c", b"x").await),
        "sub/peer/c"
    );
}

/// Whether a whole folder is there is told by the names that its own disk takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_on_a_disk_that_takes_other_names_is_known_again() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let Some(_disk) = Disk::at(&rig.root(), "size=16m") else {
        return;
    };
    let mut link = rig.link(ANA);
    link.kind = Kind::Folder;
    let stream = whole::stream_with("a:b");
    let own = Path::new("sub/.dropwire/partial");
    // Asked when it is copied, when that seems to have failed, and when it is offered again.
    for _ in 0..3 {
        let probe = own.join(naming::os_name(dialect::WINDOWS));
        let refuses = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        trace::before(&rig.root(), Call::Sync("open", probe), refuses);
    }
    let (root, staged) = (rig.root(), partial::folder_name((ANA, id(1))));
    let named = Call::Name(own.join(staged), "sub/folder".into());
    trace::before(&rig.root(), named, move || {
        let short = || Err(io::Error::from_raw_os_error(libc::EMFILE));
        trace::before(&root, Call::Sync("open", "sub".into()), short);
        Ok(())
    });
    assert_eq!(refused(&link.send(id(1), "sub/folder", &stream).await), Busy);
    let forgets = |root: &Path| fs::remove_file(root.join(".dropwire/named")).unwrap();
    let rig = rig.restarted(forgets).await;
    let mut link = Link {
        kind: Kind::Folder,
        ..rig.link(ANA)
    };
    let (_, again) = link.opened(id(1), "sub/folder", stream.len() as u64).await;
    assert_eq!(delivered_as(&again), "sub/folder");
    assert_eq!(rig.names(), ["sub/folder/a_b", "sub/folder/sub/b"]);
}

/// A shortage while the inbox is opened: it is opened again, and nothing is left out for the run.
#[tokio::test(flavor = "multi_thread")]
async fn a_shortage_at_the_opening_is_no_answer() {
    let mut probe = PathBuf::from(".dropwire/partial");
    probe.push(naming::os_name(dialect::WINDOWS));
    for what in [PathBuf::from(".dropwire/named"), probe] {
        let rig = Rig::new().await;
        let short = || Err(io::Error::from_raw_os_error(libc::EMFILE));
        let rig = rig
            .restarted(|root| trace::before(root, Call::Sync("open", what.clone()), short))
            .await;
        let held = rig.inbox.shared.handle.last_seen().err();
        assert!(held.is_some_and(|held| held.contains("open files")), "{what:?}");
        assert_eq!(delivered_as(&rig.link(ANA).send(id(1), "a", b"x").await), "a");
    }
}
