//! Copying what is wanted out of old segments, so that these can go.

use super::{
    SegmentLog, SpoolError,
    format::{self, Frame, GROUP_HEADER_BYTES, Kind},
    log::{Placed, Which, count, write_sealed},
    segment::{Map, Segment, place_of},
    streams::Extent,
};

impl SegmentLog {
    /// Copies what pins the oldest segment to the newest, when most of the disk's bytes are not wanted.
    pub(super) fn copy_forward(&mut self) -> Result<(), SpoolError> {
        while self.segments.len() > 3 && self.bytes() > 2 * self.live_bytes() + 2 * self.limits.segment_bytes {
            self.copy_oldest()?;
            self.release()?;
        }
        Ok(())
    }

    /// Copies every segment of which anything is not wanted any more, from the oldest on.
    pub(super) fn copy_all_forward(&mut self) -> Result<(), SpoolError> {
        let until = self.segments.back().map_or(0, |newest| newest.number);
        let is_dead = |segment: &Segment| segment.number < until && segment.live < segment.records;
        while self.segments.len() > 1 && self.segments.iter().any(is_dead) {
            self.copy_oldest()?;
            self.release()?;
        }
        Ok(())
    }

    fn copy_oldest(&mut self) -> Result<(), SpoolError> {
        self.roll_if_needed()?;
        let number = self.segments.front().map_or(0, |oldest| oldest.number);
        self.load_map(number)?;
        let mut group = std::mem::take(&mut self.buffer);
        format::begin_group(&mut group);
        self.checkpoints(&mut group, Which::Dirty, self.salt());
        let copied = self.frames_to_copy(number, &mut group);
        let written = copied.and_then(|placed| self.write_group(&mut group).map(|at| (placed, at)));
        self.keep_buffer(group);
        let (placed, body_at) = written?;
        for Placed { stream, mut place, first_ms } in placed {
            place.at += body_at as u32;
            let newest = self.segments.back_mut().expect("invariant: an open log has a segment");
            newest.records += u64::from(place.count);
            newest.map.get_or_insert_default().add(stream, place);
            let newest = newest.number;
            let segments = &mut self.segments;
            let Some(stream) = self.streams.get_mut(&stream) else { continue };
            let end = place.first + u64::from(place.count);
            // Only what still lies in the old segment moves.
            let parts: Vec<Extent> = stream
                .extents
                .iter()
                .filter(|extent| extent.segment == number && extent.first < end && extent.end > place.first)
                .map(|old| Extent {
                    first: old.first.max(place.first),
                    end: old.end.min(end),
                    segment: newest,
                    first_ms,
                })
                .collect();
            for part in parts {
                stream.place(part, &mut |segment, by| count(segments, segment, by));
            }
        }
        Ok(())
    }

    /// Frames of a segment with anything in them that is wanted and lies nowhere newer.
    fn frames_to_copy(&self, number: u64, group: &mut Vec<u8>) -> Result<Vec<Placed>, SpoolError> {
        let (mut placed, mut buffer) = (Vec::new(), Vec::new());
        let segment = self.segment(number).expect("invariant: the oldest segment is there");
        let salt = self.salt();
        let mut sealer = self.sealer()?;
        let frames: Vec<_> = segment.map.iter().flat_map(Map::frames).collect();
        for (id, place) in frames {
            let Some(stream) = self.streams.get(&id) else { continue };
            let end = place.first + u64::from(place.count);
            let wanted = stream.extents.iter().any(|extent| {
                extent.segment == number && extent.first.max(stream.head) < end && extent.end > place.first
            });
            if !wanted {
                continue;
            }
            let frame = Frame { kind: Kind::Moved, ..segment.frame(place, &mut buffer)? };
            let range = write_sealed(group, &frame, &mut sealer, salt);
            let frame = Frame { len: range.len(), ..frame };
            let first_ms = format::parse_record(frame.body).map_or(0, |(record, _)| record.received_ms);
            placed.push(Placed { stream: id, place: place_of(&frame, range.start - GROUP_HEADER_BYTES), first_ms });
        }
        Ok(placed)
    }

    fn live_bytes(&self) -> u64 {
        self.segments.iter().map(|s| (s.end as u128 * u128::from(s.live) / u128::from(s.records.max(1))) as u64).sum()
    }
}
