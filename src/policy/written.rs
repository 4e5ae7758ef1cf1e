//! A grant as it is written down beside a will that may have to be sent after a restart: all that the gate asks about,
//! and nothing that would prove anything to anybody else. Of the scope only what may be published to: a will subscribes to
//! nothing. Numbers are little-endian.

use std::sync::Arc;

use super::{Grant, Profile, Scope, TokenKind};
use crate::{
    credential::Terms,
    id::{DeviceId, KeyName, TokenId},
    time::UnixSeconds,
    topic::TopicFilter,
};

impl Grant {
    /// Appends it. `false`: it hangs on a client certificate, which is not written down, and nothing was appended.
    pub fn write(&self, out: &mut Vec<u8>) -> bool {
        if self.certificate.is_some() {
            return false;
        }
        out.push(place_of(&Profile::ALL, self.profile));
        out.push(place_of(&TokenKind::WORDS.map(|(_, kind)| kind), self.kind));
        for seconds in [self.expires_at, self.closes_at, self.issued_at.unwrap_or(NONE)] {
            out.extend_from_slice(&seconds.0.to_le_bytes());
        }
        out.extend_from_slice(&self.token_id.0);
        out.extend_from_slice(&self.key_fingerprint.to_le_bytes());
        write_text(out, Some(self.key.as_str()));
        [&self.jti, &self.issuer, &self.policy].into_iter().for_each(|text| write_text(out, text.as_deref()));
        write_text(out, self.terms.as_deref().map(Terms::written).as_deref());
        out.push(u8::from(self.scope.retain) << 2 | self.scope.qos_max & 3);
        self.scope.publish.iter().for_each(|filter| write_text(out, Some(filter.as_str())));
        true
    }

    /// Reads what [`write`](Self::write) wrote; `None`: it is nothing of the kind. What was granted then is no word on
    /// what holds: the gate is asked for its standing.
    pub fn read(device: &DeviceId, bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let rest = &mut rest;
        let [profile, kind] = take(rest)?;
        let profile = *Profile::ALL.get(usize::from(profile))?;
        let kind = TokenKind::WORDS.get(usize::from(kind))?.1;
        let (expires_at, closes_at, issued_at) = (seconds(rest)?, seconds(rest)?, seconds(rest)?);
        let token_id = TokenId(take(rest)?);
        let key_fingerprint = u64::from_le_bytes(take(rest)?);
        let key = text(rest)??;
        let (owner, slot) = key.rsplit_once('/')?;
        let key = KeyName::new(owner, slot);
        let mut shared = || text(rest).map(|text| text.map(Arc::from));
        let (jti, issuer, policy) = (shared()?, shared()?, shared()?);
        let terms = match text(rest)? {
            Some(written) => Some(Arc::new(Terms::read(written)?)),
            None => None,
        };
        let [flags] = take(rest)?;
        let mut publish = Vec::new();
        while !rest.is_empty() {
            publish.push(TopicFilter::try_from(text(rest)??).ok()?);
        }
        Some(Self {
            device: device.clone(),
            scope: Scope::new(publish, Vec::new(), flags & 4 != 0, flags & 3),
            profile,
            expires_at,
            closes_at,
            token_id,
            jti,
            kind,
            key,
            key_fingerprint,
            issuer,
            policy,
            issued_at: Some(issued_at).filter(|at| *at != NONE),
            certificate: None,
            terms,
        })
    }
}

fn place_of<T: PartialEq>(all: &[T], one: T) -> u8 {
    let place = all.iter().position(|held| *held == one);
    place.and_then(|place| u8::try_from(place).ok()).expect("invariant: all of them, and they are few")
}

/// With its length and one before it; 0: there is none.
fn write_text(out: &mut Vec<u8>, text: Option<&str>) {
    let length = text.map_or(0, |text| u32::try_from(text.len()).map_or(u32::MAX, |length| length.saturating_add(1)));
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn seconds(rest: &mut &[u8]) -> Option<UnixSeconds> {
    take(rest).map(|bytes| UnixSeconds(u64::from_le_bytes(bytes)))
}

/// `Some(None)`: there is none.
fn text<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a str>> {
    let Some(length) = u32::from_le_bytes(take(rest)?).checked_sub(1) else { return Some(None) };
    let (text, after) = rest.split_at_checked(length as usize)?;
    *rest = after;
    std::str::from_utf8(text).ok().map(Some)
}

/// No time at all.
const NONE: UnixSeconds = UnixSeconds(u64::MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(kind: TokenKind, text: Option<&str>) -> Grant {
        let filters = ["devices/d/messages/events/#", "é/+"];
        let publish = filters.map(|filter| TopicFilter::try_from(filter).expect("a filter")).into();
        Grant {
            device: DeviceId::try_from("d/m").expect("an id"),
            scope: Scope::new(publish, vec![], true, 2),
            profile: Profile::Google,
            expires_at: UnixSeconds(1_800_000_000),
            closes_at: UnixSeconds(1_800_000_600),
            token_id: TokenId([7; 16]),
            jti: text.map(Arc::from),
            kind,
            key: KeyName::of("issuer", "a/b", "k"),
            key_fingerprint: u64::MAX,
            issuer: text.map(Arc::from),
            policy: None,
            issued_at: text.map(|_| UnixSeconds(0)),
            certificate: None,
            terms: text.map(|_| Arc::new(Terms::read(r#"{"Sas":"hub/devices/d"}"#).expect("terms"))),
        }
    }

    #[test]
    fn a_grant_is_read_as_it_was_written_and_what_is_cut_short_is_none() {
        for grant in [grant(TokenKind::Jwt, Some("")), grant(TokenKind::Sas, None)] {
            let mut bytes = vec![];
            assert!(grant.write(&mut bytes));
            assert_eq!(Grant::read(&grant.device, &bytes).as_ref(), Some(&grant));
            let whole_filters = |cut: usize| {
                Grant::read(&grant.device, &bytes[..cut]).is_some_and(|read| read.scope.publish().len() < 2)
            };
            let read = (0..bytes.len()).filter(|cut| Grant::read(&grant.device, &bytes[..*cut]).is_some()).count();
            assert_eq!(read, (0..bytes.len()).filter(|cut| whole_filters(*cut)).count(), "whole filters alone");
            assert_eq!(read, 2);
        }
        assert_eq!(Grant::read(&grant(TokenKind::Sas, None).device, &[9, 9]), None);
    }
}
