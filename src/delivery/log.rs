//! The retention log: frames lie in segments from the offer until the hub has them, and the writer writes from the same
//! bytes. There is no second copy, and what was lost with a connection is still in its place, in order.
//!
//! Three marks move through the log: what was *sent*, the end of the frame that is being sent (the *boundary*, where
//! a control packet may stand), and what is *permitted* on this connection (the hub's Receive Maximum).

use std::{collections::VecDeque, mem};

use crate::packet::{Frame, next_frame};

/// A place in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(super) struct Position {
    segment: u64,
    offset: usize,
}

impl Position {
    /// The place `len` bytes further in the same segment.
    pub(super) fn plus(self, len: usize) -> Self {
        Self { segment: self.segment, offset: self.offset + len }
    }
}

/// One frame, while the log is rebuilt for a new connection.
pub(super) struct Retained<'a> {
    /// The frame as it was last sent.
    pub(super) frame: PublishFrame<'a>,
    /// Where it lay.
    pub(super) was: Position,
    /// Where it will lie.
    pub(super) becomes: Position,
    /// A byte of it was handed to the last connection.
    pub(super) begun: bool,
    /// All of it was.
    pub(super) finished: bool,
}

/// A PUBLISH of ours, read back.
#[derive(Clone, Copy)]
pub(super) struct PublishFrame<'a>(Frame<'a>);

impl<'a> PublishFrame<'a> {
    /// The frame that begins at the start of `bytes`.
    fn first_of(bytes: &'a [u8]) -> Self {
        Self(next_frame(bytes, usize::MAX).ok().flatten().expect("invariant: the log holds whole frames of our own"))
    }

    pub(super) fn len(self) -> usize {
        self.0.bytes().len()
    }

    /// The frame, to be parsed.
    pub(super) fn frame(self) -> Frame<'a> {
        self.0
    }

    /// The fixed header's first byte.
    pub(super) fn first_byte(self) -> u8 {
        self.0.first()
    }

    /// The packet id; none at QoS 0.
    pub(super) fn packet_id(self) -> Option<u16> {
        let (topic_len, rest) = self.0.body().split_first_chunk()?;
        let packet_id = rest.get(usize::from(u16::from_be_bytes(*topic_len))..)?.first_chunk()?;
        (self.first_byte() & QOS_BITS != 0).then(|| u16::from_be_bytes(*packet_id))
    }
}

struct Segment {
    frames: Vec<u8>,
    /// Frames in it that wait for an acknowledgement.
    live: usize,
}

/// See the module.
pub(super) struct Log {
    segments: VecDeque<Segment>,
    /// The number of `segments[0]`.
    first: u64,
    spare: Vec<Vec<u8>>,
    bytes: usize,
    bytes_max: usize,
    sent: Position,
    boundary: Position,
    permitted: Position,
}

impl Log {
    pub(super) fn new(bytes_max: usize) -> Self {
        let start = Position::default();
        Self {
            segments: VecDeque::new(),
            first: 0,
            spare: vec![],
            bytes: 0,
            bytes_max,
            sent: start,
            boundary: start,
            permitted: start,
        }
    }

    /// Memory held for frames.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a frame of `len` bytes can be appended and the log stay within `share` of its bound. An empty log takes
    /// any frame.
    pub(super) fn fits(&self, len: usize, share: Share) -> bool {
        let bytes_max = match share {
            Share::Whole => self.bytes_max,
            Share::Half => self.bytes_max / 2,
        };
        let grows_by = if self.tail_takes(len) { 0 } else { capacity_for(len) };
        self.bytes + grows_by <= bytes_max || self.is_empty()
    }

    /// Nothing waits to be sent or acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.end() && self.segments.iter().all(|s| s.live == 0)
    }

    /// Appends a frame of exactly `len` bytes, which `write` puts at the end of the buffer it is given.
    pub(super) fn append(&mut self, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Position {
        let at = self.place(len);
        let frames = &mut self.segments.back_mut().expect("invariant: place() made one").frames;
        let capacity = frames.capacity();
        write(frames);
        debug_assert_eq!(frames.len(), at.offset + len, "a frame is as long as it was said to be");
        debug_assert!(frames.len() + RESERVED_BYTES <= capacity, "a segment never moves");
        at
    }

    /// The frame at `at` waits for an acknowledgement: its segment stays until `release`.
    pub(super) fn retain(&mut self, at: Position) {
        if let Some(segment) = self.segment_mut(at.segment) {
            segment.live += 1;
        }
    }

    /// The frame at `at` is settled.
    pub(super) fn release(&mut self, at: Position) {
        if let Some(segment) = self.segment_mut(at.segment) {
            segment.live -= 1;
            if segment.live == 0 {
                self.reclaim(at.segment);
            }
        }
    }

    /// The next frame that is not yet permitted; it is from now on.
    pub(super) fn permit(&mut self) -> Option<PublishFrame<'_>> {
        let Position { segment, offset } = self.permitted;
        let index = usize::try_from(segment - self.first).ok()?;
        let len =
            PublishFrame::first_of(self.segments.get(index)?.frames.get(offset..).filter(|f| !f.is_empty())?).len();
        self.permitted.offset += len;
        self.normalize();
        Some(PublishFrame::first_of(&self.segments[index].frames[offset..]))
    }

    /// Where the next frame stands that is not yet permitted.
    #[inline]
    pub(super) fn permitted(&self) -> Position {
        self.permitted
    }

    /// Passes the next frame that is not yet permitted over: it is not sent. `false`: what goes before it is not written
    /// yet.
    pub(super) fn pass_over(&mut self) -> bool {
        let Some(len) = self.next_to_permit().map(PublishFrame::len).filter(|_| self.sent == self.permitted) else {
            return false;
        };
        let segment = self.permitted.segment;
        self.permitted.offset += len;
        (self.sent, self.boundary) = (self.permitted, self.permitted);
        self.normalize();
        self.reclaim(segment);
        true
    }

    /// Writes over a part of the frame at `at`, of which nothing was sent on this connection.
    pub(super) fn patch(&mut self, at: Position, offset: usize, value: [u8; 4]) {
        let segment = self.segment_mut(at.segment);
        let place = segment.and_then(|held| held.frames.get_mut(at.offset + offset..at.offset + offset + value.len()));
        if let Some(place) = place {
            place.copy_from_slice(&value);
        }
    }

    /// The frame that [`permit`](Self::permit) would give.
    pub(super) fn next_to_permit(&self) -> Option<PublishFrame<'_>> {
        let Position { segment, offset } = self.permitted;
        let rest = self.segment(segment)?.frames.get(offset..).filter(|rest| !rest.is_empty())?;
        Some(PublishFrame::first_of(rest))
    }

    /// Whether all of the frame of `len` bytes at `at` was handed to this connection.
    pub(super) fn was_sent(&self, at: Position, len: usize) -> bool {
        at.plus(len) <= self.sent
    }

    /// Whether the last byte sent was the last of a frame.
    pub(super) fn at_boundary(&self) -> bool {
        self.sent == self.boundary
    }

    /// What is to be sent next, as far as it lies in one piece.
    pub(super) fn unsent(&self) -> &[u8] {
        self.unsent_to(self.permitted)
    }

    /// The rest of the frame that is being sent.
    pub(super) fn rest_of_frame(&self) -> &[u8] {
        self.unsent_to(self.boundary)
    }

    /// Bytes that are appended and not sent, permitted or not.
    pub(super) fn unsent_bytes(&self) -> usize {
        let Some(begun) = usize::try_from(self.sent.segment - self.first).ok() else { return 0 };
        let bytes: usize = self.segments.iter().skip(begun).map(|s| s.frames.len()).sum();
        bytes - self.sent.offset.min(bytes)
    }

    /// `n` bytes of what [`unsent`](Self::unsent) showed were handed to the connection.
    pub(super) fn wrote(&mut self, n: usize) {
        let segment = self.sent.segment;
        self.sent.offset += n;
        if let Some(index) = segment.checked_sub(self.first).and_then(|i| usize::try_from(i).ok()) {
            let frames = &self.segments[index].frames;
            debug_assert!(self.sent <= self.permitted, "no more is sent than is permitted");
            while self.boundary < self.sent {
                self.boundary.offset += PublishFrame::first_of(&frames[self.boundary.offset..]).len();
            }
        }
        self.normalize();
        self.reclaim(segment);
    }

    /// The frame at `at`, which is retained.
    pub(super) fn frame_at(&self, at: Position) -> PublishFrame<'_> {
        let segment = self.segment(at.segment).expect("invariant: a retained frame's segment stays");
        PublishFrame::first_of(&segment.frames[at.offset..])
    }

    /// Puts the frames that `keep` wants at the beginning, each with the first byte that `keep` gives it; nothing is sent
    /// or permitted then. Those with a packet id are retained. `keep` is shown all of them in each of so many passes:
    /// those it wants in the first come first, each pass in their order.
    pub(super) fn rebuild(&mut self, passes: u8, mut keep: impl FnMut(u8, Retained<'_>) -> Option<u8>) {
        let (mut old, first, sent) = (mem::take(&mut self.segments), self.first, self.sent);
        self.first += old.len() as u64;
        self.bytes = 0;
        let start = Position { segment: self.first, offset: 0 };
        (self.sent, self.boundary, self.permitted) = (start, start, start);
        let count = old.len();
        for (pass, number) in (0..passes).flat_map(|pass| (0..count).map(move |number| (pass, number))) {
            let segment = &mut old[number];
            let mut was = Position { segment: first + number as u64, offset: 0 };
            while let Some(rest) = segment.frames.get(was.offset..).filter(|rest| !rest.is_empty()) {
                let frame = PublishFrame::first_of(rest);
                let len = frame.len();
                let becomes = self.place(len);
                let (begun, finished) = (was < sent, was.plus(len) <= sent);
                if let Some(first_byte) = keep(pass, Retained { frame, was, becomes, begun, finished }) {
                    let frames = &mut self.segments.back_mut().expect("invariant: place() made one").frames;
                    frames.push(first_byte);
                    frames.extend_from_slice(&frame.0.bytes()[1..]);
                    if frame.packet_id().is_some() {
                        self.retain(becomes);
                    }
                }
                was = was.plus(len);
            }
            if pass + 1 == passes {
                let frames = mem::take(&mut segment.frames);
                self.recycle(frames);
            }
        }
    }

    fn unsent_to(&self, end: Position) -> &[u8] {
        let Position { segment, offset } = self.sent;
        let Some(segment) = self.segment(segment) else { return &[] };
        let end = if end.segment == self.sent.segment { end.offset } else { segment.frames.len() };
        &segment.frames[offset..end]
    }

    /// Makes the last segment one that takes `len` bytes more.
    fn place(&mut self, len: usize) -> Position {
        if !self.tail_takes(len) {
            // No empty segment is left in the middle, where nothing would free it.
            if let Some(empty) = self.segments.pop_back_if(|tail| tail.frames.is_empty()) {
                self.bytes -= empty.frames.capacity();
                self.recycle(empty.frames);
            }
            let frames = match self.spare.pop() {
                Some(spare) if capacity_for(len) == SEGMENT_BYTES => spare,
                _ => Vec::with_capacity(capacity_for(len)),
            };
            self.bytes += frames.capacity();
            self.segments.push_back(Segment { frames, live: 0 });
            self.normalize();
        }
        self.end()
    }

    fn tail_takes(&self, len: usize) -> bool {
        self.segments.back().is_some_and(|s| s.frames.len() + len + RESERVED_BYTES <= s.frames.capacity())
    }

    /// Where the next frame would lie if the last segment takes it.
    pub(super) fn end(&self) -> Position {
        match self.segments.back() {
            Some(tail) => Position { segment: self.first + self.segments.len() as u64 - 1, offset: tail.frames.len() },
            None => Position { segment: self.first, offset: 0 },
        }
    }

    /// A mark at the end of a segment that is not the last stands at the beginning of the next.
    fn normalize(&mut self) {
        let (first, segments) = (self.first, &self.segments);
        for mark in [&mut self.sent, &mut self.boundary, &mut self.permitted] {
            while let Some(index) = mark.segment.checked_sub(first).and_then(|i| usize::try_from(i).ok())
                && index + 1 < segments.len()
                && mark.offset == segments[index].frames.len()
            {
                *mark = Position { segment: mark.segment + 1, offset: 0 };
            }
        }
    }

    /// Takes the memory of a segment back when nothing in it is waited for, also from the middle: one frame that is
    /// never acknowledged pins 64 KiB, not all that came after it. The last segment is filled again from its start.
    fn reclaim(&mut self, number: u64) {
        let (sent, is_last) = (self.sent, number == self.end().segment);
        let Some(segment) = self.segment_mut(number) else { return };
        if segment.live > 0 || sent < (Position { segment: number, offset: segment.frames.len() }) {
            return;
        }
        if is_last {
            // All marks stand at its end.
            let start = Position { segment: number, offset: 0 };
            segment.frames.clear();
            (self.sent, self.boundary, self.permitted) = (start, start, start);
            if self.segments.back().is_some_and(|s| s.frames.capacity() <= SEGMENT_BYTES) {
                return;
            }
        }
        let Some(segment) = self.segment_mut(number) else { return };
        let frames = mem::take(&mut segment.frames);
        self.bytes -= frames.capacity();
        self.recycle(frames);
        while self.segments.front().is_some_and(|s| s.frames.capacity() == 0) {
            self.segments.pop_front();
            self.first += 1;
        }
        if self.segments.is_empty() {
            let start = self.end();
            (self.sent, self.boundary, self.permitted) = (start, start, start);
        }
    }

    fn recycle(&mut self, mut frames: Vec<u8>) {
        if self.spare.len() < SPARE_SEGMENTS_MAX && frames.capacity() == SEGMENT_BYTES {
            frames.clear();
            self.spare.push(frames);
        }
    }

    fn segment(&self, number: u64) -> Option<&Segment> {
        self.segments.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn segment_mut(&mut self, number: u64) -> Option<&mut Segment> {
        self.segments.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}

/// Memory for a segment that begins with a frame of `len` bytes.
fn capacity_for(len: usize) -> usize {
    (len + RESERVED_BYTES).max(SEGMENT_BYTES)
}

/// How much of the log a message may fill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Share {
    /// QoS 1: all of it.
    Whole,
    /// QoS 0: half, so that it never takes the place of what must not be lost.
    Half,
}

/// Large enough that a write carries hundreds of small messages, small enough that one pinned segment costs little.
pub(super) const SEGMENT_BYTES: usize = 64 << 10;

/// The codec makes room for the longest fixed header before it knows the header: without these bytes to spare, the last
/// frame of a segment would move it.
const RESERVED_BYTES: usize = 5;

/// Buffers kept for the next segments: half a mebibyte.
const SPARE_SEGMENTS_MAX: usize = 8;

/// MQTT 5.0 §3.3.1.
const QOS_BITS: u8 = 0x06;
