//! The ways to a hub that rumqttc goes: WebSocket, plain and under TLS, an HTTP proxy, IPv6. The hub is a second gateway, as
//! it listens for devices; or the recorder, behind a proxy.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{collections::HashSet, fs, os::unix::fs::PermissionsExt as _, path::Path, thread, time::Duration};

use support::{
    Answer, ConnectProxy, Device, Gateway, Hub, HubClient, Plan, Recorder, Version, free_port, remember, until,
};

#[test]
fn over_websocket_telemetry_goes_up_and_commands_come_down() {
    const SECRET: &str = "what a message says stands in no log";
    remember(SECRET.as_bytes());
    let hub = WebHub::start(Hub::Embedded);
    let mut program = hub.gateway.connect(Version::V5, "service");
    assert_eq!(program.subscribe("devices/+/messages/events/#", 1), 1);
    for (place, version) in [
        (Hub::Web(hub.ws, Version::V4), Version::V4),
        (Hub::Web(hub.ws, Version::V5), Version::V5),
        (Hub::WebTls(hub.wss, Version::V4), Version::V4),
        (Hub::WebTls(hub.wss, Version::V5), Version::V5),
        (Hub::WebV6(hub.ws_v6, Version::V5), Version::V5),
        (Hub::AtV6(hub.tcp_v6, Version::V4), Version::V4),
    ] {
        let gateway = hub.pool(Plan::new(place).client(HubClient::Rumqttc), version);
        let mut device = gateway.connect(Version::V5, "d0");
        assert_eq!(device.subscribe(&format!("{COMMANDS}#"), 1), 1);
        for payload in [Vec::new(), SECRET.into(), vec![b'x'; 200_000]] {
            device.publish_acknowledged(EVENTS, &payload);
            assert_eq!(payload_of(&mut program), payload);
            program.publish_acknowledged(COMMANDS, &payload);
            assert_eq!(payload_of(&mut device), payload);
        }
    }
}

#[test]
fn at_its_end_a_gateway_takes_leave_of_a_hub_that_rumqttc_speaks_to() {
    let hub = WebHub::start(Hub::Embedded);
    for (place, version) in
        [(Hub::WebTls(hub.wss, Version::V5), Version::V5), (Hub::Web(hub.ws, Version::V4), Version::V4)]
    {
        let closed =
            |reason: &str| hub.gateway.metric("tollgate_sessions_closed_total", &[&format!("reason=\"{reason}\"")]);
        let before = closed("client_disconnect");
        let mut gateway = hub.pool(Plan::new(place), version);
        gateway.terminate();
        assert_eq!(gateway.ended(PATIENCE), Some(0));
        until("DISCONNECT to arrive", PATIENCE, || closed("client_disconnect") == before + 1.0);
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_a_hub_behind_websocket_is_killed_under_load() {
    const MESSAGES: usize = 400;
    let recorder = Recorder::start();
    let mut hub = WebHub::start(Hub::At(recorder.port(), Version::V5));
    let gateway = hub.pool(Plan::new(Hub::Web(hub.ws, Version::V5)), Version::V5);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut device = gateway.connect(Version::V5, "d0");
            for n in 0..MESSAGES {
                device.publish_acknowledged(EVENTS, n.to_string().as_bytes());
            }
        });
        for part in 1..3 {
            until("the load to go on", PATIENCE, || recorder.count() >= MESSAGES * part / 4);
            hub.gateway.kill_and_restart();
        }
        load.join().unwrap();
    });
    let arrived = || first_occurrences(recorder.payloads(EVENTS));
    until("everything to arrive", PATIENCE, || arrived().len() == MESSAGES);
    assert!(arrived().iter().enumerate().all(|(at, text)| at.to_string() == *text), "in order: {:?}", arrived());
}

#[test]
fn a_proxy_connects_the_pool_to_its_hub() {
    for version in [Version::V4, Version::V5] {
        let recorder = Recorder::start();
        let proxy = ConnectProxy::start(None);
        let plan = Plan::new(Hub::At(recorder.port(), version)).shards(1);
        let gateway = plan.hub_line(&format!("proxy = \"http://127.0.0.1:{}\"", proxy.port())).start();
        let mut device = gateway.connect(Version::V5, "d0");
        for n in 0..100 {
            device.publish_acknowledged(EVENTS, n.to_string().as_bytes());
        }
        until("all to arrive", PATIENCE, || recorder.count() == 100);
        assert_eq!(proxy.connected(), [format!("127.0.0.1:{}", recorder.port())]);
    }
}

#[test]
fn a_proxy_is_told_who_asks_and_what_it_refuses_is_shown() {
    const PASSWORD: &str = "a proxy's password, long";
    remember(PASSWORD.as_bytes());
    let recorder = Recorder::start();
    let proxy = ConnectProxy::start(Some(("edge", PASSWORD)));
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1);
    let plan = plan.hub_line(&format!("proxy = \"http://127.0.0.1:{}\"", proxy.port()));
    let plan = plan.hub_line("proxy_username = \"edge\"").hub_line("proxy_password_file = \"proxy.password\"");
    let gateway = plan.start_with(|folder| write_secret(&folder.join("proxy.password"), "an old one\n"));
    let shows = |what: &str| {
        until(what, PATIENCE, || gateway.get("/v1/upstreams").is_some_and(|(_, body)| body.contains(what)));
    };
    shows("the proxy does not accept this login (it answered 407)");
    proxy.refuse(403);
    shows("the proxy did not connect us to the hub (it answered 403)");
    proxy.refuse(0);
    // It is read for each connection.
    write_secret(&gateway.folder.join("proxy.password"), &format!("{PASSWORD}\n"));
    let mut device = gateway.connect(Version::V5, "d0");
    device.publish_acknowledged(EVENTS, b"through it");
    until("it to arrive", PATIENCE, || recorder.payloads(EVENTS) == ["through it"]);
}

#[test]
fn tls_goes_through_a_proxy_to_the_hub_that_its_certificate_names() {
    let hub = WebHub::start(Hub::Embedded);
    let proxy = ConnectProxy::start(None);
    let line = format!("proxy = \"http://127.0.0.1:{}\"", proxy.port());
    let mut program = hub.gateway.connect(Version::V5, "service");
    assert_eq!(program.subscribe("devices/+/messages/events/#", 1), 1);
    let tls = hub.gateway.tls.port();
    for (place, port) in [(Hub::WebTls(hub.wss, Version::V5), hub.wss), (Hub::Tls(tls, Version::V5), tls)] {
        let gateway = hub.pool(Plan::new(place).hub_line(&line), Version::V5);
        let mut device = gateway.connect(Version::V5, "d0");
        device.publish_acknowledged(EVENTS, b"safe");
        assert_eq!(payload_of(&mut program), b"safe");
        assert_eq!(proxy.connected().last(), Some(&format!("localhost:{port}")));
    }
}

#[test]
fn what_mqtt_5_says_of_a_message_reaches_the_hub_the_same_by_either_client() {
    let recorded: Vec<Vec<Vec<u8>>> = [HubClient::Native, HubClient::Rumqttc]
        .into_iter()
        .map(|client| {
            let recorder = Recorder::start();
            let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).shards(1).start();
            let mut device = gateway.connect(Version::V5, "d0");
            device.send(&described_publish());
            assert_eq!(device.next(PATIENCE), Answer::Puback(7, 0));
            until("it to arrive", PATIENCE, || recorder.count() == 1);
            let message = recorder.recorded().remove(0);
            assert_eq!(message.payload, b"payload", "{client:?}");
            properties(&message.properties)
        })
        .collect();
    let [native, by_library] = &recorded[..] else { panic!("two") };
    // The order of user properties is a part of what is said; that of others is not.
    let users = |all: &[Vec<u8>]| all.iter().filter(|one| one[0] == 0x26).map(|one| name_of(one)).collect::<Vec<_>>();
    let others = |all: &[Vec<u8>]| all.iter().filter(|one| one[0] != 0x26).cloned().collect::<HashSet<_>>();
    assert_eq!(others(native), others(by_library));
    assert_eq!(others(native).len(), 5, "{native:?}");
    assert_eq!(users(native), users(by_library));
    assert_eq!(users(native).len(), 2 + 5, "the device's and ours");
}

/// QoS 1, packet id 7, with every property that a message may have.
fn described_publish() -> Vec<u8> {
    let mut properties = vec![0x01, 1];
    properties.extend([&[0x02][..], &60_u32.to_be_bytes()].concat());
    for (id, text) in [(0x03, "text/plain"), (0x08, "devices/d0/answers"), (0x09, "\u{1}\u{2}")] {
        properties.push(id);
        properties.extend(sized(text));
    }
    for (name, value) in [("colour", "red"), ("colour", "blue")] {
        properties.push(0x26);
        properties.extend([sized(name), sized(value)].concat());
    }
    let mut body = sized(EVENTS);
    body.extend([0, 7, u8::try_from(properties.len()).unwrap()]);
    body.extend(properties);
    body.extend(b"payload");
    let length = u8::try_from(body.len()).unwrap();
    assert!(length < 128, "one digit");
    [&[0x32, length][..], &body].concat()
}

fn sized(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// Each with its identifier.
fn properties(mut block: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(&id) = block.first() {
        let text = |at: usize| 2 + usize::from(u16::from_be_bytes([block[at], block[at + 1]]));
        let length = match id {
            0x01 => 2,
            0x02 => 5,
            0x26 => 1 + text(1) + text(1 + text(1)),
            _ => 1 + text(1),
        };
        let (one, rest) = block.split_at(length);
        all.push(one.to_vec());
        block = rest;
    }
    all
}

/// Of a user property; of the device's own with its value.
fn name_of(property: &[u8]) -> String {
    let text = String::from_utf8_lossy(&property[1..]).into_owned();
    match text.split_once("tollgate-") {
        Some((_, rest)) => rest.chars().take_while(|c| c.is_ascii_lowercase()).collect(),
        None => text,
    }
}

/// A gateway as a hub, with listeners that a pool may use.
struct WebHub {
    gateway: Gateway,
    ws: u16,
    wss: u16,
    ws_v6: u16,
    tcp_v6: u16,
}

impl WebHub {
    fn start(behind: Hub) -> Self {
        let [ws, wss, ws_v6, tcp_v6] = [(); 4].map(|()| free_port());
        let listener = |bind: &str, transport: &str, more: &str| {
            format!("[[listener]]\nbind = \"{bind}\"\ntransport = \"{transport}\"\n{more}")
        };
        let files = "certificate = \"server.pem\"\nprivate_key = \"server.key\"\n";
        let plan = Plan::new(behind).shards(1).identities_and(POOL).credentials("hub_wide_tokens = true");
        let plan = plan
            .limit(&listener(&format!("127.0.0.1:{ws}"), "ws", ""))
            .limit(&listener(&format!("127.0.0.1:{wss}"), "wss", files))
            .limit(&listener(&format!("[::1]:{ws_v6}"), "ws", ""))
            .limit(&listener(&format!("[::1]:{tcp_v6}"), "tcp", ""));
        let gateway = plan.start_with(|folder| write_secret(&folder.join("pool.key"), KEY));
        Self { gateway, ws, wss, ws_v6, tcp_v6 }
    }

    /// A gateway with one connection to it.
    fn pool(&self, plan: Plan, version: Version) -> Gateway {
        let key_file = self.gateway.folder.join("pool.key");
        let sas = format!("sas = {{ policy = \"pool\", resource = \"localhost\", key_file = {key_file:?} }}");
        // Of 3.1.1 a password needs a user name.
        let name = if version == Version::V4 { "username = \"localhost/tollgate-edge-test-hub-0\"" } else { "" };
        let gateway = plan.shards(1).hub_line(&sas).hub_line(name).start_with(|folder| {
            fs::write(folder.join("hub-ca.pem"), self.gateway.ca_pem()).unwrap();
            let file = folder.join("gateway.toml");
            let text = fs::read_to_string(&file).unwrap();
            if text.contains("wss://") || text.contains("mqtts://") {
                let ca = format!("ca = {:?}\n[[route]]", folder.join("hub-ca.pem"));
                fs::write(&file, text.replace("[[route]]", &ca)).unwrap();
            }
        });
        until("the pool", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 1.0);
        gateway
    }
}

fn payload_of(device: &mut Device) -> Vec<u8> {
    match device.next(PATIENCE) {
        Answer::Publish { payload, packet_id, .. } => {
            device.acknowledge(packet_id);
            payload
        }
        other => panic!("{other:?} instead of a message"),
    }
}

fn first_occurrences(payloads: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    payloads.into_iter().filter(|payload| seen.insert(payload.clone())).collect()
}

fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

const EVENTS: &str = "devices/d0/messages/events/";
const COMMANDS: &str = "devices/d0/messages/devicebound/";
const KEY: &str = "cG9vbC1vZi1hLWdhdGV3YXktd2l0aC1hLWxvbmcta2V5";
const PATIENCE: Duration = Duration::from_secs(20);

const POOL: &str = r#"
[[policy]]
name = "pool"
resource = "localhost"
primary_key_file = "pool.key"
rights = ["publish", "subscribe"]
[[device]]
id = "tollgate-edge-test-hub-0"
scope.publish = ["devices/#"]
scope.subscribe = ["devices/#"]
"#;
