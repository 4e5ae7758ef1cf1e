//! Bytes taken apart as a target needs them.

use tollgate::packet::ProtocolVersion;

/// The first byte chooses, the rest is what is tried.
pub fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// By the lowest bit.
pub fn version(choice: u8) -> ProtocolVersion {
    if choice & 1 == 0 { ProtocolVersion::V3_1_1 } else { ProtocolVersion::V5_0 }
}
