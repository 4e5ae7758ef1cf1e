//! rumqttc as a pool member: an interpreter between the link and the library, for hubs behind WebSocket or an HTTP proxy,
//! and for any other where an operator prefers a client that is not ours.
//!
//! The library forgets what is in flight when it reconnects to a hub that kept no session, and overwrites it where one
//! did. So a client and an event loop of it are used for one connection: at its first error the link is told that the
//! stream is at its end, and sends what is unacknowledged again on the next. What is in flight is the link's to know, never
//! the library's. It resends as new messages, with the same `tollgate-id`: the library has no way to set DUP.

mod fate;
mod interpreter;
mod packet_ids;
#[cfg(test)]
mod tests;
mod v4;
mod v5;

use std::{fmt, sync::Arc, time::Duration};

use ::rumqttc::{NetworkOptions, Proxy, ProxyAuth, ProxyType, TlsConfiguration, Transport};

use super::{
    HubStream, Interpreted, MqttHubConfig, ProxyConfig,
    trust::{Trust, TrustError},
};
use crate::time::UnixSeconds;

/// A hub that is spoken to by rumqttc. Cheap to clone.
#[derive(Clone)]
pub struct RumqttcHub {
    place: Arc<Place>,
}

struct Place {
    host: String,
    port: u16,
    /// What the library takes for a WebSocket.
    web_socket_url: Option<String>,
    trust: Option<Trust>,
    proxy: Option<ProxyConfig>,
    /// Messages of QoS 1 that the link may have in flight.
    window: usize,
}

impl RumqttcHub {
    /// The hub that `config` describes, for links with this window. Nothing is connected.
    ///
    /// # Errors
    /// [`TrustError`]: no CA to believe, a certificate of ours that cannot be used, or no host name.
    pub fn new(config: &MqttHubConfig, window: usize) -> Result<Self, TrustError> {
        let place = Place {
            host: config.host.clone(),
            port: config.port,
            web_socket_url: config.wire.web_socket_path.is_some().then(|| config.url()),
            trust: config.tls.as_ref().map(|tls| Trust::new(&config.host, tls)).transpose()?,
            proxy: config.wire.proxy.clone(),
            window,
        };
        Ok(Self { place: Arc::new(place) })
    }

    /// A connection that is made when the link says CONNECT: what stands in that is what the library says.
    pub fn dial(&self) -> HubStream {
        let place = Arc::clone(&self.place);
        HubStream::Interpreted(Box::new(Interpreted::new(move |far, _| interpreter::interpret(place, far))))
    }
}

impl fmt::Debug for RumqttcHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RumqttcHub").field("host", &self.place.host).finish_non_exhaustive()
    }
}

impl Place {
    /// What the library calls the broker's address.
    fn address(&self) -> &str {
        self.web_socket_url.as_deref().unwrap_or(&self.host)
    }

    /// With files that are read anew where they changed.
    fn transport(&self) -> Transport {
        let tls = self.trust.as_ref().map(|trust| TlsConfiguration::Rustls(trust.client()));
        match (tls, self.web_socket_url.is_some()) {
            (None, false) => Transport::Tcp,
            (None, true) => Transport::Ws,
            (Some(tls), false) => Transport::Tls(tls),
            (Some(tls), true) => Transport::Wss(tls),
        }
    }

    /// With a password that is read anew.
    fn proxy(&self) -> Option<Proxy> {
        let ProxyConfig { host, port, login } = self.proxy.as_ref()?;
        // Nothing that it says here ends by the clock.
        let said = login.credentials(UnixSeconds(0));
        let auth = match (said.user_name, said.password) {
            (Some(name), password) => ProxyAuth::Basic {
                username: name.to_string(),
                password: password.map(|password| password.to_string()).unwrap_or_default(),
            },
            (None, _) => ProxyAuth::None,
        };
        Some(Proxy { ty: ProxyType::Http, auth, addr: host.clone(), port: *port })
    }

    /// How many packet ids the library is to have: twice the window, so that a hub that acknowledges out of order does not
    /// make the next message wait for the id of an older one.
    fn packet_ids(&self) -> u16 {
        u16::try_from(2 * self.window + 2).unwrap_or(u16::MAX)
    }
}

fn network(timeout: Duration) -> NetworkOptions {
    let mut options = NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options.set_connection_timeout(timeout.as_secs());
    options
}

/// From the first SYN to CONNACK: a little less than the link waits, so that the reason is known.
const CONNECT_WITHIN: Duration = Duration::from_secs(9);

/// What the library's own watchdog for a write is set to: the link's is shorter and knows more.
const FLUSH_WITHIN: Duration = Duration::from_secs(60);

/// Requests that the library was given and has not sent. The link has the messages, too, until they are answered.
const REQUESTS_MAX: usize = 256;

/// Events of the library that wait to be passed on. Each may be a message of the largest size.
const EVENTS_MAX: usize = 16;
