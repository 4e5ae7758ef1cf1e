//! What waits on the disk, as devices and operators meet it: shares while it is drained, shares of the room, ages, and
//! what is shown of it.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{fs, process::Command, time::Duration};

use support::{Answer, Gateway, Hub, Plan, Recorder, Version, publish_packet, until};

#[test]
fn a_live_device_is_served_while_the_long_backlog_of_another_is_drained() {
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1).window(10);
    let gateway = plan.limit("receive_maximum = 5000").start();
    until("the hub", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 1.0);
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    let mut flooding = gateway.connect(Version::V5, "d0");
    let flood: Vec<u8> = (0..BACKLOG).flat_map(|n| event(0, &format!("{n}:{}", "x".repeat(500)), n)).collect();
    flooding.send(&flood);
    for n in 0..BACKLOG {
        assert_eq!(flooding.next(PATIENCE), Answer::Puback(packet_id(n), 0));
    }
    recorder.restart();
    // Ten at a time, each acknowledged late: it takes a while.
    recorder.tell("ack after 20");
    until("some of it to arrive", PATIENCE, || recorder.payload_heads(&topic(0), 4).len() > 50);
    let mut live = gateway.connect(Version::V4, "d1");
    for n in 0..10 {
        let text = format!("live {n}");
        live.publish_acknowledged(&topic(1), text.as_bytes());
        until("it to arrive", PATIENCE, || recorder.payloads(&topic(1)).contains(&text));
    }
    let drained = recorder.payload_heads(&topic(0), 4).len();
    assert!(drained < BACKLOG, "the backlog was drained first");
    recorder.tell("ack now");
    until("the backlog to be drained", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
}

#[test]
fn one_device_that_floods_leaves_room_for_others_while_the_hub_is_away() {
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1);
    let gateway = plan.limit("receive_maximum = 2000\n[spool]\nsize_max = \"2 MiB\"").start();
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    let mut flooding = gateway.connect(Version::V5, "d0");
    // From here on its messages go to the disk. What a window holds when its hub is lost goes there as a whole, and is more
    // than this spool.
    flooding.publish_acknowledged(&topic(0), b"first");
    let flood: Vec<u8> = (0..1_500).flat_map(|n| event(0, &format!("{n}:{}", "x".repeat(8 * 1024)), n)).collect();
    let taken = flooding.write_until_blocked(&flood, Duration::from_millis(1_500));
    assert!(taken < flood.len(), "the gateway stops reading");
    // Whoever comes is answered, although the hub is away.
    for device in 1..6 {
        let mut other = gateway.connect(Version::V4, &format!("d{device}"));
        for n in 0..5 {
            other.publish_acknowledged(&topic(device), format!("{n}:{}", "y".repeat(2_000)).as_bytes());
        }
    }
    until("the alarm", PATIENCE, || gateway.metric("tollgate_alarm", &["kind=\"spool\""]) == 1.0);
    let seen = upstream(&gateway);
    assert!(
        seen["spool_error"].as_str().is_some_and(|error| error.contains("has its share")),
        "nobody took all: {seen}"
    );
}

#[test]
fn what_waits_for_longer_than_age_max_is_set_aside_while_the_hub_is_away() {
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).limit("[spool]\nage_max = \"3s\"");
    let gateway = plan.start();
    let mut devices: Vec<_> = (0..10).map(|n| gateway.connect(Version::V5, &format!("d{n}"))).collect();
    for (n, device) in devices.iter_mut().enumerate() {
        device.publish_acknowledged(&topic(n), b"in time");
    }
    recorder.kill();
    // In the window, which a lost hub leaves behind, and on the disk.
    for round in 0..20 {
        for (n, device) in devices.iter_mut().enumerate() {
            device.publish_acknowledged(&topic(n), format!("old {round}").as_bytes());
        }
    }
    until("all of it to be too old", PATIENCE, || set_aside(&gateway) == 200.0);
    until("it to be shown", PATIENCE, || gateway.metric("tollgate_spool_set_aside", &[]) == 200.0);
    until("nothing to wait", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
    assert!(tollgate(&gateway, &["spool", "aside"]).contains("longer than age_max"));
    recorder.restart();
    for (n, device) in devices.iter_mut().enumerate() {
        // Until its hub is noticed to be back, these may be too old before they are sent.
        until("it to arrive", PATIENCE, || {
            device.publish_acknowledged(&topic(n), b"in time again");
            recorder.payloads(&topic(n)).contains(&"in time again".to_owned())
        });
        assert_eq!(recorder.payloads(&topic(n)).iter().filter(|text| text.starts_with("old")).count(), 0);
    }
}

#[test]
fn backlog_age_window_last_error_and_pace_of_a_hub_are_shown_while_it_is_away_and_after() {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1).window(7).start();
    let mut device = gateway.connect(Version::V5, "d0");
    device.publish_acknowledged(&topic(0), b"first");
    until("a pace", PATIENCE, || {
        device.publish_acknowledged(&topic(0), b"more");
        upstream(&gateway)["messages_per_second"].as_u64() > Some(0)
    });
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    for n in 0..30 {
        device.publish_acknowledged(&topic(0), n.to_string().as_bytes());
    }
    until("its age", PATIENCE, || upstream(&gateway)["oldest_seconds"].as_u64() >= Some(2));
    let seen = upstream(&gateway);
    assert!(seen["spooled"].as_u64() >= Some(30) && seen["spooling"] == true, "{seen}");
    assert_eq!((&seen["state"], &seen["window"]), (&"down".into(), &7.into()), "{seen}");
    let error = seen["last_error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("20") && error.contains('T'), "with its time: {error}");
    until("the pace to be none", PATIENCE, || upstream(&gateway)["messages_per_second"] == 0);
    let metric = |name: &str| gateway.metric(name, &["upstream="]);
    until("the metrics", PATIENCE, || metric("tollgate_upstream_backlog") >= 30.0);
    assert_eq!(metric("tollgate_upstream_window"), 7.0);
    until("the age among them", PATIENCE, || metric("tollgate_upstream_oldest_seconds") >= 2.0);
    assert!(metric("tollgate_upstream_errors_total") >= 1.0 && metric("tollgate_forwarded_total") >= 2.0);
    let shown = tollgate(&gateway, &["upstreams"]);
    for part in ["down, spooling", "last error: 20", "oldest", "msgs/s", "window"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    recorder.restart();
    until("the backlog to be drained", PATIENCE, || upstream(&gateway)["spooled"] == 0);
    // Whoever looks afterwards wants to know what it was.
    let after = upstream(&gateway);
    assert_eq!(after["state"], "up", "{after}");
    assert!(after["last_error"].as_str().is_some_and(|error| error.starts_with("20")), "{after}");
    assert!(tollgate(&gateway, &["upstreams"]).contains("last error: 20"));
}

#[test]
fn what_is_tried_again_twice_at_once_is_sent_once_and_the_answers_say_so() {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).start();
    recorder.tell("refuse 144 on poison");
    let poison = format!("{}poison", topic(0));
    let mut device = gateway.connect(Version::V5, "d0");
    for n in 0..5 {
        device.publish_acknowledged(&poison, n.to_string().as_bytes());
    }
    until("them to be set aside", PATIENCE, || gateway.metric("tollgate_spool_set_aside", &[]) == 5.0);
    recorder.tell("refuse 144 on -");
    let name = upstream(&gateway)["name"].as_str().unwrap().to_owned();
    let path = format!("/v1/upstreams/{name}/aside/retry");
    let done: u64 = std::thread::scope(|scope| {
        let ask = || {
            let (status, body) = gateway.post(&path, r#"{"all": true}"#).unwrap();
            assert_eq!(status, 200, "{body}");
            let done: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert!(done["messages"].as_u64().unwrap() + done["left"].as_u64().unwrap() <= 5, "{done}");
            done["messages"].as_u64().unwrap()
        };
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).sum()
    });
    assert_eq!(done, 5);
    until("none to be set aside", PATIENCE, || gateway.metric("tollgate_spool_set_aside", &[]) == 0.0);
    until("all to be sent", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
    until("them to arrive", PATIENCE, || recorder.payloads(&poison).len() >= 5);
    // What comes behind them shows that nothing else came.
    device.publish_acknowledged(&poison, b"last");
    until("the last", PATIENCE, || recorder.payloads(&poison).contains(&"last".to_owned()));
    let mut arrived = recorder.payloads(&poison);
    assert_eq!(arrived.pop().as_deref(), Some("last"));
    arrived.sort();
    assert_eq!(arrived, ["0", "1", "2", "3", "4"]);
}

fn upstream(gateway: &Gateway) -> serde_json::Value {
    let (status, body) = gateway.get("/v1/upstreams").unwrap();
    assert_eq!(status, 200);
    let list: serde_json::Value = serde_json::from_str(&body).unwrap();
    list["upstreams"][0].clone()
}

fn set_aside(gateway: &Gateway) -> f64 {
    gateway.metric("tollgate_set_aside_total", &["reason=\"too_old\""])
}

fn tollgate(gateway: &Gateway, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).args(["--config", "gateway.toml"]).current_dir(&gateway.folder);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::exists(gateway.folder.join("gateway.toml")).unwrap());
    String::from_utf8(output.stdout).unwrap()
}

fn event(device: usize, payload: &str, n: usize) -> Vec<u8> {
    publish_packet(Version::V5, &topic(device), payload.as_bytes(), 1, packet_id(n))
}

fn packet_id(n: usize) -> u16 {
    u16::try_from(n + 1).unwrap()
}

fn topic(device: usize) -> String {
    format!("devices/d{device}/messages/events/")
}

/// Messages: seconds of work for a hub that takes ten in 20 ms.
const BACKLOG: usize = 3_000;
const PATIENCE: Duration = Duration::from_secs(60);
