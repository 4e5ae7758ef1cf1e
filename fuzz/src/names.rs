//! Who somebody says that he is: device ids, client ids, user names as Azure and Google write them; and what topics and
//! properties are called in NATS.

use tollgate::{
    gate::{Profile, check_user_name, device_of_client_id},
    id::DeviceId,
};
#[cfg(feature = "nats")]
use tollgate::{
    packet::{MessageProperty, PacketType, ProtocolVersion, message_properties, next_frame, parse_publish},
    topic::{TopicFilter, TopicName},
    upstream::{header_lines, subject_of, subjects_of, topic_of},
};

/// A client id and a user name, a line each. A device is named by one client id alone, and no user name that passes for it
/// passes for another.
pub fn device_names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (client_id, user_name) = text.split_once('\n').unwrap_or((text, ""));
    let hosts = ["edge.example".to_owned(), "hub.example".to_owned()];
    for profile in [Profile::Strict, Profile::Azure, Profile::Google] {
        let Ok(device) = device_of_client_id(client_id, profile, &[]) else { continue };
        let id = device.as_str();
        match profile {
            Profile::Google => assert_eq!(client_id.rsplit_once("/devices/").map(|(_, id)| id), Some(id)),
            Profile::Strict | Profile::Azure => assert_eq!(client_id, id),
        }
        assert_eq!(DeviceId::try_from(id).as_ref(), Ok(&device));
        assert!(!id.contains(['+', '#', '*', '>', '$', '?', '\0', ' ']) && id.len() <= 257, "{id:?}");
        let parts: Vec<&str> = id.split('/').collect();
        assert!(parts.len() <= 2 && parts.iter().all(|part| !part.is_empty()), "{id:?}");
        assert_eq!((device.device(), device.module()), (parts[0], parts.get(1).copied()));
        if profile == Profile::Google
            || user_name.is_empty()
            || check_user_name(user_name, &device, &hosts, profile).is_err()
        {
            continue;
        }
        // It says the id as it is, or behind one of our names.
        let named = user_name == id || {
            let (host, rest) = user_name.split_once('/').expect("more than the id");
            hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host)) && rest.starts_with(id)
        };
        assert!(named, "{user_name:?} passes for {id:?}");
        for other in [format!("{}x", device.device()), format!("{}/x", device.device()), format!("x{id}")] {
            if let Ok(other) = DeviceId::try_from(other.as_str())
                && other != device
            {
                let passes = check_user_name(user_name, &other, &hosts, profile).is_ok();
                assert!(!passes, "{user_name:?} passes for {id:?} and for {other:?}");
            }
        }
    }
}

/// A topic, a filter and a subject, a line each. Topics and subjects are one to one, no subject means anything to the server, and
/// where a filter matches a topic one of its subjects does.
#[cfg(feature = "nats")]
pub fn nats_subjects(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (topic, filter, subject) = (TopicName::new(next()), TopicFilter::new(next()), std::str::from_utf8(next()));
    if let Ok(topic) = topic {
        let subject = subject_of(topic.as_str());
        assert!(subject.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>$\"\\".contains(&byte)), "{subject:?}");
        assert!(subject.split('.').all(|token| !token.is_empty()) && !subject.starts_with('_'), "{subject:?}");
        assert_eq!(topic_of(&subject).as_deref(), Some(topic.as_str()));
        if let Ok(filter) = &filter {
            let matched = subjects_of(filter).iter().filter(|pattern| takes(pattern, &subject)).count();
            // A filter of MQTT that begins with a wildcard is not for topics that begin with $; there the gateway's own routes
            // say what is whose, and a subject never begins so.
            assert!(!filter.matches(topic) || matched == 1, "{filter} matches {topic:?}, its subjects {matched} times");
        }
    }
    if let Ok(subject) = subject
        && let Some(topic) = topic_of(subject)
    {
        assert!(TopicName::new(topic.as_bytes()).is_ok());
        assert_eq!(subject_of(&topic), subject);
    }
}

/// As the server matches.
#[cfg(feature = "nats")]
fn takes(pattern: &str, subject: &str) -> bool {
    let (mut parts, mut tokens) = (pattern.split('.'), subject.split('.'));
    loop {
        match (parts.next(), tokens.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(part), Some(token)) if part == token => {}
            _ => return false,
        }
    }
}

/// A PUBLISH of 5.0. What it says of itself comes back from its headers as it was; no line can be broken, and none that the
/// server obeys is a device's.
#[cfg(feature = "nats")]
pub fn nats_headers(data: &[u8]) {
    let Ok(Some(frame)) = next_frame(data, usize::MAX) else { return };
    if frame.packet_type() != PacketType::Publish {
        return;
    }
    let Ok(publish) = parse_publish(frame, ProtocolVersion::V5_0) else { return };
    // Names that begin so are the gateway's, which stamps none but plain ones; it takes a device's away before.
    let mut is_stamped = true;
    message_properties(publish.properties, |property| {
        if let MessageProperty::User(name, _) = property {
            is_stamped &=
                !name.starts_with("tollgate-") || name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        }
    });
    if !is_stamped {
        return;
    }
    let (lines, properties) = header_lines(&publish, "STREAM");
    for (name, value) in &lines {
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'), "{name:?}");
        assert!(!value.contains(['\r', '\n', '\0']), "{value:?}");
        let is_ours = name.starts_with("mqtt-") || name.starts_with("tollgate-");
        let is_servers = ["Nats-Msg-Id", "Nats-Expected-Stream"].contains(&name.as_str());
        assert!(is_ours || is_servers, "{name}: {value}");
    }
    // In whatever order: a map of headers has none.
    let said = |block: &[u8]| {
        let mut said = Vec::new();
        message_properties(block, |property| match property {
            // Only the gateway says these, and RETAIN is no property of MQTT.
            MessageProperty::User("mqtt-retain", _) => {}
            other => said.push(format!("{other:?}")),
        });
        said.sort();
        said
    };
    let expected: Vec<String> = said(publish.properties).into_iter().filter(|text| text.len() < 20_000).collect();
    let came: Vec<String> = said(&properties).into_iter().filter(|text| text.len() < 20_000).collect();
    assert_eq!(came, expected);
}
