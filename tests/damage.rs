//! Bytes that go wrong inside an agent, where TLS cannot see it.

use std::fs;

use crate::harness::{Fault, Pair, Toward, files, until};

const SIZE: usize = 48 << 20;

#[test]
fn a_partial_damaged_between_kill_and_restart_is_found() {
    let mut pair = Pair::linked();
    let bytes = files::noise(11, SIZE);
    pair.wire.set(Toward::Listener, Fault::Stall(40 << 20));
    let source = pair.laptop.drop_file("big", &bytes);
    until("the partial has 36 MiB", || {
        pair.office
            .partials()
            .first()
            .is_some_and(|partial| files::same_start(partial, &source, 36 << 20))
    });
    pair.office.kill();
    files::flip(&pair.office.partials()[0], 1 << 20);
    pair.wire.set(Toward::Listener, Fault::None);
    pair.office.start();
    pair.laptop.delivers(1);
    pair.office.receives("big", &bytes);
    assert_eq!(pair.office.received().len(), 1);
}

#[test]
fn a_partial_cut_short_or_gone_is_begun_again() {
    for remove in [false, true] {
        let mut pair = Pair::linked();
        let bytes = files::noise(12, SIZE);
        pair.wire.set(Toward::Listener, Fault::Stall(40 << 20));
        let source = pair.laptop.drop_file("big", &bytes);
        until("the partial has 36 MiB", || {
            pair.office
                .partials()
                .first()
                .is_some_and(|partial| files::same_start(partial, &source, 36 << 20))
        });
        pair.office.kill();
        let partial = pair.office.partials()[0].clone();
        if remove {
            fs::remove_file(&partial).expect("removed by hand");
        } else {
            fs::File::options()
                .write(true)
                .open(&partial)
                .and_then(|f| f.set_len(1_000))
                .expect("cut short");
        }
        pair.wire.set(Toward::Listener, Fault::None);
        pair.office.start();
        pair.laptop.delivers(1);
        pair.office.receives("big", &bytes);
    }
}

/// The sender's memory or disk gives other bytes than were hashed: found at the next chunk, and sent again.
#[test]
fn a_bad_read_is_found_and_sent_again() {
    for offset in [0, 20 << 20, SIZE as u64 - 1] {
        let pair = Pair::with(|laptop, _| {
            laptop
                .env
                .push(("DROPWIRE_FAULT".into(), format!("bad-read@{offset}")));
        });
        let bytes = files::noise(13, SIZE);
        let before = pair.wire.passed(Toward::Listener);
        pair.laptop.drop_file("big", &bytes);
        pair.laptop.delivers(1);
        pair.office.receives("big", &bytes);
        assert_eq!(pair.office.received().len(), 1);
        let passed = pair.wire.passed(Toward::Listener) - before;
        assert!(
            passed < 2 * SIZE as u64,
            "{passed} bytes for {SIZE}: more than the damaged part was sent again"
        );
    }
}

#[test]
fn a_damaged_job_list_is_refused_and_the_outbox_untouched() {
    let mut pair = Pair::linked();
    pair.laptop.drop_file("first", b"first");
    pair.laptop.delivers(1);
    pair.laptop.stop();
    pair.laptop.drop_file("second", b"second");
    for file in files::files_in(&pair.laptop.state) {
        if !file.ends_with("identity.key") && file.metadata().is_ok_and(|m| m.len() > 4096) {
            let length = file.metadata().expect("there").len() as usize;
            fs::write(&file, files::noise(14, length)).expect("damaged");
        }
    }
    pair.laptop.spawn();
    assert_eq!(pair.laptop.exit_code(), Some(65), "{}", pair.laptop.log_text());
    assert!(
        pair.laptop.log_text().contains("job list"),
        "{}",
        pair.laptop.log_text()
    );
    assert_eq!(
        fs::read(pair.laptop.outbox.join("second")).expect("untouched"),
        b"second"
    );
}
