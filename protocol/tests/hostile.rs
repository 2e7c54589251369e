//! Whatever a peer says in whatever order: no half panics, none grows without bound, and no receipt leaves without a commit.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use dropwire_protocol::{
    Conversation, Digest, Error, Event, Kind, Local, Manifest, Message, Mtime, PeerMisbehaved, Receipt,
    RemotePath, TransferId, Violation,
    message::*,
    receiver::{Command, OfferSequence, Outcome, Receiver},
    sender::{Sender, SenderEvent},
};
use proptest::{collection::vec, prelude::*, sample::select};

const DIGEST: Digest = Digest([0; 32]);

fn id() -> impl Strategy<Value = TransferId> {
    (0..4u8).prop_map(|n| TransferId([n; 16]))
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..4u64, 1 => select(vec![1000, 300_000, u64::MAX - 1, u64::MAX])]
}

fn manifest(size: u64) -> Manifest {
    Manifest {
        path: RemotePath::parse(b"file").expect("a path"),
        size,
        mtime: Mtime { seconds: 0, nanos: 0 },
        kind: Kind::File,
    }
}

fn receipt() -> Receipt {
    Receipt {
        body: vec![1; 9000],
        key: vec![],
        signature: vec![],
        audit_path: vec![],
    }
}

fn to_receiver() -> impl Strategy<Value = Message> {
    prop_oneof![
        3 => (id(), number(), any::<bool>(), 0..40u64).prop_map(|(id, size, eager, serial)| {
            Message::Offer(Offer { id, manifest: manifest(size), eager, serial })
        }),
        3 => (id(), 0..3u32, number(), 1..4usize).prop_map(|(id, pass, offset, length)| {
            Message::Chunk(Chunk { id, pass, offset, digest: DIGEST, bytes: Bytes::from(vec![0; length]) })
        }),
        2 => (id(), 0..3u32).prop_map(|(id, pass)| Message::Done(Done { id, pass, digest: DIGEST })),
        1 => (id(), 0..40u64).prop_map(|(id, serial)| Message::Close(Close { id, serial })),
        1 => id().prop_map(|id| Message::Withdraw(Withdraw { id })),
        1 => vec(id(), 1..4).prop_map(|ids| Message::Forget(Forget { ids, times: None })),
        1 => vec(id(), 1..4).prop_map(|ids| Message::Forget(Forget { ids: vec![], times: Some(late(ids)) })),
    ]
}

fn late(ids: Vec<TransferId>) -> Vec<LateTime> {
    let mtime = Mtime { seconds: 1, nanos: 0 };
    ids.into_iter().map(|id| LateTime { id, mtime }).collect()
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let sequence = || (0..40u64).prop_map(OfferSequence);
    prop_oneof![
        3 => (id(), sequence(), number())
            .prop_map(|(id, sequence, offset)| Outcome::Opened { id, sequence, offset, digest: DIGEST }),
        1 => (id(), sequence(), number()).prop_map(|(id, sequence, offset)| Outcome::Written { id, sequence, offset }),
        1 => (id(), sequence(), 0..4_u32, number()).prop_map(|(id, sequence, pass, offset)| Outcome::Damaged {
            id,
            sequence,
            pass,
            offset,
            digest: DIGEST
        }),
        1 => (id(), sequence()).prop_map(|(id, sequence)| Outcome::Settled {
            id,
            sequence: Some(sequence),
            receipt: receipt()
        }),
        1 => (id(), sequence()).prop_map(|(id, sequence)| Outcome::Refused {
            id,
            sequence,
            reason: DeclineReason::NoSpace,
            text: "é".repeat(300),
            retry_after_ms: None
        }),
        2 => (id(), sequence()).prop_map(|(id, sequence)| Outcome::Committed { id, sequence, receipt: receipt() }),
    ]
}

fn to_sender() -> impl Strategy<Value = Message> {
    prop_oneof![
        (id(), 0..3u32, number(), 0..6u64).prop_map(|(id, pass, offset, serial)| {
            Message::Accept(Accept {
                id,
                pass,
                offset,
                digest: DIGEST,
                serial,
            })
        }),
        (id(), 0..3u32, number(), 0..6u64).prop_map(|(id, pass, offset, serial)| Message::Ack(Ack {
            id,
            pass,
            offset,
            serial
        })),
        (id(), 0..6u64).prop_map(|(id, serial)| Message::Decline(Decline {
            id,
            reason: DeclineReason::Busy,
            text: String::new(),
            retry_after_ms: None,
            serial
        })),
        (id(), prop::option::of(0..6u64)).prop_map(|(id, serial)| Message::Settled(Settled {
            id,
            receipt: receipt(),
            serial
        })),
        vec((id(), 0..6u64), 1..3).prop_map(|all| {
            let committed = |(id, serial)| Committed {
                id,
                serial,
                receipt: receipt(),
            };
            Message::Receipts(Receipts {
                receipts: all.into_iter().map(committed).collect(),
            })
        }),
        id().prop_map(|id| Message::Withdrawn(Withdrawn { id })),
        vec(id(), 1..3).prop_map(|ids| Message::Forgotten(Forgotten { ids })),
    ]
}

/// What the agent does in between.
#[derive(Clone, Debug)]
enum Do {
    Offer(TransferId, u64, bool),
    Chunk(TransferId),
    Done(TransferId, u32),
    Close(TransferId),
    Withdraw(TransferId),
    Forget(TransferId),
    Retime(TransferId),
}

fn deed() -> impl Strategy<Value = Do> {
    prop_oneof![
        3 => (id(), 0..4u64, any::<bool>()).prop_map(|(id, size, eager)| Do::Offer(id, size, eager)),
        2 => id().prop_map(Do::Chunk),
        2 => (id(), 0..3u32).prop_map(|(id, pass)| Do::Done(id, pass)),
        1 => id().prop_map(Do::Close),
        1 => id().prop_map(Do::Withdraw),
        1 => id().prop_map(Do::Forget),
        1 => id().prop_map(Do::Retime),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_receiver_stays_in_order(inputs in vec(prop_oneof![
        2 => to_receiver().prop_map(Ok),
        1 => outcome().prop_map(Err),
    ], 1..80)) {
        let mut receiver = Receiver::new(MIN_WINDOW, 2, Some(400_000));
        let mut sizes = BTreeMap::new();
        let (mut commits, mut receipts) = (0, 0);
        for input in inputs {
            match input {
                Ok(message) => {
                    let _ = receiver.receive(message);
                }
                Err(outcome) => {
                    commits += u32::from(matches!(outcome, Outcome::Committed { .. }));
                    receiver.outcome(outcome);
                }
            }
            while let Some(command) = receiver.poll_command() {
                match command {
                    Command::Open { id, sequence, manifest, .. } => {
                        prop_assert!(manifest.size <= 400_000);
                        prop_assert!(sizes.insert((id, sequence.0), manifest.size).is_none(), "an offer is new");
                    }
                    Command::Write { id, sequence, offset, bytes, .. } => {
                        prop_assert!(offset + bytes.len() as u64 <= sizes[&(id, sequence.0)]);
                    }
                    _ => {}
                }
            }
            while let Some(message) = receiver.poll_message() {
                if let Message::Receipts(all) = message {
                    receipts += all.receipts.len() as u32;
                }
            }
        }
        prop_assert!(receipts <= commits);
    }

    #[test]
    fn a_receiver_that_is_not_read_from_stays_small(messages in vec(to_receiver(), 1..300)) {
        let mut receiver = Receiver::new(MIN_WINDOW, 2, None);
        for message in messages {
            let _ = receiver.receive(message);
            while let Some(command) = receiver.poll_command() {
                for outcome in obedient(command) {
                    receiver.outcome(outcome);
                }
            }
        }
        let waiting = std::iter::from_fn(|| receiver.poll_message()).count();
        prop_assert!(waiting <= 4 * 2 + MAX_ASKED, "{waiting} messages wait");
    }

    #[test]
    fn a_sender_stays_in_order(inputs in vec(prop_oneof![
        1 => to_sender().prop_map(Ok),
        1 => deed().prop_map(Err),
    ], 1..80)) {
        let mut sender = Sender::new(MIN_WINDOW, 2);
        let (mut sizes, mut reading) = (BTreeMap::new(), BTreeMap::new());
        for input in inputs {
            match input {
                Ok(message) => { let _ = sender.receive(message); }
                Err(Do::Offer(id, size, eager)) => {
                    if sender.offer(id, manifest(size), eager) {
                        sizes.insert(id, size);
                    }
                }
                Err(Do::Chunk(id)) => {
                    if let Some((pass, offset)) = reading.get_mut(&id)
                        && *offset < sizes[&id]
                        && sender.credit(id, *pass) > 0
                    {
                        sender.chunk(id, *pass, *offset, Bytes::from_static(b"x"), DIGEST);
                        *offset += 1;
                    }
                }
                Err(Do::Done(id, pass)) => sender.done(id, pass, DIGEST),
                Err(Do::Close(id)) => sender.close(id),
                Err(Do::Withdraw(id)) => sender.withdraw(id),
                Err(Do::Forget(id)) => sender.forget(vec![id], Vec::new()),
                Err(Do::Retime(id)) => sender.retime(late(vec![id])),
            }
            while let Some(event) = sender.poll_event() {
                if let SenderEvent::Read { id, pass, offset, .. } = event {
                    prop_assert!(offset <= sizes[&id]);
                    reading.insert(id, (pass, offset));
                }
            }
        }
        let waiting = std::iter::from_fn(|| sender.poll_message()).count();
        prop_assert!(waiting <= 200, "{waiting} messages wait");
        prop_assert!(sender.poll_message().is_none());
    }

    #[test]
    fn a_conversation_ends_in_order(messages in vec(prop_oneof![to_sender(), to_receiver()], 0..20), greet: bool) {
        let mut conversation = Conversation::new(local(), Duration::ZERO);
        let mut failed = false;
        if greet {
            conversation.receive(Message::Hello(local().hello), Duration::ZERO).unwrap();
        }
        for message in messages {
            failed |= conversation.receive(message, Duration::ZERO).is_err();
        }
        let mut said: Vec<_> = std::iter::from_fn(|| conversation.poll_message()).collect();
        prop_assert!(matches!(said.first(), Some(Message::Hello(_))));
        if failed {
            let last = said.pop();
            prop_assert!(matches!(last, Some(Message::Bye(Bye { reason: ByeReason::Violation, .. }))), "{last:?}");
        }
        prop_assert!(!said.iter().any(|m| matches!(m, Message::Bye(_))));
        conversation.end();
        let (mut opened, mut events) = (0i32, 0);
        while let Some(event) = conversation.poll_event() {
            events += 1;
            match event {
                Event::Storage(Command::Open { .. }) => opened += 1,
                Event::Storage(Command::Release { .. }) => opened -= 1,
                Event::Storage(Command::Withdraw { .. }) => opened = opened.min(0).max(opened - 1),
                _ => {}
            }
        }
        prop_assert!(events <= 60);
        prop_assert!(opened <= 0, "{opened} were not released");
    }
}

/// A storage to which everything succeeds.
fn obedient(command: Command) -> Vec<Outcome> {
    match command {
        Command::Open { id, sequence, .. } => vec![Outcome::Opened {
            id,
            sequence,
            offset: 0,
            digest: DIGEST,
        }],
        Command::Write {
            id,
            sequence,
            offset,
            bytes,
            ..
        } => {
            vec![Outcome::Written {
                id,
                sequence,
                offset: offset + bytes.len() as u64,
            }]
        }
        Command::Finish { id, sequence, .. } => vec![Outcome::Committed {
            id,
            sequence,
            receipt: receipt(),
        }],
        Command::Release { .. } => vec![],
        Command::Withdraw { id } => vec![Outcome::Withdrawn { id }],
        Command::Forget { ids, times } if ids.is_empty() => {
            let ids = times.iter().map(|late| late.id).collect();
            vec![Outcome::Forgotten { ids }]
        }
        Command::Forget { ids, .. } => vec![Outcome::Forgotten { ids }],
    }
}

fn local() -> Local {
    Local {
        hello: Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            name: "me".into(),
            software: "test".into(),
            window: MIN_WINDOW,
            max_open: 2,
            run: None,
        },
        max_file_size: None,
        ping_after: Duration::from_secs(15),
        dead_after: Duration::from_secs(60),
    }
}

#[test]
fn a_flood_is_answered_and_then_cut() {
    let mut receiver = Receiver::new(MIN_WINDOW, 3, None);
    let offer = |n: u8| {
        Message::Offer(Offer {
            id: TransferId([n; 16]),
            manifest: manifest(1),
            eager: false,
            serial: n.into(),
        })
    };
    for n in 0..6 {
        receiver.receive(offer(n)).expect("within twice the quota");
    }
    assert!(matches!(
        receiver.receive(offer(6)),
        Err(Error::PeerMisbehaved(PeerMisbehaved::Transfer {
            violation: Violation::TooManyOpen(6),
            ..
        }))
    ));
    let declined = std::iter::from_fn(|| receiver.poll_message());
    let busy = |m: &Message| {
        matches!(
            m,
            Message::Decline(Decline {
                reason: DeclineReason::Busy,
                ..
            })
        )
    };
    assert_eq!(declined.filter(busy).count(), 3);
}

#[test]
fn receipts_that_do_not_fit_in_one_frame_go_in_several() {
    let mut receiver = Receiver::new(MIN_WINDOW, 100, None);
    for n in 0..100u8 {
        let id = TransferId([n; 16]);
        let serial = u64::from(n);
        receiver
            .receive(Message::Offer(Offer {
                id,
                manifest: manifest(0),
                eager: true,
                serial,
            }))
            .expect("an offer");
        receiver
            .receive(Message::Done(Done {
                id,
                pass: 0,
                digest: DIGEST,
            }))
            .expect("done");
        receiver.outcome(Outcome::Committed {
            id,
            sequence: OfferSequence(serial),
            receipt: receipt(),
        });
    }
    let mut counts = Vec::new();
    while let Some(message) = receiver.poll_message() {
        let mut wire = bytes::BytesMut::new();
        tokio_util::codec::Encoder::encode(
            &mut dropwire_protocol::FrameCodec::default(),
            message.clone(),
            &mut wire,
        )
        .expect("fits");
        if let Message::Receipts(all) = message {
            counts.push(all.receipts.len());
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), 100);
    assert!(counts.len() > 1 && counts[0] > 20, "{counts:?}");
}

#[test]
fn versions() {
    for (min, max, fits) in [
        (1, 1, Some(1)),
        (1, 2, Some(2)),
        (0, 7, Some(3)),
        (1, 9, Some(3)),
        (3, 9, Some(3)),
        (4, 9, None),
        (0, 0, None),
    ] {
        let mut conversation = Conversation::new(local(), Duration::ZERO);
        let hello = Hello {
            version_min: min,
            version_max: max,
            ..local().hello
        };
        let result = conversation.receive(Message::Hello(hello), Duration::ZERO);
        let last = std::iter::from_fn(|| conversation.poll_message()).last();
        if let Some(fits) = fits {
            assert!(result.is_ok());
            let ready = conversation.poll_event();
            assert!(matches!(ready, Some(Event::Ready { version, .. }) if version == fits));
        } else {
            assert!(matches!(result, Err(Error::Incompatible { .. })));
            assert!(matches!(
                last,
                Some(Message::Bye(Bye {
                    reason: ByeReason::Incompatible,
                    ..
                }))
            ));
        }
    }
}

#[test]
fn a_hello_has_to_come_in_time_and_pings_keep_a_link() {
    let second = Duration::from_secs;
    let mut conversation = Conversation::new(local(), second(0));
    assert!(matches!(conversation.poll_message(), Some(Message::Hello(_))));
    for at in (0..60).step_by(5) {
        conversation.heard(second(at)); // a frame that never ends
        conversation.tick(second(at)).expect("not yet");
        assert_eq!(conversation.poll_message(), None, "no Ping before Ready");
    }
    assert_eq!(conversation.deadline(), second(60));
    assert!(matches!(conversation.tick(second(60)), Err(Error::Silent(_))));

    let mut conversation = Conversation::new(local(), second(0));
    conversation
        .receive(Message::Hello(local().hello), second(1))
        .expect("Hello");
    conversation.tick(conversation.deadline()).expect("a Ping is due");
    let ping = std::iter::from_fn(|| conversation.poll_message()).last();
    assert!(matches!(ping, Some(Message::Ping(_))), "{ping:?}");
    conversation
        .receive(Message::Ping(Ping { number: 7 }), second(20))
        .expect("a Ping");
    assert_eq!(
        conversation.poll_message(),
        Some(Message::Pong(Ping { number: 7 }))
    );
    conversation.probe(second(21), second(5));
    assert!(matches!(conversation.poll_message(), Some(Message::Ping(_))));
    assert_eq!(conversation.deadline(), second(26));
    assert!(matches!(conversation.tick(second(26)), Err(Error::Silent(_))));
}

#[test]
fn receipts_go_before_bye_and_offers_do_not() {
    let mut conversation = Conversation::new(local(), Duration::ZERO);
    conversation
        .receive(Message::Hello(local().hello), Duration::ZERO)
        .expect("Hello");
    conversation.poll_message();
    let (id, serial) = (TransferId([1; 16]), 0);
    let now = Duration::ZERO;
    conversation
        .receive(
            Message::Offer(Offer {
                id,
                manifest: manifest(0),
                eager: true,
                serial,
            }),
            now,
        )
        .expect("offer");
    conversation
        .receive(
            Message::Done(Done {
                id,
                pass: 0,
                digest: DIGEST,
            }),
            now,
        )
        .expect("done");
    conversation
        .sender()
        .expect("ready")
        .offer(TransferId([2; 16]), manifest(0), true);
    conversation.outcome(Outcome::Committed {
        id,
        sequence: OfferSequence(serial),
        receipt: receipt(),
    });
    conversation.bye(ByeReason::Shutdown, &"ü".repeat(300));
    assert!(matches!(conversation.poll_message(), Some(Message::Receipts(_))));
    assert!(matches!(conversation.poll_message(), Some(Message::Bye(bye)) if bye.text.len() == 256));
    assert_eq!(conversation.poll_message(), None);
}
