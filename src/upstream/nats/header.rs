//! What MQTT says about a message, as NATS headers, and back.
//!
//! `tollgate-…` stands as the gateway stamped it, and `tollgate-id` once more as `Nats-Msg-Id`, by which a stream drops a
//! duplicate. A device's own user properties are `mqtt-user-NAME`: a name of its own choice could be one that the server
//! obeys (`Nats-Rollup` deletes what is stored). In names and values that come from a device, `%` and two upper-case
//! hexadecimal digits stand for what a header cannot hold, and for `%` itself.

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::subject::{escape, unescape};
use crate::packet::{MessageProperty, PublishRef, QoS, message_properties, write_message_property};

/// The headers of a message for `stream`, and what they say about whose it is.
pub(super) struct Headers {
    pub(super) map: HeaderMap,
    /// `tollgate-device`, where it is stamped.
    pub(super) device: Option<String>,
}

impl Headers {
    /// The stream that is named must be the one that takes it.
    pub(super) fn of(publish: &PublishRef<'_>, stream: &str) -> Self {
        let mut headers = Self { map: HeaderMap::new(), device: None };
        message_properties(publish.properties, |property| match property {
            MessageProperty::IsText(text) => headers.add("mqtt-payload-format", if text { "utf-8" } else { "bytes" }),
            MessageProperty::Expiry(seconds) => headers.add("mqtt-message-expiry", &seconds.to_string()),
            MessageProperty::ContentType(kind) => headers.add("mqtt-content-type", &escaped(kind)),
            MessageProperty::ResponseTopic(topic) => headers.add("mqtt-response-topic", &escaped(topic)),
            MessageProperty::CorrelationData(data) => headers.add("mqtt-correlation-data", &STANDARD.encode(data)),
            MessageProperty::User(name, value) if name.starts_with(OURS) => headers.stamped(name, value),
            MessageProperty::User(name, value) => {
                let mut header = USER.to_owned();
                escape(&mut header, name, |_, byte| byte.is_ascii_graphic() && !b":%".contains(&byte));
                headers.add(&header, &escaped(value));
            }
        });
        if publish.retain {
            headers.add("mqtt-retain", "true");
        }
        if publish.qos > QoS::AtMostOnce {
            headers.add("Nats-Expected-Stream", stream);
        }
        headers
    }

    fn stamped(&mut self, name: &str, value: &str) {
        self.add(name, &escaped(value));
        match name {
            "tollgate-id" => self.add("Nats-Msg-Id", &escaped(value)),
            "tollgate-device" => self.device = Some(value.to_owned()),
            _ => {}
        }
    }

    fn add(&mut self, name: &str, value: &str) {
        let name: HeaderName = name.parse().expect("invariant: graphic ASCII without a colon");
        let value: HeaderValue = value.parse().expect("invariant: no line break");
        self.map.append(name, value);
    }
}

/// Appends what the headers of a message from the hub are to a device, encoded: user properties, for the most part.
pub(super) fn write_properties(headers: &HeaderMap, out: &mut Vec<u8>) {
    let mut names: Vec<&HeaderName> = headers.iter().map(|(name, _)| name).collect();
    // The library keeps no order; what a device reads should not differ from one message to the next.
    names.sort_by(|a, b| text_of(a).cmp(text_of(b)));
    for name in names {
        for value in headers.get_all(name.clone()) {
            write_property(text_of(name), value.as_str(), out);
        }
    }
}

/// The lines that a message's headers are for a stream, and the properties that they become for whoever gets it.
pub fn header_lines(publish: &PublishRef<'_>, stream: &str) -> (Vec<(String, String)>, Vec<u8>) {
    let Headers { map, .. } = Headers::of(publish, stream);
    let mut lines = Vec::new();
    for (name, values) in map.iter() {
        lines.extend(values.iter().map(|value| (text_of(name).to_owned(), value.as_str().to_owned())));
    }
    let mut properties = Vec::new();
    write_properties(&map, &mut properties);
    (lines, properties)
}

fn text_of(name: &HeaderName) -> &str {
    name.as_ref()
}

fn write_property(name: &str, value: &str, out: &mut Vec<u8>) {
    if value.len() > TEXT_BYTES_MAX || name.len() > TEXT_BYTES_MAX {
        return;
    }
    match (name, plain(value)) {
        ("mqtt-payload-format", _) => write_message_property(out, MessageProperty::IsText(value == "utf-8")),
        ("mqtt-message-expiry", _) => {
            if let Ok(seconds) = value.parse() {
                write_message_property(out, MessageProperty::Expiry(seconds));
            }
        }
        ("mqtt-content-type", Some(kind)) => write_message_property(out, MessageProperty::ContentType(&kind)),
        // MQTT 5.0 [MQTT-3.3.2-14]
        ("mqtt-response-topic", Some(topic)) if !topic.contains(['+', '#']) => {
            write_message_property(out, MessageProperty::ResponseTopic(&topic));
        }
        ("mqtt-correlation-data", _) => {
            if let Ok(data) = STANDARD.decode(value) {
                write_message_property(out, MessageProperty::CorrelationData(&data));
            }
        }
        (name, value) => {
            let (name, value) = match name.strip_prefix(USER) {
                Some(name) => (plain(name), value),
                None if name.starts_with("Nats-") || name.starts_with("mqtt-") => return,
                None => (plain(name).and(Some(name.to_owned())), value),
            };
            if let (Some(name), Some(value)) = (name, value) {
                write_message_property(out, MessageProperty::User(&name, &value));
            }
        }
    }
}

/// A text of a device as a header's value: blanks at its ends would be lost on the way.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    escape(&mut out, text, |i, byte| match byte {
        b' ' => i != 0 && i != last,
        b'%' => false,
        byte => byte.is_ascii_graphic(),
    });
    out
}

/// The text that [`escaped`] was given; none where it is no text that MQTT can say.
fn plain(escaped: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(escaped.len());
    unescape(escaped, &mut bytes)?;
    // MQTT 5.0 [MQTT-1.5.4-2]
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0') && text.len() <= TEXT_BYTES_MAX)
}

const OURS: &str = "tollgate-";
const USER: &str = "mqtt-user-";

/// MQTT 5.0 §1.5.4.
const TEXT_BYTES_MAX: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ProtocolVersion, Publish, next_frame, parse_publish, write_publish};

    fn bytes(properties: &[MessageProperty<'_>], retain: bool, qos: QoS) -> Vec<u8> {
        let mut encoded = Vec::new();
        properties.iter().for_each(|property| write_message_property(&mut encoded, *property));
        let (dup, topic, packet_id, payload) = (false, "t", 1, b"".as_slice());
        let publish = Publish { dup, qos, retain, topic, packet_id, properties: &[&encoded], payload };
        let mut bytes = Vec::new();
        write_publish(&mut bytes, ProtocolVersion::V5_0, &publish);
        bytes
    }

    fn headers(properties: &[MessageProperty<'_>], retain: bool, qos: QoS) -> Headers {
        let bytes = bytes(properties, retain, qos);
        let frame = next_frame(&bytes, 1 << 20).expect("well-formed").expect("whole");
        Headers::of(&parse_publish(frame, ProtocolVersion::V5_0).expect("a PUBLISH"), "TELEMETRY")
    }

    fn shown(map: &HeaderMap) -> Vec<String> {
        let mut all: Vec<_> = map
            .iter()
            .flat_map(|(name, values)| values.iter().map(|value| format!("{}: {}", text_of(name), value.as_str())))
            .collect();
        all.sort();
        all
    }

    use MessageProperty::{ContentType, CorrelationData, Expiry, IsText, ResponseTopic, User};

    #[test]
    fn a_message_is_described_by_its_headers() {
        let all = [
            IsText(true),
            Expiry(60),
            ContentType("text/plain"),
            ResponseTopic("devices/a/answers"),
            CorrelationData(b"\0\xff"),
            User("colour", "red"),
            User("colour", "blue"),
            User("tollgate-device", "pump-17"),
            User("tollgate-id", "edge-1-f00d-hub-0-0000000000000001"),
        ];
        let headers = headers(&all, true, QoS::AtLeastOnce);
        assert_eq!(headers.device.as_deref(), Some("pump-17"));
        assert_eq!(
            shown(&headers.map),
            [
                "Nats-Expected-Stream: TELEMETRY",
                "Nats-Msg-Id: edge-1-f00d-hub-0-0000000000000001",
                "mqtt-content-type: text/plain",
                "mqtt-correlation-data: AP8=",
                "mqtt-message-expiry: 60",
                "mqtt-payload-format: utf-8",
                "mqtt-response-topic: devices/a/answers",
                "mqtt-retain: true",
                "mqtt-user-colour: blue",
                "mqtt-user-colour: red",
                "tollgate-device: pump-17",
                "tollgate-id: edge-1-f00d-hub-0-0000000000000001",
            ]
        );
    }

    #[test]
    fn no_device_can_say_what_the_server_obeys_or_break_a_line() {
        let evil = [
            User("Nats-Rollup", "all"),
            User("Nats-Msg-Id", "1"),
            User("a: b\r\nNats-Rollup: all\r\nc", "x\r\nNats-Rollup: all"),
            User("", ""),
            User("größe", " ü%\t"),
        ];
        assert_eq!(
            shown(&headers(&evil, false, QoS::AtMostOnce).map),
            [
                "mqtt-user-: ",
                "mqtt-user-Nats-Msg-Id: 1",
                "mqtt-user-Nats-Rollup: all",
                "mqtt-user-a%3A%20b%0D%0ANats-Rollup%3A%20all%0D%0Ac: x%0D%0ANats-Rollup: all",
                "mqtt-user-gr%C3%B6%C3%9Fe: %20%C3%BC%25%09",
            ]
        );
    }

    #[test]
    fn what_a_device_said_comes_back_the_same() {
        let all = [
            IsText(true),
            Expiry(60),
            ContentType(" text\r\n"),
            ResponseTopic("a b"),
            CorrelationData(b"\0\xff"),
            User("Nats-Rollup", "50 %"),
            User("größe", " "),
        ];
        let mut properties = Vec::new();
        write_properties(&headers(&all, false, QoS::AtMostOnce).map, &mut properties);
        let mut expected = Vec::new();
        for i in [2, 4, 1, 0, 3, 5, 6] {
            write_message_property(&mut expected, all[i]);
        }
        assert_eq!(properties, expected);
    }

    #[test]
    fn a_header_of_another_program_is_a_user_property_and_the_servers_own_is_none() {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("Nats-Sequence", "7"),
            ("mqtt-unknown", "x"),
            ("mqtt-message-expiry", "soon"),
            ("mqtt-response-topic", "a/#"),
            ("mqtt-correlation-data", "?"),
            ("mqtt-user-bad%", "x"),
            ("mqtt-user-nul", "%00"),
            ("mqtt-user-latin", "%FF"),
            ("Priority", "high"),
        ] {
            map.append(name, value);
        }
        map.append("Long", "x".repeat(TEXT_BYTES_MAX + 1));
        let (mut properties, mut expected) = (Vec::new(), Vec::new());
        write_properties(&map, &mut properties);
        write_message_property(&mut expected, User("Priority", "high"));
        assert_eq!(properties, expected);
    }
}
