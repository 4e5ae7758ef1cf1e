//! CONNACK (MQTT 5.0 §3.2).

use super::{
    Frame, PacketError, ProtocolVersion,
    property::{Property, read_properties, set},
    wire::{Reader, put_packet, put_sized},
};

/// A CONNACK. What 5.0 leaves out when it is the default is the default here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connack {
    /// Whether the server has kept a session.
    pub session_present: bool,
    /// 0: accepted. A return code of 3.1.1 or a reason code of 5.0.
    pub code: u8,
    /// 5.0: seconds, where it differs from what the client asked.
    pub session_expiry: Option<u32>,
    /// 5.0: how many QoS 1 and 2 messages the server takes unacknowledged.
    pub receive_maximum: u16,
    /// 5.0: the highest QoS of a PUBLISH, 0 to 2.
    pub qos_max: u8,
    /// 5.0: whether RETAIN may be set.
    pub retain_available: bool,
    /// 5.0: bytes of the largest packet the server takes.
    pub maximum_packet_size: Option<u32>,
    /// 5.0: the Authentication Method of the CONNECT [MQTT-4.12.0-5].
    pub authentication_method: Option<String>,
    /// 5.0: the client id that the server chose.
    pub assigned_client_id: Option<String>,
    /// 5.0: topic aliases the server takes.
    pub topic_alias_maximum: u16,
    /// 5.0: the sentence beside the code.
    pub reason_string: Option<String>,
    /// 5.0: wildcards in filters.
    pub wildcard_available: bool,
    /// 5.0: subscription identifiers.
    pub subscription_id_available: bool,
    /// 5.0: shared subscriptions.
    pub shared_available: bool,
    /// 5.0: seconds, where the server sets another keep alive.
    pub server_keep_alive: Option<u16>,
}

impl Connack {
    /// One that says nothing but its code.
    pub fn new(code: u8) -> Self {
        Self {
            session_present: false,
            code,
            session_expiry: None,
            receive_maximum: u16::MAX,
            qos_max: 2,
            retain_available: true,
            maximum_packet_size: None,
            authentication_method: None,
            assigned_client_id: None,
            topic_alias_maximum: 0,
            reason_string: None,
            wildcard_available: true,
            subscription_id_available: true,
            shared_available: true,
            server_keep_alive: None,
        }
    }
}

/// Appends a CONNACK.
pub fn write_connack(out: &mut Vec<u8>, version: ProtocolVersion, connack: &Connack) {
    put_packet(out, 0x20, |out| {
        out.push(u8::from(connack.session_present));
        out.push(connack.code);
        if version == ProtocolVersion::V5_0 {
            put_sized(out, |out| write_connack_properties(out, connack));
        }
    });
}

/// Parses a CONNACK.
///
/// # Errors
/// Malformed by any clause of §3.2, among them a session that is present beside a refusal [MQTT-3.2.2-6].
pub fn parse_connack(frame: Frame<'_>, version: ProtocolVersion) -> Result<Connack, PacketError> {
    let mut reader = Reader::new(frame.body());
    let flags = reader.u8()?;
    let mut connack = Connack::new(reader.u8()?);
    connack.session_present = flags & 0x01 != 0;
    // MQTT 5.0 [MQTT-3.2.2-1]
    if flags & 0xFE != 0 {
        return Err(PacketError::Malformed("a reserved flag of CONNACK"));
    }
    if connack.session_present && connack.code != 0 {
        return Err(PacketError::Protocol("a session that is present beside a refusal"));
    }
    if version == ProtocolVersion::V5_0 {
        read_connack_properties(&mut reader, &mut connack)?;
    }
    reader.finish()?;
    Ok(connack)
}

fn read_connack_properties(reader: &mut Reader<'_>, connack: &mut Connack) -> Result<(), PacketError> {
    read_properties(reader, CONNACK_PROPERTIES, |property, _| {
        match property {
            Property::SessionExpiry(seconds) => connack.session_expiry = Some(seconds),
            Property::ReceiveMaximum(n) => connack.receive_maximum = n,
            Property::MaximumQos(qos) => connack.qos_max = u8::from(qos),
            Property::RetainAvailable(yes) => connack.retain_available = yes,
            Property::MaximumPacketSize(n) => connack.maximum_packet_size = Some(n),
            Property::AuthenticationMethod(method) => connack.authentication_method = Some(method.to_owned()),
            Property::AssignedClientId(id) => connack.assigned_client_id = Some(id.to_owned()),
            Property::TopicAliasMaximum(n) => connack.topic_alias_maximum = n,
            Property::ReasonString(text) => connack.reason_string = Some(text.to_owned()),
            Property::WildcardAvailable(yes) => connack.wildcard_available = yes,
            Property::SubscriptionIdAvailable(yes) => connack.subscription_id_available = yes,
            Property::SharedAvailable(yes) => connack.shared_available = yes,
            Property::ServerKeepAlive(seconds) => connack.server_keep_alive = Some(seconds),
            _ => {}
        }
        Ok(())
    })
}

fn write_connack_properties(out: &mut Vec<u8>, connack: &Connack) {
    let mut put = |property: Property<'_>| property.write(out);
    if let Some(seconds) = connack.session_expiry {
        put(Property::SessionExpiry(seconds));
    }
    if connack.receive_maximum < u16::MAX {
        put(Property::ReceiveMaximum(connack.receive_maximum));
    }
    if connack.qos_max < 2 {
        put(Property::MaximumQos(connack.qos_max == 1));
    }
    if !connack.retain_available {
        put(Property::RetainAvailable(false));
    }
    if let Some(n) = connack.maximum_packet_size {
        put(Property::MaximumPacketSize(n));
    }
    if let Some(method) = &connack.authentication_method {
        put(Property::AuthenticationMethod(method));
    }
    if let Some(id) = &connack.assigned_client_id {
        put(Property::AssignedClientId(id));
    }
    if connack.topic_alias_maximum > 0 {
        put(Property::TopicAliasMaximum(connack.topic_alias_maximum));
    }
    if let Some(text) = &connack.reason_string {
        put(Property::ReasonString(text));
    }
    if !connack.wildcard_available {
        put(Property::WildcardAvailable(false));
    }
    if !connack.subscription_id_available {
        put(Property::SubscriptionIdAvailable(false));
    }
    if !connack.shared_available {
        put(Property::SharedAvailable(false));
    }
    if let Some(seconds) = connack.server_keep_alive {
        put(Property::ServerKeepAlive(seconds));
    }
}

const CONNACK_PROPERTIES: u64 =
    set(&[0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A]);
