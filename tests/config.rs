//! `gateway.toml` with the files that it names: every mistake at once, each with its line and what to do.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tollgate::{
    config::{Config, Loaded, Mistake},
    gate::Profile,
    listener::Transport,
    packet::ProtocolVersion,
    route::Ack,
    size::Bytes,
    upstream::UpstreamKind,
};

/// A directory with good files, and the text of a `gateway.toml` in which `DIR` stands for it.
struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { directory: tempfile::tempdir().expect("a directory") };
        for name in ["server", "other"] {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
            site.write(&format!("{name}.pem"), &made.cert.pem(), 0o644);
            site.write(&format!("{name}.key"), &made.signing_key.serialize_pem(), 0o600);
        }
        site.write("password", "s3cret\n", 0o600);
        site.write("open", "s3cret\n", 0o640);
        site.write("empty", "\n", 0o600);
        site.write("rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o600);
        site
    }

    fn write(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        path
    }

    fn load(&self, text: &str) -> Result<Loaded, Vec<Mistake>> {
        let text = text.replace("DIR", &self.directory.path().to_string_lossy());
        Config::load(&self.write("gateway.toml", &text, 0o644))
    }

    /// The mistakes, as (line, what), with `DIR` back in its place.
    fn mistakes(&self, text: &str) -> Vec<(usize, String)> {
        let directory = self.directory.path().to_string_lossy().into_owned();
        let mistakes = match self.load(text) {
            Ok(_) => Vec::new(),
            Err(mistakes) => mistakes,
        };
        for mistake in &mistakes {
            assert!(mistake.what.ends_with('.') && !mistake.remedy.is_empty(), "{mistake}");
        }
        mistakes.iter().map(|m| (m.line.unwrap_or(0), m.what.replace(&directory, "DIR"))).collect()
    }

    fn has_one_mistake(&self, text: &str, line: usize, about: &str) {
        let found = self.mistakes(text);
        assert!(found.len() == 1 && found[0].0 == line && found[0].1.contains(about), "{text}: {found:#?}");
    }
}

#[test]
fn a_good_file_gives_what_it_says() {
    let site = Site::new();
    let loaded = site.load(GOOD).expect("a good file");
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert_eq!(
        (config.gateway.name.as_str(), config.gateway.profile, config.gateway.shards),
        ("edge-7", Profile::Azure, 2)
    );
    assert_eq!(config.gate.aliases, ["hub.example"]);
    assert_eq!(config.listeners.len(), 2);
    assert_eq!(config.listeners[0].bind, "127.0.0.1:0".parse::<SocketAddr>().expect("an address"));
    assert_eq!(config.listeners[0].profile, Profile::Azure);
    assert!(
        matches!(&config.listeners[1].transport, Transport::Tls(files) if files.certificate.ends_with("server.pem"))
    );
    assert_eq!(config.listeners[1].profile, Profile::Strict);
    assert_eq!((config.limits.maximum_packet_size, config.limits.queue_max), (Bytes::mib(1), 7));
    let UpstreamKind::Mqtt(hub) = &config.upstreams[0].kind else { panic!("{:?}", config.upstreams) };
    assert_eq!((hub.host.as_str(), hub.port, hub.version), ("hub.example", 8884, ProtocolVersion::V3_1_1));
    assert!(hub.tls.as_ref().is_some_and(|tls| tls.ca.as_ref().is_some_and(|ca| ca.ends_with("server.pem"))));
    let said = hub.login.credentials(tollgate::time::UnixSeconds(0));
    assert_eq!((said.user_name.as_deref(), said.password.as_ref().map(|p| p.as_str())), (Some("edge"), Some("s3cret")));
    assert_eq!((config.upstreams[0].connections, config.upstreams[0].window), (8, 50));
    let routes: Vec<_> = config.routes.iter().map(|r| (&*r.from, r.to.as_deref(), r.ack)).collect();
    // Twins and methods go the way of the device's other topics.
    let twins = ("$iothub/#", Some("site/{device}/iothub/#"), Ack::Hub);
    assert_eq!(routes, [twins, ("devices/{device}/#", Some("site/{device}/#"), Ack::Hub)]);
}

#[test]
fn who_the_pool_is_at_a_hub_is_said_in_one_way() {
    let site = Site::new();
    site.write("hub.primary", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n", 0o600);
    let hub = |more: &str| {
        format!("{LISTENER}[[upstream]]\nname = 'hub'\nkind = 'mqtt'\nurl = 'mqtts://hub.example'\n{more}\n")
    };
    let sas = "sas = { policy = 'gateway', key_file = 'DIR/hub.primary', token_lifetime = '10m' }";
    let loaded = site.load(&hub(sas)).expect("a good file");
    let UpstreamKind::Mqtt(at) = &loaded.config.upstreams[0].kind else { panic!("an MQTT hub") };
    let said = at.login.credentials(tollgate::time::UnixSeconds(1_000));
    let token = said.password.expect("a token");
    assert!(token.contains("sr=hub.example&") && token.ends_with("&se=1600&skn=gateway"), "{}", *token);
    for (more, about) in [
        (format!("{sas}\npassword_file = 'DIR/hub.primary'"), "two passwords"),
        (format!("{sas}\nversion = 4"), "without a user name"),
        ("sas = { policy = 'gateway' }".into(), "key_file"),
        ("sas = { key_file = 'DIR/missing' }".into(), "does not exist"),
        ("sas = { key_file = 'DIR/rubbish' }".into(), "is no key"),
        ("client_certificate = 'DIR/server.pem'".into(), "belong together"),
        ("client_certificate = 'DIR/server.pem'\nclient_key = 'DIR/hub.primary'".into(), "private key"),
    ] {
        let found = site.mistakes(&hub(&more));
        assert!(found.len() == 1 && found[0].1.contains(about), "{more}: {found:#?}");
    }
}

#[test]
fn twins_and_googles_topics_are_routed_where_their_profiles_are() {
    let site = Site::new();
    let with = |profile: &str, routes: &[&str]| {
        let routes: String = routes.iter().map(|route| format!("[[route]]\nupstream = 'hub'\n{route}\n")).collect();
        let loaded = site.load(&format!("{LISTENER}profile = '{profile}'\n{routes}")).expect("a good file");
        let routes = loaded.config.routes.into_iter().map(|route| (route.from, route.to)).collect::<Vec<_>>();
        (
            routes,
            loaded.warnings.iter().map(|warning| warning.what.clone()).filter(|what| what.contains("no route")).count(),
        )
    };
    let route = |from: &str, to: &str| (from.to_owned(), (!to.is_empty()).then(|| to.to_owned()));
    let plain = route("devices/{device}/#", "");
    let twins = |to: &str| route("$iothub/#", to);
    assert_eq!(with("strict", &[]), (vec![plain.clone()], 0));
    assert_eq!(with("azure", &[]), (vec![twins("devices/{device}/iothub/#"), plain.clone()], 0));
    assert_eq!(with("google", &[]), (vec![plain, route("/devices/{device}/#", "")], 0));

    let events = "from = 'devices/{device}/messages/#'";
    assert_eq!(with("azure", &[events]), (vec![route("devices/{device}/messages/#", "")], 1), "nowhere to go");
    let all = "from = '#'\nto = 'site/#'";
    assert_eq!(with("azure", &[all]).0[0], twins("site/devices/{device}/iothub/#"));
    let own = "from = '$iothub/#'\nto = 'twins/{device}/#'";
    assert_eq!(with("azure", &[all, own]), (vec![route("#", "site/#"), twins("twins/{device}/#")], 0), "as written");
    assert_eq!(with("google", &[events]).1, 1);
    for good in [all, "from = '/devices/{device}/events/#'"] {
        assert_eq!(with("google", &[good]).1, 0, "{good}");
    }
}

#[test]
fn a_file_that_is_not_there_is_one_mistake() {
    let mistakes = Config::load(Path::new("/nowhere/gateway.toml")).expect_err("no file");
    assert_eq!(mistakes.len(), 1);
    assert!(mistakes[0].to_string().starts_with("/nowhere/gateway.toml: no such file."), "{}", mistakes[0]);
}

#[test]
fn every_mistake_is_named_at_once() {
    let found = Site::new().mistakes(BAD);
    let expected = [
        (2, "unknown key `nmae` in [gateway]"),
        (3, "`profile` may not be \"lax\""),
        (4, "`shards` is -1"),
        (7, "plain TCP on 0.0.0.0:1883"),
        (11, "0.0.0.0:1883 is taken by the listener in line 6"),
        (13, "DIR/missing.pem does not exist"),
        (13, "DIR/open holds a secret, and its mode 0640"),
        (16, "`connect_timeout`: \"10 fortnights\" is no duration"),
        (17, "`receive_maximum` is 70000"),
        (21, "[[upstream]] has no `url`"),
        (26, "there is no upstream \"hubb\""),
        (27, "\"devices/{device}/#/x\": a route is literal text"),
        (30, "unknown key `sessions` in the file"),
        (31, "this is no TOML"),
    ];
    let summary: Vec<_> = found.iter().map(|(line, what)| format!("{line}: {what}")).collect();
    for (line, what) in expected {
        assert!(found.iter().any(|(l, w)| *l == line && w.contains(what)), "{line}: {what} is not in {summary:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{summary:#?}");
}

#[test]
fn websocket_and_balancers_are_asked_for_by_keys_that_make_sense() {
    let site = Site::new();
    let with = |lines: &str| format!("[[listener]]\nbind = '127.0.0.1:0'\n{lines}\n");
    let loaded =
        site.load(&with("transport = 'ws'\nproxy_protocol_from = ['10.0.0.0/8', '::1']")).expect("a good file");
    let listener = &loaded.config.listeners[0];
    let rules = listener.web_socket.as_ref().expect("WebSocket");
    assert_eq!((rules.paths.len(), rules.origins.len(), listener.proxies.is_empty()), (2, 0, false));
    for (lines, line, about) in [
        ("transport = 'tcp'\npaths = ['/mqtt']", 4, "`paths` has no meaning"),
        ("transport = 'tcp'\norigins = []", 4, "`origins` has no meaning"),
        ("transport = 'ws'\npaths = []", 4, "`paths` is empty"),
        ("transport = 'ws'\npaths = ['mqtt']", 4, "is no path"),
        ("transport = 'ws'\npaths = ['/mqtt?x']", 4, "is no path"),
        ("transport = 'ws'\norigins = ['*']", 4, "is no Origin"),
        ("transport = 'ws'\norigins = ['https://panel.example/']", 4, "is no Origin"),
        (
            "transport = 'ws'\ncertificate = 'DIR/server.pem'",
            4,
            "`certificate` has no meaning where transport is \"ws\"",
        ),
        ("transport = 'tcp'\nproxy_protocol_from = ['10.0.0.0/33']", 4, "is no network"),
        ("transport = 'tcp'\nproxy_protocol_from = ['0.0.0.0/0']", 4, "is everybody"),
    ] {
        site.has_one_mistake(&with(lines), line, about);
    }
    let everywhere = "[[listener]]\nbind = '0.0.0.0:0'\ntransport = 'ws'\n";
    site.has_one_mistake(everywhere, 2, "plain WebSocket on 0.0.0.0:0: tokens would cross the network in the clear");
}

#[test]
fn certificates_and_keys_must_be_there_belong_together_and_be_kept_private() {
    let site = Site::new();
    let with = |certificate: &str, key: &str| {
        format!(
            "[[listener]]\nbind = '0.0.0.0:0'\ntransport = 'tls'\ncertificate = 'DIR/{certificate}'\nprivate_key = 'DIR/{key}'\n"
        )
    };
    assert_eq!(site.mistakes(&with("server.pem", "server.key")), []);
    for (certificate, key, about) in [
        ("server.pem", "other.key", "DIR/other.key is not the key of DIR/server.pem"),
        ("none", "server.key", "DIR/none does not exist"),
        ("empty", "server.key", "DIR/empty holds no certificate"),
        ("rubbish", "server.key", "DIR/rubbish holds a bad certificate"),
        ("server.pem", "rubbish", "DIR/rubbish holds no private key"),
        ("server.pem", "open", "DIR/open holds a secret, and its mode 0640 lets group or others at it"),
    ] {
        site.has_one_mistake(&with(certificate, key), 4, about);
    }
}

#[test]
fn a_certificate_that_is_out_of_date_is_warned_about() {
    let site = Site::new();
    let day = Duration::from_secs(86_400);
    for (begins, ends, about) in [
        (-10, 100, None),
        (-10, 13, Some("expires within 14 days")),
        (-10, -1, Some("has expired")),
        (1, 100, Some("is not valid yet")),
    ] {
        let at = |days: i32| match days {
            0.. => SystemTime::now() + day * days.unsigned_abs(),
            _ => SystemTime::now() - day * days.unsigned_abs(),
        };
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(["gw.example".to_owned()]).expect("names");
        (params.not_before, params.not_after) = (at(begins).into(), at(ends).into());
        site.write("dated.pem", &params.self_signed(&key).expect("signed").pem(), 0o644);
        site.write("dated.key", &key.serialize_pem(), 0o600);
        let text = "[[listener]]\nbind = '127.0.0.1:0'\ntransport = 'tls'\ncertificate = 'DIR/dated.pem'\nprivate_key = 'DIR/dated.key'\n";
        let warnings = site.load(text).expect("a good file").warnings;
        assert_eq!(warnings.len(), usize::from(about.is_some()), "{warnings:?}");
        assert!(
            warnings.iter().all(|w| about.is_some_and(|about| w.what.contains(about)) && w.line == Some(4)),
            "{warnings:?}"
        );
    }
}

#[test]
fn a_listener_has_a_port_of_its_own_and_tokens_stay_off_open_wires() {
    let site = Site::new();
    let tcp = |bind: &str| format!("[[listener]]\nbind = '{bind}'\ntransport = 'tcp'\n");
    for (a, b, is_good) in [
        ("127.0.0.1:1883", "127.0.0.1:1884", true),
        ("127.0.0.1:1883", "127.0.0.2:1883", true),
        ("127.0.0.1:0", "127.0.0.1:0", true),
        ("127.0.0.1:1883", "127.0.0.1:1883", false),
        ("127.0.0.1:9080", "127.0.0.1:1883", false),
    ] {
        assert_eq!(site.mistakes(&format!("{}{}", tcp(a), tcp(b))).is_empty(), is_good, "{a} {b}");
    }
    site.has_one_mistake(&tcp("10.0.0.1:1883"), 2, "in the clear");
    site.has_one_mistake(&format!("{}insecure = false\n", tcp("10.0.0.1:1883")), 2, "in the clear");
    assert_eq!(site.mistakes(&format!("{}insecure = true\n", tcp("10.0.0.1:1883"))), []);
    site.has_one_mistake(&tcp("localhost:1883"), 2, "is no address");
    site.has_one_mistake(&format!("{}certificate = 'x'\n", tcp("127.0.0.1:1")), 4, "no meaning");
    site.has_one_mistake(&format!("{}[admin]\nbind = '0.0.0.0:9080'\n", tcp("127.0.0.1:1")), 5, "plain HTTP");
}

#[test]
fn a_hub_is_named_once_and_is_not_the_gateway_itself() {
    let site = Site::new();
    let hub = |more: &str| format!("{LISTENER}[[upstream]]\nname = 'hub'\nkind = 'mqtt'\n{more}");
    assert_eq!(site.mistakes(&hub("url = 'mqtts://h'\nusername = 'u'\npassword_file = 'DIR/password'\n")), []);
    for (more, line, about) in [
        ("url = 'http://h'\n", 7, "http:// is not spoken"),
        ("url = 'mqtts://u:p@h'\n", 7, "do not stand in the URL"),
        ("url = 'mqtt://localhost:1883'\n", 7, "this gateway's own listener"),
        ("url = 'mqtts://h'\nversion = 3\n", 8, "`version` is 3"),
        ("url = 'mqtts://h'\nversion = 4\npassword_file = 'DIR/password'\n", 9, "no password without a user name"),
        ("url = 'mqtts://h'\npassword_file = 'DIR/open'\n", 8, "its mode 0640"),
        ("url = 'mqtts://h'\npassword_file = 'DIR/empty'\n", 8, "is empty"),
        ("url = 'mqtts://h'\npassword = 'x'\n", 8, "unknown key `password`"),
        ("url = 'mqtts://h'\nca = 'DIR/rubbish'\n", 8, "bad certificate"),
        ("url = 'mqtt://127.0.0.1:1'\nca = 'DIR/server.pem'\n", 8, "no meaning"),
        ("url = 'mqtts://h'\nwindow = 0\n", 8, "`window` is 0"),
        (
            "url = 'mqtts://h'\n[[upstream]]\nname = 'hub'\nkind = 'embedded'\n",
            9,
            "there is an upstream \"hub\" already",
        ),
        ("url = 'mqtts://h'\n[[upstream]]\nname = 'a b'\nkind = 'embedded'\n", 9, "holds ' '"),
        ("url = 'mqtts://h'\n[[upstream]]\nname = 'b'\nkind = 'embedded'\nurl = 'x'\n", 11, "no meaning"),
    ] {
        site.has_one_mistake(&hub(more), line, about);
    }
}

#[test]
fn a_route_maps_topics_there_and_back() {
    let site = Site::new();
    let route = |from: &str, to: &str| {
        let to = if to.is_empty() { String::new() } else { format!("to = '{to}'\n") };
        format!("{LISTENER}[[route]]\nupstream = 'hub'\nfrom = '{from}'\n{to}")
    };
    for (from, to) in [
        ("devices/{device}/#", ""),
        ("up/{device}/#", "site/line-{device}/{device}/#"),
        ("/devices/{device}/state", "google/{device}/state"),
        ("alarms/#", ""),
        ("alarms/#", "{device}/#"),
        ("$iothub/#", "twins/{device}/#"),
    ] {
        assert_eq!(site.mistakes(&route(from, to)), [], "{from} {to}");
    }
    for (from, to, line, about) in [
        ("a/#/b", "", 6, "at most one # as its last level"),
        ("a/+", "", 6, "at most one # as its last level"),
        ("devices/{id}/#", "", 6, "the only placeholder is {device}"),
        ("$share/g/a", "", 6, "shared subscription"),
        ("{device}/#", "{device}/+", 7, "at most one # as its last level"),
        ("{device}/#", "{device}/x", 7, "either both `from` and `to` end in # or neither does"),
        ("$iothub/#", "", 6, "is the same for every device"),
        ("$iothub/twin/#", "twins/#", 7, "does not hold {device}"),
        ("{device}/events", "events", 7, "does not hold {device}"),
    ] {
        site.has_one_mistake(&route(from, to), line, about);
    }
}

#[test]
fn a_route_that_is_never_reached_is_a_mistake() {
    let site = Site::new();
    let routes = |first: &str, second: &str| {
        let route = |from: &str| format!("[[route]]\nupstream = 'hub'\nfrom = '{from}'\n");
        format!("{LISTENER}{}{}", route(first), route(second))
    };
    for (first, second) in [
        ("a/#", "a/#"),
        ("#", "a/b"),
        ("devices/{device}/#", "devices/{device}/events/#"),
        ("devices/{device}/#", "devices/x"),
        ("{device}/a", "line-{device}/a"),
    ] {
        site.has_one_mistake(&routes(first, second), 9, "is never reached");
        if first != second {
            assert_eq!(site.mistakes(&routes(second, first)), [], "{second} {first}");
        }
    }
    for (first, second) in [("line-{device}/#", "{device}/#"), ("{device}/{device}", "{device}/a"), ("a/#", "b/#")] {
        assert_eq!(site.mistakes(&routes(first, second)), [], "{first} {second}");
    }
}

/// One listener, so that the default ones, whose certificates are not there, are out of the way.
const LISTENER: &str = "[[listener]]\nbind = '127.0.0.1:1883'\ntransport = 'tcp'\n";

const GOOD: &str = r#"
[gateway]
name = "edge-7"
aliases = ["hub.example"]
profile = "azure"
shards = 2
[credentials]
token_lifetime_max = "31d"
[[listener]]
bind = "127.0.0.1:0"
transport = "tcp"
[[listener]]
bind = "0.0.0.0:8883"
transport = "tls"
certificate = "DIR/server.pem"
private_key = "DIR/server.key"
profile = "strict"
[limits]
maximum_packet_size = "1 MiB"
[session]
queue_max = 7
[[upstream]]
name = "hub"
kind = "mqtt"
url = "mqtts://hub.example:8884"
version = 4
connections = 8
window = 50
username = "edge"
password_file = "DIR/password"
ca = "DIR/server.pem"
[[route]]
from = "devices/{device}/#"
to = "site/{device}/#"
upstream = "hub"
ack = "hub"
"#;

const BAD: &str = r#"[gateway]
nmae = "edge-1"
profile = "lax"
shards = -1

[[listener]]
bind = "0.0.0.0:1883"
transport = "tcp"

[[listener]]
bind = "0.0.0.0:1883"
transport = "tls"
certificate = "DIR/missing.pem"
private_key = "DIR/open"
[limits]
connect_timeout = "10 fortnights"
receive_maximum = 70000

# The hub.

[[upstream]]
name = "hub"
kind = "mqtt"

[[route]]
upstream = "hubb"
from = "devices/{device}/#/x"
[admin]
bind = "127.0.0.1:1884"
[sessions]
x = "a text that never ends
"#;
