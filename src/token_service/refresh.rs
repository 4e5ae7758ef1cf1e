//! Refresh tokens: bound to a device, used once, each replaced by the next; all that follow one another are a *line*,
//! which has an end that no use moves.
//!
//! A refresh token names its line and its place in it, holds 256 secret bits, and ends in a tag (HMAC-SHA256 under a key of
//! this gateway) by which a token of the past is told from a made-up one. Of the secret only the hash is kept: who reads
//! the file can make no token that is taken.
//!
//! What a presented token is, [`Line::judge`] decides (RFC 9700 §4.14.2, RFC 6819 §5.2.2.3):
//!
//! - the *current* one is exchanged for its successor;
//! - the one *before* it is taken once more where its successor certainly did not arrive: the connection broke before the
//!   answer was written, or the gateway ended in between; or where the device says by the same `Idempotency-Key` that it
//!   is the same attempt. Only as long as no successor was used: the one that got lost is void from then on;
//! - any other one was used before: somebody else has it, and the whole line is revoked.
//!
//! So whatever is stolen and whenever, the line is either in one pair of hands or dead.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::hex;
use crate::{credential::Rights, policy::TokenKind, time::UnixSeconds};

/// Names a line; safe to print.
pub(super) type LineId = String;

/// As a device holds it. Its `Debug` shows the line alone.
pub(super) struct RefreshToken {
    line: [u8; LINE_BYTES],
    sequence: u32,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    tag: [u8; TAG_BYTES],
}

impl RefreshToken {
    /// A new one.
    pub(super) fn make(
        line: [u8; LINE_BYTES],
        sequence: u32,
        secret: Zeroizing<[u8; SECRET_BYTES]>,
        tag_key: &[u8],
    ) -> Self {
        let tag = tag_of(tag_key, &line, sequence, &*secret);
        Self { line, sequence, secret, tag }
    }

    /// One that a device presents; `None` where it is none of ours.
    pub(super) fn read(text: &str, tag_key: &[u8]) -> Option<Self> {
        let body = text.strip_prefix(PREFIX).filter(|body| body.len() <= TEXT_BYTES_MAX)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).ok()?);
        let (line, rest) = bytes.split_first_chunk::<LINE_BYTES>()?;
        let (sequence, rest) = rest.split_first_chunk::<4>()?;
        let (secret, rest) = rest.split_first_chunk::<SECRET_BYTES>()?;
        let tag = <[u8; TAG_BYTES]>::try_from(rest).ok()?;
        let token = Self { line: *line, sequence: u32::from_be_bytes(*sequence), secret: Zeroizing::new(*secret), tag };
        let mac = mac_of(tag_key, &token.line, token.sequence, &*token.secret);
        mac.verify_truncated_left(&token.tag).ok().map(|()| token)
    }

    /// As the device is given it.
    pub(super) fn text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(LINE_BYTES + 4 + SECRET_BYTES + TAG_BYTES));
        bytes.extend_from_slice(&self.line);
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&*self.secret);
        bytes.extend_from_slice(&self.tag);
        let mut text = Zeroizing::new(String::from(PREFIX));
        URL_SAFE_NO_PAD.encode_string(&*bytes, &mut text);
        text
    }

    pub(super) fn line(&self) -> LineId {
        hex(&self.line)
    }

    pub(super) fn line_bytes(&self) -> [u8; LINE_BYTES] {
        self.line
    }

    pub(super) fn sequence(&self) -> u32 {
        self.sequence
    }

    /// What is kept of it.
    pub(super) fn hash(&self) -> String {
        hex(&Sha256::digest(*self.secret))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller(name) => write!(f, "caller:{name}"),
            Self::Certificate(thumbprint) => write!(f, "certificate:sha256:{thumbprint}"),
        }
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RefreshToken({} {})", self.line(), self.sequence)
    }
}

/// Tokens that follow one another, as they are kept. Every change is written as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    pub(super) line: LineId,
    pub(super) device: String,
    pub(super) origin: Origin,
    pub(super) terms: LineTerms,
    pub(super) began_at: u64,
    pub(super) ends_at: u64,
    pub(super) used_at: u64,
    /// Place of the current token.
    pub(super) sequence: u32,
    /// Hash of the current token.
    pub(super) current: String,
    /// The token that was exchanged for the current one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) before: Option<Before>,
    /// Access tokens of the line that have not expired: what is revoked with it.
    pub(super) outstanding: Vec<Outstanding>,
    /// A token was used twice; its access tokens are being revoked.
    #[serde(default)]
    pub(super) reused: bool,
}

/// Who began a line: it lasts no longer than what made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin {
    /// A `[[token_service.caller]]` by its name.
    Caller(String),
    /// A client certificate by its SHA-256.
    Certificate(String),
}

/// What every token of a line may be at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LineTerms {
    pub(super) kind: Kind,
    pub(super) publish: bool,
    pub(super) subscribe: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) audience: Option<String>,
}

impl LineTerms {
    pub(super) fn rights(&self) -> Rights {
        Rights { publish: self.publish, subscribe: self.subscribe }
    }
}

/// `sas` or `jwt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Sas,
    Jwt,
}

impl Kind {
    /// As it stands in JSON and metrics.
    pub(super) fn as_str(self) -> &'static str {
        TokenKind::from(self).as_str()
    }

    /// The one that is to be made where none is named: `sas`, but for a caller that may have others alone.
    pub(super) fn of(kind: Option<TokenKind>) -> Self {
        if kind == Some(TokenKind::Jwt) { Self::Jwt } else { Self::Sas }
    }
}

impl From<Kind> for TokenKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Sas => Self::Sas,
            Kind::Jwt => Self::Jwt,
        }
    }
}

/// The token before the current one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Before {
    pub(super) hash: String,
    /// Hash of the `Idempotency-Key` that it was presented with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) attempt: Option<String>,
    #[serde(serialize_with = "as_kept")]
    pub(super) answer: Answer,
}

/// What became of the answer that holds the current token. After a restart whatever was not written has got lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    /// It is on its way.
    #[serde(skip_deserializing)]
    Pending,
    /// The connection took it.
    Written,
    /// It did not leave this process.
    Lost,
}

/// An access token by which the list can name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outstanding {
    pub(super) name: TokenName,
    pub(super) expires_at: u64,
}

/// As an entry of the revocation list names a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenName {
    /// `jti` of a JWT of the token service.
    Jti(String),
    /// `sha256:` and the fingerprint of a token.
    Token(String),
}

/// What a presented token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// To be exchanged.
    Current,
    /// The one before it, whose successor did not arrive: to be exchanged again.
    Again,
    /// It was used before.
    Reused,
    /// The line has come to its end.
    Ended,
    /// Of a time that this gateway does not remember: its file was put back from a backup.
    Unknown,
}

impl Line {
    /// What a token of this line is, which [`RefreshToken::read`] has found to be ours. `attempt` is the hash of an
    /// `Idempotency-Key`.
    pub(super) fn judge(&self, token: &RefreshToken, attempt: Option<&str>, now: UnixSeconds) -> Verdict {
        if self.reused {
            return Verdict::Reused;
        }
        if now.0 >= self.ends_at {
            return Verdict::Ended;
        }
        let hash = token.hash();
        if token.sequence == self.sequence && hash == self.current {
            return Verdict::Current;
        }
        match &self.before {
            Some(before) if before.hash == hash => {
                let same_attempt = attempt.is_some() && before.attempt.as_deref() == attempt;
                if before.answer == Answer::Lost || same_attempt { Verdict::Again } else { Verdict::Reused }
            }
            _ if token.sequence <= self.sequence => Verdict::Reused,
            _ => Verdict::Unknown,
        }
    }

    /// The line after an exchange.
    pub(super) fn next(
        &self,
        used: &RefreshToken,
        successor: &RefreshToken,
        attempt: Option<String>,
        made: Outstanding,
        now: UnixSeconds,
    ) -> Self {
        let mut next = self.clone();
        next.before = Some(Before { hash: used.hash(), attempt, answer: Answer::Pending });
        next.sequence = successor.sequence;
        next.current = successor.hash();
        next.used_at = now.0;
        next.forget_expired(now);
        next.outstanding.push(made);
        next
    }

    /// Tokens that the gateway refuses as expired need no entry in a list. The margin is for its clock skew.
    pub(super) fn forget_expired(&mut self, now: UnixSeconds) {
        self.outstanding.retain(|token| token.expires_at.saturating_add(SKEW_SECONDS_MAX) > now.0);
    }

    /// When an access token of the line is out of the way, where there are as many as may be.
    pub(super) fn room_at(&self, now: UnixSeconds) -> Option<UnixSeconds> {
        let mut held = self.clone();
        held.forget_expired(now);
        if held.outstanding.len() < OUTSTANDING_MAX {
            return None;
        }
        let first = held.outstanding.iter().map(|token| token.expires_at).min().unwrap_or(now.0);
        Some(UnixSeconds(first.saturating_add(SKEW_SECONDS_MAX)))
    }
}

/// What is kept of an `Idempotency-Key`.
pub(super) fn attempt_hash(key: &str) -> String {
    hex(&Sha256::digest(key))
}

/// What was on its way when the process ended is lost.
fn as_kept<S: Serializer>(answer: &Answer, serializer: S) -> Result<S::Ok, S::Error> {
    let kept = if *answer == Answer::Written { Answer::Written } else { Answer::Lost };
    kept.serialize(serializer)
}

fn tag_of(key: &[u8], line: &[u8], sequence: u32, secret: &[u8]) -> [u8; TAG_BYTES] {
    let tag: [u8; 32] = mac_of(key, line, sequence, secret).finalize().into_bytes().into();
    let (head, _) = tag.split_first_chunk().expect("invariant: 32 bytes hold 16");
    *head
}

fn mac_of(key: &[u8], line: &[u8], sequence: u32, secret: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("invariant: HMAC takes a key of any length (RFC 2104 §2)");
    [b"tollgate refresh token\n".as_slice(), line, &sequence.to_be_bytes(), secret].iter().for_each(|p| mac.update(p));
    mac
}

pub(super) const LINE_BYTES: usize = 16;
pub(super) const SECRET_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// What a scanner for leaked secrets can look for.
const PREFIX: &str = "tgr_";
/// 68 bytes in base64url are 91 characters.
const TEXT_BYTES_MAX: usize = 91;
/// A device that renews in time holds two; one that starts over and over again a few more.
const OUTSTANDING_MAX: usize = 256;
/// `clock_skew` is an hour at most.
const SKEW_SECONDS_MAX: u64 = 3600;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"a key of this gateway";

    fn token(sequence: u32) -> RefreshToken {
        let byte = u8::try_from(sequence).expect("small");
        RefreshToken::make([7; LINE_BYTES], sequence, Zeroizing::new([byte; SECRET_BYTES]), KEY)
    }

    fn line() -> Line {
        let terms = LineTerms { kind: Kind::Jwt, publish: true, subscribe: true, policy: None, audience: None };
        Line {
            line: token(1).line(),
            device: "pump-17".into(),
            origin: Origin::Caller("line7".into()),
            terms,
            began_at: 100,
            ends_at: 1000,
            used_at: 100,
            sequence: 1,
            current: token(1).hash(),
            before: None,
            outstanding: vec![],
            reused: false,
        }
    }

    fn made(expires_at: u64) -> Outstanding {
        Outstanding { name: TokenName::Jti("j".into()), expires_at }
    }

    fn with_answer(mut line: Line, answer: Answer) -> Line {
        line.before.as_mut().expect("exchanged before").answer = answer;
        line
    }

    const NOW: UnixSeconds = UnixSeconds(200);

    #[test]
    fn a_token_is_read_as_it_was_made_and_nothing_else_is_ours() {
        let text = token(3).text();
        let read = RefreshToken::read(&text, KEY).expect("ours");
        assert_eq!((read.line(), read.sequence(), read.hash()), (token(3).line(), 3, token(3).hash()));
        assert!(RefreshToken::read(&text, b"another gateway's").is_none());
        let changed = |at: usize| {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            String::from_utf8(bytes).expect("text")
        };
        for at in 4..text.len() - 1 {
            assert!(RefreshToken::read(&changed(at), KEY).is_none(), "changed at {at}");
        }
        for bad in ["", "tgr_", &text.replace("tgr_", ""), &format!("{}A", *text), &format!("{} ", *text)] {
            assert!(RefreshToken::read(bad, KEY).is_none(), "{bad}");
        }
        assert!(!format!("{:?}", token(3)).contains(text.get(30..60).expect("long")), "no secret in Debug");
    }

    #[test]
    fn each_token_is_taken_once_and_an_old_one_shows_that_two_hold_the_line() {
        let first = line();
        assert_eq!(first.judge(&token(1), None, NOW), Verdict::Current);
        let second = with_answer(first.next(&token(1), &token(2), None, made(300), NOW), Answer::Written);
        assert_eq!(second.judge(&token(2), None, NOW), Verdict::Current);
        assert_eq!(second.judge(&token(1), None, NOW), Verdict::Reused);
        let third = with_answer(second.next(&token(2), &token(3), None, made(300), NOW), Answer::Written);
        assert_eq!(third.judge(&token(1), None, NOW), Verdict::Reused, "however old");
        assert_eq!(third.judge(&token(4), None, NOW), Verdict::Unknown, "of a file that was put back");
    }

    #[test]
    fn who_did_not_get_the_answer_may_ask_once_more_until_the_successor_was_used() {
        let pending = line().next(&token(1), &token(2), None, made(300), NOW);
        assert_eq!(pending.judge(&token(1), None, NOW), Verdict::Reused, "two at the same time are two");
        let lost = with_answer(pending, Answer::Lost);
        assert_eq!(lost.judge(&token(1), None, NOW), Verdict::Again);
        assert_eq!(lost.judge(&token(2), None, NOW), Verdict::Current, "it may have arrived all the same");
        let again = with_answer(lost.next(&token(1), &token(3), None, made(300), NOW), Answer::Written);
        assert_eq!(again.judge(&token(2), None, NOW), Verdict::Reused, "the lost one is void");
        let used = with_answer(again.next(&token(3), &token(4), None, made(300), NOW), Answer::Lost);
        assert_eq!(used.judge(&token(1), None, NOW), Verdict::Reused, "the successor was used");
    }

    #[test]
    fn the_same_attempt_is_answered_again_and_another_is_not() {
        let (mine, other) = (attempt_hash("0123456789abcdef"), attempt_hash("fedcba9876543210"));
        let next = line().next(&token(1), &token(2), Some(mine.clone()), made(300), NOW);
        let next = with_answer(next, Answer::Written);
        assert_eq!(next.judge(&token(1), Some(&mine), NOW), Verdict::Again);
        assert_eq!(next.judge(&token(1), Some(&other), NOW), Verdict::Reused);
        assert_eq!(next.judge(&token(1), None, NOW), Verdict::Reused);
        let without = with_answer(line().next(&token(1), &token(2), None, made(300), NOW), Answer::Written);
        assert_eq!(without.judge(&token(1), Some(&mine), NOW), Verdict::Reused);
    }

    #[test]
    fn the_end_of_a_line_does_not_move() {
        let next = line().next(&token(1), &token(2), None, made(300), NOW);
        assert_eq!(next.ends_at, 1000);
        assert_eq!(next.judge(&token(2), None, UnixSeconds(999)), Verdict::Current);
        assert_eq!(next.judge(&token(2), None, UnixSeconds(1000)), Verdict::Ended);
    }

    #[test]
    fn a_line_holds_so_many_access_tokens_and_forgets_those_that_expired() {
        let mut held = line();
        held.outstanding = (0..256).map(|n| made(300 + n)).collect();
        assert_eq!(held.room_at(NOW), Some(UnixSeconds(300 + 3600)));
        assert_eq!(held.room_at(UnixSeconds(300 + 3600)), None);
        held.forget_expired(UnixSeconds(301 + 3600));
        assert_eq!(held.outstanding.len(), 254);
    }

    #[test]
    fn a_line_is_kept_without_any_secret() {
        let text = serde_json::to_string(&with_answer(
            line().next(&token(1), &token(2), Some(attempt_hash("0123456789abcdef")), made(300), NOW),
            Answer::Written,
        ))
        .expect("JSON");
        for secret in [hex(&[1; 32]), hex(&[2; 32]), "0123456789abcdef\"".into(), token(2).text().to_string()] {
            assert!(!text.contains(&secret), "{text}");
        }
    }
}
