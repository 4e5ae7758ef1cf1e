//! Message Expiry Interval upwards: a hub that was away is sent what is left of it, and nothing that is over.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;
#[path = "conformance/wire.rs"]
#[allow(dead_code, reason = "this test uses its part")]
mod wire;

use std::time::{Duration, Instant};

use support::{Gateway, Hub, Plan, Recorder, Version::V5, until};
use wire::Peer;

#[test]
fn a_message_that_waited_for_its_hub_is_sent_with_what_is_left_or_not_at_all() {
    // On the disk, in memory alone, and on the disk of a gateway that was killed.
    for (ack, kill) in [("durable", false), ("hub", false), ("durable", true)] {
        let mut hub = Recorder::start();
        let mut gateway = Plan::new(Hub::At(hub.port(), V5)).shards(1).ack(ack).start();
        let mut device = Peer::admitted(&gateway, V5, "d0");
        hub.kill();
        until("the hub to be away", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
        let begun = Instant::now();
        for (id, seconds) in [(1, 100_u32), (2, 1), (3, 0), (4, 200)] {
            let expiry = [&[2][..], &seconds.to_be_bytes()].concat();
            // The third does not expire.
            let properties: &[u8] = if id == 3 { &[1, 1] } else { &expiry };
            device.publish(0x32, "devices/d0/messages/events/", id, properties, id.to_string().as_bytes());
        }
        if ack == "durable" {
            (1..=4).for_each(|id| device.expect(&[0x40, 2, 0, id]));
        }
        if kill {
            gateway.kill_and_restart();
        }
        until("three seconds to pass", PATIENCE, || begun.elapsed() >= Duration::from_secs(3));
        hub.restart();
        let payloads = || hub.payloads("devices/d0/messages/events/");
        until("what is left to arrive", PATIENCE, || payloads().len() >= 3);
        assert_eq!(payloads(), ["1", "3", "4"], "{ack}");
        let passed = u32::try_from(begun.elapsed().as_secs()).unwrap();
        let left: Vec<Option<u32>> = hub.recorded().iter().map(|message| expiry_of(&message.properties)).collect();
        for (left, sent) in [(left[0], 100), (left[2], 200)] {
            let left = left.expect("it expires");
            assert!(left <= sent - 2 && left + passed + 2 >= sent, "{left} of {sent} after {passed} s");
        }
        assert_eq!(left[1], None);
        expired(&gateway, 1.0);
        if ack == "hub" {
            // The one that was over is answered for as well.
            let mut answered: Vec<u16> = (0..4).map(|_| device.next().id()).collect();
            answered.sort_unstable();
            assert_eq!(answered, [1, 2, 3, 4]);
        }
    }
}

#[track_caller]
fn expired(gateway: &Gateway, count: f64) {
    until("it to be counted", PATIENCE, || gateway.metric("tollgate_dropped_total", &["reason=\"expired\""]) == count);
}

/// It is the first of the device's properties.
fn expiry_of(properties: &[u8]) -> Option<u32> {
    let value = properties.strip_prefix(&[2])?.first_chunk()?;
    Some(u32::from_be_bytes(*value))
}

const PATIENCE: Duration = Duration::from_secs(20);
