//! A folder inside the inbox that is another file system: what arrives for it is copied there.

use std::{fs, io, process::Command as Program};

use dropwire_protocol::message::DeclineReason::*;

use super::{order::partial_of, recovery, *};
use crate::fs::durable::{
    How,
    trace::{self, Call},
};

/// A small file system of its own, for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    /// At `sub` in the inbox; None, said aloud, where nothing can be mounted.
    fn at(root: &Path, options: &str) -> Option<Self> {
        let folder = root.join("sub");
        fs::create_dir_all(&folder).unwrap();
        let mounted = mount(&folder, options);
        if !mounted {
            crate::failpoints::skip("no file system can be mounted here");
        }
        mounted.then_some(Self(folder))
    }

    fn copies(&self) -> usize {
        self.0.join(".dropwire/partial").read_dir().unwrap().count()
    }
}

pub(super) fn mount(folder: &Path, options: &str) -> bool {
    let mut mount = Program::new("mount");
    let mount = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder);
    mount
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Program::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_whole_folders_arrive_there() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let Some(mounted) = Mounted::at(&rig.root(), "size=16m") else {
        return;
    };
    let (mut link, bytes) = (rig.link(ANA), content(2 * CHUNK + 7));
    for n in 0..3 {
        let small = link.send(id(n), "sub/deep/s.txt", &[n]).await;
        let name = ["sub/deep/s.txt", "sub/deep/s (1).txt", "sub/deep/s (2).txt"][n as usize];
        assert_eq!(delivered_as(&small), name);
    }
    assert_eq!(delivered_as(&link.send(id(4), "sub/l", &bytes).await), "sub/l");
    let modified = fs::metadata(rig.root().join("sub/l"))
        .unwrap()
        .modified()
        .unwrap();
    let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(modified.as_secs(), 1_600_000_000);
    link.kind = Kind::Folder;
    let folder = link.send(id(5), "sub/folder", &whole::stream()).await;
    assert_eq!(delivered_as(&folder), "sub/folder");
    let mut expected = whole::files_of("sub/folder");
    expected.push(("sub/l".into(), bytes));
    let found = rig.files();
    assert!(expected.iter().all(|file| found.contains(file)));
    assert_eq!(found.len(), expected.len() + 3);
    assert_eq!((rig.partials(), mounted.copies()), (0, 0));
    let (_, again) = link
        .opened(id(5), "sub/folder", whole::stream().len() as u64)
        .await;
    assert!(matches!(again, Outcome::Settled { .. }), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_there_costs_no_byte_of_the_line_twice() {
    let rig = Rig::new().await;
    let Some(mounted) = Mounted::at(&rig.root(), "size=256k") else {
        return;
    };
    let (mut link, bytes) = (rig.link(ANA), content(3 * CHUNK));
    let size = bytes.len() as u64;
    assert_eq!(refused(&link.send(id(1), "sub/f", &bytes).await), NoSpace);
    assert_eq!(mounted.copies(), 0);
    assert!(mount(&mounted.0, "remount,size=8m"));
    let (sequence, first) = link.opened(id(1), "sub/f", size).await;
    assert!(
        matches!(first, Outcome::Opened { offset, .. } if offset == size),
        "{first:?}"
    );
    link.finish(id(1), sequence, 0, digest(&bytes)).await;
    assert_eq!(delivered_as(&link.next().await), "sub/f");
    assert!(rig.files() == [("sub/f".into(), bytes)]);
}

/// Each state that a crash can leave; the row names `sub/x.txt`.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_finished_once() {
    let cases: [(&str, bool); 4] = [
        ("before the copy", true),
        ("in the middle of it", true),
        ("both are there", true),
        ("taken out of the inbox", false),
    ];
    for (case, stays) in cases {
        let rig = Rig::new().await;
        let Some(mounted) = Mounted::at(&rig.root(), "size=1m") else {
            return;
        };
        let (partial, receipt) = recovery::placing(&rig, How::Copied).await;
        let copied = mounted.0.join("x.txt");
        match case {
            "in the middle of it" => {
                let staging = mounted.0.join(".dropwire/partial");
                fs::create_dir_all(&staging).unwrap();
                fs::write(staging.join(partial.file_name().unwrap()), "ver").unwrap();
            }
            "both are there" => drop(fs::copy(&partial, &copied).unwrap()),
            "taken out of the inbox" => {
                let inbox_dir = rig.inbox.shared.handle.last_seen().unwrap();
                inbox_dir.named.note(&receipt);
            }
            _ => {}
        }
        let rig = rig.restarted(|_| ()).await;
        let (_, outcome) = rig.link(ANA).opened(id(1), "sub/x.txt", 8).await;
        assert_eq!(delivered_as(&outcome), "sub/x.txt", "{case}");
        let expected = Vec::from_iter(stays.then(|| ("sub/x.txt".into(), b"verified".to_vec())));
        assert_eq!(rig.files(), expected, "{case}");
        assert_eq!(
            (rig.partials(), rig.inbox.status().await.received_files),
            (0, 1),
            "{case}"
        );
    }
}

/// The copy, its name and the way to it are durable before the partial goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_durable_before_it_is_named_and_that_before_the_partial_goes() {
    let rig = Rig::new().await;
    let Some(_mounted) = Mounted::at(&rig.root(), "size=1m") else {
        return;
    };
    let mut link = rig.link(ANA);
    assert_eq!(
        delivered_as(&link.send(id(2), "sub/e", b"x").await),
        "sub/e",
        "from now on it is known"
    );
    let before = trace::of(&rig.root()).len();
    assert_eq!(delivered_as(&link.send(id(1), "sub/f", b"x").await), "sub/f");
    let calls = &trace::of(&rig.root())[before..];
    trace::holds_the_order(calls);
    let at = |call: Call| {
        calls
            .iter()
            .rposition(|c| *c == call)
            .unwrap_or_else(|| panic!("{call:?}: {calls:#?}"))
    };
    let copy = Path::new("sub").join(partial_of(1));
    let order = [
        at(Call::Sync("sync", copy.clone())),
        at(Call::Name(copy, "sub/f".into())),
        at(Call::Unlink(partial_of(1))),
    ];
    assert!(order.is_sorted(), "{order:?}: {calls:#?}");
    let named = calls[order[1]..order[2]].contains(&trace::sync("sub"));
    assert!(
        named && calls[..order[1]].contains(&trace::sync("")),
        "{calls:#?}"
    );
}

/// Each copy costs syncs of its own: others do not wait for hundreds of them.
#[tokio::test(flavor = "multi_thread")]
async fn few_copies_fill_a_batch() {
    let rig = Rig::new().await;
    let shared = &rig.inbox.shared;
    let work = |path: &str| batch::work(shared, ANA, &RemotePath::parse(path.as_bytes()).unwrap());
    assert_eq!(work("sub/deep/f"), 3);
    let inbox_dir = shared.handle.last_seen().unwrap();
    inbox_dir.disks.remember(b"sub", b"sub", [7; 16]).unwrap();
    for path in ["sub", "suburb/f", "other/sub/f"] {
        assert_eq!(work(path), path.split('/').count());
    }
    let queue = FairQueue::new();
    for n in 0..100 {
        queue.push(ANA, work("sub/deep/f"), n);
    }
    assert_eq!(batch::next(&queue).unwrap().len(), 31);
}

/// A border that no folder tells of: a project with a quota of its own, or the same disk mounted twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_border_that_only_the_rename_tells_of_is_crossed_by_a_copy() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let crosses = || Err(io::Error::from_raw_os_error(libc::EXDEV));
    trace::before(&rig.root(), Call::Name(partial_of(1), "sub/f".into()), crosses);
    assert_eq!(delivered_as(&link.send(id(1), "sub/f", b"x").await), "sub/f");
    trace::before(&rig.root(), Call::Name(partial_of(2), "f".into()), crosses);
    assert_eq!(
        refused(&link.send(id(2), "f", b"x").await),
        InboxUnavailable,
        "nowhere to copy to"
    );
    assert_eq!(rig.files(), [("sub/f".into(), b"x".to_vec())]);
    assert_eq!(rig.partials(), 0);
}

/// Another file system inside may take other names than the inbox's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_refused_is_made_stricter_and_then_is_final() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    let refuses = |code| move || Err(io::Error::from_raw_os_error(code));
    for (n, code) in [libc::EINVAL, libc::EILSEQ, libc::ENAMETOOLONG]
        .into_iter()
        .enumerate()
    {
        let (n, name) = (n as u8, format!("a:{n}?.txt"));
        let named = Call::Name(partial_of(n), name.clone().into());
        trace::before(&rig.root(), named, refuses(code));
        assert_eq!(
            delivered_as(&link.send(id(n), &name, b"x").await),
            format!("a_{n}_.txt")
        );
    }
    for name in ["b:", "b_"] {
        trace::before(
            &rig.root(),
            Call::Name(partial_of(9), name.into()),
            refuses(libc::EINVAL),
        );
    }
    assert_eq!(refused(&link.send(id(9), "b:", b"x").await), BadName);
    assert_eq!(rig.partials(), 0);
}
