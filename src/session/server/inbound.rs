//! What comes from the device: the order of PUBACKs, and topic aliases.

use std::collections::VecDeque;

use crate::{
    denial::{CloseReason, Denial},
    topic::{OwnedTopicName, TopicError, TopicName},
};

/// QoS 1 messages without a PUBACK, in the order of their PUBLISHes [MQTT-4.6.0-2].
#[derive(Debug, Default)]
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    /// How many of the newest slots have packet identifiers each one more than the last. As long as that is all of
    /// them, a slot is found by subtraction.
    run: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    packet_id: u16,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Stored,
    Refused(Denial),
}

impl Ring {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn contains(&self, packet_id: u16) -> bool {
        self.position(packet_id).is_some()
    }

    #[inline]
    pub(super) fn push(&mut self, packet_id: u16) {
        self.push_slot(Slot { packet_id, state: State::Waiting });
    }

    /// Of no effect when the identifier is not in flight, or decided.
    #[inline]
    pub(super) fn stored(&mut self, packet_id: u16) {
        self.decide(packet_id, State::Stored);
    }

    /// Takes a place for it if it has none.
    pub(super) fn refused(&mut self, packet_id: u16, denial: Denial) {
        if self.contains(packet_id) {
            self.decide(packet_id, State::Refused(denial));
        } else {
            self.push_slot(Slot { packet_id, state: State::Refused(denial) });
        }
    }

    /// Takes the oldest off the ring if it is decided.
    #[inline]
    pub(super) fn next_decided(&mut self) -> Option<(u16, Result<(), Denial>)> {
        let slot = *self.slots.front()?;
        let outcome = match slot.state {
            State::Waiting => return None,
            State::Stored => Ok(()),
            State::Refused(denial) => Err(denial),
        };
        self.slots.pop_front();
        self.run = self.run.min(self.slots.len());
        Some((slot.packet_id, outcome))
    }

    pub(super) fn shrink(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }

    #[inline]
    fn push_slot(&mut self, slot: Slot) {
        let follows = self.slots.back().is_some_and(|last| successor(last.packet_id) == slot.packet_id);
        self.run = if follows { self.run + 1 } else { 1 };
        self.slots.push_back(slot);
    }

    #[inline]
    fn decide(&mut self, packet_id: u16, state: State) {
        if let Some(at) = self.position(packet_id)
            && let Some(slot) = self.slots.get_mut(at)
            && slot.state == State::Waiting
        {
            slot.state = state;
        }
    }

    #[inline]
    fn position(&self, packet_id: u16) -> Option<usize> {
        let oldest = self.slots.front()?.packet_id;
        if self.run >= self.slots.len() {
            let distance = distance(oldest, packet_id);
            return (distance < self.slots.len()).then_some(distance);
        }
        self.slots.iter().position(|slot| slot.packet_id == packet_id)
    }
}

/// The topic of the last PUBLISH: a device that publishes to it again has it checked by one comparison.
#[derive(Debug, Default)]
pub(super) struct LastTopic {
    topic: Option<OwnedTopicName>,
}

impl LastTopic {
    #[inline]
    pub(super) fn check<'a>(&'a mut self, bytes: &'a [u8]) -> Result<TopicName<'a>, TopicError> {
        if self.topic.as_ref().is_none_or(|last| last.name().as_str().as_bytes() != bytes) {
            let name = TopicName::new(bytes)?;
            if bytes.len() > LAST_TOPIC_BYTES_MAX {
                return Ok(name);
            }
            self.topic.get_or_insert_with(|| name.into()).replace(name);
        }
        Ok(self.topic.as_ref().expect("invariant: it is there or has just been set").name())
    }

    pub(super) fn shrink(&mut self) {
        self.topic = None;
    }
}

/// Topics that the device has given a number (MQTT 5.0 §3.3.2.3.4).
#[derive(Debug, Default)]
pub(super) struct Aliases {
    topics: Vec<Option<OwnedTopicName>>,
}

impl Aliases {
    /// The topic of a PUBLISH with an alias: the one it carries, which the alias stands for from here on, or, where it
    /// carries none, the one that the alias stands for.
    pub(super) fn resolve<'a>(
        &'a mut self,
        alias: u16,
        topic: &'a [u8],
        alias_max: u16,
    ) -> Result<TopicName<'a>, CloseReason> {
        // MQTT 5.0 [MQTT-3.3.2-8], [MQTT-3.3.2-9]
        if alias == 0 || alias > alias_max {
            return Err(CloseReason::TopicAliasInvalid);
        }
        let at = usize::from(alias - 1);
        if topic.is_empty() {
            return self.name(at).ok_or(CloseReason::ProtocolError);
        }
        let name = TopicName::new(topic).map_err(|_| CloseReason::Denied(Denial::TopicInvalid))?;
        if self.name(at) != Some(name) {
            self.set(at, name)?;
        }
        Ok(name)
    }

    fn name(&self, at: usize) -> Option<TopicName<'_>> {
        self.topics.get(at)?.as_ref().map(OwnedTopicName::name)
    }

    fn set(&mut self, at: usize, name: TopicName<'_>) -> Result<(), CloseReason> {
        if self.topics.len() <= at {
            self.topics.resize(at + 1, None);
        }
        self.topics[at] = Some(name.into());
        let bytes: usize = self.topics.iter().flatten().map(|topic| topic.name().as_str().len()).sum();
        if bytes > ALIAS_BYTES_MAX { Err(CloseReason::TopicAliasInvalid) } else { Ok(()) }
    }
}

/// Packet identifiers go from 1 to 65,535 and round.
#[inline]
fn successor(packet_id: u16) -> u16 {
    packet_id.checked_add(1).unwrap_or(1)
}

#[inline]
fn distance(from: u16, to: u16) -> usize {
    let (from, to) = (u32::from(from), u32::from(to));
    (if to >= from { to - from } else { to + 65_535 - from }) as usize
}

/// All topics of one session's aliases together: an honest device has a handful of a hundred bytes.
const ALIAS_BYTES_MAX: usize = 16 * 1024;
/// A longer topic is checked every time: the check is cheap beside the copy.
const LAST_TOPIC_BYTES_MAX: usize = 256;
