//! What hubs kept under connections that devices no longer have: the pool has another number of them than at an earlier
//! start. Sessions of that start are known from the disk, and so is which connection each of them had. What such a
//! connection brings for one of them is passed to the shard where the device is at home now, and the hub is answered
//! when that shard is done with it. When all connections of the pool have placed their filters, the earlier ones give
//! theirs back; when nothing more comes, they are done. One that the pool no longer has is opened for this alone, and
//! the hub forgets it at the end.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use super::{Shard, device_hash, home_of, inbox::Inbox, kept, pump, pump::Member, renewal, subscribe};
use crate::{
    delivery::{
        Incoming, Link, SessionRef, Taken, Ticket,
        spool::{LinkAddress, queue_of},
    },
    id::DeviceId,
    meter,
    packet::{ProtocolVersion, Publish, QoS, VARINT_MAX, next_frame, parse_publish, write_publish},
    pools::Pool,
    shard::{Site, kept::SessionLog},
    time::Tick,
    topic::{TopicFilter, TopicName},
};

/// A filter that a session held by way of an earlier connection.
#[derive(Clone, Debug)]
pub(super) struct Move {
    device: DeviceId,
    filter: TopicFilter,
    qos: QoS,
}

/// An earlier connection, and what the hub may keep for it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) upstream: usize,
    pub(super) client_id: String,
    /// Its place among the shard's members of the pool; none: the pool no longer has it.
    pub(super) member: Option<usize>,
    /// By device.
    moves: Vec<Move>,
    /// Each once; its place is its name there.
    devices: Vec<DeviceId>,
}

impl Source {
    fn new(upstream: usize, client_id: String, member: Option<usize>, mut moves: Vec<Move>) -> Self {
        moves.sort_by(|one, other| one.device.as_str().cmp(other.device.as_str()));
        let mut devices: Vec<DeviceId> = moves.iter().map(|one| one.device.clone()).collect();
        devices.dedup();
        Self { upstream, client_id, member, moves, devices }
    }

    /// Each filter with the name of its session.
    fn named(&self) -> impl Iterator<Item = (SessionRef, &Move)> {
        let mut index = 0;
        self.moves.iter().map(move |one| {
            while self.devices.get(index).is_some_and(|device| *device != one.device) {
                index += 1;
            }
            (name(index), one)
        })
    }
}

/// What every shard has to fetch.
pub(super) fn sources(site: &Site, log: Option<&SessionLog>, shards: usize) -> Vec<Vec<Source>> {
    let mut homes: Vec<Vec<Source>> = (0..shards).map(|_| Vec::new()).collect();
    for (index, upstream) in site.upstreams.iter().enumerate() {
        let Some(pool) = site.pools.of(&upstream.name).filter(|pool| !pool.earlier().is_empty()) else { continue };
        tell_open(&upstream.name, pool);
        let sources = of_pool(pool, &held(site, log, index));
        let (connections, filters) = (sources.len(), sources.iter().map(|source| source.2.len()).sum::<usize>());
        tracing::info!(
            upstream = upstream.name,
            connections,
            filters,
            "the pool has changed: what the hub keeps under its earlier connections is fetched"
        );
        for (client_id, now, moves) in sources {
            let (home, member) = match now {
                Some(number) => (number / upstream.members_a_shard, Some(number % upstream.members_a_shard)),
                None => (homes.iter().enumerate().min_by_key(|(_, home)| home.len()).map_or(0, |(home, _)| home), None),
            };
            if let Some(home) = homes.get_mut(home) {
                home.push(Source::new(index, client_id, member, moves));
            }
        }
    }
    homes
}

/// Filters that sessions hold on a hub, as the hub is asked for them.
fn held(site: &Site, log: Option<&SessionLog>, upstream: usize) -> Vec<Move> {
    let mut held = Vec::new();
    for (device, image) in log.iter().flat_map(|log| &log.found.sessions) {
        for subscription in &image.state.subscriptions {
            if renewal::is_own(subscription.filter.as_str()) {
                continue;
            }
            if let Ok((of, filter)) = site.routes.resolve_filter(&subscription.filter, device)
                && of == upstream
            {
                held.push(Move { device: device.clone(), filter, qos: subscription.qos });
            }
        }
    }
    held
}

/// Each earlier connection: its client id, its number if the pool still has it, and what is elsewhere now.
fn of_pool(pool: &Pool, held: &[Move]) -> Vec<(String, Option<usize>, Vec<Move>)> {
    let now = pool.now();
    let mut sources: Vec<(String, Option<usize>, Vec<Move>)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut known: HashSet<(usize, &DeviceId, &TopicFilter)> = HashSet::new();
    for layout in pool.earlier() {
        let is_same = layout.client_id == now.client_id;
        // Two layouts may have had the same connection.
        let of_layout: Vec<usize> = (0..layout.len())
            .map(|number| {
                let client_id = layout.client_id_of(number);
                *places.entry(client_id).or_insert_with_key(|client_id| {
                    sources.push((client_id.clone(), (is_same && number < now.len()).then_some(number), vec![]));
                    sources.len() - 1
                })
            })
            .collect();
        let numbers = |one: &Move| {
            let queue = queue_of(device_hash(&one.device));
            (layout.number_of(queue), now.number_of(queue))
        };
        for one in held {
            let (was, is) = numbers(one);
            // The connection that it has now may have had the same filter for others. What that one still has is not what this
            // one has: rather twice than not at all.
            let Some(place) = of_layout.get(was).filter(|_| !is_same || was != is) else { continue };
            if known.insert((*place, &one.device, &one.filter))
                && let Some((.., moves)) = sources.get_mut(*place)
            {
                moves.push(one.clone());
            }
        }
    }
    sources
}

/// What a member knows of the connection that it goes on with.
#[derive(Default)]
pub(super) struct Fetching {
    source: Option<Source>,
    /// The pool no longer has it.
    is_retiring: bool,
    stage: Cell<Stage>,
    /// Since when the filters are given back.
    ends_since: Cell<Tick>,
    /// Since when nothing has come, for whomever.
    quiet_since: Cell<Option<Tick>>,
    /// How much had come by then.
    heard: Cell<u64>,
    /// When the last message came for somebody who is elsewhere.
    passed_at: Cell<Tick>,
    /// Messages that other shards are not done with.
    passed: Cell<usize>,
    /// For shards whose inboxes are full.
    waiting: RefCell<VecDeque<(usize, Inbox)>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// The hub is asked for nothing: what it has comes by itself.
    #[default]
    Fetches,
    /// The filters were given back.
    Ends,
    /// All is fetched, and the hub has yet to forget the client id.
    Forgets,
    /// The next connection begins anew.
    BeginsAnew,
    /// There is nothing more.
    Over,
}

impl Fetching {
    /// What a member has to fetch; `link` learns of whom it is.
    pub(super) fn of(source: Option<Source>, link: &mut Link) -> Self {
        for (who, one) in source.iter().flat_map(Source::named) {
            link.moved_away(who, &one.filter, one.qos);
        }
        let stage = if source.is_some() { Stage::Fetches } else { Stage::Over };
        let is_retiring = source.as_ref().is_some_and(|source| source.member.is_none());
        Self { source, is_retiring, stage: Cell::new(stage), ..Self::default() }
    }

    /// Whether it is there to be ended.
    pub(super) fn is_retiring(&self) -> bool {
        self.is_retiring
    }
}

/// A message of an earlier connection, on its way to the shard of its device.
#[derive(Debug)]
pub struct Passed {
    from: LinkAddress,
    /// How the link there names it; none: nobody waits for an answer.
    ticket: Option<Ticket>,
    device: DeviceId,
    qos: QoS,
    /// PUBLISH of MQTT 5.0.
    frame: Box<[u8]>,
}

/// What a shard has of others.
#[derive(Default)]
pub(super) struct Arrived {
    last: Cell<u64>,
    /// Messages that sessions here are not done with, by the number that is their ticket here.
    held: RefCell<HashMap<u64, (LinkAddress, Ticket)>>,
}

/// A member that the pool no longer has, until all is fetched and the hub has forgotten it.
pub(super) async fn retire(shard: Rc<Shard>, member: Rc<Member>) {
    // Where the hub takes no more connections than the pool has, they are the pool's.
    while shard.site.pools.of(member.name()).is_some_and(|pool| !pool.has_placed()) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    pump::run(shard.clone(), member.clone()).await;
    if member.fetching.stage.get() != Stage::Forgets {
        // The gateway ends: the next start goes on.
        return;
    }
    member.fetching.stage.set(Stage::BeginsAnew);
    member.begins_anew();
    pump::run(shard.clone(), member.clone()).await;
    if member.fetching.stage.get() == Stage::Over {
        closes(&shard, &member);
    }
}

/// What the clock, or a connection that came up, has to do.
pub(super) fn look(shard: &Shard, member: &Member, now: Tick) {
    let Some(pool) = shard.site.pools.of(member.name()).filter(|pool| !pool.earlier().is_empty()) else { return };
    let fetching = &member.fetching;
    if !pool.has_placed() && !fetching.is_retiring && member.link.borrow().has_placed_all() {
        pool.places(member.number);
    }
    if fetching.stage.get() == Stage::Over {
        return;
    }
    flush(shard, member);
    let Some(source) = &fetching.source else { return };
    let mut link = member.link.borrow_mut();
    if !link.is_up() {
        fetching.quiet_since.set(None);
        fetching.ends_since.set(now);
        return;
    }
    match fetching.stage.get() {
        Stage::Fetches if !link.session_present() => {
            // The hub keeps nothing under this name, or forgot it.
            link.forget_moved();
            drop(link);
            is_fetched(shard, member);
        }
        Stage::Fetches if pool.has_placed() => {
            link.give_back_moved(source.moves.iter().map(|one| &one.filter), now);
            fetching.stage.set(Stage::Ends);
            fetching.ends_since.set(now);
            fetching.passed_at.set(now);
            fetching.quiet_since.set(Some(now));
            drop(link);
            member.wake();
        }
        Stage::Ends => {
            let is_late = now.since(fetching.ends_since.get()) >= ENDS_WITHIN;
            if now.since(fetching.ends_since.get()) >= SHARED_WITHIN {
                link.moved_get_the_rest();
            }
            // Hubs send what they keep in its order: behind what others are sent something may wait for those who moved.
            let is_quiet = fetching.heard.replace(link.messages()) == link.messages() && link.held() == 0;
            let since = fetching.quiet_since.get().filter(|_| is_quiet).unwrap_or(now);
            fetching.quiet_since.set(Some(since));
            let is_over = now.since(since) >= QUIET || is_late && now.since(fetching.passed_at.get()) >= ENDS_WITHIN;
            if is_over && fetching.passed.get() == 0 {
                link.forget_moved();
                drop(link);
                is_fetched(shard, member);
            }
        }
        Stage::BeginsAnew => {
            drop(link);
            fetching.stage.set(Stage::Over);
            member.leave();
        }
        Stage::Fetches | Stage::Forgets | Stage::Over => {}
    }
}

fn is_fetched(shard: &Shard, member: &Member) {
    if member.fetching.is_retiring {
        member.fetching.stage.set(Stage::Forgets);
        member.leave();
    } else {
        member.fetching.stage.set(Stage::Over);
        closes(shard, member);
    }
}

fn closes(shard: &Shard, member: &Member) {
    let Some((source, pool)) = member.fetching.source.as_ref().zip(shard.site.pools.of(member.name())) else { return };
    pool.closes(&source.client_id);
    tell_open(member.name(), pool);
    if pool.open() == 0 {
        tracing::info!(upstream = member.name(), "all that the hub kept under earlier connections is fetched");
    }
}

fn tell_open(upstream: &str, pool: &Pool) {
    metrics::gauge!(meter::UPSTREAM_EARLIER_CONNECTIONS, "upstream" => upstream.to_owned()).set(pool.open() as f64);
}

/// A message for a session that is elsewhere now.
pub(super) fn pass(shard: &Shard, member: &Member, who: SessionRef, incoming: &Incoming<'_>) -> Taken {
    let fetching = &member.fetching;
    let source = fetching.source.as_ref();
    let Some(device) = source.and_then(|source| source.devices.get(who.generation as usize)) else {
        return Taken::Whole;
    };
    let Ok(topic) = str::from_utf8(incoming.publish.topic) else { return Taken::Whole };
    fetching.passed_at.set(shard.site.now());
    let is_full = fetching.waiting.borrow().len() >= WAITING_MAX;
    if incoming.ticket.is_none() && is_full {
        shard.meter.dropped("queue_full", 1);
        return Taken::Whole;
    }
    let publish = Publish {
        dup: false,
        qos: incoming.publish.qos,
        retain: false,
        topic,
        packet_id: incoming.publish.packet_id,
        properties: &[incoming.publish.properties],
        payload: incoming.publish.payload,
    };
    let mut frame = Vec::with_capacity(publish.encoded_len(ProtocolVersion::V5_0));
    write_publish(&mut frame, ProtocolVersion::V5_0, &publish);
    let passed = Passed {
        from: member.address,
        ticket: incoming.ticket,
        device: device.clone(),
        qos: incoming.qos,
        frame: frame.into(),
    };
    let home = home_of(device, shard.shards.len());
    fetching.waiting.borrow_mut().push_back((home, Inbox::Passed(Box::new(passed))));
    flush(shard, member);
    if incoming.ticket.is_none() {
        return Taken::Whole;
    }
    fetching.passed.set(fetching.passed.get() + 1);
    Taken::Held
}

/// In order: what a full inbox does not take stands first.
fn flush(shard: &Shard, member: &Member) {
    let mut waiting = member.fetching.waiting.borrow_mut();
    while let Some((home, message)) = waiting.pop_front() {
        if let Err(message) = shard.shards.pass(home, message) {
            waiting.push_front((home, message));
            return;
        }
    }
}

/// A message that another shard's connection brought.
pub(super) fn arrives(shard: &Shard, passed: &Passed) {
    let Passed { from, ticket, device, qos, frame } = passed;
    let here = ticket.map(|ticket| {
        let number = shard.arrived.last.get() + 1;
        shard.arrived.last.set(number);
        shard.arrived.held.borrow_mut().insert(number, (*from, ticket));
        Ticket(PASSED | number)
    });
    let taken = deliver(shard, from.upstream, device, frame, *qos, here);
    if let (Some(here), Taken::Whole) = (here, taken) {
        release(shard, here);
    }
}

fn deliver(shard: &Shard, upstream: usize, device: &DeviceId, frame: &[u8], qos: QoS, ticket: Option<Ticket>) -> Taken {
    let frame = next_frame(frame, VARINT_MAX as usize).ok().flatten();
    let Some(publish) = frame.and_then(|frame| parse_publish(frame, ProtocolVersion::V5_0).ok()) else {
        return Taken::Whole;
    };
    let who = kept::away(shard, device).or_else(|| {
        let live = shard.site.registry.of_device(device.as_str()).filter(|live| live.shard == shard.index)?;
        Some(SessionRef { slot: live.slot, generation: live.generation })
    });
    let held = who.zip(TopicName::new(publish.topic).ok()).and_then(|(who, topic)| {
        let member = shard.member(upstream, device_hash(device));
        Some((who, member.link.borrow().holds_for(who, topic)?))
    });
    let Some((who, holds)) = held else {
        shard.meter.dropped("no_subscriber", 1);
        return Taken::Whole;
    };
    let incoming = Incoming { qos: qos.min(holds), retain: false, ticket, publish: &publish };
    subscribe::deliver(shard, upstream, who, &incoming)
}

/// Whether a ticket is of a message that another shard's connection brought.
pub(super) fn is_passed(ticket: Ticket) -> bool {
    ticket.0 & PASSED != 0
}

/// A session here is done with a message of another shard's connection.
pub(super) fn release(shard: &Shard, ticket: Ticket) {
    let held = shard.arrived.held.borrow_mut().remove(&(ticket.0 & !PASSED));
    if let Some((from, ticket)) = held {
        shard.shards.taken(from, ticket);
    }
}

/// Another shard is done with a message of a connection of this one.
pub(super) fn taken(shard: &Shard, from: LinkAddress, ticket: Ticket) {
    let Some(member) = shard.member_at(from) else { return };
    let fetching = &member.fetching;
    fetching.passed.set(fetching.passed.get().saturating_sub(1));
    member.release(ticket);
}

/// Whether a message is for a session that is elsewhere now.
#[inline]
pub(super) fn is_one(who: SessionRef) -> bool {
    who.slot == MOVED
}

/// The name of a device's session at its earlier connection.
fn name(index: usize) -> SessionRef {
    SessionRef { slot: MOVED, generation: u32::try_from(index).unwrap_or(u32::MAX) }
}

/// The slot of those who are in another shard, beside those who are away and wills.
const MOVED: u32 = u32::MAX - 2;
/// Marks tickets that are no link's of the shard.
const PASSED: u64 = 1 << 63;
/// What others hold by way of an earlier connection goes on to come, and comes twice to those who moved, for so long: it
/// cannot be told from what the hub kept.
const SHARED_WITHIN: Duration = Duration::from_secs(60);
/// Where something comes all the time, nothing is waited for any more that has not come for so long.
const ENDS_WITHIN: Duration = Duration::from_secs(300);
/// A hub that has sent nothing for so long has nothing more that it kept.
const QUIET: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Messages that nobody waits for are dropped while so many wait for the inbox of another shard.
const WAITING_MAX: usize = 1_000;
