//! What of a session outlives its connection (MQTT 5.0 §4.1): plain data, to be kept, stored and taken up again by
//! whoever owns sessions. It names no packet of one MQTT version: a device may come back in the other.

use std::num::NonZeroU64;

use super::Subscription;
use crate::{packet::QoS, time::Tick, topic::TopicName};

/// See the module. The order of every list is the order in which things came.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionState {
    /// What the device has subscribed to.
    pub subscriptions: Vec<Subscription>,
    /// Packet ids of the device's QoS 2 messages that a witness has and that it has not released: their PUBREC is due or
    /// was sent, and no PUBREL came.
    pub received: Vec<u16>,
    /// Those that are with delivery, and that no witness has yet: [`SessionState::settle`]. They are nothing for a disk: a
    /// gateway that was killed never had them, and the device sends them again.
    pub awaited: Vec<u16>,
    /// What was sent to the device and is not acknowledged to the end.
    pub in_flight: Vec<InFlight>,
    /// What waits for a place in flight.
    pub queued: Vec<Message>,
}

impl SessionState {
    /// Drops what has expired, and says of each what it was sent under; what is in flight is never dropped, since the
    /// device may have had it [MQTT-4.4.0-1].
    pub fn expire(&mut self, now: Tick) -> Vec<Option<Receipt>> {
        self.queued.extract_if(.., |message| message.is_expired(now)).map(|message| message.receipt).collect()
    }

    /// What became of a message that was with delivery when its connection was lost. Where a witness has it, it is not
    /// forwarded again when the device sends it again; where it was refused, it is. Of no effect for QoS 1.
    pub fn settle(&mut self, packet_id: u16, outcome: Settlement) {
        let Some(at) = self.awaited.iter().position(|held| *held == packet_id) else { return };
        self.awaited.remove(at);
        if outcome == Settlement::Stored {
            self.received.push(packet_id);
        }
    }

    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.subscriptions.is_empty() && self.received.is_empty() && self.in_flight.is_empty() && self.queued.is_empty()
    }
}

/// What delivery says of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// A witness has it.
    Stored,
    /// It was refused.
    Refused,
}

/// A message that was sent to the device and is not acknowledged to the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InFlight {
    /// As it was sent: it is sent again under the same [MQTT-4.4.0-1].
    pub packet_id: u16,
    /// What the device owes.
    pub stage: Stage,
}

/// What the device owes for a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stage {
    /// PUBACK (QoS 1) or PUBREC (QoS 2).
    Published(Message),
    /// QoS 2: it has the message, and owes PUBCOMP.
    Released,
}

/// Names a message to whoever gave it to the session: [`Change`] says what became of it.
pub type Receipt = NonZeroU64;

/// A message for the device, QoS 1 or 2, in its own terms. One allocation.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic, properties, payload.
    bytes: Box<[u8]>,
    topic_len: u16,
    properties_len: u32,
    /// 1 or 2: what it has by its subscription.
    pub qos: QoS,
    /// RETAIN as it is to be sent.
    pub retain: bool,
    /// When its Message Expiry Interval has passed; none: never.
    pub expires_at: Option<Tick>,
    /// Who asks what became of it.
    pub receipt: Option<Receipt>,
}

impl Message {
    /// A message. `properties` are encoded, without the expiry and without a topic alias; with the subscription
    /// identifiers that it is sent for.
    pub fn new(topic: TopicName<'_>, properties: &[&[u8]], payload: &[u8], qos: QoS) -> Self {
        let topic = topic.as_str().as_bytes();
        let properties_len: usize = properties.iter().map(|piece| piece.len()).sum();
        let mut bytes = Vec::with_capacity(topic.len() + properties_len + payload.len());
        bytes.extend_from_slice(topic);
        properties.iter().for_each(|piece| bytes.extend_from_slice(piece));
        bytes.extend_from_slice(payload);
        Self {
            bytes: bytes.into(),
            topic_len: u16::try_from(topic.len()).expect("invariant: a topic name is 65,535 bytes at most"),
            properties_len: u32::try_from(properties_len).expect("invariant: properties are a part of one packet"),
            qos,
            retain: false,
            expires_at: None,
            receipt: None,
        }
    }

    /// Its topic.
    pub fn topic(&self) -> TopicName<'_> {
        let (topic, _) = self.bytes.split_at(usize::from(self.topic_len));
        TopicName::new(topic).expect("invariant: made of a topic name")
    }

    /// Its encoded properties.
    pub fn properties(&self) -> &[u8] {
        let (_, rest) = self.bytes.split_at(usize::from(self.topic_len));
        rest.split_at(self.properties_len as usize).0
    }

    /// The application message.
    pub fn payload(&self) -> &[u8] {
        self.bytes.split_at(usize::from(self.topic_len) + self.properties_len as usize).1
    }

    /// Whether its Message Expiry Interval has passed.
    pub fn is_expired(&self, now: Tick) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// What is left of its Message Expiry Interval, in seconds: the time it waited is taken off, whole seconds of it
    /// (MQTT 5.0 [MQTT-3.3.2-6]).
    pub fn expiry_left(&self, now: Tick) -> Option<u32> {
        let left_ms = self.expires_at?.0.saturating_sub(now.0);
        Some(u32::try_from(left_ms.div_ceil(1_000)).unwrap_or(u32::MAX))
    }

    /// Memory that it takes, roughly.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + size_of::<Self>()
    }
}

/// Lengths only: topic and payload are the device's.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("qos", &self.qos)
            .field("bytes", &self.bytes.len())
            .field("expires_at", &self.expires_at)
            .field("receipt", &self.receipt)
            .finish_non_exhaustive()
    }
}

/// What happened to the [`SessionState`] of a session that lives, in order: for whoever stores it, and for whoever waits
/// for a [`Receipt`]. Subscriptions are not among it: they change where the driver answers SUBSCRIBE and UNSUBSCRIBE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A QoS 2 message of the device was taken: its packet id is held until PUBREL.
    Received(u16),
    /// PUBREL, or a refusal: the packet id is free.
    Finished(u16),
    /// A message left the queue, or never stood in it, and was sent under this packet id.
    Sent {
        /// Which.
        receipt: Option<Receipt>,
        /// As long as it is in flight.
        packet_id: u16,
    },
    /// The device has a QoS 2 message (PUBREC), and owes PUBCOMP.
    Released {
        /// Which.
        receipt: Option<Receipt>,
        /// Stays in use.
        packet_id: u16,
    },
    /// Acknowledged to the end: PUBACK, PUBCOMP, or a refusal. The packet id is free.
    Done {
        /// Which; none after [`Change::Released`], which told.
        receipt: Option<Receipt>,
        /// Free.
        packet_id: u16,
    },
    /// A message that was taken is given up after all.
    Dropped {
        /// Which.
        receipt: Option<Receipt>,
        /// Why.
        reason: DropReason,
    },
}

/// Why a message for the device was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// The queue is full.
    QueueFull,
    /// All sessions together keep as much as they may.
    SessionsFull,
    /// Larger than the device's Maximum Packet Size.
    TooLarge,
    /// QoS 0, and the device does not read.
    NotReading,
    /// Its Message Expiry Interval passed while it waited.
    Expired,
    /// The device may not have it any more.
    ScopeNarrowed,
    /// QoS 0, and the device is away.
    Away,
}

impl DropReason {
    /// Metric label.
    pub fn tag(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::SessionsFull => "sessions_full",
            Self::TooLarge => "too_large",
            Self::NotReading => "not_reading",
            Self::Expired => "expired",
            Self::ScopeNarrowed => "scope_narrowed",
            Self::Away => "away",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(expiry: Option<u64>) -> Message {
        let topic = TopicName::new("c/é".as_bytes()).expect("a topic");
        let message = Message::new(topic, &[b"\x01\x01", b"\x0b\x05"], b"on", QoS::ExactlyOnce);
        Message { expires_at: expiry.map(Tick), receipt: Receipt::new(7), ..message }
    }

    #[test]
    fn a_message_gives_back_what_it_was_made_of() {
        let message = message(None);
        assert_eq!(
            (message.topic().as_str(), message.properties(), message.payload()),
            ("c/é", &b"\x01\x01\x0b\x05"[..], &b"on"[..])
        );
        assert!(!format!("{message:?}").contains("é"), "a topic is the device's");
    }

    #[test]
    fn the_time_that_a_message_waited_is_taken_off_its_expiry() {
        let message = message(Some(10_000));
        let left = |now| (message.expiry_left(Tick(now)), message.is_expired(Tick(now)));
        assert_eq!(left(0), (Some(10), false));
        assert_eq!(left(999), (Some(10), false));
        assert_eq!(left(1_000), (Some(9), false));
        assert_eq!(left(9_999), (Some(1), false));
        assert_eq!(left(10_000), (Some(0), true));
    }

    #[test]
    fn what_waits_expires_and_what_is_in_flight_does_not() {
        let in_flight = vec![InFlight { packet_id: 3, stage: Stage::Published(message(Some(5))) }];
        let mut state = SessionState { in_flight, queued: vec![message(Some(5)), message(None)], ..Default::default() };
        assert_eq!(state.expire(Tick(5)), [Receipt::new(7)]);
        assert_eq!((state.in_flight.len(), state.queued.len(), state.is_empty()), (1, 1, false));
    }
}
