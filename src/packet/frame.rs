//! The fixed header (MQTT 5.0 §2.1): where a packet ends, and what kind it is.

use super::PacketError;

/// One whole packet, still in the buffer it was read into.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    header_len: u8,
}

impl<'a> Frame<'a> {
    /// The first byte: type and flags.
    #[inline]
    pub fn first(&self) -> u8 {
        self.bytes[0]
    }

    /// What kind of packet it is.
    #[inline]
    pub fn packet_type(&self) -> PacketType {
        PacketType::from_first(self.first())
    }

    /// What follows the fixed header.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[usize::from(self.header_len)..]
    }

    /// The whole packet.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of the fixed header, 2 to 5.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.header_len)
    }
}

/// Type and length only: a body may hold a token or a payload.
impl std::fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({:?}, {} bytes)", self.packet_type(), self.bytes.len())
    }
}

/// Control packet types (MQTT 5.0 §2.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "the standard's names")]
#[repr(u8)]
pub enum PacketType {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketType {
    #[inline]
    fn from_first(first: u8) -> Self {
        match first >> 4 {
            1 => Self::Connect,
            2 => Self::Connack,
            3 => Self::Publish,
            4 => Self::Puback,
            5 => Self::Pubrec,
            6 => Self::Pubrel,
            7 => Self::Pubcomp,
            8 => Self::Subscribe,
            9 => Self::Suback,
            10 => Self::Unsubscribe,
            11 => Self::Unsuback,
            12 => Self::Pingreq,
            13 => Self::Pingresp,
            14 => Self::Disconnect,
            // 0 is refused in `next_frame`, the only maker of frames.
            _ => Self::Auth,
        }
    }
}

/// Cuts the first packet off `buf`; `None`: more bytes are needed. A packet is at most `bytes_max` bytes, its fixed
/// header included; a larger one is refused by its header, before its body has arrived.
///
/// # Errors
/// [`PacketError::Malformed`] for a reserved type or flag or a remaining length of more than four bytes or longer than need be,
/// [`PacketError::TooLarge`].
#[inline]
pub fn next_frame(buf: &[u8], bytes_max: usize) -> Result<Option<Frame<'_>>, PacketError> {
    let Some((&first, rest)) = buf.split_first() else { return Ok(None) };
    // MQTT 5.0 [MQTT-2.1.3-1], MQTT 3.1.1 [MQTT-2.2.2-2]: reserved flags are as the table has them.
    if first >> 4 != PacketType::Publish as u8 && FLAGS[usize::from(first >> 4)] != first & 0x0F {
        return Err(PacketError::Malformed("a reserved packet type or flag"));
    }
    let Some((remaining, len)) = read_varint(rest)? else { return Ok(None) };
    let header_len = 1 + len;
    let total = header_len + remaining as usize;
    if total > bytes_max {
        return Err(PacketError::TooLarge("a packet larger than the limit"));
    }
    match buf.get(..total) {
        // 2 to 5
        Some(bytes) => Ok(Some(Frame { bytes, header_len: header_len as u8 })),
        None => Ok(None),
    }
}

/// Reads a variable byte integer (MQTT 5.0 §1.5.5): the value and how many bytes it took; `None`: more are needed.
///
/// # Errors
/// [`PacketError::Malformed`]: more than four bytes, or more than the value needs [MQTT-1.5.5-1].
#[inline]
pub fn read_varint(bytes: &[u8]) -> Result<Option<(u32, usize)>, PacketError> {
    let mut value = 0u32;
    for (i, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            if byte == 0 && i > 0 {
                return Err(PacketError::Malformed("a length written longer than it need be"));
            }
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= 4 { Err(PacketError::Malformed("a length of more than four bytes")) } else { Ok(None) }
}

/// Appends a variable byte integer. `value` is at most [`VARINT_MAX`].
#[inline]
pub fn write_varint(out: &mut Vec<u8>, mut value: u32) {
    debug_assert!(value <= VARINT_MAX);
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`write_varint`] appends.
#[inline]
pub const fn varint_len(value: u32) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// The largest value of a variable byte integer (MQTT 5.0 §1.5.5).
pub const VARINT_MAX: u32 = 268_435_455;

/// The low four bits of the first byte by packet type; 0xFF is what no byte has: type 0 is forbidden.
const FLAGS: [u8; 16] = [0xFF, 0, 0, 0, 0, 0, 2, 0, 2, 0, 2, 0, 0, 0, 0, 0];
