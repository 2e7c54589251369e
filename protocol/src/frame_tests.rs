//! Round trips, and what must never be read.

use std::{collections::BTreeMap, error::Error as _};

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{Kind, Manifest, Mtime, PathError, Receipt, RemotePath, message::*};

fn id() -> impl Strategy<Value = TransferId> {
    any::<[u8; 16]>().prop_map(TransferId)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn receipt() -> impl Strategy<Value = Receipt> {
    (
        vec(any::<u8>(), 0..600),
        vec(any::<u8>(), 0..60),
        vec(any::<u8>(), 0..70),
        vec(any::<u8>(), 0..70),
    )
        .prop_map(|(body, key, signature, audit_path)| Receipt {
            body,
            key,
            signature,
            audit_path,
        })
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let path = vec(any::<u8>(), 1..60).prop_filter_map("no path", |bytes| RemotePath::parse(&bytes).ok());
    let kind = proptest::sample::select(vec![Kind::File, Kind::Folder]);
    (path, any::<u64>(), any::<i64>(), 0..1_000_000_000u32, kind).prop_map(
        |(path, size, seconds, nanos, kind)| Manifest {
            path,
            size,
            mtime: Mtime { seconds, nanos },
            kind,
        },
    )
}

fn reason() -> impl Strategy<Value = DeclineReason> {
    use DeclineReason::*;
    proptest::sample::select(vec![
        NoSpace,
        TooLarge,
        InboxUnavailable,
        Busy,
        BadName,
        Conflict,
        Withdrawn,
        Fenced,
        DiskError,
        NoFolders,
    ])
}

fn bye_reason() -> impl Strategy<Value = ByeReason> {
    use ByeReason::*;
    proptest::sample::select(vec![Shutdown, Incompatible, Duplicate, Violation, Unpaired])
}

/// Every message there is, within its limits.
pub(super) fn message() -> impl Strategy<Value = Message> {
    let hello = (
        any::<(u16, u16)>(),
        "[a-zé]{0,32}",
        "[a-z/0-9.]{0,256}",
        any::<u64>(),
        any::<u32>(),
        option::of(any::<u64>()),
    );
    prop_oneof![
        hello.prop_map(
            |((version_min, version_max), name, software, window, max_open, run)| {
                Message::Hello(Hello {
                    version_min,
                    version_max,
                    name,
                    software,
                    window,
                    max_open,
                    run,
                })
            }
        ),
        (bye_reason(), "[ -~]{0,256}").prop_map(|(reason, text)| Message::Bye(Bye { reason, text })),
        any::<u64>().prop_map(|number| Message::Ping(Ping { number })),
        any::<u64>().prop_map(|number| Message::Pong(Ping { number })),
        (id(), manifest(), any::<bool>(), any::<u64>()).prop_map(|(id, manifest, eager, serial)| {
            Message::Offer(Offer {
                id,
                manifest,
                eager,
                serial,
            })
        }),
        (id(), any::<(u32, u64, u64)>(), digest()).prop_map(|(id, (pass, offset, serial), digest)| {
            Message::Accept(Accept {
                id,
                pass,
                offset,
                digest,
                serial,
            })
        }),
        (
            id(),
            reason(),
            "[ -~]{0,256}",
            option::of(any::<u64>()),
            any::<u64>()
        )
            .prop_map(|(id, reason, text, retry_after_ms, serial)| {
                Message::Decline(Decline {
                    id,
                    reason,
                    text,
                    retry_after_ms,
                    serial,
                })
            }),
        (id(), receipt(), option::of(any::<u64>()))
            .prop_map(|(id, receipt, serial)| Message::Settled(Settled { id, receipt, serial })),
        (
            id(),
            any::<u32>(),
            0..1u64 << 60,
            digest(),
            vec(any::<u8>(), 1..3000)
        )
            .prop_map(|(id, pass, offset, digest, bytes)| {
                Message::Chunk(Chunk {
                    id,
                    pass,
                    offset,
                    digest,
                    bytes: bytes.into(),
                })
            }),
        (id(), any::<(u32, u64, u64)>()).prop_map(|(id, (pass, offset, serial))| {
            Message::Ack(Ack {
                id,
                pass,
                offset,
                serial,
            })
        }),
        (id(), any::<u32>(), digest()).prop_map(|(id, pass, digest)| Message::Done(Done {
            id,
            pass,
            digest
        })),
        (id(), any::<u64>()).prop_map(|(id, serial)| Message::Close(Close { id, serial })),
        vec((id(), any::<u64>(), receipt()), 1..20).prop_map(|receipts| {
            let committed = |(id, serial, receipt)| Committed { id, serial, receipt };
            Message::Receipts(Receipts {
                receipts: receipts.into_iter().map(committed).collect(),
            })
        }),
        id().prop_map(|id| Message::Withdraw(Withdraw { id })),
        id().prop_map(|id| Message::Withdrawn(Withdrawn { id })),
        (vec(id(), 0..=MAX_BATCH), vec(late(), 1..=MAX_BATCH)).prop_map(|(ids, times)| {
            let times = (times.len() > 1 || ids.is_empty()).then_some(times);
            Message::Forget(Forget { ids, times })
        }),
        vec(id(), 1..=MAX_BATCH).prop_map(|ids| Message::Forgotten(Forgotten { ids })),
        any::<bool>().prop_map(|seen| Message::SharedKey(SharedKey { seen })),
    ]
}

fn late() -> impl Strategy<Value = LateTime> {
    (id(), any::<i64>(), 0..1_000_000_000_u32).prop_map(|(id, seconds, nanos)| LateTime {
        id,
        mtime: Mtime { seconds, nanos },
    })
}

fn encoded(message: &Message) -> BytesMut {
    let mut wire = BytesMut::new();
    FrameCodec::default()
        .encode(message.clone(), &mut wire)
        .expect("within the limits");
    wire
}

fn frame(kind: u8, body: &[u8]) -> BytesMut {
    let mut wire = BytesMut::new();
    wire.put_u32(1 + body.len() as u32);
    wire.put_u8(kind);
    wire.extend_from_slice(body);
    wire
}

fn refusal(mut wire: BytesMut) -> Malformed {
    match FrameCodec::default().decode(&mut wire) {
        Err(Error::Malformed(malformed)) => malformed,
        other => panic!("read as {other:?}"),
    }
}

/// Of a whole frame: what is read is written and read again as the same; what is not read is malformed.
fn is_judged(mut frame: BytesMut) -> Result<(), TestCaseError> {
    match FrameCodec::default().decode(&mut frame) {
        Ok(Some(read)) => {
            let again = FrameCodec::default().decode(&mut encoded(&read));
            prop_assert_eq!(again.expect("what was written"), Some(read));
        }
        Ok(None) => prop_assert!(false, "a whole frame is not waited for"),
        Err(error) => prop_assert!(matches!(error, Error::Malformed(_)), "{error}"),
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_message_comes_back_however_it_is_cut(messages in vec(message(), 1..6), cuts in vec(1usize..400, 1..20)) {
        let mut wire: BytesMut = messages.iter().map(encoded).fold(BytesMut::new(), |mut all, one| {
            all.unsplit(one);
            all
        });
        let (mut buffer, mut read, mut cuts) = (BytesMut::new(), Vec::new(), cuts.into_iter().cycle());
        while !wire.is_empty() {
            let cut = cuts.next().unwrap_or(1).min(wire.len());
            buffer.extend_from_slice(&wire.split_to(cut));
            while let Some(message) = FrameCodec::default().decode(&mut buffer).unwrap() {
                read.push(message);
            }
        }
        prop_assert_eq!(read, messages);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn any_bytes_take_no_more_memory_than_two_frames(bytes: Vec<u8>) {
        let mut buffer = BytesMut::from(bytes.as_slice());
        while let Ok(Some(_)) = FrameCodec::default().decode(&mut buffer) {}
        prop_assert!(buffer.capacity() <= bytes.len() + 2 * MAX_FRAME);
    }

    #[test]
    fn any_body_of_any_type_is_judged(kind in 0u8..20, body: Vec<u8>) {
        is_judged(frame(kind, &body))?;
    }

    #[test]
    fn a_message_changed_anywhere_is_judged(message in message(), at: prop::sample::Index, flip in 1u8..) {
        let mut wire = encoded(&message);
        let at = 4 + at.index(wire.len() - 4);
        wire[at] ^= flip;
        is_judged(wire)?;
    }

    #[test]
    fn bytes_after_the_end_are_refused(message in message()) {
        if !matches!(message, Message::Chunk(_)) {
            let wire = encoded(&message);
            let body = [&wire[5..], &[0]].concat();
            let refusal = refusal(frame(wire[4], &body));
            prop_assert!(matches!(refusal, Malformed::TrailingBytes(name) if name == message.name()), "{refusal}");
        }
    }
}

#[test]
fn a_length_is_judged_before_memory_is_taken() {
    for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
        let mut buffer = BytesMut::from(length.to_be_bytes().as_slice());
        let before = buffer.capacity();
        assert!(matches!(
            FrameCodec::default().decode(&mut buffer),
            Err(Error::Malformed(Malformed::FrameLength(told))) if told == length as usize
        ));
        assert_eq!(buffer.capacity(), before);
    }
    let mut buffer = BytesMut::from((MAX_FRAME as u32).to_be_bytes().as_slice());
    assert!(FrameCodec::default().decode(&mut buffer).unwrap().is_none());
    assert!(buffer.capacity() <= 2 * (MAX_FRAME + 4));
}

#[test]
fn a_chunk_is_read_without_a_copy_and_written_in_two_parts() {
    let chunk = Chunk {
        id: TransferId([1; 16]),
        pass: 2,
        offset: 3,
        digest: Digest([4; 32]),
        bytes: Bytes::from(vec![5; MAX_CHUNK]),
    };
    let mut wire = encoded(&Message::Chunk(chunk.clone()));
    let mut parts = BytesMut::new();
    encode_chunk_head(&chunk, &mut parts);
    let place = wire[parts.len()..].as_ptr();
    parts.extend_from_slice(&chunk.bytes);
    assert_eq!(parts, wire);
    match FrameCodec::default().decode(&mut wire).unwrap() {
        Some(Message::Chunk(read)) => {
            assert_eq!(read, chunk);
            assert_eq!(read.bytes.as_ptr(), place);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_refused() {
    use Malformed::*;
    type Expected = fn(&Malformed) -> bool;
    let cases: Vec<(BytesMut, Expected)> = vec![
        (frame(0, &[]), |m| matches!(m, UnknownType(0))),
        (frame(200, &[]), |m| matches!(m, UnknownType(200))),
        (frame(CHUNK, &[0; 59]), |m| matches!(m, ChunkHead)),
        (frame(CHUNK, &[0; 60]), |m| matches!(m, ChunkLength(0))),
        (frame(CHUNK, &[0; CHUNK_HEAD + MAX_CHUNK + 1]), |m| {
            matches!(m, ChunkLength(262_145))
        }),
        (
            frame(CHUNK, &[&[0; 20][..], &[0xff; 8], &[0; 42]].concat()),
            |m| matches!(m, ChunkEnd),
        ),
        // {0: 1 with an indefinite array at an unknown field}, and an indefinite map
        (frame(3, &[0xa2, 0, 1, 9, 0x9f, 0xff]), |m| {
            matches!(m, Indefinite("Ping"))
        }),
        (frame(3, &[0xbf, 0, 1, 0xff]), |m| matches!(m, Indefinite("Ping"))),
        // Forget {0: []}, {0: [], 1: []}, and one with 257 ids
        (frame(16, &[0xa1, 0, 0x80]), |m| {
            matches!(m, ListLength { length: 0, .. })
        }),
        (frame(16, &[0xa2, 0, 0x80, 1, 0x80]), |m| {
            matches!(m, ListLength { length: 0, .. })
        }),
        (
            frame(
                16,
                &[&[0xa1, 0, 0x99, 1, 1][..], &[[0x50; 17]; 257].concat()].concat(),
            ),
            |m| matches!(m, Undecodable("Forget", list) if list.is_message()),
        ),
    ];
    for (at, (wire, is_expected)) in cases.into_iter().enumerate() {
        let refusal = refusal(wire);
        assert!(is_expected(&refusal), "case {at}: {refusal}");
    }
    assert!(FrameCodec::default().decode(&mut frame(3, &[0xa1, 0, 1])).is_ok());
}

#[test]
fn a_path_that_leaves_the_inbox_is_refused() {
    // An Offer: {0: id, 1: {0: "../x", 1: 0, 2: {0: 0, 1: 0}}, 2: false, 3: 0}
    let id = [&[0x50][..], &[7; 16]].concat();
    let rest = [
        &[1, 0xa3, 0, 0x44][..],
        b"../x",
        &[1, 0, 2, 0xa2, 0, 0, 1, 0, 2, 0xf4, 3, 0],
    ]
    .concat();
    let Malformed::Undecodable("Offer", error) = refusal(frame(5, &[&[0xa4, 0][..], &id, &rest].concat()))
    else {
        panic!("another refusal")
    };
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    assert_eq!(cause, Some(&PathError::NotRelative));
    let told = error.to_string();
    assert!(told.ends_with(&PathError::NotRelative.to_string()), "{told}");
}

#[test]
fn unknown_fields_are_ignored() {
    let mut wire = frame(
        3,
        &[0xa2, 0, 5, 0x18, 99, 0x82, 0xa1, 1, 2, 0x63, b'x', b'y', b'z'],
    );
    let read = FrameCodec::default().decode(&mut wire).unwrap();
    assert_eq!(read, Some(Message::Ping(Ping { number: 5 })));
}

#[test]
fn texts_and_receipts_have_limits() {
    let bye = |length| {
        Message::Bye(Bye {
            reason: ByeReason::Shutdown,
            text: "x".repeat(length),
        })
    };
    let receipts = |count, length| {
        let receipt = Receipt {
            body: vec![0; length],
            key: vec![],
            signature: vec![],
            audit_path: vec![],
        };
        let one = Committed {
            id: TransferId([0; 16]),
            serial: 0,
            receipt,
        };
        Message::Receipts(Receipts {
            receipts: vec![one; count],
        })
    };
    let written = |message| match FrameCodec::default().encode(message, &mut BytesMut::new()) {
        Ok(()) => Ok(()),
        Err(Error::Malformed(malformed)) => Err(malformed),
        Err(other) => panic!("{other}"),
    };
    assert!(written(bye(MAX_TEXT)).is_ok());
    let text = written(bye(MAX_TEXT + 1));
    assert!(matches!(text, Err(Malformed::TextLength { length: 257, .. })));
    assert!(written(receipts(1, MAX_RECEIPT)).is_ok());
    let size = written(receipts(1, MAX_RECEIPT + 1));
    assert!(matches!(size, Err(Malformed::ReceiptSize(16_385))));
    let none = written(receipts(0, 0));
    assert!(matches!(none, Err(Malformed::ListLength { length: 0, .. })));
    assert!(written(receipts(MAX_BATCH, 500)).is_ok());
    let long = written(receipts(MAX_BATCH, 2000));
    assert!(matches!(long, Err(Malformed::FrameLength(length)) if length > MAX_FRAME));
    let many = written(receipts(MAX_BATCH + 1, 0));
    assert!(matches!(many, Err(Malformed::ListLength { length: 257, .. })));
}

/// PROTOCOL.md's table of types, `| 5 | Offer | …`, is the code's.
#[test]
fn the_document_names_the_same_types() {
    let rows = include_str!("../PROTOCOL.md").lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        Some((
            cells.next()?.trim().parse::<u8>().ok()?,
            cells.next()?.trim().to_owned(),
        ))
    });
    let documented: BTreeMap<u8, String> = rows.collect();
    let coded: BTreeMap<u8, String> = TYPES
        .iter()
        .map(|(name, kind)| (*kind, name.to_string()))
        .collect();
    assert_eq!(documented, coded);
}
