//! Making tokens: for the command line, demonstrations and tests. And the self-test of what verifies them.

use std::fmt;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hmac::Mac;
use jsonwebtoken::{AlgorithmFamily, EncodingKey, crypto, jwk};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Algorithm, KeyError, VerifyingKey, key::keyed};
use crate::{id::DeviceId, time::UnixSeconds};

/// A SAS token for a resource (as `localhost/devices/pump-17`, not encoded yet).
pub fn mint_sas(resource: &str, key: &[u8], expires_at: UnixSeconds, policy: Option<&str>) -> String {
    let sr = utf8_percent_encode(resource, ESCAPED).to_string();
    let signature = keyed(key, &[sr.as_bytes(), b"\n", expires_at.0.to_string().as_bytes()]).finalize().into_bytes();
    let sig = STANDARD.encode(signature);
    let sig = utf8_percent_encode(&sig, ESCAPED);
    let skn = policy.map_or(String::new(), |name| format!("&skn={}", utf8_percent_encode(name, ESCAPED)));
    format!("{}sr={sr}&sig={sig}&se={}{skn}", super::sas::PREFIX, expires_at.0)
}

/// What a SAS token of a device or module is for: `{host}/devices/{id}` or `{host}/devices/{id}/modules/{m}`.
pub fn resource_of(host: &str, id: &DeviceId) -> String {
    let module = id.module().map_or(String::new(), |module| format!("/modules/{module}"));
    format!("{host}/devices/{}{module}", id.device())
}

/// What stands in a token that we make.
#[derive(Clone, Debug, Default)]
pub struct JwtClaims {
    /// All claims, by name.
    pub claims: Map<String, Value>,
}

impl JwtClaims {
    /// With one more claim.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.into(), value.into());
        self
    }
}

/// A key that signs JWTs.
#[derive(Clone)]
pub struct SigningKey {
    algorithm: Algorithm,
    key: EncodingKey,
    kid: Option<String>,
}

impl SigningKey {
    /// A shared secret.
    ///
    /// # Errors
    /// As [`VerifyingKey::from_secret`].
    pub fn from_secret(algorithm: Algorithm, secret: &[u8], kid: Option<&str>) -> Result<Self, KeyError> {
        VerifyingKey::from_secret(algorithm, secret)?;
        Ok(Self { algorithm, key: EncodingKey::from_secret(secret), kid: kid.map(Into::into) })
    }

    /// A private key in PEM (PKCS #8, for RSA also PKCS #1).
    ///
    /// # Errors
    /// [`KeyError::OtherFamily`].
    pub fn from_pem(algorithm: Algorithm, pem: &str, kid: Option<&str>) -> Result<Self, KeyError> {
        let read = match algorithm.family() {
            AlgorithmFamily::Hmac => return Err(KeyError::PemAsSecret),
            AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(pem.as_bytes()),
            AlgorithmFamily::Ec => EncodingKey::from_ec_pem(pem.as_bytes()),
            AlgorithmFamily::Ed => EncodingKey::from_ed_pem(pem.as_bytes()),
        };
        let key = read.map_err(|_| KeyError::OtherFamily { algorithm })?;
        Ok(Self { algorithm, key, kid: kid.map(Into::into) })
    }

    /// A private key that names itself: its `kid` is the thumbprint of its public half (RFC 7638).
    ///
    /// # Errors
    /// [`KeyError::OtherFamily`].
    pub fn from_pem_by_thumbprint(algorithm: Algorithm, pem: &str) -> Result<Self, KeyError> {
        let mut key = Self::from_pem(algorithm, pem, None)?;
        let public = key.public_jwk().map_err(|_| KeyError::OtherFamily { algorithm })?;
        // RFC 7638 §3.2: the required members alone, in lexical order, without white space.
        let required: Map<String, Value> =
            public.into_iter().filter(|(name, _)| THUMBPRINT_MEMBERS.contains(&name.as_str())).collect();
        key.kid = Some(URL_SAFE_NO_PAD.encode(Sha256::digest(Value::Object(sorted(required)).to_string())));
        Ok(key)
    }

    /// Its name in the header of the tokens that it signs.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its public half as others read it: one member of a JWK set (RFC 7517).
    ///
    /// # Errors
    /// [`MintError`]: a shared secret has no public half.
    pub fn public_jwk(&self) -> Result<Map<String, Value>, MintError> {
        if self.algorithm.is_hmac() {
            return Err(MintError);
        }
        let read = jwk::Jwk::from_encoding_key(&self.key, self.algorithm.of_library()).map_err(|_| MintError)?;
        let Ok(Value::Object(mut public)) = serde_json::to_value(read.algorithm) else { return Err(MintError) };
        public.insert("alg".into(), self.algorithm.as_str().into());
        public.insert("use".into(), "sig".into());
        if let Some(kid) = &self.kid {
            public.insert("kid".into(), kid.as_str().into());
        }
        Ok(public)
    }
}

/// In lexical order, whichever order the map keeps.
fn sorted(members: Map<String, Value>) -> Map<String, Value> {
    let mut members: Vec<(String, Value)> = members.into_iter().collect();
    members.sort_by(|(a, _), (b, _)| a.cmp(b));
    members.into_iter().collect()
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, kid {:?})", self.algorithm, self.kid)
    }
}

/// A JWT with these claims.
///
/// # Errors
/// [`MintError`]: the key cannot sign.
pub fn mint_jwt(claims: &JwtClaims, key: &SigningKey) -> Result<String, MintError> {
    let mut header = Map::new();
    header.insert("typ".into(), "JWT".into());
    header.insert("alg".into(), key.algorithm.as_str().into());
    if let Some(kid) = &key.kid {
        header.insert("kid".into(), kid.as_str().into());
    }
    let part = |map: &Map<String, Value>| URL_SAFE_NO_PAD.encode(Value::Object(map.clone()).to_string());
    let message = format!("{}.{}", part(&header), part(&claims.claims));
    let signature = crypto::sign(message.as_bytes(), &key.key, key.algorithm.of_library()).map_err(|_| MintError)?;
    Ok(format!("{message}.{signature}"))
}

/// The key cannot sign: it is damaged or for another curve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MintError;

impl fmt::Display for MintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the key cannot sign: it is damaged or for another algorithm")
    }
}

impl std::error::Error for MintError {}

/// Signs and verifies once. The library of JWTs panics at its first use when it was built without exactly one
/// cryptographic back end: that shall be seen at start, not at the first device.
///
/// # Errors
/// What does not work.
pub fn self_test() -> Result<(), String> {
    let attempt = std::panic::catch_unwind(|| {
        let (secret, message) = ((0..32).collect::<Vec<u8>>(), b"tollgate");
        let key = VerifyingKey::from_secret(Algorithm::HS256, &secret).map_err(|error| error.to_string())?;
        let signature = crypto::sign(message, &EncodingKey::from_secret(&secret), jsonwebtoken::Algorithm::HS256)
            .map_err(|error| error.to_string())?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|error| error.to_string())?;
        let right = key.verifies(message, &signature) && !key.verifies(b"tollgatf", &signature);
        right.then_some(()).ok_or_else(|| "a signature that was just made does not verify".to_owned())
    });
    attempt.unwrap_or_else(|_| Err("the library of JWTs was built without a cryptographic back end".into()))
}

/// RFC 7638 §3.2: required members of RSA, EC and OKP keys.
const THUMBPRINT_MEMBERS: [&str; 6] = ["crv", "e", "kty", "n", "x", "y"];
/// RFC 3986 §2.3: what need not be escaped.
pub(super) const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
