//! Tokens, revocation lists, key sets.

use tollgate::{
    credential::{Algorithm, Credential, ListEntry, ListReader, RevocationList, SignedLine, parse_jwk_set},
    time::UnixSeconds,
};

/// A password: a SAS token, a JWT, or nothing of the kind.
pub fn tokens(data: &[u8]) {
    let Ok(credential) = Credential::parse(data) else { return };
    // The name of a token is that of its meaning, and the same every time.
    assert_eq!(Credential::parse(data).map(|again| again.token_id()).ok(), Some(credential.token_id()));
    match &credential {
        Credential::Sas(token) => {
            assert!(token.expires_at().0 < 1_000_000_000_000, "12 digits");
            assert!(token.policy().is_none_or(|policy| !policy.is_empty()));
            let resource = token.resource();
            assert!(resource.covers(resource));
            assert!(!resource.is_hub_wide() || resource.identity().is_none());
        }
        Credential::Jwt(token) => {
            assert!(token.kid().is_none_or(|kid| (1..=128).contains(&kid.len())));
            drop((token.iss(), token.jti(), token.audience(), token.not_before(), token.issued_at()));
            assert!(token.claims().all(|(_, shown)| !shown.contains('\n')));
        }
    }
    // Nothing in front, nothing behind.
    for padded in [[b" ", data].concat(), [data, b"\n"].concat()] {
        assert!(Credential::parse(&padded).is_err());
    }
}

/// A revocation list. However its bytes arrive, the same is read, and a bad line takes no good one with it.
pub fn revocation_line(data: &[u8]) {
    let read = |pieces: &[&[u8]]| {
        let mut reader = ListReader::after_lines(0);
        pieces.iter().for_each(|piece| reader.feed(piece));
        let read = reader.finish();
        (read.list.ids(), read.bad_lines.len())
    };
    let whole = read(&[data]);
    let (head, tail) = data.split_at(data.len() / 2);
    assert_eq!(read(&[head, tail]), whole);
    assert_eq!(read(&data.chunks(1).collect::<Vec<_>>()), whole);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (list, bad) = RevocationList::parse(text);
    assert_eq!((list.ids(), bad.len()), whole);
    for line in text.lines() {
        if let Ok(Some(entry)) = ListEntry::parse(line) {
            assert!(entry.long_id().starts_with(&entry.id()));
            assert_eq!(ListEntry::parse(line).ok().flatten().map(|again| again.long_id()), Some(entry.long_id()));
            let _ = entry.has_ended(UnixSeconds(0));
        }
    }
}

/// The first line of a signed list. There is one way to write what it says.
pub fn signed_list(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(line) = SignedLine::parse(text) {
        let said = line.claimed().clone();
        assert_eq!(SignedLine::parse(text).map(|again| again.claimed().clone()), Ok(said));
        assert!(SignedLine::parse(&format!(" {text}")).is_err());
    }
}

/// A key set as an issuer publishes it.
pub fn jwks(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok((keys, _)) = parse_jwk_set(text, &Algorithm::ALL) {
        assert!(!keys.is_empty());
        for (kid, key) in &keys {
            assert!(keys.len() == 1 || kid.is_some());
            assert!(!key.algorithm().is_hmac(), "a shared secret that is published");
        }
    }
}
