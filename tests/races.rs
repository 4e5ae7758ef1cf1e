//! Admission, publishing, renewal and a change at the same time, on threads of their own: nothing that is read after a
//! change has been applied is accepted. The gate and the registry are the gateway's; the session is as its shard treats it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::Instant,
};

use proptest::prelude::*;
use tollgate::{
    credential::{Credential, Device, Keyring, RevocationList, ScopeIndex, SecretKey, Slots, mint_sas},
    gate::{Admission, Gate, GateConfig, Identities, Profile, Standing},
    id::{DeviceId, TokenId},
    packet::ProtocolVersion,
    policy::{FilterTemplate, Grant, ScopeTemplate},
    registry::{Attention, Live, Registry},
    time::UnixSeconds,
    topic::TopicName,
};

/// What is taken away while the device connects, publishes and renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// An entry names the device.
    DeviceRevoked,
    /// An entry names the second of the two tokens by which it renews in turn.
    SecondTokenRevoked,
    /// The device is switched off.
    DeviceOff,
    /// Its key is replaced.
    KeyReplaced,
    /// The topic that it publishes to falls out of its scope.
    ScopeNarrowed,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_read_after_a_change_was_applied_is_accepted(
        change in prop::sample::select(vec![
            Change::DeviceRevoked, Change::SecondTokenRevoked, Change::DeviceOff, Change::KeyReplaced, Change::ScopeNarrowed,
        ]),
        renews_every in 1u32..20,
        change_after in 0u32..20_000,
    ) {
        let race = Arc::new(Race::new());
        let session = {
            let race = race.clone();
            thread::spawn(move || race.session(change, renews_every))
        };
        // The change comes when so much has been accepted, or at once: before, within and after admission and renewal.
        while race.accepted.load(SeqCst) < change_after / 40 && !session.is_finished() {
            std::hint::spin_loop();
        }
        (0..change_after).for_each(|_| std::hint::spin_loop());
        race.apply(change);
        let accepted_after = session.join().expect("no panic");
        prop_assert_eq!(accepted_after, 0, "publishes that were read after {:?} had been applied", change);
    }
}

struct Race {
    gate: Gate,
    registry: Registry,
    first: String,
    second: String,
    applied: AtomicBool,
    accepted: AtomicU32,
}

impl Race {
    fn new() -> Self {
        let config = GateConfig { hostname: "localhost".into(), ..GateConfig::default() };
        let token = |seconds| mint_sas("localhost/devices/d", KEY, UnixSeconds(NOW.0 + seconds), None);
        let race = Self {
            gate: Gate::new(config),
            registry: Registry::default(),
            first: token(600),
            second: token(1200),
            applied: AtomicBool::new(false),
            accepted: AtomicU32::new(0),
        };
        race.gate.load_identities(identities(Device::default(), KEY, "d/#"));
        race.gate.load_revocations(Arc::default());
        race
    }

    /// As `shard::connection` and `shard::renewal` do it. Says how many frames were accepted that were read after the
    /// change had been applied.
    fn session(&self, change: Change, renews_every: u32) -> u32 {
        let epoch = self.gate.epoch();
        let password = Some(self.first.as_bytes());
        let ask = Admission {
            client_id: "d",
            user_name: None,
            password,
            certificate: None,
            profile: Profile::Strict,
            will: None,
        };
        let Ok(grant) = self.gate.admit(&ask, NOW) else { return 0 };
        let peer = "127.0.0.1:1".parse().expect("an address");
        let live = Arc::new(Live::new(grant, (peer, ProtocolVersion::V5_0), (0, 0, 0), NOW));
        let granted = live.grant();
        self.registry.register(&live);
        if self.gate.epoch() != epoch {
            match self.gate.standing(&granted, NOW) {
                Standing::Given => {}
                Standing::Narrowed(narrower) => drop(live.narrow(&granted, narrower)),
                Standing::Ended(_) => return 0,
            }
        }
        let (mut held, mut accepted_after) = (live.grant(), 0);
        for frame in 0..FRAMES {
            if frame % renews_every == 0 {
                let token = if (frame / renews_every).is_multiple_of(2) { &self.second } else { &self.first };
                match self.renew(&live, token) {
                    Some(renewed) => held = renewed,
                    None => return accepted_after,
                }
            }
            let read_after = self.applied.load(SeqCst);
            match live.attention() {
                None => {}
                Some(Attention::Cut(_)) => return accepted_after,
                Some(Attention::Regranted) => held = live.grant(),
            }
            let topic = TopicName::new(b"d/events").expect("a topic");
            if held.scope.authorize_publish(topic, 0, false).is_ok() {
                self.accepted.fetch_add(1, SeqCst);
                // With the first token it goes on when the second is revoked.
                let concerned = change != Change::SecondTokenRevoked || held.token_id == id_of(&self.second);
                accepted_after += u32::from(read_after && concerned);
            }
        }
        accepted_after
    }

    fn renew(&self, live: &Arc<Live>, token: &str) -> Option<Arc<Grant>> {
        let epoch = self.gate.epoch();
        let renewed = Arc::new(self.gate.renew(&live.grant(), token.as_bytes(), NOW).ok()?);
        self.registry.regrant(live, renewed.clone());
        let stands = self.gate.epoch() == epoch || self.gate.standing(&renewed, NOW) == Standing::Given;
        stands.then_some(renewed)
    }

    /// As `app::changes` does it: in force first, then whom it concerns, and applied when all of them know.
    fn apply(&self, change: Change) {
        let off = Device { enabled: false, ..Device::default() };
        match change {
            Change::DeviceRevoked => self.revoke(r#"{"device": "d"}"#),
            Change::SecondTokenRevoked => self.revoke(&format!("{{\"token\": \"sha256:{}\"}}", id_of(&self.second))),
            Change::DeviceOff => drop(self.gate.load_identities(identities(off, KEY, "d/#"))),
            Change::KeyReplaced => drop(self.gate.load_identities(identities(Device::default(), OTHER_KEY, "d/#"))),
            Change::ScopeNarrowed => drop(self.gate.load_identities(identities(Device::default(), KEY, "d/other/#"))),
        }
        let mut concerned = Vec::new();
        match change {
            Change::SecondTokenRevoked => concerned.extend(self.registry.of_token(id_of(&self.second))),
            Change::DeviceRevoked => concerned.extend(self.registry.within_device("d")),
            _ => self.registry.for_each(|live| concerned.push(live.clone())),
        }
        concerned.iter().for_each(|live| self.cut(live));
        self.applied.store(true, SeqCst);
    }

    fn cut(&self, live: &Arc<Live>) {
        loop {
            let grant = live.grant();
            match self.gate.standing(&grant, NOW) {
                Standing::Given => return,
                Standing::Narrowed(narrower) if live.narrow(&grant, narrower.clone()) => return,
                Standing::Narrowed(_) => {}
                Standing::Ended(reason) => {
                    live.deafen(reason, Instant::now());
                    return;
                }
            }
        }
    }

    fn revoke(&self, lines: &str) {
        let (list, bad) = RevocationList::parse(lines);
        assert!(bad.is_empty(), "{bad:?}");
        self.gate.load_revocations(Arc::new(list));
    }
}

fn id_of(token: &str) -> TokenId {
    Credential::parse(token.as_bytes()).expect("a token").token_id()
}

fn identities(device: Device, key: &[u8], publish: &str) -> Arc<Identities> {
    let keys = Slots { primary: Some(SecretKey::from_bytes(key).expect("a key")), secondary: None };
    let mut ring = Keyring::builder();
    let id = DeviceId::try_from("d").expect("an id");
    ring.add_device(id, Device { keys, scope: ScopeIndex(0), ..device }).expect("new");
    let filters = |filter: &str| Some(vec![FilterTemplate::new(filter).expect("a filter")]);
    let scope = ScopeTemplate { publish: filters(publish), subscribe: filters("d/down/#"), retain: true, qos_max: 1 };
    Arc::new(Identities::new(ring.build(), vec![scope]))
}

const NOW: UnixSeconds = UnixSeconds(1_800_000_000);
const FRAMES: u32 = 1_000;
const KEY: &[u8; 32] = b"the primary key of the device d!";
const OTHER_KEY: &[u8; 32] = b"another primary key of device d!";
