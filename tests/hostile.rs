//! Peers that mean harm or are broken: each is bounded in time and memory, and a good device connects meanwhile.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::time::{Duration, Instant};

use support::{Answer, Device, Gateway, Hub, Login, Plan, Version, sas};

#[test]
fn what_is_no_connect_is_closed_in_time_and_a_good_device_connects_meanwhile() {
    let gateway = gateway();
    let before = gateway.process.resident_kib();
    let half = half_a_connect();
    let cases: &[(&str, &[u8])] = &[
        ("nothing", b""),
        ("garbage", &[0xFF; 3000]),
        ("zeros", &[0; 3000]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a TLS greeting on the TCP port", &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3]),
        ("one byte", &[0x10]),
        ("half a CONNECT", &half),
        ("a length of five bytes", &[0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]),
        ("the largest length there is", &[0x10, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4, b'M', b'Q', b'T', b'T']),
        ("PUBLISH first", &[0x30, 3, 0, 1, b'a']),
        ("PINGREQ first", &[0xC0, 0]),
        ("an empty CONNECT", &[0x10, 0]),
        ("a protocol that is not MQTT", &[0x10, 12, 0, 4, b'H', b'T', b'T', b'P', 4, 2, 0, 60, 0, 0]),
    ];
    let mut peers = Vec::new();
    for (_, bytes) in cases {
        for _ in 0..10 {
            let mut peer = gateway.open(Version::V4);
            // It may be closed before all is sent: that is what is wanted.
            let _ = peer.try_send(bytes);
            peers.push(peer);
        }
    }
    assert_good_device_connects(&gateway);
    let deadline = Instant::now() + CONNECT_TIMEOUT + GRACE;
    for (peer, (what, _)) in peers.iter_mut().zip(cases.iter().flat_map(|case| [case; 10])) {
        peer.ends_before(deadline, what);
    }
    assert_bounded(&gateway, before);
}

#[test]
fn a_connect_of_one_byte_a_second_is_closed_when_the_whole_is_late() {
    let gateway = gateway();
    let started = Instant::now();
    let mut slow = gateway.open(Version::V4);
    let mut slow_tls = gateway.open_tls(Version::V5);
    let connect = Login::new(Version::V4, "d0", &sas("d0")).packet();
    for byte in connect {
        if slow.try_send(&[byte]).is_err() || slow_tls.try_send(&[byte]).is_err() {
            break;
        }
        match slow.next(Duration::from_millis(900)) {
            Answer::Silence => {
                assert!(started.elapsed() < CONNECT_TIMEOUT + GRACE, "open after {:?}", started.elapsed())
            }
            answer => {
                assert_eq!(answer, Answer::Closed);
                break;
            }
        }
    }
    assert!(started.elapsed() < CONNECT_TIMEOUT + GRACE, "closed after {:?}", started.elapsed());
    slow_tls.closed(GRACE);
    assert_good_device_connects(&gateway);
}

#[test]
fn silent_tls_clients_hold_up_nobody_and_are_closed_in_time() {
    let gateway = gateway();
    let before = gateway.process.resident_kib();
    let mut silent: Vec<Device> = (0..60).map(|_| Device::open(gateway.tls, Version::V4)).collect();
    let mut half: Vec<Device> = (0..20).map(|_| Device::open(gateway.tls, Version::V4)).collect();
    for peer in &mut half {
        peer.send(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3]);
    }
    let mut garbage = Device::open(gateway.tls, Version::V4);
    garbage.send(&[0xFF; 4000]);
    assert_good_device_connects(&gateway);
    let deadline = Instant::now() + CONNECT_TIMEOUT + GRACE;
    for peer in silent.iter_mut().chain(&mut half).chain([&mut garbage]) {
        peer.ends_before(deadline, "a TLS client that does not finish");
    }
    assert_bounded(&gateway, before);
}

#[test]
fn an_admitted_device_that_breaks_the_protocol_is_closed_with_the_reason() {
    let gateway = gateway();
    let too_large = [0x30, 0xFF, 0xFF, 0xFF, 0x7F];
    let cases: &[(&str, &[u8], u8)] = &[
        ("a length of five bytes", &[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F], 0x81),
        ("the largest length there is", &too_large, 0x95),
        ("a second CONNECT", &Login::new(Version::V5, "d0", &sas("d0")).packet(), 0x82),
        ("QoS 3", &[0x36, 6, 0, 1, b'a', 0, 1, 0], 0x81),
        ("packet type 0", &[0x00, 0], 0x81),
        ("SUBSCRIBE with wrong flags", &[0x80, 7, 0, 1, 0, 0, 1, b'a', 0], 0x81),
        ("a wildcard in a topic name", &[0x30, 4, 0, 1, b'#', 0], 0x90),
        ("a topic that is not UTF-8", &[0x30, 5, 0, 2, 0xC3, 0x28, 0], 0x90),
        ("packet id 0", &[0x32, 6, 0, 1, b'a', 0, 0, 0], 0x81),
        ("a topic alias beyond the maximum", &[0x30, 6, 0, 0, 3, 0x23, 0xFF, 0xFF], 0x94),
    ];
    for (what, bytes, reason) in cases {
        let mut device = gateway.connect(Version::V5, "d0");
        device.send(bytes);
        let closed = device.closed(GRACE);
        assert_eq!(closed, Some(*reason), "{what}: {closed:x?}");
    }
    for (what, bytes, _) in cases.iter().filter(|(what, _, _)| !what.contains("alias")) {
        let mut device = gateway.connect(Version::V4, "d0");
        device.send(bytes);
        assert_eq!(device.closed(GRACE), None, "{what}");
    }
    assert_good_device_connects(&gateway);
}

#[test]
fn thousands_of_mutilated_connects_end_no_process_and_admit_nobody() {
    let gateway = gateway();
    let before = gateway.process.resident_kib();
    // Xorshift with a fixed seed: the same mutilations in every run.
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % u64::try_from(below).expect("fits")).expect("fits")
    };
    for round in 0..1_000 {
        let version = if round % 2 == 0 { Version::V4 } else { Version::V5 };
        // Of another device, so that no mutilation can mend it.
        let mut connect = Login::new(version, "nobody", &sas("d0")).packet();
        for _ in 0..=next(4) {
            let at = next(connect.len());
            match next(3) {
                0 => drop(connect.remove(at)),
                1 => connect.insert(at, u8::try_from(next(256)).expect("a byte")),
                _ => connect.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << next(8)),
            }
        }
        let mut peer = gateway.open(version);
        if peer.try_send(&connect).is_ok() {
            let answer = peer.next(Duration::from_millis(1));
            assert_ne!(answer, Answer::Connack(0), "round {round}");
        }
    }
    assert_good_device_connects(&gateway);
    assert_bounded(&gateway, before);
}

fn gateway() -> Gateway {
    Plan::new(Hub::Embedded).limit("connect_timeout = \"3s\"").start()
}

/// Over TCP and TLS, both versions, and soon.
#[track_caller]
fn assert_good_device_connects(gateway: &Gateway) {
    let started = Instant::now();
    for version in [Version::V4, Version::V5] {
        gateway.connect(version, "d8").publish_acknowledged("devices/d8/messages/events/", b"good");
        gateway.connect_tls(version, "d9").publish_acknowledged("devices/d9/messages/events/", b"good");
    }
    assert!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
}

fn assert_bounded(gateway: &Gateway, before_kib: u64) {
    let grown = gateway.process.resident_kib().saturating_sub(before_kib);
    assert!(grown < 24 * 1024, "grew by {grown} KiB");
}

fn half_a_connect() -> Vec<u8> {
    let whole = Login::new(Version::V4, "d0", &sas("d0")).packet();
    let half = whole.len() / 2;
    whole.into_iter().take(half).collect()
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(3);
