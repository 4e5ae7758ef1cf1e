//! The end of a gateway: what was sent is answered for, sessions are told why, hubs hear good-bye, all within a limit; a
//! second signal ends it at once. And the next gateway, to which systemd passes the sockets of the last.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::BTreeSet,
    net::TcpStream,
    os::unix::net::UnixDatagram,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use support::{Answer, Device, Hub, Login, Plan, Recorder, Version, folder, sas, until};

#[test]
fn what_was_sent_is_acknowledged_before_a_session_is_closed_and_its_reason_told() {
    let mut recorder = Recorder::start();
    let mut gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).ack("hub").start();
    recorder.tell("ack hold");
    let mut devices = [gateway.connect(Version::V4, "d0"), gateway.connect_tls(Version::V5, "d1")];
    let sent: Vec<[u16; 2]> = devices
        .iter_mut()
        .zip(0..)
        .map(|(device, n)| [b"a", b"b"].map(|text| device.publish(&events(n), text, 1)))
        .collect();
    until("the hub to have all", PATIENCE, || recorder.count() == 4);
    gateway.terminate();
    until("the drain to begin", PATIENCE, || TcpStream::connect(gateway.tcp).is_err());
    assert_eq!(gateway.get("/readyz").map(|(status, _)| status), Some(503));
    for (device, n) in devices.iter_mut().zip(0..) {
        assert_eq!(device.next(WATCHED), Answer::Silence, "the hub has not acknowledged");
        // Too late: it is for the next gateway to acknowledge.
        device.publish(&events(n), b"late", 1);
    }
    recorder.tell("ack now");
    for (device, [a, b]) in devices.iter_mut().zip(&sent) {
        assert_eq!([device.next(PATIENCE), device.next(PATIENCE)], [Answer::Puback(*a, 0), Answer::Puback(*b, 0)]);
    }
    let [old, new] = &mut devices;
    assert_eq!(old.next(PATIENCE), Answer::Closed);
    assert_eq!([new.next(PATIENCE), new.next(PATIENCE)], [Answer::Disconnect(0x8B), Answer::Closed]);
    assert_eq!(gateway.ended(PATIENCE), Some(0));
    assert_eq!(recorder.count(), 4, "what was not acknowledged was not forwarded");
}

#[test]
fn a_server_reference_is_told_to_those_who_can_read_it() {
    let mut gateway = Plan::new(Hub::Embedded).gateway("server_reference = \"edge-2.example:8883\"").start();
    let (mut old, mut new) = (gateway.connect(Version::V4, "d0"), gateway.connect(Version::V5, "d1"));
    gateway.terminate();
    assert_eq!(old.closed(PATIENCE), None);
    assert_eq!(new.closed(PATIENCE), Some(0x9C));
    assert_eq!(gateway.ended(PATIENCE), Some(0));
}

#[test]
fn sessions_are_closed_in_waves() {
    let sessions = 600;
    let mut gateway = Plan::new(Hub::Embedded).shards(1).devices(sessions).start();
    let devices: Vec<Device> = (0..sessions).map(|n| gateway.connect(version_of(n), &format!("d{n}"))).collect();
    gateway.terminate();
    assert_eq!(gateway.ended(PATIENCE), Some(0));
    drop(devices);
    // 600 ms, in ten parts; the first and the last close anywhere within theirs.
    let log = gateway.process.log();
    let seconds = |line: &str| -> f64 {
        let time = line.split('Z').next().and_then(|stamp| stamp.rsplit('T').next()).expect("a time");
        time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
    };
    let closed: Vec<f64> = log.lines().filter(|line| line.contains("reason=\"draining\"")).map(seconds).collect();
    assert_eq!(closed.len(), sessions, "each was closed, and for this");
    let took = (closed.last().unwrap() - closed.first().unwrap()).rem_euclid(86_400.0);
    assert!((0.45..10.0).contains(&took), "over {took} s");
    let halfway = closed.iter().filter(|at| (*at - closed[0]).rem_euclid(86_400.0) < took / 2.0).count();
    assert!((sessions / 5..sessions * 4 / 5).contains(&halfway), "{halfway} in the first half of the time");
}

#[test]
fn a_hub_that_acknowledges_nothing_holds_the_end_up_to_the_limit_and_no_longer() {
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).ack("hub").gateway("drain_timeout = \"2s\"");
    let mut gateway = plan.start();
    recorder.tell("ack hold");
    let mut device = gateway.connect(Version::V5, "d0");
    device.publish(&events(0), b"unanswered", 1);
    until("the hub to have it", PATIENCE, || recorder.count() == 1);
    let began = Instant::now();
    gateway.terminate();
    assert_eq!(device.next(PATIENCE), Answer::Disconnect(0x8B), "without a PUBACK");
    assert!(began.elapsed() > Duration::from_secs(1), "it was waited for");
    assert_eq!(gateway.ended(PATIENCE), Some(0), "that is as it was told");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn where_the_hub_is_away_what_is_pending_goes_to_the_disk_and_is_acknowledged_before_the_end() {
    let mut recorder = Recorder::start();
    let mut gateway = Plan::new(Hub::At(recorder.port(), Version::V4)).start();
    recorder.tell("ack hold");
    let mut device = gateway.connect(Version::V4, "d0");
    let ids: Vec<u16> = (0..50).map(|n| device.publish(&events(0), n.to_string().as_bytes(), 1)).collect();
    until("the hub to have some", PATIENCE, || recorder.count() > 0);
    recorder.kill();
    gateway.terminate();
    let mut acknowledged = Vec::new();
    while let Answer::Puback(id, 0) = device.next(PATIENCE) {
        acknowledged.push(id);
    }
    assert!(!acknowledged.is_empty() && ids.starts_with(&acknowledged), "{acknowledged:?}");
    assert_eq!(gateway.ended(PATIENCE), Some(0));
    recorder.restart();
    gateway.restart();
    has_all(&recorder, 0, acknowledged.len());
}

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing_that_was_acknowledged() {
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).gateway("drain_timeout = \"5m\"");
    // Of two hubs, one is waited for without end: nobody else can acknowledge.
    let unheard = "[[upstream]]\nname = \"b\"\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:1\"\n[[route]]\n\
                   from = \"devices/{device}/messages/events/b\"\nupstream = \"b\"\nack = \"hub\"\n";
    let mut gateway = plan.launch(|folder| {
        let file = folder.join("gateway.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let first_route = text.find("[[route]]").expect("a route");
        let (before, after) = text.split_at(first_route);
        std::fs::write(file, format!("{before}{unheard}{after}")).unwrap();
    });
    gateway.until_ready();
    let mut stays = gateway.connect(Version::V5, "d1");
    stays.publish("devices/d1/messages/events/b", b"waits", 1);
    recorder.kill();
    let mut device = gateway.connect(Version::V5, "d0");
    for n in 0..20 {
        device.publish_acknowledged(&events(0), n.to_string().as_bytes());
    }
    gateway.terminate();
    assert_eq!(device.closed(PATIENCE), Some(0x8B));
    assert_eq!(stays.next(WATCHED), Answer::Silence);
    let began = Instant::now();
    gateway.signal(rustix::process::Signal::INT);
    assert_eq!(gateway.ended(PATIENCE), Some(1));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(gateway.process.log().contains("a second signal"));
    recorder.restart();
    gateway.restart();
    has_all(&recorder, 0, 20);
}

#[test]
fn an_upgrade_behind_sockets_that_systemd_holds_refuses_nobody() {
    let recorder = Recorder::start();
    let mut gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).held().start();
    let (stop, acknowledged, turns) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let (tcp, tls, ca_pem) = (gateway.tcp, gateway.tls, gateway.ca_pem().to_vec());
    thread::scope(|scope| {
        let devices: Vec<_> = (0..6)
            .map(|n| {
                let (stop, acknowledged, turns, ca_pem) = (&stop, &acknowledged, &turns, &ca_pem);
                scope.spawn(move || {
                    let (version, device) = (version_of(n), format!("d{n}"));
                    let mut numbers = 0..;
                    let mut number = numbers.next().unwrap();
                    while !stop.load(Relaxed) {
                        // A refused connection is a panic here, and so is any CONNACK but a good one.
                        let open = |n| {
                            if n % 3 == 0 { Device::open_tls(tls, ca_pem, version) } else { Device::open(tcp, version) }
                        };
                        let mut connection = open(n).admitted(&Login::new(version, &device, &sas(&device)));
                        turns.fetch_add(1, Relaxed);
                        for _ in 0..10 {
                            let sent = connection.publish(&events(n), number.to_string().as_bytes(), 1);
                            match connection.next(PATIENCE) {
                                Answer::Puback(id, 0) if id == sent => {}
                                // The drain: what was not acknowledged is sent again on the next connection.
                                Answer::Disconnect(0x8B) | Answer::Closed => break,
                                other => panic!("{other:?}"),
                            }
                            acknowledged.fetch_add(1, Relaxed);
                            number = numbers.next().unwrap();
                        }
                    }
                    number
                })
            })
            .collect();
        for _ in 0..2 {
            let before = turns.load(Relaxed);
            until("devices to come and go", PATIENCE, || turns.load(Relaxed) > before + 30);
            gateway.terminate();
            assert_eq!(gateway.ended(PATIENCE), Some(0));
            // Nobody accepts; the kernel lets devices in all the same.
            let waits = TcpStream::connect(gateway.tcp).unwrap();
            gateway.restart();
            drop(waits);
        }
        let before = turns.load(Relaxed);
        until("devices to come and go", PATIENCE, || turns.load(Relaxed) > before + 30);
        stop.store(true, Relaxed);
        for (device, n) in devices.into_iter().zip(0..) {
            has_all(&recorder, n, device.join().expect("nobody was refused"));
        }
    });
    assert!(acknowledged.load(Relaxed) > 100);
}

#[test]
fn a_socket_that_no_bind_names_is_refused_at_the_start() {
    let mut gateway = Plan::new(Hub::Embedded).held().launch(|folder| {
        let file = folder.join("gateway.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(|line| match line.strip_prefix("bind = \"127.0.0.1:") {
            Some(port) => format!("bind = \"127.0.0.2:{port}\n"),
            None => format!("{line}\n"),
        });
        let text: String = lines.collect();
        std::fs::write(file, text).unwrap();
    });
    assert_eq!(gateway.ended(PATIENCE), Some(1));
    let log = gateway.process.log();
    for (address, name) in [(gateway.tcp, "mqtt"), (gateway.tls, "mqtts")] {
        assert!(log.contains(&format!("{address} ({name})")) && log.contains("ListenStream="), "{log}");
    }
}

#[test]
fn systemd_is_told_when_it_serves_reads_anew_and_ends_and_that_it_lives() {
    let path = folder("notify").join("socket");
    let told = UnixDatagram::bind(&path).unwrap();
    told.set_read_timeout(Some(PATIENCE)).unwrap();
    let plan = Plan::new(Hub::Embedded).environment("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut gateway = plan.environment("WATCHDOG_USEC", "1000000").start();
    let next = |wanted: &str| {
        let mut text = [0; 512];
        let mut passed = BTreeSet::new();
        loop {
            let len = told.recv(&mut text).unwrap_or_else(|e| panic!("{wanted} was not told, but {passed:?}: {e}"));
            let message = String::from_utf8(text[..len].to_vec()).unwrap();
            if message.lines().any(|line| line == wanted) {
                return (message, passed);
            }
            passed.insert(message);
        }
    };
    assert_eq!(next("READY=1").1, BTreeSet::new(), "before anything else");
    for _ in 0..3 {
        next("WATCHDOG=1");
    }
    gateway.signal(rustix::process::Signal::HUP);
    assert!(next("RELOADING=1").0.contains("MONOTONIC_USEC="));
    next("READY=1");
    next("WATCHDOG=1");
    gateway.terminate();
    assert!(next("STOPPING=1").0.contains("EXTEND_TIMEOUT_USEC="));
    assert_eq!(gateway.ended(PATIENCE), Some(0));
}

/// Waits until the hub has so many messages of the device, each at least once and in order.
#[track_caller]
fn has_all(recorder: &Recorder, device: usize, count: usize) {
    let wanted: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    let firsts = || {
        let mut seen = BTreeSet::new();
        let payloads = recorder.payloads(&events(device)).into_iter();
        payloads.filter(|payload| seen.insert(payload.clone())).collect::<Vec<_>>()
    };
    until("the hub to have everything", PATIENCE, || firsts().len() >= count);
    assert!(firsts().starts_with(&wanted), "{:?}", firsts());
}

fn events(device: usize) -> String {
    format!("devices/d{device}/messages/events/")
}

fn version_of(n: usize) -> Version {
    if n.is_multiple_of(2) { Version::V4 } else { Version::V5 }
}

const PATIENCE: Duration = Duration::from_secs(30);
/// For what must not come.
const WATCHED: Duration = Duration::from_millis(300);
