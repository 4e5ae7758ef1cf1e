//! Shared access signatures: `SharedAccessSignature sr={resource}&sig={signature}&se={expiry}[&skn={policy}]`.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

use super::{
    Identity, Keyring, Refused, Rights, Slots, TokenKind, Trace, VerifyRules, check_not_expired,
    key::{hmac_matches, hmac_matches_nothing},
    keyring::{Group, Policy},
    shown, token_id_of,
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
        if fields.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(malformed("The token holds white space or a control character."));
        }
        let [mut sr, mut sig, mut se, mut skn] = [None; 4];
        for field in fields.split('&') {
            let (name, value) = field.split_once('=').ok_or_else(|| malformed("A field of the token has no `=`."))?;
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
            resource: Resource::parse(&decode_once(sr).map_err(|what| malformed(&what))?)
                .map_err(|what| malformed(&what))?,
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
    host: Box<str>,
    /// Segments joined by `/`; empty for the host alone.
    path: Box<str>,
}

impl Resource {
    /// Reads a decoded resource.
    ///
    /// # Errors
    /// A sentence: an unknown scheme; a host that is none; a port, user, query or fragment; an empty, `.` or `..`
    /// segment; a control character.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some((found, rest)) => {
                let known = SCHEMES.iter().find(|scheme| **scheme == found);
                (Some(*known.ok_or_else(|| format!("The resource has the scheme {}.", shown(found)))?), rest)
            }
            None => (None, text),
        };
        let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
        if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)) {
            return Err(format!("The resource begins with {}, which is no host name.", shown(host)));
        }
        for segment in path.into_iter().flat_map(|path| path.split('/')) {
            if matches!(segment, "" | "." | "..") {
                return Err("The resource has an empty, `.` or `..` segment (a slash at its end makes one).".into());
            }
            if segment.chars().any(|c| c.is_control() || matches!(c, '?' | '#' | '\\')) {
                return Err("The resource holds a control character, a query, a fragment or a backslash.".into());
            }
        }
        Ok(Self { scheme, host: host.into(), path: path.unwrap_or_default().into() })
    }

    /// The host it names.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `https`, `http` or `sb`, where it has one: Service Bus.
    pub fn scheme(&self) -> Option<&'static str> {
        self.scheme
    }

    /// Whom it is scoped to: `{id}` of `devices/{id}`, `{id}/{m}` of `devices/{id}/modules/{m}`. Such a device need not be.
    pub fn identity(&self) -> Option<Cow<'_, str>> {
        let mut segments = self.path.split('/');
        match [(); 5].map(|()| segments.next()) {
            [Some("devices"), Some(id), None, ..] => Some(id.into()),
            [Some("devices"), Some(id), Some("modules"), Some(module), None] => Some(format!("{id}/{module}").into()),
            _ => None,
        }
    }

    /// Whether it covers every device: the host alone, or its `devices`.
    pub fn is_hub_wide(&self) -> bool {
        matches!(&*self.path, "" | "devices")
    }

    /// Whether `other` lies in it: the same host (case does not count), and by whole segments `/a/b` covers `/a/b/c`,
    /// not `/a/bc`. Only a resource with a scheme covers one with a scheme.
    pub fn covers(&self, other: &Resource) -> bool {
        self.host.eq_ignore_ascii_case(&other.host)
            && (other.scheme.is_none() || self.scheme.is_some())
            && match other.path.strip_prefix(&*self.path) {
                Some(rest) => self.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
                None => false,
            }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(scheme) = self.scheme {
            write!(f, "{scheme}://")?;
        }
        f.write_str(&self.host)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path.escape_debug()) }
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
    let signer = match token.policy() {
        Some(name) => signed_by_policy(token, name, keyring)?,
        None => signed_by_device(token, keyring, rules)?,
    };
    trace.passed("signature", || format!("verifies under {}", signer.key));
    check_host(token, rules)?;
    trace.passed("resource", || format!("`sr` names {}, a host of this gateway", token.resource));
    let device = whose(token, &signer, presented_by, rules)?;
    let about = |refused: Refused| refused.about(token.token_id, Some(&device));
    let held = keyring.find(&device).ok_or_else(|| about(unknown_device(device.as_str())))?;
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
        key: KeyName::new(&format!("policy:{name}"), slot),
        fingerprint,
        policy: Some(name.clone()),
        rights: *rights,
        token_lifetime_max: *token_lifetime_max,
    })
}

fn signed_by_device(token: &SasToken<'_>, keyring: &Keyring, rules: &VerifyRules) -> Result<Signer, Refused> {
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
    let device = DeviceId::try_from(&*id).ok();
    let signer = device.as_ref().and_then(|id| sas_signer(token, id, keyring));
    let about = |refused: Refused| refused.about(token.token_id, device.as_ref());
    match signer {
        Some(Ok(signer)) if token.resource.scheme.is_none() => Ok(signer),
        Some(Ok(_)) => {
            let detail = format!("`sr` is {}; a device's own key signs no `sr` with a scheme.", token.resource);
            Err(about(Refused::new(Denial::ResourceOutOfPolicy, detail)))
        }
        Some(Err(refused)) => Err(about(refused)),
        None => {
            matching_slot(token, &Slots::default());
            Err(about(unknown_device(&id)))
        }
    }
}

/// The device's own key or the one that its group derives; `None`: it has neither, because it is unknown.
fn sas_signer(token: &SasToken<'_>, id: &DeviceId, keyring: &Keyring) -> Option<Result<Signer, Refused>> {
    let found = keyring.find(id)?;
    let own = found.device.map(|device| &device.keys).filter(|keys| !keys.is_empty());
    let (owner, matched, limit) = match (own, found.group) {
        (Some(keys), _) => (format!("device:{id}"), matching_slot(token, keys), None),
        (None, Some(group)) => {
            (format!("group:{}", group.prefix), matching_derived_slot(token, group, id), group.token_lifetime_max)
        }
        (None, None) => {
            matching_slot(token, &Slots::default());
            return Some(Err(Refused::new(Denial::SignatureInvalid, format!("The device {id} has no SAS key."))));
        }
    };
    let Some((slot, fingerprint)) = matched else {
        return Some(Err(signature_invalid(&format!("neither key of {owner}"))));
    };
    Some(Ok(Signer {
        key: KeyName::new(&owner, slot),
        fingerprint,
        policy: None,
        rights: Rights::ALL,
        token_lifetime_max: limit,
    }))
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

fn matching_derived_slot(token: &SasToken<'_>, group: &Group, id: &DeviceId) -> Option<(&'static str, u64)> {
    let tried = group.keys.each().map(|(slot, key)| {
        let key = key?;
        let derived = key.derive(id);
        hmac_matches(derived.bytes(), &token.signed_parts(), &token.signature).then_some((slot, key.fingerprint()))
    });
    tried.into_iter().flatten().next()
}

fn check_host(token: &SasToken<'_>, rules: &VerifyRules) -> Result<(), Refused> {
    if rules.hosts.iter().any(|host| host.eq_ignore_ascii_case(&token.resource.host)) {
        return Ok(());
    }
    let detail =
        format!("`sr` names the host {}; this gateway is {}.", shown(&token.resource.host), rules.hosts.join(", "));
    Err(Refused::new(Denial::HostMismatch, detail))
}

/// The device or module that the token is scoped to; of a hub-wide token, whoever presents it. By whole segments
/// `devices/{id}` covers the modules of that device, but a device's own key signs for the device alone.
fn whose(
    token: &SasToken<'_>,
    signer: &Signer,
    presented_by: Option<&DeviceId>,
    rules: &VerifyRules,
) -> Result<DeviceId, Refused> {
    match (token.resource.identity(), presented_by) {
        (Some(id), presenter) => {
            let named = DeviceId::try_from(&*id).map_err(|_| unknown_device(&id))?;
            let covered = presenter.filter(|presenter| signer.policy.is_some() && presenter.is_within(&named));
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
    let bytes = STANDARD.decode(text.as_bytes()).map_err(|_| {
        if text.contains('%') {
            "`sig` is no base64 once it is decoded: it is percent-encoded twice.".to_owned()
        } else {
            "`sig` is no canonical base64 with padding.".to_owned()
        }
    })?;
    bytes.try_into().map_err(|bytes: Vec<u8>| format!("`sig` has {} bytes; HMAC-SHA256 has 32.", bytes.len()))
}

fn parse_expiry(se: &str) -> Result<UnixSeconds, String> {
    if se.len() > EXPIRY_DIGITS_MAX || !se.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("`se` is not 1 to 12 digits: it is the second, since 1970, in which the token expires.".into());
    }
    se.parse().map(UnixSeconds).map_err(|_| "`se` is no number.".into())
}

/// Percent-decodes strictly: every `%` is followed by two hexadecimal digits, and the result is UTF-8.
fn decode_once(text: &str) -> Result<Cow<'_, str>, String> {
    let mut escapes = text.split('%').skip(1);
    if escapes.any(|rest| !rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))) {
        return Err("The token has a `%` without two hexadecimal digits.".into());
    }
    percent_decode_str(text).decode_utf8().map_err(|_| "The token is not UTF-8 once it is decoded.".into())
}

fn token_id(sr: &str, se: &str, signature: &[u8; 32]) -> TokenId {
    let mut hash = Sha256::new();
    for part in [sr.as_bytes(), b"\n", se.as_bytes(), b"\n", signature] {
        hash.update(part);
    }
    token_id_of(hash)
}

pub(super) const PREFIX: &str = "SharedAccessSignature ";
const SCHEMES: [&str; 3] = ["https", "http", "sb"];
/// The year 33658: as many digits as any SDK writes, and milliseconds have 13.
const EXPIRY_DIGITS_MAX: usize = 12;
