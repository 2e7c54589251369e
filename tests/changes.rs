//! What is changed while it waits or is being sent: never a mixture, never a wrong file, and each job says how it ended.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
};

use serde_json::Value;

use crate::harness::{Fault, Pair, Toward, files::noise, needs, until};

/// State, and the error where there is one, of the jobs of a name, the oldest first.
fn ends(pair: &Pair, name: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let jobs = pair.laptop.jobs_of(name);
    jobs.iter()
        .map(|j| (text(&j["state"]), text(&j["error"])))
        .collect()
}

/// Waits until the jobs of a name have ended so: `delivered`, or failed with a reason that begins so.
#[track_caller]
fn end_as(pair: &Pair, name: &str, expected: &[&str]) {
    until(&format!("the jobs of {name} end as {expected:?}"), || {
        let ends = ends(pair, name);
        let is_so = |((state, error), expected): (&(String, String), &&str)| match state.as_str() {
            "failed" => error.starts_with(expected),
            state => state == *expected,
        };
        ends.len() == expected.len() && ends.iter().zip(expected).all(is_so)
    });
}

/// As editors do.
fn replace(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("tmp");
    fs::write(&beside, bytes).expect("written beside");
    fs::rename(&beside, path).expect("renamed over");
}

fn cut_short(path: &Path, length: u64) {
    let file = File::options().write(true).open(path).expect("opened");
    file.set_len(length).expect("cut short");
}

#[test]
fn what_changes_before_it_is_sent() {
    let mut pair = Pair::linked();
    pair.office.stop();
    let at = |name: &str| pair.laptop.outbox.join(name);
    let names = [
        "replaced", "swapped", "cut", "grown", "deleted", "renamed", "linked",
    ];
    for name in names {
        pair.laptop.drop_file(name, b"the older version");
    }
    until("all are queued", || pair.laptop.jobs().len() == names.len());
    replace(&at("replaced"), b"the newer version, and longer");
    replace(&at("swapped"), b"the newer version");
    cut_short(&at("cut"), 9);
    let mut grown = File::options().append(true).open(at("grown")).expect("opened");
    std::io::Write::write_all(&mut grown, b" and more").expect("written");
    drop(grown);
    fs::remove_file(at("deleted")).expect("deleted");
    fs::rename(at("renamed"), at("new name")).expect("renamed");
    fs::write(pair.laptop.root.join("secret"), b"never to be sent").expect("a file elsewhere");
    symlink(pair.laptop.root.join("secret"), at("link.tmp")).expect("a symlink");
    fs::rename(at("link.tmp"), at("linked")).expect("renamed over");
    // At once, although nobody is there to be asked.
    until("the older one is superseded", || {
        ends(&pair, "replaced")
            .first()
            .is_some_and(|(_, error)| error.starts_with("superseded"))
    });
    until("the new name is queued", || !ends(&pair, "new name").is_empty());
    pair.office.start();
    for name in ["replaced", "cut", "grown"] {
        end_as(&pair, name, &["superseded", "delivered"]);
    }
    // Of equal size: where no number tells that it is another file, it is the same drop with other bytes.
    match needs::file_system().lasting_inodes {
        true => end_as(&pair, "swapped", &["superseded", "delivered"]),
        false => end_as(&pair, "swapped", &["delivered"]),
    }
    for name in ["deleted", "renamed", "linked"] {
        end_as(&pair, name, &["gone"]);
    }
    end_as(&pair, "new name", &["delivered"]);
    for (name, bytes) in [
        ("replaced", &b"the newer version, and longer"[..]),
        ("swapped", b"the newer version"),
        ("cut", b"the older"),
        ("grown", b"the older version and more"),
        ("new name", b"the older version"),
    ] {
        pair.office.receives(name, bytes);
    }
    assert_eq!(pair.office.received().len(), 5, "{:?}", pair.office.received());
    assert!(pair.office.partials().is_empty());
}

/// The wire stands still amid a file, until `change` was made to it.
fn amid(change: impl FnOnce(&Pair, &Path)) -> (Pair, Vec<u8>) {
    const SENT: u64 = 1 << 20;
    let pair = Pair::linked();
    let bytes = noise(1, 8 << 20);
    pair.wire.set(Toward::Listener, Fault::Stall(SENT));
    let path = pair.laptop.drop_file("file", &bytes);
    until("some of it was sent", || {
        pair.wire.passed(Toward::Listener) >= SENT
    });
    change(&pair, &path);
    pair.wire.set(Toward::Listener, Fault::None);
    (pair, bytes)
}

#[test]
fn replaced_while_it_is_sent() {
    let newer = noise(2, 8 << 20);
    let (pair, older) = amid(|_, path| replace(path, &newer));
    until("the newer one is delivered", || {
        ends(&pair, "file")
            .last()
            .is_some_and(|(state, _)| state == "delivered")
            && (ends(&pair, "file").len() == 2 || !needs::file_system().lasting_inodes)
    });
    pair.laptop.empties_outbox();
    let received = pair.office.received();
    let read = |path| fs::read(pair.office.inbox.join(path)).expect("readable");
    let found: Vec<Vec<u8>> = received.iter().map(read).collect();
    let count = |bytes: &Vec<u8>| found.iter().filter(|f| *f == bytes).count();
    assert_eq!(count(&newer), 1, "the newer one, once: {received:?}");
    assert_eq!(
        count(&older),
        received.len() - 1,
        "both or the newer, none torn: {received:?}"
    );
    assert!(received.len() <= 2, "{received:?}");
    for (state, error) in ends(&pair, "file") {
        assert!(
            state == "delivered" || error.starts_with("superseded"),
            "{state}: {error}"
        );
    }
}

#[test]
fn cut_short_while_it_is_sent() {
    let (pair, bytes) = amid(|_, path| cut_short(path, 5000));
    end_as(&pair, "file", &["superseded", "delivered"]);
    pair.office.receives("file", &bytes[..5000]);
    pair.laptop.empties_outbox();
    assert_eq!(pair.office.received().len(), 1);
}

#[test]
fn deleted_or_swapped_for_a_link_while_it_is_sent() {
    for swapped in [false, true] {
        let (pair, _) = amid(|pair, path| {
            fs::remove_file(path).expect("deleted");
            if swapped {
                fs::write(pair.laptop.root.join("secret"), b"never to be sent").expect("a file elsewhere");
                symlink(pair.laptop.root.join("secret"), path).expect("a symlink");
            }
        });
        end_as(&pair, "file", &["gone"]);
        pair.laptop.drop_file("last", b"nothing comes behind it");
        pair.office.receives("last", b"nothing comes behind it");
        assert_eq!(pair.office.received().len(), 1);
        until("its partial goes", || pair.office.partials().is_empty());
        let path = pair.laptop.outbox.join("file");
        let why = pair
            .laptop
            .run(&["why", path.to_str().expect("a plain path")])
            .exits(0)
            .out();
        assert!(
            why.contains(if swapped { "symbolic link" } else { "gone" }),
            "{why}"
        );
    }
}

#[test]
fn renamed_while_it_is_sent() {
    let (pair, bytes) = amid(|_, path| fs::rename(path, path.with_file_name("new name")).expect("renamed"));
    end_as(&pair, "file", &["gone"]);
    end_as(&pair, "new name", &["delivered"]);
    pair.office.receives("new name", &bytes);
    pair.laptop.empties_outbox();
    assert_eq!(pair.office.received().len(), 1);
}
