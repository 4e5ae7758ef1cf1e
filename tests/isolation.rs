//! Many devices, one pool of connections (threat T39): by a property, that what one may publish arrives at a hub under a name
//! that no other can give it, and that what is sent to one is nobody else's, whatever number (`$rid`) it carries; and over
//! sockets, that a hub can answer many who ask under the same number at the same time.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{fs, time::Duration};

use proptest::prelude::*;
use support::{Answer, Device, Gateway, Hub, Login, Plan, Version, device_key, sas_for, unix_now};
use tollgate::{
    id::DeviceId,
    policy::{Profile, Scope, ScopeTemplate},
    route::{Ack, Routes},
    topic::{TopicFilter, TopicName},
};

/// Names that a careless comparison takes for one another, or for a level of a topic.
fn part() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "ab", "a-b", "a.b", "A", "modules", "iothub", "devices", "messages"])
}

fn device() -> impl Strategy<Value = DeviceId> {
    (part(), prop::option::of(part())).prop_map(|(device, module)| {
        let text = module.map_or_else(|| device.to_owned(), |module| format!("{device}/{module}"));
        DeviceId::try_from(text.as_str()).expect("an id")
    })
}

/// As the configuration makes them for the profile azure.
fn routes() -> Routes {
    let mut routes = Routes::default();
    for (from, to) in [("$iothub/#", Some("devices/{device}/iothub/#")), ("devices/{device}/#", None)] {
        routes.add(from, to, 0, Ack::Durable).expect("a route");
    }
    routes
}

fn scope(who: &DeviceId) -> Scope {
    ScopeTemplate::default().for_device(who, Profile::Azure)
}

/// `a`, or `a/modules/m`: what stands behind `devices/`.
fn path(who: &DeviceId) -> String {
    who.as_str().replace('/', "/modules/")
}

/// What a device could try to publish: its own, another's, and what every device calls alike.
fn tried(who: &DeviceId) -> impl Strategy<Value = String> + use<> {
    let tail = prop::sample::select(vec![
        "/messages/events/",
        "/messages/events/a=1",
        "/messages/devicebound/",
        "/iothub/twin/res/200/?$rid=1",
        "/iothub/methods/res/200/?$rid=1",
        "/modules/a/messages/events/",
    ]);
    let shared = prop::sample::select(vec![
        "$iothub/twin/GET/?$rid=1",
        "$iothub/twin/PATCH/properties/reported/?$rid=1",
        "$iothub/methods/res/200/?$rid=1",
    ]);
    let of = path(who);
    prop_oneof![tail.prop_map(move |tail| format!("devices/{of}{tail}")), shared.prop_map(str::to_owned)]
}

/// What a hub sends to a device, and what the device calls it.
fn answers() -> impl Strategy<Value = (&'static str, Option<&'static str>)> {
    prop::sample::select(vec![
        ("/messages/devicebound/x", None),
        ("/iothub/twin/res/200/?$rid=1", Some("$iothub/twin/res/200/?$rid=1")),
        ("/iothub/methods/POST/reboot/?$rid=1", Some("$iothub/methods/POST/reboot/?$rid=1")),
        (
            "/iothub/twin/PATCH/properties/desired/?$version=1",
            Some("$iothub/twin/PATCH/properties/desired/?$version=1"),
        ),
    ])
}

/// Under which name a device's message arrives, where it may publish it at all.
fn there(who: &DeviceId, topic: &str) -> Option<String> {
    let scope = scope(who);
    let permit = scope.authorize_publish(TopicName::new(topic.as_bytes()).expect("a topic"), 1, false).ok()?;
    routes().resolve(permit, who, &mut String::new()).ok().map(|envelope| envelope.topic.to_owned())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn what_one_device_publishes_no_other_can_have_published(
        (a, b, topic) in (device(), device()).prop_flat_map(|(a, b)| {
            let topic = prop_oneof![tried(&a), tried(&b)];
            (Just(a), Just(b), topic)
        }),
    ) {
        for (who, other) in [(&a, &b), (&b, &a)] {
            let Some(there) = there(who, &topic) else { continue };
            prop_assert!(there.starts_with(&format!("devices/{}/", path(who))), "{who} publishes {topic} as {there}");
            // Nor is there anything that the other could publish to get there.
            let same = other == who;
            for name in [topic.as_str(), there.as_str()] {
                let others = crate::there(other, name);
                prop_assert!(same || others.as_ref() != Some(&there), "{who} and {other} both publish {there}");
            }
        }
    }

    #[test]
    fn what_is_sent_to_one_device_is_no_others((a, b) in (device(), device()), (tail, name) in answers()) {
        prop_assume!(a != b);
        let sent = format!("devices/{}{tail}", path(&a));
        let topic = TopicName::new(sent.as_bytes()).expect("a topic");
        let routes = routes();
        let takes = |who: &DeviceId| {
            let filters = scope(who).subscribe().to_vec();
            filters.iter().any(|filter: &TopicFilter| {
                routes.resolve_filter(filter, who).is_ok_and(|(_, filter)| filter.matches(topic))
            })
        };
        prop_assert!(takes(&a), "{a} is not sent {sent}");
        prop_assert!(!takes(&b), "{b} is sent {sent}, which is {a}'s");
        let called = |who: &DeviceId| {
            let filters = scope(who).subscribe().to_vec();
            let mut buffer = String::new();
            let wanted = |name: TopicName<'_>| filters.iter().any(|filter| filter.matches(name));
            let called = routes.to_device(0, topic, who, wanted, &mut buffer)?;
            wanted(called).then(|| called.as_str().to_owned())
        };
        let (of_a, of_b) = (called(&a), called(&b));
        prop_assert_eq!(of_a.as_deref(), Some(name.unwrap_or(&sent)), "of {}", a);
        prop_assert_eq!(of_b, None, "of {}", b);
    }
}

#[test]
fn answers_under_one_number_find_each_the_one_who_asked() {
    let identity = |kind: &str, id: &str, scope: &str| {
        format!("[[{kind}]]\nid = '{id}'\nprimary_key = '{}'\n{scope}\n", device_key(id))
    };
    let names = ["a", "ab", "a-b", "b", "a/b", "b/a", "modules", "iothub"];
    let kind = |name: &&str| if name.contains('/') { "module" } else { "device" };
    let identities: String = names.iter().map(|name| identity(kind(name), name, "")).collect();
    let hub_side = [
        identity("device", "reader", "scope.subscribe = ['devices/+/iothub/#', 'devices/+/modules/+/iothub/#']"),
        identity("device", "writer", "scope.publish = ['devices/#']"),
    ];
    let gateway = azure(Plan::new(Hub::Embedded).shards(2).identities_and(&(identities + &hub_side.concat())));
    let mut reader = gateway.connect(Version::V5, "reader");
    for filter in ["devices/+/iothub/twin/GET/#", "devices/+/modules/+/iothub/twin/GET/#"] {
        assert_eq!(reader.subscribe(filter, 1), 1);
    }
    let mut writer = gateway.connect(Version::V4, "writer");
    let mut devices: Vec<Device> = (names.iter().zip([Version::V4, Version::V5].into_iter().cycle()))
        .map(|(name, version)| {
            let mut device = connected(&gateway, version, name);
            assert_eq!(device.subscribe("$iothub/twin/res/#", 1), 1, "{name}");
            device
        })
        .collect();
    for round in 0..3 {
        for device in &mut devices {
            device.publish_acknowledged("$iothub/twin/GET/?$rid=1", b"");
        }
        let mut asked: Vec<String> = names.iter().map(|_| message(&mut reader).0).collect();
        asked.sort();
        let path = |name: &str| format!("devices/{}/iothub/", name.replace('/', "/modules/"));
        let mut expected: Vec<String> = names.iter().map(|name| path(name) + "twin/GET/?$rid=1").collect();
        expected.sort();
        assert_eq!(asked, expected);
        // In another order in each round.
        for n in 0..names.len() {
            let name = names[(n * 3 + round) % names.len()];
            writer.publish_acknowledged(&format!("{}twin/res/200/?$rid=1", path(name)), name.as_bytes());
        }
        for (device, name) in devices.iter_mut().zip(names) {
            assert_eq!(message(device), ("$iothub/twin/res/200/?$rid=1".to_owned(), name.as_bytes().to_vec()));
            device.ping();
            assert_eq!(device.next(PATIENCE), Answer::Pingresp, "{name} is sent its own answer alone");
        }
    }
}

fn azure(plan: Plan) -> Gateway {
    let mut gateway = plan.launch(|folder| {
        let file = folder.join("gateway.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen("[gateway]", "[gateway]\nprofile = \"azure\"", 1)).unwrap();
    });
    gateway.until_ready();
    gateway
}

fn connected(gateway: &Gateway, version: Version, name: &str) -> Device {
    let resource = format!("localhost/devices/{}", name.replace('/', "/modules/"));
    let token = sas_for(&resource, &device_key(name), &(unix_now() + 600).to_string());
    gateway.open(version).admitted(&Login::new(version, name, &token))
}

/// The next message, acknowledged.
#[track_caller]
fn message(device: &mut Device) -> (String, Vec<u8>) {
    match device.next(PATIENCE) {
        Answer::Publish { topic, payload, qos, packet_id } => {
            if qos > 0 {
                device.acknowledge(packet_id);
            }
            (topic, payload)
        }
        other => panic!("a message is expected, and not {other:?}"),
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
