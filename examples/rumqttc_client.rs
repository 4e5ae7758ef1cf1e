//! rumqttc, driven as `tests/interop/clients/README.md` says.

use std::{
    fs,
    io::{self, BufRead as _},
    sync::Arc,
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rumqttc::{TlsConfiguration, Transport, v5};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, pem::PemObject as _},
    version,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

#[derive(Deserialize)]
struct Spec {
    host: String,
    port: u16,
    ca: Option<String>,
    tls_version: Option<String>,
    path: Option<String>,
    version: u8,
    client_id: String,
    username: String,
    password: String,
    clean: bool,
    expiry: u32,
    keep_alive: u64,
    will: Option<Message>,
    subscribe: Vec<Subscription>,
    publish: Vec<Message>,
    pipelined: Vec<Message>,
    stay: bool,
    reconnect: bool,
}

#[derive(Deserialize)]
struct Subscription {
    filter: String,
    qos: u8,
}

#[derive(Clone, Deserialize)]
struct Message {
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(&self.payload).expect("base64")
    }
}

/// The event loop beside what is asked of it: nothing but an end of both interrupts a `poll`.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).expect("a line of JSON");
    let spec: Spec = serde_json::from_str(&line).expect("a line of JSON");
    let (asking, mut events) = if spec.version == 5 { link_v5(&spec) } else { link_v4(&spec) };
    let (tell, told) = mpsc::channel(EVENTS_MAX);
    let polling = async {
        let mut attempts = tokio::time::interval(BETWEEN_ATTEMPTS);
        loop {
            let happened = events.poll().await;
            let ends = match &happened {
                Happened::Left | Happened::Refused(_) => true,
                Happened::Lost(_) => !spec.reconnect,
                _ => false,
            };
            if matches!(happened, Happened::Lost(_)) && !ends {
                attempts.tick().await;
            }
            if tell.send(happened).await.is_err() || ends {
                return std::future::pending::<()>().await;
            }
        }
    };
    let run = async {
        tokio::select! { () = polling => {}, () = work(&spec, &asking, told) => {} }
    };
    if tokio::time::timeout(Duration::from_secs(300), run).await.is_err() {
        std::process::exit(3);
    }
}

/// What came of an event loop, whichever the version.
enum Happened {
    Connected {
        session_present: bool,
    },
    Refused(u8),
    Subscribed(Vec<u8>),
    Acknowledged {
        event: &'static str,
        code: u8,
    },
    /// What nobody acknowledges is done when it was sent.
    SentAtQos0,
    Came {
        topic: String,
        payload: Vec<u8>,
        qos: u8,
    },
    Left,
    Lost(String),
    Other,
}

enum Asking {
    V4(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

impl Asking {
    async fn subscribe(&self, wanted: &Subscription) {
        let Subscription { filter, qos } = wanted;
        match self {
            Self::V4(client) => client.subscribe(filter, qos_v4(*qos)).await.expect("the event loop runs"),
            Self::V5(client) => client.subscribe(filter, qos_v5(*qos)).await.expect("the event loop runs"),
        }
    }

    async fn publish(&self, message: &Message) {
        let Message { topic, qos, retain, .. } = message;
        let bytes = message.bytes();
        match self {
            Self::V4(client) => client.publish(topic, qos_v4(*qos), *retain, bytes).await.expect("the event loop runs"),
            Self::V5(client) => client.publish(topic, qos_v5(*qos), *retain, bytes).await.expect("the event loop runs"),
        }
    }

    async fn disconnect(&self) {
        match self {
            Self::V4(client) => client.disconnect().await.expect("the event loop runs"),
            Self::V5(client) => client.disconnect().await.expect("the event loop runs"),
        }
    }
}

/// All that the line says, and then what further lines say.
async fn work(spec: &Spec, asking: &Asking, told: mpsc::Receiver<Happened>) {
    let mut answers = Answers { told, asking, spec, has_been_connected: false };
    answers.until_connected().await;
    for wanted in &spec.subscribe {
        asking.subscribe(wanted).await;
        answers.until(|happened| matches!(happened, Happened::Subscribed(_)), 1).await;
    }
    for message in &spec.publish {
        answers.publish(std::slice::from_ref(message)).await;
    }
    answers.publish(&spec.pipelined).await;
    say(json!({"event": "done"}));
    if spec.stay {
        let mut orders = orders();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(messages) => {
                        answers.publish(&messages).await;
                        say(json!({"event": "done"}));
                    }
                    None => break,
                },
                happened = answers.next() => drop(happened),
            }
        }
    }
    asking.disconnect().await;
    answers.until(|happened| matches!(happened, Happened::Left), 1).await;
}

struct Answers<'a> {
    told: mpsc::Receiver<Happened>,
    asking: &'a Asking,
    spec: &'a Spec,
    has_been_connected: bool,
}

impl Answers<'_> {
    async fn until_connected(&mut self) {
        self.until(|happened| matches!(happened, Happened::Connected { .. }), 1).await;
    }

    /// Without waiting in between, and then until each is acknowledged.
    async fn publish(&mut self, messages: &[Message]) {
        for message in messages {
            self.asking.publish(message).await;
        }
        let is_answer = |happened: &Happened| matches!(happened, Happened::Acknowledged { .. } | Happened::SentAtQos0);
        self.until(is_answer, messages.len()).await;
    }

    async fn until(&mut self, is_it: impl Fn(&Happened) -> bool, mut count: usize) {
        while count > 0 {
            count -= usize::from(is_it(&self.next().await));
        }
    }

    /// The next event, said; what ends the program ends it here.
    async fn next(&mut self) -> Happened {
        let happened = self.told.recv().await.expect("the event loop runs");
        match &happened {
            Happened::Connected { session_present } => {
                say(json!({"event": "session", "present": session_present}));
                say(json!({"event": "connack", "code": 0}));
                // A session of its own that was lost: rumqttc does not subscribe again.
                if self.has_been_connected && !session_present {
                    for wanted in &self.spec.subscribe {
                        self.asking.subscribe(wanted).await;
                    }
                }
                self.has_been_connected = true;
            }
            Happened::Refused(code) => {
                say(json!({"event": "connack", "code": code}));
                std::process::exit(0);
            }
            Happened::Subscribed(codes) => say(json!({"event": "suback", "codes": codes})),
            Happened::Acknowledged { event, code } => say(json!({"event": event, "code": code})),
            Happened::Came { topic, payload, qos } => {
                let payload = BASE64_STANDARD.encode(payload);
                say(json!({"event": "message", "topic": topic, "payload": payload, "qos": qos}));
            }
            Happened::Lost(error) => {
                eprintln!("{error}");
                say(json!({"event": "closed"}));
                if !self.spec.reconnect {
                    std::process::exit(0);
                }
            }
            Happened::SentAtQos0 | Happened::Left | Happened::Other => {}
        }
        happened
    }
}

/// What further lines ask for; ends with standard input.
fn orders() -> mpsc::Receiver<Vec<Message>> {
    let (tell, told) = mpsc::channel(1);
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let order = serde_json::from_str(&line.expect("a line")).expect("a list of messages");
            if tell.blocking_send(order).is_err() {
                return;
            }
        }
    });
    told
}

enum Events {
    V4(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

impl Events {
    async fn poll(&mut self) -> Happened {
        match self {
            Self::V4(events) => happened_v4(events.poll().await),
            Self::V5(events) => happened_v5(events.poll().await),
        }
    }
}

fn link_v4(spec: &Spec) -> (Asking, Events) {
    let mut options = rumqttc::MqttOptions::new(&spec.client_id, address(spec), spec.port);
    options.set_credentials(&spec.username, &spec.password).set_max_packet_size(PACKET_MAX, PACKET_MAX);
    options.set_transport(transport(spec)).set_clean_session(spec.clean);
    options.set_keep_alive(Duration::from_secs(spec.keep_alive));
    if let Some(will) = &spec.will {
        options.set_last_will(rumqttc::LastWill::new(&will.topic, will.bytes(), qos_v4(will.qos), will.retain));
    }
    let (client, events) = rumqttc::AsyncClient::new(options, REQUESTS_MAX);
    (Asking::V4(client), Events::V4(Box::new(events)))
}

fn link_v5(spec: &Spec) -> (Asking, Events) {
    let mut options = v5::MqttOptions::new(&spec.client_id, address(spec), spec.port);
    options.set_credentials(&spec.username, &spec.password).set_transport(transport(spec));
    options.set_max_packet_size(Some(u32::try_from(PACKET_MAX).expect("fits")));
    options.set_clean_start(spec.clean).set_session_expiry_interval(Some(spec.expiry));
    options.set_keep_alive(Duration::from_secs(spec.keep_alive));
    if let Some(will) = &spec.will {
        let (topic, payload, qos) = (will.topic.as_str(), will.bytes(), qos_v5(will.qos));
        options.set_last_will(v5::mqttbytes::v5::LastWill::new(topic, payload, qos, will.retain, None));
    }
    let (client, events) = v5::AsyncClient::new(options, REQUESTS_MAX);
    (Asking::V5(client), Events::V5(Box::new(events)))
}

fn happened_v4(event: Result<rumqttc::Event, rumqttc::ConnectionError>) -> Happened {
    use rumqttc::{ConnectionError, Event, Outgoing, Packet, SubscribeReasonCode};
    match event {
        Ok(Event::Incoming(Packet::ConnAck(ack))) => Happened::Connected { session_present: ack.session_present },
        Ok(Event::Incoming(Packet::SubAck(ack))) => {
            let code = |code: &_| match code {
                SubscribeReasonCode::Success(qos) => *qos as u8,
                SubscribeReasonCode::Failure => 0x80,
            };
            Happened::Subscribed(ack.return_codes.iter().map(code).collect())
        }
        Ok(Event::Incoming(Packet::PubAck(_))) => Happened::Acknowledged { event: "puback", code: 0 },
        Ok(Event::Incoming(Packet::PubComp(_))) => Happened::Acknowledged { event: "pubcomp", code: 0 },
        Ok(Event::Incoming(Packet::Publish(message))) => {
            Happened::Came { topic: message.topic, payload: message.payload.to_vec(), qos: message.qos as u8 }
        }
        Ok(Event::Outgoing(Outgoing::Publish(0))) => Happened::SentAtQos0,
        Ok(Event::Outgoing(Outgoing::Disconnect)) => Happened::Left,
        Ok(_) => Happened::Other,
        Err(ConnectionError::ConnectionRefused(code)) => Happened::Refused(code as u8),
        Err(error) => Happened::Lost(error.to_string()),
    }
}

fn happened_v5(event: Result<v5::Event, v5::ConnectionError>) -> Happened {
    use rumqttc::Outgoing;
    use v5::{
        ConnectionError, Event,
        mqttbytes::v5::{Packet, PubAckReason, PubCompReason, SubscribeReasonCode},
    };
    match event {
        Ok(Event::Incoming(Packet::ConnAck(ack))) => Happened::Connected { session_present: ack.session_present },
        Ok(Event::Incoming(Packet::SubAck(ack))) => {
            let code = |code: &_| match code {
                SubscribeReasonCode::Success(qos) => *qos as u8,
                SubscribeReasonCode::NotAuthorized => 0x87,
                _ => 0x80,
            };
            Happened::Subscribed(ack.return_codes.iter().map(code).collect())
        }
        Ok(Event::Incoming(Packet::PubAck(ack))) => {
            let code = match ack.reason {
                PubAckReason::Success => 0,
                PubAckReason::NotAuthorized => 0x87,
                _ => 0x80,
            };
            Happened::Acknowledged { event: "puback", code }
        }
        Ok(Event::Incoming(Packet::PubComp(ack))) => {
            let code = if ack.reason == PubCompReason::Success { 0 } else { 0x92 };
            Happened::Acknowledged { event: "pubcomp", code }
        }
        Ok(Event::Incoming(Packet::Publish(message))) => {
            let topic = String::from_utf8_lossy(&message.topic).into_owned();
            Happened::Came { topic, payload: message.payload.to_vec(), qos: message.qos as u8 }
        }
        Ok(Event::Outgoing(Outgoing::Publish(0))) => Happened::SentAtQos0,
        Ok(Event::Outgoing(Outgoing::Disconnect)) => Happened::Left,
        Ok(_) => Happened::Other,
        Err(ConnectionError::ConnectionRefused(code)) => Happened::Refused(code_v5(&code)),
        Err(error) => Happened::Lost(error.to_string()),
    }
}

/// Over WebSocket, rumqttc takes a URL for the name of a host.
fn address(spec: &Spec) -> String {
    match &spec.path {
        Some(path) => {
            let scheme = if spec.ca.is_some() { "wss" } else { "ws" };
            format!("{scheme}://{}:{}{path}", spec.host, spec.port)
        }
        None => spec.host.clone(),
    }
}

fn transport(spec: &Spec) -> Transport {
    let Some(ca) = &spec.ca else {
        return if spec.path.is_some() { Transport::Ws } else { Transport::Tcp };
    };
    let versions: &[&SupportedProtocolVersion] = match spec.tls_version.as_deref() {
        Some("1.2") => &[&version::TLS12],
        Some("1.3") => &[&version::TLS13],
        _ => rustls::ALL_VERSIONS,
    };
    let mut roots = RootCertStore::empty();
    let file = fs::read(ca).expect("the CA's certificate");
    for certificate in CertificateDer::pem_slice_iter(&file) {
        roots.add(certificate.expect("PEM")).expect("a CA's certificate");
    }
    let config = ClientConfig::builder_with_protocol_versions(versions);
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let tls = TlsConfiguration::Rustls(Arc::new(config));
    if spec.path.is_some() { Transport::Wss(tls) } else { Transport::tls_with_config(tls) }
}

fn qos_v4(qos: u8) -> rumqttc::QoS {
    rumqttc::qos(qos).expect("0, 1 or 2")
}

fn qos_v5(qos: u8) -> v5::mqttbytes::QoS {
    v5::mqttbytes::qos(qos).expect("0, 1 or 2")
}

/// MQTT 5.0 §3.2.2.2, of those that a gateway sends.
fn code_v5(code: &v5::mqttbytes::v5::ConnectReturnCode) -> u8 {
    use v5::mqttbytes::v5::ConnectReturnCode as Code;
    match code {
        Code::MalformedPacket => 0x81,
        Code::ProtocolError => 0x82,
        Code::UnsupportedProtocolVersion => 0x84,
        Code::ClientIdentifierNotValid => 0x85,
        Code::BadUserNamePassword => 0x86,
        Code::NotAuthorized => 0x87,
        Code::ServerUnavailable => 0x88,
        Code::ServerBusy => 0x89,
        Code::Banned => 0x8A,
        Code::QuotaExceeded => 0x97,
        Code::ConnectionRateExceeded => 0x9F,
        _ => 0x80,
    }
}

fn say(event: Value) {
    println!("{event}");
}

const PACKET_MAX: usize = 1024 * 1024;
const REQUESTS_MAX: usize = 200;
const EVENTS_MAX: usize = 1000;
/// Its event loop connects again at once; a moment keeps it from hammering.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(300);
