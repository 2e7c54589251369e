//! A stream over several connections: in memory with every delay there is, against liars, and as a link over loopback.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use dropwire_protocol::message::MAX_CHUNK;
use proptest::prelude::*;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::yield_now,
};
use tokio_rustls::TlsConnector;

use super::harness::{Agent, Relay, identities, within};
use crate::{
    identity::Role,
    link::{
        Timing,
        join_token::SUBFLOWS,
        subflows::{HEAD, Subflows},
    },
};

/// A connection that keeps others waiting, and takes and gives as little as it likes.
struct Moody {
    inner: DuplexStream,
    mood: u64,
}

impl Moody {
    /// So much this time; None: not now.
    fn next(&mut self, cx: &mut Context<'_>) -> Option<usize> {
        self.mood ^= self.mood << 13;
        self.mood ^= self.mood >> 7;
        self.mood ^= self.mood << 17;
        if self.mood.is_multiple_of(4) {
            cx.waker().wake_by_ref();
            return None;
        }
        Some((self.mood >> 8) as usize % 3000 + 1)
    }
}

impl AsyncRead for Moody {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let Some(most) = self.next(cx) else {
            return Poll::Pending;
        };
        let most = most.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        let count = part.filled().len();
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Moody {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.next(cx) {
            Some(most) => Pin::new(&mut self.inner).poll_write(cx, &bytes[..most.min(bytes.len())]),
            None => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.next(cx) {
            Some(_) => Pin::new(&mut self.inner).poll_flush(cx),
            None => Poll::Pending,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn place() -> OwnedSemaphorePermit {
    Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
}

/// One end, over these; no more will join.
fn over<S>(streams: impl IntoIterator<Item = S>) -> Subflows<S> {
    let mut streams = streams.into_iter();
    let first = streams.next().unwrap();
    let subflows: Vec<S> = streams.collect();
    let (join, joining) = mpsc::channel(subflows.len().max(1));
    for stream in subflows {
        assert!(join.try_send((stream, place())).is_ok());
    }
    Subflows::new(first, joining)
}

/// A head and its bytes, as they go over a subflow.
fn segment(at: u64, bytes: &[u8]) -> Vec<u8> {
    [&at.to_be_bytes()[..], &(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// The far ends of `count` subflows, and the stream over the near ones.
fn liar(count: usize) -> (Vec<DuplexStream>, Subflows<DuplexStream>) {
    let (far, near): (Vec<_>, Vec<_>) = (0..count).map(|_| duplex(1000)).unzip();
    (far, over(near))
}

async fn refused(stream: &mut Subflows<DuplexStream>) -> String {
    let mut bytes = Vec::new();
    let error = within(stream.read_to_end(&mut bytes)).await.unwrap_err();
    format!("{:?}, {error}", error.kind())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read_in_order_whatever_the_strands_do(
        count in 1..6_usize,
        capacity in 16..40_000_usize,
        length in 0..300_000_usize,
        piece in 1..70_000_usize,
        moods in any::<[u64; 4]>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut moods = (1_u64..).map(|n| n ^ moods[n as usize % 4] | 1);
            let mut pair = || {
                let (near, far) = duplex(capacity);
                let mut moody = |inner| Moody { inner, mood: moods.next().unwrap() };
                (moody(near), moody(far))
            };
            let first = pair();
            let [(near_joins, near_joining), (far_joins, far_joining)] = [mpsc::channel(8), mpsc::channel(8)];
            let mut near = Subflows::new(first.0, near_joining);
            let mut far = Subflows::new(first.1, far_joining);
            let sent: Vec<u8> = (0..length).map(|n| (n / 7 % 251) as u8).collect();
            let to_send = sent.clone();
            let write = async move {
                for piece in to_send.chunks(piece) {
                    near.write_all(piece).await.unwrap();
                }
                near.flush().await.unwrap();
                near.shutdown().await.unwrap();
                drop(near);
            };
            let read = async {
                let mut came = Vec::new();
                far.read_to_end(&mut came).await.unwrap();
                came
            };
            let join = async {
                for at in 1..count {
                    for _ in 0..at * 20 {
                        yield_now().await;
                    }
                    let (near, far) = pair();
                    // One that joins a stream that has ended is closed.
                    if near_joins.send((near, place())).await.is_ok() {
                        let _ = far_joins.send((far, place())).await;
                    }
                }
                drop((near_joins, far_joins));
            };
            let ((), came, ()) = tokio::join!(write, read, join);
            assert!(came == sent, "{} of {length} bytes", came.len());
        });
    }
}

#[tokio::test]
async fn what_comes_too_early_waits_in_its_connection() {
    let (mut far, mut near) = liar(2);
    let mut came = [0; 8];
    let writes = async {
        let too_early = segment(4, &[7; 5000]);
        tokio::select! {
            written = far[1].write_all(&too_early) => panic!("all was taken: {written:?}"),
            () = async { for _ in 0..100 { yield_now().await } } => {}
        }
    };
    tokio::select! {
        read = near.read(&mut came) => panic!("nothing could be read: {read:?}"),
        () = writes => {}
    }
    // No more than its head was taken out of it: so much room there is now.
    let mut rest = [0_u8; 2000];
    let taken = std::future::poll_fn(|cx| Pin::new(&mut far[1]).poll_write(cx, &rest).map(Result::unwrap));
    tokio::select! {
        more = taken => panic!("room for {more} more"),
        () = yield_now() => {}
    }
    far[0].write_all(&segment(0, b"next")).await.unwrap();
    within(near.read_exact(&mut came)).await.unwrap();
    assert_eq!(&came, b"next\x07\x07\x07\x07");
    within(near.read_exact(&mut rest[..900])).await.unwrap();
}

#[tokio::test]
async fn a_repeated_segment_breaks_the_stream() {
    let (mut far, mut near) = liar(2);
    far[0].write_all(&segment(0, b"abcd")).await.unwrap();
    far[1].write_all(&segment(2, b"cd")).await.unwrap();
    assert_eq!(
        refused(&mut near).await,
        "InvalidData, a segment that came before"
    );
}

#[tokio::test]
async fn a_skipped_segment_is_noticed_once_nobody_can_send_it() {
    let (mut far, mut near) = liar(2);
    far[0].write_all(&segment(0, b"abcd")).await.unwrap();
    far[0].write_all(&segment(5, b"f")).await.unwrap();
    far[1].write_all(&segment(6, b"g")).await.unwrap();
    assert_eq!(refused(&mut near).await, "InvalidData, a segment is missing");
}

#[tokio::test]
async fn heads_that_make_no_sense_break_the_stream() {
    for head in [segment(0, b""), segment(u64::MAX, b"x")] {
        let (mut far, mut near) = liar(1);
        far[0].write_all(&head).await.unwrap();
        assert_eq!(refused(&mut near).await, "InvalidData, a segment that cannot be");
    }
}

#[tokio::test]
async fn a_strand_that_ends_in_the_middle_breaks_the_stream_after_what_came_before() {
    for length in [HEAD - 1, HEAD, HEAD + 1] {
        let (mut far, mut near) = liar(2);
        far[0].write_all(&segment(0, b"abcd")).await.unwrap();
        far[1].write_all(&segment(4, b"efgh")[..length]).await.unwrap();
        drop(far);
        let mut came = [0; 4];
        within(near.read_exact(&mut came)).await.unwrap();
        assert_eq!(&came, b"abcd");
        let mut rest = Vec::new();
        let error = within(near.read_to_end(&mut rest)).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

/// A link over a relay, on a line that counts as long; all connections have joined where the listener is.
async fn far_link(timing: Timing) -> (Agent, Agent, Relay) {
    let relay = Relay::start().await;
    let [one, two] = identities();
    let timing = Timing {
        far: Duration::ZERO,
        ..timing
    };
    let mut a = Agent::start_with(&one, &two, None, timing).await;
    let mut b = Agent::start_with(&two, &one, Some(relay.addr), timing).await;
    relay.lead_to(a.addr());
    within(async { tokio::join!(a.up(), b.up()) }).await;
    all_joined(&a).await;
    (a, b, relay)
}

async fn all_joined(listener: &Agent) {
    within(async {
        while listener.links.subflows() < SUBFLOWS {
            yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_long_line_is_used_over_several_connections_both_ways() {
    let (mut a, mut b, relay) = far_link(Timing::default()).await;
    for agent in [&mut a, &mut b] {
        agent.drop_files(30, 1000).await;
        agent.drop_files(3, 20 * MAX_CHUNK + 1).await;
    }
    within(async { tokio::join!(a.all_delivered(), b.all_delivered()) }).await;
    a.assert_lies_at(&b);
    b.assert_lies_at(&a);
    assert_eq!((a.ups, a.downs, b.ups, b.downs), (1, 0, 1, 0));
    let traffic = a.links.status().remove(0);
    assert!(traffic.sent_bytes > 60 * MAX_CHUNK as u64);
    within(async { tokio::join!(a.links.shutdown(), b.links.shutdown()) }).await;
    let carried = relay.carried().await;
    assert_eq!(carried.len(), 1 + SUBFLOWS);
    let busy = carried.iter().filter(|&&bytes| bytes > MAX_CHUNK as u64).count();
    assert!(busy > 1, "{carried:?}");
}

#[tokio::test]
async fn who_names_no_link_is_let_into_none() {
    let (a, mut b, _relay) = far_link(Timing::default()).await;
    let config = b.identity.client_config_for(a.id(), &[Role::Subflow]);
    let tcp = TcpStream::connect(a.addr()).await.unwrap();
    let name = "dropwire".try_into().unwrap();
    let mut stream = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    stream.write_all(&[7; 32]).await.unwrap();
    let answer = within(stream.read_u8()).await;
    assert!(answer.is_err(), "closed without a word: {answer:?}");
    assert_eq!(a.links.subflows(), SUBFLOWS);
    b.drop_files(1, 1000).await;
    within(b.all_delivered()).await;
    assert_eq!((a.downs, b.downs), (0, 0));
}

#[tokio::test]
async fn one_connection_that_is_cut_ends_the_link_and_nothing_is_lost() {
    let (mut a, mut b, relay) = far_link(Timing::default()).await;
    for round in 1..4 {
        let file = a.file(20 * MAX_CHUNK, true);
        a.offer(file).await;
        within(a.some_progress()).await;
        relay.cut.notify_one();
        within(async { tokio::join!(a.down(), b.down()) }).await;
        a.open_gates();
        within(async { tokio::join!(a.all_delivered(), b.up()) }).await;
        assert_eq!(a.ups, round + 1);
        all_joined(&a).await;
    }
    a.assert_lies_at(&b);
}

#[tokio::test]
async fn one_connection_that_stands_still_ends_the_link() {
    let (mut a, mut b, relay) = far_link(Timing {
        ping_after: Duration::from_millis(50),
        dead_after: Duration::from_millis(500),
        ..Timing::default()
    })
    .await;
    relay.freeze.notify_one();
    let (a, b) = within(async { tokio::join!(a.down(), b.down()) }).await;
    // Who notices it first ends the connections, which the other side may see before it notices by itself.
    let noticed = |error: &Option<String>| {
        let error = error.as_deref().unwrap_or_default();
        error.contains("no sign of life") || error.contains("took nothing")
    };
    assert!(noticed(&a) || noticed(&b), "{a:?}, {b:?}");
}
