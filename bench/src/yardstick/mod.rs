//! The barest pair of programs that does what dropwire has to: read, hash, encrypt, send, decrypt, hash, write, sync,
//! rename, sync the folder. No job list, no resume, no second file under way, nothing checked but the digest; so it is
//! about as fast as this can be done with a plain loop on each side, and the limit that others are held against.
//!
//! ```text
//!   a file    name length (u16) size (u64) name, bytes, SHA-256 (32)     integers little-endian
//!   commit    name length 0, size 0: what came so far is to be made durable; answered by one byte
//! ```
//!
//! A single file is synced and renamed by itself; many go in batches of [`BATCH`] with one syncfs for each, which the
//! sender does not wait for before the next.

pub mod receive;
pub mod send;

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
    SideData,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};

use crate::failed;

/// Small files that share one sync.
pub const BATCH: usize = 1024;
/// From this size on a file goes in [`PIECE`]s through two threads on each side.
const LARGE: u64 = 1 << 20;
/// Of a large file, read or written at once.
const PIECE: usize = 1 << 20;
/// Pieces under way between the two threads of a side.
const PIECES: usize = 4;
const BUFFER: usize = 256 << 10;
const NAME: &str = "yardstick";
const HEADER: usize = 10;
const DIGEST: usize = 32;

/// How large the socket's buffers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Buffers {
    /// 256 KiB, which keeps bytes in the processor's cache on loopback.
    Fixed,
    /// As the kernel finds right for a long line.
    Automatic,
}

/// TLS over blocking TCP, with few calls: 256 KiB at a time in both directions.
struct Line<C> {
    tls: C,
    socket: BufReader<TcpStream>,
}

impl<C, S: SideData> Line<C>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>>,
{
    fn new(mut tls: C, socket: TcpStream, buffers: Buffers) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        if buffers == Buffers::Fixed {
            let socket = socket2::SockRef::from(&socket);
            socket.set_send_buffer_size(BUFFER)?;
            socket.set_recv_buffer_size(BUFFER)?;
        }
        tls.set_buffer_limit(None);
        let mut socket = BufReader::with_capacity(BUFFER, socket);
        while tls.is_handshaking() {
            while tls.wants_write() {
                tls.write_tls(socket.get_mut())?;
            }
            if tls.is_handshaking() {
                fill(&mut *tls, &mut socket)?;
            }
        }
        let mut line = Self { tls, socket };
        line.send(&[])?;
        Ok(line)
    }

    /// All of `bytes` are with the kernel.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(BUFFER).chain([&[][..]]) {
            self.tls.writer().write_all(piece)?;
            while self.tls.wants_write() {
                self.tls.write_tls(self.socket.get_mut())?;
            }
        }
        Ok(())
    }

    /// The next bytes, at most `most`, without copying them; None at the end.
    fn next<T>(&mut self, most: usize, take: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        loop {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok([]) => return Ok(None),
                Ok(bytes) => {
                    let bytes = &bytes[..bytes.len().min(most)];
                    let (length, taken) = (bytes.len(), take(bytes));
                    reader.consume(length);
                    return Ok(Some(taken));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    fill(&mut *self.tls, &mut self.socket)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Fills `bytes`; false at an end before the first one.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &mut bytes[at..];
            let taken = self.next(rest.len(), |next| {
                rest[..next.len()].copy_from_slice(next);
                next.len()
            })?;
            match taken {
                Some(length) => at += length,
                None if at == 0 => return Ok(false),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(true)
    }
}

fn fill<S: SideData>(tls: &mut ConnectionCommon<S>, socket: &mut BufReader<TcpStream>) -> io::Result<()> {
    tls.read_tls(&mut socket.by_ref())?;
    tls.process_new_packets().map_err(io::Error::other)?;
    Ok(())
}

/// The agent's provider, and its first cipher only.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    })
}

/// A server with a certificate made for it, which the client is to trust.
fn server() -> io::Result<(ServerConnection, CertificateDer<'static>)> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(io::Error::other)?;
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|c| {
            c.with_no_client_auth()
                .with_single_cert(vec![certificate.clone()], key)
        })
        .map_err(io::Error::other)?;
    let server = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
    Ok((server, certificate))
}

fn client(trusted: CertificateDer<'static>) -> io::Result<ClientConnection> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).map_err(io::Error::other)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)
}

/// What comes before a file's bytes; a name of no length is the commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    name: u16,
    size: u64,
}

impl Header {
    const COMMIT: Self = Self { name: 0, size: 0 };

    fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&self.name.to_le_bytes());
        bytes[2..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    fn decode([a, b, size @ ..]: [u8; HEADER]) -> Self {
        Self {
            name: u16::from_le_bytes([a, b]),
            size: u64::from_le_bytes(size),
        }
    }
}

fn wrong_digest(name: &str) -> io::Error {
    failed(format!("{name} came with another digest"))
}
