//! Messages age while they wait: what is sent has the Message Expiry Interval that is left of it, and what has none left is
//! not sent (MQTT 5.0 [MQTT-3.3.2-5], [MQTT-3.3.2-6]). Only what carries the property is touched.

use std::{borrow::Cow, time::Duration};

use super::{
    Link, LinkOutput,
    backlog::Backlog,
    slots::{Owed, Slot},
    spooling::read_back,
};
use crate::{
    packet::{ProtocolVersion, message_expiry_at},
    time::Tick,
};

/// Messages whose time was over before the hub was sent them.
#[derive(Default)]
pub(super) struct Expired {
    pub(super) count: u64,
    /// Whoever waits for one of them.
    pub(super) owed: Vec<Owed>,
}

impl Expired {
    /// One that had its place in the window.
    pub(super) fn add(&mut self, slot: &Slot, backlog: &mut Option<Box<Backlog>>) {
        self.count += 1;
        self.owed.extend(match (slot.disk, backlog) {
            (Some(disk), Some(backlog)) => backlog.taken_by_hub(disk, slot.device),
            _ => slot.owed,
        });
    }
}

/// What becomes of the message that is next.
pub(super) enum Next {
    /// It is sent, with what is left of its time.
    Goes,
    /// It is not sent.
    IsOver,
    /// What goes before it is to be written first.
    Waits,
}

impl Link {
    /// Messages whose time was over before the hub could be sent them, since it was last asked. Whoever waits for one is
    /// told that it was taken: it was not to be had any more.
    pub fn take_expired(&mut self, out: &mut LinkOutput, now: Tick) -> u64 {
        let mut of_backlog = self.backlog.as_mut().map(|backlog| backlog.take_expired()).unwrap_or_default();
        let owed = self.expired.owed.drain(..).chain(of_backlog.owed.drain(..));
        out.settled.extend(owed.map(|owed| owed.settled(Ok(()), now, now)));
        std::mem::take(&mut self.expired.count) + of_backlog.count
    }

    /// The next message in the log expires.
    #[cold]
    pub(super) fn age_next(&mut self, now: Tick) -> Next {
        let Some((at, ends)) = self.ends.front().copied() else { return Next::Goes };
        let frame = self.log.frame_at(at);
        let id = frame.packet_id();
        let was_sent = id.and_then(|id| self.slots.get(id)).is_some_and(|slot| slot.resent);
        if ends <= now && !was_sent {
            if !self.log.pass_over() {
                return Next::Waits;
            }
            self.ends.pop_front();
            match id.and_then(|id| self.slots.free(id)) {
                Some(slot) => {
                    self.expired.add(&slot, &mut self.backlog);
                    self.log.release(at);
                }
                None => self.expired.count += 1,
            }
            return Next::IsOver;
        }
        self.ends.pop_front();
        let publish = read_back(frame, self.client.version());
        if let Some((offset, seconds)) = message_expiry_at(publish.properties) {
            // What the hub may have already is sent again, whatever the time [MQTT-4.4.0-1].
            let left = u32::try_from(ends.since(now).as_millis().div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
            if left < seconds {
                let before = frame.len() - publish.payload.len() - publish.properties.len();
                self.log.patch(at, before + offset, left.to_be_bytes());
            }
        }
        Next::Goes
    }
}

/// When a message that is offered now expires; most never do.
#[inline]
pub(super) fn ends_at(version: ProtocolVersion, properties: &[u8], now: Tick) -> Option<Tick> {
    if properties.is_empty() || version != ProtocolVersion::V5_0 {
        return None;
    }
    message_expiry_at(properties).map(|(_, seconds)| now.plus(Duration::from_secs(seconds.into())))
}

/// The properties of a message that was offered then, as they were: what is recorded ages from when it was received.
pub(super) fn as_received<'a>(properties: &'a [u8], expires_at: Option<Tick>, offered: Tick) -> Cow<'a, [u8]> {
    let found = expires_at.and_then(|at| Some((at, message_expiry_at(properties)?)));
    let Some((at, (offset, _))) = found else { return Cow::Borrowed(properties) };
    let seconds = u32::try_from(at.since(offered).as_secs()).unwrap_or(u32::MAX);
    Cow::Owned(with_expiry(properties, offset, seconds))
}

fn with_expiry(properties: &[u8], at: usize, seconds: u32) -> Vec<u8> {
    let mut changed = properties.to_vec();
    if let Some(value) = changed.get_mut(at..at + 4) {
        value.copy_from_slice(&seconds.to_be_bytes());
    }
    changed
}

/// What waiting has made of the properties of a message.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Aged<'a> {
    /// They say what holds.
    Still(Cow<'a, [u8]>),
    /// Its time is over.
    Expired,
}

/// `properties` after so many milliseconds of waiting. Whole seconds are taken off: a message is sent with a second too
/// much rather than dropped with one left.
pub(super) fn aged(properties: &[u8], waited_ms: u64) -> Aged<'_> {
    let waited = waited_ms / 1_000;
    let found = if waited == 0 || properties.is_empty() { None } else { message_expiry_at(properties) };
    let Some((at, seconds)) = found else { return Aged::Still(Cow::Borrowed(properties)) };
    let left = u64::from(seconds).saturating_sub(waited);
    let Some(left) = u32::try_from(left).ok().filter(|left| *left > 0) else { return Aged::Expired };
    Aged::Still(Cow::Owned(with_expiry(properties, at, left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_of_waiting_are_taken_off_and_nothing_else_changes() {
        let with = |seconds: u32| {
            let expiry = [&[2][..], &seconds.to_be_bytes()].concat();
            [&b"\x01\x01"[..], b"\x26\x00\x01a\x00\x01\x02", &expiry, b"\x03\x00\x01t"].concat()
        };
        let properties = with(10);
        for (waited_ms, left) in [(0, 10), (999, 10), (1_000, 9), (9_999, 1)] {
            assert_eq!(aged(&properties, waited_ms), Aged::Still(with(left).into()), "{waited_ms}");
        }
        for waited_ms in [10_000, u64::MAX] {
            assert_eq!(aged(&properties, waited_ms), Aged::Expired);
        }
        // What does not expire, however long it waits; and what was never properties is not made anything of.
        for other in [&b""[..], b"\x01\x01", b"\x26\x00\x05\x02"] {
            assert_eq!(aged(other, u64::MAX), Aged::Still(other.into()));
        }
    }
}
