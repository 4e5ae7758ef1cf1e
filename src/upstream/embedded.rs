//! The hub that lives in this process: rumqttd on a loopback port, with a password that nobody outside knows, spoken to
//! by the pool alone in MQTT 3.1.1. It is watched over, and started anew when its router no longer answers.
//!
//! Its threads cannot be ended from outside: a hub that hangs is left behind, and one that has panicked keeps only its
//! listener. Its messages are in memory: what was in it is gone with it.

use std::{
    collections::HashMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    num::NonZeroU64,
    pin::pin,
    sync::mpsc::{self, RecvTimeoutError},
    task::{Context, Poll, Waker},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rumqttd::{
    Broker, Config, ConnectionSettings, Notification, RouterConfig, ServerSettings,
    local::{LinkRx, LinkTx},
    protocol::{Packet, PingReq},
};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Where the embedded hub listens now, and what it asks for.
#[derive(Clone)]
pub struct HubEndpoint {
    /// On the loopback interface. Another after a restart.
    pub address: SocketAddr,
    /// User name.
    pub user_name: String,
    /// Password: random, of this process and of this start of the hub.
    pub password: Zeroizing<String>,
    /// Which start of the hub this is.
    pub start: NonZeroU64,
}

/// Without the password.
impl fmt::Debug for HubEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HubEndpoint({})", self.address)
    }
}

/// See the module. Dropped, it is watched over no longer; its threads end with the process.
pub struct EmbeddedHub {
    endpoint: watch::Receiver<HubEndpoint>,
    supervisor: Option<JoinHandle<()>>,
    stop: Option<mpsc::Sender<()>>,
}

impl EmbeddedHub {
    /// Starts the hub for so many connections of the pool.
    ///
    /// # Errors
    /// No port, no thread, or no random numbers.
    pub fn start(connections_max: usize) -> io::Result<Self> {
        let hub = Hub::start(connections_max, NonZeroU64::MIN)?;
        let (publish, endpoint) = watch::channel(hub.endpoint.clone());
        let (stop, stopped) = mpsc::channel();
        let supervisor = thread::Builder::new()
            .name("tollgate-hub".into())
            .spawn(move || supervise(hub, connections_max, &publish, &stopped))?;
        Ok(Self { endpoint, supervisor: Some(supervisor), stop: Some(stop) })
    }

    /// Where it is. To be read before each connection: it changes when the hub is started anew.
    pub fn endpoint(&self) -> watch::Receiver<HubEndpoint> {
        self.endpoint.clone()
    }

    /// Whether the hub takes a message on `topic`. A topic that begins with a character of more than one byte would
    /// stop its router, and one that begins with `$` reaches nobody.
    pub fn takes(topic: &str) -> bool {
        topic.as_bytes().first().is_some_and(|first| first.is_ascii() && *first != b'$')
    }
}

impl Drop for EmbeddedHub {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(supervisor) = self.supervisor.take() {
            // It ends at once: it waits for nothing else for long.
            let _ = supervisor.join();
        }
    }
}

/// One start of rumqttd.
struct Hub {
    endpoint: HubEndpoint,
    server: JoinHandle<()>,
    to_router: LinkTx,
    from_router: LinkRx,
}

impl Hub {
    fn start(connections_max: usize, start: NonZeroU64) -> io::Result<Self> {
        let endpoint = HubEndpoint {
            address: free_address()?,
            user_name: "tollgate-pool".into(),
            password: Zeroizing::new(random_hex()?),
            start,
        };
        let mut broker = Broker::new(config(&endpoint, connections_max));
        let (to_router, from_router) =
            broker.link(PROBE_CLIENT_ID).map_err(|error| io::Error::other(error.to_string()))?;
        let server = thread::Builder::new().name("tollgate-rumqttd".into()).spawn(move || {
            // It returns when its listener ends, for instance because the port was taken in between.
            if let Err(error) = broker.start() {
                tracing::warn!(%error, "the embedded hub did not start");
            }
        })?;
        Ok(Self { endpoint, server, to_router, from_router })
    }

    /// Asks the router for a sign of life.
    fn probe(&mut self) -> Result<(), &'static str> {
        if self.server.is_finished() {
            return Err("its listener ended");
        }
        // The future has nothing to wait for: the channel to the router is not bounded by anything but this probe.
        let sent = pin!(self.to_router.send(Packet::PingReq(PingReq))).poll(&mut Context::from_waker(Waker::noop()));
        if !matches!(sent, Poll::Ready(Ok(_))) {
            return Err("its router ended");
        }
        let deadline = Instant::now() + PROBE_WITHIN;
        loop {
            match self.from_router.recv_deadline(deadline) {
                Ok(Some(Notification::DeviceAck(_))) => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err("its router does not answer"),
            }
        }
    }
}

fn supervise(
    mut hub: Hub,
    connections_max: usize,
    endpoint: &watch::Sender<HubEndpoint>,
    stopped: &mpsc::Receiver<()>,
) {
    let mut sick = None;
    while stopped.recv_timeout(PROBE_EVERY) == Err(RecvTimeoutError::Timeout) {
        let Err(why) = sick.map_or_else(|| hub.probe(), Err) else { continue };
        match Hub::start(connections_max, hub.endpoint.start.saturating_add(1)) {
            Ok(fresh) => {
                tracing::error!(why, address = %fresh.endpoint.address, "the embedded hub was started anew: what was in it is gone");
                hub = fresh;
                sick = None;
                endpoint.send_replace(hub.endpoint.clone());
            }
            Err(error) => {
                tracing::error!(why, %error, "the embedded hub is dead and does not start");
                sick = Some(why);
            }
        }
    }
}

fn config(endpoint: &HubEndpoint, connections_max: usize) -> Config {
    let mut connections = ConnectionSettings {
        connection_timeout_ms: 5_000,
        max_payload_size: PACKET_BYTES_MAX,
        max_inflight_count: 200,
        auth: None,
        external_auth: None,
        dynamic_filters: false,
    };
    let expected = endpoint.clone();
    connections.set_auth_handler(move |client_id, user_name, password| {
        let known = is_same(user_name.as_bytes(), expected.user_name.as_bytes())
            & is_same(password.as_bytes(), expected.password.as_bytes());
        // A client id with one of these would stop the listener.
        std::future::ready(known && !client_id.contains(['+', '#', '$', '/']))
    });
    let server = ServerSettings {
        name: "tollgate-rumqttd-tcp".into(),
        listen: endpoint.address,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    Config {
        router: RouterConfig {
            max_connections: connections_max + SPARE_CONNECTIONS,
            max_outgoing_packet_count: 200,
            max_segment_size: 2 << 20,
            max_segment_count: 8,
            ..RouterConfig::default()
        },
        v4: Some(HashMap::from([("pool".to_owned(), server)])),
        ..Config::default()
    }
}

/// A loopback port that nobody listens on. Below 32,768: there, no outgoing connection is given the port, so that none
/// can meet itself while the hub is away.
fn free_address() -> io::Result<SocketAddr> {
    for _ in 0..PORT_ATTEMPTS {
        let random = getrandom::u32().map_err(|error| io::Error::other(error.to_string()))?;
        let port = PORT_FIRST + (random % u32::from(PORT_LAST - PORT_FIRST + 1)) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port for the embedded hub"))
}

/// 256 random bits.
fn random_hex() -> io::Result<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Compares in a time that says nothing about where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y))) == 0
}

/// A payload of 256 KiB with its head, and room for a larger limit of devices.
const PACKET_BYTES_MAX: usize = 1 << 20;

/// The probe, and connections of the pool that the hub has not yet noticed to be gone. One too many would stop it.
const SPARE_CONNECTIONS: usize = 256;

const PROBE_CLIENT_ID: &str = "tollgate-probe";
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A router that is busy answers between two batches of messages.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

const PORT_FIRST: u16 = 20_000;
const PORT_LAST: u16 = 32_000;
const PORT_ATTEMPTS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::{Client, ConnectionError, Event, Incoming, MqttOptions, QoS};

    fn options(endpoint: &HubEndpoint, password: Option<&str>) -> MqttOptions {
        let mut options = MqttOptions::new("edge-1-0", endpoint.address.ip().to_string(), endpoint.address.port());
        options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
        if let Some(password) = password {
            options.set_credentials(endpoint.user_name.clone(), password);
        }
        options
    }

    /// Connects, again while the listener is not yet there, subscribes, publishes and waits for what it published.
    fn round_trip(endpoint: &HubEndpoint, payload: &[u8]) {
        let (client, mut connection) = Client::new(options(endpoint, Some(&endpoint.password)), 10);
        let deadline = Instant::now() + Duration::from_secs(10);
        client.subscribe("devices/+/x", QoS::AtLeastOnce).expect("queued");
        client.publish("devices/d/x", QoS::AtLeastOnce, false, payload).expect("queued");
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    assert_eq!(publish.payload, payload);
                    return;
                }
                Err(ConnectionError::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => panic!("{error}"),
                Ok(_) => {}
            }
            assert!(Instant::now() < deadline, "no answer");
        }
    }

    #[test]
    fn the_pool_gets_in_with_the_password_and_nobody_without() {
        let hub = EmbeddedHub::start(4).expect("started");
        let endpoint = hub.endpoint().borrow().clone();
        assert!(endpoint.address.ip().is_loopback() && endpoint.address.port() < 32_768);
        round_trip(&endpoint, &vec![7; 300 << 10]);
        for wrong in [None, Some("guess"), Some("")] {
            let (_client, mut connection) = Client::new(options(&endpoint, wrong), 10);
            let first = connection.iter().next().expect("an event");
            assert!(first.is_err(), "{wrong:?}: {first:?}");
        }
        assert!(!format!("{endpoint:?}").contains(endpoint.password.as_str()));
    }

    #[test]
    fn a_router_that_stopped_is_noticed_and_replaced() {
        let hub = EmbeddedHub::start(4).expect("started");
        let mut endpoints = hub.endpoint();
        let first = endpoints.borrow_and_update().clone();
        round_trip(&first, b"before");
        // The PUBLISH that this router cannot survive (a topic that begins with a character of two bytes).
        let (client, mut connection) = Client::new(options(&first, Some(&first.password)), 10);
        client.publish("é/x", QoS::AtMostOnce, false, "").expect("queued");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let poison = thread::spawn(move || connection.iter().take_while(Result::is_ok).count());
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), endpoints.changed()).await })
            .expect("in time")
            .expect("supervised");
        let second = endpoints.borrow_and_update().clone();
        assert_ne!((first.address, &first.password), (second.address, &second.password));
        assert!(first.start < second.start);
        round_trip(&second, b"after");
        assert!(!EmbeddedHub::takes("é/x") && !EmbeddedHub::takes("$x") && EmbeddedHub::takes("devices/é"));
        drop(client);
        drop(poison);
    }

    #[test]
    fn a_probe_is_answered_as_often_as_it_asks() {
        let mut hub = Hub::start(1, NonZeroU64::MIN).expect("started");
        for _ in 0..1_000 {
            assert_eq!(hub.probe(), Ok(()));
        }
    }
}
