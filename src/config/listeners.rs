//! Every `[[listener]]`.

use std::{net::SocketAddr, path::PathBuf};

use super::{
    document::{Found, Notes, Table},
    files::FileUse,
    gateway::{PROFILES, socket_address},
    keys,
};
use crate::{
    credential::{ClientAuth, StaleList},
    gate::Profile,
    listener::{ClientFiles, ListenerConfig, TlsFiles, Transport},
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
        let listener = ListenerConfig { bind: bind.value, transport, profile };
        if table.has("certificate") && table.has("private_key") {
            files.extend(server_identity(&listener, table.line_of("certificate")));
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
        .map(|(port, transport)| ListenerConfig { bind: ([127, 0, 0, 1], port).into(), transport, profile })
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
    table.require("transport", "Write transport = \"tls\" (or \"tcp\").");
    let transport =
        table.one_of("transport", &[("tcp", Wire::Tcp), ("tls", Wire::Tls), ("ws", Wire::Ws), ("wss", Wire::Wss)])?;
    let insecure = table.flag("insecure");
    match transport.value {
        Wire::Tcp => {
            for key in TLS_KEYS {
                if table.has(key) {
                    let what = format!("`{key}` has no meaning where transport is \"tcp\".");
                    notes.mistake(table.line_of(key), what, "Write transport = \"tls\", or take it out.");
                }
            }
            // Threat T34: tokens on a wire that others can read are an explicit choice.
            match (bind.value.ip().is_loopback(), insecure) {
                (false, Some(Found { value: true, line })) => notes.warn(
                    line,
                    format!("tokens cross the network in the clear to {}.", bind.value),
                    "Use transport = \"tls\" wherever devices can.",
                ),
                (false, _) => notes.mistake(
                    bind.line,
                    format!("plain TCP on {}: tokens would cross the network in the clear.", bind.value),
                    "Use transport = \"tls\", bind to 127.0.0.1, or write insecure = true if that is what you want.",
                ),
                (true, Some(found)) => {
                    notes.warn(found.line, "`insecure` has no meaning on a loopback address.", "Take it out.")
                }
                (true, None) => {}
            }
            Some(Transport::Tcp)
        }
        Wire::Tls => {
            if let Some(found) = insecure {
                notes.warn(found.line, "`insecure` has no meaning where transport is \"tls\".", "Take it out.");
            }
            for key in ["certificate", "private_key"] {
                table.require(key, "A TLS listener needs certificate = \"FILE\" and private_key = \"FILE\", both PEM.");
            }
            let certificate = table.text_or("certificate", CERTIFICATE).into();
            let private_key = table.text_or("private_key", PRIVATE_KEY).into();
            let clients = read_clients(notes, table);
            Some(Transport::Tls(TlsFiles { certificate, private_key, clients }))
        }
        Wire::Ws => later(notes, transport.line, "ws"),
        Wire::Wss => later(notes, transport.line, "wss"),
    }
}

/// Who is asked for a certificate, and whose word for it is taken. Without `client_ca` certificates count by thumbprint.
fn read_clients(notes: &Notes<'_>, table: &Table<'_>) -> Option<ClientFiles> {
    let demand = table.one_of("client_auth", &DEMANDS).map(|found| found.value);
    let path = |key| table.has(key).then(|| PathBuf::from(table.text_or(key, "")));
    let (ca, crl) = (path("client_ca"), path("client_crl"));
    let stale_crl = table.one_of("client_crl_stale", &STALE_LISTS).map_or(StaleList::Refuse, |found| found.value);
    if ca.is_some() && !table.has("client_auth") {
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

fn later(notes: &Notes<'_>, line: usize, word: &str) -> Option<Transport> {
    notes.not_in_this_version(line, &format!("transport = {word:?} (WebSocket)"));
    None
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
    let (ca, crl) = (clients.ca.clone()?, clients.crl.clone());
    let lines = [table.line_of("client_ca"), table.line_of("client_crl")];
    Some(FileUse::ClientAuthorities { lines, ca, crl })
}

/// Port 0 is any free port, and so never taken.
fn is_same_place(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[derive(Clone, Copy)]
enum Wire {
    Tcp,
    Tls,
    Ws,
    Wss,
}

const TLS_KEYS: [&str; 6] =
    ["certificate", "private_key", "client_auth", "client_ca", "client_crl", "client_crl_stale"];
const DEMANDS: [(&str, ClientAuth); 2] = [("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];
const STALE_LISTS: [(&str, StaleList); 2] = [("refuse", StaleList::Refuse), ("use", StaleList::Use)];
/// Where the development certificates are made at the first run.
pub(super) const CERTIFICATE: &str = "certs/server.pem";
pub(super) const PRIVATE_KEY: &str = "certs/server.key";
