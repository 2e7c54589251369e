//! What becomes of a delivered file, of equal names, of folders; and that both directions need one address only.

use std::{fs, path::Path};

use crate::harness::{Pair, Toward, eventually, files, until};

#[test]
fn one_address_carries_both_directions() {
    let pair = Pair::linked();
    pair.laptop.drop_file("from-laptop", b"1");
    pair.office.drop_file("from-office", b"2");
    pair.office.receives("from-laptop", b"1");
    pair.laptop.receives("from-office", b"2");
    pair.laptop.delivers(1);
    pair.office.delivers(1);
    assert!(pair.wire.passed(Toward::Dialler) > 0);
}

#[test]
fn equal_names_are_two_files() {
    let pair = Pair::linked();
    for (n, name) in ["x.txt", "x (1).txt", "x (2).txt"].iter().enumerate() {
        pair.laptop.drop_file("x.txt", format!("drop {n}").as_bytes());
        pair.laptop.delivers(n + 1);
        pair.office.receives(name, format!("drop {n}").as_bytes());
    }
    assert_eq!(pair.office.received().len(), 3);
    let mut names: Vec<_> = pair
        .laptop
        .jobs()
        .iter()
        .map(|j| j["delivered_as"].to_string())
        .collect();
    names.sort();
    assert_eq!(names, [r#""x (1).txt""#, r#""x (2).txt""#, r#""x.txt""#]);
}

#[test]
fn equal_bytes_are_two_files() {
    let pair = Pair::linked();
    for name in ["a", "b"] {
        pair.laptop.drop_file(name, b"same");
    }
    pair.laptop.delivers(2);
    assert_eq!(pair.office.received(), [Path::new("a"), Path::new("b")]);
}

#[test]
fn archived_files_lie_in_sent() {
    let pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"archive\"".into()));
    pair.laptop.drop_file("sub/report.pdf", b"archived");
    pair.office.receives("sub/report.pdf", b"archived");
    let sent = pair.laptop.outbox.join(files::OWN).join("sent");
    let archived = || {
        let mut found = Vec::new();
        files::walk(&sent, &mut |path| {
            found.push(fs::read(path).unwrap_or_default());
            true
        });
        found
    };
    until("the file is archived", || archived() == [b"archived"]);
    assert!(files::list(&pair.laptop.outbox).is_empty());
}

#[test]
fn a_folder_emptied_before_a_kill_goes_after_it() {
    let mut pair = Pair::linked();
    fs::create_dir_all(pair.laptop.outbox.join("mine/empty")).expect("folders of my own");
    let folder = pair.laptop.outbox.join("emptied/deep");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("unfinished.part"), b"").expect("what is never sent");
    let file = pair.laptop.drop_file("emptied/deep/file", b"bytes");
    pair.laptop.delivers(1);
    until("it left", || !file.exists());
    pair.laptop.kill();
    fs::remove_file(folder.join("unfinished.part")).expect("it had kept the folder there");
    pair.laptop.start();
    until("its folders went", || {
        !pair.laptop.outbox.join("emptied").exists()
    });
    assert!(pair.laptop.outbox.join("mine/empty").exists());
}

#[test]
fn a_file_that_was_away_and_is_back_is_sent() {
    let mut pair = Pair::idle();
    pair.laptop.start();
    let file = pair.laptop.drop_file("back", b"back");
    until("it is queued", || pair.laptop.jobs_of("back").len() == 1);
    let away = pair.laptop.root.join("away");
    fs::rename(&file, &away).expect("out of the outbox");
    pair.office.start();
    until("its job ended", || {
        pair.laptop.jobs_of("back").iter().any(|j| j["state"] == "failed")
    });
    fs::rename(&away, &file).expect("back into the outbox");
    pair.office.receives("back", b"back");
    until("it left", || !file.exists());
}

#[test]
fn deleted_files_are_gone() {
    let pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"delete\"".into()));
    pair.laptop.drop_file("gone", b"soon deleted");
    pair.office.receives("gone", b"soon deleted");
    pair.laptop.empties_outbox();
    until("no copy stays in dropwire's own folder", || {
        let mut copies = 0;
        files::walk(&pair.laptop.outbox, &mut |path| {
            copies += usize::from(fs::read(path).is_ok_and(|b| b == b"soon deleted"));
            true
        });
        copies == 0
    });
}

#[test]
fn kept_files_stay_and_go_again_only_when_changed() {
    let mut pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"keep\"".into()));
    let kept = pair.laptop.drop_file("kept", b"first");
    pair.laptop.delivers(1);
    pair.laptop.restart(); // scans again
    pair.laptop.drop_file("marker", b"after the scan");
    pair.laptop.delivers(2);
    assert_eq!(fs::read(&kept).expect("it stayed"), b"first");
    pair.laptop.drop_file("kept", b"second, longer");
    pair.laptop.delivers(3);
    pair.office.receives("kept (1)", b"second, longer");
    assert_eq!(pair.office.received().len(), 3);
}

#[test]
fn folders_come_with_their_files_and_merge() {
    let pair = Pair::linked();
    let names = ["a/b/c/deep.txt", "a/b/beside.txt", "a/top.txt", "top.txt"];
    for name in names {
        pair.laptop.drop_file(name, name.as_bytes());
    }
    pair.laptop.delivers(names.len());
    for name in names {
        pair.office.receives(name, name.as_bytes());
    }
    pair.laptop.drop_file("a/b/later.txt", b"later");
    pair.office.receives("a/b/later.txt", b"later");
    until("emptied folders are removed", || {
        !pair.laptop.outbox.join("a").exists()
    });
}

#[test]
fn folders_moved_in_are_sent_whole() {
    let pair = Pair::linked();
    let aside = pair.laptop.root.join("prepared");
    fs::create_dir_all(aside.join("inner")).expect("a folder aside");
    for n in 0..50 {
        fs::write(aside.join(format!("inner/{n}")), n.to_string()).expect("a file aside");
    }
    fs::rename(&aside, pair.laptop.outbox.join("moved")).expect("moved in");
    pair.laptop.delivers(50);
    for n in 0..50 {
        pair.office
            .receives(format!("moved/inner/{n}"), n.to_string().as_bytes());
    }
}

#[test]
fn files_made_while_the_agent_was_away_are_sent() {
    let mut pair = Pair::linked();
    pair.laptop.stop();
    pair.laptop.drop_file("made-meanwhile", b"found by the scan");
    pair.laptop.start();
    pair.office.receives("made-meanwhile", b"found by the scan");
}

#[test]
fn an_absent_peer_gets_everything_when_it_is_back() {
    let mut pair = Pair::linked();
    pair.office.stop();
    for n in 0..20 {
        pair.laptop.drop_file(format!("{n}"), n.to_string().as_bytes());
    }
    eventually("20 queued jobs", || {
        let jobs = pair.laptop.jobs();
        (jobs.len() == 20 && jobs.iter().all(|j| j["state"] == "queued")).then_some(())
    });
    let peer = pair.laptop.peer("office");
    assert_eq!(peer["connected"], false, "{peer}");
    assert_eq!(peer["queued"], 20, "{peer}");
    assert!(pair.laptop.status()["oldest_undelivered_seconds"].is_number());
    pair.office.start();
    pair.laptop.delivers(20);
    assert_eq!(pair.office.received().len(), 20);
    assert!(pair.laptop.status()["oldest_undelivered_seconds"].is_null());
}

#[test]
fn the_senders_mtime_is_kept() {
    let pair = Pair::linked();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    let aside = pair.laptop.root.join("old");
    let file = fs::File::create(&aside).expect("a file aside");
    files::set_modified(&file, time).expect("its time");
    drop(file);
    let kept = fs::metadata(&aside)
        .and_then(|m| m.modified())
        .expect("as the disk keeps it");
    assert!(time.duration_since(kept).expect("no later").as_secs() == 0);
    fs::rename(&aside, pair.laptop.outbox.join("old")).expect("moved in with an old mtime");
    pair.laptop.delivers(1);
    let found = fs::metadata(pair.office.inbox.join("old"))
        .and_then(|m| m.modified())
        .expect("it is there");
    assert_eq!(found, kept);
}

#[test]
fn by_peer_gives_each_peer_a_folder() {
    let pair = Pair::with(|_, office| office.settings.inbox.push("layout = \"by-peer\"".into()));
    pair.laptop.drop_file("x", b"x");
    pair.office.receives("laptop/x", b"x");
    pair.laptop.delivers(1);
    assert_eq!(pair.office.received(), [Path::new("laptop/x")]);
}
