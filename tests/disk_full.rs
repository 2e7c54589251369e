//! Disks that fill up: nothing is lost, nothing is promised that is not on disk, and it says what is wrong.

use std::path::Path;

use crate::harness::{Agent, Pair, files, mount::SmallDisk, skip, until};

#[test]
fn a_full_state_folder_holds_up_only_what_needs_it() {
    const FILES: usize = 1_000;
    let mut pair = Pair::idle();
    let disk = match on_small_disk(&mut pair.laptop, |path| SmallDisk::mount(path, 8)) {
        Ok(disk) => disk,
        Err(why) => return skip("a_full_state_folder_holds_up_only_what_needs_it", &why),
    };
    // What is sent does not lie on it.
    pair.laptop.outbox = pair.laptop.root.join("outbox");
    pair.office.start();
    pair.laptop.start();
    pair.connects();
    disk.fill();
    for n in 0..FILES {
        pair.laptop
            .drop_file(format!("{n}"), &files::noise(n as u64, 100));
    }
    until("it says what is wrong", || {
        let problems = pair.laptop.status()["problems"].clone();
        let problems = problems.as_array().expect("a list").clone();
        problems.iter().any(|problem| problem["kind"] == "state_disk")
    });
    // What comes is declined with that reason.
    let from_office = pair.office.drop_file("from-office", b"waits");
    let why = || pair.office.run(&["why", from_office.to_str().expect("plain")]);
    until("the sender is told", || why().out().contains("state_disk"));
    let sent = pair.laptop.root.join("sent");
    std::fs::write(&sent, b"by hand").expect("a file");
    let send = pair
        .laptop
        .run(&["send", sent.to_str().expect("plain"), "--to", "office"]);
    assert_ne!(send.code, Some(0), "a copy needs room");
    disk.free();
    pair.laptop.empties_outbox();
    assert_eq!(pair.office.received().len(), FILES);
    until("nothing is wrong", || {
        pair.laptop.status()["problems"] == serde_json::json!([])
    });
    pair.office.run(&["retry", "--all"]).exits(0);
    pair.laptop.receives("from-office", b"waits");
    pair.laptop.stop();
}

#[test]
fn a_start_on_a_full_disk_delivers_what_fills_it() {
    start_on_a_full_disk("a_start_on_a_full_disk_delivers_what_fills_it", |path| {
        SmallDisk::mount(path, 24)
    });
}

/// There is no room for others than root, and not much for root. What the agent keeps is less than what is kept for root.
#[test]
fn a_start_on_a_disk_that_root_filled_delivers_what_fills_it() {
    start_on_a_full_disk(
        "a_start_on_a_disk_that_root_filled_delivers_what_fills_it",
        SmallDisk::ext4,
    );
}

fn start_on_a_full_disk(test: &str, mount: impl FnOnce(&Path) -> Result<SmallDisk, String>) {
    let mut pair = Pair::idle();
    let disk = match on_small_disk(&mut pair.laptop, mount) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    pair.laptop.settings.outbox.push("after_send = \"delete\"".into());
    pair.laptop.start(); // makes what is kept for this
    pair.laptop.stop();
    let bytes = files::noise(1, 8 << 20);
    std::fs::write(pair.laptop.outbox.join("large"), &bytes).expect("a file");
    disk.fill();
    for _ in 0..2 {
        pair.laptop.start(); // with nobody there who would take it
        pair.laptop.stop();
        assert!(pair.laptop.outbox.join("large").exists());
    }
    pair.office.start();
    pair.laptop.start();
    pair.office.receives("large", &bytes);
    pair.laptop.empties_outbox();
    pair.laptop.stop();
}

/// State and outbox of `agent` lie on a small disk.
fn on_small_disk(
    agent: &mut Agent,
    mount: impl FnOnce(&Path) -> Result<SmallDisk, String>,
) -> Result<SmallDisk, String> {
    let root = agent.root.join("small");
    let disk = mount(&root)?;
    let state = root.join("state");
    std::fs::create_dir(&state).expect("the state folder");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&state, private).expect("chmod");
    std::fs::copy(agent.state.join("identity.key"), state.join("identity.key")).expect("its key");
    agent.state = state;
    agent.outbox = root.join("outbox");
    agent.write_config();
    agent.run(&["init"]).exits(0);
    Ok(disk)
}

#[test]
fn a_full_inbox_holds_the_job_until_there_is_room() {
    let mut pair = Pair::idle();
    let disk = match SmallDisk::mount(&pair.office.inbox, 24) {
        Ok(disk) => disk,
        Err(why) => return skip("a_full_inbox_holds_the_job_until_there_is_room", &why),
    };
    pair.office.run(&["init"]).exits(0); // the mounted folder is a new inbox
    pair.office.start();
    pair.laptop.start();
    pair.connects();
    disk.fill();
    let bytes = files::noise(21, 8 << 20);
    pair.laptop.drop_file("big", &bytes);
    until("the job waits and says why", || {
        let jobs = pair.laptop.jobs();
        jobs.iter()
            .any(|j| j["state"] == "queued" && j["error"].is_string() && j["next_attempt_at"].is_string())
    });
    // The other direction does not care.
    pair.office.drop_file("other-way", b"other-way");
    pair.laptop.receives("other-way", b"other-way");
    assert!(pair.laptop.outbox.join("big").exists());
    disk.free();
    pair.laptop.run(&["retry", "--all"]).exits(0); // by itself it asks again after a minute
    pair.laptop.delivers(1);
    pair.office.receives("big", &bytes);
    pair.office.kill();
}

#[test]
fn a_file_larger_than_the_peer_takes_is_not_tried_for_ever() {
    let pair = Pair::with(|_, office| {
        let laptop = office.settings.peers.remove(0);
        let table = format!(
            "[[peer]]\nname = \"laptop\"\nid = \"{}\"\nmax_file_size = \"1 MiB\"",
            laptop.id
        );
        office.settings.tables.push(table);
    });
    pair.laptop.drop_file("too-large", &files::noise(22, 2 << 20));
    pair.laptop.drop_file("small", b"small");
    pair.office.receives("small", b"small");
    until("the reason is told", || {
        pair.laptop
            .jobs_of("too-large")
            .iter()
            .any(|j| j["error"].is_string())
    });
    assert!(pair.laptop.outbox.join("too-large").exists());
    assert_eq!(pair.office.received().len(), 1);
}
