//! The wiring: files become tables, tables become shards, and a signal ends it all in order.

mod aside;
mod certificates;
mod changes;
mod desk;
mod end;
mod keys;
mod list;
mod near_misses;
mod screen;
mod sessions;
mod spool;
mod supervisor;
mod tokens;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime},
};

use zeroize::Zeroizing;

use crate::{
    admin,
    audit::Audit,
    clock::Clock,
    config::{self, Config, FirstRun, Mistake},
    credential,
    delivery::{
        LinkConfig,
        spool::{Keeper, LinkAddress},
    },
    feed::{Files, Watch},
    gate::{Backoff, ConnectLimiter, Gate},
    journal::Journal,
    listener::{self, Activated, ActivationError, Connections, Tls, Transport},
    meter::{self, Meters},
    packet::{ProtocolVersion, QoS},
    pools::{Layout, Pools},
    registry::Registry,
    roster::Roster,
    route::Routes,
    session::client::ClientConfig,
    shard::{self, Door, Entrance, HeldBy, HubPlace, MemberStatus, Shards, Site, Upstream},
    takeovers::TakeOvers,
    upstream::{
        EmbeddedHub, HubAddress, HubClient, MqttHubConfig, Muster, NatsHub, Pace, RumqttcHub, TrustError,
        UpstreamConfig, UpstreamKind,
    },
    usage::KeyUses,
};
use certificates::Certificates;
use changes::Changes;
use end::{Asked, Signals};
use supervisor::Supervisor;

/// What `tollgate run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// `gateway.toml`.
    pub config: PathBuf,
    /// Whether it was named, or is the default: only a start without `--config` makes demonstration files.
    pub named: Named,
}

/// Whether `--config` was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// It was.
    Yes,
    /// It was not.
    No,
}

/// Runs the gateway until a signal ends it.
///
/// # Errors
/// [`StartError`]: nothing was served. Every mistake of the files is named at once.
pub fn run(options: &Options) -> Result<(), StartError> {
    let first_run = match options.named {
        Named::No => config::first_run(&options.config, SystemTime::now()).map_err(StartError::Mistakes)?,
        Named::Yes => FirstRun::default(),
    };
    let supervisor = Supervisor::from_environment();
    let activated = Activated::from_environment().map_err(StartError::Activation)?;
    let loaded = Config::load(&options.config).map_err(StartError::Mistakes)?;
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    credential::self_test().map_err(StartError::SelfTest)?;
    config::prepare_state(&loaded.config).map_err(|mistake| StartError::Mistakes(vec![mistake]))?;
    let config = loaded.config.with_own_issuer().map_err(|mistake| StartError::Mistakes(vec![mistake]))?;
    let config = Arc::new(config);
    raise_file_limit(&config);
    let meters = meter::install().map_err(|error| StartError::Io("cannot count", io::Error::other(error)))?;
    let gateway = start(options, &config, activated, &meters)?;
    gateway.wait_for_own_hub();
    screen::print(&config, &gateway.changes, &gateway.bound, &first_run, options.named);
    gateway.serve(&supervisor, meters)
}

/// Why the gateway did not start, or did not end in order.
#[derive(Debug)]
pub enum StartError {
    /// Mistakes in files.
    Mistakes(Vec<Mistake>),
    /// The cryptographic libraries do not work.
    SelfTest(String),
    /// A port is taken.
    Bind {
        /// Which.
        address: std::net::SocketAddr,
        /// Where the key `bind` is that names it.
        section: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A socket that systemd passed cannot be used.
    Activation(ActivationError),
    /// Sockets that systemd passed, by name and address, and no `bind` names: whoever connects there would wait for ever.
    NoBind(Vec<(String, std::net::SocketAddr)>),
    /// It served, and ended before everything was closed.
    CutShort(&'static str),
    /// The spool cannot be opened, and what to do about it.
    Spool(String),
    /// Something else the system refused.
    Io(&'static str, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mistakes(mistakes) => {
                for mistake in mistakes {
                    writeln!(f, "{mistake}")?;
                }
                let n = mistakes.len();
                write!(f, "{n} {}; nothing was started", if n == 1 { "mistake" } else { "mistakes" })
            }
            Self::SelfTest(what) => write!(f, "the self-test of the cryptographic library failed: {what}"),
            Self::Bind { address, section, error } if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "port {} on {} is taken by another program: stop it, or change `bind` under {section} in gateway.toml",
                address.port(),
                address.ip()
            ),
            Self::Bind { address, section, error } => {
                write!(f, "cannot listen on {address} (`bind` under {section} in gateway.toml): {error}")
            }
            Self::Activation(error) => write!(f, "socket activation: {error}"),
            Self::NoBind(sockets) => {
                let sockets: Vec<String> =
                    sockets.iter().map(|(name, address)| format!("{address} ({name})")).collect();
                let sockets = sockets.join(", ");
                write!(
                    f,
                    "systemd passed {sockets}, and no `bind` in gateway.toml is that address: write the same address in \
                     ListenStream= of the socket unit and in `bind`"
                )
            }
            Self::CutShort(why) => {
                write!(f, "ended before everything was closed: {why}. What devices and hubs were told is safe")
            }
            Self::Spool(what) => f.write_str(what),
            Self::Io(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// All that lives until the end.
struct Gateway {
    config: Arc<Config>,
    site: Arc<Site>,
    shards: Shards,
    changes: Arc<Changes>,
    keys: Arc<keys::Keys>,
    bound: Bound,
    admin: std::net::TcpListener,
    tokens: Option<tokens::Running>,
    /// Dropped after the shards have nothing more for it: what was acknowledged is made lasting.
    keeper: Option<Keeper>,
    /// Of sessions, as the other of messages.
    sessions: Option<Keeper>,
    /// Dropped last: hubs outlive the pool.
    hubs: Vec<EmbeddedHub>,
    _watch: Watch,
}

/// What listens where; port 0 has become one that was free.
struct Bound {
    listeners: Vec<std::net::SocketAddr>,
    admin: std::net::SocketAddr,
    tokens: Option<std::net::SocketAddr>,
}

fn start(
    options: &Options,
    config: &Arc<Config>,
    mut activated: Activated,
    meters: &Meters,
) -> Result<Gateway, StartError> {
    let watched = [config.gateway.identities.clone(), config.gateway.revocations.clone()];
    let files = Files::observe(watched.into_iter().chain(config.tls_files()));
    let shards = match config.gateway.shards {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let (doors, tls, listeners) = doors(config, shards, &mut activated)?;
    let (admin, admin_address) = bind_admin(config, &mut activated)?;
    let tokens = tokens::bind(config, &mut activated)?;
    let left: Vec<_> = activated.left().map(|(name, address)| (name.to_owned(), address)).collect();
    if !left.is_empty() {
        return Err(StartError::NoBind(left));
    }
    let all_tls = tls.into_iter().chain(tokens.as_ref().map(|tokens| tokens.tls.clone())).collect();
    let spool = spool::open(config)?;
    let (upstreams, hubs) = upstreams(config, shards, spool.as_ref())?;
    let layouts: Vec<_> = upstreams.iter().filter_map(|upstream| layout(upstream, shards)).collect();
    let mut keeper = spool.map(|opened| opened.keeper);
    let clock = Arc::new(Clock::open(&config.gateway.state_dir));
    let roster = Roster::new(config.limits.sessions_size_max.0);
    let (mut sessions, log) = sessions::open(config, &clock, &roster)?.unzip();
    let site = Arc::new(Site {
        gate: Arc::new(Gate::new(config.gate.clone())),
        registry: Arc::new(Registry::default()),
        journal: Arc::new(Journal::default()),
        routes: routes(config),
        limits: config.limits.clone(),
        connect_limiter: ConnectLimiter::new(config.limits.connects_per_second_per_ip),
        backoff: Backoff::new(config.limits.failed_connects_per_minute_per_ip),
        connections: Connections::new(config.limits.connections_max),
        gateway: config.gateway.name.clone(),
        upstreams,
        spool: keeper.as_ref().map(Keeper::handle),
        roster,
        sessions: sessions.as_ref().map(Keeper::handle),
        draining: AtomicBool::new(false),
        server_reference: config.gateway.server_reference.clone(),
        take_overs: TakeOvers::default(),
        key_uses: KeyUses::open(&config.gateway.state_dir, clock.now()),
        pools: Pools::open(&config.gateway.state_dir, layouts),
        clock,
    });
    let changes = Changes::new(config.clone(), site.clone(), Certificates::new(all_tls));
    changes.load_all().map_err(StartError::Mistakes)?;
    let keys = keys::Keys::new(config, &site, &changes);
    let shards =
        shard::start(&site, meters, doors, log).map_err(|error| StartError::Io("cannot start a shard", error))?;
    if let Some(keeper) = &mut keeper {
        let shards = shards.clone();
        let answer = move |link, answer| shards.answer(link, answer);
        keeper.start(answer).map_err(|error| StartError::Io("cannot start the spool's thread", error))?;
    }
    if let Some(sessions) = &mut sessions {
        let shards = shards.clone();
        let answer = move |link: LinkAddress, answer| shards.written(link.shard, answer);
        sessions
            .start(answer)
            .map_err(|error| StartError::Io("cannot start the thread that writes sessions", error))?;
    }
    changes.reaches(&shards);
    let watch = {
        changes.follows(files.follower());
        let changes = changes.clone();
        files.watch(move |paths| changes.apply(paths))
    };
    let watch = watch.map_err(|error| StartError::Io("cannot watch files", error))?;
    let bound = Bound { listeners, admin: admin_address, tokens: tokens.as_ref().map(|tokens| tokens.address) };
    let run = |bound| tokens::start(options.config.clone(), config, &site, &changes, bound);
    let tokens = tokens.map(run).transpose()?;
    let config = config.clone();
    Ok(Gateway { config, site, shards, changes, keys, bound, admin, tokens, keeper, sessions, hubs, _watch: watch })
}

/// Every socket is bound before anything is started, so that a taken port costs nothing.
#[expect(clippy::type_complexity, reason = "doors by shard, what TLS they have, where they are")]
fn doors(
    config: &Config,
    shards: usize,
    activated: &mut Activated,
) -> Result<(Vec<Vec<Door>>, Vec<Arc<Tls>>, Vec<std::net::SocketAddr>), StartError> {
    let mut doors: Vec<Vec<Door>> = (0..shards).map(|_| Vec::new()).collect();
    let (mut all_tls, mut bound) = (Vec::new(), Vec::new());
    for listener in &config.listeners {
        let tls = match &listener.transport {
            Transport::Tcp => None,
            Transport::Tls(files) => Some(Tls::load(files).map_err(|error| {
                let remedy = "Name a certificate chain and its key, both PEM.";
                StartError::Mistakes(vec![Mistake::of_file(&error.file, error.what, remedy)])
            })?),
        };
        all_tls.extend(tls.clone());
        let refused = |error| StartError::Bind { address: listener.bind, section: "[[listener]]", error };
        let (sockets, held_by) = match activated.take(listener.bind) {
            Some(socket) => (listener::share(socket, shards), HeldBy::Systemd),
            None => (listener::bind(listener.bind, shards), HeldBy::Gateway),
        };
        let sockets = sockets.map_err(refused)?;
        bound.push(sockets.first().map_or(Ok(listener.bind), std::net::TcpListener::local_addr).map_err(refused)?);
        let entrance = Arc::new(Entrance {
            proxies: listener.proxies.clone(),
            tls: tls.as_ref().map(Tls::acceptor),
            web_socket: listener.web_socket.clone(),
            profile: listener.profile,
        });
        for (doors, socket) in doors.iter_mut().zip(sockets) {
            doors.push(Door { listener: socket, held_by, entrance: entrance.clone() });
        }
    }
    Ok((doors, all_tls, bound))
}

fn bind_admin(
    config: &Config,
    activated: &mut Activated,
) -> Result<(std::net::TcpListener, std::net::SocketAddr), StartError> {
    let refused = |error| StartError::Bind { address: config.admin_bind, section: "[admin]", error };
    let socket = bind_one(config.admin_bind, activated).map_err(refused)?;
    let address = socket.local_addr().map_err(refused)?;
    Ok((socket, address))
}

/// A socket that no shards share.
fn bind_one(address: std::net::SocketAddr, activated: &mut Activated) -> io::Result<std::net::TcpListener> {
    if let Some(socket) = activated.take(address) {
        return Ok(socket);
    }
    let mut sockets = listener::bind(address, 1)?;
    Ok(sockets.pop().expect("invariant: one was asked for"))
}

fn upstreams(
    config: &Config,
    shards: usize,
    spool: Option<&spool::Opened>,
) -> Result<(Vec<Upstream>, Vec<EmbeddedHub>), StartError> {
    let mut hubs = Vec::new();
    let nonce = start_nonce().map_err(|error| StartError::Io("no randomness", error))?;
    let upstreams = config.upstreams.iter().enumerate().map(|(index, upstream)| {
        let members_a_shard = upstream.connections.div_ceil(shards).max(1);
        let (place, version) = match &upstream.kind {
            UpstreamKind::Embedded => {
                let failed = |error| StartError::Io("cannot start the embedded hub", error);
                let hub = EmbeddedHub::start(members_a_shard * shards).map_err(failed)?;
                let place = HubPlace::Embedded(hub.endpoint(), Arc::new(Muster::of(members_a_shard * shards)));
                hubs.push(hub);
                (place, ProtocolVersion::V3_1_1)
            }
            UpstreamKind::Mqtt(hub) => mqtt_hub(hub, upstream.window)?,
            UpstreamKind::Nats(hub) => {
                let hub = NatsHub::new(hub, &upstream.name, client_id(config, upstream)).map_err(no_trust)?;
                (HubPlace::Nats(hub), ProtocolVersion::V5_0)
            }
        };
        Ok(Upstream {
            name: upstream.name.clone(),
            place,
            link: link(config, upstream, version, &nonce),
            pace: (upstream.messages_per_second > 0).then(|| Arc::new(Pace::new(upstream.messages_per_second))),
            renewal: Arc::default(),
            members_a_shard,
            backlog: spool.and_then(|spool| spool.backlog(config, index)),
            status: (0..members_a_shard * shards).map(|_| Arc::new(MemberStatus::default())).collect(),
        })
    });
    Ok((upstreams.collect::<Result<_, StartError>>()?, hubs))
}

/// How devices are spread over the pool of a hub that keeps something for its connections.
fn layout(upstream: &Upstream, shards: usize) -> Option<(String, Layout)> {
    let keeps = matches!(upstream.place, HubPlace::At(..) | HubPlace::Rumqttc(..));
    let client_id = upstream.link.client.client_id.clone();
    let layout = Layout { client_id, shards, connections: upstream.members_a_shard };
    keeps.then(|| (upstream.name.clone(), layout))
}

fn mqtt_hub(hub: &MqttHubConfig, window: usize) -> Result<(HubPlace, ProtocolVersion), StartError> {
    if hub.wire.client == HubClient::Rumqttc {
        let place = RumqttcHub::new(hub, window).map_err(no_trust)?;
        return Ok((HubPlace::Rumqttc(place, hub.login.clone()), hub.version));
    }
    let address = match &hub.tls {
        None => HubAddress::plain(&hub.host, hub.port),
        Some(tls) => HubAddress::tls(&hub.host, hub.port, tls).map_err(no_trust)?,
    };
    Ok((HubPlace::At(address, hub.login.clone()), hub.version))
}

fn no_trust(error: TrustError) -> StartError {
    StartError::Io("a hub cannot be believed", io::Error::other(error))
}

/// What a hub calls the connections of the pool; each adds its number.
fn client_id(config: &Config, upstream: &UpstreamConfig) -> String {
    format!("tollgate-{}-{}", config.gateway.name, upstream.name)
}

fn link(config: &Config, upstream: &UpstreamConfig, version: ProtocolVersion, nonce: &str) -> LinkConfig {
    LinkConfig {
        client: ClientConfig {
            client_id: client_id(config, upstream),
            version,
            keep_alive: HUB_KEEP_ALIVE,
            // The embedded hub takes no filter back of a session that it resumed, and is lost only with all it held.
            session_expiry: if upstream.kind == UpstreamKind::Embedded { 0 } else { HUB_SESSION_EXPIRY },
            // The pool says who it is anew for each connection.
            user_name: None,
            password: None,
        },
        window: upstream.window,
        log_bytes_max: LINK_LOG_BYTES_MAX,
        id_prefix: format!("{}-{nonce}-{}", config.gateway.name, upstream.name),
        // From the embedded hub, from NATS and by rumqttc messages come with 1 at most.
        subscribe_qos_max: match &upstream.kind {
            UpstreamKind::Mqtt(hub) if hub.wire.client == HubClient::Native => QoS::ExactlyOnce,
            UpstreamKind::Mqtt(_) | UpstreamKind::Embedded | UpstreamKind::Nats(_) => QoS::AtLeastOnce,
        },
        spool: None,
    }
}

fn routes(config: &Config) -> Routes {
    let mut routes = Routes::default();
    for route in &config.routes {
        let upstream = config.upstreams.iter().position(|u| u.name == route.upstream);
        let upstream = upstream.expect("invariant: Config::load refuses a route to an unknown hub");
        routes
            .add(&route.from, route.to.as_deref(), upstream, route.ack)
            .expect("invariant: Config::load refuses a route that cannot be followed");
    }
    routes
}

impl Gateway {
    /// The embedded hub is there a moment after it was started: whoever reads the screen finds it.
    fn wait_for_own_hub(&self) {
        let until = Instant::now() + OWN_HUB_WITHIN;
        let kinds = self.config.upstreams.iter().zip(&self.site.upstreams);
        let own: Vec<_> =
            kinds.filter(|(config, _)| config.kind == UpstreamKind::Embedded).map(|(_, hub)| hub).collect();
        let is_there = || own.iter().all(|hub| hub.status.iter().all(|member| member.is_connected()));
        while !is_there() && Instant::now() < until {
            std::thread::sleep(OWN_HUB_LOOK);
        }
    }

    /// Serves the desk until a signal comes, then ends in order: no new connections, sessions closed, hubs told, the spool
    /// closed. A second signal, or the end of `drain_timeout`, ends it where it stands: what was acknowledged is safe.
    fn serve(mut self, supervisor: &Supervisor, meters: Meters) -> Result<(), StartError> {
        let failed = |error| StartError::Io("cannot serve the admin API", error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let ended = runtime.block_on(async {
            let mut signals = Signals::new()?;
            let listener = tokio::net::TcpListener::from_std(self.admin.try_clone()?)?;
            let backend = self.backend(meters)?;
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let served = tokio::spawn(admin::serve(listener, backend, async {
                // A sender that is gone means the same.
                let _ = stopped.await;
            }));
            tokio::spawn(supervisor.clone().watch(self.shards.clone()));
            tokio::spawn(near_misses::explain(self.site.clone(), Audit::open(&self.config.gateway.state_dir)));
            supervisor.ready();
            self.until_signal(&mut signals, supervisor).await;
            let limit = self.config.gateway.drain_timeout;
            supervisor.stopping(self.site.registry.len(), limit + CLOSE_WITHIN);
            io::Result::Ok(tokio::select! {
                biased;
                () = signals.next_end() => Err("a second signal"),
                () = tokio::time::sleep(limit + CLOSE_WITHIN) => Err("`drain_timeout` has passed"),
                () = self.end(limit, stop, served) => Ok(()),
            })
        });
        if let Err(why) = ended.map_err(failed)? {
            // Nothing is waited for any more, no thread and no disk.
            std::mem::forget(self);
            runtime.shutdown_background();
            return Err(StartError::CutShort(why));
        }
        Ok(())
    }

    fn backend(&self, meters: Meters) -> io::Result<admin::Backend> {
        let token = std::fs::read_to_string(config::admin_token_file(&self.config))?;
        Ok(admin::Backend {
            gateway: self.config.gateway.name.as_str().into(),
            token: Arc::new(Zeroizing::new(token.trim().to_owned())),
            gate: self.site.gate.clone(),
            registry: self.site.registry.clone(),
            journal: self.site.journal.clone(),
            clock: self.site.clock.clone(),
            meters,
            audit: Audit::open(&self.config.gateway.state_dir),
            revocations: self.config.gateway.revocations.clone(),
            local_revocations: config::local_revocations(&self.config.gateway.state_dir),
            control: Arc::new(desk::Desk::new(&self.config, &self.site, &self.shards, &self.changes, &self.keys)),
        })
    }

    /// Waits for SIGTERM or SIGINT; SIGHUP reads the files anew. Keeps the gauges meanwhile.
    async fn until_signal(&self, signals: &mut Signals, supervisor: &Supervisor) {
        let mut gauges = tokio::time::interval(GAUGES_EVERY);
        let mut kept = tokio::time::interval(CLOCK_KEPT_EVERY);
        let mut keys = tokio::time::interval(KEYS_TURNED_EVERY);
        loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::End => return,
                    Asked::Reload => {
                        supervisor.reloading();
                        let changes = self.changes.clone();
                        let _ = tokio::task::spawn_blocking(move || changes.reload_by_signal()).await;
                        supervisor.ready();
                    }
                },
                _ = gauges.tick() => {
                    desk::gauge(&self.site, &self.changes);
                    self.changes.certificates().look_at_dates(self.site.clock.now());
                    let changes = self.changes.clone();
                    // It takes the time that reading the file takes: nobody waits for it.
                    drop(tokio::task::spawn_blocking(move || changes.verify_list()));
                }
                _ = keys.tick() => {
                    let keys = self.keys.clone();
                    let _ = tokio::task::spawn_blocking(move || keys.turn()).await;
                }
                _ = kept.tick() => {
                    let site = self.site.clone();
                    let kept = move || {
                        site.clock.keep();
                        site.key_uses.save();
                        site.pools.save();
                    };
                    let _ = tokio::task::spawn_blocking(kept).await;
                }
            }
        }
    }
}

/// Files that may be open: a socket a connection, and some for everything else.
fn raise_file_limit(config: &Config) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let wanted = config.limits.connections_max as u64 + FILES_BESIDE_CONNECTIONS;
    if let Some(may) = getrlimit(Resource::Nofile).current
        && may < wanted
    {
        let connections_max = config.limits.connections_max;
        tracing::warn!(
            may,
            wanted,
            connections_max,
            "fewer files may be open than connections_max needs: raise LimitNOFILE (ulimit -n)"
        );
    }
}

/// Tells the messages of one start from those of another (`tollgate-id`).
fn start_nonce() -> io::Result<String> {
    let mut bytes = [0u8; 4];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

/// The file that a path names, wherever it was changed from.
fn same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Seconds between pings to a hub that is otherwise silent.
const HUB_KEEP_ALIVE: u16 = 30;
/// Seconds for which a 5.0 hub keeps commands for devices while the link is down: a day.
const HUB_SESSION_EXPIRY: u32 = 86_400;
/// Bytes of messages that one member retains; a full one stops reading from devices.
const LINK_LOG_BYTES_MAX: usize = 8 << 20;
/// After the drain: the desk, the token service, the spool.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// As a rule a tenth of a second.
const OWN_HUB_WITHIN: Duration = Duration::from_secs(3);
/// How often it is asked whether it is there.
const OWN_HUB_LOOK: Duration = Duration::from_millis(20);
/// How often the highest time and the last uses of keys go to disk: after a crash and with a clock that was turned back, guarded time begins this
/// much too early at most.
const CLOCK_KEPT_EVERY: Duration = Duration::from_secs(60);
/// How often the schedule of rotations is looked at: within the second that it names.
const KEYS_TURNED_EVERY: Duration = Duration::from_millis(200);
/// How often gauges are set that nobody sets otherwise.
const GAUGES_EVERY: Duration = Duration::from_secs(2);
/// Hubs, files, the admin API, the libraries.
const FILES_BESIDE_CONNECTIONS: u64 = 200;
