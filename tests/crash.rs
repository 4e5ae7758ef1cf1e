//! kill -9 of the gateway, of the hub, or of both, at random moments under load of QoS 1 and 2: what was acknowledged to a
//! device is in the log of a hub that syncs before it acknowledges, in order for each device. And of the gateway with the hub
//! inside it: what that hub had not acknowledged reaches it from the disk. `TOLLGATE_CRASH_ROUNDS` sets how many rounds, and
//! `make test` asks for 200; or `TOLLGATE_CRASH_MINUTES` for how long, with a line a minute (`bench/run soak`).

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use support::{
    Answer, Device, Ends, Gateway, Hub, Ledger, Login, Plan, Progress, Recorder, Version, events, folder,
    publish_numbers, publish_numbers_once, random, sas, until, until_drained,
};
use tollgate::delivery::spool::{ASIDE, Directory, Limits, SegmentLog, Spool as _, SpoolKeys};

#[test]
fn whoever_is_killed_nothing_acknowledged_is_lost_and_order_holds() {
    let (mut span, mut seed) = (Span::of(1), seed());
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).window(500);
    let mut gateway = span.quiet_if_long(plan).start();
    let ledger = Ledger::default();
    thread::scope(|scope| {
        for number in 0..DEVICES {
            let (ledger, tcp) = (&ledger, gateway.tcp);
            scope.spawn(move || publish(number, tcp, ledger));
        }
        let ends = Ends(&ledger.over);
        while span.goes_on() {
            until_more_is_acknowledged(&ledger, &mut seed);
            let wanted = recorder.size() + 1 + u64::from(random(&mut seed) % 30_000);
            until("the hub to be given more", PATIENCE, || recorder.size() >= wanted);
            let victim = random(&mut seed) % 3;
            if victim != 1 {
                gateway.process.kill();
            }
            if victim != 0 {
                recorder.kill();
            }
            // The other one lives on without it for a while, sometimes until it spools.
            let alone = Duration::from_millis(u64::from(random(&mut seed)) % 600);
            until_over(alone);
            if victim != 1 {
                gateway.run_again();
            }
            if victim != 0 {
                recorder.restart();
            }
            if victim != 1 {
                gateway.until_ready();
            }
            if span.drains() {
                // The next rounds find it forwarding directly.
                ledger.paused.store(true, Relaxed);
                until("devices to have all their answers", PATIENCE, || ledger.is_quiet());
                until_drained(&gateway);
                span.tell(&ledger.check(&recorder));
                ledger.paused.store(false, Relaxed);
            }
        }
        drop(ends);
    });
    until_drained(&gateway);
    println!("{} rounds: {}", span.rounds, ledger.check(&recorder));
}

/// The hub inside is memory of the process that is killed: what it had acknowledged, and its subscriber did not have, goes
/// with it. All else is on the disk.
#[test]
fn what_the_hub_inside_had_not_acknowledged_reaches_it_after_a_kill_in_order() {
    // Each round reads the spool as well: half as many.
    let (mut span, mut seed) = (Span::of(2), seed());
    let plan = Plan::new(Hub::Embedded).limit("[session]\nqueue_max = 100000");
    let mut gateway = span.quiet_if_long(plan).start();
    let (ledger, service) = (Ledger::default(), Subscriber::default());
    let mut kills = Vec::new();
    thread::scope(|scope| {
        let ends = Ends(&ledger.over);
        let (of_service, tcp) = (&service, gateway.tcp);
        let _service_ends = Ends(&service.over);
        scope.spawn(move || of_service.run(tcp));
        until("its subscription", PATIENCE, || service.is_subscribed.load(Relaxed));
        for number in 0..DEVICES {
            let (ledger, tcp) = (&ledger, gateway.tcp);
            scope.spawn(move || publish(number, tcp, ledger));
        }
        while span.goes_on() {
            until_more_is_acknowledged(&ledger, &mut seed);
            let had = service.next();
            gateway.process.kill();
            let waits = waiting(&gateway);
            let admitted = ledger.of_device.each_ref().map(|device| device.admitted.load(Relaxed));
            gateway.restart();
            let back = |number: usize| ledger.of_device[number].admitted.load(Relaxed) > admitted[number];
            until("the devices to be back", PATIENCE, || (0..DEVICES).all(back));
            let gone = |number| {
                let from = had.get(&number).copied().unwrap_or(0);
                let acknowledged = ledger.of_device[number].at_admission.load(Relaxed);
                // Of QoS 2 what was in flight may be gone as well: the hub inside had it, the session remembers its packet
                // id, and PUBREC was not sent yet.
                let in_flight = if number < DEVICES / 2 { 0 } else { support::IN_FLIGHT_MAX as u32 };
                let Some(waits) = waits.get(&number) else {
                    return (number, (from..acknowledged + in_flight, acknowledged));
                };
                let (first, last) = (*waits.first().unwrap(), *waits.last().unwrap());
                assert!(
                    last + 1 - first == waits.len() as u32,
                    "device {number}: {waits:?} wait, not one after another"
                );
                assert!(
                    last + 1 >= acknowledged,
                    "device {number}: {acknowledged} acknowledged, {last} is the last kept"
                );
                (number, (from..first, acknowledged))
            };
            kills.push((0..DEVICES).map(gone).collect::<BTreeMap<_, _>>());
            if span.drains() {
                // Whatever is missing shows in what comes behind it.
                let further = |number: usize| {
                    let Progress { acknowledged, at_admission, .. } = &ledger.of_device[number];
                    acknowledged.load(Relaxed) > at_admission.load(Relaxed)
                };
                until("every device to be served again", PATIENCE, || (0..DEVICES).all(further));
                ledger.paused.store(true, Relaxed);
                until_drained(&gateway);
                let has_all = |number: usize| {
                    let acknowledged = ledger.of_device[number].acknowledged.load(Relaxed);
                    service.next().get(&number).is_some_and(|next| *next >= acknowledged)
                };
                until("the subscriber to have the last of each device", PATIENCE, || (0..DEVICES).all(has_all));
                let (duplicates, gone) = service.check(&kills);
                let acknowledged = ledger.acknowledged.load(Relaxed);
                span.tell(&format!(
                    "hub inside: {acknowledged} acknowledged, {duplicates} duplicates, {gone} gone with it"
                ));
                ledger.paused.store(false, Relaxed);
            }
        }
        drop(ends);
    });
    let (duplicates, gone) = service.check(&kills);
    let acknowledged = ledger.acknowledged.load(Relaxed);
    println!(
        "{} rounds: {acknowledged} acknowledged, {duplicates} duplicates, {gone} gone with the hub inside",
        span.rounds
    );
}

fn publish(number: usize, tcp: SocketAddr, ledger: &Ledger) {
    if number < DEVICES / 2 { publish_numbers(number, tcp, ledger) } else { publish_numbers_once(number, tcp, ledger) }
}

fn until_more_is_acknowledged(ledger: &Ledger, seed: &mut u64) {
    let wanted = ledger.acknowledged.load(Relaxed) + 1 + random(seed) % 300;
    until("the load to go on", PATIENCE, || ledger.acknowledged.load(Relaxed) >= wanted);
}

/// A pause that is part of the fault: for so long one of them is without the other.
fn until_over(pause: Duration) {
    let started = Instant::now();
    until("the pause", Duration::from_secs(10), || started.elapsed() >= pause);
}

/// What waits in the spool of a gateway that does not run, by device.
fn waiting(gateway: &Gateway) -> BTreeMap<usize, BTreeSet<u32>> {
    let copy = folder("spool");
    for file in fs::read_dir(gateway.folder.join("var/spool")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let disk = Box::new(Directory::open(&copy).unwrap());
    let hubs = ["hub".to_owned()];
    let (mut log, found) = SegmentLog::open(disk, Limits::of_size(1 << 30), &hubs, &SpoolKeys::default()).unwrap();
    let mut waiting = BTreeMap::<usize, BTreeSet<u32>>::new();
    for state in found.streams {
        assert!(state.stream.queue != ASIDE || state.head == state.next, "nothing is set aside");
        let mut at = state.head;
        while at < state.next {
            let run = log.read(state.stream, at, 1 << 20).unwrap();
            for record in run.records() {
                let number = String::from_utf8(record.payload.to_vec()).unwrap().parse().unwrap();
                waiting.entry(device_of(record.topic)).or_default().insert(number);
            }
            at += run.count;
        }
    }
    fs::remove_dir_all(copy).unwrap();
    waiting
}

/// Of each device, what the subscriber may never get: from what it had before the kill to what waited on the disk.
/// And how many the device had been acknowledged.
type Gone = BTreeMap<usize, (std::ops::Range<u32>, u32)>;

/// A program of the site whose session outlives its connections.
#[derive(Default)]
struct Subscriber {
    received: Mutex<Vec<(usize, u32)>>,
    next: Mutex<BTreeMap<usize, u32>>,
    is_subscribed: AtomicBool,
    over: AtomicBool,
}

impl Subscriber {
    fn run(&self, tcp: SocketAddr) {
        while !self.over.load(Relaxed) {
            let Some(mut device) = self.connect(tcp) else {
                thread::park_timeout(Duration::from_millis(20));
                continue;
            };
            while !self.over.load(Relaxed) {
                match device.next(Duration::from_millis(200)) {
                    Answer::Publish { topic, payload, packet_id, .. } => {
                        self.take(&topic, &String::from_utf8(payload).unwrap());
                        let [high, low] = packet_id.to_be_bytes();
                        if device.try_send(&[0x40, 2, high, low]).is_err() {
                            break;
                        }
                    }
                    Answer::Silence => {}
                    Answer::Closed | Answer::Disconnect(_) => break,
                    other => panic!("the subscriber was sent {other:?}"),
                }
            }
        }
    }

    fn connect(&self, tcp: SocketAddr) -> Option<Device> {
        let mut device = Device::try_open(tcp, Version::V5)?;
        let login = Login { session: Some(3600), ..Login::new(Version::V5, "service", &sas("service")) };
        device.try_send(&login.packet()).ok()?;
        if device.next(Duration::from_secs(10)) != Answer::Connack(0) {
            return None;
        }
        if self.is_subscribed.load(Relaxed) {
            assert!(device.session_present, "the subscriber's session is gone");
        } else {
            assert_eq!(device.subscribe("devices/+/messages/events/#", 1), 1);
            self.is_subscribed.store(true, Relaxed);
        }
        Some(device)
    }

    fn take(&self, topic: &str, payload: &str) {
        let (device, number) = (device_of(topic), payload.parse().unwrap());
        self.received.lock().unwrap().push((device, number));
        let mut all = self.next.lock().unwrap();
        let next = all.entry(device).or_default();
        *next = (*next).max(number + 1);
    }

    /// Number after the highest that it has, by device.
    fn next(&self) -> BTreeMap<usize, u32> {
        self.next.lock().unwrap().clone()
    }

    /// In order for each device, and nothing is missing but what may be; says how many came twice, and how many never.
    #[track_caller]
    fn check(&self, kills: &[Gone]) -> (u32, u32) {
        let (mut seen, mut missed) = (BTreeMap::<usize, u32>::new(), BTreeSet::new());
        let mut duplicates = 0;
        for (device, number) in self.received.lock().unwrap().iter().copied() {
            let next = seen.entry(device).or_default();
            for number in *next..number {
                let may_be = kills.iter().any(|kill| kill.get(&device).is_some_and(|(gone, _)| gone.contains(&number)));
                let gone: Vec<_> = kills.iter().filter_map(|kill| kill.get(&device)).collect();
                assert!(may_be, "device {device}: {number} never came, and no kill explains it: {gone:?}");
                missed.insert((device, number));
            }
            // What the hub inside had, and the device was not told of, it sends again: behind what was on the disk.
            let is_sent_again = kills
                .iter()
                .filter_map(|kill| kill.get(&device))
                .any(|(gone, acknowledged)| gone.contains(&number) && number >= *acknowledged);
            let was_missed = missed.remove(&(device, number));
            assert!(!was_missed || is_sent_again, "device {device}: {number} came behind its successor");
            duplicates += u32::from(number < *next);
            *next = (*next).max(number + 1);
        }
        (duplicates, u32::try_from(missed.len()).unwrap())
    }
}

fn device_of(topic: &str) -> usize {
    let name = topic.split('/').nth(1).unwrap();
    let number = name.strip_prefix('d').unwrap().parse().unwrap();
    assert_eq!(topic, events(number));
    number
}

/// How long it goes on.
struct Span {
    rounds: u32,
    rounds_max: u32,
    lasts: Option<Duration>,
    started: Instant,
    told: Instant,
}

impl Span {
    /// All that was asked for, or one of so many parts.
    fn of(parts: u32) -> Self {
        let number = |name| env::var(name).ok().map(|text| text.parse::<u32>().expect("a number"));
        let rounds = number("TOLLGATE_CRASH_ROUNDS").unwrap_or(ROUNDS).div_ceil(parts);
        let lasts = number("TOLLGATE_CRASH_MINUTES").map(|minutes| Duration::from_secs(u64::from(minutes) * 60));
        let (rounds_max, now) = (rounds.next_multiple_of(ROUNDS_TO_DRAIN), Instant::now());
        Self { rounds: 0, rounds_max, lasts, started: now, told: now }
    }

    /// Hours of a trace are too much for a disk.
    fn quiet_if_long(&self, plan: Plan) -> Plan {
        if self.lasts.is_some() { plan.environment("RUST_LOG", "info") } else { plan }
    }

    /// Whether another round is to follow.
    fn goes_on(&mut self) -> bool {
        // The last one is one after which all is drained and checked.
        let enough = self.lasts.map_or(self.rounds >= self.rounds_max, |lasts| self.started.elapsed() >= lasts);
        let goes_on = !enough || !self.drains() && self.rounds > 0;
        self.rounds += u32::from(goes_on);
        goes_on
    }

    fn drains(&self) -> bool {
        self.rounds.is_multiple_of(ROUNDS_TO_DRAIN)
    }

    /// A line a minute, where it lasts for minutes.
    fn tell(&mut self, ledger: &str) {
        if self.lasts.is_some() && self.told.elapsed() >= Duration::from_secs(60) {
            self.told = Instant::now();
            println!("{:>4} minutes, {} rounds: {ledger}", self.started.elapsed().as_secs() / 60, self.rounds);
        }
    }
}

fn seed() -> u64 {
    env::var("TOLLGATE_CRASH_SEED").map_or(42, |text| text.parse().unwrap())
}

/// Half of them publish with QoS 1, the others with QoS 2; both speak both versions.
const DEVICES: usize = 8;
/// In `cargo test`.
const ROUNDS: u32 = 8;
const ROUNDS_TO_DRAIN: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);
