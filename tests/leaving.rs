//! How delivered files leave their outbox, and what is told where they cannot.

use std::{fs, path::PathBuf};

use crate::harness::{Agent, Pair, files, until};

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
    let told = |text: &str| text.contains("nothing leaves the outbox") && text.contains("started anew");
    let held = || pair.laptop.status()["outboxes"][0]["disposal_held"].clone();
    until("status says so", || held().as_str().is_some_and(told));
    assert!(told(&pair.laptop.run(&["status"]).exits(0).out()));
    let why = |name: &str| pair.laptop.run(&["why", name]).exits(0).out();
    let stuck = why("outbox/stuck");
    assert!(stuck.contains("delivered to office") && told(&stuck), "{stuck}");
    fs::remove_file(loses).expect("the disk is mended");
    pair.laptop.drop_file("next", b"next");
    pair.laptop.delivers(2);
    assert!(told(&why("outbox/next")) && path.exists());
    pair.laptop.restart();
    pair.laptop.empties_outbox();
    assert!(pair.laptop.status()["outboxes"][0]["disposal_held"].is_null());
    let why = pair.laptop.run(&["why", "outbox/stuck"]).exits(0).out();
    assert!(!told(&why), "{why}");
}
