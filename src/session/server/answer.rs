//! How a [`Denial`] is said in each packet.

use crate::{
    denial::Denial,
    packet::{self, Connack, ProblemInformation, ProtocolVersion},
};

/// Appends the CONNACK of a refusal. Nothing in 3.1.1 where no return code says it: the connection is just closed.
pub fn write_refusal(
    version: ProtocolVersion,
    denial: Denial,
    problem_information: ProblemInformation,
    out: &mut Vec<u8>,
) {
    match version {
        ProtocolVersion::V3_1_1 => {
            if let Some(code) = denial.row().connack_v4 {
                packet::write_connack(out, version, &Connack::new(code));
            }
        }
        ProtocolVersion::V5_0 => {
            let mut connack = Connack::new(denial.row().reason_v5);
            if problem_information == ProblemInformation::Requested {
                connack.reason_string = Some(reason_string(denial));
            }
            packet::write_connack(out, version, &connack);
        }
    }
}

/// The tag, Azure's number in front where it has one: `40105 expired`.
pub(super) fn reason_string(denial: Denial) -> String {
    let told = denial.as_told();
    match told.row().azure {
        Some(number) => format!("{number} {}", told.tag()),
        None => told.tag().to_owned(),
    }
}

/// The reason code of a PUBACK (MQTT 5.0 §3.4.2.1); `None`: only DISCONNECT can say it.
pub(super) fn puback_reason(denial: Denial) -> Option<u8> {
    Some(match denial.row().reason_v5 {
        code @ (0x83 | 0x87 | 0x90 | 0x97) => code,
        // "Bad authentication method" is DISCONNECT's.
        0x8C => 0x87,
        // Maximum QoS and Retain Available were announced: a device that does not heed them is told by DISCONNECT.
        0x9A | 0x9B => return None,
        // "Message rate too high" is DISCONNECT's; the nearest is "Quota exceeded".
        // "Implementation specific error": try again.
        _ => 0x83,
    })
}

/// The code of a SUBACK (MQTT 5.0 §3.9.3, MQTT 3.1.1 §3.9.3).
pub(super) fn suback_code(version: ProtocolVersion, denial: Denial) -> u8 {
    match (version, denial.row().reason_v5) {
        (ProtocolVersion::V3_1_1, _) => 0x80,
        (ProtocolVersion::V5_0, code @ (0x83 | 0x87 | 0x8F | 0x97 | 0x9E)) => code,
        (ProtocolVersion::V5_0, _) => 0x83,
    }
}
