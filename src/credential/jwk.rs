//! Sets of public keys as issuers publish them (JWKS, RFC 7517 §5).

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::{Algorithm, KeyError, VerifyingKey, json::Json, jwt::is_kid, shown};

/// Reads a JWK set. A key for encryption, or of a type that no allowed algorithm has, is skipped and named; a shared
/// secret in a set that is published is an error.
///
/// # Errors
/// [`JwkSetError`] with the key that it is about.
#[expect(clippy::type_complexity, reason = "keys by `kid`, as an issuer holds them")]
pub fn parse_jwk_set(
    text: &str,
    allowed: &[Algorithm],
) -> Result<(Vec<(Option<Box<str>>, VerifyingKey)>, Vec<SkippedKey>), JwkSetError> {
    let whole = |what: &str| JwkSetError { key: None, what: what.into() };
    if text.len() > JWK_SET_BYTES_MAX {
        return Err(whole("it is larger than 256 KiB"));
    }
    let set = Json::parse_object(text.as_bytes()).map_err(|what| whole(&what))?;
    let Some(Json::List(entries)) = set.get("keys") else {
        return Err(whole("it has no list `keys`"));
    };
    let (mut keys, mut skipped): (Vec<(Option<Box<str>>, VerifyingKey)>, _) = (Vec::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        let about = |what: String| JwkSetError { key: Some(index + 1), what };
        let kid = read_kid(entry).map_err(about)?;
        if kid.is_some() && keys.iter().any(|(other, _)| *other == kid) {
            return Err(about(format!("the `kid` {} stands twice", shown(kid.as_deref().unwrap_or_default()))));
        }
        match read_key(entry, allowed).map_err(about)? {
            Ok(key) => keys.push((kid, key)),
            Err(why) => skipped.push(SkippedKey { key: index + 1, why }),
        }
    }
    if keys.is_empty() {
        return Err(whole("it holds no key for any of the issuer's `algorithms`"));
    }
    if keys.len() > 1 && keys.iter().any(|(kid, _)| kid.is_none()) {
        return Err(whole("a key has no `kid`, and there is more than one key"));
    }
    Ok((keys, skipped))
}

/// Reads one JWK (RFC 7517 §4), with its `kid` where it has one.
///
/// # Errors
/// [`JwkSetError`]: it is no public key for any of the allowed algorithms.
pub fn parse_jwk(text: &str, allowed: &[Algorithm]) -> Result<(Option<Box<str>>, VerifyingKey), JwkSetError> {
    let about = |what: String| JwkSetError { key: None, what };
    if text.len() > JWK_SET_BYTES_MAX {
        return Err(about("it is larger than 256 KiB".into()));
    }
    let entry = Json::parse_object(text.as_bytes()).map_err(about)?;
    if entry.get("keys").is_some() {
        return Err(about("it is a set of keys, and one key is asked for".into()));
    }
    let kid = read_kid(&entry).map_err(about)?;
    Ok((kid, read_key(&entry, allowed).map_err(about)?.map_err(about)?))
}

/// A key of a set that is not used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SkippedKey {
    /// Which, from 1.
    pub key: usize,
    /// Why.
    pub why: String,
}

/// Why a JWK set is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JwkSetError {
    /// Which key it is about, from 1.
    pub key: Option<usize>,
    /// Half a sentence.
    pub what: String,
}

impl fmt::Display for JwkSetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key {
            Some(key) => write!(f, "key {key}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for JwkSetError {}

fn read_kid(entry: &Json) -> Result<Option<Box<str>>, String> {
    match entry.get("kid") {
        None => Ok(None),
        Some(Json::Text(kid)) if is_kid(kid) => Ok(Some((**kid).into())),
        Some(_) => Err("its `kid` is not 1 to 128 letters, digits and ._~-".into()),
    }
}

/// The inner error says why the key is skipped.
fn read_key(entry: &Json, allowed: &[Algorithm]) -> Result<Result<VerifyingKey, String>, String> {
    let text = |name: &str| entry.get(name).and_then(Json::text);
    let needed = |name: &str| text(name).ok_or_else(|| format!("it has no `{name}`"));
    let kty = needed("kty")?;
    if kty == "oct" {
        return Err(
            "it is a shared secret, which no published set may hold (use [[issuer.key]] with secret_file)".into()
        );
    }
    if entry.get("d").is_some() {
        return Err(KeyError::PrivateKey.to_string());
    }
    if text("use").is_some_and(|usage| usage != "sig") {
        return Ok(Err("it is not for signatures".into()));
    }
    let algorithm = match (text("alg"), kty, text("crv")) {
        (Some(named), ..) => match named.parse() {
            Ok(algorithm) => algorithm,
            Err(_) => return Ok(Err(format!("its `alg` is {}", shown(named)))),
        },
        (None, "EC", Some("P-256")) => Algorithm::ES256,
        (None, "EC", Some("P-384")) => Algorithm::ES384,
        (None, "OKP", Some("Ed25519")) => Algorithm::EdDSA,
        (None, "RSA", _) => match single_rsa(allowed) {
            Some(algorithm) => algorithm,
            None => return Err("it has no `alg`, and the issuer's `algorithms` name not exactly one for RSA".into()),
        },
        _ => return Ok(Err(format!("its `kty` is {}", shown(kty)))),
    };
    if !allowed.contains(&algorithm) {
        return Ok(Err(format!("it is for {algorithm}, which is not in the issuer's `algorithms`")));
    }
    let curve = match algorithm {
        Algorithm::ES256 => Some("P-256"),
        Algorithm::ES384 => Some("P-384"),
        Algorithm::EdDSA => Some("Ed25519"),
        _ => None,
    };
    if text("crv") != curve {
        return Err(KeyError::OtherFamily { algorithm }.to_string());
    }
    let read = match kty {
        "RSA" => DecodingKey::from_rsa_components(needed("n")?, needed("e")?),
        "EC" => DecodingKey::from_ec_components(needed("x")?, needed("y")?),
        "OKP" => DecodingKey::from_ed_components(needed("x")?),
        _ => return Ok(Err(format!("its `kty` is {}", shown(kty)))),
    };
    let key = read.map_err(|_| "its numbers are no base64url".to_owned())?;
    if key.family() != algorithm.family() {
        return Err(KeyError::OtherFamily { algorithm }.to_string());
    }
    VerifyingKey::checked(algorithm, key).map(Ok).map_err(|error| error.to_string())
}

fn single_rsa(allowed: &[Algorithm]) -> Option<Algorithm> {
    let mut rsa = allowed.iter().filter(|algorithm| algorithm.family() == jsonwebtoken::AlgorithmFamily::Rsa);
    rsa.next().copied().filter(|_| rsa.next().is_none())
}

/// Far above what any issuer publishes.
const JWK_SET_BYTES_MAX: usize = 256 << 10;
