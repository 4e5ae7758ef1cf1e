//! One member of a pool: from the log to the hub, and from the hub's acknowledgement to the device's PUBACK. Walk 3 of
//! ARCHITECTURE.md.
//! (Over 600 lines: the walk is to be read in one place.)

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

use super::{
    Shard, Upstream,
    ended::Ended,
    kept,
    moved::{self, Fetching, Source},
    mustering::Mustering,
    queues_of,
    renewing::Renewing,
    sessions::SessionCell,
    spooling,
    status::{self, MemberStatus},
    subscribe, wills,
};
use crate::{
    delivery::{
        Incoming, Link, LinkConfig, LinkError, LinkOutput, Lost, Offer, Outbound, Refusal, SessionRef, Settled, Ticket,
        Woken, spool::LinkAddress,
    },
    denial::Denial,
    meter, pools,
    route::Ack,
    time::{Tick, UnixSeconds},
    upstream::{
        Backoff, EmbeddedHub, HubAddress, HubEndpoint, HubLogin, HubStream, Muster, NatsHub, Pace, RumqttcHub, dial,
    },
};

/// One connection of a pool, and the link that outlives it.
pub(super) struct Member {
    upstream: usize,
    pub(super) address: LinkAddress,
    /// Among all members of the pool.
    pub(super) number: usize,
    name: String,
    pub(super) place: HubPlace,
    pace: Option<Arc<Pace>>,
    pub(super) renewing: Renewing,
    mustering: Mustering,
    pub(super) fetching: Fetching,
    pub(super) link: RefCell<Link>,
    pub(super) output: RefCell<LinkOutput>,
    waker: RefCell<Option<Waker>>,
    /// What the clock found wrong with the connection.
    failed: Cell<Option<LinkError>>,
    /// The hub has acknowledged something on this connection: the next attempt is a first one.
    progressed: Cell<bool>,
    /// The gateway ends: the hub is told, and not connected to again.
    leaving: Cell<bool>,
    status: Arc<MemberStatus>,
    /// What was said of it in the log since it was last connected.
    said: RefCell<Option<String>>,
    was_up: Cell<bool>,
    /// Messages that the hub acknowledged, when they were last counted and how many there were then.
    forwarded: Cell<u64>,
    counted: Cell<(Tick, u64)>,
}

/// Where a hub is.
#[derive(Clone, Debug)]
pub enum HubPlace {
    /// Always there, and who the pool is there.
    At(HubAddress, HubLogin),
    /// The same by way of rumqttc.
    Rumqttc(RumqttcHub, HubLogin),
    /// In this process, elsewhere after each of its starts, and who of the pool has its filters there.
    Embedded(watch::Receiver<HubEndpoint>, Arc<Muster>),
    /// NATS.
    Nats(NatsHub),
}

/// The members of one hub that belong to one shard, each with what it has to fetch.
pub(super) fn members(
    index: usize,
    upstream: &Upstream,
    (shard, shards): (usize, usize),
    sources: &mut Vec<Source>,
) -> Vec<Rc<Member>> {
    (0..upstream.members_a_shard)
        .map(|i| {
            let number = shard * upstream.members_a_shard + i;
            let mut config = upstream.link.clone();
            config.client.client_id = pools::client_id_of(&config.client.client_id, number);
            config.id_prefix = format!("{}-{number}", config.id_prefix);
            let queues: Vec<u16> = queues_of(shard, i, shards, upstream.members_a_shard).collect();
            config.spool = upstream.backlog.as_ref().map(|backlog| backlog.of_queues(&queues));
            let of_this = sources.iter().position(|source| source.upstream == index && source.member == Some(i));
            let source = of_this.map(|place| sources.swap_remove(place));
            let address = LinkAddress { shard, upstream: index, member: i };
            Rc::new(Member::new(upstream, address, number, config, upstream.status[number].clone(), source))
        })
        .collect()
}

/// Members that pools no longer have, for what hubs keep for them.
pub(super) fn retiring(upstreams: &[Upstream], shard: usize, sources: Vec<Source>) -> Vec<Rc<Member>> {
    let retiring = sources.into_iter().enumerate().filter_map(|(place, source)| {
        let upstream = upstreams.get(source.upstream)?;
        let mut config = upstream.link.clone();
        config.client.client_id.clone_from(&source.client_id);
        let address = LinkAddress { shard, upstream: source.upstream, member: upstream.members_a_shard + place };
        Some(Rc::new(Member::new(upstream, address, NO_NUMBER, config, Arc::default(), Some(source))))
    });
    retiring.collect()
}

impl Member {
    fn new(
        upstream: &Upstream,
        address: LinkAddress,
        number: usize,
        config: LinkConfig,
        status: Arc<MemberStatus>,
        source: Option<Source>,
    ) -> Self {
        let mut link = Link::new(config);
        if upstream.pace.is_some() {
            link.allow(0, Tick::default());
        }
        Self {
            upstream: address.upstream,
            address,
            number,
            name: upstream.name.clone(),
            place: upstream.place.clone(),
            pace: upstream.pace.clone(),
            renewing: Renewing::new(upstream.renewal.clone()),
            mustering: Mustering::new(match &upstream.place {
                HubPlace::Embedded(_, muster) => Some((muster.clone(), number)),
                _ => None,
            }),
            fetching: Fetching::of(source, &mut link),
            link: RefCell::new(link),
            output: RefCell::default(),
            waker: RefCell::default(),
            failed: Cell::new(None),
            progressed: Cell::new(false),
            leaving: Cell::new(false),
            status,
            said: RefCell::default(),
            was_up: Cell::new(false),
            forwarded: Cell::new(0),
            counted: Cell::default(),
        }
    }

    /// The name of its hub.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the hub may be sent a message on `topic`, or asked for a filter that begins so.
    #[inline]
    pub(super) fn takes(&self, topic: &str) -> bool {
        !matches!(self.place, HubPlace::Embedded(..)) || EmbeddedHub::takes(topic)
    }

    /// Takes a message, or has the session wait for its turn.
    #[inline]
    pub(super) fn offer(
        &self,
        spooling: &spooling::Hint,
        from: SessionRef,
        packet_id: u16,
        message: &Outbound<'_>,
        now: Tick,
    ) -> Offer {
        let mut link = self.link.borrow_mut();
        let idle = link.unsent().is_empty();
        let offer = link.offer(from, packet_id, message, now);
        match offer {
            // The writer runs after all sessions that are ready: what they offer leaves in one write.
            Offer::Taken if idle => self.wake(),
            Offer::Wait => link.wait_turn(from, if wills::is_one(from) { 1 } else { PLACES_A_TURN }),
            _ => {}
        }
        if message.ack == Ack::Disk || link.is_spooling() {
            spooling.work();
        }
        offer
    }

    pub(super) fn give_back(&self, who: SessionRef) {
        let mut link = self.link.borrow_mut();
        let before = link.promised();
        link.give_back(who);
        if link.promised() != before {
            self.wake();
        }
    }

    /// The session offers nothing more: it stands in nobody's way.
    pub(super) fn gives_up(&self, who: SessionRef) {
        self.link.borrow_mut().gives_up(who);
        self.wake();
    }

    pub(super) fn session_gone(&self, who: SessionRef, now: Tick) {
        self.wake();
        self.link.borrow_mut().session_gone(who, now);
    }

    /// A session is done with a message of the hub.
    pub(super) fn release(&self, ticket: Ticket) {
        if let Err(error) = self.link.borrow_mut().release(ticket) {
            self.failed.set(Some(error));
        }
        self.wake();
    }

    /// Says good-bye to the hub, which keeps the session for the next start.
    pub(super) fn leave(&self) {
        self.leaving.set(true);
        self.link.borrow_mut().disconnect();
        self.wake();
    }

    /// The next connection is for the hub to forget that there was one.
    pub(super) fn begins_anew(&self) {
        self.leaving.set(false);
        self.link.borrow_mut().begin_anew();
    }

    /// Whether it is connected to a hub that another has taken the place of.
    fn is_left_behind(&self) -> bool {
        matches!(&self.place, HubPlace::Embedded(endpoint, _) if self.mustering.compare(endpoint.borrow().start))
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// Keeps the member connected for as long as the shard lives.
pub(super) async fn run(shard: Rc<Shard>, member: Rc<Member>) {
    let mut backoff = Backoff::default();
    let mut dialled: Option<HubStream> = None;
    loop {
        let began = Instant::now();
        let connected = match dialled.take() {
            Some(stream) => Ok(stream),
            None => dial_hub(&member).await,
        };
        let (mut ended, explanation) = match connected {
            Ok(stream) => carry(&shard, &member, stream).await,
            Err(error) => (Ended::Dial(error), None),
        };
        if let Ended::Renewed(stream) = &mut ended {
            dialled = stream.take();
        } else {
            member.renewing.ends();
        }
        if member.status.connected.swap(false, Relaxed) {
            member.count_connected(-1.0);
            if (member.progressed.take() || began.elapsed() > STOOD_LONG) && !ended.asks_for_less() {
                backoff.reset();
            }
        }
        if member.leaving.get() {
            return;
        }
        if dialled.is_some() {
            continue;
        }
        note(&member, &ended, explanation, shard.site.clock.now());
        tokio::time::sleep(backoff.next_delay(random())).await;
    }
}

pub(super) async fn dial_hub(member: &Member) -> io::Result<HubStream> {
    match &member.place {
        HubPlace::At(address, _) => dial(address).await,
        HubPlace::Rumqttc(hub, _) => Ok(hub.dial()),
        HubPlace::Nats(hub) => hub.dial().await,
        HubPlace::Embedded(endpoint, _) => {
            let address = endpoint.borrow().address;
            dial(&HubAddress::plain(address.ip().to_string(), address.port())).await
        }
    }
}

/// Says who the pool is on the connection that begins.
fn introduce(shard: &Shard, member: &Member, now: Tick) {
    let mut link = member.link.borrow_mut();
    match &member.place {
        HubPlace::At(_, login) | HubPlace::Rumqttc(_, login) => {
            let said = login.credentials(shard.site.clock.now());
            link.set_credentials(said.user_name.as_deref(), said.password.as_deref().map(String::as_bytes));
            member.renewing.begins(said.renew_after, random(), now);
        }
        HubPlace::Embedded(endpoint, _) => {
            let endpoint = endpoint.borrow();
            member.mustering.begins(endpoint.start, &mut link);
            link.set_credentials(Some(&endpoint.user_name), Some(endpoint.password.as_bytes()));
        }
        // It was introduced when it was dialled.
        HubPlace::Nats(_) => {}
    }
}

/// What the clock has to do for a member: pings, watchdogs, turns, and what others see of it.
pub(super) fn tick(shard: &Shard, member: &Member, now: Tick) {
    if let Some(spool) = &shard.site.spool {
        let (mut link, mut output) = (member.link.borrow_mut(), member.output.borrow_mut());
        link.spool_tick(shard.site.clock.now_ms(), spool.free(), &mut output, now);
        shard.spooling.work();
    }
    settle(shard, member);
    let mut link = member.link.borrow_mut();
    if let Err(error) = link.tick(now) {
        member.failed.set(Some(error));
    }
    let expired = link.take_expired(&mut member.output.borrow_mut(), now);
    if expired > 0 {
        shard.meter.dropped("expired", expired);
    }
    member.mustering.look(&member.name, &mut link, now);
    allow(member, &mut link, now);
    let due = member.renewing.is_due(now) || member.leaving.get() || member.is_left_behind();
    if member.failed.get().is_some() || !link.unsent().is_empty() || due {
        member.wake();
    }
    for why in link.take_set_aside() {
        set_aside(member, why);
    }
    grant(shard, member, &mut link, now);
    let (since, before) = member.counted.get();
    let elapsed_ms = now.since(since).as_millis() as u64;
    if elapsed_ms >= 1_000 {
        let rate = (member.forwarded.get() - before) * 1_000 / elapsed_ms;
        member.status.rate.store(usize::try_from(rate).unwrap_or(usize::MAX), Relaxed);
        member.counted.set((now, member.forwarded.get()));
    }
    member.status.inflight.store(link.inflight(), Relaxed);
    member.status.owed.store(link.owed(), Relaxed);
    member.status.spooling.store(link.is_spooling(), Relaxed);
    member.status.holds_back.store(link.spool_holds_back(), Relaxed);
    member.status.spooled.store(usize::try_from(link.spooled()).unwrap_or(usize::MAX), Relaxed);
    member.status.backlog_bytes.store(link.unsent_bytes(), Relaxed);
    drop(link);
    if expired > 0 {
        settle(shard, member);
    }
    moved::look(shard, member, now);
}

#[cold]
fn set_aside(member: &Member, why: Refusal) {
    let (upstream, reason) = (member.name.clone(), why.tag());
    tracing::warn!(upstream, reason, "a message is set aside: {why}; see `tollgate spool aside`");
    metrics::counter!(meter::SET_ASIDE, "upstream" => upstream, "reason" => reason).increment(1);
}

fn note(member: &Member, ended: &Ended, explanation: Option<String>, now: UnixSeconds) {
    let upstream = member.name.clone();
    metrics::counter!(meter::UPSTREAM_ERRORS, "upstream" => upstream, "kind" => ended.kind()).increment(1);
    let text = explanation.unwrap_or_else(|| ended.to_string());
    let entry = format!("{now} {text}");
    // It is kept, with its time, also when the hub is there again: whoever looks later wants to know.
    *member.status.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
    let old = member.said.replace(Some(text.clone()));
    // A hub that stays away says the same again and again: once is enough. The one in this process opens its listener
    // on a thread of its own, a moment after the pool asks for it.
    let opening = old.is_none() && matches!((&member.place, ended), (HubPlace::Embedded(..), Ended::Dial(_)));
    if !opening && old.is_none_or(|old| old != text) {
        tracing::warn!(upstream = member.name, error = text, "hub connection ended");
    } else {
        tracing::debug!(upstream = member.name, error = text, "hub connection ended");
    }
}

/// One connection, from CONNECT to its end, and what is known of that. What the link holds stays in the link.
async fn carry(shard: &Rc<Shard>, member: &Rc<Member>, mut stream: HubStream) -> (Ended, Option<String>) {
    let now = shard.site.now();
    member.failed.set(None);
    introduce(shard, member, now);
    member.link.borrow_mut().start(now);
    let mut partial = Vec::new();
    let mut written = Written::Well;
    let ended = std::future::poll_fn(|cx| {
        member.polled_by(cx);
        let polled = drive(shard, member, Pin::new(&mut stream), &mut partial, &mut written, cx);
        let polled = match polled {
            Poll::Pending => {
                let renewed = member.renewing.poll(member, shard.site.now(), cx);
                renewed.map(|next| Ended::Renewed(Some(next)))
            }
            ready => ready,
        };
        settle(shard, member);
        if let Some(tally) = stream.tally() {
            status::count(shard, &member.name, tally);
        }
        polled
    })
    .await;
    let now = shard.site.now();
    let lost = if stream.was_given_up() { Lost::Otherwise } else { ended.lost() };
    member.mustering.ends();
    member.link.borrow_mut().down(lost, &mut member.output.borrow_mut(), now);
    settle(shard, member);
    (ended, stream.explanation())
}

impl Member {
    /// One that the pool no longer has is none of its connections.
    fn count_connected(&self, change: f64) {
        if !self.fetching.is_retiring() {
            metrics::gauge!(meter::UPSTREAM_CONNECTED, "upstream" => self.name.clone()).increment(change);
        }
    }

    pub(super) fn renewal_failed(&self, error: &io::Error) {
        tracing::warn!(upstream = self.name, %error, "no new connection for newer credentials: the old one goes on");
    }

    fn polled_by(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}

/// Whether the connection still takes bytes.
enum Written {
    Well,
    /// It does not, since then. Acknowledgements that arrived before it broke count: it is read to its end.
    Broken(io::Error, Tick),
    /// All was said, and whoever passes it on to the hub is waited for, since then.
    Left(Tick),
}

fn drive(
    shard: &Rc<Shard>,
    member: &Member,
    mut stream: Pin<&mut HubStream>,
    partial: &mut Vec<u8>,
    written: &mut Written,
    cx: &mut Context<'_>,
) -> Poll<Ended> {
    let now = shard.site.now();
    if let Some(error) = member.failed.take() {
        return Poll::Ready(Ended::Link(error));
    }
    for reads in 1.. {
        match read(shard, member, stream.as_mut(), partial, now, cx) {
            Poll::Ready(Ok(())) => settle(shard, member),
            // Whoever passed it on has done so.
            Poll::Ready(Err(_)) if matches!(written, Written::Left(_)) => return Poll::Ready(Ended::Left),
            Poll::Ready(Err(ended)) => return Poll::Ready(ended),
            Poll::Pending => break,
        }
        if reads == READS_A_POLL {
            // Devices take what came for them before more is read.
            cx.waker().wake_by_ref();
            break;
        }
    }
    if member.mustering.is_left_behind() {
        return Poll::Ready(Ended::LeftBehind);
    }
    member.mustering.look(&member.name, &mut member.link.borrow_mut(), now);
    allow(member, &mut member.link.borrow_mut(), now);
    if let Written::Well = written
        && let Err(error) = write(member, stream.as_mut(), cx)
    {
        *written = Written::Broken(error, now);
    }
    if let Written::Broken(error, since) = written
        && now.since(*since) > READ_TO_THE_END_WITHIN
    {
        return Poll::Ready(Ended::Socket(std::mem::replace(error, io::ErrorKind::BrokenPipe.into())));
    }
    if member.leaving.get() && member.link.borrow().unsent().is_empty() {
        return leave(stream, written, now, cx);
    }
    grant(shard, member, &mut member.link.borrow_mut(), now);
    wills::send_woken(shard);
    Poll::Pending
}

/// What is written to a socket is on its way; an interpreter has yet to pass it on.
fn leave(stream: Pin<&mut HubStream>, written: &mut Written, now: Tick, cx: &mut Context<'_>) -> Poll<Ended> {
    if stream.tally().is_none() || matches!(written, Written::Left(since) if now.since(*since) > READ_TO_THE_END_WITHIN)
    {
        return Poll::Ready(Ended::Left);
    }
    if let Written::Well = written {
        *written = Written::Left(now);
        _ = stream.poll_shutdown(cx);
    }
    Poll::Pending
}

/// At the hub's pace, where it has one.
fn allow(member: &Member, link: &mut Link, now: Tick) {
    let Some(pace) = &member.pace else { return };
    let allowed = match link.wants() {
        0 => 0,
        wanted => pace.take(wanted, now),
    };
    if allowed > 0 {
        link.allow(allowed, now);
    }
}

/// Reads once and lets the link take what came.
fn read(
    shard: &Rc<Shard>,
    member: &Member,
    stream: Pin<&mut HubStream>,
    partial: &mut Vec<u8>,
    now: Tick,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Ended>> {
    let mut scratch = shard.scratch.borrow_mut();
    let have = partial.len();
    let large = have * 2 > scratch.len();
    let buffer: &mut [u8] = if large {
        partial.resize(have + LARGE_READ_BYTES, 0);
        partial
    } else {
        scratch[..have].copy_from_slice(partial);
        &mut scratch
    };
    let mut into = ReadBuf::new(&mut buffer[have..]);
    let polled = stream.poll_read(cx, &mut into);
    let filled = have + into.filled().len();
    let outcome = match polled {
        Poll::Ready(Ok(())) if filled > have => on_bytes(shard, member, &buffer[..filled], now),
        Poll::Ready(Ok(())) => Err(Ended::Socket(io::ErrorKind::UnexpectedEof.into())),
        Poll::Ready(Err(error)) => Err(Ended::Socket(error)),
        Poll::Pending => {
            partial.truncate(have);
            return Poll::Pending;
        }
    };
    match outcome {
        Ok(used) if large => {
            partial.truncate(filled);
            partial.drain(..used);
            if partial.is_empty() {
                *partial = Vec::new();
            }
        }
        Ok(used) => {
            partial.clear();
            partial.extend_from_slice(&scratch[used..filled]);
        }
        Err(ended) => return Poll::Ready(Err(ended)),
    }
    Poll::Ready(Ok(()))
}

fn on_bytes(shard: &Rc<Shard>, member: &Member, bytes: &[u8], now: Tick) -> Result<usize, Ended> {
    let mut link = member.link.borrow_mut();
    let mut output = member.output.borrow_mut();
    let upstream = member.upstream;
    let mut deliver = |who, incoming: &Incoming<'_>| match moved::is_one(who) {
        false => subscribe::deliver(shard, upstream, who, incoming),
        true => moved::pass(shard, member, who, incoming),
    };
    let used = link.on_bytes(bytes, &mut output, &mut deliver, now).map_err(Ended::Link)?;
    if link.is_up() && !member.status.connected.swap(true, Relaxed) {
        member.count_connected(1.0);
        member.said.replace(None);
        if !member.was_up.replace(true) && matches!(member.place, HubPlace::Embedded(..)) {
            // That its listener was not yet open was no error.
            *member.status.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        member.renewing.ends();
        let session_present = link.session_present();
        tracing::info!(upstream = member.name, session_present, inflight = link.inflight(), "hub connected");
    }
    Ok(used)
}

fn write(member: &Member, mut stream: Pin<&mut HubStream>, cx: &mut Context<'_>) -> io::Result<()> {
    let mut link = member.link.borrow_mut();
    loop {
        let unsent = link.unsent();
        if unsent.is_empty() {
            break;
        }
        match stream.as_mut().poll_write(cx, unsent) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(n)) => link.wrote(n),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(()),
        }
    }
    match stream.poll_flush(cx) {
        Poll::Ready(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Tells sessions what the hub said of their messages and subscriptions.
pub(super) fn settle(shard: &Shard, member: &Member) {
    let mut output = member.output.borrow_mut();
    if output.forwarded > 0 {
        member.progressed.set(true);
        let forwarded = std::mem::take(&mut output.forwarded);
        member.forwarded.set(member.forwarded.get() + forwarded);
        shard.meter.forwarded(member.upstream, forwarded);
        if member.link.borrow().has_spool_work() {
            shard.spooling.work();
        }
    }
    if !output.settled.is_empty() {
        // Acknowledgements of one session come in runs: it is looked up and woken once for each.
        let mut current: Option<Rc<SessionCell>> = None;
        for settled in output.settled.drain(..) {
            if wills::is_one(settled.session) {
                wills::settled(shard, &settled);
                continue;
            }
            if current.as_ref().is_none_or(|cell| cell.who != settled.session) {
                current.inspect(|cell| cell.wake());
                current = shard.session(settled.session).or_else(|| kept::settled(shard, &settled));
            }
            if let Some(cell) = &current {
                acknowledge(shard, cell, &settled);
            }
        }
        current.inspect(|cell| cell.wake());
    }
    for placed in output.placed.drain(..) {
        subscribe::placed(shard, &placed);
    }
    for withdrawn in output.withdrawn.drain(..) {
        let (filter, reason) = (withdrawn.filter.as_str(), withdrawn.reason);
        tracing::warn!(upstream = member.name, filter, reason, "the hub took a subscription back");
    }
    if output.cut > 0 {
        shard.meter.dropped("hub_closed", std::mem::take(&mut output.cut));
    }
    if output.unasked > 0 {
        shard.meter.dropped("retained_unasked", std::mem::take(&mut output.unasked));
    }
    if output.unclaimed > 0 {
        shard.meter.dropped("no_subscriber", std::mem::take(&mut output.unclaimed));
    }
}

#[inline]
fn acknowledge(shard: &Shard, cell: &SessionCell, settled: &Settled) {
    let state = &mut *cell.state.borrow_mut();
    let of_earlier = settled.session != cell.who;
    match settled.outcome {
        Ok(()) if of_earlier => {
            let _ = state.session.settle_earlier(settled.packet_id, Ok(()), &mut state.out);
            shard.meter.acknowledged(Duration::from_millis(settled.took_ms));
        }
        Ok(()) => {
            state.session.publish_stored(settled.packet_id, &mut state.out);
            shard.meter.acknowledged(Duration::from_millis(settled.took_ms));
        }
        Err(why) => {
            tracing::warn!(device = cell.live.device().as_str(), why = why.tag(), "the hub will not have a message");
            let detail = format!("A PUBLISH: {why}.");
            if cell.journals_refusal() {
                shard.site.journal.action_refused(&cell.identified(), Denial::HubRefused, &detail);
            }
            let (session, id, out) = (&mut state.session, settled.packet_id, &mut state.out);
            let told = match of_earlier {
                true => session.settle_earlier(id, Err(Denial::HubRefused), out),
                false => session.publish_refused(id, Denial::HubRefused, out),
            };
            if let Err(reason) = told {
                cell.live.deafen(reason, Instant::now());
            }
        }
    }
}

pub(super) fn grant(shard: &Shard, member: &Member, link: &mut Link, now: Tick) {
    link.grants(&mut |who| {
        if wills::is_one(who) {
            return wills::wake(shard, who);
        }
        let Some(cell) = shard.session(who) else { return Woken::Gone };
        cell.granted(member.upstream, now);
        Woken::Here
    });
}

/// For jitter. Without randomness all members come back at the same time, which is no reason to stop.
fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}

/// A connection that stood so long was no attempt: the next one follows at once.
const STOOD_LONG: Duration = Duration::from_secs(10);
/// After a write failed, for acknowledgements that are on their way.
const READ_TO_THE_END_WITHIN: Duration = Duration::from_secs(2);
/// Together less than what may be owed to a device before a message of QoS 0 is dropped.
const READS_A_POLL: u32 = 2;
/// Places promised to a session whose turn comes; what it does not need it gives back.
const PLACES_A_TURN: u32 = 16;
/// Of a member that the pool no longer has.
const NO_NUMBER: usize = usize::MAX;
/// One read of a large packet.
const LARGE_READ_BYTES: usize = 64 << 10;
