//! Disks that fill up: nothing is lost, nothing is promised that is not on disk, and it says what is wrong.

use crate::harness::{Pair, files, mount::SmallDisk, skip, until};

#[test]
fn a_full_state_folder_ends_the_agent_and_loses_nothing() {
    const FILES: usize = 1_000;
    let mut pair = Pair::idle();
    let keep = std::fs::read(pair.laptop.state.join("identity.key")).expect("its key");
    let disk = match SmallDisk::mount(&pair.laptop.state, 8) {
        Ok(disk) => disk,
        Err(why) => return skip("a_full_state_folder_ends_the_agent_and_loses_nothing", &why),
    };
    let key = pair.laptop.state.join("identity.key");
    std::fs::write(&key, keep).expect("its key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    pair.office.start();
    pair.laptop.start();
    pair.connects();
    disk.fill();
    for n in 0..FILES {
        pair.laptop
            .drop_file(format!("{n}"), &files::noise(n as u64, 100));
    }
    let code = pair.laptop.exit_code();
    let log = pair.laptop.log_text();
    assert_eq!(code, Some(74), "{log}");
    assert!(
        log.contains("job list"),
        "the log does not name what failed\n{log}"
    );
    let there = files::list(&pair.laptop.outbox).len() + pair.office.received().len();
    assert!(there >= FILES, "{there} of {FILES} files are left");
    disk.free();
    pair.laptop.start();
    pair.laptop.empties_outbox();
    assert_eq!(pair.office.received().len(), FILES);
    for n in 0..FILES {
        pair.office.receives(format!("{n}"), &files::noise(n as u64, 100));
    }
    pair.laptop.kill();
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
