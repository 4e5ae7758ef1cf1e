//! One connection by rumqttc, in either version, as a row of answers.

use std::{fmt, fs, path::Path, sync::Arc, time::Duration};

use rumqttc::{
    NetworkOptions, QoS, TlsConfiguration, Transport,
    v5::{
        self,
        mqttbytes::v5::{ConnectReturnCode, PubAckReason, SubscribeReasonCode},
    },
};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use zeroize::Zeroizing;

use super::super::{
    ConfigFile, Outcome,
    arguments::ConnectArguments,
    local::{reachable, token_from_input},
    mint::{self, Mint},
};
use crate::{config::Config, gate::Profile, listener};

/// What the gateway answers, and what becomes of what was sent.
#[derive(Debug)]
pub(super) enum Answer {
    /// CONNACK.
    ConnAck { code: u8, v5: bool, session_present: bool },
    /// A PUBLISH was written.
    Sent { id: u16 },
    /// PUBACK.
    PubAck { id: u16, code: u8, v5: bool, why: Option<String> },
    /// SUBACK.
    SubAck { codes: Vec<u8>, v5: bool },
    /// UNSUBACK.
    UnsubAck,
    /// PUBLISH.
    Message { topic: String, payload: Vec<u8> },
    /// DISCONNECT of the gateway.
    Disconnect { code: u8, why: Option<String> },
    /// The connection is at its end.
    Closed(String),
}

/// What is published.
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) qos: u8,
    pub(super) retain: bool,
}

/// Where and as whom to connect.
pub(super) struct Target {
    device: String,
    token: Zeroizing<String>,
    token_from: String,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    is_v5: bool,
}

impl Target {
    /// By arguments; what they leave open, by the configuration of the gateway on this machine.
    pub(super) fn new(at: &ConfigFile, asked: &ConnectArguments) -> Result<Self, Outcome> {
        let needs_config = asked.host.is_none() || asked.port.is_none();
        let config = if needs_config { Some(at.load()?) } else { None };
        let (token, token_from) = token(at, asked)?;
        let (host, port) = address(asked, config.as_ref())?;
        let tls = if asked.tls { Some(trust(&asked.ca)?) } else { None };
        let mut device = asked.device.to_string();
        let registry = config.as_ref().filter(|config| config.gate.profile == Profile::Google);
        if let Some(registry) = registry.and_then(|config| config.gate.google_registries.first()) {
            device = format!("{registry}/devices/{device}");
        }
        Ok(Self { device, token, token_from, host, port, tls, is_v5: asked.mqtt == 5 })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, version) =
            (if self.tls.is_some() { "TLS" } else { "TCP" }, if self.is_v5 { "5.0" } else { "3.1.1" });
        write!(f, "{}:{} over {transport}, MQTT {version}, {}", self.host, self.port, self.token_from)
    }
}

/// A connection.
pub(super) struct Link {
    client: Either,
    ended: Option<String>,
}

enum Either {
    V4(rumqttc::AsyncClient, Box<rumqttc::EventLoop>),
    V5(v5::AsyncClient, Box<v5::EventLoop>),
}

impl Link {
    /// Nothing is sent before the first [`next`](Self::next).
    pub(super) fn open(target: &Target) -> Self {
        let client = if target.is_v5 { open_v5(target) } else { open_v4(target) };
        Self { client, ended: None }
    }

    /// The next answer. After [`Answer::Closed`] there is none but that.
    pub(super) async fn next(&mut self) -> Answer {
        loop {
            let answer = match &mut self.client {
                Either::V4(_, events) => next_v4(events, &mut self.ended).await,
                Either::V5(_, events) => next_v5(events, &mut self.ended).await,
            };
            if let Some(answer) = answer {
                return answer;
            }
        }
    }

    pub(super) fn publish(&self, message: &Message) -> Result<(), Outcome> {
        let Message { topic, payload, retain, .. } = message;
        match &self.client {
            Either::V4(client, _) => {
                client.try_publish(topic, qos_v4(message.qos), *retain, payload.clone()).map_err(|_| not_queued())
            }
            Either::V5(client, _) => {
                client.try_publish(topic, qos_v5(message.qos), *retain, payload.clone()).map_err(|_| not_queued())
            }
        }
    }

    pub(super) fn subscribe(&self, filter: &str, qos: u8) -> Result<(), Outcome> {
        match &self.client {
            Either::V4(client, _) => client.try_subscribe(filter, qos_v4(qos)).map_err(|_| not_queued()),
            Either::V5(client, _) => client.try_subscribe(filter, qos_v5(qos)).map_err(|_| not_queued()),
        }
    }

    pub(super) fn unsubscribe(&self, filter: &str) -> Result<(), Outcome> {
        match &self.client {
            Either::V4(client, _) => client.try_unsubscribe(filter).map_err(|_| not_queued()),
            Either::V5(client, _) => client.try_unsubscribe(filter).map_err(|_| not_queued()),
        }
    }

    pub(super) fn disconnect(&self) {
        // A connection that has ended needs none.
        let _ = match &self.client {
            Either::V4(client, _) => client.try_disconnect().map_err(drop),
            Either::V5(client, _) => client.try_disconnect().map_err(drop),
        };
    }
}

fn token(at: &ConfigFile, asked: &ConnectArguments) -> Result<(Zeroizing<String>, String), Outcome> {
    match asked.token.as_deref() {
        Some("-") => return Ok((token_from_input()?, "token from standard input".into())),
        Some(file) => {
            let text = fs::read_to_string(file).map(Zeroizing::new);
            let text = text.map_err(|error| Outcome::Failed(format!("cannot read the token from {file}: {error}")))?;
            return Ok((Zeroizing::new(text.trim_end().to_owned()), format!("token from {file}")));
        }
        None => {}
    }
    if let Ok(token) = std::env::var("TOLLGATE_TOKEN") {
        return Ok((Zeroizing::new(token), "token from $TOLLGATE_TOKEN".into()));
    }
    let request = Mint { kind: asked.kind, ..Mint::of(&asked.device) };
    let token = mint::mint(at, &request)?;
    let kind = if asked.kind.is_jwt() { "JWT" } else { "SAS token" };
    Ok((token, format!("{kind} made from this machine's identities")))
}

fn address(asked: &ConnectArguments, config: Option<&Config>) -> Result<(String, u16), Outcome> {
    if let (Some(host), Some(port)) = (&asked.host, asked.port) {
        return Ok((host.clone(), port));
    }
    let is_wanted = |l: &&listener::ListenerConfig| {
        l.web_socket.is_none() && matches!(l.transport, listener::Transport::Tls(_)) == asked.tls
    };
    let found = config.and_then(|config| Some((config, config.listeners.iter().find(is_wanted)?)));
    let Some((config, listener)) = found else {
        let transport = if asked.tls { "tls" } else { "tcp" };
        return Err(Outcome::Usage(format!("the configuration has no {transport} listener: name --host and --port")));
    };
    let bind = reachable(listener.bind);
    // A certificate is made for the name, not for the address.
    let host = if asked.tls { config.gate.hostname.clone() } else { bind.ip().to_string() };
    Ok((asked.host.clone().unwrap_or(host), asked.port.unwrap_or(bind.port())))
}

fn trust(ca: &Path) -> Result<Arc<ClientConfig>, Outcome> {
    let failed = |why: &dyn fmt::Display| Outcome::Failed(format!("cannot use the CA {}: {why}", ca.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| failed(&error))? {
        roots.add(certificate.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| failed(&error))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn open_v4(target: &Target) -> Either {
    let mut options = rumqttc::MqttOptions::new(&target.device, &target.host, target.port);
    options.set_credentials(&target.device, target.token.as_str());
    options.set_keep_alive(KEEP_ALIVE).set_max_packet_size(PACKET_BYTES_MAX as usize, PACKET_BYTES_MAX as usize);
    if let Some(tls) = &target.tls {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
    }
    let (client, mut events) = rumqttc::AsyncClient::new(options, REQUESTS);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_SECONDS);
    events.set_network_options(network);
    Either::V4(client, Box::new(events))
}

fn open_v5(target: &Target) -> Either {
    let mut options = v5::MqttOptions::new(&target.device, &target.host, target.port);
    options.set_credentials(&target.device, target.token.as_str());
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_connection_timeout(CONNECT_SECONDS);
    if let Some(tls) = &target.tls {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
    }
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (client, events) = v5::AsyncClient::new(options, REQUESTS);
    Either::V5(client, Box::new(events))
}

/// What arrived before the end counts: it waits in the state when polling fails.
async fn next_v4(events: &mut rumqttc::EventLoop, ended: &mut Option<String>) -> Option<Answer> {
    use rumqttc::{ConnectionError, Event, Outgoing};
    if let Some(why) = ended {
        return match events.state.events.pop_front() {
            Some(event) => answer_v4(event),
            None => Some(Answer::Closed(why.clone())),
        };
    }
    match events.poll().await {
        Ok(Event::Outgoing(Outgoing::Publish(id))) => Some(Answer::Sent { id }),
        Ok(event) => answer_v4(event),
        Err(ConnectionError::ConnectionRefused(code)) => {
            *ended = Some("refused".into());
            Some(Answer::ConnAck { code: code as u8, v5: false, session_present: false })
        }
        Err(error) => {
            *ended = Some(plain(&error));
            None
        }
    }
}

fn answer_v4(event: rumqttc::Event) -> Option<Answer> {
    use rumqttc::{Event, Packet, SubscribeReasonCode};
    let Event::Incoming(packet) = event else { return None };
    Some(match packet {
        Packet::ConnAck(ack) => {
            Answer::ConnAck { code: ack.code as u8, v5: false, session_present: ack.session_present }
        }
        Packet::PubAck(ack) => Answer::PubAck { id: ack.pkid, code: 0, v5: false, why: None },
        Packet::SubAck(ack) => Answer::SubAck {
            v5: false,
            codes: ack
                .return_codes
                .iter()
                .map(|code| match code {
                    SubscribeReasonCode::Success(qos) => *qos as u8,
                    SubscribeReasonCode::Failure => 0x80,
                })
                .collect(),
        },
        Packet::UnsubAck(_) => Answer::UnsubAck,
        Packet::Publish(publish) => Answer::Message { topic: publish.topic, payload: publish.payload.to_vec() },
        _ => return None,
    })
}

async fn next_v5(events: &mut v5::EventLoop, ended: &mut Option<String>) -> Option<Answer> {
    use rumqttc::Outgoing;
    use v5::{ConnectionError, Event};
    if let Some(why) = ended {
        return match events.state.events.pop_front() {
            Some(event) => answer_v5(event),
            None => Some(Answer::Closed(why.clone())),
        };
    }
    match events.poll().await {
        Ok(Event::Outgoing(Outgoing::Publish(id))) => Some(Answer::Sent { id }),
        Ok(event) => answer_v5(event),
        Err(ConnectionError::ConnectionRefused(code)) => {
            *ended = Some("refused".into());
            Some(Answer::ConnAck { code: connack_code(code), v5: true, session_present: false })
        }
        Err(error) => {
            *ended = Some(plain(&error));
            None
        }
    }
}

fn answer_v5(event: v5::Event) -> Option<Answer> {
    use v5::{Event, mqttbytes::v5::Packet};
    let Event::Incoming(packet) = event else { return None };
    Some(match packet {
        Packet::ConnAck(ack) => {
            Answer::ConnAck { code: connack_code(ack.code), v5: true, session_present: ack.session_present }
        }
        Packet::PubAck(ack) => Answer::PubAck {
            id: ack.pkid,
            code: puback_code(ack.reason),
            v5: true,
            why: ack.properties.and_then(|p| p.reason_string),
        },
        Packet::SubAck(ack) => Answer::SubAck { codes: ack.return_codes.iter().map(suback_code).collect(), v5: true },
        Packet::UnsubAck(_) => Answer::UnsubAck,
        Packet::Publish(publish) => Answer::Message {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.to_vec(),
        },
        Packet::Disconnect(end) => {
            Answer::Disconnect { code: end.reason_code as u8, why: end.properties.and_then(|p| p.reason_string) }
        }
        _ => return None,
    })
}

/// The library wraps one error in another; the end of a connection is most often plain.
fn plain(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    let is_end = ["aborted", "ConnectionAborted", "closed by peer", "UnexpectedEof"].iter().any(|t| text.contains(t));
    if is_end { "the gateway closed it".into() } else { text }
}

fn not_queued() -> Outcome {
    Outcome::Failed("the topic or filter is not valid in MQTT".into())
}

fn qos_v4(qos: u8) -> QoS {
    if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce }
}

fn qos_v5(qos: u8) -> v5::mqttbytes::QoS {
    if qos == 0 { v5::mqttbytes::QoS::AtMostOnce } else { v5::mqttbytes::QoS::AtLeastOnce }
}

/// MQTT 5.0 §3.2.2.2: the library keeps the names and drops the numbers.
fn connack_code(code: ConnectReturnCode) -> u8 {
    use ConnectReturnCode as C;
    match code {
        C::Success => 0,
        C::RefusedProtocolVersion | C::UnsupportedProtocolVersion => 0x84,
        C::BadClientId | C::ClientIdentifierNotValid => 0x85,
        C::ServiceUnavailable | C::ServerUnavailable => 0x88,
        C::UnspecifiedError => 0x80,
        C::MalformedPacket => 0x81,
        C::ProtocolError => 0x82,
        C::ImplementationSpecificError => 0x83,
        C::BadUserNamePassword => 0x86,
        C::NotAuthorized => 0x87,
        C::ServerBusy => 0x89,
        C::Banned => 0x8A,
        C::BadAuthenticationMethod => 0x8C,
        C::TopicNameInvalid => 0x90,
        C::PacketTooLarge => 0x95,
        C::QuotaExceeded => 0x97,
        C::PayloadFormatInvalid => 0x99,
        C::RetainNotSupported => 0x9A,
        C::QoSNotSupported => 0x9B,
        C::UseAnotherServer => 0x9C,
        C::ServerMoved => 0x9D,
        C::ConnectionRateExceeded => 0x9F,
    }
}

fn puback_code(reason: PubAckReason) -> u8 {
    match reason {
        PubAckReason::Success => 0,
        PubAckReason::NoMatchingSubscribers => 0x10,
        PubAckReason::UnspecifiedError => 0x80,
        PubAckReason::ImplementationSpecificError => 0x83,
        PubAckReason::NotAuthorized => 0x87,
        PubAckReason::TopicNameInvalid => 0x90,
        PubAckReason::PacketIdentifierInUse => 0x91,
        PubAckReason::QuotaExceeded => 0x97,
        PubAckReason::PayloadFormatInvalid => 0x99,
    }
}

fn suback_code(reason: &SubscribeReasonCode) -> u8 {
    use SubscribeReasonCode as C;
    match reason {
        C::Success(qos) => *qos as u8,
        C::Failure | C::Unspecified => 0x80,
        C::ImplementationSpecific => 0x83,
        C::NotAuthorized => 0x87,
        C::TopicFilterInvalid => 0x8F,
        C::PkidInUse => 0x91,
        C::QuotaExceeded => 0x97,
        C::SharedSubscriptionsNotSupported => 0x9E,
        C::SubscriptionIdNotSupported => 0xA1,
        C::WildcardSubscriptionsNotSupported => 0xA2,
    }
}

const KEEP_ALIVE: Duration = Duration::from_secs(30);
const CONNECT_SECONDS: u64 = 10;
/// Twice the largest message of a gateway with its defaults.
const PACKET_BYTES_MAX: u32 = 1 << 20;
/// More than are ever queued at once: 16 publishes, an UNSUBSCRIBE, a DISCONNECT.
const REQUESTS: usize = 64;
