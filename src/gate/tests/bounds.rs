//! Every bound in time, a second before it, in it and a second after it.

use std::time::SystemTime;

use rcgen::{CertificateParams, KeyPair};

use super::{
    device_keys::{self, as_google, gate_for, google},
    *,
};
use crate::credential::{ClientAuth, ClientAuthorities, ListStamp, Thumbprint, Thumbprints};

/// What is decided at one second, counted from the bound.
type Decide<'a> = Box<dyn Fn(i64) -> Result<(), Denial> + 'a>;
/// A bound, and what is decided a second before it, in it and a second after it.
type Row<'a> = (&'a str, Decide<'a>, [Result<(), Denial>; 3]);

#[test]
fn every_bound_in_time_holds_to_the_second() {
    let (listed, own) = (gate(), gate_for(google()));
    let (pinned, peer) = gate_with_certificate();
    use Denial::*;
    let table: Vec<Row<'_>> = vec![
        ("`se` and the skew", Box::new(|by| with_sas(3600, 3600 + SKEW_I + by)), [Ok(()), Err(Expired), Err(Expired)]),
        ("a SAS token's lifetime", Box::new(|by| with_sas(DAY + by, 0)), [Ok(()), Ok(()), Err(LifetimeTooLong)]),
        (
            "`exp` and the skew",
            Box::new(|by| with_jwt(claims(), 3600 + SKEW_I + by)),
            [Ok(()), Err(Expired), Err(Expired)],
        ),
        (
            "`nbf` and the skew",
            Box::new(|by| with_jwt(claims().with("nbf", NOW.0 + 600), 600 - SKEW_I + by)),
            [Err(NotYetValid), Ok(()), Ok(())],
        ),
        (
            "`iat` and the skew",
            Box::new(|by| with_jwt(claims().with("iat", NOW.0 + 600), 600 - SKEW_I + by)),
            [Err(IssuedInFuture), Ok(()), Ok(())],
        ),
        (
            "`exp` behind `iat`",
            Box::new(|by| with_jwt(claims().with("exp", later(by).0), 0)),
            [Err(ClaimInvalid), Err(ClaimInvalid), Ok(())],
        ),
        (
            "a JWT's lifetime",
            Box::new(|by| with_jwt(claims().with("exp", later(DAY + SKEW_I + by).0), 0)),
            [Ok(()), Ok(()), Err(LifetimeTooLong)],
        ),
        (
            "`until` of an entry",
            Box::new(|by| under_list(&listed, "\"device\": \"pump-17\", \"until\"", (60, 60 + by))),
            [Err(Revoked), Ok(()), Ok(())],
        ),
        (
            "`issued_before` and `iat`",
            Box::new(|by| under_list(&listed, "\"issued_before\"", (-by, 0))),
            [Err(Revoked), Ok(()), Ok(())],
        ),
        (
            "`expires_before` and `exp`",
            Box::new(|by| under_list(&listed, "\"expires_before\"", (3600 - by, 0))),
            [Err(Revoked), Ok(()), Ok(())],
        ),
        ("the age of a signed list", Box::new(under_signed_list), [Ok(()), Err(Unavailable), Err(Unavailable)]),
        (
            "`not_before` of a public key",
            Box::new(|by| with_own_key(&own, -100 + by)),
            [Err(KeyOutOfValidity), Ok(()), Ok(())],
        ),
        (
            "`not_after` of a public key",
            Box::new(|by| with_own_key(&own, 100 + by)),
            [Ok(()), Err(KeyOutOfValidity), Err(KeyOutOfValidity)],
        ),
        // RFC 5280 §4.1.2.5: both ends are within.
        (
            "notBefore of a certificate",
            Box::new(|by| with_certificate(&pinned, &peer, -60 + by)),
            [Err(NotYetValid), Ok(()), Ok(())],
        ),
        (
            "notAfter of a certificate",
            Box::new(|by| with_certificate(&pinned, &peer, 60 + by)),
            [Ok(()), Ok(()), Err(Expired)],
        ),
    ];
    for (bound, decide, expected) in table {
        assert_eq!([-1, 0, 1].map(decide), expected, "{bound}");
    }
}

#[test]
fn a_session_ends_in_the_first_second_in_which_it_would_not_be_admitted() {
    let (plain, own) = (gate(), gate_for(google()));
    let (pinned, peer) = gate_with_certificate();
    let by_key = as_google(&own, device_keys::token("google ES256"), NOW).expect("admitted");
    let by_certificate = pinned.admit(&showing(&peer), NOW).expect("admitted");
    let [by_sas, by_jwt] =
        [pump_sas(), jwt(&claims())].map(|token| plain.admit(&ask("pump-17", &token), NOW).expect("admitted"));
    for (what, gate, grant, ends) in [
        ("SAS", &plain, by_sas, later(3600 + SKEW_I)),
        ("JWT", &plain, by_jwt, later(3600 + SKEW_I)),
        ("a public key", &own, by_key, later(100)),
        ("a certificate", &pinned, by_certificate, later(61)),
    ] {
        assert_eq!(grant.closes_at, ends, "{what}");
        let ended = [-1, 0, 1].map(|by| gate.recheck(&grant, after(ends, by)));
        assert_eq!(ended, [None, Some(CloseReason::Expired), Some(CloseReason::Expired)], "{what}");
    }
}

fn with_sas(expires_in: i64, now: i64) -> Result<(), Denial> {
    decided(&gate(), &ask("pump-17", &sas("localhost/devices/pump-17", PRIMARY, expires_in, None)), now)
}

fn with_jwt(claims: JwtClaims, now: i64) -> Result<(), Denial> {
    decided(&gate(), &ask("pump-17", &jwt(&claims)), now)
}

/// Of a JWT, under a list of one entry that ends with a time.
fn under_list(gate: &Gate, entry: &str, (time, now): (i64, i64)) -> Result<(), Denial> {
    gate.load_revocations(list(&format!("{{{entry}: \"{}\"}}", later(time))));
    decided(gate, &ask("pump-17", &jwt(&claims())), now)
}

/// Under one that may be relied upon for a minute.
fn under_signed_list(by: i64) -> Result<(), Denial> {
    let gate = gate();
    let stamp = ListStamp { signed_at: NOW, stale_from: later(30), refuse_from: later(60) };
    gate.load_revocations(Arc::new(RevocationList::default().stamped(stamp)));
    decided(&gate, &ask("pump-17", &pump_sas()), 60 + by)
}

/// Of a token that the device signed with a key that is good for 100 s before and after.
fn with_own_key(gate: &Gate, now: i64) -> Result<(), Denial> {
    as_google(gate, device_keys::token("google ES256"), later(now)).map(drop)
}

fn with_certificate(gate: &Gate, peer: &Arc<PeerCertificate>, now: i64) -> Result<(), Denial> {
    decided(gate, &showing(peer), now)
}

/// A gate that knows a device by its certificate, which is good for a minute before and after.
fn gate_with_certificate() -> (Gate, Arc<PeerCertificate>) {
    let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(later(seconds).0);
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (at(-60).into(), at(60).into());
    let key = KeyPair::generate().expect("a key");
    let der = params.self_signed(&key).expect("signed").der().clone();
    let primary = Some(Thumbprint::of(&der));
    let pump = Device { thumbprints: Thumbprints { primary, secondary: None }, ..Device::default() };
    let gate = gate();
    gate.load_identities(Shape { pump: Some(pump), ..Shape::new() }.build());
    let peer = PeerCertificate::parse(vec![der], ClientAuthorities::new(Default::default(), ClientAuth::Optional));
    (gate, peer.expect("a certificate"))
}

fn showing(peer: &Arc<PeerCertificate>) -> Admission<'_> {
    Admission { password: None, certificate: Some(peer), ..ask("pump-17", "") }
}

fn decided(gate: &Gate, asked: &Admission<'_>, now: i64) -> Result<(), Denial> {
    gate.admit(asked, later(now)).map(drop).map_err(|refused| refused.denial)
}

fn later(seconds: i64) -> UnixSeconds {
    after(NOW, seconds)
}

fn after(time: UnixSeconds, seconds: i64) -> UnixSeconds {
    UnixSeconds(time.0.checked_add_signed(seconds).expect("a time"))
}

const SKEW_I: i64 = 30;
const DAY: i64 = 86_400;
