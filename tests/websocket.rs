//! MQTT over WebSocket, plain and under TLS, as browsers, proxies and hostile clients speak it; connections that come through
//! a balancer; and IPv6.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use support::{Answer, Device, Gateway, Hub, Login, Plan, Stream, Version, dial, free_port, open_tls, sas, until};
use tungstenite::{
    Error, Message, WebSocket, client,
    handshake::client::generate_key,
    http::{Request, request::Builder},
};

#[test]
fn a_session_over_websocket_is_a_session() {
    let (gateway, ws, wss) = with_websocket(Plan::new(Hub::Embedded).shards(4));
    let mut program = gateway.connect(Version::V5, "service");
    assert_eq!(program.subscribe("devices/+/messages/events/#", 1), 1);
    for n in 0..10 {
        let (device, version) = (format!("d{n}"), if n % 2 == 0 { Version::V4 } else { Version::V5 });
        let mut side = if n % 3 == 0 { open_wss(wss, &gateway, version) } else { open_ws(ws, version) };
        assert_eq!(side.log_in(&Login::new(version, &device, &sas(&device))), Answer::Connack(0));
        let commands = format!("devices/{device}/messages/devicebound/");
        assert_eq!(side.subscribe(&format!("{commands}#"), 1), 1);
        for length in [0, 100, 200_000] {
            let payload = vec![n as u8; length];
            side.publish_acknowledged(&format!("devices/{device}/messages/events/"), &payload);
            assert_eq!(payload_of(&mut program), payload);
            program.publish_acknowledged(&commands, &payload);
            assert_eq!(payload_of(&mut side), payload);
        }
        side.ping();
    }
}

#[test]
fn packets_may_span_frames_and_frames_may_hold_many_packets() {
    let (_gateway, ws, _) = with_websocket(Plan::new(Hub::Embedded));
    for version in [Version::V4, Version::V5] {
        let connect = Login::new(version, "d0", &sas("d0")).packet();
        let (mut socket, _) = client(request(ws, "/mqtt"), dial(ws)).unwrap();
        for piece in connect.chunks(connect.len().div_ceil(15)) {
            socket.send(Message::Binary(piece.to_vec().into())).unwrap();
        }
        // PINGREQ, ten times.
        socket.send(Message::Binary([0xC0, 0].repeat(10).into())).unwrap();
        let mut device = over(socket, version);
        assert_eq!(device.next(PATIENCE), Answer::Connack(0));
        for _ in 0..10 {
            assert_eq!(device.next(PATIENCE), Answer::Pingresp);
        }
    }
}

#[test]
fn the_token_of_the_upgrade_counts_where_connect_has_none() {
    let (_gateway, ws, _) = with_websocket(Plan::new(Hub::Embedded));
    for version in [Version::V4, Version::V5] {
        let bare = Login { user_name: None, password: None, ..Login::new(version, "d0", "") };
        let with_token = Login::new(version, "d0", &sas("d0"));
        for (bearer, login, code) in [
            (Some(sas("d0")), &bare, [0, 0]),
            (Some(sas("d1")), &bare, [2, 0x85]),
            (Some("nonsense".into()), &with_token, [0, 0]),
            (None, &bare, [5, 0x86]),
        ] {
            let mut request = request(ws, "/mqtt");
            if let Some(bearer) = &bearer {
                let value = format!("Bearer {bearer}").parse().unwrap();
                request.headers_mut().insert("Authorization", value);
            }
            let mut device = over(client(request, dial(ws)).unwrap().0, version);
            let expected = Answer::Connack(code[usize::from(version == Version::V5)]);
            assert_eq!(device.log_in(login), expected, "{bearer:?}");
        }
    }
}

#[test]
fn a_request_that_cannot_be_served_is_told_why_and_the_operator_too() {
    let (gateway, ws, _) = with_websocket(Plan::new(Hub::Embedded));
    for (change, status) in [
        (|r: Builder| r.uri("ws://gateway/elsewhere"), 404),
        (|r: Builder| r.uri("ws://gateway/mqtt?access_token=abc"), 400),
        (|r: Builder| r.header("Origin", "https://evil.example"), 403),
    ] as [(fn(Builder) -> Builder, u16); 3]
    {
        let counted = gateway.metric("tollgate_connects_total", &["denial=\"upgrade_declined\""]);
        let refused = client(change(builder(ws)).body(()).unwrap(), dial(ws)).unwrap_err();
        let tungstenite::HandshakeError::Failure(Error::Http(answer)) = refused else { panic!("{status}: {refused}") };
        assert_eq!(answer.status().as_u16(), status);
        until("the refusal to be counted", PATIENCE, || {
            gateway.metric("tollgate_connects_total", &["denial=\"upgrade_declined\""]) == counted + 1.0
        });
    }
    let mut plain = dial(ws);
    plain.write_all(b"GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nHere is MQTT over WebSocket: the request asks for no upgrade.\n"), "{answer}");
    let (_, refusals) = gateway.get("/v1/refusals").unwrap();
    assert!(refusals.contains("403 Forbidden: Scripts of this Origin may not connect"), "{refusals}");
}

#[test]
fn a_revocation_ends_a_session_over_websocket_with_its_reason_and_a_close() {
    let (gateway, _, wss) = with_websocket(Plan::new(Hub::Embedded));
    let mut device = open_wss(wss, &gateway, Version::V5);
    assert_eq!(device.log_in(&Login::new(Version::V5, "d0", &sas("d0"))), Answer::Connack(0));
    gateway.revoke(r#"{"device": "d0"}"#);
    assert_eq!(device.closed(PATIENCE), Some(0x98));
}

#[test]
fn what_is_no_mqtt_in_binary_frames_ends_the_connection() {
    let (gateway, ws, _) = with_websocket(Plan::new(Hub::Embedded).limit("connect_timeout = \"2s\""));
    let mut healthy = open_ws(ws, Version::V4).admitted(&Login::new(Version::V4, "d1", &sas("d1")));
    for (what, bytes) in [
        ("a text frame", &b"\x81\x81\0\0\0\0x"[..]),
        ("a frame without a mask", b"\x82\x01x"),
        ("a frame of 2^40 bytes", b"\x82\xFF\0\0\x01\0\0\0\0\0\0\0\0\0"),
        ("a compressed frame", b"\xC2\x81\0\0\0\0x"),
        ("no CONNECT", b"\x82\x82\0\0\0\0\xC0\0"),
        ("half a CONNECT, for ever", b"\x82\x81\0\0\0\0\x10"),
        ("nothing at all", b""),
    ] {
        let (mut socket, _) = client(request(ws, "/mqtt"), dial(ws)).unwrap();
        socket.get_mut().write_all(bytes).unwrap();
        over(socket, Version::V4).ends_before(std::time::Instant::now() + PATIENCE, what);
        healthy.ping();
    }
    let mut silent = dial(ws);
    silent.write_all(b"GET /mqtt HT").unwrap();
    assert_eq!(silent.read(&mut [0; 64]).unwrap_or(0), 0, "a head that does not come");
    let timed_out = || gateway.metric("tollgate_connects_total", &["denial=\"connect_timeout\""]);
    until("the three to be counted", PATIENCE, || timed_out() >= 3.0);
}

#[test]
fn behind_a_balancer_the_one_who_connects_is_seen_limited_and_shown() {
    let plan = Plan::new(Hub::Embedded).limit("connects_per_second_per_ip = 1").devices(40);
    let (behind, elsewhere) = (local(free_port()), local(free_port()));
    let gateway = plan
        .limit(&listener(behind, "tls", "proxy_protocol_from = [\"127.0.0.0/8\"]"))
        .limit(&listener(elsewhere, "tcp", "proxy_protocol_from = [\"10.0.0.0/8\"]"))
        .start();
    let announced = |last: u8| header([192, 0, 2, last]);
    let connect = |header: &[u8], device: &str| {
        let mut socket = dial(behind);
        socket.write_all(header).unwrap();
        let mut device_side = Device::over(Box::new(over_tls(socket, &gateway)), Version::V4);
        device_side.try_send(&Login::new(Version::V4, device, &sas(device)).packet()).ok()?;
        (device_side.next(PATIENCE) == Answer::Connack(0)).then_some(device_side)
    };
    // Thirty at once, each from its own address; an address of its own has a burst of ten.
    let all: Vec<_> = (0..30).map(|n| connect(&announced(n), &format!("d{n}")).expect("admitted")).collect();
    let (_, sessions) = gateway.get("/v1/sessions").unwrap();
    assert!(sessions.contains("192.0.2.29:4660"), "{sessions}");
    drop(all);
    let from_one = (0..30).filter(|_| connect(&announced(200), "d31").is_some()).count();
    assert!((10..15).contains(&from_one), "{from_one} of 30 in one burst");
    // Whoever is listed has to say for whom; whoever is not is not believed.
    let mut silent = Device::over(Box::new(dial(behind)), Version::V4);
    silent.try_send(&Login::new(Version::V4, "d0", &sas("d0")).packet()).unwrap();
    assert_eq!(silent.next(PATIENCE), Answer::Closed);
    let mut spoof = Device::open(elsewhere, Version::V4);
    spoof.try_send(&[announced(1), Login::new(Version::V4, "d0", &sas("d0")).packet()].concat()).unwrap();
    assert_eq!(spoof.next(PATIENCE), Answer::Closed);
    Device::open(elsewhere, Version::V4).admitted(&Login::new(Version::V4, "d0", &sas("d0")));
    let (_, refusals) = gateway.get("/v1/refusals").unwrap();
    assert!(refusals.contains("The PROXY protocol: no PROXY header of version 2"), "{refusals}");
}

#[test]
fn version_6_addresses_are_listened_on_and_shown() {
    let (six, both) = (SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], free_port())), free_port());
    let any = format!("[[listener]]\nbind = \"[::]:{both}\"\ntransport = \"tcp\"\ninsecure = true");
    let gateway = Plan::new(Hub::Embedded).limit(&listener(six, "tcp", "")).limit(&any).start();
    let over_six = Device::open(six, Version::V5).admitted(&Login::new(Version::V5, "d0", &sas("d0")));
    let over_four = Device::open(local(both), Version::V5).admitted(&Login::new(Version::V5, "d1", &sas("d1")));
    let (_, sessions) = gateway.get("/v1/sessions").unwrap();
    assert!(sessions.contains("\"[::1]:"), "{sessions}");
    assert!(sessions.contains("\"127.0.0.1:") && !sessions.contains("ffff"), "{sessions}");
    drop((over_six, over_four));
}

/// A gateway with a listener for each.
fn with_websocket(plan: Plan) -> (Gateway, SocketAddr, SocketAddr) {
    let (ws, wss) = (local(free_port()), local(free_port()));
    let gateway = plan.limit(&listener(ws, "ws", "")).limit(&listener(wss, "wss", "")).start();
    (gateway, ws, wss)
}

fn listener(bind: SocketAddr, transport: &str, more: &str) -> String {
    let files = "certificate = \"server.pem\"\nprivate_key = \"server.key\"";
    let files = if matches!(transport, "tls" | "wss") { files } else { "" };
    format!("[[listener]]\nbind = \"{bind}\"\ntransport = \"{transport}\"\n{files}\n{more}")
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// A PROXY header of version 2: TCP over IPv4, from this address and port 4660.
fn header(from: [u8; 4]) -> Vec<u8> {
    let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C";
    [&start[..], &from, &[127, 0, 0, 1, 0x12, 0x34, 0x22, 0xB3]].concat()
}

fn builder(address: SocketAddr) -> Builder {
    Request::get(format!("ws://{address}/mqtt"))
        .header("Host", address.to_string())
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key())
        .header("Sec-WebSocket-Protocol", "mqtt")
}

fn request(address: SocketAddr, path: &str) -> Request<()> {
    builder(address).uri(format!("ws://{address}{path}")).body(()).unwrap()
}

fn open_ws(address: SocketAddr, version: Version) -> Device {
    over(client(request(address, "/mqtt"), dial(address)).unwrap().0, version)
}

fn open_wss(address: SocketAddr, gateway: &Gateway, version: Version) -> Device {
    let request = request(address, "/$iothub/websocket?iothub-no-client-cert=true");
    let Ok((socket, _)) = client(request, open_tls(address, &gateway.ca_pem)) else { panic!("no WebSocket under TLS") };
    over(socket, version)
}

fn over_tls(socket: TcpStream, gateway: &Gateway) -> impl Stream + use<> {
    support::tls_over(socket, &gateway.ca_pem)
}

fn over<S: Stream + 'static>(socket: WebSocket<S>, version: Version) -> Device {
    Device::over(Box::new(Bytes { socket, unread: Vec::new() }), version)
}

#[track_caller]
fn payload_of(device: &mut Device) -> Vec<u8> {
    match device.next(PATIENCE) {
        Answer::Publish { payload, packet_id, .. } => {
            device.acknowledge(packet_id);
            payload
        }
        other => panic!("unexpected: {other:?}"),
    }
}

/// The frames of another implementation as a stream of bytes.
struct Bytes<S: Stream> {
    socket: WebSocket<S>,
    unread: Vec<u8>,
}

impl<S: Stream> Read for Bytes<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.unread.is_empty() {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => self.unread = bytes.to_vec(),
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(0),
                Ok(_) => {}
                Err(Error::Io(error)) => return Err(error),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        let n = self.unread.len().min(into.len());
        into[..n].copy_from_slice(&self.unread[..n]);
        self.unread.drain(..n);
        Ok(n)
    }
}

impl<S: Stream> Write for Bytes<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.send(Message::Binary(bytes.to_vec().into())) {
            Ok(()) => Ok(bytes.len()),
            Err(Error::Io(error)) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: Stream> Stream for Bytes<S> {
    fn socket(&self) -> &TcpStream {
        self.socket.get_ref().socket()
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
