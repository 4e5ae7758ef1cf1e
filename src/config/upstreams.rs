//! Every `[[upstream]]`.

use std::{net::IpAddr, time::Duration};

use super::{
    document::{Found, Notes, Table},
    files::FileUse,
    gateway::{plain_name, set},
    keys, nats,
};
use crate::{
    credential::KeyEncoding,
    listener::ListenerConfig,
    packet::ProtocolVersion,
    upstream::{HubIdentity, HubLogin, HubSasConfig, HubTlsConfig, MqttHubConfig, UpstreamConfig, UpstreamKind},
};

/// The hubs of the file, or the embedded one when it names none.
pub(super) fn read_upstreams(
    notes: &Notes<'_>,
    file: &Table<'_>,
    listeners: &[ListenerConfig],
    files: &mut Vec<FileUse>,
) -> Vec<UpstreamConfig> {
    let Some(tables) = file.tables("upstream", &keys::UPSTREAM) else {
        return vec![UpstreamConfig::new("hub", UpstreamKind::Embedded)];
    };
    let mut upstreams: Vec<UpstreamConfig> = Vec::new();
    for table in &tables {
        table.require("name", "Give it a name: routes, metrics and logs call it by that.");
        let name = table.parsed("name", plain_name).map_or(String::new(), |found| found.value);
        if !name.is_empty() && upstreams.iter().any(|other| other.name == name) {
            notes.mistake(
                table.line_of("name"),
                format!("there is an upstream {name:?} already."),
                "Give it another name.",
            );
        }
        let mut upstream = UpstreamConfig::new(name, read_kind(notes, table, listeners));
        set(&mut upstream.connections, table.number("connections", 1..=CONNECTIONS_MAX));
        set(&mut upstream.window, table.number("window", 1..=WINDOW_MAX));
        set(&mut upstream.messages_per_second, table.number("messages_per_second", 0..=RATE_MAX));
        if let Some(Found { value: Client::Rumqttc, line }) =
            table.one_of("client", &[("native", Client::Native), ("rumqttc", Client::Rumqttc)])
        {
            notes.not_in_this_version(line, "client = \"rumqttc\"");
        }
        files.extend(files_of(notes, table, &upstream, upstreams.len()));
        upstreams.push(upstream);
    }
    upstreams
}

fn read_kind(notes: &Notes<'_>, table: &Table<'_>, listeners: &[ListenerConfig]) -> UpstreamKind {
    table.require("kind", "Write kind = \"embedded\", kind = \"mqtt\" or kind = \"nats\".");
    let kind = table.one_of("kind", &[("embedded", Kind::Embedded), ("mqtt", Kind::Mqtt), ("nats", Kind::Nats)]);
    match kind {
        Some(Found { value: Kind::Mqtt, .. }) => UpstreamKind::Mqtt(read_mqtt(notes, table, listeners)),
        Some(Found { value: Kind::Nats, line }) => {
            if !cfg!(feature = "nats") {
                notes.mistake(line, "this program was built without NATS.", "Build it with the feature `nats`.");
            }
            for key in table.keys().filter(|key| !nats::KEYS.contains(key)) {
                let what = format!("`{key}` has no meaning where kind is \"nats\".");
                notes.mistake(table.line_of(key), what, "Take it out.");
            }
            UpstreamKind::Nats(nats::read_nats(notes, table))
        }
        Some(Found { value: Kind::Embedded, .. }) => {
            for key in keys::UPSTREAM.keys.iter().filter(|key| !OF_EVERY_KIND.contains(key)) {
                if table.has(key) {
                    let what = format!("`{key}` has no meaning where kind is \"embedded\".");
                    notes.mistake(table.line_of(key), what, "Write kind = \"mqtt\", or take it out.");
                }
            }
            UpstreamKind::Embedded
        }
        None => UpstreamKind::Embedded,
    }
}

fn read_mqtt(notes: &Notes<'_>, table: &Table<'_>, listeners: &[ListenerConfig]) -> MqttHubConfig {
    table.require("url", "Write where the hub is, like url = \"mqtts://hub.example:8883\".");
    for key in ["stream", "token_file", "credentials_file"].into_iter().filter(|key| table.has(key)) {
        let what = format!("`{key}` has no meaning where kind is \"mqtt\".");
        notes.mistake(table.line_of(key), what, "Write kind = \"nats\", or take it out.");
    }
    let url = table.parsed("url", hub_url);
    let version = table.number("version", 4..=5).map_or(5, |found: Found<u8>| found.value);
    let username = table.text("username").map(|found| found.value.to_owned());
    for key in ["password_file", "sas"].into_iter().filter(|key| table.has(key)) {
        if username.is_none() && version == 4 {
            // MQTT 3.1.1 [MQTT-3.1.2-22].
            let what = "MQTT 3.1.1 has no password without a user name.";
            notes.mistake(table.line_of(key), what, "Write a `username`.");
        }
    }
    if table.has("password_file") && table.has("sas") {
        let what = "`password_file` and `sas` are two passwords, and there is room for one.";
        notes.mistake(table.line_of("sas"), what, "Take one of them out.");
    }
    let Some(Found { value: url, line }) = url else {
        return MqttHubConfig {
            host: String::new(),
            port: 0,
            tls: None,
            version: version_of(version),
            login: HubLogin::named(None),
        };
    };
    check_wire(notes, table, &Found { value: &url, line });
    if let Some(own) = listeners.iter().find(|own| is_loopback(&url.host) && own.bind.port() == url.port) {
        notes.mistake(
            line,
            format!("that is this gateway's own listener {}.", own.bind),
            "Write where the hub listens.",
        );
    }
    let ca = table.text("ca").map(|found| found.value.into());
    let tls = url.tls.then_some(HubTlsConfig { ca, identity: read_identity(notes, table) });
    let login = HubLogin::named(username.as_deref());
    MqttHubConfig { host: url.host, port: url.port, tls, version: version_of(version), login }
}

fn check_wire(notes: &Notes<'_>, table: &Table<'_>, url: &Found<&HubUrl>) {
    if url.value.tls {
        return;
    }
    for key in ["ca", "client_certificate", "client_key"].into_iter().filter(|key| table.has(key)) {
        let what = format!("`{key}` has no meaning where the url is mqtt://.");
        notes.mistake(table.line_of(key), what, "Write mqtts://, or take it out.");
    }
    // Threat T38.
    if !is_loopback(&url.value.host) {
        let what = format!("messages go to {} in the clear, and nothing proves that it is the hub.", url.value.host);
        notes.warn(url.line, what, "Write mqtts:// where the hub offers it.");
    }
}

/// The certificate that the pool shows.
pub(super) fn read_identity(notes: &Notes<'_>, table: &Table<'_>) -> Option<HubIdentity> {
    let [certificate, private_key] = ["client_certificate", "client_key"].map(|key| table.text(key));
    match (&certificate, &private_key) {
        (Some(_), None) | (None, Some(_)) => {
            let line = certificate.or(private_key).map_or(0, |found| found.line);
            let what = "`client_certificate` and `client_key` belong together.";
            notes.mistake(line, what, "Write both, or neither.");
            None
        }
        _ => Some(HubIdentity { certificate: certificate?.value.into(), private_key: private_key?.value.into() }),
    }
}

/// Tokens that the gateway makes for itself.
fn read_sas(notes: &Notes<'_>, table: &Table<'_>, host: &str) -> Option<HubSasConfig> {
    let sas = table.table("sas", &keys::UPSTREAM_SAS)?;
    sas.require("key_file", "Write where the key is, like key_file = \"certs/hub-policy.primary\".");
    let mut config = HubSasConfig {
        policy: sas.text("policy").map(|found| found.value.to_owned()),
        resource: sas.text_or("resource", host),
        key_file: sas.text_or("key_file", "").into(),
        key_encoding: KeyEncoding::Base64,
        token_lifetime: TOKEN_LIFETIME,
    };
    let encodings = [("base64", KeyEncoding::Base64), ("utf8", KeyEncoding::Utf8)];
    set(&mut config.key_encoding, sas.one_of("key_encoding", &encodings));
    set(&mut config.token_lifetime, sas.duration("token_lifetime", TOKEN_LIFETIME_MIN..=TOKEN_LIFETIME_MAX));
    if config.resource.is_empty() {
        notes.mistake(
            sas.line_of("resource"),
            "`resource` is empty.",
            "Write what the hub's policy is for, or take it out.",
        );
    }
    sas.has("key_file").then_some(config)
}

fn files_of(notes: &Notes<'_>, table: &Table<'_>, config: &UpstreamConfig, upstream: usize) -> Vec<FileUse> {
    let (tls, sas) = match &config.kind {
        UpstreamKind::Mqtt(hub) => (&hub.tls, read_sas(notes, table, &hub.host)),
        UpstreamKind::Nats(hub) => (&hub.tls, None),
        UpstreamKind::Embedded => return Vec::new(),
    };
    let sas = sas.map(|sas| {
        let line = table.line_of("sas");
        FileUse::HubSas { line, sas, upstream }
    });
    let identity = tls.as_ref().and_then(|tls| tls.identity.clone()).map(|identity| FileUse::ServerIdentity {
        line: table.line_of("client_certificate"),
        certificate: identity.certificate,
        private_key: identity.private_key,
    });
    let password = table.text("password_file").map(|found| FileUse::HubPassword {
        line: found.line,
        path: found.value.into(),
        upstream,
    });
    let ca = table.text("ca").map(|found| FileUse::Authorities { line: found.line, path: found.value.into() });
    password.into_iter().chain(nats::secret_of(table, upstream)).chain(ca).chain(sas).chain(identity).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct HubUrl {
    tls: bool,
    host: String,
    port: u16,
}

/// `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`, and nothing more.
fn hub_url(text: &str) -> Result<HubUrl, String> {
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| format!("{text:?} is no URL, like \"mqtts://hub.example:8883\""))?;
    let tls = match scheme {
        "mqtt" => false,
        "mqtts" => true,
        "ws" | "wss" => return Err(format!("{scheme}:// (WebSocket): not in this version")),
        _ => return Err(format!("{scheme}:// is not spoken: it is mqtt:// or mqtts://")),
    };
    if rest.contains('@') {
        // The text is not repeated: it may hold a password.
        return Err("a user and a password do not stand in the URL, but in `username` and `password_file`".into());
    }
    if rest.contains(['/', '?', '#']) && rest.find('/') != Some(rest.len() - 1) {
        return Err(format!("{text:?} has a path, and MQTT has none"));
    }
    let (host, port) = split_port(rest.trim_end_matches('/'));
    if !is_host(host) {
        return Err(format!("{text:?} names no host"));
    }
    let port = match port {
        None if tls => 8883,
        None => 1883,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{port:?} is no port"))?,
    };
    Ok(HubUrl { tls, host: host.to_owned(), port })
}

/// A name, or an address.
pub(super) fn is_host(host: &str) -> bool {
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    is_name || host.parse::<IpAddr>().is_ok()
}

pub(super) fn split_port(authority: &str) -> (&str, Option<&str>) {
    // RFC 3986 §3.2.2: an IPv6 address stands in brackets.
    if let Some((host, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return match rest.strip_prefix(':') {
            None if !rest.is_empty() => ("", None),
            port => (host, port),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    }
}

pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn version_of(level: u8) -> ProtocolVersion {
    if level == 4 { ProtocolVersion::V3_1_1 } else { ProtocolVersion::V5_0 }
}

#[derive(Clone, Copy)]
enum Kind {
    Embedded,
    Mqtt,
    Nats,
}

#[derive(Clone, Copy)]
enum Client {
    Native,
    Rumqttc,
}

/// A hub with more connections than this from one gateway is being attacked by it.
const CONNECTIONS_MAX: usize = 256;
/// What every kind of upstream may have.
const OF_EVERY_KIND: [&str; 6] = ["name", "kind", "connections", "window", "messages_per_second", "client"];
/// More than any hub takes from one gateway.
const RATE_MAX: u32 = 10_000_000;
/// Renewed at four fifths of it.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);
/// Shorter, and a connection would hardly stand before the next one takes its place.
const TOKEN_LIFETIME_MIN: Duration = Duration::from_secs(10);
/// Longer, and a token that leaked is as good as the key.
const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Packet ids are 16 bits.
const WINDOW_MAX: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    fn url(tls: bool, host: &str, port: u16) -> Result<HubUrl, String> {
        Ok(HubUrl { tls, host: host.into(), port })
    }

    #[test]
    fn a_hub_url_is_a_scheme_a_host_and_a_port() {
        for (text, expected) in [
            ("mqtt://hub", url(false, "hub", 1883)),
            ("mqtts://hub.example", url(true, "hub.example", 8883)),
            ("mqtts://10.0.0.1:1234/", url(true, "10.0.0.1", 1234)),
            ("mqtt://[::1]:1884", url(false, "::1", 1884)),
            ("mqtt://[::1]", url(false, "::1", 1883)),
        ] {
            assert_eq!(hub_url(text), expected, "{text}");
        }
        for bad in [
            "",
            "hub:1883",
            "tcp://hub",
            "wss://hub/mqtt",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://hub:0",
            "mqtt://hub:65536",
            "mqtt://hub:",
            "mqtt://hub/mqtt",
            "mqtt://hub?x",
            "mqtt://a b",
            "mqtt://::1",
            "mqtt://[::1",
            "mqtt://hub//",
            "mqtt://[::1]x",
        ] {
            assert!(hub_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_without_repeating_it() {
        let error = hub_url("mqtts://user:hunter2@hub").expect_err("a password");
        assert!(error.contains("password_file") && !error.contains("hunter2"), "{error}");
    }
}
