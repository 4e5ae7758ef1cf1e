//! JSON Web Tokens (RFC 7519, RFC 8725). Header and claims are read here, strictly; the library only verifies the
//! signature, with the algorithm of the *key*.

mod device;

use std::{cell::RefCell, collections::VecDeque, fmt, str::FromStr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::{
    Algorithm, Identity, Issuer, Keyring, Narrowing, Refused, Rights, Terms, TokenKind, Trace, VerifyRules,
    VerifyingKey, check_not_expired,
    json::{Json, Text},
    keyring::KnownIssuer,
    shown, split_once, token_id_of,
};
use crate::{
    denial::Denial,
    id::{DeviceId, TokenId},
    time::UnixSeconds,
    topic::TopicFilter,
};

/// A well-formed JWT.
pub struct JwtToken<'t> {
    /// `header.payload`, which is what is signed.
    message: &'t str,
    signature: Vec<u8>,
    signature_text: &'t str,
    /// Of the message.
    hash: Sha256,
    algorithm: Algorithm,
    kid: Option<Text>,
    claims: Json,
    expires_at: UnixSeconds,
    not_before: Option<UnixSeconds>,
    issued_at: Option<UnixSeconds>,
    certificate_binding: Option<[u8; 32]>,
    token_id: TokenId,
}

impl<'t> JwtToken<'t> {
    pub(super) fn parse(text: &'t str) -> Result<Self, Refused> {
        let malformed = |what: String| Refused::new(Denial::CredentialMalformed, what);
        let parts = text.rsplit_once('.').and_then(|(message, sig)| Some((message, split_once(message, b'.')?, sig)));
        let (message, (header, payload), signature_text) =
            parts.ok_or_else(|| malformed("It has not three parts.".into()))?;
        // An empty signature is that of `alg: none`.
        if signature_text.is_empty() {
            return Err(malformed("The token has no signature.".into()));
        }
        let signature = decode_part("signature", signature_text).map_err(malformed)?;
        let hash = Sha256::new_with_prefix(message);
        let token_id = token_id_of(hash.clone());
        let about = |refused: Refused| refused.about(token_id, None);
        let Header { algorithm, kid } = Header::of(header).map_err(about)?;
        let claims = read_part("payload", payload).map_err(|what| about(malformed(what)))?;
        let date = |name: &str| read_date(&claims, name).map_err(|what| about(claim_invalid(what)));
        check_texts(&claims).map_err(|what| about(claim_invalid(what)))?;
        let expires_at = date("exp")?.ok_or_else(|| about(claim_invalid("The token has no `exp`.".into())))?;
        let (not_before, issued_at) = (date("nbf")?, date("iat")?);
        if issued_at.is_some_and(|issued_at| expires_at <= issued_at) {
            return Err(about(claim_invalid(format!("`exp` is {expires_at}, which is not after `iat`."))));
        }
        let certificate_binding = read_binding(&claims).map_err(|what| about(claim_invalid(what)))?;
        Ok(Self {
            message,
            signature,
            signature_text,
            hash,
            algorithm,
            kid,
            claims,
            expires_at,
            not_before,
            issued_at,
            certificate_binding,
            token_id,
        })
    }

    /// The name of what the token means: of header and payload, since an ECDSA signature has a twin.
    pub fn token_id(&self) -> TokenId {
        self.token_id
    }

    /// `exp`.
    pub fn expires_at(&self) -> UnixSeconds {
        self.expires_at
    }

    /// `nbf`.
    pub fn not_before(&self) -> Option<UnixSeconds> {
        self.not_before
    }

    /// `iat`.
    pub fn issued_at(&self) -> Option<UnixSeconds> {
        self.issued_at
    }

    /// `alg` of the header: what the token says, not what its key is for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// `kid` of the header.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// `iss`.
    pub fn iss(&self) -> Option<&str> {
        self.text("iss")
    }

    /// `jti`.
    pub fn jti(&self) -> Option<&str> {
        self.text("jti")
    }

    /// `aud`: one or several.
    pub fn audience(&self) -> Vec<&str> {
        self.each_audience().collect()
    }

    pub(super) fn each_audience(&self) -> impl Iterator<Item = &str> {
        self.claims.get("aud").into_iter().flat_map(Json::texts)
    }

    /// Every claim as JSON, in the order of the token.
    pub fn claims(&self) -> impl Iterator<Item = (&str, String)> {
        self.claims.members().iter().map(|(name, value)| (&**name, value.to_string()))
    }

    /// Names of the claims that are there: one that is null is not.
    pub(super) fn each_claim(&self, mut visit: impl FnMut(&str)) {
        self.claims
            .members()
            .iter()
            .filter(|(_, value)| !matches!(value, Json::Null))
            .for_each(|(name, _)| visit(name));
    }

    /// SHA-256 of the whole text, signature included.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.hash.clone().chain_update(".").chain_update(self.signature_text).finalize().into()
    }

    /// Whether this key made it, whatever the header says.
    pub(super) fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        key.verifies(self.message.as_bytes(), &self.signature)
    }

    /// Whether it is an HS256 token whose secret is the text of this public key.
    pub(super) fn is_signed_with_text_of(&self, key: &VerifyingKey) -> bool {
        let signature = self.signature.as_slice().try_into();
        signature.is_ok_and(|signature| key.was_taken_for_a_secret(self.message.as_bytes(), signature))
    }

    /// Whether this key would have made it, had it this signature.
    pub(super) fn would_be_signed_by(&self, key: &VerifyingKey, signature: &[u8]) -> bool {
        key.verifies(self.message.as_bytes(), signature)
    }

    /// The two numbers of a signature in DER (RFC 3279 §2.2.3), side by side as RFC 7518 §3.4 has them.
    pub(super) fn signature_out_of_der(&self) -> Option<Vec<u8>> {
        let width: usize = match self.algorithm {
            Algorithm::ES256 => 32,
            Algorithm::ES384 => 48,
            _ => return None,
        };
        let mut rest = self.signature.strip_prefix(&[0x30])?.get(1..)?;
        let mut raw = Vec::new();
        for _ in 0..2 {
            let (length, after) = rest.strip_prefix(&[0x02])?.split_first()?;
            let (number, after) = after.split_at_checked(usize::from(*length))?;
            let number = number.strip_prefix(&[0]).unwrap_or(number);
            raw.resize(raw.len() + width.checked_sub(number.len())?, 0);
            raw.extend(number);
            rest = after;
        }
        Some(raw)
    }

    /// A claim that is a text.
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim).and_then(Json::text)
    }
}

impl fmt::Debug for JwtToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtToken")
            .field("token_id", &self.token_id)
            .field("algorithm", &self.algorithm)
            .field("kid", &self.kid)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Decides whether a JWT is believed. See [`super::verify`] for `presented_by`.
pub(super) fn verify(
    token: &JwtToken<'_>,
    presented_by: Option<&DeviceId>,
    keyring: &Keyring,
    rules: &VerifyRules,
    trace: &mut impl Trace,
    now: UnixSeconds,
) -> Result<Identity, Refused> {
    match token.iss().and_then(|iss| keyring.known_issuer(iss)) {
        Some(known) => by_issuer(token, known, (presented_by, keyring), rules, trace, now),
        None => device::by_device(token, presented_by, keyring, rules, trace, now),
    }
}

fn by_issuer(
    token: &JwtToken<'_>,
    known: &KnownIssuer,
    (presented_by, keyring): (Option<&DeviceId>, &Keyring),
    rules: &VerifyRules,
    trace: &mut impl Trace,
    now: UnixSeconds,
) -> Result<Identity, Refused> {
    let issuer = &known.issuer;
    trace.passed("issuer", || format!("`iss` is that of the issuer {:?}", issuer.name));
    // An outage is never told as a fault of the token's.
    if issuer.is_without_keys() {
        let detail =
            format!("The key set of the issuer {:?} was never fetched: `jwks_url` cannot be reached.", issuer.name);
        return Err(Refused::new(Denial::Unavailable, detail));
    }
    let Some((kid, key)) = issuer.key(token.kid()) else {
        let named = token.kid().map_or("The token has no `kid`".into(), |kid| format!("`kid` is {}", shown(kid)));
        let detail = format!("{named}; the issuer {:?} has {}.", issuer.name, key_list(issuer));
        return Err(Refused::new(Denial::KeyUnknown, detail));
    };
    let name = issuer.key_name(kid);
    // RFC 8725 §3.1: the algorithm belongs to the key.
    if token.algorithm != key.algorithm() {
        let detail = format!("`alg` is {}; the key {name} is for {}.", token.algorithm, key.algorithm());
        return Err(Refused::new(Denial::AlgorithmMismatch, detail));
    }
    let Some(key) = key.each().find(|key| keyring.memo().verifies(token, key)) else {
        return Err(Refused::new(Denial::SignatureInvalid, format!("The signature does not verify under {name}.")));
    };
    trace.passed("signature", || format!("verifies under {name} ({})", key.algorithm()));
    check_audience(token, &format!("the issuer {:?}", issuer.name), &issuer.audience)?;
    trace.passed("audience", || "`aud` names this gateway".into());
    match &issuer.require {
        Some(require) => check_required(token, require.iter().map(|claim| &**claim))?,
        None => check_required(token, rules.require.iter().copied())?,
    }
    let device = read_device(token, issuer, presented_by)?;
    let about = |refused: Refused| refused.about(token.token_id, Some(&device));
    let narrowing = read_narrowing(token, issuer).map_err(about)?;
    trace.passed("claims", || format!("all that are required are there; `{}` is {device}", issuer.device_claim));
    let held = keyring.find(&device).ok_or_else(|| {
        let detail = format!(
            "`{}` names {device}, and there is no such {}.",
            issuer.device_claim,
            if device.module().is_some() { "[[module]]" } else { "[[device]] and no [[group]] whose prefix it has" }
        );
        about(Refused::new(Denial::DeviceUnknown, detail))
    })?;
    held.check(&device, TokenKind::Jwt).map_err(about)?;
    trace.passed("device", || format!("{device} is known and enabled"));
    check_times(token, held.lifetime_max(issuer.token_lifetime_max, rules), rules, now).map_err(about)?;
    trace.passed("times", || {
        format!("`exp` is {}, {} s from now", token.expires_at, token.expires_at.since(now).as_secs())
    });
    Ok(Identity {
        kind: TokenKind::Jwt,
        key: name,
        key_fingerprint: key.fingerprint(),
        token_id: token.token_id,
        expires_at: token.expires_at,
        issued_at: token.issued_at,
        jti: token.jti().map(Arc::from),
        issuer: Some(issuer.name.clone()),
        policy: None,
        rights: Rights::ALL,
        narrowing,
        key_ends_at: None,
        certificate_binding: token.certificate_binding,
        terms: Some(Terms::of_jwt(token, Some(known))),
        device,
    })
}

fn issuer_unknown(token: &JwtToken<'_>) -> Refused {
    let detail = match token.iss() {
        None => "The token has no `iss`, which names the issuer; and no device with a public key of its own is named."
            .into(),
        Some(iss) => format!("`iss` is {}, and no [[issuer]] has it.", shown(iss)),
    };
    Refused::new(Denial::IssuerUnknown, detail)
}

fn check_audience<T: AsRef<str>>(token: &JwtToken<'_>, maker: &str, ours: &[T]) -> Result<(), Refused> {
    if token.each_audience().any(|named| ours.iter().any(|ours| ours.as_ref() == named)) {
        return Ok(());
    }
    let audience = token.audience();
    let ours = ours.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    let detail = match audience.is_empty() {
        true => format!("The token has no `aud`; {maker} makes tokens for {ours}."),
        false => format!("`aud` is {}; {maker} makes tokens for {ours}.", shown_list(&audience)),
    };
    Err(Refused::new(Denial::AudienceMismatch, detail))
}

fn check_required<'c>(token: &JwtToken<'_>, mut require: impl Iterator<Item = &'c str>) -> Result<(), Refused> {
    match require.find(|claim| matches!(token.claims.get(claim), None | Some(Json::Null))) {
        Some(claim) => Err(claim_invalid(format!("The token has no `{claim}`, which is required of it."))),
        None => Ok(()),
    }
}

fn read_device(token: &JwtToken<'_>, issuer: &Issuer, presented_by: Option<&DeviceId>) -> Result<DeviceId, Refused> {
    let claim = &issuer.device_claim;
    let text = match token.claims.get(claim) {
        Some(Json::Text(text)) => text,
        Some(other) => return Err(claim_invalid(format!("`{claim}` is {}, not a device id.", other.kind()))),
        None => return Err(claim_invalid(format!("The token has no `{claim}`, which names the device."))),
    };
    let invalid = |error| claim_invalid(format!("`{claim}` is {}: {error}.", shown(text)));
    DeviceId::shared(text, presented_by).map_err(invalid)
}

/// A malformed claim refuses the token: it does not fall back to the device's whole scope.
fn read_narrowing(token: &JwtToken<'_>, issuer: &Issuer) -> Result<Option<Narrowing>, Refused> {
    let Some(claim) = &issuer.scope_claim else { return Ok(None) };
    let Some(value) = token.claims.get(claim) else { return Ok(None) };
    let Json::Object(members) = value else {
        return Err(claim_invalid(format!("`{claim}` is {}, not an object with `pub` and `sub`.", value.kind())));
    };
    let mut narrowing = Narrowing { publish: None, subscribe: None };
    for (name, value) in members {
        let side = match &**name {
            "pub" => &mut narrowing.publish,
            "sub" => &mut narrowing.subscribe,
            _ => return Err(claim_invalid(format!("`{claim}` holds {}; it may hold `pub` and `sub`.", shown(name)))),
        };
        let Json::List(filters) = value else {
            return Err(claim_invalid(format!("`{name}` in `{claim}` is {}, not a list of filters.", value.kind())));
        };
        let read = |filter: &Json| filter.text().and_then(|text| TopicFilter::try_from(text).ok());
        let filters: Option<Vec<TopicFilter>> = filters.iter().map(read).collect();
        *side = Some(
            filters.ok_or_else(|| claim_invalid(format!("`{name}` in `{claim}` holds what is no topic filter.")))?,
        );
    }
    Ok(Some(narrowing))
}

fn check_times(token: &JwtToken<'_>, limit: Duration, rules: &VerifyRules, now: UnixSeconds) -> Result<(), Refused> {
    check_not_expired("exp", token.expires_at, rules, now)?;
    let skew = rules.clock_skew;
    let ahead = |name: &str, at: UnixSeconds| {
        let (by, skew) = (at.since(now).as_secs(), skew.as_secs());
        format!("`{name}` is {at}, which is {by} s ahead; {skew} s of clock skew are allowed.")
    };
    // RFC 7519 §4.1.5
    if let Some(at) = token.not_before.filter(|at| *at > now.plus(skew)) {
        return Err(Refused::new(Denial::NotYetValid, ahead("nbf", at)));
    }
    if let Some(at) = token.issued_at.filter(|at| *at > now.plus(skew)) {
        return Err(Refused::new(Denial::IssuedInFuture, ahead("iat", at)));
    }
    let (from, since) = token.issued_at.map_or((now, "now"), |at| (at, "`iat`"));
    let lifetime = token.expires_at.since(from);
    if lifetime > limit.saturating_add(skew) {
        let detail =
            format!("`exp` is {} s from {since}; at most {} s are allowed.", lifetime.as_secs(), limit.as_secs());
        return Err(Refused::new(Denial::LifetimeTooLong, detail));
    }
    Ok(())
}

/// What a header says that counts.
#[derive(Clone)]
struct Header {
    algorithm: Algorithm,
    kid: Option<Text>,
}

impl Header {
    /// An issuer writes one header into all of its tokens: the last ones that were read are not read again.
    fn of(text: &str) -> Result<Self, Refused> {
        HEADERS.with_borrow_mut(|known| {
            if let Some((_, header)) = known.iter().find(|(known, _)| **known == *text) {
                return Ok(header.clone());
            }
            let header = Self::read(text)?;
            if text.len() <= PART_BYTES_USUAL {
                if known.len() == HEADERS_MAX {
                    known.pop_front();
                }
                known.push_back((text.into(), header.clone()));
            }
            Ok(header)
        })
    }

    fn read(text: &str) -> Result<Self, Refused> {
        let malformed = |what: String| Refused::new(Denial::CredentialMalformed, what);
        let header = read_part("header", text).map_err(malformed)?;
        check_header(&header).map_err(malformed)?;
        let algorithm = read_algorithm(&header)?;
        let kid = read_kid(&header).map_err(malformed)?;
        Ok(Self { algorithm, kid })
    }
}

thread_local! {
    /// Headers that were well-formed, as they were written. What one says does not depend on anything else.
    static HEADERS: RefCell<VecDeque<(Box<str>, Header)>> = const { RefCell::new(VecDeque::new()) };
}

fn check_header(header: &Json) -> Result<(), String> {
    // RFC 7515 §4.1.11: what must be understood and is not refuses the token. We understand no extension.
    if header.get("crit").is_some() {
        return Err("The header has `crit`: an extension that must be understood.".into());
    }
    // RFC 7797
    if header.get("b64").is_some() {
        return Err("The header has `b64`: an unencoded payload.".into());
    }
    // RFC 8725 §3.11: a typ is a text; which one is not asked, since issuers write JWT, at+jwt or nothing.
    match header.get("typ") {
        None | Some(Json::Text(_)) => Ok(()),
        Some(other) => Err(format!("`typ` in the header is {}.", other.kind())),
    }
}

fn read_algorithm(header: &Json) -> Result<Algorithm, Refused> {
    match header.get("alg") {
        Some(Json::Text(name)) => Algorithm::from_str(name).map_err(|_| {
            Refused::new(Denial::AlgorithmMismatch, format!("`alg` is {}, which no key here can have.", shown(name)))
        }),
        Some(other) => Err(Refused::new(Denial::CredentialMalformed, format!("`alg` is {}.", other.kind()))),
        None => Err(Refused::new(Denial::CredentialMalformed, "The header has no `alg`.")),
    }
}

/// A key is looked up by it in a map; it is never a path or an address.
fn read_kid(header: &Json) -> Result<Option<Text>, String> {
    match header.get("kid") {
        None => Ok(None),
        Some(Json::Text(kid)) if is_kid(kid) => Ok(Some(kid.clone())),
        Some(Json::Text(kid)) => {
            Err(format!("`kid` is {}: 1 to 128 letters, digits and ._~- may stand in it.", shown(kid)))
        }
        Some(other) => Err(format!("`kid` is {}.", other.kind())),
    }
}

/// Whether a text may be a `kid`: 1 to 128 bytes of `[A-Za-z0-9._~-]`.
pub fn is_kid(text: &str) -> bool {
    (1..=KID_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b))
}

/// Claims whose type RFC 7519 §4.1 sets: one of the wrong type is refused, not taken for absent (CVE-2026-25537).
fn check_texts(claims: &Json) -> Result<(), String> {
    for name in ["iss", "sub", "jti"] {
        match claims.get(name) {
            None | Some(Json::Text(_)) => {}
            Some(other) => return Err(format!("`{name}` is {}, not a text.", other.kind())),
        }
    }
    if claims.get("jti").and_then(Json::text).is_some_and(|jti| jti.is_empty() || jti.len() > JTI_BYTES_MAX) {
        return Err("`jti` has not 1 to 128 bytes.".into());
    }
    match claims.get("aud") {
        Some(aud) if !aud.is_texts() => Err(format!("`aud` is {}, not a text or a list of texts.", aud.kind())),
        _ => Ok(()),
    }
}

/// RFC 8705 §3.1. How else a token may be bound to a key (RFC 7800 §3.1) we do not check: such a token is refused, and
/// not taken for one that is bound to nothing.
fn read_binding(claims: &Json) -> Result<Option<[u8; 32]>, String> {
    let Some(value) = claims.get("cnf") else { return Ok(None) };
    let Json::Object(members) = value else {
        return Err(format!("`cnf` is {}, not an object with `x5t#S256`.", value.kind()));
    };
    let [(name, thumbprint)] = members.as_slice() else {
        return Err(format!("`cnf` has {} members; it may have `x5t#S256` alone.", members.len()));
    };
    if name != "x5t#S256" {
        return Err(format!("`cnf` holds {}; it may hold `x5t#S256`.", shown(name)));
    }
    let bytes = thumbprint.text().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let digest = bytes.and_then(|bytes| bytes.try_into().ok());
    digest.map(Some).ok_or_else(|| "`x5t#S256` in `cnf` is not the base64url, without padding, of 32 bytes.".into())
}

fn read_date(claims: &Json, name: &str) -> Result<Option<UnixSeconds>, String> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.numeric_date() {
            Some(seconds) => Ok(Some(UnixSeconds(seconds))),
            None => Err(format!("`{name}` is {}, not a number of seconds since 1970.", value.kind())),
        },
    }
}

fn read_part(name: &str, text: &str) -> Result<Json, String> {
    // A part of usual length is decoded on the stack.
    let (mut usual, longer);
    let bytes = if text.len() <= PART_BYTES_USUAL {
        usual = [0; PART_BYTES_USUAL];
        let count = URL_SAFE_NO_PAD.decode_slice(text, &mut usual).map_err(|_| not_base64url(name))?;
        usual.get(..count).unwrap_or_default()
    } else {
        longer = decode_part(name, text)?;
        longer.as_slice()
    };
    Json::parse_object(bytes).map_err(|what| format!("The {name} of the token is no JSON that we take: {what}."))
}

/// Canonical base64url without padding.
fn decode_part(name: &str, text: &str) -> Result<Vec<u8>, String> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| not_base64url(name))
}

fn not_base64url(name: &str) -> String {
    format!("The {name} of the token is no canonical base64url without padding.")
}

fn shown_list(names: &[&str]) -> String {
    let mut all = names.iter().take(NAMES_SHOWN_MAX).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN_MAX {
        all.push_str(", …");
    }
    all
}

fn key_list(issuer: &Issuer) -> String {
    let kids: Vec<&str> = issuer.keys.iter().take(NAMES_SHOWN_MAX).filter_map(|(kid, _)| kid.as_deref()).collect();
    match (issuer.keys.len(), kids.is_empty()) {
        (0, _) => "no key".into(),
        (1, true) => "one key, without `kid`".into(),
        (count, _) => format!("{count} keys ({})", kids.join(", ")),
    }
}

fn claim_invalid(what: String) -> Refused {
    Refused::new(Denial::ClaimInvalid, what)
}

/// Of a part as it is written.
const PART_BYTES_USUAL: usize = 512;
/// As many as there are issuers with two keys each, as a rule.
const HEADERS_MAX: usize = 8;
const KID_BYTES_MAX: usize = 128;
/// A `jti` is a name, not a text: no token with a longer one is good.
pub const JTI_BYTES_MAX: usize = 128;
/// Enough to see a typing mistake, few enough for one line.
const NAMES_SHOWN_MAX: usize = 5;
