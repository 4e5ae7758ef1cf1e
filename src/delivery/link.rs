//! One pool member: the log, what is in flight, who waits, and the MQTT session towards the hub.
//! (Over 600 lines: the one place where all of a link's parts meet, and each step of it has its reasons beside it.)

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    Incoming, LinkConfig, LinkError, LinkOutput, Lost, Offer, Outbound, Placement, Refusal, SessionRef, Taken, Wish,
    Woken,
    aging::{Expired, Next, ends_at},
    backlog::{Backlog, Recorded},
    doubt::{Doubt, PASSES},
    holds::Holds,
    log::{Log, Position, Share},
    places::{place_in_window, room_for_most_once},
    settling::{Kept, not_taken, taken},
    slots::{Owed, Slot, Slots},
    spool::{queue_of, record_len},
    spooling::{Spilling, joined, properties_len, record_of, record_slots},
    stamp::Stamper,
    subscriptions::{Found, Identifiers, LinkState, REQUEST_ID_FIRST, Request, Subscriptions},
    turns::Turns,
};
use crate::{
    packet::{Frame, ProtocolVersion, Publish, QoS, VARINT_MAX, next_frame, write_publish},
    route::Ack,
    session::client::{Client, ClientError, Event, PACKET_BYTES_MAX},
    time::Tick,
    topic::TopicFilter,
};

/// A message of the hub, for one session.
pub type Deliver<'d> = dyn FnMut(SessionRef, &Incoming<'_>) -> Taken + 'd;

/// One connection after another to a hub, and what must outlive them. See the module's parent.
pub struct Link {
    pub(super) client: Client,
    pub(super) log: Log,
    pub(super) slots: Slots,
    pub(super) turns: Turns,
    pub(super) subscriptions: Subscriptions,
    /// Messages of the hub that devices are to get.
    pub(super) holds: Holds,
    /// How many of them came, those that came again included.
    pub(super) messages: u64,
    subscribe_qos_max: QoS,
    stamper: Stamper,
    /// The spool's side; none where no message may be acknowledged from the disk.
    pub(super) backlog: Option<Box<Backlog>>,
    pub(super) spilling: Spilling,
    /// Messages in the log that are not permitted yet and expire: where, and when.
    pub(super) ends: VecDeque<(Position, Tick)>,
    pub(super) expired: Expired,
    /// Messages of QoS 1 that are permitted on this connection and not acknowledged.
    pub(super) on_wire: usize,
    pub(super) doubt: Doubt,
    /// Where the log ended, and how many suspects could be tried, when the log was last put in order.
    pub(super) arranged: (Position, usize),
    /// Messages that may be sent; none: as many as the hub takes.
    allowance: Option<usize>,
    /// Nothing more is sent on this connection.
    resting: bool,
    /// No message is sent until it is said otherwise; filters are asked for.
    held: bool,
    /// When the hub last acknowledged something, or first had something to acknowledge.
    progress: Tick,
    wrote: bool,
    pub(super) found: Vec<Found>,
    pub(super) subscription_ids: Vec<u32>,
}

impl Link {
    /// A link that is down.
    pub fn new(config: LinkConfig) -> Self {
        let window = config.window.clamp(1, usize::from(REQUEST_ID_FIRST) - 1);
        Self {
            client: Client::new(config.client),
            log: Log::new(config.log_bytes_max),
            slots: Slots::new(u16::try_from(window).expect("invariant: clamped")),
            turns: Turns::default(),
            subscriptions: Subscriptions::default(),
            holds: Holds::default(),
            messages: 0,
            subscribe_qos_max: config.subscribe_qos_max,
            stamper: Stamper::new(&config.id_prefix),
            spilling: Spilling::new(config.spool.as_ref().and_then(|spool| spool.spill_after)),
            backlog: config.spool.as_ref().map(|spool| Box::new(Backlog::new(spool))),
            ends: VecDeque::new(),
            expired: Expired::default(),
            on_wire: 0,
            doubt: Doubt::default(),
            arranged: Default::default(),
            allowance: None,
            resting: false,
            held: false,
            progress: Tick::default(),
            wrote: false,
            found: vec![],
            subscription_ids: vec![],
        }
    }

    /// Takes a message of a session, or says why not; it is copied once, to where it is sent from. `packet_id` is the
    /// device's, and means nothing at QoS 0.
    #[inline]
    pub fn offer(&mut self, from: SessionRef, packet_id: u16, message: &Outbound<'_>, now: Tick) -> Offer {
        let version = self.client.version();
        if version == ProtocolVersion::V5_0 {
            self.stamper.prepare(message.received_ms);
        }
        let properties = [message.properties, message.stamp, self.stamper.received(), self.stamper.id()];
        let mut publish = Publish {
            dup: false,
            qos: message.qos.min(QoS::AtLeastOnce),
            retain: message.retain && self.client.agreed().retain_available,
            topic: message.topic,
            packet_id: 0,
            properties: &properties,
            payload: message.payload,
        };
        let len = publish.encoded_len(version);
        if len > self.packet_bytes_max() || message.topic.len() > usize::from(u16::MAX) {
            return Offer::TooLarge;
        }
        if let Some(backlog) = &mut self.backlog
            && (!backlog.is_direct() || message.ack == Ack::Disk && publish.qos == QoS::AtLeastOnce)
        {
            let bytes = record_len(message.topic.len(), properties_len(version, &properties), message.payload.len());
            let spooled = match (publish.qos, backlog.is_direct()) {
                (QoS::AtMostOnce, _) if !backlog.admits_most_once(message.device, bytes) => {
                    return Offer::Dropped("spool_full");
                }
                (QoS::AtMostOnce, _) => true,
                (..) if !backlog.admits(from, message.device, bytes) => {
                    self.turns.give_back(from);
                    return Offer::Wait;
                }
                (_, is_direct) => !is_direct,
            };
            if spooled {
                let owed = (publish.qos == QoS::AtLeastOnce).then_some(Owed { session: from, packet_id });
                let text = joined(version, &properties);
                let record = record_of(&publish, &text, message.device, self.spilling.wall_ms(now));
                backlog.record(&Recorded { record, ack: message.ack, owed, offered: now });
                self.stamper.used();
                return Offer::Taken;
            }
        }
        let expires_at = ends_at(version, message.properties, now);
        if publish.qos == QoS::AtMostOnce {
            if let Err(offer) = room_for_most_once(&self.log, &mut self.turns, &self.client, (from, len), now) {
                return offer;
            }
            let at = self.log.append(len, |frames| _ = write_publish(frames, version, &publish));
            self.ends.extend(expires_at.map(|ends| (at, ends)));
        } else {
            let Some(id) = place_in_window(&self.log, &mut self.turns, &mut self.slots, (from, len), now) else {
                return Offer::Wait;
            };
            publish.packet_id = id;
            let at = self.log.append(len, |frames| _ = write_publish(frames, version, &publish));
            self.log.retain(at);
            let (device, ack, owed) = (message.device, message.ack, Some(Owed { session: from, packet_id }));
            let received_ms = self.spilling.wall_ms(now);
            self.ends.extend(expires_at.map(|ends| (at, ends)));
            let (disk, offered, resent) = (None, now, false);
            let mut slot = Slot { owed, ack, device, disk, at, len, offered, received_ms, expires_at, resent };
            if ack == Ack::Disk
                && let Some(backlog) = &mut self.backlog
            {
                // After a crash messages come in the order of their records: what is before it in its queue has one, too.
                if self.slots.any_unrecorded() {
                    let before =
                        self.slots.ids_where(|slot| slot.disk.is_none() && queue_of(slot.device) == queue_of(device));
                    record_slots(before, &self.log, &mut self.slots, backlog, version);
                }
                let text = joined(version, &properties);
                let record = record_of(&publish, &text, device, self.spilling.wall_ms(now));
                let owed = slot.owed.take();
                slot.disk = Some(backlog.record_in_window(&Recorded { record, ack, owed, offered: now }));
            }
            self.slots.fill(id, slot);
        }
        self.stamper.used();
        self.permit(now);
        Offer::Taken
    }

    /// How many messages a session that comes now may offer: none while others wait.
    pub fn room(&self) -> usize {
        if self.turns.is_empty() { self.free_places() } else { 0 }
    }

    /// A session that was told to wait holds `wanted` messages: it is promised so many places when its turn comes.
    pub fn wait_turn(&mut self, who: SessionRef, wanted: u32) {
        self.turns.want(who, wanted as usize);
    }

    /// Promises free places to those who wait, first come, first served, and wakes exactly those. Who is woken offers
    /// what it holds and then gives back what it does not need; who is gone cannot, and is promised nothing.
    pub fn grants(&mut self, wake: &mut impl FnMut(SessionRef) -> Woken) {
        if let Some(backlog) = &mut self.backlog {
            backlog.wake_held(wake);
            if !backlog.is_direct() {
                // Whoever waited for the window is recorded instead.
                while let Some(who) = self.turns.promise(0) {
                    wake(who);
                }
                return;
            }
        }
        while let Some(turn) = self.turns.first() {
            let places = turn.wanted.min(self.free_places());
            let may_go = match turn.share {
                // While the link is down, QoS 0 is woken to be dropped.
                Share::Half => !self.is_up() || self.log.fits(turn.bytes, Share::Half),
                Share::Whole => places > 0 && self.log.fits(turn.bytes, Share::Whole),
            };
            if !may_go {
                return;
            }
            let places = if turn.share == Share::Half { 0 } else { places };
            if let Some(who) = self.turns.promise(places)
                && wake(who) == Woken::Gone
            {
                self.turns.forget(who);
            }
        }
    }

    /// The session has nothing more to offer for now: what was promised to it is others'.
    pub fn give_back(&mut self, who: SessionRef) {
        self.turns.give_back(who);
        if let Some(backlog) = &mut self.backlog {
            backlog.give_back(who);
        }
    }

    /// The session is over: it waits for nothing, and its subscriptions end. Its messages stay.
    pub fn session_gone(&mut self, who: SessionRef, now: Tick) {
        self.gives_up(who);
        self.subscriptions.session_gone(who);
        self.ask(now);
    }

    /// What one session holds on the hub is another's from here on: it goes on where that one ended.
    pub fn hand_over(&mut self, from: SessionRef, to: SessionRef) {
        self.subscriptions.hand_over(from, to);
    }

    /// Who it says it is from the next [`start`](Self::start) on.
    pub fn set_credentials(&mut self, user_name: Option<&str>, password: Option<&[u8]>) {
        self.client.set_credentials(user_name, password);
    }

    /// A new transport is there: CONNECT is in [`unsent`](Self::unsent).
    pub fn start(&mut self, now: Tick) {
        self.on_wire = 0;
        self.resting = false;
        self.client.start(now);
    }

    /// The transport is lost. All that is unacknowledged stays, and so does QoS 0 that was not written to its end: but a
    /// message that the hub closed on, again and again, is given up.
    pub fn down(&mut self, lost: Lost, out: &mut LinkOutput, now: Tick) {
        if lost == Lost::ByHub && self.is_up() {
            self.closed(out, now);
        }
        self.spilling.down();
        self.on_wire = 0;
        self.client.down();
        self.subscriptions.down(out);
        self.holds.down();
    }

    /// Sends nothing more on this connection: another one is to take its place as soon as the hub has acknowledged what it
    /// was sent. Whether it has.
    pub fn rest(&mut self) -> bool {
        self.resting = true;
        self.on_wire == 0 && self.unsent().is_empty()
    }

    /// Sends no message more until [`go_on`](Self::go_on), also on another connection. Filters are asked for meanwhile.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Sends again what waits.
    pub fn go_on(&mut self, now: Tick) {
        if std::mem::take(&mut self.held) {
            self.permit(now);
        }
    }

    /// Whether the hub has answered for every filter that it did not hold when it accepted the connection.
    pub fn has_placed(&self) -> bool {
        self.is_up() && self.subscriptions.missing() == 0
    }

    /// Messages that could be sent and are not allowed yet, about.
    pub fn wants(&self) -> usize {
        let waits = self.is_up() && !self.held && self.log.next_to_permit().is_some();
        if waits { self.slots.len().saturating_sub(self.on_wire).max(1) } else { 0 }
    }

    /// Allows so many messages more. From here on only what is allowed is sent.
    pub fn allow(&mut self, messages: usize, now: Tick) {
        self.allowance = Some(self.allowance.unwrap_or(0) + messages);
        self.permit(now);
    }

    /// Says good-bye to the hub, which keeps the session.
    pub fn disconnect(&mut self) {
        self.client.disconnect();
    }

    /// What is to be written next; more may follow when it is written. Empty: nothing now.
    pub fn unsent(&self) -> &[u8] {
        match self.source() {
            Source::Control => self.client.unsent(),
            Source::RestOfFrame => self.log.rest_of_frame(),
            Source::Log => self.log.unsent(),
        }
    }

    /// `n` bytes of [`unsent`](Self::unsent) were handed to the transport; nothing else was called in between.
    pub fn wrote(&mut self, n: usize) {
        self.wrote |= n > 0;
        match self.source() {
            Source::Control => self.client.wrote(n),
            Source::RestOfFrame | Source::Log => {
                self.client.progress();
                self.log.wrote(n);
            }
        }
    }

    /// Takes bytes of the hub and answers how many; the rest is the beginning of a packet.
    ///
    /// # Errors
    /// [`LinkError`]: the transport must be closed. What `out` holds is true nevertheless.
    pub fn on_bytes(
        &mut self,
        buf: &[u8],
        out: &mut LinkOutput,
        deliver: &mut Deliver<'_>,
        now: Tick,
    ) -> Result<usize, LinkError> {
        self.client.heard();
        let mut used = 0;
        while let Some(rest) = buf.get(used..) {
            // A plain PUBACK: nearly all that a hub sends.
            if let [0x40, 2, high, low, ..] = *rest
                && self.client.is_up()
            {
                self.acknowledged(u16::from_be_bytes([high, low]), 0, out, now)?;
                used += 4;
                continue;
            }
            let Some(frame) = next_frame(rest, PACKET_BYTES_MAX).map_err(ClientError::from)? else { break };
            self.on_frame(frame, out, deliver, now)?;
            used += frame.bytes().len();
        }
        self.feed(out, now);
        self.permit(now);
        self.ask(now);
        Ok(used)
    }

    /// Asks for a filter on behalf of a session.
    pub fn subscribe(&mut self, who: SessionRef, filter: &TopicFilter, wish: Wish, now: Tick) -> Placement {
        let link = if self.is_up() { LinkState::Up } else { LinkState::Down };
        let wish = Wish { qos: wish.qos.min(self.subscribe_qos_max), ..wish };
        let placement = self.subscriptions.subscribe(who, filter, wish, link);
        self.ask(now);
        placement
    }

    /// The session gives a filter back.
    pub fn unsubscribe(&mut self, who: SessionRef, filter: &TopicFilter, now: Tick) {
        self.subscriptions.unsubscribe(who, filter);
        self.ask(now);
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn deadline(&self) -> Option<Tick> {
        let stalled = (self.is_up() && self.awaits_something()).then(|| self.progress.plus(PROGRESS_WITHIN));
        [self.client.deadline(), stalled].into_iter().flatten().min()
    }

    /// Sends a PINGREQ when it is due, and notices a hub that does not answer.
    ///
    /// # Errors
    /// [`LinkError`]: the transport must be closed.
    pub fn tick(&mut self, now: Tick) -> Result<(), LinkError> {
        self.client.tick(now)?;
        let asks = self.subscriptions.tick(now);
        if self.doubt.is_on() || !self.ends.is_empty() {
            self.permit(now);
        }
        if asks || self.doubt.is_on() || !self.ends.is_empty() {
            self.ask(now);
        }
        if self.is_up() && self.awaits_something() && now >= self.progress.plus(PROGRESS_WITHIN) {
            // What is still being written to a slow line cannot be acknowledged yet.
            if !std::mem::take(&mut self.wrote) || self.log.unsent_bytes() == 0 {
                return Err(LinkError::Stalled);
            }
            self.progress = now;
        }
        Ok(())
    }

    /// Whether the hub accepted the connection.
    pub fn is_up(&self) -> bool {
        self.client.is_up()
    }

    /// Whether the hub had kept the session when it last accepted a connection.
    pub fn session_present(&self) -> bool {
        self.client.agreed().session_present
    }

    /// Messages of QoS 1 that the link has and the hub has not acknowledged.
    pub fn inflight(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of messages that are not yet written on this connection.
    pub fn unsent_bytes(&self) -> usize {
        self.log.unsent_bytes()
    }

    /// Memory that retained messages take.
    pub fn log_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// Places that are promised to sessions which were woken.
    pub fn promised(&self) -> usize {
        self.turns.promised()
    }

    fn on_frame(
        &mut self,
        frame: Frame<'_>,
        out: &mut LinkOutput,
        deliver: &mut Deliver<'_>,
        now: Tick,
    ) -> Result<(), LinkError> {
        match self.client.handle(frame, now)? {
            Event::Connected => self.connected(out, now),
            Event::Acknowledged(ack) => self.acknowledged(ack.packet_id, ack.reason, out, now)?,
            Event::Message(publish) => self.message(&publish, out, deliver, now)?,
            Event::Released(packet_id) => self.released(packet_id)?,
            Event::Subscribed(suback) => {
                self.progress = now;
                if !self.subscriptions.subscribed(suback.packet_id, &suback.codes, out, now) {
                    return Err(ClientError::Protocol("a SUBACK that was not asked for").into());
                }
            }
            Event::Unsubscribed(unsuback) => self.subscriptions.unsubscribed(unsuback.packet_id),
            Event::Nothing => {}
        }
        Ok(())
    }

    /// Puts what an earlier connection left behind at the head of this one, in order.
    fn connected(&mut self, out: &mut LinkOutput, now: Tick) {
        let agreed = self.client.agreed();
        let (resumed, packet_bytes_max) = (agreed.session_present, self.packet_bytes_max());
        let flags_kept = if agreed.retain_available { !DUP } else { !(DUP | RETAIN) };
        self.spilling.up();
        let Self { slots, backlog, log, client, doubt, ends, expired, .. } = self;
        let version = client.version();
        let mut of_most_once: HashMap<Position, Tick> = ends.drain(..).collect();
        log.rebuild(if doubt.is_on() { PASSES } else { 1 }, |pass, old| {
            let Some(id) = old.frame.packet_id() else {
                let kept = if doubt.is_on() { pass == PASSES - 1 && !old.begun } else { !old.finished };
                out.cut += u64::from(doubt.is_on() && pass == 0 && old.begun && !old.finished);
                if !kept || old.frame.len() > packet_bytes_max {
                    return None;
                }
                ends.extend(of_most_once.remove(&old.was).map(|at| (old.becomes, at)));
                return Some(old.frame.first_byte() & flags_kept);
            };
            let slot = slots.get_mut(id).filter(|slot| slot.at == old.was && doubt.pass(slot.device, now) == pass)?;
            // MQTT 5.0 [MQTT-3.1.2-24]: the hub may take less than the last one did.
            if old.frame.len() > packet_bytes_max {
                let slot = slots.free(id)?;
                let kept = Kept { frame: old.frame, version, received_ms: slot.received_ms };
                not_taken(&slot, Refusal::TooLarge, kept, backlog, out, now);
                return None;
            }
            if !old.begun && !slot.resent && slot.expires_at.is_some_and(|at| at <= now) {
                let slot = slots.free(id)?;
                expired.add(&slot, backlog);
                return None;
            }
            slot.at = old.becomes;
            slot.resent |= old.begun;
            ends.extend(slot.expires_at.map(|at| (old.becomes, at)));
            // MQTT 5.0 [MQTT-3.3.1-1]: DUP where the hub may know the message under this packet id.
            let dup = if slot.resent && resumed { DUP } else { 0 };
            Some(old.frame.first_byte() & flags_kept | dup)
        });
        ends.make_contiguous().sort_unstable();
        if !resumed {
            self.subscriptions.hub_forgot();
            self.holds.hub_forgot();
        }
        self.on_wire = 0;
        self.progress = now;
        self.arranged = (self.log.end(), self.doubt.due(now));
    }

    #[inline]
    fn acknowledged(&mut self, id: u16, reason: u8, out: &mut LinkOutput, now: Tick) -> Result<(), LinkError> {
        let sent = self.slots.get(id).filter(|slot| self.log.was_sent(slot.at, slot.len));
        if let Some(slot) = sent
            && reason == QUOTA_EXCEEDED
            && self.doubt.too_much(id, slot.device, self.on_wire, now)
        {
            return Err(LinkError::TooMuch);
        }
        let Some(slot) = sent.is_some().then(|| self.slots.free(id)).flatten() else {
            // A hub that resumed the session may still have answers to what an earlier connection carried. They settle
            // nothing: the message is sent again, and answered again.
            return match self.session_present() {
                true => Ok(()),
                false => Err(ClientError::Protocol("a PUBACK for what was not sent").into()),
            };
        };
        if !slot.resent {
            self.spilling.measure(now.since(slot.offered));
        }
        // MQTT 5.0 §3.4.2.1: from 0x80 on it is a refusal; 0x10, no matching subscribers, is none.
        if reason < 0x80 {
            taken(&slot, &mut self.backlog, out, now);
        } else {
            self.give_up(&slot, Refusal::Code(reason), out, now);
        }
        self.doubt.answered(id);
        self.log.release(slot.at);
        self.on_wire -= 1;
        self.progress = now;
        Ok(())
    }

    /// Lets as much of the log go as the hub's Receive Maximum allows, resent or new [MQTT-3.3.4-7].
    #[inline]
    pub(super) fn permit(&mut self, now: Tick) {
        if !self.is_up() || self.resting || self.held {
            return;
        }
        let on_wire_max = usize::from(self.client.agreed().receive_maximum);
        while self.on_wire < on_wire_max {
            if self.ends.front().is_some_and(|(at, _)| *at == self.log.permitted()) {
                match self.age_next(now) {
                    Next::Goes => {}
                    Next::IsOver => continue,
                    Next::Waits => return,
                }
            }
            if self.allowance == Some(0) || self.doubt.is_on() && !self.is_next_sent(now) {
                return;
            }
            let Some(frame) = self.log.permit() else { return };
            self.allowance = self.allowance.map(|left| left - 1);
            if frame.packet_id().is_some() {
                if !self.awaits_something() {
                    self.progress = now;
                }
                self.on_wire += 1;
            }
        }
    }

    /// Asks the hub for filters that are wanted, and gives back those that are not.
    pub(super) fn ask(&mut self, now: Tick) {
        let named = self.client.version() == ProtocolVersion::V5_0 && self.client.agreed().subscription_id_available;
        let identifiers = if named { Identifiers::Named } else { Identifiers::None };
        while self.is_up()
            && self.doubt.allows_requests(self.on_wire)
            && let idle = !self.awaits_something()
            && let Some((id, request)) = self.subscriptions.next_request(identifiers)
        {
            match request {
                Request::Subscribe(named, filters) => {
                    self.client.subscribe(id, named.map(|named| (named.id, named.options)), filters);
                }
                Request::Unsubscribe(filters) => self.client.unsubscribe(id, &filters),
            }
            if idle {
                self.progress = now;
            }
        }
    }

    fn awaits_something(&self) -> bool {
        self.on_wire > 0 || self.subscriptions.unanswered() > 0
    }

    fn free_places(&self) -> usize {
        self.slots.places().saturating_sub(self.turns.promised())
    }

    pub(super) fn packet_bytes_max(&self) -> usize {
        let hub = self.client.agreed().maximum_packet_size.unwrap_or(u32::MAX) as usize;
        hub.min(VARINT_MAX as usize)
    }

    fn source(&self) -> Source {
        match (self.client.unsent().is_empty(), self.is_up()) {
            (true, true) => Source::Log,
            (false, true) if !self.log.at_boundary() => Source::RestOfFrame,
            _ => Source::Control,
        }
    }
}

/// Where the next byte comes from. Control packets go first, but never into the middle of a message.
enum Source {
    Control,
    RestOfFrame,
    Log,
}

/// With something to acknowledge, a hub that acknowledges nothing for so long is as good as gone.
pub(super) const PROGRESS_WITHIN: Duration = Duration::from_secs(20);

/// MQTT 5.0 §3.3.1.
const DUP: u8 = 0x08;
const RETAIN: u8 = 0x01;

/// Reason code of MQTT 5.0 §2.4.
const QUOTA_EXCEEDED: u8 = 0x97;
