//! Who takes the answers of delivery that an ended connection waited for. It takes them for QoS 2 alone: what was brought
//! with QoS 1 is sent again as new, and under its packet identifier there may be another message by then.

use std::collections::HashMap;

use crate::delivery::SessionRef;

#[derive(Default)]
pub(super) struct Heirs(HashMap<SessionRef, Heir>);

struct Heir {
    to: SessionRef,
    /// Packet identifiers of QoS 2 messages that the ended connection brought to delivery.
    awaited: Vec<u16>,
}

impl Heirs {
    /// `to` goes on where `from` ended, and awaits answers for these. Some of them may be owed to who went before `from`.
    pub(super) fn inherit(&mut self, from: SessionRef, to: SessionRef, awaited: &[u16]) {
        let mut own = awaited.to_vec();
        self.0.retain(|_, heir| {
            if heir.to == from {
                heir.to = to;
                heir.awaited.retain(|packet_id| awaited.contains(packet_id));
                own.retain(|packet_id| !heir.awaited.contains(packet_id));
            }
            !heir.awaited.is_empty()
        });
        if !own.is_empty() {
            self.0.insert(from, Heir { to, awaited: own });
        }
    }

    /// Whose answer it is. It is given once.
    pub(super) fn take(&mut self, from: SessionRef, packet_id: u16) -> Option<SessionRef> {
        let heir = self.0.get_mut(&from)?;
        let to = heir.to;
        let at = heir.awaited.iter().position(|held| *held == packet_id)?;
        heir.awaited.swap_remove(at);
        if heir.awaited.is_empty() {
            self.0.remove(&from);
        }
        Some(to)
    }

    /// Nobody goes on for `to`.
    pub(super) fn forget(&mut self, to: SessionRef) {
        self.0.retain(|_, heir| heir.to != to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(slot: u32) -> SessionRef {
        SessionRef { slot, generation: 1 }
    }

    #[test]
    fn an_answer_is_for_what_its_own_connection_awaited_and_is_given_once() {
        let mut heirs = Heirs::default();
        let [first, second, third] = [1, 2, 3].map(session);
        heirs.inherit(first, second, &[7]);
        assert_eq!(heirs.take(first, 8), None, "of QoS 1, or of nobody");
        // The second brings one of its own, and is followed by a third.
        heirs.inherit(second, third, &[7, 9]);
        assert_eq!(heirs.take(second, 7), None, "owed to the first");
        assert_eq!(heirs.take(first, 9), None);
        assert_eq!((heirs.take(first, 7), heirs.take(first, 7)), (Some(third), None));
        assert_eq!(heirs.take(second, 9), Some(third));
        assert!(heirs.0.is_empty());
    }

    #[test]
    fn whose_session_ends_or_awaits_nothing_has_no_heirs() {
        let mut heirs = Heirs::default();
        let [first, second, third] = [1, 2, 3].map(session);
        heirs.inherit(first, second, &[7]);
        heirs.forget(second);
        assert_eq!(heirs.take(first, 7), None);
        heirs.inherit(first, second, &[7]);
        heirs.inherit(second, third, &[]);
        assert!(heirs.0.is_empty());
    }
}
