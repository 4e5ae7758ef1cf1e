//! PUBLISH (MQTT 5.0 §3.3), borrowed: the hot path.

use std::fmt;

use super::{
    Frame, PacketError, ProtocolVersion, QoS,
    frame::{varint_len, write_varint},
    property::{Property, check_response_topic, read_properties, read_property_block, set},
    wire::{Reader, put_binary, put_u16},
};

/// A PUBLISH as it stands in the read buffer. The topic is bytes: whether it is a topic name is checked by whoever uses it.
#[derive(Clone, Copy)]
pub struct PublishRef<'a> {
    /// DUP: the sender may have sent it before.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// The topic name as sent; empty where a topic alias stands for it.
    pub topic: &'a [u8],
    /// 0 for QoS 0.
    pub packet_id: u16,
    /// 5.0: the properties as sent, without their length. Every one was checked.
    pub properties: &'a [u8],
    /// 5.0: 0 is possible here and never valid [MQTT-3.3.2-8].
    pub topic_alias: Option<u16>,
    /// The application message.
    pub payload: &'a [u8],
    /// 5.0: how many user properties there are.
    pub user_properties: u32,
    /// 5.0: Message Expiry Interval, in seconds.
    pub message_expiry: Option<u32>,
    /// 5.0: a subscription identifier is there, which only a server may send [MQTT-3.3.4-6].
    pub has_subscription_id: bool,
    /// 5.0: a string of the properties holds what a receiver may refuse (§1.5.4).
    pub has_control_characters: bool,
    forwardable_as_is: bool,
}

impl PublishRef<'_> {
    /// Appends the properties that may be forwarded: all but the topic alias and subscription identifiers, which belong
    /// to one connection, and user properties whose name begins with `tollgate-`, which are ours to set.
    #[inline]
    pub fn forwardable_properties(&self, out: &mut Vec<u8>) {
        if self.forwardable_as_is {
            out.extend_from_slice(self.properties);
        } else {
            self.filtered_properties(out);
        }
    }

    /// Whether [`forwardable_properties`](Self::forwardable_properties) are [`properties`](Self::properties) byte for byte.
    #[inline]
    pub fn is_forwardable_as_is(&self) -> bool {
        self.forwardable_as_is
    }

    /// Calls `each` with every subscription identifier: of which subscriptions a server sends this copy.
    pub fn subscription_ids(&self, mut each: impl FnMut(u32)) {
        if self.has_subscription_id {
            self.each_property(|property, _| {
                if let Property::SubscriptionId(id) = property {
                    each(*id);
                }
            });
        }
    }

    /// Appends the properties that reach a subscriber as they are: all that may be forwarded but the Message Expiry
    /// Interval, which becomes shorter while the message waits [MQTT-3.3.2-6].
    pub fn deliverable_properties(&self, out: &mut Vec<u8>) {
        if self.forwardable_as_is && self.message_expiry.is_none() {
            return out.extend_from_slice(self.properties);
        }
        self.each_property(|property, raw| {
            if is_forwardable(property) && !matches!(property, Property::MessageExpiry(_)) {
                out.extend_from_slice(raw);
            }
        });
    }

    /// Whether it has this user property.
    pub fn has_user_property(&self, name: &str, value: &str) -> bool {
        let mut found = false;
        if self.user_properties > 0 {
            self.each_property(|property, _| found |= *property == Property::User(name, value));
        }
        found
    }

    #[cold]
    fn filtered_properties(&self, out: &mut Vec<u8>) {
        self.each_property(|property, raw| {
            if is_forwardable(property) {
                out.extend_from_slice(raw);
            }
        });
    }

    fn each_property(&self, mut each: impl FnMut(&Property<'_>, &[u8])) {
        read_property_block(self.properties, PUBLISH_PROPERTIES, |property, raw| {
            each(&property, raw);
            Ok(())
        })
        .expect("invariant: parse_publish has read them");
    }
}

/// Lengths only: topic and payload are the device's.
impl fmt::Debug for PublishRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishRef")
            .field("dup", &self.dup)
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("packet_id", &self.packet_id)
            .field("topic_alias", &self.topic_alias)
            .field("topic_bytes", &self.topic.len())
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// Parses a PUBLISH.
///
/// # Errors
/// Malformed: QoS 3 [MQTT-3.3.1-4], DUP with QoS 0 [MQTT-3.3.1-2], packet identifier 0 [MQTT-2.2.1-3], a property that is
/// none of PUBLISH. Protocol error: a property twice, a response topic that is empty or has a wildcard [MQTT-3.3.2-14].
#[inline]
pub fn parse_publish(frame: Frame<'_>, version: ProtocolVersion) -> Result<PublishRef<'_>, PacketError> {
    let first = frame.first();
    let qos = QoS::from_bits((first >> 1) & 3).ok_or(PacketError::Malformed("QoS 3"))?;
    let dup = first & DUP != 0;
    if dup && qos == QoS::AtMostOnce {
        return Err(PacketError::Malformed("DUP with QoS 0"));
    }
    let mut reader = Reader::new(frame.body());
    let topic = reader.binary()?;
    let packet_id = if qos == QoS::AtMostOnce { 0 } else { reader.packet_id()? };
    let mut publish = PublishRef {
        dup,
        qos,
        retain: first & RETAIN != 0,
        topic,
        packet_id,
        properties: &[],
        topic_alias: None,
        payload: &[],
        user_properties: 0,
        message_expiry: None,
        has_subscription_id: false,
        has_control_characters: false,
        forwardable_as_is: true,
    };
    if version == ProtocolVersion::V5_0 {
        if reader.rest().first() == Some(&0) {
            reader.take(1)?;
        } else {
            read_publish_properties(&mut reader, &mut publish)?;
        }
    }
    publish.payload = reader.rest();
    Ok(publish)
}

fn read_publish_properties<'a>(reader: &mut Reader<'a>, publish: &mut PublishRef<'a>) -> Result<(), PacketError> {
    let before = *reader;
    read_properties(reader, PUBLISH_PROPERTIES, |property, _| {
        match property {
            Property::TopicAlias(alias) => publish.topic_alias = Some(alias),
            Property::SubscriptionId(_) => publish.has_subscription_id = true,
            Property::User(..) => publish.user_properties += 1,
            Property::ResponseTopic(topic) => check_response_topic(topic)?,
            Property::MessageExpiry(seconds) => publish.message_expiry = Some(seconds),
            _ => {}
        }
        publish.has_control_characters |= property.has_control_characters();
        publish.forwardable_as_is &= is_forwardable(&property);
        Ok(())
    })?;
    let mut block = Reader::new(reader.taken_since(before));
    block.varint()?;
    publish.properties = block.rest();
    Ok(())
}

fn is_forwardable(property: &Property<'_>) -> bool {
    match property {
        Property::TopicAlias(_) | Property::SubscriptionId(_) => false,
        Property::User(name, _) => !name.starts_with(OUR_PROPERTIES),
        _ => true,
    }
}

/// Properties of a PUBLISH that differ from subscriber to subscriber, encoded.
#[derive(Clone, Default, Debug)]
pub struct DeliveryProperties(Vec<u8>);

impl DeliveryProperties {
    /// Adds the identifier of a subscription that the message is for [MQTT-3.3.4-3].
    pub fn subscription_id(&mut self, id: u32) {
        Property::SubscriptionId(id).write(&mut self.0);
    }

    /// Adds what is left of the Message Expiry Interval.
    pub fn message_expiry(&mut self, seconds: u32) {
        Property::MessageExpiry(seconds).write(&mut self.0);
    }

    /// Adds the number that stands for the topic on this connection.
    pub fn topic_alias(&mut self, alias: u16) {
        Property::TopicAlias(alias).write(&mut self.0);
    }

    /// The encoded properties.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A PUBLISH to be written.
#[derive(Clone, Copy)]
pub struct Publish<'a> {
    /// DUP.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// A topic name, at most 65,535 bytes.
    pub topic: &'a str,
    /// Not written for QoS 0.
    pub packet_id: u16,
    /// 5.0: encoded properties, in any number of pieces; not written for 3.1.1.
    pub properties: &'a [&'a [u8]],
    /// The application message.
    pub payload: &'a [u8],
}

impl Publish<'_> {
    /// Bytes that [`write_publish`] appends.
    #[inline]
    pub fn encoded_len(&self, version: ProtocolVersion) -> usize {
        let body = self.body_len(version);
        1 + varint_len(body as u32) + body
    }

    #[inline]
    fn body_len(&self, version: ProtocolVersion) -> usize {
        let packet_id = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        let properties = if version == ProtocolVersion::V5_0 {
            let len = self.properties_len();
            varint_len(len as u32) + len
        } else {
            0
        };
        2 + self.topic.len() + packet_id + properties + self.payload.len()
    }

    #[inline]
    fn properties_len(&self) -> usize {
        self.properties.iter().map(|piece| piece.len()).sum()
    }
}

/// Appends a PUBLISH. Answers where in `out` its packet identifier stands (QoS 1 and 2), so that it can be rewritten in place.
#[inline]
pub fn write_publish(out: &mut Vec<u8>, version: ProtocolVersion, publish: &Publish<'_>) -> usize {
    let body = publish.body_len(version);
    out.reserve(5 + body);
    let flags = u8::from(publish.retain) | (publish.qos as u8) << 1 | if publish.dup { DUP } else { 0 };
    out.push(0x30 | flags);
    write_varint(out, body as u32);
    put_binary(out, publish.topic.as_bytes());
    let packet_id_at = out.len();
    if publish.qos != QoS::AtMostOnce {
        put_u16(out, publish.packet_id);
    }
    if version == ProtocolVersion::V5_0 {
        write_varint(out, publish.properties_len() as u32);
        for piece in publish.properties {
            out.extend_from_slice(piece);
        }
    }
    out.extend_from_slice(publish.payload);
    packet_id_at
}

const DUP: u8 = 0x08;
const RETAIN: u8 = 0x01;
const OUR_PROPERTIES: &str = "tollgate-";
pub(super) const PUBLISH_PROPERTIES: u64 = set(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26]);
