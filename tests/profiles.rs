//! The profiles azure and google over sockets: what goes up, what comes down, what is refused.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    time::Duration,
};

use support::{
    Answer, Device, Gateway, Hub, Login, Plan, Recorded, Recorder, Version, device_key, dial, publish_packet, sas,
    sas_for, unix_now, until_some,
};
use tollgate::denial::Denial;

#[test]
fn a_property_bag_goes_up_as_it_was_sent_and_as_user_properties() {
    let hub = Recorder::start();
    let gateway = azure(Plan::new(Hub::At(hub.port(), Version::V5)));
    let mut device = gateway.connect(Version::V4, "d0");
    let bag = "%24.mid=m-1&%24.ct=application%2Fjson&$.cid=7&alert=yes%2Fno%20%231&empty=";
    device.publish_acknowledged(&format!("devices/d0/messages/events/{bag}"), b"a message with a bag");
    let [there] = arrived(&hub);
    assert_eq!(there.topic, format!("devices/d0/messages/events/{bag}"));
    for (name, value) in [
        ("$.mid", "m-1"),
        ("$.ct", "application/json"),
        ("$.cid", "7"),
        ("alert", "yes/no #1"),
        ("empty", ""),
        ("tollgate-device", "d0"),
    ] {
        assert_eq!(count(&there, &user_property(name, value)), 1, "{name}={value} in {:?}", there.properties);
    }
    assert_eq!(count(&there, &[&[0x03][..], &text("application/json")].concat()), 1, "content type");
    assert_eq!(count(&there, &[&[0x09][..], &text("7")].concat()), 1, "correlation data");

    // Who it is, only the gateway says, in the topic and in properties; also those of a 5.0 device's own.
    let spoofed = "a=1&%24.cdid=d1&iothub-connection-device-id=d1&tollgate-device=d1&b=2";
    device.publish_acknowledged(&format!("devices/d0/messages/events/{spoofed}"), b"somebody else's name");
    let mut modern = gateway.connect(Version::V5, "d1");
    let own = [("iothub-connection-auth-method", "x"), ("$.cmid", "m"), ("kept", "yes")];
    modern.send(&publish_with(0x32, "devices/d1/messages/events/", 1, &own));
    assert_eq!(modern.next(PATIENCE), Answer::Puback(1, 0));
    let [_, there, modern] = arrived(&hub);
    assert_eq!(there.topic, "devices/d0/messages/events/a=1&b=2");
    assert_eq!(count(&there, &user_property("tollgate-device", "d0")), 1);
    for (message, spoofed) in [(&there, "d1"), (&there, "$.cdid"), (&modern, "iothub-"), (&modern, "$.cmid")] {
        assert_eq!(count(message, spoofed.as_bytes()), 0, "{spoofed}");
    }
    assert_eq!(count(&modern, &user_property("kept", "yes")), 1);
}

#[test]
fn retain_is_passed_on_as_a_property_and_nothing_is_kept() {
    for (version, there) in [(Version::V5, "a=1"), (Version::V4, "a=1&mqtt-retain=true")] {
        let hub = Recorder::start();
        let gateway = azure(Plan::new(Hub::At(hub.port(), version)));
        let mut device = gateway.connect(Version::V4, "d0");
        let mut publish = publish_packet(Version::V4, "devices/d0/messages/events/a=1", b"retained", 1, 9);
        publish[0] |= 1;
        device.send(&publish);
        assert_eq!(device.next(PATIENCE), Answer::Puback(9, 0));
        let [message] = arrived(&hub);
        assert_eq!(message.topic, format!("devices/d0/messages/events/{there}"));
        let told = usize::from(version == Version::V5);
        assert_eq!(count(&message, &user_property("mqtt-retain", "true")), told);
    }
}

#[test]
fn what_is_no_property_bag_is_refused_and_other_profiles_do_not_look_for_one() {
    let hub = Recorder::start();
    let gateway = azure(Plan::new(Hub::At(hub.port(), Version::V5)));
    let topic = |device: &str, bag: &str| format!("devices/{device}/messages/events/{bag}");
    for bag in ["a=%zz", "a=%", "a=%ff", "a=%00", "a=%0A", &"a=1&".repeat(101)] {
        let mut modern = gateway.connect(Version::V5, "d0");
        let id = modern.publish(&topic("d0", bag), b"a message with a bad bag", 1);
        assert_eq!(modern.next(PATIENCE), Answer::Puback(id, Denial::PropertyBagInvalid.row().reason_v5), "{bag}");
        modern.publish_acknowledged(&topic("d0", "good=%20"), b"the session goes on");
        let mut old = gateway.connect(Version::V4, "d1");
        old.publish(&topic("d1", bag), b"a message with a bad bag", 1);
        assert_eq!(old.closed(PATIENCE), None, "{bag}");
    }
    assert_eq!(hub.payloads(&topic("d0", "good=%20")).len(), 6);
    assert_eq!(hub.count(), 6, "nothing else came through");
    let strict = Plan::new(Hub::At(hub.port(), Version::V5)).start();
    strict.connect(Version::V4, "d0").publish_acknowledged(&topic("d0", "a=%zz"), b"a level like any other");
}

#[test]
fn twins_and_methods_reach_the_hub_and_come_back_to_their_device_alone() {
    let identity = |kind: &str, id: &str, scope: &str| {
        format!("[[{kind}]]\nid = '{id}'\nprimary_key = '{}'\n{scope}\n", device_key(id))
    };
    let reads = "scope.subscribe = ['devices/+/iothub/#', 'devices/+/modules/+/iothub/#']";
    let identities = [
        identity("device", "reader", reads),
        identity("device", "writer", "scope.publish = ['devices/#']"),
        identity("module", "d0/camera", ""),
    ]
    .concat();
    let gateway = azure(Plan::new(Hub::Embedded).identities_and(&identities));
    let mut reader = gateway.connect(Version::V5, "reader");
    for who in ["devices/+/iothub", "devices/+/modules/+/iothub"] {
        for up in ["twin/GET/#", "twin/PATCH/properties/reported/#", "methods/res/#"] {
            assert_eq!(reader.subscribe(&format!("{who}/{up}"), 1), 1);
        }
    }
    let mut writer = gateway.connect(Version::V4, "writer");
    let mut bystander = gateway.connect(Version::V4, "d1");
    assert_eq!(bystander.subscribe("$iothub/twin/res/#", 0), 0);
    assert_eq!(bystander.subscribe("$iothub/methods/POST/#", 0), 0);

    for (version, name, path) in
        [(Version::V4, "d0", "d0"), (Version::V5, "d2", "d2"), (Version::V4, "d0/camera", "d0/modules/camera")]
    {
        let there = format!("devices/{path}/iothub/");
        let mut device = module_or_device(&gateway, version, name);
        for filter in ["twin/res/#", "twin/PATCH/properties/desired/#", "methods/POST/#"] {
            assert_eq!(device.subscribe(&format!("$iothub/{filter}"), 1), 1, "{name}: {filter}");
        }
        for (asks, answers) in [
            ("twin/GET/?$rid=1", "twin/res/200/?$rid=1"),
            ("twin/PATCH/properties/reported/?$rid=2", "twin/res/204/?$rid=2&$version=7"),
        ] {
            device.publish_acknowledged(&format!("$iothub/{asks}"), b"{}");
            assert_eq!(message(&mut reader).0, format!("{there}{asks}"));
            writer.publish_acknowledged(&format!("{there}{answers}"), name.as_bytes());
            assert_eq!(message(&mut device), (format!("$iothub/{answers}"), name.as_bytes().to_vec()));
        }
        for (down, up) in [
            ("twin/PATCH/properties/desired/?$version=8", None),
            ("methods/POST/reboot/?$rid=a", Some("methods/res/200/?$rid=a")),
        ] {
            writer.publish_acknowledged(&format!("{there}{down}"), b"now");
            assert_eq!(message(&mut device), (format!("$iothub/{down}"), b"now".to_vec()));
            if let Some(up) = up {
                device.publish_acknowledged(&format!("$iothub/{up}"), b"{}");
                assert_eq!(message(&mut reader).0, format!("{there}{up}"));
            }
        }
        // What only a hub may say, a device may not; nor may it ask for another's.
        assert_ne!(device.subscribe("$iothub/#", 1), 1);
        assert_ne!(device.subscribe("devices/d1/iothub/#", 1), 1);
        device.publish("$iothub/methods/POST/reboot/?$rid=b", b"forged", 1);
        match version {
            Version::V5 => assert!(matches!(device.next(PATIENCE), Answer::Puback(_, 0x87))),
            Version::V4 => assert_eq!(device.closed(PATIENCE), None),
        }
    }
    bystander.ping();
    assert_eq!(bystander.next(PATIENCE), Answer::Pingresp, "nobody's answers are another's");
}

#[test]
fn iot_hubs_limits_hold_where_its_devices_connect() {
    let gateway = azure(Plan::new(Hub::Embedded));
    for version in [Version::V4, Version::V5] {
        let mut device = gateway.connect(version, "d0");
        assert_eq!(device.subscribe("devices/d0/messages/devicebound/#", 2), 1, "QoS 2 is granted 1");
        device.publish("devices/d0/messages/events/", b"at QoS 2", 2);
        let code = (version == Version::V5).then_some(Denial::QosNotOffered.row().reason_v5);
        assert_eq!(device.closed(PATIENCE), code);
    }
    let login = |keep_alive| Login { keep_alive, ..Login::new(Version::V5, "d1", &sas("d1")) };
    for (asked, told) in [(0, Some(1177)), (1178, Some(1177)), (1177, None), (60, None)] {
        let properties = connack_properties(&gateway, &login(asked));
        let server_keep_alive = told.map(|seconds: u16| [&[0x13][..], &seconds.to_be_bytes()].concat());
        let is_told = |property: &[u8]| properties.windows(property.len()).any(|window| window == property);
        assert_eq!(server_keep_alive.as_deref().is_some_and(is_told), told.is_some(), "{asked}: {properties:?}");
        // Receive Maximum 16, Topic Alias Maximum 10, Maximum QoS 1.
        for announced in [&[0x21, 0, 16][..], &[0x22, 0, 10], &[0x24, 1]] {
            assert!(is_told(announced), "{announced:?} in {properties:?}");
        }
    }
}

/// A gateway whose listeners have the profile azure.
fn azure(plan: Plan) -> Gateway {
    let mut gateway = plan.launch(|folder| {
        let file = folder.join("gateway.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen("[gateway]", "[gateway]\nprofile = \"azure\"", 1)).unwrap();
    });
    gateway.until_ready();
    gateway
}

fn module_or_device(gateway: &Gateway, version: Version, name: &str) -> Device {
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

/// All that the hub was given, when it is so many.
#[track_caller]
fn arrived<const N: usize>(hub: &Recorder) -> [Recorded; N] {
    until_some("the messages", PATIENCE, || <[Recorded; N]>::try_from(hub.recorded()).ok())
}

fn count(message: &Recorded, bytes: &[u8]) -> usize {
    message.properties.windows(bytes.len()).filter(|window| *window == bytes).count()
}

fn user_property(name: &str, value: &str) -> Vec<u8> {
    [vec![0x26], text(name), text(value)].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// What CONNACK says behind its reason code.
fn connack_properties(gateway: &Gateway, login: &Login) -> Vec<u8> {
    let mut socket = dial(gateway.tcp);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&login.packet()).unwrap();
    let mut head = [0; 5];
    socket.read_exact(&mut head).unwrap();
    let [0x20, length @ ..0x80, _, 0, _] = head else { panic!("a CONNACK is expected, and not {head:?}") };
    let mut properties = vec![0; usize::from(length) - 3];
    socket.read_exact(&mut properties).unwrap();
    properties
}

/// A PUBLISH of 5.0 with user properties and no payload.
fn publish_with(first: u8, topic: &str, packet_id: u16, properties: &[(&str, &str)]) -> Vec<u8> {
    let properties: Vec<u8> = properties.iter().flat_map(|(name, value)| user_property(name, value)).collect();
    let mut body = [text(topic), packet_id.to_be_bytes().to_vec()].concat();
    body.push(u8::try_from(properties.len()).unwrap());
    body.extend(properties);
    [vec![first, u8::try_from(body.len()).unwrap()], body].concat()
}

const PATIENCE: Duration = Duration::from_secs(20);
