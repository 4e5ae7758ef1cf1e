//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (MQTT 5.0 §3.8 to §3.11).

use super::{
    Frame, PacketError, ProtocolVersion, QoS,
    property::{Property, read_properties, set},
    wire::{Reader, put_binary, put_packet, put_sized, put_u16},
};
use crate::{denial::Denial, topic::TopicFilter};

/// A SUBSCRIBE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subscribe {
    /// To be named in the SUBACK.
    pub packet_id: u16,
    /// 5.0: to be named in every PUBLISH for it.
    pub subscription_id: Option<u32>,
    /// At least one.
    pub requests: Vec<SubscriptionRequest>,
}

/// One filter of a SUBSCRIBE with its options.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscriptionRequest {
    /// What is asked for; or why it can never be granted.
    pub filter: Result<TopicFilter, Denial>,
    /// The highest QoS wanted.
    pub qos: QoS,
    /// 5.0: no message of its own.
    pub no_local: bool,
    /// 5.0: RETAIN stays as the publisher set it.
    pub retain_as_published: bool,
    /// 5.0: 0: retained messages now; 1: only if the subscription is new; 2: none.
    pub retain_handling: u8,
}

impl SubscriptionRequest {
    /// A request without options.
    pub fn new(filter: TopicFilter, qos: QoS) -> Self {
        Self { filter: Ok(filter), qos, no_local: false, retain_as_published: false, retain_handling: 0 }
    }
}

/// An UNSUBSCRIBE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unsubscribe {
    /// To be named in the UNSUBACK.
    pub packet_id: u16,
    /// At least one.
    pub filters: Vec<Result<TopicFilter, Denial>>,
}

/// A SUBACK, or an UNSUBACK of 5.0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suback {
    /// Which SUBSCRIBE or UNSUBSCRIBE is answered.
    pub packet_id: u16,
    /// One for each filter, in order; none in an UNSUBACK of 3.1.1.
    pub codes: Vec<u8>,
}

/// Parses a SUBSCRIBE.
///
/// # Errors
/// Malformed: reserved bits of the options ([MQTT-3.8.3-5], MQTT 3.1.1 [MQTT-3-8.3-4]), a filter that is not UTF-8 or holds U+0000.
/// Protocol error: no filter [MQTT-3.8.3-2], QoS 3, No Local on a shared subscription [MQTT-3.8.3-4]. Too large: more than 1,000 filters.
pub fn parse_subscribe(frame: Frame<'_>, version: ProtocolVersion) -> Result<Subscribe, PacketError> {
    let mut reader = Reader::new(frame.body());
    let mut subscribe = Subscribe { packet_id: reader.packet_id()?, subscription_id: None, requests: vec![] };
    if version == ProtocolVersion::V5_0 {
        read_properties(&mut reader, SUBSCRIBE_PROPERTIES, |property, _| {
            if let Property::SubscriptionId(id) = property
                && subscribe.subscription_id.replace(id).is_some()
            {
                return Err(PacketError::Protocol("a property that comes twice"));
            }
            Ok(())
        })?;
    }
    while !reader.is_empty() {
        let filter = read_filter(&mut reader)?;
        subscribe.requests.push(read_options(filter, reader.u8()?, version)?);
        within_limit(subscribe.requests.len())?;
    }
    if subscribe.requests.is_empty() {
        return Err(PacketError::Protocol("SUBSCRIBE without a filter"));
    }
    Ok(subscribe)
}

/// Parses an UNSUBSCRIBE.
///
/// # Errors
/// As [`parse_subscribe`]; no filter is against [MQTT-3.10.3-2].
pub fn parse_unsubscribe(frame: Frame<'_>, version: ProtocolVersion) -> Result<Unsubscribe, PacketError> {
    let mut reader = Reader::new(frame.body());
    let packet_id = reader.packet_id()?;
    if version == ProtocolVersion::V5_0 {
        read_properties(&mut reader, USER_ONLY, |_, _| Ok(()))?;
    }
    let mut filters = vec![];
    while !reader.is_empty() {
        filters.push(read_filter(&mut reader)?);
        within_limit(filters.len())?;
    }
    if filters.is_empty() {
        return Err(PacketError::Protocol("UNSUBSCRIBE without a filter"));
    }
    Ok(Unsubscribe { packet_id, filters })
}

/// Parses a SUBACK.
///
/// # Errors
/// Malformed: packet identifier 0, no code, in 3.1.1 a code other than 0, 1, 2 and 0x80 [MQTT-3.9.3-2].
pub fn parse_suback(frame: Frame<'_>, version: ProtocolVersion) -> Result<Suback, PacketError> {
    let suback = read_suback(frame, version)?;
    if suback.codes.is_empty() {
        return Err(PacketError::Malformed("SUBACK without a code"));
    }
    if version == ProtocolVersion::V3_1_1 && suback.codes.iter().any(|code| !matches!(code, 0 | 1 | 2 | 0x80)) {
        return Err(PacketError::Malformed("a reserved code of SUBACK"));
    }
    Ok(suback)
}

/// Parses an UNSUBACK.
///
/// # Errors
/// Malformed: packet identifier 0, in 5.0 no code, in 3.1.1 bytes behind the end.
pub fn parse_unsuback(frame: Frame<'_>, version: ProtocolVersion) -> Result<Suback, PacketError> {
    let unsuback = read_suback(frame, version)?;
    if unsuback.codes.is_empty() != (version == ProtocolVersion::V3_1_1) {
        return Err(PacketError::Malformed("UNSUBACK with codes in 3.1.1 or without in 5.0"));
    }
    Ok(unsuback)
}

/// Appends a SUBSCRIBE. Requests that can never be granted are left out.
pub fn write_subscribe(out: &mut Vec<u8>, version: ProtocolVersion, subscribe: &Subscribe) {
    put_packet(out, 0x82, |out| {
        put_u16(out, subscribe.packet_id);
        if version == ProtocolVersion::V5_0 {
            put_sized(out, |out| {
                if let Some(id) = subscribe.subscription_id {
                    Property::SubscriptionId(id).write(out);
                }
            });
        }
        for request in &subscribe.requests {
            let Ok(filter) = &request.filter else { continue };
            put_binary(out, filter.as_str().as_bytes());
            let options = u8::from(request.no_local) << 2
                | u8::from(request.retain_as_published) << 3
                | (request.retain_handling & 3) << 4;
            out.push(request.qos as u8 | if version == ProtocolVersion::V5_0 { options } else { 0 });
        }
    });
}

/// Appends an UNSUBSCRIBE.
pub fn write_unsubscribe<'f>(
    out: &mut Vec<u8>,
    version: ProtocolVersion,
    packet_id: u16,
    filters: impl IntoIterator<Item = &'f TopicFilter>,
) {
    put_packet(out, 0xA2, |out| {
        put_u16(out, packet_id);
        if version == ProtocolVersion::V5_0 {
            out.push(0);
        }
        filters.into_iter().for_each(|filter| put_binary(out, filter.as_str().as_bytes()));
    });
}

/// Appends a SUBACK.
pub fn write_suback(out: &mut Vec<u8>, version: ProtocolVersion, packet_id: u16, codes: &[u8]) {
    write_codes(out, 0x90, version, packet_id, codes);
}

/// Appends an UNSUBACK. 3.1.1 has no codes in it.
pub fn write_unsuback(out: &mut Vec<u8>, version: ProtocolVersion, packet_id: u16, codes: &[u8]) {
    write_codes(out, 0xB0, version, packet_id, if version == ProtocolVersion::V5_0 { codes } else { &[] });
}

fn read_filter(reader: &mut Reader<'_>) -> Result<Result<TopicFilter, Denial>, PacketError> {
    // Not UTF-8 or with U+0000: malformed [MQTT-3.8.3-1], [MQTT-1.5.4-2]. A misplaced wildcard has an answer of its own.
    let text = reader.text()?;
    Ok(match text.split_once('/') {
        Some(("$share", _)) => Err(Denial::SharedSubscriptionNotOffered),
        _ => TopicFilter::new(text.as_bytes()).map_err(|_| Denial::FilterInvalid),
    })
}

fn read_options(
    filter: Result<TopicFilter, Denial>,
    options: u8,
    version: ProtocolVersion,
) -> Result<SubscriptionRequest, PacketError> {
    let reserved = if version == ProtocolVersion::V5_0 { 0xC0 } else { 0xFC };
    // MQTT 5.0 [MQTT-3.8.3-5], MQTT 3.1.1 [MQTT-3-8.3-4]
    if options & reserved != 0 {
        return Err(PacketError::Malformed("reserved bits of subscription options"));
    }
    let qos = QoS::from_bits(options & 3).ok_or(PacketError::Protocol("a subscription of QoS 3"))?;
    let no_local = options & 0x04 != 0;
    // MQTT 5.0 [MQTT-3.8.3-4]
    if no_local && filter == Err(Denial::SharedSubscriptionNotOffered) {
        return Err(PacketError::Protocol("No Local on a shared subscription"));
    }
    let retain_handling = options >> 4;
    if retain_handling == 3 {
        return Err(PacketError::Protocol("Retain Handling 3"));
    }
    Ok(SubscriptionRequest { filter, qos, no_local, retain_as_published: options & 0x08 != 0, retain_handling })
}

fn read_suback(frame: Frame<'_>, version: ProtocolVersion) -> Result<Suback, PacketError> {
    let mut reader = Reader::new(frame.body());
    let packet_id = reader.packet_id()?;
    if version == ProtocolVersion::V5_0 {
        read_properties(&mut reader, REASON_AND_USER, |_, _| Ok(()))?;
    }
    Ok(Suback { packet_id, codes: reader.rest().to_vec() })
}

fn write_codes(out: &mut Vec<u8>, first: u8, version: ProtocolVersion, packet_id: u16, codes: &[u8]) {
    put_packet(out, first, |out| {
        put_u16(out, packet_id);
        if version == ProtocolVersion::V5_0 {
            out.push(0);
        }
        out.extend_from_slice(codes);
    });
}

fn within_limit(filters: usize) -> Result<(), PacketError> {
    if filters > FILTERS_MAX { Err(PacketError::TooLarge("more than 1,000 filters in one packet")) } else { Ok(()) }
}

/// Far more than a session may hold; bounds what one packet can make us allocate.
const FILTERS_MAX: usize = 1_000;
const SUBSCRIBE_PROPERTIES: u64 = set(&[0x0B, 0x26]);
const USER_ONLY: u64 = set(&[0x26]);
const REASON_AND_USER: u64 = set(&[0x1F, 0x26]);
