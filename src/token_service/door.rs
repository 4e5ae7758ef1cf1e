//! The listener: TLS and nothing else, few connections of one address and in all, none for long, none that sends much.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

use super::service::Receipt;
use crate::{
    credential::PeerCertificate,
    listener::{Accepted, Acceptor, HandshakeError, Stream},
};

/// Accepts while there is room.
pub(super) struct Door {
    listener: TcpListener,
    tls: Acceptor,
    room: Arc<Semaphore>,
    of_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Door {
    pub(super) fn new(listener: TcpListener, tls: Acceptor) -> Self {
        Self { listener, tls, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)), of_address: Arc::default() }
    }

    /// A place for one more connection of this address.
    fn place(&self, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Place> {
        let mut held = self.of_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        if *count >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Place { address, of_address: self.of_address.clone(), _permit: permit })
    }
}

impl Listener for Door {
    type Io = Visitor;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visitor, SocketAddr) {
        loop {
            let permit = self.room.clone().acquire_owned().await.expect("invariant: the semaphore is never closed");
            let (stream, peer) = Listener::accept(&mut self.listener).await;
            // Whoever holds many connections and says nothing is not to take everybody's places.
            let Some(place) = self.place(peer.ip(), permit) else { continue };
            let _ = stream.set_nodelay(true);
            return (Visitor::new(self.tls.clone(), stream, peer, place), peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What a request is told of its connection.
#[derive(Clone)]
pub(super) struct Visit(Arc<Peer>);

struct Peer {
    address: SocketAddr,
    certificate: OnceLock<Arc<PeerCertificate>>,
    /// Answers that are not written yet.
    receipts: Mutex<Vec<Receipt>>,
}

impl Visit {
    pub(super) fn address(&self) -> IpAddr {
        self.0.address.ip().to_canonical()
    }

    /// What the device showed, once the handshake is over.
    pub(super) fn certificate(&self) -> Option<Arc<PeerCertificate>> {
        self.0.certificate.get().cloned()
    }

    /// To be told when what is answered next was written. Called by the task that writes, right before it does.
    pub(super) fn when_written(&self, receipt: Receipt) {
        self.0.receipts.lock().unwrap_or_else(PoisonError::into_inner).push(receipt);
    }

    fn written(&self) {
        let receipts = std::mem::take(&mut *self.0.receipts.lock().unwrap_or_else(PoisonError::into_inner));
        if !receipts.is_empty() {
            tokio::task::spawn_blocking(move || receipts.into_iter().for_each(Receipt::written));
        }
    }
}

impl Connected<IncomingStream<'_, Door>> for Visit {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().visit.clone()
    }
}

/// A place among the connections, given back when dropped.
struct Place {
    address: IpAddr,
    of_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.of_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

/// A connection that ends by itself. The handshake is its own first step, so that nobody waits for another's.
pub(super) struct Visitor {
    stream: Connection,
    visit: Visit,
    end: Pin<Box<Sleep>>,
    bytes_left: usize,
    _place: Place,
}

enum Connection {
    Shaking(Pin<Box<dyn Future<Output = Result<Accepted, HandshakeError>> + Send>>),
    Open(Box<Stream>),
}

impl Visitor {
    fn new(tls: Acceptor, stream: TcpStream, address: SocketAddr, place: Place) -> Self {
        let peer = Peer { address, certificate: OnceLock::new(), receipts: Mutex::default() };
        Self {
            stream: Connection::Shaking(Box::pin(async move { tls.accept(stream).await })),
            visit: Visit(Arc::new(peer)),
            end: Box::pin(sleep(HANDSHAKE_TIMEOUT)),
            bytes_left: READ_BYTES_MAX,
            _place: place,
        }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut Stream>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if let Connection::Shaking(handshake) = &mut self.stream {
            let Accepted { stream, certificate } = ready!(handshake.as_mut().poll(cx)).map_err(|error| {
                if let HandshakeError::Refused(refused) = &error {
                    tracing::debug!(peer = %self.visit.0.address, detail = refused.detail, "no TLS");
                }
                io::Error::from(io::ErrorKind::ConnectionAborted)
            })?;
            if let Some(certificate) = certificate {
                // Nobody else sets it.
                let _ = self.visit.0.certificate.set(certificate);
            }
            self.end.as_mut().reset(Instant::now() + LIFETIME);
            self.stream = Connection::Open(Box::new(stream));
        }
        match &mut self.stream {
            Connection::Open(stream) => Poll::Ready(Ok(&mut **stream)),
            Connection::Shaking(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Visitor {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let stream = ready!(self.poll_open(cx))?;
        ready!(Pin::new(stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        match self.bytes_left.checked_sub(read) {
            Some(left) => {
                self.bytes_left = left;
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Err(io::Error::other("more than any request holds"))),
        }
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = ready!(self.poll_open(cx))?;
        Pin::new(stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Connection::Open(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
        ready!(Pin::new(&mut **stream).poll_flush(cx))?;
        self.visit.written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = ready!(self.poll_open(cx))?;
        Pin::new(stream).poll_shutdown(cx)
    }
}

/// Devices ask twice an hour.
const CONNECTIONS_MAX: usize = 512;
/// A site behind one address, at the same moment.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 64;
/// From accept to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From there to the end: one request and its answer.
const LIFETIME: Duration = Duration::from_secs(10);
/// Headers and body of one request.
const READ_BYTES_MAX: usize = 32 << 10;
