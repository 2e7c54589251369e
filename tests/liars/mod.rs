//! Peers that are paired and lie: they get nothing for it, and nobody else pays.

mod liar;

use bytes::Bytes;
use dropwire_protocol::{
    Digest, Kind, Manifest, Message, Mtime, ReceiptBody, RemotePath, RunningDigest, TransferId,
    frame::FrameCodec,
    message::{Accept, ByeReason, Chunk, Committed, Decline, DeclineReason, Offer, Receipts, Settled},
};
use tokio_util::codec::Encoder as _;

use liar::Liar;

use crate::harness::{Agent, Pair, files, pair::peer, settings::Settings, until};

/// The office runs, behind on its own wishes: it tries again at once.
fn office() -> (Liar, Pair) {
    let mut pair = Pair::idle();
    pair.office
        .settings
        .tables
        .push("[retry]\nfirst = \"10ms\"\nmax = \"50ms\"".into());
    pair.office.start();
    (Liar::dial(&pair.laptop, &pair.office), pair)
}

fn offer(number: u64, path: &[u8], size: u64) -> Offer {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    Offer {
        id: TransferId(id),
        manifest: Manifest {
            path: RemotePath::parse(path).expect("a path"),
            size,
            mtime: Mtime { seconds: 0, nanos: 0 },
            kind: Kind::File,
        },
        eager: size <= 262_144,
        serial: number,
    }
}

fn attempts(agent: &Agent) -> u64 {
    let jobs = agent.jobs();
    assert_eq!(jobs.len(), 1);
    assert_ne!(jobs[0]["state"], "delivered", "{jobs:?}");
    jobs[0]["attempts"].as_u64().expect("attempts")
}

/// Its id is spent, so the file goes under a new one; but not in a loop that fills the job list.
#[test]
fn an_offer_that_is_always_in_conflict_is_repeated_with_patience() {
    for reason in [DeclineReason::Conflict, DeclineReason::Withdrawn] {
        let (mut liar, pair) = office();
        pair.office.drop_file("x", b"x");
        for _ in 0..4 {
            let offer = liar.is_offered();
            liar.say(Message::Decline(Decline {
                id: offer.id,
                reason,
                text: "no".into(),
                retry_after_ms: None,
                serial: offer.serial,
            }));
        }
        liar.is_offered();
        assert!(attempts(&pair.office) >= 4);
        assert!(pair.office.outbox.join("x").exists());
    }
}

#[test]
fn a_receipt_that_proves_something_else_proves_nothing() {
    let (mut liar, pair) = office();
    pair.office.drop_file("x", b"true");
    let stranger = dropwire::identity::Identity::generate();
    let digest = |bytes: &[u8]| {
        let mut digest = RunningDigest::default();
        digest.update(bytes);
        digest.value()
    };
    let (me, office) = (liar.id(), liar.other);
    let true_body = |offer: &Offer| ReceiptBody {
        transfer: offer.id,
        sender: office,
        receiver: me,
        path: offer.manifest.path.clone(),
        delivered_as: offer.manifest.path.clone(),
        size: 4,
        digest: digest(b"true"),
        delivered_at: 1,
        salt: [0; 16],
    };
    type Lie<'a> = Box<dyn Fn(&mut ReceiptBody) + 'a>;
    let lies: [Lie<'_>; 7] = [
        Box::new(|body| body.transfer = TransferId([9; 16])),
        Box::new(|body| body.sender = me),
        Box::new(|body| body.receiver = office),
        Box::new(|body| body.path = RemotePath::parse(b"y").expect("a path")),
        Box::new(|body| body.size = 3),
        Box::new(|body| body.digest = digest(b"lies")),
        Box::new(|body| body.receiver = stranger.id()),
    ];
    let mut answer = |settled: bool, change: &dyn Fn(&mut ReceiptBody), forge: bool| {
        let offer = liar.is_offered();
        let mut body = true_body(&offer);
        change(&mut body);
        let mut receipt = match body.receiver == stranger.id() {
            true => stranger.sign(&body),
            false => liar.sign(&body),
        };
        if forge {
            receipt.signature[7] ^= 1;
        }
        let (id, serial) = (offer.id, offer.serial);
        if settled {
            let serial = Some(serial);
            return liar.say(Message::Settled(Settled { id, receipt, serial }));
        }
        if !offer.eager {
            liar.say(Message::Accept(Accept {
                id,
                pass: 0,
                offset: 0,
                digest: digest(b""),
                serial,
            }));
        }
        while !matches!(liar.hears().expect("Done"), Message::Done(done) if done.id == id) {}
        liar.say(Message::Receipts(Receipts {
            receipts: vec![Committed { id, serial, receipt }],
        }));
    };
    let mut told = 0;
    for settled in [false, true] {
        for lie in &lies {
            answer(settled, lie, false);
            told += 1;
        }
        answer(settled, &|_| (), true);
        told += 1;
    }
    until("every lie was a failed attempt", || {
        attempts(&pair.office) >= told
    });
    assert!(pair.office.outbox.join("x").exists());
    answer(false, &|_| (), false);
    pair.office.delivers(1);
}

/// A chunk shares the buffer it was read into; what is kept of it must not.
#[test]
fn files_in_single_bytes_take_the_memory_of_files() {
    const FILES: u64 = 250;
    const SIZE: u64 = 2048;
    let (mut liar, pair) = office();
    let Some(before) = pair.office.peak_memory_kib() else {
        return crate::harness::skip("files_in_single_bytes_take_the_memory_of_files", "no /proc");
    };
    let mut digests = Vec::new();
    let mut digest = RunningDigest::default();
    for _ in 0..SIZE {
        digest.update(b"b");
        digests.push(digest.value());
    }
    for number in 0..FILES {
        let offer = offer(number, b"bytes", SIZE);
        let id = offer.id;
        let chunks = (0..SIZE - 1).zip(&digests).map(|(offset, digest)| {
            Message::Chunk(Chunk {
                id,
                pass: 0,
                offset,
                digest: *digest,
                bytes: Bytes::from_static(b"b"),
            })
        });
        liar.say_all([Message::Offer(offer)].into_iter().chain(chunks));
    }
    liar.is_heard();
    let peak = pair.office.peak_memory_kib().expect("it was there before");
    assert!(peak - before < 16 * 1024, "from {before} KiB to {peak} KiB");
    assert!(pair.office.received().is_empty());
}

#[test]
fn a_path_that_leads_elsewhere_ends_the_link() {
    let evil: [&[u8]; 14] = [
        b"../x",
        b"/etc/x",
        b"a//b",
        b"a/../../x",
        b".",
        b"a\0b",
        b".dropwire/x",
        b".DROPWIRE/x",
        b"a/.dropwire/partial",
        b"a/",
        b".dropwire./x",
        &[b'x'; 256],
        &[b'/'; 128],
        &[b'x'; 4097],
    ];
    let pair = office().1;
    for path in evil {
        let mut liar = Liar::dial(&pair.laptop, &pair.office);
        let harmless = vec![b'h'; 250.min(path.len())];
        let mut bytes = bytes::BytesMut::new();
        FrameCodec::default()
            .encode(Message::Offer(offer(0, &harmless, 1)), &mut bytes)
            .expect("a message");
        liar.say_bytes(&swap(&bytes, &harmless, path));
        assert_eq!(liar.is_sent_away().reason, ByeReason::Violation);
    }
    assert!(files::list(&pair.office.inbox).is_empty());
    assert!(pair.office.partials().is_empty());
}

/// Puts another path into an encoded offer.
fn swap(frame: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let head = |length: usize| match length {
        0..24 => vec![0x40 | length as u8],
        24..256 => vec![0x58, length as u8],
        _ => vec![0x59, (length >> 8) as u8, length as u8],
    };
    let (from, to) = (
        [head(from.len()), from.to_vec()].concat(),
        [head(to.len()), to.to_vec()].concat(),
    );
    let at = frame
        .windows(from.len())
        .position(|w| w == from)
        .expect("the path");
    let body = [&frame[4..at], &to, &frame[at + from.len()..]].concat();
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

/// Damage without end, and offers without end, leave room for an honest file.
#[test]
fn nonsense_without_end_ends_in_a_refusal() {
    let (mut liar, pair) = office();
    let large = offer(0, b"large", 1 << 30);
    let id = large.id;
    liar.say(Message::Offer(large));
    loop {
        match liar.hears().expect("an answer") {
            Message::Accept(accept) => liar.say(Message::Chunk(Chunk {
                id,
                pass: accept.pass,
                offset: accept.offset,
                digest: Digest([1; 32]),
                bytes: Bytes::from_static(&[7; 1000]),
            })),
            Message::Decline(decline) => break assert_eq!(decline.reason, DeclineReason::DiskError),
            other => panic!("{other:?}"),
        }
    }
    // More than twice what a link may have open.
    for number in 1..=2100 {
        liar.say(Message::Offer(offer(number, b"never", 1)));
    }
    assert_eq!(liar.is_sent_away().reason, ByeReason::Violation);
    assert!(files::list(&pair.office.inbox).is_empty());
    let mut pair = pair;
    pair.laptop.start();
    pair.laptop.drop_file("honest", b"honest");
    pair.office.receives("honest", b"honest");
}

/// Connections cost nothing but descriptors: those of one peer must not take them from the others.
#[test]
fn a_crowd_of_proven_connections_leaves_descriptors_for_others() {
    let mut pair = Pair::idle();
    let mut home = Agent::new("home", Settings::default());
    pair.office.descriptors = Some(128);
    pair.office.settings.peers.push(peer(&home, None));
    pair.office.start();
    let office = peer(&pair.office, Some(pair.wire.address().to_string()));
    home.settings.peers.push(office);
    let mut liar = Liar::dial(&pair.laptop, &pair.office);
    let crowd = liar.crowds(300);
    home.start();
    home.drop_file("large", &[7; 300_000]);
    pair.office.receives("large", &[7; 300_000]);
    assert!(!pair.office.log_text().contains("Too many open files"));
    drop((crowd, liar));
    pair.laptop.start();
    pair.laptop.drop_file("back to honesty", b"x");
    pair.office.receives("back to honesty", b"x");
}
