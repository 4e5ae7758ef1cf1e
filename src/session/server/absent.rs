//! A session whose device is away: what comes for it waits, up to a bound.

use std::time::Duration;

use super::{
    Delivered, DropReason, Message, OutgoingMessage, Receipt, Room, SessionState, Stage, outbound,
    subscriptions::Subscriptions,
};
use crate::{packet::QoS, time::Tick};

impl SessionState {
    /// A message for the device: it waits, unless it is of QoS 0 or the queue is full. Then the newest is given up, so that
    /// what was promised first is kept.
    pub fn wait_for_device(&mut self, message: &OutgoingMessage<'_>, queue_max: usize, now: Tick) -> Delivered {
        let mut subscriptions = Subscriptions::of(std::mem::take(&mut self.subscriptions));
        let to = subscriptions.matching(message.topic, message.asked);
        self.subscriptions = subscriptions.take();
        let Some(to) = to else { return Delivered::Dropped(DropReason::ScopeNarrowed) };
        // MQTT 5.0 [MQTT-3.8.4-8], MQTT 3.1.1 [MQTT-3.8.4-6]
        let qos = message.qos.min(to.qos);
        if qos == QoS::AtMostOnce {
            return Delivered::Dropped(DropReason::Away);
        }
        if message.room == Room::None {
            return Delivered::Dropped(DropReason::SessionsFull);
        }
        let properties = [message.properties, to.ids.as_bytes()];
        let mut owned = Message::new(message.topic, &properties, message.payload, qos);
        let bytes: usize = self.queued.iter().map(Message::memory_bytes).sum();
        if self.queued.len() >= queue_max || bytes + owned.memory_bytes() > outbound::QUEUE_BYTES_MAX {
            return Delivered::Dropped(DropReason::QueueFull);
        }
        (owned.retain, owned.receipt) = (message.retain, message.receipt);
        owned.expires_at = message.expiry.map(|seconds| now.plus(Duration::from_secs(seconds.into())));
        self.queued.push(owned);
        Delivered::Queued
    }

    /// A message by its receipt.
    pub fn message(&self, receipt: Receipt) -> Option<&Message> {
        let in_flight = self.in_flight.iter().filter_map(|sent| match &sent.stage {
            Stage::Published(message) => Some(message),
            Stage::Released => None,
        });
        in_flight.chain(&self.queued).find(|message| message.receipt == Some(receipt))
    }

    /// Changes every message that is not at its end.
    pub fn each_message(&mut self, mut change: impl FnMut(&mut Message)) {
        for sent in &mut self.in_flight {
            if let Stage::Published(message) = &mut sent.stage {
                change(message);
            }
        }
        self.queued.iter_mut().for_each(change);
    }

    /// Receipts of all messages that are not at their end.
    pub fn receipts(&self) -> impl Iterator<Item = Receipt> {
        let in_flight = self.in_flight.iter().filter_map(|sent| match &sent.stage {
            Stage::Published(message) => message.receipt,
            Stage::Released => None,
        });
        in_flight.chain(self.queued.iter().filter_map(|message| message.receipt))
    }
}
