//! Agents that are killed at the worst moments, without a chance to tidy up: one drop is one file.

use std::{fs, path::Path};

use crate::harness::{Fault, Pair, Toward, files, until};

const SIZE: usize = 32 << 20;

/// A pair whose transfer of `big` hangs after 24 of its 32 MiB.
fn hanging() -> (Pair, Vec<u8>) {
    let pair = Pair::linked();
    let bytes = files::noise(7, SIZE);
    pair.wire.set(Toward::Listener, Fault::Stall(24 << 20));
    pair.laptop.drop_file("big", &bytes);
    until("the transfer hangs", || pair.wire.fired(Toward::Listener) == 1);
    (pair, bytes)
}

fn finishes(pair: &Pair, bytes: &[u8]) {
    pair.wire.set(Toward::Listener, Fault::None);
    pair.laptop.delivers(1);
    pair.office.receives("big", bytes);
    // A second delivery would have been queued before this one.
    pair.laptop.drop_file("marker", b"marker");
    pair.laptop.delivers(2);
    assert_eq!(pair.office.received(), [Path::new("big"), Path::new("marker")]);
    assert!(pair.office.partials().is_empty(), "{:?}", pair.office.partials());
}

#[test]
fn the_receiver_is_killed_in_the_middle() {
    let (mut pair, bytes) = hanging();
    pair.office.kill();
    pair.office.start();
    finishes(&pair, &bytes);
}

#[test]
fn the_sender_is_killed_in_the_middle() {
    let (mut pair, bytes) = hanging();
    pair.laptop.kill();
    pair.wire.set(Toward::Listener, Fault::None);
    pair.laptop.start();
    finishes(&pair, &bytes);
}

#[test]
fn both_are_killed_in_the_middle() {
    let (mut pair, bytes) = hanging();
    pair.laptop.kill();
    pair.office.kill();
    pair.office.start();
    pair.laptop.start();
    finishes(&pair, &bytes);
}

/// A clean stop in the middle leaves nothing that a restart could not go on with.
#[test]
fn both_are_stopped_in_the_middle() {
    let (mut pair, bytes) = hanging();
    pair.laptop.stop();
    pair.office.stop();
    pair.office.start();
    pair.laptop.start();
    finishes(&pair, &bytes);
}

/// The receipt never came: the file is across, and the sender does not know.
#[test]
fn a_lost_answer_is_no_second_file() {
    let mut pair = Pair::linked();
    pair.wire.set(Toward::Dialler, Fault::Stall(0));
    pair.laptop.drop_file("answered", b"answered");
    pair.office.receives("answered", b"answered");
    pair.laptop.kill();
    pair.wire.set(Toward::Dialler, Fault::None);
    fs::remove_file(pair.office.inbox.join("answered")).expect("taken out of the inbox meanwhile");
    pair.laptop.start();
    pair.laptop.delivers(1);
    pair.laptop.drop_file("marker", b"marker");
    pair.laptop.delivers(2);
    assert_eq!(pair.office.received(), [Path::new("marker")]);
}

/// A sender that was killed does not know what it had offered: it asks before it sends.
#[test]
fn a_lost_answer_costs_a_killed_sender_no_second_upload() {
    let mut pair = Pair::linked();
    let bytes = files::noise(1, 200_000);
    pair.wire.set(Toward::Dialler, Fault::Stall(0));
    pair.laptop.drop_file("answered", &bytes);
    pair.office.receives("answered", &bytes);
    pair.laptop.kill();
    pair.wire.set(Toward::Dialler, Fault::None);
    let before = pair.wire.passed(Toward::Listener);
    pair.laptop.start();
    pair.laptop.delivers(1);
    let again = pair.wire.passed(Toward::Listener) - before;
    assert!(again < 50_000, "{again} bytes after all were across");
    assert_eq!(pair.office.received(), [Path::new("answered")]);
}

/// The job list is gone and the same version by its times has other bytes: the receipt of the old ones is not theirs.
#[test]
fn a_lost_job_list_hides_no_other_bytes() {
    let mut pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"keep\"".into()));
    let path = pair.laptop.drop_file("kept", b"one");
    pair.laptop.delivers(1);
    pair.laptop.stop();
    for entry in files::files_in(&pair.laptop.state) {
        if !entry.ends_with("identity.key") {
            fs::remove_file(entry).expect("a state file");
        }
    }
    let mtime = fs::metadata(&path).and_then(|m| m.modified()).expect("its mtime");
    let mut file = fs::File::options()
        .write(true)
        .open(&path)
        .expect("the kept file");
    std::io::Write::write_all(&mut file, b"two").expect("its new bytes");
    files::set_modified(&file, mtime).expect("its old mtime");
    drop(file);
    pair.laptop.start();
    pair.office.receives("kept", b"one");
    pair.office.receives("kept (1)", b"two");
}

/// Many small files, both sides killed again and again while they go.
#[test]
fn many_small_files_survive_repeated_kills() {
    const FILES: usize = 400;
    let mut pair = Pair::linked();
    for n in 0..FILES {
        pair.laptop
            .drop_file(format!("{n:03}"), &files::noise(n as u64, 3_000));
    }
    for round in 1..=4 {
        until("some more arrived", || {
            pair.office.received().len() >= round * FILES / 10
        });
        if round % 2 == 0 {
            pair.laptop.kill();
            pair.laptop.start();
        } else {
            pair.office.kill();
            pair.office.start();
        }
    }
    pair.laptop.empties_outbox();
    pair.laptop.delivers(FILES);
    assert_eq!(pair.office.received().len(), FILES);
    for n in 0..FILES {
        pair.office
            .receives(format!("{n:03}"), &files::noise(n as u64, 3_000));
    }
}

/// The job list is gone: the same drop keeps its id, so what was across stays one file.
#[test]
fn a_lost_job_list_delivers_the_outbox_once() {
    let mut pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"keep\"".into()));
    pair.laptop.drop_file("kept", b"kept");
    pair.laptop.delivers(1);
    pair.laptop.stop();
    for entry in files::files_in(&pair.laptop.state) {
        if !entry.ends_with("identity.key") {
            fs::remove_file(entry).expect("a state file");
        }
    }
    pair.laptop.start();
    pair.laptop.delivers(1);
    pair.laptop.drop_file("marker", b"marker");
    pair.laptop.delivers(2);
    assert_eq!(pair.office.received(), [Path::new("kept"), Path::new("marker")]);
}
