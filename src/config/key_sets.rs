//! `jwks_url` of an `[[issuer]]`: where it publishes its keys, and the last good set of them.

use std::{fs, io, time::Duration};

use super::{
    document::{Found, Table},
    identities::Reader,
};
use crate::{
    credential::{Algorithm, VerifyingKey, parse_jwk_set},
    feed::{KeySetSource, KeySetUrl, Network},
};

type Key = (Option<Box<str>>, VerifyingKey);

/// The keys of the set that was kept last; none until it was fetched once. What is wrong with a kept set is a warning: no
/// edit of the file would mend it, and the next fetch does.
pub(super) fn read_published(reader: &mut Reader<'_, '_>, table: &Table<'_>, algorithms: &[Algorithm]) -> Vec<Key> {
    let refresh = table.duration("jwks_refresh", REFRESH_MIN..=REFRESH_MAX).map_or(REFRESH, |found| found.value);
    let private = read_networks(reader, table);
    let ca = table.text("jwks_ca").map(|found| found.value.into());
    for other in ["jwks_file", "key"].into_iter().filter(|key| table.has(key)) {
        let what = format!("`jwks_url` and `{other}` stand side by side.");
        reader.notes.mistake(table.line_of(other), what, "Keep one of the two.");
    }
    if algorithms.iter().any(|algorithm| algorithm.is_hmac()) {
        let what = "`jwks_url` with a shared secret in `algorithms`: a set that is published can hold none.";
        reader.notes.mistake(table.line_of("algorithms"), what, "Write the algorithms of its public keys.");
    }
    let url = table.parsed("jwks_url", KeySetUrl::parse);
    let (Some(url), Some(issuer)) = (url, table.text("name")) else { return Vec::new() };
    let file = KeySetSource::file_in(&reader.gate.key_sets, issuer.value, &url.value);
    reader.files.push(file.clone());
    let algorithms = algorithms.to_vec();
    let source = KeySetSource { issuer: issuer.value.into(), url: url.value, refresh, ca, private, algorithms, file };
    let keys = read_kept(reader, &source, url.line);
    reader.key_sets.push(source);
    keys
}

/// What stands without the address that it belongs to.
pub(super) fn refuse_without_url(reader: &Reader<'_, '_>, table: &Table<'_>) {
    for key in ["jwks_refresh", "jwks_ca", "jwks_private_addresses"].into_iter().filter(|key| table.has(key)) {
        let what = format!("`{key}` stands without `jwks_url`, and has no meaning so.");
        reader.notes.mistake(table.line_of(key), what, "Write `jwks_url`, or take it out.");
    }
}

fn read_networks(reader: &Reader<'_, '_>, table: &Table<'_>) -> Vec<Network> {
    let mut networks = Vec::new();
    for Found { value, line } in table.texts("jwks_private_addresses").map(|found| found.value).unwrap_or_default() {
        match value.parse() {
            Ok(network) => networks.push(network),
            Err(error) => {
                let what = format!("`jwks_private_addresses` holds {value:?}: {error}.");
                reader.notes.mistake(line, what, "Write the addresses that its host may have.");
            }
        }
    }
    networks
}

fn read_kept(reader: &Reader<'_, '_>, source: &KeySetSource, line: usize) -> Vec<Key> {
    let issuer = &source.issuer;
    let unusable = |what: String| {
        reader.notes.warn(line, what, "Its tokens are refused with \"server unavailable\" until the set is fetched.");
        Vec::new()
    };
    match fs::read_to_string(&source.file) {
        Ok(text) => match parse_jwk_set(&text, &source.algorithms) {
            Ok((keys, _skipped)) => keys,
            Err(error) => unusable(format!("the key set of {issuer:?} that was kept cannot be used: {error}.")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            unusable(format!("the key set of {issuer:?} was never fetched."))
        }
        Err(error) => unusable(format!("the key set of {issuer:?} that was kept cannot be read: {error}.")),
    }
}

/// How old a set may grow where nobody asks for a key that it does not hold.
const REFRESH: Duration = Duration::from_hours(1);
/// The distance of two fetches at least.
const REFRESH_MIN: Duration = Duration::from_secs(30);
/// A key that an issuer took back is believed for so long.
const REFRESH_MAX: Duration = Duration::from_hours(7 * 24);
