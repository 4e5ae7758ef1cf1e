//! Properties (MQTT 5.0 §2.2.2): one table for all packets.

use super::{
    PacketError,
    frame::write_varint,
    wire::{Reader, put_binary, put_u16},
};
use crate::topic::has_control_characters;

/// One property with its value, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Property<'a> {
    PayloadFormat(bool),
    MessageExpiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionId(u32),
    SessionExpiry(u32),
    AssignedClientId(&'a str),
    ServerKeepAlive(u16),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    RequestProblemInformation(bool),
    WillDelay(u32),
    RequestResponseInformation(bool),
    ResponseInformation(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQos(bool),
    RetainAvailable(bool),
    User(&'a str, &'a str),
    MaximumPacketSize(u32),
    WildcardAvailable(bool),
    SubscriptionIdAvailable(bool),
    SharedAvailable(bool),
}

/// Reads a block of properties with its length. `each` is given every property and the bytes it stood in.
///
/// # Errors
/// Malformed for one that is not in `allowed` (a set of identifiers, see [`set`]), a protocol error for one that comes twice.
pub(super) fn read_properties<'a>(
    reader: &mut Reader<'a>,
    allowed: u64,
    each: impl FnMut(Property<'a>, &'a [u8]) -> Result<(), PacketError>,
) -> Result<(), PacketError> {
    let len = reader.varint()?;
    read_property_block(reader.take(len as usize)?, allowed, each)
}

/// As [`read_properties`], without the length.
pub(super) fn read_property_block<'a>(
    block: &'a [u8],
    allowed: u64,
    mut each: impl FnMut(Property<'a>, &'a [u8]) -> Result<(), PacketError>,
) -> Result<(), PacketError> {
    let mut block = Reader::new(block);
    let mut seen = 0u64;
    while !block.is_empty() {
        let before = block;
        // An identifier is a variable byte integer, all that exist fit one byte.
        let id = block.u8()?;
        if id > 0x3F || allowed & (1 << id) == 0 {
            return Err(PacketError::Malformed("a property that does not belong to the packet"));
        }
        if seen & !REPEATABLE & (1 << id) != 0 {
            return Err(PacketError::Protocol("a property that comes twice"));
        }
        seen |= 1 << id;
        let property = Property::read(id, &mut block)?;
        each(property, block.taken_since(before))?;
    }
    Ok(())
}

/// Where the value of a Message Expiry Interval stands in encoded properties, and the value.
pub fn message_expiry_at(properties: &[u8]) -> Option<(usize, u32)> {
    let mut block = Reader::new(properties);
    while !block.is_empty() {
        let at = properties.len() - block.rest().len();
        let id = block.u8().ok()?;
        if let Property::MessageExpiry(seconds) = Property::read(id, &mut block).ok()? {
            return Some((at + 1, seconds));
        }
    }
    None
}

impl<'a> Property<'a> {
    fn read(id: u8, r: &mut Reader<'a>) -> Result<Self, PacketError> {
        Ok(match id {
            0x01 => Self::PayloadFormat(flag(r)?),
            0x02 => Self::MessageExpiry(r.u32()?),
            0x03 => Self::ContentType(r.text()?),
            0x08 => Self::ResponseTopic(r.text()?),
            0x09 => Self::CorrelationData(r.binary()?),
            0x0B => Self::SubscriptionId(non_zero(r.varint()?)?),
            0x11 => Self::SessionExpiry(r.u32()?),
            0x12 => Self::AssignedClientId(r.text()?),
            0x13 => Self::ServerKeepAlive(r.u16()?),
            0x15 => Self::AuthenticationMethod(r.text()?),
            0x16 => Self::AuthenticationData(r.binary()?),
            0x17 => Self::RequestProblemInformation(flag(r)?),
            0x18 => Self::WillDelay(r.u32()?),
            0x19 => Self::RequestResponseInformation(flag(r)?),
            0x1A => Self::ResponseInformation(r.text()?),
            0x1C => Self::ServerReference(r.text()?),
            0x1F => Self::ReasonString(r.text()?),
            0x21 => Self::ReceiveMaximum(non_zero(r.u16()?)?),
            0x22 => Self::TopicAliasMaximum(r.u16()?),
            // 0 is not permitted [MQTT-3.3.2-8], but it has an answer of its own: the session's.
            0x23 => Self::TopicAlias(r.u16()?),
            0x24 => Self::MaximumQos(flag(r)?),
            0x25 => Self::RetainAvailable(flag(r)?),
            0x26 => Self::User(r.text()?, r.text()?),
            0x27 => Self::MaximumPacketSize(non_zero(r.u32()?)?),
            0x28 => Self::WildcardAvailable(flag(r)?),
            0x29 => Self::SubscriptionIdAvailable(flag(r)?),
            0x2A => Self::SharedAvailable(flag(r)?),
            _ => return Err(PacketError::Malformed("an unknown property")),
        })
    }

    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.push(self.id());
        match self {
            Self::PayloadFormat(v)
            | Self::RequestProblemInformation(v)
            | Self::RequestResponseInformation(v)
            | Self::MaximumQos(v)
            | Self::RetainAvailable(v)
            | Self::WildcardAvailable(v)
            | Self::SubscriptionIdAvailable(v)
            | Self::SharedAvailable(v) => out.push(u8::from(v)),
            Self::ServerKeepAlive(v) | Self::ReceiveMaximum(v) | Self::TopicAliasMaximum(v) | Self::TopicAlias(v) => {
                put_u16(out, v);
            }
            Self::MessageExpiry(v) | Self::SessionExpiry(v) | Self::WillDelay(v) | Self::MaximumPacketSize(v) => {
                out.extend_from_slice(&v.to_be_bytes());
            }
            Self::SubscriptionId(v) => write_varint(out, v),
            Self::ContentType(v)
            | Self::ResponseTopic(v)
            | Self::AssignedClientId(v)
            | Self::AuthenticationMethod(v)
            | Self::ResponseInformation(v)
            | Self::ServerReference(v)
            | Self::ReasonString(v) => put_binary(out, v.as_bytes()),
            Self::CorrelationData(v) | Self::AuthenticationData(v) => put_binary(out, v),
            Self::User(name, value) => {
                put_binary(out, name.as_bytes());
                put_binary(out, value.as_bytes());
            }
        }
    }

    /// In one of the strings of a message, which are forwarded.
    pub(super) fn has_control_characters(&self) -> bool {
        match self {
            Self::ContentType(text) | Self::ResponseTopic(text) => has_control_characters(text),
            Self::User(name, value) => has_control_characters(name) || has_control_characters(value),
            _ => false,
        }
    }

    const fn id(&self) -> u8 {
        match self {
            Self::PayloadFormat(_) => 0x01,
            Self::MessageExpiry(_) => 0x02,
            Self::ContentType(_) => 0x03,
            Self::ResponseTopic(_) => 0x08,
            Self::CorrelationData(_) => 0x09,
            Self::SubscriptionId(_) => 0x0B,
            Self::SessionExpiry(_) => 0x11,
            Self::AssignedClientId(_) => 0x12,
            Self::ServerKeepAlive(_) => 0x13,
            Self::AuthenticationMethod(_) => 0x15,
            Self::AuthenticationData(_) => 0x16,
            Self::RequestProblemInformation(_) => 0x17,
            Self::WillDelay(_) => 0x18,
            Self::RequestResponseInformation(_) => 0x19,
            Self::ResponseInformation(_) => 0x1A,
            Self::ServerReference(_) => 0x1C,
            Self::ReasonString(_) => 0x1F,
            Self::ReceiveMaximum(_) => 0x21,
            Self::TopicAliasMaximum(_) => 0x22,
            Self::TopicAlias(_) => 0x23,
            Self::MaximumQos(_) => 0x24,
            Self::RetainAvailable(_) => 0x25,
            Self::User(..) => 0x26,
            Self::MaximumPacketSize(_) => 0x27,
            Self::WildcardAvailable(_) => 0x28,
            Self::SubscriptionIdAvailable(_) => 0x29,
            Self::SharedAvailable(_) => 0x2A,
        }
    }
}

/// A response topic is a topic name [MQTT-3.3.2-14], [MQTT-4.7.3-1].
pub(super) fn check_response_topic(topic: &str) -> Result<(), PacketError> {
    if topic.is_empty() || topic.contains(['+', '#']) {
        return Err(PacketError::Protocol("a response topic that is no topic name"));
    }
    Ok(())
}

/// The set of these identifiers.
pub(super) const fn set(ids: &[u8]) -> u64 {
    let mut set = 0;
    let mut i = 0;
    while i < ids.len() {
        set |= 1 << ids[i];
        i += 1;
    }
    set
}

fn flag(r: &mut Reader<'_>) -> Result<bool, PacketError> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(PacketError::Protocol("a property that is neither 0 nor 1")),
    }
}

fn non_zero<T: Default + PartialEq>(value: T) -> Result<T, PacketError> {
    if value == T::default() { Err(PacketError::Protocol("a property that may not be 0")) } else { Ok(value) }
}

/// Subscription identifiers of a PUBLISH and user properties may come many times (§3.3.2.3.7, §3.3.2.3.8). In
/// SUBSCRIBE a subscription identifier may not: its reader counts.
const REPEATABLE: u64 = set(&[0x0B, 0x26]);
