//! Rotations on files, also those that are broken off after any step.

use std::{collections::BTreeSet, fs, io, os::unix::fs::PermissionsExt};

use super::*;
use crate::config::Mistake;

/// A site with files of its own.
struct Room {
    directory: tempfile::TempDir,
    site: KeySite,
}

impl Room {
    /// `{dir}` is its directory.
    fn new(identities: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("var")).expect("made");
        let (identities_toml, revocations, state_dir) = (at("identities.toml"), at("revocations.jsonl"), at("var"));
        let site = KeySite { identities: identities_toml, revocations, state_dir, gate: GateConfig::default() };
        let room = Self { directory, site };
        room.write("identities.toml", &identities.replace("{dir}", &room.directory.path().to_string_lossy()));
        room
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).expect("read")
    }

    fn loaded(&self) -> Result<Identities, Vec<Mistake>> {
        load_identities(&self.site.identities, &self.site.gate).map(|loaded| loaded.identities)
    }

    fn keys(&self, owner: &str) -> [Option<u64>; 2] {
        survey::fingerprints(&self.loaded().expect("good files"), &named(owner))
    }

    fn rotate(&self, owner: &str, what: Replace) -> Result<Rotated, RotateError> {
        rotate(&self.site, &named(owner), (what, Lift::Nothing), &TURNER)
    }

    /// Begins a rotation and ends, as a kill does, after so many steps; says whether it came to its end before.
    fn killed_after(&self, steps: usize, owner: &str, what: Replace) -> bool {
        let mut left = steps;
        let mut run = |step: &Step| {
            left = left.checked_sub(1).ok_or_else(|| RotateError::NoRandomness(io::Error::other("killed")))?;
            step.run()
        };
        rotate_by(&self.site, (&named(owner), (what, Lift::Nothing)), &TURNER, &mut run).is_ok()
    }

    fn audited(&self) -> Vec<String> {
        let text = fs::read_to_string(self.site.state_dir.join("audit.jsonl")).unwrap_or_default();
        let entry = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("an entry");
        text.lines()
            .map(|line| format!("{} {}", entry(line)["action"], entry(line)["object"]).replace('"', ""))
            .collect()
    }
}

fn named(owner: &str) -> KeyOwner {
    owner.parse().expect(owner)
}

#[test]
fn inline_keys_turn_in_place_and_comments_layout_and_everybody_else_stay() {
    let room = Room::new(INLINE);
    let before = room.keys("device:pump-17");
    let rotated = room.rotate("device:pump-17", Replace::Primary).expect("rotated");
    let after = room.keys("device:pump-17");
    assert_eq!((rotated.before, rotated.after, after[1]), (before, after, before[0]));
    assert!(![before[0], before[1]].contains(&after[0]), "a new one");
    let text = room.read("identities.toml");
    let changed: Vec<(&str, &str)> = INLINE.lines().zip(text.lines()).filter(|(old, new)| old != new).collect();
    assert_eq!((changed.len(), INLINE.lines().count()), (2, text.lines().count()), "{changed:?}");
    assert!(
        changed[0].1.starts_with("primary_key   = \"") && changed[0].1.ends_with("\"  # in its flash"),
        "{changed:?}"
    );
    assert_eq!(room.audited(), ["key_rotated device:pump-17"]);
    assert!(!room.read("var/audit.jsonl").contains(KEYS[0]) && !room.read("var/keys.json").contains(KEYS[0]));
    // One that has no secondary gets one.
    let before = room.keys("device:fan-2");
    room.rotate("device:fan-2", Replace::Primary).expect("rotated");
    assert_eq!((before[1], room.keys("device:fan-2")[1]), (None, before[0]));
}

#[test]
fn both_keys_are_replaced_after_a_compromise() {
    let room = Room::new(INLINE);
    let before = room.keys("device:pump-17");
    let rotated = room.rotate("device:pump-17", Replace::Both).expect("rotated");
    assert!(rotated.after.iter().all(|key| key.is_some() && !before.contains(key)), "{rotated:?}");
    assert_eq!(room.keys("device:pump-17"), rotated.after);
    // There was one, and there is one.
    let lonely = room.keys("device:fan-2");
    let rotated = room.rotate("device:fan-2", Replace::Both).expect("rotated");
    assert!(rotated.after[0] != lonely[0] && rotated.after[1].is_none(), "{rotated:?}");
    assert_eq!(room.audited(), ["keys_replaced device:pump-17", "keys_replaced device:fan-2"]);
}

#[test]
fn rotating_twice_leaves_none_of_the_old_keys() {
    let room = Room::new(INLINE);
    let before = room.keys("device:pump-17");
    room.rotate("device:pump-17", Replace::Primary).expect("rotated");
    room.rotate("device:pump-17", Replace::Primary).expect("rotated");
    assert!(room.keys("device:pump-17").iter().all(|key| !before.contains(key)));
}

/// Every way in which two keys can be kept, and both kinds of rotation, killed after every step: the old primary still
/// verifies, the files load, and the same rotation again ends well.
#[test]
fn whoever_is_killed_in_a_rotation_loses_no_key() {
    let mut seen = BTreeSet::new();
    for (case, keys) in [
        ("inline", ["primary_key = \"{k0}\"", "secondary_key = \"{k1}\""]),
        ("inline alone", ["primary_key = \"{k0}\"", ""]),
        ("files", ["primary_key_file = \"{dir}/p.primary\"", "secondary_key_file = \"{dir}/p.secondary\""]),
        ("file alone", ["primary_key_file = \"{dir}/p.primary\"", ""]),
        ("inline, file", ["primary_key = \"{k0}\"", "secondary_key_file = \"{dir}/p.secondary\""]),
        ("file, inline", ["primary_key_file = \"{dir}/p.primary\"", "secondary_key = \"{k1}\""]),
    ] {
        for what in [Replace::Primary, Replace::Both] {
            for steps in 0.. {
                let text = POLICY.replace("KEYS", &keys.join("\n")).replace("{k0}", KEYS[0]).replace("{k1}", KEYS[1]);
                let room = Room::new(&text);
                room.write("p.primary", KEYS[0]);
                if case != "file alone" {
                    room.write("p.secondary", KEYS[1]);
                }
                let [old, _] = room.keys("policy:site");
                let is_done = room.killed_after(steps, "policy:site", what);
                let at = format!("{case}, {what:?}, killed after {steps}");
                let between = room.loaded().unwrap_or_else(|mistakes| panic!("{at}: {mistakes:?}"));
                let between = survey::fingerprints(&between, &named("policy:site"));
                if what == Replace::Primary {
                    assert!(between.contains(&old), "{at}: the old primary is lost: {between:?}");
                }
                finish(&room.site, NOW).expect("looked at");
                let turned = State::read(&room.site.state_dir).expect("read").keys.contains_key("policy:site");
                assert_eq!(turned, between[0] != old, "{at}: whether it was done is known");
                assert_eq!(room.audited().len(), usize::from(turned), "{at}: and audited once");
                if is_done {
                    seen.insert((case, steps));
                    break;
                }
                // Where the primary did not come to its turn, the same again does what the first should have done.
                if between[0] == old {
                    let again = room.rotate("policy:site", what).unwrap_or_else(|error| panic!("{at}: {error}"));
                    assert!(
                        again.after[0] != old && (what == Replace::Both || again.after[1] == old),
                        "{at}: {again:?}"
                    );
                }
                let left: Vec<_> = fs::read_dir(room.directory.path()).expect("read").flatten().collect();
                let left = left.iter().filter(|file| file.file_name().to_string_lossy().ends_with(".rotating"));
                assert!(between[0] != old || left.count() == 0, "{at}: no mark is left");
            }
        }
    }
    assert!(seen.iter().map(|(_, steps)| steps).max() >= Some(&5), "the longest has five steps: {seen:?}");
}

#[test]
fn the_shared_secret_of_an_issuer_turns_under_its_kid_and_public_keys_are_their_issuers() {
    for steps in 0..=6 {
        let room = Room::new(ISSUER);
        room.write("factory.secret", KEYS[0]);
        let [old, none] = room.keys("issuer:factory/k1");
        assert_eq!(none, None);
        let is_done = room.killed_after(steps, "issuer:factory/k1", Replace::Primary);
        assert!(room.keys("issuer:factory/k1").contains(&old), "after {steps}");
        if !is_done && room.keys("issuer:factory/k1")[0] == old {
            room.rotate("issuer:factory/k1", Replace::Primary).expect("again");
        }
        let [new, secondary] = room.keys("issuer:factory/k1");
        assert!(new != old && secondary == old, "after {steps}");
        assert!(room.loaded().expect("good").keyring().fingerprints().contains(&old.expect("a key")));
    }
    let room = Room::new(&ISSUER.replace("secret_file = ", "file = ").replace("HS256", "ES256"));
    room.write("factory.secret", EC_PEM);
    let error = room.rotate("issuer:factory/k1", Replace::Primary).expect_err("public").to_string();
    assert!(error.contains("is a public key") && error.contains("another `kid`"), "{error}");
}

#[test]
fn the_same_key_twice_is_a_mistake_where_nobody_rotates_it() {
    let room = Room::new(
        &POLICY.replace("KEYS", "primary_key_file = \"{dir}/p.primary\"\nsecondary_key_file = \"{dir}/p.secondary\""),
    );
    room.write("p.primary", KEYS[0]);
    room.write("p.secondary", KEYS[0]);
    assert!(room.loaded().is_err());
    room.write("p.secondary.rotating", "policy:other");
    assert!(room.loaded().is_err());
    room.write("p.secondary.rotating", "policy:site");
    assert_eq!(room.keys("policy:site")[1], None, "the secondary says nothing meanwhile");
}

#[test]
fn a_utf8_key_is_the_text_itself_and_a_group_turns_as_others_do() {
    let room = Room::new(UTF8_AND_GROUP);
    room.write("sb.primary", "a text of a key as Service Bus prints it=\n");
    for owner in ["policy:sb", "group:line7-"] {
        let [old, _] = room.keys(owner);
        room.rotate(owner, Replace::Primary).expect("rotated");
        assert_eq!(room.keys(owner)[1], old, "{owner}");
    }
    assert_eq!(room.read("sb.secondary"), "a text of a key as Service Bus prints it=\n");
    assert!(room.read("identities.toml").contains("sb.secondary"), "the file names it");
    let mode = |name: &str| fs::metadata(room.directory.path().join(name)).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode("sb.primary"), mode("sb.secondary"), mode("identities.toml")), (0o600, 0o600, 0o600));
}

#[test]
fn what_cannot_be_rotated_is_refused_with_the_right_advice_and_nothing_is_written() {
    let room = Room::new(INLINE);
    room.write("fan.secondary", "somebody else's");
    for (owner, expected) in [
        ("device:ghost", "has no entry for device:ghost"),
        ("device:by-jwt", "has no SAS key of its own"),
        ("policy:ghost", "has no entry for policy:ghost"),
        ("issuer:factory/k1", "has no entry for issuer:factory/k1"),
        ("group:x", "has no entry for group:x"),
    ] {
        let error = room.rotate(owner, Replace::Primary).expect_err(owner).to_string();
        assert!(error.contains(expected), "{owner}: {error}");
    }
    for text in ["pump-17", "device:", "device:a+b", "policy:a b", "issuer:a/b c", "key:x"] {
        assert!(text.parse::<KeyOwner>().is_err(), "{text}");
    }
    for text in ["device:pump-17", "policy:site", "group:line7-", "issuer:factory/k1", "issuer:factory/key"] {
        assert_eq!(named(text).to_string(), text);
    }
    room.write("identities.toml", &INLINE.replace("fan-2", "fan 2"));
    assert!(matches!(room.rotate("device:pump-17", Replace::Primary), Err(RotateError::Mistakes(_))));
    assert_eq!(room.read("identities.toml"), INLINE.replace("fan-2", "fan 2"));
    assert_eq!(room.audited(), [""; 0]);
}

#[test]
fn a_slot_that_the_list_names_is_not_filled_with_another_key() {
    let room = Room::new(INLINE);
    room.write("revocations.jsonl", "{\"device\": \"x\"}\n{\"key\": \"device:pump-17/secondary\"}\n");
    let error = room.rotate("device:pump-17", Replace::Primary).expect_err("refused").to_string();
    assert!(error.contains("names device:pump-17/secondary") && error.contains("revocations remove"), "{error}");
    assert_eq!(room.read("identities.toml"), INLINE);
    let ended = "{\"key\": \"device:fan-2/primary\", \"until\": \"2026-11-21T09:00:00Z\"}\n";
    room.write(
        "revocations.jsonl",
        &format!("{{\"device\": \"x\"}}\n{{\"key\": \"device:pump-17/secondary\"}}\n{ended}"),
    );
    room.rotate("device:fan-2", Replace::Primary).expect("another's");
    // Both are replaced, and the entry goes with the key that it meant.
    let both = |lift| rotate(&room.site, &named("device:pump-17"), (Replace::Both, lift), &TURNER);
    assert!(matches!(both(Lift::Nothing), Err(RotateError::SlotRevoked { .. })));
    let rotated = both(Lift::Entries).expect("both");
    assert!(rotated.after.iter().all(|key| !rotated.before.contains(key)), "{rotated:?}");
    assert_eq!(room.read("revocations.jsonl"), format!("{{\"device\": \"x\"}}\n{ended}"));
    let audited = room.audited();
    assert!(audited.last().is_some_and(|last| last.starts_with("revocation_removed revocation:")), "{audited:?}");
}

#[test]
fn keys_are_added_where_there_are_none() {
    let room = Room::new(INLINE);
    let add = |owner: &str, more: &[(&str, &str)]| add(&room.site, &named(owner), more, "test", NOW);
    for (owner, more) in [
        ("device:new-1", &[][..]),
        ("device:by-jwt", &[]),
        ("group:line9-", &[]),
        ("policy:hand", &[("resource", "localhost")]),
    ] {
        let added = add(owner, more).unwrap_or_else(|error| panic!("{owner}: {error}"));
        assert_eq!((room.keys(owner), added.after), (added.after, room.keys(owner)));
        assert!(added.after.iter().all(Option::is_some) && !added.primary.is_empty(), "{owner}");
        assert!(add(owner, more).expect_err(owner).to_string().contains("has both keys"));
    }
    let [old, _] = room.keys("device:fan-2");
    let added = add("device:fan-2", &[]).expect("a secondary");
    assert_eq!((added.after[0], added.after[1].is_some(), added.primary.is_empty()), (old, true, true));
    assert!(
        room.read("identities.toml").starts_with(INLINE.split("[[device]]\nid = \"fan-2\"").next().expect("a head"))
    );
}

#[test]
fn what_would_be_a_mistake_is_not_added() {
    let room = Room::new(INLINE);
    let before = room.read("identities.toml");
    for (owner, more, why) in
        [("device:ghost/mic", &[][..], "there is no such device"), ("policy:blank", &[("resource", "")], "resource")]
    {
        let refused = add(&room.site, &named(owner), more, "test", NOW).expect_err(owner).to_string();
        assert!(refused.contains(why) && refused.contains("no key was changed"), "{owner}: {refused}");
        assert_eq!(room.read("identities.toml"), before, "{owner}");
    }
    assert!(room.loaded().is_ok() && room.audited().is_empty());
}

const TURNER: Turner<'static> = Turner { by: "test", now: &|| NOW, written: &|| {} };
const NOW: UnixSeconds = UnixSeconds(1_795_251_600);

const KEYS: [&str; 2] =
    ["MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="];

const INLINE: &str = r#"# The pumps of hall 3
[defaults.scope]
publish = ["devices/{device}/messages/events/#"]

[[device]]
id = "pump-17"    # beside the door
primary_key   = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="  # in its flash
secondary_key = 'QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY='
scope.retain = false   # never

# no secondary yet
[[device]]
id = "fan-2"
primary_key = "cXdlcnR5dWlvcGFzZGZnaGprbHp4Y3Zibm0xMjM0NTY="

[[device]]
id = "by-jwt"
# the end
"#;

const POLICY: &str = "[[policy]]\nname = \"site\"\nresource = \"localhost\"\nKEYS\nrights = [\"publish\"]\n";

const ISSUER: &str = r#"
[[issuer]]
name = "factory"
iss = "https://id.example"
audience = ["localhost"]
algorithms = ["HS256"]
[[issuer.key]]
kid = "k1"
secret_file = "{dir}/factory.secret"   # shared with the factory
"#;

/// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -pubout`
const EC_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE5RaT/T02gg0DPYP5I/3d0LhIUVVR\n\
    EiKtQoPWviV72mhteIYkonupX1DLr3HxBRXt3nphvQNoZP2ZxM+B/J0fsA==\n\
    -----END PUBLIC KEY-----";

const UTF8_AND_GROUP: &str = r#"
[[policy]]
name = "sb"
resource = "localhost"
key_encoding = "utf8"
primary_key_file = "{dir}/sb.primary"

[[group]]
prefix = "line7-"
primary_key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
secondary_key = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="
"#;
