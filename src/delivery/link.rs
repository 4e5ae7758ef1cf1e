//! One pool member: the log, what is in flight, who waits, and the MQTT session towards the hub.

use std::time::Duration;

use super::{
    Incoming, LinkConfig, LinkError, LinkOutput, Offer, Outbound, Placement, SessionRef, Taken, Wish,
    backlog::{Backlog, Recorded},
    holds::Holds,
    log::{Log, PublishFrame, Share},
    slots::{Owed, Slot, Slots},
    spool::record_len,
    spooling::{Spilling, joined, properties_len, read_back, record_again, record_of},
    stamp::Stamper,
    subscriptions::{Identifiers, LinkState, REQUEST_ID_FIRST, Request, Subscriptions},
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
    stamper: Stamper,
    /// The spool's side; none where no message may be acknowledged from the disk.
    pub(super) backlog: Option<Box<Backlog>>,
    pub(super) spilling: Spilling,
    /// Messages of QoS 1 that are permitted on this connection and not acknowledged.
    on_wire: usize,
    /// When the hub last acknowledged something, or first had something to acknowledge.
    progress: Tick,
    wrote: bool,
    pub(super) found: Vec<(SessionRef, QoS)>,
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
            stamper: Stamper::new(&config.id_prefix),
            spilling: Spilling::new(config.spool.as_ref().and_then(|spool| spool.spill_after)),
            backlog: config.spool.as_ref().map(|spool| Box::new(Backlog::new(spool))),
            on_wire: 0,
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
        if publish.qos == QoS::AtMostOnce {
            if let Err(offer) = room_for_most_once(&self.log, &mut self.turns, &self.client, (from, len), now) {
                return offer;
            }
            self.log.append(len, |frames| _ = write_publish(frames, version, &publish));
        } else {
            let Some(id) = place_in_window(&self.log, &mut self.turns, &mut self.slots, (from, len), now) else {
                return Offer::Wait;
            };
            publish.packet_id = id;
            let at = self.log.append(len, |frames| _ = write_publish(frames, version, &publish));
            self.log.retain(at);
            let (device, ack, owed) = (message.device, message.ack, Some(Owed { session: from, packet_id }));
            let mut slot = Slot { owed, ack, device, disk: None, at, len, offered: now, resent: false };
            if ack == Ack::Disk
                && let Some(backlog) = &mut self.backlog
            {
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
    /// what it holds and then gives back what it does not need.
    pub fn grants(&mut self, wake: &mut impl FnMut(SessionRef)) {
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
            if let Some(who) = self.turns.promise(places) {
                wake(who);
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
    pub fn set_credentials(&mut self, user_name: &str, password: &[u8]) {
        self.client.set_credentials(user_name, password);
    }

    /// A new transport is there: CONNECT is in [`unsent`](Self::unsent).
    pub fn start(&mut self, now: Tick) {
        self.on_wire = 0;
        self.client.start(now);
    }

    /// The transport is lost. All that is unacknowledged stays, and so does QoS 0 that was not written to its end.
    pub fn down(&mut self, out: &mut LinkOutput) {
        self.spilling.down();
        self.on_wire = 0;
        self.client.down();
        self.subscriptions.down(out);
        self.holds.down();
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
        self.feed(now);
        self.permit(now);
        self.ask(now);
        Ok(used)
    }

    /// Asks for a filter on behalf of a session.
    pub fn subscribe(&mut self, who: SessionRef, filter: &TopicFilter, wish: Wish, now: Tick) -> Placement {
        let link = if self.is_up() { LinkState::Up } else { LinkState::Down };
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
        let Self { slots, backlog, log, client, spilling, .. } = self;
        let version = client.version();
        log.rebuild(|old| {
            let Some(id) = old.frame.packet_id() else {
                return (!old.finished && old.frame.len() <= packet_bytes_max)
                    .then_some(old.frame.first_byte() & flags_kept);
            };
            let slot = slots.get_mut(id).filter(|slot| slot.at == old.was)?;
            // MQTT 5.0 [MQTT-3.1.2-24]: the hub may take less than the last one did.
            if old.frame.len() > packet_bytes_max {
                let slot = slots.free(id)?;
                let frame = (old.frame, version, spilling.wall_ms(slot.offered));
                answered(&slot, PACKET_TOO_LARGE, frame, backlog, out, now);
                return None;
            }
            slot.at = old.becomes;
            slot.resent |= old.begun;
            // MQTT 5.0 [MQTT-3.3.1-1]: DUP where the hub may know the message under this packet id.
            let dup = if slot.resent && resumed { DUP } else { 0 };
            Some(old.frame.first_byte() & flags_kept | dup)
        });
        if !resumed {
            self.subscriptions.hub_forgot();
            self.holds.hub_forgot();
        }
        self.on_wire = 0;
        self.progress = now;
    }

    #[inline]
    fn acknowledged(&mut self, id: u16, reason: u8, out: &mut LinkOutput, now: Tick) -> Result<(), LinkError> {
        let sent = self.slots.get(id).is_some_and(|slot| self.log.was_sent(slot.at, slot.len));
        let Some(slot) = sent.then(|| self.slots.free(id)).flatten() else {
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
        if slot.disk.is_none() {
            out.forwarded += u64::from(reason < 0x80);
            if let Some(owed) = slot.owed {
                out.settled.push(owed.settled(outcome(reason), slot.offered, now));
            }
        } else {
            let received_ms = self.spilling.wall_ms(slot.offered);
            let frame = (self.log.frame_at(slot.at), self.client.version(), received_ms);
            answered(&slot, reason, frame, &mut self.backlog, out, now);
        }
        self.log.release(slot.at);
        self.on_wire -= 1;
        self.progress = now;
        Ok(())
    }

    /// Lets as much of the log go as the hub's Receive Maximum allows, resent or new [MQTT-3.3.4-7].
    #[inline]
    pub(super) fn permit(&mut self, now: Tick) {
        if !self.is_up() {
            return;
        }
        // A cap of one message, to find the one that a hub closes on, belongs here.
        let on_wire_max = usize::from(self.client.agreed().receive_maximum);
        while self.on_wire < on_wire_max {
            let Some(frame) = self.log.permit() else { return };
            if frame.packet_id().is_some() {
                if !self.awaits_something() {
                    self.progress = now;
                }
                self.on_wire += 1;
            }
        }
    }

    /// Asks the hub for filters that are wanted, and gives back those that are not.
    fn ask(&mut self, now: Tick) {
        let named = self.client.version() == ProtocolVersion::V5_0 && self.client.agreed().subscription_id_available;
        let identifiers = if named { Identifiers::Named } else { Identifiers::None };
        while self.is_up()
            && let idle = !self.awaits_something()
            && let Some((id, request)) = self.subscriptions.next_request(identifiers)
        {
            match request {
                Request::Subscribe(name, filters) => self.client.subscribe(id, name, filters),
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

/// A packet id for a message of QoS 1, if there is a place for it: promised to the session, or free while nobody waits.
#[inline]
fn place_in_window(
    log: &Log,
    turns: &mut Turns,
    slots: &mut Slots,
    (from, len): (SessionRef, usize),
    now: Tick,
) -> Option<u16> {
    let promised = turns.promised_to(from) > 0 && slots.places() > 0;
    let free = turns.is_empty() && slots.places() > turns.promised();
    if !(promised || free) || !log.fits(len, Share::Whole) {
        turns.enqueue(from, len, Share::Whole, now);
        return None;
    }
    if promised {
        turns.redeem(from);
    }
    slots.take_id()
}

/// QoS 0 needs no place in the window, but room in the log, and never passes an earlier message of its session.
fn room_for_most_once(
    log: &Log,
    turns: &mut Turns,
    client: &Client,
    (from, len): (SessionRef, usize),
    now: Tick,
) -> Result<(), Offer> {
    let fits = log.fits(len, Share::Half);
    if fits && !turns.is_queued(from) {
        return Ok(());
    }
    if !fits && !client.is_up() {
        return Err(Offer::Dropped("hub_away"));
    }
    turns.enqueue(from, len, Share::Half, now);
    Err(Offer::Wait)
}

/// The hub answered for a message, or cannot be sent it: whoever waits is told, and its record is done with.
fn answered(
    slot: &Slot,
    reason: u8,
    (frame, version, received_ms): (PublishFrame<'_>, ProtocolVersion, u64),
    backlog: &mut Option<Box<Backlog>>,
    out: &mut LinkOutput,
    now: Tick,
) {
    out.forwarded += u64::from(reason < 0x80);
    let owed = match (slot.disk, backlog) {
        (Some(disk), Some(backlog)) if reason < 0x80 => backlog.taken_by_hub(disk, slot.device),
        (Some(disk), Some(backlog)) => {
            let publish = read_back(frame, version);
            backlog.refused_by_hub(disk, &record_again(&publish, slot.device, received_ms))
        }
        _ => slot.owed,
    };
    if let Some(owed) = owed {
        out.settled.push(owed.settled(outcome(reason), slot.offered, now));
    }
}

/// MQTT 5.0 §3.4.2.1: from 0x80 on it is a refusal; 0x10, no matching subscribers, is none.
fn outcome(reason: u8) -> Result<(), u8> {
    if reason < 0x80 { Ok(()) } else { Err(reason) }
}

/// With something to acknowledge, a hub that acknowledges nothing for so long is as good as gone.
pub(super) const PROGRESS_WITHIN: Duration = Duration::from_secs(20);

/// MQTT 5.0 §3.3.1.
const DUP: u8 = 0x08;
const RETAIN: u8 = 0x01;

/// Reason code of MQTT 5.0 §2.4.
const PACKET_TOO_LARGE: u8 = 0x95;
