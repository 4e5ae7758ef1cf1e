//! Every `[[listener]]`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{
    document::{Found, Notes, Table},
    files::FileUse,
    gateway::{PROFILES, socket_address},
    keys,
};
use crate::{
    credential::{ClientAuth, StaleList},
    gate::Profile,
    listener::{ClientFiles, ListenerConfig, NamedFiles, Proxies, TlsFiles, Transport, WebSocketRules},
};

/// The listeners of the file, or the default ones when it names none.
pub(super) fn read_listeners(
    notes: &Notes<'_>,
    file: &Table<'_>,
    profile: Profile,
    admin: Found<SocketAddr>,
    files: &mut Vec<FileUse>,
) -> Vec<ListenerConfig> {
    let Some(tables) = file.tables("listener", &keys::LISTENER) else {
        let listeners = default_listeners(profile);
        files.extend(listeners.iter().filter_map(|listener| server_identity(listener, 1)));
        return listeners;
    };
    let mut listeners: Vec<ListenerConfig> = Vec::new();
    let mut taken = vec![(admin.value, "the admin API".to_owned())];
    for table in &tables {
        let Some(bind) = read_bind(notes, table, &mut taken) else { continue };
        let Some(transport) = read_transport(notes, table, bind) else { continue };
        let profile = table.one_of("profile", &PROFILES).map_or(profile, |found| found.value);
        let web_socket = read_web_socket(notes, table);
        let proxies = read_proxies(notes, table);
        let listener = ListenerConfig { bind: bind.value, transport, web_socket, proxies, profile };
        if table.has("certificate") && table.has("private_key") {
            files.extend(server_identity(&listener, table.line_of("certificate")));
        }
        if let Transport::Tls(tls) = &listener.transport {
            files.extend(further_identities(table, &tls.further));
        }
        files.extend(client_authorities(&listener, table));
        listeners.push(listener);
    }
    listeners
}

/// TCP and TLS for programs on this machine.
fn default_listeners(profile: Profile) -> Vec<ListenerConfig> {
    let tls = Transport::Tls(TlsFiles::server_only(CERTIFICATE, PRIVATE_KEY));
    [(1883, Transport::Tcp), (8883, tls)]
        .map(|(port, transport)| ListenerConfig {
            bind: ([127, 0, 0, 1], port).into(),
            transport,
            web_socket: None,
            proxies: Proxies::default(),
            profile,
        })
        .into()
}

fn read_bind(notes: &Notes<'_>, table: &Table<'_>, taken: &mut Vec<(SocketAddr, String)>) -> Option<Found<SocketAddr>> {
    table.require("bind", "Write where it listens, like bind = \"127.0.0.1:1883\".");
    let bind = table.parsed("bind", socket_address)?;
    if let Some((_, by)) = taken.iter().find(|(other, _)| is_same_place(*other, bind.value)) {
        notes.mistake(bind.line, format!("{} is taken by {by} already.", bind.value), "Give one of them another port.");
    }
    taken.push((bind.value, format!("the listener in line {}", table.line())));
    Some(bind)
}

fn read_transport(notes: &Notes<'_>, table: &Table<'_>, bind: Found<SocketAddr>) -> Option<Transport> {
    table.require("transport", "Write transport = \"tls\" (or \"tcp\", \"ws\", \"wss\").");
    let transport = table.one_of("transport", &WIRES)?.value;
    let insecure = table.flag("insecure");
    match transport {
        Wire::Tcp | Wire::Ws => {
            let (word, over_tls, what) =
                if transport == Wire::Tcp { ("tcp", "tls", "plain TCP") } else { ("ws", "wss", "plain WebSocket") };
            for key in TLS_KEYS {
                if table.has(key) {
                    let what = format!("`{key}` has no meaning where transport is {word:?}.");
                    notes.mistake(table.line_of(key), what, format!("Write transport = {over_tls:?}, or take it out."));
                }
            }
            // Threat T34: tokens on a wire that others can read are an explicit choice.
            match (bind.value.ip().is_loopback(), insecure) {
                (false, Some(Found { value: true, line })) => notes.warn(
                    line,
                    format!("tokens cross the network in the clear to {}.", bind.value),
                    format!("Use transport = {over_tls:?} wherever devices can."),
                ),
                (false, _) => notes.mistake(
                    bind.line,
                    format!("{what} on {}: tokens would cross the network in the clear.", bind.value),
                    format!(
                        "Use transport = {over_tls:?}, bind to 127.0.0.1, or write insecure = true if that is what you \
                         want."
                    ),
                ),
                (true, Some(found)) => {
                    notes.warn(found.line, "`insecure` has no meaning on a loopback address.", "Take it out.")
                }
                (true, None) => {}
            }
            Some(Transport::Tcp)
        }
        Wire::Tls | Wire::Wss => {
            if let Some(found) = insecure {
                notes.warn(found.line, "`insecure` has no meaning where TLS is spoken.", "Take it out.");
            }
            for key in ["certificate", "private_key"] {
                table.require(key, "A TLS listener needs certificate = \"FILE\" and private_key = \"FILE\", both PEM.");
            }
            let certificate = table.text_or("certificate", CERTIFICATE).into();
            let private_key = table.text_or("private_key", PRIVATE_KEY).into();
            let (further, clients) = (read_further(notes, table), read_clients(notes, table, None));
            Some(Transport::Tls(TlsFiles { certificate, private_key, further, clients }))
        }
    }
}

/// Certificates for those who ask for certain names.
pub(super) fn read_further(notes: &Notes<'_>, table: &Table<'_>) -> Vec<NamedFiles> {
    let mut taken: Vec<String> = Vec::new();
    let mut further = Vec::new();
    for sni in table.tables("sni", &keys::SNI).unwrap_or_default() {
        sni.require("names", "Write the names that it is for, like names = [\"mqtt.example\"].");
        for key in ["certificate", "private_key"] {
            sni.require(key, "Each needs certificate = \"FILE\" and private_key = \"FILE\", both PEM.");
        }
        let mut names = Vec::new();
        for found in sni.texts("names").map_or_else(Vec::new, |found| found.value) {
            let name = found.value.to_ascii_lowercase();
            let host = name.strip_prefix("*.").unwrap_or(&name);
            if !matches!(ServerName::try_from(host), Ok(ServerName::DnsName(_))) {
                let what = format!("`names`: {:?} is no name that a client can ask for.", found.value);
                notes.mistake(found.line, what, "Write a DNS name, like \"mqtt.example\" or \"*.line7.example\".");
            } else if taken.contains(&name) {
                let what = format!("`names`: {name:?} stands here twice.");
                notes.mistake(found.line, what, "Give each name one certificate.");
            } else {
                taken.push(name.clone());
                names.push(name);
            }
        }
        if sni.texts("names").is_some_and(|found| found.value.is_empty()) {
            let remedy = "Write the names that it is for, or take the section out.";
            notes.mistake(sni.line_of("names"), "`names` is empty: nobody would be shown the certificate.", remedy);
        }
        let file = |key| sni.text_or(key, "").into();
        further.push(NamedFiles { names, certificate: file("certificate"), private_key: file("private_key") });
    }
    further
}

/// The files of those, to be looked at.
pub(super) fn further_identities(table: &Table<'_>, further: &[NamedFiles]) -> Vec<FileUse> {
    let tables = table.tables("sni", &keys::SNI).unwrap_or_default();
    let whole = tables.iter().zip(further).filter(|(sni, _)| sni.has("certificate") && sni.has("private_key"));
    whole
        .flat_map(|(sni, NamedFiles { names, certificate, private_key })| {
            let (line, certificate, names) = (sni.line_of("certificate"), certificate.clone(), names.clone());
            let private_key = private_key.clone();
            let names = FileUse::ServerNames { line: sni.line_of("names"), certificate: certificate.clone(), names };
            [FileUse::ServerIdentity { line, certificate, private_key }, names]
        })
        .collect()
}

/// Who is asked for a certificate, and whose word for it is taken. Without `client_ca` certificates count by thumbprint.
/// `implied` is what `client_ca` alone says.
pub(super) fn read_clients(notes: &Notes<'_>, table: &Table<'_>, implied: Option<ClientAuth>) -> Option<ClientFiles> {
    let path = |key| table.has(key).then(|| PathBuf::from(table.text_or(key, "")));
    let (ca, crl) = (path("client_ca"), path("client_crl"));
    let demand = match table.has("client_auth") {
        true => table.one_of("client_auth", &DEMANDS).map(|found| found.value),
        false => implied.filter(|_| ca.is_some()),
    };
    let stale_crl = table.one_of("client_crl_stale", &STALE_LISTS).map_or(StaleList::Refuse, |found| found.value);
    if ca.is_some() && implied.is_none() && !table.has("client_auth") {
        notes.mistake(
            table.line_of("client_ca"),
            "`client_ca` stands without `client_auth`: nobody would be asked for a certificate.",
            "Write client_auth = \"optional\" (or \"required\").",
        );
    }
    for (key, needs) in [("client_crl", "client_ca"), ("client_crl_stale", "client_crl")] {
        if table.has(key) && !table.has(needs) {
            let what = format!("`{key}` stands without `{needs}`, and has no meaning so.");
            notes.mistake(table.line_of(key), what, format!("Write `{needs}`, or take `{key}` out."));
        }
    }
    Some(ClientFiles { demand: demand?, ca, crl, stale_crl })
}

/// Paths and Origins, where WebSocket is spoken.
fn read_web_socket(notes: &Notes<'_>, table: &Table<'_>) -> Option<WebSocketRules> {
    let (paths, origins) = (table.texts("paths"), table.texts("origins"));
    let spoken = matches!(table.text("transport")?.value, "ws" | "wss");
    if !spoken {
        for (key, line) in [("paths", paths.map(|found| found.line)), ("origins", origins.map(|found| found.line))] {
            if let Some(line) = line {
                let what = format!("`{key}` has no meaning where transport is neither \"ws\" nor \"wss\".");
                notes.mistake(line, what, "Take it out, or write transport = \"wss\".");
            }
        }
        return None;
    }
    let paths = match paths {
        None => DEFAULT_PATHS.map(str::to_owned).into(),
        Some(found) => {
            if found.value.is_empty() {
                notes.mistake(found.line, "`paths` is empty: nobody could connect.", "Write paths = [\"/mqtt\"].");
            }
            for path in found.value.iter().filter(|path| !is_path(path.value)) {
                let what = format!("`paths`: {:?} is no path: it begins with / and has no ? and no #.", path.value);
                notes.mistake(path.line, what, "Write the path as it is decoded, like \"/mqtt\".");
            }
            found.value.iter().map(|path| path.value.to_owned()).collect()
        }
    };
    let origins = origins.map_or_else(Vec::new, |found| {
        for origin in found.value.iter().filter(|origin| !is_origin(origin.value)) {
            // RFC 6454 §6.1
            let what = format!("`origins`: {:?} is no Origin as a browser names it.", origin.value);
            notes.mistake(origin.line, what, "Write scheme, host and port only, like \"https://panel.example\".");
        }
        found.value.iter().map(|origin| origin.value.to_owned()).collect()
    });
    Some(WebSocketRules { paths, origins, hosts: Vec::new() })
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && !text.contains(['?', '#']) && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

/// A scheme, a host, perhaps a port: no `*`, no path, nothing else.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    matches!(scheme, "http" | "https")
        && !host.is_empty()
        && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.:[]_".contains(c))
}

/// The networks of the balancers in front.
fn read_proxies(notes: &Notes<'_>, table: &Table<'_>) -> Proxies {
    let Some(found) = table.texts("proxy_protocol_from") else { return Proxies::default() };
    let mut networks = Vec::new();
    for text in &found.value {
        let network = text.value.parse().or_else(|_| text.value.parse().map(|address: IpAddr| address.into()));
        match network {
            Ok(network) => {
                let network: IpNet = network;
                if network.prefix_len() == 0 {
                    notes.mistake(
                        text.line,
                        format!("`proxy_protocol_from`: {network} is everybody: anyone could claim any address."),
                        "List the balancers alone.",
                    );
                }
                networks.push(network);
            }
            Err(_) => {
                let what = format!("`proxy_protocol_from`: {:?} is no network.", text.value);
                notes.mistake(text.line, what, "Write an address, or a network like \"10.0.0.0/8\".");
            }
        }
    }
    Proxies::new(networks)
}

fn server_identity(listener: &ListenerConfig, line: usize) -> Option<FileUse> {
    match &listener.transport {
        Transport::Tcp => None,
        Transport::Tls(TlsFiles { certificate, private_key, .. }) => {
            Some(FileUse::ServerIdentity { line, certificate: certificate.clone(), private_key: private_key.clone() })
        }
    }
}

fn client_authorities(listener: &ListenerConfig, table: &Table<'_>) -> Option<FileUse> {
    let Transport::Tls(TlsFiles { clients: Some(clients), .. }) = &listener.transport else { return None };
    authorities_of(clients, table)
}

pub(super) fn authorities_of(clients: &ClientFiles, table: &Table<'_>) -> Option<FileUse> {
    let (ca, crl) = (clients.ca.clone()?, clients.crl.clone());
    let lines = [table.line_of("client_ca"), table.line_of("client_crl")];
    Some(FileUse::ClientAuthorities { lines, ca, crl })
}

/// Port 0 is any free port, and so never taken.
pub(super) fn is_same_place(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Tcp,
    Tls,
    Ws,
    Wss,
}

const WIRES: [(&str, Wire); 4] = [("tcp", Wire::Tcp), ("tls", Wire::Tls), ("ws", Wire::Ws), ("wss", Wire::Wss)];
/// Where MQTT is as a rule, and where Azure's SDKs look for it.
const DEFAULT_PATHS: [&str; 2] = ["/mqtt", "/$iothub/websocket"];
const TLS_KEYS: [&str; 7] =
    ["certificate", "private_key", "sni", "client_auth", "client_ca", "client_crl", "client_crl_stale"];
const DEMANDS: [(&str, ClientAuth); 2] = [("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];
const STALE_LISTS: [(&str, StaleList); 2] = [("refuse", StaleList::Refuse), ("use", StaleList::Use)];
/// Where the development certificates are made at the first run.
pub(super) const CERTIFICATE: &str = "certs/server.pem";
pub(super) const PRIVATE_KEY: &str = "certs/server.key";
