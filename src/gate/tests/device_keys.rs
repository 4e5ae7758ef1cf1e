//! Devices that sign their JWTs themselves, and the google profile.

use super::*;
use crate::credential::{PublicKey, Validity};

const FROM: UnixSeconds = UnixSeconds(NOW.0 - 100);
const END: UnixSeconds = UnixSeconds(NOW.0 + 100);
const CLIENT: &str = "projects/acme/locations/europe-west1/registries/line/devices/pump-17";

/// The EC key has a `kid`, the others have none; only the EC key has an end.
fn identities(enabled: bool, es256: Option<Validity>) -> Arc<Identities> {
    let public = |kid: Option<&str>, algorithm, pem, validity| {
        let key = VerifyingKey::from_pem(algorithm, pem).expect("a key");
        PublicKey { kid: kid.map(Into::into), key, validity }
    };
    let mut public_keys = vec![
        public(None, Algorithm::RS256, RS256_PEM, Validity::default()),
        public(None, Algorithm::EdDSA, ED_PEM, Validity::default()),
    ];
    public_keys.extend(es256.map(|validity| public(Some("k1"), Algorithm::ES256, ES256_PEM, validity)));
    let mut ring = Keyring::builder();
    ring.add_device(id("pump-17"), Device { public_keys, enabled, ..Device::default() }).expect("new");
    ring.add_device(id("pump-1"), device(Slots { primary: key(PRIMARY), secondary: None })).expect("new");
    Arc::new(Identities::new(ring.build(), vec![ScopeTemplate::default()]))
}

pub(super) fn gate_for(config: GateConfig) -> Gate {
    let gate = Gate::new(config);
    gate.load_identities(identities(true, Some(VALIDITY)));
    gate.load_revocations(Arc::default());
    gate
}

pub(super) fn google() -> GateConfig {
    let google_registries = vec!["projects/acme/locations/europe-west1/registries/line".into()];
    GateConfig { hostname: "localhost".into(), google_registries, ..GateConfig::default() }
}

pub(super) fn token(what: &str) -> &'static str {
    TOKENS.iter().find(|(name, _)| *name == what).map(|(_, token)| *token).expect(what)
}

pub(super) fn as_google(gate: &Gate, token: &str, now: UnixSeconds) -> Result<Grant, Denial> {
    let asked = Admission { profile: Profile::Google, user_name: Some("unused"), ..ask(CLIENT, token) };
    gate.admit(&asked, now).map_err(|refused| refused.denial)
}

#[test]
fn a_device_of_google_connects_with_what_it_signed_itself() {
    let gate = gate_for(google());
    let grant = as_google(&gate, token("google ES256"), NOW).expect("admitted");
    assert_eq!(
        (grant.device.as_str(), grant.key.as_str(), grant.kind),
        ("pump-17", "device:pump-17/k1", TokenKind::Jwt)
    );
    let publish: Vec<&str> = grant.scope.publish().iter().map(|filter| filter.as_str()).collect();
    assert_eq!(publish, ["/devices/pump-17/events/#", "/devices/pump-17/state"]);
    let of = |what| as_google(&gate, token(what), NOW).map(|grant| grant.key.slot().len());
    // A key without a `kid` is named by its fingerprint.
    assert_eq!((of("google RS256"), of("google EdDSA")), (Ok(16), Ok(16)));
}

#[test]
fn each_claim_of_a_devices_own_token_is_held_to_the_device() {
    let gate = gate_for(google());
    for (what, expected) in [
        ("with its kid", Ok(())),
        ("with a kid of another key", Err(Denial::AlgorithmMismatch)),
        ("RS256 with any kid", Ok(())),
        ("RS256 with the kid of the EC key", Err(Denial::AlgorithmMismatch)),
        ("RS384 of an RS256 key", Err(Denial::AlgorithmMismatch)),
        ("by another device", Err(Denial::SignatureInvalid)),
        ("iss is the device", Ok(())),
        ("sub is the device", Ok(())),
        ("iss is another device", Err(Denial::IssuerUnknown)),
        ("sub is another device", Err(Denial::IssuerUnknown)),
        ("iss is the device, sub another", Err(Denial::ClaimInvalid)),
        ("iss is nobody", Err(Denial::IssuerUnknown)),
        ("no aud", Err(Denial::AudienceMismatch)),
        ("no iat", Err(Denial::ClaimInvalid)),
        ("another aud", Err(Denial::AudienceMismatch)),
        ("aud is the gateway", Err(Denial::AudienceMismatch)),
        ("a day and ten minutes", Ok(())),
        ("a second longer", Err(Denial::LifetimeTooLong)),
    ] {
        assert_eq!(as_google(&gate, token(what), NOW).map(drop), expected, "{what}");
    }
    gate.load_identities(identities(false, Some(VALIDITY)));
    assert_eq!(as_google(&gate, token("google ES256"), NOW).map(drop), Err(Denial::DeviceDisabled));
}

#[test]
fn a_devices_own_token_is_none_of_another_device_and_counts_in_every_profile() {
    let gate = gate_for(google());
    let own = token("aud is the gateway");
    assert_eq!(check(&gate, "pump-17", own).as_deref(), Ok("device:pump-17/k1"));
    assert_eq!(
        check(&gate, "pump-17", token("google ES256")),
        Err(Denial::AudienceMismatch),
        "the project is Google's"
    );
    assert_eq!(check(&gate, "pump-1", own), Err(Denial::IssuerUnknown), "it has no public key");
    assert_eq!(check(&gate, "pump-1", token("sub is the device")), Err(Denial::AudienceMismatch));
    // Without `google_registries` any registry will do, and `aud` is the gateway's own name.
    let gate = gate_for(GateConfig { google_registries: vec![], ..google() });
    assert_eq!(as_google(&gate, own, NOW).map(drop), Ok(()));
    assert_eq!(as_google(&gate, token("google ES256"), NOW).map(drop), Err(Denial::AudienceMismatch));
}

#[test]
fn the_google_profile_cuts_at_the_expiry_and_ten_minutes() {
    let gate = gate_for(google());
    let grant = as_google(&gate, token("google RS256"), NOW).expect("admitted");
    let end = NOW.0 + 3600 + 600;
    assert_eq!(grant.closes_at, UnixSeconds(end));
    assert_eq!(as_google(&gate, token("google RS256"), UnixSeconds(end - 1)).map(drop), Ok(()));
    assert_eq!(as_google(&gate, token("google RS256"), UnixSeconds(end)).map(drop), Err(Denial::Expired));
}

#[test]
fn a_public_key_is_good_within_its_validity() {
    let gate = gate_for(google());
    let at = |now| as_google(&gate, token("google ES256"), now).map(drop);
    for (now, expected) in [
        (FROM.0 - 1, Err(Denial::KeyOutOfValidity)),
        (FROM.0, Ok(())),
        (FROM.0 + 1, Ok(())),
        (END.0 - 1, Ok(())),
        (END.0, Err(Denial::KeyOutOfValidity)),
        (END.0 + 1, Err(Denial::KeyOutOfValidity)),
    ] {
        assert_eq!(at(UnixSeconds(now)), expected, "{now}");
    }
    assert_eq!(
        as_google(&gate, token("by another device"), END).map(drop),
        Err(Denial::SignatureInvalid),
        "said of no other"
    );
}

#[test]
fn a_session_ends_with_the_key_that_let_it_in() {
    let gate = gate_for(google());
    let grant = as_google(&gate, token("google ES256"), NOW).expect("admitted");
    assert_eq!(grant.closes_at, END, "sooner than the token");
    assert_eq!(gate.recheck(&grant, UnixSeconds(END.0 - 1)), None);
    assert_eq!(gate.recheck(&grant, END), Some(CloseReason::Expired));
    let why = gate.why_ended(&grant, CloseReason::Expired, END);
    assert!(why.contains("device:pump-17/k1") && why.contains("ended at"), "{why}");
    for (es256, expected) in [
        (Some(Validity { not_after: None, ..VALIDITY }), None),
        (Some(Validity { not_after: Some(UnixSeconds(END.0 + 1)), ..VALIDITY }), None),
        (Some(Validity { not_after: Some(UnixSeconds(END.0 - 1)), ..VALIDITY }), Some(CloseReason::GrantWithdrawn)),
        (Some(Validity { not_before: Some(UnixSeconds(NOW.0 + 1)), ..VALIDITY }), Some(CloseReason::GrantWithdrawn)),
        (None, Some(CloseReason::GrantWithdrawn)),
    ] {
        gate.load_identities(identities(true, es256));
        assert_eq!(gate.recheck(&grant, NOW), expected, "{es256:?}");
    }
}

#[test]
fn a_devices_own_token_is_revoked_by_its_jti_key_and_device() {
    let gate = gate_for(google());
    for lines in [r#"{"device": "pump-17"}"#, r#"{"key": "device:pump-17/k1"}"#] {
        gate.load_revocations(list(lines));
        assert_eq!(as_google(&gate, token("google ES256"), NOW).map(drop), Err(Denial::Revoked), "{lines}");
    }
}

/// The memo knows the signature each time: what it knows admits nobody.
#[test]
fn a_token_whose_signature_is_remembered_is_refused_when_it_has_expired_its_key_is_gone_or_it_is_revoked() {
    for what in ["google RS256", "google EdDSA", "google ES256"] {
        let gate = gate_for(google());
        let (token, open) = (token(what), Some(Validity::default()));
        gate.load_identities(identities(true, open));
        let at = |now| as_google(&gate, token, now).map(drop);
        assert!(gate.is_costly(token.as_bytes()), "{what}: not seen yet");
        let grant = as_google(&gate, token, NOW).expect("admitted");
        for (now, expected) in [
            (NOW, Ok(())),
            (UnixSeconds(grant.closes_at.0 - 1), Ok(())),
            (grant.closes_at, Err(Denial::Expired)),
            (UnixSeconds(grant.closes_at.0 + 1), Err(Denial::Expired)),
            // Time is an argument: that it was refused later is not remembered either.
            (NOW, Ok(())),
        ] {
            assert!(!gate.is_costly(token.as_bytes()), "{what}: remembered");
            assert_eq!(at(now), expected, "{what} at {now}");
        }

        let entry = format!("{{\"token\": \"sha256:{}\"}}", grant.token_id);
        for lines in [&*entry, r#"{"device": "pump-17"}"#] {
            gate.load_revocations(list(lines));
            assert!(!gate.is_costly(token.as_bytes()), "{what}: remembered");
            assert_eq!(at(NOW), Err(Denial::Revoked), "{what}: {lines}");
        }
        gate.load_revocations(Arc::default());
        assert_eq!(at(NOW), Ok(()), "{what}");

        for (changed, denial) in
            [(identities(false, open), Denial::DeviceDisabled), (Shape::new().build(), Denial::IssuerUnknown)]
        {
            gate.load_identities(changed);
            assert_eq!(at(NOW), Err(denial), "{what}");
            assert_eq!(gate.recheck(&grant, NOW), Some(CloseReason::GrantWithdrawn), "{what}");
            gate.load_identities(identities(true, open));
            assert_eq!(at(NOW), Ok(()), "{what}: back again");
        }
        if what == "google ES256" {
            gate.load_identities(identities(true, None));
            assert_eq!(at(NOW), Err(Denial::AlgorithmMismatch), "its key alone: the others are tried");
        }
    }
}

#[test]
fn skew_and_lifetimes_are_those_of_the_listeners_profile() {
    let gate = Gate::new(GateConfig { hostname: "localhost".into(), ..GateConfig::default() });
    gate.load_identities(Shape::new().build());
    gate.load_revocations(Arc::default());
    let with = |expires_in, profile| {
        let token = sas("localhost/devices/pump-17", PRIMARY, expires_in, None);
        let asked = Admission {
            profile,
            client_id: if profile == Profile::Google { CLIENT } else { "pump-17" },
            ..ask("", &token)
        };
        gate.admit(&asked, NOW).map(|grant| grant.closes_at.since(grant.expires_at).as_secs()).map_err(|r| r.denial)
    };
    for (profile, skew, lifetime) in
        [(Profile::Strict, 30, 86_400), (Profile::Azure, 300, 366 * 86_400), (Profile::Google, 600, 86_400)]
    {
        assert_eq!(with(3600, profile), Ok(skew), "{profile:?}");
        let skew = i64::try_from(skew).expect("small");
        assert_eq!(with(1 - skew, profile).map(drop), Ok(()), "{profile:?}");
        assert_eq!(with(-skew, profile), Err(Denial::Expired), "{profile:?}");
        assert_eq!(with(lifetime, profile).map(drop), Ok(()), "{profile:?}");
        assert_eq!(with(lifetime + 1, profile), Err(Denial::LifetimeTooLong), "{profile:?}");
    }
}

const VALIDITY: Validity = Validity { not_before: Some(FROM), not_after: Some(END) };
const ES256_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAErIlLeqC2U1ASUE3JWJK0OOgv37Lx\n\
    I3PYVmkH1J8z7o+lSex3zTYZ7sS/z4MWt8gxgOpyYdLZpHiSxr54R1zM4g==\n\
    -----END PUBLIC KEY-----\n";
const RS256_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA1uH7HGfTOfY48ISpugOL\n\
    WoefINAn5vPnTDgcR6c/slYZvi+JIYJUdZXTZUTcdEWbfFCY4/4YnX5oSuZ1xwYE\n\
    WO6sJX2mMzq1HK/jeQKZvlMxYuZ0lFQ6MMyV/CI7wUQsseUjSMTuW7kemS4VT09w\n\
    B9Q6pv/QuuRXtmQP1cJwSwMPf1uY74kc/YzZA4EwONhxj5p0X/A2DSKXvQAsuw54\n\
    mNLT7OdQoEqFEDKZ3ORSRyZayunttMHTQt9/rUzWi+PBRQdq77K9dTbiz3RmJsjZ\n\
    ulLUHKsl0dfEV5JCdo+s3BNmPsWaRGWPdVIuJkwvR/1cpJUi3RstuXiVXg6CXka8\n\
    TwIDAQAB\n\
    -----END PUBLIC KEY-----\n";
const ED_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEA8wdEMTvPor5F+AW3VqvsVvpLJgdGGKpK4SkuXtyYXGg=\n\
    -----END PUBLIC KEY-----\n";
/// (what it is, the token): made by PyJWT.
const TOKENS: [(&str, &str); 21] = [
    (
        "google ES256",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.CwOSn3pu9ShL3u4IpUUvlRo4ogFV8fFGxfKQMx6SSR-TXKW8zCMRR-w0FqabH4rfDg__qlkEdq7mjmfTp_AwyA",
    ),
    (
        "google RS256",
        "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.x1FcXqIG6hlsQLaKx_lRThUxp65cRL9VLY980cL4R36Y7xKNQebIcqxKKe-9oteiSC-jRbXIOn5RRiauqeVC2Hv7Olu50NXI_vWs_SSDw7_MDVmPenUpJnDq2V2JRuyLPdE5h0NHa0-gHSBk93tDU93DZ3yA-x_OUECGdvcHoZf8WNJNL139VKlnI1KZcZiIzZdv1TNnNHYX-AuYJ_gGQDSRlNnc3Ts26heh74lpDYaUTKOnVBgPDPLGQih8JFcEmKeU_3UFXEBO9i7NNwaa5SxDXMUbGWHSnoVqAvHrnv3B9nbE3eCEnGtOsMUmo3NmB9Y3O4RajXz9-8-GNuzo5A",
    ),
    (
        "google EdDSA",
        "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.Ws_9NeQjV_qqpxirmkrH0YVN8S1xRxl4NkAcdEGiQXW_XNf2zLRHCrOKWJkROL6jvAKsoYrS8Erhbt3ZjM03Cg",
    ),
    (
        "with its kid",
        "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsxIiwidHlwIjoiSldUIn0.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.NO9RRAO00ui24GUjeV3F4vD0Bwp5dnO2p2Nag0VUAyAaZ5G16zY0i9ZAOe4tD8Exd0S5X-zxU_z1x4Tyn4K7kA",
    ),
    (
        "with a kid of another key",
        "eyJhbGciOiJFUzI1NiIsImtpZCI6Ims5IiwidHlwIjoiSldUIn0.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.1g4a8AQOJA7qzrUtqhQC0D_jnsoOcLt9AXbPpxJW41gRZwyg9JiBnz78LkkVl6QILFxM4o4NZxzgdvYmU9uCGg",
    ),
    (
        "RS256 with any kid",
        "eyJhbGciOiJSUzI1NiIsImtpZCI6Ims5IiwidHlwIjoiSldUIn0.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.nil6Z1Zd8dVKjzb6L7PofX-qHWDBx2nFyBj9MM6UqvQwHakJwnTcBvbI9J5Z4TbYKOtl8Yd5BCu2-8LO_DzKh3wL1hJqLyZNEZ_Vd6bBZuMpYi4RNNjGDCCFRAVbjJDuLww0bgWwSHsCj2eQINUfdPwwPRMrP3VHEe16-Vayp7VaY827R_qTWQ10YY4v0kg6uY6o_K4qd7AzcsMqM_mpvKjeFKGqCp84sKV4tESmyruYkRojjAyRZLbQA4ou5CIrNk3A3Ka0piZlm5MXPUBO0tU3zgVpojQYc9hFIJcFRC4MOPNqrlc1XLv3UhUjBZ30e8UeOL3fqnfQIDKeEK8BNQ",
    ),
    (
        "RS256 with the kid of the EC key",
        "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIiwidHlwIjoiSldUIn0.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.e3DDsz5mmMo_NUe-N9LQTsRiBf1I1MszeKYHOgZTsGGrnvH2geIGB4UjI4ZCjp2cVM3ivgwjud_FsA3kup4_3EjujAn0j6E70utNxpAxTBKJGFwzGakmGk3llI1wIFnDqE6GRJ7DlDn9obKEJmW-pLMlZ67MVnlmfj_R8NpMX7NINKGaCW71-d-gAvP5u09brCxakyBTt4QWTv0pfoqjhy4ZHePIOa_7C2IfrF-eusfzrjupDWstwAFLDALG9B0vFtD1Ruv_-s9CzKdIUwaHGEjyF1L-dbuOzYrtGAcPHbPxObp5K71aa2Qvrf14C9IybaZFXA2Pl8OZhSkcVuilPQ",
    ),
    (
        "by another device",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.nuX9KyqGMCEYtYuaPqZWu_U-Oe_25Ctz0afIhlmrRRGoIz9I1cBiv4o9zkhnKKlfdZGzQuAahAvwG_OxJPagdg",
    ),
    (
        "iss is the device",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSIsImlzcyI6InB1bXAtMTcifQ.hkGZnqKncRDePvb9FKkiXGxIq9dg_h0cFjZw3RBgiw2aFRJQyYqxlMT5yOEsiam2txEEb24Gnr30boh5XVWERQ",
    ),
    (
        "sub is the device",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSIsInN1YiI6InB1bXAtMTcifQ.eypA_BiMB_tsiBNMyBGBrm1njW5NtLnoKA9xNr5bzv-6J4d9Y540BteqdlkHcfXf_4znggRZCEkBRjxV4PnWtA",
    ),
    (
        "iss is another device",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSIsImlzcyI6InB1bXAtMSJ9.P3Zz58s2h0PwgHLLZD4pmctJ_UyqSRYrNQEG6KM6tTIB-kUQ2gQQmYizniWyhj04YJZpgk1mQGrSG8WKCH3aew",
    ),
    (
        "sub is another device",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSIsInN1YiI6InB1bXAtMSJ9.ZHh8gE9Zb5zOzBAhYRQ7Wp3D5Tb6d53hq8wZh5ctvsrleL8k3Qc4Jx2aXiBvRwxz2KszEpQL_qRMfi6QyfrtRA",
    ),
    (
        "iss is the device, sub another",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSIsImlzcyI6InB1bXAtMTciLCJzdWIiOiJwdW1wLTEifQ.kXI9sHVcsidDcxSMh9jyqrOcvNA6SA2TCxTHN6w0OqTb1-BNxmtEJ_fbjmiMR2vfN1S8mVznMvjgn4JWCxmDrQ",
    ),
    (
        "iss is nobody",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSIsImlzcyI6Imh0dHBzOi8vbm9ib2R5LmV4YW1wbGUifQ.0edNnb3S6XZNDF7Ccgy90Js6RLyCwCH-OkRAjEQEtiJkxPc4u1dct6BnyGgWyF1-RSkKtFtFYLlbNVxb9BD_IQ",
    ),
    (
        "no aud",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMH0.72SPCS_mxUjeSNcWKQDOYcPeVzJ_5QZT4aP7kH2S2v2If_WJZFOSs4ARsSYVxWpMnjLYmiCuFzijCD94yC54EQ",
    ),
    (
        "no iat",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjE3OTUyNTUyMDAsImF1ZCI6ImFjbWUifQ.FyCCCiTUFWLkIvLTd5BF92uhCJr5tPG0PGciRl1TGPqCDatl61ja5FVINuX_vtNPqGIaEaUIoXfAI1RKj9d9nQ",
    ),
    (
        "another aud",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoib3RoZXIifQ.wC4WRg-n7BuxvtV3l509nqsyQWWXiK843XXyc8YTOcqHBXiHLHK1qecfayI3VD11A3u41ftd7uJQBWe_Q1cHug",
    ),
    (
        "aud is the gateway",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoibG9jYWxob3N0In0.V2TgE0uAuHKZE9NJ3scr4m-MQZBzKF5WbvZhTN3m0Mc_CWZTXzkHnetAIfS3h74PNodXuQDuJFmCDXPszSZlxg",
    ),
    (
        "a day and ten minutes",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTMzODYwMCwiYXVkIjoiYWNtZSJ9.6L00Hmga7-k3e2bQT430sEiZUcwHGNUFXcr4UpKBgKRV9tx0TIU8-u3cNkDIIqSv9HxGb6mtK7DIgBMXVmo29Q",
    ),
    (
        "a second longer",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTMzODYwMSwiYXVkIjoiYWNtZSJ9.X-FuJTnzAoGqmyErH_QzGa4zmhxK8tDzaHyME_UD1AVabUgjrpYpL9jhf6gyQEaYqdMIMrNScJtXiNYJav0kjw",
    ),
    (
        "RS384 of an RS256 key",
        "eyJhbGciOiJSUzM4NCIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3OTUyNTE2MDAsImV4cCI6MTc5NTI1NTIwMCwiYXVkIjoiYWNtZSJ9.TAbByhl9M8crx8FDRE98chbvaCM8X9-iRM0sCrydHL6RlHQizbhkwQdQm3q6VyphAkwydAAYJXet32PTpSQ15zIvqa2abnfoC_sdn0ihtwF6rRUa_UUqwwGehYvJyP8Ac8zmbLtlSgy4F38b7gJm3F0DnTMAdTebzcXy_QLrQwZ2aZUFjQG02O8hWsw3rlqQrRyEv8tBcwNDBCyNfMaW0CytvnwxUY6bXtOCrCl7XPBRbhbgdQue1UMfmvHOe8C08nk_iAX-aTPJlcJgM3Gk6E6uyefK3-ZpGRmjJMMYl2L9wulECs10I-jwTvMY7nB7LQGT4AunZXZie9LIyMcUwQ",
    ),
];
