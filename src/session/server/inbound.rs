//! What comes from the device: the order of PUBACKs and PUBRECs, which QoS 2 messages are half-way, and topic aliases.

use std::collections::VecDeque;

use crate::{
    denial::{CloseReason, Denial},
    packet::QoS,
    topic::{OwnedTopicName, TopicError, TopicName},
};

/// Messages without a PUBACK (QoS 1) or a PUBREC (QoS 2), in the order of their PUBLISHes ([MQTT-4.6.0-2],
/// [MQTT-4.6.0-3]).
#[derive(Debug, Default)]
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    /// How many of the newest slots have packet identifiers each one more than the last. As long as that is all of
    /// them, a slot is found by subtraction.
    run: usize,
    /// How many slots are [`State::StoredBefore`].
    again: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    packet_id: u16,
    qos: QoS,
    state: State,
}

/// A message whose turn to be answered has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decided {
    pub(super) packet_id: u16,
    pub(super) qos: QoS,
    pub(super) outcome: Outcome,
}

/// How it is to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Stored,
    /// QoS 2, sent again after its PUBREC: it takes no place of its own.
    StoredBefore,
    Refused(Denial),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Stored,
    StoredBefore,
    Refused(Denial),
}

impl Ring {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many of them are new: what was received before is counted there.
    #[inline]
    pub(super) fn len_new(&self) -> usize {
        self.slots.len() - self.again
    }

    /// The QoS of the message that is answered under this identifier; none where none is.
    #[inline]
    pub(super) fn qos_of(&self, packet_id: u16) -> Option<QoS> {
        self.slots.get(self.position(packet_id)?).map(|slot| slot.qos)
    }

    /// Takes the place of a message that is with delivery.
    #[inline]
    pub(super) fn push(&mut self, packet_id: u16, qos: QoS) {
        self.push_slot(Slot { packet_id, qos, state: State::Waiting });
    }

    /// A QoS 2 message that was received came again: PUBREC again, in its turn.
    pub(super) fn push_again(&mut self, packet_id: u16) {
        self.again += 1;
        self.push_slot(Slot { packet_id, qos: QoS::ExactlyOnce, state: State::StoredBefore });
    }

    /// Says whether the identifier is in flight. Of no effect when it is decided.
    #[inline]
    pub(super) fn stored(&mut self, packet_id: u16) -> bool {
        self.decide(packet_id, State::Stored)
    }

    /// As [`stored`](Self::stored).
    pub(super) fn refused(&mut self, packet_id: u16, denial: Denial) -> bool {
        self.decide(packet_id, State::Refused(denial))
    }

    /// Takes the oldest off the ring if it is decided.
    #[inline]
    pub(super) fn next_decided(&mut self) -> Option<Decided> {
        let Slot { packet_id, qos, state } = *self.slots.front()?;
        let outcome = match state {
            State::Waiting => return None,
            State::Stored => Outcome::Stored,
            State::StoredBefore => {
                self.again -= 1;
                Outcome::StoredBefore
            }
            State::Refused(denial) => Outcome::Refused(denial),
        };
        self.slots.pop_front();
        self.run = self.run.min(self.slots.len());
        Some(Decided { packet_id, qos, outcome })
    }

    /// QoS 2 messages that nothing was decided of, and those that are stored.
    pub(super) fn of_qos_2(&self) -> impl Iterator<Item = (u16, Witness)> {
        self.slots.iter().filter(|slot| slot.qos == QoS::ExactlyOnce).filter_map(|slot| match slot.state {
            State::Waiting => Some((slot.packet_id, Witness::Awaited)),
            State::Stored => Some((slot.packet_id, Witness::There)),
            State::StoredBefore | State::Refused(_) => None,
        })
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
    fn decide(&mut self, packet_id: u16, state: State) -> bool {
        let Some(slot) = self.position(packet_id).and_then(|at| self.slots.get_mut(at)) else { return false };
        if slot.state == State::Waiting {
            slot.state = state;
        }
        true
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

/// Whether a witness has a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Witness {
    There,
    Awaited,
}

/// QoS 2 messages of the device that are half-way. Most sessions have none at most times: then it takes a pointer.
#[derive(Debug, Default)]
pub(super) struct HalfWay(Option<Box<Both>>);

#[derive(Debug, Default)]
struct Both {
    received: Ids,
    awaited: Vec<u16>,
}

impl HalfWay {
    pub(super) fn new(received: Vec<u16>, awaited: Vec<u16>) -> Self {
        let mut ids = Ids::default();
        received.into_iter().for_each(|packet_id| ids.insert(packet_id));
        Self(Some(Box::new(Both { received: ids, awaited })))
    }

    /// How many wait for PUBREL.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |both| both.received.len())
    }

    /// Whether it waits for PUBREL.
    #[inline]
    pub(super) fn is_received(&self, packet_id: u16) -> bool {
        self.0.as_ref().is_some_and(|both| both.received.contains(packet_id))
    }

    /// A witness has it: it waits for PUBREL.
    pub(super) fn receive(&mut self, packet_id: u16) {
        self.0.get_or_insert_default().received.insert(packet_id);
    }

    /// PUBREL came. Says whether it was waited for.
    pub(super) fn finish(&mut self, packet_id: u16) -> bool {
        self.0.as_mut().is_some_and(|both| both.received.remove(packet_id))
    }

    /// Takes it off those of an earlier connection that are with delivery. Says whether it was one.
    pub(super) fn take_awaited(&mut self, packet_id: u16) -> bool {
        let Some(both) = &mut self.0 else { return false };
        let at = both.awaited.iter().position(|held| *held == packet_id);
        at.map(|at| both.awaited.remove(at)).is_some()
    }

    /// Those that wait for PUBREL, and those of an earlier connection that are with delivery.
    pub(super) fn take(&mut self) -> (Vec<u16>, Vec<u16>) {
        self.0.take().map_or_else(Default::default, |both| (both.received.to_vec(), both.awaited))
    }

    /// Those that wait for PUBREL.
    pub(super) fn received(&self) -> Vec<u16> {
        self.0.as_ref().map_or_else(Vec::new, |both| both.received.to_vec())
    }

    pub(super) fn shrink(&mut self) {
        if self.0.as_ref().is_some_and(|both| both.received.len() == 0 && both.awaited.is_empty()) {
            self.0 = None;
        }
    }
}

/// Packet identifiers of QoS 2 messages that wait for their PUBREL: a short list, and beyond that a bit for each that
/// there is. A 3.1.1 device knows no Receive Maximum, and may send thousands before it reads the first PUBREC.
#[derive(Debug, Default)]
struct Ids {
    few: Vec<u16>,
    many: Option<Box<Bits>>,
}

#[derive(Debug)]
struct Bits {
    words: [u64; 1024],
    count: usize,
}

impl Ids {
    fn len(&self) -> usize {
        self.many.as_ref().map_or(self.few.len(), |bits| bits.count)
    }

    #[inline]
    fn contains(&self, id: u16) -> bool {
        match &self.many {
            None => self.few.contains(&id),
            Some(bits) => bits.words[usize::from(id) / 64] & bit(id) != 0,
        }
    }

    fn insert(&mut self, id: u16) {
        if self.contains(id) {
            return;
        }
        if self.many.is_none() && self.few.len() == FEW_MAX {
            let bits = self.many.insert(Box::new(Bits { words: [0; 1024], count: 0 }));
            for id in std::mem::take(&mut self.few) {
                bits.words[usize::from(id) / 64] |= bit(id);
                bits.count += 1;
            }
        }
        match &mut self.many {
            None => self.few.push(id),
            Some(bits) => {
                bits.words[usize::from(id) / 64] |= bit(id);
                bits.count += 1;
            }
        }
    }

    /// Says whether it was there.
    fn remove(&mut self, id: u16) -> bool {
        match &mut self.many {
            None => self.few.iter().position(|held| *held == id).map(|at| self.few.remove(at)).is_some(),
            Some(bits) => {
                let was_there = bits.words[usize::from(id) / 64] & bit(id) != 0;
                bits.words[usize::from(id) / 64] &= !bit(id);
                bits.count -= usize::from(was_there);
                if bits.count == 0 {
                    self.many = None;
                }
                was_there
            }
        }
    }

    fn to_vec(&self) -> Vec<u16> {
        match &self.many {
            None => self.few.clone(),
            Some(_) => (1..=u16::MAX).filter(|id| self.contains(*id)).collect(),
        }
    }
}

fn bit(id: u16) -> u64 {
    1 << (id % 64)
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

/// More than an honest device of 5.0 has half-way; searched one by one.
const FEW_MAX: usize = 128;
/// All topics of one session's aliases together: an honest device has a handful of a hundred bytes.
const ALIAS_BYTES_MAX: usize = 16 * 1024;
/// A longer topic is checked every time: the check is cheap beside the copy.
const LAST_TOPIC_BYTES_MAX: usize = 256;
