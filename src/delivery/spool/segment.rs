//! One segment: its file, how much of it is wanted, and, for as long as it is read from, where its frames lie.

use std::{
    collections::HashMap,
    io::{self, BufReader, Read},
};

use super::{
    SpoolError, StreamId,
    cipher::SegmentKey,
    disk::DiskFile,
    format::{self, Check, Frame, GROUP_HEADER_BYTES, Kind},
};

/// See the module.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: Box<dyn DiskFile>,
    pub(super) salt: u32,
    /// What its records are sealed with; none: they lie in the clear.
    pub(super) key: Option<SegmentKey>,
    /// Bytes of its header.
    pub(super) header_bytes: usize,
    /// Bytes that are answered for.
    pub(super) end: u64,
    /// Records in it that are not acknowledged and lie nowhere newer.
    pub(super) live: u64,
    /// Records that were ever written to it.
    pub(super) records: u64,
    pub(super) map: Option<Map>,
    /// When it was last read from.
    pub(super) read: u64,
}

/// Where the frames of each stream lie, by number.
#[derive(Default)]
pub(super) struct Map(HashMap<StreamId, Vec<FramePlace>>);

/// A frame of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FramePlace {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) at: u32,
    pub(super) len: u32,
}

impl Map {
    pub(super) fn add(&mut self, stream: StreamId, place: FramePlace) {
        let places = self.0.entry(stream).or_default();
        let at = places.partition_point(|known| known.first <= place.first);
        places.insert(at, place);
    }

    /// The frame that holds record `number`. Of two the one that was written later.
    pub(super) fn find(&self, stream: StreamId, number: u64) -> Option<FramePlace> {
        let places = self.0.get(&stream)?;
        let until = places.partition_point(|known| known.first <= number);
        let holds = |place: &&FramePlace| number < place.first + u64::from(place.count);
        places.get(..until)?.iter().rev().filter(holds).max_by_key(|place| place.at).copied()
    }

    /// How many frames there are.
    pub(super) fn places(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// The frames of every stream.
    pub(super) fn frames(&self) -> impl Iterator<Item = (StreamId, FramePlace)> {
        self.0.iter().flat_map(|(stream, places)| places.iter().map(|place| (*stream, *place)))
    }
}

impl Segment {
    pub(super) fn name(&self) -> String {
        segment_name(self.number)
    }

    /// Reads and checks one frame.
    pub(super) fn frame<'b>(&self, place: FramePlace, buffer: &'b mut Vec<u8>) -> Result<Frame<'b>, SpoolError> {
        buffer.clear();
        buffer.resize(place.len as usize, 0);
        let read = self.file.read_at(buffer, place.at.into());
        read.map_err(|error| SpoolError::of("read a segment", error))?;
        let damaged = || SpoolError::Damaged {
            file: self.name(),
            offset: place.at.into(),
            what: "a frame is not what was written",
        };
        let is_it = |frame: &Frame<'_>| frame.first == place.first && frame.count == place.count;
        let frame = format::parse_frame(buffer, Check::Checksum(self.salt)).filter(is_it).ok_or_else(damaged)?;
        if let Some(key) = &self.key {
            let records = key.open(&frame).ok_or_else(damaged)?;
            let body_at = buffer.len() - frame.body.len();
            // It is read on as if it had been written in the clear.
            format::replace_body(buffer, body_at, &records);
        }
        format::parse_frame(buffer, Check::Trusted).ok_or_else(damaged)
    }

    /// Finds out where the frames lie.
    pub(super) fn load_map(&mut self, id_of: &mut dyn FnMut(&str, u16) -> Option<StreamId>) -> Result<(), SpoolError> {
        if self.map.is_some() {
            return Ok(());
        }
        // A piece at a time: a segment is large, and several may be wanted soon after each other.
        let bytes = SegmentReader { file: &*self.file, at: self.header_bytes as u64, end: self.end };
        let mut bytes = BufReader::with_capacity(READ_AHEAD_BYTES, bytes);
        let (mut map, mut group) = (Map::default(), Vec::new());
        let (mut at, name) = (self.header_bytes, self.name());
        while (at as u64) < self.end {
            let damaged = || SpoolError::Damaged {
                file: name.clone(),
                offset: at as u64,
                what: "a group is not what was written",
            };
            let read = read_group(&mut bytes, self.end - at as u64, &mut group);
            read.map_err(|error| SpoolError::of("read a segment", error))?;
            let group = format::parse_group(&group, self.salt).ok_or_else(damaged)?;
            for (offset, frame) in frames(group.body) {
                let frame = frame.ok_or_else(damaged)?;
                if frame.kind != Kind::Checkpoint
                    && let Some(stream) = id_of(frame.upstream, frame.queue)
                {
                    map.add(stream, place_of(&frame, at + GROUP_HEADER_BYTES + offset));
                }
            }
            at += group.len;
        }
        self.map = Some(map);
        Ok(())
    }
}

/// What of a file is answered for, from some place on.
struct SegmentReader<'f> {
    file: &'f dyn DiskFile,
    at: u64,
    end: u64,
}

impl Read for SegmentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..rest], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads the next group into `group`: what is there of it, where it is said to be longer than the `rest` of its segment.
fn read_group(bytes: &mut impl Read, rest: u64, group: &mut Vec<u8>) -> io::Result<()> {
    group.clear();
    bytes.take(GROUP_HEADER_BYTES as u64).read_to_end(group)?;
    let len = format::group_len(group).unwrap_or(0) as u64;
    let body = len.min(rest).saturating_sub(group.len() as u64);
    bytes.take(body).read_to_end(group)?;
    Ok(())
}

/// Where a frame lies that begins at byte `at` of its segment.
pub(super) fn place_of(frame: &Frame<'_>, at: usize) -> FramePlace {
    let in_segment = "invariant: a segment is far below 4 GiB";
    FramePlace {
        first: frame.first,
        count: frame.count,
        at: u32::try_from(at).expect(in_segment),
        len: u32::try_from(frame.len).expect(in_segment),
    }
}

/// The frames of a group and where in it they begin; `None` at the end where there is no frame.
pub(super) fn frames(body: &[u8]) -> impl Iterator<Item = (usize, Option<Frame<'_>>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = body.get(at..).filter(|rest| !rest.is_empty())?;
        let frame = format::parse_frame(rest, Check::Trusted);
        let began = at;
        at += frame.as_ref().map_or(rest.len(), |frame| frame.len);
        Some((began, frame))
    })
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016}{SUFFIX}")
}

pub(super) fn segment_number(name: &str) -> Option<u64> {
    name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 16)?.parse().ok()
}

const SUFFIX: &str = ".seg";
/// Read at once to find out where frames lie.
const READ_AHEAD_BYTES: usize = 256 << 10;
