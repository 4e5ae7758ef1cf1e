//! DISCONNECT, AUTH, PINGREQ and PINGRESP (MQTT 5.0 §3.12 to §3.15).

use super::{
    Frame, PacketError, Password, ProtocolVersion,
    property::{Property, read_properties, set},
    wire::{Reader, put_packet, put_sized},
};

/// A DISCONNECT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disconnect {
    /// 0: normal. 5.0: 0x04: normal, and the will is to be published.
    pub reason: u8,
    /// 5.0: Session Expiry Interval, in seconds.
    pub session_expiry: Option<u32>,
    /// 5.0: the sentence beside the reason.
    pub reason_string: Option<String>,
    /// 5.0: where to go instead (§3.14.2.2.5).
    pub server_reference: Option<String>,
}

/// An AUTH (5.0 only).
#[derive(Clone, Debug)]
pub struct Auth {
    /// 0x00 success, 0x18 continue, 0x19 re-authenticate.
    pub reason: u8,
    /// Authentication Method.
    pub method: Option<String>,
    /// Authentication Data.
    pub data: Option<Password>,
}

/// Parses a DISCONNECT of either end.
///
/// # Errors
/// Malformed: bytes behind the end, in 3.1.1 any body, a reason or a property that is none of it.
pub fn parse_disconnect(frame: Frame<'_>, version: ProtocolVersion) -> Result<Disconnect, PacketError> {
    let mut reader = Reader::new(frame.body());
    let mut disconnect = Disconnect { reason: 0, session_expiry: None, reason_string: None, server_reference: None };
    // MQTT 5.0 §3.14.2.1: left out, the reason is 0.
    if version == ProtocolVersion::V5_0 && !reader.is_empty() {
        disconnect.reason = reader.u8()?;
        // MQTT 5.0 [MQTT-3.14.2-1]
        if !DISCONNECT_REASONS.contains(&disconnect.reason) {
            return Err(PacketError::Malformed("a reason code that is none of DISCONNECT"));
        }
        if !reader.is_empty() {
            read_properties(&mut reader, DISCONNECT_PROPERTIES, |property, _| {
                match property {
                    Property::SessionExpiry(seconds) => disconnect.session_expiry = Some(seconds),
                    Property::ReasonString(text) => disconnect.reason_string = Some(text.to_owned()),
                    Property::ServerReference(text) => disconnect.server_reference = Some(text.to_owned()),
                    _ => {}
                }
                Ok(())
            })?;
        }
    }
    reader.finish()?;
    Ok(disconnect)
}

/// Parses an AUTH of 5.0.
///
/// # Errors
/// Malformed, as above; a protocol error for data without a method.
pub fn parse_auth(frame: Frame<'_>) -> Result<Auth, PacketError> {
    let mut reader = Reader::new(frame.body());
    let mut auth = Auth { reason: 0, method: None, data: None };
    // MQTT 5.0 §3.15.2.1: left out, the reason is 0 and there are no properties.
    if !reader.is_empty() {
        auth.reason = reader.u8()?;
        read_properties(&mut reader, AUTH_PROPERTIES, |property, _| {
            match property {
                Property::AuthenticationMethod(method) => auth.method = Some(method.to_owned()),
                Property::AuthenticationData(data) => auth.data = Some(Password::new(data)),
                _ => {}
            }
            Ok(())
        })?;
    }
    reader.finish()?;
    if auth.data.is_some() && auth.method.is_none() {
        return Err(PacketError::Protocol("authentication data without a method"));
    }
    Ok(auth)
}

/// Parses PINGREQ or PINGRESP.
///
/// # Errors
/// Malformed: a body.
pub fn parse_empty(frame: Frame<'_>) -> Result<(), PacketError> {
    Reader::new(frame.body()).finish()
}

/// Appends a DISCONNECT. 3.1.1 has neither reason nor properties.
pub fn write_disconnect(
    out: &mut Vec<u8>,
    version: ProtocolVersion,
    reason: u8,
    reason_string: Option<&str>,
    server_reference: Option<&str>,
) {
    put_packet(out, 0xE0, |out| {
        if version == ProtocolVersion::V3_1_1 {
            return;
        }
        let properties = [reason_string.map(Property::ReasonString), server_reference.map(Property::ServerReference)];
        let has_properties = properties.iter().any(Option::is_some);
        // MQTT 5.0 §3.14.2.1: left out, the reason is 0 and there are no properties.
        if reason != 0 || has_properties {
            out.push(reason);
        }
        if has_properties {
            put_sized(out, |out| properties.iter().flatten().for_each(|property| property.write(out)));
        }
    });
}

/// Appends an AUTH of 5.0: 0x00 the token is believed, 0x18 it is asked for.
pub fn write_auth(out: &mut Vec<u8>, reason: u8, method: &str) {
    put_packet(out, 0xF0, |out| {
        out.push(reason);
        put_sized(out, |out| Property::AuthenticationMethod(method).write(out));
    });
}

/// Appends a PINGREQ.
pub fn write_pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xC0, 0]);
}

/// Appends a PINGRESP.
pub fn write_pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xD0, 0]);
}

/// §2.4 and §3.14.2.1, of either end.
const DISCONNECT_REASONS: [u8; 30] = [
    0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97,
    0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
];
const DISCONNECT_PROPERTIES: u64 = set(&[0x11, 0x1C, 0x1F, 0x26]);
const AUTH_PROPERTIES: u64 = set(&[0x15, 0x16, 0x1F, 0x26]);
