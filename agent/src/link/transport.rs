//! What a link's bytes go over: one connection, or several.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use super::{handshake::Socket, subflows::Subflows};

/// One proven connection.
pub(super) type Tls = TlsStream<Socket>;

/// A link's stream of bytes.
pub(super) enum Transport {
    /// The connection itself: nothing stands between.
    Single(Box<Tls>),
    /// Cut into segments, over as many as there are.
    Multi(Box<Subflows<Tls>>),
}

macro_rules! either {
    ($transport:expr, $stream:ident => $act:expr) => {
        match $transport.get_mut() {
            Transport::Single(stream) => {
                let $stream = Pin::new(&mut **stream);
                $act
            }
            Transport::Multi(stream) => {
                let $stream = Pin::new(&mut **stream);
                $act
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Single(stream) => stream.is_write_vectored(),
            Self::Multi(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}
