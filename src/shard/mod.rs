//! One core: its sessions, its members of the pool, its timers. A message is read, checked, queued, written to the
//! hub and acknowledged without leaving it.
//!
//! Inside a shard there is no lock and no channel: one task a session, one a pool member, one for the inbox and one
//! for time, all on one thread, calling sans-IO machines that are borrowed within one poll and never across an await.

mod accept;
mod ahead;
mod connection;
mod deadlines;
mod drain;
mod echoes;
mod ended;
mod holding;
mod inbox;
mod iot_hub;
mod kept;
mod moved;
mod mustering;
mod pending;
mod publish;
mod pump;
mod renewal;
mod renewing;
mod sessions;
mod spooling;
mod status;
mod subscribe;
mod wheel;
mod wills;

pub use drain::Drain;
pub use inbox::{Inbox, Shards};
pub use kept::{Found, SessionLog};
pub use pump::HubPlace;
pub use renewing::Turn;
pub use status::MemberStatus;

use std::{
    cell::RefCell,
    net::TcpListener,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, mpsc};

use crate::{
    clock::Clock,
    delivery::{
        BacklogConfig, LinkConfig, SessionRef,
        spool::{LinkAddress, QUEUES, SpoolHandle, queue_of},
    },
    gate::{Backoff, ConnectLimiter, Gate, Profile},
    id::DeviceId,
    journal::Journal,
    listener::{Acceptor, Connections, LimitsConfig, Proxies, WebSocketRules},
    meter::{Meters, ShardMeter},
    packet::ProtocolVersion,
    policy::Scope,
    pools::{Pools, place_of},
    registry::{Registry, Threshold},
    roster::Roster,
    route::Routes,
    session::server::SessionLimits,
    takeovers::TakeOvers,
    time::Tick,
    upstream::Pace,
    usage::KeyUses,
};

/// What all shards share. Read through snapshots and atomics only.
#[derive(Debug)]
pub struct Site {
    /// Who is admitted.
    pub gate: Arc<Gate>,
    /// Who is live.
    pub registry: Arc<Registry>,
    /// Who was refused or cut.
    pub journal: Arc<Journal>,
    /// Where topics lead.
    pub routes: Routes,
    /// What a peer may take.
    pub limits: LimitsConfig,
    /// Connects a second by address.
    pub connect_limiter: ConnectLimiter,
    /// Guesses by address.
    pub backoff: Backoff,
    /// Open connections.
    pub connections: Arc<Connections>,
    /// Name of the gateway, stamped on what is forwarded.
    pub gateway: String,
    /// Hubs, in the order in which routes count them.
    pub upstreams: Vec<Upstream>,
    /// The disk behind delivery; none where every route waits for its hub.
    pub spool: Option<SpoolHandle>,
    /// Sessions whose devices are away, as others see them.
    pub roster: Roster,
    /// The disk behind them; none where no session outlives its connection.
    pub sessions: Option<SpoolHandle>,
    /// Set when no new connection is taken.
    pub draining: AtomicBool,
    /// Where devices may go when this gateway ends (MQTT 5.0 Server Reference).
    pub server_reference: Option<String>,
    /// What time it is, for every decision and every timer.
    pub clock: Arc<Clock>,
    /// Who takes sessions over, and how often.
    pub take_overs: TakeOvers,
    /// Which keys are used.
    pub key_uses: KeyUses,
    /// Which connections devices have, and had.
    pub pools: Pools,
}

/// One hub, as the pool sees it.
#[derive(Debug)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: HubPlace,
    /// How its members speak to it; the client id is completed with the member's number.
    pub link: LinkConfig,
    /// Members of a shard.
    pub members_a_shard: usize,
    /// How many messages a second it is sent, by all members together; none: as many as it takes.
    pub pace: Option<Arc<Pace>>,
    /// Which member renews its credentials: one at a time.
    pub renewal: Arc<Turn>,
    /// State of each member, by shard and then by member.
    pub status: Vec<Arc<MemberStatus>>,
    /// What waits on the disk for it, as the start found it; none where only the hub is a witness.
    pub backlog: Option<BacklogConfig>,
}

/// One listener of a shard.
#[derive(Debug)]
pub struct Door {
    /// The shard's own socket, or its own descriptor of one that it shares with the others.
    pub listener: TcpListener,
    /// Who has the socket when this gateway has ended.
    pub held_by: HeldBy,
    /// What is behind it, the same on every shard.
    pub entrance: Arc<Entrance>,
}

/// Whose a listening socket is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeldBy {
    /// This process's: with it, the port is free.
    Gateway,
    /// systemd's: who connects waits for the next gateway.
    Systemd,
}

/// What those who come through a listener pass, from the wire to MQTT.
#[derive(Debug)]
pub struct Entrance {
    /// Balancers that say for whom they connect.
    pub proxies: Proxies,
    /// TLS, where it is spoken.
    pub tls: Option<Acceptor>,
    /// WebSocket, where it is spoken.
    pub web_socket: Option<WebSocketRules>,
    /// Presets for those who come here.
    pub profile: Profile,
}

impl Site {
    /// The clock of all timers.
    #[inline]
    pub fn now(&self) -> Tick {
        self.clock.tick()
    }

    /// Where sessions come in, and where a change finds them.
    pub fn threshold(&self) -> Threshold<'_> {
        Threshold { gate: &self.gate, registry: &self.registry }
    }

    /// Whether new connections are refused.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// No new connection is taken from here on.
    pub fn begin_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// What a session is held to when it comes through a door of this profile.
    fn session_limits(&self, profile: Profile, scope: &Scope) -> SessionLimits {
        let limits = &self.limits;
        let azure = matches!(profile, Profile::Azure);
        SessionLimits {
            receive_maximum: if azure {
                limits.receive_maximum.min(AZURE_RECEIVE_MAXIMUM)
            } else {
                limits.receive_maximum
            },
            maximum_packet_size: u32::try_from(limits.maximum_packet_size.0).unwrap_or(u32::MAX),
            topic_alias_maximum: TOPIC_ALIAS_MAXIMUM,
            subscriptions_max: limits.subscriptions_max,
            queue_max: limits.queue_max,
            qos_max: profile.qos_max().min(scope.qos_max()),
            retain: scope.retain(),
            keep_alive_max: if azure { AZURE_KEEP_ALIVE_MAX } else { 0 },
            session_expiry_max: u32::try_from(limits.session_expiry_max.as_secs()).unwrap_or(u32::MAX - 1),
        }
    }
}

/// The home shard of a device and its member of a pool: by hash, so that order per device survives every reconnect.
pub(crate) fn device_hash(device: &DeviceId) -> u64 {
    // FNV-1a, 64 bits, and a finalizer that mixes the high bits: stable across builds and machines.
    let hash = device
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn home_of(device: &DeviceId, shards: usize) -> usize {
    place_of(queue_of(device_hash(device)), shards, 1).0
}

fn member_of(hash: u64, shards: usize, members: usize) -> usize {
    place_of(queue_of(hash), shards, members).1
}

/// The queues of one link.
fn queues_of(shard: usize, member: usize, shards: usize, members: usize) -> impl Iterator<Item = u16> {
    (0..QUEUES).filter(move |queue| place_of(*queue, shards, members) == (shard, member))
}

/// One core's state. Never leaves its thread.
struct Shard {
    index: usize,
    site: Arc<Site>,
    shards: Shards,
    sessions: RefCell<sessions::Sessions>,
    /// By hub, then by member.
    members: Vec<Vec<Rc<pump::Member>>>,
    /// Connections that pools no longer have, until hubs have forgotten them.
    retiring: Vec<Rc<pump::Member>>,
    /// Messages of other shards' connections.
    arrived: moved::Arrived,
    wheel: RefCell<wheel::Wheel>,
    /// Wills that wait for their time.
    wills: wills::Wills,
    /// Bytes read from a socket stand here within one poll.
    scratch: RefCell<Box<[u8]>>,
    /// A topic in the hub's terms, where they differ.
    topic: RefCell<String>,
    /// Properties that pass, encoded again.
    properties: RefCell<Vec<u8>>,
    /// Connections that are not sessions yet, oldest first.
    pending: RefCell<pending::Pending>,
    /// Turns in which a TLS handshake does its sums: so many of them between two turns of everybody else.
    handshakes: Semaphore,
    /// Sessions that outlive their connections.
    kept: kept::Kept,
    /// Whether a link has something for the disk, and who tells it.
    spooling: spooling::Hint,
    /// Sessions that wait, for whatever.
    waiting: ahead::Waiting,
    /// Sessions that have used up their rate, until the next turn.
    resting: RefCell<Vec<SessionRef>>,
    /// Told when no more connections are taken.
    closing: Notify,
    meter: ShardMeter,
    /// Whether any hub speaks 5.0, so that messages are stamped.
    stamps: bool,
}

/// Starts one thread a shard. Each owns the doors at its index.
///
/// # Errors
/// A thread or a runtime cannot be started.
pub fn start(
    site: &Arc<Site>,
    meters: &Meters,
    doors: Vec<Vec<Door>>,
    sessions: Option<SessionLog>,
) -> std::io::Result<Shards> {
    let (senders, receivers): (Vec<_>, Vec<_>) = doors.iter().map(|_| mpsc::channel(inbox::INBOX_MAX)).unzip();
    let shards = Shards::new(senders);
    let sources = moved::sources(site, sessions.as_ref(), shards.len());
    let homes = kept::at_home(sessions, shards.len()).into_iter().zip(sources);
    for (index, ((doors, home), receiver)) in doors.into_iter().zip(homes).zip(receivers).enumerate() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        // A runtime is made here, so that a failure is the caller's; it is driven only by its thread.
        drop(runtime?);
        let (site, shards, meters) = (site.clone(), shards.clone(), meters.clone());
        std::thread::Builder::new().name(format!("tollgate-{index}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(Default::default())
                .expect("invariant: the same was built a moment ago");
            runtime.block_on(run(index, site, shards, meters, (doors, home), receiver));
        })?;
    }
    Ok(shards)
}

async fn run(
    index: usize,
    site: Arc<Site>,
    shards: Shards,
    meters: Meters,
    (doors, (home, mut sources)): (Vec<Door>, (kept::Home, Vec<moved::Source>)),
    inbox: mpsc::Receiver<Inbox>,
) {
    let names: Vec<&str> = site.upstreams.iter().map(|u| u.name.as_str()).collect();
    let members = site
        .upstreams
        .iter()
        .enumerate()
        .map(|(u, upstream)| pump::members(u, upstream, (index, shards.len()), &mut sources))
        .collect();
    let retiring = pump::retiring(&site.upstreams, index, sources);
    let shard = Rc::new(Shard {
        index,
        meter: meters.shard(&names),
        stamps: site.upstreams.iter().any(|u| u.link.client.version == ProtocolVersion::V5_0),
        members,
        retiring,
        arrived: moved::Arrived::default(),
        wheel: RefCell::new(wheel::Wheel::new(site.now())),
        wills: wills::Wills::after(home.last_will),
        sessions: RefCell::default(),
        scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
        topic: RefCell::default(),
        properties: RefCell::default(),
        pending: RefCell::default(),
        handshakes: Semaphore::new(HANDSHAKES_A_TURN),
        waiting: ahead::Waiting::default(),
        resting: RefCell::default(),
        closing: Notify::new(),
        spooling: spooling::Hint::default(),
        kept: kept::Kept::new(home.spool, home.queues, home.last),
        shards,
        site,
    });
    // Before any hub is spoken to: what it sends finds them.
    kept::restore(&shard, home.sessions);
    wills::restore(&shard, home.wills);
    for member in shard.members.iter().flatten() {
        tokio::task::spawn_local(pump::run(shard.clone(), member.clone()));
    }
    for member in &shard.retiring {
        tokio::task::spawn_local(moved::retire(shard.clone(), member.clone()));
    }
    for door in doors {
        tokio::task::spawn_local(accept::run(shard.clone(), door));
    }
    tokio::task::spawn_local(spooling::run(shard.clone()));
    tokio::task::spawn_local(keep_time(shard.clone()));
    inbox::run(shard, inbox).await;
}

/// The shard's clock: expiry, keep alive, watchdogs of the pool, counters.
async fn keep_time(shard: Rc<Shard>) {
    let mut turns = tokio::time::interval(Duration::from_millis(wheel::TURN_MS));
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = Vec::new();
    let (mut turned, mut offset_ms) = (shard.site.now(), shard.site.clock.offset_ms());
    loop {
        turns.tick().await;
        shard.shards.beat(shard.index);
        shard.site.clock.observe();
        let now = shard.site.now();
        if offset_ms.abs_diff(shard.site.clock.offset_ms()) > CLOCK_MOVED_MS || now.since(turned) > STOOD_STILL {
            offset_ms = shard.site.clock.offset_ms();
            deadlines::look_at_all(&shard, now.since(turned), now);
        }
        turned = now;
        shard.wheel.borrow_mut().advance(&mut due, now);
        for who in due.drain(..) {
            deadlines::look_at(&shard, who, now);
        }
        wills::tick(&shard, now);
        for who in shard.resting.take() {
            if let Some(cell) = shard.session(who) {
                cell.rested(now);
            }
        }
        ahead::tick(&shard, now);
        for member in shard.all_members() {
            pump::tick(&shard, member, now);
        }
        wills::send_woken(&shard);
        kept::tick(&shard, now);
        accept::tidy(&shard);
        shard.meter.flush();
    }
}

impl Shard {
    fn session(&self, who: SessionRef) -> Option<Rc<sessions::SessionCell>> {
        self.sessions.borrow().get(who).cloned()
    }

    fn member(&self, upstream: usize, hash: u64) -> &Rc<pump::Member> {
        let members = &self.members[upstream];
        &members[member_of(hash, self.shards.len(), members.len())]
    }

    fn all_members(&self) -> impl Iterator<Item = &Rc<pump::Member>> {
        self.members.iter().flatten().chain(&self.retiring)
    }

    fn member_at(&self, address: LinkAddress) -> Option<&Rc<pump::Member>> {
        let members = self.members.get(address.upstream)?;
        members.get(address.member).or_else(|| self.retiring.get(address.member - members.len()))
    }
}

/// Half a millisecond each, with a certificate of P-256 a tenth of it: sessions wait no longer than for these.
const HANDSHAKES_A_TURN: usize = 8;
/// Milliseconds by which times and timers may have moved apart before timers are set anew.
const CLOCK_MOVED_MS: u64 = 200;
/// The process, or the machine, was stopped: whoever was silent meanwhile may have been unheard.
const STOOD_STILL: Duration = Duration::from_secs(2);
/// One read of a socket. What is left of it when a window is full stays with its session, so it is not larger.
const SCRATCH_BYTES: usize = 16 << 10;
/// Semantics of Azure IoT Hub for MQTT 5.
const AZURE_RECEIVE_MAXIMUM: u16 = 16;
/// Seconds; IoT Hub closes after 1.5 times this.
const AZURE_KEEP_ALIVE_MAX: u16 = 1177;
/// As Azure IoT Hub offers.
const TOPIC_ALIAS_MAXIMUM: u16 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_spread_over_shards_and_members() {
        let mut counts = [[0u32; 3]; 4];
        for i in 0..12_000 {
            let device = DeviceId::try_from(&*format!("device-{i}")).expect("an id");
            counts[home_of(&device, 4)][member_of(device_hash(&device), 4, 3)] += 1;
        }
        for count in counts.iter().flatten() {
            assert!((800..1200).contains(count), "{counts:?}");
        }
    }

    #[test]
    fn every_queue_belongs_to_the_link_of_its_devices() {
        for (shards, members) in [(1, 1), (2, 1), (4, 3), (7, 2), (256, 1)] {
            let links = (0..shards).flat_map(|shard| (0..members).map(move |member| (shard, member)));
            let mut all: Vec<u16> = links.flat_map(|(s, m)| queues_of(s, m, shards, members)).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..QUEUES), "each once");
            for i in 0..100 {
                let device = DeviceId::try_from(&*format!("device-{i}")).expect("an id");
                let (hash, home) = (device_hash(&device), home_of(&device, shards));
                let mut own = queues_of(home, member_of(hash, shards, members), shards, members);
                assert!(own.any(|queue| queue == queue_of(hash)));
            }
        }
    }

    #[test]
    fn a_device_has_one_home() {
        let device = DeviceId::try_from("pump-17").expect("an id");
        assert_eq!(device_hash(&device), device_hash(&device.clone()));
        assert_eq!(home_of(&device, 1), 0);
    }
}
