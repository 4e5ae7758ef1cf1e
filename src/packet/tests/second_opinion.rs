//! Every packet but PUBLISH, by value: what rmqtt-codec writes we read as it was meant, what we write it reads as it was meant,
//! and of damaged bytes both say the same, or we are the stricter. Where it is the stricter one, [`is_stricter`] says why.
//! More than 600 lines, since every packet stands here three times: as we say it, as the other codec says it, made at random.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rmqtt_codec::{types, v3, v5};
use tokio_util::codec::{Decoder, Encoder};

use super::*;

/// What a packet says, in one form for both codecs.
fn ours(frame: Frame<'_>, version: ProtocolVersion) -> Result<String, PacketError> {
    let acknowledged =
        |name, parsed: Result<Acknowledgement, _>| parsed.map(|a| format!("{name} {} {}", a.packet_id, a.reason));
    let answered = |name, parsed: Result<Suback, _>| parsed.map(|a| format!("{name} {} {:?}", a.packet_id, a.codes));
    match frame.packet_type() {
        PacketType::Connect => our_connect(&parse_connect(frame)?, version),
        PacketType::Connack => parse_connack(frame, version).map(|connack| our_connack(&connack, version)),
        PacketType::Puback => acknowledged("PUBACK", parse_puback(frame, version)),
        PacketType::Pubrec => acknowledged("PUBREC", parse_pubrec(frame, version)),
        PacketType::Pubrel => acknowledged("PUBREL", parse_pubrel(frame, version)),
        PacketType::Pubcomp => acknowledged("PUBCOMP", parse_pubcomp(frame, version)),
        PacketType::Subscribe => {
            let Subscribe { packet_id, subscription_id, requests } = parse_subscribe(frame, version)?;
            let requests: Result<Vec<_>, PacketError> = requests
                .into_iter()
                .map(|r| {
                    // A filter that can never be granted is answered in SUBACK; here it counts as refused.
                    let filter = r.filter.map_err(|_| PacketError::TopicInvalid)?.as_str().to_owned();
                    Ok((filter, r.qos as u8, r.no_local, r.retain_as_published, r.retain_handling))
                })
                .collect();
            Ok(format!("SUBSCRIBE {packet_id} {subscription_id:?} {:?}", requests?))
        }
        PacketType::Unsubscribe => {
            let Unsubscribe { packet_id, filters } = parse_unsubscribe(frame, version)?;
            let filters: Result<Vec<_>, PacketError> = filters
                .into_iter()
                .map(|filter| Ok(filter.map_err(|_| PacketError::TopicInvalid)?.as_str().to_owned()))
                .collect();
            Ok(format!("UNSUBSCRIBE {packet_id} {:?}", filters?))
        }
        PacketType::Suback => answered("SUBACK", parse_suback(frame, version)),
        PacketType::Unsuback => answered("UNSUBACK", parse_unsuback(frame, version)),
        PacketType::Pingreq => parse_empty(frame).map(|()| "PINGREQ".to_owned()),
        PacketType::Pingresp => parse_empty(frame).map(|()| "PINGRESP".to_owned()),
        PacketType::Disconnect => {
            let Disconnect { reason, session_expiry, reason_string, server_reference } =
                parse_disconnect(frame, version)?;
            Ok(format!("DISCONNECT {reason} {session_expiry:?} {reason_string:?} {server_reference:?}"))
        }
        PacketType::Auth if version == V5 => {
            let Auth { reason, method, data } = parse_auth(frame)?;
            Ok(format!("AUTH {reason} {method:?} {:?}", data.map(|data| data.as_bytes().to_vec())))
        }
        PacketType::Auth => Err(PacketError::Protocol("AUTH in 3.1.1")),
        PacketType::Publish => Err(PacketError::Protocol("differential.rs compares these")),
    }
}

fn our_connect(connect: &Connect, version: ProtocolVersion) -> Result<String, PacketError> {
    if connect.version != version {
        return Err(PacketError::UnsupportedVersion);
    }
    let bytes = |password: &Option<Password>| password.as_ref().map(|password| password.as_bytes().to_vec());
    let will = connect.will.as_ref().map(|will| {
        let (mut said, mut users) = (Vec::new(), Vec::new());
        message_properties(&will.properties, |property| match property {
            MessageProperty::User(name, value) => users.push((name.to_owned(), value.to_owned())),
            other => said.push(format!("{other:?}")),
        });
        said.sort();
        (will.topic.clone(), will.qos as u8, will.retain, will.payload.clone(), will.delay, said, users)
    });
    let first =
        (&connect.client_id, connect.clean_start, connect.keep_alive, &connect.user_name, bytes(&connect.password));
    let of_5_0 = (
        connect.session_expiry,
        connect.receive_maximum,
        connect.topic_alias_maximum,
        connect.maximum_packet_size,
        connect.problem_information != ProblemInformation::Declined,
        &connect.authentication_method,
        bytes(&connect.authentication_data),
    );
    Ok(format!("CONNECT {first:?} {will:?} {of_5_0:?}"))
}

fn our_connack(connack: &Connack, version: ProtocolVersion) -> String {
    if version == V3 {
        return format!("CONNACK {} {}", connack.session_present, connack.code);
    }
    let offers = (
        connack.retain_available,
        connack.wildcard_available,
        connack.subscription_id_available,
        connack.shared_available,
    );
    let numbers = (connack.session_expiry, connack.receive_maximum, connack.qos_max, connack.maximum_packet_size);
    let more = (connack.topic_alias_maximum, connack.server_keep_alive);
    let texts = (&connack.assigned_client_id, &connack.authentication_method, &connack.reason_string);
    format!("CONNACK {} {} {offers:?} {numbers:?} {more:?} {texts:?}", connack.session_present, connack.code)
}

/// The same of the other codec; `None`: it does not take the bytes as one packet.
fn theirs(bytes: &[u8], version: ProtocolVersion) -> Option<String> {
    let mut buf = BytesMut::from(bytes);
    let said = match version {
        V3 => said_v3(v3::Codec::new(0).decode(&mut buf).ok()??.0),
        V5 => said_v5(v5::Codec::new(0, 0).decode(&mut buf).ok()??.0),
    };
    said.filter(|_| buf.is_empty())
}

fn said_v3(packet: v3::Packet) -> Option<String> {
    use v3::Packet;
    Some(match packet {
        Packet::Connect(c) => {
            let first = (&*c.client_id, c.clean_session, c.keep_alive, text(&c.username), bytes_of(&c.password));
            let none = (Vec::<String>::new(), Vec::<(String, String)>::new());
            let will = c.last_will.as_ref().map(|will| {
                (will.topic.to_string(), will.qos.value(), will.retain, will.message.to_vec(), 0, none.0, none.1)
            });
            let of_5_0 = (0, u16::MAX, 0, None::<u32>, true, None::<String>, None::<Vec<u8>>);
            format!("CONNECT {first:?} {will:?} {of_5_0:?}")
        }
        Packet::ConnectAck(c) => format!("CONNACK {} {}", c.session_present, c.return_code as u8),
        Packet::PublishAck { packet_id } => format!("PUBACK {packet_id} 0"),
        Packet::PublishReceived { packet_id } => format!("PUBREC {packet_id} 0"),
        Packet::PublishRelease { packet_id } => format!("PUBREL {packet_id} 0"),
        Packet::PublishComplete { packet_id } => format!("PUBCOMP {packet_id} 0"),
        Packet::Subscribe { packet_id, topic_filters } => {
            let requests = topic_filters.iter().map(|(filter, qos)| (filter.to_string(), qos.value(), false, false, 0));
            format!("SUBSCRIBE {packet_id} {:?} {:?}", None::<u32>, requests.collect::<Vec<_>>())
        }
        Packet::SubscribeAck { packet_id, status } => {
            let code = |code: &_| match code {
                v3::SubscribeReturnCode::Success(qos) => qos.value(),
                v3::SubscribeReturnCode::Failure => 0x80,
            };
            format!("SUBACK {packet_id} {:?}", status.iter().map(code).collect::<Vec<_>>())
        }
        Packet::Unsubscribe { packet_id, topic_filters } => {
            format!("UNSUBSCRIBE {packet_id} {:?}", strings(&topic_filters))
        }
        Packet::UnsubscribeAck { packet_id } => format!("UNSUBACK {packet_id} []"),
        Packet::PingRequest => "PINGREQ".to_owned(),
        Packet::PingResponse => "PINGRESP".to_owned(),
        Packet::Disconnect => "DISCONNECT 0 None None None".to_owned(),
        Packet::Publish(_) => return None,
    })
}

fn said_v5(packet: v5::Packet) -> Option<String> {
    use v5::Packet;
    Some(match packet {
        Packet::Connect(c) => their_connect(&c),
        Packet::ConnectAck(c) => {
            let offers = (
                c.retain_available,
                c.wildcard_subscription_available,
                c.subscription_identifiers_available,
                c.shared_subscription_available,
            );
            let numbers = (c.session_expiry_interval_secs, c.receive_max.get(), c.max_qos.value(), c.max_packet_size);
            let more = (c.topic_alias_max, c.server_keepalive_sec);
            let texts = (text(&c.assigned_client_id), text(&c.auth_method), text(&c.reason_string));
            format!("CONNACK {} {} {offers:?} {numbers:?} {more:?} {texts:?}", c.session_present, c.reason_code as u8)
        }
        Packet::PublishAck(ack) => format!("PUBACK {} {}", ack.packet_id, ack.reason_code as u8),
        Packet::PublishReceived(ack) => format!("PUBREC {} {}", ack.packet_id, ack.reason_code as u8),
        Packet::PublishRelease(ack) => format!("PUBREL {} {}", ack.packet_id, ack.reason_code as u8),
        Packet::PublishComplete(ack) => format!("PUBCOMP {} {}", ack.packet_id, ack.reason_code as u8),
        Packet::Subscribe(s) => {
            let requests = s.topic_filters.iter().map(|(filter, o)| {
                (filter.to_string(), o.qos.value(), o.no_local, o.retain_as_published, u8::from(o.retain_handling))
            });
            format!("SUBSCRIBE {} {:?} {:?}", s.packet_id, s.id.map(NonZeroU32::get), requests.collect::<Vec<_>>())
        }
        Packet::SubscribeAck(a) => {
            format!("SUBACK {} {:?}", a.packet_id, a.status.iter().map(|code| *code as u8).collect::<Vec<_>>())
        }
        Packet::Unsubscribe(u) => format!("UNSUBSCRIBE {} {:?}", u.packet_id, strings(&u.topic_filters)),
        Packet::UnsubscribeAck(a) => {
            format!("UNSUBACK {} {:?}", a.packet_id, a.status.iter().map(|code| *code as u8).collect::<Vec<_>>())
        }
        Packet::PingRequest => "PINGREQ".to_owned(),
        Packet::PingResponse => "PINGRESP".to_owned(),
        Packet::Disconnect(d) => {
            let texts = (text(&d.reason_string), text(&d.server_reference));
            let (expiry, reason) = (d.session_expiry_interval_secs, d.reason_code as u8);
            format!("DISCONNECT {reason} {expiry:?} {:?} {:?}", texts.0, texts.1)
        }
        Packet::Auth(a) => {
            format!("AUTH {} {:?} {:?}", a.reason_code as u8, text(&a.auth_method), bytes_of(&a.auth_data))
        }
        Packet::Publish(_) => return None,
    })
}

fn their_connect(c: &v5::Connect) -> String {
    let first = (&*c.client_id, c.clean_start, c.keep_alive, text(&c.username), bytes_of(&c.password));
    let will = c.last_will.as_ref().map(|will| {
        let said = [
            will.is_utf8_payload.map(MessageProperty::IsText),
            will.message_expiry_interval.map(|seconds| MessageProperty::Expiry(seconds.get())),
            will.response_topic.as_ref().map(|topic| MessageProperty::ResponseTopic(topic)),
            will.content_type.as_ref().map(|kind| MessageProperty::ContentType(kind)),
            will.correlation_data.as_ref().map(|data| MessageProperty::CorrelationData(data)),
        ];
        let mut said: Vec<String> = said.into_iter().flatten().map(|property| format!("{property:?}")).collect();
        said.sort();
        let users: Vec<(String, String)> = (will.user_properties.iter())
            .filter(|(name, _)| !name.starts_with("tollgate-"))
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        let delay = will.will_delay_interval_sec.unwrap_or(0);
        (will.topic.to_string(), will.qos.value(), will.retain, will.message.to_vec(), delay, said, users)
    });
    let of_5_0 = (
        c.session_expiry_interval_secs,
        c.receive_max.map_or(u16::MAX, NonZeroU16::get),
        c.topic_alias_max,
        c.max_packet_size.map(NonZeroU32::get),
        c.request_problem_info,
        text(&c.auth_method),
        bytes_of(&c.auth_data),
    );
    format!("CONNECT {first:?} {will:?} {of_5_0:?}")
}

fn text(text: &Option<impl ToString>) -> Option<String> {
    text.as_ref().map(ToString::to_string)
}

fn bytes_of(bytes: &Option<Bytes>) -> Option<Vec<u8>> {
    bytes.as_ref().map(|bytes| bytes.to_vec())
}

fn strings(texts: &[impl ToString]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// Bytes that we take and it does not, and why we do.
fn is_stricter(frame: Frame<'_>, version: ProtocolVersion) -> bool {
    match frame.packet_type() {
        PacketType::Connect => parse_connect(frame).is_ok_and(|connect| {
            // An empty client id of a session that is to be kept is the gate's to refuse, with its own code; it refuses the
            // packet. A will that expires at once (§3.1.3.2.4 sets no bound) it refuses, and one that is no message to us.
            (connect.client_id.is_empty() && !connect.clean_start)
                || connect.will.is_some_and(|will| {
                    let mut at_once = false;
                    message_properties(&will.properties, |property| {
                        at_once |= property == MessageProperty::Expiry(0);
                    });
                    at_once
                })
        }),
        // A hub's code that the standard does not list is a code still: 0x80 and above refuse.
        PacketType::Connack => parse_connack(frame, version).is_ok_and(|connack| connack.code != 0),
        PacketType::Suback => {
            version == V5 && parse_suback(frame, version).is_ok_and(|a| a.codes.iter().any(|code| *code > 2))
        }
        PacketType::Unsuback => parse_unsuback(frame, version).is_ok_and(|a| a.codes.iter().any(|code| *code != 0)),
        // What reason may come when is the session's to say.
        PacketType::Auth => parse_auth(frame).is_ok_and(|auth| !matches!(auth.reason, 0x00 | 0x18 | 0x19)),
        _ => false,
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-zé]{0,12}"
}

fn users() -> impl Strategy<Value = v5::UserProperties> {
    prop::collection::vec((name(), name()).prop_map(|(k, v)| (k.into(), v.into())), 0..3)
}

fn id() -> impl Strategy<Value = NonZeroU16> {
    (1u16..).prop_map(|id| NonZeroU16::new(id).expect("not 0"))
}

fn data() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn qos() -> impl Strategy<Value = types::QoS> {
    prop::sample::select(vec![types::QoS::AtMostOnce, types::QoS::AtLeastOnce, types::QoS::ExactlyOnce])
}

fn filter() -> impl Strategy<Value = String> {
    "[a-z]{1,5}(/[a-z+]){0,3}(/#)?"
}

fn reason<T: TryFrom<u8> + Clone + fmt::Debug + 'static>() -> impl Strategy<Value = T> {
    let all: Vec<T> = (0..=u8::MAX).filter_map(|code| T::try_from(code).ok()).collect();
    prop::sample::select(all)
}

prop_compose! {
    fn will_v5()(
        (topic, message, qos, retain) in ("[a-z/]{1,20}", data(), qos(), any::<bool>()),
        (delay, expiry, format) in (any::<Option<u32>>(), prop::option::of(1u32..), any::<Option<bool>>()),
        (correlation, kind, reply, users) in (prop::option::of(data()), prop::option::of(name()), prop::option::of("[a-z/]{1,20}"), users()),
    ) -> v5::LastWill {
        v5::LastWill {
            qos, retain, topic: topic.into(), message, will_delay_interval_sec: delay, correlation_data: correlation,
            message_expiry_interval: expiry.and_then(NonZeroU32::new), content_type: kind.map(Into::into),
            user_properties: users, is_utf8_payload: format, response_topic: reply.map(Into::into),
        }
    }
}

prop_compose! {
    fn connect_v5()(
        (client_id, clean_start, keep_alive) in ("[a-z]{1,12}", any::<bool>(), any::<u16>()),
        (expiry, receive, alias, size) in (any::<u32>(), prop::option::of(id()), any::<u16>(), prop::option::of(1u32..)),
        (problem, response) in any::<(bool, bool)>(),
        (method, users, will) in (prop::option::of((name(), prop::option::of(data()))), users(), prop::option::of(will_v5())),
        (username, password) in (prop::option::of(name()), prop::option::of(data())),
    ) -> v5::Packet {
        let (auth_method, auth_data) = method.map_or((None, None), |(method, data)| (Some(method.into()), data));
        v5::Packet::Connect(Box::new(v5::Connect {
            clean_start, keep_alive, session_expiry_interval_secs: expiry, auth_method, auth_data, request_problem_info: problem,
            request_response_info: response, receive_max: receive, topic_alias_max: alias, user_properties: users,
            max_packet_size: size.and_then(NonZeroU32::new), last_will: will, client_id: client_id.into(),
            username: username.map(Into::into), password, cert: None,
        }))
    }
}

prop_compose! {
    fn connack_v5()(
        (session_present, reason_code) in (any::<bool>(), reason::<v5::ConnectAckReason>()),
        (expiry, receive_max, max_qos, size) in (any::<Option<u32>>(), id(), qos(), prop::option::of(1u32..)),
        (assigned, alias, keep_alive) in (prop::option::of(name()), any::<u16>(), any::<Option<u16>>()),
        (retain, wildcard, identifiers, shared) in any::<(bool, bool, bool, bool)>(),
        (response, reference, reason) in (prop::option::of(name()), prop::option::of(name()), prop::option::of(name())),
        (method, data, users) in (prop::option::of(name()), prop::option::of(data()), users()),
    ) -> v5::Packet {
        v5::Packet::ConnectAck(Box::new(v5::ConnectAck {
            session_present: session_present && reason_code as u8 == 0, reason_code, session_expiry_interval_secs: expiry, receive_max,
            max_qos, max_packet_size: size, assigned_client_id: assigned.map(Into::into), topic_alias_max: alias,
            retain_available: retain, wildcard_subscription_available: wildcard, subscription_identifiers_available: identifiers,
            shared_subscription_available: shared, server_keepalive_sec: keep_alive, response_info: response.map(Into::into),
            server_reference: reference.map(Into::into), auth_method: method.map(Into::into), auth_data: data,
            reason_string: reason.map(Into::into), user_properties: users,
        }))
    }
}

fn packet_v5() -> impl Strategy<Value = v5::Packet> {
    let text = || prop::option::of(name().prop_map(Into::into));
    let acknowledge = || {
        (id(), reason(), users(), text()).prop_map(|(packet_id, reason_code, properties, reason_string)| {
            v5::PublishAck { packet_id, reason_code, properties, reason_string }
        })
    };
    let release = || {
        (id(), reason(), users(), text()).prop_map(|(packet_id, reason_code, properties, reason_string)| {
            v5::PublishAck2 { packet_id, reason_code, properties, reason_string }
        })
    };
    let options = (qos(), any::<(bool, bool)>(), reason::<v5::RetainHandling>()).prop_map(
        |(qos, (no_local, retain_as_published), retain_handling)| v5::SubscriptionOptions {
            qos,
            no_local,
            retain_as_published,
            retain_handling,
        },
    );
    let filters = prop::collection::vec((filter().prop_map(Into::into), options), 1..6);
    let number = prop::option::of((1u32..=VARINT_MAX).prop_map(|n| NonZeroU32::new(n).expect("not 0")));
    prop_oneof![
        connect_v5(),
        connack_v5(),
        acknowledge().prop_map(v5::Packet::PublishAck),
        acknowledge().prop_map(v5::Packet::PublishReceived),
        release().prop_map(v5::Packet::PublishRelease),
        release().prop_map(v5::Packet::PublishComplete),
        (id(), number, users(), filters).prop_map(|(packet_id, id, user_properties, topic_filters)| {
            v5::Packet::Subscribe(v5::Subscribe { packet_id, id, user_properties, topic_filters })
        }),
        (id(), users(), text(), prop::collection::vec(reason(), 1..6)).prop_map(
            |(packet_id, properties, reason_string, status)| {
                v5::Packet::SubscribeAck(v5::SubscribeAck { packet_id, properties, reason_string, status })
            }
        ),
        (id(), users(), prop::collection::vec(filter().prop_map(Into::into), 1..6)).prop_map(
            |(packet_id, user_properties, topic_filters)| {
                v5::Packet::Unsubscribe(v5::Unsubscribe { packet_id, user_properties, topic_filters })
            }
        ),
        (id(), users(), text(), prop::collection::vec(reason(), 1..6)).prop_map(
            |(packet_id, properties, reason_string, status)| {
                v5::Packet::UnsubscribeAck(v5::UnsubscribeAck { packet_id, properties, reason_string, status })
            }
        ),
        Just(v5::Packet::PingRequest),
        Just(v5::Packet::PingResponse),
        (reason(), any::<Option<u32>>(), text(), text(), users()).prop_map(
            |(reason_code, session_expiry_interval_secs, server_reference, reason_string, user_properties)| {
                v5::Packet::Disconnect(v5::Disconnect {
                    reason_code,
                    session_expiry_interval_secs,
                    server_reference,
                    reason_string,
                    user_properties,
                })
            }
        ),
        (reason(), name(), prop::option::of(data()), text(), users()).prop_map(
            |(reason_code, method, auth_data, reason_string, user_properties)| {
                v5::Packet::Auth(v5::Auth {
                    reason_code,
                    auth_method: Some(method.into()),
                    auth_data,
                    reason_string,
                    user_properties,
                })
            }
        ),
    ]
}

fn packet_v3() -> impl Strategy<Value = v3::Packet> {
    let will = ("[a-z/]{1,20}", data(), qos(), any::<bool>()).prop_map(|(topic, message, qos, retain)| v3::LastWill {
        qos,
        retain,
        topic: topic.into(),
        message,
    });
    let login = prop::option::of((name(), prop::option::of(data())));
    let connect = ("[a-z]{1,12}", any::<bool>(), any::<u16>(), prop::option::of(will), login).prop_map(
        |(client_id, clean_session, keep_alive, last_will, login)| {
            let (username, password) = login.map_or((None, None), |(name, password)| (Some(name.into()), password));
            let client_id = client_id.into();
            let protocol = types::Protocol::default();
            let connect = v3::Connect {
                protocol,
                clean_session,
                keep_alive,
                last_will,
                client_id,
                username,
                password,
                cert: None,
            };
            v3::Packet::Connect(Box::new(connect))
        },
    );
    let code = prop_oneof![qos().prop_map(v3::SubscribeReturnCode::Success), Just(v3::SubscribeReturnCode::Failure)];
    prop_oneof![
        connect,
        (0u8..=5).prop_map(|code| v3::Packet::ConnectAck(v3::ConnectAck {
            return_code: v3::ConnectAckReason::try_from(code).expect("a code"),
            session_present: false,
        })),
        id().prop_map(|packet_id| v3::Packet::PublishAck { packet_id }),
        id().prop_map(|packet_id| v3::Packet::PublishReceived { packet_id }),
        id().prop_map(|packet_id| v3::Packet::PublishRelease { packet_id }),
        id().prop_map(|packet_id| v3::Packet::PublishComplete { packet_id }),
        (id(), prop::collection::vec((filter().prop_map(Into::into), qos()), 1..6))
            .prop_map(|(packet_id, topic_filters)| v3::Packet::Subscribe { packet_id, topic_filters }),
        (id(), prop::collection::vec(code, 1..6))
            .prop_map(|(packet_id, status)| v3::Packet::SubscribeAck { packet_id, status }),
        (id(), prop::collection::vec(filter().prop_map(Into::into), 1..6))
            .prop_map(|(packet_id, topic_filters)| v3::Packet::Unsubscribe { packet_id, topic_filters }),
        id().prop_map(|packet_id| v3::Packet::UnsubscribeAck { packet_id }),
        Just(v3::Packet::PingRequest),
        Just(v3::Packet::PingResponse),
        Just(v3::Packet::Disconnect),
    ]
}

/// A packet of the other codec, what it says, and its bytes.
fn packet() -> impl Strategy<Value = (ProtocolVersion, String, Vec<u8>)> {
    let of_5_0 = packet_v5().prop_map(|packet| {
        let mut bytes = BytesMut::new();
        v5::Codec::new(0, 0).encode(packet.clone(), &mut bytes).expect("encodes");
        (V5, said_v5(packet).expect("no PUBLISH"), bytes.to_vec())
    });
    let of_3_1_1 = packet_v3().prop_map(|packet| {
        let mut bytes = BytesMut::new();
        v3::Codec::new(0).encode(packet.clone(), &mut bytes).expect("encodes");
        (V3, said_v3(packet).expect("no PUBLISH"), bytes.to_vec())
    });
    prop_oneof![of_5_0, of_3_1_1]
}

type Writer<'a> = Box<dyn Fn(&mut Vec<u8>) + 'a>;

/// What may happen to the body of a packet; its length is put right again.
#[derive(Clone, Debug)]
enum Damage {
    Change(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Cut(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    // What parsers trip over, and anything else.
    let byte = || prop_oneof![prop::sample::select(vec![0u8, 1, 2, 3, 4, 0x26, 0x1F, 0x7F, 0x80, 0xFF]), any::<u8>()];
    prop_oneof![
        3 => (at(), byte()).prop_map(|(at, byte)| Damage::Change(at, byte)),
        2 => (at(), byte()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        2 => at().prop_map(Damage::Remove),
        1 => at().prop_map(Damage::Cut),
    ]
}

fn damaged(bytes: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut body = frame(bytes).body().to_vec();
    let mut first = bytes[0];
    for damage in damages {
        match damage {
            // The first byte now and then.
            Damage::Change(at, byte) if at.index(body.len() + 1) == body.len() => first ^= byte & 0x0F,
            Damage::Change(at, byte) => {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            Damage::Insert(at, byte) => body.insert(at.index(body.len() + 1), *byte),
            Damage::Remove(at) if !body.is_empty() => drop(body.remove(at.index(body.len()))),
            Damage::Cut(at) => body.truncate(at.index(body.len() + 1)),
            Damage::Remove(_) => {}
        }
    }
    framed(first, &body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn we_read_what_it_writes((version, said, bytes) in packet()) {
        prop_assert_eq!(ours(frame(&bytes), version), Ok(said.clone()), "{:x?}", &bytes);
        prop_assert_eq!(theirs(&bytes, version), Some(said));
    }

    #[test]
    fn it_reads_what_we_write(
        connect in round_trip::connect(), connack in round_trip::connack(), version in prop::sample::select(vec![V3, V5]),
        (packet_id, granted) in (1u16.., prop::collection::vec(0u8..=2, 1..6)),
        answer in prop::sample::select(vec![0u8, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
        release in prop::sample::select(vec![0u8, 0x92]), reason in "[a-z]{1,20}", filters in prop::collection::vec(filter(), 1..6),
        (no_local, retain_as_published, retain_handling) in (any::<bool>(), any::<bool>(), 0u8..=2),
        subscription_id in prop::option::of(1..=VARINT_MAX),
    ) {
        let filters: Vec<crate::topic::TopicFilter> = filters.iter().map(|f| (&**f).try_into().expect("a filter")).collect();
        let requests = filters.iter().cloned().map(|filter| SubscriptionRequest {
            no_local: no_local && version == V5, retain_as_published: retain_as_published && version == V5,
            retain_handling: if version == V5 { retain_handling } else { 0 }, ..SubscriptionRequest::new(filter, QoS::AtLeastOnce)
        });
        let subscribe = Subscribe { packet_id, subscription_id: subscription_id.filter(|_| version == V5), requests: requests.collect() };
        let none = |answer: u8| if version == V5 { answer } else { 0 };
        let writers: [(&str, Writer<'_>); 13] = [
            ("CONNACK", Box::new(|out: &mut Vec<u8>| write_connack(out, version, &connack))),
            ("PUBACK", Box::new(|out: &mut Vec<u8>| write_puback(out, version, packet_id, none(answer)))),
            ("PUBREC", Box::new(|out: &mut Vec<u8>| write_pubrec(out, version, packet_id, none(answer)))),
            ("PUBREL", Box::new(|out: &mut Vec<u8>| write_pubrel(out, version, packet_id, none(release)))),
            ("PUBCOMP", Box::new(|out: &mut Vec<u8>| write_pubcomp(out, version, packet_id, none(release)))),
            ("SUBSCRIBE", Box::new(|out: &mut Vec<u8>| write_subscribe(out, version, &subscribe))),
            ("UNSUBSCRIBE", Box::new(|out: &mut Vec<u8>| write_unsubscribe(out, version, packet_id, &filters))),
            ("SUBACK", Box::new(|out: &mut Vec<u8>| write_suback(out, version, packet_id, &granted))),
            ("UNSUBACK", Box::new(|out: &mut Vec<u8>| write_unsuback(out, version, packet_id, &[0, 0x11]))),
            ("DISCONNECT", Box::new(|out: &mut Vec<u8>| write_disconnect(out, version, none(0x98), Some(&reason), Some("other.example")))),
            ("AUTH", Box::new(|out: &mut Vec<u8>| if version == V5 { write_auth(out, 0x18, &reason) } else { write_pingreq(out) })),
            ("PUBACK, why", Box::new(|out: &mut Vec<u8>| if version == V5 { write_puback_with_reason(out, packet_id, answer, &reason) } else { write_pingresp(out) })),
            ("PUBREC, why", Box::new(|out: &mut Vec<u8>| if version == V5 { write_pubrec_with_reason(out, packet_id, answer, &reason) } else { write_pingresp(out) })),
        ];
        for (what, write) in writers {
            let mut bytes = vec![];
            write(&mut bytes);
            let ours = ours(frame(&bytes), version);
            prop_assert!(ours.is_ok(), "{}", what);
            prop_assert_eq!(theirs(&bytes, version), ours.ok(), "{} {:x?}", what, &bytes);
        }
        let mut bytes = vec![];
        write_connect(&mut bytes, &connect);
        let ours = ours(frame(&bytes), connect.version);
        prop_assert!(ours.is_ok());
        if !is_stricter(frame(&bytes), connect.version) {
            prop_assert_eq!(theirs(&bytes, connect.version), ours.ok(), "{:x?}", &bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn of_damaged_bytes_both_say_the_same_or_we_refuse_them(
        (version, _, bytes) in packet(), damages in prop::collection::vec(damage(), 1..4),
    ) {
        let bytes = damaged(&bytes, &damages);
        let Ok(Some(frame)) = next_frame(&bytes, usize::MAX) else { return Ok(()) };
        if let Ok(ours) = ours(frame, version) {
            match theirs(frame.bytes(), version) {
                Some(theirs) => prop_assert_eq!(ours, theirs, "{:x?}", &bytes),
                None => prop_assert!(is_stricter(frame, version), "we alone take {:x?} as {}", &bytes, ours),
            }
        }
    }
}
