//! A device that holds no key, only tokens: it exchanges its refresh token (or shows its certificate) at the token service,
//! connects with the token that it gets, and asks for the next one from `renew_after` on.
//!
//! ```text
//! TOLLGATE_DEVICE=demo-sas TOLLGATE_REFRESH_FILE=refresh.json TOLLGATE_CA=certs/ca.pem \
//!     cargo run --example device_with_tokens
//! ```
//!
//! `TOLLGATE_REFRESH_FILE` holds `{"refresh_token": "tgr_…"}`, as whoever set the device up wrote it. It is replaced with
//! each use, and holds an attempt's name while one is under way: a device that loses power before it has read the answer
//! asks again by the same name, and is answered. With `TOLLGATE_CERTIFICATE` and `TOLLGATE_CERTIFICATE_KEY` (PEM) instead
//! the device shows its certificate. Also: `TOLLGATE_HOST` (localhost), `TOLLGATE_PORT` (8883), `TOLLGATE_TOKEN_PORT`
//! (8443), `TOLLGATE_TTL` (the service's), `TOLLGATE_EVERY` (10 seconds between messages).

use std::{env, fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, process, sync::Arc, time::Duration};

use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS, TlsConfiguration, Transport};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, interval, timeout, timeout_at},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let device = needed("TOLLGATE_DEVICE", "the id of the device");
    let mut pause = PAUSE_MIN;
    loop {
        let ended = match next_token(&device).await {
            Ok(token) => session(&device, &token).await,
            Err(why) => Err(why),
        };
        match ended {
            Ok(()) => {
                println!("renewing");
                pause = PAUSE_MIN;
            }
            Err(why) => {
                println!("{why}; again in {pause:?}");
                wait(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// A token, and when it is to be renewed.
struct Token {
    text: String,
    renew_at: Instant,
}

async fn next_token(device: &str) -> Result<Token, String> {
    let mut request = json!({});
    if env::var("TOLLGATE_TTL").is_ok() {
        request["ttl"] = json!(number("TOLLGATE_TTL", 0));
    }
    let (file, mut attempt) = (env::var("TOLLGATE_REFRESH_FILE").ok(), None);
    match &file {
        Some(file) => {
            let (refresh_token, name) = attempt_of(Path::new(file))?;
            request["refresh_token"] = json!(refresh_token);
            attempt = Some(name);
        }
        None => request["device"] = json!(device),
    }
    let answered_after = Instant::now();
    let answer = post(&request, attempt.as_deref()).await?;
    let said = |name: &str| answer[name].as_str().map(str::to_owned).ok_or_else(|| format!("the answer has no {name}"));
    if let Some(file) = file {
        // Kept before anything else is done: the old one is used up.
        keep(Path::new(&file), &json!({"refresh_token": said("refresh_token")?}))?;
    }
    let renew_in = answer["renew_in"].as_u64().ok_or("the answer has no renew_in")?;
    Ok(Token { text: said("token")?, renew_at: answered_after + Duration::from_secs(renew_in) })
}

/// The refresh token, and the name of this attempt, which is on the disk before it is begun.
fn attempt_of(file: &Path) -> Result<(String, String), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut held: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    let refresh_token = held["refresh_token"].as_str().ok_or("there is no refresh token")?.to_owned();
    if let Some(name) = held["attempt"].as_str() {
        return Ok((refresh_token, name.to_owned()));
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    let name: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    held["attempt"] = json!(name);
    keep(file, &held)?;
    Ok((refresh_token, name))
}

/// Whole or not at all, and for nobody else to read.
fn keep(file: &Path, held: &Value) -> Result<(), String> {
    let draft = file.with_extension("new");
    let write = || {
        let mut out = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
        out.write_all(held.to_string().as_bytes())?;
        out.sync_all()?;
        fs::rename(&draft, file)
    };
    write().map_err(|error: std::io::Error| format!("{}: {error}", file.display()))
}

/// One connection with one token, until it is to be renewed.
async fn session(device: &str, token: &Token) -> Result<(), String> {
    let port = port("TOLLGATE_PORT", 8883);
    let mut options = MqttOptions::new(device, text("TOLLGATE_HOST", "localhost"), port);
    options.set_credentials(device, &token.text).set_keep_alive(Duration::from_secs(60));
    options.set_transport(Transport::Tls(TlsConfiguration::Simple { ca: ca_pem(), alpn: None, client_auth: None }));
    let (client, mut events) = AsyncClient::new(options, 10);
    let mut telemetry = interval(Duration::from_secs(number("TOLLGATE_EVERY", 10)));
    let mut connected = false;
    loop {
        tokio::select! {
            event = events.poll() => match event.map_err(|error| error.to_string())? {
                Event::Incoming(Packet::ConnAck(_)) => {
                    println!("connected");
                    connected = true;
                }
                Event::Incoming(Packet::PubAck(_)) => println!("acknowledged"),
                Event::Outgoing(Outgoing::Disconnect) => return Ok(()),
                _ => {}
            },
            _ = telemetry.tick(), if connected && Instant::now() < token.renew_at => {
                let topic = format!("devices/{device}/messages/events/");
                client.try_publish(topic, QoS::AtLeastOnce, false, "{\"temperature\": 21.5}").map_err(|e| e.to_string())?;
            }
            _ = timeout_at(token.renew_at, std::future::pending::<()>()), if connected => {
                client.try_disconnect().map_err(|error| error.to_string())?;
                connected = false;
            }
        }
    }
}

/// POST /v1/tokens, over TLS. Any HTTP client will do.
async fn post(request: &Value, attempt: Option<&str>) -> Result<Value, String> {
    let (host, body) = (text("TOLLGATE_HOST", "localhost"), request.to_string());
    let port = port("TOLLGATE_TOKEN_PORT", 8443);
    let attempt = attempt.map_or(String::new(), |name| format!("Idempotency-Key: {name}\r\n"));
    let head = format!(
        "POST /v1/tokens HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{attempt}\r\n",
        body.len()
    );
    let connector = TlsConnector::from(Arc::new(tls()));
    let mut answer = Vec::new();
    let exchange = async {
        let socket = TcpStream::connect((host.as_str(), port)).await?;
        let name = ServerName::try_from(host.clone())
            .unwrap_or_else(|_| give_up(&format!("TOLLGATE_HOST: {host:?} is neither a name nor an address")));
        let mut stream = connector.connect(name, socket).await?;
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        // The service ends the connection after its answer.
        stream.read_to_end(&mut answer).await
    };
    let exchanged = timeout(Duration::from_secs(30), exchange).await.map_err(|_| "no answer in time".to_owned())?;
    exchanged.map_err(|error| format!("the token service: {error}"))?;
    let answer = String::from_utf8(answer).map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let body: Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body),
        status => {
            Err(format!("the token service: {} {}", status.unwrap_or("?"), body["detail"].as_str().unwrap_or("?")))
        }
    }
}

fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&ca_pem()) {
        let added = root.map_err(|error| error.to_string()).and_then(|root| roots.add(root).map_err(|e| e.to_string()));
        added.unwrap_or_else(|why| give_up(&format!("TOLLGATE_CA: it holds no certificates in PEM: {why}")));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3 are there")
        .with_root_certificates(roots);
    let (Ok(chain), Ok(key)) = (env::var("TOLLGATE_CERTIFICATE"), env::var("TOLLGATE_CERTIFICATE_KEY")) else {
        return builder.with_no_client_auth();
    };
    let chain = CertificateDer::pem_file_iter(&chain)
        .and_then(Iterator::collect)
        .unwrap_or_else(|error| give_up(&format!("TOLLGATE_CERTIFICATE: {chain}: {error}")));
    let key = PrivateKeyDer::from_pem_file(&key)
        .unwrap_or_else(|error| give_up(&format!("TOLLGATE_CERTIFICATE_KEY: {key}: {error}")));
    let built = builder.with_client_auth_cert(chain, key);
    built.unwrap_or_else(|error| give_up(&format!("TOLLGATE_CERTIFICATE and TOLLGATE_CERTIFICATE_KEY: {error}")))
}

/// A little less than so long, by chance: devices that were cut off together do not come back together.
async fn wait(pause: Duration) {
    let mut byte = [0];
    getrandom::fill(&mut byte).expect("randomness");
    let pause = pause / 2 + pause / 2 * u32::from(byte.into_iter().sum::<u8>()) / 255;
    let _ = timeout(pause, std::future::pending::<()>()).await;
}

fn text(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| give_up(&format!("{name}: {text:?} is no number"))))
}

fn port(name: &str, default: u64) -> u16 {
    let number = number(name, default);
    u16::try_from(number).unwrap_or_else(|_| give_up(&format!("{name}: {number} is no port")))
}

/// What has to be set.
fn needed(name: &str, what: &str) -> String {
    env::var(name).unwrap_or_else(|_| give_up(&format!("{name} is not set: it is {what}")))
}

fn ca_pem() -> Vec<u8> {
    let file = text("TOLLGATE_CA", "certs/ca.pem");
    fs::read(&file).unwrap_or_else(|error| give_up(&format!("TOLLGATE_CA: {file} cannot be read: {error}")))
}

/// It is set up wrongly, and no second attempt would help.
fn give_up(why: &str) -> ! {
    eprintln!("{why}");
    process::exit(2)
}

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
