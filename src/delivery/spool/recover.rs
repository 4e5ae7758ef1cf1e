//! A start: what the directory holds is read once, whole, and believed only where it is complete and undamaged.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use super::{
    ASIDE, Limits, Recovered, SegmentLog, SpoolError, StreamId, StreamState, Wear,
    cipher::{KeyId, SegmentKey, SpoolKeys},
    disk::{Disk, DiskFile},
    format::{self, Extent as Current, Frame, GROUP_HEADER_BYTES, HeaderFault, Kind, SegmentHeader},
    log::{CURRENT, Tail, count},
    salvage::unfinished,
    segment::{Map, Segment, frames, place_of, segment_name, segment_number},
    streams::{Extent, Streams},
};

impl SegmentLog {
    /// Opens what is there, or begins anew. `upstreams` are the hubs that are configured; `keys` seal what is written from
    /// here on, and open what was sealed.
    ///
    /// # Errors
    /// [`SpoolError`]: damage that is no torn tail, another version, a key that is not among these, what the disk says.
    pub fn open(
        disk: Box<dyn Disk>,
        limits: Limits,
        upstreams: &[String],
        keys: &SpoolKeys,
    ) -> Result<(Self, Recovered), SpoolError> {
        let found = find(&*disk)?;
        let mut log = Self {
            disk,
            limits,
            keys: keys.clone(),
            upstreams: upstreams.to_vec(),
            configured: upstreams.len(),
            streams: Streams::new(),
            segments: VecDeque::new(),
            group: 0,
            current: found.current.unwrap_or(Current { generation: 0, newest: 0, oldest: 0 }),
            current_file: found.current_file,
            current_late: false,
            unlasting: None,
            tail: Tail::Clean,
            leftovers: found.leftovers,
            reads: 0,
            wear: Wear::default(),
            buffer: Vec::new(),
        };
        let torn_bytes = log.read_all(&found.numbers)?;
        if log.segments.is_empty() {
            log.begin()?;
        } else {
            let newest = log.segments.back().map_or(0, |newest| newest.number);
            let oldest = log.segments.front().map_or(0, |oldest| oldest.number);
            log.current = Current { newest, oldest, ..log.current };
            log.current_late = true;
        }
        let devices = log.devices()?;
        match log.make_lasting() {
            // On a disk that takes nothing it is done later, and before anything else.
            Ok(()) | Err(SpoolError::ReadOnly(_) | SpoolError::DiskFull(_)) => {}
            Err(error) => return Err(error),
        }
        let recovered = log.recovered(devices, torn_bytes);
        log.wear = Wear::default();
        Ok((log, recovered))
    }

    /// Reads every segment; says how many bytes were cut from the end.
    fn read_all(&mut self, numbers: &[u64]) -> Result<u64, SpoolError> {
        let (mut heads, mut torn_bytes) = (BTreeMap::new(), 0);
        let mut next = numbers.first().map(|number| self.read_segment(*number)).transpose()?;
        for at in 0..numbers.len() {
            let Some(read) = next.take() else { break };
            // The next segment says where this one ends.
            next = numbers.get(at + 1).map(|number| self.read_segment(*number)).transpose()?;
            let ends_at = next.as_ref().map(|next| next.header.previous_end);
            torn_bytes += self.take_segment(read, ends_at, &mut heads)?;
        }
        let segments = &mut self.segments;
        for (id, stream) in &mut self.streams {
            // Segments are unlinked from the oldest on, and all that should be there are: what is missing before a record
            // had been acknowledged.
            let mut head = heads.get(id).copied().unwrap_or(0).max(stream.next);
            if let Some(last) = stream.extents.back().filter(|last| last.end == stream.next) {
                head = last.first;
                for extent in stream.extents.iter().rev().skip(1) {
                    if extent.end != head {
                        break;
                    }
                    head = extent.first;
                }
                head = head.max(heads.get(id).copied().unwrap_or(0));
            }
            stream.acknowledge(head, &mut |segment, by| count(segments, segment, by));
        }
        Ok(torn_bytes)
    }

    fn read_segment(&self, number: u64) -> Result<Read, SpoolError> {
        let name = segment_name(number);
        let damaged = |what| SpoolError::Damaged { file: name.clone(), offset: 0, what };
        let file = self.disk.open(&name).map_err(|error| SpoolError::of("open a segment", error))?;
        let bytes = read_whole(&*file)?;
        match SegmentHeader::parse(&bytes) {
            Ok(header) if header.number == number => Ok(Read { header, file, bytes }),
            Ok(_) => Err(damaged("it is another segment, renamed")),
            Err(HeaderFault::Damaged) => Err(damaged("its header is not that of a segment")),
            Err(HeaderFault::Version(version)) => Err(SpoolError::Version { file: name, version }),
        }
    }

    fn take_segment(
        &mut self,
        read: Read,
        ends_at: Option<u64>,
        heads: &mut BTreeMap<StreamId, u64>,
    ) -> Result<u64, SpoolError> {
        let Read { header, file, bytes } = read;
        let name = segment_name(header.number);
        let key = key_of(&header, &self.keys)?;
        let end = ends_at.map_or(bytes.len(), |end| usize::try_from(end).unwrap_or(usize::MAX));
        let is_last = ends_at.is_none();
        let damaged = |at: usize, what| Err(SpoolError::Damaged { file: name.clone(), offset: at as u64, what });
        let is_first = self.segments.is_empty();
        self.segments.push_back(Segment {
            number: header.number,
            file,
            salt: header.salt,
            key: None,
            header_bytes: header.len(),
            end: end as u64,
            live: 0,
            records: 0,
            map: is_last.then(Map::default),
            read: 0,
        });
        let (mut at, mut last) = (header.len(), 0);
        let Some(answered) = bytes.get(..end) else { return damaged(bytes.len(), "its end is missing") };
        while at < end {
            let group = match format::parse_group(&answered[at..], header.salt) {
                Some(group) => group,
                None if is_last && format::find_group_after(&answered[at..], self.group, header.salt).is_none() => {
                    self.seal_last(key);
                    self.unlasting = Some(last);
                    return Ok(self.cut_tail(at as u64, (end - at) as u64));
                }
                None => return damaged(at, "a group is not what was written, and groups follow it"),
            };
            if group.number != self.group + 1 && !(is_first && at == header.len()) {
                return damaged(at, "groups before this one are missing");
            }
            let begins = is_first && at == header.len();
            for (offset, frame) in frames(group.body) {
                let body_at = at + GROUP_HEADER_BYTES + offset;
                let Some(frame) = frame else { return damaged(body_at, "no frame") };
                let Some(records) = records_of(&frame, key.as_ref()) else {
                    return damaged(body_at, "records are not what was sealed");
                };
                let first_ms = format::parse_record(&records).map_or(0, |(record, _)| record.received_ms);
                if !self.take_frame(&frame, first_ms, body_at, begins, heads) {
                    return damaged(body_at, "records before these are missing");
                }
            }
            self.group = group.number;
            // The first one became lasting with the header before it.
            last = if at == header.len() { 0 } else { at as u64 };
            at += group.len;
        }
        self.unlasting = Some(last);
        self.seal_last(key);
        Ok(0)
    }

    /// The segment that was read last is sealed with this.
    fn seal_last(&mut self, key: Option<SegmentKey>) {
        if let Some(last) = self.segments.back_mut() {
            last.key = key;
        }
    }

    /// What was being written when the power went. It was never answered for.
    fn cut_tail(&mut self, end: u64, torn: u64) -> u64 {
        if let Some(last) = self.segments.back_mut() {
            last.end = end;
            let cut = last.file.cut(end).and_then(|()| last.file.sync());
            self.tail = if cut.is_ok() { Tail::Clean } else { Tail::Uncut };
        }
        torn
    }

    fn take_frame(
        &mut self,
        frame: &Frame<'_>,
        first_ms: u64,
        at: usize,
        begins: bool,
        heads: &mut BTreeMap<StreamId, u64>,
    ) -> bool {
        let Some(end) = frame.end() else { return false };
        let id = StreamId { upstream: self.upstream(frame.upstream), queue: frame.queue };
        let stream = self.streams.entry(id).or_default();
        if frame.kind == Kind::Checkpoint {
            let head = heads.entry(id).or_default();
            *head = frame.first.max(*head);
            if begins {
                stream.next = stream.next.max(end);
            }
            return end <= stream.next && frame.first <= end;
        }
        if frame.first > stream.next || frame.kind == Kind::Moved && end > stream.next {
            return false;
        }
        let segments = &mut self.segments;
        let Some(segment) = segments.back_mut() else { return false };
        segment.records += u64::from(frame.count);
        let place = place_of(frame, at);
        if let Some(map) = &mut segment.map {
            map.add(id, place);
        }
        let extent = Extent { first: frame.first, end, segment: segment.number, first_ms };
        stream.append(extent, &mut |segment, by| count(segments, segment, by));
        true
    }

    fn upstream(&mut self, name: &str) -> u16 {
        let at = self.upstreams.iter().position(|known| known == name).unwrap_or_else(|| {
            self.upstreams.push(name.to_owned());
            self.upstreams.len() - 1
        });
        u16::try_from(at).expect("invariant: a gateway has few hubs")
    }

    /// Bytes that wait, by hub and device.
    fn devices(&mut self) -> Result<Vec<(u16, u64, u64)>, SpoolError> {
        let mut devices: BTreeMap<(u16, u64), u64> = BTreeMap::new();
        let waiting: Vec<(StreamId, u64, u64)> = self
            .streams
            .iter()
            .filter(|(id, stream)| id.queue != ASIDE && stream.head < stream.next)
            .map(|(id, stream)| (*id, stream.head, stream.next))
            .collect();
        // By segment, so that each is looked through once: streams of one age lie together.
        let extents: BTreeSet<(u64, StreamId, u64, u64)> = waiting
            .iter()
            .flat_map(|(id, head, _)| {
                let extents = self.streams.get(id).map(|stream| stream.extents.clone()).unwrap_or_default();
                extents.into_iter().map(move |extent| (extent.segment, *id, extent.first.max(*head), extent.end))
            })
            .collect();
        for (_, id, first, end) in extents {
            let mut at = first;
            while at < end {
                let run = super::Spool::read(self, id, at, READ_BYTES)?;
                let mut rest = &run.bytes[..];
                for _ in at..end.min(run.first + run.count) {
                    let Some((record, len)) = format::parse_record(rest) else { break };
                    *devices.entry((id.upstream, record.device)).or_default() += len as u64;
                    rest = &rest[len..];
                }
                at += run.count.max(1);
            }
        }
        self.streams.values_mut().for_each(|stream| stream.read_ms = None);
        Ok(devices.into_iter().map(|((upstream, device), bytes)| (upstream, device, bytes)).collect())
    }

    fn recovered(&self, devices: Vec<(u16, u64, u64)>, torn_bytes: u64) -> Recovered {
        let known = |id: &StreamId| usize::from(id.upstream) < self.configured;
        let streams = self.streams.iter().filter(|(id, _)| known(id));
        let strange = self.upstreams.iter().enumerate().skip(self.configured).map(|(at, name)| {
            let of_it = self.streams.iter().filter(|(id, _)| usize::from(id.upstream) == at);
            (name.clone(), of_it.map(|(_, stream)| stream.next - stream.head).sum())
        });
        let mut sealed: BTreeMap<Option<KeyId>, usize> = BTreeMap::new();
        for segment in &self.segments {
            *sealed.entry(segment.key.as_ref().map(|key| key.id)).or_default() += 1;
        }
        Recovered {
            sealed: sealed.into_iter().collect(),
            streams: streams
                .map(|(id, stream)| StreamState { stream: *id, head: stream.head, next: stream.next })
                .collect(),
            devices: devices.into_iter().filter(|(hub, ..)| usize::from(*hub) < self.configured).collect(),
            torn_bytes,
            strangers: strange.filter(|(_, messages)| *messages > 0).collect(),
        }
    }
}

/// A segment in memory.
struct Read {
    header: SegmentHeader,
    file: Box<dyn DiskFile>,
    bytes: Vec<u8>,
}

/// What a directory holds.
struct Found {
    current: Option<Current>,
    current_file: Option<Box<dyn DiskFile>>,
    /// Segments that are to be read, in order.
    numbers: Vec<u64>,
    leftovers: Vec<String>,
}

fn find(disk: &dyn Disk) -> Result<Found, SpoolError> {
    let failed = |error| SpoolError::of("read its directory", error);
    let names: Vec<(String, u64)> = disk.list().map_err(failed)?;
    if let Some(note) = unfinished(names.iter().map(|(name, _)| &**name)) {
        let what = "a salvage was interrupted: let it be finished";
        return Err(SpoolError::Damaged { file: note.into(), offset: 0, what });
    }
    let all: BTreeSet<u64> = names.iter().filter_map(|(name, _)| segment_number(name)).collect();
    let current_file = match names.iter().any(|(name, _)| name == CURRENT) {
        true => Some(disk.open(CURRENT).map_err(failed)?),
        false => None,
    };
    let current = current_file.as_deref().map(read_whole).transpose()?.as_deref().and_then(Current::parse);
    let Some(said) = current else {
        // The first start ended before CURRENT was there, or it is lost.
        if all.iter().any(|number| *number > 1) {
            return Err(SpoolError::Damaged { file: CURRENT.into(), offset: 0, what: "it does not name the segments" });
        }
        let whole = all.contains(&1) && has_group(disk, 1)?;
        // What the first start left of its first segment is written over by the next: it is nothing to be taken away later.
        let numbers = if whole { vec![1] } else { vec![] };
        let leftovers = all.into_iter().filter(|number| *number != 1).map(segment_name).collect();
        return Ok(Found { current: None, current_file, numbers, leftovers });
    };
    let leftovers = all.range(..said.oldest).map(|number| segment_name(*number)).collect();
    for number in said.oldest..=said.newest {
        if !all.contains(&number) {
            return Err(SpoolError::Damaged { file: segment_name(number), offset: 0, what: "the file is missing" });
        }
    }
    let mut numbers: Vec<u64> = (said.oldest..=said.newest).collect();
    let mut after = all.range(said.newest + 1..).copied();
    if let Some(next) = after.next() {
        if next != said.newest + 1 || after.next().is_some() {
            return Err(SpoolError::Damaged { file: CURRENT.into(), offset: 0, what: "it is older than the segments" });
        }
        // The last roll ended before CURRENT said so. Nothing in it was answered for unless it is whole.
        if has_group(disk, next)? {
            numbers.push(next);
        } else {
            disk.remove(&segment_name(next)).map_err(failed)?;
        }
    }
    Ok(Found { current, current_file, numbers, leftovers })
}

/// What a segment's records are sealed with; none where they lie in the clear.
pub(super) fn key_of(header: &SegmentHeader, keys: &SpoolKeys) -> Result<Option<SegmentKey>, SpoolError> {
    let Some(seal) = &header.seal else { return Ok(None) };
    match keys.of_segment(seal, header.number) {
        Some(key) => Ok(Some(key)),
        None => Err(SpoolError::Key { file: segment_name(header.number), key: seal.key }),
    }
}

/// The records of a frame; `None`: they are not what was sealed.
pub(super) fn records_of<'a>(frame: &Frame<'a>, key: Option<&SegmentKey>) -> Option<Cow<'a, [u8]>> {
    match key {
        Some(key) if frame.kind != Kind::Checkpoint => key.open(frame).map(Cow::Owned),
        _ => Some(Cow::Borrowed(frame.body)),
    }
}

/// Whether a segment has its header and its first group.
fn has_group(disk: &dyn Disk, number: u64) -> Result<bool, SpoolError> {
    let file = disk.open(&segment_name(number)).map_err(|error| SpoolError::of("open a segment", error))?;
    let bytes = read_whole(&*file)?;
    match SegmentHeader::parse(&bytes) {
        Ok(header) => Ok(format::parse_group(&bytes[header.len()..], header.salt).is_some()),
        Err(HeaderFault::Version(version)) => Err(SpoolError::Version { file: segment_name(number), version }),
        Err(HeaderFault::Damaged) => Ok(false),
    }
}

pub(super) fn read_whole(file: &dyn DiskFile) -> Result<Vec<u8>, SpoolError> {
    let mut bytes = Vec::new();
    loop {
        let have = bytes.len();
        let wanted = have.clamp(READ_BYTES_FIRST, READ_BYTES);
        bytes.resize(have + wanted, 0);
        let read = file.read_at(&mut bytes[have..], have as u64);
        let read = read.map_err(|error| SpoolError::of("read a file", error))?;
        bytes.truncate(have + read);
        if read < wanted {
            return Ok(bytes);
        }
    }
}

const READ_BYTES: usize = 1 << 20;
/// Many files are small.
const READ_BYTES_FIRST: usize = 16 << 10;
