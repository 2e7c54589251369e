//! A link as a peer makes it that has the key and keeps no promise.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::BytesMut;
use dropwire::identity::Identity;
use dropwire_protocol::{
    AgentId, Digest, FrameCodec, Kind, Manifest, Message, Mtime, RemotePath, RunningDigest, TransferId,
    message::{Chunk, Done, Hello, MAX_EAGER, Offer, Ping, Withdraw},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::codec::{Decoder as _, Encoder as _};

/// Whom it attacks, and by which key.
pub struct Target {
    /// The hostile peer's own, which the victim lets in.
    pub identity: Identity,
    /// The victim.
    pub victim: AgentId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections so far whose key was proven.
    pub made: AtomicU64,
    /// Messages so far that the victim took from a socket, or its system did.
    pub said: Arc<AtomicU64>,
    /// What goes on.
    pub attack: Mutex<String>,
}

/// One link, after both Hellos.
pub struct Link {
    stream: TlsStream<TcpStream>,
    codec: FrameCodec,
    heard: BytesMut,
    serial: u64,
    said: Arc<AtomicU64>,
}

/// What the victim does not take or say within this is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

impl Target {
    /// TLS with both pins, no word said.
    pub async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let connecting = async {
            let tcp = TcpStream::connect(self.address).await?;
            let name = "dropwire".try_into().map_err(io::Error::other)?;
            TlsConnector::from(self.identity.client_config(self.victim))
                .connect(name, tcp)
                .await
        };
        let stream = timeout(PATIENCE, connecting).await??;
        self.made.fetch_add(1, Relaxed);
        Ok(stream)
    }

    /// A link whose Hello promises to take in `window` bytes and `max_open` transfers.
    pub async fn link(&self, window: u64, max_open: u32) -> io::Result<Link> {
        let mut link = Link {
            stream: self.connect().await?,
            codec: FrameCodec::default(),
            heard: BytesMut::new(),
            serial: 0,
            said: Arc::clone(&self.said),
        };
        let hello = Hello {
            version_min: 1,
            version_max: 2,
            name: "hostile".into(),
            software: "hostile".into(),
            window,
            max_open,
            run: None,
        };
        link.say([Message::Hello(hello)]).await?;
        match link.hears().await? {
            Some(Message::Hello(_)) => Ok(link),
            other => Err(io::Error::other(format!("{other:?} instead of Hello"))),
        }
    }
}

impl Link {
    /// Says these; an error once the victim has closed the link, or takes nothing any more.
    pub async fn say(&mut self, messages: impl IntoIterator<Item = Message>) -> io::Result<()> {
        let (mut bytes, mut count) = (BytesMut::new(), 0);
        for message in messages {
            self.codec.encode(message, &mut bytes).map_err(io::Error::other)?;
            count += 1;
        }
        self.say_bytes(&bytes).await?;
        self.said.fetch_add(count, Relaxed);
        Ok(())
    }

    /// Says what need not be a message.
    pub async fn say_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = &mut self.stream;
        let said = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        timeout(PATIENCE, said).await?
    }

    /// The next message, Pings answered; None: none came in time.
    pub async fn hears(&mut self) -> io::Result<Option<Message>> {
        loop {
            match self.codec.decode(&mut self.heard).map_err(io::Error::other)? {
                Some(Message::Ping(Ping { number })) => self.say([Message::Pong(Ping { number })]).await?,
                Some(message) => return Ok(Some(message)),
                None => match timeout(PATIENCE, self.stream.read_buf(&mut self.heard)).await {
                    Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => drop(read?),
                    Err(_) => return Ok(None),
                },
            }
        }
    }

    /// Takes what comes until nothing came for a moment.
    pub async fn listen(&mut self) -> io::Result<()> {
        loop {
            match timeout(Duration::from_millis(20), self.hears()).await {
                Ok(heard) => drop(heard?),
                Err(_) => return Ok(()),
            }
        }
    }

    /// An offer under the next serial.
    pub fn offer(&mut self, id: TransferId, path: &[u8], size: u64) -> Message {
        self.serial += 1;
        let path = RemotePath::parse(path).or_else(|_| RemotePath::parse(b"fallback"));
        Message::Offer(Offer {
            id,
            manifest: Manifest {
                path: path.expect("a plain name is a path"),
                size,
                mtime: Mtime { seconds: 1, nanos: 0 },
                kind: Kind::File,
            },
            eager: size <= MAX_EAGER,
            serial: self.serial,
        })
    }

    /// A whole small file: offer, bytes, Done.
    pub fn file(&mut self, id: TransferId, path: &[u8], bytes: &[u8]) -> Vec<Message> {
        let digest = digest_of(bytes);
        let mut messages = vec![self.offer(id, path, bytes.len() as u64)];
        if !bytes.is_empty() {
            messages.push(chunk(id, 0, bytes, digest));
        }
        messages.push(done(id, digest));
        messages
    }
}

/// Bytes at `offset` in the first pass.
pub(super) fn chunk(id: TransferId, offset: u64, bytes: &[u8], digest: Digest) -> Message {
    Message::Chunk(Chunk {
        id,
        pass: 0,
        offset,
        digest,
        bytes: bytes.to_vec().into(),
    })
}

/// The end of the first pass.
pub(super) fn done(id: TransferId, digest: Digest) -> Message {
    Message::Done(Done { id, pass: 0, digest })
}

/// Never to be delivered.
pub(super) fn withdraw(id: TransferId) -> Message {
    Message::Withdraw(Withdraw { id })
}

/// SHA-256.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    let mut digest = RunningDigest::default();
    digest.update(bytes);
    digest.value()
}
