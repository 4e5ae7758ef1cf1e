//! An `[[upstream]]` of kind `nats`.

use super::{
    document::{Found, Notes, Table},
    files::FileUse,
    upstreams::{is_host, is_loopback, read_identity, split_port},
};
use crate::upstream::{HubLogin, HubTlsConfig, NatsHubConfig, NatsLogin, NatsLoginKind};

/// The keys that have a meaning for this kind.
pub(super) const KEYS: [&str; 14] = [
    "name",
    "kind",
    "url",
    "stream",
    "connections",
    "window",
    "messages_per_second",
    "username",
    "password_file",
    "token_file",
    "credentials_file",
    "ca",
    "client_certificate",
    "client_key",
];

/// What the table says; secrets are put in when their files are read.
pub(super) fn read_nats(notes: &Notes<'_>, table: &Table<'_>) -> NatsHubConfig {
    table.require("url", "Write where the servers are, like url = \"tls://nats.example:4222\".");
    table.require(
        "stream",
        "Write the name of the stream that stores the messages: its acknowledgement is their witness.",
    );
    let stream = table.parsed("stream", stream_name).map_or(String::new(), |found| found.value);
    let login = read_login(notes, table);
    let ca = table.text("ca").map(|found| found.value.into());
    let Some(Found { value: urls, line }) = table.parsed("url", server_urls) else {
        return NatsHubConfig { servers: Vec::new(), tls: None, login, stream };
    };
    if !urls.tls {
        for key in ["ca", "client_certificate", "client_key"].into_iter().filter(|key| table.has(key)) {
            let what = format!("`{key}` has no meaning where the url is nats://.");
            notes.mistake(table.line_of(key), what, "Write tls://, or take it out.");
        }
        // Threat T38.
        if let Some((host, _)) = urls.servers.iter().find(|(host, _)| !is_loopback(host)) {
            let what = format!("messages go to {host} in the clear, and nothing proves that it is the hub.");
            notes.warn(line, what, "Write tls:// where the server offers it.");
        }
    }
    let tls = urls.tls.then_some(HubTlsConfig { ca, identity: read_identity(notes, table) });
    NatsHubConfig { servers: urls.servers, tls, login, stream }
}

/// The file of the login's secret.
pub(super) fn secret_of(table: &Table<'_>, upstream: usize) -> Option<FileUse> {
    let file = |key| table.text(key).map(|f| FileUse::HubPassword { line: f.line, path: f.value.into(), upstream });
    file("token_file").or_else(|| file("credentials_file"))
}

fn read_login(notes: &Notes<'_>, table: &Table<'_>) -> NatsLogin {
    let logins: Vec<&str> =
        ["password_file", "token_file", "credentials_file"].into_iter().filter(|key| table.has(key)).collect();
    if let [first, second, ..] = *logins {
        let what = format!("`{first}` and `{second}` are two logins, and a connection has one.");
        notes.mistake(table.line_of(second), what, "Take one of them out.");
    }
    let username = table.text("username");
    let kind = match logins.first() {
        Some(&"password_file") => NatsLoginKind::Password,
        Some(&"token_file") => NatsLoginKind::Token,
        Some(_) => NatsLoginKind::Credentials,
        None => NatsLoginKind::Nobody,
    };
    match (&username, kind) {
        (None, NatsLoginKind::Password) => {
            let what = "NATS has no password without a user name.";
            notes.mistake(table.line_of("password_file"), what, "Write a `username`, or use `token_file`.");
        }
        (Some(found), kind) if kind != NatsLoginKind::Password => {
            let what = "`username` has no meaning without `password_file`.";
            notes.mistake(found.line, what, "Write the `password_file`, or take it out.");
        }
        _ => {}
    }
    NatsLogin { kind, secret: HubLogin::named(username.map(|found| found.value)) }
}

#[derive(Debug, PartialEq, Eq)]
struct ServerUrls {
    tls: bool,
    servers: Vec<(String, u16)>,
}

/// `nats://HOST[:PORT]` or `tls://HOST[:PORT]`, and more of the same cluster behind commas.
fn server_urls(text: &str) -> Result<ServerUrls, String> {
    if text.contains('@') {
        // The text is not repeated: it may hold a password.
        return Err("a login does not stand in the URL, but in `username` and `password_file`, `token_file` or \
                    `credentials_file`"
            .into());
    }
    let urls: Vec<(bool, (String, u16))> =
        text.split(',').map(|url| server_url(url.trim())).collect::<Result<_, _>>()?;
    let tls = urls.iter().any(|(tls, _)| *tls);
    if urls.iter().any(|(other, _)| *other != tls) {
        return Err(format!(
            "{text:?} mixes nats:// and tls://: what goes to one server in the clear is safe with none"
        ));
    }
    Ok(ServerUrls { tls, servers: urls.into_iter().map(|(_, server)| server).collect() })
}

fn server_url(text: &str) -> Result<(bool, (String, u16)), String> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("{text:?} is no nats:// or tls:// URL"))?;
    let tls = match scheme {
        "nats" => false,
        "tls" => true,
        _ => return Err(format!("{scheme}:// is not spoken: it is nats:// or tls://")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err(format!("{text:?} has a path, and NATS has none"));
    }
    let (host, port) = split_port(rest);
    if !is_host(host) {
        return Err(format!("{text:?} names no host"));
    }
    let port = match port {
        None => PORT,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{port:?} is no port"))?,
    };
    Ok((tls, (host.to_owned(), port)))
}

/// What nats-server takes for the name of a stream.
fn stream_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_graphic() && !".*>/\\".contains(c);
    if text.is_empty() || text.len() > STREAM_NAME_BYTES_MAX || !text.chars().all(plain) {
        return Err(format!("{text:?} is no name of a stream: up to 255 characters without blanks and . * > / \\"));
    }
    Ok(text.to_owned())
}

const PORT: u16 = 4222;
const STREAM_NAME_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_a_cluster_stand_one_after_the_other() {
        for (text, tls, servers) in [
            ("nats://hub", false, &[("hub", 4222)][..]),
            ("tls://hub.example:1234/", true, &[("hub.example", 1234)]),
            ("tls://a, tls://[::1]:4223,tls://10.0.0.1", true, &[("a", 4222), ("::1", 4223), ("10.0.0.1", 4222)]),
        ] {
            let servers = servers.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect();
            assert_eq!(server_urls(text), Ok(ServerUrls { tls, servers }), "{text}");
        }
        for bad in [
            "",
            "hub:4222",
            "mqtt://hub",
            "ws://hub",
            "nats://",
            "nats://hub:0",
            "nats://hub:x",
            "nats://hub/x",
            "nats://a b",
            "nats://a,tls://b",
            "nats://a,",
            "nats://a//",
        ] {
            assert!(server_urls(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_login_in_a_url_is_refused_without_repeating_it() {
        let error = server_urls("nats://user:hunter2@hub").expect_err("a password");
        assert!(error.contains("password_file") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_stream_has_a_name_that_the_server_takes() {
        for (name, good) in [
            ("TELEMETRY", true),
            ("a-b_c$1", true),
            ("", false),
            ("a.b", false),
            ("a b", false),
            (">", false),
            ("ü", false),
        ] {
            assert_eq!(stream_name(name).is_ok(), good, "{name}");
        }
        assert!(stream_name(&"x".repeat(255)).is_ok() && stream_name(&"x".repeat(256)).is_err());
    }
}
