//! The usual mistakes, each tried for real: a sentence is only said when the token is good, or its signature verifies,
//! once that one mistake is undone.

mod jwt;
mod sas;

use super::{Credential, Keyring, Refused, VerifyRules, verify};
use crate::{denial::Denial, id::DeviceId, time::UnixSeconds};

/// Whose token it is asked about, and what decides.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Who presents it, where that is known.
    pub(super) device: Option<&'a DeviceId>,
    pub(super) keyring: &'a Keyring,
    pub(super) rules: &'a VerifyRules,
}

pub(super) fn near_misses(text: &str, refused: &Refused, asked: &Asked<'_>, now: UnixSeconds) -> Vec<String> {
    let mut found = Vec::new();
    of_text(text, asked, &mut found, now);
    of_times(refused, text, asked.rules, &mut found, now);
    sas::of_sas(text, refused, asked, &mut found);
    if let Ok(Credential::Jwt(token)) = Credential::parse(text.as_bytes()) {
        jwt::of_jwt(&token, refused, asked, &mut found);
    }
    found
}

/// What is around a token that is good, or not a token at all.
fn of_text(text: &str, asked: &Asked<'_>, found: &mut Vec<String>, now: UnixSeconds) {
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
        let verdict = Credential::parse(inner.as_bytes())
            .and_then(|token| verify(&token, asked.device, asked.keyring, asked.rules, now));
        found.push(match verdict {
            Ok(_) => format!("{what}; without that it is good."),
            Err(refused) => format!("{what}; without that it is refused as {}.", refused.denial),
        });
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
    if let Ok(Credential::Jwt(token)) = &token {
        for (name, at) in [("iat", token.issued_at()), ("nbf", token.not_before()), ("exp", Some(token.expires_at()))] {
            let Some(at) = at.filter(|at| in_milliseconds(at.0, now)) else { continue };
            let meant = UnixSeconds(at.0 / 1000);
            found.push(format!("`{name}` is in milliseconds: {} would be {meant} in seconds.", at.0));
        }
    }
    let is_far_off = !found.is_empty();
    match (refused.denial, expires_at, &token) {
        (Denial::LifetimeTooLong, Some(at), Ok(Credential::Sas(_))) if in_milliseconds(at.0, now) => {
            found.push(format!("`se` is in milliseconds: {} would be {} in seconds.", at.0, UnixSeconds(at.0 / 1000)));
        }
        (Denial::LifetimeTooLong, ..) if !is_far_off => {
            found.push(
                "If it was made for less, the clock of whoever made it is ahead of ours by what is too much.".into(),
            );
        }
        (Denial::Expired, Some(at), _) => {
            let off = now.since(at).as_secs();
            let skew = rules.clock_skew.as_secs();
            found.push(format!(
                "If the device just made it, its clock is at least {off} s behind ours ({skew} s are allowed)."
            ));
        }
        (Denial::NotYetValid | Denial::IssuedInFuture, _, Ok(Credential::Jwt(token))) if !is_far_off => {
            let ahead = token.not_before().max(token.issued_at()).map_or(0, |at| at.since(now).as_secs());
            found.push(format!("The clock of whoever made it is {ahead} s ahead of ours, or ours is behind."));
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
