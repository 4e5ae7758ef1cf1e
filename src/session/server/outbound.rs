//! What goes to the device: its Receive Maximum, its Maximum Packet Size, QoS 1 and 2 to their end, and a queue with an
//! end.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use super::{
    Change, DropReason, InFlight, Message, Receipt, SessionState, Stage,
    aliases::{Aliases, Called},
    changes::Changes,
    subscriptions::Match,
};
use crate::{
    denial::CloseReason,
    packet::{self, Acknowledgement, Connect, DeliveryProperties, ProtocolVersion, Publish, QoS},
    time::Tick,
    topic::{TopicFilter, TopicName},
};

/// A message for the device.
#[derive(Clone, Copy)]
pub struct OutgoingMessage<'a> {
    /// In the device's terms.
    pub topic: TopicName<'a>,
    /// The application message.
    pub payload: &'a [u8],
    /// QoS it came with: the device gets the lower of it and of what its subscription was granted.
    pub qos: QoS,
    /// RETAIN as it is to be sent.
    pub retain: bool,
    /// Encoded properties, without the expiry; a 3.1.1 device gets none.
    pub properties: &'a [u8],
    /// Message Expiry Interval, in seconds.
    pub expiry: Option<u32>,
    /// Who asks what became of it, see [`Change`].
    pub receipt: Option<Receipt>,
    /// Filters of SUBSCRIBEs without an answer that match it: a message may come before its SUBACK (MQTT 5.0 §3.8.4).
    pub asked: &'a [Asked<'a>],
    /// Whether it may be kept, beside all that waits for devices.
    pub room: Room,
}

/// Whether a message may take memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It may be kept until the device has it.
    Some,
    /// It is dropped where it would have to be kept.
    None,
}

/// A filter of a SUBSCRIBE that is not answered yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked<'a> {
    /// In the device's terms.
    pub filter: &'a TopicFilter,
    /// The highest QoS wanted.
    pub qos: QoS,
    /// 5.0: to be named in every message for it.
    pub id: Option<NonZeroU32>,
}

/// What became of a message for the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// QoS 0: it stands in `out`, and that is all.
    Written,
    /// QoS 1 or 2: it stands in `out`, and waits for the device's answer.
    Sent,
    /// QoS 1 or 2: it waits for its turn.
    Queued,
    /// The device does not get it.
    Dropped(DropReason),
}

#[derive(Debug)]
pub(super) struct Outbound {
    version: ProtocolVersion,
    next_id: u16,
    window: u16,
    /// Whether what is in flight may be sent again on another connection.
    resends: Resends,
    /// Bytes; 5.0 devices may set it.
    maximum_packet_size: u32,
    queue_max: usize,
    queue_bytes: usize,
    in_flight: VecDeque<Slot>,
    /// Memory of the messages among them.
    in_flight_bytes: usize,
    /// So many of the last in flight were sent on an earlier connection only.
    unsent: usize,
    queue: VecDeque<Message>,
    aliases: Option<Box<Aliases>>,
}

/// Whether a session outlives its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resends {
    Yes,
    No,
}

#[derive(Debug)]
struct Slot {
    packet_id: u16,
    owes: Owes,
}

/// What the device owes for a message.
#[derive(Debug)]
enum Owes {
    Puback(Held),
    Pubrec(Held),
    Pubcomp,
}

impl Owes {
    fn memory_bytes(&self) -> usize {
        match self {
            Self::Puback(held) | Self::Pubrec(held) => held.memory_bytes(),
            Self::Pubcomp => 0,
        }
    }
}

/// What is kept of a message that was sent.
#[derive(Debug)]
enum Held {
    /// All: it may have to be sent again.
    Message(Box<Message>),
    /// Who asks for it.
    Receipt(Option<Receipt>),
}

impl Held {
    fn memory_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.memory_bytes(),
            Self::Receipt(_) => 0,
        }
    }

    fn receipt(&self) -> Option<Receipt> {
        match self {
            Self::Message(message) => message.receipt,
            Self::Receipt(receipt) => *receipt,
        }
    }
}

/// A PUBLISH to be written, from wherever it lies.
struct Parts<'a> {
    topic: TopicName<'a>,
    properties: [&'a [u8]; 2],
    payload: &'a [u8],
    qos: QoS,
    retain: bool,
    expiry: Option<u32>,
}

impl<'a> Parts<'a> {
    fn of(message: &'a Message, now: Tick) -> Self {
        Self {
            topic: message.topic(),
            properties: [message.properties(), &[]],
            payload: message.payload(),
            qos: message.qos,
            retain: message.retain,
            expiry: message.expiry_left(now),
        }
    }
}

impl Outbound {
    pub(super) fn new(connect: &Connect, queue_max: usize, resends: Resends) -> Self {
        Self {
            version: connect.version,
            next_id: 1,
            window: connect.receive_maximum.min(WINDOW_MAX),
            resends,
            maximum_packet_size: connect.maximum_packet_size.unwrap_or(u32::MAX),
            queue_max,
            queue_bytes: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            unsent: 0,
            queue: VecDeque::new(),
            aliases: Aliases::up_to(connect.topic_alias_maximum),
        }
    }

    /// Takes up what an earlier connection left behind: [`pump`](Self::pump) sends it again.
    pub(super) fn resume(&mut self, in_flight: Vec<InFlight>, queued: Vec<Message>) {
        self.queue_bytes = queued.iter().map(Message::memory_bytes).sum();
        self.queue = queued.into();
        self.in_flight = (in_flight.into_iter())
            .map(|InFlight { packet_id, stage }| {
                let owes = match stage {
                    Stage::Published(message) if message.qos == QoS::ExactlyOnce => {
                        Owes::Pubrec(Held::Message(Box::new(message)))
                    }
                    Stage::Published(message) => Owes::Puback(Held::Message(Box::new(message))),
                    Stage::Released => Owes::Pubcomp,
                };
                Slot { packet_id, owes }
            })
            .collect();
        self.in_flight_bytes = self.in_flight.iter().map(|slot| slot.owes.memory_bytes()).sum();
        self.unsent = self.in_flight.len();
        self.next_id = self.in_flight.back().map_or(1, |slot| successor(slot.packet_id));
    }

    /// Moves what outlives the connection to `state`.
    /// As [`leave`](Self::leave) would have it, while the connection goes on.
    pub(super) fn copy(&self, state: &mut SessionState) {
        state.queued = self.queue.iter().cloned().collect();
        let in_flight = self.in_flight.iter().filter_map(|Slot { packet_id, owes }| {
            let stage = match owes {
                Owes::Puback(Held::Message(message)) | Owes::Pubrec(Held::Message(message)) => {
                    Stage::Published((**message).clone())
                }
                Owes::Pubcomp => Stage::Released,
                Owes::Puback(Held::Receipt(_)) | Owes::Pubrec(Held::Receipt(_)) => return None,
            };
            Some(InFlight { packet_id: *packet_id, stage })
        });
        state.in_flight = in_flight.collect();
    }

    /// A message that is kept until its end, and its packet id where it was sent.
    pub(super) fn message(&self, receipt: Receipt) -> Option<(Option<u16>, &Message)> {
        let sent = self.in_flight.iter().filter_map(|slot| match &slot.owes {
            Owes::Puback(Held::Message(message)) | Owes::Pubrec(Held::Message(message)) => {
                Some((Some(slot.packet_id), &**message))
            }
            _ => None,
        });
        let queued = self.queue.iter().map(|message| (None, message));
        sent.chain(queued).find(|(_, message)| message.receipt == Some(receipt))
    }

    /// Who asks for messages that are not at their end.
    pub(super) fn receipts(&self) -> Vec<Receipt> {
        let sent = self.in_flight.iter().filter_map(|slot| match &slot.owes {
            Owes::Puback(held) | Owes::Pubrec(held) => held.receipt(),
            Owes::Pubcomp => None,
        });
        sent.chain(self.queue.iter().filter_map(|message| message.receipt)).collect()
    }

    pub(super) fn leave(&mut self, state: &mut SessionState) {
        (self.unsent, self.queue_bytes, self.in_flight_bytes) = (0, 0, 0);
        state.queued = std::mem::take(&mut self.queue).into();
        let slots = std::mem::take(&mut self.in_flight).into_iter();
        state.in_flight = slots
            .filter_map(|Slot { packet_id, owes }| {
                let stage = match owes {
                    Owes::Puback(Held::Message(message)) | Owes::Pubrec(Held::Message(message)) => {
                        Stage::Published(*message)
                    }
                    Owes::Pubcomp => Stage::Released,
                    Owes::Puback(Held::Receipt(_)) | Owes::Pubrec(Held::Receipt(_)) => return None,
                };
                Some(InFlight { packet_id, stage })
            })
            .collect();
    }

    pub(super) fn deliver(
        &mut self,
        message: &OutgoingMessage<'_>,
        to: &Match,
        changes: &mut Changes,
        out: &mut Vec<u8>,
        now: Tick,
    ) -> Delivered {
        // MQTT 5.0 [MQTT-3.8.4-8], MQTT 3.1.1 [MQTT-3.8.4-6]
        let qos = message.qos.min(to.qos);
        let OutgoingMessage { topic, payload, retain, expiry, receipt, .. } = *message;
        let properties = [message.properties, to.ids.as_bytes()];
        let parts = Parts { topic, properties, payload, qos, retain, expiry };
        // MQTT 5.0 [MQTT-3.1.2-24], [MQTT-3.1.2-25]: dropped as if it had been sent.
        if !self.fits(self.encoded_len(&parts)) {
            return Delivered::Dropped(DropReason::TooLarge);
        }
        if qos == QoS::AtMostOnce {
            if out.len() > UNSENT_MAX {
                return Delivered::Dropped(DropReason::NotReading);
            }
            self.write(&parts, 0, Copy::First, out);
            return Delivered::Written;
        }
        let owned = || {
            let mut owned = Message::new(topic, &properties, payload, qos);
            (owned.retain, owned.receipt) = (retain, receipt);
            owned.expires_at = expiry.map(|seconds| now.plus(Duration::from_secs(seconds.into())));
            owned
        };
        let goes_at_once = self.queue.is_empty() && self.unsent == 0 && self.has_room(out);
        if message.room == Room::None && (self.resends == Resends::Yes || !goes_at_once) {
            return Delivered::Dropped(DropReason::SessionsFull);
        }
        if goes_at_once {
            let packet_id = self.take_packet_id();
            self.write(&parts, packet_id, Copy::First, out);
            let held = match self.resends {
                Resends::Yes => Held::Message(Box::new(owned())),
                Resends::No => Held::Receipt(receipt),
            };
            self.sent(packet_id, qos, held, changes);
            return Delivered::Sent;
        }
        let properties_len: usize = properties.iter().map(|piece| piece.len()).sum();
        let bytes = topic.as_str().len() + properties_len + payload.len() + size_of::<Message>();
        if self.queue.len() >= self.queue_max || self.queue_bytes + bytes > QUEUE_BYTES_MAX {
            return Delivered::Dropped(DropReason::QueueFull);
        }
        self.queue_bytes += bytes;
        self.queue.push_back(owned());
        Delivered::Queued
    }

    /// Drops what is queued for topics that are not wanted.
    pub(super) fn retain_queued(&mut self, keep: impl Fn(TopicName<'_>) -> bool, changes: &mut Changes) {
        let queue_bytes = &mut self.queue_bytes;
        self.queue.retain(|message| {
            let kept = keep(message.topic());
            if !kept {
                *queue_bytes -= message.memory_bytes();
                changes.push(Change::Dropped { receipt: message.receipt, reason: DropReason::ScopeNarrowed });
            }
            kept
        });
    }

    /// The device's PUBACK, with whatever reason: a refused message is not sent again either.
    pub(super) fn puback(&mut self, packet_id: u16, changes: &mut Changes) -> Result<(), CloseReason> {
        let Some(at) = self.position(packet_id) else { return Ok(()) };
        match &self.in_flight[at].owes {
            Owes::Puback(held) => {
                let receipt = held.receipt();
                self.done(at, receipt, changes);
                Ok(())
            }
            _ => Err(CloseReason::ProtocolError),
        }
    }

    /// The device has a QoS 2 message, or refuses it: the message itself is not needed any more [MQTT-4.3.3-5].
    pub(super) fn pubrec(
        &mut self,
        pubrec: Acknowledgement,
        changes: &mut Changes,
        out: &mut Vec<u8>,
    ) -> Result<(), CloseReason> {
        let packet_id = pubrec.packet_id;
        let refused = pubrec.reason >= 0x80;
        let Some(at) = self.position(packet_id) else {
            // Of an earlier session, perhaps: it is told that nothing is known of it (MQTT 5.0 §3.6.2.1).
            if !refused {
                packet::write_pubrel(out, self.version, packet_id, PACKET_ID_NOT_FOUND);
            }
            return Ok(());
        };
        match &self.in_flight[at].owes {
            Owes::Puback(_) => return Err(CloseReason::ProtocolError),
            Owes::Pubrec(held) => {
                let receipt = held.receipt();
                if refused {
                    self.done(at, receipt, changes);
                    return Ok(());
                }
                self.in_flight_bytes -= held.memory_bytes();
                self.in_flight[at].owes = Owes::Pubcomp;
                changes.push(Change::Released { receipt, packet_id });
            }
            Owes::Pubcomp if refused => {
                self.done(at, None, changes);
                return Ok(());
            }
            Owes::Pubcomp => {}
        }
        packet::write_pubrel(out, self.version, packet_id, 0);
        Ok(())
    }

    /// A QoS 2 message is at its end.
    pub(super) fn pubcomp(&mut self, packet_id: u16, changes: &mut Changes) -> Result<(), CloseReason> {
        let Some(at) = self.position(packet_id) else { return Ok(()) };
        match &self.in_flight[at].owes {
            Owes::Pubcomp => {
                self.done(at, None, changes);
                Ok(())
            }
            _ => Err(CloseReason::ProtocolError),
        }
    }

    /// Sends what may be sent: first, and in its order, what an earlier connection left behind [MQTT-4.6.0-1].
    pub(super) fn pump(&mut self, changes: &mut Changes, out: &mut Vec<u8>, now: Tick) {
        while self.unsent > 0 && out.len() <= UNSENT_MAX {
            let at = self.in_flight.len() - self.unsent;
            let Slot { packet_id, ref owes } = self.in_flight[at];
            let (Owes::Puback(Held::Message(message)) | Owes::Pubrec(Held::Message(message))) = owes else {
                packet::write_pubrel(out, self.version, packet_id, 0);
                self.unsent -= 1;
                continue;
            };
            if at >= usize::from(self.window) {
                return;
            }
            let message = message.clone();
            let parts = Parts::of(&message, now);
            if self.fits(self.encoded_len(&parts)) {
                self.write(&parts, packet_id, Copy::Again, out);
                self.unsent -= 1;
            } else {
                // This connection takes less than the last one did.
                changes.push(Change::Dropped { receipt: message.receipt, reason: DropReason::TooLarge });
                self.done(at, None, changes);
            }
        }
        while self.unsent == 0 && self.has_room(out) {
            let Some(message) = self.queue.pop_front() else { return };
            self.queue_bytes -= message.memory_bytes();
            let receipt = message.receipt;
            let parts = Parts::of(&message, now);
            let reason = match message.is_expired(now) {
                // MQTT 5.0 [MQTT-3.3.2-5]
                true => Some(DropReason::Expired),
                false => (!self.fits(self.encoded_len(&parts))).then_some(DropReason::TooLarge),
            };
            if let Some(reason) = reason {
                changes.push(Change::Dropped { receipt, reason });
                continue;
            }
            let packet_id = self.take_packet_id();
            self.write(&parts, packet_id, Copy::First, out);
            let qos = message.qos;
            let held = match self.resends {
                Resends::Yes => Held::Message(Box::new(message)),
                Resends::No => Held::Receipt(receipt),
            };
            self.sent(packet_id, qos, held, changes);
        }
    }

    /// Whether the device takes a packet of so many bytes.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        bytes <= self.maximum_packet_size as usize
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        if self.in_flight.is_empty() {
            self.in_flight = VecDeque::new();
        }
    }

    fn sent(&mut self, packet_id: u16, qos: QoS, held: Held, changes: &mut Changes) {
        changes.push(Change::Sent { receipt: held.receipt(), packet_id });
        self.in_flight_bytes += held.memory_bytes();
        let owes = if qos == QoS::ExactlyOnce { Owes::Pubrec(held) } else { Owes::Puback(held) };
        self.in_flight.push_back(Slot { packet_id, owes });
    }

    fn done(&mut self, at: usize, receipt: Option<Receipt>, changes: &mut Changes) {
        // One that this connection has not sent: the device answers for the last one.
        if at >= self.in_flight.len() - self.unsent {
            self.unsent -= 1;
        }
        if let Some(Slot { packet_id, owes }) = self.in_flight.remove(at) {
            self.in_flight_bytes -= owes.memory_bytes();
            changes.push(Change::Done { receipt, packet_id });
        }
    }

    fn position(&self, packet_id: u16) -> Option<usize> {
        self.in_flight.iter().position(|slot| slot.packet_id == packet_id)
    }

    // MQTT 5.0 [MQTT-3.3.4-7]: never more without PUBACK or PUBCOMP than the device's Receive Maximum.
    // And no more memory than its part: one that reads and never answers holds no more than one that does not read.
    fn has_room(&self, out: &[u8]) -> bool {
        self.in_flight.len() < usize::from(self.window)
            && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
            && out.len() <= UNSENT_MAX
    }

    // MQTT 5.0 [MQTT-2.2.1-4]: one that is not in use. There is one: the window is far below 65,535.
    fn take_packet_id(&mut self) -> u16 {
        while self.position(self.next_id).is_some() {
            self.next_id = successor(self.next_id);
        }
        let packet_id = self.next_id;
        self.next_id = successor(packet_id);
        packet_id
    }

    /// Bytes of the packet under its whole topic.
    fn encoded_len(&self, parts: &Parts<'_>) -> usize {
        let expiry: &[u8] = if parts.expiry.is_some() { &[0; EXPIRY_BYTES] } else { &[] };
        self.publish(parts, &[parts.properties[0], parts.properties[1], expiry], 0, Copy::First)
            .encoded_len(self.version)
    }

    fn write(&mut self, parts: &Parts<'_>, packet_id: u16, copy: Copy, out: &mut Vec<u8>) {
        let mut own = DeliveryProperties::default();
        if let Some(seconds) = parts.expiry {
            own.message_expiry(seconds);
        }
        let room = (self.maximum_packet_size as usize).saturating_sub(self.encoded_len(parts));
        let called = match &mut self.aliases {
            Some(aliases) => aliases.call(parts.topic, room),
            None => Called::Whole,
        };
        if let Called::Also(alias) | Called::Only(alias) = called {
            own.topic_alias(alias);
        }
        let properties = [parts.properties[0], parts.properties[1], own.as_bytes()];
        let mut publish = self.publish(parts, &properties, packet_id, copy);
        if let Called::Only(_) = called {
            publish.topic = "";
        }
        packet::write_publish(out, self.version, &publish);
    }

    fn publish<'p>(&self, parts: &Parts<'p>, properties: &'p [&'p [u8]], packet_id: u16, copy: Copy) -> Publish<'p> {
        Publish {
            dup: copy == Copy::Again,
            qos: parts.qos,
            retain: parts.retain,
            topic: parts.topic.as_str(),
            packet_id,
            properties,
            payload: parts.payload,
        }
    }
}

/// Whether the device may have had a message before [MQTT-3.3.1-1].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Copy {
    First,
    Again,
}

fn successor(packet_id: u16) -> u16 {
    packet_id.checked_add(1).unwrap_or(1)
}

/// Messages without a PUBACK of a device that sets no Receive Maximum: enough for a round trip, and small to remember.
const WINDOW_MAX: u16 = 100;
/// Bytes that may wait for the socket before messages wait in the queue instead.
const UNSENT_MAX: usize = 64 * 1024;
/// Memory of all queued messages of one device: its part of the gateway's.
pub(super) const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// Memory of what is sent again until it is acknowledged, from which on messages wait in the queue.
pub(super) const IN_FLIGHT_BYTES_MAX: usize = 1024 * 1024;
/// Of the property on the wire (MQTT 5.0 §3.3.2.3.3).
const EXPIRY_BYTES: usize = 5;
/// MQTT 5.0 §3.6.2.1.
const PACKET_ID_NOT_FOUND: u8 = 0x92;
