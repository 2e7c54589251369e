//! A folder in the outbox at which something is mounted: its files leave by a `.dropwire` of its own.

use std::process::Command;

use super::*;
use crate::fs::{border, durable::trace, own_folder};

/// For as long as this lives.
struct Mounted(PathBuf);

/// `with` before the folder `disk`; None, said aloud, where nothing can be mounted.
fn mount(outbox: &Outbox, with: &[&str]) -> Option<Mounted> {
    let at = outbox.at("disk");
    fs::create_dir_all(&at).unwrap();
    let mounted = mounted(&at, with);
    if !mounted {
        failpoints::skip("no file system can be mounted here");
    }
    mounted.then_some(Mounted(at))
}

fn mounted(at: &Path, with: &[&str]) -> bool {
    let mount = Command::new("mount").args(with).arg(at).output();
    mount.is_ok_and(|ran| ran.status.success())
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

const TMPFS: &[&str] = &["-t", "tmpfs", "tmpfs"];

#[test]
fn files_leave_by_the_top_of_what_is_mounted() {
    let elsewhere = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
    let bind = ["--bind", elsewhere.path().to_str().unwrap()];
    for with in [TMPFS, &bind] {
        let outbox = Outbox::new();
        let Some(mounted) = mount(&outbox, with) else {
            return;
        };
        let archived = [("disk/a/x", "one"), ("disk/a/x", "two"), ("disk/y", "three")];
        for (path, bytes) in archived {
            let one = outbox.delivered(path, bytes, AfterSend::Archive);
            assert_eq!(dispose(&one).unwrap(), Disposed::Done, "{path}");
            assert!(!outbox.at(path).exists());
        }
        let sent = mounted.0.join(".dropwire/sent");
        let read = |name: &str| read(&sent.join(name));
        assert_eq!(
            (read("a/x"), read("a/x (1)"), read("y")),
            ("one".into(), "two".into(), "three".into())
        );
        // Together with what leaves by the outbox itself, and after a crash.
        let both = [
            Disposal {
                name: "1".into(),
                ..outbox.delivered("disk/a/z", "four", AfterSend::Delete)
            },
            Disposal {
                name: "2".into(),
                ..outbox.delivered("here", "five", AfterSend::Delete)
            },
            Disposal {
                name: "3".into(),
                ..outbox.delivered("disk/cut", "six", AfterSend::Delete)
            },
            Disposal {
                name: "4".into(),
                ..outbox.delivered("disk/b/changed", "seven", AfterSend::Delete)
            },
        ];
        let leaving = mounted.0.join(".dropwire/leaving");
        fs::rename(outbox.at("disk/cut"), leaving.join("3")).unwrap();
        fs::write(outbox.at("disk/b/changed"), "others").unwrap();
        fs::rename(outbox.at("disk/b/changed"), leaving.join("4")).unwrap();
        fs::remove_dir(outbox.at("disk/b")).unwrap();
        let answers: Vec<_> = dispose_all(&both, &|| false)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            answers,
            [Disposed::Done, Disposed::Done, Disposed::Done, Disposed::Changed]
        );
        assert_eq!(super::read(&outbox.at("disk/b/changed")), "others", "given back");
        assert!(!outbox.at("disk/a/z").exists() && !outbox.at("here").exists());
        assert_eq!(fs::read_dir(&leaving).unwrap().count(), 0);
    }
}

/// The note is on disk before anything leaves by it, and so is the folder that it leaves by.
#[test]
fn a_mount_is_noted_before_anything_leaves_by_it() {
    let outbox = Outbox::new();
    let Some(mounted) = mount(&outbox, TMPFS) else {
        return;
    };
    let one = outbox.delivered("disk/a/x", "one", AfterSend::Delete);
    assert_eq!(dispose(&one).unwrap(), Disposed::Done);
    let calls = trace::of(outbox.temp.path());
    let at = |call: trace::Call| {
        let at = calls.iter().position(|c| *c == call);
        at.unwrap_or_else(|| panic!("{call:?}: {calls:#?}"))
    };
    let leaving = Path::new("disk/.dropwire/leaving").join(&one.name);
    let left = at(trace::Call::Name("disk/a/x".into(), leaving));
    for folder in [".dropwire/mounts", ".dropwire", "disk", "disk/.dropwire"] {
        assert!(at(trace::sync(folder)) < left, "{folder}: {calls:#?}");
    }
    let root = confined::root(outbox.temp.path()).unwrap();
    assert_eq!(border::missing(&root).unwrap(), []);
    drop(mounted);
    assert_eq!(
        border::missing(&root).unwrap(),
        [RemotePath::parse(b"disk").unwrap()]
    );
}

#[test]
fn what_is_missing_behind_an_absent_mount_is_not_gone() {
    let outbox = Outbox::new();
    let root = confined::root(outbox.temp.path()).unwrap();
    let disk = RemotePath::parse(b"disk").unwrap();
    for _ in 0..2 {
        border::note(&own_folder::open_or_make(&root).unwrap(), &disk).unwrap();
    }
    let one = outbox.delivered("disk/a/x", "one", AfterSend::Delete);
    fs::remove_dir_all(outbox.at("disk/a")).unwrap();
    let error = dispose(&one).unwrap_err().to_string();
    assert!(
        error.contains("what was mounted at disk in it is not there"),
        "{error}"
    );
    // One that is there leaves as any other; and a folder that was removed may be made again.
    let plain = Disposal {
        name: "plain".into(),
        ..outbox.delivered("disk/plain", "2", AfterSend::Delete)
    };
    assert_eq!(dispose(&plain).unwrap(), Disposed::Done);
    fs::remove_dir(outbox.at("disk")).unwrap();
    let error = dispose(&one).unwrap_err().to_string();
    assert!(
        error.contains("what was mounted at disk in it is not there"),
        "{error}"
    );
    assert_eq!(border::missing(&root).unwrap(), [disk]);
    border::forget_missing(&root).unwrap();
    assert_eq!(border::missing(&root).unwrap(), []);
    assert_eq!(dispose(&one).unwrap(), Disposed::Gone);
}

/// A mount point that is a whole delivery, and mount points in folders that went with them.
#[test]
fn what_is_missing_with_its_mount_point_is_not_gone() {
    let outbox = Outbox::new();
    let root = confined::root(outbox.temp.path()).unwrap();
    for (noted, path, folder) in [("disk", "disk", true), ("a/b/disk", "a/b/disk/c/x", false)] {
        let noted = RemotePath::parse(noted.as_bytes()).unwrap();
        border::note(&own_folder::open_or_make(&root).unwrap(), &noted).unwrap();
        let mut one = outbox.delivered("x", "one", AfterSend::Delete);
        one.path = RemotePath::parse(path.as_bytes()).unwrap();
        one.version.folder = folder;
        let error = dispose(&one).unwrap_err().to_string();
        assert!(error.contains("is not there"), "{error}");
        border::forget_missing(&root).unwrap();
        assert_eq!(dispose(&one).unwrap(), Disposed::Gone);
    }
}

#[test]
fn what_cannot_leave_says_so() {
    let outbox = Outbox::new();
    let Some(mounted) = mount(&outbox, TMPFS) else {
        return;
    };
    let one = outbox.delivered("disk/x", "one", AfterSend::Delete);
    assert!(self::mounted(&mounted.0, &["-o", "remount,ro"]));
    let error = dispose(&one).unwrap_err().to_string();
    assert!(
        error.contains("disk is held") && error.contains("Read-only"),
        "{error}"
    );
    assert_eq!(read(&outbox.at("disk/x")), "one");
}

/// Nothing is moved towards it, and it is said what it is.
#[test]
fn an_archive_on_another_disk_is_named() {
    let outbox = Outbox::new();
    let sent = outbox.at(".dropwire/sent");
    fs::create_dir_all(&sent).unwrap();
    let is_mounted = mounted(&sent, TMPFS);
    let _mounted = is_mounted.then(|| Mounted(sent.clone()));
    if !is_mounted {
        failpoints::skip("no file system can be mounted here: a link stands for it");
        fs::remove_dir(&sent).unwrap();
        std::os::unix::fs::symlink(std::env::temp_dir(), &sent).unwrap();
    }
    let one = outbox.delivered("x", "one", AfterSend::Archive);
    let error = dispose(&one).unwrap_err().to_string();
    assert!(
        error.contains("`.dropwire/sent`") && error.contains("ordinary folder"),
        "{error}"
    );
    assert_eq!(read(&outbox.at("x")), "one");
    drop(_mounted);
    let _ = fs::remove_file(&sent);
    assert_eq!(dispose(&one).unwrap(), Disposed::Done);
}
