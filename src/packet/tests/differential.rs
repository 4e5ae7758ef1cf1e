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

proptest! {
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
        let mut buf = BytesMut::from(&bytes[..]);
        let theirs = match version {
            V3 => v3::Codec::new(0).decode(&mut buf).is_ok_and(|packet| packet.is_some()),
            V5 => v5::Codec::new(0, 0).decode(&mut buf).is_ok_and(|packet| packet.is_some()),
        };
        prop_assert!(!ours || theirs, "we take {bytes:x?}");
    }
}
