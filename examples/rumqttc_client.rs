//! rumqttc, driven as `tests/interop/clients/README.md` says.

use std::{
    cell::Cell,
    fs,
    io::{self, BufRead as _, Read as _},
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
}

#[derive(Deserialize)]
struct Subscription {
    filter: String,
    qos: u8,
}

#[derive(Deserialize)]
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

/// What is to be done next, once the one before was answered.
enum Task {
    Subscribe(String, u8),
    /// Several: those that are pipelined.
    Publish(Vec<(String, Vec<u8>, u8, bool)>),
    Stay,
    Leave,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).expect("a line of JSON");
    let spec: Spec = serde_json::from_str(&line).expect("a line of JSON");
    let run = async { if spec.version == 5 { run_v5(&spec).await } else { run_v4(&spec).await } };
    if tokio::time::timeout(Duration::from_secs(300), run).await.is_err() {
        std::process::exit(3);
    }
}

async fn run_v4(spec: &Spec) {
    let mut options = rumqttc::MqttOptions::new(&spec.client_id, &spec.host, spec.port);
    options.set_credentials(&spec.username, &spec.password).set_max_packet_size(PACKET_MAX, PACKET_MAX);
    options.set_transport(transport(spec)).set_clean_session(spec.clean);
    options.set_keep_alive(Duration::from_secs(spec.keep_alive));
    if let Some(will) = &spec.will {
        options.set_last_will(rumqttc::LastWill::new(&will.topic, will.bytes(), qos_v4(will.qos), will.retain));
    }
    let (client, mut events) = rumqttc::AsyncClient::new(options, REQUESTS_MAX);
    let (mut tasks, mut told, unanswered) = (tasks(spec).into_iter(), told(spec), Cell::new(0));
    let is_last = || {
        unanswered.set(unanswered.get() - 1);
        unanswered.get() == 0
    };
    let mut next = async || match tasks.next().expect("the last task ends it") {
        Task::Subscribe(filter, qos) => client.subscribe(filter, qos_v4(qos)).await.expect("the event loop runs"),
        Task::Publish(messages) => {
            unanswered.set(messages.len());
            for (topic, payload, qos, retain) in messages {
                client.publish(topic, qos_v4(qos), retain, payload).await.expect("the event loop runs");
            }
        }
        Task::Stay => say(json!({"event": "done"})),
        Task::Leave => {
            if !spec.stay {
                say(json!({"event": "done"}));
            }
            client.disconnect().await.expect("the event loop runs");
        }
    };
    loop {
        let event = tokio::select! {
            event = events.poll() => event,
            Some(()) = told.recv() => { next().await; continue }
        };
        use rumqttc::{Event, Outgoing, Packet};
        match event {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                say(json!({"event": "session", "present": ack.session_present}));
                say(json!({"event": "connack", "code": 0}));
                next().await;
            }
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                use rumqttc::SubscribeReasonCode::{Failure, Success};
                let code = |code: &_| match code {
                    Success(qos) => *qos as u8,
                    Failure => 0x80,
                };
                say(json!({"event": "suback", "codes": ack.return_codes.iter().map(code).collect::<Vec<_>>()}));
                next().await;
            }
            Ok(Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => {
                say(json!({"event": "puback", "code": 0}));
                if is_last() {
                    next().await;
                }
            }
            Ok(Event::Incoming(Packet::PubComp(_))) => {
                say(json!({"event": "pubcomp", "code": 0}));
                if is_last() {
                    next().await;
                }
            }
            Ok(Event::Incoming(Packet::Publish(message))) => {
                say_message(&message.topic, &message.payload, message.qos as u8);
            }
            Ok(Event::Outgoing(Outgoing::Publish(0))) if is_last() => next().await,
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => {}
            Err(rumqttc::ConnectionError::ConnectionRefused(code)) => {
                return say(json!({"event": "connack", "code": code as u8}));
            }
            Err(error) => return say_closed(&error),
        }
    }
}

async fn run_v5(spec: &Spec) {
    let mut options = v5::MqttOptions::new(&spec.client_id, &spec.host, spec.port);
    options.set_credentials(&spec.username, &spec.password).set_transport(transport(spec));
    options.set_max_packet_size(Some(u32::try_from(PACKET_MAX).expect("fits")));
    options.set_clean_start(spec.clean).set_session_expiry_interval(Some(spec.expiry));
    options.set_keep_alive(Duration::from_secs(spec.keep_alive));
    if let Some(will) = &spec.will {
        let (topic, payload, qos) = (will.topic.as_str(), will.bytes(), qos_v5(will.qos));
        options.set_last_will(v5::mqttbytes::v5::LastWill::new(topic, payload, qos, will.retain, None));
    }
    let (client, mut events) = v5::AsyncClient::new(options, REQUESTS_MAX);
    let (mut tasks, mut told, unanswered) = (tasks(spec).into_iter(), told(spec), Cell::new(0));
    let is_last = || {
        unanswered.set(unanswered.get() - 1);
        unanswered.get() == 0
    };
    let mut next = async || match tasks.next().expect("the last task ends it") {
        Task::Subscribe(filter, qos) => client.subscribe(filter, qos_v5(qos)).await.expect("the event loop runs"),
        Task::Publish(messages) => {
            unanswered.set(messages.len());
            for (topic, payload, qos, retain) in messages {
                client.publish(topic, qos_v5(qos), retain, payload).await.expect("the event loop runs");
            }
        }
        Task::Stay => say(json!({"event": "done"})),
        Task::Leave => {
            if !spec.stay {
                say(json!({"event": "done"}));
            }
            client.disconnect().await.expect("the event loop runs");
        }
    };
    loop {
        let event = tokio::select! {
            event = events.poll() => event,
            Some(()) = told.recv() => { next().await; continue }
        };
        use rumqttc::Outgoing;
        use v5::{Event, mqttbytes::v5::Packet};
        match event {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                say(json!({"event": "session", "present": ack.session_present}));
                say(json!({"event": "connack", "code": 0}));
                next().await;
            }
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                use v5::mqttbytes::v5::SubscribeReasonCode::{NotAuthorized, Success};
                let code = |code: &_| match code {
                    Success(qos) => *qos as u8,
                    NotAuthorized => 0x87,
                    _ => 0x80,
                };
                say(json!({"event": "suback", "codes": ack.return_codes.iter().map(code).collect::<Vec<_>>()}));
                next().await;
            }
            Ok(Event::Incoming(Packet::PubComp(_))) => {
                say(json!({"event": "puback", "code": 0}));
                next().await;
            }
            Ok(Event::Incoming(Packet::PubAck(ack))) => {
                use v5::mqttbytes::v5::PubAckReason::{NotAuthorized, Success};
                let code = match ack.reason {
                    Success => 0,
                    NotAuthorized => 0x87,
                    _ => 0x80,
                };
                say(json!({"event": "puback", "code": code}));
                if is_last() {
                    next().await;
                }
            }
            Ok(Event::Incoming(Packet::PubComp(_))) => {
                say(json!({"event": "pubcomp", "code": 0}));
                if is_last() {
                    next().await;
                }
            }
            Ok(Event::Incoming(Packet::Publish(message))) => {
                say_message(&String::from_utf8_lossy(&message.topic), &message.payload, message.qos as u8);
            }
            Ok(Event::Outgoing(Outgoing::Publish(0))) if is_last() => next().await,
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => {}
            Err(v5::ConnectionError::ConnectionRefused(code)) => {
                return say(json!({"event": "connack", "code": code_v5(&code)}));
            }
            Err(error) => return say_closed(&error),
        }
    }
}

fn tasks(spec: &Spec) -> Vec<Task> {
    let mut tasks: Vec<Task> = spec.subscribe.iter().map(|s| Task::Subscribe(s.filter.clone(), s.qos)).collect();
    let whole = |message: &Message| (message.topic.clone(), message.bytes(), message.qos, message.retain);
    tasks.extend(spec.publish.iter().map(|message| Task::Publish(vec![whole(message)])));
    if !spec.pipelined.is_empty() {
        tasks.push(Task::Publish(spec.pipelined.iter().map(whole).collect()));
    }
    tasks.push(if spec.stay { Task::Stay } else { Task::Leave });
    tasks.push(Task::Leave);
    tasks
}

/// Says when standard input ends, to one that stays until then.
fn told(spec: &Spec) -> mpsc::Receiver<()> {
    let (tell, told) = mpsc::channel(1);
    if spec.stay {
        thread::spawn(move || {
            let ended = io::stdin().lock().read_to_end(&mut Vec::new());
            ended.map(|_| tell.blocking_send(()))
        });
    }
    told
}

fn transport(spec: &Spec) -> Transport {
    match &spec.ca {
        None => Transport::Tcp,
        Some(ca) => {
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
            Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config)))
        }
    }
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

fn say_message(topic: &str, payload: &[u8], qos: u8) {
    say(json!({"event": "message", "topic": topic, "payload": BASE64_STANDARD.encode(payload), "qos": qos}));
}

fn say_closed(error: &dyn std::error::Error) {
    eprintln!("{error}");
    say(json!({"event": "closed"}));
}

fn say(event: Value) {
    println!("{event}");
}

const PACKET_MAX: usize = 1024 * 1024;
const REQUESTS_MAX: usize = 200;
