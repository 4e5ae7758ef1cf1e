//! The bytes of the spool, as `docs/spool-format.md` tells them: segments of groups of frames of records. Pure.

use std::ops::Range;

use super::cipher::{KeyId, Seal};
use crate::delivery::Refusal;

/// The first bytes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    /// Segments are counted from 1.
    pub(super) number: u64,
    /// Where the segment before this one ends: what lies behind it there was never answered for.
    pub(super) previous_end: u64,
    /// Every checksum of the segment begins with it, so that no payload can pass for a group.
    pub(super) salt: u32,
    /// Version 2: the records of its frames are sealed.
    pub(super) seal: Option<Seal>,
}

/// Why the first bytes of a segment are not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeaderFault {
    /// They are not those of a segment, or are damaged.
    Damaged,
    /// Another version wrote them.
    Version(u16),
}

/// What one write and one fdatasync cover.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    /// Groups are counted over all segments, without a gap.
    pub(super) number: u64,
    /// Frames, one after another.
    pub(super) body: &'a [u8],
    /// Bytes of the whole.
    pub(super) len: usize,
}

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// How far a stream is acknowledged and how far it goes.
    Checkpoint = 1,
    /// Records of a stream.
    Records = 2,
    /// Records that lay in an older segment.
    Moved = 3,
}

/// A part of a group: about one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    /// Name of the hub.
    pub(super) upstream: &'a str,
    pub(super) queue: u16,
    pub(super) count: u32,
    /// Number of the first record; of a checkpoint: of the first that is not acknowledged.
    pub(super) first: u64,
    pub(super) body: &'a [u8],
    /// Bytes of the whole.
    pub(super) len: usize,
}

/// One message on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Whether it was published with QoS 1 or more.
    pub at_least_once: bool,
    /// RETAIN.
    pub retain: bool,
    /// Milliseconds of the wall clock since 1970.
    pub received_ms: u64,
    /// Hash of the device's id.
    pub device: u64,
    /// In the hub's terms.
    pub topic: &'a str,
    /// MQTT 5.0 properties, encoded, stamped ones included.
    pub properties: &'a [u8],
    /// The application message.
    pub payload: &'a [u8],
    /// Why it is set aside.
    pub why: Option<Refusal>,
}

impl SegmentHeader {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEALED_HEADER_BYTES);
        out.extend_from_slice(SEGMENT_MAGIC);
        let version = if self.seal.is_some() { VERSION_SEALED } else { VERSION };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&QUEUES.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.previous_end.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        if let Some(seal) = &self.seal {
            out.extend_from_slice(&seal.key.0);
            out.extend_from_slice(&seal.salt);
            out.extend_from_slice(&[0; 4]);
            let crc = crc32c::crc32c(&out);
            out.extend_from_slice(&crc.to_le_bytes());
        }
        out
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let Some(header) = bytes.get(..SEGMENT_HEADER_BYTES) else { return Err(HeaderFault::Damaged) };
        let (told, crc) = header.split_at(SEGMENT_HEADER_BYTES - 4);
        if !header.starts_with(SEGMENT_MAGIC) || crc32c::crc32c(told) != u32_at(crc, 0) {
            return Err(HeaderFault::Damaged);
        }
        // The checksum stands where it does in every version, so that another version can be told from damage.
        let seal = match u16_at(header, 8) {
            VERSION if u16_at(header, 10) == QUEUES => None,
            VERSION_SEALED if u16_at(header, 10) == QUEUES => Some(parse_seal(bytes).ok_or(HeaderFault::Damaged)?),
            version => return Err(HeaderFault::Version(version)),
        };
        Ok(Self { number: u64_at(header, 16), previous_end: u64_at(header, 24), salt: u32_at(header, 32), seal })
    }

    /// Bytes of it.
    pub(super) fn len(&self) -> usize {
        if self.seal.is_some() { SEALED_HEADER_BYTES } else { SEGMENT_HEADER_BYTES }
    }
}

fn parse_seal(bytes: &[u8]) -> Option<Seal> {
    let header = bytes.get(..SEALED_HEADER_BYTES)?;
    let (told, crc) = header.split_at(SEALED_HEADER_BYTES - 4);
    let (key, rest) = told.get(SEGMENT_HEADER_BYTES..)?.split_first_chunk()?;
    let seal = Seal { key: KeyId(*key), salt: *rest.first_chunk()? };
    (crc32c::crc32c(told) == u32_at(crc, 0)).then_some(seal)
}

/// Begins a group in an empty buffer; frames follow, then [`seal`].
pub(super) fn begin_group(out: &mut Vec<u8>) {
    out.clear();
    out.resize(GROUP_HEADER_BYTES, 0);
}

/// Completes the group that the buffer holds.
pub(super) fn seal(group: &mut [u8], number: u64, salt: u32) {
    let body = u32::try_from(group.len() - GROUP_HEADER_BYTES).expect("invariant: a group is far below 4 GiB");
    let (header, frames) = group.split_at_mut(GROUP_HEADER_BYTES);
    header[..4].copy_from_slice(GROUP_MAGIC);
    header[4..8].copy_from_slice(&body.to_le_bytes());
    header[8..16].copy_from_slice(&number.to_le_bytes());
    header[16..20].copy_from_slice(&[0; 4]);
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(salt, &header[..20]), frames);
    header[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// Bytes that a group says it has, its header included.
pub(super) fn group_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..GROUP_HEADER_BYTES).filter(|header| header.starts_with(GROUP_MAGIC))?;
    GROUP_HEADER_BYTES.checked_add(u32_at(header, 4) as usize)
}

/// The group at the beginning of `bytes`, if a whole and undamaged one is there.
pub(super) fn parse_group(bytes: &[u8], salt: u32) -> Option<Group<'_>> {
    let len = group_len(bytes)?;
    let (header, body) = (&bytes[..GROUP_HEADER_BYTES], bytes.get(GROUP_HEADER_BYTES..len)?);
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(salt, &header[..20]), body);
    (crc == u32_at(header, 20)).then_some(Group { number: u64_at(header, 8), body, len })
}

/// Where a group that is whole and has a number above `number` begins, if one does in `bytes`.
pub(super) fn find_group_after(bytes: &[u8], number: u64, salt: u32) -> Option<usize> {
    let magic = *GROUP_MAGIC.first().expect("invariant: four bytes");
    let mut at = 0;
    while let Some(next) = bytes.get(at..)?.iter().position(|byte| *byte == magic) {
        at += next;
        if parse_group(&bytes[at..], salt).is_some_and(|group| group.number > number) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Appends a frame; says where it begins.
pub(super) fn write_frame(out: &mut Vec<u8>, frame: &Frame<'_>, salt: u32) -> Range<usize> {
    let at = out.len();
    out.push(frame.kind as u8);
    out.push(u8::try_from(frame.upstream.len()).expect("invariant: names of hubs are short"));
    out.extend_from_slice(&frame.queue.to_le_bytes());
    out.extend_from_slice(&frame.count.to_le_bytes());
    out.extend_from_slice(&frame.first.to_le_bytes());
    let body = u32::try_from(frame.body.len()).expect("invariant: a frame is far below 4 GiB");
    out.extend_from_slice(&body.to_le_bytes());
    let crc_at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(frame.upstream.as_bytes());
    out.extend_from_slice(frame.body);
    let crc = frame_crc(&out[at..], salt);
    out[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    at..out.len()
}

/// The frame at the beginning of `bytes`. Its checksum is looked at where the group's was not.
pub(super) fn parse_frame(bytes: &[u8], check: Check) -> Option<Frame<'_>> {
    let header = bytes.get(..FRAME_HEADER_BYTES)?;
    let kind = match header[0] {
        1 => Kind::Checkpoint,
        2 => Kind::Records,
        3 => Kind::Moved,
        _ => return None,
    };
    let body_at = FRAME_HEADER_BYTES + usize::from(header[1]);
    let len = body_at.checked_add(u32_at(header, 16) as usize)?;
    let whole = bytes.get(..len)?;
    if let Check::Checksum(salt) = check
        && frame_crc(whole, salt) != u32_at(header, 20)
    {
        return None;
    }
    Some(Frame {
        kind,
        upstream: std::str::from_utf8(&whole[FRAME_HEADER_BYTES..body_at]).ok()?,
        queue: u16_at(header, 2),
        count: u32_at(header, 4),
        first: u64_at(header, 8),
        body: &whole[body_at..],
        len,
    })
}

/// Puts other records into a frame, whose checksum then is none.
pub(super) fn replace_body(frame: &mut Vec<u8>, body_at: usize, body: &[u8]) {
    frame.truncate(body_at);
    frame.extend_from_slice(body);
    let len = u32::try_from(body.len()).expect("invariant: a frame is far below 4 GiB");
    frame[16..20].copy_from_slice(&len.to_le_bytes());
}

/// Whether a frame's own checksum is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Check {
    /// With the salt of its segment.
    Checksum(u32),
    /// The group's was.
    Trusted,
}

impl Frame<'_> {
    /// Number after the last record; of a checkpoint: that the next record will have.
    pub(super) fn end(&self) -> Option<u64> {
        match self.kind {
            Kind::Checkpoint => Some(u64::from_le_bytes(*self.body.first_chunk()?)),
            Kind::Records | Kind::Moved => self.first.checked_add(u64::from(self.count)),
        }
    }
}

/// Appends a record.
pub(crate) fn write_record(out: &mut Vec<u8>, record: &Record<'_>) {
    let Record { topic, properties, payload, .. } = record;
    let len = RECORD_HEADER_BYTES - 4 + topic.len() + properties.len() + payload.len();
    out.extend_from_slice(&u32::try_from(len).expect("invariant: a message is below 256 MiB").to_le_bytes());
    out.push(u8::from(record.at_least_once) | u8::from(record.retain) << 1);
    out.push(record.why.map_or(0, Refusal::byte));
    out.extend_from_slice(&u16::try_from(topic.len()).expect("invariant: MQTT's limit").to_le_bytes());
    out.extend_from_slice(&u32::try_from(properties.len()).expect("invariant: below the packet").to_le_bytes());
    out.extend_from_slice(&record.received_ms.to_le_bytes());
    out.extend_from_slice(&record.device.to_le_bytes());
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(properties);
    out.extend_from_slice(payload);
}

/// The record at the beginning of `bytes`, and how many bytes it takes.
pub(crate) fn parse_record(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let header = bytes.get(..RECORD_HEADER_BYTES)?;
    let len = 4 + u32_at(header, 0) as usize;
    let rest = bytes.get(RECORD_HEADER_BYTES..len)?;
    let (topic, rest) = rest.split_at_checked(usize::from(u16_at(header, 6)))?;
    let (properties, payload) = rest.split_at_checked(u32_at(header, 8) as usize)?;
    let record = Record {
        at_least_once: header[4] & 1 != 0,
        retain: header[4] & 2 != 0,
        received_ms: u64_at(header, 12),
        device: u64_at(header, 20),
        topic: std::str::from_utf8(topic).ok()?,
        properties,
        payload,
        why: Refusal::of_byte(header[5]),
    };
    Some((record, len))
}

/// Bytes of a record of this message.
pub(crate) fn record_len(topic: usize, properties: usize, payload: usize) -> usize {
    RECORD_HEADER_BYTES + topic + properties + payload
}

/// What `CURRENT` says: which segments there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// Counts the writes of the file.
    pub(super) generation: u64,
    /// The newest segment; one more may be there when the last roll was cut short.
    pub(super) newest: u64,
    /// The oldest segment that anything is wanted of.
    pub(super) oldest: u64,
}

impl Extent {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CURRENT_SLOT_BYTES);
        out.extend_from_slice(CURRENT_MAGIC);
        for number in [self.generation, self.newest, self.oldest] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Where the slot of this generation lies: two take turns, in sectors of their own, so that one is always whole.
    pub(super) fn offset(&self) -> u64 {
        (self.generation % 2) * CURRENT_SLOT_DISTANCE
    }

    /// The newest slot of the file that is whole.
    pub(super) fn parse(file: &[u8]) -> Option<Self> {
        let slot = |at: u64| {
            let slot = file.get(usize::try_from(at).ok()?..)?.get(..CURRENT_SLOT_BYTES)?;
            let (told, crc) = slot.split_at(CURRENT_SLOT_BYTES - 4);
            (told.starts_with(CURRENT_MAGIC) && crc32c::crc32c(told) == u32_at(crc, 0)).then(|| Self {
                generation: u64_at(told, 8),
                newest: u64_at(told, 16),
                oldest: u64_at(told, 24),
            })
        };
        [slot(0), slot(CURRENT_SLOT_DISTANCE)].into_iter().flatten().max_by_key(|extent| extent.generation)
    }
}

fn frame_crc(whole: &[u8], salt: u32) -> u32 {
    let (head, rest) = whole.split_at(FRAME_HEADER_BYTES);
    crc32c::crc32c_append(crc32c::crc32c_append(salt, &head[..20]), rest)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// A segment whose records are as they are.
pub(super) const VERSION: u16 = 1;
/// A segment whose records are sealed. There is no other that this program reads or writes.
pub(super) const VERSION_SEALED: u16 = 2;
/// Queues of a hub: a device belongs to one by its hash. Part of the format: order per device hangs on it.
pub(super) const QUEUES: u16 = 256;
pub(super) const SEGMENT_HEADER_BYTES: usize = 40;
/// The same, the name of the key, 16 random bytes, zeros and a checksum.
const SEALED_HEADER_BYTES: usize = SEGMENT_HEADER_BYTES + 32;
pub(super) const GROUP_HEADER_BYTES: usize = 24;
pub(super) const FRAME_HEADER_BYTES: usize = 24;
pub(super) const RECORD_HEADER_BYTES: usize = 28;
const SEGMENT_MAGIC: &[u8; 8] = b"TGSPOOL\x1a";
const GROUP_MAGIC: &[u8; 4] = b"TGRP";
const CURRENT_MAGIC: &[u8; 8] = b"TGCURRNT";
const CURRENT_SLOT_BYTES: usize = 36;
/// Apart by a sector of any disk.
const CURRENT_SLOT_DISTANCE: u64 = 4096;
