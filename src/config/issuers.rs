//! `[[issuer]]` of `identities.toml`: who signs JWTs, and the public keys or secrets that verify them.

use std::{fs, path::Path, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    document::{Found, Table},
    identities::{ENCODINGS, ISSUER_KEY, KEY_REMEDY, Reader, plain_name},
    key_sets::{read_published, refuse_without_url},
    rotation::KeyOwner,
};
use crate::credential::{
    Algorithm, Issuer, KeyEncoding, KeyError, Published, VerifyingKey, check_printed, is_kid, parse_jwk_set,
};

type Key = (Option<Box<str>>, VerifyingKey);

pub(super) fn read_issuer(reader: &mut Reader<'_, '_>, table: &Table<'_>) {
    for (key, remedy) in [
        ("name", "Write what you call it."),
        ("iss", "Write what its tokens have as `iss`."),
        ("audience", "Write what its tokens have as `aud` when they are for this gateway."),
        ("algorithms", "Write the algorithms of its keys, as `algorithms = [\"ES256\"]`."),
    ] {
        table.require(key, remedy);
    }
    let name = table.parsed("name", plain_name);
    let iss = table.parsed("iss", not_empty);
    let audience = read_names(reader, table, "audience");
    let algorithms = read_algorithms(reader, table);
    let keys = read_keys(reader, table, name.as_ref().map_or("", |found| &found.value), &algorithms);
    let require = table.has("require").then(|| read_names(reader, table, "require"));
    read_schedule(reader, table, name.as_ref().map(|found| &*found.value), &keys);
    let issuer = Issuer {
        name: name.as_ref().map_or("".into(), |found| found.value.clone()),
        iss: iss.map_or("".into(), |found| found.value.into()),
        audience,
        keys,
        published: if table.has("jwks_url") { Published::Yes } else { Published::No },
        device_claim: table.parsed("device_claim", not_empty).map_or("sub".into(), |found| found.value.into()),
        scope_claim: table.parsed("scope_claim", not_empty).map(|found| found.value.into()),
        require,
        token_lifetime_max: reader.lifetime_max(table),
    };
    let Some(name) = name.filter(|_| !issuer.iss.is_empty()) else { return };
    let taken = reader.ring.add_issuer(issuer);
    reader.note_taken(
        name.line,
        taken,
        "Two issuers may share neither name nor `iss`: rename one, or join their keys.",
    );
}

/// Of the keys that are shared secrets: the others are rotated by whoever holds their private half.
fn read_schedule(reader: &mut Reader<'_, '_>, table: &Table<'_>, name: Option<&str>, keys: &[Key]) {
    let shared = keys.iter().filter(|(_, key)| key.algorithm().is_hmac());
    let owners: Vec<KeyOwner> = name
        .map(|name| shared.map(|(kid, _)| KeyOwner::Issuer { name: name.into(), kid: kid.clone() }).collect())
        .unwrap_or_default();
    if owners.is_empty() && table.has("rotate_every") && !keys.is_empty() {
        let what =
            "`rotate_every` stands at an issuer whose keys are public: it holds the private half, and rotates it.";
        let remedy = "Take it out, and let the issuer publish its next key.";
        reader.notes.mistake(table.line_of("rotate_every"), what, remedy);
    }
    reader.read_schedule(table, owners);
}

fn read_names(reader: &Reader<'_, '_>, table: &Table<'_>, key: &'static str) -> Vec<Box<str>> {
    let Some(found) = table.texts(key) else { return Vec::new() };
    if found.value.is_empty() && key == "audience" || found.value.iter().any(|text| text.value.is_empty()) {
        reader.notes.mistake(
            found.line,
            format!("`{key}` is empty or holds an empty text."),
            "Write at least one name.",
        );
    }
    found.value.iter().map(|text| text.value.into()).collect()
}

fn read_algorithms(reader: &Reader<'_, '_>, table: &Table<'_>) -> Vec<Algorithm> {
    let Some(found) = table.texts("algorithms") else { return Vec::new() };
    let mut algorithms = Vec::new();
    for text in &found.value {
        match Algorithm::from_str(text.value) {
            Ok(algorithm) => algorithms.push(algorithm),
            Err(_) => {
                let all = Algorithm::ALL.map(Algorithm::as_str).join(", ");
                reader.notes.mistake(
                    text.line,
                    format!("`algorithms` may not hold {:?}.", text.value),
                    format!("It may hold {all}."),
                );
            }
        }
    }
    if found.value.is_empty() {
        reader.notes.mistake(found.line, "`algorithms` is empty.", "Write the algorithms of its keys.");
    }
    if algorithms.iter().any(|algorithm| algorithm.is_hmac()) && algorithms.iter().any(|algorithm| !algorithm.is_hmac())
    {
        reader.notes.warn(
            found.line,
            "one issuer has both shared secrets and public keys.",
            "Make it two issuers: whoever can verify with a shared secret can also sign.",
        );
    }
    algorithms
}

fn read_keys(reader: &mut Reader<'_, '_>, table: &Table<'_>, name: &str, algorithms: &[Algorithm]) -> Vec<Key> {
    if table.has("jwks_url") {
        return read_published(reader, table, algorithms);
    }
    refuse_without_url(reader, table);
    let mut keys = Vec::new();
    if let Some(path) = table.text("jwks_file") {
        keys.extend(read_jwks(reader, path, algorithms).unwrap_or_default());
    }
    for entry in table.tables("key", &ISSUER_KEY).unwrap_or_default() {
        let Some((kid, key)) = read_key(reader, &entry, name, algorithms) else { continue };
        if kid.is_some() && keys.iter().any(|(other, _)| *other == kid) {
            reader.notes.mistake(entry.line(), "this `kid` stands twice at one issuer.", "Rename one of the two.");
        }
        keys.push((kid, key));
    }
    if !table.has("jwks_file") && !table.has("key") {
        reader.notes.mistake(
            table.line(),
            "[[issuer]] has no key.",
            "Write `jwks_url = \"https://…\"`, `jwks_file = \"…\"` or [[issuer.key]].",
        );
    }
    if keys.len() > 1 && keys.iter().any(|(kid, _)| kid.is_none()) {
        let what = "one of several keys of the issuer has no `kid`, so no token could name it.";
        reader.notes.mistake(table.line(), what, "Give each key a `kid`.");
    }
    keys
}

fn read_jwks(reader: &mut Reader<'_, '_>, path: Found<&str>, algorithms: &[Algorithm]) -> Option<Vec<Key>> {
    let text = read_public_file(reader, path)?;
    match parse_jwk_set(&text, algorithms) {
        Ok((keys, skipped)) => {
            for skipped in skipped {
                let what = format!("{}: key {} is not used: {}.", path.value, skipped.key, skipped.why);
                reader.notes.warn(
                    path.line,
                    what,
                    "Add its algorithm to `algorithms`, if tokens shall be signed with it.",
                );
            }
            Some(keys)
        }
        Err(error) => {
            reader.notes.mistake(
                path.line,
                format!("{}: {error}.", path.value),
                "Write the key set as the issuer publishes it.",
            );
            None
        }
    }
}

fn read_key(reader: &mut Reader<'_, '_>, table: &Table<'_>, name: &str, algorithms: &[Algorithm]) -> Option<Key> {
    let kid = table.parsed("kid", |text| {
        if is_kid(text) { Ok(text.into()) } else { Err("1 to 128 letters, digits and ._~- may stand in it".into()) }
    });
    if let (true, false) = (table.has("secondary_secret_file"), table.has("secret_file")) {
        let line = table.line_of("secondary_secret_file");
        reader.notes.mistake(line, "`secondary_secret_file` stands without `secret_file`.", "Write both, or neither.");
    }
    let named = table.parsed("algorithm", |text| match Algorithm::from_str(text) {
        Ok(algorithm) if algorithms.contains(&algorithm) => Ok(algorithm),
        _ => Err(format!("{text:?} is not in the issuer's `algorithms`")),
    });
    let choice = named.map_or_else(|| algorithms.to_vec(), |found| vec![found.value]);
    let key = match (table.text("file"), table.text("secret_file")) {
        (Some(path), None) => {
            let pem = read_public_file(reader, path)?;
            (path, only_one(&choice, |algorithm| VerifyingKey::from_pem(algorithm, &pem)))
        }
        (None, Some(path)) => {
            let encoding = table.one_of("key_encoding", &ENCODINGS).map_or(KeyEncoding::Base64, |found| found.value);
            let secret = reader.read_secret_file(path)?;
            let key = only_one(&choice, |algorithm| read_shared_secret(algorithm, &secret, encoding));
            if let Some(owner) = key.as_ref().ok().and_then(|key| reader.owner_of(key.fingerprint())) {
                let what = format!("issuer:{name} has the same secret as {owner}: whoever has it is either.");
                reader.notes.warn(path.line, what, KEY_REMEDY);
            }
            let key = key.map(|key| with_secondary(reader, table, name, key, encoding));
            (path, key)
        }
        _ => {
            let remedy = "Write `file` (a public key in PEM) or `secret_file` (a shared secret).";
            reader.notes.mistake(table.line(), "[[issuer.key]] needs `file` or `secret_file`, and not both.", remedy);
            return None;
        }
    };
    match key {
        (_, Ok(key)) => Some((kid.map(|found| found.value), key)),
        (path, Err(what)) => {
            let remedy = if table.has("secret_file") {
                KEY_REMEDY
            } else {
                "Write the issuer's public key, and the `algorithm` that it is for."
            };
            reader.notes.mistake(path.line, format!("{}: {what}.", path.value), remedy);
            None
        }
    }
}

/// The secret before the last rotation, where the file names one.
fn with_secondary(
    reader: &mut Reader<'_, '_>,
    table: &Table<'_>,
    issuer: &str,
    key: VerifyingKey,
    encoding: KeyEncoding,
) -> VerifyingKey {
    let Some(path) = table.text("secondary_secret_file") else { return key };
    let Some(secret) = reader.read_secret_file(path) else { return key };
    let secondary = match read_shared_secret(key.algorithm(), &secret, encoding) {
        Ok(secondary) => secondary,
        Err(error) => {
            reader.notes.mistake(path.line, format!("{}: {error}.", path.value), KEY_REMEDY);
            return key;
        }
    };
    if secondary.fingerprint() != key.fingerprint() {
        return key.with_secondary(secondary);
    }
    let kid = table.text("kid").map(|found| found.value.into());
    let owner = KeyOwner::Issuer { name: issuer.into(), kid };
    reader.note_same_keys(path.line, Path::new(path.value), &owner.to_string());
    key
}

/// The one algorithm that the key is for; a key that two of them could use must say which.
pub(super) fn only_one(
    choice: &[Algorithm],
    read: impl Fn(Algorithm) -> Result<VerifyingKey, KeyError>,
) -> Result<VerifyingKey, String> {
    let tried: Vec<_> = choice.iter().map(|algorithm| (*algorithm, read(*algorithm))).collect();
    let mut good = tried.iter().filter_map(|(_, key)| key.as_ref().ok());
    match (good.next(), good.next()) {
        (Some(key), None) => Ok(key.clone()),
        (Some(_), Some(_)) => {
            let names: Vec<&str> =
                tried.iter().filter(|(_, key)| key.is_ok()).map(|(algorithm, _)| algorithm.as_str()).collect();
            Err(format!("it could be for {}: `algorithm` must say which", names.join(" or ")))
        }
        (None, _) => {
            // What is wrong with the key itself says more than that it is for another algorithm.
            let worst = tried
                .iter()
                .filter_map(|(_, key)| key.as_ref().err())
                .min_by_key(|error| matches!(error, KeyError::OtherFamily { .. } | KeyError::PemAsSecret));
            Err(worst.map_or("the issuer has no `algorithms`".into(), ToString::to_string))
        }
    }
}

fn read_shared_secret(algorithm: Algorithm, secret: &str, encoding: KeyEncoding) -> Result<VerifyingKey, KeyError> {
    // Before it is decoded: a PEM text is no base64, and the better sentence is that it is no secret.
    if secret.contains("-----BEGIN") {
        return Err(KeyError::PemAsSecret);
    }
    check_printed(secret)?;
    match encoding {
        KeyEncoding::Utf8 => VerifyingKey::from_secret(algorithm, secret.as_bytes()),
        KeyEncoding::Base64 => {
            let bytes = Zeroizing::new(STANDARD.decode(secret).map_err(|_| KeyError::NotBase64)?);
            VerifyingKey::from_secret(algorithm, &bytes)
        }
    }
}

pub(super) fn read_public_file(reader: &mut Reader<'_, '_>, path: Found<&str>) -> Option<String> {
    reader.files.push(path.value.into());
    match fs::read_to_string(Path::new(path.value)) {
        Ok(text) => Some(text),
        Err(error) => {
            let what = format!("{} cannot be read: {error}.", path.value);
            reader.notes.mistake(
                path.line,
                what,
                "Correct the path (it is relative to the working directory) or the file's mode.",
            );
            None
        }
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.into()) }
}
