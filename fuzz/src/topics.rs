//! Topic names, filters, and the property bag of a telemetry topic.

use tollgate::{
    packet::{ProtocolVersion, Publish, QoS, next_frame, parse_publish, write_publish},
    route::bag::{read_bag, write_bag},
    topic::{TopicFilter, TopicName},
};

/// Two filters and a name, a line each. A filter that covers another matches all that the other does.
pub fn topics(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (a, b, name) = (TopicFilter::new(next()), TopicFilter::new(next()), TopicName::new(next()));
    for filter in a.iter().chain(&b) {
        assert!(filter.covers(filter));
        assert_eq!(TopicFilter::try_from(filter.as_str()).as_ref(), Ok(filter));
        if let Ok(name) = TopicName::new(filter.as_str().as_bytes()) {
            assert!(filter.matches(name), "without a wildcard it matches itself");
        }
    }
    if let Ok(name) = name {
        assert!(!name.as_str().contains(['+', '#', '\0']) && !name.as_str().is_empty());
        assert!(TopicFilter::new(name.as_str().as_bytes()).is_ok_and(|filter| filter.matches(name)));
    }
    if let (Ok(a), Ok(b), Ok(name)) = (a, b, name) {
        assert!(!(a.covers(&b) && b.matches(name)) || a.matches(name), "{a} covers {b}, which matches {name}");
    }
}

/// A topic, and what its bag becomes: a topic and properties that can be sent.
pub fn bag(data: &[u8]) {
    let Ok(topic) = TopicName::new(data) else { return };
    let (mut properties, mut buffer) = (Vec::new(), String::new());
    let Ok(sent) = read_bag(topic, &mut properties, &mut buffer) else { return };
    assert!(sent.as_str().len() <= topic.as_str().len());
    let mut bytes = Vec::new();
    let publish = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: sent.as_str(),
        packet_id: 0,
        properties: &[&properties],
        payload: b"",
    };
    write_publish(&mut bytes, ProtocolVersion::V5_0, &publish);
    let frame = next_frame(&bytes, usize::MAX).expect("a packet").expect("a whole one");
    let read = parse_publish(frame, ProtocolVersion::V5_0).expect("properties that can be sent");
    assert!(!read.has_control_characters, "{data:x?}");
    // What is clean stays as it is.
    let (mut again, mut buffer) = (Vec::new(), String::new());
    assert_eq!(read_bag(sent, &mut again, &mut buffer).ok(), Some(sent));
    assert_eq!(again, properties);
    // And back: a topic for a device of 3.1.1.
    let mut buffer = String::new();
    if let Some(back) = write_bag(topic, &properties, &mut buffer) {
        assert!(TopicName::new(back.as_str().as_bytes()).is_ok());
    }
}
