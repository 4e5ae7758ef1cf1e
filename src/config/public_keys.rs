//! `[[device.public_key]]` and `[[module.public_key]]`: what a device signs its own JWTs with.

use std::time::{Duration, SystemTime};

use super::{
    document::{Found, Section, Table},
    identities::Reader,
    issuers::{only_one, read_public_file},
};
use crate::{
    credential::{Algorithm, PublicKey, Validity, VerifyingKey, is_kid, parse_jwk},
    time::UnixSeconds,
};

pub(super) fn read_public_keys(reader: &mut Reader<'_, '_>, table: &Table<'_>, owner: &str) -> Vec<PublicKey> {
    let tables = table.tables("public_key", &PUBLIC_KEY).unwrap_or_default();
    let mut keys: Vec<PublicKey> = Vec::new();
    for table in &tables {
        let Some(public) = read_public_key(reader, table) else { continue };
        if public.kid.is_some() && keys.iter().any(|other| other.kid == public.kid) {
            reader.notes.mistake(table.line_of("kid"), format!("this `kid` stands twice at {owner}."), RENAME);
        }
        let fingerprint = Found { value: public.key.fingerprint(), line: table.line_of("file") };
        reader.note_shared_key(
            owner,
            fingerprint,
            "Make a key pair for each device, and have it keep the private key.",
        );
        keys.push(public);
    }
    if let Some(first_too_many) = tables.get(KEYS_MAX) {
        let what = format!("{owner} has more than {KEYS_MAX} public keys, and each may be tried for every token.");
        reader.notes.mistake(first_too_many.line(), what, "Take out those that are good no more.");
    }
    keys
}

fn read_public_key(reader: &mut Reader<'_, '_>, table: &Table<'_>) -> Option<PublicKey> {
    table.require("file", "Name the file with the device's public key: PEM, or one JWK.");
    let kid = table.parsed("kid", |text| match text {
        "primary" | "secondary" => Err(format!("{text:?} is the name of a SAS key")),
        _ if is_kid(text) => Ok(text.into()),
        _ => Err("1 to 128 letters, digits and ._~- may stand in it".into()),
    });
    let named = table.parsed("algorithm", |text| match text.parse::<Algorithm>() {
        Ok(algorithm) if !algorithm.is_hmac() => Ok(algorithm),
        _ => Err(format!("{text:?} is no algorithm of public keys")),
    });
    let (not_before, not_after) = (table.time("not_before"), table.time("not_after"));
    let validity = Validity {
        not_before: not_before.as_ref().map(|found| found.value),
        not_after: not_after.as_ref().map(|found| found.value),
    };
    check_times(reader, table, validity);
    let choice: Vec<Algorithm> = match named {
        Some(found) => vec![found.value],
        None => Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.is_hmac()).collect(),
    };
    let path = table.text("file")?;
    let text = read_public_file(reader, path)?;
    let is_jwk = text.trim_start().starts_with('{');
    let read = match is_jwk {
        true => parse_jwk(&text, &choice).map_err(|error| error.to_string()),
        false => only_one(&choice, |algorithm| VerifyingKey::from_pem(algorithm, &text)).map(|key| (None, key)),
    };
    match read {
        Ok((own, key)) => Some(PublicKey { kid: kid.map(|found| found.value).or(own), key, validity }),
        Err(what) => {
            let remedy = "Write the device's public key, and the `algorithm` that it is for.";
            reader.notes.mistake(path.line, format!("{}: {what}.", path.value), remedy);
            None
        }
    }
}

fn check_times(reader: &Reader<'_, '_>, table: &Table<'_>, validity: Validity) {
    let Some(end) = validity.not_after else { return };
    let line = table.line_of("not_after");
    if validity.not_before.is_some_and(|from| end <= from) {
        let what = "`not_after` is not later than `not_before`: the key would never be good.";
        reader.notes.mistake(line, what, "Correct one of the two.");
        return;
    }
    let now = UnixSeconds::from_system(SystemTime::now());
    let remedy = "Give the device a new key pair, and add its public key beside this one.";
    if end <= now {
        reader.notes.warn(line, format!("this public key was good until {end}, and is no more."), remedy);
    } else if end.since(now) < WARN_BEFORE_END {
        let days = end.since(now).as_secs().div_ceil(86_400);
        let what = format!("this public key is good until {end}, within {days} days: then it cuts its device off.");
        reader.notes.warn(line, what, remedy);
    }
}

const PUBLIC_KEY: Section = Section {
    name: "[[device.public_key]]",
    keys: &["kid", "file", "algorithm", "not_before", "not_after"],
    later: &[],
};
const RENAME: &str = "Rename one of the two.";
/// One in use, one to come, and a few that ran out.
const KEYS_MAX: usize = 8;
/// Time to reach a device that is far away.
const WARN_BEFORE_END: Duration = Duration::from_hours(30 * 24);
