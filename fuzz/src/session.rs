//! A session from CONNACK on: whatever the device sends, what it is sent can be read, and what is kept for it is bounded.

use tollgate::{
    denial::Denial,
    packet::{
        Connect, PacketType, ProtocolVersion, QoS, next_frame, parse_connack, parse_disconnect, parse_puback,
        parse_publish, parse_suback, parse_unsuback,
    },
    session::server::{OutgoingMessage, Room, Session, SessionLimits, SessionPresent, Step, SubscribeOutcome},
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
