//! Every `[[upstream]]`.

use std::{net::IpAddr, time::Duration};

use super::{
    document::{Found, Notes, Table},
    files::FileUse,
    gateway::{plain_name, set},
    keys, nats,
    wire::{check_url, hub_url, proxy_secret_of, read_wire, refuse_client},
};
use crate::{
    credential::KeyEncoding,
    listener::ListenerConfig,
    packet::ProtocolVersion,
    upstream::{
        HubIdentity, HubLogin, HubSasConfig, HubTlsConfig, HubWire, MqttHubConfig, UpstreamConfig, UpstreamKind,
    },
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
            refuse_client(notes, table);
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
            wire: HubWire::default(),
        };
    };
    check_url(notes, table, &Found { value: &url, line });
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
    let wire = read_wire(notes, table, &url);
    MqttHubConfig { host: url.host, port: url.port, tls, version: version_of(version), login, wire }
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
    let proxy = proxy_secret_of(table, upstream).filter(|_| matches!(config.kind, UpstreamKind::Mqtt(_)));
    let secrets = password.into_iter().chain(nats::secret_of(table, upstream)).chain(proxy);
    secrets.chain(ca).chain(sas).chain(identity).collect()
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
