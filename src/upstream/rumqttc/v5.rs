//! rumqttc's client for MQTT 5.0.

use std::time::Duration;

use ::rumqttc::Outgoing;
use ::rumqttc::v5::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError,
    mqttbytes::{
        Error as WireError, QoS,
        v5::{
            ConnAck, ConnectProperties, ConnectReturnCode, Filter, Packet, PubAckReason, Publish as Message,
            PublishProperties, RetainForwardRule, SubscribeProperties, SubscribeReasonCode, UnsubAckReason,
        },
    },
};
use tokio::sync::mpsc;

use super::{
    CONNECT_WITHIN, Place, REQUESTS_MAX,
    fate::{End, Happened, Sent, taken},
    network,
};
use crate::packet::{
    Connack, Connect, MessageProperty, ProtocolVersion::V5_0, Publish, PublishRef, QoS as OwnQoS, Subscribe,
    SubscriptionRequest, message_properties, write_message_property, write_publish, write_subscription_id,
};

/// A client, and the event loop that moves it.
pub(super) fn open(place: &Place, connect: &Connect) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(&connect.client_id, place.address(), place.port);
    options.set_transport(place.transport());
    if let Some(proxy) = place.proxy() {
        options.set_proxy(proxy);
    }
    // It panics at less, and says what it is given in CONNECT.
    options.set_keep_alive(Duration::from_secs(connect.keep_alive.into()).max(KEEP_ALIVE_MIN));
    options.set_clean_start(connect.clean_start);
    if let Some((name, password)) = super::interpreter::login(connect) {
        options.set_credentials(name, password);
    }
    options.set_connect_properties(ConnectProperties {
        session_expiry_interval: Some(connect.session_expiry),
        receive_maximum: Some(connect.receive_maximum),
        max_packet_size: connect.maximum_packet_size,
        ..ConnectProperties::new()
    });
    options.set_manual_acks(true);
    options.set_outgoing_inflight_upper_limit(place.packet_ids());
    options.set_connection_timeout(CONNECT_WITHIN.as_secs());
    options.set_network_options(network(CONNECT_WITHIN));
    AsyncClient::new(options, REQUESTS_MAX)
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
            // It sends a PINGREQ whenever so long is over, and takes the hub for dead when the next one is due.
            let agreed = event_loop.options.keep_alive();
            if agreed.is_zero() {
                // MQTT 5.0 §3.2.2.3.14: the hub wants none. At 0 it would do nothing else.
                event_loop.options.set_keep_alive(KEEP_ALIVE_NONE);
            } else if agreed > KEEP_ALIVE_MIN {
                event_loop.options.set_keep_alive((agreed / 2).max(KEEP_ALIVE_MIN));
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
    let (qos, retain, payload) = (qos(publish.qos), publish.retain, publish.payload.to_vec());
    if publish.properties.is_empty() {
        return taken(client.try_publish(topic, qos, retain, payload));
    }
    let mut properties = PublishProperties::default();
    message_properties(publish.properties, |property| match property {
        MessageProperty::IsText(text) => properties.payload_format_indicator = Some(text.into()),
        MessageProperty::Expiry(seconds) => properties.message_expiry_interval = Some(seconds),
        MessageProperty::ResponseTopic(topic) => properties.response_topic = Some(topic.into()),
        MessageProperty::ContentType(kind) => properties.content_type = Some(kind.into()),
        MessageProperty::CorrelationData(data) => properties.correlation_data = Some(data.to_vec().into()),
        MessageProperty::User(name, value) => properties.user_properties.push((name.into(), value.into())),
    });
    taken(client.try_publish_with_properties(topic, qos, retain, payload, properties))
}

pub(super) fn subscribe(client: &AsyncClient, subscribe: &Subscribe) -> Result<(), End> {
    let filters: Vec<Filter> = subscribe.requests.iter().filter_map(filter).collect();
    match subscribe.subscription_id {
        None => taken(client.try_subscribe_many(filters)),
        Some(id) => {
            let properties = SubscribeProperties { id: Some(id as usize), user_properties: Vec::new() };
            taken(client.try_subscribe_many_with_properties(filters, properties))
        }
    }
}

pub(super) fn unsubscribe(client: &AsyncClient, filter: &str) -> Result<(), End> {
    taken(client.try_unsubscribe(filter))
}

pub(super) fn acknowledge(client: &AsyncClient, packet_id: u16) -> Result<(), End> {
    taken(client.try_ack(&Message { pkid: packet_id, qos: QoS::AtLeastOnce, ..Message::default() }))
}

fn filter(request: &SubscriptionRequest) -> Option<Filter> {
    Some(Filter {
        path: request.filter.as_ref().ok()?.as_str().into(),
        qos: qos(request.qos),
        nolocal: request.no_local,
        preserve_retain: request.retain_as_published,
        retain_forward_rule: match request.retain_handling {
            0 => RetainForwardRule::OnEverySubscribe,
            1 => RetainForwardRule::OnNewSubscribe,
            _ => RetainForwardRule::Never,
        },
    })
}

fn translated(event: Event) -> Result<Option<Happened>, End> {
    Ok(Some(match event {
        Event::Incoming(Packet::ConnAck(connack)) => Happened::Connected(Box::new(accepted(connack))),
        Event::Incoming(Packet::PubAck(puback)) => Happened::Acknowledged(puback.pkid, puback_code(puback.reason)),
        Event::Incoming(Packet::SubAck(suback)) => {
            Happened::Subscribed(suback.pkid, suback.return_codes.into_iter().map(suback_code).collect())
        }
        Event::Incoming(Packet::UnsubAck(unsuback)) => {
            let reason = unsuback.reasons.first().map_or(0, |reason| unsuback_code(*reason));
            Happened::Unsubscribed(unsuback.pkid, reason)
        }
        Event::Incoming(Packet::Publish(message)) => Happened::Message(encoded(&message)?),
        Event::Outgoing(Outgoing::Publish(id)) => Happened::Sent(Sent::Publish(id)),
        Event::Outgoing(Outgoing::Subscribe(id)) => Happened::Sent(Sent::Subscribe(id)),
        Event::Outgoing(Outgoing::Unsubscribe(id)) => Happened::Sent(Sent::Unsubscribe(id)),
        Event::Outgoing(Outgoing::PubAck(id)) => Happened::Sent(Sent::Acknowledgement(id)),
        Event::Outgoing(Outgoing::Disconnect) => Happened::Sent(Sent::Disconnect),
        Event::Outgoing(Outgoing::AwaitAck(_)) => return Err(End::out_of_step("a packet id was given twice")),
        Event::Incoming(_) | Event::Outgoing(_) => return Ok(None),
    }))
}

fn accepted(connack: ConnAck) -> Connack {
    let mut own = Connack { session_present: connack.session_present, ..Connack::new(0) };
    let Some(said) = connack.properties else { return own };
    let yes = |flag: Option<u8>| flag.is_none_or(|flag| flag != 0);
    own.session_expiry = said.session_expiry_interval;
    own.receive_maximum = said.receive_max.unwrap_or(own.receive_maximum);
    own.qos_max = said.max_qos.unwrap_or(own.qos_max);
    own.retain_available = yes(said.retain_available);
    own.maximum_packet_size = said.max_packet_size;
    own.assigned_client_id = said.assigned_client_identifier;
    own.topic_alias_maximum = said.topic_alias_max.unwrap_or(0);
    own.reason_string = said.reason_string;
    own.wildcard_available = yes(said.wildcard_subscription_available);
    own.subscription_id_available = yes(said.subscription_identifiers_available);
    own.shared_available = yes(said.shared_subscription_available);
    own.server_keep_alive = said.server_keep_alive;
    own
}

fn encoded(message: &Message) -> Result<Vec<u8>, End> {
    let mut properties = Vec::new();
    if let Some(said) = &message.properties {
        write_properties(said, &mut properties);
    }
    let topic = std::str::from_utf8(&message.topic).map_err(|error| End::not_understood(&error))?;
    let publish = Publish {
        dup: message.dup,
        qos: own_qos(message.qos),
        retain: message.retain,
        topic,
        packet_id: message.pkid,
        properties: &[&properties],
        payload: &message.payload,
    };
    let mut bytes = Vec::with_capacity(publish.encoded_len(V5_0));
    write_publish(&mut bytes, V5_0, &publish);
    Ok(bytes)
}

/// What the library let pass and MQTT does not is the link's to refuse.
fn write_properties(said: &PublishProperties, out: &mut Vec<u8>) {
    if let Some(format) = said.payload_format_indicator {
        out.extend([0x01, format]);
    }
    if let Some(seconds) = said.message_expiry_interval {
        write_message_property(out, MessageProperty::Expiry(seconds));
    }
    if let Some(alias) = said.topic_alias {
        let [high, low] = alias.to_be_bytes();
        out.extend([0x23, high, low]);
    }
    if let Some(topic) = &said.response_topic {
        write_message_property(out, MessageProperty::ResponseTopic(topic));
    }
    if let Some(data) = &said.correlation_data {
        write_message_property(out, MessageProperty::CorrelationData(data));
    }
    for (name, value) in &said.user_properties {
        write_message_property(out, MessageProperty::User(name, value));
    }
    for id in &said.subscription_identifiers {
        write_subscription_id(out, u32::try_from(*id).unwrap_or(0));
    }
    if let Some(kind) = &said.content_type {
        write_message_property(out, MessageProperty::ContentType(kind));
    }
}

fn not_connected(error: ConnectionError) -> End {
    match error {
        ConnectionError::ConnectionRefused(code) => End::refused(connack_code(code)),
        ConnectionError::Timeout(_) => End::connect_late(),
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
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => End::closed(reason_code as u8),
        ConnectionError::MqttState(StateError::AwaitPingResp) => End::silent("did not answer a PINGREQ"),
        error => End::not_understood(&error),
    }
}

fn connack_code(code: ConnectReturnCode) -> u8 {
    match code {
        ConnectReturnCode::Success => 0x00,
        // What only 3.1.1 has.
        ConnectReturnCode::RefusedProtocolVersion => 0x01,
        ConnectReturnCode::BadClientId => 0x02,
        ConnectReturnCode::ServiceUnavailable => 0x03,
        ConnectReturnCode::UnspecifiedError => 0x80,
        ConnectReturnCode::MalformedPacket => 0x81,
        ConnectReturnCode::ProtocolError => 0x82,
        ConnectReturnCode::ImplementationSpecificError => 0x83,
        ConnectReturnCode::UnsupportedProtocolVersion => 0x84,
        ConnectReturnCode::ClientIdentifierNotValid => 0x85,
        ConnectReturnCode::BadUserNamePassword => 0x86,
        ConnectReturnCode::NotAuthorized => 0x87,
        ConnectReturnCode::ServerUnavailable => 0x88,
        ConnectReturnCode::ServerBusy => 0x89,
        ConnectReturnCode::Banned => 0x8A,
        ConnectReturnCode::BadAuthenticationMethod => 0x8C,
        ConnectReturnCode::TopicNameInvalid => 0x90,
        ConnectReturnCode::PacketTooLarge => 0x95,
        ConnectReturnCode::QuotaExceeded => 0x97,
        ConnectReturnCode::PayloadFormatInvalid => 0x99,
        ConnectReturnCode::RetainNotSupported => 0x9A,
        ConnectReturnCode::QoSNotSupported => 0x9B,
        ConnectReturnCode::UseAnotherServer => 0x9C,
        ConnectReturnCode::ServerMoved => 0x9D,
        ConnectReturnCode::ConnectionRateExceeded => 0x9F,
    }
}

fn puback_code(reason: PubAckReason) -> u8 {
    match reason {
        PubAckReason::Success => 0x00,
        PubAckReason::NoMatchingSubscribers => 0x10,
        PubAckReason::UnspecifiedError => 0x80,
        PubAckReason::ImplementationSpecificError => 0x83,
        PubAckReason::NotAuthorized => 0x87,
        PubAckReason::TopicNameInvalid => 0x90,
        PubAckReason::PacketIdentifierInUse => 0x91,
        PubAckReason::QuotaExceeded => 0x97,
        PubAckReason::PayloadFormatInvalid => 0x99,
    }
}

fn suback_code(code: SubscribeReasonCode) -> u8 {
    match code {
        SubscribeReasonCode::Success(qos) => qos as u8,
        SubscribeReasonCode::Failure | SubscribeReasonCode::Unspecified => 0x80,
        SubscribeReasonCode::ImplementationSpecific => 0x83,
        SubscribeReasonCode::NotAuthorized => 0x87,
        SubscribeReasonCode::TopicFilterInvalid => 0x8F,
        SubscribeReasonCode::PkidInUse => 0x91,
        SubscribeReasonCode::QuotaExceeded => 0x97,
        SubscribeReasonCode::SharedSubscriptionsNotSupported => 0x9E,
        SubscribeReasonCode::SubscriptionIdNotSupported => 0xA1,
        SubscribeReasonCode::WildcardSubscriptionsNotSupported => 0xA2,
    }
}

fn unsuback_code(reason: UnsubAckReason) -> u8 {
    match reason {
        UnsubAckReason::Success => 0x00,
        UnsubAckReason::NoSubscriptionExisted => 0x11,
        UnsubAckReason::UnspecifiedError => 0x80,
        UnsubAckReason::ImplementationSpecificError => 0x83,
        UnsubAckReason::NotAuthorized => 0x87,
        UnsubAckReason::TopicFilterInvalid => 0x8F,
        UnsubAckReason::PacketIdentifierInUse => 0x91,
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

/// The library refuses a shorter one of ours.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(5);
/// As good as never.
const KEEP_ALIVE_NONE: Duration = Duration::from_secs(30 * 86_400);
