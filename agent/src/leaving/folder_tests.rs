use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::*;
use crate::fs::{file_system, folder_id, version::OutboxId};

fn dispose(what: &Disposal, stopped: &dyn Fn() -> bool) -> Result<Disposed, DisposeError> {
    super::dispose(what, &Siblings::default(), stopped)
}

struct Outbox {
    temp: tempfile::TempDir,
    id: OutboxId,
    _trusted: file_system::Pretence,
}

impl Outbox {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let id = OutboxId(folder_id::create(&confined::root(temp.path()).unwrap()).unwrap());
        Self {
            temp,
            id,
            _trusted: file_system::pretend(file_system::TRUSTED),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    /// `batch` with some files and an empty folder, and what disposes of it.
    fn delivered(&self, after: AfterSend) -> Disposal {
        fs::create_dir_all(self.at("batch/sub/empty")).unwrap();
        fs::write(self.at("batch/a"), "a").unwrap();
        fs::write(self.at("batch/sub/b"), "b").unwrap();
        self.as_it_is(after)
    }

    fn as_it_is(&self, after: AfterSend) -> Disposal {
        let folder = confined::root(&self.at("batch")).unwrap();
        let version = bundle::list_quickly(&folder).unwrap().version();
        Disposal {
            name: "00112233445566778899aabbccddeeff".into(),
            outbox: self.id,
            root: self.temp.path().to_path_buf(),
            path: dropwire_protocol::RemotePath::parse(b"batch").unwrap(),
            digest: bundle::digest(&folder, version.size, &|| false).unwrap(),
            version,
            marker: None,
            linger: Duration::ZERO,
            after,
        }
    }

    /// Again while it says busy: what was made just now is fresh.
    fn dispose(&self, what: &Disposal) -> Disposed {
        loop {
            match dispose(what, &|| false).unwrap() {
                Disposed::Busy => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    fn in_leaving(&self, what: &Disposal, name: &str) -> PathBuf {
        fs::create_dir_all(self.at(".dropwire/leaving")).unwrap();
        let leaving = self.at(".dropwire/leaving").join(name);
        fs::rename(confined::join(self.temp.path(), &what.path), &leaving).unwrap();
        leaving
    }

    /// Its removal was decided, and cut off after the first file.
    fn decided(&self, what: &Disposal, listed: bool) -> PathBuf {
        let folder = self.in_leaving(what, &what.name);
        let leaving = confined::root(folder.parent().unwrap()).unwrap();
        if listed {
            let written = removal::write_list(&leaving, &what.name, &confined::root(&folder).unwrap());
            assert!(written.is_ok());
        }
        let half = folder.with_file_name(removal::decided_name(&what.name));
        fs::rename(&folder, &half).unwrap();
        fs::remove_file(half.join("a")).unwrap();
        half
    }

    fn leaving_is_empty(&self) -> bool {
        fs::read_dir(self.at(".dropwire/leaving")).unwrap().count() == 0
    }
}

#[test]
fn a_delivered_folder_is_archived_whole_under_a_free_name() {
    let outbox = Outbox::new();
    for name in ["batch", "batch (1)"] {
        let what = outbox.delivered(AfterSend::Archive);
        assert_eq!(outbox.dispose(&what), Disposed::Done);
        assert!(!outbox.at("batch").exists() && outbox.leaving_is_empty());
        let sent = outbox.at(".dropwire/sent").join(name);
        assert_eq!(fs::read(sent.join("sub/b")).unwrap(), b"b");
        assert!(sent.join("sub/empty").is_dir());
        assert_eq!(outbox.dispose(&what), Disposed::Gone, "and again");
    }
}

#[test]
fn a_delivered_folder_is_removed_also_after_a_crash_in_between() {
    let outbox = Outbox::new();
    let what = outbox.delivered(AfterSend::Delete);
    assert_eq!(outbox.dispose(&what), Disposed::Done);
    assert!(!outbox.at("batch").exists() && outbox.leaving_is_empty());

    let what = outbox.delivered(AfterSend::Delete);
    outbox.in_leaving(&what, &what.name);
    assert_eq!(outbox.dispose(&what), Disposed::Done);
    assert!(outbox.leaving_is_empty());

    // Half removed: that is no new version, and must not come back.
    let what = outbox.delivered(AfterSend::Delete);
    outbox.decided(&what, true);
    assert_eq!(outbox.dispose(&what), Disposed::Done);
    assert!(!outbox.at("batch").exists() && outbox.leaving_is_empty());
    assert!(!outbox.at(".dropwire/sent").exists());
}

/// As an earlier version of dropwire left it.
#[test]
fn what_is_left_of_a_removal_without_a_list_is_archived() {
    let outbox = Outbox::new();
    for earlier in ["", ".1700000000000000000"] {
        let what = outbox.delivered(AfterSend::Delete);
        let half = outbox.decided(&what, false);
        fs::rename(&half, format!("{}{earlier}", half.display())).unwrap();
        assert_eq!(outbox.dispose(&what), Disposed::Done);
        assert!(!outbox.at("batch").exists() && outbox.leaving_is_empty());
    }
    for name in ["batch", "batch (1)"] {
        let sent = outbox.at(".dropwire/sent").join(name);
        assert!(!sent.join("a").exists() && sent.join("sub/b").exists());
    }
}

/// What was moved in after the check was never delivered, however old its times are.
#[test]
fn only_what_the_list_names_is_removed() {
    let outbox = Outbox::new();
    fs::create_dir_all(outbox.at(".dropwire/old/of")).unwrap();
    for file in ["old/file", "old/of/b", "a"] {
        fs::write(outbox.at(".dropwire").join(file), "old").unwrap();
    }
    let what = outbox.delivered(AfterSend::Delete);
    let half = outbox.decided(&what, true);
    fs::rename(outbox.at(".dropwire/old"), half.join("sub/old")).unwrap();
    fs::rename(outbox.at(".dropwire/a"), half.join("a")).unwrap(); // of a listed name, but another file
    assert_eq!(outbox.dispose(&what), Disposed::Changed);
    for file in ["sub/old/file", "sub/old/of/b", "a"] {
        assert_eq!(fs::read(outbox.at("batch").join(file)).unwrap(), b"old", "{file}");
    }
    assert!(!outbox.at("batch/sub/b").exists() && !outbox.at("batch/sub/empty").exists());
    assert!(outbox.leaving_is_empty());
}

/// Neither a stack nor open folders grow with what somebody moved in, also at the start after a crash.
#[test]
fn a_tree_of_any_depth_that_was_moved_in_stays() {
    if !failpoints::needs::deep_trees() {
        return;
    }
    let outbox = Outbox::new();
    let what = outbox.delivered(AfterSend::Delete);
    let half = outbox.decided(&what, true);
    crate::fs::remove_tree::tests::make_deep(&confined::root(&half).unwrap(), 6_000);
    let small = std::thread::Builder::new().stack_size(512 * 1024);
    let disposed = small.spawn(move || (outbox.dispose(&what), outbox));
    let (answer, outbox) = disposed.unwrap().join().unwrap();
    assert_eq!(answer, Disposed::Changed);
    assert!(outbox.at("batch/d/d/d").exists() && outbox.leaving_is_empty());
    crate::fs::remove_tree::remove_tree_at(&outbox.at("batch")).unwrap();
}

/// An error of the disk, say: it is no other version by that.
#[test]
fn what_cannot_be_read_is_tried_again() {
    let outbox = Outbox::new();
    let what = outbox.delivered(AfterSend::Archive);
    let tried = || loop {
        match dispose(&what, &|| false) {
            Ok(Disposed::Busy) => std::thread::yield_now(),
            other => return other,
        }
    };
    let strange = outbox.at("batch/sub/.dropwire");
    fs::create_dir(&strange).unwrap();
    assert!(matches!(tried(), Err(DisposeError::Disk(..))));
    fs::remove_dir(&strange).unwrap();
    outbox.in_leaving(&what, &what.name);
    let strange = outbox.at(".dropwire/leaving").join(&what.name).join(".dropwire");
    fs::create_dir(&strange).unwrap();
    assert!(matches!(tried(), Err(DisposeError::Disk(..))));
    fs::remove_dir(&strange).unwrap();
    assert_eq!(outbox.dispose(&what), Disposed::Done);
}

#[test]
fn its_marker_leaves_with_it() {
    let outbox = Outbox::new();
    for after in [AfterSend::Archive, AfterSend::Delete] {
        let mut what = outbox.delivered(after);
        what.marker = Some(".done".into());
        fs::write(outbox.at("batch.done"), "").unwrap();
        assert_eq!(outbox.dispose(&what), Disposed::Done);
        assert!(!outbox.at("batch").exists() && !outbox.at("batch.done").exists());
        // A crash came before the marker was removed.
        let held = outbox
            .at(".dropwire/leaving")
            .join(format!("{}.marker", what.name));
        fs::write(held, "").unwrap();
        assert_eq!(outbox.dispose(&what), Disposed::Gone);
        assert!(outbox.leaving_is_empty());
    }
}

/// Found changed in `leaving`, after the marker was taken: its producer gives no second one.
#[test]
fn its_marker_comes_back_with_it() {
    let _trusted = file_system::pretend(file_system::TRUSTED);
    let outbox = Outbox::new();
    let mut what = outbox.delivered(AfterSend::Archive);
    what.marker = Some(".done".into());
    let leaving = outbox.in_leaving(&what, &what.name);
    fs::write(leaving.join("a"), "longer").unwrap();
    let held = outbox
        .at(".dropwire/leaving")
        .join(format!("{}.marker", what.name));
    fs::write(held, "").unwrap();
    assert_eq!(outbox.dispose(&what), Disposed::Changed);
    assert!(outbox.at("batch/a").exists() && outbox.at("batch.done").exists());
    assert!(outbox.leaving_is_empty());
}

#[test]
fn what_was_changed_stays_or_comes_back() {
    let outbox = Outbox::new();
    let what = outbox.delivered(AfterSend::Delete);
    fs::write(outbox.at("batch/sub/new"), "new").unwrap();
    assert_eq!(outbox.dispose(&what), Disposed::Changed);
    assert_eq!(fs::read(outbox.at("batch/sub/new")).unwrap(), b"new");
    fs::remove_file(outbox.at("batch/sub/new")).unwrap();
    assert_eq!(outbox.dispose(&what), Disposed::Done, "what was delivered, again");

    let what = outbox.delivered(AfterSend::Delete);
    let leaving = outbox.in_leaving(&what, &what.name);
    fs::write(leaving.join("a"), "longer").unwrap();
    fs::create_dir(outbox.at("batch")).unwrap(); // its name was taken meanwhile
    assert_eq!(outbox.dispose(&what), Disposed::Changed);
    assert_eq!(fs::read(outbox.at("batch (1)/a")).unwrap(), b"longer");
    assert!(outbox.leaving_is_empty());
}

#[test]
fn the_same_version_with_other_bytes_is_told() {
    let outbox = Outbox::new();
    let mut what = outbox.delivered(AfterSend::Delete);
    what.digest = dropwire_protocol::Digest([7; 32]);
    assert_eq!(outbox.dispose(&what), Disposed::OtherBytes);
    outbox.in_leaving(&what, &what.name);
    assert_eq!(outbox.dispose(&what), Disposed::OtherBytes);
    assert!(outbox.at("batch/sub/b").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_writer_inside_holds_it_and_what_was_left_out_is_never_removed() {
    let outbox = Outbox::new();
    let what = outbox.delivered(AfterSend::Delete);
    let writer = fs::File::options()
        .write(true)
        .open(outbox.at("batch/sub/b"))
        .unwrap();
    assert_eq!(dispose(&what, &|| false).unwrap(), Disposed::Busy);
    assert!(outbox.at("batch/sub/b").exists());
    drop(writer);
    std::os::unix::fs::symlink("/etc", outbox.at("batch/link")).unwrap();
    assert_eq!(outbox.dispose(&what), Disposed::Done);
    assert!(outbox.at(".dropwire/sent/batch/link").is_symlink());
    assert!(!outbox.at("batch").exists());
}

#[cfg(target_os = "linux")]
mod order {
    use super::*;
    use crate::fs::durable::trace::{self, Call};

    fn leaving(what: &Disposal) -> PathBuf {
        Path::new(".dropwire/leaving").join(&what.name)
    }

    #[test]
    fn what_comes_at_the_last_moment_is_given_back_with_it() {
        for after in [AfterSend::Archive, AfterSend::Delete] {
            let outbox = Outbox::new();
            let what = outbox.delivered(after);
            let late = outbox.at("batch/late");
            let renamed = Call::Name("batch".into(), leaving(&what));
            trace::before(outbox.temp.path(), renamed, move || fs::write(late, "late"));
            assert_eq!(outbox.dispose(&what), Disposed::Changed);
            assert_eq!(fs::read(outbox.at("batch/late")).unwrap(), b"late");
            assert!(outbox.at("batch/a").exists() && outbox.leaving_is_empty());
        }
    }

    /// A program whose working folder it is goes on while it is being removed.
    #[test]
    fn what_comes_while_it_is_removed_stays() {
        let outbox = Outbox::new();
        outbox.delivered(AfterSend::Delete);
        fs::hard_link(outbox.at("batch/a"), outbox.at("batch/sub/a")).unwrap();
        fs::write(outbox.at("batch/Thumbs.db"), "litter").unwrap();
        let what = outbox.as_it_is(AfterSend::Delete);
        let gone = removal::decided_name(&what.name);
        let decided = Call::Name(leaving(&what), Path::new(".dropwire/leaving").join(gone));
        let late = outbox.temp.path().join(leaving(&what)).join("sub");
        trace::before(outbox.temp.path(), decided, move || {
            fs::write(late.join("late"), "late")?;
            fs::write(late.join("b"), "L")
        });
        assert_eq!(outbox.dispose(&what), Disposed::Changed);
        assert_eq!(fs::read(outbox.at("batch/sub/late")).unwrap(), b"late");
        assert_eq!(fs::read(outbox.at("batch/sub/b")).unwrap(), b"L");
        assert!(!outbox.at("batch/a").exists() && !outbox.at("batch/sub/a").exists());
        assert!(outbox.leaving_is_empty());
    }

    #[test]
    fn it_has_left_durably_before_its_removal_is_decided_and_that_is_durable_before_it_begins() {
        let outbox = Outbox::new();
        let what = outbox.delivered(AfterSend::Delete);
        assert_eq!(outbox.dispose(&what), Disposed::Done);
        let calls = trace::of(outbox.temp.path());
        let gone = Path::new(".dropwire/leaving").join(removal::decided_name(&what.name));
        let list = Path::new(".dropwire/leaving").join(format!("{}.list", what.name));
        let at = |wanted: Call| calls.iter().position(|c| *c == wanted).expect("a call");
        let left = at(Call::Name("batch".into(), leaving(&what)));
        let decided = at(Call::Name(leaving(&what), gone));
        let syncs = |calls: &[Call], path: &str| calls.iter().filter(|c| **c == trace::sync(path)).count();
        for folder in ["", ".dropwire/leaving"] {
            assert!(syncs(&calls[left..decided], folder) > 0, "{calls:#?}");
        }
        assert!(at(trace::sync(list.to_str().unwrap())) < decided, "{calls:#?}");
        // Once before the removal, once after.
        assert_eq!(syncs(&calls[decided..], ".dropwire/leaving"), 2, "{calls:#?}");
    }
}

/// Somebody frees what was immutable, which changes its ctime: it is what was checked all the same, by its bytes.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_removed_keeps_no_other_and_goes_once_it_is_freed() {
    use crate::fs::durable::trace::{self, Call};
    let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
    let outbox = Outbox::new();
    let what = outbox.delivered(AfterSend::Delete);
    let gone = Path::new(".dropwire/leaving").join(removal::decided_name(&what.name));
    trace::before(outbox.temp.path(), Call::Unlink(gone.join("a")), refused);
    let error = loop {
        match dispose(&what, &|| false) {
            Ok(Disposed::Busy) => std::thread::yield_now(),
            other => break other.unwrap_err().to_string(),
        }
    };
    assert!(error.contains("not permitted"), "{error}");
    let a = outbox.at("").join(&gone).join("a");
    assert!(a.exists() && !outbox.at("").join(&gone).join("sub").exists());
    let calls = trace::of(outbox.temp.path());
    let list = format!(".dropwire/leaving/{}.list", what.name);
    let tried = calls.iter().position(|c| *c == Call::Unlink(gone.join("a")));
    let synced = calls.iter().rposition(|c| *c == trace::sync(&list));
    assert!(synced > tried, "its note is on disk: {calls:#?}");

    let touch = || {
        std::thread::sleep(Duration::from_millis(20));
        let file = fs::File::open(&a).unwrap();
        file.set_permissions(fs::metadata(&a).unwrap().permissions())
            .unwrap();
    };
    touch();
    // Told to stop, it concludes nothing.
    assert!(matches!(dispose(&what, &|| true), Err(DisposeError::Stopped)));
    assert_eq!(outbox.dispose(&what), Disposed::Done);
    assert!(!outbox.at("batch").exists() && outbox.leaving_is_empty());

    // Written to since, with the same times: it is kept.
    let what = outbox.delivered(AfterSend::Delete);
    trace::before(outbox.temp.path(), Call::Unlink(gone.join("a")), refused);
    while matches!(dispose(&what, &|| false), Ok(Disposed::Busy)) {}
    let times = fs::metadata(&a).unwrap().modified().unwrap();
    fs::write(&a, "b").unwrap();
    fs::File::options()
        .write(true)
        .open(&a)
        .unwrap()
        .set_modified(times)
        .unwrap();
    assert_eq!(outbox.dispose(&what), Disposed::Changed);
    assert_eq!(fs::read(outbox.at("batch/a")).unwrap(), b"b");
}

/// Without room for notes.
#[test]
fn a_list_of_an_earlier_version_is_gone_by() {
    let outbox = Outbox::new();
    fs::create_dir(outbox.at("batch")).unwrap();
    fs::write(outbox.at("batch/z"), "z").unwrap();
    fs::hard_link(outbox.at("batch/z"), outbox.at("batch/y")).unwrap();
    let what = outbox.delivered(AfterSend::Delete);
    let half = outbox.decided(&what, true);
    let leaving = confined::root(half.parent().unwrap()).unwrap();
    removal::write_list_as_before(&leaving, &what.name, &half);
    assert_eq!(outbox.dispose(&what), Disposed::Done);
    assert!(!outbox.at("batch").exists() && outbox.leaving_is_empty());
}

/// The removal of one name shows in the times of the others.
#[test]
fn a_removal_that_was_cut_off_brings_no_further_name_back() {
    let outbox = Outbox::new();
    outbox.delivered(AfterSend::Delete);
    for name in ["batch/sub/a", "batch/z", "batch/later"] {
        fs::hard_link(outbox.at("batch/a"), outbox.at(name)).unwrap();
    }
    let what = outbox.as_it_is(AfterSend::Delete);
    outbox.decided(&what, true);
    assert_eq!(outbox.dispose(&what), Disposed::Done);
    assert!(!outbox.at("batch").exists() && outbox.leaving_is_empty());
}

/// A delivered folder that is itself a mount point.
#[cfg(target_os = "linux")]
#[test]
fn a_mount_point_cannot_leave_and_says_so() {
    use std::process::Command;
    let outbox = Outbox::new();
    let what = outbox.delivered(AfterSend::Delete);
    let at = outbox.at("batch");
    let mounted = Command::new("mount").arg("--bind").args([&at, &at]).output();
    if !mounted.is_ok_and(|ran| ran.status.success()) {
        return failpoints::skip("nothing can be mounted here");
    }
    let error = loop {
        match dispose(&what, &|| false) {
            Ok(Disposed::Busy) => std::thread::yield_now(),
            other => break other.unwrap_err().to_string(),
        }
    };
    let sub = outbox.at("batch/sub");
    let inside = Command::new("mount").arg("--bind").args([&sub, &sub]).output();
    let list = bundle::list_quickly(&confined::root(&at).unwrap());
    let _ = Command::new("umount").arg("-l").args([&sub, &at]).status();
    assert!(error.contains("batch in it is a mount point"), "{error}");
    assert!(inside.unwrap().status.success());
    assert!(matches!(list, Err(Trouble::Held(why)) if why.contains("sub in it") && why.contains("mounted")));
    assert_eq!(outbox.dispose(&what), Disposed::Done);
}
