//! Whatever becomes of events, folders and watches: files come late at worst.

use std::{collections::BTreeSet, fs, os::unix::net::UnixListener, process::Command};

use serde_json::Value;

use crate::harness::{Agent, PATIENCE, Pair, eventually, mount::SmallDisk, needs, skip, until, within};

/// The status of its one outbox.
fn outbox(agent: &Agent) -> Value {
    agent.status()["outboxes"][0].clone()
}

/// Names in the status of what is not sent, each with its reason.
fn not_sent(agent: &Agent) -> Vec<(String, String)> {
    let outbox = outbox(agent);
    let listed = outbox["not_sent"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    listed
        .iter()
        .map(|one| (text(&one["name"]), text(&one["reason"])))
        .collect()
}

#[test]
fn what_is_no_file_is_listed_with_its_reason() {
    let pair = Pair::with(|laptop, _| {
        // One is there at the start, the others come later.
        std::os::unix::fs::symlink("/etc/passwd", laptop.outbox.join("link")).expect("a symlink");
    });
    let at = |name: &str| pair.laptop.outbox.join(name);
    let made = Command::new("mkfifo").arg(at("pipe")).status();
    assert!(made.is_ok_and(|s| s.success()), "mkfifo");
    let socket = UnixListener::bind(at("socket")).expect("a socket");
    let expected = [("link", "symbolic link"), ("pipe", "FIFO"), ("socket", "socket")];
    until("all three are listed", || {
        let listed = not_sent(&pair.laptop);
        listed.len() == 3
            && listed
                .iter()
                .zip(expected)
                .all(|((name, why), (n, w))| name == n && why.contains(w))
    });
    assert_eq!(outbox(&pair.laptop)["not_sent_count"], 3);
    let shown = pair.laptop.run(&["status"]).exits(0).out();
    assert!(shown.contains("pipe") && shown.contains("FIFO"), "{shown}");
    drop(socket);
    fs::remove_file(at("socket")).expect("removed");
    fs::remove_file(at("pipe")).expect("removed");
    until("what is gone is not listed", || not_sent(&pair.laptop).len() == 1);
    pair.laptop.drop_file("plain", b"plain");
    pair.office.receives("plain", b"plain");
    assert_eq!(pair.office.received().len(), 1);
}

#[test]
fn the_watch_is_tested_and_its_latency_shown() {
    if !needs::telling_of_changes() {
        return;
    }
    let pair = Pair::linked();
    until("the probe's event came", || {
        outbox(&pair.laptop)["watch_latency_seconds"]
            .as_f64()
            .is_some_and(|l| l >= 0.0)
    });
    let outbox = outbox(&pair.laptop);
    assert_eq!(outbox["watch"], "native", "{outbox}");
    assert!(outbox["watch_reason"].is_null(), "{outbox}");
}

#[test]
fn an_outbox_whose_events_stop_is_polled_until_they_come_again() {
    if !needs::telling_of_changes() {
        return;
    }
    let mut flag = std::path::PathBuf::new();
    let pair = Pair::with(|laptop, _| {
        flag = laptop.root.join("deaf");
        fs::write(&flag, "").expect("the flag");
        laptop
            .env
            .push(("DROPWIRE_FAULT".into(), format!("deaf@{}", flag.display())));
        laptop.settings.outbox.push("rescan = \"1s\"".into());
    });
    eventually("it is polled, and says why", || {
        let outbox = outbox(&pair.laptop);
        (outbox["watch"] == "poll" && outbox["watch_reason"].is_string()).then_some(())
    });
    pair.laptop.drop_file("unheard", b"unheard");
    pair.office.receives("unheard", b"unheard");
    fs::remove_file(&flag).expect("events come again");
    until("it is watched again", || {
        let outbox = outbox(&pair.laptop);
        outbox["watch"] == "native" && outbox["watch_reason"].is_null()
    });
    pair.laptop.drop_file("heard", b"heard");
    pair.office.receives("heard", b"heard");
    pair.laptop.delivers(2);
}

#[test]
fn where_no_more_folders_can_be_watched_they_are_polled() {
    if !needs::telling_of_changes() {
        return;
    }
    let mut flag = std::path::PathBuf::new();
    let pair = Pair::with(|laptop, _| {
        flag = laptop.root.join("limit");
        fs::write(&flag, "").expect("the flag");
        fs::create_dir(laptop.outbox.join("sub")).expect("a folder that cannot be watched");
        laptop
            .env
            .push(("DROPWIRE_FAULT".into(), format!("no-watch@{}", flag.display())));
        laptop.settings.outbox.push("rescan = \"1s\"".into());
    });
    let made_outside = |name: &str, text: &str| {
        fs::write(pair.laptop.outbox.join("sub").join(name), text).expect("written");
        pair.office.receives(format!("sub/{name}"), text.as_bytes());
    };
    until("it is polled", || outbox(&pair.laptop)["watch"] == "poll");
    let reason = outbox(&pair.laptop)["watch_reason"].clone();
    assert!(
        reason.as_str().is_some_and(|r| r.contains("max_user_watches")),
        "{reason}"
    );
    until("a warning", || {
        pair.laptop.log_text().contains("max_user_watches")
    });
    // A file of its own keeps the folder there.
    fs::write(pair.laptop.outbox.join("sub/stays.tmp"), "").expect("written");
    made_outside("one", "one");
    fs::remove_file(&flag).expect("the limit is raised");
    until("it is watched", || outbox(&pair.laptop)["watch"] == "native");
    made_outside("two", "two");
}

#[test]
fn a_disk_mounted_over_an_outbox_holds_it_until_it_is_gone() {
    let pair = Pair::linked();
    pair.laptop.drop_file("before", b"before");
    pair.office.receives("before", b"before");
    let disk = match SmallDisk::mount(&pair.laptop.outbox, 1) {
        Ok(disk) => disk,
        Err(why) => return skip("a_disk_mounted_over_an_outbox_holds_it_until_it_is_gone", &why),
    };
    let held = || outbox(&pair.laptop)["held"].clone();
    until("the other folder is not taken for it", || held().is_string());
    drop(disk);
    until("it is back", || held().is_null());
    pair.laptop.drop_file("after", b"after");
    pair.office.receives("after", b"after");
}

/// Four events a file, so that the kernel's queue runs over.
#[test]
fn what_was_made_while_the_agent_was_stopped_comes_once() {
    if !needs::telling_of_changes() {
        return;
    }
    let held = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    let held = held
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(16_384_usize);
    let files = (held / 3).min(20_000);
    let pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"delete\"".into()));
    until("it is watched", || outbox(&pair.laptop)["watch"] == "native");
    pair.laptop.signal(rustix::process::Signal::STOP);
    for i in 0..files {
        let folder = pair.laptop.outbox.join(format!("f{}", i % 10));
        if i < 10 {
            fs::create_dir(&folder).expect("a folder");
        }
        fs::write(folder.join(format!("n{i}")), i.to_string()).expect("written");
    }
    pair.laptop.signal(rustix::process::Signal::CONT);
    within(PATIENCE * 5, "all of them leave the outbox", || {
        crate::harness::files::list(&pair.laptop.outbox)
            .is_empty()
            .then_some(())
    });
    let received: BTreeSet<_> = pair.office.received().into_iter().collect();
    let expected = (0..files).map(|i| format!("f{}/n{i}", i % 10).into());
    assert!(received == expected.collect(), "{} arrived", received.len());
    let delivered = pair.laptop.peer("office")["delivered"].clone();
    assert_eq!(delivered, files, "one job each");
}
