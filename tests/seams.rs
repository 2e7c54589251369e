//! Where the parts of the agent meet: answers that come late, files that move away and return.

use std::{fs, time::Duration};

use crate::harness::{Fault, Pair, Toward, eventually, files, until};

fn keeping() -> Pair {
    Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"keep\"".into()))
}

/// The job list is lost, and the file has other bytes under the same version: what the peer has under the first id
/// is heard of once, and the new bytes are a second file.
#[test]
fn other_bytes_under_an_id_that_was_delivered() {
    let mut pair = keeping();
    let path = pair.laptop.drop_file("report", b"first");
    pair.laptop.delivers(1);
    pair.laptop.stop();
    for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        let _ = fs::remove_file(pair.laptop.state.join(name)); // the last two may not be there
    }
    let mtime = fs::metadata(&path)
        .expect("it stays")
        .modified()
        .expect("an mtime");
    fs::write(&path, b"other").expect("in place");
    let file = fs::File::options().write(true).open(&path).expect("the file");
    files::set_modified(&file, mtime).expect("the old mtime");
    drop(file);
    pair.laptop.start();
    pair.office.receives("report (1)", b"other");
    pair.laptop.delivers(1);
    until("the first transfer's end is known", || {
        let why = pair.laptop.run(&["why", path.to_str().expect("plain")]);
        why.out().contains("an earlier transfer was delivered as report")
    });
}

/// A tool that sets the old times again does not hide what it wrote.
#[test]
fn other_bytes_in_a_kept_file_are_a_new_drop() {
    let mut pair = keeping();
    let path = pair.laptop.drop_file("report", b"first");
    pair.laptop.delivers(1);
    let mtime = fs::metadata(&path).and_then(|m| m.modified()).expect("an mtime");
    pair.laptop.stop(); // or it may see the moment between the two, with another mtime
    fs::write(&path, b"other").expect("in place");
    let file = fs::File::options().write(true).open(&path).expect("the file");
    files::set_modified(&file, mtime).expect("the old mtime");
    drop(file);
    pair.laptop.start(); // looks after what it keeps, as it does every ten minutes
    pair.office.receives("report (1)", b"other");
    pair.laptop.delivers(2);
    pair.laptop.restart();
    pair.laptop.drop_file("marker", b"marker");
    pair.laptop.delivers(3);
    assert_eq!(pair.office.received().len(), 3);
}

#[test]
fn a_folder_that_moves_away_and_back_is_sent() {
    let mut pair = Pair::linked();
    pair.office.stop();
    pair.laptop.drop_file("folder/file", b"bytes");
    until("it is queued", || !pair.laptop.jobs().is_empty());
    let (inside, outside) = (pair.laptop.outbox.join("folder"), pair.laptop.root.join("folder"));
    fs::rename(&inside, &outside).expect("out of the outbox");
    pair.office.start();
    let failed = eventually("the job fails", || {
        let job = pair.laptop.jobs_of("folder/file").pop()?;
        (job["state"] == "failed").then_some(job)
    });
    assert!(
        failed["error"].as_str().is_some_and(|e| e.starts_with("gone")),
        "{failed}"
    );
    fs::rename(&outside, &inside).expect("back");
    pair.office.receives("folder/file", b"bytes");
}

/// Between the check that finds it gone and the peer's word that it never had it, the file is back: the same drop.
#[test]
fn a_file_that_is_away_for_a_moment_is_no_new_drop() {
    let mut pair = Pair::linked();
    pair.office.stop();
    let path = pair.laptop.drop_file("file", b"bytes");
    until("it is queued", || !pair.laptop.jobs().is_empty());
    pair.laptop.restart(); // what was queued before is offered without its bytes
    let outside = pair.laptop.root.join("file");
    fs::rename(&path, &outside).expect("out of the outbox");
    pair.wire
        .set(Toward::Dialler, Fault::Delay(Duration::from_millis(1500)));
    pair.office.start();
    let is_sending = || pair.laptop.jobs()[0]["state"] == "sending";
    until("it is offered", is_sending);
    until("it is withdrawn", || !is_sending());
    fs::rename(&outside, &path).expect("back");
    pair.wire.set(Toward::Dialler, Fault::None);
    pair.office.receives("file", b"bytes");
    pair.laptop.delivers(1);
    assert_eq!(pair.laptop.jobs().len(), 1, "{:?}", pair.laptop.jobs());
}

/// An agent of which a part is dead would look alive and send nothing.
#[test]
fn a_panic_ends_the_agent() {
    let mut pair = Pair::idle();
    let fault = ("DROPWIRE_FAULT".to_owned(), "panic@dispatch".to_owned());
    pair.laptop.env.push(fault);
    pair.office.start();
    pair.laptop.spawn();
    assert_eq!(pair.laptop.exit_code(), Some(1));
    pair.laptop.env.clear();
    pair.laptop.start();
    pair.laptop.drop_file("file", b"bytes");
    pair.office.receives("file", b"bytes");
}

#[test]
fn jobs_follow_an_outbox_that_moved() {
    let mut pair = Pair::linked();
    pair.office.stop();
    pair.laptop.drop_file("file", b"bytes");
    until("it is queued", || !pair.laptop.jobs().is_empty());
    pair.laptop.stop();
    let moved = pair.laptop.root.join("moved");
    fs::rename(&pair.laptop.outbox, &moved).expect("moved");
    pair.laptop.outbox = moved;
    pair.laptop.start();
    pair.office.start();
    pair.office.receives("file", b"bytes");
}

/// Two disks that are mounted in turn: what is missing on one says nothing of the other.
#[test]
fn nothing_is_gone_where_another_outbox_lies() {
    let mut pair = Pair::linked();
    pair.office.stop();
    pair.laptop.drop_file("file", b"bytes");
    until("it is queued", || !pair.laptop.jobs().is_empty());
    let (here, aside) = (pair.laptop.outbox.clone(), pair.laptop.root.join("aside"));
    let other = pair.laptop.root.join("other");
    fs::create_dir_all(other.join(".dropwire")).expect("another outbox");
    fs::write(other.join(".dropwire/id"), "0123456789abcdef0123456789abcdef\n").expect("its mark");
    fs::rename(&here, &aside).expect("unmounted");
    fs::rename(&other, &here).expect("the other one mounted");
    pair.office.start();
    let job = eventually("the job was tried", || {
        pair.laptop
            .jobs_of("file")
            .pop()
            .filter(|job| job["error"].is_string())
    });
    // Open in either case: the next attempt may be under way.
    assert!(job["state"] == "queued" || job["state"] == "sending", "{job}");
    fs::rename(&here, &other).expect("unmounted");
    fs::rename(&aside, &here).expect("back");
    pair.office.receives("file", b"bytes");
}

/// It has not changed, so it stays what the user made of it, until a retry.
#[test]
fn a_cancelled_file_that_goes_and_comes_back_stays_cancelled() {
    let mut pair = Pair::linked();
    pair.office.stop();
    pair.laptop.drop_file("folder/file", b"bytes");
    until("it is queued", || !pair.laptop.jobs().is_empty());
    pair.laptop.run(&["cancel", "--all"]).exits(0);
    let (inside, outside) = (pair.laptop.outbox.join("folder"), pair.laptop.root.join("folder"));
    fs::rename(&inside, &outside).expect("out of the outbox");
    pair.laptop.restart(); // looks after what stays
    fs::rename(&outside, &inside).expect("back");
    pair.office.start();
    pair.laptop.drop_file("folder/marker", b"marker");
    pair.office.receives("folder/marker", b"marker");
    let jobs = pair.laptop.jobs_of("folder/file");
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    assert_eq!(jobs[0]["state"], "cancelled", "{jobs:?}");
    let id = jobs[0]["job"].as_str().expect("an id");
    pair.laptop.run(&["retry", id]).exits(0);
    pair.office.receives("folder/file", b"bytes");
}
