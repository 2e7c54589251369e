//! A start that has to wait: commands are told what for, and SIGTERM ends it.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::harness::{Agent, Pair, mount::SmallDisk, settings::Settings, skip, until};

/// The agent says that it starts, and why it does not go on: to `status`, and to what needs the job list.
fn is_told(agent: &Agent, expected: &str) {
    let mut told = serde_json::Value::Null;
    until("`status` says what is waited for", || {
        let ran = agent.run(&["status", "--json"]);
        told = serde_json::from_str(&ran.out()).unwrap_or_default();
        ran.code == Some(0)
    });
    assert_eq!(told["starting"], true, "{told}");
    let problem = &told["problems"][0];
    assert_eq!(problem["kind"], "state_disk", "{told}");
    assert!(
        problem["text"].as_str().expect("text").contains(expected),
        "{told}"
    );
    assert!(!problem["hint"].as_str().expect("a hint").is_empty(), "{told}");
    let status = agent.run(&["status"]).exits(0).out();
    assert!(
        status.contains("is starting") && status.contains(expected),
        "{status}"
    );
    let check = agent.run(&["check"]);
    assert_ne!(check.code, Some(0), "{check}");
    assert!(check.out().contains("is starting and waits"), "{check}");
    let folder = agent.outbox.to_str().expect("plain");
    for command in [
        &["jobs"][..],
        &["why", "abcdef"],
        &["retry", "--all"],
        &["cancel", "--all"],
        &["adopt", folder, "--yes"],
    ] {
        let ran = agent.run(command).exits(69);
        assert!(
            ran.err().contains("is starting") && ran.err().contains(expected),
            "{ran}"
        );
    }
}

#[test]
fn a_start_that_waits_for_another_programs_lock_says_so() {
    let mut pair = Pair::idle();
    pair.laptop.start();
    pair.laptop.stop();
    for lock in [
        "BEGIN IMMEDIATE",
        "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE",
    ] {
        let other = rusqlite::Connection::open(pair.laptop.state.join("jobs.db")).expect("the job list");
        other.execute_batch(lock).expect(lock);
        pair.laptop.spawn();
        is_told(&pair.laptop, "locked the job list");
        pair.laptop.stop();
        pair.laptop.spawn();
        is_told(&pair.laptop, "locked the job list");
        drop(other);
        until("it runs", || pair.laptop.status()["starting"].is_null());
        pair.laptop.stop();
    }
}

#[test]
fn the_first_start_of_all_waits_on_a_full_disk() {
    let mount = |path: &_| SmallDisk::mount(path, 8);
    first_start_on_a_full_disk("the_first_start_of_all_waits_on_a_full_disk", mount, true);
}

/// Such a disk has no room for another file's name either, so nothing can be asked of the agent.
#[test]
fn the_first_start_of_all_waits_for_a_place_for_its_files() {
    let test = "the_first_start_of_all_waits_for_a_place_for_its_files";
    first_start_on_a_full_disk(test, SmallDisk::xfs, false);
}

fn first_start_on_a_full_disk(
    test: &str,
    mount: impl FnOnce(&std::path::Path) -> Result<SmallDisk, String>,
    is_asked: bool,
) {
    let mut agent = Agent::new("laptop", Settings::default());
    let root = agent.root.join("small");
    let disk = match mount(&root) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    agent.state = root.join("state");
    fs::create_dir(&agent.state).expect("the state folder");
    fs::set_permissions(&agent.state, PermissionsExt::from_mode(0o700)).expect("chmod");
    disk.fill();
    agent.spawn();
    match is_asked {
        true => is_told(&agent, "disk of the job list is full"),
        false => until("the log says it", || {
            agent.log_text().contains("disk of the job list is full")
        }),
    }
    agent.stop();
    agent.spawn();
    disk.free();
    until("it runs", || {
        let ran = agent.run(&["status", "--json"]);
        ran.code == Some(0) && !ran.out().contains("\"starting\"")
    });
    agent.stop();
    let warned = agent.log_text().matches("is full").count();
    assert!(warned <= 4, "said once: {}", agent.log_text());
}

/// Somebody tidies up where the control socket is.
#[test]
fn a_control_socket_that_is_taken_away_comes_back() {
    let mut agent = Agent::new("laptop", Settings::default());
    agent.start();
    fs::remove_file(agent.state.join("control.sock")).expect("the socket");
    agent.run(&["status"]).exits(69);
    until("it answers again", || agent.run(&["status"]).code == Some(0));
    agent.stop();
    assert!(!agent.state.join("control.sock").exists());
}
