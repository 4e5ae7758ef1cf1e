//! JWTs that a device signed itself.

use std::sync::Arc;

use super::{
    super::{
        Identity, Keyring, PublicKey, Refused, Rights, Terms, TokenKind, Trace, Validity, VerifyRules, nobody, shown,
    },
    JwtToken, check_audience, check_required, check_times, claim_invalid, issuer_unknown,
};
use crate::{
    denial::Denial,
    id::{DeviceId, KeyName},
    time::UnixSeconds,
};

/// A JWT that the device signed itself, as Google's devices do: `iss` is absent or the device, and `sub` likewise. Where
/// neither is there, it is of whom CONNECT names.
pub(super) fn by_device(
    token: &JwtToken<'_>,
    presented_by: Option<&DeviceId>,
    keyring: &Keyring,
    rules: &VerifyRules,
    trace: &mut impl Trace,
    now: UnixSeconds,
) -> Result<Identity, Refused> {
    let named = token.iss().or_else(|| token.text("sub")).and_then(|name| DeviceId::shared(name, presented_by).ok());
    let device = if token.iss().is_none() && token.text("sub").is_none() { presented_by.cloned() } else { named };
    let held = device.and_then(|id| keyring.find(&id).map(|found| (id, found)));
    let able = held.and_then(|(id, found)| Some((found.device.filter(|own| !own.public_keys.is_empty())?, id, found)));
    let (own, device, held) = able.ok_or_else(|| {
        cost_as_of_a_key(token, keyring);
        issuer_unknown(token)
    })?;
    let public = signed_by(token, &device, &own.public_keys, keyring)?;
    let key = KeyName::of("device", device.as_str(), &public.slot());
    trace.passed("signature", || format!("verifies under {key} ({})", public.key.algorithm()));
    let about = |refused: Refused| refused.about(token.token_id, Some(&device));
    check_validity(&key, public.validity, now).map_err(about)?;
    if let Some(other) = token.text("sub").filter(|sub| *sub != device.as_str()) {
        return Err(about(claim_invalid(format!("`sub` is {}, and the device {device} signed it.", shown(other)))));
    }
    check_audience(token, "a device", &rules.device_audience).map_err(about)?;
    trace.passed("audience", || "`aud` names this gateway".into());
    check_required(token, rules.require.iter().copied()).map_err(about)?;
    held.check(&device, TokenKind::Jwt).map_err(about)?;
    trace.passed("device", || format!("{device} is known and enabled"));
    check_times(token, held.lifetime_max(None, rules), rules, now).map_err(about)?;
    trace.passed("times", || {
        format!("`exp` is {}, {} s from now", token.expires_at, token.expires_at.since(now).as_secs())
    });
    Ok(Identity {
        kind: TokenKind::Jwt,
        key,
        key_fingerprint: public.key.fingerprint(),
        token_id: token.token_id,
        expires_at: token.expires_at,
        issued_at: token.issued_at,
        jti: token.jti().map(Arc::from),
        issuer: None,
        policy: None,
        rights: Rights::ALL,
        narrowing: None,
        key_ends_at: public.validity.not_after,
        certificate_binding: token.certificate_binding,
        terms: Some(Terms::of_jwt(token, None)),
        device,
    })
}

/// The key of the device that made it. A key without a `kid` is tried for whatever `kid` a token has, for devices that
/// sign themselves seldom write one.
fn signed_by<'k>(
    token: &JwtToken<'_>,
    device: &DeviceId,
    keys: &'k [PublicKey],
    keyring: &Keyring,
) -> Result<&'k PublicKey, Refused> {
    let has = |kid: Option<&str>| keys.iter().filter(|public| public.kid.as_deref() == kid).collect::<Vec<_>>();
    let named: Vec<&PublicKey> = match token.kid() {
        None => keys.iter().collect(),
        Some(kid) => Some(has(Some(kid))).filter(|exact| !exact.is_empty()).unwrap_or_else(|| has(None)),
    };
    if named.is_empty() {
        cost_as_of_a_key(token, keyring);
        let shown_kid = token.kid().map(shown).unwrap_or_default();
        let detail = format!("`kid` is {shown_kid}, and no [[device.public_key]] of {device} has it.");
        return Err(Refused::new(Denial::KeyUnknown, detail));
    }
    let able: Vec<&PublicKey> =
        named.iter().copied().filter(|public| public.key.algorithm() == token.algorithm).collect();
    if able.is_empty() {
        cost_as_of_a_key(token, keyring);
        let theirs = named.iter().map(|public| public.key.algorithm().as_str()).collect::<Vec<_>>().join(", ");
        let detail = format!("`alg` is {}; the public keys of {device} are for {theirs}.", token.algorithm);
        return Err(Refused::new(Denial::AlgorithmMismatch, detail));
    }
    able.into_iter().find(|public| keyring.memo().verifies(token, &public.key)).ok_or_else(|| {
        let detail = format!("The signature does not verify under any public key of {device}.");
        Refused::new(Denial::SignatureInvalid, detail)
    })
}

/// A refusal costs the check of one signature, whether or not there was a key to check it with: time does not tell which
/// devices hold keys. What the peer is told does not either: see [`Denial::as_told`].
fn cost_as_of_a_key(token: &JwtToken<'_>, keyring: &Keyring) {
    if let Some(key) = nobody::key(token.algorithm) {
        std::hint::black_box(keyring.memo().verifies(token, key));
    }
}

fn check_validity(key: &KeyName, validity: Validity, now: UnixSeconds) -> Result<(), Refused> {
    if validity.holds(now) {
        return Ok(());
    }
    let detail = match validity.not_before.filter(|from| *from > now) {
        Some(from) => format!("{key} is good from {from} on."),
        None => format!("{key} was good until {}.", validity.not_after.unwrap_or(now)),
    };
    Err(Refused::new(Denial::KeyOutOfValidity, detail))
}
