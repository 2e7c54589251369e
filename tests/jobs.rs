//! What commands, signals and the config do to jobs and files.

use std::fs;

use crate::harness::{Pair, eventually, files, until};

#[test]
fn why_tells_of_files_and_jobs() {
    let mut pair = Pair::linked();
    pair.office.stop();
    let path = pair.laptop.drop_file("waiting", b"waiting");
    let job = eventually("its job", || pair.laptop.jobs_of("waiting").pop());
    let id = job["job"].as_str().expect("an id");
    assert!(
        id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
    for what in [path.to_str().expect("plain"), id, &id[..8]] {
        let why = pair.laptop.run(&["why", what]).exits(0);
        assert!(
            why.out().contains("office"),
            "the peer it waits for is not named\n{why}"
        );
    }
    pair.office.start();
    pair.laptop.delivers(1);
    let why = pair.laptop.run(&["why", id]).exits(0);
    assert!(why.out().lines().count() > 1, "there is no history\n{why}");
}

#[test]
fn send_takes_a_copy_and_waits_for_the_receipt() {
    let mut pair = Pair::linked();
    let file = &by_hand(&pair);
    pair.laptop
        .run(&["send", file, "--to", "office", "--wait"])
        .exits(0);
    assert_eq!(
        fs::read(pair.office.inbox.join("by hand.txt")).expect("there at once"),
        b"by hand"
    );
    assert_eq!(fs::read(file).expect("the original"), b"by hand");
    pair.office.stop();
    let queued = pair.laptop.run(&["send", file, "--to", "office"]).exits(0);
    assert!(!queued.out().trim().is_empty(), "{queued}");
    fs::remove_file(file).expect("the original may go");
    pair.laptop.restart();
    pair.office.start();
    pair.office.receives("by hand (1).txt", b"by hand");
}

/// What a crash left between the copy and its job goes at the next start; what is queued stays.
#[test]
fn copies_that_were_never_queued_are_cleared() {
    let mut pair = Pair::linked();
    pair.office.stop();
    let file = &by_hand(&pair);
    pair.laptop.run(&["send", file, "--to", "office"]).exits(0);
    pair.laptop.kill();
    let litter = pair.laptop.state.join("spool/00000000000000000000000000000000");
    fs::create_dir_all(litter.join(".dropwire")).expect("a copy that was begun");
    fs::write(litter.join("half"), b"half").expect("a copy");
    pair.laptop.start();
    assert!(!litter.exists());
    pair.office.start();
    pair.office.receives("by hand.txt", b"by hand");
}

#[test]
fn sent_copies_move_with_the_state_folder() {
    let mut pair = Pair::linked();
    pair.office.stop();
    let file = &by_hand(&pair);
    pair.laptop.run(&["send", file, "--to", "office"]).exits(0);
    pair.laptop.stop();
    let moved = pair.laptop.root.join("moved");
    fs::rename(&pair.laptop.state, &moved).expect("to another place");
    pair.laptop.state = moved;
    pair.laptop.start();
    pair.office.start();
    pair.office.receives("by hand.txt", b"by hand");
    let spool = pair.laptop.state.join("spool");
    until("the copy is gone", || {
        fs::read_dir(&spool).is_ok_and(|mut sends| sends.next().is_none())
    });
}

#[test]
fn send_takes_folders_whole() {
    let pair = Pair::linked();
    let folder = pair.laptop.root.join("folder");
    fs::create_dir_all(folder.join("inner")).expect("a folder elsewhere");
    fs::write(folder.join("inner/a"), b"a").expect("a file");
    fs::write(folder.join("b"), b"b").expect("a file");
    pair.laptop
        .run(&[
            "send",
            folder.to_str().expect("plain"),
            "--to",
            "office",
            "--wait",
        ])
        .exits(0);
    pair.office.receives("folder/inner/a", b"a");
    pair.office.receives("folder/b", b"b");
    assert!(folder.join("b").exists());
}

#[test]
fn a_cancelled_job_stays_until_it_is_retried() {
    let mut pair = Pair::linked();
    pair.office.stop();
    let path = pair.laptop.drop_file("cancelled", b"cancelled");
    let job = eventually("its job", || pair.laptop.jobs_of("cancelled").pop());
    let id = job["job"].as_str().expect("an id").to_owned();
    pair.laptop.run(&["cancel", &id]).exits(0);
    let job = pair.laptop.jobs_of("cancelled").pop().expect("still listed");
    assert_eq!(job["state"], "cancelled");
    pair.office.start();
    pair.laptop.restart(); // scans again: the same version is not queued again
    pair.laptop.drop_file("marker", b"marker");
    pair.office.receives("marker", b"marker");
    assert!(!pair.office.inbox.join("cancelled").exists());
    assert_eq!(fs::read(&path).expect("it stays"), b"cancelled");
    pair.laptop.run(&["retry", &id]).exits(0);
    pair.office.receives("cancelled", b"cancelled");
    until("it is delivered", || {
        pair.laptop
            .jobs_of("cancelled")
            .iter()
            .any(|j| j["state"] == "delivered")
    });
}

/// Over a restart too; the one line in the log has a count.
#[test]
fn jobs_of_a_peer_that_is_not_in_the_config_wait_until_they_are_cancelled() {
    let mut pair = Pair::idle();
    pair.laptop.start();
    for name in ["one", "two", "three"] {
        pair.laptop.drop_file(name, name.as_bytes());
    }
    until("all are queued", || pair.laptop.jobs().len() == 3);
    let office = pair.laptop.settings.peers.pop().expect("the office");
    pair.laptop.restart();
    let waits = |job: &serde_json::Value| {
        job["state"] == "queued" && job["peer"] == "office" && job["error"] == "office is not in the config"
    };
    let jobs = pair.laptop.jobs();
    assert!(jobs.len() == 3 && jobs.iter().all(waits), "{jobs:?}");
    pair.laptop.run(&["cancel", "--peer", &office.id]).exits(0);
    let jobs = pair.laptop.jobs();
    assert!(jobs.iter().all(|job| job["state"] == "cancelled"), "{jobs:?}");
    assert_eq!(files::list(&pair.laptop.outbox).len(), 3, "the files stay");
    let told = || {
        let log = pair.laptop.log_text();
        let lines = log
            .lines()
            .filter(|line| line.contains("without being delivered"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    until("the log tells of it", || !told().is_empty());
    let told = told();
    assert!(
        told.len() == 1 && told[0].contains("WARN") && told[0].contains("3 jobs"),
        "{told:?}"
    );
}

#[test]
fn retry_all_dials_at_once() {
    let mut pair = Pair::idle();
    pair.laptop
        .settings
        .tables
        .push("[retry]\nfirst = \"1h\"\nmax = \"1h\"".into());
    pair.laptop.start(); // the first dial fails, the next is far away
    until("the dial failed", || {
        pair.laptop.peer("office")["last_error"].is_string()
    });
    pair.laptop.drop_file("hurried", b"hurried");
    until("it is queued", || !pair.laptop.jobs().is_empty());
    pair.office.start();
    pair.laptop.run(&["retry", "--all"]).exits(0);
    pair.office.receives("hurried", b"hurried");
}

#[test]
fn a_job_is_given_up_only_when_the_config_says_so() {
    let mut pair = Pair::idle();
    pair.laptop
        .settings
        .tables
        .push("[retry]\nfirst = \"100ms\"\nmax = \"200ms\"\ngive_up_after = \"1s\"".into());
    pair.laptop.start();
    pair.laptop.drop_file("hopeless", b"hopeless");
    until("it is given up", || {
        pair.laptop
            .jobs_of("hopeless")
            .iter()
            .any(|j| j["state"] == "failed" && j["error"].is_string())
    });
    assert!(pair.laptop.outbox.join("hopeless").exists(), "the file stays");
    pair.laptop.kill();
}

#[test]
fn on_arrival_runs_for_each_file() {
    let pair = Pair::with(|_, office| {
        let script = "cp /proc/self/status \"$2.status\" && cp \"$1\" \"$2\"";
        let copy = office.root.join("imported");
        office.settings.inbox.push(format!(
            "on_arrival = [\"/bin/sh\", \"-c\", {script:?}, \"sh\", \"{{path}}\", {copy:?}]"
        ));
    });
    pair.laptop.drop_file("$(touch evil) \"quoted\"", b"imported");
    until("the program ran", || {
        fs::read(pair.office.root.join("imported")).is_ok_and(|b| b == b"imported")
    });
    let status = fs::read_to_string(pair.office.root.join("imported.status")).expect("its own status");
    for line in ["SigIgn:\t0000000000000000", "CapInh:\t0000000000000000"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
}

#[test]
fn the_log_tells_of_each_file_with_job_and_peer() {
    let pair = Pair::linked();
    pair.laptop.drop_file("sub/told\u{1b}", b"told");
    pair.laptop.delivers(1);
    let jobs = pair.laptop.jobs();
    let job = jobs[0]["job"].as_str().expect("an id");
    assert_eq!(jobs[0]["attempts"], 1, "the one that brought the receipt");
    for (agent, message, peer) in [
        (&pair.laptop, "delivered", "office"),
        (&pair.office, "arrived", "laptop"),
    ] {
        let line = eventually("its line", || {
            let text = agent.log_text();
            let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
            lines
                .filter(|l: &serde_json::Value| l["message"] == message)
                .find(|l| l["job"] == job && l["peer"] == peer)
        });
        assert!(line.to_string().contains(r"told\\u{1b}"), "not escaped: {line}");
    }
    let text = pair.laptop.log_text();
    let running = text.lines().filter(|l| l.contains("\"running\"")).count();
    assert_eq!(running, 1, "told twice");
}

/// A file of the laptop's, in none of its outboxes.
fn by_hand(pair: &Pair) -> String {
    let file = pair.laptop.root.join("by hand.txt");
    fs::write(&file, b"by hand").expect("a file elsewhere");
    file.to_str().expect("plain").to_owned()
}
