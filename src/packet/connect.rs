//! CONNECT (MQTT 5.0 §3.1, MQTT 3.1.1 §3.1).

use std::fmt;

use zeroize::Zeroizing;

use super::{
    Frame, PacketError, ProtocolVersion, QoS,
    property::{Property, check_response_topic, read_properties, set},
    wire::{Reader, put_binary, put_packet, put_sized, put_u16},
};
use crate::topic::TopicName;

/// A CONNECT, owned: the buffer it came in holds a token and is wanted back.
#[derive(Clone, Debug)]
pub struct Connect {
    /// Which MQTT.
    pub version: ProtocolVersion,
    /// May be empty; what is acceptable is the gate's to say.
    pub client_id: String,
    /// It was empty, and the server has filled it in.
    pub client_id_assigned: bool,
    /// Clean Start; 3.1.1: Clean Session.
    pub clean_start: bool,
    /// Seconds; 0: none.
    pub keep_alive: u16,
    /// User name.
    pub user_name: Option<String>,
    /// The token, as a rule.
    pub password: Option<Password>,
    /// Will.
    pub will: Option<Will>,
    /// 5.0: seconds, `u32::MAX`: for ever. 3.1.1: 0.
    pub session_expiry: u32,
    /// 5.0: how many QoS 1 and 2 messages the client takes unacknowledged; 65,535 where it says nothing.
    pub receive_maximum: u16,
    /// 5.0: bytes of the largest packet the client takes.
    pub maximum_packet_size: Option<u32>,
    /// 5.0: topic aliases the client takes.
    pub topic_alias_maximum: u16,
    /// 5.0: whether the client wants reason strings.
    pub problem_information: ProblemInformation,
    /// 5.0: Authentication Method.
    pub authentication_method: Option<String>,
    /// 5.0: Authentication Data.
    pub authentication_data: Option<Password>,
}

impl Connect {
    /// A CONNECT that asks for nothing but a clean session.
    pub fn new(version: ProtocolVersion, client_id: &str) -> Self {
        Self {
            version,
            client_id: client_id.to_owned(),
            client_id_assigned: false,
            clean_start: true,
            keep_alive: 0,
            user_name: None,
            password: None,
            will: None,
            session_expiry: 0,
            receive_maximum: u16::MAX,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            problem_information: ProblemInformation::Requested,
            authentication_method: None,
            authentication_data: None,
        }
    }

    /// The client id that the server chose (MQTT 5.0 [MQTT-3.1.3-7]).
    pub fn assigned_client_id(&self) -> Option<&str> {
        self.client_id_assigned.then_some(self.client_id.as_str())
    }
}

/// Request Problem Information (MQTT 5.0 §3.1.2.11.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProblemInformation {
    /// Reason strings are welcome: the default.
    Requested,
    /// The client wants none.
    Declined,
}

/// A password or authentication data: a token. Never printed, wiped when dropped.
#[derive(Clone)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Takes a copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The secret itself.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// What is to be published when the device is gone without DISCONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Will {
    /// A valid topic name.
    pub topic: String,
    /// QoS.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// The application message.
    pub payload: Vec<u8>,
    /// 5.0: Will Delay Interval, in seconds.
    pub delay: u32,
    /// 5.0: the encoded properties of the message, without the delay.
    pub properties: Vec<u8>,
}

/// Without its payload, which is the device's.
impl fmt::Debug for Will {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Will")
            .field("topic", &self.topic)
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// In which version the sender of a CONNECT would understand a refusal, also where [`parse_connect`] fails; `None`: in
/// none, the connection is closed without a word.
pub fn connect_answer_version(frame: Frame<'_>) -> Option<ProtocolVersion> {
    let mut reader = Reader::new(frame.body());
    let name = reader.binary().ok()?;
    let level = reader.u8().ok()?;
    match name {
        // Bridges set the high bit of the level and fall back when they are refused.
        b"MQTT" if level & 0x7F >= 5 => Some(ProtocolVersion::V5_0),
        b"MQTT" | b"MQIsdp" => Some(ProtocolVersion::V3_1_1),
        _ => None,
    }
}

/// Parses a CONNECT.
///
/// # Errors
/// [`PacketError::UnsupportedVersion`]; malformed by any clause of §3.1, among them a reserved flag [MQTT-3.1.2-3] and, in 3.1.1,
/// a password without a user name [MQTT-3.1.2-22]; [`PacketError::TopicInvalid`] for the will's topic.
pub fn parse_connect(frame: Frame<'_>) -> Result<Connect, PacketError> {
    let mut reader = Reader::new(frame.body());
    let name = reader.binary()?;
    let level = reader.u8()?;
    let version = match (name, level) {
        (b"MQTT", 4) => ProtocolVersion::V3_1_1,
        (b"MQTT", 5) => ProtocolVersion::V5_0,
        // MQTT 5.0 [MQTT-3.1.2-2]
        (b"MQTT" | b"MQIsdp", _) => return Err(PacketError::UnsupportedVersion),
        // MQTT 5.0 [MQTT-3.1.2-1]
        _ => return Err(PacketError::Malformed("a protocol name other than MQTT")),
    };
    let flags = Flags::parse(reader.u8()?, version)?;
    let mut connect = Connect::new(version, "");
    connect.clean_start = flags.clean_start;
    connect.keep_alive = reader.u16()?;
    if version == ProtocolVersion::V5_0 {
        read_connect_properties(&mut reader, &mut connect)?;
    }
    connect.client_id = reader.text()?.to_owned();
    if let Some((qos, retain)) = flags.will {
        connect.will = Some(read_will(&mut reader, version, qos, retain)?);
    }
    if flags.user_name {
        connect.user_name = Some(reader.text()?.to_owned());
    }
    if flags.password {
        connect.password = Some(Password::new(reader.binary()?));
    }
    reader.finish()?;
    Ok(connect)
}

/// Appends a CONNECT.
pub fn write_connect(out: &mut Vec<u8>, connect: &Connect) {
    put_packet(out, 0x10, |out| {
        put_binary(out, b"MQTT");
        out.push(if connect.version == ProtocolVersion::V5_0 { 5 } else { 4 });
        out.push(Flags::of(connect).bits());
        put_u16(out, connect.keep_alive);
        if connect.version == ProtocolVersion::V5_0 {
            put_sized(out, |out| write_connect_properties(out, connect));
        }
        put_binary(out, connect.client_id.as_bytes());
        if let Some(will) = &connect.will {
            if connect.version == ProtocolVersion::V5_0 {
                put_sized(out, |out| {
                    if will.delay > 0 {
                        Property::WillDelay(will.delay).write(out);
                    }
                    out.extend_from_slice(&will.properties);
                });
            }
            put_binary(out, will.topic.as_bytes());
            put_binary(out, &will.payload);
        }
        if let Some(user_name) = &connect.user_name {
            put_binary(out, user_name.as_bytes());
        }
        if let Some(password) = &connect.password {
            put_binary(out, password.as_bytes());
        }
    });
}

fn read_connect_properties(reader: &mut Reader<'_>, connect: &mut Connect) -> Result<(), PacketError> {
    let mut user_properties = 0;
    read_properties(reader, CONNECT_PROPERTIES, |property, _| {
        match property {
            Property::SessionExpiry(seconds) => connect.session_expiry = seconds,
            Property::ReceiveMaximum(n) => connect.receive_maximum = n,
            Property::MaximumPacketSize(n) => connect.maximum_packet_size = Some(n),
            Property::TopicAliasMaximum(n) => connect.topic_alias_maximum = n,
            Property::RequestProblemInformation(false) => connect.problem_information = ProblemInformation::Declined,
            Property::AuthenticationMethod(method) => connect.authentication_method = Some(method.to_owned()),
            Property::AuthenticationData(data) => connect.authentication_data = Some(Password::new(data)),
            Property::User(..) => user_properties += 1,
            _ => {}
        }
        Ok(())
    })?;
    if user_properties > USER_PROPERTIES_MAX {
        return Err(PacketError::TooLarge("more than 100 user properties"));
    }
    // MQTT 5.0 §3.1.2.11.10
    if connect.authentication_data.is_some() && connect.authentication_method.is_none() {
        return Err(PacketError::Protocol("authentication data without a method"));
    }
    Ok(())
}

fn write_connect_properties(out: &mut Vec<u8>, connect: &Connect) {
    if connect.session_expiry > 0 {
        Property::SessionExpiry(connect.session_expiry).write(out);
    }
    if connect.receive_maximum < u16::MAX {
        Property::ReceiveMaximum(connect.receive_maximum).write(out);
    }
    if let Some(n) = connect.maximum_packet_size {
        Property::MaximumPacketSize(n).write(out);
    }
    if connect.topic_alias_maximum > 0 {
        Property::TopicAliasMaximum(connect.topic_alias_maximum).write(out);
    }
    if connect.problem_information == ProblemInformation::Declined {
        Property::RequestProblemInformation(false).write(out);
    }
    if let Some(method) = &connect.authentication_method {
        Property::AuthenticationMethod(method).write(out);
    }
    if let Some(data) = &connect.authentication_data {
        Property::AuthenticationData(data.as_bytes()).write(out);
    }
}

fn read_will(reader: &mut Reader<'_>, version: ProtocolVersion, qos: QoS, retain: bool) -> Result<Will, PacketError> {
    let (mut delay, mut properties, mut user_properties) = (0, vec![], 0);
    if version == ProtocolVersion::V5_0 {
        read_properties(reader, WILL_PROPERTIES, |property, raw| {
            match property {
                Property::WillDelay(seconds) => delay = seconds,
                Property::User(name, _) => {
                    user_properties += 1;
                    // As of any message: these names are ours to set.
                    if !name.starts_with("tollgate-") {
                        properties.extend_from_slice(raw);
                    }
                }
                Property::ResponseTopic(topic) => {
                    check_response_topic(topic)?;
                    properties.extend_from_slice(raw);
                }
                _ => properties.extend_from_slice(raw),
            }
            // MQTT 5.0 §1.5.4
            if property.has_control_characters() {
                return Err(PacketError::Malformed("a control character in a property of the will"));
            }
            Ok(())
        })?;
    }
    if user_properties > USER_PROPERTIES_MAX {
        return Err(PacketError::TooLarge("more than 100 user properties"));
    }
    let topic = TopicName::new(reader.text()?.as_bytes()).map_err(|_| PacketError::TopicInvalid)?;
    let payload = reader.binary()?.to_vec();
    Ok(Will { topic: topic.as_str().to_owned(), qos, retain, payload, delay, properties })
}

struct Flags {
    clean_start: bool,
    will: Option<(QoS, bool)>,
    user_name: bool,
    password: bool,
}

impl Flags {
    fn parse(bits: u8, version: ProtocolVersion) -> Result<Self, PacketError> {
        // MQTT 5.0 [MQTT-3.1.2-3]
        if bits & 0x01 != 0 {
            return Err(PacketError::Malformed("the reserved flag of CONNECT"));
        }
        // MQTT 5.0 [MQTT-3.1.2-12]
        let qos = QoS::from_bits((bits >> 3) & 3).ok_or(PacketError::Malformed("a will of QoS 3"))?;
        let (will, retain) = (bits & 0x04 != 0, bits & 0x20 != 0);
        // MQTT 5.0 [MQTT-3.1.2-11], [MQTT-3.1.2-13]
        if !will && (qos != QoS::AtMostOnce || retain) {
            return Err(PacketError::Malformed("QoS or RETAIN of a will that is not there"));
        }
        let (user_name, password) = (bits & 0x80 != 0, bits & 0x40 != 0);
        // MQTT 3.1.1 [MQTT-3.1.2-22]
        if password && !user_name && version == ProtocolVersion::V3_1_1 {
            return Err(PacketError::Malformed("a password without a user name"));
        }
        Ok(Self { clean_start: bits & 0x02 != 0, will: will.then_some((qos, retain)), user_name, password })
    }

    fn of(connect: &Connect) -> Self {
        Self {
            clean_start: connect.clean_start,
            will: connect.will.as_ref().map(|will| (will.qos, will.retain)),
            user_name: connect.user_name.is_some(),
            password: connect.password.is_some(),
        }
    }

    fn bits(&self) -> u8 {
        let will = self.will.map_or(0, |(qos, retain)| 0x04 | (qos as u8) << 3 | u8::from(retain) << 5);
        u8::from(self.clean_start) << 1 | will | u8::from(self.user_name) << 7 | u8::from(self.password) << 6
    }
}

/// Far more than an honest client sends; a flood of them is cut short.
const USER_PROPERTIES_MAX: u32 = 100;
const CONNECT_PROPERTIES: u64 = set(&[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27]);
const WILL_PROPERTIES: u64 = set(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26]);
