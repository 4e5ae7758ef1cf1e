//! A message that the hub will not have, from one device: everybody else's telemetry goes on, and nothing is lost.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::HashSet,
    process::Command,
    time::{Duration, Instant},
};

use support::{Answer, Gateway, Hub, HubClient, Plan, Recorder, Version, until};

#[test]
fn a_message_that_the_hub_closes_on_is_kept_and_acknowledged_and_holds_up_nobody() {
    closed_on(HubClient::Native);
}

#[test]
fn by_rumqttc_a_message_that_the_hub_closes_on_is_kept_and_acknowledged_and_holds_up_nobody() {
    closed_on(HubClient::Rumqttc);
}

fn closed_on(client: HubClient) {
    for version in [Version::V4, Version::V5] {
        let mut recorder = Recorder::start();
        // One link, so that all share it.
        let gateway = Plan::new(Hub::At(recorder.port(), version)).client(client).shards(1).start();
        recorder.tell("close on poison");
        let mut bad = gateway.connect(Version::V5, "d0");
        let mut good = gateway.connect(Version::V4, "d1");
        let id = bad.publish(&format!("{}poison", events(0)), b"bad", 1);
        for n in 0..100 {
            let started = Instant::now();
            good.publish_acknowledged(&events(1), n.to_string().as_bytes());
            assert!(started.elapsed() < Duration::from_secs(5), "held up for {:?}", started.elapsed());
        }
        assert_eq!(bad.next(PATIENCE), Answer::Puback(id, 0), "it is on the disk");
        bad.publish_acknowledged(&events(0), b"after it");
        assert_in_order(&recorder, &events(1), 100);
        until("what followed it", PATIENCE, || recorder.payloads(&events(0)) == ["after it"]);
        until("it to be counted", PATIENCE, || {
            gateway.metric("tollgate_set_aside_total", &["reason=\"closed\""]) == 1.0
                && gateway.metric("tollgate_spool_set_aside", &[]) == 1.0
        });
        assert!(recorder.connects() < 12, "{} connections", recorder.connects());
    }
}

#[test]
fn where_the_hub_alone_is_the_witness_the_device_is_told_and_nothing_is_kept() {
    told(HubClient::Native);
}

#[test]
fn by_rumqttc_where_the_hub_alone_is_the_witness_the_device_is_told_and_nothing_is_kept() {
    told(HubClient::Rumqttc);
}

fn told(client: HubClient) {
    for (version, answer) in [(Version::V5, Some(0x83)), (Version::V4, None)] {
        let mut recorder = Recorder::start();
        let gateway = Plan::new(Hub::At(recorder.port(), version)).client(client).shards(1).ack("hub").start();
        recorder.tell("close on poison");
        let mut bad = gateway.connect(version, "d0");
        let mut good = gateway.connect(Version::V5, "d1");
        let id = bad.publish(&format!("{}poison", events(0)), b"bad", 1);
        good.publish_acknowledged(&events(1), b"0");
        match (bad.next(PATIENCE), answer) {
            (Answer::Puback(acknowledged, code), Some(_)) => {
                assert!(acknowledged == id && code >= 0x80, "a refusal: {code:#04x}");
            }
            (answer, None) => assert_eq!(answer, Answer::Closed, "3.1.1 has no other word for it"),
            (answer, _) => panic!("{answer:?}"),
        }
        assert_eq!(gateway.metric("tollgate_spool_set_aside", &[]), 0.0);
    }
}

#[test]
fn a_message_that_the_hub_refuses_with_a_reason_is_kept_and_acknowledged() {
    refused(HubClient::Native);
}

#[test]
fn by_rumqttc_a_message_that_the_hub_refuses_with_a_reason_is_kept_and_acknowledged() {
    refused(HubClient::Rumqttc);
}

fn refused(client: HubClient) {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).shards(1).start();
    recorder.tell("refuse 144 on poison");
    let mut bad = gateway.connect(Version::V5, "d0");
    bad.publish_acknowledged(&format!("{}poison", events(0)), b"bad");
    bad.publish_acknowledged(&events(0), b"good");
    until("it to be counted", PATIENCE, || {
        gateway.metric("tollgate_set_aside_total", &["reason=\"refused\""]) == 1.0
            && gateway.metric("tollgate_spool_set_aside", &[]) == 1.0
    });
    assert_eq!(recorder.payloads(&events(0)), ["good"]);
    assert_eq!(recorder.connects(), 1, "the connection stood");
}

#[test]
fn what_is_set_aside_is_listed_sent_again_or_thrown_away_while_the_gateway_runs_and_when_it_is_stopped() {
    let mut recorder = Recorder::start();
    let mut gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).start();
    recorder.tell("refuse 144 on poison");
    let mut bad = gateway.connect(Version::V5, "d0");
    for payload in ["a", "b", "c"] {
        bad.publish_acknowledged(&format!("{}poison", events(0)), payload.as_bytes());
    }
    let aside = |gateway: &Gateway| gateway.metric("tollgate_spool_set_aside", &[]);
    until("them to be counted", PATIENCE, || aside(&gateway) == 3.0);
    let ids = listed(&gateway);
    assert_eq!(ids.len(), 3);
    assert!(tollgate(&gateway, &["discard", "00000000000000ff"]).is_err(), "no such message");
    assert!(tollgate(&gateway, &["retry", "all"]).is_err(), "no id");
    tollgate(&gateway, &["discard", &ids[1]]).expect("done");
    assert_eq!(listed(&gateway).len(), 2);
    // While the hub is as it was, another try ends where it began.
    tollgate(&gateway, &["retry", &ids[0]]).expect("done");
    until("it to be refused again", PATIENCE, || {
        gateway.metric("tollgate_set_aside_total", &["reason=\"refused\""]) == 4.0 && aside(&gateway) == 2.0
    });
    recorder.tell("refuse 144 on -");
    tollgate(&gateway, &["retry", &ids[0]]).expect("done");
    let topic = format!("{}poison", events(0));
    until("it to arrive", PATIENCE, || recorder.payloads(&topic) == ["a"] && aside(&gateway) == 1.0);
    gateway.process.kill();
    assert_eq!(listed(&gateway), ids[2..]);
    tollgate(&gateway, &["retry", "--all"]).expect("done");
    gateway.restart();
    until("it to arrive", PATIENCE, || recorder.payloads(&topic) == ["a", "c"]);
    until("nothing to be left", PATIENCE, || aside(&gateway) == 0.0);
    let (_, audit) = gateway.get("/v1/upstreams").expect("an answer");
    assert!(audit.contains("\"set_aside\":0"), "{audit}");
}

#[test]
fn a_hub_that_throttles_gets_everything_at_its_pace() {
    throttled(HubClient::Native);
}

#[test]
fn by_rumqttc_a_hub_that_throttles_gets_everything_at_its_pace() {
    throttled(HubClient::Rumqttc);
}

fn throttled(client: HubClient) {
    for version in [Version::V5, Version::V4] {
        let mut recorder = Recorder::start();
        let gateway = Plan::new(Hub::At(recorder.port(), version))
            .client(client)
            .shards(1)
            .limit("receive_maximum = 500")
            .start();
        recorder.tell("take 40");
        let mut devices: Vec<_> = (0..2).map(|n| gateway.connect(Version::V5, &format!("d{n}"))).collect();
        let before = gateway.process.cpu_ms();
        for n in 0..60 {
            for (number, device) in devices.iter_mut().enumerate() {
                device.publish_acknowledged(&events(number), n.to_string().as_bytes());
            }
        }
        until("all to arrive", Duration::from_secs(60), || {
            (0..2).all(|number| first_occurrences(recorder.payloads(&events(number))).len() == 60)
        });
        assert_eq!(gateway.metric("tollgate_spool_set_aside", &[]), 0.0, "slow down is no refusal");
        let used = gateway.process.cpu_ms() - before;
        assert!(used < 3_000, "{used} ms of processor time");
    }
}

/// `tollgate spool …` beside the gateway.
fn tollgate(gateway: &Gateway, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(["spool", "--config", "gateway.toml"]).args(arguments).current_dir(&gateway.folder);
    let ran = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if ran.status.success() { Ok(text(ran.stdout)) } else { Err(text(ran.stderr)) }
}

/// Ids of what is set aside, oldest first.
fn listed(gateway: &Gateway) -> Vec<String> {
    let text = tollgate(gateway, &["aside", "--json"]).expect("a listing");
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut all: Vec<_> = all.iter().map(|one| (one["received"].to_string(), one["id"].as_str().unwrap())).collect();
    all.sort();
    all.into_iter().map(|(_, id)| id.to_owned()).collect()
}

fn assert_in_order(recorder: &Recorder, topic: &str, count: usize) {
    until("all to arrive", PATIENCE, || first_occurrences(recorder.payloads(topic)).len() == count);
    let arrived = first_occurrences(recorder.payloads(topic));
    assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "{arrived:?}");
}

fn first_occurrences(payloads: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    payloads.into_iter().filter(|payload| seen.insert(payload.clone())).collect()
}

fn events(number: usize) -> String {
    format!("devices/d{number}/messages/events/")
}

const PATIENCE: Duration = Duration::from_secs(20);
