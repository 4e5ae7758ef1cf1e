use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};

use super::*;
use crate::credential::{
    Algorithm, Device, Group, JwtClaims, KeyEncoding, Keyring, Policy, PublicKey, Resource, Rights, ScopeIndex,
    SecretKey, SigningKey, Slots, TokenKind, Validity, VerifyingKey,
    key::keyed,
    mint_jwt, mint_sas,
    vectors::{EC256_PEM, JWT, KEY, RSA_PEM},
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
fn a_line_break_that_was_signed_in_another_way_is_named() {
    let (sr, se) = ("localhost%2Fdevices%2Fpump-17", "1795255200");
    for (signed, what) in [
        (format!("{sr}{se}"), "left out of what is signed"),
        (format!("{sr}\\n{se}"), "a backslash and an n were signed"),
        (format!("{sr}\r\n{se}"), "carriage return and line feed"),
        (format!("{sr}\n{se}\n"), "behind `se`, too"),
    ] {
        let signature = hmac::Mac::finalize(keyed(&secret(), &[signed.as_bytes()])).into_bytes();
        let signature = escaped(&STANDARD.encode(signature));
        let explanation = ask(&format!("SharedAccessSignature sr={sr}&sig={signature}&se={se}"));
        assert_eq!(explanation.verdict.map(|_| ()).map_err(|refused| refused.denial), Err(Denial::SignatureInvalid));
        assert!(
            explanation.near_misses.iter().any(|said| said.contains(what)),
            "{what}: {:?}",
            explanation.near_misses
        );
    }
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

fn jwt_ring(key: VerifyingKey) -> Keyring {
    crate::credential::tests::keyring(key)
}

fn ask_jwt(token: &str, keyring: &Keyring, device: Option<&str>) -> Explanation {
    let device = device.map(id);
    explain(token, device.as_ref(), keyring, &rules(), &RevocationList::default(), NOW)
}

fn hs256(bytes: &[u8]) -> VerifyingKey {
    VerifyingKey::from_secret(Algorithm::HS256, bytes).expect("a key")
}

/// What a good token of the issuer `factory` says, with one claim changed.
fn claims(name: &str, value: impl Into<serde_json::Value>) -> JwtClaims {
    JwtClaims::default()
        .with("iss", "https://id.factory.example")
        .with("aud", "localhost")
        .with("sub", "pump-17")
        .with("iat", NOW.0)
        .with("exp", LATER.0)
        .with(name, value)
}

fn signed(claims: &JwtClaims, secret: &[u8], kid: Option<&str>) -> String {
    mint_jwt(claims, &SigningKey::from_secret(Algorithm::HS256, secret, kid).expect("a key")).expect("a token")
}

#[test]
fn each_usual_mistake_with_a_jwt_is_named() {
    let rsa = VerifyingKey::from_pem(Algorithm::RS256, RSA_PEM).expect("a key");
    let ec = VerifyingKey::from_pem(Algorithm::ES256, EC256_PEM).expect("a key");
    let (rs256, es256) = (JWT[3].1, JWT[9].1);
    let ours = hs256(&secret());
    let with = |name: &str, value: serde_json::Value| signed(&claims(name, value), &secret(), None);
    for (token, key, denial, what) in [
        (
            JWT[0].1.to_owned(),
            hs256(KEY.as_bytes()),
            Denial::SignatureInvalid,
            "the secret is base64-decoded, and here it is taken as it is printed",
        ),
        (
            signed(&claims("a", 1), KEY.as_bytes(), None),
            ours.clone(),
            Denial::SignatureInvalid,
            "the printed base64 text is the secret",
        ),
        (format!("{rs256}.AAAA.AAAA"), rsa.clone(), Denial::CredentialMalformed, "an encrypted token (JWE)"),
        (format!("{rs256}=="), rsa.clone(), Denial::CredentialMalformed, "base64url without padding"),
        (format!("bearer {rs256}"), rsa.clone(), Denial::CredentialMalformed, "without that it is good"),
        (as_secret(RSA_PEM), rsa.clone(), Denial::AlgorithmMismatch, "whose secret is the text of the public key"),
        (in_der(es256), ec.clone(), Denial::SignatureInvalid, "it is in DER"),
        (with("aud", "LocalHost/".into()), ours.clone(), Denial::AudienceMismatch, "`aud` is nearly \"localhost\""),
        (with("aud", "other".into()), ours.clone(), Denial::AudienceMismatch, "add it to its `audience`"),
        (
            with("iss", "https://id.factory.example/".into()),
            ours.clone(),
            Denial::IssuerUnknown,
            "`iss` is nearly that of the issuer \"factory\"",
        ),
        (with("iss", "https://b".into()), ours.clone(), Denial::IssuerUnknown, "under a key of the issuer \"factory\""),
        (
            signed(&claims("a", 1), &secret(), Some("k9")),
            ours.clone(),
            Denial::KeyUnknown,
            "verifies under the issuer's key without `kid` (HS256): the token names another",
        ),
        (with("iat", (NOW.0 + 90).into()), ours.clone(), Denial::IssuedInFuture, "is 90 s ahead of ours"),
        (with("nbf", (NOW.0 + 40).into()), ours.clone(), Denial::NotYetValid, "is 40 s ahead of ours"),
        (
            with("exp", (LATER.0 * 1000).into()),
            ours.clone(),
            Denial::LifetimeTooLong,
            "`exp` is in milliseconds: 1795255200000 would be 2026-11-21T10:00:00Z in seconds",
        ),
        (
            signed(&claims("iat", NOW.0 * 1000).with("exp", LATER.0 * 1000), &secret(), None),
            ours.clone(),
            Denial::IssuedInFuture,
            "`iat` is in milliseconds: 1795251600000 would be 2026-11-21T09:00:00Z",
        ),
        (
            signed(&claims("exp", NOW.0 - 600).with("iat", NOW.0 - 900), &secret(), None),
            ours.clone(),
            Denial::Expired,
            "its clock is at least 600 s behind ours (30 s are allowed)",
        ),
    ] {
        let explanation = ask_jwt(&token, &jwt_ring(key), None);
        assert_eq!(explanation.verdict.map(|_| ()).map_err(|refused| refused.denial), Err(denial), "{what}: {token}");
        let said = explanation.near_misses.join("\n");
        assert!(said.contains(what), "{what}: {said:?}");
        assert!(!said.contains(KEY), "{said}");
    }
    assert!(ask_jwt(rs256, &jwt_ring(rsa), None).near_misses.is_empty(), "a good one has none");
    let wrong =
        ask_jwt(&signed(&claims("a", 1), b"a secret that nobody here has heard of", None), &jwt_ring(ours), None);
    assert!(wrong.verdict.is_err() && wrong.near_misses.is_empty(), "a wrong key is just wrong");
}

#[test]
fn a_jwt_that_a_device_signed_itself_is_explained() {
    let mut ring = Keyring::builder();
    let key = VerifyingKey::from_pem(Algorithm::ES256, EC256_PEM).expect("a key");
    let public = PublicKey { kid: Some("k".into()), key, validity: Validity::default() };
    ring.add_device(id("pump-17"), Device { public_keys: vec![public], ..Device::default() }).expect("new");
    ring.add_device(id("other"), Device::default()).expect("new");
    let ring = ring.build();
    // Of an issuer that is not here, signed with the device's key.
    let said = ask_jwt(JWT[9].1, &ring, None).near_misses.join("");
    assert!(said.contains("a public key of the device pump-17: leave `iss` out"), "{said}");
    let nobody = ask_jwt(&signed(&JwtClaims::default().with("exp", LATER.0), &secret(), None), &ring, None);
    assert!(nobody.near_misses.join("").contains("ask with --device"), "{nobody:?}");
}

#[test]
fn a_resource_that_is_another_or_too_wide_is_named_with_the_right_one() {
    let mut ring = Keyring::builder();
    for (name, key) in
        [("pump-17", secret()), ("pump-17/camera", OTHER.to_vec()), ("pump-1", PRINTED.as_bytes().to_vec())]
    {
        ring.add_device(id(name), Device { keys: slots(&key), ..Device::default() }).expect("new");
    }
    let ring = ring.build();
    let sas = |resource: &str, key: &[u8]| mint_sas(resource, key, LATER, None);
    let device = sas("localhost/devices/pump-17", &secret());
    let module = sas("localhost/devices/pump-17/modules/camera", OTHER);
    let wide = sas("localhost", &secret());
    for (token, asked, denial, what) in [
        (&device, "pump-1", Denial::DeviceMismatch, "have it made for localhost/devices/pump-1, or connect as pump-17"),
        (
            &device,
            "pump-17/camera",
            Denial::DeviceMismatch,
            "`sr` is localhost/devices/pump-17/modules/camera, signed with",
        ),
        (&module, "pump-17", Denial::DeviceMismatch, "names the module camera"),
        (&wide, "pump-17", Denial::HubWideToken, "have it made for localhost/devices/pump-17"),
        (&wide, "pump-17", Denial::HubWideToken, "under a key of device:pump-17"),
    ] {
        let explanation = ask_jwt(token, &ring, Some(asked));
        assert_eq!(explanation.verdict.map(|_| ()).map_err(|refused| refused.denial), Err(denial), "{what}");
        let said = explanation.near_misses.join("\n");
        assert!(said.contains(what), "{what}: {said:?}");
    }
}

/// HS256 with the text of a public key as the secret, which a verifier that believes `alg` would take.
fn as_secret(pem: &str) -> String {
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let claims = serde_json::Value::Object(claims("a", 1).claims).to_string();
    let message = format!("{}.{}", part(r#"{"alg":"HS256"}"#), part(&claims));
    let signature = hmac::Mac::finalize(keyed(pem.as_bytes(), &[message.as_bytes()])).into_bytes();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The same token with its signature in DER.
fn in_der(token: &str) -> String {
    let (message, signature) = token.rsplit_once('.').expect("three parts");
    let raw = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let mut body = Vec::new();
    for half in raw.chunks(32) {
        let digits: Vec<u8> = half.iter().copied().skip_while(|byte| *byte == 0).collect();
        let sign = u8::from(digits.first().is_some_and(|first| *first >= 0x80));
        body.extend([2, u8::try_from(digits.len()).expect("short") + sign]);
        body.extend(std::iter::repeat_n(0, usize::from(sign)));
        body.extend(digits);
    }
    let mut der = vec![0x30, u8::try_from(body.len()).expect("short")];
    der.extend(body);
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(der))
}
