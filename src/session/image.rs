//! How sessions are written down: one entry for each thing that changes, and back from the entries to what they amount
//! to. Where entries are kept, and in which order, is the caller's.
//!
//! An entry is a version, a kind and its fields; numbers are little-endian. Reading the same entries twice, or an older
//! one again after a newer, leads to the same end: whoever writes a session anew begins with [`Entry::Begun`].

use std::{collections::HashMap, num::NonZeroU32};

use super::server::{InFlight, Message, Receipt, SessionState, Stage, Subscription};
use crate::{
    id::DeviceId,
    packet::{QoS, Will},
    time::{Tick, UnixSeconds},
    topic::{TopicFilter, TopicName},
};

/// One thing that is known of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry<'a> {
    /// A session begins: nothing that was written of the device before counts.
    Begun,
    /// It is over.
    Ended,
    /// All that is not about single messages.
    Standing(Standing, Vec<Subscription>),
    /// A message for the device waits.
    Queued {
        /// Names the message from here on.
        number: Receipt,
        /// Milliseconds of the wall clock since 1970.
        expires_at_ms: Option<u64>,
        /// The message.
        message: MessageRef<'a>,
    },
    /// It was sent under this packet id.
    Sent {
        /// Which.
        number: Receipt,
        /// Its packet id.
        packet_id: u16,
    },
    /// The device has the QoS 2 message that was sent under this packet id, and owes PUBCOMP.
    Released(u16),
    /// Nothing is owed for this packet id any more.
    Done(u16),
    /// A message that was not sent is given up.
    Dropped(Receipt),
    /// A QoS 2 message of the device was taken.
    Received(u16),
    /// The device may use that packet id again.
    Finished(u16),
    /// What is to be published when the device is gone. It is no part of the session: it may stand without one.
    Will {
        /// Names the will from here on.
        number: Receipt,
        /// When it is due: milliseconds of the wall clock since 1970; none: its device is connected.
        due_at_ms: Option<u64>,
        /// Seconds that it waits when the connection ends.
        waits: u32,
        /// The message.
        message: MessageRef<'a>,
        /// By which right: for whoever wrote it.
        proof: &'a [u8],
    },
    /// The connection that left this will has ended: it is due then.
    WillDue(Receipt, u64),
    /// It was sent, or is not to be.
    WillGone(Receipt),
}

/// How a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Seconds for which it outlives its connection.
    pub expires_after: u32,
    /// Since when its device is away; none: it is connected.
    pub away_since: Option<UnixSeconds>,
    /// Whether its device reads properties in the topic of a message: IoT Hub's property bag.
    pub reads_bags: bool,
}

/// A message, where it lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MessageRef<'a> {
    /// In the device's terms.
    pub topic: TopicName<'a>,
    /// Encoded.
    pub properties: &'a [u8],
    /// The application message.
    pub payload: &'a [u8],
    /// 1 or 2; of a will 0, too.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
}

/// Lengths only: topic and payload are the device's.
impl std::fmt::Debug for MessageRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MessageRef").field("qos", &self.qos).field("bytes", &self.payload.len()).finish_non_exhaustive()
    }
}

impl<'a> MessageRef<'a> {
    /// The message of a will; `None`: its topic is none.
    pub fn of_will(will: &'a Will) -> Option<Self> {
        let Will { topic, qos, retain, payload, properties, .. } = will;
        let topic = TopicName::new(topic.as_bytes()).ok()?;
        Some(Self { topic, properties, payload, qos: *qos, retain: *retain })
    }
}

impl<'a> From<&'a Message> for MessageRef<'a> {
    fn from(message: &'a Message) -> Self {
        let Message { qos, retain, .. } = *message;
        Self { topic: message.topic(), properties: message.properties(), payload: message.payload(), qos, retain }
    }
}

/// What time it is, on both clocks: what is written outlives the one that timers run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Of timers.
    pub tick: Tick,
    /// Milliseconds of the wall clock since 1970.
    pub wall_ms: u64,
}

impl Now {
    /// The wall clock at that tick.
    pub fn wall_ms_at(self, tick: Tick) -> u64 {
        let (ahead, behind) = (tick.0.saturating_sub(self.tick.0), self.tick.0.saturating_sub(tick.0));
        self.wall_ms.saturating_add(ahead).saturating_sub(behind)
    }

    /// The tick at that time of the wall clock; what is past is now.
    pub fn tick_at(self, wall_ms: u64) -> Tick {
        Tick(self.tick.0.saturating_add(wall_ms.saturating_sub(self.wall_ms)))
    }
}

/// Bytes that are no entry, or one of another version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoEntry;

/// What the entries that were read amount to.
#[derive(Debug, Default)]
pub struct Image {
    /// By device.
    pub sessions: HashMap<DeviceId, Kept>,
    /// By device, in the order in which they came.
    pub wills: HashMap<DeviceId, Vec<KeptWill>>,
}

/// A will, as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptWill {
    /// Its number.
    pub number: Receipt,
    /// See [`Entry::Will`].
    pub due_at_ms: Option<u64>,
    /// Seconds.
    pub waits: u32,
    /// What is to be published. Its delay is `waits`.
    pub will: Will,
    /// See [`Entry::Will`].
    pub proof: Vec<u8>,
}

/// One session, as it was written. Its messages have the numbers that they were written under for receipts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// How it stands.
    pub standing: Standing,
    /// What outlived its connection.
    pub state: SessionState,
}

impl Image {
    /// Takes the next entry of a device.
    ///
    /// # Errors
    /// [`NoEntry`]: of no effect.
    pub fn apply(&mut self, device: &DeviceId, bytes: &[u8], now: Now) -> Result<(), NoEntry> {
        match Entry::parse(bytes)? {
            Entry::Begun => {
                self.sessions.insert(device.clone(), Kept::default());
            }
            Entry::Ended => {
                self.sessions.remove(device);
            }
            entry @ (Entry::Will { .. } | Entry::WillDue(..) | Entry::WillGone(_)) => self.apply_will(device, &entry),
            entry => {
                // Of a session that has ended nothing counts.
                if let Some(kept) = self.sessions.get_mut(device) {
                    kept.apply(&entry, now);
                }
            }
        }
        Ok(())
    }

    fn apply_will(&mut self, device: &DeviceId, entry: &Entry<'_>) {
        let wills = self.wills.entry(device.clone()).or_default();
        match entry {
            Entry::Will { number, due_at_ms, waits, message, proof } => {
                let kept = KeptWill {
                    number: *number,
                    due_at_ms: *due_at_ms,
                    waits: *waits,
                    will: Will {
                        topic: message.topic.as_str().to_owned(),
                        qos: message.qos,
                        retain: message.retain,
                        payload: message.payload.to_vec(),
                        delay: *waits,
                        properties: message.properties.to_vec(),
                    },
                    proof: proof.to_vec(),
                };
                match wills.iter_mut().find(|held| held.number == *number) {
                    Some(held) => *held = kept,
                    None => wills.push(kept),
                }
            }
            Entry::WillDue(number, at_ms) => {
                let held = wills.iter_mut().find(|held| held.number == *number);
                held.into_iter().for_each(|held| held.due_at_ms = Some(*at_ms));
            }
            Entry::WillGone(number) => wills.retain(|held| held.number != *number),
            _ => {}
        }
        if wills.is_empty() {
            self.wills.remove(device);
        }
    }
}

impl KeptWill {
    /// It, as an entry; `None`: its topic is none.
    pub fn entry(&self) -> Option<Entry<'_>> {
        let Self { number, due_at_ms, waits, will, proof } = self;
        Some(Entry::Will {
            number: *number,
            due_at_ms: *due_at_ms,
            waits: *waits,
            message: MessageRef::of_will(will)?,
            proof,
        })
    }
}

impl Kept {
    fn apply(&mut self, entry: &Entry<'_>, now: Now) {
        let Self { standing, state } = self;
        match entry {
            Entry::Begun | Entry::Ended | Entry::Will { .. } | Entry::WillDue(..) | Entry::WillGone(_) => {}
            Entry::Standing(read, subscriptions) => {
                *standing = *read;
                state.subscriptions.clone_from(subscriptions);
            }
            Entry::Queued { number, expires_at_ms, message } => {
                let MessageRef { topic, properties, payload, qos, retain } = *message;
                let mut message = Message::new(topic, &[properties], payload, qos);
                message.retain = retain;
                message.expires_at = expires_at_ms.map(|at| now.tick_at(at));
                message.receipt = Some(*number);
                state.queued.push(message);
            }
            Entry::Sent { number, packet_id } => {
                let Some(at) = state.queued.iter().position(|message| message.receipt == Some(*number)) else { return };
                let stage = Stage::Published(state.queued.remove(at));
                state.in_flight.push(InFlight { packet_id: *packet_id, stage });
            }
            Entry::Released(packet_id) => {
                if let Some(sent) = state.in_flight.iter_mut().find(|sent| sent.packet_id == *packet_id) {
                    sent.stage = Stage::Released;
                }
            }
            Entry::Done(packet_id) => state.in_flight.retain(|sent| sent.packet_id != *packet_id),
            Entry::Dropped(number) => state.queued.retain(|message| message.receipt != Some(*number)),
            Entry::Received(packet_id) if !state.received.contains(packet_id) => state.received.push(*packet_id),
            Entry::Received(_) => {}
            Entry::Finished(packet_id) => state.received.retain(|held| held != packet_id),
        }
    }

    /// All of it, as entries. A message without a receipt is not written.
    pub fn write(standing: Standing, state: &SessionState, now: Now, entry: &mut dyn FnMut(&Entry<'_>)) {
        entry(&Entry::Begun);
        entry(&Entry::Standing(standing, state.subscriptions.clone()));
        for sent in &state.in_flight {
            match &sent.stage {
                Stage::Published(message) => {
                    let Some(number) = message.receipt else { continue };
                    entry(&Entry::queued(number, message, now));
                    entry(&Entry::Sent { number, packet_id: sent.packet_id });
                }
                // Whatever the message was, the device has it.
                Stage::Released => {
                    let number = Receipt::MAX;
                    let topic = TopicName::new(b"-").expect("invariant: a topic name");
                    let nothing =
                        MessageRef { topic, properties: &[], payload: &[], qos: QoS::ExactlyOnce, retain: false };
                    entry(&Entry::Queued { number, expires_at_ms: None, message: nothing });
                    entry(&Entry::Sent { number, packet_id: sent.packet_id });
                    entry(&Entry::Released(sent.packet_id));
                }
            }
        }
        for message in &state.queued {
            if let Some(number) = message.receipt {
                entry(&Entry::queued(number, message, now));
            }
        }
        state.received.iter().for_each(|packet_id| entry(&Entry::Received(*packet_id)));
    }
}

impl<'a> Entry<'a> {
    /// A message that waits.
    pub fn queued(number: Receipt, message: &'a Message, now: Now) -> Self {
        let expires_at_ms = message.expires_at.map(|at| now.wall_ms_at(at));
        Self::Queued { number, expires_at_ms, message: message.into() }
    }

    /// Appends it.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        match self {
            Self::Begun => out.push(BEGUN),
            Self::Ended => out.push(ENDED),
            Self::Standing(standing, subscriptions) => {
                out.push(STANDING);
                out.extend_from_slice(&standing.expires_after.to_le_bytes());
                out.extend_from_slice(&standing.away_since.map_or(0, |at| at.0).to_le_bytes());
                out.push(u8::from(standing.reads_bags));
                subscriptions.iter().for_each(|subscription| write_subscription(out, subscription));
            }
            Self::Queued { number, expires_at_ms, message } => {
                let MessageRef { topic, properties, payload, qos, retain } = message;
                out.push(QUEUED);
                out.extend_from_slice(&number.get().to_le_bytes());
                out.extend_from_slice(&expires_at_ms.unwrap_or(0).to_le_bytes());
                out.push(*qos as u8 | u8::from(*retain) << 2);
                write_bytes(out, topic.as_str().as_bytes());
                write_bytes(out, properties);
                out.extend_from_slice(payload);
            }
            Self::Sent { number, packet_id } => {
                out.push(SENT);
                out.extend_from_slice(&number.get().to_le_bytes());
                out.extend_from_slice(&packet_id.to_le_bytes());
            }
            Self::Dropped(number) => {
                out.push(DROPPED);
                out.extend_from_slice(&number.get().to_le_bytes());
            }
            Self::Released(packet_id) => write_about(out, RELEASED, *packet_id),
            Self::Done(packet_id) => write_about(out, DONE, *packet_id),
            Self::Received(packet_id) => write_about(out, RECEIVED, *packet_id),
            Self::Finished(packet_id) => write_about(out, FINISHED, *packet_id),
            Self::Will { number, due_at_ms, waits, message, proof } => {
                let MessageRef { topic, properties, payload, qos, retain } = message;
                out.push(WILL);
                out.extend_from_slice(&number.get().to_le_bytes());
                out.extend_from_slice(&due_at_ms.unwrap_or(0).to_le_bytes());
                out.extend_from_slice(&waits.to_le_bytes());
                out.push(*qos as u8 | u8::from(*retain) << 2);
                [topic.as_str().as_bytes(), properties, proof].into_iter().for_each(|piece| write_bytes(out, piece));
                out.extend_from_slice(payload);
            }
            Self::WillDue(number, at_ms) => {
                out.push(WILL_DUE);
                out.extend_from_slice(&number.get().to_le_bytes());
                out.extend_from_slice(&at_ms.to_le_bytes());
            }
            Self::WillGone(number) => {
                out.push(WILL_GONE);
                out.extend_from_slice(&number.get().to_le_bytes());
            }
        }
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// [`NoEntry`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NoEntry> {
        let mut reader = Reader(bytes);
        let [version, kind] = reader.take()?;
        if version != VERSION {
            return Err(NoEntry);
        }
        let entry = match kind {
            BEGUN => Self::Begun,
            ENDED => Self::Ended,
            STANDING => {
                let expires_after = u32::from_le_bytes(reader.take()?);
                let away_since = Some(u64::from_le_bytes(reader.take()?)).filter(|at| *at > 0).map(UnixSeconds);
                let reads_bags = reader.take()? == [1];
                let mut subscriptions = Vec::new();
                while !reader.0.is_empty() {
                    subscriptions.push(reader.subscription()?);
                }
                Self::Standing(Standing { expires_after, away_since, reads_bags }, subscriptions)
            }
            QUEUED => {
                let number = reader.number()?;
                let expires_at_ms = Some(u64::from_le_bytes(reader.take()?)).filter(|at| *at > 0);
                let [flags] = reader.take()?;
                let topic = TopicName::new(reader.bytes()?).map_err(|_| NoEntry)?;
                let properties = reader.bytes()?;
                let payload = std::mem::take(&mut reader.0);
                let qos = QoS::from_bits(flags & 3).filter(|qos| *qos != QoS::AtMostOnce).ok_or(NoEntry)?;
                let message = MessageRef { topic, properties, payload, qos, retain: flags & 4 != 0 };
                Self::Queued { number, expires_at_ms, message }
            }
            SENT => Self::Sent { number: reader.number()?, packet_id: reader.packet_id()? },
            DROPPED => Self::Dropped(reader.number()?),
            RELEASED => Self::Released(reader.packet_id()?),
            DONE => Self::Done(reader.packet_id()?),
            RECEIVED => Self::Received(reader.packet_id()?),
            FINISHED => Self::Finished(reader.packet_id()?),
            WILL => {
                let number = reader.number()?;
                let due_at_ms = Some(u64::from_le_bytes(reader.take()?)).filter(|at| *at > 0);
                let waits = u32::from_le_bytes(reader.take()?);
                let [flags] = reader.take()?;
                let topic = TopicName::new(reader.bytes()?).map_err(|_| NoEntry)?;
                let (properties, proof) = (reader.bytes()?, reader.bytes()?);
                let payload = std::mem::take(&mut reader.0);
                let qos = QoS::from_bits(flags & 3).ok_or(NoEntry)?;
                let message = MessageRef { topic, properties, payload, qos, retain: flags & 4 != 0 };
                Self::Will { number, due_at_ms, waits, message, proof }
            }
            WILL_DUE => Self::WillDue(reader.number()?, u64::from_le_bytes(reader.take()?)),
            WILL_GONE => Self::WillGone(reader.number()?),
            _ => return Err(NoEntry),
        };
        if reader.0.is_empty() { Ok(entry) } else { Err(NoEntry) }
    }
}

fn write_about(out: &mut Vec<u8>, kind: u8, packet_id: u16) {
    out.push(kind);
    out.extend_from_slice(&packet_id.to_le_bytes());
}

/// With its length before it.
fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("invariant: a part of one packet");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn write_subscription(out: &mut Vec<u8>, subscription: &Subscription) {
    let Subscription { filter, qos, no_local, retain_as_published, retain_handling, id } = subscription;
    write_bytes(out, filter.as_str().as_bytes());
    let flags = [u8::from(*no_local) << 2, u8::from(*retain_as_published) << 3, (*retain_handling & 3) << 4];
    out.push(flags.iter().fold(*qos as u8, |all, flag| all | flag));
    out.extend_from_slice(&id.map_or(0, NonZeroU32::get).to_le_bytes());
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], NoEntry> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(NoEntry)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn bytes(&mut self) -> Result<&'a [u8], NoEntry> {
        let length = u32::from_le_bytes(self.take()?) as usize;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(NoEntry)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<Receipt, NoEntry> {
        Receipt::new(u64::from_le_bytes(self.take()?)).ok_or(NoEntry)
    }

    fn packet_id(&mut self) -> Result<u16, NoEntry> {
        Some(u16::from_le_bytes(self.take()?)).filter(|id| *id > 0).ok_or(NoEntry)
    }

    fn subscription(&mut self) -> Result<Subscription, NoEntry> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| NoEntry)?;
        let filter = TopicFilter::try_from(text).map_err(|_| NoEntry)?;
        let [flags] = self.take()?;
        Ok(Subscription {
            filter,
            qos: QoS::from_bits(flags & 3).ok_or(NoEntry)?,
            no_local: flags & 4 != 0,
            retain_as_published: flags & 8 != 0,
            retain_handling: flags >> 4 & 3,
            id: NonZeroU32::new(u32::from_le_bytes(self.take()?)),
        })
    }
}

/// What this program writes, and all it reads.
const VERSION: u8 = 1;
const BEGUN: u8 = 1;
const ENDED: u8 = 2;
const STANDING: u8 = 3;
const QUEUED: u8 = 4;
const SENT: u8 = 5;
const RELEASED: u8 = 6;
const DONE: u8 = 7;
const DROPPED: u8 = 8;
const RECEIVED: u8 = 9;
const FINISHED: u8 = 10;
const WILL: u8 = 11;
const WILL_DUE: u8 = 12;
const WILL_GONE: u8 = 13;

#[cfg(test)]
mod tests;
