mod standing;

use std::time::Duration;

use super::*;
use crate::{
    credential::{
        Algorithm, Device, Group, Issuer, JwtClaims, KeyEncoding, Policy, Resource, SecretKey, SigningKey, Slots,
        VerifyingKey, mint_jwt, mint_sas,
    },
    policy::{FilterTemplate, Rights},
};

mod bounds;
mod device_keys;
mod modules;

const NOW: UnixSeconds = UnixSeconds(1_795_251_600);
const SKEW: u64 = 30;
const PRIMARY: &[u8; 32] = b"primary key of the device pump17";
const SECONDARY: &[u8; 32] = b"secondary key of device pump-17!";
const POLICY: &[u8; 32] = b"primary key of the policy device";
const GROUP: &[u8; 32] = b"primary key of the group line7-!";
const ISSUER: &[u8; 32] = b"shared secret of the issuer fact";

fn id(text: &str) -> DeviceId {
    DeviceId::try_from(text).expect(text)
}

fn key(bytes: &[u8]) -> Option<SecretKey> {
    Some(SecretKey::from_bytes(bytes).expect("a key"))
}

fn device(keys: Slots) -> Device {
    Device { keys, ..Device::default() }
}

fn template(publish: &[&str], subscribe: &[&str]) -> ScopeTemplate {
    let filters = |all: &[&str]| all.iter().map(|f| FilterTemplate::new(f).expect(f)).collect();
    ScopeTemplate { publish: Some(filters(publish)), subscribe: Some(filters(subscribe)), retain: false, qos_max: 1 }
}

/// What the fixture's identities differ in from one test to the next.
struct Shape {
    pump: Option<Device>,
    policy: Policy,
    publish: &'static str,
    kid: &'static str,
    issuer: Issuer,
}

impl Shape {
    fn new() -> Self {
        let resource = Resource::parse("localhost").expect("a resource");
        Self {
            pump: Some(device(Slots { primary: key(PRIMARY), secondary: key(SECONDARY) })),
            policy: Policy {
                name: "device".into(),
                resource,
                keys: Slots { primary: key(POLICY), secondary: None },
                rights: Rights { publish: true, subscribe: false },
                token_lifetime_max: Some(Duration::from_secs(7 * 86400)),
            },
            publish: "devices/{device}/messages/events/#",
            kid: "k1",
            issuer: Issuer {
                name: "factory".into(),
                iss: "https://id.factory.example".into(),
                audience: vec!["localhost".into()],
                keys: vec![(None, VerifyingKey::from_secret(Algorithm::HS256, ISSUER).expect("a key"))],
                published: Published::No,
                device_claim: "sub".into(),
                scope_claim: Some("acl".into()),
                require: Some(["exp", "iat", "jti"].map(Into::into).to_vec()),
                token_lifetime_max: None,
            },
        }
    }

    fn build(self) -> Arc<Identities> {
        let mut ring = Keyring::builder();
        if let Some(pump) = self.pump {
            ring.add_device(id("pump-17"), pump).expect("new");
        }
        ring.add_device(
            id("pump-1"),
            device(Slots { primary: key(b"primary key of the device pump-1"), secondary: None }),
        )
        .expect("new");
        ring.add_device(
            id("off"),
            Device {
                enabled: false,
                ..device(Slots { primary: key(b"a key of the switched off device"), secondary: None })
            },
        )
        .expect("new");
        ring.add_device(id("sas-only"), Device { accept: Some(vec![TokenKind::Sas]), ..device(Slots::default()) })
            .expect("new");
        ring.add_policy(self.policy).expect("new");
        let keys = Slots { primary: key(GROUP), secondary: None };
        ring.add_group(Group { prefix: "line7-".into(), keys, token_lifetime_max: None, scope: ScopeIndex(0) })
            .expect("new");
        let mut issuer = self.issuer;
        issuer.keys.iter_mut().for_each(|(kid, _)| *kid = Some(self.kid.into()));
        ring.add_issuer(issuer).expect("new");
        let scope = template(&[self.publish], &["devices/{device}/messages/devicebound/#"]);
        Arc::new(Identities::new(ring.build(), vec![scope]))
    }
}

fn config() -> GateConfig {
    GateConfig {
        hostname: "localhost".into(),
        aliases: vec!["Hub.example.net".into()],
        clock_skew: Some(Duration::from_secs(SKEW)),
        token_lifetime_max: Some(Duration::from_secs(86400)),
        ..GateConfig::default()
    }
}

fn gate() -> Gate {
    let gate = Gate::new(config());
    gate.load_identities(Shape::new().build());
    gate.load_revocations(Arc::default());
    gate
}

fn list(lines: &str) -> Arc<RevocationList> {
    let (list, bad) = RevocationList::parse(lines);
    assert_eq!(bad, vec![]);
    Arc::new(list)
}

fn sas(resource: &str, key: &[u8], expires_in: i64, policy: Option<&str>) -> String {
    mint_sas(resource, key, UnixSeconds(NOW.0.checked_add_signed(expires_in).expect("a time")), policy)
}

fn pump_sas() -> String {
    sas("localhost/devices/pump-17", PRIMARY, 3600, None)
}

fn claims() -> JwtClaims {
    JwtClaims::default()
        .with("iss", "https://id.factory.example")
        .with("aud", "localhost")
        .with("sub", "pump-17")
        .with("jti", "j1")
        .with("iat", NOW.0)
        .with("exp", NOW.0 + 3600)
}

fn jwt(claims: &JwtClaims) -> String {
    mint_jwt(claims, &SigningKey::from_secret(Algorithm::HS256, ISSUER, Some("k1")).expect("a key")).expect("a token")
}

fn ask<'a>(client_id: &'a str, token: &'a str) -> Admission<'a> {
    let password = Some(token.as_bytes());
    Admission { client_id, user_name: None, password, certificate: None, profile: Profile::Strict, will: None }
}

/// The denial, or the key that verified.
fn check(gate: &Gate, client_id: &str, token: &str) -> Result<String, Denial> {
    gate.admit(&ask(client_id, token), NOW).map(|grant| grant.key.to_string()).map_err(|refused| refused.denial)
}

#[test]
fn a_gate_without_identities_or_list_decides_nothing() {
    let gate = Gate::new(config());
    let token = pump_sas();
    assert_eq!(check(&gate, "pump-17", &token), Err(Denial::Unavailable));
    gate.load_identities(Shape::new().build());
    assert_eq!(check(&gate, "pump-17", &token), Err(Denial::Unavailable));
    gate.load_revocations(Arc::default());
    assert_eq!(check(&gate, "pump-17", &token).as_deref(), Ok("device:pump-17/primary"));
    assert_eq!(gate.epoch(), 2);
}

#[test]
fn sas_tokens_are_admitted_by_the_key_that_made_them() {
    let gate = gate();
    let derived = SecretKey::from_bytes(GROUP).expect("a key").derive(&id("line7-a"));
    for (client, token, expected) in [
        ("pump-17", pump_sas(), Ok("device:pump-17/primary")),
        ("pump-17", sas("localhost/devices/pump-17", SECONDARY, 3600, None), Ok("device:pump-17/secondary")),
        ("pump-17", sas("LOCALHOST/devices/pump-17", PRIMARY, 3600, None), Ok("device:pump-17/primary")),
        ("pump-17", sas("hub.example.net/devices/pump-17", PRIMARY, 3600, None), Ok("device:pump-17/primary")),
        ("pump-17", sas("localhost/devices/pump-17", POLICY, 3600, Some("device")), Ok("policy:device/primary")),
        ("line7-a", sas("localhost/devices/line7-a", derived.bytes(), 3600, None), Ok("group:line7-/primary")),
        ("line7-b", sas("localhost/devices/line7-b", derived.bytes(), 3600, None), Err(Denial::SignatureInvalid)),
        ("line7-a", sas("localhost/devices/line7-a", GROUP, 3600, None), Err(Denial::SignatureInvalid)),
        ("pump-17", sas("localhost/devices/pump-17", GROUP, 3600, None), Err(Denial::SignatureInvalid)),
        ("pump-17", sas("localhost/devices/pump-17", PRIMARY, 3600, Some("device")), Err(Denial::SignatureInvalid)),
        ("pump-17", sas("localhost/devices/pump-17", PRIMARY, 3600, Some("Device")), Err(Denial::KeyUnknown)),
        ("pump-17", sas("elsewhere/devices/pump-17", PRIMARY, 3600, None), Err(Denial::HostMismatch)),
        ("ghost", sas("localhost/devices/ghost", PRIMARY, 3600, None), Err(Denial::DeviceUnknown)),
        ("ghost", sas("localhost/devices/ghost", POLICY, 3600, Some("device")), Err(Denial::DeviceUnknown)),
        (
            "off",
            sas("localhost/devices/off", b"a key of the switched off device", 3600, None),
            Err(Denial::DeviceDisabled),
        ),
        ("sas-only", sas("localhost/devices/sas-only", PRIMARY, 3600, None), Err(Denial::SignatureInvalid)),
        ("pump-17", sas("localhost", POLICY, 3600, Some("device")), Err(Denial::HubWideToken)),
        ("pump-17", sas("localhost/devices", POLICY, 3600, Some("device")), Err(Denial::HubWideToken)),
        ("pump-17", sas("localhost", PRIMARY, 3600, None), Err(Denial::HubWideToken)),
        ("pump-17", sas("localhost/messages", POLICY, 3600, Some("device")), Err(Denial::ResourceOutOfPolicy)),
        (
            "pump-17",
            sas("sb://localhost/devices/pump-17", POLICY, 3600, Some("device")),
            Err(Denial::ResourceOutOfPolicy),
        ),
        ("pump-17", sas("https://localhost/devices/pump-17", PRIMARY, 3600, None), Err(Denial::ResourceOutOfPolicy)),
        ("pump-17", sas("localhost/devices/pump-17/modules/m", PRIMARY, 3600, None), Err(Denial::DeviceUnknown)),
    ] {
        assert_eq!(check(&gate, client, &token), expected.map(Into::into), "{client} {token}");
    }
}

#[test]
fn a_hub_wide_token_is_its_presenters_only_where_that_is_allowed() {
    let gate = Gate::new(GateConfig { hub_wide_tokens: true, ..config() });
    gate.load_identities(Shape::new().build());
    gate.load_revocations(Arc::default());
    for resource in ["localhost", "localhost/devices"] {
        let token = sas(resource, POLICY, 3600, Some("device"));
        let grant = gate.admit(&ask("pump-1", &token), NOW).expect("admitted");
        assert_eq!(grant.device, id("pump-1"));
        assert_eq!(check(&gate, "ghost", &token), Err(Denial::DeviceUnknown));
        assert_eq!(check(&gate, "off", &token), Err(Denial::DeviceDisabled));
    }
    assert_eq!(check(&gate, "pump-17", &sas("localhost", PRIMARY, 3600, None)), Err(Denial::KeyUnknown));
}

#[test]
fn a_token_of_one_device_admits_no_other() {
    let gate = gate();
    // The id of one is the beginning of the other's.
    assert_eq!(check(&gate, "pump-1", &pump_sas()), Err(Denial::DeviceMismatch));
    assert_eq!(check(&gate, "pump-1", &jwt(&claims())), Err(Denial::DeviceMismatch));
    assert_eq!(check(&gate, "PUMP-17", &pump_sas()), Err(Denial::DeviceMismatch));
    let refused = gate.admit(&ask("pump-1", &pump_sas()), NOW).expect_err("refused");
    assert_eq!(refused.device, Some(id("pump-17")), "the operator sees whose token it was");
    assert!(refused.token_id.is_some());
    let named = Admission { user_name: Some("localhost/pump-1"), ..ask("pump-17", "") };
    let token = pump_sas();
    let refused = gate.admit(&Admission { password: Some(token.as_bytes()), ..named }, NOW).expect_err("refused");
    assert_eq!(refused.denial, Denial::UserNameMismatch);
}

#[test]
fn a_sas_token_is_valid_until_its_expiry_and_the_skew() {
    let gate = gate();
    let at =
        |expires_in| check(&gate, "pump-17", &sas("localhost/devices/pump-17", PRIMARY, expires_in, None)).map(|_| ());
    assert_eq!(at(-29), Ok(()));
    assert_eq!(at(-30), Err(Denial::Expired));
    assert_eq!(at(-31), Err(Denial::Expired));
    assert_eq!(at(86_399), Ok(()));
    assert_eq!(at(86_400), Ok(()));
    assert_eq!(at(86_401), Err(Denial::LifetimeTooLong));
    let forged = sas("localhost/devices/pump-17", GROUP, -31, None);
    assert_eq!(
        check(&gate, "pump-17", &forged),
        Err(Denial::SignatureInvalid),
        "Expired is said only of a token that was ours"
    );
    let by_policy = |days: i64| {
        check(&gate, "pump-17", &sas("localhost/devices/pump-17", POLICY, days * 86400, Some("device"))).map(|_| ())
    };
    assert_eq!(by_policy(7), Ok(()));
    assert_eq!(by_policy(8), Err(Denial::LifetimeTooLong));
    let grant = gate.admit(&ask("pump-17", &pump_sas()), NOW).expect("admitted");
    assert_eq!(grant.closes_at, UnixSeconds(NOW.0 + 3600 + SKEW));
}

#[test]
fn a_jwt_is_admitted_within_its_times() {
    let gate = gate();
    let with = |name: &str, value: u64| check(&gate, "pump-17", &jwt(&claims().with(name, value))).map(|_| ());
    assert_eq!(check(&gate, "pump-17", &jwt(&claims())).as_deref(), Ok("issuer:factory/k1"));
    let old =
        |exp: u64| check(&gate, "pump-17", &jwt(&claims().with("iat", NOW.0 - 3600).with("exp", exp))).map(|_| ());
    assert_eq!(old(NOW.0 - 29), Ok(()));
    assert_eq!(old(NOW.0 - 30), Err(Denial::Expired));
    assert_eq!(old(NOW.0 - 31), Err(Denial::Expired));
    assert_eq!(with("nbf", NOW.0 + 30), Ok(()));
    assert_eq!(with("nbf", NOW.0 + 31), Err(Denial::NotYetValid));
    assert_eq!(with("iat", NOW.0 + 30), Ok(()));
    assert_eq!(with("iat", NOW.0 + 31), Err(Denial::IssuedInFuture));
    assert_eq!(with("exp", NOW.0 + 86_400 + SKEW), Ok(()));
    assert_eq!(with("exp", NOW.0 + 86_400 + SKEW + 1), Err(Denial::LifetimeTooLong));
    assert_eq!(with("exp", NOW.0 + 1), Ok(()));
    assert_eq!(with("exp", NOW.0), Err(Denial::ClaimInvalid), "exp is after iat");
    assert_eq!(with("exp", u64::MAX), Err(Denial::LifetimeTooLong));
}

#[test]
fn a_jwt_is_held_to_its_issuer_audience_and_claims() {
    let gate = gate();
    let with =
        |name: &str, value: serde_json::Value| check(&gate, "pump-17", &jwt(&claims().with(name, value))).map(|_| ());
    let without = |name: &str| {
        let mut claims = claims();
        claims.claims.remove(name);
        check(&gate, "pump-17", &jwt(&claims)).map(|_| ())
    };
    assert_eq!(with("aud", serde_json::json!(["other", "localhost"])), Ok(()));
    assert_eq!(with("aud", serde_json::json!(["other"])), Err(Denial::AudienceMismatch));
    assert_eq!(with("aud", serde_json::json!("LOCALHOST")), Err(Denial::AudienceMismatch));
    assert_eq!(with("aud", serde_json::json!([1, "localhost"])), Err(Denial::ClaimInvalid));
    assert_eq!(without("aud"), Err(Denial::AudienceMismatch));
    assert_eq!(with("iss", "https://id.factory.example/".into()), Err(Denial::IssuerUnknown));
    assert_eq!(without("iss"), Err(Denial::IssuerUnknown));
    assert_eq!(with("sub", "pump-18".into()), Err(Denial::DeviceUnknown));
    assert_eq!(with("sub", "pump/+".into()), Err(Denial::ClaimInvalid));
    assert_eq!(with("sub", 17.into()), Err(Denial::ClaimInvalid));
    for name in ["sub", "exp", "iat", "jti"] {
        assert_eq!(without(name), Err(Denial::ClaimInvalid), "{name}");
    }
    for (name, value) in [
        ("exp", serde_json::json!("never")),
        ("exp", serde_json::json!(-1)),
        ("iat", serde_json::json!(null)),
        ("nbf", serde_json::json!([])),
        ("jti", serde_json::json!(1)),
        ("jti", serde_json::json!("")),
        ("jti", serde_json::json!("x".repeat(129))),
    ] {
        assert_eq!(with(name, value.clone()), Err(Denial::ClaimInvalid), "{name} {value}");
    }
    assert_eq!(with("jti", "x".repeat(128).into()), Ok(()));
    assert_eq!(with("exp", serde_json::json!(NOW.0 as f64 + 60.5)), Ok(()));
    let sas_only = jwt(&claims().with("sub", "sas-only"));
    assert_eq!(check(&gate, "sas-only", &sas_only), Err(Denial::CredentialKindNotAccepted));
    let other_key = SigningKey::from_secret(Algorithm::HS256, ISSUER, Some("k2")).expect("a key");
    assert_eq!(check(&gate, "pump-17", &mint_jwt(&claims(), &other_key).expect("a token")), Err(Denial::KeyUnknown));
    let no_kid = SigningKey::from_secret(Algorithm::HS256, ISSUER, None).expect("a key");
    assert_eq!(
        check(&gate, "pump-17", &mint_jwt(&claims(), &no_kid).expect("a token")).as_deref(),
        Ok("issuer:factory/k1")
    );
    let longer = SigningKey::from_secret(Algorithm::HS512, ISSUER, Some("k1")).expect("a key");
    assert_eq!(
        check(&gate, "pump-17", &mint_jwt(&claims(), &longer).expect("a token")),
        Err(Denial::AlgorithmMismatch)
    );
    let wrong = SigningKey::from_secret(Algorithm::HS256, GROUP, Some("k1")).expect("a key");
    assert_eq!(check(&gate, "pump-17", &mint_jwt(&claims(), &wrong).expect("a token")), Err(Denial::SignatureInvalid));
}

#[test]
fn a_token_may_narrow_the_scope_and_never_widen_it() {
    let gate = gate();
    let scope = |acl: serde_json::Value| {
        gate.admit(&ask("pump-17", &jwt(&claims().with("acl", acl))), NOW).map(|g| g.scope).map_err(|r| r.denial)
    };
    let whole = gate.admit(&ask("pump-17", &jwt(&claims())), NOW).expect("admitted").scope;
    let texts = |filters: &[crate::topic::TopicFilter]| filters.iter().map(ToString::to_string).collect::<Vec<_>>();
    let narrow = scope(serde_json::json!({"pub": ["devices/pump-17/messages/events/a", "#", "devices/pump-1/#"]}))
        .expect("admitted");
    assert!(whole.includes(&narrow));
    assert_eq!(texts(narrow.publish()), ["devices/pump-17/messages/events/a", "devices/pump-17/messages/events/#"]);
    assert_eq!(narrow.subscribe(), whole.subscribe());
    assert_eq!(
        scope(serde_json::json!({"pub": [], "sub": []})).map(|s| s.publish().len() + s.subscribe().len()),
        Ok(0)
    );
    for bad in [
        serde_json::json!("#"),
        serde_json::json!([]),
        serde_json::json!({"pub": "a"}),
        serde_json::json!({"pub": [1]}),
        serde_json::json!({"publish": []}),
        serde_json::json!({"pub": ["a/#/b"]}),
        serde_json::json!(null),
    ] {
        assert_eq!(scope(bad.clone()), Err(Denial::ClaimInvalid), "{bad}");
    }
    let grant = gate
        .admit(&ask("pump-17", &sas("localhost/devices/pump-17", POLICY, 3600, Some("device"))), NOW)
        .expect("admitted");
    assert_eq!(
        (grant.scope.publish().len(), grant.scope.subscribe().len()),
        (1, 0),
        "a policy's rights bound its tokens"
    );
}

#[test]
fn what_is_no_token_is_told_apart() {
    let gate = gate();
    let ask_with = |password: Option<&[u8]>| {
        gate.admit(&Admission { password, ..ask("pump-17", "") }, NOW).map(|_| ()).map_err(|refused| refused.denial)
    };
    assert_eq!(ask_with(None), Err(Denial::CredentialMissing));
    assert_eq!(ask_with(Some(b"")), Err(Denial::CredentialMissing));
    assert_eq!(ask_with(Some(b"hunter2")), Err(Denial::CredentialMalformed));
    assert_eq!(ask_with(Some(b"\xff\xfe")), Err(Denial::CredentialMalformed));
    assert_eq!(ask_with(Some(&[b'a'; 20_000])), Err(Denial::CredentialMalformed));
    assert_eq!(check(&gate, "pump/17/1", &pump_sas()), Err(Denial::ClientIdInvalid));
    assert_eq!(check(&gate, "", &pump_sas()), Err(Denial::ClientIdInvalid));
    let sas_alone = Gate::new(GateConfig { accept: vec![TokenKind::Sas], ..config() });
    sas_alone.load_identities(Shape::new().build());
    sas_alone.load_revocations(Arc::default());
    assert_eq!(check(&sas_alone, "pump-17", &jwt(&claims())), Err(Denial::CredentialKindNotAccepted));
    assert!(check(&sas_alone, "pump-17", &pump_sas()).is_ok());
}

#[test]
fn a_will_is_held_to_the_scope() {
    let gate = gate();
    let token = pump_sas();
    let will = |topic, qos, retain| {
        let will = Some(WillTopic { topic, qos, retain });
        gate.admit(&Admission { will, ..ask("pump-17", &token) }, NOW).map(|_| ()).map_err(|refused| refused.denial)
    };
    assert_eq!(will("devices/pump-17/messages/events/gone", 1, false), Ok(()));
    for (topic, qos, retain) in [
        ("devices/pump-1/messages/events/gone", 1, false),
        ("devices/pump-17/messages/events/gone", 2, false),
        ("devices/pump-17/messages/events/gone", 1, true),
        ("devices/pump-17/messages/events/#", 1, false),
        ("", 0, false),
    ] {
        assert_eq!(will(topic, qos, retain), Err(Denial::WillOutOfScope), "{topic}");
    }
}

#[test]
fn what_is_revoked_is_refused_and_cut() {
    let gate = gate();
    let (sas, jwt) = (pump_sas(), jwt(&claims()));
    let by_sas = gate.admit(&ask("pump-17", &sas), NOW).expect("admitted");
    let by_jwt = gate.admit(&ask("pump-17", &jwt), NOW).expect("admitted");
    for (lines, cuts_sas, cuts_jwt) in [
        (r#"{"device": "pump-17"}"#.to_owned(), true, true),
        (r#"{"device": "pump-1"}"#.to_owned(), false, false),
        (r#"{"jti": "j1"}"#.to_owned(), false, true),
        (r#"{"jti": "j1", "issuer": "factory"}"#.to_owned(), false, true),
        (format!("{{\"token\": \"sha256:{}\"}}", by_sas.token_id), true, false),
        (format!("{{\"token\": \"sha256:{}\"}}", by_jwt.token_id), false, true),
        (r#"{"key": "device:pump-17/primary"}"#.to_owned(), true, false),
        (r#"{"key": "device:pump-17/secondary"}"#.to_owned(), false, false),
        (r#"{"key": "issuer:factory/k1"}"#.to_owned(), false, true),
        (r#"{"device": "pump-17", "until": "2026-11-21T09:00:00Z"}"#.to_owned(), false, false),
        (r#"{"device": "pump-17", "until": "2026-11-21T09:00:01Z"}"#.to_owned(), true, true),
        (r#"{"issued_before": "2026-11-21T09:00:00Z", "device": "pump-17"}"#.to_owned(), true, false),
        (r#"{"issued_before": "2026-11-21T09:00:01Z", "issuer": "factory"}"#.to_owned(), false, true),
    ] {
        gate.load_revocations(list(&lines));
        for (token, grant, cut) in [(&sas, &by_sas, cuts_sas), (&jwt, &by_jwt, cuts_jwt)] {
            assert_eq!(check(&gate, "pump-17", token).err(), cut.then_some(Denial::Revoked), "{lines}");
            assert_eq!(gate.recheck(grant, NOW), cut.then_some(CloseReason::Revoked), "{lines}");
        }
    }
    gate.load_revocations(list(r#"{"device": "pump-17", "reason": "laptop stolen"}"#));
    let refused = gate.admit(&ask("pump-17", &sas), NOW).expect_err("refused");
    assert!(refused.detail.contains("laptop stolen") && refused.detail.contains("the device pump-17"), "{refused}");
}

#[test]
fn a_live_session_ends_when_what_admitted_it_is_gone() {
    let by_primary = |keys: Slots| Shape { pump: Some(device(keys)), ..Shape::new() };
    let cut = Some(CloseReason::GrantWithdrawn);
    let cases: Vec<(&str, Shape, Option<CloseReason>)> = vec![
        ("nothing changed", Shape::new(), None),
        ("it moved to secondary", by_primary(Slots { primary: key(GROUP), secondary: key(PRIMARY) }), None),
        ("it was replaced", by_primary(Slots { primary: key(GROUP), secondary: key(SECONDARY) }), cut),
        ("the device is gone", Shape { pump: None, ..Shape::new() }, cut),
        (
            "the device is off",
            Shape { pump: Shape::new().pump.map(|pump| Device { enabled: false, ..pump }), ..Shape::new() },
            cut,
        ),
        (
            "SAS is not accepted",
            Shape {
                pump: Shape::new().pump.map(|pump| Device { accept: Some(vec![TokenKind::Jwt]), ..pump }),
                ..Shape::new()
            },
            cut,
        ),
        ("the scope is wider", Shape { publish: "devices/#", ..Shape::new() }, None),
    ];
    let gate = gate();
    let grant = gate.admit(&ask("pump-17", &pump_sas()), NOW).expect("admitted");
    for (name, shape, expected) in cases {
        gate.load_identities(shape.build());
        assert_eq!(gate.recheck(&grant, NOW), expected, "{name}");
    }
}

#[test]
fn keys_of_policies_groups_and_issuers_are_watched_alike() {
    let gate = gate();
    let derived = SecretKey::from_bytes(GROUP).expect("a key").derive(&id("line7-a"));
    let by_policy = gate
        .admit(&ask("pump-17", &sas("localhost/devices/pump-17", POLICY, 3600, Some("device"))), NOW)
        .expect("admitted");
    let by_group = gate
        .admit(&ask("line7-a", &sas("localhost/devices/line7-a", derived.bytes(), 3600, None)), NOW)
        .expect("admitted");
    let by_issuer = gate.admit(&ask("pump-17", &jwt(&claims())), NOW).expect("admitted");
    let all = [&by_policy, &by_group, &by_issuer];
    gate.load_identities(Shape { kid: "renamed", ..Shape::new() }.build());
    assert_eq!(all.map(|grant| gate.recheck(grant, NOW)), [None; 3]);
    let mut shape = Shape::new();
    shape.policy.keys = Slots { primary: key(GROUP), secondary: None };
    gate.load_identities(shape.build());
    assert_eq!(all.map(|grant| gate.recheck(grant, NOW)), [Some(CloseReason::GrantWithdrawn), None, None]);
    let mut shape = Shape::new();
    shape.policy.rights = Rights { publish: false, subscribe: true };
    gate.load_identities(shape.build());
    assert_eq!(gate.recheck(&by_policy, NOW), Some(CloseReason::GrantWithdrawn), "nothing is left of its scope");
    gate.load_identities(Arc::default());
    assert_eq!(all.map(|grant| gate.recheck(grant, NOW)), [Some(CloseReason::GrantWithdrawn); 3]);
}

#[test]
fn a_live_session_ends_in_the_second_after_expiry_and_skew() {
    let gate = gate();
    let grant = gate.admit(&ask("pump-17", &pump_sas()), NOW).expect("admitted");
    let end = NOW.0 + 3600 + SKEW;
    assert_eq!(gate.recheck(&grant, UnixSeconds(end - 1)), None);
    assert_eq!(gate.recheck(&grant, UnixSeconds(end)), Some(CloseReason::Expired));
    assert_eq!(gate.recheck(&grant, UnixSeconds(end + 1)), Some(CloseReason::Expired));
}

#[test]
fn no_refusal_holds_a_secret() {
    let gate = gate();
    let utf8 = SecretKey::parse("a printed key of a service", KeyEncoding::Utf8).expect("a key");
    let token = sas("localhost/devices/pump-17", utf8.bytes(), 3600, None);
    let signature = token.split("sig=").nth(1).and_then(|rest| rest.split('&').next()).expect("a signature");
    let shown = format!("{:?} {:?}", gate.admit(&ask("pump-17", &token), NOW), gate);
    assert!(!shown.contains(signature));
    assert!(!shown.contains("primary key of") && !shown.contains("a printed key"), "{shown}");
}

/// One CONNECT for each refusal that the gate can give.
#[test]
fn every_refusal_of_the_gate_has_a_connect_that_meets_it() {
    let gate = gate();
    gate.load_revocations(list(r#"{"jti": "gone"}"#));
    let met: Vec<Denial> = [
        ("pump-17", String::new()),
        ("pump-17", "x".into()),
        ("sas-only", jwt(&claims().with("sub", "sas-only"))),
        ("a b", pump_sas()),
        ("pump-1", pump_sas()),
        ("ghost", sas("localhost/devices/ghost", PRIMARY, 3600, None)),
        ("pump-17", sas("localhost/devices/pump-17", GROUP, 3600, None)),
        ("pump-17", sas("localhost/devices/pump-17", GROUP, 3600, Some("ghost"))),
        ("pump-17", jwt(&claims().with("iss", "ghost"))),
        ("pump-17", jwt(&claims()).replacen("eyJ", "eyK", 1)),
        ("pump-17", jwt(&claims().with("aud", "ghost"))),
        ("pump-17", sas("ghost/devices/pump-17", PRIMARY, 3600, None)),
        ("pump-17", sas("localhost", POLICY, 3600, Some("device"))),
        ("pump-17", sas("localhost/x", POLICY, 3600, Some("device"))),
        ("pump-17", jwt(&claims().with("sub", 1))),
        ("off", sas("localhost/devices/off", b"a key of the switched off device", 3600, None)),
        ("pump-17", sas("localhost/devices/pump-17", PRIMARY, -3600, None)),
        ("pump-17", jwt(&claims().with("nbf", NOW.0 + 600))),
        ("pump-17", jwt(&claims().with("iat", NOW.0 + 600))),
        ("pump-17", sas("localhost/devices/pump-17", PRIMARY, 999_999, None)),
        ("pump-17", jwt(&claims().with("jti", "gone"))),
    ]
    .iter()
    .map(|(client, token)| check(&gate, client, token).expect_err(token))
    .collect();
    use Denial::*;
    assert_eq!(
        met,
        [
            CredentialMissing,
            CredentialMalformed,
            CredentialKindNotAccepted,
            ClientIdInvalid,
            DeviceMismatch,
            DeviceUnknown,
            SignatureInvalid,
            KeyUnknown,
            IssuerUnknown,
            CredentialMalformed,
            AudienceMismatch,
            HostMismatch,
            HubWideToken,
            ResourceOutOfPolicy,
            ClaimInvalid,
            DeviceDisabled,
            Expired,
            NotYetValid,
            IssuedInFuture,
            LifetimeTooLong,
            Revoked,
        ]
    );
}
