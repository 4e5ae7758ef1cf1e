//! The interpreter between a link, played byte by byte, and a hub, played the same way, with the library in the middle.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::{
    packet::{
        Connack, Connect, PacketType, ProtocolVersion, Publish, QoS, Subscribe, SubscriptionRequest, next_frame,
        parse_connack, parse_connect, parse_disconnect, parse_puback, parse_suback, parse_unsuback, write_connack,
        write_connect, write_disconnect, write_pingreq, write_puback, write_publish, write_suback, write_subscribe,
        write_unsuback, write_unsubscribe,
    },
    topic::TopicFilter,
    upstream::{HubClient, HubLogin, HubWire},
};

use ProtocolVersion::{V3_1_1, V5_0};

/// One side: what it is on, and what it has read of it beyond the last packet.
struct Side<S> {
    stream: S,
    read: Vec<u8>,
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Side<S> {
    fn new(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    async fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.stream.write_all(&bytes).await.expect("written");
    }

    /// The next packet, as a whole; none at the end.
    async fn hear(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(frame) = next_frame(&self.read, 1 << 20).expect("well-formed") {
                let length = frame.bytes().len();
                return Some(self.read.drain(..length).collect());
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await.expect("in time");
            if read.is_err() || matches!(read, Ok(0)) {
                return None;
            }
        }
    }

    async fn hear_a<T>(&mut self, kind: PacketType, parse: impl Fn(crate::packet::Frame<'_>) -> T) -> T {
        let bytes = self.hear().await.expect("a packet");
        let frame = next_frame(&bytes, 1 << 20).expect("well-formed").expect("whole");
        assert_eq!(frame.packet_type(), kind, "{bytes:02x?}");
        parse(frame)
    }
}

/// A link and a hub that have exchanged CONNECT; the hub has not answered it.
async fn met(version: ProtocolVersion, window: usize) -> (Side<HubStream>, Side<TcpStream>, Connect) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let config = MqttHubConfig {
        host: "127.0.0.1".into(),
        port: listener.local_addr().expect("an address").port(),
        tls: None,
        version,
        login: HubLogin::named(None),
        wire: HubWire { client: HubClient::Rumqttc, ..HubWire::default() },
    };
    let mut link = Side::new(RumqttcHub::new(&config, window).expect("no files").dial());
    let connect = Connect {
        clean_start: false,
        keep_alive: 30,
        user_name: Some("pool".into()),
        password: Some(crate::packet::Password::new(b"secret")),
        session_expiry: if version == V5_0 { 3_600 } else { 0 },
        receive_maximum: if version == V5_0 { 1_000 } else { u16::MAX },
        maximum_packet_size: (version == V5_0).then_some(1 << 20),
        ..Connect::new(version, "edge-1-0")
    };
    link.say(|out| write_connect(out, &connect)).await;
    // It moves when it is read.
    let accepted = tokio::select! {
        accepted = listener.accept() => accepted,
        heard = link.hear() => panic!("{heard:02x?} before the hub was there"),
    };
    let mut hub = Side::new(accepted.expect("a connection").0);
    let heard = tokio::select! {
        heard = hub.hear_a(PacketType::Connect, |frame| parse_connect(frame).expect("CONNECT")) => heard,
        heard = link.hear() => panic!("{heard:02x?} before CONNACK"),
    };
    (link, hub, heard)
}

/// And the hub accepted.
async fn up(version: ProtocolVersion, window: usize, connack: &Connack) -> (Side<HubStream>, Side<TcpStream>) {
    let (mut link, mut hub, _) = met(version, window).await;
    hub.say(|out| write_connack(out, version, connack)).await;
    let heard = link.hear_a(PacketType::Connack, |frame| parse_connack(frame, version).expect("CONNACK")).await;
    assert_eq!(&heard, connack);
    (link, hub)
}

/// What the hub hears next, while the link is read as it always is.
async fn at_hub<T>(
    link: &mut Side<HubStream>,
    hub: &mut Side<TcpStream>,
    kind: PacketType,
    parse: impl Fn(crate::packet::Frame<'_>) -> T,
) -> T {
    tokio::select! {
        heard = hub.hear_a(kind, parse) => heard,
        heard = link.hear() => panic!("{heard:02x?} at the link"),
    }
}

fn publish(version: ProtocolVersion, packet_id: u16) -> Vec<u8> {
    let (dup, qos, retain, topic) = (false, QoS::AtLeastOnce, false, "t");
    let publish = Publish { dup, qos, retain, topic, packet_id, properties: &[], payload: &packet_id.to_be_bytes() };
    let mut bytes = Vec::new();
    write_publish(&mut bytes, version, &publish);
    bytes
}

#[tokio::test]
async fn who_the_pool_is_and_what_the_hub_agrees_to_are_passed_on() {
    let (_, _, heard) = met(V3_1_1, 10).await;
    assert_eq!((heard.client_id.as_str(), heard.clean_start, heard.keep_alive), ("edge-1-0", false, 30));
    assert_eq!(heard.user_name.as_deref(), Some("pool"));
    assert_eq!(heard.password.expect("a password").as_bytes(), b"secret");
    let (_, _, heard) = met(V5_0, 10).await;
    assert_eq!((heard.session_expiry, heard.receive_maximum, heard.maximum_packet_size), (3_600, 1_000, Some(1 << 20)));
    up(V3_1_1, 10, &Connack { session_present: true, ..Connack::new(0) }).await;
    let connack = Connack {
        session_present: true,
        session_expiry: Some(60),
        receive_maximum: 7,
        qos_max: 1,
        retain_available: false,
        maximum_packet_size: Some(5_000),
        assigned_client_id: Some("x".into()),
        topic_alias_maximum: 3,
        reason_string: Some("welcome".into()),
        wildcard_available: false,
        subscription_id_available: false,
        shared_available: false,
        server_keep_alive: Some(20),
        ..Connack::new(0)
    };
    up(V5_0, 10, &connack).await;
}

#[tokio::test]
async fn a_refusal_and_a_reason_to_close_reach_the_link() {
    for (version, code) in [(V3_1_1, 5), (V5_0, 0x87), (V5_0, 0x9F)] {
        let (mut link, mut hub, _) = met(version, 10).await;
        hub.say(|out| write_connack(out, version, &Connack::new(code))).await;
        let heard = link.hear_a(PacketType::Connack, |frame| parse_connack(frame, version).expect("CONNACK")).await;
        assert_eq!(heard.code, code);
        assert_eq!(link.hear().await, None);
        let why = link.stream.explanation().expect("an end");
        assert_eq!(why, format!("the hub refused the connection (code 0x{code:02x})"));
    }
    let (mut link, mut hub) = up(V5_0, 10, &Connack::new(0)).await;
    hub.say(|out| write_disconnect(out, V5_0, 0x8B, Some("tired"), None)).await;
    let heard = link.hear_a(PacketType::Disconnect, |frame| parse_disconnect(frame, V5_0).expect("DISCONNECT")).await;
    assert_eq!(heard.reason, 0x8B);
    assert_eq!(link.hear().await, None);
    assert!(!link.stream.was_given_up());
}

#[tokio::test]
async fn acknowledgements_find_their_message_in_any_order_and_those_before_the_end_count() {
    for version in [V3_1_1, V5_0] {
        let (mut link, mut hub) = up(version, 10, &Connack::new(0)).await;
        let reason = if version == V5_0 { 0x97 } else { 0 };
        for own in [700, 300, 500] {
            link.stream.write_all(&publish(version, own)).await.expect("written");
        }
        let mut ids = Vec::new();
        for own in [700_u16, 300, 500] {
            let id = at_hub(&mut link, &mut hub, PacketType::Publish, |frame| {
                let heard = crate::packet::parse_publish(frame, version).expect("PUBLISH");
                assert_eq!(heard.payload, own.to_be_bytes(), "in order");
                heard.packet_id
            });
            ids.push(id.await);
        }
        // All in one write, with the end of the connection behind it.
        hub.say(|out| {
            write_puback(out, version, ids[2], 0);
            write_puback(out, version, ids[0], reason);
        })
        .await;
        drop(hub);
        for expected in [(500, 0), (700, reason)] {
            let heard = link.hear_a(PacketType::Puback, |frame| parse_puback(frame, version).expect("PUBACK")).await;
            assert_eq!((heard.packet_id, heard.reason), expected);
        }
        assert_eq!(link.hear().await, None);
        assert!(!link.stream.was_given_up(), "the hub closed it");
        assert!(link.stream.explanation().expect("an end").starts_with("connection lost"));
    }
}

#[tokio::test]
async fn an_id_that_the_hub_has_not_answered_is_not_given_again() {
    let (mut link, mut hub) = up(V5_0, 10, &Connack { receive_maximum: 3, ..Connack::new(0) }).await;
    let heard = |frame: crate::packet::Frame<'_>| crate::packet::parse_publish(frame, V5_0).expect("PUBLISH").packet_id;
    let mut taken = Vec::new();
    for own in 1..=8 {
        link.stream.write_all(&publish(V5_0, own)).await.expect("written");
        let id = at_hub(&mut link, &mut hub, PacketType::Publish, heard).await;
        assert!(!taken.contains(&id), "{id} is taken: {taken:?}");
        taken.push(id);
        // The first of each pair is answered behind the second.
        if taken.len() == 2 {
            for id in [taken[1], taken[0]] {
                hub.say(|out| write_puback(out, V5_0, id, 0)).await;
            }
            for expected in [own, own - 1] {
                let heard = link.hear_a(PacketType::Puback, |frame| parse_puback(frame, V5_0).expect("PUBACK")).await;
                assert_eq!(heard.packet_id, expected);
            }
            taken.clear();
        }
    }
}

#[tokio::test]
async fn filters_are_asked_for_together_and_given_back_one_by_one_with_one_answer() {
    for version in [V3_1_1, V5_0] {
        let (mut link, mut hub) = up(version, 10, &Connack::new(0)).await;
        let filters = ["a/+", "b/#"].map(|filter| TopicFilter::try_from(filter).expect("a filter"));
        let requests =
            filters.iter().map(|filter| SubscriptionRequest::new(filter.clone(), QoS::AtLeastOnce)).collect();
        let subscription_id = (version == V5_0).then_some(9);
        let subscribe = Subscribe { packet_id: 60_001, subscription_id, requests };
        link.say(|out| write_subscribe(out, version, &subscribe)).await;
        let heard = at_hub(&mut link, &mut hub, PacketType::Subscribe, |frame| {
            crate::packet::parse_subscribe(frame, version).expect("SUBSCRIBE")
        })
        .await;
        assert_eq!((heard.subscription_id, &heard.requests), (subscription_id, &subscribe.requests));
        hub.say(|out| write_suback(out, version, heard.packet_id, &[1, 0x80])).await;
        let answer = link.hear_a(PacketType::Suback, |frame| parse_suback(frame, version).expect("SUBACK")).await;
        assert_eq!((answer.packet_id, answer.codes), (60_001, vec![1, 0x80]));

        link.say(|out| write_unsubscribe(out, version, 60_002, &filters)).await;
        for _ in &filters {
            let heard = at_hub(&mut link, &mut hub, PacketType::Unsubscribe, |frame| {
                crate::packet::parse_unsubscribe(frame, version).expect("UNSUBSCRIBE")
            });
            let packet_id = heard.await.packet_id;
            hub.say(|out| write_unsuback(out, version, packet_id, if version == V5_0 { &[0x11] } else { &[] })).await;
        }
        let answer = link.hear_a(PacketType::Unsuback, |frame| parse_unsuback(frame, version).expect("UNSUBACK")).await;
        assert_eq!(answer.packet_id, 60_002);
        assert_eq!(answer.codes, if version == V5_0 { vec![0x11, 0x11] } else { vec![] });
    }
}

#[tokio::test]
async fn a_ping_of_the_link_is_answered_and_a_hub_that_speaks_no_mqtt_is_given_up() {
    let (mut link, mut hub) = up(V5_0, 10, &Connack { server_keep_alive: Some(0), ..Connack::new(0) }).await;
    link.say(write_pingreq).await;
    link.hear_a(PacketType::Pingresp, |_| ()).await;
    // PUBACK for what was never sent.
    hub.say(|out| write_puback(out, V5_0, 3, 0)).await;
    assert_eq!(link.hear().await, None);
    assert!(link.stream.was_given_up(), "no message is the cause: {:?}", link.stream.explanation());
}

const PATIENCE: Duration = Duration::from_secs(20);
