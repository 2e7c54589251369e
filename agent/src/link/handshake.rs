//! From a TCP connection to a link that may carry transfers: socket options, TLS with both pins, both Hellos.

use std::{io, sync::Arc, time::Duration};

use dropwire_protocol::{Conversation, Error, Event, Local, message::ByeReason};
use rustls::{ConnectionCommon, SideData};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    Timing,
    buffered::Buffered,
    wire::{Counted, Reader, Traffic, Writer, wire},
};
use crate::identity::{NotPaired, Role};

/// What lies below TLS.
pub(super) type Socket = Buffered<Counted<TcpStream>>;

/// Prepares a connection for TLS.
pub(super) fn socket(tcp: TcpStream, timing: &Timing) -> (Socket, Arc<Traffic>) {
    // Each of these only makes it better; a socket without them works.
    let _ = tcp.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(timing.ping_after)
        .with_interval(Duration::from_secs(5));
    let _ = SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    {
        let _ = SockRef::from(&tcp).set_tcp_user_timeout(Some(timing.dead_after));
        let _ = SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT);
    }
    let traffic = Arc::new(Traffic::default());
    (Buffered::new(Counted::new(tcp, traffic.clone())), traffic)
}

/// Fits a connection to the line, once it is known what it is for.
pub(super) fn fit<S: SideData>(socket: &Socket, tls: &mut ConnectionCommon<S>, role: Role) {
    if role == Role::Whole {
        tls.set_buffer_limit(Some(ENCRYPTED));
        return;
    }
    // As above, each is for the better only.
    #[cfg(target_os = "linux")]
    {
        let socket = SockRef::from(socket.get_ref().get_ref());
        let _ = socket.set_tcp_congestion(b"bbr");
        let _ = socket.set_tcp_notsent_lowat(UNSENT_FAR);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

/// How long the way to the other side and back takes: what the kernel saw, or else what connecting took.
pub(super) fn round_trip(tcp: &TcpStream, connecting: Duration) -> Duration {
    #[cfg(target_os = "linux")]
    {
        use std::{mem, os::fd::AsRawFd as _};
        // SAFETY: tcp_info is numbers, for which all zeros is a value.
        let mut info: libc::tcp_info = unsafe { mem::zeroed() };
        let mut length = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of what it is handed.
        let code = unsafe {
            libc::getsockopt(
                tcp.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &mut length,
            )
        };
        if code == 0 && info.tcpi_rtt > 0 {
            return Duration::from_micros(info.tcpi_rtt.into());
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = tcp;
    connecting
}

/// Exchanges Hellos. The caller bounds the time.
pub(super) async fn greet<S: AsyncRead + AsyncWrite>(
    stream: S,
    traffic: Arc<Traffic>,
    local: Local,
    timing: &Timing,
) -> Result<Greeted<S>, Error> {
    let epoch = Instant::now();
    let mut conversation = Conversation::new(local, Duration::ZERO);
    let (mut reader, mut writer) = wire(stream);
    let mut run = None;
    let hello = async {
        loop {
            while let Some(message) = conversation.poll_message() {
                writer.encode(message)?;
            }
            let decoded = reader
                .decode()
                .inspect_err(|e| conversation.bye(ByeReason::Violation, &e.to_string()))?;
            if let Some(message) = decoded {
                conversation.receive(message, epoch.elapsed())?;
                match conversation.poll_event() {
                    Some(Event::Ready { hello, .. }) => {
                        run = hello.run;
                        return Ok(());
                    }
                    Some(Event::Bye(bye)) => {
                        let text = dropwire_protocol::name::escape(bye.text.as_bytes());
                        return Err(
                            io::Error::other(format!("the peer said no: {:?} {text}", bye.reason)).into(),
                        );
                    }
                    _ => continue,
                }
            }
            let idle = writer.is_idle();
            tokio::select! {
                filled = reader.fill() => { filled?; }
                written = writer.progress(), if !idle => written?,
            }
        }
    };
    let greeted = hello.await;
    let mut link = Greeted {
        conversation,
        reader,
        writer,
        traffic,
        epoch,
        run,
    };
    match greeted {
        Ok(()) => Ok(link),
        Err(error) => {
            if !matches!(error, Error::Io(_) | Error::Silent(_)) {
                link.leave(timing.goodbye).await;
            }
            Err(error)
        }
    }
}

/// A connection after both Hellos.
pub(super) struct Greeted<S> {
    pub(super) conversation: Conversation,
    pub(super) reader: Reader<S>,
    pub(super) writer: Writer<S>,
    pub(super) traffic: Arc<Traffic>,
    /// Where the conversation's clock stands at zero.
    pub(super) epoch: Instant,
    /// What the other side's Hello said of its run.
    pub(super) run: Option<u64>,
}

impl<S: AsyncRead + AsyncWrite> Greeted<S> {
    /// Says why and closes; bounded.
    pub(super) async fn goodbye(&mut self, reason: ByeReason, within: Duration) {
        self.conversation.bye(reason, "");
        self.leave(within).await;
    }

    /// Writes what waits, a Bye last, and reads on until the other side has closed: closing with unread bytes would
    /// reset the connection and with it the Bye.
    pub(super) async fn leave(&mut self, within: Duration) {
        let close = async {
            while let Some(message) = self.conversation.poll_message() {
                self.writer.encode(message)?;
                self.writer.finish().await?;
            }
            self.writer.finish().await?;
            self.writer.shutdown().await?;
            self.reader.drain().await;
            Ok::<_, Error>(())
        };
        let _ = timeout(within, close).await;
    }
}

/// A failed handshake in words that say what to do.
pub(super) fn explain(error: &Error) -> String {
    let Error::Io(io) = error else {
        return error.to_string();
    };
    match NotPaired::find(io) {
        Some(why @ NotPaired::Unknown(_)) => {
            return format!("{why}; compare its `dropwire id` with our config");
        }
        Some(why @ NotPaired::Ourselves) => return why.to_string(),
        None => {}
    }
    match io.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::CertificateUnknown)) => {
            "it does not let this agent's key in: its config must list the id that `dropwire id` prints here"
                .into()
        }
        _ => io.to_string(),
    }
}

/// Most bytes that lie within TLS, encrypted: they leave in one call, and each may wake the other side once more.
const ENCRYPTED: usize = 256 * 1024;
/// The kernel asks for more once less than this waits for its turn on the wire: what lies there already goes before a
/// small file that comes up, and on a slow line megabytes would.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 256 * 1024;
/// Where a link has several connections: what waits for its turn on one of them could not take another one's.
#[cfg(target_os = "linux")]
const UNSENT_FAR: u32 = 64 * 1024;
