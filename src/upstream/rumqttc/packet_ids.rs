//! Packet ids that the library gives: foreseen, so that none is given twice.
//!
//! The library counts from one to the number of messages that it may have in flight, and around, for PUBLISH, SUBSCRIBE and
//! UNSUBSCRIBE alike, whether the id is free or not. A PUBLISH whose id is taken is put aside, in the one place that there
//! is for it; a SUBSCRIBE is sent. Neither happens here: what would be given a taken id waits.

/// What a packet id stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// The link's PUBLISH of this id.
    Publish(u16),
    /// The link's SUBSCRIBE of this id.
    Subscribe(u16),
    /// This filter of the link's UNSUBSCRIBE of this id: the library asks for one at a time.
    Unsubscribe(u16, usize),
}

/// See the module.
pub(super) struct PacketIds {
    last: u16,
    max: u16,
    used: Vec<Option<Use>>,
    publishes: usize,
    publishes_max: usize,
}

impl PacketIds {
    /// As the library counts, where it was given `upper` and the hub takes `receive_maximum` messages at once.
    pub(super) fn new(upper: u16, receive_maximum: u16) -> Self {
        let max = upper.min(receive_maximum).max(1);
        Self {
            last: 0,
            max,
            used: vec![None; usize::from(max) + 1],
            publishes: 0,
            // With as many in flight as it may have, the library sends nothing else either: no acknowledgement of a
            // command, no SUBSCRIBE.
            publishes_max: usize::from(max).saturating_sub(1).max(1),
        }
    }

    /// The id that the next request is given, if that may be made now.
    pub(super) fn claim(&mut self, purpose: Use) -> Option<u16> {
        let is_publish = matches!(purpose, Use::Publish(_));
        let id = self.last + 1;
        let place = self.used.get_mut(usize::from(id))?;
        if place.is_some() || is_publish && self.publishes == self.publishes_max {
            return None;
        }
        *place = Some(purpose);
        self.publishes += usize::from(is_publish);
        self.last = if id == self.max { 0 } else { id };
        Some(id)
    }

    /// The hub answered: what the id stood for.
    pub(super) fn release(&mut self, id: u16) -> Option<Use> {
        let purpose = self.used.get_mut(usize::from(id))?.take()?;
        self.publishes -= usize::from(matches!(purpose, Use::Publish(_)));
        Some(purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_go_around_and_a_taken_one_is_waited_for() {
        let mut ids = PacketIds::new(4, u16::MAX);
        let claimed: Vec<_> = (0..4).map(|n| ids.claim(Use::Publish(100 + n))).collect();
        assert_eq!(claimed, [Some(1), Some(2), Some(3), None], "one less than the library may have in flight");
        assert_eq!(ids.release(2), Some(Use::Publish(101)));
        assert_eq!(ids.claim(Use::Subscribe(7)), Some(4));
        assert_eq!(ids.claim(Use::Publish(104)), None, "1 is taken");
        assert_eq!(ids.release(1), Some(Use::Publish(100)));
        assert_eq!(ids.claim(Use::Publish(104)), Some(1));
        assert_eq!(ids.claim(Use::Unsubscribe(8, 0)), Some(2));
        assert_eq!((ids.release(9), ids.release(0), ids.release(4)), (None, None, Some(Use::Subscribe(7))));
        assert_eq!(ids.release(4), None, "answered once");
    }

    #[test]
    fn a_hub_that_takes_one_message_at_a_time_is_sent_one() {
        let mut ids = PacketIds::new(2_002, 1);
        for n in 0..3 {
            assert_eq!(ids.claim(Use::Publish(n)), Some(1));
            assert_eq!(ids.claim(Use::Publish(n)), None);
            assert_eq!(ids.release(1), Some(Use::Publish(n)));
        }
    }

    /// What rumqttc 0.25.1 does with its counter.
    fn next_of_library(last: &mut u16, max: u16) -> u16 {
        let next = *last + 1;
        *last = if next == max { 0 } else { next };
        next
    }

    proptest! {
        #[test]
        fn what_is_foreseen_is_what_the_library_gives_and_none_is_given_twice(
            upper in 1_u16..12,
            receive_maximum in 1_u16..12,
            steps in proptest::collection::vec((proptest::bool::ANY, 0_usize..12), 0..300),
        ) {
            let mut ids = PacketIds::new(upper, receive_maximum);
            let (mut last, mut held) = (0, Vec::new());
            for (asks, which) in steps {
                if asks {
                    let purpose = if which == 0 { Use::Subscribe(1) } else { Use::Publish(1) };
                    if let Some(id) = ids.claim(purpose) {
                        prop_assert_eq!(id, next_of_library(&mut last, upper.min(receive_maximum)));
                        prop_assert!(!held.contains(&id));
                        held.push(id);
                    }
                } else if !held.is_empty() {
                    let id = held.remove(which % held.len());
                    prop_assert!(ids.release(id).is_some());
                }
            }
        }
    }
}
