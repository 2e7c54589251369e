//! Whole links over loopback.

mod harness;
mod side;
mod subflows;

use std::{sync::Arc, time::Duration};

use dropwire_protocol::{
    Message, TransferId,
    message::{Hello, MAX_CHUNK},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::codec::Encoder as _;

use self::harness::{Agent, Relay, identities, linked, settings, within};
use super::*;
use crate::identity::Identity;

#[tokio::test]
async fn transfers_go_both_ways_at_once() {
    let (mut a, mut b) = linked().await;
    for agent in [&mut a, &mut b] {
        agent.drop_files(30, 1000).await;
        agent.drop_files(2, 3 * MAX_CHUNK + 1).await;
        agent.drop_files(1, 0).await;
    }
    within(async { tokio::join!(a.all_delivered(), b.all_delivered()) }).await;
    a.assert_lies_at(&b);
    b.assert_lies_at(&a);
    assert_eq!((a.ups, a.downs, b.ups, b.downs), (1, 0, 1, 0));
}

#[tokio::test]
async fn dials_of_both_sides_settle_on_one_link() {
    for _ in 0..5 {
        let [to_a, to_b] = [Relay::start().await, Relay::start().await];
        let [one, two] = identities();
        let mut a = Agent::start(&one, &two, Some(to_b.addr)).await;
        let mut b = Agent::start(&two, &one, Some(to_a.addr)).await;
        a.drop_files(5, 100_000).await;
        b.drop_files(5, 100_000).await;
        to_a.lead_to(a.addr());
        to_b.lead_to(b.addr());
        within(async { tokio::join!(a.all_delivered(), b.all_delivered()) }).await;
        a.assert_lies_at(&b);
        b.assert_lies_at(&a);
        assert_eq!((a.ups - a.downs, b.ups - b.downs), (1, 1));
    }
}

#[tokio::test]
async fn after_a_cut_comes_down_and_then_up_and_nothing_is_lost() {
    let to_a = Relay::start().await;
    let [one, two] = identities();
    let mut a = Agent::start(&one, &two, None).await;
    let mut b = Agent::start(&two, &one, Some(to_a.addr)).await;
    to_a.lead_to(a.addr());
    let cuts = async {
        within(b.up()).await;
        for round in 1..4 {
            let file = b.file(20 * MAX_CHUNK, true);
            b.offer(file).await;
            within(b.some_progress()).await;
            to_a.cut.notify_waiters();
            within(b.down()).await;
            assert_eq!(b.downs, round);
            b.open_gates();
            within(b.all_delivered()).await;
            assert_eq!(b.ups, round + 1);
        }
    };
    tokio::select! {
        () = cuts => {}
        () = a.current() => {}
    }
    b.assert_lies_at(&a);
}

#[tokio::test]
async fn another_limit_wakes_a_link_that_waits_for_its_turn() {
    let [one, two] = identities();
    let patient = Timing {
        ping_after: Duration::from_secs(3600),
        dead_after: Duration::from_secs(7200),
        ..Timing::default()
    };
    let mut a = Agent::start_with(&one, &two, None, patient).await;
    let mut b = Agent::start_with(&two, &one, Some(a.addr()), patient).await;
    within(async { tokio::join!(a.up(), b.up()) }).await;
    let mut link_config = settings(a.id(), Some(a.addr()));
    link_config.limits.upload = Some(1); // a chunk takes days
    b.links.apply(link_config.clone()).await;
    b.drop_files(1, 3 * MAX_CHUNK).await;
    let waits = async {
        while b.links.status()[0].sent_bytes < MAX_CHUNK as u64 {
            tokio::task::yield_now().await;
        }
    };
    within(waits).await;
    link_config.limits.upload = None;
    b.links.apply(link_config).await;
    within(b.all_delivered()).await;
    assert_eq!((b.ups, b.downs), (1, 0));
}

#[tokio::test]
async fn who_is_paired_no_more_is_told_and_may_come_back() {
    let (mut a, mut b) = linked().await;
    let link_config = settings(b.id(), None);
    let nobody = Settings {
        peers: Vec::new(),
        ..link_config.clone()
    };
    let leave = async { tokio::join!(a.links.apply(nobody), b.down()).1 };
    let error = within(leave).await;
    assert_eq!(error.as_deref(), Some("the peer is no longer paired with us"));
    assert!(
        matches!(a.events.try_recv(), Ok(LinkEvent::Down { .. })),
        "told before it returns"
    );
    a.downs += 1;
    assert!(a.links.status().is_empty());
    a.links.apply(link_config).await;
    a.events = a.links.events(b.id()).unwrap();
    b.drop_files(1, 10).await;
    within(async { tokio::join!(a.up(), b.all_delivered()) }).await;
}

#[tokio::test]
async fn a_silent_link_goes_down() {
    let to_a = Relay::start().await;
    let [one, two] = identities();
    let timing = Timing {
        ping_after: Duration::from_millis(50),
        dead_after: Duration::from_millis(500),
        ..Timing::default()
    };
    let mut a = Agent::start_with(&one, &two, None, timing).await;
    let mut b = Agent::start_with(&two, &one, Some(to_a.addr), timing).await;
    to_a.lead_to(a.addr());
    within(async { tokio::join!(a.up(), b.up()) }).await;
    to_a.freeze.notify_waiters();
    let errors = within(async { tokio::join!(a.down(), b.down()) }).await;
    // Who notices it first dials again, and the newer link may take the place of the other's before that notices.
    let errors: Vec<String> = [errors.0, errors.1].into_iter().flatten().collect();
    assert!(!errors.is_empty());
    for error in errors {
        assert!(
            error.contains("no sign of life") || error.contains("took nothing"),
            "{error}"
        );
    }
    within(async { tokio::join!(a.up(), b.up()) }).await;
}

#[tokio::test]
async fn a_half_open_link_does_not_keep_the_peer_out() {
    let to_b = Relay::start().await;
    let mut both = identities();
    both.sort_by_key(|identity| identity.id());
    let [one, two] = both;
    // The smaller id dialled; that link would stay, but its other end is gone without a word.
    let timing = Timing {
        probe: Duration::from_millis(200),
        ..Timing::default()
    };
    let mut a = Agent::start_with(&one, &two, Some(to_b.addr), timing).await;
    let gone = Agent::start(&two, &one, None).await;
    to_b.lead_to(gone.addr());
    within(a.up()).await;
    to_b.target.send_replace(None);
    to_b.freeze.notify_waiters();
    let mut b = Agent::start(&two, &one, Some(a.addr())).await;
    b.drop_files(2, 1000).await;
    let delivered = async { within(b.all_delivered()).await };
    tokio::select! {
        () = delivered => {}
        () = a.current() => {}
    }
    b.assert_lies_at(&a);
    assert_eq!(a.downs, 1);
}

#[tokio::test]
async fn a_large_file_does_not_hold_up_a_small_one() {
    let (mut a, b) = linked().await;
    let large = a.file(8 * MAX_CHUNK, true);
    a.offer(large).await;
    within(a.some_progress()).await;
    let small = a.file(1024, false);
    let id = small.id;
    a.offer(small).await;
    within(async {
        while a.files.iter().any(|file| file.id == id && !file.delivered) {
            a.event().await;
        }
    })
    .await;
    assert_eq!(b.sink.lies().len(), 1);
    a.open_gates();
    within(a.all_delivered()).await;
    a.assert_lies_at(&b);
}

#[tokio::test]
async fn a_stalled_sink_stops_reading_only() {
    let (mut a, mut b) = linked().await;
    a.sink.stalled.send_replace(true);
    b.drop_files(3, 40 * MAX_CHUNK).await;
    a.drop_files(1, 10 * MAX_CHUNK).await; // no more than the window: further ones would wait for an Ack
    // What a sends arrives, though a cannot hear of it while its own sink stands still.
    within(async {
        while b.sink.lies().is_empty() {
            b.sink.changed.notified().await;
        }
    })
    .await;
    assert!(a.sink.lies().is_empty());
    a.sink.stalled.send_replace(false);
    within(async { tokio::join!(a.all_delivered(), b.all_delivered()) }).await;
    a.assert_lies_at(&b);
    b.assert_lies_at(&a);
}

#[tokio::test]
async fn withdrawing_and_forgetting_are_answered() {
    let (mut a, b) = linked().await;
    a.drop_files(1, 10).await;
    within(a.all_delivered()).await;
    let delivered = a.files[0].id;
    let never = TransferId([9; 16]);
    a.links
        .request(b.id(), Request::Withdraw(delivered))
        .await
        .unwrap();
    a.links.request(b.id(), Request::Withdraw(never)).await.unwrap();
    a.links
        .request(b.id(), Request::Forget(vec![delivered], vec![]))
        .await
        .unwrap();
    let mut told = Vec::new();
    within(async {
        while told.len() < 3 {
            told.push(match a.events.recv().await.unwrap() {
                LinkEvent::Settled { id, .. } => ("settled", id),
                LinkEvent::Withdrawn { id, .. } => ("withdrawn", id),
                LinkEvent::Forgotten { ids, .. } => ("forgotten", ids[0]),
                other => panic!("{other:?}"),
            });
        }
    })
    .await;
    told.sort();
    assert_eq!(
        told,
        [
            ("forgotten", delivered),
            ("settled", delivered),
            ("withdrawn", never)
        ]
    );
}

#[tokio::test]
async fn idle_connections_do_not_keep_a_pair_apart() {
    let [one, two] = identities();
    let mut a = Agent::start(&one, &two, None).await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(a.addr()).await.unwrap());
    }
    let mut b = Agent::start(&two, &one, Some(a.addr())).await;
    b.drop_files(3, 1000).await;
    within(b.all_delivered()).await;
    within(a.up()).await;
    b.assert_lies_at(&a);
}

/// Whoever has the key may dial as often as it likes, and say Hello or not.
#[tokio::test]
async fn proven_connections_without_a_link_are_few_and_the_newest_stays() {
    for says_hello in [false, true] {
        let [one, two] = identities();
        let mut a = Agent::start(&one, &two, None).await;
        let connector = tokio_rustls::TlsConnector::from(two.client_config(a.id()));
        let mut flood = Vec::new();
        for _ in 0..100 {
            let tcp = TcpStream::connect(a.addr()).await.unwrap();
            let name = "dropwire".try_into().unwrap();
            let mut stream = within(connector.connect(name, tcp)).await.unwrap();
            if says_hello {
                stream.write_all(&hello()).await.unwrap();
            }
            flood.push(stream);
        }
        // What was let go ends, with an error where bytes were on their way.
        let mut ended = JoinSet::new();
        for mut stream in flood {
            ended.spawn(async move { while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {} });
        }
        let at_most = lobby::OF_A_PAIR + 1; // one is the link
        let events = async {
            loop {
                a.events.recv().await;
            }
        };
        tokio::select! {
            () = within(async { while ended.len() > at_most { ended.join_next().await; } }) => {}
            () = events => {}
        }
        let mut b = Agent::start(&two, &one, Some(a.addr())).await;
        b.drop_files(1, 10).await;
        let events = async {
            loop {
                a.events.recv().await;
            }
        };
        tokio::select! {
            () = within(b.all_delivered()) => {}
            () = events => {}
        }
    }
}

fn hello() -> bytes::BytesMut {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        name: "flood".into(),
        software: "test".into(),
        window: 8 << 20,
        max_open: 16,
        run: None,
    };
    let mut bytes = bytes::BytesMut::new();
    dropwire_protocol::FrameCodec::default()
        .encode(Message::Hello(hello), &mut bytes)
        .unwrap();
    bytes
}

#[tokio::test]
async fn an_unpaired_agent_is_told_why_and_brings_no_link() {
    let [one, two] = identities();
    let stranger = Arc::new(Identity::generate());
    let a = Agent::start(&one, &two, None).await;
    let c = Agent::start(&stranger, &one, Some(a.addr())).await;
    let error = within(async {
        loop {
            match c.links.status().remove(0).last_error {
                Some(error) => break error,
                None => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    assert!(error.contains("does not let this agent's key in"), "{error}");
    assert!(!c.links.status()[0].connected);
    assert!(!a.links.status()[0].connected);
}

/// A disk image was copied: both machines dial the same third one.
#[tokio::test]
async fn two_machines_with_one_key_do_not_take_the_link_from_each_other_and_all_three_say_so() {
    let [one, two] = identities();
    let timing = Timing {
        twins: Duration::from_secs(5),
        ..Timing::default()
    };
    let mut c = Agent::start_with(&one, &two, None, timing).await;
    let mut a = Agent::start_with(&two, &one, Some(c.addr()), timing).await;
    within(async { tokio::join!(a.up(), c.up()) }).await;
    let mut copy = Agent::start_with(&two, &one, Some(c.addr()), timing).await;
    let says = |agent: &Agent, what: &str| {
        let error = agent.links.status().remove(0).last_error;
        error.is_some_and(|error| error.contains(what))
    };
    let all_say = |agents: [&Agent; 3]| {
        says(agents[0], "two machines use the key of this peer")
            && agents[1..]
                .iter()
                .all(|agent| says(agent, "another machine uses this agent's key"))
    };
    let told = async {
        while !all_say([&c, &a, &copy]) {
            tokio::select! {
                _ = c.event() => {}
                _ = a.event() => {}
                _ = copy.event() => {}
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    };
    within(told).await;
    // Who is kept out tries on; the link stays.
    let (changes, refused) = (c.downs, a.downs + copy.downs + 5);
    let refusals = async {
        while a.downs + copy.downs < refused {
            tokio::select! {
                _ = c.event() => {}
                _ = a.event() => {}
                _ = copy.event() => {}
            }
        }
    };
    within(refusals).await;
    assert_eq!(c.downs, changes);
    let (stays, goes) = match a.links.status()[0].connected && a.ups > a.downs {
        true => (&mut a, copy),
        false => (&mut copy, a),
    };
    goes.links.shutdown().await;
    let over = async {
        while says(&c, "two machines") || says(stays, "another machine") {
            tokio::select! {
                _ = c.event() => {}
                _ = stays.event() => {}
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    };
    within(over).await;
    assert_eq!(c.downs, changes);
}

#[tokio::test]
async fn shutdown_says_bye() {
    let (a, mut b) = linked().await;
    within(a.links.shutdown()).await;
    let error = within(b.down()).await;
    assert_eq!(error.as_deref(), Some("the peer's agent stopped"));
    assert_eq!(
        b.links.request(a.id(), Request::Forget(vec![], vec![])).await,
        Err(NotLinked)
    );
}

/// Both write more than the stream holds, and neither reads less for it.
#[tokio::test]
async fn a_narrow_stream_carries_both_directions() {
    let [one, two] = identities();
    let (near, far) = tokio::io::duplex(1024);
    let mut sides = [side::Side::new(&one, &two), side::Side::new(&two, &one)];
    for side in &mut sides {
        side.offer(3, 6 * MAX_CHUNK).await;
    }
    let [mut a, mut b] = sides;
    let sinks = [a.sink.clone(), b.sink.clone()];
    let together = tokio::sync::Barrier::new(2);
    within(async { tokio::join!(a.run(near, 3, &together), b.run(far, 3, &together)) }).await;
    assert!(sinks.iter().all(|sink| sink.lies().len() == 3));
}
