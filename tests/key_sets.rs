//! Key sets by https, with an issuer's server on loopback: rollover, a flood of unknown keys, a server that is away.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};
use support::{Answer, Gateway, Hub, Login, Plan, Version, claims_with, until};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
};

#[test]
fn a_published_key_set_rolls_over_under_a_flood_and_outlives_its_server() {
    let (old, new) = (Key::new("k1"), Key::new("k2"));
    let server = Server::start(vec![&old]);
    let begun = Instant::now();
    let mut gateway = launch(&server);
    gateway.until_ready();
    let mut session = gateway.open(Version::V5).admitted(&login(&old, "d0"));

    // The issuer signs with another key, and the devices come before the gateway knows it.
    server.publishes(vec![&new]);
    for _ in 0..50 {
        assert_eq!(gateway.open(Version::V5).log_in(&login(&new, "d1")), Answer::Connack(0x87));
    }
    assert!(begun.elapsed() < APART, "the flood was slower than what it is about");
    assert_eq!(server.asked(), 1, "no more than one question in thirty seconds");
    session.ping();
    assert_eq!(session.next(PATIENCE), Answer::Pingresp);

    assert_eq!(session.closed(APART + PATIENCE), Some(0x87), "the key that let it in is gone");
    assert!(begun.elapsed() >= APART);
    gateway.open(Version::V5).admitted(&login(&new, "d1"));
    assert_eq!(gateway.open(Version::V5).log_in(&login(&old, "d0")), Answer::Connack(0x87));
    assert_eq!(server.asked(), 2);
    until("both fetches to be counted", PATIENCE, || {
        gateway.metric("tollgate_key_set_fetches_total", &["result=\"fetched\""]) == 2.0
    });

    // A restart while the server is away: the last good set serves.
    server.goes_away();
    gateway.kill_and_restart();
    gateway.until_ready();
    gateway.open(Version::V4).admitted(&login_as(Version::V4, &new, "d1"));
    until("the alarm", PATIENCE, || gateway.metric("tollgate_alarm", &["kind=\"key_set\""]) == 1.0);
}

#[test]
fn the_first_tokens_of_a_new_key_are_held_until_it_was_fetched_and_admitted() {
    let (old, new, other) = (Key::new("k1"), Key::new("k2"), Key::new("k3"));
    let server = Server::start(vec![&old]);
    let mut gateway = launch(&server);
    gateway.until_ready();
    gateway.open(Version::V5).admitted(&login(&old, "d0"));
    let ready = Instant::now();
    until("another fetch to be allowed", APART + PATIENCE, || ready.elapsed() >= APART);
    server.publishes(vec![&old, &new]);
    let stall = server.stalls();
    let mut devices: Vec<_> = (1..6)
        .map(|n| {
            let version = if n % 2 == 0 { Version::V4 } else { Version::V5 };
            let mut device = gateway.open(version);
            device.send(&login_as(version, &new, &format!("d{n}")).packet());
            device
        })
        .collect();
    until("the question", PATIENCE, || server.asked() == 2);
    gateway.connect(Version::V5, "d9");
    drop(stall);
    for device in &mut devices {
        assert_eq!(device.next(PATIENCE), Answer::Connack(0), "it is the device's first attempt");
    }
    // No fetch is allowed for this one, and it is refused like any other.
    assert_eq!(gateway.open(Version::V5).log_in(&login(&other, "d7")), Answer::Connack(0x87));
    let (_, refusals) = gateway.get("/v1/refusals").unwrap();
    assert_eq!(refusals.matches("key_unknown").count(), 1, "who was held was never refused: {refusals}");
    assert_eq!(server.asked(), 2);
}

#[test]
fn a_connect_before_the_first_fetch_has_ended_is_held_and_no_longer_than_that_may_take() {
    let key = Key::new("k1");
    let server = Server::start(vec![&key]);
    let stall = server.stalls();
    let gateway = launch(&server);
    until("the question", PATIENCE, || server.asked() == 1);
    let mut device = gateway.open(Version::V5);
    device.send(&login(&key, "d0").packet());
    gateway.connect(Version::V5, "d1");
    drop(stall);
    assert_eq!(device.next(PATIENCE), Answer::Connack(0));

    let _stall = server.stalls();
    let gateway = launch(&server);
    until("the question", PATIENCE, || server.asked() == 2);
    let mut device = gateway.open(Version::V5);
    device.send(&login(&key, "d0").packet());
    assert_eq!(device.next(APART), Answer::Connack(0x88), "the fetch has come to nothing");
    assert_eq!(gateway.open(Version::V5).log_in(&login(&key, "d0")), Answer::Connack(0x88));
}

#[test]
fn an_issuer_whose_set_was_never_fetched_is_our_trouble_and_no_devices_fault() {
    let key = Key::new("k1");
    let server = Server::start(vec![&key]);
    server.goes_away();
    let gateway = launch(&server);
    until("/readyz to say why", Duration::from_secs(30), || {
        gateway.get("/readyz").is_some_and(|(status, text)| status == 503 && text.contains("published"))
    });
    for (version, code) in [(Version::V4, 3), (Version::V5, 0x88)] {
        assert_eq!(gateway.open(version).log_in(&login_as(version, &key, "d0")), Answer::Connack(code));
        gateway.connect(version, "d1");
    }
}

/// A gateway with the issuer `published`, whose keys are at the server.
fn launch(server: &Server) -> Gateway {
    let url = format!("https://localhost:{}/jwks.json", server.address.port());
    let issuer = format!(
        "[[issuer]]\nname = \"published\"\niss = \"https://published.example\"\naudience = [\"localhost\"]\nalgorithms = [\"EdDSA\"]\njwks_url = \"{url}\"\njwks_ca = \"issuer-ca.pem\"\njwks_private_addresses = [\"127.0.0.0/8\", \"::1\"]\n"
    );
    let plan = Plan::new(Hub::Embedded).identities_and(&issuer);
    plan.launch(|folder| fs::write(folder.join("issuer-ca.pem"), &server.ca_pem).unwrap())
}

fn login(key: &Key, device: &str) -> Login {
    login_as(Version::V5, key, device)
}

fn login_as(version: Version, key: &Key, device: &str) -> Login {
    Login::new(version, device, &key.sign(&claims_with(device, json!({"iss": "https://published.example"}))))
}

/// An Ed25519 key, whose signature is what a JWT has.
struct Key {
    kid: &'static str,
    pair: KeyPair,
}

impl Key {
    fn new(kid: &'static str) -> Self {
        Self { kid, pair: KeyPair::generate_for(&PKCS_ED25519).unwrap() }
    }

    fn public(&self) -> Value {
        let x = BASE64_URL_SAFE_NO_PAD.encode(self.pair.der_bytes());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "use": "sig", "alg": "EdDSA", "x": x})
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "EdDSA", "kid": self.kid});
        let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.pair.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// An issuer's web server, with a certificate that is its own authority.
struct Server {
    address: SocketAddr,
    ca_pem: String,
    /// `None`: it closes every connection.
    set: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
    /// Whoever holds it keeps the server from answering.
    turn: Arc<Mutex<()>>,
}

impl Server {
    fn start(keys: Vec<&Key>) -> Self {
        let pair = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&pair).unwrap();
        let key = PrivateKeyDer::from_pem_slice(pair.serialize_pem().as_bytes()).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            ca_pem: certificate.pem(),
            set: Arc::default(),
            asked: Arc::default(),
            turn: Arc::default(),
        };
        server.publishes(keys);
        let (set, asked, tls) = (server.set.clone(), server.asked.clone(), Arc::new(tls));
        let turn = server.turn.clone();
        // It ends with the process of the test.
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if let Some(set) = set.lock().unwrap().clone() {
                    asked.fetch_add(1, Ordering::SeqCst);
                    drop(turn.lock());
                    answer(socket, tls.clone(), &set).ok();
                }
            }
        });
        server
    }

    fn publishes(&self, keys: Vec<&Key>) {
        let keys: Vec<Value> = keys.into_iter().map(Key::public).collect();
        *self.set.lock().unwrap() = Some(json!({ "keys": keys }).to_string());
    }

    fn goes_away(&self) {
        *self.set.lock().unwrap() = None;
    }

    /// It takes questions, and answers none of them for as long as this is held.
    fn stalls(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn answer(socket: TcpStream, tls: Arc<ServerConfig>, set: &str) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(ServerConnection::new(tls).map_err(io::Error::other)?, socket);
    let mut line = String::new();
    let mut reader = BufReader::new(&mut stream);
    while reader.read_line(&mut line)? > 2 {}
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", set.len());
    stream.write_all(format!("{head}{set}").as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()
}

const PATIENCE: Duration = Duration::from_secs(10);
/// The least time between two fetches.
const APART: Duration = Duration::from_secs(30);
