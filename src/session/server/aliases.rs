//! Numbers that stand for topics towards the device (MQTT 5.0 §3.3.2.3.4): the first topics that come get one, as long as
//! the connection lasts.

use crate::topic::TopicName;

/// See the module.
#[derive(Debug)]
pub(super) struct Aliases {
    topics: Vec<Box<str>>,
    max: u16,
}

/// How a topic is named in one PUBLISH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Called {
    /// By itself.
    Whole,
    /// By itself, and by the number from here on.
    Also(u16),
    /// By the number.
    Only(u16),
}

impl Aliases {
    /// None where the device takes none [MQTT-3.1.2-27].
    pub(super) fn up_to(max: u16) -> Option<Box<Self>> {
        (max > 0).then(|| Box::new(Self { topics: Vec::new(), max: max.min(ALIASES_MAX) }))
    }

    /// How the topic is to be named where a packet has `room` for so many bytes more.
    pub(super) fn call(&mut self, topic: TopicName<'_>, room: usize) -> Called {
        let topic = topic.as_str();
        let number = |at: usize| u16::try_from(at + 1).unwrap_or(u16::MAX);
        if let Some(at) = self.topics.iter().position(|held| **held == *topic) {
            return Called::Only(number(at));
        }
        let pays = (PROPERTY_BYTES + 1..TOPIC_BYTES_MAX).contains(&topic.len());
        // The property block's length may need a byte more, and so may the packet's.
        if !pays || self.topics.len() >= usize::from(self.max) || room < PROPERTY_BYTES + 2 {
            return Called::Whole;
        }
        self.topics.push(topic.into());
        Called::Also(number(self.topics.len() - 1))
    }
}

/// What one connection is remembered with: sixteen numbers of a topic each.
const ALIASES_MAX: u16 = 16;
/// A longer topic is sent whole: what is remembered is bounded.
const TOPIC_BYTES_MAX: usize = 512;
/// Of the property on the wire.
const PROPERTY_BYTES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn call(aliases: &mut Aliases, topic: &str) -> Called {
        aliases.call(TopicName::new(topic.as_bytes()).expect("a topic"), 100)
    }

    #[test]
    fn the_first_topics_get_numbers_and_the_others_none() {
        let mut aliases = *Aliases::up_to(2).expect("some");
        assert_eq!((call(&mut aliases, "c/one"), call(&mut aliases, "c/two")), (Called::Also(1), Called::Also(2)));
        assert_eq!((call(&mut aliases, "c/one"), call(&mut aliases, "c/three")), (Called::Only(1), Called::Whole));
        assert!(Aliases::up_to(0).is_none());
    }

    #[test]
    fn a_topic_that_is_shorter_than_its_number_or_finds_no_room_stays_whole() {
        let mut aliases = *Aliases::up_to(9).expect("some");
        assert_eq!(call(&mut aliases, "c/d"), Called::Whole);
        let topic = TopicName::new(b"c/long").expect("a topic");
        assert_eq!((aliases.call(topic, 4), aliases.call(topic, 5)), (Called::Whole, Called::Also(1)));
    }
}
