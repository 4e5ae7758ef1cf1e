//! A device that wants no message of its own [MQTT-3.8.3-3]: a hub of 5.0 brings back what the gateway stamped on each; of
//! what went to a hub of 3.1.1 the gateway remembers what comes back.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
};

/// The newest messages of one device to hubs that do not say whose they are.
#[derive(Default)]
pub(super) struct Echoes {
    sent: VecDeque<u64>,
    hasher: RandomState,
}

impl Echoes {
    /// A message leaves for a hub, where the topic is called so.
    pub(super) fn sent(&mut self, topic: &str, payload: &[u8]) {
        if self.sent.len() == ECHOES_MAX {
            self.sent.pop_front();
        }
        let echo = self.hasher.hash_one((topic, payload));
        self.sent.push_back(echo);
    }

    /// Whether a message that comes from a hub is one of these; it comes once. Who publishes the same to the same topic
    /// at the same time is taken for the device, and the device's for theirs.
    pub(super) fn take(&mut self, topic: &str, payload: &[u8]) -> bool {
        let echo = self.hasher.hash_one((topic, payload));
        let at = self.sent.iter().position(|sent| *sent == echo);
        at.and_then(|at| self.sent.remove(at)).is_some()
    }
}

/// Two kilobytes of a device that asks for it: more than it has on the way to a hub and back.
const ECHOES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_comes_back_once() {
        let mut echoes = Echoes::default();
        echoes.sent("a", b"1");
        echoes.sent("a", b"1");
        assert!(!echoes.take("b", b"1") && !echoes.take("a", b"2"));
        assert!(echoes.take("a", b"1") && echoes.take("a", b"1") && !echoes.take("a", b"1"));
    }

    #[test]
    fn only_the_newest_are_remembered() {
        let mut echoes = Echoes::default();
        (0..=ECHOES_MAX).for_each(|n| echoes.sent("a", &n.to_be_bytes()));
        assert!(!echoes.take("a", &0usize.to_be_bytes()) && echoes.take("a", &1usize.to_be_bytes()));
    }
}
