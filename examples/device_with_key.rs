//! A device that holds its key: it makes its own SAS tokens, connects anew before one expires, and backs off when it is
//! refused or cut off.
//!
//! ```text
//! TOLLGATE_DEVICE=demo-sas TOLLGATE_KEY_FILE=device.key TOLLGATE_CA=certs/ca.pem \
//!     cargo run --example device_with_key
//! ```
//!
//! `TOLLGATE_KEY_FILE` holds the primary key of the device, base64. Also: `TOLLGATE_HOST` (localhost), `TOLLGATE_PORT`
//! (8883), `TOLLGATE_TTL` (3600 seconds), `TOLLGATE_EVERY` (10 seconds between messages).

use std::{env, fs, process, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS, TlsConfiguration, Transport};
use sha2::Sha256;
use tokio::time::{Instant, interval, timeout, timeout_at};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let device = needed("TOLLGATE_DEVICE", "the id of the device");
    let file = needed("TOLLGATE_KEY_FILE", "the file with its primary key");
    let key = fs::read_to_string(&file)
        .unwrap_or_else(|error| give_up(&format!("TOLLGATE_KEY_FILE: {file} cannot be read: {error}")));
    let key = BASE64_STANDARD
        .decode(key.trim())
        .unwrap_or_else(|_| give_up(&format!("TOLLGATE_KEY_FILE: {file} holds no key in base64")));
    let ttl = Duration::from_secs(number("TOLLGATE_TTL", 3600));
    let mut pause = PAUSE_MIN;
    loop {
        let token = sas(&text("TOLLGATE_HOST", "localhost"), &device, &key, ttl);
        match session(&device, &token, Instant::now() + ttl * 8 / 10).await {
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

/// One connection with one token, until it is to be renewed.
async fn session(device: &str, token: &str, renew_at: Instant) -> Result<(), String> {
    let port = port("TOLLGATE_PORT", 8883);
    let mut options = MqttOptions::new(device, text("TOLLGATE_HOST", "localhost"), port);
    options.set_credentials(device, token).set_keep_alive(Duration::from_secs(60));
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
            _ = telemetry.tick(), if connected && Instant::now() < renew_at => {
                let topic = format!("devices/{device}/messages/events/");
                client.try_publish(topic, QoS::AtLeastOnce, false, "{\"temperature\": 21.5}").map_err(|e| e.to_string())?;
            }
            _ = timeout_at(renew_at, std::future::pending::<()>()), if connected => {
                client.try_disconnect().map_err(|error| error.to_string())?;
                connected = false;
            }
        }
    }
}

/// `sr` and `se` are signed exactly as they stand in the token.
fn sas(host: &str, device: &str, key: &[u8], ttl: Duration) -> String {
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970");
    let (sr, se) =
        (utf8_percent_encode(&format!("{host}/devices/{device}"), NON_ALPHANUMERIC).to_string(), since_1970 + ttl);
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    hmac.update(format!("{sr}\n{}", se.as_secs()).as_bytes());
    let signature = BASE64_STANDARD.encode(hmac.finalize().into_bytes());
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    format!("SharedAccessSignature sr={sr}&sig={signature}&se={}", se.as_secs())
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
