//! What each half answers to what does not belong there: tables of what came before and what comes then.

use bytes::Bytes;
use dropwire_protocol::{
    Digest, Error, Kind, Manifest, Message, Mtime, PeerMisbehaved, Receipt, RemotePath, TransferId,
    Violation as V,
    message::*,
    receiver::{Command, OfferSequence, Outcome, Receiver},
    sender::{Sender, SenderEvent},
};

const ID: TransferId = TransferId([7; 16]);
const DIGEST: Digest = Digest([0; 32]);
const OPENING: OfferSequence = OfferSequence(0);

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
        body: vec![],
        key: vec![],
        signature: vec![],
        audit_path: vec![],
    }
}

fn offer(serial: u64, size: u64, eager: bool) -> Message {
    Message::Offer(Offer {
        id: ID,
        manifest: manifest(size),
        eager,
        serial,
    })
}

fn chunk(pass: u32, offset: u64, length: usize) -> Message {
    Message::Chunk(Chunk {
        id: ID,
        pass,
        offset,
        digest: DIGEST,
        bytes: Bytes::from(vec![0; length]),
    })
}

fn done(pass: u32) -> Message {
    Message::Done(Done {
        id: ID,
        pass,
        digest: DIGEST,
    })
}

fn close(serial: u64) -> Message {
    Message::Close(Close { id: ID, serial })
}

fn opened(offset: u64) -> Outcome {
    Outcome::Opened {
        id: ID,
        sequence: OPENING,
        offset,
        digest: DIGEST,
    }
}

fn damaged(pass: u32, offset: u64) -> Outcome {
    Outcome::Damaged {
        id: ID,
        sequence: OPENING,
        pass,
        offset,
        digest: DIGEST,
    }
}

fn committed() -> Outcome {
    Outcome::Committed {
        id: ID,
        sequence: OPENING,
        receipt: receipt(),
    }
}

fn refused() -> Outcome {
    let (reason, text) = (DeclineReason::NoSpace, String::new());
    Outcome::Refused {
        id: ID,
        sequence: OPENING,
        reason,
        text,
        retry_after_ms: None,
    }
}

enum Step {
    Wire(Message),
    Storage(Outcome),
}
use Step::{Storage as S, Wire as W};

/// Takes all steps; only the last may be refused. What is said is read at once.
fn receive(steps: Vec<Step>) -> (Result<(), PeerMisbehaved>, Vec<Message>) {
    let mut receiver = Receiver::new(MIN_WINDOW, 4, None);
    let (mut said, mut result) = (Vec::new(), Ok(()));
    for step in steps {
        result.expect("only the last step may fail");
        result = match step {
            W(message) => receiver.receive(message).map_err(misbehaved),
            S(outcome) => {
                receiver.outcome(outcome);
                Ok(())
            }
        };
        said.extend(std::iter::from_fn(|| receiver.poll_message()));
    }
    (result, said)
}

fn misbehaved(error: Error) -> PeerMisbehaved {
    match error {
        Error::PeerMisbehaved(misbehaved) => misbehaved,
        other => panic!("{other}"),
    }
}

/// With a message about [`ID`].
fn with(message: &'static str, violation: V) -> PeerMisbehaved {
    let id = ID;
    PeerMisbehaved::Transfer {
        message,
        id,
        violation,
    }
}

#[test]
fn a_receiver_refuses() {
    let large = 8 * MIN_WINDOW;
    let window = || (0..5).map(|i| W(chunk(0, i * MAX_CHUNK as u64, MAX_CHUNK)));
    let begun: Vec<_> = [W(offer(0, large, false)), S(opened(0))]
        .into_iter()
        .chain(window())
        .collect();
    let cases: Vec<(Vec<Step>, PeerMisbehaved)> = vec![
        (vec![W(chunk(0, 0, 1))], with("Chunk", V::NotOpen)),
        (vec![W(done(0))], with("Done", V::NotOpen)),
        (vec![W(close(0))], with("Close", V::UnknownSerial(0))),
        (
            vec![W(offer(0, 5, false)), W(chunk(0, 0, 1))],
            with("Chunk", V::Opening),
        ),
        (vec![W(offer(0, 5, false)), W(done(0))], with("Done", V::Opening)),
        (
            vec![W(offer(0, 5, false)), W(offer(1, 5, false))],
            with("Offer", V::Opening),
        ),
        (
            vec![W(offer(3, 5, false)), W(close(3)), W(offer(3, 5, false))],
            with("Offer", V::UsedSerial(3)),
        ),
        (
            vec![W(offer(0, MAX_EAGER + 1, true))],
            with("Offer", V::EagerTooLarge(MAX_EAGER + 1)),
        ),
        (
            vec![W(offer(0, 5, true)), W(chunk(0, 1, 1))],
            with(
                "Chunk",
                V::WrongOffset {
                    offset: 1,
                    expected: 0,
                },
            ),
        ),
        (
            vec![W(offer(0, 5, true)), W(chunk(0, 0, 6))],
            with("Chunk", V::TooManyBytes(5)),
        ),
        (
            vec![W(offer(0, 5, true)), W(chunk(1, 0, 5))],
            with("Chunk", V::WrongPass { pass: 1, expected: 0 }),
        ),
        (
            vec![W(offer(0, 5, true)), W(chunk(0, 0, 4)), W(done(0))],
            with("Done", V::BytesMissing { came: 4, size: 5 }),
        ),
        (
            vec![W(offer(0, 5, true)), W(chunk(0, 0, 5)), W(done(1))],
            with("Done", V::WrongPass { pass: 1, expected: 0 }),
        ),
        (
            vec![W(offer(0, 0, true)), W(done(0)), W(done(0))],
            with("Done", V::Finishing),
        ),
        (
            vec![W(offer(0, 0, true)), W(done(0)), W(chunk(0, 0, 1))],
            with("Chunk", V::Finishing),
        ),
        (
            vec![W(offer(0, 0, true)), W(done(0)), S(committed()), W(done(0))],
            with("Done", V::NotOpen),
        ),
        (
            vec![W(offer(0, 5, false)), S(refused()), W(offer(1, 5, false))],
            with("Offer", V::Refused),
        ),
        (
            vec![W(Message::Ack(Ack {
                id: ID,
                pass: 0,
                offset: 0,
                serial: 0,
            }))],
            PeerMisbehaved::NotForReceiver("Ack"),
        ),
        (begun, with("Chunk", V::BeyondWindow(MIN_WINDOW))),
    ];
    for (steps, expected) in cases {
        assert_eq!(receive(steps).0, Err(expected));
    }
}

#[test]
fn a_receiver_takes() {
    use Message::{Accept as A, Decline as D, Receipts as R};
    let cases: Vec<(Vec<Step>, &str)> = vec![
        (vec![W(offer(0, 0, true)), W(done(0)), S(committed())], "Receipts"),
        (
            vec![W(offer(0, 5, false)), S(opened(5)), W(done(0)), S(committed())],
            "Accept Receipts",
        ),
        // Nothing is receipted that was not done, or not committed now.
        (vec![W(offer(0, 5, true)), W(chunk(0, 0, 5)), S(committed())], ""),
        (vec![W(offer(0, 5, false)), S(committed())], ""),
        (
            vec![W(offer(0, 0, true)), W(done(0)), W(close(0)), S(committed())],
            "",
        ),
        (
            vec![
                W(offer(0, 0, true)),
                W(done(0)),
                W(close(0)),
                W(offer(1, 0, true)),
                W(done(0)),
                S(committed()),
            ],
            "",
        ),
        // What was under way when it was refused, or damaged, is dropped.
        (
            vec![
                W(offer(0, 5, true)),
                S(refused()),
                W(chunk(0, 0, 5)),
                W(done(0)),
                W(close(0)),
            ],
            "Decline",
        ),
        (
            vec![
                W(offer(0, 5, true)),
                W(chunk(0, 0, 5)),
                S(damaged(1, 2)),
                W(done(0)),
                W(chunk(1, 2, 3)),
                W(done(1)),
            ],
            "Accept",
        ),
        (
            vec![
                W(offer(0, 5, true)),
                W(chunk(0, 0, 5)),
                W(done(0)),
                S(damaged(1, 5)),
                W(done(1)),
                S(committed()),
            ],
            "Accept Receipts",
        ),
        // Late words of the storage and late Closes change nothing.
        (
            vec![
                W(offer(0, 5, false)),
                W(close(0)),
                S(opened(0)),
                S(damaged(1, 0)),
                S(refused()),
            ],
            "",
        ),
        (
            vec![
                W(offer(0, 5, false)),
                W(close(0)),
                W(offer(1, 5, true)),
                W(close(0)),
                W(chunk(0, 0, 5)),
            ],
            "",
        ),
        (vec![W(offer(0, 5, false)), S(opened(6))], "Decline"),
    ];
    for (at, (steps, expected)) in cases.into_iter().enumerate() {
        let (result, said) = receive(steps);
        assert_eq!(result, Ok(()), "case {at}");
        assert!(said.iter().all(|m| matches!(m, A(_) | D(_) | R(_))));
        let said: Vec<_> = said.iter().map(Message::name).collect();
        assert_eq!(said.join(" "), expected, "case {at}");
    }
}

fn accept(pass: u32, offset: u64, serial: u64) -> Message {
    Message::Accept(Accept {
        id: ID,
        pass,
        offset,
        digest: DIGEST,
        serial,
    })
}

fn ack(pass: u32, offset: u64) -> Message {
    Message::Ack(Ack {
        id: ID,
        pass,
        offset,
        serial: 0,
    })
}

fn receipts(serial: u64) -> Message {
    Message::Receipts(Receipts {
        receipts: vec![Committed {
            id: ID,
            serial,
            receipt: receipt(),
        }],
    })
}

#[test]
fn a_sender_refuses() {
    let withdrawn = || Message::Withdrawn(Withdrawn { id: ID });
    let settled = |serial| {
        Message::Settled(Settled {
            id: ID,
            receipt: receipt(),
            serial,
        })
    };
    // Of 10 bytes the agent gives 4 as soon as it may.
    let cases: Vec<(Vec<Message>, PeerMisbehaved)> = vec![
        (vec![accept(0, 0, 1)], with("Accept", V::UnknownSerial(1))),
        (
            vec![accept(0, 11, 0)],
            with("Accept", V::BeyondSize { offset: 11, size: 10 }),
        ),
        (
            vec![accept(1, 0, 0)],
            with("Accept", V::WrongPass { pass: 1, expected: 0 }),
        ),
        (vec![ack(0, 0)], with("Ack", V::NotAccepted)),
        (vec![receipts(0)], with("Receipts", V::NotDone)),
        (vec![receipts(1)], with("Receipts", V::UnknownSerial(1))),
        (
            vec![accept(0, 0, 0), accept(0, 0, 0)],
            with("Accept", V::WrongPass { pass: 0, expected: 1 }),
        ),
        (
            vec![accept(0, 0, 0), accept(2, 0, 0)],
            with("Accept", V::WrongPass { pass: 2, expected: 1 }),
        ),
        (
            vec![accept(0, 0, 0), accept(1, 5, 0)],
            with("Accept", V::NotSent { offset: 5, sent: 4 }),
        ),
        (
            vec![accept(0, 0, 0), ack(0, 5)],
            with("Ack", V::NotSent { offset: 5, sent: 4 }),
        ),
        (
            vec![accept(0, 0, 0), ack(0, 3), ack(0, 2)],
            with("Ack", V::FallingOffset { offset: 2, before: 3 }),
        ),
        (
            vec![accept(0, 0, 0), ack(1, 0)],
            with("Ack", V::WrongPass { pass: 1, expected: 0 }),
        ),
        (vec![accept(0, 0, 0), receipts(0)], with("Receipts", V::NotDone)),
        (vec![withdrawn()], with("Withdrawn", V::NotAsked)),
        (vec![settled(None)], with("Settled", V::NotAsked)),
        (vec![settled(Some(1))], with("Settled", V::UnknownSerial(1))),
        (
            vec![Message::Forgotten(Forgotten { ids: vec![ID] })],
            with("Forgotten", V::NotAsked),
        ),
        (vec![done(0)], PeerMisbehaved::NotForSender("Done")),
    ];
    for (messages, expected) in cases {
        let mut sender = Sender::new(MIN_WINDOW, 1);
        assert!(sender.offer(ID, manifest(10), false));
        let mut result = Ok(());
        for message in messages {
            result.expect("only the last message may fail");
            result = sender.receive(message).map_err(misbehaved);
            if sender.credit(ID, 0) == MIN_WINDOW {
                sender.chunk(ID, 0, 0, Bytes::from_static(b"four"), DIGEST);
            }
        }
        assert_eq!(result, Err(expected));
    }
}

#[test]
fn a_folder_is_offered_only_to_who_knows_folders_and_never_eager() {
    let folder = || Manifest {
        kind: Kind::Folder,
        ..manifest(10)
    };
    let mut old = Sender::new(MIN_WINDOW, 1).speaking(1);
    assert!(old.offer(ID, folder(), true));
    let declined = old.poll_event();
    let reason = DeclineReason::NoFolders;
    assert!(matches!(declined, Some(SenderEvent::Declined { id: ID, reason: r, .. }) if r == reason));
    assert!(old.poll_message().is_none() && old.can_offer());

    let mut new = Sender::new(MIN_WINDOW, 1).speaking(VERSION_FOLDERS);
    assert!(new.offer(ID, folder(), true));
    let Some(Message::Offer(offer)) = new.poll_message() else {
        panic!("an offer")
    };
    assert!(!offer.eager && offer.manifest.kind == Kind::Folder && new.poll_event().is_none());

    let mut receiver = Receiver::new(MIN_WINDOW, 1, None);
    let eager = Message::Offer(Offer { eager: true, ..offer });
    let refused = receiver.receive(eager).map_err(misbehaved);
    assert_eq!(refused, Err(with("Offer", V::EagerFolder)));
}

/// As version 1 wrote it, so that its readers and ours understand each other.
#[test]
fn a_file_s_manifest_is_written_without_its_kind() {
    let bytes = minicbor::to_vec(manifest(10)).unwrap();
    assert_eq!(bytes[0], 0xa3, "a map of three");
    assert_eq!(minicbor::decode::<Manifest>(&bytes).unwrap(), manifest(10));
}

#[test]
fn what_crossed_with_our_close_is_ignored() {
    let decline = |serial| {
        let (reason, text) = (DeclineReason::Busy, String::new());
        Message::Decline(Decline {
            id: ID,
            reason,
            text,
            retry_after_ms: None,
            serial,
        })
    };
    let mut sender = Sender::new(MIN_WINDOW, 1);
    let said = |sender: &mut Sender| -> Vec<_> {
        std::iter::from_fn(|| sender.poll_message())
            .map(|message| message.name())
            .collect()
    };
    assert!(sender.offer(ID, manifest(10), false));
    assert_eq!(said(&mut sender), ["Offer"]);
    sender.close(ID);
    assert!(sender.offer(ID, manifest(10), false));
    assert_eq!(said(&mut sender), ["Close", "Offer"]);
    for late in [accept(0, 3, 0), decline(0), receipts(0)] {
        sender.receive(late).expect("ignored");
    }
    assert_eq!(sender.poll_event(), None);
    sender.receive(decline(1)).expect("the second offer's");
    assert!(sender.poll_event().is_some());
    assert_eq!(said(&mut sender), ["Close"]);
    // An offer that was not written yet needs no Close.
    assert!(sender.offer(ID, manifest(10), true));
    sender.close(ID);
    assert_eq!(said(&mut sender), [""; 0]);
}

#[test]
fn questions_have_a_limit_that_the_sender_keeps() {
    let mut sender = Sender::new(MIN_WINDOW, 1);
    let mut receiver = Receiver::new(MIN_WINDOW, 1, None);
    let id = |n: usize| TransferId((n as u128).to_be_bytes());
    sender.forget((0..MAX_ASKED).map(id).collect(), Vec::new());
    (0..MAX_ASKED).for_each(|n| sender.withdraw(id(n)));
    let mut asked = 0;
    while let Some(message) = sender.poll_message() {
        asked += 1;
        receiver.receive(message).expect("within the limit");
    }
    assert_eq!(asked, MAX_ASKED);
    let one_more = receiver.receive(Message::Withdraw(Withdraw { id: ID }));
    assert_eq!(
        one_more.map_err(misbehaved),
        Err(PeerMisbehaved::TooManyQuestions)
    );
    sender
        .receive(Message::Withdrawn(Withdrawn { id: id(3) }))
        .expect("an answer");
    assert_eq!(
        sender.poll_message().map(|m| m.name()),
        Some("Forget"),
        "an answer makes room"
    );
    assert_eq!(sender.poll_message(), None);
}

#[test]
fn a_kept_files_time_is_told_only_to_who_knows_that_and_never_while_it_is_to_be_forgotten() {
    let late = |seconds| LateTime {
        id: ID,
        mtime: Mtime { seconds, nanos: 0 },
    };
    let retimed = Some(SenderEvent::Retimed { ids: vec![ID] });
    let mut old = Sender::new(MIN_WINDOW, 1).speaking(VERSION_FOLDERS);
    old.retime(vec![late(1)]);
    assert_eq!((old.poll_message(), old.poll_event()), (None, retimed.clone()));

    let mut sender = Sender::new(MIN_WINDOW, 1).speaking(VERSION_KEPT_TIMES);
    let mut receiver = Receiver::new(MIN_WINDOW, 1, None);
    sender.retime(vec![late(1)]);
    sender.retime(vec![late(2)]);
    sender.forget(vec![ID], vec![late(3)]);
    let told = sender.poll_message().expect("the time");
    let (ids, times) = (Vec::new(), vec![late(2)]);
    let forget = Forget {
        ids: ids.clone(),
        times: Some(times.clone()),
    };
    assert_eq!(told, Message::Forget(forget));
    assert_eq!(
        sender.poll_message(),
        None,
        "one answer at a time says which it is to"
    );
    receiver.receive(told).expect("a question");
    assert_eq!(receiver.poll_command(), Some(Command::Forget { ids, times }));
    receiver.outcome(Outcome::Forgotten { ids: vec![ID] });
    sender
        .receive(receiver.poll_message().expect("an answer"))
        .expect("to the question");
    assert_eq!(sender.poll_event(), retimed);
    let Some(Message::Forget(forget)) = sender.poll_message() else {
        panic!("it may be forgotten now")
    };
    assert_eq!((forget.ids, forget.times), (vec![ID], Some(vec![late(3)])));
    sender.retime(vec![late(4)]);
    assert_eq!(sender.poll_message(), None);
    let forgotten = || Message::Forgotten(Forgotten { ids: vec![ID] });
    sender.receive(forgotten()).expect("it is forgotten");
    assert_eq!(
        sender.poll_event(),
        Some(SenderEvent::Forgotten { ids: vec![ID] })
    );
    assert_eq!(sender.poll_message().map(|m| m.name()), Some("Forget"));
    sender.receive(forgotten()).expect("it has the time");
    let once_more = sender.receive(forgotten()).map_err(misbehaved);
    assert_eq!(once_more, Err(with("Forgotten", V::NotAsked)));
}

#[test]
fn passes_have_a_limit_that_the_receiver_keeps() {
    let mut sender = Sender::new(MIN_WINDOW, 1);
    let mut receiver = Receiver::new(MIN_WINDOW, 1, None);
    assert!(sender.offer(ID, manifest(1), true));
    let mut accepts = 0;
    for pass in 1..=MAX_PASS + 1 {
        while let Some(message) = sender.poll_message() {
            receiver.receive(message).expect("an honest sender");
        }
        receiver.outcome(damaged(pass, 0));
        while let Some(message) = receiver.poll_message() {
            accepts += u32::from(matches!(message, Message::Accept(_)));
            sender.receive(message).expect("an honest receiver");
        }
    }
    assert_eq!(accepts, MAX_PASS);
    assert_eq!(
        sender.poll_message().map(|m| m.name()),
        Some("Close"),
        "it was declined"
    );
    let mut sender = Sender::new(MIN_WINDOW, 1);
    assert!(sender.offer(ID, manifest(1), true));
    for pass in 1..=MAX_PASS {
        sender.receive(accept(pass, 0, 0)).expect("a pass");
    }
    let one_more = sender.receive(accept(MAX_PASS + 1, 0, 0)).map_err(misbehaved);
    assert_eq!(one_more, Err(with("Accept", V::TooManyPasses(MAX_PASS + 1))));
}
