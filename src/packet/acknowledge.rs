//! PUBACK, PUBREC, PUBREL and PUBCOMP (MQTT 5.0 §3.4 to §3.7).

use super::{
    Frame, PacketError, ProtocolVersion,
    property::{Property, read_properties, set},
    wire::{Reader, put_packet, put_sized, put_u16},
};

/// What an acknowledgement says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acknowledgement {
    /// Of which packet.
    pub packet_id: u16,
    /// 0: success; 0x80 and above: a refusal. 3.1.1 has none: 0.
    pub reason: u8,
}

/// Parses a PUBACK.
///
/// # Errors
/// Malformed, as for any acknowledgement: packet identifier 0, a reason code that is none of it, bytes behind the end.
#[inline]
pub fn parse_puback(frame: Frame<'_>, version: ProtocolVersion) -> Result<Acknowledgement, PacketError> {
    parse(frame, version, &PUBACK_REASONS)
}

/// Parses a PUBREC.
///
/// # Errors
/// As [`parse_puback`].
pub fn parse_pubrec(frame: Frame<'_>, version: ProtocolVersion) -> Result<Acknowledgement, PacketError> {
    parse(frame, version, &PUBACK_REASONS)
}

/// Parses a PUBREL.
///
/// # Errors
/// As [`parse_puback`].
pub fn parse_pubrel(frame: Frame<'_>, version: ProtocolVersion) -> Result<Acknowledgement, PacketError> {
    parse(frame, version, &PUBREL_REASONS)
}

/// Parses a PUBCOMP.
///
/// # Errors
/// As [`parse_puback`].
pub fn parse_pubcomp(frame: Frame<'_>, version: ProtocolVersion) -> Result<Acknowledgement, PacketError> {
    parse(frame, version, &PUBREL_REASONS)
}

/// Appends a PUBACK. 3.1.1 has no reason: only a success can be said in it.
#[inline]
pub fn write_puback(out: &mut Vec<u8>, version: ProtocolVersion, packet_id: u16, reason: u8) {
    write(out, 0x40, version, packet_id, reason);
}

/// Appends a PUBACK of 5.0 with a reason string.
pub fn write_puback_with_reason(out: &mut Vec<u8>, packet_id: u16, reason: u8, reason_string: &str) {
    write_with_reason(out, 0x40, packet_id, reason, reason_string);
}

/// Appends a PUBREC of 5.0 with a reason string.
pub fn write_pubrec_with_reason(out: &mut Vec<u8>, packet_id: u16, reason: u8, reason_string: &str) {
    write_with_reason(out, 0x50, packet_id, reason, reason_string);
}

/// Appends a PUBREC.
pub fn write_pubrec(out: &mut Vec<u8>, version: ProtocolVersion, packet_id: u16, reason: u8) {
    write(out, 0x50, version, packet_id, reason);
}

/// Appends a PUBREL.
pub fn write_pubrel(out: &mut Vec<u8>, version: ProtocolVersion, packet_id: u16, reason: u8) {
    write(out, 0x62, version, packet_id, reason);
}

/// Appends a PUBCOMP.
pub fn write_pubcomp(out: &mut Vec<u8>, version: ProtocolVersion, packet_id: u16, reason: u8) {
    write(out, 0x70, version, packet_id, reason);
}

#[inline]
fn parse(frame: Frame<'_>, version: ProtocolVersion, reasons: &[u8]) -> Result<Acknowledgement, PacketError> {
    let mut reader = Reader::new(frame.body());
    let packet_id = reader.packet_id()?;
    // MQTT 5.0 §3.4.2.1: a reason of 0 and an empty property block may be left out.
    if version == ProtocolVersion::V3_1_1 || reader.is_empty() {
        reader.finish()?;
        return Ok(Acknowledgement { packet_id, reason: 0 });
    }
    let reason = reader.u8()?;
    if !reasons.contains(&reason) {
        return Err(PacketError::Malformed("a reason code that is none of the packet"));
    }
    if !reader.is_empty() {
        read_properties(&mut reader, PROPERTIES, |_, _| Ok(()))?;
    }
    reader.finish()?;
    Ok(Acknowledgement { packet_id, reason })
}

#[inline]
fn write(out: &mut Vec<u8>, first: u8, version: ProtocolVersion, packet_id: u16, reason: u8) {
    let [high, low] = packet_id.to_be_bytes();
    if reason == 0 || version == ProtocolVersion::V3_1_1 {
        out.extend_from_slice(&[first, 2, high, low]);
    } else {
        out.extend_from_slice(&[first, 3, high, low, reason]);
    }
}

fn write_with_reason(out: &mut Vec<u8>, first: u8, packet_id: u16, reason: u8, reason_string: &str) {
    put_packet(out, first, |out| {
        put_u16(out, packet_id);
        out.push(reason);
        put_sized(out, |out| Property::ReasonString(reason_string).write(out));
    });
}

/// Of PUBACK and PUBREC (§3.4.2.1, §3.5.2.1).
const PUBACK_REASONS: [u8; 9] = [0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
/// Of PUBREL and PUBCOMP (§3.6.2.1, §3.7.2.1).
const PUBREL_REASONS: [u8; 2] = [0x00, 0x92];
const PROPERTIES: u64 = set(&[0x1F, 0x26]);
