use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use proptest::prelude::*;

use super::{vectors::*, *};

const NOW: UnixSeconds = UnixSeconds(1_795_251_600);

fn id(text: &str) -> DeviceId {
    DeviceId::try_from(text).expect(text)
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

/// `pump-17` with `KEY` as its secondary, and the issuer `factory` with one key.
pub(super) fn keyring(key: VerifyingKey) -> Keyring {
    let secondary = SecretKey::parse(KEY, KeyEncoding::Base64).ok();
    let keys = Slots { primary: SecretKey::from_bytes(b"another key of the same device").ok(), secondary };
    let mut ring = Keyring::builder();
    let device = Device { keys, ..Device::default() };
    ring.add_device(id("pump-17"), device).expect("new");
    ring.add_issuer(Issuer {
        name: "factory".into(),
        iss: "https://id.factory.example".into(),
        audience: vec!["localhost".into()],
        keys: vec![(None, key)],
        published: Published::No,
        device_claim: "sub".into(),
        scope_claim: None,
        require: Some(vec!["exp".into()]),
        token_lifetime_max: None,
    })
    .expect("new");
    ring.build()
}

fn secret() -> Vec<u8> {
    STANDARD.decode(KEY).expect("base64")
}

fn hs256() -> VerifyingKey {
    VerifyingKey::from_secret(Algorithm::HS256, &secret()).expect("a key")
}

fn check(token: &str, keyring: &Keyring) -> Result<Identity, Denial> {
    Credential::parse(token.as_bytes())
        .and_then(|credential| verify(&credential, None, keyring, &rules(), NOW))
        .map_err(|refused| refused.denial)
}

fn parse(token: &str) -> Result<(), Denial> {
    Credential::parse(token.as_bytes()).map(|_| ()).map_err(|refused| refused.denial)
}

/// A JWT of any header and claims, signed with `KEY` by HS256.
fn forge(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = hmac::Mac::finalize(key::keyed(&secret(), &[message.as_bytes()])).into_bytes();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const CLAIMS: &str = r#"{"iss":"https://id.factory.example","aud":"localhost","sub":"pump-17","exp":1795255200}"#;

#[test]
fn sas_tokens_of_others_verify_in_every_form_that_sdks_send() {
    for (token, token_id) in SAS {
        let identity = check(token, &keyring(hs256())).expect(token);
        assert_eq!(identity.key().as_str(), "device:pump-17/secondary");
        assert_eq!(identity.key_fingerprint(), KEY_FINGERPRINT);
        assert_eq!(identity.token_id().to_string(), token_id);
        assert_eq!(identity.expires_at(), UnixSeconds(1_795_255_200));
        // With `skn` empty, and in another order, it is the same token.
        let fields: Vec<&str> = token.split_once(' ').expect("a space").1.split('&').rev().collect();
        let other = format!("SharedAccessSignature {}&skn=", fields.join("&"));
        assert_eq!(check(&other, &keyring(hs256())).expect("the same").token_id(), identity.token_id());
    }
}

#[test]
fn a_sas_token_is_refused_by_what_is_wrong_with_its_form() {
    let (good, _) = SAS[0];
    let signature = good.split("sig=").nth(1).and_then(|rest| rest.split('&').next()).expect("a signature");
    for (from, to) in [
        ("SharedAccessSignature ", "sharedaccesssignature "),
        ("SharedAccessSignature ", "SharedAccessSignature  "),
        ("SharedAccessSignature ", "SharedAccessSignature\t"),
        ("SharedAccessSignature ", "Bearer SharedAccessSignature "),
        ("sr=", "SR="),
        ("sr=localhost", "sr="),
        ("&se=1795255200", ""),
        ("&se=1795255200", "&se="),
        ("&se=1795255200", "&se=1795255200 "),
        ("&se=1795255200", "&se=1795255200\n"),
        ("&se=1795255200", "&se=1795255200&se=1795255200"),
        ("&se=1795255200", "&se=1795255200&x=1"),
        ("&se=1795255200", "&se=1795255200&"),
        ("&se=1795255200", "&se=+1795255200"),
        ("&se=1795255200", "&se=1795255200.0"),
        ("&se=1795255200", "&se=0x6B01F0E0"),
        ("&se=1795255200", "&se=1795255200000"),
        ("&sig=", "&sig=%"),
        ("&sig=", "&sig=AA"),
        (signature, "bm90IDMyIGJ5dGVz"),
        (signature, "%2500"),
        (signature, &signature.replace("%3D", "")),
        (signature, &signature.replace("%3D", "%253D")),
        (signature, &format!("{signature}%00")),
        ("pump-17", "pump-17%2F"),
        ("pump-17", "..%2Fpump-17"),
        ("pump-17", "%2Fpump-17"),
        ("pump-17", "pump%00-17"),
        ("pump-17", "pump%0a-17"),
        ("pump-17", "pump-17%3Fx%3D1"),
        ("pump-17", "pump-17%23"),
        ("pump-17", "pump%ff"),
        ("pump-17", "pump%2"),
        ("localhost", "localhost%3A8883"),
        ("localhost", "user%40localhost"),
        ("localhost", "ftp%3A%2F%2Flocalhost"),
        ("localhost%2F", "localhost%252F"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        assert_eq!(parse(&bad), Err(Denial::CredentialMalformed), "{from} → {to}");
    }
    let raw_plus = good.replace("%2F", "/").replace("%2B", "+").replace("%3D", "=");
    assert_eq!(parse(&raw_plus), Ok(()), "what needs no escape may stand as it is");
    assert_eq!(parse(&good.replace("1795255200", "999999999999")), Ok(()));
}

#[test]
fn what_is_signed_is_sr_as_sent() {
    // Re-escaped `sr` means the same resource, but it is another text: the signature is not over it.
    let (upper, _) = SAS[0];
    assert_eq!(
        check(&upper.replace("%2Fdevices%2F", "%2fdevices%2f"), &keyring(hs256())),
        Err(Denial::SignatureInvalid)
    );
    assert_eq!(check(&upper.replace("1795255200", "1795255201"), &keyring(hs256())), Err(Denial::SignatureInvalid));
}

#[test]
fn a_resource_covers_by_whole_segments() {
    let resource = |text: &str| Resource::parse(text).expect(text);
    for (wide, narrow) in
        [("a", "a"), ("a", "a/b/c"), ("a/b", "A/b/c"), ("sb://a/b", "a/b/c"), ("sb://a", "https://a/x")]
    {
        assert!(resource(wide).covers(&resource(narrow)), "{wide} covers {narrow}");
    }
    for (wide, narrow) in
        [("a/b", "a/bc"), ("a/b", "a"), ("a/b", "a/B"), ("a", "b"), ("a", "sb://a/b"), ("a/dev1", "a/dev10")]
    {
        assert!(!resource(wide).covers(&resource(narrow)), "{wide} does not cover {narrow}");
    }
    assert_eq!(resource("h/devices/d").identity().as_deref(), Some("d"));
    assert_eq!(resource("h/devices/d/modules/m").identity().as_deref(), Some("d/m"));
    for none in ["h", "h/devices", "h/devices/d/x", "h/devices/d/modules", "h/devices/d/modules/m/x", "h/x/devices/d"] {
        assert_eq!(resource(none).identity(), None, "{none}");
    }
}

/// Threat T10.
#[test]
fn a_device_of_a_group_is_no_other_spelling_of_a_device_that_has_an_entry() {
    let mut ring = Keyring::builder();
    ring.add_device(id("Line-A"), Device::default()).expect("new");
    ring.add_device(id("line-b"), Device::default()).expect("new");
    let group = |prefix: &str| Group {
        prefix: prefix.into(),
        keys: Slots::default(),
        token_lifetime_max: None,
        scope: ScopeIndex(0),
    };
    ring.add_group(group("line-")).expect("new");
    assert_eq!(ring.add_group(group("LINE-")).expect_err("the same but for case").by, "line-");
    let ring = ring.build();
    let found = |name: &str| ring.find(&id(name)).map(|found| (found.device.is_some(), found.group.is_some()));
    for (name, expected) in [
        ("Line-A", Some((true, false))),
        ("line-a", None),
        ("line-A", None),
        ("line-b", Some((true, true))),
        ("line-B", None),
        ("line-c", Some((false, true))),
    ] {
        assert_eq!(found(name), expected, "{name}");
    }
}

#[test]
fn a_groups_key_derives_those_of_its_devices() {
    let (group, derived) = GROUP;
    let key = SecretKey::parse(group, KeyEncoding::Base64).expect("a key").derive(&id("line7-a"));
    let shown: String = key.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(shown, derived);
}

/// Threat T11, by count and not by time: whoever is refused for a signature learns nothing of which devices there are, nor of
/// how many keys they have.
#[test]
fn a_wrong_signature_costs_as_many_hmacs_whoever_is_named() {
    let slots = |count: usize| {
        let key = |n: u8| SecretKey::from_bytes(format!("0123456789abcdef{n}").as_bytes()).expect("a key");
        Slots { primary: (count > 0).then(|| key(1)), secondary: (count > 1).then(|| key(2)) }
    };
    let site = |group_keys: Option<usize>| {
        let mut ring = Keyring::builder();
        for (name, count) in [("none", 0), ("one", 1), ("two", 2)] {
            ring.add_device(id(name), Device { keys: slots(count), ..Device::default() }).expect("new");
        }
        if let Some(count) = group_keys {
            let (prefix, keys) = ("line-".into(), slots(count));
            ring.add_group(Group { prefix, keys, token_lifetime_max: None, scope: ScopeIndex(0) }).expect("new");
        }
        ring.build()
    };
    let cost = |keyring: &Keyring, device: &str| {
        let token =
            mint_sas(&format!("localhost/devices/{device}"), b"a key of nobody's", UnixSeconds(NOW.0 + 60), None);
        key::HMACS.set(0);
        check(&token, keyring).expect_err("refused");
        key::HMACS.get()
    };
    for (group_keys, devices, expected) in [
        (None, &["none", "one", "two", "ghost"][..], 2),
        (Some(1), &["none", "one", "two", "ghost", "line-1"][..], 4),
        (Some(2), &["none", "one", "two", "ghost", "line-1"][..], 4),
    ] {
        let keyring = site(group_keys);
        for device in devices {
            assert_eq!(cost(&keyring, device), expected, "{device}, {group_keys:?} keys of a group");
        }
    }
}

/// The same of devices that sign their JWTs themselves: a signature is checked, and the peer is told one thing.
#[test]
fn whether_a_device_holds_public_keys_is_neither_told_nor_measured() {
    let public =
        |algorithm| PublicKey { kid: Some("k1".into()), key: verifying_key(algorithm), validity: Validity::default() };
    let mut ring = Keyring::builder();
    for (name, public_keys) in
        [("without", vec![]), ("other", vec![public(Algorithm::EdDSA)]), ("same", vec![public(Algorithm::ES256)])]
    {
        ring.add_device(id(name), Device { public_keys, ..Device::default() }).expect("new");
    }
    let keyring = ring.build();
    for (device, kid, expected) in [
        ("ghost", "k1", Denial::IssuerUnknown),
        ("without", "k1", Denial::IssuerUnknown),
        ("same", "k2", Denial::KeyUnknown),
        ("other", "k1", Denial::AlgorithmMismatch),
        ("same", "k1", Denial::SignatureInvalid),
    ] {
        let header = format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#);
        let token = forge(&header, &format!(r#"{{"iss":"{device}","aud":"localhost","exp":{}}}"#, NOW.0 + 60));
        let credential = Credential::parse(token.as_bytes()).expect("well-formed");
        assert!(keyring.is_costly(&credential), "{device}: nothing was checked yet");
        let denial = check(&token, &keyring).expect_err("refused");
        assert_eq!((denial, denial.as_told()), (expected, Denial::SignatureInvalid), "{device}");
        assert!(!keyring.is_costly(&credential), "{device}: a signature was checked");
    }
}

fn verifying_key(algorithm: Algorithm) -> VerifyingKey {
    let pem = match algorithm {
        Algorithm::ES256 => EC256_PEM,
        Algorithm::ES384 => EC384_PEM,
        Algorithm::EdDSA => ED_PEM,
        _ if algorithm.is_hmac() => return VerifyingKey::from_secret(algorithm, &secret()).expect("a key"),
        _ => RSA_PEM,
    };
    VerifyingKey::from_pem(algorithm, pem).expect("a key")
}

#[test]
fn jwts_of_others_verify_with_every_algorithm_and_with_no_other() {
    for (name, token, token_id) in JWT {
        let algorithm: Algorithm = name.parse().expect(name);
        let identity = check(token, &keyring(verifying_key(algorithm))).expect(name);
        assert_eq!(identity.token_id().to_string(), token_id, "{name}");
        assert_eq!((identity.device().as_str(), identity.jti().map(|jti| &**jti)), ("pump-17", Some("j1")), "{name}");
        for other in Algorithm::ALL.into_iter().filter(|other| *other != algorithm) {
            assert_eq!(
                check(token, &keyring(verifying_key(other))),
                Err(Denial::AlgorithmMismatch),
                "{name} with {other}"
            );
        }
        let (head, signature) = token.rsplit_once('.').expect("three parts");
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        bytes[7] ^= 1;
        let wrong = format!("{head}.{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(check(&wrong, &keyring(verifying_key(algorithm))), Err(Denial::SignatureInvalid), "{name}");
    }
}

#[test]
fn the_twin_of_an_ecdsa_signature_is_the_same_token() {
    let ring = keyring(verifying_key(Algorithm::ES256));
    let (_, token, token_id) = JWT[9];
    assert_ne!(token, ES256_TWIN);
    assert_eq!(check(ES256_TWIN, &ring).expect("valid").token_id().to_string(), token_id);
}

#[test]
fn keys_that_prove_nothing_are_not_taken() {
    let secret = secret();
    let from_pem = |algorithm, pem: &str| VerifyingKey::from_pem(algorithm, pem).map(|_| ());
    assert_eq!(from_pem(Algorithm::RS256, RSA1024_PEM), Err(KeyError::RsaBits { bits: 1024 }));
    assert_eq!(from_pem(Algorithm::PS512, RSA3_PEM), Err(KeyError::RsaExponent));
    assert_eq!(from_pem(Algorithm::RS256, RSA_PKCS1), Ok(()));
    assert_eq!(from_pem(Algorithm::ES256, K1_PEM), Err(KeyError::OtherFamily { algorithm: Algorithm::ES256 }));
    assert_eq!(from_pem(Algorithm::ES256, EC384_PEM), Err(KeyError::OtherFamily { algorithm: Algorithm::ES256 }));
    assert_eq!(from_pem(Algorithm::RS256, EC256_PEM), Err(KeyError::OtherFamily { algorithm: Algorithm::RS256 }));
    assert_eq!(from_pem(Algorithm::HS256, RSA_PEM), Err(KeyError::PemAsSecret));
    assert_eq!(from_pem(Algorithm::ES256, &EC256_PEM.replace("PUBLIC", "PRIVATE")), Err(KeyError::PrivateKey));
    assert_eq!(
        from_pem(Algorithm::ES256, &EC256_PEM.replace("PUBLIC KEY", "CERTIFICATE")),
        Err(KeyError::NotPublicPem)
    );
    let from_secret = |algorithm, secret: &[u8]| VerifyingKey::from_secret(algorithm, secret).map(|_| ());
    assert_eq!(from_secret(Algorithm::HS256, &secret[..31]), Err(KeyError::TooShort { bytes: 31, bytes_min: 32 }));
    assert_eq!(from_secret(Algorithm::HS256, RSA_PEM.as_bytes()), Err(KeyError::PemAsSecret));
    assert_eq!(from_secret(Algorithm::HS256, &[7; 32]), Err(KeyError::Guessable));
    assert_eq!(
        from_secret(Algorithm::HS256, b"abcdefgabcdefgabcdefgabcdefgabcdefg"),
        Err(KeyError::FewValues { values: 7 })
    );
    assert_eq!(from_secret(Algorithm::HS256, b"abcdefghabcdefghabcdefghabcdefgh"), Ok(()));
    assert_eq!(from_secret(Algorithm::HS256, b"please-ChangeMe-before-you-go-live"), Err(KeyError::Placeholder));
    for (text, encoding) in [
        ("changemechangemechangemechangeme", KeyEncoding::Base64),
        ("my-Password-is-long-enough-0123456", KeyEncoding::Utf8),
        ("Y2hhbmdlLW1lLWNoYW5nZS1tZS1jaGFuZ2UtbWU=", KeyEncoding::Base64),
    ] {
        assert_eq!(SecretKey::parse(text, encoding).map(drop), Err(KeyError::Placeholder), "{text}");
    }
    assert_eq!(from_secret(Algorithm::RS256, &secret), Err(KeyError::OtherFamily { algorithm: Algorithm::RS256 }));
    assert_eq!(SecretKey::from_bytes(&secret[..16]).map(|_| ()), Ok(()));
    assert_eq!(SecretKey::from_bytes(&secret[..15]).map(|_| ()), Err(KeyError::TooShort { bytes: 15, bytes_min: 16 }));
    assert_eq!(
        SecretKey::parse("not base64, but long enough", KeyEncoding::Base64).map(|_| ()),
        Err(KeyError::NotBase64)
    );
    assert_eq!("none".parse::<Algorithm>(), Err(KeyError::AlgorithmUnknown));
}

#[test]
fn a_key_set_gives_the_keys_that_are_allowed_and_names_the_others() {
    let (keys, skipped) = parse_jwk_set(JWKS, &[Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]).expect("a set");
    let kids: Vec<_> = keys.iter().map(|(kid, key)| (kid.as_deref().expect("a kid"), key.algorithm())).collect();
    assert_eq!(kids, [("r", Algorithm::RS256), ("e", Algorithm::ES256), ("d", Algorithm::EdDSA)]);
    assert_eq!(skipped.iter().map(|skipped| skipped.key).collect::<Vec<_>>(), [3, 5]);
    for (kid, key) in &keys {
        let (_, token, _) = JWT.iter().find(|(name, ..)| *name == key.algorithm().as_str()).expect("a token");
        assert!(check(token, &keyring(key.clone())).is_ok(), "{kid:?}");
        assert_eq!(key.fingerprint(), verifying_key(key.algorithm()).fingerprint(), "the same key out of a PEM file");
    }
    let allowed = [Algorithm::RS256, Algorithm::ES256];
    for (from, to) in [
        ("\"kid\": \"e\"", "\"kid\": \"r\""),
        ("\"kid\": \"e\"", "\"kid\": \"../e\""),
        ("\"kid\": \"e\", ", ""),
        ("\"kty\": \"EC\"", "\"kty\": \"oct\", \"k\": \"AAAA\""),
        ("\"crv\": \"P-256\"", "\"alg\": \"ES256\", \"crv\": \"secp256k1\""),
        ("\"use\": \"sig\"", "\"use\": \"sig\", \"d\": \"AAAA\""),
        ("\"use\": \"sig\"", "\"use\": \"sig\", \"use\": \"sig\""),
        ("\"keys\"", "\"key\""),
    ] {
        let bad = JWKS.replacen(from, to, 1);
        assert_ne!(bad, JWKS);
        assert!(parse_jwk_set(&bad, &allowed).is_err(), "{from} → {to}");
    }
    assert!(parse_jwk_set(JWKS, &[Algorithm::HS256]).is_err(), "none is left");
    assert!(parse_jwk_set(&format!("{JWKS}{}", " ".repeat(256 << 10)), &allowed).is_err(), "too large");
}

#[test]
fn a_jwt_is_refused_by_what_is_wrong_with_its_form() {
    assert!(check(&forge(HEADER, CLAIMS), &keyring(hs256())).is_ok());
    let malformed = Err(Denial::CredentialMalformed);
    for (header, expected) in [
        (r#"{"alg":"none","typ":"JWT"}"#, Err(Denial::AlgorithmMismatch)),
        (r#"{"alg":"None"}"#, Err(Denial::AlgorithmMismatch)),
        (r#"{"alg":"hs256"}"#, Err(Denial::AlgorithmMismatch)),
        (r#"{"alg":"ES256K"}"#, Err(Denial::AlgorithmMismatch)),
        (r#"{"typ":"JWT"}"#, malformed),
        (r#"{"alg":["HS256"]}"#, malformed),
        (r#"{"alg":"HS256","alg":"HS256"}"#, malformed),
        (r#"{"alg":"HS256","crit":[]}"#, malformed),
        (r#"{"alg":"HS256","b64":false}"#, malformed),
        (r#"{"alg":"HS256","b64":true}"#, malformed),
        (r#"{"alg":"HS256","typ":1}"#, malformed),
        (r#"{"alg":"HS256","kid":"../../etc/passwd"}"#, malformed),
        (r#"{"alg":"HS256","kid":"' OR 1=1"}"#, malformed),
        (r#"{"alg":"HS256","kid":""}"#, malformed),
        (r#"{"alg":"HS256","kid":null}"#, malformed),
        (r#"{"alg":"HS256","kid":1}"#, malformed),
        (&format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(129)), malformed),
        (&format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(128)), Ok(())),
        (r#"{"alg":"HS256","jku":"https://evil.example","x5u":"https://evil.example","jwk":{},"x5c":[]}"#, Ok(())),
        (r#"["alg"]"#, malformed),
        ("", malformed),
        ("{", malformed),
    ] {
        assert_eq!(parse(&forge(header, CLAIMS)), expected, "{header}");
    }
    let (head, signature) = JWT[0].1.rsplit_once('.').expect("three parts");
    for bad in [
        format!("{head}."),
        format!("{head}.{signature}="),
        format!("{head}.{signature}AA"),
        format!(" {head}.{signature}"),
        format!("{head}.{signature}\n"),
        format!("Bearer {head}.{signature}"),
        format!("{head}.{signature}.{signature}"),
        format!("{head}.{signature}.{signature}.{signature}"),
        head.to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        // The last character carries bits that nobody reads: only one of its spellings is canonical.
        format!("{head}.{}", non_canonical(signature)),
    ] {
        assert_eq!(parse(&bad), malformed, "{bad}");
    }
}

/// The same bytes with a bit set behind their end.
fn non_canonical(part: &str) -> String {
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = part.chars().last().and_then(|c| alphabet.find(c)).expect("base64url");
    let (head, _) = part.split_at(part.len() - 1);
    format!("{head}{}", alphabet.chars().nth(last ^ 1).expect("one of 64"))
}

#[test]
fn a_claim_of_the_wrong_type_is_not_taken_for_absent() {
    for (from, to) in [
        (r#""exp":1795255200"#, r#""exp":"1795255200""#),
        (r#""exp":1795255200"#, r#""exp":-1"#),
        (r#""exp":1795255200"#, r#""exp":null"#),
        (r#""exp":1795255200"#, r#""x":1"#),
        (r#""exp":1795255200"#, r#""exp":1795255200,"nbf":"soon""#),
        (r#""exp":1795255200"#, r#""exp":1795255200,"iat":"1""#),
        (r#""exp":1795255200"#, r#""exp":1795255200,"iat":1795255200"#),
        (r#""aud":"localhost""#, r#""aud":{"localhost":1}"#),
        (r#""aud":"localhost""#, r#""aud":["localhost",null]"#),
        (r#""iss":"https://id.factory.example""#, r#""iss":["https://id.factory.example"]"#),
        (r#""sub":"pump-17""#, r#""sub":17"#),
    ] {
        let bad = CLAIMS.replacen(from, to, 1);
        assert_ne!(bad, CLAIMS);
        assert_eq!(parse(&forge(HEADER, &bad)), Err(Denial::ClaimInvalid), "{bad}");
    }
    for bad in [r#"{"exp":1e400}"#, r#"{"exp":1,"exp":1}"#, r#"{"exp":1,"a":{"b":1,"b":1}}"#, "[]", "{\"exp\":1}x"] {
        assert_eq!(parse(&forge(HEADER, bad)), Err(Denial::CredentialMalformed), "{bad}");
    }
}

#[test]
fn what_we_make_is_what_we_read() {
    assert_eq!(self_test(), Ok(()));
    let (made, token_id) =
        (mint_sas("localhost/devices/pump-17", &secret(), UnixSeconds(1_795_255_200), None), SAS[0].1);
    assert_eq!(made, SAS[0].0, "as Python makes it");
    assert_eq!(check(&made, &keyring(hs256())).expect("valid").token_id().to_string(), token_id);
    let fields = inspect(&made).expect("well-formed");
    assert!(fields.contains(&("device".into(), "pump-17".into())), "{fields:?}");
    let fields = inspect(JWT[9].1).expect("well-formed");
    assert!(fields.contains(&("exp".into(), "1795255200 (2026-11-21T10:00:00Z)".into())), "{fields:?}");
    assert!(fields.contains(&("sub".into(), "\"pump-17\"".into())), "{fields:?}");
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    let (sas, jwt) = (SAS[0].0, JWT[0].1);
    let printed = format!(
        "{:?} {:?} {:?} {:?}",
        Credential::parse(sas.as_bytes()),
        Credential::parse(jwt.as_bytes()),
        keyring(hs256()),
        SigningKey::from_secret(Algorithm::HS256, &secret(), None)
    );
    let (signature, payload) = (jwt.rsplit('.').next().expect("a part"), jwt.split('.').nth(1).expect("a part"));
    for hidden in ["99oah761", signature, payload, KEY, "01234567890123"] {
        assert!(!printed.contains(hidden), "{hidden}: {printed}");
    }
}

#[test]
fn what_a_peer_sent_is_shown_escaped_and_cut() {
    assert_eq!(shown("a\n\u{1b}[31m\""), r#""a\n\u{1b}[31m\"""#);
    assert_eq!(shown(&"x".repeat(128)), format!("{:?}", "x".repeat(128)));
    assert_eq!(shown(&"é".repeat(100)), format!("{:?}…", "é".repeat(64)));
    assert_eq!(shown(""), "\"\"");
}

/// Escapes some characters that need none, with digits of either case.
fn re_escaped(text: &str, choices: &[u8]) -> String {
    let mut choices = choices.iter().cycle();
    let mut out = String::new();
    let mut rest = text.as_bytes();
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        match (byte, choices.next().copied().unwrap_or_default() % 3) {
            (b'%', _) | (_, 0) => out.push(char::from(*byte)),
            (_, 1) => out.push_str(&format!("%{byte:02X}")),
            (_, _) => out.push_str(&format!("%{byte:02x}")),
        }
        if *byte == b'%' {
            let (digits, more) = rest.split_at(2);
            out.push_str(std::str::from_utf8(digits).expect("two digits"));
            rest = more;
        }
    }
    out
}

proptest! {
    #[test]
    fn a_parser_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,60}") {
        let _ = Credential::parse(&bytes);
        let _ = Credential::parse(format!("SharedAccessSignature sr={text}&sig={text}&se={text}").as_bytes());
        let _ = Credential::parse(format!("{}.{}.{text}", URL_SAFE_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&bytes)).as_bytes());
        let _ = Resource::parse(&text);
        let _ = RevocationList::parse(&text);
        let _ = parse_jwk_set(&text, &Algorithm::ALL);
    }

    #[test]
    fn a_mutated_token_is_refused_or_the_same(which in 0..15_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (token, algorithm) = match which.checked_sub(3) {
            None => (SAS[which].0, Algorithm::HS256),
            Some(n) => (JWT[n].1, JWT[n].0.parse().expect("an algorithm")),
        };
        let ring = keyring(verifying_key(algorithm));
        let before = check(token, &ring).expect("valid");
        let mut bytes = token.as_bytes().to_vec();
        *at.get_mut(&mut bytes) = byte;
        let after = Credential::parse(&bytes).and_then(|token| verify(&token, None, &ring, &rules(), NOW));
        if let Ok(after) = after {
            prop_assert_eq!(after, before);
        }
    }

    #[test]
    fn a_signature_escaped_otherwise_is_the_same_token(choices in prop::collection::vec(any::<u8>(), 1..50)) {
        let (token, token_id) = SAS[1];
        let signature = token.split("sig=").nth(1).and_then(|rest| rest.split('&').next()).expect("a signature");
        let other = token.replace(signature, &re_escaped(signature, &choices));
        let identity = check(&other, &keyring(hs256())).expect("valid");
        prop_assert_eq!(identity.token_id().to_string(), token_id);
    }

    #[test]
    fn no_text_is_shown_whole_when_it_is_long(text in "\\PC{0,200}") {
        prop_assert!(shown(&text).chars().count() <= 2 + 128 * 10 + 1);
    }
}
