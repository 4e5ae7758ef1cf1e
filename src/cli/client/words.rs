//! What the codes mean, in the words of the specifications.

/// MQTT 3.1.1 §3.2.2.3.
pub(super) fn connack_v4(code: u8) -> &'static str {
    match code {
        0 => "accepted",
        1 => "refused: unacceptable protocol version",
        2 => "refused: client id not acceptable",
        3 => "refused: server unavailable",
        4 => "refused: bad user name or password",
        5 => "refused: not authorized",
        _ => "refused: a code that MQTT 3.1.1 does not know",
    }
}

/// MQTT 5.0 §2.4.
pub(super) fn reason(code: u8) -> &'static str {
    match code {
        0x00 => "success",
        0x04 => "disconnect with will message",
        0x10 => "no matching subscribers",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x84 => "unsupported protocol version",
        0x85 => "client id not valid",
        0x86 => "bad user name or password",
        0x87 => "not authorized",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8A => "banned",
        0x8B => "server shutting down",
        0x8C => "bad authentication method",
        0x8D => "keep alive timeout",
        0x8E => "session taken over",
        0x8F => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9A => "retain not supported",
        0x9B => "QoS not supported",
        0x9C => "use another server",
        0x9D => "server moved",
        0x9E => "shared subscriptions not supported",
        0x9F => "connection rate exceeded",
        0xA0 => "maximum connect time",
        0xA1 => "subscription identifiers not supported",
        0xA2 => "wildcard subscriptions not supported",
        _ => "a code that MQTT 5.0 does not know",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denial::Denial;

    #[test]
    fn every_code_that_the_gateway_sends_has_a_meaning() {
        for row in Denial::all() {
            assert!(!reason(row.reason_v5).starts_with("a code"), "0x{:02X}", row.reason_v5);
            if let Some(code) = row.connack_v4 {
                assert!(connack_v4(code).starts_with("refused: ") && !connack_v4(code).contains("a code"), "{code}");
            }
        }
    }
}
