//! The property bag of IoT Hub: what a 3.1.1 device of the profile azure says of a message stands behind the topic, as
//! `k=v&k=v` in the encoding of query strings. It goes to the hub as it was sent, byte for byte, and on a hub of MQTT 5.0
//! as user properties as well; what is said there of a command comes back as a bag.

use std::{borrow::Cow, fmt};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{
    packet::{MessageProperty, message_properties, write_message_property},
    topic::{TopicName, has_control_characters},
};

/// Checks the bag of a telemetry topic, and appends it to `properties`, which hold the message's own: user properties by
/// their decoded names, `$.ct` and `$.cid` as content type and correlation data, too, where there are none. Names that say who the
/// device is, are taken out: `topic` comes back without them, in `buffer` then.
///
/// # Errors
/// [`BagError`]: nothing of it may be forwarded.
pub fn read_bag<'t>(
    topic: TopicName<'t>,
    properties: &mut Vec<u8>,
    buffer: &'t mut String,
) -> Result<TopicName<'t>, BagError> {
    let Some((head, bag)) = split_telemetry(topic.as_str()).filter(|(_, bag)| !bag.is_empty()) else {
        return Ok(topic);
    };
    let mut is_clean = true;
    let (mut has_type, mut has_correlation) = (false, false);
    message_properties(properties, |property| match property {
        MessageProperty::ContentType(_) => has_type = true,
        MessageProperty::CorrelationData(_) => has_correlation = true,
        _ => {}
    });
    for (count, entry) in entries(bag).enumerate() {
        let entry = entry?;
        if count >= ENTRIES_MAX {
            return Err(BagError::TooMany);
        }
        if entry.is_reserved() {
            is_clean = false;
            continue;
        }
        let Entry { name, value, .. } = entry;
        write_message_property(properties, MessageProperty::User(&name, &value));
        if name == CONTENT_TYPE && !std::mem::replace(&mut has_type, true) {
            write_message_property(properties, MessageProperty::ContentType(&value));
        }
        if name == CORRELATION_ID && !std::mem::replace(&mut has_correlation, true) {
            write_message_property(properties, MessageProperty::CorrelationData(value.as_bytes()));
        }
    }
    if is_clean {
        return Ok(topic);
    }
    buffer.clear();
    buffer.push_str(head);
    let kept = entries(bag).flatten().filter(|entry| !entry.is_reserved());
    for (n, entry) in kept.enumerate() {
        buffer.push_str(if n == 0 { "" } else { "&" });
        buffer.push_str(entry.text);
    }
    Ok(TopicName::new(buffer.as_bytes()).expect("invariant: parts of a topic name, and & between them"))
}

/// A hub of MQTT 3.1.1 has no place but the topic for what RETAIN becomes.
pub fn with_retain<'t>(topic: &str, buffer: &'t mut String) -> Option<&'t str> {
    let (head, bag) = split_telemetry(topic)?;
    buffer.clear();
    buffer.push_str(topic);
    buffer.push_str(match (head.ends_with('/'), bag.is_empty()) {
        (false, _) => "/",
        (true, true) => "",
        (true, false) => "&",
    });
    buffer.push_str(RETAIN.0);
    buffer.push('=');
    buffer.push_str(RETAIN.1);
    (buffer.len() <= usize::from(u16::MAX)).then_some(buffer)
}

/// The topic of a command with what a hub of MQTT 5.0 said of it in `properties`, for a device that speaks 3.1.1; `None`:
/// as it is.
pub fn write_bag<'t>(topic: TopicName<'_>, properties: &[u8], buffer: &'t mut String) -> Option<TopicName<'t>> {
    let bag = topic.as_str().split_once(COMMANDS).map(|(_, rest)| rest)?;
    let bag = bag.strip_prefix('/').or(bag.is_empty().then_some(""))?;
    buffer.clear();
    buffer.push_str(topic.as_str());
    if !buffer.ends_with('/') && bag.is_empty() {
        buffer.push('/');
    }
    let bare = buffer.len();
    let mut count = entries(bag).count();
    let mut add = |name: &str, value: &str| {
        let has = entries(bag).flatten().any(|entry| entry.name == name);
        if has || is_reserved(name) || count >= ENTRIES_MAX {
            return;
        }
        if count > 0 {
            buffer.push('&');
        }
        count += 1;
        buffer.extend(utf8_percent_encode(name, ENCODED));
        buffer.push('=');
        buffer.extend(utf8_percent_encode(value, ENCODED));
    };
    message_properties(properties, |property| match property {
        MessageProperty::User(name, value) => add(name, value),
        MessageProperty::ContentType(value) => add(CONTENT_TYPE, value),
        MessageProperty::CorrelationData(value) => {
            if let Ok(text) = std::str::from_utf8(value) {
                add(CORRELATION_ID, text);
            }
        }
        _ => {}
    });
    if buffer.len() == bare {
        return None;
    }
    TopicName::new(buffer.as_bytes()).ok()
}

/// Whether a property says who sent a message, or when a gateway took it: a device does not say that itself.
pub fn is_reserved(name: &str) -> bool {
    let begins = |with: &str| name.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    RESERVED.iter().any(|known| name.eq_ignore_ascii_case(known)) || RESERVED_BEGINNINGS.iter().any(|with| begins(with))
}

/// Why a bag is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BagError {
    /// `%` without two hexadecimal digits.
    Escape,
    /// Escapes that are no UTF-8, or a control character.
    Text,
    /// More properties than a message may have.
    TooMany,
}

impl fmt::Display for BagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Escape => "a % without two hexadecimal digits",
            Self::Text => "escapes that are no UTF-8, or a control character",
            Self::TooMany => "more than 100 properties",
        })
    }
}

impl std::error::Error for BagError {}

/// One property: as it was sent, and what it says.
struct Entry<'b> {
    text: &'b str,
    name: Cow<'b, str>,
    value: Cow<'b, str>,
}

impl Entry<'_> {
    /// With question marks before it, too: what stands first would be read without.
    fn is_reserved(&self) -> bool {
        is_reserved(self.name.trim_start_matches('?'))
    }
}

/// A name without `=` has the empty value.
fn entries(bag: &str) -> impl Iterator<Item = Result<Entry<'_>, BagError>> {
    let bag = bag.strip_prefix('?').unwrap_or(bag);
    bag.split('&').filter(|text| !text.is_empty()).map(|text| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        Ok(Entry { text, name: decode(name)?, value: decode(value)? })
    })
}

/// Once: what is escaped twice stays escaped.
fn decode(text: &str) -> Result<Cow<'_, str>, BagError> {
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if !text.split('%').skip(1).all(is_escape) {
        return Err(BagError::Escape);
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| BagError::Text)?;
    if has_control_characters(&decoded) { Err(BagError::Text) } else { Ok(decoded) }
}

/// `devices/{device}[/modules/{module}]/messages/events/{bag}`, split before the bag. Without one, the slash before it
/// may be missing.
fn split_telemetry(topic: &str) -> Option<(&str, &str)> {
    let (who, rest) = topic.strip_prefix("devices/")?.split_once(TELEMETRY)?;
    let mut levels = who.split('/');
    let is_own = match (levels.next(), levels.next(), levels.next(), levels.next()) {
        (Some(device), None, ..) => !device.is_empty(),
        (Some(device), Some("modules"), Some(module), None) => !device.is_empty() && !module.is_empty(),
        _ => false,
    };
    let bag = rest.strip_prefix('/').or(rest.is_empty().then_some(""))?;
    is_own.then(|| topic.split_at(topic.len() - bag.len()))
}

/// What RETAIN becomes: IoT Hub keeps no message.
pub const RETAIN: (&str, &str) = ("mqtt-retain", "true");

const TELEMETRY: &str = "/messages/events";
const COMMANDS: &str = "/messages/devicebound";
/// System properties that have a property of MQTT 5.0.
const CONTENT_TYPE: &str = "$.ct";
const CORRELATION_ID: &str = "$.cid";
/// Device and module as IoT Hub stamps them.
const RESERVED: [&str; 2] = ["$.cdid", "$.cmid"];
/// IoT Hub's stamps, and ours.
const RESERVED_BEGINNINGS: [&str; 2] = ["iothub-connection-", "tollgate-"];
/// As many as the user properties of a PUBLISH.
const ENTRIES_MAX: usize = 100;
/// All but what RFC 3986 §2.3 leaves as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: &str = "devices/d/messages/events/";

    /// The topic, and what the hub is told in properties.
    fn read(topic: &str) -> Result<(String, Vec<String>), BagError> {
        read_beside(topic, &[])
    }

    fn read_beside(topic: &str, own: &[MessageProperty<'_>]) -> Result<(String, Vec<String>), BagError> {
        let (mut block, mut buffer) = (Vec::new(), String::new());
        own.iter().for_each(|property| write_message_property(&mut block, *property));
        let name = TopicName::new(topic.as_bytes()).expect(topic);
        let topic = read_bag(name, &mut block, &mut buffer)?.as_str().to_owned();
        Ok((topic, said(&block)))
    }

    fn said(block: &[u8]) -> Vec<String> {
        let mut said = Vec::new();
        message_properties(block, |property| {
            said.push(match property {
                MessageProperty::User(name, value) => format!("{name}={value}"),
                MessageProperty::ContentType(text) => format!("type {text}"),
                MessageProperty::CorrelationData(data) => format!("correlation {}", String::from_utf8_lossy(data)),
                other => format!("{other:?}"),
            });
        });
        said
    }

    #[test]
    fn a_bag_is_read_once_and_its_topic_stays_byte_for_byte() {
        for (bag, properties) in [
            ("", &[][..]),
            ("a=1&b=2", &["a=1", "b=2"]),
            ("?a=1", &["a=1"]),
            ("alert=yes%2Fno%20%231&%C3%BC=%e6%b8%A9", &["alert=yes/no #1", "ü=温"]),
            ("a=%2525&%2524.cdid=x", &["a=%25", "%24.cdid=x"]),
            ("a&b=&=c&d=e=f", &["a=", "b=", "=c", "d=e=f"]),
            ("a=1&a=2&&", &["a=1", "a=2"]),
            ("%24.mid=m&$.to=%2Fx", &["$.mid=m", "$.to=/x"]),
            ("%24.ct=application%2Fjson", &["$.ct=application/json", "type application/json"]),
            ("$.cid=7&$.cid=8", &["$.cid=7", "correlation 7", "$.cid=8"]),
            ("level/of=a/topic", &["level/of=a/topic"]),
        ] {
            for events in [EVENTS, "devices/d/modules/m/messages/events/"] {
                let topic = format!("{events}{bag}");
                assert_eq!(read(&topic), Ok((topic.clone(), properties.iter().map(|p| (*p).to_owned()).collect())));
            }
        }
        let own = [MessageProperty::ContentType("text/plain"), MessageProperty::CorrelationData(b"own")];
        let (_, said) = read_beside(&format!("{EVENTS}$.ct=x&$.cid=y"), &own).expect("a bag");
        assert_eq!(said, ["type text/plain", "correlation own", "$.ct=x", "$.cid=y"]);
    }

    #[test]
    fn what_says_who_it_is_is_taken_out_however_it_is_written() {
        for (bag, left) in [
            ("$.cdid=other", ""),
            ("a=1&%24.cdid=other&b=%20", "a=1&b=%20"),
            ("$%2ecmid=x&a=1&$.cmid", "a=1"),
            ("$.CDID=x&iothub-connection-device-id=other&IoTHub-Connection-Auth-Method=x&a=1", "a=1"),
            ("?tollgate-device=other&a", "a"),
            ("$.cdid=other&?$.cdid=other&a=1", "a=1"),
        ] {
            let (topic, said) = read(&format!("{EVENTS}{bag}")).expect(bag);
            assert_eq!(topic, format!("{EVENTS}{left}"), "{bag}");
            assert!(!said.iter().any(|property| property.contains("other") || property.contains("=x")), "{said:?}");
        }
    }

    #[test]
    fn what_is_no_bag_is_refused() {
        for (bag, why) in [
            ("a=%", BagError::Escape),
            ("a=%2", BagError::Escape),
            ("a=%zz&b=1", BagError::Escape),
            ("%4=a", BagError::Escape),
            ("a=%ff", BagError::Text),
            ("a=%00", BagError::Text),
            ("a=%0A", BagError::Text),
            ("%ED%A0%80=1", BagError::Text),
            ("a=%EF%BF%BF", BagError::Text),
        ] {
            assert_eq!(read(&format!("{EVENTS}{bag}")), Err(why), "{bag}");
        }
        assert_eq!(read(&format!("{EVENTS}{}", "a=1&".repeat(101))), Err(BagError::TooMany));
        assert_eq!(read(&format!("{EVENTS}{}", "a=1&".repeat(100))).map(|(_, said)| said.len()), Ok(100));
    }

    #[test]
    fn other_topics_have_no_bag() {
        for topic in [
            "devices/d/messages/events",
            "devices/d/messages/eventsx=%zz",
            "devices/d/messages/devicebound/a=%zz",
            "devices/d/x/messages/events/a=%zz",
            "devices/d/modules/m/inputs/a=%zz",
            "devices//messages/events/a=%zz",
            "x/devices/d/messages/events/a=%zz",
        ] {
            assert_eq!(read(topic), Ok((topic.to_owned(), vec![])));
        }
    }

    #[test]
    fn retain_becomes_a_property_of_the_bag_where_there_is_one() {
        let mut buffer = String::new();
        for (topic, there) in [
            ("devices/d/messages/events/", "devices/d/messages/events/mqtt-retain=true"),
            ("devices/d/messages/events", "devices/d/messages/events/mqtt-retain=true"),
            ("devices/d/messages/events/a=1", "devices/d/messages/events/a=1&mqtt-retain=true"),
        ] {
            assert_eq!(with_retain(topic, &mut buffer), Some(there));
        }
        assert_eq!(with_retain("devices/d/iothub/twin/GET/", &mut buffer), None);
        let longest = format!("{EVENTS}{}", "a".repeat(65_500));
        assert_eq!(with_retain(&longest, &mut buffer), None);
    }

    fn written(topic: &str, properties: &[MessageProperty<'_>]) -> Option<String> {
        let (mut block, mut buffer) = (Vec::new(), String::new());
        properties.iter().for_each(|property| write_message_property(&mut block, *property));
        let topic = TopicName::new(topic.as_bytes()).expect(topic);
        write_bag(topic, &block, &mut buffer).map(|topic| topic.as_str().to_owned())
    }

    #[test]
    fn a_command_brings_its_properties_in_the_topic() {
        let all = [
            MessageProperty::User("do it", "a/b+c"),
            MessageProperty::ContentType("text/plain"),
            MessageProperty::CorrelationData(b"7"),
            MessageProperty::User("$.mid", "ü"),
            MessageProperty::User("tollgate-device", "service"),
        ];
        let bag = "do%20it=a%2Fb%2Bc&%24.ct=text%2Fplain&%24.cid=7&%24.mid=%C3%BC";
        for bare in ["devices/d/messages/devicebound", "devices/d/messages/devicebound/"] {
            assert_eq!(written(bare, &all), Some(format!("devices/d/messages/devicebound/{bag}")));
        }
        let has = "devices/d/modules/m/messages/devicebound/%24.mid=own&a";
        assert_eq!(written(has, &all[4..]), None, "it says so itself");
        assert_eq!(written(has, &[MessageProperty::User("b", "1")]), Some(format!("{has}&b=1")));
        assert_eq!(written(has, &[]), None);
        assert_eq!(written(has, &[MessageProperty::CorrelationData(b"\xff")]), None, "bytes have no place in a topic");
        assert_eq!(written("devices/d/messages/devicebounds", &all), None);
        assert_eq!(written("devices/d/iothub/twin/res/200/", &all), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(pairs in prop::collection::vec(("[^\\pC]{0,6}", "[^\\pC]{0,6}"), 0..6)) {
            let mut names = std::collections::HashSet::new();
            let pairs: Vec<_> = pairs.iter().filter(|(name, _)| !is_reserved(name) && names.insert(name)).collect();
            let properties: Vec<_> = pairs.iter().map(|(name, value)| MessageProperty::User(name, value)).collect();
            let written = written("devices/d/messages/devicebound/", &properties);
            let up = written.unwrap_or_default().replace("devicebound", "events");
            let expected: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
            if !expected.is_empty() {
                let (_, said) = read(&up).expect("a bag");
                let users: Vec<_> = said.into_iter().filter(|s| !s.starts_with("type ") && !s.starts_with("correlation ")).collect();
                prop_assert_eq!(users, expected);
            }
        }

        #[test]
        fn nothing_reserved_gets_through(bag in "[a?$%.&=c0-9dmiEe-]{0,40}") {
            if let Ok((topic, said)) = read(&format!("{EVENTS}{bag}")) {
                let again = read(&topic).expect("what is left is a bag");
                prop_assert_eq!(&again.0, &topic);
                prop_assert!(!said.iter().any(|s| is_reserved(s.split('=').next().unwrap_or(""))));
            }
        }
    }
}
