//! Where an MQTT hub is and on which way it is spoken to: `url`, `client`, `proxy`.

use std::net::IpAddr;

use super::{
    document::{Found, Notes, Table},
    files::FileUse,
    upstreams::{is_host, is_loopback, split_port},
};
use crate::upstream::{HubClient, HubLogin, HubWire, ProxyConfig};

/// A hub's URL, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HubUrl {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) web_socket_path: Option<String>,
}

impl HubUrl {
    fn scheme(&self) -> &'static str {
        match (self.web_socket_path.is_some(), self.tls) {
            (false, false) => "mqtt",
            (false, true) => "mqtts",
            (true, false) => "ws",
            (true, true) => "wss",
        }
    }
}

/// `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]` and nothing more, or `ws://HOST[:PORT]/PATH` or `wss://HOST[:PORT]/PATH`.
pub(super) fn hub_url(text: &str) -> Result<HubUrl, String> {
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| format!("{text:?} is no URL, like \"mqtts://hub.example:8883\""))?;
    let (tls, web_socket, usual_port) = match scheme {
        "mqtt" => (false, false, 1883),
        "mqtts" => (true, false, 8883),
        "ws" => (false, true, 80),
        "wss" => (true, true, 443),
        _ => return Err(format!("{scheme}:// is not spoken: it is mqtt://, mqtts://, ws:// or wss://")),
    };
    if rest.contains('@') {
        // The text is not repeated: it may hold a password.
        return Err("a user and a password do not stand in the URL, but in `username` and `password_file`".into());
    }
    if rest.contains(['?', '#']) {
        return Err(format!("{text:?} has more than a path: no `?` and no `#`"));
    }
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if !web_socket && path != "/" {
        return Err(format!("{text:?} has a path, and MQTT has none"));
    }
    if !path.chars().all(is_of_path) {
        return Err(format!("{text:?} has a path that no request can ask for: write it as %XX"));
    }
    let (host, port) = host_and_port(text, authority)?;
    let web_socket_path = web_socket.then(|| path.to_owned());
    Ok(HubUrl { tls, host, port: port.unwrap_or(usual_port), web_socket_path })
}

/// What `url` rules out, and what it lets others read.
pub(super) fn check_url(notes: &Notes<'_>, table: &Table<'_>, url: &Found<&HubUrl>) {
    if url.value.tls {
        return;
    }
    let scheme = url.value.scheme();
    for key in ["ca", "client_certificate", "client_key"].into_iter().filter(|key| table.has(key)) {
        let what = format!("`{key}` has no meaning where the url is {scheme}://.");
        notes.mistake(table.line_of(key), what, format!("Write {scheme}s://, or take it out."));
    }
    // Threat T38.
    if !is_loopback(&url.value.host) {
        let what = format!("messages go to {} in the clear, and nothing proves that it is the hub.", url.value.host);
        notes.warn(url.line, what, format!("Write {scheme}s:// where the hub offers it."));
    }
}

/// `client` and `proxy` of a hub of kind `mqtt`.
pub(super) fn read_wire(notes: &Notes<'_>, table: &Table<'_>, url: &HubUrl) -> HubWire {
    let asked = table.one_of("client", &CLIENTS);
    let proxy = read_proxy(notes, table);
    if let Some(Found { value: HubClient::Native, line }) = asked {
        let what = match (&url.web_socket_path, table.has("proxy")) {
            (Some(_), _) => Some("client = \"native\" speaks no WebSocket."),
            (None, true) => Some("client = \"native\" goes through no proxy."),
            (None, false) => None,
        };
        if let Some(what) = what {
            notes.mistake(line, what, "Write client = \"rumqttc\", or take it out.");
        }
    }
    if proxy.is_some() && url.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
        let what = "a proxy cannot be asked for an IPv6 address: rumqttc writes it without its brackets.";
        notes.mistake(table.line_of("url"), what, "Write the hub's name.");
    }
    let needed = url.web_socket_path.is_some() || table.has("proxy");
    let client = if needed { HubClient::Rumqttc } else { asked.map(|found| found.value).unwrap_or_default() };
    HubWire { client, web_socket_path: url.web_socket_path.clone(), proxy }
}

/// `client` where there is nothing to choose.
pub(super) fn refuse_client(notes: &Notes<'_>, table: &Table<'_>) {
    if let Some(Found { value: HubClient::Rumqttc, line }) = table.one_of("client", &CLIENTS) {
        let what =
            "client = \"rumqttc\" has no meaning where kind is \"embedded\": the hub in this process is no other's.";
        notes.mistake(line, what, "Write kind = \"mqtt\", or take it out.");
    }
}

/// The file of the proxy's password.
pub(super) fn proxy_secret_of(table: &Table<'_>, upstream: usize) -> Option<FileUse> {
    let found = table.text("proxy_password_file")?;
    Some(FileUse::ProxyPassword { line: found.line, path: found.value.into(), upstream })
}

fn read_proxy(notes: &Notes<'_>, table: &Table<'_>) -> Option<ProxyConfig> {
    let proxy = table.parsed("proxy", proxy_url);
    let [name, password] = ["proxy_username", "proxy_password_file"].map(|key| table.text(key));
    if !table.has("proxy") {
        for found in [&name, &password].into_iter().flatten() {
            notes.mistake(
                found.line,
                "a login at a proxy has no meaning without `proxy`.",
                "Write the `proxy`, or take it out.",
            );
        }
        return None;
    }
    if let (Some(found), None) | (None, Some(found)) = (&name, &password) {
        let what = "`proxy_username` and `proxy_password_file` belong together.";
        notes.mistake(found.line, what, "Write both, or neither.");
    }
    if let Some(found) = name.filter(|found| found.value.contains(':') || found.value.is_empty()) {
        // RFC 7617 §2.
        notes.mistake(found.line, "`proxy_username` is empty or has a colon in it.", "Write the name alone.");
    }
    let Found { value: (host, port), line } = proxy?;
    if password.is_some() && !is_loopback(&host) {
        let what = format!("the proxy's password goes to {host} in the clear.");
        notes.warn(line, what, "Let it be good for nothing else.");
    }
    Some(ProxyConfig { host, port, login: HubLogin::named(name.map(|found| found.value)) })
}

/// `http://HOST:PORT`, and nothing more.
fn proxy_url(text: &str) -> Result<(String, u16), String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("{text:?} is no URL, like \"http://proxy.example:3128\""));
    };
    if rest.contains('@') {
        return Err(
            "a user and a password do not stand in the URL, but in `proxy_username` and `proxy_password_file`".into()
        );
    }
    if scheme != "http" {
        return Err(format!("{scheme}:// is not spoken to a proxy: it is http://"));
    }
    let (host, port) = host_and_port(text, rest.strip_suffix('/').unwrap_or(rest))?;
    Ok((host, port.ok_or_else(|| format!("{text:?} names no port: proxies have no usual one"))?))
}

fn host_and_port(text: &str, authority: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = split_port(authority);
    if !is_host(host) {
        return Err(format!("{text:?} names no host"));
    }
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{port:?} is no port"))?),
    };
    Ok((host.to_owned(), port))
}

/// RFC 3986 §3.3.
fn is_of_path(c: char) -> bool {
    c.is_ascii_alphanumeric() || "/-._~!$&'()*+,;=:%".contains(c)
}

const CLIENTS: [(&str, HubClient); 2] = [("native", HubClient::Native), ("rumqttc", HubClient::Rumqttc)];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::gateway::parse, *};
    use crate::upstream::UpstreamKind;

    fn mistakes(text: &str) -> Vec<String> {
        parse(Path::new("g.toml"), text).mistakes.iter().map(ToString::to_string).collect()
    }

    fn warnings(text: &str) -> Vec<String> {
        parse(Path::new("g.toml"), text).warnings.iter().map(ToString::to_string).collect()
    }

    fn url(tls: bool, host: &str, port: u16) -> Result<HubUrl, String> {
        Ok(HubUrl { tls, host: host.into(), port, web_socket_path: None })
    }

    fn web(tls: bool, host: &str, port: u16, path: &str) -> Result<HubUrl, String> {
        Ok(HubUrl { web_socket_path: Some(path.into()), ..url(tls, host, port)? })
    }

    #[test]
    fn a_hub_url_is_a_scheme_a_host_and_a_port_and_of_a_websocket_a_path() {
        for (text, expected) in [
            ("mqtt://hub", url(false, "hub", 1883)),
            ("mqtts://hub.example", url(true, "hub.example", 8883)),
            ("mqtts://10.0.0.1:1234/", url(true, "10.0.0.1", 1234)),
            ("mqtt://[::1]:1884", url(false, "::1", 1884)),
            ("mqtt://[::1]", url(false, "::1", 1883)),
            ("ws://hub/mqtt", web(false, "hub", 80, "/mqtt")),
            ("wss://hub.example:8443", web(true, "hub.example", 8443, "/")),
            ("wss://hub/$iothub/websocket", web(true, "hub", 443, "/$iothub/websocket")),
            ("ws://[::1]:8083/a%20b", web(false, "::1", 8083, "/a%20b")),
        ] {
            assert_eq!(hub_url(text), expected, "{text}");
        }
        for bad in [
            "",
            "hub:1883",
            "tcp://hub",
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
            "wss:///mqtt",
            "wss://hub/mqtt?x=1",
            "wss://hub/mqtt#x",
            "wss://hub/a b",
            "wss://hub/\u{e9}",
            "wss://hub:0/mqtt",
            "https://hub/mqtt",
        ] {
            assert!(hub_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("http://proxy.example:3128", "proxy.example", 3128),
            ("http://10.0.0.1:8080/", "10.0.0.1", 8080),
            ("http://[::1]:3128", "::1", 3128),
        ] {
            assert_eq!(proxy_url(text), Ok((host.to_owned(), port)), "{text}");
        }
        for bad in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "socks5://proxy:1080",
            "http://proxy",
            "http://proxy:1/x",
            "http://:1",
        ] {
            assert!(proxy_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_without_repeating_it() {
        for error in [
            hub_url("mqtts://user:hunter2@hub").expect_err("a password"),
            hub_url("wss://user:hunter2@hub/mqtt").expect_err("a password"),
            proxy_url("http://user:hunter2@proxy:1").expect_err("a password"),
            proxy_url("socks5://user:hunter2@proxy:1").expect_err("a password"),
        ] {
            assert!(error.contains("password_file") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_hub_is_spoken_to_by_a_client_that_can_and_a_proxy_has_a_login_or_none() {
        let hub = |lines: &str| format!("[[upstream]]\nname = 'hub'\nkind = 'mqtt'\n{lines}");
        let good = |lines: &str| {
            let parsed = parse(Path::new("g.toml"), &hub(lines));
            assert_eq!(parsed.mistakes, vec![], "{lines}");
            match parsed.config.upstreams.into_iter().next().map(|upstream| upstream.kind) {
                Some(UpstreamKind::Mqtt(hub)) => hub.wire,
                kind => panic!("{kind:?}"),
            }
        };
        for (lines, client) in [
            ("url = 'mqtts://h'\n", HubClient::Native),
            ("url = 'mqtts://h'\nclient = 'native'\n", HubClient::Native),
            ("url = 'mqtts://h'\nclient = 'rumqttc'\n", HubClient::Rumqttc),
            ("url = 'wss://h/mqtt'\n", HubClient::Rumqttc),
            ("url = 'mqtts://h'\nproxy = 'http://127.0.0.1:3128'\n", HubClient::Rumqttc),
        ] {
            assert_eq!(good(lines).client, client, "{lines}");
        }
        let login = "proxy = 'http://127.0.0.1:3128'\nproxy_username = 'u'\nproxy_password_file = 'p'\n";
        let parsed = parse(Path::new("g.toml"), &hub(&format!("url = 'wss://h/mqtt'\n{login}")));
        let files = parsed.files.iter().filter(|file| matches!(file, FileUse::ProxyPassword { .. })).count();
        assert_eq!((parsed.mistakes, files), (vec![], 1));
        for (lines, about) in [
            ("url = 'wss://h/mqtt'\nclient = 'native'\n", "speaks no WebSocket"),
            ("url = 'mqtts://h'\nclient = 'native'\nproxy = 'http://127.0.0.1:1'\n", "goes through no proxy"),
            ("url = 'mqtts://h'\nproxy = 'https://127.0.0.1:1'\n", "it is http://"),
            ("url = 'mqtts://[fd00::1]'\nproxy = 'http://127.0.0.1:1'\n", "IPv6"),
            ("url = 'mqtts://h'\nproxy_username = 'u'\n", "without `proxy`"),
            ("url = 'mqtts://h'\nproxy = 'http://127.0.0.1:1'\nproxy_username = 'u'\n", "belong together"),
            ("url = 'mqtts://h'\nproxy = 'http://127.0.0.1:1'\nproxy_password_file = 'p'\n", "belong together"),
            ("url = 'ws://127.0.0.1/mqtt'\nca = 'c'\n", "no meaning where the url is ws://"),
        ] {
            let found = mistakes(&hub(lines));
            assert!(found.len() == 1 && found[0].contains(about), "{lines}: {found:?}");
        }
        for (lines, about) in [
            ("url = 'ws://h/mqtt'\n", "wss://"),
            (
                "url = 'mqtts://h'\nproxy = 'http://p:1'\nproxy_username = 'u'\nproxy_password_file = 'p'\n",
                "in the clear",
            ),
        ] {
            assert!(warnings(&hub(lines)).iter().any(|warning| warning.contains(about)), "{lines}");
        }
        assert!(warnings(&hub("url = 'mqtts://h'\nproxy = 'http://p:1'\n")).is_empty(), "TLS goes through it");
        for kind in ["kind = 'embedded'\n", "kind = 'nats'\nurl = 'tls://h'\nstream = 'S'\n"] {
            for line in ["client = 'rumqttc'\n", "proxy = 'http://127.0.0.1:1'\n"] {
                let found = mistakes(&format!("[[upstream]]\nname = 'hub'\n{kind}{line}"));
                assert!(found.len() == 1 && found[0].contains("no meaning"), "{kind}{line}: {found:?}");
            }
        }
    }
}
