//! rumqttc's client for MQTT 3.1.1.

use std::time::Duration;

use ::rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, Publish as Message, QoS, StateError,
    SubscribeFilter, SubscribeReasonCode, mqttbytes::Error as WireError,
};
use tokio::sync::mpsc;

use super::{
    CONNECT_WITHIN, FLUSH_WITHIN, Place, REQUESTS_MAX,
    fate::{End, Happened, Sent, taken},
    network,
};
use crate::{
    packet::{Connack, Connect, ProtocolVersion::V3_1_1, Publish, PublishRef, QoS as OwnQoS, Subscribe, write_publish},
    session::client::PACKET_BYTES_MAX,
};

/// A client, and the event loop that moves it.
pub(super) fn open(place: &Place, connect: &Connect) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(&connect.client_id, place.address(), place.port);
    options.set_transport(place.transport());
    if let Some(proxy) = place.proxy() {
        options.set_proxy(proxy);
    }
    options.set_keep_alive(Duration::from_secs(connect.keep_alive.into()));
    options.set_clean_session(connect.clean_start || connect.client_id.is_empty());
    if let Some((name, password)) = super::interpreter::login(connect) {
        options.set_credentials(name, password);
    }
    options.set_manual_acks(true);
    options.set_inflight(place.packet_ids());
    // What the hub takes is the link's to keep.
    options.set_max_packet_size(PACKET_BYTES_MAX, usize::MAX);
    let (client, mut event_loop) = AsyncClient::new(options, REQUESTS_MAX);
    event_loop.set_network_options(network(CONNECT_WITHIN));
    (client, event_loop)
}

/// Moves it until its connection is over. What came before the end is told before it.
pub(super) async fn drive(mut event_loop: EventLoop, happened: mpsc::Sender<Happened>) -> End {
    let mut connected = false;
    loop {
        let event = match event_loop.poll().await {
            Ok(event) => event,
            Err(error) => {
                for event in std::mem::take(&mut event_loop.state.events) {
                    if let Ok(Some(what)) = translated(event) {
                        _ = happened.send(what).await;
                    }
                }
                return if connected { ended(error) } else { not_connected(error) };
            }
        };
        if matches!(event, Event::Incoming(Packet::ConnAck(_))) {
            connected = true;
            event_loop.set_network_options(network(FLUSH_WITHIN));
            // It sends a PINGREQ whenever so long is over, and takes the hub for dead when the next one is due.
            let half = event_loop.mqtt_options.keep_alive() / 2;
            if half >= Duration::from_secs(1) {
                event_loop.mqtt_options.set_keep_alive(half);
            }
        }
        match translated(event) {
            Ok(None) => {}
            Ok(Some(what)) => {
                if happened.send(what).await.is_err() {
                    return End::left();
                }
            }
            Err(end) => return end,
        }
    }
}

pub(super) fn publish(client: &AsyncClient, publish: &PublishRef<'_>, topic: &str) -> Result<(), End> {
    taken(client.try_publish(topic, qos(publish.qos), publish.retain, publish.payload))
}

pub(super) fn subscribe(client: &AsyncClient, subscribe: &Subscribe) -> Result<(), End> {
    let requests = subscribe.requests.iter().filter_map(|request| Some((request.filter.as_ref().ok()?, request.qos)));
    taken(
        client
            .try_subscribe_many(requests.map(|(filter, most)| SubscribeFilter::new(filter.as_str().into(), qos(most)))),
    )
}

pub(super) fn unsubscribe(client: &AsyncClient, filter: &str) -> Result<(), End> {
    taken(client.try_unsubscribe(filter))
}

pub(super) fn acknowledge(client: &AsyncClient, packet_id: u16) -> Result<(), End> {
    taken(client.try_ack(&Message { pkid: packet_id, ..Message::new("", QoS::AtLeastOnce, "") }))
}

fn translated(event: Event) -> Result<Option<Happened>, End> {
    Ok(Some(match event {
        Event::Incoming(Packet::ConnAck(connack)) => {
            Happened::Connected(Box::new(Connack { session_present: connack.session_present, ..Connack::new(0) }))
        }
        Event::Incoming(Packet::PubAck(puback)) => Happened::Acknowledged(puback.pkid, 0),
        Event::Incoming(Packet::SubAck(suback)) => {
            let codes = suback.return_codes.iter().map(|code| match code {
                SubscribeReasonCode::Success(qos) => *qos as u8,
                SubscribeReasonCode::Failure => 0x80,
            });
            Happened::Subscribed(suback.pkid, codes.collect())
        }
        Event::Incoming(Packet::UnsubAck(unsuback)) => Happened::Unsubscribed(unsuback.pkid, 0),
        Event::Incoming(Packet::Publish(message)) => Happened::Message(encoded(&message)),
        Event::Outgoing(Outgoing::Publish(id)) => Happened::Sent(Sent::Publish(id)),
        Event::Outgoing(Outgoing::Subscribe(id)) => Happened::Sent(Sent::Subscribe(id)),
        Event::Outgoing(Outgoing::Unsubscribe(id)) => Happened::Sent(Sent::Unsubscribe(id)),
        Event::Outgoing(Outgoing::PubAck(id)) => Happened::Sent(Sent::Acknowledgement(id)),
        Event::Outgoing(Outgoing::Disconnect) => Happened::Sent(Sent::Disconnect),
        Event::Outgoing(Outgoing::AwaitAck(_)) => return Err(End::out_of_step("a packet id was given twice")),
        Event::Incoming(_) | Event::Outgoing(_) => return Ok(None),
    }))
}

fn encoded(message: &Message) -> Vec<u8> {
    let publish = Publish {
        dup: message.dup,
        qos: own_qos(message.qos),
        retain: message.retain,
        topic: &message.topic,
        packet_id: message.pkid,
        properties: &[],
        payload: &message.payload,
    };
    let mut bytes = Vec::with_capacity(publish.encoded_len(V3_1_1));
    write_publish(&mut bytes, V3_1_1, &publish);
    bytes
}

fn not_connected(error: ConnectionError) -> End {
    match error {
        ConnectionError::ConnectionRefused(code) => End::refused(code as u8),
        ConnectionError::NetworkTimeout => End::connect_late(),
        ConnectionError::Proxy(error) => End::no_way_through_proxy(&error),
        ConnectionError::Io(error) => End::unreachable(&error),
        ConnectionError::MqttState(StateError::ConnectionAborted) => End::not_answered(),
        error => End::unreachable(&error),
    }
}

fn ended(error: ConnectionError) -> End {
    match error {
        ConnectionError::Io(error) => End::lost(Some(&error)),
        ConnectionError::MqttState(StateError::ConnectionAborted) => End::lost(None),
        ConnectionError::MqttState(StateError::Io(error) | StateError::Deserialization(WireError::Io(error))) => {
            End::lost(Some(&error))
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => End::silent("did not answer a PINGREQ"),
        ConnectionError::FlushTimeout => End::silent("took no more bytes"),
        error => End::not_understood(&error),
    }
}

fn qos(qos: OwnQoS) -> QoS {
    match qos {
        OwnQoS::AtMostOnce => QoS::AtMostOnce,
        OwnQoS::AtLeastOnce => QoS::AtLeastOnce,
        OwnQoS::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn own_qos(qos: QoS) -> OwnQoS {
    match qos {
        QoS::AtMostOnce => OwnQoS::AtMostOnce,
        QoS::AtLeastOnce => OwnQoS::AtLeastOnce,
        QoS::ExactlyOnce => OwnQoS::ExactlyOnce,
    }
}
