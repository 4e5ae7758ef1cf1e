//! A link against a hub that the test plays. (Over 600 lines: cases of one machine, which share its set-up.)

use super::*;
use crate::{
    packet::{
        Connack, Frame, Password, ProtocolVersion, next_frame, parse_publish, write_connack, write_puback,
        write_publish, write_suback,
    },
    route::Ack,
    time::Tick,
};

const V3: ProtocolVersion = ProtocolVersion::V3_1_1;
const V5: ProtocolVersion = ProtocolVersion::V5_0;
const Q0: QoS = QoS::AtMostOnce;
const Q1: QoS = QoS::AtLeastOnce;

pub(super) fn config(version: ProtocolVersion, window: usize, log_bytes_max: usize) -> LinkConfig {
    let client = ClientConfig {
        client_id: "edge-1-0".into(),
        version,
        keep_alive: 60,
        session_expiry: 86_400,
        user_name: Some("pool".into()),
        password: Some(Password::new(b"secret")),
    };
    LinkConfig {
        client,
        window,
        log_bytes_max,
        id_prefix: "edge-1-0-f00d".into(),
        subscribe_qos_max: QoS::ExactlyOnce,
        spool: None,
    }
}

fn wish(token: u64) -> Wish {
    Wish { qos: Q1, retained: Retained::Wanted, as_published: false, token }
}

pub(super) fn session(slot: u32) -> SessionRef {
    SessionRef { slot, generation: 1 }
}

pub(super) fn message(payload: &[u8], qos: QoS) -> Outbound<'_> {
    Outbound {
        topic: "devices/d/x",
        qos,
        retain: false,
        properties: &[],
        stamp: &[],
        payload,
        received_ms: 0,
        device: 0,
        ack: Ack::Durable,
    }
}

/// What the hub sees of one PUBLISH.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    id: u16,
    dup: bool,
    payload: Vec<u8>,
}

/// A link, and the hub's end of its connection.
struct Bench {
    link: Link,
    version: ProtocolVersion,
    out: LinkOutput,
    delivered: Vec<(SessionRef, QoS, Vec<u8>)>,
    /// Tickets, where sessions hold what they are given.
    held: Option<Vec<Ticket>>,
    now: Tick,
}

impl Bench {
    fn new(version: ProtocolVersion, window: usize) -> Self {
        Self::with(config(version, window, 8 << 20))
    }

    fn with(config: LinkConfig) -> Self {
        let version = config.client.version;
        Self {
            link: Link::new(config),
            version,
            out: LinkOutput::default(),
            delivered: vec![],
            held: None,
            now: Tick(0),
        }
    }

    fn connect(&mut self, connack: &Connack) {
        self.link.start(self.now);
        let written = self.written();
        assert_eq!(written.first().map(|f| f[0]), Some(0x10), "CONNECT is the first packet");
        let mut bytes = vec![];
        write_connack(&mut bytes, self.version, connack);
        self.hub(&bytes).expect("accepted");
    }

    fn up(mut self) -> Self {
        self.connect(&Connack::new(0));
        self
    }

    fn hub(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        let Self { delivered, held, .. } = self;
        let mut deliver = |who, incoming: &Incoming<'_>| {
            delivered.push((who, incoming.qos, incoming.publish.payload.to_vec()));
            let Some((held, ticket)) = held.as_mut().zip(incoming.ticket) else { return Taken::Whole };
            held.push(ticket);
            Taken::Held
        };
        self.link.on_bytes(bytes, &mut self.out, &mut deliver, self.now)
    }

    fn ack(&mut self, id: u16) -> Result<usize, LinkError> {
        let mut bytes = vec![];
        write_puback(&mut bytes, self.version, id, 0);
        self.hub(&bytes)
    }

    fn offer(&mut self, slot: u32, packet_id: u16, qos: QoS, payload: &[u8]) -> Offer {
        self.link.offer(session(slot), packet_id, &message(payload, qos), self.now)
    }

    /// Lets the link write all it wants, and cuts it into packets.
    fn written(&mut self) -> Vec<Vec<u8>> {
        let mut bytes = vec![];
        while !self.link.unsent().is_empty() {
            bytes.extend_from_slice(self.link.unsent());
            self.link.wrote(self.link.unsent().len());
        }
        frames(&bytes).iter().map(|f| f.bytes().to_vec()).collect()
    }

    fn published(&mut self) -> Vec<Seen> {
        let version = self.version;
        self.written().iter().map(|bytes| seen(frames(bytes)[0], version)).collect()
    }

    fn published_among_others(&mut self) -> Vec<Seen> {
        let version = self.version;
        let written = self.written();
        written.iter().filter(|bytes| bytes[0] >> 4 == 3).map(|bytes| seen(frames(bytes)[0], version)).collect()
    }

    fn settled(&mut self) -> Vec<(u32, u16, Result<(), Refusal>)> {
        self.out.settled.drain(..).map(|s| (s.session.slot, s.packet_id, s.outcome)).collect()
    }

    fn lose(&mut self) {
        self.link.down(Lost::Otherwise, &mut self.out, self.now);
    }

    fn granted(&mut self) -> Vec<u32> {
        let mut woken = vec![];
        self.link.grants(&mut |who| {
            woken.push(who.slot);
            Woken::Here
        });
        woken
    }
}

fn frames(bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut all = vec![];
    let mut rest = bytes;
    while let Some(frame) = next_frame(rest, usize::MAX).expect("well-formed") {
        rest = &rest[frame.bytes().len()..];
        all.push(frame);
    }
    assert!(rest.is_empty(), "whole packets only");
    all
}

fn seen(frame: Frame<'_>, version: ProtocolVersion) -> Seen {
    let publish = parse_publish(frame, version).expect("a PUBLISH");
    Seen { id: publish.packet_id, dup: publish.dup, payload: publish.payload.to_vec() }
}

fn plain(id: u16, payload: &[u8]) -> Seen {
    Seen { id, dup: false, payload: payload.to_vec() }
}

#[test]
fn a_message_is_settled_when_the_hub_has_it() {
    for version in [V3, V5] {
        let mut b = Bench::new(version, 10).up();
        b.now = Tick(100);
        assert_eq!(b.offer(7, 501, Q1, b"hello"), Offer::Taken);
        assert_eq!(b.published(), [plain(1, b"hello")]);
        assert_eq!((b.settled(), b.link.inflight()), (vec![], 1));
        b.now = Tick(130);
        b.ack(1).expect("it was sent");
        let done = Settled { session: session(7), packet_id: 501, outcome: Ok(()), took_ms: 30 };
        assert_eq!(b.out.settled, [done]);
        assert_eq!(b.link.inflight(), 0);
    }
}

#[test]
fn a_refusal_of_the_hub_settles_the_message_as_refused() {
    let mut b = Bench::new(V5, 10).up();
    for id in [1, 2] {
        assert_eq!(b.offer(1, id, Q1, b"x"), Offer::Taken);
    }
    b.written();
    b.hub(b"\x40\x03\x00\x01\x87\x40\x03\x00\x02\x10").expect("well-formed");
    assert_eq!(b.settled(), [(1, 1, Err(Refusal::Code(0x87))), (1, 2, Ok(()))], "0x10 only says that nobody listens");
    b.lose();
    b.connect(&Connack { session_present: true, ..Connack::new(0) });
    assert_eq!(b.published(), [], "it is not sent again");
}

#[test]
fn nothing_is_sent_before_connack_and_everything_after_it() {
    let mut b = Bench::new(V3, 10);
    assert_eq!(b.offer(1, 1, Q1, b"early"), Offer::Taken);
    assert!(b.link.unsent().is_empty());
    b.connect(&Connack::new(0));
    assert_eq!(b.published(), [plain(1, b"early")]);
}

#[test]
fn after_a_loss_all_is_sent_again_in_order_and_marked_where_the_hub_may_know_it() {
    for (session_present, dup) in [(false, false), (true, true)] {
        let mut b = Bench::new(V5, 10).up();
        for (id, payload) in (1..).zip([b"a", b"b", b"c"]) {
            assert_eq!(b.offer(1, id, Q1, payload), Offer::Taken);
        }
        assert_eq!(b.published().len(), 3);
        assert_eq!(b.offer(1, 4, Q1, b"d"), Offer::Taken);
        b.ack(2).expect("out of order, but sent");
        b.lose();
        assert_eq!(b.offer(1, 5, Q1, b"e"), Offer::Taken);
        b.connect(&Connack { session_present, ..Connack::new(0) });
        let again = |id, payload: &[u8]| Seen { dup, ..plain(id, payload) };
        assert_eq!(b.published(), [again(1, b"a"), again(3, b"c"), plain(4, b"d"), plain(5, b"e")]);
        assert_eq!(b.settled(), [(1, 2, Ok(()))]);
    }
}

#[test]
fn a_stale_acknowledgement_settles_nothing_and_is_an_error_in_a_new_session() {
    for (session_present, tolerated) in [(true, true), (false, false)] {
        let mut b = Bench::new(V5, 10).up();
        assert_eq!(b.offer(1, 1, Q1, b"a"), Offer::Taken);
        b.written();
        b.lose();
        b.connect(&Connack { session_present, ..Connack::new(0) });
        assert_eq!(b.ack(1).is_ok(), tolerated, "it has not been sent on this connection");
        assert_eq!(b.settled(), []);
    }
    let mut b = Bench::new(V3, 10).up();
    for id in [0, 1, 9, 65_535] {
        assert!(b.ack(id).is_err(), "{id} was never sent");
    }
}

#[test]
fn receive_maximum_is_obeyed_on_resend_too() {
    let mut b = Bench::new(V5, 10).up();
    for id in 1..=5 {
        assert_eq!(b.offer(1, id, Q1, &[id as u8]), Offer::Taken);
    }
    assert_eq!(b.published().len(), 5);
    b.lose();
    b.connect(&Connack { receive_maximum: 2, ..Connack::new(0) });
    assert_eq!(b.published(), [plain(1, &[1]), plain(2, &[2])]);
    b.ack(2).expect("sent");
    assert_eq!(b.published(), [plain(3, &[3])]);
}

#[test]
fn a_full_window_makes_sessions_wait_and_serves_them_in_order() {
    let mut b = Bench::new(V5, 2).up();
    assert_eq!((b.offer(1, 1, Q1, b"a"), b.offer(1, 2, Q1, b"b")), (Offer::Taken, Offer::Taken));
    assert_eq!((b.offer(2, 1, Q1, b"c"), b.offer(3, 1, Q1, b"d")), (Offer::Wait, Offer::Wait));
    b.link.wait_turn(session(2), 5);
    assert_eq!((b.granted(), b.link.room()), (vec![], 0));
    b.written();
    b.ack(1).expect("sent");
    assert_eq!(b.granted(), [2]);
    assert_eq!(b.offer(9, 1, Q1, b"e"), Offer::Wait, "the free place is promised");
    assert_eq!(b.offer(2, 1, Q1, b"c"), Offer::Taken);
    assert_eq!(b.offer(2, 2, Q1, b"c"), Offer::Wait, "one was free, so one was promised");
    b.ack(2).expect("sent");
    assert_eq!(b.granted(), [3]);
    b.link.session_gone(session(3), b.now);
    assert_eq!(b.granted(), [9], "what was promised to a session that went away is the next one's");
    b.link.give_back(session(9));
    assert_eq!(b.granted(), [2]);
}

#[test]
fn the_log_is_bounded_and_one_large_message_fits_an_empty_one() {
    let mut b = Bench::with(config(V3, 1_000, 256 << 10)).up();
    let large = vec![1; 300 << 10];
    assert_eq!(b.offer(1, 1, Q1, &large), Offer::Taken);
    assert_eq!(b.offer(2, 1, Q1, b"small"), Offer::Wait);
    b.written();
    assert_eq!(b.granted(), [] as [u32; 0]);
    b.ack(1).expect("sent");
    assert_eq!(b.link.log_bytes(), 0);
    assert_eq!(b.granted(), [2]);
    assert_eq!(b.offer(2, 1, Q1, b"small"), Offer::Taken);
    assert_eq!(b.offer(1, 2, Q1, &large), Offer::Wait);
    assert_eq!(b.link.log_bytes(), 64 << 10);
}

#[test]
fn qos_0_is_freed_when_written_and_dropped_when_the_hub_is_away_and_the_log_is_full() {
    let mut b = Bench::with(config(V3, 10, 256 << 10));
    let kilobyte = [0; 1024];
    let taken = (0..1_000).take_while(|_| b.offer(1, 0, Q0, &kilobyte) == Offer::Taken).count();
    assert_eq!(taken, 2 * 63, "half of the log, less the heads");
    assert_eq!(b.offer(1, 0, Q0, &kilobyte), Offer::Dropped("hub_away"));
    assert_eq!(b.offer(1, 1, Q1, &kilobyte), Offer::Taken, "the other half is for what must not be lost");
    b.connect(&Connack::new(0));
    assert_eq!(b.published().len(), taken + 1);
    assert_eq!((b.link.unsent_bytes(), b.link.log_bytes()), (0, 64 << 10));
    b.lose();
    b.connect(&Connack::new(0));
    assert_eq!(b.published(), [plain(1, &kilobyte)], "QoS 0 is sent once");
}

#[test]
fn qos_0_waits_while_a_hub_that_is_there_takes_no_bytes() {
    let mut b = Bench::with(config(V3, 10, 256 << 10)).up();
    while b.offer(1, 0, Q0, &[0; 1024]) == Offer::Taken {}
    assert_eq!(b.granted(), [] as [u32; 0]);
    b.written();
    assert_eq!(b.granted(), [1]);
    while b.offer(1, 0, Q0, &[0; 1024]) == Offer::Taken {}
    b.lose();
    assert_eq!(b.granted(), [1], "woken to be dropped");
    assert_eq!(b.offer(1, 0, Q0, &[0; 1024]), Offer::Dropped("hub_away"));
}

#[test]
fn a_message_half_written_when_the_connection_is_lost_is_sent_again_whole() {
    for qos in [Q0, Q1] {
        let mut b = Bench::new(V3, 10).up();
        assert_eq!((b.offer(1, 1, qos, b"first"), b.offer(1, 2, qos, b"second")), (Offer::Taken, Offer::Taken));
        let half = b.link.unsent().len() - 3;
        b.link.wrote(half);
        b.lose();
        b.connect(&Connack::new(0));
        let again: Vec<_> = b.published().into_iter().map(|s| s.payload).collect();
        let want = if qos == Q0 { vec![b"second".to_vec()] } else { vec![b"first".to_vec(), b"second".to_vec()] };
        assert_eq!(again, want);
    }
}

#[test]
fn control_packets_stand_between_messages_never_in_one() {
    let mut b = Bench::new(V3, 10).up();
    for id in [1, 2] {
        assert_eq!(b.offer(1, id, Q1, b"payload"), Offer::Taken);
    }
    let mut bytes = b.link.unsent()[..5].to_vec();
    b.link.wrote(5);
    b.now = Tick(30_000);
    b.link.tick(b.now).expect("bytes are still being written");
    let filter = TopicFilter::try_from("a/#").expect("a filter");
    assert_eq!(b.link.subscribe(session(1), &filter, wish(0), b.now), Placement::Pending);
    while !b.link.unsent().is_empty() {
        bytes.push(b.link.unsent()[0]);
        b.link.wrote(1);
    }
    let kinds: Vec<_> = frames(&bytes).iter().map(|f| f.first() >> 4).collect();
    assert_eq!(kinds, [3, 12, 8, 3]);
}

#[test]
fn what_the_hub_cannot_take_is_refused_at_once_or_when_it_says_so() {
    let mut b = Bench::new(V5, 10);
    assert_eq!((b.offer(1, 1, Q1, &[0; 500]), b.offer(1, 2, Q1, b"ok")), (Offer::Taken, Offer::Taken));
    b.connect(&Connack { maximum_packet_size: Some(300), retain_available: false, ..Connack::new(0) });
    assert_eq!(b.settled(), [(1, 1, Err(Refusal::TooLarge))]);
    assert_eq!(b.published(), [plain(2, b"ok")]);
    assert_eq!(b.offer(1, 3, Q1, &[0; 500]), Offer::TooLarge);
    let long = "x".repeat(65_536);
    let too_long = Outbound { topic: &long, ..message(b"", Q0) };
    assert_eq!(Bench::new(V3, 1).link.offer(session(1), 1, &too_long, Tick(0)), Offer::TooLarge);
    let retained = Outbound { retain: true, ..message(b"r", Q1) };
    assert_eq!(b.link.offer(session(1), 4, &retained, b.now), Offer::Taken);
    assert_eq!(b.written()[0][0], 0x32, "this hub has no retained messages");
}

#[test]
fn a_5_0_hub_gets_the_stamp_and_the_same_id_on_a_resend() {
    let stamp = session_stamp("d", "edge-1", "sas/primary");
    let stamped = Outbound { properties: b"\x01\x01", stamp: &stamp, received_ms: 1_000, ..message(b"x", Q1) };
    let mut b = Bench::new(V5, 10).up();
    for id in [1, 2] {
        assert_eq!(b.link.offer(session(1), id, &stamped, b.now), Offer::Taken);
    }
    let first = b.written();
    let publish = parse_publish(frames(&first[0])[0], V5).expect("a PUBLISH");
    assert_eq!(publish.user_properties, 5);
    assert!(publish.properties.starts_with(&[b"\x01\x01", &stamp[..]].concat()));
    assert!(publish.properties.ends_with(b"edge-1-0-f00d-0000000000000000"));
    assert!(String::from_utf8_lossy(&first[1]).contains("edge-1-0-f00d-0000000000000001"));
    b.lose();
    b.connect(&Connack::new(0));
    assert_eq!(b.written(), first);
    let mut old = Bench::new(V3, 10).up();
    assert_eq!(old.link.offer(session(1), 1, &stamped, old.now), Offer::Taken);
    assert_eq!(old.written()[0], b"\x32\x10\x00\x0bdevices/d/x\x00\x01x");
}

#[test]
fn a_hub_that_acknowledges_nothing_is_given_up_after_20_seconds() {
    let mut b = Bench::new(V3, 10).up();
    assert_eq!(b.link.deadline(), Some(Tick(30_000)), "idle: only the next PINGREQ");
    b.now = Tick(5_000);
    for id in [1, 2] {
        assert_eq!(b.offer(1, id, Q1, b"x"), Offer::Taken);
    }
    b.written();
    assert_eq!((b.link.deadline(), b.link.tick(Tick(24_999))), (Some(Tick(25_000)), Ok(())));
    b.now = Tick(24_999);
    b.ack(1).expect("sent");
    b.hub(b"\xd0\x00").expect("a PINGRESP is no acknowledgement");
    assert_eq!(b.link.tick(Tick(44_998)), Ok(()));
    assert_eq!(b.link.tick(Tick(44_999)), Err(LinkError::Stalled));
}

#[test]
fn a_slow_line_that_still_takes_bytes_is_given_time() {
    let mut b = Bench::new(V3, 10).up();
    assert_eq!(b.offer(1, 1, Q1, &[0; 1000]), Offer::Taken);
    b.link.wrote(100);
    assert_eq!(b.link.tick(Tick(20_000)), Ok(()));
    assert_eq!(b.link.tick(Tick(40_000)), Err(LinkError::Stalled));
}

#[test]
fn the_hub_is_told_when_the_device_has_it_and_sends_it_again_until_then() {
    for version in [V3, V5] {
        let mut b = Bench::new(version, 10).up();
        b.held = Some(vec![]);
        let filter = TopicFilter::try_from("devices/d/#").expect("a filter");
        let _ = b.link.subscribe(session(4), &filter, wish(1), b.now);
        b.written();
        let command = |dup, packet_id| {
            let payload = b"open";
            let topic = "devices/d/cmd";
            let publish =
                crate::packet::Publish { dup, qos: Q1, retain: false, topic, packet_id, properties: &[], payload };
            let mut bytes = vec![];
            write_publish(&mut bytes, version, &publish);
            bytes
        };
        for packet_id in [1, 2] {
            b.hub(&command(false, packet_id)).expect("well-formed");
        }
        let [first, second] = b.held.take().expect("held").try_into().expect("two");
        b.link.release(second).expect("up");
        assert!(b.written().is_empty(), "in the order in which they came");
        b.held = Some(vec![]);
        b.link.down(Lost::Otherwise, &mut b.out, b.now);
        b.connect(&Connack { session_present: true, ..Connack::new(0) });
        b.written();
        for packet_id in [1, 2] {
            b.hub(&command(true, packet_id)).expect("well-formed");
        }
        assert_eq!((b.delivered.len(), b.link.held()), (2, 2), "no second copy");
        b.link.release(first).expect("up");
        assert_eq!((b.written(), b.link.held()), (vec![vec![0x40, 2, 0, 1], vec![0x40, 2, 0, 2]], 0));
        b.hub(&command(true, 1)).expect("well-formed");
        assert_eq!(b.delivered.len(), 3, "it was answered for, and is another");
    }
}

#[test]
fn a_subscription_is_placed_and_its_messages_reach_the_session_once() {
    for version in [V3, V5] {
        let mut b = Bench::new(version, 10).up();
        for (token, f) in [(1, "devices/d/#"), (2, "devices/+/cmd")] {
            let filter = TopicFilter::try_from(f).expect(f);
            assert_eq!(b.link.subscribe(session(4), &filter, wish(token), b.now), Placement::Pending);
        }
        assert_eq!(b.written().len(), 2);
        let mut bytes = vec![];
        write_suback(&mut bytes, version, 60_001, &[1]);
        write_suback(&mut bytes, version, 60_002, &[0x80]);
        for (topic, qos) in [("devices/d/cmd", Q1), ("devices/e/cmd", Q0)] {
            let publish = crate::packet::Publish {
                dup: false,
                qos,
                retain: false,
                topic,
                packet_id: 77,
                properties: &[],
                payload: topic.as_bytes(),
            };
            write_publish(&mut bytes, version, &publish);
        }
        // In pieces of one byte, as a transport may cut it.
        let mut held = vec![];
        for byte in bytes {
            held.push(byte);
            let used = b.hub(&held.clone()).expect("well-formed");
            held.drain(..used);
        }
        let placed: Vec<_> = b.out.placed.iter().map(|p| (p.token, p.granted)).collect();
        assert_eq!(placed, [(1, Ok(Q1)), (2, Err(0x80))]);
        assert_eq!(b.delivered, [(session(4), Q1, b"devices/d/cmd".to_vec())]);
        assert_eq!(b.out.unclaimed, 1, "nobody has a filter for the other one");
        assert_eq!(b.written(), [vec![0x40, 2, 0, 77]]);
        assert!(b.hub(b"\x90\x03\x00\x09\x00").is_err(), "a SUBACK to nothing");
    }
}

#[test]
fn subscriptions_are_placed_again_when_the_hub_has_forgotten_them() {
    for (session_present, asked) in [(false, 1), (true, 0)] {
        let mut b = Bench::new(V3, 10).up();
        let filter = TopicFilter::try_from("a/#").expect("a filter");
        assert_eq!(b.link.subscribe(session(1), &filter, wish(0), b.now), Placement::Pending);
        b.written();
        b.hub(b"\x90\x03\xea\x61\x01").expect("a SUBACK");
        b.lose();
        b.connect(&Connack { session_present, ..Connack::new(0) });
        assert_eq!(b.written().iter().filter(|f| f[0] == 0x82).count(), asked);
    }
}

#[test]
fn nobody_keeps_places_who_is_gone_when_its_turn_comes() {
    let mut end = Bench::new(V5, 4).up();
    for slot in 1..=4 {
        assert_eq!(end.offer(slot, 1, Q1, b"in the window"), Offer::Taken);
    }
    for slot in 5..=9 {
        assert_eq!(end.offer(slot, 1, Q1, b"waits"), Offer::Wait);
        end.link.wait_turn(session(slot), 16);
    }
    for seen in end.published() {
        end.ack(seen.id).expect("it was sent");
    }
    let mut woken = vec![];
    end.link.grants(&mut |who| {
        woken.push(who.slot);
        if who.slot < 9 { Woken::Gone } else { Woken::Here }
    });
    assert_eq!((woken, end.link.promised()), (vec![5, 6, 7, 8, 9], 4));
    assert_eq!(end.offer(9, 1, Q1, b"now"), Offer::Taken);
    end.link.give_back(session(9));
    assert_eq!((end.link.promised(), end.link.room()), (0, 3));
}

/// A message with a Message Expiry Interval.
fn expiring(payload: &[u8], qos: QoS, properties: [u8; 5]) -> Outbound<'_> {
    // Leaked: a few bytes of a test.
    Outbound { properties: Box::leak(Box::new(properties)), ..message(payload, qos) }
}

fn seconds(seconds: u8) -> [u8; 5] {
    [2, 0, 0, 0, seconds]
}

/// Payload and expiry of what the hub sees.
fn aged(b: &mut Bench) -> Vec<(Vec<u8>, Option<u32>)> {
    let written = b.written();
    let seen = written.iter().map(|bytes| parse_publish(frames(bytes)[0], V5).expect("a PUBLISH"));
    seen.map(|publish| (publish.payload.to_vec(), publish.message_expiry)).collect()
}

#[test]
fn what_waits_in_the_log_ages_and_what_is_over_is_not_sent() {
    let mut b = Bench::new(V5, 10);
    b.connect(&Connack { receive_maximum: 1, ..Connack::new(0) });
    let offers = [
        (1, Q1, b"first", seconds(100)),
        (2, Q1, b"over.", seconds(2)),
        (0, Q0, b"least", seconds(2)),
        (0, Q0, b"also.", seconds(30)),
        (3, Q1, b"later", seconds(9)),
    ];
    for (id, qos, payload, expiry) in offers {
        assert_eq!(b.link.offer(session(1), id, &expiring(payload, qos, expiry), b.now), Offer::Taken);
    }
    assert_eq!(aged(&mut b), [(b"first".to_vec(), Some(100))]);
    b.now = Tick(3_500);
    b.ack(1).expect("sent");
    assert_eq!(aged(&mut b), [(b"also.".to_vec(), Some(27)), (b"later".to_vec(), Some(6))]);
    // On another connection, later: what the hub may have is sent again.
    b.lose();
    b.now = Tick(20_000);
    assert_eq!(b.link.offer(session(1), 4, &expiring(b"while", Q1, seconds(1)), b.now), Offer::Taken);
    assert_eq!(b.link.offer(session(1), 0, &expiring(b"away.", Q0, seconds(9)), b.now), Offer::Taken);
    assert_eq!(b.link.offer(session(1), 5, &expiring(b"lasts", Q1, seconds(9)), b.now), Offer::Taken);
    b.now = Tick(22_000);
    b.connect(&Connack::new(0));
    let sent = [(b"later".to_vec(), Some(1)), (b"away.".to_vec(), Some(7)), (b"lasts".to_vec(), Some(7))];
    assert_eq!(aged(&mut b), sent);
    assert_eq!(b.settled(), [(1, 1, Ok(()))]);
    // Whoever waits for what is over is told, each once.
    assert_eq!(b.link.take_expired(&mut b.out, b.now), 3);
    assert_eq!(b.settled(), [(1, 2, Ok(())), (1, 4, Ok(()))]);
    assert_eq!((b.link.take_expired(&mut b.out, b.now), b.link.inflight()), (0, 2));
    assert_eq!(b.link.room(), 8, "their places are free");
}

#[test]
fn a_held_link_asks_for_its_filters_and_sends_no_message_until_it_goes_on() {
    let filter = |text: &str| TopicFilter::try_from(text).expect(text);
    let mut b = Bench::new(V3, 10);
    let _ = b.link.subscribe(session(1), &filter("a"), wish(0), b.now);
    let _ = b.link.subscribe(session(1), &filter("b"), wish(0), b.now);
    let _ = b.link.subscribe(session(2), &filter("c"), wish(0), b.now);
    assert_eq!((b.offer(7, 501, Q1, b"one"), b.offer(7, 0, Q0, b"two")), (Offer::Taken, Offer::Taken));
    b.link.hold();
    assert!(!b.link.has_placed(), "there is no hub");
    b.connect(&Connack::new(0));
    assert_eq!(b.written().iter().map(|packet| packet[0]).collect::<Vec<_>>(), [0x82], "SUBSCRIBE alone");
    assert_eq!(b.offer(8, 502, Q1, b"three"), Offer::Taken);
    assert!(!b.link.has_placed() && b.link.wants() == 0);
    // A session that comes later is not waited for, and one that goes is not missing.
    assert_eq!(b.link.subscribe(session(3), &filter("d"), wish(9), b.now), Placement::Pending);
    b.link.session_gone(session(2), b.now);
    let mut bytes = vec![];
    write_suback(&mut bytes, V3, 60_001, &[1, 0x80, 1]);
    b.hub(&bytes).expect("asked for");
    assert!(b.link.has_placed(), "also where the hub refused");
    assert_eq!(b.published_among_others(), []);
    b.link.go_on(b.now);
    let sent = [plain(1, b"one"), plain(0, b"two"), plain(2, b"three")];
    assert_eq!(b.published_among_others(), sent);
    // It holds what is on another connection, too.
    b.lose();
    b.link.hold();
    b.connect(&Connack::new(0));
    assert!(!b.link.has_placed() && b.published_among_others().is_empty());
}
