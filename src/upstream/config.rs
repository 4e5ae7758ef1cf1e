//! What the pool is told by `config/gateway.toml`.

use std::path::PathBuf;

use super::HubLogin;
use crate::packet::ProtocolVersion;

/// One `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Its name, in routes, metrics and logs.
    pub name: String,
    /// What it is.
    pub kind: UpstreamKind,
    /// Connections in all, spread over the shards, at least one a shard. Default 4.
    pub connections: usize,
    /// Messages in flight on one connection. Default 1,000. More covers a longer round trip, and takes memory.
    pub window: usize,
    /// Messages a second, on all connections together. Default 0: as many as the hub takes.
    pub messages_per_second: u32,
}

impl UpstreamConfig {
    /// A hub with the default number of connections and the default window.
    pub fn new(name: impl Into<String>, kind: UpstreamKind) -> Self {
        Self { name: name.into(), kind, connections: 4, window: 1_000, messages_per_second: 0 }
    }
}

/// What an upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamKind {
    /// rumqttd in this process, spoken to by the pool alone.
    Embedded,
    /// Any MQTT broker.
    Mqtt(MqttHubConfig),
    /// NATS with JetStream.
    Nats(NatsHubConfig),
}

/// `kind = "mqtt"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttHubConfig {
    /// Host name or address.
    pub host: String,
    /// Port; `mqtt://` 1883, `mqtts://` 8883, `ws://` 80, `wss://` 443.
    pub port: u16,
    /// `mqtts://` and `wss://`.
    pub tls: Option<HubTlsConfig>,
    /// 3.1.1 or 5.0 (`version = 4` or `5`). Default 5. On 3.1.1 nothing can be stamped on a message.
    pub version: ProtocolVersion,
    /// Who the pool says it is.
    pub login: HubLogin,
    /// How it is spoken to.
    pub wire: HubWire,
}

impl MqttHubConfig {
    /// Where it is, as it is written.
    pub fn url(&self) -> String {
        let scheme = match (&self.wire.web_socket_path, &self.tls) {
            (None, None) => "mqtt",
            (None, Some(_)) => "mqtts",
            (Some(_), None) => "ws",
            (Some(_), Some(_)) => "wss",
        };
        let path = self.wire.web_socket_path.as_deref().unwrap_or_default();
        format!("{scheme}://{}{path}", authority(&self.host, self.port))
    }
}

/// By which client, and on which way.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HubWire {
    /// `client`. Default `native`; over WebSocket or through a proxy `rumqttc`.
    pub client: HubClient,
    /// `ws://` and `wss://`: what is asked for, from its slash on.
    pub web_socket_path: Option<String>,
    /// `proxy`.
    pub proxy: Option<ProxyConfig>,
}

/// Whose MQTT client speaks to a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HubClient {
    /// Our own session.
    #[default]
    Native,
    /// The library of that name.
    Rumqttc,
}

/// An HTTP proxy that connects us (CONNECT, RFC 9110 §9.3.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `proxy_username` and `proxy_password_file`.
    pub login: HubLogin,
}

impl ProxyConfig {
    /// Where it is, as it is written.
    pub fn url(&self) -> String {
        format!("http://{}", authority(&self.host, self.port))
    }
}

/// An IPv6 address stands in brackets (RFC 3986 §3.2.2).
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// `kind = "nats"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsHubConfig {
    /// Host name or address, and port, of each server of the cluster that may be asked first.
    pub servers: Vec<(String, u16)>,
    /// `tls://`.
    pub tls: Option<HubTlsConfig>,
    /// Who the pool says it is.
    pub login: NatsLogin,
    /// The stream whose acknowledgement is the witness.
    pub stream: String,
}

impl NatsHubConfig {
    /// Its servers as they are written.
    pub fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "tls" } else { "nats" };
        let server = |(host, port): &(String, u16)| format!("{scheme}://{}", authority(host, *port));
        self.servers.iter().map(server).collect::<Vec<_>>().join(",")
    }
}

/// Who the pool says it is at a NATS server; a client certificate comes beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsLogin {
    /// What the secret is.
    pub kind: NatsLoginKind,
    /// User name, and the secret's file.
    pub secret: HubLogin,
}

/// What the secret of a NATS server's client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatsLoginKind {
    /// There is none.
    Nobody,
    /// `password_file`, beside `username`.
    Password,
    /// `token_file`.
    Token,
    /// `credentials_file`: a user's JWT and the seed of its key.
    Credentials,
}

/// How a hub behind TLS is believed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HubTlsConfig {
    /// PEM of the CAs that may have signed its certificate; absent: the system's.
    pub ca: Option<PathBuf>,
    /// What the pool shows where the hub asks.
    pub identity: Option<HubIdentity>,
}

/// `client_certificate` and `client_key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubIdentity {
    /// PEM: the pool's own certificate, then those that lead to a CA of the hub.
    pub certificate: PathBuf,
    /// PEM of its key.
    pub private_key: PathBuf,
}
