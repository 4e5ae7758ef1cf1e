use std::{fs, os::unix::fs::PermissionsExt};

use super::*;
use crate::{credential::Algorithm, gate::Profile, time::UnixSeconds, topic::TopicName};

const KEYS: [&str; 4] = [
    "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
    "cXdlcnR5dWlvcGFzZGZnaGprbHp4Y3Zibm0xMjM0NTY=",
    "enl4d3Z1dHNycXBvbm1sa2ppaGdmZWRjYmE5ODc2NTQ=",
];

/// Of RFC 8037 §A.2, with a `kid`.
const ED_JWK: &str =
    r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"from-the-file"}"#;

/// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -pubout`
const EC_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE5RaT/T02gg0DPYP5I/3d0LhIUVVR\n\
    EiKtQoPWviV72mhteIYkonupX1DLr3HxBRXt3nphvQNoZP2ZxM+B/J0fsA==\n\
    -----END PUBLIC KEY-----";

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn write(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        path
    }

    /// `{dir}` is this directory, `{k0}` to `{k3}` are keys.
    fn load(&self, text: &str) -> Result<LoadedIdentities, Vec<String>> {
        self.load_for(&GateConfig::default(), text)
    }

    fn load_for(&self, gate: &GateConfig, text: &str) -> Result<LoadedIdentities, Vec<String>> {
        let mut text = text.replace("{dir}", &self.directory.path().to_string_lossy());
        for (n, key) in KEYS.iter().enumerate() {
            text = text.replace(&format!("{{k{n}}}"), key);
        }
        let path = self.write("identities.toml", &text, 0o600);
        load_identities(&path, gate).map_err(|mistakes| {
            mistakes.iter().map(|mistake| format!("{}: {}", mistake.line.unwrap_or(0), mistake.what)).collect()
        })
    }
}

fn id(text: &str) -> DeviceId {
    DeviceId::try_from(text).expect(text)
}

#[test]
fn every_kind_of_identity_is_read() {
    let files = Files::new();
    files.write("policy.primary", &format!("{}\n", KEYS[2]), 0o600);
    files.write("issuer.pem", EC_PEM, 0o644);
    files.write("issuer.secret", KEYS[3], 0o400);
    let loaded = files
        .load(
            r#"
[defaults.scope]
publish = ["devices/{device}/messages/events/#"]
subscribe = ["devices/{device}/messages/devicebound/#"]
retain = false
[[device]]
id = "pump-17"
primary_key = "{k0}"
secondary_key = "{k1}"
token_lifetime_max = "1h"
[[device]]
id = "dashboard"
enabled = false
accept = ["jwt"]
scope.publish = []
scope.subscribe = ["devices/+/messages/events/#"]
[[policy]]
name = "device"
resource = "localhost"
key_encoding = "utf8"
primary_key_file = "{dir}/policy.primary"
rights = ["publish"]
[[group]]
prefix = "line7-"
primary_key = "enl4d3Z1dHNycXBvbm1sa2ppaGdmZWRjYmE5ODc2NTQ="
[[issuer]]
name = "factory"
iss = "https://id.factory.example"
audience = ["localhost"]
algorithms = ["ES256", "HS256"]
device_claim = "device"
scope_claim = "acl"
require = ["exp", "iat", "jti"]
[[issuer.key]]
kid = "k1"
file = "{dir}/issuer.pem"
[[issuer.key]]
kid = "k2"
secret_file = "{dir}/issuer.secret"
algorithm = "HS256"
"#,
        )
        .expect("good");
    let (ring, identities) = (loaded.identities.keyring(), &loaded.identities);
    let pump = ring.find(&id("pump-17")).and_then(|found| found.device).expect("a device");
    assert!(pump.enabled && pump.keys.primary.is_some() && pump.keys.secondary.is_some());
    assert_eq!(pump.token_lifetime_max, Some(std::time::Duration::from_secs(3600)));
    let dashboard = ring.find(&id("dashboard")).and_then(|found| found.device).expect("a device");
    assert_eq!((dashboard.enabled, dashboard.accept.as_deref()), (false, Some([TokenKind::Jwt].as_slice())));
    assert!(ring.find(&id("line7-x")).is_some() && ring.find(&id("line8-x")).is_none());
    let policy = ring.policy("device").expect("a policy");
    assert_eq!(
        policy.keys.primary.as_ref().map(SecretKey::bytes),
        Some(KEYS[2].as_bytes()),
        "the UTF-8 bytes, without the line break"
    );
    assert_eq!(policy.rights, Rights { publish: true, subscribe: false });
    let issuer = ring.issuer("https://id.factory.example").expect("an issuer");
    let keys: Vec<_> = issuer.keys.iter().map(|(kid, key)| (kid.as_deref(), key.algorithm())).collect();
    assert_eq!(keys, [(Some("k1"), Algorithm::ES256), (Some("k2"), Algorithm::HS256)]);
    let scope = identities.scope_of(&id("pump-17"), Profile::Strict).expect("a scope");
    let topic = TopicName::new(b"devices/pump-17/messages/events/").expect("a topic");
    assert!(scope.authorize_publish(topic, 2, false).is_ok() && scope.authorize_publish(topic, 0, true).is_err());
    assert_eq!(identities.scope_of(&id("dashboard"), Profile::Strict).expect("a scope").publish(), []);
    assert_eq!(identities.scope_of(&id("line7-x"), Profile::Strict).expect("a scope").publish().len(), 1);
    assert_eq!(loaded.files.len(), 4);
    let warned: Vec<_> = loaded.warnings.iter().map(|warning| warning.line).collect();
    assert_eq!(
        warned,
        [Some(30), Some(39)],
        "shared secrets beside public keys, and the secret of a group: {:?}",
        loaded.warnings
    );
}

#[test]
fn all_mistakes_come_at_once_with_their_lines() {
    let files = Files::new();
    files.write("open", KEYS[3], 0o640);
    let mistakes = files
        .load(
            r#"[[device]]
id = "pump-17"
primary_key = "{k0}"
secondary_key = "{k0}"
colour = "red"
[[device]]
id = "PUMP-17"
primary_key = "{k0}"
[[device]]
id = "a/b"
primary_key = "c2hvcnQ="
[[device]]
id = "two"
primary_key = "{k1}"
primary_key_file = "x"
secondary_key_file = "{dir}/open"
scope.publish = ["a/#/b", "$share/g/a"]
[[policy]]
name = "p q"
resource = "localhost/"
primary_key_file = "{dir}/none"
[[group]]
prefix = "line7-"
[[issuer]]
name = "i"
iss = ""
audience = []
algorithms = ["none"]
"#,
        )
        .expect_err("bad");
    let lines: Vec<_> =
        mistakes.iter().map(|mistake| mistake.split(':').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(
        lines,
        ["4", "5", "7", "8", "10", "11", "14", "16", "17", "17", "19", "20", "21", "22", "24", "26", "27", "28"],
        "{mistakes:#?}"
    );
    let all = mistakes.join("\n");
    for (number, what) in [
        (4, "both keys of device:pump-17 are the same"),
        (7, "\"pump-17\" has this name already"),
        (8, "device:PUMP-17 has the same key as device:pump-17"),
        (11, "it has 5 bytes, at least 16 are needed"),
        (16, "mode 0640 lets group or others at it"),
        (28, "`algorithms` may not hold \"none\""),
    ] {
        assert!(all.contains(what), "line {number}: {what}\n{all}");
    }
    for secret in KEYS {
        assert!(!all.contains(secret), "{all}");
    }
}

#[test]
fn keys_in_a_file_that_others_may_read_are_a_mistake() {
    let files = Files::new();
    let path = files.write("open.toml", &format!("[[device]]\nid = \"a\"\nprimary_key = \"{}\"\n", KEYS[0]), 0o644);
    let mistakes = load_identities(&path, &GateConfig::default()).expect_err("bad");
    assert!(mistakes[0].what.contains("mode 0644") && mistakes[0].remedy.contains("chmod 600"), "{mistakes:?}");
    let path = files.write("none.toml", "[[device]]\nid = \"a\"\n", 0o644);
    let loaded = load_identities(&path, &GateConfig::default()).expect("no secret in it");
    assert_eq!(loaded.warnings.len(), 1, "it cannot connect");
}

#[test]
fn a_key_of_an_issuer_is_for_one_algorithm() {
    let files = Files::new();
    files.write("ec.pem", EC_PEM, 0o644);
    files.write("secret", KEYS[0], 0o600);
    files.write("short", "c2hvcnQgYnV0IG5vdCB0aGF0IHNob3J0", 0o600);
    files.write("pem", EC_PEM, 0o600);
    let issuer = |algorithms: &str, key: &str| {
        files
            .load(&format!("[[issuer]]\nname = \"i\"\niss = \"i\"\naudience = [\"a\"]\nalgorithms = [{algorithms}]\n[[issuer.key]]\n{key}\n"))
            .map(|loaded| loaded.identities.keyring().issuer("i").and_then(|issuer| issuer.keys.first().map(|(_, key)| key.algorithm())))
            .map_err(|mistakes| mistakes.join("\n"))
    };
    assert_eq!(issuer("\"ES256\", \"RS256\"", "file = \"{dir}/ec.pem\""), Ok(Some(Algorithm::ES256)));
    assert_eq!(issuer("\"HS384\"", "secret_file = \"{dir}/secret\""), Ok(Some(Algorithm::HS384)));
    for (algorithms, key, what) in [
        ("\"HS256\", \"HS384\"", "secret_file = \"{dir}/secret\"", "HS256 or HS384"),
        ("\"HS256\"", "secret_file = \"{dir}/short\"", "24 bytes, at least 32"),
        ("\"HS256\"", "secret_file = \"{dir}/pem\"", "a public key is no secret"),
        ("\"HS256\"", "file = \"{dir}/pem\"", "a public key is no secret"),
        ("\"ES384\"", "file = \"{dir}/ec.pem\"", "it is no key for ES384"),
        ("\"RS256\"", "file = \"{dir}/ec.pem\"", "it is no key for RS256"),
        ("\"ES256\"", "file = \"{dir}/secret\"", "it is no public key in PEM"),
        ("\"ES256\"", "kid = \"../x\"\nfile = \"{dir}/ec.pem\"", "`kid`"),
        ("\"ES256\"", "", "needs `file` or `secret_file`"),
    ] {
        let mistakes = issuer(algorithms, key).expect_err(what);
        assert!(mistakes.contains(what), "{what}: {mistakes}");
    }
}

#[test]
fn an_issuer_requires_what_it_says_and_else_leaves_it_to_the_profile() {
    let files = Files::new();
    files.write("issuer.pem", EC_PEM, 0o644);
    let text = "[[issuer]]\nname = \"i\"\niss = \"i\"\naudience = [\"a\"]\nalgorithms = [\"ES256\"]\nREQUIRE\n\
                [[issuer.key]]\nfile = \"{dir}/issuer.pem\"\n";
    for (said, required) in
        [("", None), ("require = [\"jti\"]", Some(vec!["jti".into()])), ("require = []", Some(vec![]))]
    {
        let loaded = files.load(&text.replace("REQUIRE", said)).expect("good");
        let issuer = loaded.identities.keyring().issuer("i").expect("an issuer");
        assert_eq!(issuer.require, required, "{said}");
    }
}

#[test]
fn modules_stand_behind_their_device_with_keys_and_a_scope_of_their_own() {
    let files = Files::new();
    let text = r#"
[defaults.scope]
publish = ["d/{device}/#"]
[defaults.module_scope]
publish = ["d/{device}/{module}/#"]
[[device]]
id = "pump-17"
primary_key = "{k0}"
[[module]]
id = "pump-17/camera"
primary_key = "{k1}"
[[module]]
id = "line7-a/camera"
primary_key = "{k2}"
scope.subscribe = ["in/{module}"]
[[group]]
prefix = "line7-"
primary_key = "{k3}"
"#;
    let loaded = files.load(text).expect("good");
    assert_eq!(loaded.warnings, []);
    let scope = |name: &str| {
        let scope = loaded.identities.scope_of(&id(name), Profile::Strict).expect(name);
        let texts = |all: &[crate::topic::TopicFilter]| all.iter().map(|f| f.as_str().to_owned()).collect::<Vec<_>>();
        (texts(scope.publish()).join(" "), texts(scope.subscribe()).join(" "))
    };
    assert_eq!(scope("pump-17"), ("d/pump-17/#".into(), "devices/pump-17/messages/devicebound/#".into()));
    let inbound = "devices/pump-17/modules/camera/messages/devicebound/# devices/pump-17/modules/camera/inputs/#";
    assert_eq!(scope("pump-17/camera"), ("d/pump-17/camera/#".into(), inbound.into()));
    assert_eq!(scope("line7-a/camera"), ("d/line7-a/camera/#".into(), "in/camera".into()));
    let keyring = loaded.identities.keyring();
    let name = |of: &str| keyring.signing_key(&id(of)).map(|(name, _)| name.to_string());
    assert_eq!(name("pump-17/camera").as_deref(), Some("device:pump-17/camera/primary"));
    assert_eq!(name("line7-a").as_deref(), Some("group:line7-/primary"));
    assert_eq!(name("ghost"), None);
}

#[test]
fn what_is_wrong_with_a_module_is_said() {
    let files = Files::new();
    for (text, expected) in [
        ("[[module]]\nid = \"pump-17/m\"\n", "pump-17/m is a module of pump-17, and there is no such device"),
        ("[[module]]\nid = \"m\"\n", "is no module"),
        ("[[device]]\nid = \"a/m\"\n", "modules stand at [[module]]"),
        ("[[group]]\nprefix = \"a/\"\nprimary_key = \"{k0}\"\n", "at least one character"),
        ("[[device]]\nid = \"a\"\nscope.publish = [\"{module}\"]\n", "a device is no module"),
        (
            "[[device]]\nid = \"a\"\nprimary_key = \"{k0}\"\n[[module]]\nid = \"a/m\"\nprimary_key = \"{k0}\"\n",
            "the same key as device:a",
        ),
        ("[[device]]\nid = \"a\"\n[[module]]\nid = \"a/m\"\n[[module]]\nid = \"a/M\"\n", "has this name already"),
    ] {
        let mistakes = files.load(text).expect_err(text);
        assert!(mistakes.iter().any(|what| what.contains(expected)), "{text}: {mistakes:?}");
    }
}

#[test]
fn kinds_of_token_that_are_all_unknown_are_one_mistake() {
    let files = Files::new();
    for (accept, about) in [("['foo']", "\"foo\""), ("[]", "`accept` is empty")] {
        let text = format!("[[device]]\nid = 'a'\nprimary_key = '{{k0}}'\naccept = {accept}\n");
        let found = files.load(&text).expect_err("a mistake");
        assert!(found.len() == 1 && found[0].contains(about), "{accept}: {found:?}");
    }
}

#[test]
fn a_devices_public_keys_are_read_with_their_validity() {
    let files = Files::new();
    files.write("a.pem", EC_PEM, 0o644);
    files.write("b.jwk", ED_JWK, 0o644);
    let text = r#"
[[device]]
id = "pump-17"
[[device.public_key]]
file = "{dir}/a.pem"
kid = "a"
algorithm = "ES256"
not_before = 2026-01-01T00:00:00Z
not_after = "2126-01-01T00:00:00Z"
[[device.public_key]]
file = "{dir}/b.jwk"
"#;
    let loaded = files.load(text).expect("good");
    assert_eq!(loaded.warnings, []);
    let found = loaded.identities.keyring().find(&id("pump-17")).expect("known");
    let keys = &found.device.expect("its own entry").public_keys;
    let shown: Vec<_> = keys.iter().map(|key| (key.slot(), key.key.algorithm())).collect();
    assert_eq!(shown, [("a".into(), Algorithm::ES256), ("from-the-file".into(), Algorithm::EdDSA)]);
    assert_eq!(keys[0].validity.not_before, Some(UnixSeconds(1_767_225_600)));
    assert_eq!(keys[0].validity.not_after, Some(UnixSeconds(4_922_899_200)));
    assert_eq!(loaded.files.len(), 3, "they are watched");
}

#[test]
fn a_public_key_that_ends_soon_is_warned_of_and_a_bad_one_refused() {
    let files = Files::new();
    files.write("a.pem", EC_PEM, 0o644);
    files.write("b.jwk", ED_JWK, 0o644);
    let text =
        |more: &str| format!("[[device]]\nid = \"a\"\n[[device.public_key]]\nfile = \"{{dir}}/a.pem\"\n{more}\n");
    let soon = UnixSeconds::from_system(std::time::SystemTime::now()).plus(std::time::Duration::from_hours(48));
    for (more, warning) in [
        (format!("not_after = {soon}"), "within 2 days"),
        ("not_after = 2025-01-01T00:00:00Z".to_owned(), "and is no more"),
    ] {
        let loaded = files.load(&text(&more)).expect("works");
        assert!(loaded.warnings.iter().any(|found| found.what.contains(warning)), "{:?}", loaded.warnings);
    }
    let second = "[[device.public_key]]\nfile = \"{dir}/a.pem\"";
    let other = "[[device]]\nid = \"b\"\n[[device.public_key]]\nfile = \"{dir}/a.pem\"";
    for (more, expected) in [
        ("algorithm = \"RS256\"", "it is no key for RS256"),
        ("algorithm = \"HS256\"", "no algorithm of public keys"),
        ("kid = \"primary\"", "the name of a SAS key"),
        ("kid = \"a/b\"", "letters, digits"),
        ("not_before = 2026-01-02T00:00:00Z\nnot_after = 2026-01-02T00:00:00Z", "would never be good"),
        ("not_after = \"tomorrow\"", "is no time"),
        ("not_after = 2026-01-02", "is no time"),
        ("kid = \"k\"\n[[device.public_key]]\nkid = \"k\"\nfile = \"{dir}/b.jwk\"", "this `kid` stands twice"),
        (second, "both keys of device:a are the same"),
        (other, "device:b has the same key as device:a"),
    ] {
        let mistakes = files.load(&text(more)).expect_err(more);
        assert!(mistakes.iter().any(|what| what.contains(expected)), "{more}: {mistakes:?}");
    }
}

#[test]
fn ten_thousand_devices_are_read_in_one_go() {
    let files = Files::new();
    let mut text = String::new();
    for n in 0..10_000 {
        let key = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            format!("a key of thirty-two bytes, {n:05}"),
        );
        text.push_str(&format!("[[device]]\nid = \"device-{n}\"\nprimary_key = \"{key}\"\n"));
    }
    let loaded = files.load(&text).expect("good");
    assert_eq!(loaded.identities.keyring().devices().count(), 10_000);
}

#[test]
fn rotation_by_schedule_is_for_policies_whose_tokens_do_not_outlive_two_turns() {
    let files = Files::new();
    let (key, other) = (KEYS[0], KEYS[1]);
    let policy = |more: &str| {
        files.load(&format!(
            "[[policy]]\nname = \"p\"\nresource = \"localhost\"\nprimary_key_file = \"{{dir}}/key\"\n{more}\n"
        ))
    };
    files.write("key", key, 0o600);
    for (lifetime, warned) in [("59m 59s", false), ("1h", false), ("1h 1s", true)] {
        let loaded = policy(&format!("rotate_every = \"1h\"\ntoken_lifetime_max = \"{lifetime}\"")).expect("good");
        let warning = loaded.warnings.iter().find(|warning| warning.line == Some(5));
        assert_eq!(warning.is_some_and(|w| w.what.contains("before they expire")), warned, "{lifetime}: {warning:?}");
        let schedule: Vec<_> = loaded.schedules.iter().map(|s| (s.owner.to_string(), s.every.as_secs())).collect();
        assert_eq!(schedule, [("policy:p".to_owned(), 3600)]);
    }
    assert!(!policy("rotate_every = \"1h\"").expect("good").warnings.is_empty(), "the gateway's limit counts, too");
    let inline = format!(
        "[[policy]]\nname = \"p\"\nresource = \"localhost\"\nprimary_key = \"{other}\"\nrotate_every = \"30d\"\n"
    );
    let warnings = files.load(&inline).expect("good").warnings;
    assert!(warnings.iter().any(|w| w.line == Some(5) && w.what.contains("edits this file")), "{warnings:?}");
    let device = format!("[[device]]\nid = \"d\"\nprimary_key = \"{key}\"\nrotate_every = \"30d\"\n");
    let group = format!("[[group]]\nprefix = \"d\"\nprimary_key = \"{key}\"\nrotate_every = \"30d\"\n");
    for text in [device, group] {
        let mistakes = files.load(&text).expect_err("a device that holds its key would be locked out");
        assert!(mistakes.iter().any(|m| m.starts_with("4:") && m.contains("locked out")), "{mistakes:?}");
    }
    files.write("issuer.pem", EC_PEM, 0o644);
    let issuer = "[[issuer]]\nname = \"f\"\niss = \"f\"\naudience = [\"a\"]\nalgorithms = [\"ES256\"]\nrotate_every = \"30d\"\n\
                  [[issuer.key]]\nfile = \"{dir}/issuer.pem\"\n";
    let mistakes = files.load(issuer).expect_err("the gateway has no private key");
    assert!(mistakes.iter().any(|m| m.starts_with("6:") && m.contains("public")), "{mistakes:?}");
}

#[test]
fn every_key_is_documented() {
    let document = include_str!("../../../docs/identities.md");
    for section in [DEFAULTS, SCOPE, DEVICE, POLICY, GROUP, ISSUER, ISSUER_KEY] {
        for key in section.keys {
            assert!(document.contains(&format!("`{key}`")), "{key} of {}", section.name);
        }
    }
}
