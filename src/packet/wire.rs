//! The data types of MQTT 5.0 §1.5, read and written.

use super::{PacketError, frame};

/// Reads from the front; every read is checked.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], PacketError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, PacketError> {
        let (&byte, rest) = self.rest.split_first().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(byte)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, PacketError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    pub(super) fn u32(&mut self) -> Result<u32, PacketError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u32, PacketError> {
        let (value, len) = frame::read_varint(self.rest)?.ok_or(TRUNCATED)?;
        self.take(len)?;
        Ok(value)
    }

    /// Binary data: two bytes of length, then as many bytes.
    #[inline]
    pub(super) fn binary(&mut self) -> Result<&'a [u8], PacketError> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// A UTF-8 string: no surrogates [MQTT-1.5.4-1], no U+0000 [MQTT-1.5.4-2].
    pub(super) fn text(&mut self) -> Result<&'a str, PacketError> {
        let bytes = self.binary()?;
        if bytes.contains(&0) {
            return Err(PacketError::Malformed("a string with U+0000"));
        }
        std::str::from_utf8(bytes).map_err(|_| PacketError::Malformed("a string that is not UTF-8"))
    }

    /// A packet identifier: 0 is none [MQTT-2.2.1-3].
    #[inline]
    pub(super) fn packet_id(&mut self) -> Result<u16, PacketError> {
        match self.u16()? {
            0 => Err(PacketError::Malformed("packet identifier 0")),
            id => Ok(id),
        }
    }

    /// What was read since `before`, an earlier copy of this reader.
    #[inline]
    pub(super) fn taken_since(&self, before: Self) -> &'a [u8] {
        before.rest.get(..before.rest.len() - self.rest.len()).unwrap_or_default()
    }

    /// Nothing may be left.
    #[inline]
    pub(super) fn finish(self) -> Result<(), PacketError> {
        if self.rest.is_empty() { Ok(()) } else { Err(PacketError::Malformed("bytes behind the end of the packet")) }
    }
}

#[inline]
pub(super) fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a string or binary data with its length.
#[inline]
pub(super) fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let len =
        u16::try_from(bytes.len()).expect("invariant: what is written was read or configured, 65,535 bytes at most");
    put_u16(out, len);
    out.extend_from_slice(bytes);
}

/// Appends a packet: first byte, remaining length, and what `body` appends.
pub(super) fn put_packet(out: &mut Vec<u8>, first: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(first);
    put_sized(out, body);
}

/// Appends what `body` appends, its length as a variable byte integer in front.
pub(super) fn put_sized(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(0);
    body(out);
    let len = u32::try_from(out.len() - start - 1).expect("invariant: our packets are far below 256 MiB");
    if len < 0x80 {
        out[start] = len as u8;
    } else {
        let mut prefix = Vec::with_capacity(4);
        frame::write_varint(&mut prefix, len);
        out.splice(start..=start, prefix);
    }
}

const TRUNCATED: PacketError = PacketError::Malformed("it ends before its last field does");
