//! Who the pool says it is at its hub. The hub is a second gateway, which checks it: tokens with their signature and their
//! end, certificates with their authority.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use support::{Device, Hub, HubClient, Plan, Recorder, Version, until};

#[test]
fn tokens_are_made_for_each_connection_and_renewed_one_member_at_a_time_without_a_gap() {
    tokens_are_renewed(Version::V5, 2, HubClient::Native);
}

#[test]
fn by_rumqttc_tokens_are_made_for_each_connection_and_renewed_one_member_at_a_time_without_a_gap() {
    tokens_are_renewed(Version::V5, 2, HubClient::Rumqttc);
}

#[test]
fn over_3_1_1_tokens_are_renewed_as_well() {
    tokens_are_renewed(Version::V4, 1, HubClient::Native);
}

#[test]
fn by_rumqttc_over_3_1_1_tokens_are_renewed_as_well() {
    tokens_are_renewed(Version::V4, 1, HubClient::Rumqttc);
}

fn tokens_are_renewed(version: Version, members: usize, client: HubClient) {
    let recorder = Recorder::start();
    let hub = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1).skew_seconds(0);
    let hub = hub.credentials("hub_wide_tokens = true").identities_and(&pool_of(members));
    let hub = hub.start_with(|folder| write_secret(&folder.join("pool.key"), KEY));
    let key_file = hub.folder.join("pool.key");
    let plan = Plan::new(Hub::At(hub.tcp.port(), version)).client(client).shards(members);
    // Of 3.1.1 a password needs a user name.
    let user_name = if version == Version::V4 { "username = \"localhost/tollgate-edge-test-hub-0\"" } else { "" };
    let sas = "policy = \"pool\", resource = \"localhost\", token_lifetime = \"10s\"";
    let plan = plan.hub_line(user_name).hub_line(&format!("sas = {{ {sas}, key_file = {key_file:?} }}"));
    let gateway = plan.start();
    let members = members as f64;
    until("the pool", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == members);
    let mut devices: Vec<Device> = (0..4).map(|n| gateway.connect(Version::V5, &format!("d{n}"))).collect();
    let admitted = || hub.metric("tollgate_connects_total", &["result=\"admitted\""]);
    let (started, mut slowest, mut sent) = (Instant::now(), Duration::ZERO, 0);
    // Through two renewals of each member.
    while admitted() < 3.0 * members {
        assert!(started.elapsed() < Duration::from_secs(40), "renewed in time: {} connects", admitted());
        for (n, device) in devices.iter_mut().enumerate() {
            let began = Instant::now();
            device.publish_acknowledged(&events(n), sent.to_string().as_bytes());
            slowest = slowest.max(began.elapsed());
        }
        sent += 1;
    }
    assert!(started.elapsed() > Duration::from_secs(12), "not more often than needed: {:?}", started.elapsed());
    assert!(slowest < Duration::from_secs(2), "a PUBLISH took {slowest:?}");
    let closed = |reason: &str| hub.metric("tollgate_sessions_closed_total", &[&format!("reason=\"{reason}\"")]);
    assert_eq!(closed("expired"), 0.0, "no token ever ended");
    until("all to arrive", PATIENCE, || (0..4).all(|n| recorder.payloads(&events(n)).len() >= sent));
    for n in 0..4 {
        let arrived = recorder.payloads(&events(n));
        assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "device {n}: once, in order");
    }
}

#[test]
fn a_hub_is_shown_the_pools_certificate_and_the_next_one_when_the_files_change() {
    shown_the_certificate(HubClient::Native);
}

#[test]
fn by_rumqttc_a_hub_is_shown_the_pools_certificate_and_the_next_one_when_the_files_change() {
    shown_the_certificate(HubClient::Rumqttc);
}

fn shown_the_certificate(client: HubClient) {
    let recorder = Recorder::start();
    let ca = Ca::new();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1);
    let plan = plan.identities_and("[[device]]\nid = \"tollgate-edge-test-hub-0\"\nscope.publish = [\"devices/#\"]\n");
    let hub = plan.start_with(|folder| {
        fs::write(folder.join("pool-ca.pem"), &ca.pem).unwrap();
        let asks = format!("client_auth = \"required\"\nclient_ca = {:?}", folder.join("pool-ca.pem"));
        replace(folder, "transport = \"tls\"", &format!("transport = \"tls\"\n{asks}"));
    });
    let plan = Plan::new(Hub::Tls(hub.tls.port(), Version::V5)).client(client).shards(1);
    let gateway = plan.start_with(|folder| {
        fs::write(folder.join("hub-ca.pem"), hub.ca_pem()).unwrap();
        ca.sign(folder, "somebody-else");
        let lines = format!(
            "ca = \"{0}/hub-ca.pem\"\nclient_certificate = \"{0}/pool.pem\"\nclient_key = \"{0}/pool.key\"\n",
            folder.display()
        );
        replace(folder, "[[route]]", &format!("{lines}[[route]]"));
    });
    until("it to be refused", PATIENCE, || {
        gateway.get("/v1/upstreams").is_some_and(|(_, body)| body.contains("refused the connection"))
    });
    // Another certificate in its place is shown on the next connection.
    ca.sign(&gateway.folder, "tollgate-edge-test-hub-0");
    until("the pool", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 1.0);
    let mut device = gateway.connect(Version::V5, "d0");
    device.publish_acknowledged(&events(0), b"by certificate");
    until("it to arrive", PATIENCE, || recorder.payloads(&events(0)) == ["by certificate"]);
}

#[test]
fn a_hub_with_a_pace_is_sent_no_more_than_that() {
    paced(HubClient::Native);
}

#[test]
fn by_rumqttc_a_hub_with_a_pace_is_sent_no_more_than_that() {
    paced(HubClient::Rumqttc);
}

fn paced(client: HubClient) {
    let recorder = Recorder::start();
    let plan =
        Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).shards(2).hub_line("messages_per_second = 100");
    let gateway = plan.start();
    let mut devices: Vec<Device> = (0..4).map(|n| gateway.connect(Version::V5, &format!("d{n}"))).collect();
    let started = Instant::now();
    for i in 0..100 {
        for (n, device) in devices.iter_mut().enumerate() {
            device.publish(&events(n), i.to_string().as_bytes(), 1);
        }
    }
    until("all to arrive", Duration::from_secs(20), || recorder.count() >= 400);
    let took = started.elapsed();
    assert!(
        took > Duration::from_millis(3_400) && took < Duration::from_millis(8_000),
        "400 at 100 a second: {took:?}"
    );
    for n in 0..4 {
        let arrived = recorder.payloads(&events(n));
        assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "device {n}: {arrived:?}");
    }
}

/// A policy, and the pool's client ids as its devices.
fn pool_of(members: usize) -> String {
    let scope = "scope.publish = [\"devices/#\"]\nscope.subscribe = [\"devices/#\"]\n";
    let device = |n| format!("[[device]]\nid = \"tollgate-edge-test-hub-{n}\"\n{scope}");
    let devices: String = (0..members).map(device).collect();
    let policy = "[[policy]]\nname = \"pool\"\nresource = \"localhost\"\nprimary_key_file = \"pool.key\"\n";
    format!("{policy}rights = [\"publish\", \"subscribe\"]\n{devices}")
}

fn replace(folder: &Path, what: &str, by: &str) {
    let file = folder.join("gateway.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(what, by)).unwrap();
}

/// Who signs the pool's certificates.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = ca.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(ca, key) }
    }

    /// Writes `pool.pem` and `pool.key`, each as a whole.
    fn sign(&self, folder: &Path, name: &str) {
        let key = KeyPair::generate().unwrap();
        let mut certificate = CertificateParams::new(Vec::new()).unwrap();
        certificate.distinguished_name.push(DnType::CommonName, name);
        let certificate = certificate.signed_by(&key, &self.issuer).unwrap();
        write_secret(&folder.join("pool.key"), &key.serialize_pem());
        fs::write(folder.join("pool.pem"), certificate.pem()).unwrap();
    }
}

fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn events(number: usize) -> String {
    format!("devices/d{number}/messages/events/")
}

const KEY: &str = "cG9vbC1vZi1hLWdhdGV3YXktd2l0aC1hLWxvbmcta2V5";
const PATIENCE: Duration = Duration::from_secs(20);
