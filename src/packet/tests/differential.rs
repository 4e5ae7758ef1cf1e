//! rmqtt-codec reads what we write, we read what it writes, and where both take the same damaged bytes they agree.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rmqtt_codec::{types, v3, v5};
use std::num::NonZeroU16;
use tokio_util::codec::{Decoder, Encoder};

use super::*;

fn theirs(bytes: &[u8], version: ProtocolVersion) -> Option<types::Publish> {
    let mut buf = BytesMut::from(bytes);
    match version {
        V3 => match v3::Codec::new(0).decode(&mut buf).ok()?? {
            (v3::Packet::Publish(publish), _) => Some(*publish),
            _ => None,
        },
        V5 => match v5::Codec::new(0, 0).decode(&mut buf).ok()?? {
            (v5::Packet::Publish(publish), _) => Some(*publish),
            _ => None,
        },
    }
}

fn agree(ours: &PublishRef<'_>, theirs: &types::Publish) {
    assert_eq!((ours.dup, ours.retain, ours.qos as u8), (theirs.dup, theirs.retain, theirs.qos.value()));
    assert_eq!(ours.topic, theirs.topic.as_bytes().as_ref());
    assert_eq!(ours.packet_id, theirs.packet_id.map_or(0, NonZeroU16::get));
    assert_eq!(ours.payload, theirs.payload);
    if let Some(properties) = &theirs.properties {
        assert_eq!(ours.topic_alias, properties.topic_alias.map(NonZeroU16::get));
        assert_eq!(ours.user_properties as usize, properties.user_properties.len());
        assert_eq!(ours.has_subscription_id, !properties.subscription_ids.is_empty());
    }
}

prop_compose! {
    fn publish()(
        version in prop::sample::select(vec![V3, V5]), qos in 0u8..=2, (dup, retain) in any::<(bool, bool)>(), topic in "[a-zé/]{1,140}",
        packet_id in 1u16.., payload in prop::collection::vec(any::<u8>(), 0..200),
        alias in prop::option::of(1u16..), user in prop::collection::vec(("[a-z-]{0,20}", "[a-zß]{0,20}"), 0..4),
        response in prop::option::of("[a-z/]{1,20}"), format in any::<bool>(),
    ) -> (ProtocolVersion, types::Publish) {
        let properties = v5::PublishProperties {
            topic_alias: alias.and_then(NonZeroU16::new),
            user_properties: user.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
            response_topic: response.map(Into::into),
            is_utf8_payload: format,
            ..Default::default()
        };
        let publish = types::Publish {
            dup: dup && qos > 0,
            retain,
            qos: types::QoS::try_from(qos).expect("0 to 2"),
            topic: topic.into(),
            packet_id: NonZeroU16::new(packet_id).filter(|_| qos > 0),
            payload: Bytes::from(payload),
            properties: (version == V5).then_some(properties),
        };
        (version, publish)
    }
}

fn encoded(version: ProtocolVersion, publish: &types::Publish) -> BytesMut {
    let mut bytes = BytesMut::new();
    let publish = Box::new(publish.clone());
    match version {
        V3 => v3::Codec::new(0).encode(v3::Packet::Publish(publish), &mut bytes).expect("encodes"),
        V5 => v5::Codec::new(0, 0).encode(v5::Packet::Publish(publish), &mut bytes).expect("encodes"),
    }
    bytes
}

/// Whether it takes the bytes as one packet.
fn takes(bytes: &[u8], version: ProtocolVersion) -> bool {
    let mut buf = BytesMut::from(bytes);
    let taken = match version {
        V3 => v3::Codec::new(0).decode(&mut buf).is_ok_and(|packet| packet.is_some()),
        V5 => v5::Codec::new(0, 0).decode(&mut buf).is_ok_and(|packet| packet.is_some()),
    };
    taken && buf.is_empty()
}

#[test]
fn it_takes_every_answer_of_ours() {
    let check = |version, write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = vec![];
        write(&mut bytes);
        assert!(takes(&bytes, version), "{version:?} {bytes:x?}");
    };
    for version in [V3, V5] {
        check(version, &|out| write_puback(out, version, 7, 0x87));
        check(version, &|out| write_pubrec(out, version, 7, 0x87));
        check(version, &|out| write_pubrel(out, version, 7, 0x92));
        check(version, &|out| write_pubcomp(out, version, 7, 0));
        check(version, &|out| write_suback(out, version, 7, &[0, 1, 0x80]));
        check(version, &|out| write_unsuback(out, version, 7, &[0, 0x11]));
        check(version, &|out| write_connack(out, version, &Connack::new(if version == V5 { 0x87 } else { 5 })));
        check(version, &|out| write_disconnect(out, version, 0, None, None));
        check(version, &|out| write_pingreq(out));
        check(version, &|out| write_pingresp(out));
    }
    check(V5, &|out| write_puback_with_reason(out, 7, 0x87, "401003 topic_out_of_scope"));
    check(V5, &|out| write_disconnect(out, V5, 0xA0, Some("expired"), None));
    check(V5, &|out| write_disconnect(out, V5, 0x98, None, None));
    check(V5, &|out| write_disconnect(out, V5, 0x9C, Some("draining"), Some("edge-2.example:8883")));
}

proptest! {
    #[test]
    fn it_reads_our_connack(connack in round_trip::connack()) {
        let mut bytes = vec![];
        write_connack(&mut bytes, V5, &connack);
        let Ok(Some((v5::Packet::ConnectAck(read), _))) = v5::Codec::new(0, 0).decode(&mut BytesMut::from(&bytes[..])) else {
            panic!("it takes {bytes:x?}")
        };
        prop_assert_eq!(read.session_present, connack.session_present);
        prop_assert_eq!(read.receive_max.get(), connack.receive_maximum);
        prop_assert_eq!(read.max_qos.value(), connack.qos_max);
        prop_assert_eq!(read.retain_available, connack.retain_available);
        prop_assert_eq!(read.max_packet_size, connack.maximum_packet_size);
        prop_assert_eq!(read.topic_alias_max, connack.topic_alias_maximum);
        prop_assert_eq!(read.server_keepalive_sec, connack.server_keep_alive);
        prop_assert_eq!(read.wildcard_subscription_available, connack.wildcard_available);
        prop_assert_eq!(read.subscription_identifiers_available, connack.subscription_id_available);
        prop_assert_eq!(read.shared_subscription_available, connack.shared_available);
        prop_assert_eq!(read.session_expiry_interval_secs, connack.session_expiry);
        prop_assert_eq!(read.reason_string.map(|text| text.to_string()), connack.reason_string);
    }

    #[test]
    fn it_reads_our_connect(connect in round_trip::connect()) {
        // It refuses an empty client id of a session that is to be kept: we leave that to the gate.
        prop_assume!(connect.clean_start || !connect.client_id.is_empty());
        let mut bytes = vec![];
        write_connect(&mut bytes, &connect);
        let mut buf = BytesMut::from(&bytes[..]);
        let password = connect.password.as_ref().map(|p| p.as_bytes().to_vec());
        let will = connect.will.as_ref().map(|w| (w.topic.clone(), w.payload.clone(), w.retain, w.qos as u8));
        match connect.version {
            V3 => {
                let Ok(Some((v3::Packet::Connect(read), _))) = v3::Codec::new(0).decode(&mut buf) else { panic!("{bytes:x?}") };
                prop_assert_eq!((&*read.client_id, read.clean_session, read.keep_alive), (&*connect.client_id, connect.clean_start, connect.keep_alive));
                prop_assert_eq!(read.username.map(|name| name.to_string()), connect.user_name);
                prop_assert_eq!(read.password.map(|p| p.to_vec()), password);
                prop_assert_eq!(read.last_will.map(|w| (w.topic.to_string(), w.message.to_vec(), w.retain, w.qos.value())), will);
            }
            V5 => {
                let Ok(Some((v5::Packet::Connect(read), _))) = v5::Codec::new(0, 0).decode(&mut buf) else { panic!("{bytes:x?}") };
                prop_assert_eq!((&*read.client_id, read.clean_start, read.keep_alive), (&*connect.client_id, connect.clean_start, connect.keep_alive));
                prop_assert_eq!(read.username.map(|name| name.to_string()), connect.user_name);
                prop_assert_eq!(read.password.map(|p| p.to_vec()), password);
                prop_assert_eq!(read.last_will.map(|w| (w.topic.to_string(), w.message.to_vec(), w.retain, w.qos.value())), will);
                prop_assert_eq!(read.session_expiry_interval_secs, connect.session_expiry);
                prop_assert_eq!(read.receive_max.map_or(u16::MAX, NonZeroU16::get), connect.receive_maximum);
                prop_assert_eq!(read.topic_alias_max, connect.topic_alias_maximum);
                prop_assert_eq!(read.max_packet_size.map(|n| n.get()), connect.maximum_packet_size);
                prop_assert_eq!(read.auth_method.map(|m| m.to_string()), connect.authentication_method);
            }
        }
    }

    #[test]
    fn we_read_what_it_writes_and_it_reads_what_we_write((version, publish) in publish()) {
        let bytes = encoded(version, &publish);
        let ours = parse_publish(frame(&bytes), version).expect("a good PUBLISH");
        agree(&ours, &publish);
        let mut written = vec![];
        write_publish(&mut written, version, &Publish {
            dup: ours.dup,
            qos: ours.qos,
            retain: ours.retain,
            topic: &publish.topic,
            packet_id: ours.packet_id,
            properties: &[ours.properties],
            payload: ours.payload,
        });
        prop_assert_eq!(&written[..], &bytes[..]);
        prop_assert_eq!(theirs(&written, version), Some(publish));
    }

    #[test]
    fn where_both_take_damaged_bytes_they_agree((version, publish) in publish(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encoded(version, &publish).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let Ok(Some(frame)) = next_frame(&bytes, usize::MAX) else { return Ok(()) };
        if frame.packet_type() == PacketType::Publish
            && let (Ok(ours), Some(theirs)) = (parse_publish(frame, version), theirs(frame.bytes(), version))
        {
            agree(&ours, &theirs);
        }
    }

    /// It is the laxer of the two. An empty filter it refuses with the packet, we in the SUBACK.
    #[test]
    fn what_we_take_from_a_device_it_takes_too(
        first in prop::sample::select(vec![0x40u8, 0x82, 0xA2, 0xE0]), version in prop::sample::select(vec![V3, V5]),
        body in prop::collection::vec(prop::sample::select(vec![0u8, 0, 0, 1, 1, 2, 3, 4, 0x26, 0x61, 0x87]), 0..16),
    ) {
        let bytes = framed(first, &body);
        let ours = match first {
            0x40 => parse_puback(frame(&bytes), version).is_ok(),
            0x82 => parse_subscribe(frame(&bytes), version).is_ok_and(|s| s.requests.iter().all(|r| r.filter.is_ok())),
            0xA2 => parse_unsubscribe(frame(&bytes), version).is_ok_and(|u| u.filters.iter().all(Result::is_ok)),
            _ => parse_disconnect(frame(&bytes), version).is_ok_and(|d| matches!(d.reason, 0x00 | 0x04 | 0x87)),
        };
        prop_assert!(!ours || takes(&bytes, version), "we take {bytes:x?}");
    }
}
