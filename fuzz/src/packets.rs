//! The codec. What was read and is written again, is read again as the same.

use tollgate::packet::{
    Frame, PacketError, PacketType, ProtocolVersion, Publish, next_frame, parse_auth, parse_connack, parse_connect,
    parse_disconnect, parse_empty, parse_puback, parse_pubcomp, parse_publish, parse_pubrec, parse_pubrel,
    parse_suback, parse_subscribe, parse_unsuback, parse_unsubscribe, write_connack, write_connect, write_puback,
    write_pubcomp, write_publish, write_pubrec, write_pubrel, write_suback, write_subscribe, write_unsubscribe,
};

use super::bytes::{choice, version};

/// What a device sends: the first byte chooses the version.
pub fn packets(data: &[u8]) {
    each_frame(data, |frame, version| match frame.packet_type() {
        PacketType::Connect => connect(frame),
        PacketType::Publish => publish(frame, version),
        PacketType::Subscribe => subscribe(frame, version),
        PacketType::Unsubscribe => unsubscribe(frame, version),
        PacketType::Disconnect => drop(parse_disconnect(frame, version)),
        PacketType::Auth => drop(parse_auth(frame)),
        PacketType::Pingreq => assert_eq!(parse_empty(frame).is_ok(), frame.body().is_empty()),
        _ => {}
    });
}

/// What a hub sends, and acknowledgements of either end.
pub fn answers(data: &[u8]) {
    each_frame(data, |frame, version| match frame.packet_type() {
        PacketType::Connack => {
            if let Ok(connack) = parse_connack(frame, version) {
                let written = written(|out| write_connack(out, version, &connack));
                assert_eq!(parse_connack(whole(&written), version), Ok(connack));
            }
        }
        PacketType::Suback => {
            if let Ok(suback) = parse_suback(frame, version) {
                let written = written(|out| write_suback(out, version, suback.packet_id, &suback.codes));
                assert_eq!(parse_suback(whole(&written), version), Ok(suback));
            }
        }
        PacketType::Unsuback => drop(parse_unsuback(frame, version)),
        PacketType::Puback => acknowledgement(frame, version, parse_puback, write_puback),
        PacketType::Pubrec => acknowledgement(frame, version, parse_pubrec, write_pubrec),
        PacketType::Pubrel => acknowledgement(frame, version, parse_pubrel, write_pubrel),
        PacketType::Pubcomp => acknowledgement(frame, version, parse_pubcomp, write_pubcomp),
        PacketType::Pingresp => assert_eq!(parse_empty(frame).is_ok(), frame.body().is_empty()),
        _ => {}
    });
}

fn each_frame(data: &[u8], mut each: impl FnMut(Frame<'_>, ProtocolVersion)) {
    let (chosen, mut rest) = choice(data);
    // A limit that is met from time to time.
    while let Ok(Some(frame)) = next_frame(rest, 4096) {
        assert!(frame.bytes().len() <= 4096 && rest.starts_with(frame.bytes()));
        // No part of it is a packet already.
        let all_but_one = &frame.bytes()[..frame.bytes().len() - 1];
        assert_eq!(next_frame(all_but_one, 4096).map(|part| part.is_some()), Ok(false));
        each(frame, version(chosen));
        rest = &rest[frame.bytes().len()..];
    }
}

fn connect(frame: Frame<'_>) {
    let Ok(read) = parse_connect(frame) else { return };
    let bytes = written(|out| write_connect(out, &read));
    let again = parse_connect(whole(&bytes)).expect("what was written is read");
    assert_eq!(format!("{again:?}"), format!("{read:?}"));
    let secret = |connect: &tollgate::packet::Connect| connect.password.as_ref().map(|p| p.as_bytes().to_vec());
    assert_eq!(secret(&again), secret(&read));
    assert_eq!(again.will, read.will);
    // Written again it is the same bytes: there is one way to say it.
    assert_eq!(written(|out| write_connect(out, &again)), bytes);
}

fn publish(frame: Frame<'_>, version: ProtocolVersion) {
    let Ok(read) = parse_publish(frame, version) else { return };
    let mut forwarded = Vec::new();
    read.forwardable_properties(&mut forwarded);
    assert!(forwarded.len() <= read.properties.len());
    let Ok(topic) = std::str::from_utf8(read.topic) else { return };
    let bytes = written(|out| {
        let publish = Publish {
            dup: read.dup,
            qos: read.qos,
            retain: read.retain,
            topic,
            packet_id: read.packet_id,
            properties: &[&forwarded],
            payload: read.payload,
        };
        write_publish(out, version, &publish);
        assert_eq!(out.len(), publish.encoded_len(version));
    });
    let again = parse_publish(whole(&bytes), version).expect("what was written is read");
    assert_eq!((again.topic, again.payload, again.packet_id), (read.topic, read.payload, read.packet_id));
    assert_eq!((again.qos, again.dup, again.retain), (read.qos, read.dup, read.retain));
    // What may be forwarded may be forwarded as it is.
    assert!(again.is_forwardable_as_is() && again.properties == forwarded);
    assert!(again.topic_alias.is_none() && !again.has_subscription_id);
    if read.is_forwardable_as_is() {
        assert_eq!(forwarded, read.properties);
    }
}

fn subscribe(frame: Frame<'_>, version: ProtocolVersion) {
    let Ok(mut read) = parse_subscribe(frame, version) else { return };
    assert!(!read.requests.is_empty());
    read.requests.retain(|request| request.filter.is_ok());
    if read.requests.is_empty() {
        return;
    }
    let bytes = written(|out| write_subscribe(out, version, &read));
    assert_eq!(parse_subscribe(whole(&bytes), version), Ok(read));
}

fn unsubscribe(frame: Frame<'_>, version: ProtocolVersion) {
    let Ok(read) = parse_unsubscribe(frame, version) else { return };
    let good: Vec<_> = read.filters.iter().flatten().cloned().collect();
    if good.is_empty() {
        return;
    }
    let bytes = written(|out| write_unsubscribe(out, version, read.packet_id, &good));
    let again = parse_unsubscribe(whole(&bytes), version).expect("what was written is read");
    assert_eq!(again.filters.into_iter().flatten().collect::<Vec<_>>(), good);
}

fn acknowledgement(
    frame: Frame<'_>,
    version: ProtocolVersion,
    parse: fn(Frame<'_>, ProtocolVersion) -> Result<tollgate::packet::Acknowledgement, PacketError>,
    write: fn(&mut Vec<u8>, ProtocolVersion, u16, u8),
) {
    if let Ok(read) = parse(frame, version) {
        assert_ne!(read.packet_id, 0);
        let bytes = written(|out| write(out, version, read.packet_id, read.reason));
        assert_eq!(parse(whole(&bytes), version), Ok(read));
    }
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn whole(bytes: &[u8]) -> Frame<'_> {
    let frame = next_frame(bytes, usize::MAX).expect("a packet").expect("a whole one");
    assert_eq!(frame.bytes().len(), bytes.len());
    frame
}
