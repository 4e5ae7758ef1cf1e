use base64::{Engine, engine::general_purpose::STANDARD};

use super::*;
use crate::credential::{
    Algorithm, Device, Group, KeyEncoding, Keyring, Policy, Resource, Rights, ScopeIndex, SecretKey, Slots, TokenKind,
    VerifyingKey,
    key::keyed,
    mint_sas,
    vectors::{JWT, KEY, RSA_PEM},
};
use std::time::Duration;

const NOW: UnixSeconds = UnixSeconds(1_795_251_600);
const LATER: UnixSeconds = UnixSeconds(1_795_255_200);
const OTHER: &[u8] = b"a key of another device, not pump";
const GROUP: &[u8] = b"the key of a whole group of them";
const PRINTED: &str = "a key that a service takes as UTF-8 text";

fn id(text: &str) -> DeviceId {
    DeviceId::try_from(text).expect(text)
}

fn secret() -> Vec<u8> {
    STANDARD.decode(KEY).expect("base64")
}

fn slots(key: &[u8]) -> Slots {
    Slots { primary: SecretKey::from_bytes(key).ok(), secondary: None }
}

fn ring() -> Keyring {
    let mut ring = Keyring::builder();
    let device = |keys| Device { keys, ..Device::default() };
    ring.add_device(id("pump-17"), device(slots(&secret()))).expect("new");
    ring.add_device(id("other"), device(slots(OTHER))).expect("new");
    let group = Group { prefix: "line7-".into(), keys: slots(GROUP), token_lifetime_max: None, scope: ScopeIndex(0) };
    ring.add_group(group).expect("new");
    for (name, encoding, key) in [("text", KeyEncoding::Utf8, PRINTED), ("base64", KeyEncoding::Base64, KEY)] {
        let keys = Slots { primary: SecretKey::parse(key, encoding).ok(), secondary: None };
        let resource = Resource::parse("localhost").expect("a resource");
        ring.add_policy(Policy { name: name.into(), resource, keys, rights: Rights::ALL, token_lifetime_max: None })
            .expect("new");
    }
    ring.build()
}

fn rules() -> VerifyRules {
    VerifyRules {
        accept: vec![TokenKind::Sas, TokenKind::Jwt],
        hosts: vec!["localhost".into()],
        clock_skew: Duration::from_secs(30),
        token_lifetime_max: Duration::from_secs(86400),
        hub_wide_tokens: false,
        require: &["exp"],
        device_audience: vec!["localhost".into()],
    }
}

/// A token whose signature is over `signed` while it says `sr`, `se` and an escaped `sig`.
fn sas(sr: &str, signed: &str, se: &str, key: &[u8], escape: impl Fn(&str) -> String) -> String {
    let signature = hmac::Mac::finalize(keyed(key, &[signed.as_bytes(), b"\n", se.as_bytes()])).into_bytes();
    format!("SharedAccessSignature sr={sr}&sig={}&se={se}", escape(&STANDARD.encode(signature)))
}

fn escaped(text: &str) -> String {
    text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

fn ask(token: &str) -> Explanation {
    explain(token, None, &ring(), &rules(), &RevocationList::default(), NOW)
}

#[test]
fn a_good_token_is_explained_step_by_step() {
    let explanation = ask(&mint_sas("localhost/devices/pump-17", &secret(), LATER, None));
    assert!(explanation.verdict.is_ok());
    let steps: Vec<_> = explanation.steps.iter().map(|step| (step.what, step.ok)).collect();
    assert_eq!(steps, ["form", "signature", "resource", "device", "times", "revocations"].map(|what| (what, true)));
    assert_eq!(explanation.near_misses, Vec::<String>::new());
}

#[test]
fn the_first_step_that_fails_is_the_last_that_is_told() {
    let token = mint_sas("localhost/devices/pump-17", &secret(), LATER, None);
    let (list, _) = RevocationList::parse(r#"{"device": "pump-17", "reason": "scrapped"}"#);
    for (device, list, what, denial) in [
        (Some(id("other")), RevocationList::default(), "owner", Denial::DeviceMismatch),
        (Some(id("pump-17")), list, "revocations", Denial::Revoked),
    ] {
        let explanation = explain(&token, device.as_ref(), &ring(), &rules(), &list, NOW);
        assert_eq!(explanation.verdict.map(|_| ()).map_err(|refused| refused.denial), Err(denial));
        let failed: Vec<_> = explanation.steps.iter().filter(|step| !step.ok).map(|step| step.what).collect();
        assert_eq!(failed, [what]);
        assert_eq!(explanation.steps.last().map(|step| step.what), Some(what));
    }
}

#[test]
fn a_kind_that_the_gateway_does_not_take_is_told_as_it_is_refused() {
    let token = mint_sas("localhost/devices/pump-17", &secret(), LATER, None);
    let rules = VerifyRules { accept: vec![TokenKind::Jwt], ..rules() };
    let explanation = explain(&token, None, &ring(), &rules, &RevocationList::default(), NOW);
    assert_eq!(
        explanation.verdict.map(|_| ()).map_err(|refused| refused.denial),
        Err(Denial::CredentialKindNotAccepted)
    );
    let steps: Vec<_> = explanation.steps.iter().map(|step| (step.what, step.ok)).collect();
    assert_eq!(steps, [("form", true), ("device", false)]);
}

#[test]
fn each_usual_mistake_with_a_sas_token_is_named() {
    let (upper, lower, plain) =
        ("localhost%2Fdevices%2Fpump-17", "localhost%2fdevices%2fpump-17", "localhost/devices/pump-17");
    let (key, good) = (secret(), "1795255200");
    let with_plus = (0..)
        .map(|n| (1_795_255_200_u64 + n).to_string())
        .find(|se| sas(plain, plain, se, &key, str::to_owned).contains('+'));
    let with_plus = with_plus.expect("most signatures hold a plus");
    let derived = SecretKey::from_bytes(GROUP).expect("a key").derive(&id("line7-a"));
    let line7 = "localhost/devices/line7-a";
    for (token, denial, what) in [
        (
            sas(upper, upper, good, KEY.as_bytes(), escaped),
            Denial::SignatureInvalid,
            "the key was taken as UTF-8 instead of base64",
        ),
        (
            format!("{}&skn=text", sas(upper, upper, good, &STANDARD.decode("").unwrap_or_default(), escaped)),
            Denial::SignatureInvalid,
            "",
        ),
        (sas(upper, plain, good, &key, escaped), Denial::SignatureInvalid, "`sr` was signed in its decoded form"),
        (sas(plain, upper, good, &key, escaped), Denial::SignatureInvalid, "`sr` was signed percent-encoded, and sent"),
        (sas(plain, lower, good, &key, escaped), Denial::SignatureInvalid, "(lower case), and sent"),
        (
            sas(upper, "localhost%252Fdevices%252Fpump-17", good, &key, escaped),
            Denial::SignatureInvalid,
            "`sr` was signed percent-encoded twice",
        ),
        (
            sas(plain, plain, good, &key, |sig| escaped(sig).replace('%', "%25")),
            Denial::CredentialMalformed,
            "`sig` is percent-encoded twice",
        ),
        (
            sas(plain, plain, &with_plus, &key, |sig| sig.replace('+', " ")),
            Denial::CredentialMalformed,
            "its `+` became a space",
        ),
        (sas(plain, plain, "1795255200000", &key, escaped), Denial::CredentialMalformed, "`se` is in milliseconds"),
        (
            sas("localhost%252Fdevices%252Fpump-17", "x", good, &key, escaped),
            Denial::CredentialMalformed,
            "`sr` is percent-encoded twice",
        ),
        (
            sas("localhost/devices/pump-17/", "localhost/devices/pump-17/", good, &key, escaped),
            Denial::CredentialMalformed,
            "ends with a slash",
        ),
        (sas(plain, plain, good, OTHER, escaped), Denial::SignatureInvalid, "verifies under a key of device:other"),
        (
            sas(plain, plain, good, PRINTED.as_bytes(), escaped),
            Denial::SignatureInvalid,
            "policy:text (the token lacks its `skn`)",
        ),
        (
            format!("{}&skn=text", sas(plain, plain, good, &key, escaped)),
            Denial::SignatureInvalid,
            "signed with the device's own key, and `skn` names a policy",
        ),
        (sas(line7, line7, good, GROUP, escaped), Denial::SignatureInvalid, "not with the one derived from it"),
        (
            sas(line7, line7, good, STANDARD.encode(derived.bytes()).as_bytes(), escaped),
            Denial::SignatureInvalid,
            "UTF-8 instead of base64",
        ),
        (
            sas("hub/devices/pump-17", "hub/devices/pump-17", good, &key, escaped),
            Denial::HostMismatch,
            "add it to `aliases`",
        ),
        (
            sas(plain, plain, "1795251000", &key, escaped),
            Denial::Expired,
            "its clock is at least 600 s behind ours (30 s are allowed)",
        ),
        (
            format!("Bearer {}", mint_sas(plain, &key, LATER, None)),
            Denial::CredentialMalformed,
            "without that it is good",
        ),
        (
            format!("\"{}\"\n", mint_sas(plain, &key, LATER, None)),
            Denial::CredentialMalformed,
            "stands in quotes; without that it is good",
        ),
        (
            format!(" {}", mint_sas(plain, &key, LATER, None)),
            Denial::CredentialMalformed,
            "white space before or after the token; without that it is good",
        ),
        (
            format!("HostName=localhost;DeviceId=pump-17;SharedAccessKey={KEY}"),
            Denial::CredentialMalformed,
            "This is a connection string",
        ),
    ] {
        let explanation = ask(&token);
        assert_eq!(explanation.verdict.map(|_| ()).map_err(|refused| refused.denial), Err(denial), "{what}: {token}");
        let said = explanation.near_misses.join("\n");
        assert!(said.contains(what), "{what}: {said:?}");
        assert!(!said.contains(KEY) && !said.contains("sig="), "{said}");
        if what.is_empty() {
            assert_eq!(said, "", "a wrong key is just wrong");
        }
    }
}

#[test]
fn a_policy_whose_key_is_text_is_told_from_one_whose_key_is_base64() {
    // The policy's key is text that happens to be base64, and the token was signed with what it decodes to.
    let mut builder = Keyring::builder();
    let keys = Slots { primary: SecretKey::parse(KEY, KeyEncoding::Utf8).ok(), secondary: None };
    let resource = Resource::parse("localhost").expect("a resource");
    builder
        .add_policy(Policy { name: "bus".into(), resource, keys, rights: Rights::ALL, token_lifetime_max: None })
        .expect("new");
    let token = mint_sas("localhost/devices/pump-17", &secret(), LATER, Some("bus"));
    let explanation = explain(&token, None, &builder.build(), &rules(), &RevocationList::default(), NOW);
    assert!(
        explanation.near_misses.join("").contains("was base64-decoded, and this policy takes it as UTF-8"),
        "{explanation:?}"
    );
}

#[test]
fn each_usual_mistake_with_a_jwt_is_named() {
    let key = |algorithm, bytes: &[u8]| VerifyingKey::from_secret(algorithm, bytes).expect("a key");
    let rsa = VerifyingKey::from_pem(Algorithm::RS256, RSA_PEM).expect("a key");
    let (hs256, rs256) = (JWT[0].1, JWT[3].1);
    let jwe = format!("{hs256}.AAAA.AAAA");
    for (token, key, what) in [
        (hs256.to_owned(), key(Algorithm::HS256, KEY.as_bytes()), "read in the other encoding"),
        (rs256.to_owned(), rsa.clone(), ""),
        (jwe, rsa.clone(), "an encrypted token (JWE)"),
        (format!("{rs256}=="), rsa.clone(), "base64url without padding"),
        (format!("bearer {rs256}"), rsa.clone(), "without that it is good"),
    ] {
        let explanation =
            explain(&token, None, &crate::credential::tests::keyring(key), &rules(), &RevocationList::default(), NOW);
        assert_eq!(explanation.verdict.is_ok(), what.is_empty());
        let said = explanation.near_misses.join("\n");
        assert!(said.contains(what), "{what}: {said:?} {:?}", explanation.verdict);
    }
}
