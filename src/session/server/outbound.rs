//! What goes to the device: its Receive Maximum, its Maximum Packet Size, and a queue with an end.

use std::collections::VecDeque;

use crate::{
    packet::{self, Connect, ProtocolVersion, Publish, QoS},
    topic::TopicName,
};

/// A message for the device.
#[derive(Clone, Copy)]
pub struct OutgoingMessage<'a> {
    /// In the device's terms.
    pub topic: TopicName<'a>,
    /// The application message.
    pub payload: &'a [u8],
    /// QoS it came with; the device gets it with this or what its subscription was granted, whichever is lower.
    pub qos: QoS,
    /// RETAIN as it is to be sent.
    pub retain: bool,
    /// Encoded properties; a 3.1.1 device gets none.
    pub properties: &'a [u8],
}

/// What became of a message for the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// It stands in `out`.
    Written,
    /// QoS 1: it waits for the device.
    Queued,
    /// The device does not get it.
    Dropped(DropReason),
}

/// Why a message for the device was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// The queue is full.
    QueueFull,
    /// Larger than the device's Maximum Packet Size.
    TooLarge,
    /// QoS 0, and the device does not read.
    NotReading,
}

impl DropReason {
    /// Metric label.
    pub fn tag(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::NotReading => "not_reading",
        }
    }
}

#[derive(Debug)]
pub(super) struct Outbound {
    version: ProtocolVersion,
    next_id: u16,
    window: u16,
    /// Bytes; 5.0 devices may set it.
    maximum_packet_size: u32,
    queue_max: usize,
    queue_bytes: usize,
    in_flight: VecDeque<u16>,
    queue: VecDeque<Queued>,
}

/// A PUBLISH that lacks its packet identifier only.
#[derive(Debug)]
struct Queued {
    frame: Box<[u8]>,
    packet_id_at: usize,
}

impl Queued {
    /// It stands before the packet identifier, behind its own length.
    fn topic(&self) -> Option<TopicName<'_>> {
        let head = self.frame.get(..self.packet_id_at)?;
        let (_, length_bytes) = packet::read_varint(head.get(1..)?).ok()??;
        TopicName::new(head.get(1 + length_bytes + 2..)?).ok()
    }
}

impl Outbound {
    pub(super) fn new(connect: &Connect, queue_max: usize) -> Self {
        Self {
            version: connect.version,
            next_id: 1,
            window: connect.receive_maximum.min(WINDOW_MAX),
            maximum_packet_size: connect.maximum_packet_size.unwrap_or(u32::MAX),
            queue_max,
            queue_bytes: 0,
            in_flight: VecDeque::new(),
            queue: VecDeque::new(),
        }
    }

    pub(super) fn deliver(&mut self, message: &OutgoingMessage<'_>, granted: QoS, out: &mut Vec<u8>) -> Delivered {
        let publish = Publish {
            dup: false,
            qos: message.qos.min(granted),
            retain: message.retain,
            topic: message.topic.as_str(),
            packet_id: 0,
            properties: &[message.properties],
            payload: message.payload,
        };
        // MQTT 5.0 [MQTT-3.1.2-24], [MQTT-3.1.2-25]: dropped as if it had been sent.
        let bytes = publish.encoded_len(self.version);
        if !self.fits(bytes) {
            return Delivered::Dropped(DropReason::TooLarge);
        }
        if publish.qos == QoS::AtMostOnce {
            if out.len() > UNSENT_MAX {
                return Delivered::Dropped(DropReason::NotReading);
            }
            packet::write_publish(out, self.version, &publish);
            return Delivered::Written;
        }
        if self.queue.is_empty() && self.has_room(out) {
            let packet_id = self.take_packet_id();
            packet::write_publish(out, self.version, &Publish { packet_id, ..publish });
            return Delivered::Written;
        }
        if self.queue.len() >= self.queue_max || self.queue_bytes + bytes > QUEUE_BYTES_MAX {
            return Delivered::Dropped(DropReason::QueueFull);
        }
        let mut frame = Vec::with_capacity(bytes);
        let packet_id_at = packet::write_publish(&mut frame, self.version, &publish);
        self.queue_bytes += frame.len();
        self.queue.push_back(Queued { frame: frame.into(), packet_id_at });
        Delivered::Queued
    }

    /// Drops what is queued for topics that are not wanted.
    pub(super) fn retain_queued(&mut self, keep: impl Fn(TopicName<'_>) -> bool) {
        let queue_bytes = &mut self.queue_bytes;
        self.queue.retain(|queued| {
            let kept = queued.topic().is_none_or(&keep);
            if !kept {
                *queue_bytes -= queued.frame.len();
            }
            kept
        });
    }

    /// The device's PUBACK, with whatever reason: a refused message is not sent again either.
    pub(super) fn acknowledged(&mut self, packet_id: u16) {
        if self.in_flight.front() == Some(&packet_id) {
            self.in_flight.pop_front();
        } else if let Some(at) = self.in_flight.iter().position(|id| *id == packet_id) {
            self.in_flight.remove(at);
        }
    }

    pub(super) fn pump(&mut self, out: &mut Vec<u8>) {
        while self.has_room(out) {
            let Some(queued) = self.queue.pop_front() else { return };
            self.queue_bytes -= queued.frame.len();
            let [high, low] = self.take_packet_id().to_be_bytes();
            let start = out.len();
            out.extend_from_slice(&queued.frame);
            out[start + queued.packet_id_at] = high;
            out[start + queued.packet_id_at + 1] = low;
        }
    }

    /// Whether the device takes a packet of so many bytes.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        bytes <= self.maximum_packet_size as usize
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        if self.in_flight.is_empty() {
            self.in_flight = VecDeque::new();
        }
    }

    // MQTT 5.0 [MQTT-3.3.4-7]: never more without a PUBACK than the device's Receive Maximum.
    fn has_room(&self, out: &[u8]) -> bool {
        self.in_flight.len() < usize::from(self.window) && out.len() <= UNSENT_MAX
    }

    // MQTT 5.0 [MQTT-2.2.1-4]: one that is not in use. There is one: the window is far below 65,535.
    fn take_packet_id(&mut self) -> u16 {
        while self.in_flight.contains(&self.next_id) {
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        }
        let packet_id = self.next_id;
        self.next_id = packet_id.checked_add(1).unwrap_or(1);
        self.in_flight.push_back(packet_id);
        packet_id
    }
}

/// Messages without a PUBACK of a device that sets no Receive Maximum: enough for a round trip, and small to remember.
const WINDOW_MAX: u16 = 100;
/// Bytes that may wait for the socket before messages wait in the queue instead.
const UNSENT_MAX: usize = 64 * 1024;
/// Bytes of all queued messages of one device: its part of the gateway's memory.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;
