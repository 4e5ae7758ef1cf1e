//! Accepting: sockets, TLS, and what a peer may take before it is known.

mod activation;
mod config;
mod proxy;
mod server_names;
mod stream;
mod tls;
mod websocket;
mod witness;

pub use activation::{Activated, ActivationError, share};
pub use config::{ClientFiles, LimitsConfig, ListenerConfig, NamedFiles, TlsFiles, Transport};
pub use proxy::{Proxies, ProxyError, parse_proxy_header, read_proxy_header};
pub use stream::Stream;
pub use tls::{Accepted, Acceptor, HandshakeError, Reloaded, Tls, TlsFileError};
pub use websocket::{
    Control as FrameControl, Declined, Decoder as FrameDecoder, Upgrade, UpgradeError, Upgraded,
    Violation as FrameViolation, WebSocketRules, read_upgrade, upgrade,
};

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use socket2::{Domain, Protocol, Socket, Type};

/// One listening socket for each of `shards` shards on the same address; the kernel spreads connections over them.
/// Port 0 takes a free port, the same for all.
///
/// # Errors
/// The address is taken, also by sockets that would share it, or is not this machine's.
pub fn bind(address: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    // SO_REUSEPORT would quietly share the port with another gateway of the same user: a socket without it asks first.
    let probe = socket(address, Sharing::Alone)?;
    probe.bind(&address.into())?;
    let free = probe.local_addr()?.as_socket().unwrap_or(address);
    drop(probe);
    let sharing = if shards > 1 { Sharing::WithShards } else { Sharing::Alone };
    (0..shards)
        .map(|_| {
            let socket = socket(free, sharing)?;
            socket.bind(&free.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

/// How many connections are open in the whole gateway.
#[derive(Debug)]
pub struct Connections {
    open: AtomicUsize,
    max: usize,
}

/// One open connection; leaving gives the place back.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    standing: Standing,
}

/// Whether a connection may become a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Welcome,
    /// It is told that as many are open as allowed.
    OverQuota,
}

impl Connections {
    /// At most `max` at once.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), max })
    }

    /// A place for one more. `None`: there is not even room to refuse it politely.
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let standing = if before < self.max { Standing::Welcome } else { Standing::OverQuota };
        let place = Place { connections: self.clone(), standing };
        (before < self.max + REFUSALS_AT_ONCE).then_some(place)
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Place {
    /// Whether it may become a session.
    pub fn standing(&self) -> Standing {
        self.standing
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
enum Sharing {
    Alone,
    WithShards,
}

fn socket(address: SocketAddr, sharing: Sharing) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(matches!(sharing, Sharing::WithShards))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Connections that wait for accept(); the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Connections over the quota that may be open for as long as it takes to read their CONNECT and refuse it.
const REFUSALS_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_one_port_and_nobody_else_may() {
        let sockets = bind("127.0.0.1:0".parse().expect("an address"), 3).expect("a free port");
        let address = sockets[0].local_addr().expect("bound");
        assert!(sockets.iter().all(|s| s.local_addr().expect("bound") == address));
        for shards in [1, 2] {
            assert_eq!(bind(address, shards).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        }
        drop(sockets);
        assert_eq!(bind(address, 1).expect("free again").len(), 1);
    }

    #[test]
    fn connections_over_the_quota_are_refused_politely_and_then_not_at_all() {
        let connections = Connections::new(2);
        let welcome: Vec<_> = (0..2).map(|_| connections.enter().expect("room")).collect();
        assert!(welcome.iter().all(|p| p.standing() == Standing::Welcome));
        let refused: Vec<_> = (0..REFUSALS_AT_ONCE).map(|_| connections.enter().expect("room to refuse")).collect();
        assert!(refused.iter().all(|p| p.standing() == Standing::OverQuota));
        assert!(connections.enter().is_none());
        drop((welcome, refused));
        assert_eq!(connections.open(), 0);
        assert_eq!(connections.enter().expect("room").standing(), Standing::Welcome);
    }
}
