//! One device's byte stream, plain or under TLS, that can move from one shard's reactor to another's.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::websocket::WebSocket;

/// A device's connection.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(Socket),
    /// TLS over TCP.
    Tls(Box<TlsStream<Socket>>),
    /// WebSocket over one of them.
    Web(Box<WebSocket>),
}

impl Stream {
    /// A plain connection.
    pub fn tcp(stream: TcpStream) -> Self {
        Self::Tcp(Socket::Attached(stream))
    }

    /// Takes the socket from the reactor of this thread, so that the stream may move to another.
    ///
    /// # Errors
    /// The reactor does not let it go.
    pub fn detach(&mut self) -> io::Result<()> {
        let socket = self.socket();
        match std::mem::replace(socket, Socket::Gone) {
            Socket::Attached(stream) => *socket = Socket::Detached(stream.into_std()?),
            other => *socket = other,
        }
        Ok(())
    }

    /// Gives the socket to the reactor of this thread.
    ///
    /// # Errors
    /// The reactor does not take it.
    pub fn attach(&mut self) -> io::Result<()> {
        let socket = self.socket();
        match std::mem::replace(socket, Socket::Gone) {
            Socket::Detached(stream) => *socket = Socket::Attached(TcpStream::from_std(stream)?),
            other => *socket = other,
        }
        Ok(())
    }

    fn socket(&mut self) -> &mut Socket {
        match self {
            Self::Tcp(socket) => socket,
            Self::Tls(tls) => tls.get_mut().0,
            Self::Web(web) => web.wire().socket(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Web(web) => Pin::new(&mut **web).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
            Self::Web(web) => Pin::new(&mut **web).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Web(web) => Pin::new(&mut **web).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Web(web) => Pin::new(&mut **web).poll_shutdown(cx),
        }
    }
}

/// A socket that is in a reactor, or on its way to another.
#[derive(Debug)]
pub enum Socket {
    /// In the reactor of the thread that polls it.
    Attached(TcpStream),
    /// In none.
    Detached(std::net::TcpStream),
    /// A move failed half-way: every use is an error.
    Gone,
}

impl Socket {
    fn attached(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        match self.get_mut() {
            Self::Attached(stream) => Ok(Pin::new(stream)),
            Self::Detached(_) | Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.attached()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.attached()?.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.attached()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.attached()?.poll_shutdown(cx)
    }
}
