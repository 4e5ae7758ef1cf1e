//! The server's half of a session with one device: CONNACK to DISCONNECT.
//!
//! The driver cuts frames off its read buffer, hands each to [`Session::handle`], and acts on the [`Step`] that comes
//! back: it authorizes, places and stores, and tells the session the outcome. Every answer is appended to `out`, the
//! bytes that wait to be written. The session knows no policy and reads no clock.
//!
//! A PUBLISH of QoS 1 takes a place in the in-flight ring when the driver calls [`Session::publish_accepted`] and leaves
//! it with its PUBACK, in the order of the PUBLISHes, however the outcomes arrive [MQTT-4.6.0-2]. Until then
//! [`Session::handle`] has changed nothing that counts: a driver without room offers the same frame again later.
//!
//! Two things are the driver's: not to read while [`Session::wants_input`] says no, and not to read while `out` holds
//! more than it is willing to keep for a device that sends and does not read.

mod answer;
mod inbound;
mod outbound;
mod state;
mod subscriptions;

pub use answer::write_refusal;
pub use outbound::{Delivered, DropReason, OutgoingMessage};
pub use state::{Change, InFlight, Message, Receipt, SessionState, Stage};
pub use subscriptions::{SubscribeOutcome, Subscription};

use std::time::Duration;

use crate::{
    denial::{CloseReason, Denial},
    packet::{
        self, Connack, Connect, Disconnect, Frame, PacketType, Password, ProblemInformation, ProtocolVersion,
        PublishRef, QoS, Subscribe, Unsubscribe,
    },
    time::Tick,
    topic::{TopicFilter, TopicName},
};
use inbound::{Aliases, LastTopic, Ring};
use outbound::Outbound;
use subscriptions::Subscriptions;

/// What a session may use. All of it is announced to a 5.0 device in CONNACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLimits {
    /// QoS 1 messages of the device without a PUBACK; at least 1.
    pub receive_maximum: u16,
    /// Bytes of the largest packet of the device, its fixed header included.
    pub maximum_packet_size: u32,
    /// Topic aliases of the device.
    pub topic_alias_maximum: u16,
    /// Filters that it may hold at a time.
    pub subscriptions_max: usize,
    /// Messages that wait for it.
    pub queue_max: usize,
    /// Highest QoS of a PUBLISH and of a subscription: 0 or 1.
    pub qos_max: u8,
    /// Whether RETAIN may be set.
    pub retain: bool,
    /// Seconds; a longer keep alive, or none, is lowered to it. 0: any.
    pub keep_alive_max: u16,
}

impl SessionLimits {
    /// Whether the will of a CONNECT keeps to what is offered.
    ///
    /// # Errors
    /// [`Denial::QosNotOffered`] (MQTT 5.0 [MQTT-3.2.2-12]), [`Denial::RetainNotOffered`] [MQTT-3.2.2-13].
    pub fn check_will(&self, connect: &Connect) -> Result<(), Denial> {
        match &connect.will {
            Some(will) if will.qos as u8 > self.qos_max => Err(Denial::QosNotOffered),
            Some(will) if will.retain && !self.retain => Err(Denial::RetainNotOffered),
            _ => Ok(()),
        }
    }
}

/// Whether CONNACK says that a session was kept (MQTT 5.0 §3.2.2.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionPresent {
    /// A new session.
    No,
    /// The session of an earlier connection goes on.
    Yes,
}

/// What the driver is to do about a packet.
#[derive(Debug)]
pub enum Step<'a> {
    /// Nothing: it was answered, or needs no answer.
    Done,
    /// Authorize and store, then [`Session::publish_accepted`] and later [`Session::publish_stored`]; or
    /// [`Session::publish_refused`].
    Publish(Inbound<'a>),
    /// Authorize and place each request whose filter is good, then [`Session::suback`].
    Subscribe(Subscribe),
    /// [`Session::unsuback`], which says what is to be taken back.
    Unsubscribe(Unsubscribe),
    /// A fresh token, by AUTH: [`Session::renewed`], or close.
    Renew(Password),
    /// Close. The reason 0 drops the will, any other leaves it (MQTT 5.0 [MQTT-3.14.4-3], [MQTT-3.1.2-8]).
    Disconnect(Disconnect),
}

/// A PUBLISH of the device.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// The topic, an alias resolved.
    pub topic: TopicName<'a>,
    /// QoS.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// 0 for QoS 0.
    pub packet_id: u16,
    /// All of it.
    pub publish: PublishRef<'a>,
}

/// One device's session, from CONNACK on.
#[derive(Debug)]
pub struct Session {
    version: ProtocolVersion,
    problem_information: ProblemInformation,
    /// Seconds; 0: none.
    keep_alive: u16,
    asked_keep_alive: u16,
    asked_session_expiry: u32,
    authentication_method: Option<Box<str>>,
    /// AUTH 0x18 was sent: the device is to answer it with its token.
    token_asked: bool,
    limits: SessionLimits,
    heard: Tick,
    inbound: Ring,
    last_topic: LastTopic,
    aliases: Aliases,
    outbound: Outbound,
    subscriptions: Subscriptions,
}

impl Session {
    /// The session of a CONNECT that was admitted.
    pub fn accept(connect: &Connect, limits: &SessionLimits, now: Tick) -> Self {
        let (asked, max) = (connect.keep_alive, limits.keep_alive_max);
        Self {
            version: connect.version,
            problem_information: connect.problem_information,
            keep_alive: if max > 0 && (asked == 0 || asked > max) { max } else { asked },
            asked_keep_alive: asked,
            asked_session_expiry: connect.session_expiry,
            authentication_method: connect.authentication_method.as_deref().map(Into::into),
            token_asked: false,
            limits: *limits,
            heard: now,
            inbound: Ring::default(),
            last_topic: LastTopic::default(),
            aliases: Aliases::default(),
            outbound: Outbound::new(connect, limits.queue_max),
            subscriptions: Subscriptions::default(),
        }
    }

    /// Appends the CONNACK, which announces every limit to a 5.0 device.
    pub fn connack(&self, present: SessionPresent, out: &mut Vec<u8>) {
        let mut connack = Connack::new(0);
        connack.session_present = present == SessionPresent::Yes;
        // No session outlives its connection: said where the device asked for one (MQTT 5.0 §3.2.2.3.2).
        connack.session_expiry = (self.asked_session_expiry > 0).then_some(0);
        connack.authentication_method = self.authentication_method.as_deref().map(Into::into);
        connack.receive_maximum = self.limits.receive_maximum;
        connack.qos_max = self.limits.qos_max;
        connack.retain_available = self.limits.retain;
        connack.maximum_packet_size = Some(self.limits.maximum_packet_size);
        connack.topic_alias_maximum = self.limits.topic_alias_maximum;
        connack.subscription_id_available = false;
        connack.shared_available = false;
        // MQTT 5.0 [MQTT-3.2.2-22]
        connack.server_keep_alive = (self.keep_alive != self.asked_keep_alive).then_some(self.keep_alive);
        packet::write_connack(out, self.version, &connack);
    }

    /// Takes one packet of the device.
    ///
    /// # Errors
    /// Why the connection is to be closed; [`Session::disconnect`] says it to the device.
    #[inline]
    pub fn handle<'a>(&'a mut self, frame: Frame<'a>, out: &mut Vec<u8>, now: Tick) -> Result<Step<'a>, CloseReason> {
        self.heard = now;
        match frame.packet_type() {
            PacketType::Publish => self.handle_publish(frame),
            PacketType::Puback => {
                let acknowledgement = packet::parse_puback(frame, self.version)?;
                self.outbound.acknowledged(acknowledgement.packet_id);
                self.outbound.pump(out);
                Ok(Step::Done)
            }
            _ => self.handle_control(frame, out),
        }
    }

    /// The PUBLISH is with delivery: it takes its place in the order of PUBACKs. Of no effect for QoS 0.
    #[inline]
    pub fn publish_accepted(&mut self, packet_id: u16) {
        if packet_id != 0 {
            self.inbound.push(packet_id);
        }
    }

    /// A durable witness has the PUBLISH: its PUBACK leaves as soon as all before it have left.
    #[inline]
    pub fn publish_stored(&mut self, packet_id: u16, out: &mut Vec<u8>) {
        self.inbound.stored(packet_id);
        self.release_pubacks(out);
    }

    /// The PUBLISH was refused, at once or after it had been accepted. A 5.0 device is told by PUBACK, in its turn.
    ///
    /// # Errors
    /// The refusal can only be said by closing: in 3.1.1, at QoS 0, and where no PUBACK has a reason code for it.
    pub fn publish_refused(&mut self, packet_id: u16, denial: Denial, out: &mut Vec<u8>) -> Result<(), CloseReason> {
        // A PUBACK that cannot refuse would be a lie (3.1.1), and QoS 0 has none.
        if self.version == ProtocolVersion::V3_1_1 || packet_id == 0 || answer::puback_reason(denial).is_none() {
            return Err(CloseReason::Denied(denial));
        }
        self.inbound.refused(packet_id, denial);
        self.release_pubacks(out);
        Ok(())
    }

    /// Whether the next packet may be handled. A 3.1.1 device knows no Receive Maximum: while its ring is full it is not read.
    #[inline]
    pub fn wants_input(&self) -> bool {
        self.version == ProtocolVersion::V5_0 || self.inbound.len() < usize::from(self.limits.receive_maximum)
    }

    /// QoS 1 messages of the device that wait for their PUBACK.
    pub fn in_flight(&self) -> usize {
        self.inbound.len()
    }

    /// Answers a SUBSCRIBE, one outcome for each request in order, and remembers what was granted.
    pub fn suback(&mut self, subscribe: &Subscribe, outcomes: &[SubscribeOutcome], out: &mut Vec<u8>) {
        let mut codes = Vec::with_capacity(subscribe.requests.len());
        for (request, outcome) in subscribe.requests.iter().zip(outcomes) {
            codes.push(match (&request.filter, outcome) {
                (Ok(filter), SubscribeOutcome::Granted(qos)) => {
                    let qos = *qos.min(&request.qos).min(&self.qos_max());
                    self.subscriptions.insert(Subscription::granted(
                        filter.clone(),
                        qos,
                        subscribe.subscription_id,
                        request,
                    ));
                    qos as u8
                }
                (Err(denial), _) | (Ok(_), SubscribeOutcome::Refused(denial)) => {
                    answer::suback_code(self.version, *denial)
                }
            });
        }
        packet::write_suback(out, self.version, subscribe.packet_id, &codes);
    }

    /// Answers an UNSUBSCRIBE. Returns the subscriptions that ended by it.
    pub fn unsuback(&mut self, unsubscribe: &Unsubscribe, out: &mut Vec<u8>) -> Vec<Subscription> {
        let mut ended = vec![];
        let codes: Vec<u8> = (unsubscribe.filters.iter())
            .map(|filter| match filter {
                Ok(filter) => match self.subscriptions.remove(filter) {
                    Some(subscription) => {
                        ended.push(subscription);
                        0x00
                    }
                    None => NO_SUBSCRIPTION_EXISTED,
                },
                // Never granted.
                Err(Denial::SharedSubscriptionNotOffered) => NO_SUBSCRIPTION_EXISTED,
                Err(denial) => denial.row().reason_v5,
            })
            .collect();
        packet::write_unsuback(out, self.version, unsubscribe.packet_id, &codes);
        ended
    }

    /// Takes back the subscriptions that `keep` does not want, and what is queued for topics that `keep_topic` does not.
    pub fn withdraw(
        &mut self,
        keep: impl Fn(&TopicFilter) -> bool,
        keep_topic: impl Fn(TopicName<'_>) -> bool,
    ) -> Vec<Subscription> {
        self.outbound.retain_queued(keep_topic);
        self.subscriptions.withdraw(keep)
    }

    /// The token of an AUTH is believed: the device is told.
    pub fn renewed(&mut self, out: &mut Vec<u8>) {
        self.token_asked = false;
        if let Some(method) = &self.authentication_method {
            packet::write_auth(out, AUTH_SUCCESS, method);
        }
    }

    /// What is subscribed to.
    pub fn subscriptions(&self) -> &[Subscription] {
        self.subscriptions.all()
    }

    /// A message for the device, at the QoS that was granted for it where it was placed.
    pub fn deliver(&mut self, message: &OutgoingMessage<'_>, out: &mut Vec<u8>) -> Delivered {
        // A message may come before its SUBACK (MQTT 5.0 §3.8.4): then no subscription is held yet.
        let granted = self.subscriptions.qos_of(message.topic).unwrap_or(message.qos);
        self.outbound.deliver(message, granted, out)
    }

    /// Sends queued messages after `out` has drained.
    pub fn pump(&mut self, out: &mut Vec<u8>) {
        self.outbound.pump(out);
    }

    /// Messages that wait for the device.
    pub fn queued(&self) -> usize {
        self.outbound.queued()
    }

    /// Bytes arrived, a whole packet or not.
    #[inline]
    pub fn heard(&mut self, now: Tick) {
        self.heard = now;
    }

    /// When bytes last arrived.
    #[inline]
    pub fn idle_since(&self) -> Tick {
        self.heard
    }

    /// When to close with [`CloseReason::KeepAlive`]; `None`: never.
    #[inline]
    pub fn deadline(&self) -> Option<Tick> {
        // MQTT 5.0 [MQTT-3.1.2-22], MQTT 3.1.1 [MQTT-3.1.2-24]: one and a half times the keep alive.
        (self.keep_alive > 0).then(|| self.heard.plus(Duration::from_millis(u64::from(self.keep_alive) * 1_500)))
    }

    /// Appends the DISCONNECT that says why; 3.1.1 has none [MQTT-3.14.0-1]. `elsewhere` is where a device may go whose
    /// server ends.
    pub fn disconnect(&self, reason: CloseReason, elsewhere: Option<&str>, out: &mut Vec<u8>) {
        let Some(code) = reason.disconnect_v5() else { return };
        if self.version == ProtocolVersion::V3_1_1 {
            return;
        }
        let text = match reason {
            CloseReason::Denied(denial) | CloseReason::RenewalRefused(denial) => answer::reason_string(denial),
            other => other.tag().to_owned(),
        };
        // MQTT 5.0 §3.14.2.2.5: a Server Reference goes with "Use another server". [MQTT-3.1.2-24]: it must fit.
        let reference = elsewhere.filter(|text| reason == CloseReason::Draining && self.outbound.fits(text.len() + 7));
        let (code, taken) = reference.map_or((code, 7), |text| (USE_ANOTHER_SERVER, text.len() + 10));
        // MQTT 5.0 [MQTT-3.14.2-3]: the string must not make the packet too large for the device.
        let wanted =
            self.problem_information == ProblemInformation::Requested && self.outbound.fits(text.len() + taken);
        packet::write_disconnect(out, self.version, code, wanted.then_some(&text), reference);
    }

    /// Gives back the memory of rings and queues that are empty, and of what is only kept for speed. For a session that has gone idle.
    pub fn shrink(&mut self) {
        self.inbound.shrink();
        self.last_topic.shrink();
        self.outbound.shrink();
    }

    /// Which MQTT the device speaks.
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// Bytes of the largest packet that the device may send: the limit for `next_frame`.
    pub fn maximum_packet_size(&self) -> usize {
        self.limits.maximum_packet_size as usize
    }

    #[inline]
    fn handle_publish<'a>(&'a mut self, frame: Frame<'a>) -> Result<Step<'a>, CloseReason> {
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
        if publish.packet_id != 0 {
            if self.inbound.contains(publish.packet_id) {
                // Sent again while it is with delivery: the PUBACK that comes answers both. Without DUP it is another
                // message under an identifier in use [MQTT-2.2.1-4]: that PUBACK would be taken for its own.
                return if publish.dup { Ok(Step::Done) } else { Err(CloseReason::ProtocolError) };
            }
            // MQTT 5.0 [MQTT-3.3.4-9]
            if self.version == ProtocolVersion::V5_0 && self.inbound.len() >= usize::from(self.limits.receive_maximum) {
                return Err(CloseReason::ReceiveMaximumExceeded);
            }
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

    fn handle_control(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<Step<'static>, CloseReason> {
        match frame.packet_type() {
            PacketType::Pingreq => {
                packet::parse_empty(frame)?;
                // MQTT 5.0 [MQTT-3.12.4-1]
                packet::write_pingresp(out);
                Ok(Step::Done)
            }
            PacketType::Subscribe => {
                let mut subscribe = packet::parse_subscribe(frame, self.version)?;
                // Announced as not available (MQTT 5.0 §3.2.2.3.12).
                if subscribe.subscription_id.is_some() {
                    return Err(CloseReason::ProtocolError);
                }
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
                Ok(Step::Disconnect(disconnect))
            }
            PacketType::Auth => self.handle_auth(frame, out),
            // A second CONNECT [MQTT-3.1.0-2]; PUBREL, PUBREC and PUBCOMP of QoS 2,
            // which is not offered; what only a server may send.
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

    #[inline]
    fn release_pubacks(&mut self, out: &mut Vec<u8>) {
        while let Some((packet_id, outcome)) = self.inbound.next_decided() {
            match outcome {
                Ok(()) => packet::write_puback(out, self.version, packet_id, 0),
                Err(denial) => self.write_refusing_puback(packet_id, denial, out),
            }
        }
    }

    #[cold]
    fn write_refusing_puback(&self, packet_id: u16, denial: Denial, out: &mut Vec<u8>) {
        let reason = answer::puback_reason(denial).expect("invariant: publish_refused asked");
        let text = answer::reason_string(denial);
        // MQTT 5.0 [MQTT-3.4.2-2], [MQTT-3.1.2-29]
        if self.problem_information == ProblemInformation::Requested && self.outbound.fits(text.len() + 9) {
            packet::write_puback_with_reason(out, packet_id, reason, &text);
        } else {
            packet::write_puback(out, self.version, packet_id, reason);
        }
    }

    fn qos_max(&self) -> QoS {
        QoS::from_bits(self.limits.qos_max).unwrap_or(QoS::AtLeastOnce)
    }
}

/// Far more than an honest device sends; a flood of them is cut short.
const USER_PROPERTIES_MAX: u32 = 100;
/// MQTT 5.0 §3.15.2.1.
const AUTH_SUCCESS: u8 = 0x00;
const AUTH_CONTINUE: u8 = 0x18;
const AUTH_AGAIN: u8 = 0x19;
/// MQTT 5.0 §3.14.2.1.
const USE_ANOTHER_SERVER: u8 = 0x9C;
/// MQTT 5.0 §3.11.3.
const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;

#[cfg(test)]
mod tests;
