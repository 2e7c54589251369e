//! What a service manager hears: ready once it answers, reloading and ready again, stopping at the end.

use std::{fs, os::unix::net::UnixDatagram, time::Duration};

use crate::harness::Pair;

#[test]
fn the_service_manager_hears_when_it_is_ready_reloads_and_stops() {
    let mut pair = Pair::idle();
    let socket = pair.laptop.root.join("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    manager
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a deadline");
    let path = socket.to_str().expect("plain").to_owned();
    pair.laptop.env.push(("NOTIFY_SOCKET".into(), path));
    pair.laptop.spawn();
    assert_eq!(next(&manager), ["READY=1"]);
    // Ready means that it answers, not that it will.
    pair.laptop.run(&["status"]).exits(0);

    let reloads = || {
        let reloading = next(&manager);
        assert_eq!(reloading[0], "RELOADING=1");
        assert!(reloading[1].starts_with("MONOTONIC_USEC="), "{reloading:?}");
        assert_eq!(next(&manager), ["READY=1"]);
    };
    pair.laptop.signal(rustix::process::Signal::HUP);
    reloads();
    pair.laptop.settings.outbox.push("ignore = [\"*.new\"]".into());
    pair.laptop.write_config();
    reloads();
    let path = pair.laptop.drop_file("x.new", b"ignored");
    let why = pair.laptop.run(&["why", path.to_str().expect("plain")]);
    assert!(why.out().contains("*.new"), "what is ready holds: {}", why.out());
    let good = fs::read_to_string(&pair.laptop.config).expect("the config");
    fs::write(&pair.laptop.config, format!("{good}\n[inbox")).expect("a bad config");
    reloads();
    pair.laptop.run(&["status"]).exits(0);

    pair.laptop.stop();
    assert_eq!(next(&manager), ["STOPPING=1"]);
}

/// Such as one that waits for room on its disk, however long.
#[test]
fn a_start_that_waits_asks_the_service_manager_for_time() {
    let mut pair = Pair::idle();
    pair.laptop.start();
    pair.laptop.stop();
    let other = rusqlite::Connection::open(pair.laptop.state.join("jobs.db")).expect("the job list");
    other.execute_batch("BEGIN IMMEDIATE").expect("its lock");
    let socket = pair.laptop.root.join("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    let patience = Some(Duration::from_secs(60));
    manager.set_read_timeout(patience).expect("a deadline");
    let path = socket.to_str().expect("plain").to_owned();
    pair.laptop.env.push(("NOTIFY_SOCKET".into(), path));
    pair.laptop.spawn();
    assert!(next(&manager)[0].starts_with("EXTEND_TIMEOUT_USEC="));
    drop(other);
    while next(&manager) != ["READY=1"] {}
    pair.laptop.stop();
}

fn next(manager: &UnixDatagram) -> Vec<String> {
    let mut message = [0; 1024];
    let length = manager.recv(&mut message).expect("a message in time");
    let text = std::str::from_utf8(&message[..length]).expect("text");
    text.lines().map(str::to_owned).collect()
}
