//! Who is not paired gets nothing: no file, no answer that tells more than a closed door.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use crate::harness::{Agent, Pair, pair::peer, settings::Settings, until};

#[test]
fn an_agent_that_is_not_paired_is_refused() {
    let pair = Pair::linked();
    let mut stranger = Agent::new("stranger", Settings::default());
    stranger
        .settings
        .peers
        .push(peer(&pair.office, Some(pair.wire.address().to_string())));
    stranger.start();
    stranger.drop_file("unwanted", b"unwanted");
    until("the stranger's status tells of the refusal", || {
        let office = stranger.peer("office");
        office["connected"] == false && office["last_error"].is_string()
    });
    until("the office's log names the stranger's id", || {
        pair.office.log_text().contains(&stranger.id)
    });
    still_serves(&pair);
    assert_eq!(pair.office.received().len(), 1);
    assert!(pair.office.partials().is_empty());
    assert!(stranger.outbox.join("unwanted").exists());
}

/// A copied disk image: the one that both dial and the two themselves say so, and how it is ended.
#[test]
fn two_machines_with_one_key_are_told_everywhere() {
    let pair = Pair::linked();
    let mut copy = Agent::new("laptop", pair.laptop.settings.clone());
    let key = |agent: &Agent| agent.state.join("identity.key");
    fs::copy(key(&pair.laptop), key(&copy)).expect("the same key");
    copy.start();
    for (agent, subject) in [
        (&pair.office, "laptop"),
        (&pair.laptop, "office"),
        (&copy, "office"),
    ] {
        until("status tells of it", || {
            let problem = agent.status()["problems"][0].clone();
            problem["kind"] == "same_identity_twice" && problem["subject"] == subject
        });
        let status = agent.run(&["status"]).exits(0).out();
        assert!(
            status.contains("problem: ") && status.contains("dropwire init"),
            "{status}"
        );
    }
}

/// Pairing is mutual: the office expects a laptop with another key at that name.
#[test]
fn a_known_name_with_another_key_is_refused() {
    let pair = Pair::linked();
    let mut other = Agent::new("laptop", Settings::default());
    other
        .settings
        .peers
        .push(peer(&pair.office, Some(pair.wire.address().to_string())));
    other.start();
    other.drop_file("unwanted", b"unwanted");
    until("refused", || other.peer("office")["last_error"].is_string());
    still_serves(&pair);
    assert_eq!(pair.office.received().len(), 1);
}

/// The dialler pins too: at the office's address somebody else answers.
#[test]
fn an_impostor_at_the_peers_address_gets_nothing() {
    let mut pair = Pair::idle();
    let expected = Agent::new("office", Settings::default());
    pair.laptop.settings.peers[0].id = expected.id.clone();
    pair.office.start();
    pair.laptop.start();
    pair.laptop.drop_file("secret", b"secret");
    until("the laptop's status tells", || {
        let office = pair.laptop.peer("office");
        office["connected"] == false && office["last_error"].is_string()
    });
    assert!(pair.office.received().is_empty());
    assert!(pair.laptop.outbox.join("secret").exists());
}

#[test]
fn the_own_key_is_refused() {
    let pair = Pair::linked();
    let mut mirror = Agent::new("mirror", Settings::default());
    fs::copy(
        pair.office.state.join("identity.key"),
        mirror.state.join("identity.key"),
    )
    .expect("the office's key");
    mirror
        .settings
        .peers
        .push(peer(&pair.office, Some(pair.wire.address().to_string())));
    mirror.drop_file("reflected", b"reflected");
    mirror.spawn();
    // Refused by the mirror itself, which meets its own id in its config, or by the office.
    until("refused", || {
        let status = mirror.run(&["status", "--json"]);
        status.out().contains("\"last_error\":\"")
            || status.out().contains("\"last_error\": \"")
            || mirror.has_ended()
    });
    still_serves(&pair);
    assert_eq!(pair.office.received().len(), 1);
}

#[test]
fn what_is_no_tls_is_closed() {
    let pair = Pair::linked();
    let first_bytes: [&[u8]; 4] = [
        b"GET / HTTP/1.0\r\n\r\n",
        &[0xFF; 64],
        &[0; 4096],
        b"\x16\x03\x01\xff\xff",
    ];
    for bytes in first_bytes {
        let mut stream = TcpStream::connect(pair.wire.address()).expect("the port is open");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a timeout");
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer);
        let timed_out = end.is_err_and(|e| {
            matches!(
                e.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            )
        });
        assert!(!timed_out, "the connection stayed open after {bytes:?}");
        assert!(answer.len() < 100, "{} bytes answered", answer.len());
    }
    still_serves(&pair);
    assert!(pair.office.partials().is_empty());
}

#[test]
fn idle_connections_hold_nobody_up() {
    let mut pair = Pair::idle();
    pair.office.start();
    let idle: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(pair.wire.address()).expect("the port is open"))
        .collect();
    pair.laptop.start();
    still_serves(&pair);
    drop(idle);
}

/// The crowd may not take all of them: the linked peer's files need some, and so does a new link.
#[test]
fn a_crowd_leaves_descriptors_for_the_paired() {
    let mut pair = Pair::idle();
    pair.office.descriptors = Some(64);
    pair.office.start();
    let address = pair.office.status()["listen"]
        .as_str()
        .expect("`listen`")
        .to_owned();
    let idle: Vec<TcpStream> = (0..100)
        .map(|_| TcpStream::connect(&address).expect("the port is open"))
        .collect();
    pair.laptop.start();
    pair.laptop.drop_file("large", &[7; 300_000]);
    pair.office.receives("large", &[7; 300_000]);
    assert!(!pair.office.log_text().contains("Too many open files"));
    drop(idle);
}

#[test]
fn unpairing_ends_the_link() {
    let mut pair = Pair::linked();
    still_serves(&pair);
    pair.office.settings.peers.clear();
    pair.office.restart();
    pair.laptop.drop_file("too-late", b"too-late");
    until("the laptop is told", || {
        let office = pair.laptop.peer("office");
        office["connected"] == false && office["last_error"].is_string()
    });
    assert_eq!(pair.office.received().len(), 1);
}

fn still_serves(pair: &Pair) {
    pair.laptop.drop_file("welcome", b"welcome");
    pair.office.receives("welcome", b"welcome");
}
