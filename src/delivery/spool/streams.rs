//! Where the records of each stream lie: which numbers in which segment. Small, whatever waits: one entry for each
//! segment that a stream has records in.

use std::collections::{BTreeMap, VecDeque};

use super::StreamId;

/// Consecutive records of one stream in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) first: u64,
    /// The number after the last.
    pub(super) end: u64,
    pub(super) segment: u64,
    /// When the first of them was received.
    pub(super) first_ms: u64,
}

/// One stream.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Stream {
    /// The first record that is not acknowledged.
    pub(super) head: u64,
    /// The number of the next record.
    pub(super) next: u64,
    /// In order, without overlap.
    pub(super) extents: VecDeque<Extent>,
    /// `head` has moved since it was last written.
    pub(super) dirty: bool,
    /// When the record that was last read first was received.
    pub(super) read_ms: Option<(u64, u64)>,
}

/// So many records of a segment came to be wanted, or ceased to be.
pub(super) type Change<'c> = dyn FnMut(u64, i64) + 'c;

impl Stream {
    /// Records `first` to `end` lie in `segment`, whatever was said before.
    pub(super) fn place(&mut self, extent: Extent, change: &mut Change<'_>) {
        let Extent { first, end, segment, .. } = extent;
        let mut kept = VecDeque::with_capacity(self.extents.len() + 2);
        let mut waiting = Some(extent);
        for old in self.extents.drain(..) {
            if old.first >= end
                && let Some(new) = waiting.take()
            {
                push(&mut kept, new);
            }
            let (lost_from, lost_to) = (old.first.max(first), old.end.min(end));
            if lost_from >= lost_to {
                push(&mut kept, old);
                continue;
            }
            change(old.segment, -(wanted(self.head, lost_from, lost_to) as i64));
            if old.first < first {
                push(&mut kept, Extent { end: first, ..old });
            }
            if let Some(new) = waiting.take() {
                push(&mut kept, new);
            }
            if old.end > end {
                push(&mut kept, Extent { first: end, ..old });
            }
        }
        if let Some(new) = waiting {
            push(&mut kept, new);
        }
        change(segment, wanted(self.head, first, end) as i64);
        self.extents = kept;
        self.next = self.next.max(end);
    }

    /// As [`place`](Self::place), where the records follow all others: nearly always.
    pub(super) fn append(&mut self, extent: Extent, change: &mut Change<'_>) {
        if extent.first != self.next || self.extents.back().is_some_and(|last| last.end > extent.first) {
            return self.place(extent, change);
        }
        change(extent.segment, (extent.end - extent.first) as i64);
        self.next = extent.end;
        push(&mut self.extents, extent);
    }

    /// Records before `upto` are not wanted.
    pub(super) fn acknowledge(&mut self, upto: u64, change: &mut Change<'_>) {
        let upto = upto.min(self.next);
        if upto <= self.head {
            return;
        }
        for extent in &self.extents {
            if extent.first >= upto {
                break;
            }
            let gone = wanted(self.head, extent.first, extent.end.min(upto));
            change(extent.segment, -(gone as i64));
        }
        while self.extents.front().is_some_and(|extent| extent.end <= upto) {
            self.extents.pop_front();
        }
        self.head = upto;
        self.dirty = true;
    }

    /// Where record `number` lies.
    pub(super) fn find(&self, number: u64) -> Option<Extent> {
        let at = self.extents.partition_point(|extent| extent.end <= number);
        self.extents.get(at).filter(|extent| extent.first <= number).copied()
    }

    /// The first number from `head` on that lies nowhere.
    #[cfg(test)]
    pub(super) fn gap(&self) -> Option<u64> {
        let mut at = self.head;
        for extent in &self.extents {
            if extent.first > at {
                return Some(at);
            }
            at = at.max(extent.end);
        }
        (at < self.next).then_some(at)
    }

    /// When the oldest record that waits was received, early rather than late.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        if self.head == self.next {
            return None;
        }
        let extent = self.extents.front()?;
        Some(
            self.read_ms
                .filter(|(number, _)| *number <= self.head)
                .map_or(extent.first_ms, |(_, ms)| ms.max(extent.first_ms)),
        )
    }
}

/// All streams.
pub(super) type Streams = BTreeMap<StreamId, Stream>;

/// How many of the records `first` to `end` are not acknowledged.
fn wanted(head: u64, first: u64, end: u64) -> u64 {
    end.saturating_sub(first.max(head))
}

fn push(extents: &mut VecDeque<Extent>, extent: Extent) {
    match extents.back_mut() {
        Some(last) if last.segment == extent.segment && last.end == extent.first => last.end = extent.end,
        _ => extents.push_back(extent),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn extent(first: u64, end: u64, segment: u64) -> Extent {
        Extent { first, end, segment, first_ms: 0 }
    }

    proptest! {
        #[test]
        fn a_record_lies_where_it_was_last_placed_and_counts_where_it_lies(
            steps in prop::collection::vec((0..3_u8, 0..30_u64, 1..8_u64), 1..60)
        ) {
            let (mut stream, mut live) = (Stream::default(), BTreeMap::<u64, i64>::new());
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let mut newest = 1;
            for (what, number, count) in steps {
                let mut change = |segment: u64, by: i64| *live.entry(segment).or_default() += by;
                match what {
                    0 => {
                        let first = stream.next;
                        stream.append(extent(first, first + count, newest), &mut change);
                        model.extend((first..first + count).map(|n| (n, newest)));
                    }
                    1 => {
                        stream.acknowledge(number, &mut change);
                        model.retain(|n, _| *n >= stream.head);
                    }
                    _ => {
                        newest += 1;
                        let (first, end) = (number.min(stream.next), (number + count).min(stream.next));
                        if first < end {
                            stream.place(extent(first, end, newest), &mut change);
                            model.extend((first.max(stream.head)..end).map(|n| (n, newest)));
                        }
                    }
                }
                for n in stream.head..stream.next {
                    prop_assert_eq!(stream.find(n).map(|e| e.segment), model.get(&n).copied());
                }
                let mut counted = BTreeMap::<u64, i64>::new();
                model.values().for_each(|segment| *counted.entry(*segment).or_default() += 1);
                live.retain(|_, n| *n != 0);
                prop_assert_eq!(&live, &counted);
                prop_assert_eq!(stream.gap(), None);
            }
        }
    }
}
