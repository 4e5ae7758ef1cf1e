//! The lines of the file: one JSON object each; blank ones and those that begin with `#` say nothing.

use std::{borrow::Cow, sync::Arc};

use serde::Deserialize;

use super::{super::shown, Before, CompactSet, FOR_EVER, JtiHash, Moment, RevocationList, Selector, Until, first_16};
use crate::{
    id::{DeviceId, KeyName, TokenId},
    time::UnixSeconds,
};

/// A line that says nothing we understand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLine {
    /// Which, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

pub(super) fn parse(text: &str) -> (RevocationList, Vec<BadLine>) {
    let (mut list, mut bad) = (RevocationList::default(), Vec::new());
    let (mut tokens, mut jtis) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match read_line(line) {
            Ok(entry) => entry.put(&mut list, &mut tokens, &mut jtis),
            Err(what) => bad.push(BadLine { line: index + 1, what }),
        }
    }
    list.tokens = CompactSet::new(tokens);
    list.jtis = CompactSet::new(jtis);
    (list, bad)
}

/// A line as it is written. An unknown name is an error: a misspelled selector must not make an entry wider.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    jti: Option<Cow<'a, str>>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    device: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    issued_before: Option<Cow<'a, str>>,
    #[serde(borrow)]
    expires_before: Option<Cow<'a, str>>,
    #[serde(borrow)]
    issuer: Option<Cow<'a, str>>,
    #[serde(borrow)]
    policy: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    by: Option<Cow<'a, str>>,
    #[serde(borrow)]
    at: Option<Cow<'a, str>>,
    #[serde(borrow)]
    until: Option<Cow<'a, str>>,
}

struct Entry<'a> {
    what: What,
    until: Until,
    reason: Option<Cow<'a, str>>,
}

enum What {
    Jti(JtiHash),
    Token([u8; 16]),
    Device(DeviceId),
    Key(KeyName),
    Before(Before),
}

impl Entry<'_> {
    fn put(self, list: &mut RevocationList, tokens: &mut Vec<([u8; 16], Until)>, jtis: &mut Vec<([u8; 16], Until)>) {
        let longest = |until: &mut Until| *until = (*until).max(self.until);
        if let Some(reason) = self.reason.filter(|_| list.reasons.len() < REASONS_MAX) {
            list.reasons.insert(self.what.hash(), shown(&reason).into());
        }
        match self.what {
            What::Jti(hash) => jtis.push((hash.0, self.until)),
            What::Token(id) => tokens.push((id, self.until)),
            What::Device(id) => longest(list.devices.entry(id).or_insert(self.until)),
            What::Key(name) => longest(list.keys.entry(name).or_insert(self.until)),
            What::Before(before) => longest(list.before.entry(before).or_insert(self.until)),
        }
    }
}

impl What {
    fn hash(&self) -> [u8; 16] {
        match self {
            What::Jti(hash) => hash.0,
            What::Token(id) => first_16(&["token", &TokenId(*id).to_string()]),
            What::Device(id) => first_16(&["device", id.as_str()]),
            What::Key(name) => first_16(&["key", name.as_str()]),
            What::Before(before) => before.hash(),
        }
    }
}

fn read_line(text: &str) -> Result<Entry<'_>, String> {
    if text.len() > LINE_BYTES_MAX {
        return Err("The line is longer than 4 KiB.".into());
    }
    let line: Line<'_> = serde_json::from_str(text).map_err(|error| format!("The line is no entry: {error}."))?;
    let until = line.until.as_deref().map(UnixSeconds::parse_rfc3339).transpose()?.unwrap_or(FOR_EVER);
    line.at.as_deref().map(UnixSeconds::parse_rfc3339).transpose()?;
    if line.by.as_deref().is_some_and(str::is_empty) {
        return Err("`by` is empty.".into());
    }
    let what = read_what(&line)?;
    Ok(Entry { what, until, reason: line.reason })
}

fn read_what(line: &Line<'_>) -> Result<What, String> {
    let Line { jti, token, device, key, issued_before, expires_before, issuer, policy, .. } = line;
    let issuer_name = issuer.as_deref();
    match (jti, token, key, issued_before, expires_before) {
        (Some(jti), None, None, None, None) if device.is_none() && policy.is_none() => {
            if jti.is_empty() || issuer_name == Some("") {
                return Err("`jti` and `issuer` may not be empty.".into());
            }
            Ok(What::Jti(JtiHash::of(issuer_name.unwrap_or_default(), jti)))
        }
        (None, Some(token), None, None, None) if device.is_none() && issuer.is_none() && policy.is_none() => read_token(token),
        (None, None, Some(key), None, None) if device.is_none() && issuer.is_none() && policy.is_none() => read_key(key),
        (None, None, None, Some(time), None) => Ok(What::Before(Before {
            which: Moment::Issued,
            time: UnixSeconds::parse_rfc3339(time)?,
            of: read_selector(device.as_deref(), issuer_name, policy.as_deref())?,
        })),
        (None, None, None, None, Some(time)) if device.is_none() && issuer.is_none() => Ok(What::Before(Before {
            which: Moment::Expires,
            time: UnixSeconds::parse_rfc3339(time)?,
            of: read_selector(None, None, policy.as_deref())?,
        })),
        (None, None, None, None, None) if issuer.is_none() && policy.is_none() => match device {
            Some(id) => Ok(What::Device(read_device(id)?)),
            None => Err("The entry selects nothing: it needs jti, token, device, key, issued_before or expires_before.".into()),
        },
        _ => Err("The entry mixes what it selects: one of jti (with issuer), token, device, key, issued_before (with device, issuer or policy), expires_before (with policy).".into()),
    }
}

/// `sha256:` and at least 32 hexadecimal digits of the hash, of which the first 32 count.
fn read_token(text: &str) -> Result<What, String> {
    let wrong = || "`token` is not \"sha256:\" and 32 to 64 hexadecimal digits.".to_owned();
    let digits = text.strip_prefix("sha256:").filter(|digits| (32..=64).contains(&digits.len())).ok_or_else(wrong)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let (head, _) = digits.split_at_checked(32).ok_or_else(wrong)?;
    u128::from_str_radix(head, 16).map(|id| What::Token(id.to_be_bytes())).map_err(|_| wrong())
}

fn read_key(name: &str) -> Result<What, String> {
    let known = ["device:", "policy:", "group:", "issuer:"].iter().any(|kind| name.starts_with(kind));
    match name.rsplit_once('/') {
        Some((owner, slot)) if known && !slot.is_empty() => Ok(What::Key(KeyName::new(owner, slot))),
        _ => Err("`key` is not device:ID/SLOT, policy:NAME/SLOT, group:PREFIX/SLOT or issuer:NAME/KID.".into()),
    }
}

fn read_selector(device: Option<&str>, issuer: Option<&str>, policy: Option<&str>) -> Result<Selector, String> {
    let name = |text: &str| if text.is_empty() { Err("A name is empty.".to_owned()) } else { Ok(Arc::from(text)) };
    match (device, issuer, policy) {
        (None, None, None) => Ok(Selector::All),
        (Some(id), None, None) => Ok(Selector::Device(read_device(id)?)),
        (None, Some(issuer), None) => Ok(Selector::Issuer(name(issuer)?)),
        (None, None, Some(policy)) => Ok(Selector::Policy(name(policy)?)),
        _ => Err("The entry names more than one of device, issuer and policy.".into()),
    }
}

fn read_device(id: &str) -> Result<DeviceId, String> {
    DeviceId::try_from(id).map_err(|error| format!("`device`: {error}."))
}

/// An entry has 13 short fields at most.
const LINE_BYTES_MAX: usize = 4096;
/// A reason is a courtesy in a log line; the file has them all.
const REASONS_MAX: usize = 10_000;
