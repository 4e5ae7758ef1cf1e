//! Socket activation (sd_listen_fds(3)): systemd listens before the gateway starts and after it has ended, so that who
//! connects in between waits instead of being refused.

use std::{
    env, fmt, io,
    net::{SocketAddr, TcpListener},
};

use listenfd::ListenFd;

/// Listening sockets that were passed, by their address.
#[derive(Debug, Default)]
pub struct Activated {
    sockets: Vec<Passed>,
}

#[derive(Debug)]
struct Passed {
    name: String,
    address: SocketAddr,
    socket: TcpListener,
}

impl Activated {
    /// Those that are meant for this process (`LISTEN_PID`); none where the gateway was started otherwise. To be called
    /// once, before there are other threads that look at the environment.
    ///
    /// # Errors
    /// [`ActivationError`]: something was passed that cannot be listened on.
    pub fn from_environment() -> Result<Self, ActivationError> {
        let wrong = |name: &str, what: String| ActivationError { name: name.to_owned(), what };
        if let Ok(count) = env::var("LISTEN_FDS")
            && count.parse::<usize>().is_err()
        {
            return Err(wrong("", format!("LISTEN_FDS is {count:?}, which is no number")));
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
            let failed = |error: io::Error| wrong(&name, error.to_string());
            let socket = passed.take_tcp_listener(index).map_err(failed)?;
            let Some(socket) = socket else { continue };
            if socket.set_nonblocking(true).is_err() || TcpListener::local_addr(&socket).is_err() {
                return Err(wrong(&name, "it is no socket of IPv4 or IPv6".to_owned()));
            }
            if socket2::SockRef::from(&socket).peer_addr().is_ok() {
                return Err(wrong(&name, "it is a connection: write Accept=no in the socket unit".to_owned()));
            }
            let address = socket.local_addr().map_err(failed)?;
            sockets.push(Passed { name, address, socket });
        }
        Ok(Self { sockets })
    }

    /// The socket that listens on this address, if one was passed. Each is taken once.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.sockets.iter().position(|passed| passed.address == address)?;
        Some(self.sockets.swap_remove(at).socket)
    }

    /// What nobody has taken: whoever connects there would wait for ever.
    pub fn left(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.sockets.iter().map(|passed| (passed.name.as_str(), passed.address))
    }
}

/// A descriptor of the socket for each of `shards` shards. All take from one queue: whoever comes first.
///
/// # Errors
/// No descriptor is left.
pub fn share(socket: TcpListener, shards: usize) -> io::Result<Vec<TcpListener>> {
    let mut all = (1..shards).map(|_| socket.try_clone()).collect::<io::Result<Vec<_>>>()?;
    all.push(socket);
    Ok(all)
}

/// What systemd passed cannot be used.
#[derive(Debug)]
pub struct ActivationError {
    name: String,
    what: String,
}

impl fmt::Display for ActivationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => f.write_str(&self.what),
            name => write!(f, "the socket {name:?} that was passed cannot be listened on: {}", self.what),
        }
    }
}

impl std::error::Error for ActivationError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_taken_by_its_address_and_once() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("bound");
        let mut activated = Activated { sockets: vec![Passed { name: "mqtt".into(), address, socket }] };
        let elsewhere = SocketAddr::from(([127, 0, 0, 2], address.port()));
        assert!(activated.take(elsewhere).is_none());
        assert_eq!(activated.left().collect::<Vec<_>>(), [("mqtt", address)]);
        let taken = activated.take(address).expect("passed");
        assert!(activated.take(address).is_none() && activated.left().next().is_none());
        let shared = share(taken, 3).expect("descriptors");
        assert!(shared.len() == 3 && shared.iter().all(|s| s.local_addr().expect("bound") == address));
    }
}
