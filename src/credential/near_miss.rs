//! The usual mistakes, each tried for real: a sentence is only said when the token is good, or its signature verifies,
//! once that one mistake is undone.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use zeroize::Zeroizing;

use super::{
    Credential, JwtToken, Keyring, Refused, VerifyRules, key::hmac_matches, mint::ESCAPED, sas, shown, verify,
};
use crate::{denial::Denial, id::DeviceId, time::UnixSeconds};

pub(super) fn near_misses(
    text: &str,
    refused: &Refused,
    keyring: &Keyring,
    rules: &VerifyRules,
    now: UnixSeconds,
) -> Vec<String> {
    let mut found = Vec::new();
    of_text(text, keyring, rules, &mut found, now);
    of_times(refused, text, rules, &mut found, now);
    if let Some(fields) = LooseSas::read(text) {
        of_sas(&fields, refused, keyring, &mut found);
    } else if let Ok(Credential::Jwt(token)) = Credential::parse(text.as_bytes()) {
        of_jwt(&token, refused, keyring, &mut found);
    }
    found
}

/// What is around a token that is good, or not a token at all.
fn of_text(text: &str, keyring: &Keyring, rules: &VerifyRules, found: &mut Vec<String>, now: UnixSeconds) {
    let trimmed = text.trim();
    if trimmed.contains("SharedAccessKey=") {
        found.push(
            "This is a connection string with the key in it, not a token: a token is signed with that key.".into(),
        );
    }
    let unquoted = trimmed.trim_matches(['"', '\'']);
    let bearer =
        unquoted.split_at_checked(7).filter(|(head, _)| head.eq_ignore_ascii_case("Bearer ")).map(|(_, rest)| rest);
    for (inner, what) in [
        (Some(trimmed).filter(|_| trimmed != text), "There is white space before or after the token"),
        (Some(unquoted).filter(|_| unquoted != trimmed), "The token stands in quotes"),
        (bearer, "`Bearer ` stands before the token, which belongs into an HTTP header"),
    ] {
        let Some(inner) = inner.filter(|inner| !inner.is_empty()) else { continue };
        found.push(
            match Credential::parse(inner.as_bytes()).and_then(|token| verify(&token, None, keyring, rules, now)) {
                Ok(_) => format!("{what}; without that it is good."),
                Err(refused) => format!("{what}; without that it is refused as {}.", refused.denial),
            },
        );
    }
    if unquoted.bytes().filter(|byte| *byte == b'.').count() == 4 {
        found.push("It has five parts: an encrypted token (JWE). Have it signed only (JWS).".into());
    }
    let jwt_like = unquoted.starts_with("eyJ") && unquoted.bytes().filter(|byte| *byte == b'.').count() == 2;
    if jwt_like && unquoted.contains(['=', '+', '/']) {
        found.push("Its parts are base64 with `=`, `+` or `/`; a JWT has base64url without padding.".into());
    }
}

fn of_times(refused: &Refused, text: &str, rules: &VerifyRules, found: &mut Vec<String>, now: UnixSeconds) {
    let token = Credential::parse(text.as_bytes());
    let expires_at = match &token {
        Ok(Credential::Sas(token)) => Some(token.expires_at()),
        Ok(Credential::Jwt(token)) => Some(token.expires_at()),
        Err(_) => None,
    };
    match (refused.denial, expires_at, &token) {
        (Denial::LifetimeTooLong, Some(at), _) if in_milliseconds(at.0, now) => {
            found.push(format!("The expiry is in milliseconds: {} is {}.", at.0, UnixSeconds(at.0 / 1000)));
        }
        (Denial::Expired, Some(at), _) => {
            let off = now.since(at).as_secs();
            let skew = rules.clock_skew.as_secs();
            found.push(format!(
                "If the device just made it, its clock is at least {off} s behind ours ({skew} s are allowed)."
            ));
        }
        (Denial::NotYetValid | Denial::IssuedInFuture, _, Ok(Credential::Jwt(token))) => {
            let ahead = token.not_before().max(token.issued_at()).map_or(0, |at| at.since(now).as_secs());
            found.push(format!("The issuer's clock is {ahead} s ahead of ours, or ours is behind."));
        }
        _ => {}
    }
}

/// Fields of something that begins like a SAS token, however wrong the rest is.
struct LooseSas {
    sr: String,
    sig: String,
    se: String,
    policy: Option<String>,
}

impl LooseSas {
    fn read(text: &str) -> Option<Self> {
        let fields = text.trim().strip_prefix(sas::PREFIX)?;
        let field = |name: &str| {
            let mut all = fields.split('&').filter_map(|field| field.split_once('='));
            all.find_map(|(found, value)| (found == name).then(|| value.to_owned()))
        };
        let policy = field("skn").filter(|name| !name.is_empty()).map(|name| decoded(&name));
        Some(Self { sr: field("sr")?, sig: field("sig")?, se: field("se")?, policy })
    }

    fn device(&self) -> Option<DeviceId> {
        let resource = decoded(&decoded(&self.sr));
        let after = resource.split_once("/devices/")?.1;
        DeviceId::try_from(after.split('/').next()?).ok()
    }

    /// Ways to read `sig`, the right one first.
    fn signatures(&self) -> Vec<(&'static str, [u8; 32])> {
        let read = |text: &str| STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let (once, twice) = (decoded(&self.sig), decoded(&decoded(&self.sig)));
        let candidates = [
            ("", read(&once)),
            ("`sig` is percent-encoded twice", read(&twice)),
            ("`sig` was not percent-encoded, and its `+` became a space", read(&once.replace(' ', "+"))),
            (
                "`sig` is base64url, not base64",
                URL_SAFE_NO_PAD.decode(once.trim_end_matches('=')).ok().and_then(|b| b.try_into().ok()),
            ),
        ];
        let mut all: Vec<(&'static str, [u8; 32])> = Vec::new();
        for (what, signature) in candidates {
            if let Some(signature) = signature.filter(|new| all.iter().all(|(_, old)| old != new)) {
                all.push((what, signature));
            }
        }
        all
    }

    /// Ways in which the signed text may have been made, the right one first.
    fn messages(&self) -> Vec<(&'static str, String)> {
        let plain = decoded(&self.sr);
        let encoded = utf8_percent_encode(&plain, ESCAPED).to_string();
        let lower = lower_escapes(&encoded);
        let texts = [
            ("", self.sr.clone()),
            ("`sr` was signed in its decoded form, and sent encoded", plain),
            ("`sr` was signed percent-encoded, and sent in another form", encoded.clone()),
            ("`sr` was signed percent-encoded (lower case), and sent in another form", lower.clone()),
            ("`sr` was signed percent-encoded twice", utf8_percent_encode(&encoded, ESCAPED).to_string()),
            (
                "`sr` was signed percent-encoded twice (lower case)",
                lower_escapes(&utf8_percent_encode(&lower, ESCAPED).to_string()),
            ),
            ("`sr` was signed in lower case", self.sr.to_lowercase()),
            ("`sr` was signed without the slash at its end", self.sr.trim_end_matches('/').to_owned()),
        ];
        let mut all: Vec<(&'static str, String)> = Vec::new();
        for (what, text) in texts {
            if all.iter().all(|(_, old)| *old != text) {
                all.push((what, text));
            }
        }
        all
    }

    fn verifies(&self, key: &[u8], message: &str, signature: &[u8; 32]) -> bool {
        hmac_matches(key, &[message.as_bytes(), b"\n", self.se.as_bytes()], signature)
    }
}

/// A key that may have signed, and what would be wrong if it did.
struct Candidate {
    what: String,
    bytes: Zeroizing<Vec<u8>>,
}

fn of_sas(token: &LooseSas, refused: &Refused, keyring: &Keyring, found: &mut Vec<String>) {
    if token.se.len() == 13 && token.se.bytes().all(|byte| byte.is_ascii_digit()) {
        found.push("`se` is in milliseconds: it has 13 digits, and seconds since 1970 have 10.".into());
    }
    let plain = decoded(&token.sr);
    if plain.ends_with('/') {
        found.push("`sr` ends with a slash: take it off.".into());
    }
    if plain.contains('%') && decoded(&plain) != plain {
        found.push("`sr` is percent-encoded twice: it still holds escapes once it is decoded.".into());
    }
    if refused.denial == Denial::HostMismatch {
        let host = plain.split('/').next().unwrap_or_default();
        found.push(format!(
            "The signature is right. If {} is a name of this gateway, add it to `aliases`.",
            shown(host)
        ));
    }
    // Of the denials before or at the signature; behind it there is nothing to find.
    if !matches!(
        refused.denial,
        Denial::CredentialMalformed | Denial::SignatureInvalid | Denial::KeyUnknown | Denial::DeviceUnknown
    ) {
        return;
    }
    let (messages, signatures) = (token.messages(), token.signatures());
    for key in expected_keys(token, keyring) {
        for (said, message) in &messages {
            for (read, signature) in &signatures {
                if token.verifies(&key.bytes, message, signature) {
                    let mistakes = [key.what.as_str(), said, read];
                    let mistakes: Vec<&str> = mistakes.into_iter().filter(|what| !what.is_empty()).collect();
                    if !mistakes.is_empty() {
                        found.push(format!("The signature verifies, but {}.", mistakes.join("; and ")));
                    }
                    return;
                }
            }
        }
    }
    if let ([(_, message), ..], [(_, signature), ..]) = (messages.as_slice(), signatures.as_slice())
        && let Some(owner) = other_owner(token, message, signature, keyring)
    {
        found.push(format!("The signature verifies under a key of {owner}, which is not whom the token names."));
    }
}

/// Keys of whom the token names: as they are, and in the other encoding.
fn expected_keys(token: &LooseSas, keyring: &Keyring) -> Vec<Candidate> {
    let mut keys = Vec::new();
    let mut add = |bytes: &[u8], owner: &str| {
        keys.push(Candidate { what: owner.to_owned(), bytes: Zeroizing::new(bytes.to_vec()) });
        let join = |what: &str| if owner.is_empty() { what.to_owned() } else { format!("{owner}; and {what}") };
        let printed = Zeroizing::new(STANDARD.encode(bytes).into_bytes());
        keys.push(Candidate { what: join("the key was taken as UTF-8 instead of base64"), bytes: printed });
        if let Ok(bytes) = STANDARD.decode(bytes) {
            let what = join("the key was base64-decoded, and this policy takes it as UTF-8");
            keys.push(Candidate { what, bytes: Zeroizing::new(bytes) });
        }
    };
    let policy = token.policy.as_deref().and_then(|name| keyring.policy(name));
    for (_, key) in policy.iter().flat_map(|policy| policy.keys.each()) {
        key.iter().for_each(|key| add(key.bytes(), ""));
    }
    let device = token.device();
    let held = device.as_ref().and_then(|id| keyring.find(id));
    let needs =
        if token.policy.is_some() { "it was signed with the device's own key, and `skn` names a policy" } else { "" };
    for (_, key) in held.and_then(|held| held.device).iter().flat_map(|device| device.keys.each()) {
        key.iter().for_each(|key| add(key.bytes(), needs));
    }
    if let (Some(group), Some(id)) = (held.and_then(|held| held.group), &device) {
        for (_, key) in group.keys.each() {
            let Some(key) = key else { continue };
            add(key.derive(id).bytes(), needs);
            add(
                key.bytes(),
                "it was signed with the key of the group, and not with the one derived from it for the device",
            );
        }
    }
    keys
}

/// Whose key it was, if it was anybody's.
fn other_owner(token: &LooseSas, message: &str, signature: &[u8; 32], keyring: &Keyring) -> Option<String> {
    let devices = keyring.devices().map(|(id, device)| (format!("device:{id}"), &device.keys));
    let policies =
        keyring.policies().map(|policy| (format!("policy:{} (the token lacks its `skn`)", policy.name), &policy.keys));
    devices.chain(policies).take(KEYS_TRIED_MAX).find_map(|(owner, keys)| {
        let verifies = |(_, key): (&str, Option<&super::SecretKey>)| {
            key.is_some_and(|key| token.verifies(key.bytes(), message, signature))
        };
        keys.each().into_iter().any(verifies).then_some(owner)
    })
}

fn of_jwt(token: &JwtToken<'_>, refused: &Refused, keyring: &Keyring, found: &mut Vec<String>) {
    let issuer = token.iss().and_then(|iss| keyring.issuer(iss));
    match (refused.denial, issuer) {
        (Denial::IssuerUnknown, _) => {
            let iss = token.iss().unwrap_or_default();
            if let Some(near) = keyring.issuers().find(|issuer| nearly(&issuer.iss, iss)) {
                found.push(format!(
                    "`iss` is nearly that of the issuer {:?}, which is {}: it must be the same to the last slash.",
                    near.name,
                    shown(&near.iss)
                ));
            }
        }
        (Denial::AudienceMismatch, Some(issuer)) => {
            let audience = token.audience();
            if let Some(near) = issuer.audience.iter().find(|ours| audience.iter().any(|aud| nearly(ours, aud))) {
                found.push(format!(
                    "`aud` is nearly {}: it must be the same, in upper and lower case and to the last slash.",
                    shown(near)
                ));
            }
        }
        (Denial::SignatureInvalid | Denial::KeyUnknown | Denial::AlgorithmMismatch, Some(issuer)) => {
            if let Some((kid, key)) = issuer.keys.iter().find(|(_, key)| token.is_signed_by(key)) {
                let kid = kid.as_deref().unwrap_or("without `kid`");
                found.push(format!(
                    "The signature verifies under the issuer's key {kid} ({}): the token names another.",
                    key.algorithm()
                ));
            } else if issuer.keys.iter().any(|(_, key)| key.other_encoding().iter().any(|key| token.is_signed_by(key)))
            {
                found.push("The signature verifies if the secret is read in the other encoding: see `key_encoding` at [[issuer.key]].".into());
            } else if let Some(other) =
                keyring.issuers().find(|other| other.keys.iter().any(|(_, key)| token.is_signed_by(key)))
            {
                found.push(format!(
                    "The signature verifies under a key of the issuer {:?}, and `iss` names another.",
                    other.name
                ));
            }
        }
        _ => {}
    }
}

/// Equal but for case and slashes at the end.
fn nearly(a: &str, b: &str) -> bool {
    a.trim_end_matches('/').eq_ignore_ascii_case(b.trim_end_matches('/'))
}

/// A time that is thousands of years ahead, and close to now once it is divided.
fn in_milliseconds(seconds: u64, now: UnixSeconds) -> bool {
    (now.0 / 2..now.0.saturating_mul(2)).contains(&(seconds / 1000))
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn lower_escapes(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        text.push('%');
        text.push_str(&digits.to_ascii_lowercase());
        text.push_str(rest);
    }
    text
}

/// A few seconds at most, on the operator's time.
const KEYS_TRIED_MAX: usize = 1_000_000;
