//! The lines of the file: one JSON object each; blank ones and those that begin with `#` say nothing.

use std::{borrow::Cow, fmt, marker::PhantomData, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

use super::{
    super::shown,
    Entry, JtiHash, RevocationList, Until, What, entry_id,
    layer::LayerBuilder,
    times::{Before, Moment, Whose},
};
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

/// One line of the file, for whoever lists or edits it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ListEntry {
    hash: [u8; 16],
    until: Until,
}

impl ListEntry {
    /// Reads a line; `None`: it is blank or a comment.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        let line = line.trim();
        if line.is_empty() || is_comment(line.as_bytes()) {
            return Ok(None);
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(TOO_LONG.into());
        }
        read_line(line).map(|(entry, _)| Some(Self { hash: entry.what.hash(), until: entry.until }))
    }

    /// 32 hexadecimal digits, of which the first 8 are the entry's id; the others tell it from one that has the same.
    pub fn long_id(&self) -> String {
        self.hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Its id.
    pub fn id(&self) -> String {
        entry_id(&self.hash)
    }

    /// Whether its `until` has passed.
    pub fn has_ended(&self, now: UnixSeconds) -> bool {
        !self.until.is_after(now)
    }
}

/// What a [`ListReader`] made of the bytes that it was given.
#[derive(Debug)]
pub struct ReadList {
    /// Every good line.
    pub list: RevocationList,
    /// The lines that say nothing we understand, the first thousand.
    pub bad_lines: Vec<BadLine>,
    /// How many lines the file has up to here.
    pub lines: usize,
    /// How many of those that were read are entries; one that stands twice is counted twice.
    pub entries: usize,
    /// The last line has no line break: what is appended next belongs to it.
    pub ends_within_line: bool,
}

/// Reads a list piece by piece, so that one of a hundred megabytes is never in memory as a whole.
#[derive(Debug, Default)]
pub struct ListReader {
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    /// A line is longer than any entry: the rest of it is skipped.
    is_skipping: bool,
    lines: usize,
    entries: usize,
    layer: LayerBuilder,
    bad: Vec<BadLine>,
}

impl ListReader {
    /// For lines that were appended after so many others.
    pub fn after_lines(lines: usize) -> Self {
        Self { lines, ..Self::default() }
    }

    /// Takes the next bytes of the file.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.strip_prefix(b"\n").unwrap_or(rest);
            if self.begun.is_empty() && !self.is_skipping {
                self.line(line);
            } else {
                self.keep(line);
                self.end_line();
            }
        }
        self.keep(bytes);
    }

    /// All that came; the last line too where it has no line break.
    pub fn finish(mut self) -> ReadList {
        let ends_within_line = self.is_skipping || !self.begun.is_empty();
        if ends_within_line {
            self.end_line();
        }
        let Self { lines, entries, bad, layer, .. } = self;
        ReadList { list: RevocationList::of_layer(layer.build()), bad_lines: bad, lines, entries, ends_within_line }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.is_skipping {
            return;
        }
        self.begun.extend_from_slice(bytes);
        if self.begun.len() > LINE_BYTES_MAX {
            self.is_skipping = !is_comment(&self.begun);
            // Of a comment, that it is one is all that counts.
            self.begun.truncate(if self.is_skipping { 0 } else { LINE_BYTES_MAX });
        }
    }

    fn end_line(&mut self) {
        if std::mem::take(&mut self.is_skipping) {
            self.lines += 1;
            self.bad(TOO_LONG.into());
            return;
        }
        let line = std::mem::take(&mut self.begun);
        self.line(&line);
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        // An editor's byte order mark is no part of the first line.
        let line = if self.lines == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if line.trim_ascii().is_empty() || is_comment(line) {
            return;
        }
        if line.len() > LINE_BYTES_MAX {
            return self.bad(TOO_LONG.into());
        }
        let read = str::from_utf8(line.trim_ascii()).map_err(|_| "The line is not UTF-8.".to_owned());
        let read = read.and_then(read_line);
        match read {
            Ok((entry, reason)) => {
                self.entries += 1;
                if let Some(reason) = reason.filter(|_| self.layer.wants_reasons()) {
                    self.layer.put_reason(entry.what.hash(), shown(&reason).into());
                }
                self.layer.put(entry);
            }
            Err(what) => self.bad(what),
        }
    }

    fn bad(&mut self, what: String) {
        let line = self.lines;
        // One broken export must not fill the memory.
        if self.bad.len() < BAD_LINES_MAX {
            self.bad.push(BadLine { line, what });
        }
    }
}

/// A line as it is written. An unknown name is an error: a misspelled selector must not make an entry wider.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Line<'a> {
    #[serde(borrow)]
    jti: Text<'a>,
    #[serde(borrow)]
    token: Text<'a>,
    #[serde(borrow)]
    device: Text<'a>,
    #[serde(borrow)]
    key: Text<'a>,
    #[serde(borrow)]
    issued_before: Text<'a>,
    #[serde(borrow)]
    expires_before: Text<'a>,
    #[serde(borrow)]
    issuer: Text<'a>,
    #[serde(borrow)]
    policy: Text<'a>,
    #[serde(borrow)]
    reason: Text<'a>,
    #[serde(borrow)]
    by: Text<'a>,
    #[serde(borrow)]
    at: Text<'a>,
    #[serde(borrow)]
    until: Text<'a>,
}

/// A text that is borrowed from the line where nothing in it is escaped; `null` is none.
#[derive(Default)]
struct Text<'a>(Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_option(TextVisitor(PhantomData))
    }
}

struct TextVisitor<'a>(PhantomData<&'a str>);

impl<'de: 'a, 'a> Visitor<'de> for TextVisitor<'a> {
    type Value = Text<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_none<E: de::Error>(self) -> Result<Text<'a>, E> {
        Ok(Text(None))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Text<'a>, E> {
        Ok(Text(None))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text<'a>, D::Error> {
        deserializer.deserialize_str(self)
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'a>, E> {
        Ok(Text(Some(Cow::Borrowed(text))))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'a>, E> {
        Ok(Text(Some(Cow::Owned(text.to_owned()))))
    }
}

fn is_comment(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"#")
}

fn read_line(text: &str) -> Result<(Entry, Option<Cow<'_, str>>), String> {
    let line: Line<'_> = serde_json::from_str(text).map_err(|error| {
        format!("The line is no entry: {}.", error.to_string().replace(" at line 1 column ", " at column "))
    })?;
    let time = |text: &Text<'_>| text.0.as_deref().map(UnixSeconds::parse_rfc3339).transpose();
    let until = time(&line.until)?.map_or(Until::FOR_EVER, Until::at);
    time(&line.at)?;
    if line.by.0.as_deref().is_some_and(str::is_empty) {
        return Err("`by` is empty.".into());
    }
    let what = read_what(&line)?;
    Ok((Entry { what, until }, line.reason.0))
}

fn read_what(line: &Line<'_>) -> Result<What, String> {
    let [jti, token, device, key] = [&line.jti, &line.token, &line.device, &line.key].map(|text| text.0.as_deref());
    let [issued_before, expires_before] = [&line.issued_before, &line.expires_before].map(|text| text.0.as_deref());
    let [issuer, policy] = [&line.issuer, &line.policy].map(|text| text.0.as_deref());
    match (jti, token, key, issued_before, expires_before) {
        (Some(jti), None, None, None, None) if device.is_none() && policy.is_none() => {
            if jti.is_empty() || issuer == Some("") {
                return Err("`jti` and `issuer` may not be empty.".into());
            }
            Ok(What::Jti(JtiHash::of(issuer.unwrap_or_default(), jti)))
        }
        (None, Some(token), None, None, None) if device.is_none() && issuer.is_none() && policy.is_none() => read_token(token),
        (None, None, Some(key), None, None) if device.is_none() && issuer.is_none() && policy.is_none() => read_key(key),
        (None, None, None, Some(time), None) => Ok(What::Before(Before {
            which: Moment::Issued,
            time: UnixSeconds::parse_rfc3339(time)?,
            of: read_selector(device, issuer, policy)?,
        })),
        (None, None, None, None, Some(time)) if device.is_none() && issuer.is_none() => Ok(What::Before(Before {
            which: Moment::Expires,
            time: UnixSeconds::parse_rfc3339(time)?,
            of: read_selector(None, None, policy)?,
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
    u128::from_str_radix(head, 16).map(|id| What::Token(TokenId(id.to_be_bytes()))).map_err(|_| wrong())
}

fn read_key(name: &str) -> Result<What, String> {
    let known = ["device:", "policy:", "group:", "issuer:", "certificate:"].iter().any(|kind| name.starts_with(kind));
    match name.rsplit_once('/') {
        Some((owner, slot)) if known && !slot.is_empty() => Ok(What::Key(KeyName::new(owner, slot))),
        _ => Err("`key` is not device:ID/SLOT, policy:NAME/SLOT, group:PREFIX/SLOT, issuer:NAME/KID or \
                  certificate:ID/SLOT."
            .into()),
    }
}

fn read_selector(device: Option<&str>, issuer: Option<&str>, policy: Option<&str>) -> Result<Whose, String> {
    let name = |text: &str| if text.is_empty() { Err("A name is empty.".to_owned()) } else { Ok(Arc::from(text)) };
    match (device, issuer, policy) {
        (None, None, None) => Ok(Whose::All),
        (Some(id), None, None) => Ok(Whose::Device(read_device(id)?)),
        (None, Some(issuer), None) => Ok(Whose::Issuer(name(issuer)?)),
        (None, None, Some(policy)) => Ok(Whose::Policy(name(policy)?)),
        _ => Err("The entry names more than one of device, issuer and policy.".into()),
    }
}

fn read_device(id: &str) -> Result<DeviceId, String> {
    DeviceId::try_from(id).map_err(|error| format!("`device`: {error}."))
}

const TOO_LONG: &str = "The line is longer than 4 KiB.";
/// An entry has 13 short fields at most.
const LINE_BYTES_MAX: usize = 4096;
/// So many are named.
const BAD_LINES_MAX: usize = 1000;
