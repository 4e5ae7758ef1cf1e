//! What a listener is told by `config/gateway.toml`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{Proxies, WebSocketRules};
use crate::{
    credential::{ClientAuth, StaleList},
    gate::Profile,
    size::Bytes,
};

/// One `[[listener]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Address and port.
    pub bind: SocketAddr,
    /// What is spoken below MQTT.
    pub transport: Transport,
    /// WebSocket over the transport: `ws`, `wss`.
    pub web_socket: Option<WebSocketRules>,
    /// `proxy_protocol_from`: balancers that say for whom they connect.
    pub proxies: Proxies,
    /// Presets for those who connect here; absent: the gateway's.
    pub profile: Profile,
}

/// What is spoken below MQTT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// TLS 1.2 and 1.3.
    Tls(TlsFiles),
}

/// What TLS needs of the disk; each is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the server's certificate, then those between it and the root.
    pub certificate: PathBuf,
    /// PEM: its key, PKCS#8, SEC1 or PKCS#1.
    pub private_key: PathBuf,
    /// `sni`: what is shown to those who ask for certain names. With any, a name that no certificate is for is refused.
    pub further: Vec<NamedFiles>,
    /// `client_auth`; absent: nobody is asked for a certificate.
    pub clients: Option<ClientFiles>,
}

/// One `sni`: a certificate for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFiles {
    /// In lower case; `*.` stands for one label. The certificate is one for each of them.
    pub names: Vec<String>,
    /// As of [`TlsFiles`].
    pub certificate: PathBuf,
    /// As of [`TlsFiles`].
    pub private_key: PathBuf,
}

/// Certificates of clients: whether they are asked for, and whom is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// `client_auth`.
    pub demand: ClientAuth,
    /// PEM: authorities. Without, a certificate counts by its thumbprint alone.
    pub ca: Option<PathBuf>,
    /// PEM: their revocation lists, one for each authority of a chain.
    pub crl: Option<PathBuf>,
    /// What a list that is out of date is good for.
    pub stale_crl: StaleList,
}

impl TlsFiles {
    /// Certificate and key, with nobody asked for a certificate.
    pub fn server_only(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        Self { certificate: certificate.into(), private_key: private_key.into(), further: Vec::new(), clients: None }
    }

    /// Every file.
    pub fn all(&self) -> Vec<PathBuf> {
        let clients = self.clients.iter().flat_map(|clients| clients.ca.iter().chain(&clients.crl));
        let further = self.further.iter().flat_map(|named| [&named.certificate, &named.private_key]);
        [&self.certificate, &self.private_key].into_iter().chain(further).chain(clients).cloned().collect()
    }
}

/// `[limits]`: what a peer may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// From accept to the whole CONNECT, TLS included. Default 10 s.
    pub connect_timeout: Duration,
    /// How long a packet may take once it began, and a device to take something of what it is sent. Default 60 s.
    pub packet_timeout: Duration,
    /// The largest packet before authentication. Default 64 KiB.
    pub connect_packet_size_max: Bytes,
    /// The largest packet after it. Default 260 KiB: 256 KiB of payload and its head.
    pub maximum_packet_size: Bytes,
    /// Open connections in all. Default 10,000.
    pub connections_max: usize,
    /// Connects a second from one address, with a burst of ten times that. Default 500; 0: no limit.
    pub connects_per_second_per_ip: u32,
    /// Connects a minute from one address with tokens that do not verify, with a burst of ten times that, before the
    /// address is banned. Default 300; 0: no ban.
    pub failed_connects_per_minute_per_ip: u32,
    /// PUBLISH a second from one device. Default 0: no limit.
    pub publishes_per_second_per_device: u32,
    /// Unacknowledged PUBLISH of one device. Default 100.
    pub receive_maximum: u16,
    /// Subscriptions of one device (`[session] subscriptions_max`). Default 50.
    pub subscriptions_max: usize,
    /// Messages kept for one device that reads slowly or is away (`[session] queue_max`). Default 1,000.
    pub queue_max: usize,
    /// How long a session may outlive its connection (`[session] expiry_max`). Default 7 days; 0: none does.
    pub session_expiry_max: Duration,
    /// Bytes of all messages that are kept for sessions that outlive their connections (`[session] size_max`). Default
    /// 64 MiB.
    pub sessions_size_max: Bytes,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            packet_timeout: Duration::from_secs(60),
            connect_packet_size_max: Bytes::kib(64),
            maximum_packet_size: Bytes::kib(260),
            connections_max: 10_000,
            connects_per_second_per_ip: 500,
            failed_connects_per_minute_per_ip: 300,
            publishes_per_second_per_device: 0,
            receive_maximum: 100,
            subscriptions_max: 50,
            queue_max: 1_000,
            session_expiry_max: Duration::from_secs(7 * 86_400),
            sessions_size_max: Bytes::mib(64),
        }
    }
}
