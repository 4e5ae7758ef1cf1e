//! Two devices, one hostile: whatever an admitted device does, memory is bounded, and its neighbour on the same shard and
//! the same connection to the hub has each of its messages acknowledged about as fast as when it is alone.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;
#[path = "conformance/wire.rs"]
#[allow(dead_code, reason = "this test uses its part")]
mod wire;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use support::{Answer, Device, Gateway, Plan, Version, Version::V5, dial, until};
use wire::{Connect, binary, cut, packet, publish, sized, subscribe, text, unsubscribe, user};

#[test]
fn a_hostile_device_takes_little_memory_and_none_of_its_neighbours_time() {
    let hub = Hub::start();
    let plan = Plan::new(support::Hub::At(hub.port, V5)).shards(1).limit("packet_timeout = \"5s\"");
    let gateway = plan.environment("RUST_LOG", "info").start();
    let mut polite = gateway.connect(V5, "d0");
    let quiet = latencies(&mut polite, 200);
    let before_kib = gateway.process.resident_kib();
    let mut failed = Vec::new();
    for (name, attack) in attacks() {
        let ends = Arc::new(AtomicBool::new(false));
        let hostile: Vec<_> = (1..=HOSTILE)
            .map(|n| {
                let (ends, address) = (ends.clone(), gateway.tcp);
                let connect = move |properties: &[u8]| {
                    let mut connect = Connect::new(V5, &format!("d{n}")).with(properties);
                    connect.keep_alive = 0;
                    Hostile::admitted(TcpStream::connect(address).ok()?, &connect.packet())
                };
                thread::spawn(move || {
                    while !ends.load(SeqCst) {
                        // Closed or at its end: it comes again, as often as a limit of a site lets it.
                        let _ = attack(&connect, n, &ends);
                        thread::park_timeout(BETWEEN_ATTACKS);
                    }
                })
            })
            .collect();
        let under_attack = latencies(&mut polite, 100);
        ends.store(true, SeqCst);
        hostile.into_iter().for_each(|thread| thread.join().unwrap());
        let grown_kib = gateway.process.resident_kib().saturating_sub(before_kib);
        let (alone, beside) = (quiet[quiet.len() / 2], under_attack[under_attack.len() / 2]);
        let worst = under_attack.last().copied().unwrap_or_default();
        println!("{name}: median {alone:?} alone, {beside:?} beside it, {worst:?} at worst; grown by {grown_kib} KiB");
        if beside > (alone * SLOWER_MAX).max(FLOOR) || grown_kib > GROWN_KIB_MAX {
            failed.push(name);
        }
    }
    hub.ends.store(true, SeqCst);
    assert_eq!(failed, [""; 0]);
}

#[test]
fn a_packet_has_an_end_however_slowly_it_comes() {
    let gateway = Plan::new(support::Hub::Embedded).limit("packet_timeout = \"1s\"").start();
    for version in [Version::V4, V5] {
        let mut device = gateway.connect(version, "d0");
        // Whole packets may take as long as they like to follow each other.
        for _ in 0..4 {
            device.ping();
            assert_eq!(device.next(PATIENCE), Answer::Pingresp);
            assert_eq!(device.next(Duration::from_millis(400)), Answer::Silence);
        }
        let whole = publish(version, 0x32, "devices/d0/messages/events/", 1, &[], &[0; 250_000]);
        let mut bytes = whole.iter();
        device.send(&[0x32]);
        bytes.next();
        let begun = Instant::now();
        let closed = loop {
            let byte = *bytes.next().expect("more bytes than seconds");
            if device.try_send(&[byte]).is_err() {
                break Answer::Closed;
            }
            match device.next(Duration::from_millis(50)) {
                Answer::Silence => assert!(begun.elapsed() < PATIENCE, "it is read for ever"),
                answer => break answer,
            }
        };
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        let expected = if version == V5 { Answer::Disconnect(0x8D) } else { Answer::Closed };
        assert!(closed == expected || closed == Answer::Closed, "{closed:?}");
        // The same packet in time.
        let mut device = gateway.connect(version, "d0");
        device.send(&whole);
        assert_eq!(device.next(PATIENCE), Answer::Puback(1, 0));
    }
    closed_for(&gateway, "packet_timeout", 2.0);
}

#[test]
fn a_device_that_reads_nothing_is_closed_in_time_whatever_it_sends() {
    let hub = Hub::start();
    let plan = Plan::new(support::Hub::At(hub.port, V5)).shards(1).limit("packet_timeout = \"2s\"");
    let gateway = plan.environment("RUST_LOG", "info").start();
    let mut connect = Connect::new(V5, "d1");
    connect.keep_alive = 0;
    let mut device = Hostile::admitted(dial(gateway.tcp), &connect.packet()).unwrap();
    device.pour(&subscribe(V5, 1, &[], &[("devices/d1/messages/devicebound/#", 0)]));
    let begun = Instant::now();
    until("it to be closed", Duration::from_secs(60), || {
        device.pour(&[0xC0, 0]);
        gateway.metric("tollgate_sessions_closed_total", &["reason=\"not_reading\""]) == 1.0
    });
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
    hub.ends.store(true, SeqCst);
}

#[test]
fn filters_of_one_device_are_bounded_in_bytes_as_well() {
    let gateway = Plan::new(support::Hub::Embedded).start();
    let mut device = gateway.connect(V5, "d0");
    let long = |letter: &str, bytes: usize| format!("devices/d0/messages/devicebound/{}", letter.repeat(bytes));
    assert_eq!(device.subscribe(&long("a", 40_000), 1), 1);
    assert_eq!(device.subscribe(&long("b", 30_000), 1), 0x97);
    assert_eq!(device.subscribe(&long("a", 40_000), 0), 0, "the same again is no more");
    assert_eq!(device.subscribe(&long("c", 20_000), 1), 1);
}

/// Of one hostile device, once; `None`: it was closed.
type Attack = fn(&dyn Fn(&[u8]) -> Option<Hostile>, usize, &AtomicBool) -> Option<()>;

fn attacks() -> Vec<(&'static str, Attack)> {
    vec![
        ("topic aliases, and one too many", |connect, n, _| {
            let mut device = connect(&[])?;
            for round in 0..200_u32 {
                let alias = u8::try_from(round % 10 + 1).unwrap();
                let topic = format!("{}{}{}", events(n), round, "x".repeat(1_000));
                device.pour(&publish(V5, 0x30, &topic, 0, &[0x23, 0, alias], b""))?;
            }
            device.pour(&publish(V5, 0x30, &events(n), 0, &[0x23, 0xFF, 0xFF], b""))
        }),
        ("ten thousand user properties", |connect, n, _| {
            let many = user("a", "b").repeat(10_000);
            connect(&[])?.pour(&publish(V5, 0x32, &events(n), 1, &many, b""))
        }),
        ("the largest packets", |connect, n, ends| {
            let mut device = connect(&[])?;
            let large = vec![0; 260 * 1024 - 200];
            while !ends.load(SeqCst) {
                device.pour(&publish(V5, 0x32, &events(n), 1, &[], &large))?;
                device.skim();
            }
            Some(())
        }),
        ("Receive Maximum 1 and no acknowledgement", |connect, n, ends| {
            let mut device = connect(&[0x21, 0, 1])?;
            device.pour(&subscribe(V5, 1, &[], &[(&commands(n), 2)]))?;
            device.linger(ends)
        }),
        ("Receive Maximum 65,535 and no acknowledgement", |connect, n, ends| {
            let mut device = connect(&[0x21, 0xFF, 0xFF])?;
            device.pour(&subscribe(V5, 1, &[], &[(&commands(n), 1)]))?;
            device.linger(ends)
        }),
        ("QoS 2 left half-way", |connect, n, _| {
            // A session that goes on, so that it is kept as well.
            let mut device = connect(&[0x11, 0, 0, 0, 60])?;
            for id in 1..=101 {
                device.pour(&publish(V5, 0x34, &events(n), id, &[], b"half"))?;
            }
            device.skim();
            Some(())
        }),
        ("a storm of PUBREL, PUBREC, PUBACK and PUBCOMP", |connect, _, _| {
            let mut device = connect(&[])?;
            for first in [0x62, 0x50, 0x40, 0x70] {
                let storm: Vec<u8> = (1..=2_000_u16).flat_map(|id| packet(first, &id.to_be_bytes())).collect();
                device.pour(&storm)?;
                device.skim();
            }
            Some(())
        }),
        ("a subscriber that never reads", |connect, n, ends| {
            let mut device = connect(&[])?;
            device.pour(&subscribe(V5, 1, &[], &[(&commands(n), 1)]))?;
            while !ends.load(SeqCst) {
                device.pour(&[0xC0, 0])?;
            }
            Some(())
        }),
        ("filters of 64 KiB", |connect, n, ends| {
            let mut device = connect(&[])?;
            for round in (0..50_u16).take_while(|_| !ends.load(SeqCst)) {
                let long =
                    |which: usize| format!("devices/d{n}/messages/devicebound/{which}{round}/{}", "y".repeat(64_000));
                let filters: Vec<String> = (0..4).map(long).collect();
                let requests: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
                device.pour(&subscribe(V5, round + 1, &[], &requests))?;
                // A gateway that is built for tests looks at a few megabytes of text a second: no more than it can do.
                thread::park_timeout(Duration::from_millis(200));
                device.skim();
            }
            Some(())
        }),
        ("SUBSCRIBE and UNSUBSCRIBE in turn", |connect, n, ends| {
            let mut device = connect(&[])?;
            while !ends.load(SeqCst) {
                let filter = format!("devices/d{n}/messages/devicebound/churn");
                device.pour(&[subscribe(V5, 1, &[], &[(&filter, 1)]), unsubscribe(V5, 2, &[&filter])].concat())?;
                device.skim();
            }
            Some(())
        }),
        ("a flood of PINGREQ", |connect, _, ends| {
            let mut device = connect(&[])?;
            while !ends.load(SeqCst) {
                device.pour(&[0xC0, 0].repeat(5_000))?;
            }
            Some(())
        }),
        ("a flood of AUTH", |connect, _, _| {
            let mut device = connect(&[])?;
            let properties = [vec![0x15], text("SAS"), vec![0x16], binary(b"no token")].concat();
            device.pour(&packet(0xF0, &[&[0x19][..], &sized(&properties)].concat()).repeat(100))
        }),
    ]
}

fn events(n: usize) -> String {
    format!("devices/d{n}/messages/events/")
}

fn commands(n: usize) -> String {
    format!("devices/d{n}/messages/devicebound/#")
}

/// How long each of so many messages waited for its PUBACK, shortest first.
#[track_caller]
fn latencies(device: &mut Device, count: usize) -> Vec<Duration> {
    let mut all: Vec<Duration> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            let id = device.publish("devices/d0/messages/events/", b"polite", 1);
            assert_eq!(device.next(PATIENCE), Answer::Puback(id, 0));
            begun.elapsed()
        })
        .collect();
    all.sort();
    all
}

#[track_caller]
fn closed_for(gateway: &Gateway, reason: &str, count: f64) {
    let label = format!("reason=\"{reason}\"");
    until("the reason to be counted", PATIENCE, || {
        gateway.metric("tollgate_sessions_closed_total", &[&label]) == count
    });
}

/// A connection that was admitted and keeps to nothing.
struct Hostile(TcpStream);

impl Hostile {
    fn admitted(mut stream: TcpStream, connect: &[u8]) -> Option<Self> {
        support::remember_tokens(connect);
        stream.write_all(connect).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut head = [0; 1];
        stream.read_exact(&mut head).ok().filter(|()| head == [0x20])?;
        stream.set_write_timeout(Some(Duration::from_millis(100))).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(1))).ok()?;
        Some(Self(stream))
    }

    /// Writes as much as is taken, which may be less; `None`: it was closed.
    fn pour(&mut self, bytes: &[u8]) -> Option<()> {
        match self.0.write_all(bytes) {
            Ok(()) => Some(()),
            // The rest of the packet is never sent: what follows is another's bytes in it.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Some(()),
            Err(_) => None,
        }
    }

    /// Takes what has come.
    fn skim(&mut self) {
        let mut chunk = [0; 16 * 1024];
        while self.0.read(&mut chunk).is_ok_and(|count| count == chunk.len()) {}
    }

    /// Reads, and answers nothing.
    fn linger(&mut self, ends: &AtomicBool) -> Option<()> {
        let mut chunk = [0; 16 * 1024];
        while !ends.load(SeqCst) {
            match self.0.read(&mut chunk) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
        }
        Some(())
    }
}

/// A hub that acknowledges at once, forgets, and sends each subscriber more than it can want.
struct Hub {
    port: u16,
    ends: Arc<AtomicBool>,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ends = Arc::new(AtomicBool::new(false));
        let shared = ends.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let ends = shared.clone();
                thread::spawn(move || serve(stream, &ends));
            }
        });
        Self { port, ends }
    }
}

fn serve(mut stream: TcpStream, ends: &Arc<AtomicBool>) {
    let writing = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let (filters, sent) = (Arc::new(Mutex::new(Vec::<String>::new())), Arc::new(AtomicU64::new(0)));
    let flood = (writing.clone(), filters.clone(), ends.clone(), sent.clone());
    thread::spawn(move || {
        let (writing, filters, ends, sent) = flood;
        let (mut id, payload) = (0_u16, [0x55; 1_000]);
        while !ends.load(SeqCst) {
            let wanted: Vec<String> = filters.lock().unwrap().iter().take(4).cloned().collect();
            let mut bytes = Vec::new();
            for filter in &wanted {
                let topic = filter.replace('#', "flood");
                // Receive Maximum of the gateway: no more of QoS 1 than it has answered for, and any number of QoS 0.
                if sent.load(SeqCst) < 50 {
                    id = id % 1_000 + 1;
                    sent.fetch_add(1, SeqCst);
                    bytes.extend(publish(V5, 0x32, &topic, id, &[], &payload));
                }
                bytes.extend(publish(V5, 0x30, &topic, 0, &[], &payload));
            }
            if bytes.is_empty() {
                thread::park_timeout(Duration::from_millis(5));
            } else if writing.lock().unwrap().write_all(&bytes).is_err() {
                return;
            }
            // What a gateway that is built for tests can read beside everything else.
            thread::park_timeout(Duration::from_millis(20));
        }
    });
    let (mut buffer, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    while let Ok(count) = stream.read(&mut chunk) {
        if count == 0 {
            return;
        }
        buffer.extend(chunk.iter().take(count));
        let (mut at, mut answers) = (0, Vec::new());
        while let Some((came, used)) = cut(&buffer[at..]) {
            at += used;
            let id = came.body.get(..2).unwrap_or_default().to_vec();
            match came.first >> 4 {
                1 => answers.extend(packet(0x20, &[0, 0, 0])),
                3 if came.qos() == 1 => answers.extend(packet(0x40, &came.publish(V5).1.to_be_bytes())),
                4 => drop(sent.fetch_sub(1, SeqCst)),
                8 => {
                    let asked = filters_of(&came.body, 1);
                    answers.extend(packet(0x90, &[&id[..], &[0], &vec![1; asked.len()]].concat()));
                    filters.lock().unwrap().extend(asked.into_iter().filter(|filter| filter.ends_with('#')));
                }
                10 => {
                    let given_back = filters_of(&came.body, 0);
                    answers.extend(packet(0xB0, &[&id[..], &[0], &vec![0; given_back.len()]].concat()));
                    filters.lock().unwrap().retain(|held| !given_back.contains(held));
                }
                12 => answers.extend([0xD0, 0]),
                _ => {}
            }
        }
        buffer.drain(..at);
        if writing.lock().unwrap().write_all(&answers).is_err() {
            return;
        }
    }
}

/// Of SUBSCRIBE (with a byte of options behind each) or UNSUBSCRIBE.
fn filters_of(body: &[u8], options: usize) -> Vec<String> {
    // Few properties: their length is one byte.
    let mut rest = body.get(3 + usize::from(body[2])..).unwrap_or_default();
    let mut found = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (filter, after) = after.split_at(usize::from(u16::from_be_bytes(*length)));
        found.push(String::from_utf8(filter.to_vec()).unwrap());
        rest = after.get(options..).unwrap_or_default();
    }
    found
}

/// Hostile devices at a time.
const HOSTILE: usize = 2;
const BETWEEN_ATTACKS: Duration = Duration::from_millis(20);
/// The gateway is built for tests and shares its cores with those who attack it: more than this is no noise.
const SLOWER_MAX: u32 = 50;
/// Below it, whatever the ratio is.
const FLOOR: Duration = Duration::from_secs(1);
/// Of all attacks together: queues of four devices, their packets, and what the allocator keeps.
const GROWN_KIB_MAX: u64 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);
