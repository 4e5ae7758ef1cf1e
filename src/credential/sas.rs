//! Shared access signatures: `SharedAccessSignature sr={resource}&sig={signature}&se={expiry}[&skn={policy}]`.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use base64::{DecodeSliceError, Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use super::{
    Identity, Keyring, Refused, Rights, Slots, Terms, TokenKind, Trace, VerifyRules, check_not_expired,
    key::{derived_hmac_matches, hmac_matches, hmac_matches_nothing},
    keyring::{Found, Group, Policy},
    shown, split_once, token_id_of,
};
use crate::{
    denial::Denial,
    id::{DeviceId, KeyName, TokenId},
    time::UnixSeconds,
};

/// A well-formed SAS token. What is signed is `sr` and `se` exactly as they stand in it.
pub struct SasToken<'t> {
    sr: &'t str,
    se: &'t str,
    policy: Option<Cow<'t, str>>,
    signature: [u8; 32],
    expires_at: UnixSeconds,
    resource: Resource,
    token_id: TokenId,
}

impl<'t> SasToken<'t> {
    /// Reads what follows `SharedAccessSignature `.
    pub(super) fn parse(fields: &'t str) -> Result<Self, Refused> {
        let malformed = |what: &str| Refused::new(Denial::CredentialMalformed, what);
        // All of them are looked at: that takes less time than to stop at the first.
        if fields.bytes().fold(false, |found, byte| found | (byte <= b' ') | (byte == 0x7f)) {
            return Err(malformed("The token holds white space or a control character."));
        }
        let [mut sr, mut sig, mut se, mut skn] = [None; 4];
        let mut rest = Some(fields);
        while let Some(fields) = rest {
            let (field, after) = split_once(fields, b'&').map_or((fields, None), |(field, after)| (field, Some(after)));
            rest = after;
            let (name, value) = split_once(field, b'=').ok_or_else(|| malformed("A field of the token has no `=`."))?;
            let slot = match name {
                "sr" => &mut sr,
                "sig" => &mut sig,
                "se" => &mut se,
                "skn" => &mut skn,
                _ => return Err(malformed(&format!("The token has an unknown field {}.", shown(name)))),
            };
            if slot.replace(value).is_some() {
                return Err(malformed(&format!("The token has the field `{name}` twice.")));
            }
        }
        let required = |field: Option<&'t str>, name: &str| {
            field.filter(|v| !v.is_empty()).ok_or_else(|| malformed(&format!("The token has no `{name}`.")))
        };
        let (sr, sig, se) = (required(sr, "sr")?, required(sig, "sig")?, required(se, "se")?);
        let signature = decode_signature(sig).map_err(|what| malformed(&what))?;
        // The C SDK of Azure sends an empty `skn` where there is none.
        let policy =
            skn.filter(|name| !name.is_empty()).map(decode_once).transpose().map_err(|what| malformed(&what))?;
        Ok(Self {
            sr,
            se,
            policy,
            signature,
            expires_at: parse_expiry(se).map_err(|what| malformed(&what))?,
            resource: decode_once(sr).and_then(Resource::of).map_err(|what| malformed(&what))?,
            token_id: token_id(sr, se, &signature),
        })
    }

    /// The name of what the token means: the same however it is escaped or ordered.
    pub fn token_id(&self) -> TokenId {
        self.token_id
    }

    /// `se`.
    pub fn expires_at(&self) -> UnixSeconds {
        self.expires_at
    }

    /// `sr`, decoded once.
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// `skn`, where there is one.
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// `sr` exactly as sent.
    pub(super) fn resource_as_sent(&self) -> &'t str {
        self.sr
    }

    fn signed_parts(&self) -> [&[u8]; 3] {
        [self.sr.as_bytes(), b"\n", self.se.as_bytes()]
    }
}

impl fmt::Debug for SasToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SasToken")
            .field("token_id", &self.token_id)
            .field("resource", &self.resource)
            .field("expires_at", &self.expires_at)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// What a token or a policy is for: `[scheme://]host[/segment…]`, by whole segments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resource {
    scheme: Option<&'static str>,
    /// `host[/segment…]`.
    text: String,
    host_bytes: usize,
}

impl Resource {
    /// Reads a decoded resource.
    ///
    /// # Errors
    /// A sentence: an unknown scheme; a host that is none; a port, user, query or fragment; an empty, `.` or `..`
    /// segment; a control character.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::of(Cow::Borrowed(text))
    }

    /// [`parse`](Self::parse), without a copy of what is decoded already.
    fn of(text: Cow<'_, str>) -> Result<Self, String> {
        let head = text.split_at(text.bytes().position(|byte| !is_host_byte(byte)).unwrap_or(text.len()));
        let (scheme, rest) = match (head.0, head.1.strip_prefix("://")) {
            (found, Some(rest)) => {
                let known = SCHEMES.iter().find(|scheme| **scheme == found);
                (Some(*known.ok_or_else(|| format!("The resource has the scheme {}.", shown(found)))?), rest)
            }
            (_, None) => (None, &*text),
        };
        let (host, path) = split_once(rest, b'/').map_or((rest, None), |(host, path)| (host, Some(path)));
        if host.is_empty() || !host.bytes().all(is_host_byte) {
            return Err(format!("The resource begins with {}, which is no host name.", shown(host)));
        }
        let mut rest_of_path = path;
        while let Some(path) = rest_of_path {
            let (segment, after) = split_once(path, b'/').map_or((path, None), |(first, after)| (first, Some(after)));
            rest_of_path = after;
            if matches!(segment, "" | "." | "..") {
                return Err("The resource has an empty, `.` or `..` segment (a slash at its end makes one).".into());
            }
            if segment.chars().any(|c| c.is_control() || matches!(c, '?' | '#' | '\\')) {
                return Err("The resource holds a control character, a query, a fragment or a backslash.".into());
            }
        }
        let host_bytes = host.len();
        let text = if scheme.is_some() { rest.to_owned() } else { text.into_owned() };
        Ok(Self { scheme, text, host_bytes })
    }

    /// The host it names.
    pub fn host(&self) -> &str {
        self.text.get(..self.host_bytes).unwrap_or_default()
    }

    /// What [`parse`](Self::parse) reads as this.
    pub(super) fn written(&self) -> String {
        self.scheme.map_or_else(|| self.text.clone(), |scheme| format!("{scheme}://{}", self.text))
    }

    /// Segments joined by `/`; empty for the host alone.
    fn path(&self) -> &str {
        self.text.get(self.host_bytes + 1..).unwrap_or_default()
    }

    /// `https`, `http` or `sb`, where it has one: Service Bus.
    pub fn scheme(&self) -> Option<&'static str> {
        self.scheme
    }

    /// Whom it is scoped to: `{id}` of `devices/{id}`, `{id}/{m}` of `devices/{id}/modules/{m}`. Such a device need not be.
    pub fn identity(&self) -> Option<Cow<'_, str>> {
        let below = self.path().strip_prefix("devices/")?;
        let Some((id, below)) = split_once(below, b'/') else { return Some(below.into()) };
        let module = below.strip_prefix("modules/").filter(|module| !module.contains('/'))?;
        Some(format!("{id}/{module}").into())
    }

    /// Whether it covers every device: the host alone, or its `devices`.
    pub fn is_hub_wide(&self) -> bool {
        matches!(self.path(), "" | "devices")
    }

    /// Whether `other` lies in it: the same host (case does not count), and by whole segments `/a/b` covers `/a/b/c`,
    /// not `/a/bc`. Only a resource with a scheme covers one with a scheme.
    pub fn covers(&self, other: &Resource) -> bool {
        self.host().eq_ignore_ascii_case(other.host())
            && (other.scheme.is_none() || self.scheme.is_some())
            && match other.path().strip_prefix(self.path()) {
                Some(rest) => self.path().is_empty() || rest.is_empty() || rest.starts_with('/'),
                None => false,
            }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(scheme) = self.scheme {
            write!(f, "{scheme}://")?;
        }
        f.write_str(self.host())?;
        if self.path().is_empty() { Ok(()) } else { write!(f, "/{}", self.path().escape_debug()) }
    }
}

/// Decides whether a SAS token is believed. See [`super::verify`] for `presented_by`.
pub(super) fn verify(
    token: &SasToken<'_>,
    presented_by: Option<&DeviceId>,
    keyring: &Keyring,
    rules: &VerifyRules,
    trace: &mut impl Trace,
    now: UnixSeconds,
) -> Result<Identity, Refused> {
    let (signer, owner) = match token.policy() {
        Some(name) => (signed_by_policy(token, name, keyring)?, None),
        None => signed_by_device(token, presented_by, keyring, rules).map(|(signer, owner)| (signer, Some(owner)))?,
    };
    trace.passed("signature", || format!("verifies under {}", signer.key));
    check_host(token, rules)?;
    trace.passed("resource", || format!("`sr` names {}, a host of this gateway", token.resource));
    let (device, held) = match owner {
        Some((device, held)) => (device, held),
        None => {
            let device = whose(token, presented_by, rules)?;
            let unknown = || unknown_device(device.as_str()).about(token.token_id, Some(&device));
            let held = keyring.find(&device).ok_or_else(unknown)?;
            (device, held)
        }
    };
    let about = |refused: Refused| refused.about(token.token_id, Some(&device));
    held.check(&device, TokenKind::Sas).map_err(about)?;
    trace.passed("device", || format!("{device} is known and enabled"));
    check_not_expired("se", token.expires_at, rules, now).map_err(about)?;
    let limit = held.lifetime_max(signer.token_lifetime_max, rules);
    if token.expires_at.since(now) > limit {
        let detail = format!(
            "`se` is {} ({} s from now); at most {} s are allowed.",
            token.expires_at,
            token.expires_at.since(now).as_secs(),
            limit.as_secs()
        );
        return Err(about(Refused::new(Denial::LifetimeTooLong, detail)));
    }
    trace.passed("times", || {
        format!("`se` is {}, {} s from now", token.expires_at, token.expires_at.since(now).as_secs())
    });
    let terms = signer.policy.is_some().then(|| Arc::new(Terms::Sas(token.resource.clone())));
    Ok(Identity {
        device,
        kind: TokenKind::Sas,
        key: signer.key,
        key_fingerprint: signer.fingerprint,
        token_id: token.token_id,
        expires_at: token.expires_at,
        // A SAS token has no issue time: an honest one was made no earlier than this.
        issued_at: Some(UnixSeconds(token.expires_at.0.saturating_sub(limit.as_secs()))),
        jti: None,
        issuer: None,
        policy: signer.policy,
        rights: signer.rights,
        narrowing: None,
        key_ends_at: None,
        certificate_binding: None,
        terms,
    })
}

/// Whose key verified the signature.
struct Signer {
    key: KeyName,
    fingerprint: u64,
    policy: Option<Arc<str>>,
    rights: Rights,
    token_lifetime_max: Option<Duration>,
}

fn signed_by_policy(token: &SasToken<'_>, name: &str, keyring: &Keyring) -> Result<Signer, Refused> {
    let Some(policy) = keyring.policy(name) else {
        // As costly as a wrong signature: time does not tell which policies there are.
        matching_slot(token, &Slots::default());
        return Err(Refused::new(
            Denial::KeyUnknown,
            format!("`skn` names {}, and there is no such [[policy]].", shown(name)),
        ));
    };
    let (slot, fingerprint) = matching_slot(token, &policy.keys)
        .ok_or_else(|| signature_invalid(&format!("neither key of the policy {name:?}")))?;
    if !policy.resource.covers(&token.resource) {
        let detail = format!("`sr` is {}; the policy {name:?} may sign within {}.", token.resource, policy.resource);
        return Err(Refused::new(Denial::ResourceOutOfPolicy, detail));
    }
    let Policy { name, rights, token_lifetime_max, .. } = policy;
    Ok(Signer {
        key: KeyName::of("policy", name, slot),
        fingerprint,
        policy: Some(name.clone()),
        rights: *rights,
        token_lifetime_max: *token_lifetime_max,
    })
}

/// The device of a token without `skn` is the one whose key signed it.
fn signed_by_device<'k>(
    token: &SasToken<'_>,
    presented_by: Option<&DeviceId>,
    keyring: &'k Keyring,
    rules: &VerifyRules,
) -> Result<(Signer, (DeviceId, Found<'k>)), Refused> {
    let Some(id) = token.resource.identity() else {
        let nobody = match rules.hub_wide_tokens {
            _ if !token.resource.is_hub_wide() => Denial::ResourceOutOfPolicy,
            true => Denial::KeyUnknown,
            false => Denial::HubWideToken,
        };
        let detail = format!(
            "`sr` is {}, which names no device, and there is no `skn`: no key could have signed it.",
            token.resource
        );
        return Err(Refused::new(nobody, detail));
    };
    let device = DeviceId::shared(&id, presented_by).ok();
    let found = device.and_then(|device| keyring.find(&device).map(|found| (device, found)));
    let Some((device, found)) = found else {
        matching_slot(token, &Slots::default());
        cost_as_of_a_group(token, keyring);
        let device = DeviceId::shared(&id, presented_by).ok();
        return Err(unknown_device(&id).about(token.token_id, device.as_ref()));
    };
    let about = |refused: Refused| refused.about(token.token_id, Some(&device));
    let signer = sas_signer(token, &device, &found, keyring).map_err(about)?;
    if token.resource.scheme.is_some() {
        let detail = format!("`sr` is {}; a device's own key signs no `sr` with a scheme.", token.resource);
        return Err(about(Refused::new(Denial::ResourceOutOfPolicy, detail)));
    }
    Ok((signer, (device, found)))
}

/// The device's own key or the one that its group derives.
fn sas_signer(token: &SasToken<'_>, id: &DeviceId, found: &Found<'_>, keyring: &Keyring) -> Result<Signer, Refused> {
    let own = found.device.map(|device| &device.keys).filter(|keys| !keys.is_empty());
    let (kind, owner, matched, limit) = match (own, found.group) {
        (Some(keys), _) => ("device", id.as_str(), matching_slot(token, keys), None),
        (None, Some(group)) => {
            ("group", &*group.prefix, matching_derived_slot(token, group, id), group.token_lifetime_max)
        }
        (None, None) => {
            matching_slot(token, &Slots::default());
            cost_as_of_a_group(token, keyring);
            return Err(Refused::new(Denial::SignatureInvalid, format!("The device {id} has no SAS key.")));
        }
    };
    let Some((slot, fingerprint)) = matched else {
        if kind == "device" {
            cost_as_of_a_group(token, keyring);
        }
        return Err(signature_invalid(&format!("neither key of {kind}:{owner}")));
    };
    Ok(Signer {
        key: KeyName::of(kind, owner, slot),
        fingerprint,
        policy: None,
        rights: Rights::ALL,
        token_lifetime_max: limit,
    })
}

/// Both slots are always tried; an empty one costs what a wrong key costs, and so do the two of nobody.
fn matching_slot(token: &SasToken<'_>, keys: &Slots) -> Option<(&'static str, u64)> {
    let tried = keys.each().map(|(slot, key)| match key {
        Some(key) if hmac_matches(key.bytes(), &token.signed_parts(), &token.signature) => {
            Some((slot, key.fingerprint()))
        }
        Some(_) => None,
        None => {
            hmac_matches_nothing(&token.signed_parts(), &token.signature);
            None
        }
    });
    tried.into_iter().flatten().next()
}

/// Both slots are always tried here, too.
fn matching_derived_slot(token: &SasToken<'_>, group: &Group, id: &DeviceId) -> Option<(&'static str, u64)> {
    let tried = group.keys.each().map(|(slot, key)| {
        let bytes = key.map_or(&[0; 32][..], |key| key.bytes());
        let matches = derived_hmac_matches(bytes, id, &token.signed_parts(), &token.signature);
        key.filter(|_| matches).map(|key| (slot, key.fingerprint()))
    });
    tried.into_iter().flatten().next()
}

/// Where there are groups, a refusal costs what it costs a device of a group, two HMACs a slot: time tells neither which
/// devices there are nor which prefixes. Whoever has the right token may know.
fn cost_as_of_a_group(token: &SasToken<'_>, keyring: &Keyring) {
    if !keyring.groups().is_empty() {
        matching_slot(token, &Slots::default());
    }
}

fn check_host(token: &SasToken<'_>, rules: &VerifyRules) -> Result<(), Refused> {
    if rules.hosts.iter().any(|host| host.eq_ignore_ascii_case(token.resource.host())) {
        return Ok(());
    }
    let detail =
        format!("`sr` names the host {}; this gateway is {}.", shown(token.resource.host()), rules.hosts.join(", "));
    Err(Refused::new(Denial::HostMismatch, detail))
}

/// The device or module that a policy's token is scoped to; of a hub-wide token, whoever presents it. By whole segments
/// `devices/{id}` covers the modules of that device.
fn whose(token: &SasToken<'_>, presented_by: Option<&DeviceId>, rules: &VerifyRules) -> Result<DeviceId, Refused> {
    match (token.resource.identity(), presented_by) {
        (Some(id), presenter) => {
            let named = DeviceId::shared(&id, presenter).map_err(|_| unknown_device(&id))?;
            let covered = presenter.filter(|presenter| presenter.is_within(&named));
            Ok(covered.cloned().unwrap_or(named))
        }
        (None, Some(presenter)) if token.resource.is_hub_wide() && rules.hub_wide_tokens => Ok(presenter.clone()),
        (None, _) if token.resource.is_hub_wide() => {
            let detail = format!("`sr` is {}, which covers every device; `hub_wide_tokens` is off.", token.resource);
            Err(Refused::new(Denial::HubWideToken, detail))
        }
        (None, _) => {
            let detail =
                format!("`sr` is {}, in which no device lies: devices are {{host}}/devices/{{id}}.", token.resource);
            Err(Refused::new(Denial::ResourceOutOfPolicy, detail))
        }
    }
}

fn signature_invalid(tried: &str) -> Refused {
    Refused::new(Denial::SignatureInvalid, format!("The signature verifies under {tried}."))
}

fn unknown_device(id: &str) -> Refused {
    Refused::new(
        Denial::DeviceUnknown,
        match id.split_once('/') {
            Some((device, module)) => format!("The device {} has no [[module]] {}.", shown(device), shown(module)),
            None => format!("There is no device {}, and no [[group]] whose prefix it has.", shown(id)),
        },
    )
}

/// Standard base64 with padding, canonical, of 32 bytes, percent-encoded at most once. A raw `+` is a plus.
fn decode_signature(sig: &str) -> Result<[u8; 32], String> {
    let text = decode_once(sig)?;
    let mut bytes = [0; SIGNATURE_BYTES_MAX];
    match STANDARD.decode_slice(text.as_bytes(), &mut bytes) {
        Ok(SIGNATURE_BYTES) => {}
        Ok(count) => return Err(format!("`sig` has {count} bytes; HMAC-SHA256 has {SIGNATURE_BYTES}.")),
        Err(DecodeSliceError::OutputSliceTooSmall) => {
            return Err(format!("`sig` has more than {SIGNATURE_BYTES} bytes, which are those of HMAC-SHA256."));
        }
        Err(_) if text.contains('%') => {
            return Err("`sig` is no base64 once it is decoded: it is percent-encoded twice.".into());
        }
        Err(_) => return Err("`sig` is no canonical base64 with padding.".into()),
    }
    let (signature, _) = bytes.split_first_chunk().expect("invariant: there are at least as many");
    Ok(*signature)
}

fn parse_expiry(se: &str) -> Result<UnixSeconds, String> {
    if se.len() > EXPIRY_DIGITS_MAX || !se.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("`se` is not 1 to 12 digits: it is the second, since 1970, in which the token expires.".into());
    }
    se.parse().map(UnixSeconds).map_err(|_| "`se` is no number.".into())
}

/// Percent-decodes strictly: every `%` is followed by two hexadecimal digits, and the result is UTF-8. What has nothing to
/// decode is not copied.
fn decode_once(text: &str) -> Result<Cow<'_, str>, String> {
    let Some((plain, _)) = split_once(text, b'%') else { return Ok(text.into()) };
    let mut decoded = Vec::with_capacity(text.len());
    decoded.extend_from_slice(plain.as_bytes());
    let mut rest = text.as_bytes().get(plain.len()..).unwrap_or_default();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => (hex_digit(*high).zip(hex_digit(*low)), after),
            (b'%', _) => (None, after),
            (plain, after) => (Some((0, *plain)), after),
        };
        let (high, low) = byte.ok_or("The token has a `%` without two hexadecimal digits.")?;
        decoded.push(high << 4 | low);
        rest = after;
    }
    let decoded = String::from_utf8(decoded).map_err(|_| "The token is not UTF-8 once it is decoded.")?;
    Ok(decoded.into())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn token_id(sr: &str, se: &str, signature: &[u8; 32]) -> TokenId {
    let mut hash = Sha256::new();
    for part in [sr.as_bytes(), b"\n", se.as_bytes(), b"\n", signature] {
        hash.update(part);
    }
    token_id_of(hash)
}

pub(super) const PREFIX: &str = "SharedAccessSignature ";
/// Of HMAC-SHA256.
const SIGNATURE_BYTES: usize = 32;
/// What is decoded at most; longer ones are refused anyway.
const SIGNATURE_BYTES_MAX: usize = 96;
const SCHEMES: [&str; 3] = ["https", "http", "sb"];
/// The year 33658: as many digits as any SDK writes, and milliseconds have 13.
const EXPIRY_DIGITS_MAX: usize = 12;
