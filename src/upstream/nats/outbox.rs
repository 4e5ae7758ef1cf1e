//! Which message goes out next, so that the order of a device holds whatever the stream refuses.
//!
//! A stream that discards what is new, or that has several replicas, may refuse a message and take the one behind it: from
//! a device, it is sent one message at a time. And until a connection has seen a first acknowledgement it carries one
//! message alone: a stream that takes nothing refuses one message, and not a window of them.

use std::collections::{HashMap, VecDeque};

/// Messages that wait to be sent. `M`: what a message is.
pub(super) struct Outbox<M> {
    pace: Pace,
    ready: VecDeque<Waiting<M>>,
    /// Devices with a message on its way, and what they have behind it. Only with [`Pace::OneADevice`].
    busy: HashMap<u64, VecDeque<Waiting<M>>>,
    waiting: usize,
    bytes: usize,
    on_the_way: usize,
    proven: bool,
}

/// How many messages of one device may be on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    /// As many as there are.
    Pipelined,
    /// One.
    OneADevice,
}

/// A message that waits.
pub(super) struct Waiting<M> {
    pub(super) message: M,
    /// Whose it is: a hash.
    pub(super) device: u64,
    /// It will be answered.
    pub(super) answered: bool,
    pub(super) bytes: usize,
}

impl<M> Outbox<M> {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, ready: VecDeque::new(), busy: HashMap::new(), waiting: 0, bytes: 0, on_the_way: 0, proven: false }
    }

    /// Whether more should be taken from the link.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX && self.waiting < MESSAGES_MAX
    }

    pub(super) fn push(&mut self, waiting: Waiting<M>) {
        self.waiting += 1;
        self.bytes += waiting.bytes;
        match self.busy.get_mut(&waiting.device) {
            Some(behind) => behind.push_back(waiting),
            None => self.make_ready(waiting),
        }
    }

    /// The next message to be sent.
    pub(super) fn next(&mut self) -> Option<Waiting<M>> {
        if !self.proven && self.on_the_way > 0 {
            return None;
        }
        let next = self.ready.pop_front()?;
        self.waiting -= 1;
        self.bytes -= next.bytes;
        self.on_the_way += usize::from(next.answered);
        Some(next)
    }

    /// A message of the device was stored, or refused for good.
    pub(super) fn answered(&mut self, device: u64) {
        self.on_the_way -= 1;
        self.proven = true;
        let Some(mut behind) = self.busy.remove(&device) else { return };
        while let Some(next) = behind.pop_front() {
            let answered = next.answered;
            self.ready.push_back(next);
            if answered {
                self.busy.insert(device, behind);
                return;
            }
        }
    }

    fn make_ready(&mut self, waiting: Waiting<M>) {
        if self.pace == Pace::OneADevice && waiting.answered {
            self.busy.insert(waiting.device, VecDeque::new());
        }
        self.ready.push_back(waiting);
    }
}

/// What is taken from the link and cannot go yet. The link has it, too, until it is answered.
const BYTES_MAX: usize = 4 << 20;
const MESSAGES_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waiting(message: u32, device: u64, answered: bool) -> Waiting<u32> {
        Waiting { message, device, answered, bytes: 1 }
    }

    fn sent(outbox: &mut Outbox<u32>) -> Vec<u32> {
        std::iter::from_fn(|| outbox.next().map(|next| next.message)).collect()
    }

    #[test]
    fn a_connection_begins_with_one_message_alone() {
        let mut outbox = Outbox::new(Pace::Pipelined);
        (0..4).for_each(|i| outbox.push(waiting(i, 7, true)));
        assert_eq!(sent(&mut outbox), [0]);
        outbox.answered(7);
        assert_eq!(sent(&mut outbox), [1, 2, 3]);
    }

    #[test]
    fn one_message_of_a_device_is_on_its_way_and_others_do_not_wait_for_it() {
        let mut outbox = Outbox::new(Pace::OneADevice);
        outbox.push(waiting(0, 9, true));
        assert_eq!(sent(&mut outbox), [0]);
        outbox.answered(9);
        for (message, device, answered) in [(1, 7, true), (2, 7, false), (3, 7, true), (4, 8, true), (5, 8, true)] {
            outbox.push(waiting(message, device, answered));
        }
        assert_eq!(sent(&mut outbox), [1, 4]);
        outbox.answered(7);
        assert_eq!(sent(&mut outbox), [2, 3]);
        outbox.answered(8);
        outbox.answered(7);
        assert_eq!(sent(&mut outbox), [5]);
        outbox.answered(8);
        assert!(outbox.busy.is_empty() && (outbox.waiting, outbox.bytes, outbox.on_the_way) == (0, 0, 0));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut outbox = Outbox::new(Pace::Pipelined);
        outbox.push(Waiting { bytes: BYTES_MAX, ..waiting(0, 1, true) });
        assert!(!outbox.has_room());
        assert_eq!(sent(&mut outbox), [0]);
        assert!(outbox.has_room());
        (0..MESSAGES_MAX as u32).for_each(|i| outbox.push(waiting(i, 1, true)));
        assert!(!outbox.has_room());
    }

    proptest! {
        #[test]
        fn everything_goes_out_once_in_the_order_of_its_device_and_one_by_one(
            messages in proptest::collection::vec((0_u64..4, proptest::bool::ANY), 0..60),
            answers in proptest::collection::vec(0_usize..100, 200),
        ) {
            let mut outbox = Outbox::new(Pace::OneADevice);
            let mut out: Vec<(u64, u32)> = vec![];
            let mut on_the_way: Vec<u64> = vec![];
            let mut answers = answers.into_iter().cycle();
            for (i, (device, answered)) in (0_u32..).zip(&messages) {
                outbox.push(waiting(i, *device, *answered));
                while let Some(next) = outbox.next() {
                    out.push((next.device, next.message));
                    if next.answered {
                        prop_assert!(!on_the_way.contains(&next.device));
                        on_the_way.push(next.device);
                    }
                }
                if let Some(answer) = answers.next() && answer < on_the_way.len() {
                    outbox.answered(on_the_way.remove(answer));
                }
            }
            loop {
                while let Some(next) = outbox.next() {
                    out.push((next.device, next.message));
                    on_the_way.extend(next.answered.then_some(next.device));
                }
                if on_the_way.is_empty() {
                    break;
                }
                outbox.answered(on_the_way.remove(0));
            }
            prop_assert_eq!(out.len(), messages.len());
            for device in 0..4 {
                prop_assert!(out.iter().filter(|(d, _)| *d == device).is_sorted());
            }
        }
    }
}
