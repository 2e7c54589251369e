//! What a paired peer can do that it should not, each for as long as it is let.

use std::{collections::VecDeque, io, time::Duration};

use dropwire_protocol::{
    Digest, Message, TransferId,
    message::{Accept, Bye, ByeReason, Close, Decline, DeclineReason, Forget, Ping},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use super::link::{Link, Target, chunk, digest_of, done, withdraw};
use crate::soak::chance::Chance;

/// One kind of attack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[allow(missing_docs)] // each is named after what it does
pub enum Attack {
    UnknownIds,
    WrongDigests,
    PastTheSize,
    PastTheWindow,
    DoneEarly,
    OffersWithoutBytes,
    OffersAtOnce,
    WithdrawStorm,
    NeverForget,
    DeepPaths,
    FileWhereAFolderMustBe,
    ReadsNothing,
    PingStorm,
    Nonsense,
    LiesAboutOffers,
    ProvenConnections,
    SaysHelloAndLeaves,
    HalfHandshakes,
    BareConnects,
}

impl Attack {
    /// All of them.
    pub fn all() -> &'static [Self] {
        use clap::ValueEnum as _;
        Self::value_variants()
    }

    /// Goes on until `until`; what the victim closes is opened again.
    pub async fn run(self, target: &Target, chance: &mut Chance, until: Instant) {
        while Instant::now() < until {
            // An error is the victim's way to end it.
            if let Ok(Err(_)) = timeout_at(until, self.once(target, chance)).await {
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    async fn once(self, target: &Target, chance: &mut Chance) -> io::Result<()> {
        match self {
            Self::ProvenConnections => return proven_connections(target, chance).await,
            Self::HalfHandshakes => return half_handshakes(target, chance).await,
            Self::BareConnects => return bare_connects(target).await,
            Self::SaysHelloAndLeaves => {
                let mut link = target.link(8 << 20, 256).await?;
                let id = fresh(chance);
                let messages = link.file(id, b"in passing", b"x");
                return match chance.percent(50) {
                    true => link.say(messages).await,
                    false => Ok(()),
                };
            }
            _ => {}
        }
        let (window, max_open) = match chance.percent(50) {
            true => (u64::MAX, u32::MAX),
            false => (1 << 20, 0),
        };
        let mut link = target.link(window, max_open).await?;
        match self {
            Self::UnknownIds => unknown_ids(&mut link, chance).await,
            Self::WrongDigests => wrong_digests(&mut link, chance).await,
            Self::PastTheSize => past_the_size(&mut link, chance).await,
            Self::PastTheWindow => past_the_window(&mut link, chance).await,
            Self::DoneEarly => {
                let id = fresh(chance);
                let offer = link.offer(id, b"early", 1000);
                let few = chunk(id, 0, b"few", digest_of(b"few"));
                link.say([offer, few, done(id, digest_of(b"few"))]).await?;
                link.listen().await
            }
            Self::OffersWithoutBytes => offers(&mut link, chance, 900, 1 << 30).await,
            Self::OffersAtOnce => offers(&mut link, chance, 2_000, 1_000).await,
            Self::WithdrawStorm => withdraw_storm(&mut link, chance).await,
            Self::NeverForget => never_forget(&mut link, chance).await,
            Self::DeepPaths => deep_paths(&mut link, chance).await,
            Self::FileWhereAFolderMustBe => file_where_a_folder_must_be(&mut link, chance).await,
            Self::ReadsNothing => reads_nothing(&mut link, chance).await,
            Self::PingStorm => loop {
                link.say((0..1000).map(|number| Message::Ping(Ping { number })))
                    .await?;
            },
            Self::Nonsense => nonsense(&mut link, chance).await,
            Self::LiesAboutOffers => lies_about_offers(&mut link, chance).await,
            Self::ProvenConnections
            | Self::SaysHelloAndLeaves
            | Self::HalfHandshakes
            | Self::BareConnects => Ok(()),
        }
    }
}

/// So many folders are made at the top: more would take longer to clear away than to make.
const FOLDERS: u64 = 200;

fn fresh(chance: &mut Chance) -> TransferId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&chance.number().to_le_bytes());
    id[8..].copy_from_slice(&chance.number().to_le_bytes());
    TransferId(id)
}

async fn unknown_ids(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    loop {
        let ids: Vec<_> = (0..200).map(|_| fresh(chance)).collect();
        link.say(ids.iter().map(|id| withdraw(*id))).await?;
        link.say([Message::Forget(Forget { ids, times: None })]).await?;
        link.listen().await?;
        if chance.percent(20) {
            let (id, serial) = (fresh(chance), chance.below(3));
            let message = match chance.below(3) {
                0 => chunk(id, 0, b"x", digest_of(b"x")),
                1 => done(id, digest_of(b"")),
                _ => Message::Close(Close { id, serial }),
            };
            link.say([message]).await?;
        }
    }
}

async fn wrong_digests(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    for _ in 0..100 {
        let (id, wrong) = (fresh(chance), Digest([7; 32]));
        let size = chance.magnitude(1, 4 << 20);
        let offer = link.offer(id, b"damaged", size);
        link.say([offer]).await?;
        let bytes = vec![1; size.min(64 << 10) as usize];
        if size > 256 << 10 {
            link.listen().await?; // its Accept
        }
        link.say([chunk(id, 0, &bytes, wrong)]).await?;
    }
    link.listen().await
}

async fn past_the_size(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    let id = fresh(chance);
    let offer = link.offer(id, b"longer than said", 10);
    let bytes = vec![3; 200 << 10];
    let digest = digest_of(&bytes);
    link.say([offer, chunk(id, 0, &bytes, digest), done(id, digest)])
        .await?;
    link.listen().await
}

async fn past_the_window(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    let id = fresh(chance);
    let offer = link.offer(id, b"huge", 1 << 30);
    link.say([offer]).await?;
    while !matches!(link.hears().await?, Some(Message::Accept(_)) | None) {}
    let (mut offset, mut digest) = (0, dropwire_protocol::RunningDigest::default());
    let bytes = vec![9; 256 << 10];
    loop {
        digest.update(&bytes);
        link.say([chunk(id, offset, &bytes, digest.value())]).await?;
        offset += bytes.len() as u64;
    }
}

async fn offers(link: &mut Link, chance: &mut Chance, count: u64, size: u64) -> io::Result<()> {
    for number in 0..count {
        let offer = link.offer(fresh(chance), format!("never {number}").as_bytes(), size);
        link.say([offer]).await?;
    }
    // They stay open for a while.
    for _ in 0..20 {
        link.listen().await?;
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn withdraw_storm(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    loop {
        let same = chance.percent(30).then(|| fresh(chance));
        for _ in 0..4 {
            let mut messages = Vec::new();
            for _ in 0..50 {
                let id = same.unwrap_or_else(|| fresh(chance));
                messages.extend(link.file(id, b"withdrawn", b""));
                messages.push(withdraw(id));
            }
            link.say(messages).await?;
        }
        link.listen().await?;
    }
}

async fn never_forget(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    loop {
        let mut messages = Vec::new();
        for _ in 0..50 {
            let folder = "f".repeat(120);
            let path = format!("kept/{}/{folder}/{}", chance.below(4), chance.number());
            messages.extend(link.file(fresh(chance), path.as_bytes(), b""));
        }
        link.say(messages).await?;
        link.listen().await?;
    }
}

async fn deep_paths(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    loop {
        let mut messages = Vec::new();
        for _ in 0..10 {
            let first = chance.below(FOLDERS).to_string();
            let path = [&[first.as_str()][..], &["0123456789"; 126]].concat().join("/");
            messages.extend(link.file(fresh(chance), path.as_bytes(), b"deep"));
        }
        link.say(messages).await?;
        link.listen().await?;
    }
}

async fn file_where_a_folder_must_be(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    loop {
        let name = chance.below(FOLDERS);
        let mut messages = Vec::new();
        for path in [
            format!("t{name}"),
            format!("t{name}/below"),
            format!("t{name}/below/deeper"),
        ] {
            messages.extend(link.file(fresh(chance), path.as_bytes(), b"in the way"));
        }
        link.say(messages).await?;
        link.listen().await?;
    }
}

/// Acks, receipts and answers pile up at the victim.
async fn reads_nothing(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    loop {
        let mut messages = Vec::new();
        for _ in 0..100 {
            let id = fresh(chance);
            messages.extend(link.file(id, b"unread", b"receipts pile up"));
            if chance.percent(50) {
                messages.push(withdraw(id));
            }
        }
        link.say(messages).await?;
    }
}

async fn nonsense(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    let length = chance.magnitude(1, 300 << 10) as usize;
    let mut bytes: Vec<u8> = (0..length).map(|_| chance.number() as u8).collect();
    if chance.percent(50) && bytes.len() > 5 {
        // A frame of a type that there is, with a body that means nothing.
        let body = bytes.len() - 4;
        bytes[..4].copy_from_slice(&(body as u32).to_be_bytes());
        bytes[4] = chance.below(20) as u8;
    }
    link.say_bytes(&bytes).await?;
    let text = "no reason".into();
    let reason = ByeReason::Violation;
    link.say([Message::Bye(Bye { reason, text })]).await
}

/// The victim has files for this peer.
async fn lies_about_offers(link: &mut Link, chance: &mut Chance) -> io::Result<()> {
    while let Some(message) = link.hears().await? {
        let Message::Offer(offer) = message else {
            continue;
        };
        let (id, serial) = (offer.id, offer.serial);
        let lie = match chance.below(3) {
            0 => Message::Accept(Accept {
                id,
                pass: 0,
                offset: chance.below(offer.manifest.size + 2),
                digest: Digest([1; 32]),
                serial,
            }),
            _ => Message::Decline(Decline {
                id,
                reason: [DeclineReason::Conflict, DeclineReason::Busy][chance.index(2)],
                text: "\u{1b}[2Jno".into(),
                retry_after_ms: Some(0),
                serial,
            }),
        };
        link.say([lie]).await?;
    }
    Ok(())
}

async fn proven_connections(target: &Target, chance: &mut Chance) -> io::Result<()> {
    let mut open = VecDeque::new();
    loop {
        if chance.percent(50) {
            open.push_back((Some(target.link(8 << 20, 256).await?), None));
        } else {
            open.push_back((None, Some(target.connect().await?)));
        }
        if open.len() > 300 {
            open.pop_front();
        }
    }
}

async fn half_handshakes(target: &Target, chance: &mut Chance) -> io::Result<()> {
    // The head of a ClientHello that never ends.
    const BEGINNING: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let mut open = VecDeque::new();
    loop {
        let mut tcp = TcpStream::connect(target.address).await?;
        let length = chance.index(BEGINNING.len() + 1);
        let _ = tcp.write_all(&BEGINNING[..length]).await;
        open.push_back(tcp);
        if open.len() > 300 {
            open.pop_front();
        }
        sleep(Duration::from_millis(1)).await;
    }
}

async fn bare_connects(target: &Target) -> io::Result<()> {
    let mut open = VecDeque::new();
    loop {
        open.push_back(TcpStream::connect(target.address).await?);
        if open.len() > 300 {
            open.pop_front();
        }
        sleep(Duration::from_millis(1)).await;
    }
}
