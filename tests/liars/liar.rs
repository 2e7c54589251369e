//! A peer that is paired and cannot be trusted: it has the key, speaks the protocol, and says what the test wants.

use bytes::BytesMut;
use dropwire::identity::Identity;
use dropwire_protocol::{
    AgentId, FrameCodec, Message, Receipt, ReceiptBody,
    message::{Bye, Hello, Offer, Ping},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::codec::{Decoder as _, Encoder as _};

use crate::harness::{Agent, PATIENCE};

/// A link, after both Hellos.
pub struct Liar {
    runtime: Runtime,
    stream: TlsStream<TcpStream>,
    codec: FrameCodec,
    heard: BytesMut,
    identity: Identity,
    /// Whom it talks to.
    pub other: AgentId,
}

impl Liar {
    /// Dials `other` with the key of `own`, an agent that does not run.
    #[track_caller]
    pub fn dial(own: &Agent, other: &Agent) -> Self {
        let identity = Identity::load(&own.state).expect("a sound key").expect("a key");
        let id = dropwire::id::parse(&other.id).expect("an id");
        let status = other.status();
        let address = status["listen"].as_str().expect("`listen` in status").to_owned();
        let connector = TlsConnector::from(identity.client_config(id));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let stream = runtime.block_on(async {
            let tcp = TcpStream::connect(address).await.expect("the port is open");
            let name = "dropwire".try_into().expect("a name");
            connector.connect(name, tcp).await.expect("TLS with both pins")
        });
        let mut liar = Self {
            runtime,
            stream,
            codec: FrameCodec::default(),
            heard: BytesMut::new(),
            identity,
            other: id,
        };
        liar.say(Message::Hello(hello_of(&own.name)));
        assert!(matches!(liar.hears(), Some(Message::Hello(_))));
        liar
    }

    /// So many further connections with its key, TLS complete; each second one has said Hello, none says more.
    pub fn crowds(&mut self, count: usize) -> Vec<TlsStream<TcpStream>> {
        let address = self.stream.get_ref().0.peer_addr().expect("an address");
        let connector = TlsConnector::from(self.identity.client_config(self.other));
        let mut hello = BytesMut::new();
        let said = Message::Hello(hello_of("crowd"));
        self.codec.encode(said, &mut hello).expect("a message");
        let one = async |number: usize| {
            let tcp = TcpStream::connect(address).await.expect("the port is open");
            let name = "dropwire".try_into().expect("a name");
            let mut stream = connector.connect(name, tcp).await.expect("TLS with both pins");
            if number.is_multiple_of(2) {
                let _ = stream.write_all(&hello).await; // it may have been let go
                let _ = stream.flush().await;
            }
            stream
        };
        self.runtime.block_on(async {
            let mut crowd = Vec::new();
            for number in 0..count {
                crowd.push(timeout(PATIENCE, one(number)).await.expect("it is accepted"));
            }
            crowd
        })
    }

    /// Its own id.
    pub fn id(&self) -> AgentId {
        self.identity.id()
    }

    /// Signs whatever it likes.
    pub fn sign(&self, body: &ReceiptBody) -> Receipt {
        self.identity.sign(body)
    }

    /// Says one thing; whether anyone still listens is not checked.
    pub fn say(&mut self, message: Message) {
        self.say_all([message]);
    }

    /// Says many things in few writes.
    pub fn say_all(&mut self, messages: impl IntoIterator<Item = Message>) {
        let mut bytes = BytesMut::new();
        for message in messages {
            self.codec.encode(message, &mut bytes).expect("a message");
            if bytes.len() > 1 << 20 {
                self.say_bytes(&bytes.split());
            }
        }
        self.say_bytes(&bytes);
    }

    /// Says what is no message.
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        let stream = &mut self.stream;
        let said = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        let _ = self
            .runtime
            .block_on(async { timeout(PATIENCE, said).await.expect("the other side reads on") });
    }

    /// What the other side says next, its Pings answered; None once it has closed the link.
    #[track_caller]
    pub fn hears(&mut self) -> Option<Message> {
        // Pings alone are no talk.
        let by = Instant::now() + PATIENCE;
        loop {
            match self.codec.decode(&mut self.heard).expect("an honest peer") {
                Some(Message::Ping(Ping { number })) => self.say(Message::Pong(Ping { number })),
                Some(message) => return Some(message),
                None => {
                    let read = self.stream.read_buf(&mut self.heard);
                    let read = self
                        .runtime
                        .block_on(async { timeout_at(by, read).await.expect("the other side talks") });
                    if !matches!(read, Ok(1..)) {
                        return None;
                    }
                }
            }
        }
    }

    /// The next offer, whatever comes before it.
    #[track_caller]
    pub fn is_offered(&mut self) -> Offer {
        loop {
            if let Message::Offer(offer) = self.hears().expect("an offer, but the link was closed") {
                return offer;
            }
        }
    }

    /// Listens until the other side has answered a Ping: then all that was said before is read.
    #[track_caller]
    pub fn is_heard(&mut self) {
        self.say(Message::Ping(Ping { number: u64::MAX }));
        let pong = Message::Pong(Ping { number: u64::MAX });
        while self.hears().expect("a Pong, but the link was closed") != pong {}
    }

    /// The Bye with which the other side ends the link.
    #[track_caller]
    pub fn is_sent_away(&mut self) -> Bye {
        loop {
            if let Message::Bye(bye) = self.hears().expect("a Bye before the end") {
                return bye;
            }
        }
    }
}

fn hello_of(name: &str) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        name: name.into(),
        software: "liar".into(),
        window: 8 << 20,
        max_open: 256,
        run: None,
    }
}
