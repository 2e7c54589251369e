//! A wire that cuts, stalls, slices, delays and damages: everything arrives once, and little is sent twice.

use std::{fs, path::Path, time::Duration};

use crate::harness::{Fault, Pair, Toward, files, until};

const SIZE: usize = 128 << 20;
/// What one cut may cost: the bytes since the receiver's last checkpoint, and a window of them in flight.
const COST_OF_A_CUT: u64 = (16 + 8) << 20;

/// Each cut comes late enough that beginning again from the start would show.
#[test]
fn resumes_where_it_was_cut() {
    let pair = Pair::linked();
    let bytes = files::noise(1, SIZE);
    let before = pair.wire.passed(Toward::Listener);
    let cuts = [
        Fault::Reset(40 << 20),
        Fault::Close(41_111_111),
        Fault::Reset(42 << 20),
    ];
    for (n, cut) in cuts.into_iter().enumerate() {
        pair.wire.set(Toward::Listener, cut);
        if n == 0 {
            pair.laptop.drop_file("cut", &bytes);
        }
        until("the cut", || pair.wire.fired(Toward::Listener) > n as u64);
    }
    pair.laptop.delivers(1);
    pair.office.receives("cut", &bytes);
    assert_eq!(pair.office.received(), [Path::new("cut")]);
    let passed = pair.wire.passed(Toward::Listener) - before;
    let most = SIZE as u64 + cuts.len() as u64 * COST_OF_A_CUT;
    assert!(
        passed <= most,
        "{passed} bytes on the wire for {SIZE} and {} cuts",
        cuts.len()
    );
}

/// Through one connection's whole life, from the first byte of the handshake to the last receipt.
#[test]
fn one_delivery_wherever_the_link_is_cut() {
    let pair = Pair::idle();
    let (mut laptop, mut office, wire) = (pair.laptop, pair.office, pair.wire);
    office.start();
    laptop.start();
    let bytes = files::noise(2, 300_000);
    let offsets = [
        0, 1, 50, 400, 1_000, 1_500, 2_000, 3_000, 5_000, 100_000, 299_000, 301_000, 302_000,
    ];
    let mut expected = 0;
    for (n, offset) in offsets.into_iter().enumerate() {
        for toward in [Toward::Listener, Toward::Dialler] {
            wire.set(
                toward,
                if n % 2 == 0 {
                    Fault::Reset(offset)
                } else {
                    Fault::Close(offset)
                },
            );
            wire.cut_all(); // the next link meets the fault from its first byte on
            laptop.drop_file(format!("{n}-{toward:?}"), &bytes);
            expected += 1;
            laptop.delivers(expected);
            wire.set(toward, Fault::None);
        }
    }
    assert_eq!(office.received().len(), expected);
    for path in office.received() {
        assert!(
            fs::read(office.inbox.join(&path)).expect("readable") == bytes,
            "{} differs",
            path.display()
        );
    }
}

#[test]
fn damage_on_the_wire_ends_the_link_and_is_sent_again() {
    let pair = Pair::linked();
    let bytes = files::noise(3, 4 << 20);
    for (n, offset) in [0, 1_000_000, 3_999_999].into_iter().enumerate() {
        pair.wire.set(Toward::Listener, Fault::Flip(offset));
        pair.laptop.drop_file(format!("{n}"), &bytes);
        pair.laptop.delivers(n + 1);
        pair.office.receives(format!("{n}"), &bytes);
        assert_eq!(pair.wire.fired(Toward::Listener), n as u64 + 1);
    }
}

#[test]
fn one_byte_at_a_time_is_enough() {
    let pair = Pair::idle();
    let (mut laptop, mut office) = (pair.laptop, pair.office);
    for toward in [Toward::Listener, Toward::Dialler] {
        pair.wire.set(toward, Fault::Slice(1));
    }
    office.start();
    laptop.start();
    laptop.drop_file("slow", &files::noise(4, 5_000));
    office.receives("slow", &files::noise(4, 5_000));
    laptop.delivers(1);
}

#[test]
fn a_slow_wire_delays_and_loses_nothing() {
    let pair = Pair::linked();
    for toward in [Toward::Listener, Toward::Dialler] {
        pair.wire.set(toward, Fault::Delay(Duration::from_millis(30)));
    }
    for n in 0..30 {
        pair.laptop.drop_file(format!("{n}"), &files::noise(n, 10_000));
    }
    pair.laptop.delivers(30);
    for n in 0..30 {
        pair.office.receives(format!("{n}"), &files::noise(n, 10_000));
    }
}

/// No FIN, no RST: only the agents' own deadlines can find out.
#[test]
fn silence_is_found_out() {
    let pair = Pair::linked();
    pair.wire.set(Toward::Listener, Fault::Stall(1 << 20));
    let bytes = files::noise(5, 4 << 20);
    pair.laptop.drop_file("stalled", &bytes);
    until("the stall", || pair.wire.fired(Toward::Listener) == 1);
    let link = pair.wire.connections();
    // A new link is dialled and, through the same stalled wire, comes to nothing either.
    until("the silent link is given up", || pair.wire.connections() > link);
    pair.wire.set(Toward::Listener, Fault::None);
    pair.laptop.delivers(1);
    pair.office.receives("stalled", &bytes);
    assert_eq!(pair.office.received().len(), 1);
}

#[test]
fn a_refused_dial_is_repeated() {
    let mut pair = Pair::idle();
    pair.wire.refuse(true);
    pair.office.start();
    pair.laptop.start();
    pair.laptop.drop_file("patient", b"patient");
    until("the status names the error and the next dial", || {
        let peer = pair.laptop.peer("office");
        peer["connected"] == false && peer["last_error"].is_string() && peer["next_dial_at"].is_string()
    });
    pair.wire.refuse(false);
    pair.office.receives("patient", b"patient");
}

#[test]
fn both_dialling_end_with_one_link() {
    let mut pair = Pair::idle();
    let back = std::sync::Arc::new(crate::harness::Proxy::start());
    pair.laptop.settings.listen = true;
    pair.laptop.behind(back.clone());
    pair.office.settings.peers[0].address = Some(back.address().to_string());
    pair.office.start();
    pair.laptop.start();
    for n in 0..20 {
        pair.laptop.drop_file(format!("l{n}"), &files::noise(n, 100_000));
        pair.office.drop_file(format!("o{n}"), &files::noise(n, 100_000));
    }
    pair.laptop.delivers(20);
    pair.office.delivers(20);
    pair.connects();
    assert_eq!(
        (pair.laptop.received().len(), pair.office.received().len()),
        (20, 20)
    );
}

/// The receipt is on its way when the link ends, every time: the file is across, and the sender has to ask.
#[test]
fn a_lost_receipt_costs_no_second_upload() {
    let pair = Pair::linked();
    for (n, size) in [1_000, 200_000, 8 << 20].into_iter().enumerate() {
        let (name, bytes) = (format!("{n}"), files::noise(n as u64, size));
        pair.wire
            .set(Toward::Dialler, Fault::Delay(Duration::from_millis(700)));
        pair.laptop.drop_file(&name, &bytes);
        pair.office.receives(&name, &bytes);
        let before = pair.wire.passed(Toward::Listener);
        pair.wire.cut_all();
        pair.wire.set(Toward::Dialler, Fault::None);
        pair.laptop.delivers(n + 1);
        let again = pair.wire.passed(Toward::Listener) - before;
        let most = 20_000 + size as u64 / 10;
        assert!(
            again < most,
            "{again} bytes on the wire after all {size} were across"
        );
        assert_eq!(pair.office.received().len(), n + 1);
    }
}
