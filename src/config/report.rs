//! All files at once, for `tollgate check`: what is wrong, what is not well, and what the gateway would do with them.

use std::{path::Path, time::SystemTime};

use super::{
    Config, Examined, LoadedIdentities, LoadedRevocations, Mistake, load_identities, load_revocations,
    revocations::warn_of_entries_for_nobody,
};
use crate::{
    credential::SignedHeader,
    listener::{ListenerConfig, Transport},
    packet::ProtocolVersion,
    time::UnixSeconds,
    upstream::{HubClient, UpstreamConfig, UpstreamKind},
};

/// What there is to say about a configuration and all its files.
#[derive(Debug)]
pub struct Report {
    /// Why it cannot be used, or not all of it: empty when it is good.
    pub mistakes: Vec<Mistake>,
    /// What works, but not well.
    pub warnings: Vec<Mistake>,
    /// What the gateway would do: lines of a heading and a text.
    pub summary: Vec<(&'static str, String)>,
}

impl Report {
    /// Reads `gateway.toml` and every file that it names.
    pub fn of(gateway_toml: &Path) -> Self {
        let Examined { config, mut mistakes, mut warnings } = match Config::examine(gateway_toml) {
            Ok(examined) => examined,
            Err(mistake) => return Self { mistakes: vec![mistake], warnings: Vec::new(), summary: Vec::new() },
        };
        let (mut summary, now) = (what_runs(&config), UnixSeconds::from_system(SystemTime::now()));
        match load_identities(&config.gateway.identities, &config.gate) {
            Ok(loaded) => {
                summary.push(("identities", count_identities(&loaded)));
                warnings.extend(loaded.warnings);
                warnings.extend(warn_of_entries_for_nobody(&config, loaded.identities.keyring(), now));
            }
            Err(found) => mistakes.extend(found),
        }
        match load_revocations(&config, now) {
            Ok(LoadedRevocations { list, bad_lines, warnings: found, header, .. }) => {
                summary.push(("revocations", counted(list.len(), "entry", "entries")));
                if let Some(SignedHeader { epoch, sequence, signed_at, expires_at, .. }) = header {
                    summary.push(("revocations", format!("signed {signed_at}, epoch {epoch}, sequence {sequence}")));
                    summary.push(("revocations", format!("expires {expires_at}")));
                }
                mistakes.extend(bad_lines);
                warnings.extend(found);
            }
            Err(mistake) => mistakes.push(mistake),
        }
        Self { mistakes, warnings, summary }
    }
}

fn what_runs(config: &Config) -> Vec<(&'static str, String)> {
    let listeners = config.listeners.iter().map(|listener| ("listens", show_listener(listener)));
    let admin = [("listens", format!("{}  admin API", config.admin_bind))];
    let hubs = config.upstreams.iter().map(|upstream| ("hub", show_upstream(upstream)));
    let routes = config.routes.iter().map(|route| {
        let there = route.to.as_ref().map_or(String::new(), |to| format!(" as {to}"));
        ("route", format!("{} to {}{there}", route.from, route.upstream))
    });
    let tokens = config.token_service.iter().map(|service| {
        let callers = counted(service.callers.len(), "caller", "callers");
        (
            "listens",
            format!("{}  token service over TLS with {}, {callers}", service.bind, service.tls.certificate.display()),
        )
    });
    listeners.chain(admin).chain(tokens).chain(hubs).chain(routes).collect()
}

fn show_listener(listener: &ListenerConfig) -> String {
    let web = if listener.web_socket.is_some() { "WebSocket over " } else { "" };
    let how = match &listener.transport {
        // Threat T34.
        Transport::Tcp if !listener.bind.ip().is_loopback() => "plain TCP, INSECURE: tokens go in the clear".to_owned(),
        Transport::Tcp => "plain TCP".to_owned(),
        Transport::Tls(files) => format!("TLS with {}", files.certificate.display()),
    };
    let behind = if listener.proxies.is_empty() { "" } else { ", behind a balancer" };
    format!("{}  {web}{how}{behind}, profile {}", listener.bind, listener.profile.as_str())
}

fn show_upstream(upstream: &UpstreamConfig) -> String {
    let what = match &upstream.kind {
        UpstreamKind::Embedded => "embedded".to_owned(),
        UpstreamKind::Mqtt(hub) => {
            let version = if hub.version == ProtocolVersion::V3_1_1 { "3.1.1" } else { "5.0" };
            let client = if hub.wire.client == HubClient::Rumqttc { " by rumqttc" } else { "" };
            let proxy = hub.wire.proxy.as_ref().map_or(String::new(), |proxy| format!(" through {}", proxy.url()));
            format!("{}, MQTT {version}{client}{proxy}", hub.url())
        }
        UpstreamKind::Nats(hub) => format!("{}, JetStream {:?}", hub.address(), hub.stream),
    };
    let connections = counted(upstream.connections, "connection", "connections");
    format!("{}  {what}, {connections}, window {}", upstream.name, upstream.window)
}

fn count_identities(loaded: &LoadedIdentities) -> String {
    let keyring = loaded.identities.keyring();
    [
        counted(keyring.devices().count(), "device", "devices"),
        counted(keyring.policies().count(), "policy", "policies"),
        counted(keyring.groups().len(), "group", "groups"),
        counted(keyring.issuers().count(), "issuer", "issuers"),
    ]
    .join(", ")
}

fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
