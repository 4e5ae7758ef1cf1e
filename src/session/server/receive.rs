//! What each packet of the device means in the session.

use super::{Change, Inbound, Session, Step};
use crate::{
    denial::{CloseReason, Denial},
    packet::{self, Frame, PacketType, ProtocolVersion, PublishRef, QoS},
    time::Tick,
};

impl Session {
    #[inline]
    pub(super) fn handle_publish<'a>(
        &'a mut self,
        frame: Frame<'a>,
        out: &mut Vec<u8>,
    ) -> Result<Step<'a>, CloseReason> {
        let publish = packet::parse_publish(frame, self.version)?;
        // MQTT 5.0 [MQTT-3.2.2-11]
        if publish.qos as u8 > self.limits.qos_max {
            return Err(CloseReason::Denied(Denial::QosNotOffered));
        }
        // MQTT 5.0 [MQTT-3.2.2-14]
        if publish.retain && !self.limits.retain {
            return Err(CloseReason::Denied(Denial::RetainNotOffered));
        }
        // MQTT 5.0 [MQTT-3.3.4-6]
        if publish.has_subscription_id {
            return Err(CloseReason::ProtocolError);
        }
        // MQTT 5.0 §1.5.4
        if publish.has_control_characters {
            return Err(CloseReason::Malformed);
        }
        if publish.user_properties > USER_PROPERTIES_MAX {
            return Err(CloseReason::PacketTooLarge);
        }
        if publish.packet_id != 0
            && let Some(step) = self.handle_again(&publish, out)?
        {
            return Ok(step);
        }
        let topic = match publish.topic_alias {
            // MQTT 5.0 §3.3.2.1: empty without an alias is a protocol error.
            None if publish.topic.is_empty() && self.version == ProtocolVersion::V5_0 => {
                return Err(CloseReason::ProtocolError);
            }
            None => self.last_topic.check(publish.topic).map_err(|_| CloseReason::Denied(Denial::TopicInvalid))?,
            Some(alias) => self.aliases.resolve(alias, publish.topic, self.limits.topic_alias_maximum)?,
        };
        let PublishRef { qos, retain, packet_id, .. } = publish;
        Ok(Step::Publish(Inbound { topic, qos, retain, packet_id, publish }))
    }

    /// Whether a PUBLISH of QoS 1 or 2 came before: then there is nothing to forward. And whether there is room for it.
    #[inline]
    fn handle_again(
        &mut self,
        publish: &PublishRef<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Step<'static>>, CloseReason> {
        let PublishRef { packet_id, qos, dup, .. } = *publish;
        if let Some(held) = self.inbound.qos_of(packet_id) {
            // Sent again while it is with delivery: the answer that comes answers both. Without DUP it is another
            // message under an identifier in use [MQTT-2.2.1-4]: that PUBACK would be taken for its own. Of QoS 2 it is the
            // same message until PUBREL, DUP or not [MQTT-4.3.3-10].
            let is_same = held == qos && (dup || qos == QoS::ExactlyOnce);
            return if is_same { self.nothing_new(publish) } else { Err(CloseReason::ProtocolError) };
        }
        if self.half_way.is_received(packet_id) {
            if qos != QoS::ExactlyOnce {
                return Err(CloseReason::ProtocolError);
            }
            // MQTT 5.0 [MQTT-4.3.3-10]: PUBREC again, in its turn, and no second copy.
            self.inbound.push_again(packet_id);
            self.release_answers(out);
            return self.nothing_new(publish);
        }
        let in_use = self.inbound.len_new() + self.half_way.len();
        // MQTT 5.0 [MQTT-3.3.4-9]
        if self.version == ProtocolVersion::V5_0 && in_use >= usize::from(self.limits.receive_maximum) {
            return Err(CloseReason::ReceiveMaximumExceeded);
        }
        if qos == QoS::ExactlyOnce && self.half_way.take_awaited(packet_id) {
            // An earlier connection brought it to delivery: the answer is on its way.
            self.inbound.push(packet_id, qos);
            return self.nothing_new(publish);
        }
        Ok(None)
    }

    /// There is nothing to forward, but what the PUBLISH says of its topic alias counts.
    fn nothing_new(&mut self, publish: &PublishRef<'_>) -> Result<Option<Step<'static>>, CloseReason> {
        if let Some(alias) = publish.topic_alias {
            self.aliases.resolve(alias, publish.topic, self.limits.topic_alias_maximum)?;
        }
        Ok(Some(Step::Done))
    }

    pub(super) fn handle_control(
        &mut self,
        frame: Frame<'_>,
        out: &mut Vec<u8>,
        now: Tick,
    ) -> Result<Step<'static>, CloseReason> {
        match frame.packet_type() {
            PacketType::Pubrel => {
                let packet_id = packet::parse_pubrel(frame, self.version)?.packet_id;
                let known = self.half_way.finish(packet_id);
                if known {
                    self.changes.push(Change::Finished(packet_id));
                }
                // MQTT 5.0 [MQTT-4.3.3-11]. 3.1.1 has no word for an identifier that is not known.
                packet::write_pubcomp(out, self.version, packet_id, if known { 0 } else { PACKET_ID_NOT_FOUND });
                Ok(Step::Done)
            }
            PacketType::Pubrec => {
                let pubrec = packet::parse_pubrec(frame, self.version)?;
                self.outbound.pubrec(pubrec, &mut self.changes, out)?;
                self.outbound.pump(&mut self.changes, out, now);
                Ok(Step::Done)
            }
            PacketType::Pubcomp => {
                let pubcomp = packet::parse_pubcomp(frame, self.version)?;
                self.outbound.pubcomp(pubcomp.packet_id, &mut self.changes)?;
                self.outbound.pump(&mut self.changes, out, now);
                Ok(Step::Done)
            }
            PacketType::Pingreq => {
                packet::parse_empty(frame)?;
                // MQTT 5.0 [MQTT-3.12.4-1]
                packet::write_pingresp(out);
                Ok(Step::Done)
            }
            PacketType::Subscribe => {
                let mut subscribe = packet::parse_subscribe(frame, self.version)?;
                self.subscriptions.refuse_beyond(self.limits.subscriptions_max, &mut subscribe.requests);
                Ok(Step::Subscribe(subscribe))
            }
            PacketType::Unsubscribe => Ok(Step::Unsubscribe(packet::parse_unsubscribe(frame, self.version)?)),
            PacketType::Disconnect => {
                let disconnect = packet::parse_disconnect(frame, self.version)?;
                // MQTT 5.0 §3.14.2.2.2: an expiry of 0 in CONNECT cannot be raised.
                if self.asked_session_expiry == 0 && disconnect.session_expiry.is_some_and(|seconds| seconds > 0) {
                    return Err(CloseReason::ProtocolError);
                }
                if let Some(seconds) = disconnect.session_expiry {
                    self.session_expiry = seconds.min(self.limits.session_expiry_max);
                }
                Ok(Step::Disconnect(disconnect))
            }
            PacketType::Auth => self.handle_auth(frame, out),
            // A second CONNECT [MQTT-3.1.0-2]; what only a server may send.
            _ => Err(CloseReason::ProtocolError),
        }
    }

    /// Re-authentication (MQTT 5.0 §4.12.1): AUTH 0x19 with the token, or without, and then 0x18 with it.
    fn handle_auth(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<Step<'static>, CloseReason> {
        // MQTT 5.0 [MQTT-4.12.0-7]; 3.1.1 has no AUTH.
        let Some(method) = self.authentication_method.as_deref().filter(|_| self.version == ProtocolVersion::V5_0)
        else {
            return Err(CloseReason::ProtocolError);
        };
        let auth = packet::parse_auth(frame)?;
        match &auth.method {
            // MQTT 5.0 §3.15.2.2.2
            None => return Err(CloseReason::ProtocolError),
            // MQTT 5.0 [MQTT-4.12.1-1]
            Some(other) if other != method => return Err(CloseReason::RenewalRefused(Denial::RenewalMethod)),
            Some(_) => {}
        }
        match (auth.reason, self.token_asked, auth.data) {
            (AUTH_AGAIN, false, Some(token)) | (AUTH_CONTINUE, true, Some(token)) => Ok(Step::Renew(token)),
            (AUTH_AGAIN, false, None) => {
                packet::write_auth(out, AUTH_CONTINUE, method);
                self.token_asked = true;
                Ok(Step::Done)
            }
            _ => Err(CloseReason::ProtocolError),
        }
    }
}

/// Far more than an honest device sends; a flood of them is cut short.
const USER_PROPERTIES_MAX: u32 = 100;
/// MQTT 5.0 §3.7.2.1.
const PACKET_ID_NOT_FOUND: u8 = 0x92;
/// MQTT 5.0 §3.15.2.1.
const AUTH_CONTINUE: u8 = 0x18;
const AUTH_AGAIN: u8 = 0x19;
