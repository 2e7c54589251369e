//! How delivered files leave their outbox, and what is told where they cannot.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::harness::{Agent, Pair, files, mount::Mounted, skip, until};

/// With a file in the laptop's outbox as long as which the fault is there.
fn faulty(fault: &str, more: impl FnOnce(&mut Agent)) -> (Pair, PathBuf) {
    let mut holds = PathBuf::new();
    let pair = Pair::with(|laptop, _| {
        let own = laptop.outbox.join(files::OWN);
        fs::create_dir_all(&own).expect("its own folder");
        holds = own.join("fault");
        fs::write(&holds, "").expect("the fault");
        laptop
            .env
            .push(("DROPWIRE_FAULT".into(), format!("{fault}@{}", holds.display())));
        more(laptop);
    });
    (pair, holds)
}

#[test]
fn an_outbox_whose_disk_hangs_holds_up_no_other() {
    let mut other = PathBuf::new();
    let (pair, hangs) = faulty("hang", |laptop| {
        other = laptop.root.join("other");
        fs::create_dir(&other).expect("a second outbox");
        let outbox = format!("[[outbox]]\npath = {other:?}\nquiet = \"300ms\"");
        laptop.settings.tables.push(outbox);
    });
    let stuck = pair.laptop.drop_file("stuck", b"stuck");
    pair.laptop.delivers(1);
    for round in 0..3 {
        let path = other.join(format!("free {round}"));
        fs::write(&path, "free").expect("a file");
        pair.laptop.delivers(2 + round);
        until("it left", || !path.exists());
    }
    let sent = pair.laptop.root.join("sent");
    fs::write(&sent, "sent").expect("a file");
    pair.laptop
        .run(&["send", "sent", "--to", "office", "--wait"])
        .exits(0);
    let spool = pair.laptop.state.join("spool");
    until("the copy went", || files::files_in(&spool).is_empty());
    assert!(stuck.exists());
    fs::remove_file(hangs).expect("the disk answers again");
    until("it left", || !stuck.exists());
}

/// Whatever the config says by then.
#[test]
fn a_file_takes_the_marker_along_that_it_was_sent_for() {
    let (mut pair, holds) = faulty("hang", |laptop| {
        laptop.settings.outbox = vec!["ready = \"marker\"".into(), "marker = \".done\"".into()];
    });
    let at = |name: &str| pair.laptop.outbox.join(name);
    let names = ["x", "x.done", "x.ok"].map(at);
    pair.laptop.drop_file("x", b"x");
    pair.laptop.drop_file("x.done", b"");
    pair.laptop.delivers(1);
    pair.laptop.kill();
    pair.laptop.drop_file("x.ok", b"");
    pair.laptop.settings.outbox[1] = "marker = \".ok\"".into();
    fs::remove_file(holds).expect("nothing hangs any more");
    pair.laptop.start();
    until("it left", || !names[0].exists() && !names[1].exists());
    assert!(names[2].exists(), "the next one's");
}

/// Only a restart asks the disk again; `status` and `why` say so.
#[test]
fn a_disk_that_lost_what_was_moved_is_told_of() {
    let (mut pair, loses) = faulty("no-sync", |_| {});
    let path = pair.laptop.drop_file("stuck", b"stuck");
    pair.laptop.delivers(1);
    let told = |text: &str| text.contains("nothing leaves the outbox") && text.contains("restarted");
    let held = || pair.laptop.status()["outboxes"][0]["disposal_held"].clone();
    until("status says so", || held().as_str().is_some_and(told));
    assert!(told(&pair.laptop.run(&["status"]).exits(0).out()));
    let why = |name: &str| pair.laptop.run(&["why", name]).exits(0).out();
    let stuck = why("outbox/stuck");
    assert!(stuck.contains("delivered to office") && told(&stuck), "{stuck}");
    fs::remove_file(loses).expect("the disk is fixed");
    pair.laptop.drop_file("next", b"next");
    pair.laptop.delivers(2);
    assert!(told(&why("outbox/next")) && path.exists());
    pair.laptop.restart();
    pair.laptop.empties_outbox();
    assert!(pair.laptop.status()["outboxes"][0]["disposal_held"].is_null());
    let why = pair.laptop.run(&["why", "outbox/stuck"]).exits(0).out();
    assert!(!told(&why), "{why}");
}

/// Copying programs set a file's times once they have closed it.
#[test]
fn times_that_are_set_late_make_no_second_file() {
    let pair = Pair::with(|laptop, _| laptop.settings.outbox = vec!["linger = \"1s\"".into()]);
    let path = pair.laptop.drop_file("file", b"content");
    pair.laptop.delivers(1);
    let set = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = fs::File::open(&path).expect("left in place");
    files::set_modified(&file, set).expect("another time");
    drop(file); // a FUSE mount keeps the names of open files
    let why = pair.laptop.run(&["why", "outbox/file"]).exits(0).out();
    assert!(why.contains("leaves the outbox in"), "{why}");
    pair.laptop.empties_outbox();
    let arrived = pair.office.inbox.join("file");
    until("the late time arrived", || {
        fs::metadata(&arrived)
            .and_then(|m| m.modified())
            .is_ok_and(|m| m == set)
    });
    assert_eq!(files::files_in(&pair.office.inbox), [arrived]);
}

/// Forget will not tell them. Times that are set later than `linger` after the delivery are a touch.
#[test]
fn times_that_are_set_late_are_told_where_files_stay() {
    let pair = Pair::with(|laptop, _| {
        laptop.settings.outbox = vec!["after_send = \"keep\"".into(), "linger = \"2s\"".into()];
    });
    let path = pair.laptop.drop_file("file", b"content");
    pair.laptop.delivers(1);
    let arrived = pair.office.inbox.join("file");
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let late = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set = |time| {
        let file = fs::File::open(&path).expect("kept");
        files::set_modified(&file, time).expect("another time");
    };
    set(late);
    until("the late time arrived", || time(&arrived) == Some(late));
    set(late + Duration::from_secs(60));
    let known = || pair.laptop.log_text().matches("touched, but").count() == 2;
    until("the touch is found", known);
    assert_eq!(pair.laptop.jobs().len(), 1);
    pair.laptop.drop_file("last", b"behind it");
    pair.office.receives("last", b"behind it");
    assert_eq!(time(&arrived), Some(late));
    assert_eq!(pair.office.received().len(), 2);
}

/// One line for all of them, and the same in `status` and `why`.
#[test]
fn what_cannot_leave_is_told_of_once() {
    let mut in_the_way = PathBuf::new();
    let pair = Pair::with(|laptop, _| {
        let own = laptop.outbox.join(files::OWN);
        fs::create_dir_all(&own).expect("its own folder");
        in_the_way = own.join("leaving");
        fs::write(&in_the_way, "").expect("a file where a folder must be");
    });
    for name in ["a", "b", "c"] {
        pair.laptop.drop_file(name, name.as_bytes());
    }
    pair.laptop.delivers(3);
    let outbox = || pair.laptop.status()["outboxes"][0].clone();
    until("status counts them", || outbox()["cannot_leave_count"] == 3);
    let reason = outbox()["cannot_leave"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("`.dropwire` in it cannot be used"), "{reason}");
    let status = pair.laptop.run(&["status"]).exits(0).out();
    assert!(
        status.contains("problem: 3 delivered files cannot leave"),
        "{status}"
    );
    let problem = &pair.laptop.status()["problems"][0];
    assert_eq!(problem["kind"], "cannot_leave");
    assert_eq!(problem["subject"], *pair.laptop.outbox.to_string_lossy());
    let why = pair.laptop.run(&["why", "outbox/b"]).exits(0).out();
    assert!(why.contains("cannot leave the outbox"), "{why}");
    fs::remove_file(in_the_way).expect("it is out of the way");
    pair.laptop.empties_outbox();
    until("status has forgotten them", || {
        outbox()["cannot_leave_count"] == 0
    });
    let problems = pair.laptop.status()["problems"].clone();
    assert_eq!(problems, serde_json::json!([]));
    let log = pair.laptop.log_text();
    assert_eq!(log.matches("delivered files cannot leave").count(), 1, "{log}");
    assert_eq!(
        log.matches("what could not leave its outbox has left").count(),
        1,
        "{log}"
    );
}

/// Something mounted on a folder in the outbox: its files leave by a `.dropwire` of its own, also after a crash; and
/// while it is not mounted, none of them counts as gone.
#[test]
fn files_leave_from_what_is_mounted_in_the_outbox() {
    const TEST: &str = "files_leave_from_what_is_mounted_in_the_outbox";
    for (is_bind, after_send) in [(true, "delete"), (true, "archive"), (false, "delete")] {
        let mut pair = Pair::with(|laptop, _| {
            let holds = laptop.outbox.join(files::OWN).join("hang");
            let hang = format!("hang@{}", holds.display());
            laptop.env.push(("DROPWIRE_FAULT".into(), hang));
            laptop.settings.outbox = vec![format!("after_send = {after_send:?}")];
        });
        let at = |name: &str| pair.laptop.outbox.join(name);
        let (disk, hang) = (at("disk"), at(files::OWN).join("hang"));
        let [x, y, leaving, sent] =
            ["a/x", "y", ".dropwire/leaving", ".dropwire/sent"].map(|name| disk.join(name));
        let behind = pair.laptop.root.join("behind");
        fs::create_dir(&behind).expect("a folder elsewhere");
        let mount = || match is_bind {
            true => Mounted::by(
                "mount",
                &["--bind", &behind.to_string_lossy(), &disk.to_string_lossy()],
                &disk,
            ),
            false => Mounted::by("mount", &["-t", "tmpfs", "tmpfs", &disk.to_string_lossy()], &disk),
        };
        let mut mounted = match mount() {
            Ok(mounted) => Some(mounted),
            Err(why) => return skip(TEST, &why),
        };
        fs::write(disk.join("first"), "first").expect("a file");
        pair.laptop.delivers(1);
        until("it left", || !disk.join("first").exists());
        fs::write(&hang, "").expect("the disk hangs");
        fs::create_dir(disk.join("a")).expect("a folder");
        fs::write(&x, "x").expect("a file");
        fs::write(&y, "y").expect("a file");
        pair.laptop.delivers(3);
        let ids = pair.laptop.jobs_of("disk/y");
        pair.laptop.kill();
        // As a crash after the rename leaves it.
        let name = ids[0]["job"].as_str().expect("an id");
        fs::rename(&y, leaving.join(name)).expect("on its way");
        fs::remove_file(&hang).expect("it answers again");
        if is_bind {
            mounted.take();
            pair.laptop.start();
            let told = || pair.laptop.status()["outboxes"][0]["cannot_leave"].clone();
            let text = "what was mounted at disk in it is not there";
            until("status says so", || {
                told().as_str().is_some_and(|told| told.contains(text))
            });
            let check = pair.laptop.run(&["check"]);
            assert!(
                check.err().contains(text) || check.out().contains(text),
                "{}{}",
                check.out(),
                check.err()
            );
            mounted = mount().ok();
        } else {
            pair.laptop.start();
        }
        until("all left", || {
            !x.exists() && !y.exists() && files::files_in(&leaving).is_empty()
        });
        let archived = files::list(&sent);
        let expected = match after_send {
            "archive" => ["a/x", "first", "y"].map(PathBuf::from).to_vec(),
            _ => Vec::new(),
        };
        assert_eq!(archived, expected);
        if let Some(archived) = archived.first() {
            let archived = sent.join(archived);
            let archived = archived.to_string_lossy();
            pair.laptop
                .run(&["send", &archived, "--to", "office", "--wait"])
                .exits(0);
        }
        until("the list is at rest", || {
            pair.laptop.status()["outboxes"][0]["cannot_leave_count"] == 0
        });
        assert_eq!(
            pair.office.received().len(),
            3 + usize::from(!expected.is_empty())
        );
        pair.laptop.kill();
        drop(mounted);
    }
}

/// A disk from which nothing ever left is missed all the same: what was delivered from it is no new file once it is back.
#[test]
fn what_is_unmounted_before_anything_left_is_sent_once() {
    let mut pair = Pair::with(|laptop, _| laptop.settings.outbox = vec!["after_send = \"delete\"".into()]);
    let [disk, behind] = ["outbox/disk", "behind"].map(|name| pair.laptop.root.join(name));
    pair.laptop.kill();
    fs::create_dir(&behind).expect("a folder elsewhere");
    fs::write(behind.join("x"), "x").expect("a file");
    let args = [
        "-o",
        "bind,ro",
        &behind.to_string_lossy(),
        &disk.to_string_lossy(),
    ]
    .map(String::from);
    let mount = || Mounted::by("mount", &args.each_ref().map(String::as_str), &disk);
    let mounted = match mount() {
        Ok(mounted) => mounted,
        Err(why) => return skip("what_is_unmounted_before_anything_left_is_sent_once", &why),
    };
    pair.laptop.start();
    pair.laptop.delivers(1);
    let tells = |laptop: &Agent, text: &str| {
        let told = laptop.status()["outboxes"][0]["cannot_leave"].clone();
        told.as_str().is_some_and(|told| told.contains(text))
    };
    until("it cannot leave", || tells(&pair.laptop, "Read-only"));
    drop(mounted);
    let missed = |laptop: &Agent| tells(laptop, "what was mounted at disk in it is not there");
    until("the disk is missed", || missed(&pair.laptop));
    pair.laptop.kill();
    fs::remove_dir(&disk).expect("nothing is in the mount point");
    pair.laptop.start();
    until("it is missed without its mount point, too", || {
        missed(&pair.laptop)
    });
    let mounted = mount().expect("as before");
    until("it is back", || tells(&pair.laptop, "Read-only"));
    fs::write(pair.laptop.outbox.join("last"), "last").expect("a file");
    pair.laptop.delivers(2);
    assert_eq!(pair.office.received(), ["disk/x", "last"].map(PathBuf::from));
    // Nobody waits any longer for a disk that was given up.
    drop(mounted);
    until("the disk is missed again", || missed(&pair.laptop));
    let outbox = pair.laptop.outbox.to_string_lossy().into_owned();
    pair.laptop.run(&["adopt", &outbox, "--yes"]).exits(0);
    until("it is given up", || {
        pair.laptop.status()["outboxes"][0]["cannot_leave_count"] == 0
    });
}
