//! The server's half of a session with one device: CONNACK to DISCONNECT.
//!
//! The driver cuts frames off its read buffer, hands each to [`Session::handle`], and acts on the [`Step`] that comes
//! back: it authorizes, places and stores, and tells the session the outcome. Every answer is appended to `out`, the
//! bytes that wait to be written. The session knows no policy and reads no clock.
//!
//! A PUBLISH of QoS 1 or 2 takes a place in the in-flight ring when the driver calls [`Session::publish_accepted`] and
//! leaves it with its PUBACK or PUBREC, in the order of the PUBLISHes, however the outcomes arrive [MQTT-4.6.0-2]. Until
//! then [`Session::handle`] has changed nothing that counts: a driver without room offers the same frame again later. A
//! QoS 2 message is offered once: its packet identifier is held until PUBREL, over lost connections too.
//!
//! Two things are the driver's: not to read while [`Session::wants_input`] says no, and not to read while `out` holds
//! more than it is willing to keep for a device that sends and does not read.

mod absent;
mod aliases;
mod answer;
mod changes;
mod inbound;
mod outbound;
mod receive;
mod state;
mod subscriptions;

pub use answer::write_refusal;
pub use outbound::{Asked, Delivered, OutgoingMessage, Room};
pub use state::{Change, DropReason, InFlight, Message, Receipt, SessionState, Settlement, Stage};
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
use changes::{Changes, Recorded};
use inbound::{Aliases, HalfWay, LastTopic, Outcome, Ring, Witness};
use outbound::{Outbound, Resends};
use subscriptions::{Match, Subscriptions};

/// What a session may use. All of it is announced to a 5.0 device in CONNACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLimits {
    /// QoS 1 and 2 messages of the device that are not acknowledged to the end; at least 1.
    pub receive_maximum: u16,
    /// Bytes of the largest packet of the device, its fixed header included.
    pub maximum_packet_size: u32,
    /// Topic aliases of the device.
    pub topic_alias_maximum: u16,
    /// Filters that it may hold at a time.
    pub subscriptions_max: usize,
    /// Messages that wait for it.
    pub queue_max: usize,
    /// Highest QoS of a PUBLISH and of a subscription: 0 to 2.
    pub qos_max: u8,
    /// Whether RETAIN may be set.
    pub retain: bool,
    /// Seconds; a longer keep alive, or none, is lowered to it. 0: any.
    pub keep_alive_max: u16,
    /// Seconds that a session may outlive its connection; 0: none does.
    pub session_expiry_max: u32,
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
    /// Seconds; 0: it ends with its connection.
    session_expiry: u32,
    authentication_method: Option<Box<str>>,
    /// AUTH 0x18 was sent: the device is to answer it with its token.
    token_asked: bool,
    limits: SessionLimits,
    heard: Tick,
    inbound: Ring,
    half_way: HalfWay,
    last_topic: LastTopic,
    aliases: Aliases,
    outbound: Outbound,
    subscriptions: Subscriptions,
    changes: Changes,
}

impl Session {
    /// The session of a CONNECT that was admitted.
    pub fn accept(connect: &Connect, limits: &SessionLimits, now: Tick) -> Self {
        let (asked, max) = (connect.keep_alive, limits.keep_alive_max);
        let asked_session_expiry = match connect.version {
            ProtocolVersion::V5_0 => connect.session_expiry,
            // MQTT 3.1.1 §3.1.2.4: a session that is not clean has no end of its own.
            ProtocolVersion::V3_1_1 if connect.clean_start => 0,
            ProtocolVersion::V3_1_1 => u32::MAX,
        };
        let session_expiry = asked_session_expiry.min(limits.session_expiry_max);
        let (resends, recorded) = match session_expiry {
            0 => (Resends::No, Recorded::Receipts),
            _ => (Resends::Yes, Recorded::All),
        };
        Self {
            version: connect.version,
            problem_information: connect.problem_information,
            keep_alive: if max > 0 && (asked == 0 || asked > max) { max } else { asked },
            asked_keep_alive: asked,
            asked_session_expiry,
            session_expiry,
            authentication_method: connect.authentication_method.as_deref().map(Into::into),
            token_asked: false,
            limits: *limits,
            heard: now,
            inbound: Ring::default(),
            half_way: HalfWay::default(),
            last_topic: LastTopic::default(),
            aliases: Aliases::default(),
            outbound: Outbound::new(connect, limits.queue_max, resends),
            subscriptions: Subscriptions::default(),
            changes: Changes::new(recorded),
        }
    }

    /// The session of a CONNECT that was admitted and that takes up what an earlier connection left: after its CONNACK
    /// [`pump`](Self::pump) sends again what is unacknowledged [MQTT-4.4.0-1].
    pub fn resume(connect: &Connect, limits: &SessionLimits, state: SessionState, now: Tick) -> Self {
        let mut session = Self::accept(connect, limits, now);
        let SessionState { subscriptions, received, awaited, in_flight, queued } = state;
        session.subscriptions.resume(subscriptions);
        session.half_way = HalfWay::new(received, awaited);
        session.outbound.resume(in_flight, queued);
        session
    }

    /// Moves what outlives the connection out of the session, which is of no use from here on. Changes that were not
    /// taken have to be taken first.
    pub fn take_state(&mut self) -> SessionState {
        let mut state = SessionState { subscriptions: self.subscriptions.take(), ..SessionState::default() };
        (state.received, state.awaited) = self.half_way.take();
        for (packet_id, witness) in self.inbound.of_qos_2() {
            match witness {
                Witness::There => state.received.push(packet_id),
                Witness::Awaited => state.awaited.push(packet_id),
            }
        }
        self.outbound.leave(&mut state);
        state
    }

    /// As [`take_state`](Self::take_state), while the session goes on.
    pub fn copy_state(&self) -> SessionState {
        let mut state = SessionState { subscriptions: self.subscriptions.all().to_vec(), ..SessionState::default() };
        state.received = self.half_way.received();
        self.outbound.copy(&mut state);
        state
    }

    /// A message for the device that is kept until its end, and its packet id where it was sent.
    pub fn message(&self, receipt: Receipt) -> Option<(Option<u16>, &Message)> {
        self.outbound.message(receipt)
    }

    /// Receipts of all messages for the device that are not at their end.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.outbound.receipts()
    }

    /// Seconds that the session outlives its connection; 0: it does not.
    pub fn session_expiry(&self) -> u32 {
        self.session_expiry
    }

    /// Whether [`take_changes`](Self::take_changes) has something.
    #[inline]
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// What happened since it was last asked, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.changes.take()
    }

    /// Appends the CONNACK, which announces every limit to a 5.0 device, and the client id where the device left it to us.
    pub fn connack(&self, present: SessionPresent, assigned_client_id: Option<&str>, out: &mut Vec<u8>) {
        let mut connack = Connack::new(0);
        connack.assigned_client_id = assigned_client_id.map(Into::into);
        connack.session_present = present == SessionPresent::Yes;
        // Said where it differs from what was asked (MQTT 5.0 §3.2.2.3.2).
        connack.session_expiry = (self.asked_session_expiry != self.session_expiry).then_some(self.session_expiry);
        connack.authentication_method = self.authentication_method.as_deref().map(Into::into);
        connack.receive_maximum = self.limits.receive_maximum;
        connack.qos_max = self.limits.qos_max;
        connack.retain_available = self.limits.retain;
        connack.maximum_packet_size = Some(self.limits.maximum_packet_size);
        connack.topic_alias_maximum = self.limits.topic_alias_maximum;
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
            PacketType::Publish => self.handle_publish(frame, out),
            PacketType::Puback => {
                let acknowledgement = packet::parse_puback(frame, self.version)?;
                self.outbound.puback(acknowledgement.packet_id, &mut self.changes)?;
                self.outbound.pump(&mut self.changes, out, now);
                Ok(Step::Done)
            }
            _ => self.handle_control(frame, out, now),
        }
    }

    /// The PUBLISH is with delivery, or is about to be refused: it takes its place in the order of answers. Of no effect
    /// for QoS 0.
    #[inline]
    pub fn publish_accepted(&mut self, packet_id: u16, qos: QoS) {
        if packet_id != 0 {
            self.inbound.push(packet_id, qos);
        }
    }

    /// A durable witness has the PUBLISH: its PUBACK or PUBREC leaves as soon as all before it have left.
    #[inline]
    pub fn publish_stored(&mut self, packet_id: u16, out: &mut Vec<u8>) {
        if !self.inbound.stored(packet_id) {
            self.settle_awaited(packet_id, Settlement::Stored);
        }
        self.release_answers(out);
    }

    /// The PUBLISH was refused after it had been accepted. A 5.0 device is told by PUBACK or PUBREC, in its turn.
    ///
    /// # Errors
    /// The refusal can only be said by closing: in 3.1.1, at QoS 0, and where no PUBACK has a reason code for it.
    pub fn publish_refused(&mut self, packet_id: u16, denial: Denial, out: &mut Vec<u8>) -> Result<(), CloseReason> {
        if packet_id != 0 && self.inbound.qos_of(packet_id).is_none() {
            // Of an earlier connection: the device sends it again, and it is offered again.
            self.settle_awaited(packet_id, Settlement::Refused);
            return Ok(());
        }
        // A PUBACK that cannot refuse would be a lie (3.1.1), and QoS 0 has none.
        if self.version == ProtocolVersion::V3_1_1 || packet_id == 0 || answer::puback_reason(denial).is_none() {
            return Err(CloseReason::Denied(denial));
        }
        self.inbound.refused(packet_id, denial);
        self.release_answers(out);
        Ok(())
    }

    /// What delivery says of a QoS 2 message that an earlier connection of this session brought. A QoS 1 message under the
    /// same packet identifier is another one, and waits for its own witness.
    ///
    /// # Errors
    /// As [`publish_refused`](Self::publish_refused).
    pub fn settle_earlier(
        &mut self,
        packet_id: u16,
        outcome: Result<(), Denial>,
        out: &mut Vec<u8>,
    ) -> Result<(), CloseReason> {
        match (self.inbound.qos_of(packet_id), outcome) {
            (Some(QoS::AtLeastOnce), Ok(())) => self.settle_awaited(packet_id, Settlement::Stored),
            (Some(QoS::AtLeastOnce), Err(_)) => self.settle_awaited(packet_id, Settlement::Refused),
            (_, Ok(())) => self.publish_stored(packet_id, out),
            (_, Err(denial)) => return self.publish_refused(packet_id, denial, out),
        }
        Ok(())
    }

    /// Whether the next packet may be handled. A 3.1.1 device knows no Receive Maximum: while its ring is full it is not read.
    #[inline]
    pub fn wants_input(&self) -> bool {
        self.version == ProtocolVersion::V5_0 || self.inbound.len() < usize::from(self.limits.receive_maximum)
    }

    /// QoS 1 and 2 messages of the device that wait for their PUBACK or PUBREC.
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
        self.outbound.retain_queued(keep_topic, &mut self.changes);
        self.subscriptions.withdraw(keep)
    }

    /// By which method CONNECT was, and AUTH has to be.
    pub fn authentication_method(&self) -> Option<&str> {
        self.authentication_method.as_deref()
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
    pub fn deliver(&mut self, message: &OutgoingMessage<'_>, out: &mut Vec<u8>, now: Tick) -> Delivered {
        let to = self.subscriptions.matching(message.topic, message.asked);
        let mut to = to.unwrap_or_else(|| Match { qos: message.qos, ..Match::default() });
        to.qos = to.qos.min(self.qos_max());
        self.outbound.deliver(message, &to, &mut self.changes, out, now)
    }

    /// Sends queued messages after `out` has drained, and what an earlier connection left after CONNACK.
    pub fn pump(&mut self, out: &mut Vec<u8>, now: Tick) {
        self.outbound.pump(&mut self.changes, out, now);
    }

    /// Messages that were sent to the device and that it has not acknowledged to the end.
    pub fn unacknowledged(&self) -> usize {
        self.outbound.in_flight()
    }

    /// Whether the device wants no messages of its own by any subscription to this topic [MQTT-3.8.3-3].
    pub fn is_local_unwanted(&self, topic: TopicName<'_>) -> bool {
        self.subscriptions.are_all_no_local(topic)
    }

    /// Whether any subscription is such.
    #[inline]
    pub fn has_no_local(&self) -> bool {
        self.subscriptions.has_no_local()
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
        self.half_way.shrink();
        self.last_topic.shrink();
        self.outbound.shrink();
    }

    /// Which MQTT the device speaks.
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// The highest QoS of a PUBLISH and of a subscription.
    pub fn qos_max(&self) -> QoS {
        QoS::from_bits(self.limits.qos_max).unwrap_or(QoS::AtLeastOnce)
    }

    /// Bytes of the largest packet that the device may send: the limit for `next_frame`.
    pub fn maximum_packet_size(&self) -> usize {
        self.limits.maximum_packet_size as usize
    }

    #[inline]
    fn release_answers(&mut self, out: &mut Vec<u8>) {
        while let Some(decided) = self.inbound.next_decided() {
            match (decided.outcome, decided.qos) {
                (Outcome::Stored, QoS::ExactlyOnce) => {
                    self.half_way.receive(decided.packet_id);
                    self.changes.push(Change::Received(decided.packet_id));
                    packet::write_pubrec(out, self.version, decided.packet_id, 0);
                }
                (Outcome::Stored, _) => packet::write_puback(out, self.version, decided.packet_id, 0),
                (Outcome::StoredBefore, _) => packet::write_pubrec(out, self.version, decided.packet_id, 0),
                (Outcome::Refused(denial), qos) => self.write_refusal(decided.packet_id, qos, denial, out),
            }
        }
    }

    #[cold]
    fn write_refusal(&self, packet_id: u16, qos: QoS, denial: Denial, out: &mut Vec<u8>) {
        let reason = answer::puback_reason(denial).expect("invariant: publish_refused asked");
        let text = answer::reason_string(denial);
        // MQTT 5.0 [MQTT-3.4.2-2], [MQTT-3.5.2-2], [MQTT-3.1.2-29]
        let said = self.problem_information == ProblemInformation::Requested && self.outbound.fits(text.len() + 9);
        match (qos, said) {
            (QoS::ExactlyOnce, true) => packet::write_pubrec_with_reason(out, packet_id, reason, &text),
            (QoS::ExactlyOnce, false) => packet::write_pubrec(out, self.version, packet_id, reason),
            (_, true) => packet::write_puback_with_reason(out, packet_id, reason, &text),
            (_, false) => packet::write_puback(out, self.version, packet_id, reason),
        }
    }

    /// Delivery speaks of a message that an earlier connection brought.
    #[cold]
    fn settle_awaited(&mut self, packet_id: u16, outcome: Settlement) {
        if self.half_way.take_awaited(packet_id) && outcome == Settlement::Stored {
            self.half_way.receive(packet_id);
            self.changes.push(Change::Received(packet_id));
        }
    }
}

/// MQTT 5.0 §3.15.2.1.
const AUTH_SUCCESS: u8 = 0x00;
/// MQTT 5.0 §3.14.2.1.
const USE_ANOTHER_SERVER: u8 = 0x9C;
/// MQTT 5.0 §3.11.3.
const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;

#[cfg(test)]
mod tests;
