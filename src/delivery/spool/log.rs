//! The segment log: groups are appended to the newest segment, read from any, and segments end at the oldest.

use std::{collections::VecDeque, io, ops::Range, sync::Arc};

use super::{
    ASIDE, Batch, BatchRecord, Fill, HubFill, Limits, Run, Spool, SpoolError, StreamId, Wear,
    cipher::{SEAL_BYTES, Seal, Sealer, SpoolKeys},
    disk::{Disk, DiskFile},
    format::{self, Extent as Current, Frame, GROUP_HEADER_BYTES, Kind, SEGMENT_HEADER_BYTES, SegmentHeader},
    segment::{FramePlace, Map, Segment, place_of, segment_name},
    streams::{Extent, Streams},
};

/// See the module.
pub struct SegmentLog {
    pub(super) disk: Box<dyn Disk>,
    pub(super) limits: Limits,
    pub(super) keys: SpoolKeys,
    /// Names of hubs; an index of it is a [`StreamId`]'s.
    pub(super) upstreams: Vec<String>,
    /// How many of them are configured.
    pub(super) configured: usize,
    pub(super) streams: Streams,
    /// Oldest first; the last one is written to.
    pub(super) segments: VecDeque<Segment>,
    /// Number of the last group.
    pub(super) group: u64,
    pub(super) current: Current,
    pub(super) current_file: Option<Box<dyn DiskFile>>,
    /// A write of `CURRENT` failed: it says less than there is, and is written again.
    pub(super) current_late: bool,
    /// From here on the newest segment holds what a process wrote that may not have lived to sync it.
    pub(super) unlasting: Option<u64>,
    pub(super) tail: Tail,
    /// Files that nothing is wanted of and that could not be unlinked.
    pub(super) leftovers: Vec<String>,
    pub(super) reads: u64,
    pub(super) wear: Wear,
    pub(super) buffer: Vec<u8>,
}

/// What may be done with the end of the newest segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tail {
    /// It may be written to.
    Clean,
    /// Bytes of a write that failed lie behind it: cut first.
    Uncut,
    /// fdatasync failed: it is never written to again.
    Poisoned,
}

/// A frame that is being appended, for the index.
pub(super) struct Placed {
    pub(super) stream: StreamId,
    pub(super) place: FramePlace,
    pub(super) first_ms: u64,
}

impl Spool for SegmentLog {
    fn append(&mut self, batches: &[Arc<Batch>]) -> Result<(), SpoolError> {
        let segments = self.segments.len();
        match self.append_group(batches) {
            // What was acknowledged frees segments, although nothing can be written.
            Err(SpoolError::DiskFull(_)) if self.release().is_ok() && self.segments.len() < segments => {
                self.append_group(batches)
            }
            answer => answer,
        }
    }

    fn acknowledge(&mut self, stream: StreamId, upto: u64) {
        let segments = &mut self.segments;
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.acknowledge(upto, &mut |segment, by| count(segments, segment, by));
        }
    }

    fn read(&mut self, id: StreamId, from: u64, bytes: usize) -> Result<Run, SpoolError> {
        let mut run = Run { first: from, ..Run::default() };
        let mut buffer = Vec::new();
        while run.bytes.is_empty() || run.bytes.len() < bytes {
            let number = run.first + run.count;
            let Some(extent) = self.streams.get(&id).and_then(|stream| stream.find(number)) else { break };
            match self.read_frame(id, extent, number, &mut run, &mut buffer) {
                Ok(()) => {}
                // What lies before the damage is as good as ever.
                Err(_) if run.count > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if let Some((record, _)) = format::parse_record(&run.bytes)
            && let Some(stream) = self.streams.get_mut(&id)
        {
            stream.read_ms = Some((from, record.received_ms));
        }
        Ok(run)
    }

    fn flush(&mut self) -> Result<(), SpoolError> {
        self.make_lasting()?;
        if self.tail != Tail::Clean || self.current_late {
            self.roll_if_needed()?;
        }
        if self.streams.values().any(|stream| stream.dirty) {
            let mut group = std::mem::take(&mut self.buffer);
            format::begin_group(&mut group);
            self.checkpoints(&mut group, Which::Dirty, self.salt());
            let written = self.write_group(&mut group);
            self.keep_buffer(group);
            written?;
        }
        self.release()?;
        self.copy_forward()?;
        self.rest_when_empty()
    }

    fn extent(&self, stream: StreamId) -> (u64, u64) {
        self.streams.get(&stream).map_or((0, 0), |stream| (stream.head, stream.next))
    }

    fn fill(&self) -> Fill {
        let mut hubs = vec![HubFill::default(); self.upstreams.len()];
        for (id, stream) in &self.streams {
            let Some(hub) = hubs.get_mut(usize::from(id.upstream)) else { continue };
            let waits = stream.next - stream.head;
            if id.queue == ASIDE {
                hub.aside += waits;
            } else {
                hub.messages += waits;
                hub.oldest_ms = [hub.oldest_ms, stream.oldest_ms()].into_iter().flatten().min();
            }
        }
        let bytes = self.bytes();
        Fill { bytes, free: self.append_max().saturating_sub(bytes), wear: self.wear, hubs }
    }
}

/// Which streams a checkpoint is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those whose head moved.
    Dirty,
    /// All, at the beginning of a segment: the older ones may go.
    All,
}

impl SegmentLog {
    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    /// Up to here messages are taken. The rest is for copying forward what pins old segments, and for checkpoints.
    pub(super) fn append_max(&self) -> u64 {
        self.limits.bytes_max.saturating_sub(2 * self.limits.segment_bytes)
    }

    /// Reads the frame that record `number` lies in, from that record on.
    fn read_frame(
        &mut self,
        id: StreamId,
        extent: Extent,
        number: u64,
        run: &mut Run,
        buffer: &mut Vec<u8>,
    ) -> Result<(), SpoolError> {
        self.load_map(extent.segment)?;
        let segment = self.segment(extent.segment).expect("invariant: an extent lies in a segment that is there");
        let missing = || SpoolError::Damaged { file: segment.name(), offset: 0, what: "a record is not where it was" };
        let place = segment.map.as_ref().and_then(|map| map.find(id, number)).ok_or_else(missing)?;
        let frame = segment.frame(place, buffer)?;
        let mut rest = frame.body;
        for at in frame.first..frame.first + u64::from(frame.count) {
            let (_, len) = format::parse_record(rest).ok_or_else(missing)?;
            let (record, after) = rest.split_at(len);
            if at >= number && at < extent.end {
                run.bytes.extend_from_slice(record);
                run.count += 1;
            }
            rest = after;
        }
        Ok(())
    }

    fn append_group(&mut self, batches: &[Arc<Batch>]) -> Result<(), SpoolError> {
        let bytes: usize = batches.iter().map(|batch| batch.bytes.len() + batch.records.len() * FRAME_OVERHEAD).sum();
        let bytes_max = match !batches.is_empty() && batches.iter().all(|batch| batch.moves) {
            true => self.limits.bytes_max.saturating_sub(self.limits.segment_bytes),
            false => self.append_max(),
        };
        self.make_room(bytes as u64, bytes_max)?;
        let mut placed = Vec::new();
        let mut group = std::mem::take(&mut self.buffer);
        format::begin_group(&mut group);
        self.checkpoints(&mut group, Which::Dirty, self.salt());
        let mut sealer = self.sealer()?;
        for batch in batches {
            self.frames_of(batch, &mut sealer, &mut group, &mut placed);
        }
        let written = if self.bytes() + group.len() as u64 > bytes_max {
            Err(SpoolError::SizeMax)
        } else {
            self.write_group(&mut group)
        };
        self.keep_buffer(group);
        let at = written?;
        for placed in placed {
            self.index(placed, at);
        }
        self.wear.appended += batches.iter().map(|batch| batch.payload_bytes()).sum::<u64>();
        Ok(())
    }

    fn make_room(&mut self, bytes: u64, bytes_max: u64) -> Result<(), SpoolError> {
        self.make_lasting()?;
        if self.bytes() + bytes > bytes_max {
            // What was acknowledged may free a segment.
            self.release()?;
            self.copy_forward()?;
        }
        if self.bytes() + bytes > bytes_max && bytes_max > self.append_max() {
            // A move frees as much as it takes, wherever that lies.
            self.copy_all_forward()?;
        }
        if self.bytes() + bytes > bytes_max {
            return Err(SpoolError::SizeMax);
        }
        self.roll_if_needed()
    }

    pub(super) fn roll_if_needed(&mut self) -> Result<(), SpoolError> {
        if self.tail == Tail::Uncut {
            let newest = self.newest();
            newest.file.cut(newest.end).map_err(|error| SpoolError::of("cut a segment", error))?;
            self.tail = Tail::Clean;
        }
        let sealing = self.keys.sealing();
        let newest = self.newest();
        let is_sealed_as_asked = newest.key.as_ref().map(|key| key.id) == sealing;
        if newest.end >= self.limits.segment_bytes || !is_sealed_as_asked || self.tail == Tail::Poisoned {
            self.roll()?;
        }
        if self.current_late {
            self.write_current(self.current.newest, self.current.oldest)?;
        }
        Ok(())
    }

    /// Begins a new segment with all that must be known of those before it.
    fn roll(&mut self) -> Result<(), SpoolError> {
        let last = self.segments.back().map_or((0, 0), |last| (last.number, last.end));
        let number = last.0 + 1;
        let name = segment_name(number);
        let salt = getrandom::u32().map_err(|error| SpoolError::of("make a segment", io::Error::other(error)))?;
        let mut group = Vec::new();
        format::begin_group(&mut group);
        self.checkpoints(&mut group, Which::All, salt);
        format::seal(&mut group, self.group + 1, salt);
        let seal = self.keys.sealing().map(Seal::new).transpose()?;
        let key = seal.as_ref().and_then(|seal| self.keys.of_segment(seal, number));
        let header = SegmentHeader { number, previous_end: last.1, salt, seal };
        let (mut bytes, header_bytes) = (header.write(), header.len());
        bytes.extend_from_slice(&group);
        self.wear.written += bytes.len() as u64;
        let made = self.disk.create(&name).and_then(|mut file| {
            file.write_at(&bytes, 0)?;
            file.sync()?;
            self.disk.sync_directory()?;
            Ok(file)
        });
        let file = made.map_err(|error| {
            // What is left of it is no segment, or says nothing new: a start takes it away.
            let _ = self.disk.remove(&name);
            SpoolError::of("make a segment", error)
        })?;
        self.group += 1;
        self.reads += 1;
        let (end, map) = (bytes.len() as u64, Some(Map::default()));
        let (live, records, read) = (0, 0, self.reads);
        self.segments.push_back(Segment { number, file, salt, key, header_bytes, end, live, records, map, read });
        self.tail = Tail::Clean;
        self.drop_maps();
        self.streams.values_mut().for_each(|stream| stream.dirty = false);
        // The segment is there, whether or not `CURRENT` can say so already.
        let _ = self.write_current(number, self.segments.front().map_or(number, |first| first.number));
        Ok(())
    }

    /// Says which segments there are, in place: it needs no space that a full disk would not have.
    pub(super) fn write_current(&mut self, newest: u64, oldest: u64) -> Result<(), SpoolError> {
        let next = Current { generation: self.current.generation + 1, newest, oldest };
        self.current_late = true;
        self.current = Current { newest, oldest, ..self.current };
        let file = match &mut self.current_file {
            Some(file) => file,
            none => {
                self.wear.written += 2 * 4096;
                let made = self.disk.create(CURRENT).and_then(|mut file| {
                    file.write_at(&[0; 2 * 4096], 0)?;
                    file.sync()?;
                    self.disk.sync_directory()?;
                    Ok(file)
                });
                none.insert(made.map_err(|error| SpoolError::of("make CURRENT", error))?)
            }
        };
        let bytes = next.write();
        self.wear.written += bytes.len() as u64;
        let written = file.write_at(&bytes, next.offset()).and_then(|()| file.sync());
        written.map_err(|error| SpoolError::of("write CURRENT", error))?;
        self.current = next;
        self.current_late = false;
        Ok(())
    }

    /// Writes and syncs one group; says where its body begins.
    pub(super) fn write_group(&mut self, group: &mut [u8]) -> Result<usize, SpoolError> {
        let number = self.group + 1;
        let newest = self.segments.back_mut().expect("invariant: an open log has a segment");
        format::seal(group, number, newest.salt);
        self.wear.written += group.len() as u64;
        if let Err(error) = newest.file.write_at(group, newest.end) {
            let cut = newest.file.cut(newest.end);
            self.tail = if cut.is_ok() { Tail::Clean } else { Tail::Uncut };
            return Err(SpoolError::of("write to a segment", error));
        }
        if let Err(error) = newest.file.sync() {
            self.tail = Tail::Poisoned;
            return Err(SpoolError::of("sync a segment", error));
        }
        let at = newest.end as usize + GROUP_HEADER_BYTES;
        newest.end += group.len() as u64;
        self.group = number;
        self.streams.values_mut().for_each(|stream| stream.dirty = false);
        Ok(at)
    }

    pub(super) fn checkpoints(&self, group: &mut Vec<u8>, which: Which, salt: u32) {
        for (id, stream) in &self.streams {
            if which == Which::All || stream.dirty {
                let frame = Frame {
                    kind: Kind::Checkpoint,
                    upstream: &self.upstreams[usize::from(id.upstream)],
                    queue: id.queue,
                    count: 0,
                    first: stream.head,
                    body: &stream.next.to_le_bytes(),
                    len: 0,
                };
                format::write_frame(group, &frame, salt);
            }
        }
    }

    /// The records of a batch, stream by stream, in frames of at most so many bytes.
    fn frames_of(&self, batch: &Batch, sealer: &mut Option<Sealer<'_>>, group: &mut Vec<u8>, placed: &mut Vec<Placed>) {
        let mut records: Vec<&BatchRecord> = batch.records.iter().collect();
        records.sort_by_key(|record| record.queue);
        let salt = self.salt();
        let mut body = Vec::new();
        for of_queue in records.chunk_by(|a, b| a.queue == b.queue) {
            let Some(queue) = of_queue.first().map(|record| record.queue) else { continue };
            let stream = StreamId { upstream: batch.upstream, queue };
            let mut first = match queue {
                ASIDE => self.next_aside(stream, placed),
                _ => of_queue.first().map_or(0, |record| record.number),
            };
            let mut rest = of_queue.iter();
            while !rest.as_slice().is_empty() {
                body.clear();
                let mut count = 0;
                while body.len() < FRAME_BYTES_MAX
                    && let Some(record) = rest.next()
                {
                    let at = record.start as usize;
                    body.extend_from_slice(&batch.bytes[at..at + record.len as usize]);
                    count += 1;
                }
                let upstream = &*self.upstreams[usize::from(stream.upstream)];
                let frame = Frame { kind: Kind::Records, upstream, queue, count, first, body: &body, len: 0 };
                let range = write_sealed(group, &frame, sealer, salt);
                let frame = Frame { len: range.len(), ..frame };
                let first_ms = format::parse_record(&body).map_or(0, |(record, _)| record.received_ms);
                placed.push(Placed { stream, place: place_of(&frame, range.start - GROUP_HEADER_BYTES), first_ms });
                first += u64::from(count);
            }
        }
    }

    /// Several links set messages of one hub aside: the spool numbers them.
    fn next_aside(&self, stream: StreamId, placed: &[Placed]) -> u64 {
        let written = self.streams.get(&stream).map_or(0, |stream| stream.next);
        let of_group = placed.iter().filter(|placed| placed.stream == stream);
        of_group.map(|placed| placed.place.first + u64::from(placed.place.count)).max().unwrap_or(written)
    }

    fn index(&mut self, placed: Placed, body_at: usize) {
        let Placed { stream, mut place, first_ms } = placed;
        place.at += body_at as u32;
        let newest = self.segments.back_mut().expect("invariant: an open log has a segment");
        newest.records += u64::from(place.count);
        newest.map.get_or_insert_default().add(stream, place);
        let end = place.first + u64::from(place.count);
        let extent = Extent { first: place.first, end, segment: newest.number, first_ms };
        let segments = &mut self.segments;
        self.streams.entry(stream).or_default().append(extent, &mut |segment, by| count(segments, segment, by));
    }

    /// What a start found counts as stored, and what comes next builds on it. After a kill -9 it may lie in the system's
    /// memory alone: one group at most, since each was synced before the next was written. It is written again, since a
    /// sync after one that failed says nothing of what was written before.
    pub(super) fn make_lasting(&mut self) -> Result<(), SpoolError> {
        if let Some(from) = self.unlasting {
            let newest = self.segments.back_mut().expect("invariant: an open log has a segment");
            let mut group = vec![0; usize::try_from(newest.end.saturating_sub(from)).unwrap_or(0)];
            newest.file.read_at(&mut group, from).map_err(|error| SpoolError::of("read a segment", error))?;
            let written = newest.file.write_at(&group, from).and_then(|()| newest.file.sync());
            let lasting = written.and_then(|()| self.disk.sync_directory());
            lasting.map_err(|error| SpoolError::of("sync what it found", error))?;
            self.unlasting = None;
        }
        if self.current_late {
            self.write_current(self.current.newest, self.current.oldest)?;
        }
        Ok(())
    }

    /// Unlinks segments from the oldest on that nothing is wanted of.
    pub(super) fn release(&mut self) -> Result<(), SpoolError> {
        self.make_lasting()?;
        let leftovers = std::mem::take(&mut self.leftovers);
        self.unlink(leftovers);
        let dead = self.segments.iter().take_while(|segment| segment.live == 0).count().min(self.segments.len() - 1);
        if dead == 0 {
            return Ok(());
        }
        let oldest = self.segments[dead].number;
        // First said, then done: a start takes away what is older, and misses what is not.
        self.write_current(self.current.newest, oldest)?;
        let names = self.segments.drain(..dead).map(|segment| segment.name()).collect();
        self.unlink(names);
        Ok(())
    }

    fn unlink(&mut self, names: Vec<String>) {
        let disk = &self.disk;
        let failed = |name: &String| disk.remove(name).is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
        self.leftovers.extend(names.into_iter().filter(failed));
    }

    /// A drained spool keeps one segment, and not a large one.
    fn rest_when_empty(&mut self) -> Result<(), SpoolError> {
        let empty = self.segments.iter().all(|segment| segment.live == 0);
        if empty && self.newest().end > (self.limits.segment_bytes / 4).max(RESTING_BYTES_MAX) {
            self.roll()?;
            self.release()?;
        }
        Ok(())
    }

    pub(super) fn load_map(&mut self, number: u64) -> Result<(), SpoolError> {
        self.reads += 1;
        let (reads, upstreams) = (self.reads, &self.upstreams);
        let id_of = &mut |name: &str, queue| {
            let upstream = u16::try_from(upstreams.iter().position(|known| known == name)?).ok()?;
            Some(StreamId { upstream, queue })
        };
        let Some(segment) = segment_mut(&mut self.segments, number) else { return Ok(()) };
        segment.read = reads;
        if segment.map.is_none() {
            segment.load_map(id_of)?;
            self.drop_maps();
        }
        Ok(())
    }

    /// Keeps the maps of segments that were read last, as many as have so few places together, and of the newest.
    fn drop_maps(&mut self) {
        let older = self.segments.len() - 1;
        let has_map = |segment: &Segment| Some((segment.read, segment.map.as_ref()?.places()));
        let mut held: Vec<(u64, usize)> = self.segments.iter().take(older).filter_map(has_map).collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        let (mut places, places_max) = (0, self.limits.segment_bytes as usize / BYTES_A_PLACE);
        let is_too_much = |(at, (_, more)): &(usize, &(u64, usize))| {
            places += more;
            *at >= MAPS_KEPT && places > places_max
        };
        let Some((_, (dropped, _))) = held.iter().enumerate().find(is_too_much) else { return };
        for segment in self.segments.iter_mut().take(older).filter(|segment| segment.read <= *dropped) {
            segment.map = None;
        }
    }

    pub(super) fn segment(&self, number: u64) -> Option<&Segment> {
        let first = self.segments.front()?.number;
        self.segments.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// For the next group, where the newest segment is sealed.
    pub(super) fn sealer(&self) -> Result<Option<Sealer<'_>>, SpoolError> {
        self.segments.back().and_then(|newest| newest.key.as_ref()).map(|key| key.sealer()).transpose()
    }

    pub(super) fn salt(&self) -> u32 {
        self.segments.back().map_or(0, |newest| newest.salt)
    }

    fn newest(&mut self) -> &mut Segment {
        self.segments.back_mut().expect("invariant: an open log has a segment")
    }

    pub(super) fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= BUFFER_BYTES_KEPT {
            buffer.clear();
            self.buffer = buffer;
        }
    }

    /// Begins a log where there is none.
    pub(super) fn begin(&mut self) -> Result<(), SpoolError> {
        self.roll()?;
        if self.current_late {
            self.write_current(self.current.newest, self.current.oldest)?;
        }
        Ok(())
    }
}

/// Appends a frame of records, sealed where there is a key.
pub(super) fn write_sealed(
    group: &mut Vec<u8>,
    frame: &Frame<'_>,
    sealer: &mut Option<Sealer<'_>>,
    salt: u32,
) -> Range<usize> {
    match sealer {
        Some(sealer) => format::write_frame(group, &Frame { body: &sealer.seal(frame), ..*frame }, salt),
        None => format::write_frame(group, frame, salt),
    }
}

pub(super) fn segment_mut(segments: &mut VecDeque<Segment>, number: u64) -> Option<&mut Segment> {
    let first = segments.front()?.number;
    segments.get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
}

/// `by` more or fewer records of a segment are wanted.
pub(super) fn count(segments: &mut VecDeque<Segment>, number: u64, by: i64) {
    if let Some(segment) = segment_mut(segments, number) {
        segment.live = segment.live.saturating_add_signed(by);
    }
}

pub(super) const CURRENT: &str = "CURRENT";
/// One read takes a frame, so that a stream is read in pieces.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// What a record may take beside itself: a frame of its own with a name of the longest kind.
const FRAME_OVERHEAD: usize = format::FRAME_HEADER_BYTES + 64 + SEAL_BYTES;
/// However large they are.
const MAPS_KEPT: usize = 4;
/// Of a segment, for each place that is kept in the maps of older ones: with the usual 16 MiB a quarter of a million places
/// of 24 bytes. Queues of devices that send more are behind in age, while each is drained at the same pace: a segment that
/// is read for one of them is soon read for another, and a map costs a read of all of it.
const BYTES_A_PLACE: usize = 64;
const BUFFER_BYTES_KEPT: usize = 4 << 20;
/// What a spool without messages may take.
const RESTING_BYTES_MAX: u64 = 64 << 10;

const _: () = assert!(SEGMENT_HEADER_BYTES < RESTING_BYTES_MAX as usize);
