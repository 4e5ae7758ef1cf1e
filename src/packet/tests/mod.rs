//! Tests of the codec: tables by clause, round trips, and rmqtt-codec as the second opinion.

mod differential;
mod round_trip;
mod second_opinion;
mod table;

use super::*;

const V3: ProtocolVersion = ProtocolVersion::V3_1_1;
const V5: ProtocolVersion = ProtocolVersion::V5_0;

/// The whole of `bytes` as one frame.
fn frame(bytes: &[u8]) -> Frame<'_> {
    let frame = next_frame(bytes, usize::MAX).expect("a frame").expect("a whole frame");
    assert_eq!(frame.bytes().len(), bytes.len(), "one frame and no more");
    frame
}

/// A frame of this first byte around `body`.
fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    write_varint(&mut bytes, body.len() as u32);
    bytes.extend_from_slice(body);
    bytes
}

/// Puts the bytes through every parser there is, in both versions.
fn parse_all(bytes: &[u8]) {
    let Ok(Some(frame)) = next_frame(bytes, usize::MAX) else { return };
    let _ = (connect_answer_version(frame), parse_connect(frame).map(|c| c.version));
    let _ = (parse_empty(frame), parse_auth(frame).map(|a| a.reason));
    for version in [V3, V5] {
        if let Ok(publish) = parse_publish(frame, version) {
            publish.forwardable_properties(&mut vec![]);
        }
        let _ = (parse_puback(frame, version), parse_pubrec(frame, version));
        let _ = (parse_pubrel(frame, version), parse_pubcomp(frame, version));
        let _ = (parse_subscribe(frame, version), parse_unsubscribe(frame, version));
        let _ = (parse_suback(frame, version), parse_unsuback(frame, version));
        let _ = (parse_connack(frame, version), parse_disconnect(frame, version));
    }
}
