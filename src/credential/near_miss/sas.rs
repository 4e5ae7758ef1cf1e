//! What is usually wrong with SAS tokens.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use zeroize::Zeroizing;

use super::{
    super::{Keyring, Refused, SecretKey, key::hmac_matches, mint::ESCAPED, mint::resource_of, sas, shown},
    Asked,
};
use crate::{denial::Denial, id::DeviceId};

pub(super) fn of_sas(text: &str, refused: &Refused, asked: &Asked<'_>, found: &mut Vec<String>) {
    if let Some(fields) = LooseSas::read(text) {
        of_fields(&fields, refused, asked, found);
    }
}

/// `sr` of somebody else, or wider than one device.
fn of_resource(token: &LooseSas, refused: &Refused, asked: &Asked<'_>, found: &mut Vec<String>) {
    let host = asked.rules.hosts.first().map_or("", String::as_str);
    let named = token.device();
    match (refused.denial, &named, asked.device) {
        (Denial::DeviceMismatch, Some(named), Some(device)) if device.is_within(named) => found.push(format!(
            "A device's own key signs for the device alone: for the module `sr` is {}, signed with the module's key.",
            resource_of(host, device)
        )),
        (Denial::DeviceMismatch, Some(named), Some(device)) if named.is_within(device) => found.push(format!(
            "`sr` names the module {}, and what is narrower than the device is not good for it.",
            named.module().unwrap_or_default()
        )),
        (Denial::DeviceMismatch, Some(named), Some(device)) => found.push(format!(
            "`sr` names another device: have it made for {}, or connect as {named}.",
            resource_of(host, device)
        )),
        (Denial::HubWideToken | Denial::KeyUnknown | Denial::ResourceOutOfPolicy, None, device) => {
            let device = device.map_or_else(|| "{id}".into(), DeviceId::to_string);
            found.push(format!("`sr` is wider than one device: have it made for {host}/devices/{device}."));
            of_wide(token, asked, found);
        }
        _ => {}
    }
}

/// Whose key signed what names no device: of whoever presents it, or of any other.
fn of_wide(token: &LooseSas, asked: &Asked<'_>, found: &mut Vec<String>) {
    let (messages, signatures) = (token.messages(), token.signatures());
    let ([(_, message), ..], [(_, signature), ..]) = (messages.as_slice(), signatures.as_slice()) else { return };
    if token.policy.is_none()
        && let Some(owner) = other_owner(token, message, signature, asked.keyring)
    {
        found.push(format!("The signature verifies under a key of {owner}."));
    }
}

/// A key that may have signed, and what would be wrong if it did.
struct Candidate {
    what: String,
    bytes: Zeroizing<Vec<u8>>,
}

fn of_fields(token: &LooseSas, refused: &Refused, asked: &Asked<'_>, found: &mut Vec<String>) {
    let keyring = asked.keyring;
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
    of_resource(token, refused, asked, found);
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
        let verifies = |(_, key): (&str, Option<&SecretKey>)| {
            key.is_some_and(|key| token.verifies(key.bytes(), message, signature))
        };
        keys.each().into_iter().any(verifies).then_some(owner)
    })
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

    /// Whom it names: a device, or a module.
    fn device(&self) -> Option<DeviceId> {
        let resource = decoded(&decoded(&self.sr));
        let mut parts = resource.split_once("/devices/")?.1.split('/');
        match [(); 3].map(|()| parts.next()) {
            [Some(device), Some("modules"), Some(module)] => DeviceId::try_from(&*format!("{device}/{module}")).ok(),
            [Some(device), ..] => DeviceId::try_from(device).ok(),
            _ => None,
        }
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
        let signed = texts.map(|(what, sr)| (what, format!("{sr}\n{}", self.se)));
        let breaks = [
            ("the line break between `sr` and `se` was left out of what is signed", ""),
            ("a backslash and an n were signed in the place of the line break", "\\n"),
            ("the line break was signed as carriage return and line feed", "\r\n"),
        ];
        let breaks = breaks.map(|(what, between)| (what, format!("{}{between}{}", self.sr, self.se)));
        let ended = [("a line break was signed behind `se`, too", format!("{}\n{}\n", self.sr, self.se))];
        let mut all: Vec<(&'static str, String)> = Vec::new();
        for (what, text) in signed.into_iter().chain(breaks).chain(ended) {
            if all.iter().all(|(_, old)| *old != text) {
                all.push((what, text));
            }
        }
        all
    }

    fn verifies(&self, key: &[u8], message: &str, signature: &[u8; 32]) -> bool {
        hmac_matches(key, &[message.as_bytes()], signature)
    }
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
