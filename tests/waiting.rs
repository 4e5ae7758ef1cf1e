//! Devices that wait for a hub, or for each other: who is slow holds up itself. The hub is played by the test, word by
//! word.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use support::{Answer, Device, Gateway, Hub, Login, Plan, Version, free_port, publish_packet, sas, until};
use tollgate::denial::Denial;

#[test]
fn a_device_that_does_not_read_holds_no_place_that_others_wait_for() {
    // However long this takes: no disk acknowledges in the hub's place.
    let (gateway, mut hub) = start_with(|plan| plan.ack("hub"));
    let mut good = gateway.connect(Version::V4, "d1");
    let mut deaf = gateway.connect(Version::V4, "d0");
    for (device, id) in [(&mut good, "d1"), (&mut deaf, "d0")] {
        device.send(&subscribe_packet(1, &commands(id)));
        let asked = hub.next(SUBSCRIBE);
        hub.say(&[0x90, 3, asked[0], asked[1], 0]);
        assert_eq!(device.next(PATIENCE), Answer::Suback(1, vec![0]));
    }
    // The window of one is full, and the deaf device is the first to wait.
    good.send(&publish_packet(Version::V4, EVENTS, b"first", 1, 1));
    let first = hub.publish(b"first");
    deaf.send(&publish_packet(Version::V4, "devices/d0/messages/events/", b"of the deaf", 1, 1));
    // It is sent more than all buffers take; the good device's copy tells when the gateway has handled it.
    let large = publish_packet(Version::V4, &command("d0"), &[0; 60_000], 0, 0);
    let small = publish_packet(Version::V4, &command("d1"), b"", 0, 0);
    let is_blocked = (0..200).any(|_| {
        for _ in 0..20 {
            hub.say(&large);
            hub.say(&small);
            assert!(matches!(good.next(PATIENCE), Answer::Publish { .. }));
        }
        gateway.metric("tollgate_dropped_total", &[]) > 0.0
    });
    assert!(is_blocked, "240 MB cannot be on their way");
    good.send(&publish_packet(Version::V4, EVENTS, b"second", 1, 2));
    hub.acknowledge(first);
    assert_eq!(good.next(PATIENCE), Answer::Puback(1, 0));
    let second = hub.publish(b"second");
    hub.acknowledge(second);
    assert_eq!(good.next(PATIENCE), Answer::Puback(2, 0));
}

#[test]
fn a_device_that_waits_for_a_hub_is_answered_that_it_is_there() {
    // No disk acknowledges in the hub's place.
    let (gateway, mut hub) = start_with(|plan| plan.ack("hub").limit("receive_maximum = 2"));
    for version in [Version::V4, Version::V5] {
        let mut device = gateway.connect(version, "d0");
        // The window is one. What waits behind it is taken in its turn, and whole.
        let topic = "devices/d0/messages/events/";
        let message = |n: u8| publish_packet(version, topic, &vec![b'0' + n; 5_000], 1, n.into());
        let all = if version == Version::V4 { 5 } else { 2 };
        device.send(&[message(1), message(2), vec![0xC0, 0]].concat());
        let mut packet_id = hub.publish(&[b'1'; 5_000]);
        assert_eq!(device.next(PATIENCE), Answer::Pingresp);
        // And in pieces.
        let more = (3..=all).flat_map(message).chain([0xC0]).collect::<Vec<u8>>();
        device.send(&more[..more.len() / 2]);
        device.send(&more[more.len() / 2..]);
        device.send(&[0, 0xC0, 0]);
        assert_eq!((device.next(PATIENCE), device.next(PATIENCE)), (Answer::Pingresp, Answer::Pingresp));
        for n in 1..=all {
            hub.acknowledge(packet_id);
            assert_eq!(device.next(PATIENCE), Answer::Puback(n.into(), 0));
            if n < all {
                packet_id = hub.publish(&[b'1' + n; 5_000]);
            }
        }
        device.disconnect();
    }
}

#[test]
fn unsubscribe_keeps_its_turn_behind_a_subscribe_that_the_hub_has_not_answered() {
    let (gateway, mut hub) = start();
    let mut device = gateway.connect(Version::V4, "d0");
    let mut both = subscribe_packet(1, &commands("d0"));
    both.extend(filter_packet(0xA2, 2, &commands("d0"), &[]));
    device.send(&both);
    let asked = hub.next(SUBSCRIBE);
    hub.say(&[0x90, 3, asked[0], asked[1], 0]);
    assert_eq!(device.next(PATIENCE), Answer::Suback(1, vec![0]));
    assert_eq!(device.next(PATIENCE), Answer::Unsuback(2));
    // And it is taken off the hub.
    hub.next(UNSUBSCRIBE);
}

#[test]
fn a_filter_that_stands_twice_in_a_subscribe_is_answered_twice() {
    let (gateway, mut hub) = start();
    let mut device = gateway.connect(Version::V4, "d0");
    let twice = [filter(&commands("d0")), vec![0], filter(&commands("d0")), vec![0]].concat();
    device.send(&packet(0x82, &[&[0, 1][..], &twice].concat()));
    let asked = hub.next(SUBSCRIBE);
    hub.say(&[0x90, 3, asked[0], asked[1], 0]);
    assert_eq!(device.next(PATIENCE), Answer::Suback(1, vec![0, 0]));
}

#[test]
fn a_flood_of_commands_reaches_a_device_that_reads() {
    let (gateway, mut hub) = start();
    let mut device = gateway.connect(Version::V4, "d0");
    device.send(&subscribe_packet(1, &commands("d0")));
    let asked = hub.next(SUBSCRIBE);
    hub.say(&[0x90, 3, asked[0], asked[1], 0]);
    assert_eq!(device.next(PATIENCE), Answer::Suback(1, vec![0]));
    let flood = publish_packet(Version::V4, &command("d0"), &[0; 1000], 0, 0).repeat(FLOOD);
    let mut writer = hub.stream.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&flood));
    for _ in 0..FLOOD {
        assert!(matches!(device.next(PATIENCE), Answer::Publish { .. }));
    }
    writing.join().unwrap().unwrap();
    assert_eq!(gateway.metric("tollgate_dropped_total", &[]), 0.0);
}

/// A gateway with one link and a window of one, and the hub at its other end.
#[test]
fn a_subscription_that_the_hub_refuses_is_refused_and_shown_to_the_operator() {
    let (gateway, mut hub) = start();
    for (version, code) in [(Version::V4, 0x80), (Version::V5, Denial::HubRefused.row().reason_v5)] {
        let mut device = gateway.connect(version, "d0");
        let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        let body = [&[0, 1], properties, &filter(&commands("d0")), &[0]].concat();
        device.send(&packet(0x82, &body));
        let asked = hub.next(SUBSCRIBE);
        hub.say(&[0x90, 3, asked[0], asked[1], 0x80]);
        assert_eq!(device.next(PATIENCE), Answer::Suback(1, vec![code]), "{version:?}");
        assert_shown(&gateway, Denial::HubRefused);
    }
}

#[test]
fn who_waits_at_the_socket_when_the_gateway_drains_is_answered_and_nobody_is_let_in_after() {
    let (gateway, mut hub) = start();
    let mut device = gateway.connect(Version::V4, "d0");
    device.publish("devices/d0/messages/events/", b"not acknowledged", 1);
    hub.publish(b"not acknowledged");
    // The kernel lets them in while the gateway stands still; the drain finds them waiting.
    gateway.signal(Signal::STOP);
    let devices = (0..100_usize).map(|n| if n.is_multiple_of(2) { Version::V4 } else { Version::V5 });
    let waiting: Vec<(Device, Version)> = devices
        .map(|version| {
            let mut waiting = gateway.open(version);
            waiting.send(&Login::new(version, "d1", &sas("d1")).packet());
            (waiting, version)
        })
        .collect();
    gateway.terminate();
    gateway.signal(Signal::CONT);
    for (mut device, version) in waiting {
        let told = if version == Version::V4 { 3 } else { Denial::Draining.row().reason_v5 };
        let answer = device.next(PATIENCE);
        assert!([Answer::Connack(told), Answer::Connack(0)].contains(&answer), "{version:?}: {answer:?}");
    }
    assert_eq!(device.closed(PATIENCE), None, "who was connected leaves");
    let refused = TcpStream::connect(gateway.tcp).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "the hub has not acknowledged: it still drains");
    assert!(gateway.process.log().contains("draining"));
}

fn assert_shown(gateway: &Gateway, denial: Denial) {
    until(denial.tag(), PATIENCE, || gateway.get("/v1/refusals").is_some_and(|(_, body)| body.contains(denial.tag())));
}

fn start() -> (Gateway, HandHub) {
    start_with(|plan| plan)
}

fn start_with(change: impl FnOnce(Plan) -> Plan) -> (Gateway, HandHub) {
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let gateway = change(Plan::new(Hub::At(port, Version::V4)).shards(1).window(1)).start();
    (gateway, HandHub::accept(&listener))
}

/// A hub that says what it is told to.
struct HandHub {
    stream: TcpStream,
    heard: Receiver<(u8, Vec<u8>)>,
}

impl HandHub {
    /// Takes the gateway's connection and its CONNECT.
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        let (tell, heard) = channel();
        let mut reader = stream.try_clone().unwrap();
        // It ends with the connection, or with the test.
        thread::spawn(move || while read_packet(&mut reader).is_some_and(|packet| tell.send(packet).is_ok()) {});
        let mut hub = Self { stream, heard };
        hub.next(CONNECT);
        hub.say(&[0x20, 2, 0, 0]);
        hub
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The body of the next packet, which must be of this type.
    #[track_caller]
    fn next(&mut self, first: u8) -> Vec<u8> {
        let (found, body) = self.heard.recv_timeout(PATIENCE).expect("the gateway says something");
        assert_eq!(found & 0xF0, first, "{body:?}");
        body
    }

    /// The packet id of the next PUBLISH of QoS 1, which must have this payload.
    #[track_caller]
    fn publish(&mut self, payload: &[u8]) -> [u8; 2] {
        let body = self.next(PUBLISH);
        let topic_end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (id, found) = body[topic_end..].split_at(2);
        assert_eq!(String::from_utf8_lossy(found), String::from_utf8_lossy(payload));
        [id[0], id[1]]
    }

    fn acknowledge(&mut self, [high, low]: [u8; 2]) {
        self.say(&[0x40, 2, high, low]);
    }
}

/// First byte and body; `None`: the connection is over.
fn read_packet(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = || {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok().map(|()| byte[0])
    };
    let first = byte()?;
    let (mut len, mut shift) = (0, 0);
    loop {
        let digit = byte()?;
        len |= usize::from(digit & 0x7F) << shift;
        shift += 7;
        if digit < 0x80 {
            break;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).ok()?;
    Some((first, body))
}

fn commands(device: &str) -> String {
    format!("devices/{device}/messages/devicebound/#")
}

fn command(device: &str) -> String {
    format!("devices/{device}/messages/devicebound/x")
}

/// With QoS 0.
fn subscribe_packet(packet_id: u8, of: &str) -> Vec<u8> {
    filter_packet(0x82, packet_id, of, &[0])
}

fn filter_packet(first: u8, packet_id: u8, of: &str, options: &[u8]) -> Vec<u8> {
    packet(first, &[&[0, packet_id][..], &filter(of), options].concat())
}

fn filter(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// Shorter than 128 bytes.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first, u8::try_from(body.len()).unwrap()][..], body].concat()
}

const EVENTS: &str = "devices/d1/messages/events/";
const CONNECT: u8 = 0x10;
const PUBLISH: u8 = 0x30;
const SUBSCRIBE: u8 = 0x80;
const UNSUBSCRIBE: u8 = 0xA0;
/// Messages of about a kilobyte: more than one poll of the pool may hold.
const FLOOD: usize = 2000;
const PATIENCE: Duration = Duration::from_secs(10);
