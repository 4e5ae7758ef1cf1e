//! Admission, publishing, renewal and a change at the same time: nothing that is read after a change has been applied is
//! accepted. On threads of their own, by the gateway's own steps (`registry::Threshold`); and over sockets, by devices that
//! publish as fast as they can.
//! (Over 600 lines: one race, and each kind of change that takes part in it.)

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use proptest::prelude::*;
use serde_json::json;
use sha2::Sha256;
use support::{
    Answer, Device as Client, Gateway, Hub, Login, Plan, Recorder, Version, device_key, jwt, publish_packet, sas,
    sas_for, unix_now, until, until_some,
};
use tollgate::{
    credential::{
        Algorithm, Credential, Device, Group, Issuer, JwtClaims, Keyring, Policy, Published, Resource, RevocationList,
        Rights, ScopeIndex, SecretKey, SigningKey, Slots, VerifyingKey, mint_jwt, mint_sas,
    },
    denial::CloseReason,
    gate::{Admission, Gate, GateConfig, Identities, Profile},
    id::{DeviceId, TokenId},
    packet::ProtocolVersion,
    policy::{FilterTemplate, Grant, ScopeTemplate},
    registry::{Attention, Live, Reach, Registry, Threshold},
    time::UnixSeconds,
    topic::TopicName,
};

/// What is taken away while the device connects, publishes and renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// An entry names the `jti` of the second of two tokens, by which the device renews in turn.
    Jti,
    /// An entry names the second token.
    Token,
    /// An entry names the device.
    Device,
    /// An entry names the key that made the second token.
    KeySlot,
    /// Tokens of the device that were issued before: the second.
    IssuedBeforeOfDevice,
    /// The same of the issuer.
    IssuedBeforeOfIssuer,
    /// The same of a policy, whose tokens do not say when they were issued.
    IssuedBeforeOfPolicy,
    /// Tokens of the policy that end before: the second.
    ExpiresBefore,
    /// A rotation: the primary becomes the secondary, and what was the secondary, which made the second token, is gone.
    Rotation,
    /// Both keys of the device are replaced.
    KeysReplaced,
    /// The policy, which made the second token, gets another key.
    PolicyKey,
    /// The policy is gone.
    PolicyGone,
    /// The issuer of the second token is gone.
    IssuerGone,
    /// The issuer has another key.
    IssuerKey,
    /// The key of the group from which that of the device is derived is replaced.
    GroupKey,
    /// The device is switched off.
    DeviceOff,
    /// The device is gone.
    DeviceGone,
    /// The topic that it publishes to falls out of its scope.
    ScopeNarrowed,
}

/// What is spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spared {
    Nothing,
    FirstToken,
}

impl Change {
    const ALL: [Self; 18] = [
        Self::Jti,
        Self::Token,
        Self::Device,
        Self::KeySlot,
        Self::IssuedBeforeOfDevice,
        Self::IssuedBeforeOfIssuer,
        Self::IssuedBeforeOfPolicy,
        Self::ExpiresBefore,
        Self::Rotation,
        Self::KeysReplaced,
        Self::PolicyKey,
        Self::PolicyGone,
        Self::IssuerGone,
        Self::IssuerKey,
        Self::GroupKey,
        Self::DeviceOff,
        Self::DeviceGone,
        Self::ScopeNarrowed,
    ];

    fn spares(self) -> Spared {
        match self {
            Self::Device
            | Self::KeysReplaced
            | Self::GroupKey
            | Self::DeviceOff
            | Self::DeviceGone
            | Self::ScopeNarrowed => Spared::Nothing,
            _ => Spared::FirstToken,
        }
    }

    fn device(self) -> &'static str {
        if self == Self::GroupKey { "line-1" } else { "d" }
    }

    /// The two tokens by which the device renews in turn.
    fn tokens(self) -> [String; 2] {
        let own = |key, expires_in| mint_sas("localhost/devices/d", key, after(expires_in), None);
        let by_policy = |expires_in| mint_sas("localhost/devices/d", POLICY, after(expires_in), Some("p"));
        let derived = Hmac::<Sha256>::new_from_slice(GROUP).unwrap().chain_update(b"line-1").finalize().into_bytes();
        let of_group = |expires_in| mint_sas("localhost/devices/line-1", &derived, after(expires_in), None);
        match self {
            Self::Jti | Self::IssuerGone | Self::IssuerKey => [own(PRIMARY, 600), by_issuer("j2", NOW.0)],
            Self::IssuedBeforeOfDevice | Self::IssuedBeforeOfIssuer => {
                [by_issuer("j1", NOW.0), by_issuer("j2", NOW.0 - 100)]
            }
            // Issued, at the earliest, at their end less the limit of the policy.
            Self::IssuedBeforeOfPolicy | Self::ExpiresBefore => [by_policy(POLICY_LIFE), by_policy(POLICY_LIFE - 100)],
            Self::PolicyKey | Self::PolicyGone => [own(PRIMARY, 600), by_policy(600)],
            Self::KeySlot | Self::Rotation => [own(PRIMARY, 600), own(SECONDARY, 600)],
            Self::GroupKey => [of_group(600), of_group(1200)],
            _ => [own(PRIMARY, 600), own(PRIMARY, 1200)],
        }
    }

    /// The entry of the list; `None`: identities change.
    fn entry(self, second: TokenId) -> Option<String> {
        let before = |seconds: u64| UnixSeconds(NOW.0 + seconds - 50).to_string();
        Some(match self {
            Self::Jti => json!({"jti": "j2"}).to_string(),
            Self::Token => json!({"token": format!("sha256:{second}")}).to_string(),
            Self::Device => json!({"device": "d"}).to_string(),
            Self::KeySlot => json!({"key": "device:d/secondary"}).to_string(),
            Self::IssuedBeforeOfDevice => json!({"issued_before": before(0), "device": "d"}).to_string(),
            Self::IssuedBeforeOfIssuer => json!({"issued_before": before(0), "issuer": "factory"}).to_string(),
            Self::IssuedBeforeOfPolicy => json!({"issued_before": before(0), "policy": "p"}).to_string(),
            Self::ExpiresBefore => json!({"expires_before": before(POLICY_LIFE), "policy": "p"}).to_string(),
            _ => return None,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_read_after_a_change_was_applied_is_accepted(
        change in prop::sample::select(Change::ALL.to_vec()),
        begins_with in 0usize..2,
        renews_every in 1u32..20,
        change_after in 0u32..20_000,
    ) {
        let race = Arc::new(Race::new(change));
        let session = {
            let race = race.clone();
            thread::spawn(move || race.session(begins_with, renews_every))
        };
        // The change comes when so much has been accepted, or at once: before, within and after admission and renewal.
        while race.accepted.load(SeqCst) < change_after / 40 && !session.is_finished() {
            std::hint::spin_loop();
        }
        (0..change_after).for_each(|_| std::hint::spin_loop());
        race.apply();
        let accepted_after = session.join().expect("no panic");
        prop_assert_eq!(accepted_after, 0, "publishes that were read after {:?} had been applied", change);
    }
}

/// Each change ends what it is about, and nothing else, wherever in an admission it comes: before it is judged, between
/// that and the registry, between the registry and the second question, and after all of it.
#[test]
fn every_change_ends_what_it_names_and_spares_the_rest_at_every_step_of_an_admission() {
    for change in Change::ALL {
        for (number, token) in change.tokens().iter().enumerate() {
            let is_spared = number == 0 && change.spares() == Spared::FirstToken;
            let check = |when: &str, race: &Race, live: Option<Arc<Live>>| {
                assert_eq!(live.is_some_and(|live| publishes(&live)), is_spared, "{change:?} {when}, token {number}");
                let later = race.admit(token);
                assert_eq!(later.is_some_and(|live| publishes(&live)), is_spared, "{change:?}, {number}: the next");
            };
            let race = Race::new(change);
            race.apply();
            check("before", &race, race.admit(token));

            let race = Race::new(change);
            let judged = race.judge(token).unwrap_or_else(|| panic!("{change:?}: token {number} is admitted"));
            race.apply();
            check("when it was judged", &race, race.enter(judged, || ()));

            let race = Race::new(change);
            let judged = race.judge(token).unwrap();
            let live = race.enter(judged, || race.apply());
            check("when it was registered", &race, live);

            let race = Race::new(change);
            let live = race.admit(token);
            race.apply();
            check("after", &race, live);

            // And the other way round: it was judged before, and comes in while the change is on its way.
            let race = Race::new(change);
            let (judged, came) = (Mutex::new(race.judge(token)), Mutex::new(None));
            race.apply_while(|| {
                let judged = judged.lock().unwrap().take();
                *came.lock().unwrap() = judged.and_then(|judged| race.enter(judged, || ()));
            });
            check("within", &race, came.into_inner().unwrap());
        }
    }
}

/// The same of a session that lives, and renews from the token that is spared to the one that is not.
#[test]
fn no_renewal_slips_through_a_change() {
    for change in Change::ALL {
        for order in ["renewed before", "renews while it comes into force", "renews after"] {
            let race = Race::new(change);
            let live = race.admit(&race.tokens[0]).unwrap();
            let renew = || race.threshold().renew(&live, race.tokens[1].as_bytes(), || NOW).is_ok();
            let renewed = match order {
                "renewed before" => {
                    let renewed = renew();
                    assert!(renewed, "{change:?}");
                    race.apply();
                    renewed
                }
                "renews after" => {
                    race.apply();
                    renew()
                }
                _ => {
                    let renewed = AtomicBool::new(false);
                    race.apply_while(|| renewed.store(renew(), SeqCst));
                    renewed.into_inner()
                }
            };
            assert!(!renewed || !publishes(&live), "{change:?}, {order}");
        }
    }
}

struct Race {
    change: Change,
    gate: Gate,
    registry: Registry,
    tokens: [String; 2],
    applied: AtomicBool,
    accepted: AtomicU32,
}

impl Race {
    fn new(change: Change) -> Self {
        let config =
            GateConfig { hostname: "localhost".into(), clock_skew: Some(Duration::ZERO), ..GateConfig::default() };
        let race = Self {
            change,
            gate: Gate::new(config),
            registry: Registry::default(),
            tokens: change.tokens(),
            applied: AtomicBool::new(false),
            accepted: AtomicU32::new(0),
        };
        race.gate.load_identities(identities(None));
        race.gate.load_revocations(Arc::default());
        race
    }

    fn threshold(&self) -> Threshold<'_> {
        Threshold { gate: &self.gate, registry: &self.registry }
    }

    /// As a shard adopts a connection.
    fn admit(&self, token: &str) -> Option<Arc<Live>> {
        let judged = self.judge(token)?;
        self.enter(judged, || ())
    }

    /// The state that it was judged by, and what it is granted.
    fn judge(&self, token: &str) -> Option<(u64, Grant)> {
        let epoch = self.gate.epoch();
        let ask = Admission {
            client_id: self.change.device(),
            user_name: None,
            password: Some(token.as_bytes()),
            certificate: None,
            profile: Profile::Strict,
            will: None,
        };
        Some((epoch, self.gate.admit(&ask, NOW).ok()?))
    }

    /// `registered` is done when it is registered, and not asked again yet.
    fn enter(&self, (epoch, grant): (u64, Grant), registered: impl FnOnce()) -> Option<Arc<Live>> {
        let peer = "127.0.0.1:1".parse().expect("an address");
        let live = Arc::new(Live::new(grant, (peer, ProtocolVersion::V5_0), (0, 0, 0), NOW));
        let ((), _, stays) = self.threshold().enter(&live, epoch, registered, || NOW);
        stays.is_ok().then_some(live)
    }

    /// Says how many frames were accepted that were read after the change had been applied.
    fn session(&self, begins_with: usize, renews_every: u32) -> u32 {
        let Some(live) = self.admit(&self.tokens[begins_with]) else { return 0 };
        let second = id_of(&self.tokens[1]);
        let (mut held, mut accepted_after) = (live.grant(), 0);
        for frame in 0..FRAMES {
            if frame % renews_every == 0 {
                let turn = (begins_with as u32 + frame / renews_every + 1) % 2;
                match self.threshold().renew(&live, self.tokens[turn as usize].as_bytes(), || NOW) {
                    Ok(renewed) => held = renewed,
                    Err(_) => return accepted_after,
                }
            }
            let read_after = self.applied.load(SeqCst);
            match live.attention() {
                None => {}
                Some(Attention::Cut(_)) => return accepted_after,
                Some(Attention::Regranted) => held = live.grant(),
            }
            let topic = TopicName::new(TOPIC).expect("a topic");
            if held.scope.authorize_publish(topic, 0, false).is_ok() {
                self.accepted.fetch_add(1, SeqCst);
                let concerned = self.change.spares() == Spared::Nothing || held.token_id == second;
                accepted_after += u32::from(read_after && concerned);
            }
        }
        accepted_after
    }

    fn apply(&self) {
        self.apply_while(|| ());
    }

    /// `in_force` is done when the change holds for newcomers, and nobody was made deaf by it yet.
    fn apply_while(&self, in_force: impl Fn()) {
        let reach = AtOnce(in_force);
        match self.change.entry(id_of(&self.tokens[1])) {
            Some(line) => {
                let (list, bad) = RevocationList::parse(&line);
                assert!(bad.is_empty(), "{line}: {bad:?}");
                let old = self.gate.revocations().expect("a list");
                self.threshold().put_list_in_force(&list, &old, &reach, NOW);
            }
            None => drop(self.threshold().put_identities_in_force(&identities(Some(self.change)), &reach, NOW)),
        }
        self.applied.store(true, SeqCst);
    }
}

/// Deaf is all that matters here: nobody is closed.
struct AtOnce<F>(F);

impl<F: Fn()> Reach for AtOnce<F> {
    fn in_force(&self) {
        (self.0)();
    }

    fn end(&self, sessions: Vec<(Arc<Live>, CloseReason)>, applied: Instant) -> usize {
        sessions.iter().filter(|(live, reason)| live.deafen(*reason, applied)).count()
    }

    fn narrowed(&self, _: &[Arc<Live>], _: Instant) {}
}

/// What it would be told of its next PUBLISH.
fn publishes(live: &Live) -> bool {
    let is_cut = matches!(live.attention(), Some(Attention::Cut(_)));
    !is_cut && live.grant().scope.authorize_publish(TopicName::new(TOPIC).expect("a topic"), 0, false).is_ok()
}

fn id_of(token: &str) -> TokenId {
    Credential::parse(token.as_bytes()).expect("a token").token_id()
}

fn after(seconds: u64) -> UnixSeconds {
    UnixSeconds(NOW.0 + seconds)
}

fn by_issuer(jti: &str, issued_at: u64) -> String {
    let claims = JwtClaims::default()
        .with("iss", "https://id.factory.example")
        .with("aud", "localhost")
        .with("sub", "d")
        .with("jti", jti)
        .with("iat", issued_at)
        .with("exp", NOW.0 + 600);
    let key = SigningKey::from_secret(Algorithm::HS256, ISSUER, Some("k1")).expect("a key");
    mint_jwt(&claims, &key).expect("a token")
}

/// As they are before, and after the change.
fn identities(change: Option<Change>) -> Arc<Identities> {
    let is = |this| change == Some(this);
    let key = |bytes: &[u8]| Some(SecretKey::from_bytes(bytes).expect("a key"));
    let slots = |primary: &[u8], secondary: &[u8]| Slots { primary: key(primary), secondary: key(secondary) };
    let mut ring = Keyring::builder();
    let keys = match change {
        Some(Change::Rotation) => slots(OTHER, PRIMARY),
        Some(Change::KeysReplaced) => slots(OTHER, ANOTHER),
        _ => slots(PRIMARY, SECONDARY),
    };
    if !is(Change::DeviceGone) {
        let id = DeviceId::try_from("d").expect("an id");
        ring.add_device(id, Device { keys, enabled: !is(Change::DeviceOff), ..Device::default() }).expect("new");
    }
    if !is(Change::PolicyGone) {
        ring.add_policy(Policy {
            name: "p".into(),
            resource: Resource::parse("localhost").expect("a resource"),
            keys: slots(if is(Change::PolicyKey) { OTHER } else { POLICY }, ANOTHER),
            rights: Rights::ALL,
            token_lifetime_max: Some(Duration::from_secs(POLICY_LIFE)),
        })
        .expect("new");
    }
    let keys = slots(if is(Change::GroupKey) { OTHER } else { GROUP }, ANOTHER);
    ring.add_group(Group { prefix: "line-".into(), keys, token_lifetime_max: None, scope: ScopeIndex(0) })
        .expect("new");
    if !is(Change::IssuerGone) {
        let key = VerifyingKey::from_secret(Algorithm::HS256, if is(Change::IssuerKey) { OTHER } else { ISSUER });
        ring.add_issuer(Issuer {
            name: "factory".into(),
            iss: "https://id.factory.example".into(),
            audience: vec!["localhost".into()],
            keys: vec![(Some("k1".into()), key.expect("a key"))],
            published: Published::No,
            device_claim: "sub".into(),
            scope_claim: None,
            require: None,
            token_lifetime_max: None,
        })
        .expect("new");
    }
    let filters = |filter: &str| Some(vec![FilterTemplate::new(filter).expect("a filter")]);
    let publish = if is(Change::ScopeNarrowed) { "{device}/other/#" } else { "{device}/#" };
    let publish = filters(if change == Some(Change::GroupKey) { "d/#" } else { publish }).map(|mut all| {
        // The device of the group publishes where the other does: one topic for all.
        all.extend(if is(Change::ScopeNarrowed) { vec![] } else { filters("d/#").unwrap_or_default() });
        all
    });
    let scope = ScopeTemplate { publish, subscribe: filters("d/down/#"), retain: true, qos_max: 1 };
    Arc::new(Identities::new(ring.build(), vec![scope]))
}

/// Eight devices publish as fast as they are acknowledged, each with a token of another kind, while what admitted them is
/// taken away, one after the other. What a device began to send when the gateway had said that the change is in force has
/// reached no hub and was not acknowledged; what was acknowledged before has arrived; and whoever is not meant goes on.
#[test]
fn no_publish_that_is_sent_after_a_change_is_in_force_reaches_the_hub() {
    let recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5))
        .identities_and(&site())
        .environment("RUST_LOG", "info")
        .start();
    let soon = unix_now() + 3600;
    let by_policy = |device: &str, key: &str| {
        sas_for(&format!("localhost/devices/{device}"), &device_key(key), &format!("{soon}&skn=site"))
    };
    let of_group = |device: &str| {
        let key = base64_key(&device_key("line"), device);
        sas_for(&format!("localhost/devices/{device}"), &key, &soon.to_string())
    };
    let (stop, stolen) = (AtomicBool::new(false), sas("d1"));
    let lines = |line: serde_json::Value| Told::Line(line.to_string());
    let rounds: Vec<(&str, String, Told)> = vec![
        ("d0", jwt("d0", soon, "stolen"), lines(json!({"jti": "stolen"}))),
        ("d1", stolen.clone(), lines(json!({"token": format!("sha256:{}", id_of(&stolen))}))),
        ("d2", sas("d2"), lines(json!({"device": "d2"}))),
        ("d3", by_policy("d3", "site old"), lines(json!({"key": "policy:site/secondary"}))),
        ("d4", jwt("d4", soon, "j-4"), lines(json!({"issued_before": rfc3339(unix_now() + 1), "issuer": "factory"}))),
        ("d5", sas("d5"), Told::Identities("d5")),
        ("d6", by_policy("d6", "site"), Told::Identities("policy")),
        ("line-7", of_group("line-7"), Told::Identities("group")),
    ];
    thread::scope(|scope| {
        let _ends = support::Ends(&stop);
        let mut senders = HashMap::new();
        for (device, token, _) in &rounds {
            let login = Login::new(Version::V5, device, token);
            let session = gateway.open(Version::V5).admitted(&login);
            let stop = &stop;
            senders.insert(*device, scope.spawn(move || publish_until_closed(session, device, stop)));
        }
        let unconcerned = gateway.connect(Version::V5, "d9");
        let unconcerned = scope.spawn(|| publish_until_closed(unconcerned, "d9", &stop));
        for (device, _, told) in &rounds {
            let before = recorder.count();
            until("some to arrive", PATIENCE, || recorder.count() > before + 200);
            let in_force = in_force_lines(&gateway).len();
            told.write(&gateway);
            let (status, body) = gateway.post("/v1/reload", "{}").unwrap();
            assert_eq!(status, 200, "{body}");
            // As the gateway itself says: later than that nothing is accepted.
            let applied = until_line(&gateway, in_force);
            let sent = senders.remove(device).unwrap().join().unwrap();
            assert!(sent.closed.is_some(), "{device} was ended with a reason");
            let late: Vec<u32> = sent.began.iter().filter(|(_, at)| *at > applied).map(|(n, _)| *n).collect();
            let early = sent.began.len() - late.len();
            assert!(early > 0, "{device} published before");
            let arrived = recorder.payloads(&topic(device));
            let arrived: HashSet<u32> = arrived.iter().map(|number| number.parse().unwrap()).collect();
            assert!(
                late.iter().all(|number| !arrived.contains(number)),
                "{device}: {late:?} arrived, sent after {told:?}"
            );
            assert!(
                late.iter().all(|number| !sent.acknowledged.contains(number)),
                "{device}: acknowledged after {told:?}"
            );
            assert!(sent.acknowledged.iter().all(|number| arrived.contains(number)), "{device}: what was promised");
        }
        stop.store(true, Relaxed);
        let sent = unconcerned.join().unwrap();
        assert_eq!(sent.closed, None, "nobody else is ended");
    });
}

/// What is taken away, and where it stands.
#[derive(Debug)]
enum Told {
    Line(String),
    Identities(&'static str),
}

impl Told {
    fn write(&self, gateway: &Gateway) {
        match self {
            Self::Line(line) => gateway.revoke(line),
            Self::Identities(what) => {
                let path = gateway.folder.join("identities.toml");
                let text = fs::read_to_string(&path).unwrap();
                let (from, to) = match *what {
                    "d5" => ("id = \"d5\"\n".to_owned(), "id = \"d5\"\nenabled = false\n".to_owned()),
                    "policy" => (device_key("site"), device_key("site, another")),
                    _ => (device_key("line"), device_key("line, another")),
                };
                assert!(text.contains(&from), "{text}");
                fs::write(&path, text.replace(&from, &to)).unwrap();
            }
        }
    }
}

/// What a device sent.
struct Sent {
    /// Each number, and when the device began to send it.
    began: Vec<(u32, SystemTime)>,
    acknowledged: HashSet<u32>,
    closed: Option<u8>,
}

/// With as many unacknowledged as the gateway bears.
fn publish_until_closed(mut session: Client, device: &str, stop: &AtomicBool) -> Sent {
    let mut sent = Sent { began: Vec::new(), acknowledged: HashSet::new(), closed: None };
    let mut in_flight = 0;
    while !stop.load(Relaxed) {
        if in_flight < WINDOW {
            let number = u32::try_from(sent.began.len()).unwrap();
            let id = u16::try_from(number % 60_000 + 1).unwrap();
            let packet = publish_packet(Version::V5, &topic(device), number.to_string().as_bytes(), 1, id);
            sent.began.push((number, SystemTime::now()));
            // It may be ended at this moment: the next reading says how.
            let _ = session.try_send(&packet);
            in_flight += 1;
            continue;
        }
        match session.next(PATIENCE) {
            Answer::Puback(_, 0) => {
                // In the order of the PUBLISHes [MQTT-4.6.0-2].
                sent.acknowledged.insert(u32::try_from(sent.acknowledged.len()).unwrap());
                in_flight -= 1;
            }
            Answer::Disconnect(code) => sent.closed = Some(code),
            Answer::Closed => break,
            other => panic!("{device}: {other:?}"),
        }
    }
    sent
}

/// The gateway's own lines about changes that are in force.
fn in_force_lines(gateway: &Gateway) -> Vec<String> {
    let log = gateway.process.log();
    log.lines().filter(|line| line.contains(" in force ")).map(str::to_owned).collect()
}

/// When the change was in force that ended a session, as the gateway says it.
fn until_line(gateway: &Gateway, before: usize) -> SystemTime {
    let line = until_some("the gateway to say so", PATIENCE, || {
        in_force_lines(gateway).into_iter().skip(before).find(|line| line.contains(" closed=1 "))
    });
    let at = line.split_whitespace().next().unwrap();
    humantime::parse_rfc3339(at).unwrap_or_else(|_| panic!("no time in {line}"))
}

fn site() -> String {
    format!(
        "\n[[policy]]\nname = \"site\"\nresource = \"localhost\"\nprimary_key = \"{}\"\nsecondary_key = \"{}\"\n\
         [[group]]\nprefix = \"line-\"\nprimary_key = \"{}\"\n",
        device_key("site"),
        device_key("site old"),
        device_key("line")
    )
}

fn base64_key(group: &str, device: &str) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let group = BASE64_STANDARD.decode(group).unwrap();
    let mac = Hmac::<Sha256>::new_from_slice(&group).unwrap().chain_update(device.as_bytes());
    BASE64_STANDARD.encode(mac.finalize().into_bytes())
}

fn topic(device: &str) -> String {
    format!("devices/{device}/messages/events/")
}

fn rfc3339(seconds: u64) -> String {
    UnixSeconds(seconds).to_string()
}

const NOW: UnixSeconds = UnixSeconds(1_800_000_000);
const TOPIC: &[u8] = b"d/events";
const FRAMES: u32 = 1_000;
/// Seconds for which the policy's tokens are good at most.
const POLICY_LIFE: u64 = 1_200;
const PRIMARY: &[u8; 32] = b"the primary key of the device d!";
const SECONDARY: &[u8; 32] = b"the secondary key of device d!!!";
const OTHER: &[u8; 32] = b"another key, of whoever has one!";
const ANOTHER: &[u8; 32] = b"yet another key, which is spare!";
const POLICY: &[u8; 32] = b"the primary key of the policy p!";
const GROUP: &[u8; 32] = b"the primary key of group line-!!";
const ISSUER: &[u8; 32] = b"shared secret of the issuer fact";
/// Unacknowledged; the gateway bears a hundred.
const WINDOW: usize = 50;
const PATIENCE: Duration = Duration::from_secs(20);
