//! Four shards: a device lives on its home shard after every reconnect, over TCP and TLS.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{Hub, Plan, Recorder, Version};

#[test]
fn a_device_keeps_its_link_to_the_hub_and_its_order_over_every_reconnect() {
    let recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(4).devices(16).start();
    for round in 0..8 {
        for number in 0..16 {
            let device = format!("d{number}");
            let version = if (round / 2) % 2 == 0 { Version::V4 } else { Version::V5 };
            let mut connection = match round % 2 {
                0 => gateway.connect(version, &device),
                _ => gateway.connect_tls(version, &device),
            };
            for n in 0..3 {
                let payload = format!("{round}.{n}");
                connection.publish_acknowledged(&format!("devices/{device}/messages/events/"), payload.as_bytes());
            }
        }
    }
    let mut links: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for message in recorder.recorded() {
        links.entry(message.topic).or_default().insert(message.client_id);
    }
    assert_eq!(links.len(), 16, "every device's messages arrived");
    for (topic, links_of_device) in &links {
        assert_eq!(links_of_device.len(), 1, "{topic} came over one link: {links_of_device:?}");
        let sent = (0..8).flat_map(|round| (0..3).map(move |n| format!("{round}.{n}")));
        assert!(recorder.payloads(topic).into_iter().eq(sent), "{topic} in order, each once");
    }
    let used: BTreeSet<&String> = links.values().flatten().collect();
    assert_eq!(used.len(), 4, "sixteen devices are spread over four shards: {used:?}");
}
