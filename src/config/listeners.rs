//! Every `[[listener]]`.

use std::net::SocketAddr;

use super::{
    document::{Found, Notes, Table},
    files::FileUse,
    gateway::{PROFILES, socket_address},
    keys,
};
use crate::{
    gate::Profile,
    listener::{ListenerConfig, Transport},
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
        listeners.push(listener);
    }
    listeners
}

/// TCP and TLS for programs on this machine.
fn default_listeners(profile: Profile) -> Vec<ListenerConfig> {
    let tls = Transport::Tls { certificate: CERTIFICATE.into(), private_key: PRIVATE_KEY.into() };
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
            for key in ["certificate", "private_key"] {
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
            Some(Transport::Tls { certificate, private_key })
        }
        Wire::Ws => later(notes, transport.line, "ws"),
        Wire::Wss => later(notes, transport.line, "wss"),
    }
}

fn later(notes: &Notes<'_>, line: usize, word: &str) -> Option<Transport> {
    notes.not_in_this_version(line, &format!("transport = {word:?} (WebSocket)"));
    None
}

fn server_identity(listener: &ListenerConfig, line: usize) -> Option<FileUse> {
    match &listener.transport {
        Transport::Tcp => None,
        Transport::Tls { certificate, private_key } => {
            Some(FileUse::ServerIdentity { line, certificate: certificate.clone(), private_key: private_key.clone() })
        }
    }
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

/// Where the development certificates are made at the first run.
pub(super) const CERTIFICATE: &str = "certs/server.pem";
pub(super) const PRIVATE_KEY: &str = "certs/server.key";
