//! A session from CONNACK on: whatever the device sends, what it is sent can be read, and what is kept for it is bounded.

use std::collections::BTreeSet;

use tollgate::{
    denial::Denial,
    packet::{
        Connect, PacketType, ProtocolVersion, QoS, next_frame, parse_connack, parse_disconnect, parse_puback,
        parse_publish, parse_suback, parse_unsuback,
    },
    session::server::{
        Change, Delivered, OutgoingMessage, Receipt, Room, Session, SessionLimits, SessionPresent, Settlement, Step,
        SubscribeOutcome,
    },
    time::Tick,
    topic::TopicName,
};

use super::bytes::{choice, version};

/// The first byte chooses version, limits, and what the driver answers.
pub fn session(data: &[u8]) {
    let (chosen, mut rest) = choice(data);
    let version = version(chosen);
    let mut connect = Connect::new(version, "d");
    if chosen & 2 != 0 {
        connect.maximum_packet_size = Some(40);
        connect.receive_maximum = 2;
    }
    if chosen & 4 != 0 && version == ProtocolVersion::V5_0 {
        connect.authentication_method = Some("SAS".to_owned());
    }
    if chosen & 32 == 0 {
        (connect.clean_start, connect.session_expiry) = (false, 60);
    }
    let mut now = Tick(1_000);
    let mut session = Session::accept(&connect, &LIMITS, now);
    let (mut out, mut waiting) = (Vec::new(), Vec::new());
    session.connack(SessionPresent::No, None, &mut out);
    while let Ok(Some(frame)) = next_frame(rest, session.maximum_packet_size()) {
        rest = &rest[frame.bytes().len()..];
        now = Tick(now.0 + 10);
        if !session.wants_input() {
            settle(&mut session, &mut waiting, &mut out, chosen);
        }
        match session.handle(frame, &mut out, now) {
            Ok(Step::Publish(inbound)) => {
                let (packet_id, qos) = (inbound.packet_id, inbound.qos);
                assert!(!inbound.topic.as_str().contains(['+', '#', '\0']) && qos as u8 <= LIMITS.qos_max);
                session.publish_accepted(packet_id, qos);
                if packet_id != 0 {
                    waiting.push(packet_id);
                }
            }
            Ok(Step::Subscribe(request)) => {
                let outcomes = vec![SubscribeOutcome::Granted(QoS::ExactlyOnce); request.requests.len()];
                session.suback(&request, &outcomes, &mut out);
                deliver(&mut session, &mut out, now);
            }
            Ok(Step::Unsubscribe(request)) => drop(session.unsuback(&request, &mut out)),
            Ok(Step::Renew(_)) => session.renewed(&mut out),
            Ok(Step::Disconnect(_)) => break,
            Ok(_) => {}
            Err(reason) => {
                session.disconnect(reason, None, &mut out);
                break;
            }
        }
        if chosen & 8 != 0 {
            settle(&mut session, &mut waiting, &mut out, chosen);
        }
        assert!(session.in_flight() <= usize::from(LIMITS.receive_maximum));
        assert!(session.subscriptions().len() <= LIMITS.subscriptions_max && session.queued() <= LIMITS.queue_max);
        assert!(session.unacknowledged() <= 100, "a window has an end");
    }
    readable(&out, version, chosen & 2 != 0);
    if session.session_expiry() > 0 {
        comes_back(session, &connect, chosen, now);
    }
}

/// What the device had not acknowledged is sent again, and nothing else.
fn comes_back(mut session: Session, connect: &Connect, chosen: u8, now: Tick) {
    let (owed, waits) = (session.unacknowledged(), session.queued());
    let _ = session.take_changes();
    let mut session = Session::resume(connect, &LIMITS, session.take_state(), now);
    let mut out = Vec::new();
    session.connack(SessionPresent::Yes, None, &mut out);
    session.pump(&mut out, now);
    assert_eq!(session.unacknowledged() + session.queued(), owed + waits, "nothing is lost or doubled");
    readable(&out, connect.version, chosen & 2 != 0);
}

/// A session whose connection is lost at every PINGREQ, wherever it stands, and taken up again: tokens renewed, messages of the
/// device with delivery or half-way, commands of every QoS and time to live. Each command of which somebody wants to hear has one
/// end; a message of QoS 2 is forwarded once until its identifier is free; nothing is sent that has expired.
pub fn session_resumed(data: &[u8]) {
    let (chosen, mut rest) = choice(data);
    let version = version(chosen);
    let mut connect = Connect::new(version, "d");
    (connect.clean_start, connect.session_expiry) = (false, 60);
    if chosen & 2 != 0 {
        connect.receive_maximum = 2;
    }
    if chosen & 4 != 0 && version == ProtocolVersion::V5_0 {
        connect.authentication_method = Some("SAS".to_owned());
    }
    let mut life = Life {
        session: Session::accept(&connect, &LIMITS, Tick(1_000)),
        out: Vec::new(),
        now: Tick(1_000),
        chosen,
        waiting: Vec::new(),
        held: BTreeSet::new(),
        owed: BTreeSet::new(),
        commands: 0,
    };
    life.session.connack(SessionPresent::No, None, &mut life.out);
    while let Ok(Some(frame)) = next_frame(rest, life.session.maximum_packet_size()) {
        rest = &rest[frame.bytes().len()..];
        life.now = Tick(life.now.0 + if chosen & 64 != 0 { 1_500 } else { 10 });
        let is_cut = frame.packet_type() == PacketType::Pingreq;
        if !life.session.wants_input() || chosen & 8 != 0 {
            life.settle();
        }
        if is_cut || !life.reads(frame) {
            readable(&life.out, version, false);
            life.comes_back(&connect);
        }
        life.changed();
        assert!(life.session.in_flight() <= usize::from(LIMITS.receive_maximum));
        assert!(life.session.queued() <= LIMITS.queue_max);
        let told: BTreeSet<Receipt> = life.session.receipts().into_iter().collect();
        assert_eq!(told, life.owed, "each has its end, and one alone");
    }
    readable(&life.out, version, false);
}

/// A session and who drives it.
struct Life {
    session: Session,
    out: Vec<u8>,
    now: Tick,
    chosen: u8,
    /// With delivery: packet ids, and whether by this connection.
    waiting: Vec<(u16, QoS)>,
    /// Identifiers of QoS 2 that were forwarded and are not free.
    held: BTreeSet<u16>,
    /// Commands that have not had their end.
    owed: BTreeSet<Receipt>,
    commands: u64,
}

impl Life {
    /// Whether the connection goes on.
    fn reads(&mut self, frame: tollgate::packet::Frame<'_>) -> bool {
        let mut delivers = false;
        match self.session.handle(frame, &mut self.out, self.now) {
            Ok(Step::Publish(inbound)) => {
                let (packet_id, qos) = (inbound.packet_id, inbound.qos);
                assert!(qos != QoS::ExactlyOnce || self.held.insert(packet_id), "{packet_id} is forwarded twice");
                self.session.publish_accepted(packet_id, qos);
                if packet_id != 0 {
                    self.waiting.push((packet_id, qos));
                }
            }
            Ok(Step::Subscribe(request)) => {
                let granted = [QoS::ExactlyOnce, QoS::AtLeastOnce][usize::from(self.chosen >> 7)];
                let outcomes = vec![SubscribeOutcome::Granted(granted); request.requests.len()];
                self.session.suback(&request, &outcomes, &mut self.out);
                delivers = true;
            }
            Ok(Step::Unsubscribe(request)) => drop(self.session.unsuback(&request, &mut self.out)),
            Ok(Step::Renew(_)) => self.session.renewed(&mut self.out),
            Ok(Step::Disconnect(_)) => return false,
            Ok(_) => {}
            Err(reason) => {
                self.session.disconnect(reason, None, &mut self.out);
                return false;
            }
        }
        if delivers {
            self.deliver();
        }
        true
    }

    fn settle(&mut self) {
        for (at, (packet_id, qos)) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            if self.chosen & 16 != 0 && at % 2 == 1 {
                if qos == QoS::ExactlyOnce {
                    self.held.remove(&packet_id);
                }
                let _ = self.session.publish_refused(packet_id, Denial::TopicOutOfScope, &mut self.out);
            } else {
                self.session.publish_stored(packet_id, &mut self.out);
            }
        }
    }

    /// Commands of each QoS, one that has expired as it comes and one that soon does.
    fn deliver(&mut self) {
        let topic = TopicName::new(b"a/b").expect("a topic");
        for (qos, expiry) in [
            (QoS::ExactlyOnce, Some(2)),
            (QoS::AtLeastOnce, Some(0)),
            (QoS::AtMostOnce, None),
            (QoS::AtLeastOnce, None),
        ] {
            self.commands += 1;
            let receipt = Receipt::new(self.commands);
            // When it is over, so that whoever reads what is sent can tell.
            let until = expiry.map_or(u64::MAX, |seconds: u32| self.now.0 + u64::from(seconds) * 1_000);
            let (payload, retain, properties) =
                (&until.to_be_bytes()[..], self.commands.is_multiple_of(2), &b"\x01\x01"[..]);
            let message = OutgoingMessage {
                topic,
                payload,
                qos,
                retain,
                properties,
                expiry,
                receipt,
                asked: &[],
                room: Room::Some,
            };
            let before = self.out.len();
            match self.session.deliver(&message, &mut self.out, self.now) {
                Delivered::Sent | Delivered::Queued => self.owed.extend(receipt),
                Delivered::Written | Delivered::Dropped(_) => {}
            }
            self.unexpired(before);
            self.changed();
        }
        let before = self.out.len();
        self.session.pump(&mut self.out, self.now);
        self.unexpired(before);
    }

    /// What was sent for the first time had time left.
    fn unexpired(&self, before: usize) {
        let mut sent = &self.out[before..];
        while let Ok(Some(frame)) = next_frame(sent, usize::MAX) {
            if frame.packet_type() == PacketType::Publish
                && let Ok(publish) = parse_publish(frame, self.session.version())
                && !publish.dup
                && let Ok(until) = publish.payload.try_into()
            {
                // One of no time at all is sent where it need not wait: 0 seconds after it came.
                assert!(u64::from_be_bytes(until) >= self.now.0, "a message is sent that has expired");
            }
            sent = &sent[frame.bytes().len()..];
        }
    }

    fn changed(&mut self) {
        for change in self.session.take_changes() {
            match change {
                Change::Finished(packet_id) => drop(self.held.remove(&packet_id)),
                Change::Released { receipt, .. } | Change::Done { receipt, .. } | Change::Dropped { receipt, .. } => {
                    if let Some(receipt) = receipt {
                        assert!(self.owed.remove(&receipt), "{receipt:?} has a second end");
                    }
                }
                Change::Received(_) | Change::Sent { .. } => {}
            }
        }
    }

    /// The connection was lost. What is with delivery may have its answer before the device is back, or after.
    fn comes_back(&mut self, connect: &Connect) {
        self.changed();
        let (owed, waits) = (self.session.unacknowledged(), self.session.queued());
        let mut state = self.session.take_state();
        // Of QoS 1 nothing is known to the next connection.
        self.waiting.retain(|(_, qos)| *qos == QoS::ExactlyOnce);
        if self.chosen & 32 != 0 {
            for (at, (packet_id, _)) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
                let is_stored = at % 2 == 0;
                state.settle(packet_id, if is_stored { Settlement::Stored } else { Settlement::Refused });
                if !is_stored {
                    self.held.remove(&packet_id);
                }
            }
        }
        self.session = Session::resume(connect, &LIMITS, state, self.now);
        self.out.clear();
        self.session.connack(SessionPresent::Yes, None, &mut self.out);
        self.session.pump(&mut self.out, self.now);
        self.changed();
        let left = self.session.unacknowledged() + self.session.queued();
        assert!(left <= owed + waits, "nothing is doubled");
        self.unexpired(0);
    }
}

/// What waits is stored or refused.
fn settle(session: &mut Session, waiting: &mut Vec<u16>, out: &mut Vec<u8>, chosen: u8) {
    for (at, packet_id) in waiting.drain(..).enumerate() {
        if chosen & 16 != 0 && at % 2 == 1 {
            let _ = session.publish_refused(packet_id, Denial::TopicOutOfScope, out);
        } else {
            session.publish_stored(packet_id, out);
        }
    }
}

fn deliver(session: &mut Session, out: &mut Vec<u8>, now: Tick) {
    let topic = TopicName::new(b"a/b").expect("a topic");
    for payload in [&b"short"[..], &[b'x'; 100]] {
        let message = OutgoingMessage {
            topic,
            payload,
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: b"\x01\x01",
            expiry: Some(60),
            receipt: None,
            asked: &[],
            room: Room::Some,
        };
        let _ = session.deliver(&message, out, now);
    }
    session.pump(out, now);
}

/// Every packet to the device can be read by it, and is no larger than it takes.
fn readable(mut out: &[u8], version: ProtocolVersion, small: bool) {
    let mut connacks = 0;
    while let Some(frame) = next_frame(out, usize::MAX).expect("what is sent is a packet") {
        let good = match frame.packet_type() {
            PacketType::Connack => {
                connacks += 1;
                parse_connack(frame, version).is_ok()
            }
            PacketType::Publish => {
                assert!(!small || frame.bytes().len() <= 40);
                parse_publish(frame, version).is_ok()
            }
            PacketType::Puback => parse_puback(frame, version).is_ok(),
            PacketType::Suback => parse_suback(frame, version).is_ok(),
            PacketType::Unsuback => parse_unsuback(frame, version).is_ok(),
            PacketType::Disconnect => version == ProtocolVersion::V5_0 && parse_disconnect(frame, version).is_ok(),
            PacketType::Auth => version == ProtocolVersion::V5_0,
            PacketType::Pingresp | PacketType::Pubrec | PacketType::Pubrel | PacketType::Pubcomp => true,
            _ => false,
        };
        assert!(good, "{frame:?} is sent to a device");
        out = &out[frame.bytes().len()..];
    }
    assert!(out.is_empty() && connacks == 1);
}

/// Entries of a session as it is kept on the disk.
pub fn session_image(data: &[u8]) {
    let mut written = Vec::new();
    if let Ok(entry) = tollgate::session::image::Entry::parse(data) {
        entry.write(&mut written);
        let mut again = Vec::new();
        tollgate::session::image::Entry::parse(&written).expect("what was written is read").write(&mut again);
        assert_eq!(again, written);
    }
}

const LIMITS: SessionLimits = SessionLimits {
    receive_maximum: 3,
    maximum_packet_size: 1000,
    topic_alias_maximum: 2,
    subscriptions_max: 2,
    queue_max: 3,
    qos_max: 2,
    session_expiry_max: 3600,
    retain: true,
    keep_alive_max: 0,
};
